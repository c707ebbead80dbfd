package plaintext_test

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"qualys-sentinel/handler/internal/record/plaintext"
)

func text(html string) string {
	var c plaintext.Converter
	return string(c.Append(nil, []byte(html)))
}

func TestAppend(t *testing.T) {
	for name, c := range map[string]struct{ html, want string }{
		"no markup":        {" Not  applicable.\nNext line ", "Not  applicable.\nNext line"},
		"open paragraphs":  {"A <B>bold</B> claim.<P>\n\n<P>Logic (Authenticated):<BR>It matches &quot;show version&quot;. <BR>", "A bold claim.\n\nLogic (Authenticated):\nIt matches \"show version\"."},
		"list":             {"Do:<UL><LI>one<LI>two <I>x</I></UL>then<OL><LI>first</LI><LI>second<UL><LI>deep</UL></OL>", "Do:\n\n- one\n- two x\n\nthen\n\n1. first\n2. second\n\n   - deep"},
		"table":            {"<TABLE BORDER=1><TR><TH>Product</TH><TH>Fixed in</TH></TR><TR><TD>Windows <B>10</B><TD>KB1<BR>KB2</TR></TABLE>after", "Product | Fixed in\nWindows 10 | KB1 KB2\n\nafter"},
		"link":             {`See <A HREF="https://a.example/x" TARGET="_blank">advisory 7</A>, <a href="https://b.example">https://b.example</a>, stray </a>, <a name=x>anchor</a>`, "See advisory 7 (https://a.example/x), https://b.example, stray , anchor"},
		"entities":         {"a &lt;script&gt; &amp;lt; b_c *d* C:\\Windows\\*.dll # x", "a <script> &lt; b_c *d* C:\\Windows\\*.dll # x"},
		"preformatted":     {"run:<pre>  a\n   b</pre>", "run:\n\n  a\n   b"},
		"scripts and such": {"x<script>alert(1)</script><style>p{}</style><!-- c -->y<img alt='A &lt; B' src=x>", "xyA < B"},
		"headings":         {"<h2>Title</h2>text<hr>more", "Title\n\ntext\n\n---\n\nmore"},
		"not ascii":        {"<p>Größe 東京 ☂</p>", "Größe 東京 ☂"},
		"empty":            {"<P><BR></P>", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := text(c.html); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

// Input made to be expensive stays cheap, and nothing of it is dropped in
// silence.
func TestHostile(t *testing.T) {
	for name, html := range map[string]string{
		"nested":    strings.Repeat("<b><div>", 10_000) + "deep",
		"lists":     strings.Repeat("<ul><li>", 20_000) + "deep",
		"wide":      "<table><tr><td>" + strings.Repeat("x", 100_000) + strings.Repeat("<tr><td>1", 15_000) + "</table>deep",
		"spans":     `<table><tr><td colspan=1000000000 rowspan=1000000000>deep</table>`,
		"numbered":  `<ol start="999999999999999999999999"><li>deep</ol>`,
		"unclosed":  "<a href='" + strings.Repeat("x", plaintext.MaxInput-20) + "deep",
		"brackets":  strings.Repeat("<", plaintext.MaxInput-10) + " deep",
		"ampersand": strings.Repeat("&", plaintext.MaxInput-10) + "deep",
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			got := text(html)
			if name != "unclosed" && !strings.Contains(got, "deep") || len(got) > 8*len(html) {
				t.Errorf("%d bytes of %d: %.100q", len(got), len(html), got)
			}
			t.Logf("%d bytes in %s", len(html), time.Since(began))
		})
	}
}

func FuzzAppend(f *testing.F) {
	f.Add("<p>a<table><tr><td>b<ul><li><a href=x>c</a><pre> d\n e</pre>&amp;&lt;")
	f.Fuzz(func(t *testing.T, html string) {
		if !utf8.ValidString(html) || len(html) > plaintext.MaxInput {
			t.Skip()
		}
		if got := text(html); !utf8.ValidString(got) || len(got) > 1000+20*len(html) {
			t.Errorf("%q of %q", got, html)
		}
	})
}
