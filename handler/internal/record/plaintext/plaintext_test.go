package plaintext_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"qualys-sentinel/handler/internal/record/plaintext"
)

func text(html string) string {
	return string(plaintext.Append(nil, []byte(html)))
}

func TestAppend(t *testing.T) {
	for name, c := range map[string]struct{ html, want string }{
		"no markup":        {" Not  applicable.\nNext line ", "Not  applicable.\nNext line"},
		"open paragraphs":  {"A <B>bold</B> claim.<P>\n\n<P>Logic (Authenticated):<BR>It matches &quot;show version&quot;. <BR>", "A bold claim.\n\nLogic (Authenticated):\nIt matches \"show version\"."},
		"list":             {"Do:<UL><LI>one<LI>two <I>x</I></UL>then<OL><LI>first</LI><LI>second<UL><LI>deep</UL></OL>", "Do:\n\n- one\n- two x\n\nthen\n\n1. first\n2. second\n  - deep"},
		"table":            {"<TABLE BORDER=1><TR><TH>Product</TH><TH>Fixed in</TH></TR><TR><TD>Windows <B>10</B><TD>KB1<BR>KB2</TR></TABLE>after", "Product | Fixed in\nWindows 10 | KB1 KB2\n\nafter"},
		"link":             {`See <A HREF="https://a.example/x" TARGET="_blank">advisory 7</A>, <a href="https://b.example">https://b.example</a>, stray </a>, <a name=x>anchor</a>`, "See advisory 7 (https://a.example/x), https://b.example, stray , anchor"},
		"entities":         {"a &lt;script&gt; &amp;lt; b_c *d* C:\\Windows\\*.dll # x", "a <script> &lt; b_c *d* C:\\Windows\\*.dll # x"},
		"preformatted":     {"run:<pre>  a\n   b</pre>", "run:\n\n  a\n   b"},
		"scripts and such": {"x<script>alert(1)</script><style>p{}</style><!-- c -->y<img alt='A &lt; B' src=x>", "xyA < B"},
		"headings":         {"<h2>Title</h2>text<hr>more", "Title\n\ntext\n\n---\n\nmore"},
		"not ascii":        {"<p>Größe 東京 ☂</p>", "Größe 東京 ☂"},
		"entities only":    {"one &quot;x&quot;\n\n  &lt;SCRIPT&gt;\n    two &amp; three&nbsp;four", "one \"x\"\n\n  <SCRIPT>\n    two & three four"},
		"blank lines":      {"one\n  line <B>b</B>\n \n  two\n\nthree.<P>\n\n<P>four", "one line b\n\ntwo\n\nthree.\n\nfour"},
		"no elements":      {"Upgrade to <Fixed Version> or mail <user@host.example> at once<BR>now <name> by <type>, see <https://x.example/kb>", "Upgrade to <Fixed Version> or mail <user@host.example> at once\nnow <name> by <type>, see <https://x.example/kb>"},
		"spoken of":        {"set the <style> attribute, not <SCRIPT><p>rest", "set the <style> attribute, not <SCRIPT><p>rest"},
		"pre with markup":  {"<pre>\nline1\n<b>line2</b>\n  line3\n</pre>after", "line1\nline2\n  line3\n\nafter"},
		"list in a cell":   {"<table><tr><td>a<ul><li>one</li><li>two</li></ul></td><td>b</td></tr></table>", "a - one - two | b"},
		"second table":     {"<table><tr><td>a<td>b</table><table><td>x<td>y</table>", "a | b\n\nx | y"},
		"block in a link":  {"<a href=u><p>text</p></a> more", "text (u) more"},
		"caption, centre":  {"<TABLE><CAPTION>Cap</CAPTION><TR><TD>A<TD>B</TABLE><FONT>red</FONT><CENTER>mid</CENTER><textarea>t</textarea>", "Cap\n\nA | B\n\nred\n\nmid\n\nt"},
		"empty":            {"<P><BR></P>", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := text(c.html); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

// What is appended to is left alone.
func TestAppendKeepsWhatIsThere(t *testing.T) {
	for html, want := range map[string]string{"<P>": "head \n", "<P>x": "head \nx", "": "head \n"} {
		if got := string(plaintext.Append([]byte("head \n"), []byte(html))); got != want {
			t.Errorf("%q: %q, want %q", html, got, want)
		}
	}
}

// Input made to be expensive stays cheap, and its text is there to the end.
func TestHostile(t *testing.T) {
	formatting := "<p>"
	for n := range 490 {
		formatting += fmt.Sprintf("<b a=%d>", n)
	}
	for name, html := range map[string]string{
		"formatting": formatting + strings.Repeat("<p>x", 60_000) + "deep",
		"quotes":     strings.Repeat("<blockquote>", 300) + strings.Repeat("x<br>\n", 40_000) + "deep",
		"attributes": "<p " + strings.Repeat("a=b ", 60_000) + ">deep",
		"bodies":     strings.Repeat("<html a0><body a=1>", 13_000) + "deep",
		"list lines": strings.Repeat("<ul><li>", 150) + strings.Repeat("x<br>", 40_000) + "deep",
		"links":      strings.Repeat("<a href=x>y", 20_000) + "deep",
		"nested":     strings.Repeat("<b><div>", 10_000) + "deep",
		"lists":      strings.Repeat("<ul><li>", 20_000) + "deep",
		"wide":       "<table><tr><td>" + strings.Repeat("x", 100_000) + strings.Repeat("<tr><td>1", 15_000) + "</table>deep",
		"spans":      `<table><tr><td colspan=1000000000 rowspan=1000000000>deep</table>`,
		"numbered":   `<ol start="999999999999999999999999"><li>deep</ol>`,
		"unclosed":   "<a href='" + strings.Repeat("x", 256<<10-20) + "deep",
		"brackets":   strings.Repeat("<", 256<<10-10) + " deep",
		"ampersand":  strings.Repeat("&", 256<<10-10) + "deep",
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			got := text(html)
			if name != "unclosed" && !strings.Contains(got, "deep") || len(got) > 8*len(html) {
				t.Errorf("%d bytes of %d: %.100q", len(got), len(html), got)
			}
			t.Logf("%d bytes of %d in %s", len(got), len(html), time.Since(began))
		})
	}
}

func FuzzAppend(f *testing.F) {
	f.Add("<p>a<table><tr><td>b<ul><li><a href=x>c</a><pre> d\n e</pre>&amp;&lt;")
	f.Fuzz(func(t *testing.T, html string) {
		if !utf8.ValidString(html) || len(html) > 256<<10 {
			t.Skip()
		}
		if got := text(html); !utf8.ValidString(got) || len(got) > 1000+20*len(html) {
			t.Errorf("%q of %q", got, html)
		}
	})
}
