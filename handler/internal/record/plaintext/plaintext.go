// Package plaintext makes readable text of the HTML in KnowledgeBase entries:
// paragraphs and list items on lines of their own, table rows as lines with
// " | " between the cells, links with their address behind them.
//
// It guarantees work and memory in proportion to the input, whatever that is,
// and never fails. Qualys' HTML is badly nested (open <P>, stray </a>), and a
// tree of it, built as browsers do, can take a thousand times its size; so
// this works on the tokens of the library, one after the other, and needs no
// nesting. What browsers do not show (scripts, styles, comments) is left out.
// What the text is used for does not enter here.
package plaintext

import (
	"bytes"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

// maxDepth bounds the indentation of nested lists.
const maxDepth = 8

// maxTag is the longest tag, in bytes, that is taken for one.
const maxTag = 16 << 10

// Append appends the text of an HTML fragment.
func Append(dst, fragment []byte) []byte {
	if bytes.IndexByte(fragment, '<') < 0 { // no markup: its lines are meant
		text := html.UnescapeString(string(fragment))
		return append(dst, strings.TrimSpace(strings.ReplaceAll(text, "\u00a0", " "))...)
	}
	w := writer{dst: dst, begin: len(dst)}
	z := html.NewTokenizer(bytes.NewReader(fragment))
	end := 0 // of the token in the fragment
	for {
		kind := z.Next()
		if kind == html.ErrorToken {
			break
		}
		begin := end
		end += len(z.Raw())
		w.token(kind, z, fragment[begin:end], fragment[end:])
	}
	return append(dst, bytes.TrimRight(w.dst[w.begin:], " \n")...)
}

// writer puts the text of tokens together.
type writer struct {
	dst   []byte
	begin int
	// lines that have to end before more text, and whether a blank has to come.
	lines int
	blank bool

	lists  []list
	prefix string // of the item whose text has not begun
	cells  int    // of the table row
	inCell bool
	hidden atom.Atom // the element whose content is not shown
	pre    bool
	// preBegins tells that nothing of a preformatted text was written.
	preBegins bool
	href      string
	linked    int // where the open link's text begins
}

// list is an open list.
type list struct {
	ordered bool
	items   int
}

// token writes a token, which stands as raw in the fragment; rest is what is
// behind it.
func (w *writer) token(kind html.TokenType, z *html.Tokenizer, raw, rest []byte) {
	if w.hidden != 0 {
		if name, _ := z.TagName(); kind == html.EndTagToken && atom.Lookup(name) == w.hidden {
			w.hidden = 0
		}
		return
	}
	switch kind {
	case html.TextToken:
		w.text(z.Text())
	case html.StartTagToken, html.SelfClosingTagToken:
		if len(raw) > maxTag {
			w.text(raw)
			return
		}
		name, attributes := z.TagName()
		w.start(atom.Lookup(name), raw, attributes, z, rest)
	case html.EndTagToken:
		name, _ := z.TagName()
		w.end(atom.Lookup(name))
	}
}

// attribute returns the value of an attribute of the tag just read.
func attribute(z *html.Tokenizer, more bool, name string) (value string) {
	for more {
		var key, val []byte
		if key, val, more = z.TagAttr(); string(key) == name {
			value = string(val)
		}
	}
	return value
}

func (w *writer) start(name atom.Atom, raw []byte, attributes bool, z *html.Tokenizer, rest []byte) {
	switch name {
	case atom.Script, atom.Style, atom.Iframe, atom.Title:
		if !bytes.Contains(bytes.ToLower(rest), []byte("</"+name.String())) {
			w.text(raw) // it is spoken of
			return
		}
		w.hidden = name
	case atom.Br:
		w.breakLine(1)
	case atom.Hr:
		w.breakLine(2)
		w.text([]byte("---"))
		w.breakLine(2)
	case atom.Ul, atom.Ol:
		w.breakLine(2 - min(len(w.lists), 1))
		w.lists = append(w.lists, list{ordered: name == atom.Ol})
	case atom.Li:
		w.item()
	case atom.Tr:
		w.inCell = false
		w.breakLine(1)
		w.cells = 0
	case atom.Td, atom.Th:
		w.inCell = false
		if w.cells > 0 {
			w.put([]byte(" | "))
		}
		w.cells++
		w.inCell, w.blank = true, false
	case atom.Table:
		w.inCell, w.cells = false, 0
		w.breakLine(2)
	case atom.Pre:
		w.breakLine(2)
		w.pre, w.preBegins = true, true
	case atom.A:
		w.endLink()
		w.href, w.linked = strings.TrimSpace(attribute(z, attributes, "href")), -1
	case atom.Img:
		w.text([]byte(attribute(z, attributes, "alt")))
	default:
		switch {
		case isBlock(name):
			w.breakLine(2)
		case !isInline(name): // as in "Upgrade to <version>": no element of HTML
			w.text(raw)
		}
	}
}

func (w *writer) end(name atom.Atom) {
	switch name {
	case atom.Ul, atom.Ol:
		if n := len(w.lists); n > 0 {
			w.lists = w.lists[:n-1]
		}
		w.prefix = ""
		w.breakLine(2 - min(len(w.lists), 1))
	case atom.Table:
		w.inCell = false
		w.breakLine(2)
	case atom.Td, atom.Th:
		w.inCell = false
	case atom.Pre:
		w.pre = false
		w.breakLine(2)
	case atom.A:
		w.endLink()
	case atom.Tr:
		w.inCell = false
		w.breakLine(1)
	case atom.Li:
		w.breakLine(1)
	default:
		if isBlock(name) {
			w.breakLine(2)
		}
	}
}

// isInline tells the elements of HTML that change nothing in plain text.
func isInline(name atom.Atom) bool {
	switch name {
	case atom.B, atom.I, atom.U, atom.S, atom.Em, atom.Strong, atom.Small, atom.Big, atom.Font, atom.Span, atom.Tt, atom.Code, atom.Kbd,
		atom.Samp, atom.Var, atom.Sub, atom.Sup, atom.Strike, atom.Del, atom.Ins, atom.Mark, atom.Q, atom.Cite, atom.Abbr, atom.Acronym, atom.Dfn,
		atom.Nobr, atom.Wbr, atom.Label, atom.Html, atom.Head, atom.Body, atom.Meta, atom.Link, atom.Base, atom.Thead, atom.Tbody, atom.Tfoot,
		atom.Col, atom.Colgroup, atom.Textarea, atom.Noscript, atom.Input, atom.Button, atom.Select, atom.Option, atom.Bdo, atom.Area, atom.Map, atom.Object, atom.Param, atom.Embed:
		return true
	}
	return false
}

// isBlock tells which elements stand in paragraphs of their own.
func isBlock(name atom.Atom) bool {
	switch name {
	case atom.P, atom.Div, atom.H1, atom.H2, atom.H3, atom.H4, atom.H5, atom.H6,
		atom.Center, atom.Caption, atom.Blockquote, atom.Dl, atom.Dt, atom.Dd, atom.Form, atom.Section, atom.Article:
		return true
	}
	return false
}

// item begins a list item.
func (w *writer) item() {
	w.breakLine(1)
	if len(w.lists) == 0 {
		w.prefix = "- "
		return
	}
	l := &w.lists[len(w.lists)-1]
	l.items++
	w.prefix = strings.Repeat("  ", min(len(w.lists)-1, maxDepth))
	if l.ordered {
		w.prefix += strconv.Itoa(l.items) + ". "
	} else {
		w.prefix += "- "
	}
}

// endLink puts the address behind a link's text where that does not tell it.
func (w *writer) endLink() {
	href := w.href
	w.href = ""
	if href == "" || strings.HasPrefix(href, "#") {
		return
	}
	said := ""
	if w.linked >= 0 {
		said = strings.TrimSpace(string(w.dst[w.linked:]))
	}
	switch said {
	case href:
	case "":
		w.put([]byte(href))
	default:
		w.blank, w.lines = false, 0
		w.put([]byte(" (" + href + ")"))
	}
}

// breakLine ends the line before more text: with 2 as a paragraph. Inside of a
// table cell a line would break the row apart.
func (w *writer) breakLine(lines int) {
	if w.inCell {
		w.blank = true
		return
	}
	w.lines = max(w.lines, lines)
}

// text writes text with its white-space as HTML shows it, but for blank lines:
// they part paragraphs in texts that use little markup. HTML does not show them,
// and Qualys' authors mean them.
func (w *writer) text(s []byte) {
	if bytes.Contains(s, noBreak) {
		s = bytes.ReplaceAll(s, noBreak, []byte{' '})
	}
	if w.pre && !w.inCell {
		if w.preBegins {
			s = bytes.TrimLeft(s, "\r\n")
		}
		w.preBegins = w.preBegins && len(s) == 0
		w.put(s)
		return
	}
	for len(s) > 0 {
		blanks, paragraph := leadingBlanks(s)
		if blanks > 0 {
			w.blank = true
		}
		if paragraph {
			w.breakLine(2)
		}
		s = s[blanks:]
		word := wordLength(s)
		w.put(s[:word])
		s = s[word:]
	}
}

// wordLength is the length of what s begins with, up to the next white-space.
func wordLength(s []byte) int {
	for i, c := range s {
		switch {
		case c == ' ' || '\t' <= c && c <= '\r':
			return i
		case c >= utf8.RuneSelf:
			if n := bytes.IndexFunc(s[i:], unicode.IsSpace); n >= 0 {
				return i + n
			}
			return len(s)
		}
	}
	return len(s)
}

// noBreak is a blank at which no line breaks.
var noBreak = []byte("\u00a0")

// leadingBlanks is the length of the white-space that s begins with, and tells
// whether there is a blank line in it.
func leadingBlanks(s []byte) (n int, paragraph bool) {
	line := false // a line has ended, and only blanks followed
	for n < len(s) {
		switch s[n] {
		case '\n':
			paragraph = paragraph || line
			line = true
			n++
		case ' ', '\t', '\r':
			n++
		default:
			r, size := utf8.DecodeRune(s[n:])
			if !unicode.IsSpace(r) {
				return n, paragraph
			}
			line = false
			n += size
		}
	}
	return n, paragraph
}

// put writes text behind what has to come before it.
func (w *writer) put(s []byte) {
	if len(s) == 0 {
		return
	}
	switch {
	case len(w.dst) == w.begin: // nothing is before the first text
	case w.lines > 0:
		w.dst = w.dst[:w.begin+len(bytes.TrimRight(w.dst[w.begin:], " \n"))]
		for range w.lines {
			w.dst = append(w.dst, '\n')
		}
	case w.blank && w.dst[len(w.dst)-1] != ' ' && s[0] != ' ':
		w.dst = append(w.dst, ' ')
	}
	w.lines, w.blank = 0, false
	w.dst = append(w.dst, w.prefix...)
	w.prefix = ""
	if w.href != "" && w.linked < 0 {
		w.linked = len(w.dst)
	}
	w.dst = append(w.dst, s...)
}
