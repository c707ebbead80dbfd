package xmlstream

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"
)

// events reads a document and writes its tokens as one line: <A a="b">text</A>.
// Pieces of one text are joined.
func events(r io.Reader) (string, Repairs, error) { return read(r, false) }

// read is events, with or without the short way through leaves.
func read(r io.Reader, leaves bool) (string, Repairs, error) {
	s := New(r)
	var b strings.Builder
	for {
		tok, err := s.Next()
		if err != nil {
			if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				err = nil
			}
			return b.String(), s.Repairs, err
		}
		switch tok.Kind {
		case Start:
			fmt.Fprintf(&b, "<%s", tok.Name)
			if len(tok.Attrs) > 0 {
				fmt.Fprintf(&b, " %s", tok.Attrs)
			}
			b.WriteByte('>')
			name := string(tok.Name)
			if !leaves {
				continue
			}
			if text, ok := s.Leaf(); ok {
				fmt.Fprintf(&b, "%s</%s>", text, name)
			}
		case End:
			fmt.Fprintf(&b, "</%s>", tok.Name)
		case Text:
			b.Write(tok.Text)
		}
	}
}

func TestTokens(t *testing.T) {
	for name, c := range map[string]struct {
		in, want string
		repairs  Repairs
	}{
		"plain":                       {in: "<a><b>x</b></a>", want: "<A><B>x</B></A>"},
		"lower and upper case":        {in: "<Host><ID>1</ID></Host>", want: "<HOST><ID>1</ID></HOST>"},
		"empty element":               {in: "<a><b/><c x='1' /></a>", want: "<A><B></B><C x='1'></C></A>"},
		"ISO-8859-1":                  {in: `<?xml version="1.0" encoding="ISO-8859-1"?><a>` + "M\xfcnchen, caf\xe9" + `</a>`, want: "<A>München, café</A>"},
		"windows-1252":                {in: `<?xml version="1.0" encoding='windows-1252'?><a>` + "\x80 \x93x\x94" + `</a>`, want: "<A>€ “x”</A>"},
		"Latin1, by another name":     {in: `<?xml version="1.0" encoding="latin1" ?><a b="x"><![CDATA[` + "\xe4" + `]]></a>`, want: `<A b="x">ä</A>`},
		"another, ASCII only":         {in: `<?xml version="1.0" encoding="Shift_JIS"?><a>plain</a>`, want: "<A>plain</A>"},
		"UTF-16 that is none":         {in: `<?xml version="1.0" encoding="utf-16"?><a>plain ü</a>`, want: "<A>plain ü</A>"},
		"mark against declaration":    {in: "\xef\xbb\xbf" + `<?xml version="1.0" encoding="ISO-8859-1"?><a>ü</a>`, want: "<A>ü</A>"},
		"byte order mark":             {in: "\xef\xbb\xbf<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<a/>", want: "<A></A>"},
		"blanks before declaration":   {in: "\n  <?xml version=\"1.0\"?><a/>", want: "<A></A>"},
		"doctype over two lines":      {in: "<!DOCTYPE a SYSTEM\n \"https://x/y>z.dtd\"><a/>", want: "<A></A>"},
		"doctype with a subset":       {in: "<!DOCTYPE a [<!ENTITY e \"]>boom\"> <!ELEMENT a ANY>]><a>&e;</a>", want: "<A>&e;</A>", repairs: Repairs{Entities: 1}},
		"doctype with a comment":      {in: "<!DOCTYPE a [<!-- it's \"> -->]><a/>", want: "<A></A>"},
		"comments anywhere":           {in: "<!-- a -- b //--><a>x<!-- </a> -->y</a><!-- keep-alive for <A> -->\n", want: "<A>xy</A>"},
		"processing instruction":      {in: "<a>x<?php echo '</a>' ?>y</a>", want: "<A>xy</A>"},
		"cdata":                       {in: "<a><![CDATA[<b>&amp;]]]]><![CDATA[>]]></a>", want: "<A><b>&amp;]]></A>"},
		"empty cdata":                 {in: "<a><![CDATA[]]></a>", want: "<A></A>"},
		"references":                  {in: "<a>&lt;&gt;&amp;&quot;&apos;&#65;&#x42;&#x1F600;</a>", want: "<A><>&\"'AB\U0001F600</A>"},
		"references stay in cdata":    {in: "<a><![CDATA[&quot;-&gt;]]></a>", want: "<A>&quot;-&gt;</A>"},
		"undeclared entity":           {in: "<a>x&nbsp;y & z &toolongtobeareference;</a>", want: "<A>x&nbsp;y & z &toolongtobeareference;</A>", repairs: Repairs{Entities: 3}},
		"reference to nothing valid":  {in: "<a>&#1;&#xFFFF;&#99999999999;</a>", want: "<A>\uFFFD\uFFFD&#99999999999;</A>", repairs: Repairs{ControlChars: 2, Entities: 1}},
		"line ends":                   {in: "<a>1\r\n2\r3\n4<![CDATA[\r\n\r]]></a>", want: "<A>1\n2\n3\n4\n\n</A>"},
		"control characters":          {in: "<a>a\x00b\x0b<![CDATA[\x1f\t]]></a>", want: "<A>a\uFFFDb\uFFFD\uFFFD\t</A>", repairs: Repairs{ControlChars: 3}},
		"invalid utf-8":               {in: "<a>\xff\xc3(\xe2\x82<![CDATA[\xed\xa0\x80]]></a>", want: "<A>\uFFFD\uFFFD(\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD</A>", repairs: Repairs{InvalidUTF8: 7}},
		"utf-8":                       {in: "<a>Zürich 東京 \U0001F600<![CDATA[é]]></a>", want: "<A>Zürich 東京 \U0001F600é</A>"},
		"bracket in text":             {in: "<a>x]]>y</a>", want: "<A>x]]>y</A>"},
		"line breaks inside tags":     {in: "<a><RESULTS\n   >x</RESULTS\n></a>", want: "<A><RESULTS>x</RESULTS></A>"},
		"'>' inside an attribute":     {in: "<a b=\"x>y\">z</a>", want: "<A b=\"x>y\">z</A>"},
		"noncharacter U+FFFE":         {in: "<a>\uFFFE\uFFFD</a>", want: "<A>\uFFFD\uFFFD</A>", repairs: Repairs{ControlChars: 1}},
		"byte order mark in the text": {in: "<a>\ufeffx</a>", want: "<A>\ufeffx</A>"},
	} {
		t.Run(name, func(t *testing.T) {
			for kind, r := range map[string]io.Reader{
				"at once":      strings.NewReader(c.in),
				"byte by byte": iotest.OneByteReader(strings.NewReader(c.in)),
				"data and EOF": iotest.DataErrReader(strings.NewReader(c.in)),
			} {
				got, repairs, err := events(r)
				if err != nil || got != c.want || repairs != c.repairs {
					t.Errorf("%s: got %q, %+v, %v\nwant %q, %+v", kind, got, repairs, err, c.want, c.repairs)
				}
			}
			got, repairs, err := read(strings.NewReader(c.in), true)
			if err != nil || got != c.want || repairs != c.repairs {
				t.Errorf("by leaves: got %q, %+v, %v\nwant %q, %+v", got, repairs, err, c.want, c.repairs)
			}
		})
	}
}

func TestStructureIsStrict(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want string // in the error
	}{
		"no byte":                   {"", "empty document"},
		"blanks":                    {" \n\t", "empty document"},
		"comment only":              {"<!-- x -->", "empty document"},
		"cut at a boundary":         {"<a><b>x</b>", "cut off"},
		"cut in text":               {"<a>x", "cut off"},
		"cut in cdata":              {"<a><![CDATA[x", "cut off"},
		"cut in the end of cdata":   {"<a><![CDATA[x]]", "cut off"},
		"cut in a tag":              {"<a><b", "cut off"},
		"cut in an end tag":         {"<a></a", "cut off"},
		"cut in a comment":          {"<a><!-- x", "cut off"},
		"mismatched tags":           {"<a><b></a></b>", `element "b" ends with tag "a"`},
		"case of tags":              {"<a></A>", `element "a" ends with tag "A"`},
		"end tag first":             {"</a>", "without a start tag"},
		"second root":               {"<a/><b/>", `a second root element "b"`},
		"text after":                {"<a/>x", "text after the root"},
		"json":                      {`{"a":1}`, "this is no XML document"},
		"cdata outside":             {"<![CDATA[x]]><a/>", "unexpected declaration"},
		"doctype inside":            {"<a><!DOCTYPE a></a>", "unexpected declaration"},
		"no name":                   {"<a>< b></a>", "proper name"},
		"tag inside a tag":          {"<a <b>></a>", "'<' inside a tag"},
		"'<' in an attribute":       {"<a b='<'></a>", "'<' inside a tag"},
		"a name that is none":       {"<]></]>", "proper name"},
		"text behind an empty leaf": {"<a><b/>x</b></a>", `element "a" ends with tag "b"`},
		"attribute without quotes":  {"<a b=c></a>", "malformed attribute"},
		"attribute without value":   {"<a b></a>", "without a value"},
		"attributes in one":         {"<a b='c'd='e'></a>", "without a blank"},
		"encoding":                  {`<?xml version="1.0" encoding="GB18030"?><a>` + "\xc4\xe3" + `</a>`, `encoding "GB18030" is not supported, and what is not ASCII`},
		"unknown encoding":          {`<?xml version="1.0" encoding="x-none"?><a>` + "\xe4" + `</a>`, `encoding "x-none"`},
		"escaping encoding":         {`<?xml version="1.0" encoding="ISO-2022-JP"?><a>x</a>`, `encoding "ISO-2022-JP"`},
		"UTF-7":                     {`<?xml version="1.0" encoding="utf-7"?><a>+ADw-b+AD4-</a>`, `encoding "utf-7"`},
		"UTF-16":                    {"\xff\xfe<\x00a\x00/\x00>\x00", "no XML document"},
		"cut in another encoding":   {`<?xml version="1.0" encoding="ISO-8859-1"?><a>` + "\xe4", "cut off"},
		"too deep":                  {strings.Repeat("<a>", 65), "more than 64 elements"},
		"endless tag":               {"<a " + strings.Repeat("x", DefaultBuffer+1), "longer than the read buffer"},
	} {
		t.Run(name, func(t *testing.T) {
			for kind, r := range map[string]io.Reader{"at once": strings.NewReader(c.in), "byte by byte": iotest.OneByteReader(strings.NewReader(c.in))} {
				if got, _, err := events(r); err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%s: got %.50q, %v; want an error with %q", kind, got, err, c.want)
				}
			}
			if got, _, err := read(strings.NewReader(c.in), true); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("by leaves: got %.50q, %v; want an error with %q", got, err, c.want)
			}
		})
	}
}

// Every way to cut a document must be noticed.
func TestCutAnywhere(t *testing.T) {
	const doc = `<?xml version="1.0"?><!DOCTYPE a><a x="1"><b>t&amp;</b><![CDATA[c]]d]]><!-- k --><c/></a>`
	for n := range doc {
		if _, _, err := events(strings.NewReader(doc[:n])); err == nil {
			t.Errorf("cut after %q: no error", doc[:n])
		}
	}
	want := errors.New("connection reset")
	r := io.MultiReader(strings.NewReader("<a><b>x</b>"), iotest.ErrReader(want))
	if _, _, err := events(r); !errors.Is(err, want) {
		t.Errorf("got %v, want the reader's error", err)
	}
}

// Blanks are skipped only where nothing else stands before the next tag.
func TestSkipBlanks(t *testing.T) {
	for in, want := range map[string]string{
		"<a> \r\n\t<b/> </a>":             "<A><B></B></A>",
		"<a> x <b/> y </a>":               "<A> x <B></B> y </A>",
		"<a><b/> <![CDATA[ ]]> <c/></a> ": "<A><B></B> <C></C></A>",
		"<a><![CDATA[  <b>]]></a>":        "<A>  <b></A>",
		"<a>  &lt;</a>":                   "<A>  <</A>",
	} {
		s := New(strings.NewReader(in))
		var b strings.Builder
		for {
			s.SkipBlanks()
			tok, err := s.Next()
			if err != nil {
				if !errors.Is(err, io.EOF) || b.String() != want {
					t.Errorf("%q: %q, %v; want %q", in, b.String(), err, want)
				}
				break
			}
			fmt.Fprintf(&b, map[Kind]string{Start: "<%s>", End: "</%s>", Text: "%s"}[tok.Kind], append(tok.Name, tok.Text...))
		}
	}
}

func TestLongTextComesInPieces(t *testing.T) {
	text := strings.Repeat("Größe 東京 &amp; \r\n", 200_000)
	for _, doc := range []string{"<a>" + text + "</a>", "<a><![CDATA[" + text + "]]></a>"} {
		got, repairs, err := events(strings.NewReader(doc))
		want := strings.ReplaceAll(text, "\r\n", "\n")
		if !strings.Contains(doc, "CDATA") {
			want = strings.ReplaceAll(want, "&amp;", "&")
		}
		if err != nil || repairs.Total() != 0 || got != "<A>"+want+"</A>" {
			t.Errorf("%.20q...: %d bytes, %+v, %v; want %d bytes", doc, len(got), repairs, err, len(want)+7)
		}
	}
}

// FuzzScanner compares with encoding/xml, in both directions: what that accepts
// must give the same events here; where it says that the structure is broken
// it must be so here; and no input may give other events when it comes in other
// pieces.
func FuzzScanner(f *testing.F) {
	for _, s := range []string{
		"<a><b c='d'>x&amp;y</b><![CDATA[z]]></a>", "<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "<a/><!-- x -->\n",
		"<a>\r\n\xff&#10;&#x0;</a>", "<a><![CDATA[]]]]><![CDATA[>]]></a>", "<?xml version='1.0' encoding='x'?><a/>", "<a b=\"1\" c='&lt;'/>",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		got, repairs, err := events(bytes.NewReader(doc))
		slow, slowRepairs, slowErr := events(iotest.OneByteReader(bytes.NewReader(doc)))
		if got != slow || repairs != slowRepairs || (err == nil) != (slowErr == nil) {
			t.Fatalf("at once: %q, %v, %v\nbyte by byte: %q, %v, %v", got, repairs, err, slow, slowRepairs, slowErr)
		}
		leaves, leavesRepairs, leavesErr := read(bytes.NewReader(doc), true)
		if got != leaves || repairs != leavesRepairs || fmt.Sprint(err) != fmt.Sprint(leavesErr) {
			t.Fatalf("by tokens: %q, %v, %v\nby leaves: %q, %v, %v", got, repairs, err, leaves, leavesRepairs, leavesErr)
		}
		if err == nil {
			if broken := structure(doc); broken != nil {
				t.Fatalf("got %q and no error; encoding/xml: %v", got, broken)
			}
		}
		want, ok := judge(doc)
		if !ok {
			return
		}
		if err != nil || got != want {
			t.Fatalf("got %q, %v\nencoding/xml: %q", got, err, want)
		}
	})
}

// tolerated are errors of encoding/xml that are none of structure, or about what
// nothing is made of here: comments, instructions and declarations.
var tolerated = []string{
	"unescaped ]]> not in CDATA section", `invalid sequence "--" not allowed in comments`,
	"declared but Decoder.CharsetReader is nil", "unsupported version", "expected target name after <?",
}

// structure is what encoding/xml finds wrong with a document whose content was
// made harmless first: characters and references that XML forbids are mended
// by the scanner and counted, and name spaces mean nothing to it.
func structure(doc []byte) error {
	if i := bytes.Index(bytes.ToUpper(doc), []byte("<!DOCTYPE")); i >= 0 {
		return nil // quotes and brackets in a subset: encoding/xml has its own idea
	}
	doc = bytes.Map(func(r rune) rune {
		if r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == '&' || r == ':' || r >= utf8.RuneSelf {
			return 'x'
		}
		return r
	}, bytes.TrimPrefix(doc, []byte(byteOrderMark)))
	d := xml.NewDecoder(bytes.NewReader(doc))
	depth, roots := 0, 0
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			if depth != 0 || roots != 1 {
				return fmt.Errorf("%d open elements, %d roots", depth, roots)
			}
			return nil
		}
		if err != nil {
			for _, text := range tolerated {
				if strings.Contains(err.Error(), text) {
					return nil
				}
			}
			if strings.Contains(err.Error(), "invalid XML name") && bytes.Contains(doc, []byte("<?")) {
				return nil // an instruction's
			}
			return err
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			if depth == 0 {
				roots++
			}
			depth++
		case xml.EndElement:
			depth--
		case xml.CharData:
			if depth == 0 && len(bytes.TrimSpace(tok)) > 0 {
				return errors.New("text outside of the root")
			}
		}
	}
}

// judge gives the events by encoding/xml, if it takes the document without
// attributes, name spaces and what else the two see differently.
func judge(doc []byte) (string, bool) {
	d := xml.NewDecoder(bytes.NewReader(doc))
	var b strings.Builder
	depth, roots := 0, 0
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return b.String(), roots == 1 && depth == 0
		}
		if err != nil {
			return "", false
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			if len(tok.Attr) > 0 || tok.Name.Space != "" || strings.ToUpper(tok.Name.Local) != asciiUpper(tok.Name.Local) {
				return "", false
			}
			if depth == 0 {
				roots++
			}
			if depth++; depth > maxDepth {
				return "", false
			}
			fmt.Fprintf(&b, "<%s>", asciiUpper(tok.Name.Local))
		case xml.EndElement:
			if depth == 0 || tok.Name.Space != "" {
				return "", false
			}
			depth--
			fmt.Fprintf(&b, "</%s>", asciiUpper(tok.Name.Local))
		case xml.CharData:
			if depth == 0 && len(bytes.TrimSpace(tok)) > 0 {
				return "", false
			}
			if depth > 0 {
				b.Write(tok)
			}
		case xml.Directive:
			if depth > 0 || roots > 0 || !bytes.HasPrefix(bytes.ToUpper(tok), []byte("DOCTYPE")) {
				return "", false
			}
			if bytes.ContainsAny(tok, "[]'\"") {
				return "", false // quoting in a subset: encoding/xml has its own idea
			}
		case xml.ProcInst:
			if tok.Target == "xml" {
				return "", false // encodings and their quirks are tested by hand
			}
		}
	}
}

func asciiUpper(s string) string {
	return strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' {
			return r - 32
		}
		return r
	}, s)
}
