package qualys_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode/utf16"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
)

// furtherDeclared is a page of one host with a name, and an XML declaration of its own.
func furtherDeclared(declaration, name string) string {
	return declaration + strings.TrimPrefix(hosts("<HOST><ID>1</ID><DNS>"+name+"</DNS><DETECTION_LIST><DETECTION><QID>5</QID></DETECTION></DETECTION_LIST></HOST>"), `<?xml version="1.0" encoding="UTF-8" ?>`)
}

// Documents of ASCII are read whatever ASCII-compatible encoding they declare, and so is
// what the encodings of one byte a character have beyond it.
func TestFurtherDeclaredEncodings(t *testing.T) {
	const bom = "\xef\xbb\xbf"
	for name, c := range map[string]struct{ declaration, dns, want string }{
		"ISO-8859-1":                   {`<?xml version="1.0" encoding="ISO-8859-1"?>`, "caf\xe9", "café"},
		"iso-8859-1, single quotes":    {`<?xml version='1.0' encoding='iso-8859-1'?>`, "caf\xe9", "café"},
		"latin1":                       {`<?xml version="1.0" encoding="latin1"?>`, "caf\xe9", "café"},
		"LATIN1":                       {`<?xml version="1.0" encoding="LATIN1"?>`, "caf\xe9", "café"},
		"ISO8859-1":                    {`<?xml version="1.0" encoding="ISO8859-1"?>`, "caf\xe9", "café"},
		"windows-1252, quotes":         {`<?xml version="1.0" encoding="windows-1252"?>`, "\x93a\x94 \x80", "“a” €"},
		"Cp1252":                       {`<?xml version="1.0" encoding="Cp1252"?>`, "caf\xe9", "café"},
		"WINDOWS-1252":                 {`<?xml version="1.0" encoding="WINDOWS-1252"?>`, "caf\xe9", "café"},
		"ISO-8859-15":                  {`<?xml version="1.0" encoding="ISO-8859-15"?>`, "\xa4", "€"},
		"windows-1251":                 {`<?xml version="1.0" encoding="windows-1251"?>`, "\xcf\xf0\xe8", "При"},
		"blanks around the equals":     {`<?xml version = "1.0"  encoding = "ISO-8859-1"  standalone = "yes" ?>`, "caf\xe9", "café"},
		"line breaks":                  {"<?xml\r\nversion=\"1.0\"\r\nencoding=\"ISO-8859-1\"\r\n?>", "caf\xe9", "café"},
		"us-ascii":                     {`<?xml version="1.0" encoding="us-ascii"?>`, "plain", "plain"},
		"US-ASCII with UTF-8":          {`<?xml version="1.0" encoding="US-ASCII"?>`, "café", "café"},
		"ANSI_X3.4-1968":               {`<?xml version="1.0" encoding="ANSI_X3.4-1968"?>`, "plain", "plain"},
		"UTF8":                         {`<?xml version="1.0" encoding="UTF8"?>`, "café", "café"},
		"utf_8, with UTF-8":            {`<?xml version="1.0" encoding="utf_8"?>`, "café", "café"},
		"UTF-8 and a blank":            {`<?xml version="1.0" encoding="UTF-8 "?>`, "café", "café"},
		"unicode-1-1-utf-8":            {`<?xml version="1.0" encoding="unicode-1-1-utf-8"?>`, "café", "café"},
		"empty":                        {`<?xml version="1.0" encoding=""?>`, "café", "café"},
		"none":                         {`<?xml version="1.0"?>`, "café", "café"},
		"UTF-16 of ASCII":              {`<?xml version="1.0" encoding="UTF-16"?>`, "plain", "plain"},
		"utf-16le of UTF-8":            {`<?xml version="1.0" encoding="utf-16le"?>`, "café", "café"},
		"Shift_JIS of ASCII":           {`<?xml version="1.0" encoding="Shift_JIS"?>`, "plain", "plain"},
		"GB2312 of ASCII":              {`<?xml version="1.0" encoding="GB2312"?>`, "plain", "plain"},
		"EUC-KR of ASCII":              {`<?xml version="1.0" encoding="EUC-KR"?>`, "plain", "plain"},
		"Big5 of ASCII":                {`<?xml version="1.0" encoding="Big5"?>`, "plain", "plain"},
		"IBM850 of ASCII":              {`<?xml version="1.0" encoding="IBM850"?>`, "plain", "plain"},
		"one that nobody knows":        {`<?xml version="1.0" encoding="x-acme"?>`, "plain", "plain"},
		"mark, and it agrees":          {bom + `<?xml version="1.0" encoding="UTF-8"?>`, "café", "café"},
		"mark, and it disagrees":       {bom + `<?xml version="1.0" encoding="ISO-8859-1"?>`, "café", "café"},
		"mark, and windows-1252":       {bom + `<?xml version="1.0" encoding="windows-1252"?>`, "café “a”", "café “a”"},
		"mark alone":                   {bom, "café", "café"},
		"references in ISO-8859-1":     {`<?xml version="1.0" encoding="ISO-8859-1"?>`, "&#233;&#x20AC;\xe9", "é€é"},
		"CDATA in ISO-8859-1":          {`<?xml version="1.0" encoding="ISO-8859-1"?>`, "<![CDATA[caf\xe9 <b>]]>", "café <b>"},
		"a comment in ISO-8859-1":      {`<?xml version="1.0" encoding="ISO-8859-1"?><!-- caf` + "\xe9" + ` -->`, "x", "x"},
		"a second declaration, inside": {`<?xml version="1.0" encoding="ISO-8859-1"?><?note encoding="utf-16"?>`, "caf\xe9", "café"},
	} {
		for road, wrap := range map[string]func(io.Reader) io.Reader{
			"at once":     func(r io.Reader) io.Reader { return r },
			"by bytes":    iotest.OneByteReader,
			"end at once": iotest.DataErrReader,
		} {
			t.Run(name+"/"+road, func(t *testing.T) {
				r := newRows()
				_, err := qualys.NewDecoder(ingest.VM.Schema).Decode(wrap(strings.NewReader(furtherDeclared(c.declaration, c.dns))), time.Time{}, r)
				if err != nil || len(r.lines) != 1 {
					t.Fatalf("%d rows, %v", len(r.lines), err)
				}
				if got := field(t, r.lines[0], "DnsName_s"); got != c.want {
					t.Errorf("got %q, want %q", got, c.want)
				}
			})
		}
	}
}

// What cannot be read safely is refused, as an answer that may be asked for again, with
// the name of the encoding.
func TestFurtherEncodingsThatAreRefused(t *testing.T) {
	for name, c := range map[string]struct{ doc, want string }{
		"Shift_JIS, not ASCII":   {furtherDeclared(`<?xml version="1.0" encoding="Shift_JIS"?>`, "\x83\x65"), "Shift_JIS"},
		"GB18030, not ASCII":     {furtherDeclared(`<?xml version="1.0" encoding="GB18030"?>`, "\xc4\xe3"), "GB18030"},
		"unknown, not ASCII":     {furtherDeclared(`<?xml version="1.0" encoding="x-acme"?>`, "caf\xe9"), "x-acme"},
		"UTF-7":                  {furtherDeclared(`<?xml version="1.0" encoding="UTF-7"?>`, "+AOk-"), "UTF-7"},
		"ISO-2022-JP":            {furtherDeclared(`<?xml version="1.0" encoding="ISO-2022-JP"?>`, "x"), "ISO-2022-JP"},
		"EBCDIC name, not ASCII": {furtherDeclared(`<?xml version="1.0" encoding="IBM037"?>`, "\x81\x82"), "IBM037"},
	} {
		t.Run(name, func(t *testing.T) {
			r, _, err := decode(t, c.doc)
			var e *qualys.Error
			if !errors.As(err, &e) || e.Kind != qualys.Broken || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%d rows, %v, want an error that names %s", len(r.lines), err, c.want)
			}
		})
	}
	for name, order := range map[string]func(c uint16) []byte{
		"UTF-16, big end first":   func(c uint16) []byte { return []byte{byte(c >> 8), byte(c)} },
		"UTF-16, small end first": func(c uint16) []byte { return []byte{byte(c), byte(c >> 8)} },
	} {
		t.Run(name, func(t *testing.T) {
			var doc bytes.Buffer
			for _, c := range utf16.Encode([]rune("\ufeff" + furtherDeclared(`<?xml version="1.0" encoding="UTF-16"?>`, "x"))) {
				doc.Write(order(c))
			}
			r, _, err := decode(t, doc.String())
			if err == nil || len(r.lines) != 0 {
				t.Errorf("%d rows, %v, want an error", len(r.lines), err)
			}
		})
	}
}

// A page longer than any buffer is read whole in an encoding that grows when converted,
// and one that breaks off is not taken for whole.
func TestFurtherLongEncodedPages(t *testing.T) {
	var inner strings.Builder
	for id := range 3000 {
		fmt.Fprintf(&inner, "<HOST><ID>%d</ID><DNS>%s</DNS><DETECTION_LIST><DETECTION><QID>5</QID></DETECTION></DETECTION_LIST></HOST>", id+1, strings.Repeat("\xe9", id%150))
	}
	doc := `<?xml version="1.0" encoding="ISO-8859-1"?>` + strings.TrimPrefix(hosts(inner.String()), `<?xml version="1.0" encoding="UTF-8" ?>`)
	r, _, err := decode(t, doc)
	if err != nil || len(r.lines) != 3000 {
		t.Fatalf("%d rows, %v", len(r.lines), err)
	}
	for id, line := range r.lines {
		if got, _ := field(t, line, "DnsName_s").(string); got != strings.Repeat("é", id%150) {
			t.Fatalf("host %d has the name %q", id+1, got)
		}
	}
	for _, cut := range []int{60, 4096, 65_000, 65_536, 131_072, len(doc) - 1} {
		broken := errors.New("broken line")
		for name, end := range map[string]io.Reader{"ends": strings.NewReader(""), "fails": iotest.ErrReader(broken)} {
			_, err := qualys.NewDecoder(ingest.VM.Schema).Decode(io.MultiReader(strings.NewReader(doc[:cut]), end), time.Time{}, newRows())
			if err == nil || name == "fails" && !errors.Is(err, broken) {
				t.Errorf("cut at %d, %s: %v", cut, name, err)
			}
		}
	}
}

// Errors of Qualys in another encoding are understood as others are.
func TestFurtherEncodedErrors(t *testing.T) {
	for _, enc := range []string{"ISO-8859-1", "windows-1252", "us-ascii", "UTF-16", "Shift_JIS", "x-acme"} {
		_, _, err := decode(t, `<?xml version="1.0" encoding="`+enc+`"?><SIMPLE_RETURN><RESPONSE><DATETIME>2026-01-01T00:00:00Z</DATETIME><CODE>1965</CODE><TEXT>x</TEXT></RESPONSE></SIMPLE_RETURN>`)
		var e *qualys.Error
		if !errors.As(err, &e) || e.Kind != qualys.Limited {
			t.Errorf("%s: %v, want a limit", enc, err)
		}
	}
}
