// Package plaintext makes readable text of the HTML in KnowledgeBase entries:
// paragraphs and list items on lines of their own, table rows as lines with
// " | " between the cells, links with their address behind them.
//
// It guarantees bounded work and memory whatever the input, and never fails:
// what no HTML parser takes comes out as it is. Qualys' HTML is badly nested
// (open <P>, stray </a>), so parsing is the library's, as browsers do it. What
// the text is used for does not enter here.
package plaintext

import (
	"bytes"
	"strings"

	"github.com/JohannesKaufmann/html-to-markdown/v2/converter"
	"github.com/JohannesKaufmann/html-to-markdown/v2/plugin/base"
	"github.com/JohannesKaufmann/html-to-markdown/v2/plugin/commonmark"
	"golang.org/x/net/html"
)

// MaxInput is the longest HTML that is converted, in bytes: four times what a
// column takes. The parsed tree needs some 20 times as much memory.
const MaxInput = 256 << 10

// less stands for "<" while the library works, which would write it as "&lt;",
// and more for ">". Both are private code points.
const (
	less = "\uf8f1"
	more = "\uf8f2"
)

var (
	hide   = strings.NewReplacer("<", less, ">", more)
	reveal = strings.NewReplacer(less, "<", more, ">")
)

// A Converter converts. The zero value is ready; it is not safe for concurrent
// use.
type Converter struct {
	made *converter.Converter
}

// Append appends the text of an HTML fragment of at most MaxInput bytes.
func (c *Converter) Append(dst, fragment []byte) []byte {
	if !bytes.ContainsAny(fragment, "<&") {
		return append(dst, bytes.TrimSpace(fragment)...)
	}
	if c.made == nil {
		c.made = newConverter()
	}
	text, err := c.made.ConvertString(string(fragment))
	if err != nil {
		return append(dst, fragment...) // nested too deeply for the parser
	}
	for i, line := range strings.Split(reveal.Replace(text), "\n") {
		if i > 0 {
			dst = append(dst, '\n')
		}
		dst = append(dst, strings.TrimRight(line, " ")...)
	}
	return dst
}

func newConverter() *converter.Converter {
	c := converter.NewConverter(
		converter.WithEscapeMode(converter.EscapeModeDisabled),
		converter.WithPlugins(base.NewBasePlugin(), commonmark.NewCommonmarkPlugin(commonmark.WithListEndComment(false), commonmark.WithHorizontalRule("---"))),
	)
	c.Register.TextTransformer(func(_ converter.Context, s string) string { return hide.Replace(s) }, converter.PriorityEarly)
	// The library writes Markdown. Its marks say nothing in plain text.
	for _, name := range []string{"b", "strong", "i", "em", "code", "tt", "var", "samp", "kbd"} {
		c.Register.RendererFor(name, converter.TagTypeInline, children, converter.PriorityEarly)
	}
	for _, name := range []string{"h1", "h2", "h3", "h4", "h5", "h6", "table"} {
		c.Register.RendererFor(name, converter.TagTypeBlock, block, converter.PriorityEarly)
	}
	c.Register.RendererFor("pre", converter.TagTypeBlock, block, converter.PriorityEarly)
	c.Register.RendererFor("tr", converter.TagTypeBlock, row, converter.PriorityEarly)
	c.Register.RendererFor("td", converter.TagTypeBlock, cell, converter.PriorityEarly)
	c.Register.RendererFor("th", converter.TagTypeBlock, cell, converter.PriorityEarly)
	c.Register.RendererFor("br", converter.TagTypeInline, lineBreak, converter.PriorityEarly)
	c.Register.RendererFor("a", converter.TagTypeInline, link, converter.PriorityEarly)
	c.Register.RendererFor("img", converter.TagTypeInline, image, converter.PriorityEarly)
	return c
}

func children(ctx converter.Context, w converter.Writer, n *html.Node) converter.RenderStatus {
	ctx.RenderChildNodes(ctx, w, n)
	return converter.RenderSuccess
}

func block(ctx converter.Context, w converter.Writer, n *html.Node) converter.RenderStatus {
	write(w, "\n\n")
	ctx.RenderChildNodes(ctx, w, n)
	write(w, "\n\n")
	return converter.RenderSuccess
}

func lineBreak(_ converter.Context, w converter.Writer, _ *html.Node) converter.RenderStatus {
	write(w, "\n")
	return converter.RenderSuccess
}

// row is one line a table row.
func row(ctx converter.Context, w converter.Writer, n *html.Node) converter.RenderStatus {
	ctx.RenderChildNodes(ctx, w, n)
	write(w, "\n")
	return converter.RenderSuccess
}

// cell is a table cell: lines inside it would break the row apart.
func cell(ctx converter.Context, w converter.Writer, n *html.Node) converter.RenderStatus {
	var text bytes.Buffer
	ctx.RenderChildNodes(ctx, &text, n)
	for before := n.PrevSibling; before != nil; before = before.PrevSibling {
		if before.Type == html.ElementNode {
			write(w, " | ")
			break
		}
	}
	write(w, strings.Join(strings.Fields(text.String()), " "))
	return converter.RenderSuccess
}

// link is the link's text and, where that does not tell it, the address.
func link(ctx converter.Context, w converter.Writer, n *html.Node) converter.RenderStatus {
	var text bytes.Buffer
	ctx.RenderChildNodes(ctx, &text, n)
	said := strings.Join(strings.Fields(text.String()), " ")
	address := hide.Replace(strings.TrimSpace(attribute(n, "href")))
	switch {
	case address == "" || address == said || strings.HasPrefix(address, "#"):
		write(w, said)
	case said == "":
		write(w, address)
	default:
		write(w, said+" ("+address+")")
	}
	return converter.RenderSuccess
}

func image(_ converter.Context, w converter.Writer, n *html.Node) converter.RenderStatus {
	write(w, hide.Replace(attribute(n, "alt")))
	return converter.RenderSuccess
}

func attribute(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

// write never fails: the writer is a buffer in memory.
func write(w converter.Writer, s string) { _, _ = w.WriteString(s) }
