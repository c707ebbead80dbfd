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
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

// maxDepth bounds the indentation of nested lists.
const maxDepth = 8

// blankLine parts paragraphs in texts that use little markup: HTML does not
// show it, and Qualys' authors mean it.
var blankLine = regexp.MustCompile(`\n[ \t\r]*\n\s*`)

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
		end += len(z.Raw())
		w.token(kind, z, fragment[end:])
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

// token writes a token; rest is the fragment behind it.
func (w *writer) token(kind html.TokenType, z *html.Tokenizer, rest []byte) {
	if w.hidden != 0 {
		if name, _ := z.TagName(); kind == html.EndTagToken && atom.Lookup(name) == w.hidden {
			w.hidden = 0
		}
		return
	}
	switch kind {
	case html.TextToken:
		w.text(string(z.Text()))
	case html.StartTagToken, html.SelfClosingTagToken:
		raw := string(z.Raw())
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

func (w *writer) start(name atom.Atom, raw string, attributes bool, z *html.Tokenizer, rest []byte) {
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
		w.text("---")
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
			w.put(" | ")
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
		w.text(attribute(z, attributes, "alt"))
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
	return slices.Contains([]atom.Atom{
		atom.B, atom.I, atom.U, atom.S, atom.Em, atom.Strong, atom.Small, atom.Big, atom.Font, atom.Span, atom.Tt, atom.Code, atom.Kbd,
		atom.Samp, atom.Var, atom.Sub, atom.Sup, atom.Strike, atom.Del, atom.Ins, atom.Mark, atom.Q, atom.Cite, atom.Abbr, atom.Acronym, atom.Dfn,
		atom.Nobr, atom.Wbr, atom.Label, atom.Html, atom.Head, atom.Body, atom.Meta, atom.Link, atom.Base, atom.Thead, atom.Tbody, atom.Tfoot,
		atom.Col, atom.Colgroup, atom.Textarea, atom.Noscript, atom.Input, atom.Button, atom.Select, atom.Option, atom.Bdo, atom.Area, atom.Map, atom.Object, atom.Param, atom.Embed, atom.Center,
	}, name)
}

// isBlock tells which elements stand in paragraphs of their own.
func isBlock(name atom.Atom) bool {
	return slices.Contains([]atom.Atom{
		atom.P, atom.Div, atom.H1, atom.H2, atom.H3, atom.H4, atom.H5, atom.H6,
		atom.Center, atom.Caption, atom.Blockquote, atom.Dl, atom.Dt, atom.Dd, atom.Form, atom.Section, atom.Article,
	}, name)
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
		w.put(href)
	default:
		w.blank, w.lines = false, 0
		w.put(" (" + href + ")")
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

// text writes text with its white-space as HTML shows it.
func (w *writer) text(s string) {
	s = strings.ReplaceAll(s, "\u00a0", " ")
	if w.pre && !w.inCell {
		if w.preBegins {
			s = strings.TrimLeft(s, "\r\n")
		}
		w.preBegins = w.preBegins && s == ""
		w.put(s)
		return
	}
	for i, paragraph := range blankLine.Split(s, -1) {
		if i > 0 {
			w.breakLine(2)
		}
		for n, word := range strings.Fields(paragraph) {
			if n > 0 || i == 0 && startsBlank(paragraph) {
				w.blank = true
			}
			w.put(word)
		}
		if trimmed := strings.TrimRight(paragraph, " \t\r\n"); trimmed != paragraph {
			w.blank = true
		}
	}
}

func startsBlank(s string) bool { return s != strings.TrimLeft(s, " \t\r\n") }

// put writes text behind what has to come before it.
func (w *writer) put(s string) {
	if s == "" {
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
