package redact

import (
	"bytes"
	"html"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// A view is a text, or what it says when it is decoded, and from where in the text each
// of its bytes comes.
type view struct {
	text     []byte
	from, to []int32 // of each byte, in the text of the first view
	at       []int32 // of each byte, in the view that it was squeezed from
	// escapes are where the view before, raw, has what stands for something here.
	escapes []escape
	raw     *view
}

// escape is an escape from at to end of a view, behind which the decoded view goes on
// with behind.
type escape struct{ at, end, behind int }

// span is a part of a text.
type span struct{ from, to int }

// maxViews is how many views there are of a text: it is decoded four times at most, as
// nothing is escaped more often on its way through a few services.
const maxViews = 5

// views are a text, and what it says when it is decoded once, twice, and so on until
// nothing is left to decode.
func views(s string) []view {
	list := make([]view, 1, maxViews) // views point to those before them
	list[0] = plainView(s)
	for len(list) < maxViews {
		last := list[len(list)-1]
		next := decode(last)
		if bytes.Equal(next.text, last.text) {
			break
		}
		next.raw = &list[len(list)-1]
		list = append(list, next)
	}
	return list
}

func plainView(s string) view {
	v := view{text: []byte(s), from: make([]int32, len(s)), to: make([]int32, len(s))}
	for i := range v.text {
		v.from[i], v.to[i] = int32(i), int32(i+1)
	}
	return v
}

// sized is an empty view with room for so many bytes.
func sized(n int) view {
	return view{text: make([]byte, 0, n), from: make([]int32, 0, n), to: make([]int32, 0, n)}
}

// fromInside is a view that begins inside an escape, with what it is made of, and goes on
// decoded: what stands before a secret may make an escape of its beginning. It has so
// many bytes behind the escape at most.
func (v view) fromInside(e escape, most int) view {
	out := sized(e.end - e.at + most)
	for i := e.at + 1; i < e.end; i++ {
		out.append(*v.raw, i, i+1, v.raw.text[i])
	}
	for i := e.behind; i < min(len(v.text), e.behind+most); i++ {
		out.append(v, i, i+1, v.text[i])
	}
	return out
}

// append adds bytes that stand for those from i up to j of another view.
func (v *view) append(of view, i, j int, text ...byte) {
	for _, c := range text {
		v.text = append(v.text, c)
		v.from = append(v.from, of.from[i])
		v.to = append(v.to, of.to[j-1])
	}
}

// squeeze leaves out what does not count: blanks, which messages collapse and headers are
// folded at, and "+", which is one in a query.
func squeeze(v view) view {
	out := sized(len(v.text))
	out.at = make([]int32, 0, len(v.text))
	for i, c := range v.text {
		switch c {
		case ' ', '\t', '\n', '\r', '+':
		default:
			out.append(v, i, i+1, c)
			out.at = append(out.at, int32(i))
		}
	}
	return out
}

// decode undoes the escapes of URLs, of HTML and XML, and of JSON and Go.
func decode(v view) view {
	out := sized(len(v.text))
	for i := 0; i < len(v.text); {
		text, n := escaped(v.text[i:])
		if n == 0 {
			text, n = v.text[i:i+1], 1
		}
		out.append(v, i, i+n, text...)
		if n > 1 {
			out.escapes = append(out.escapes, escape{i, i + n, len(out.text)})
		}
		i += n
	}
	return out
}

// escaped reads the escape that a text begins with: what it stands for, and its length;
// zero if there is none.
func escaped(s []byte) (text []byte, n int) {
	switch s[0] {
	case '%':
		if c, ok := number(s, 1, 2); ok {
			return []byte{byte(c)}, 3 //nolint:gosec // two digits
		}
	case '&':
		return entity(s)
	case '\\':
		return backslash(s)
	}
	return nil, 0
}

// maxEntity is the longest reference that is read, in bytes: &CounterClockwiseContourIntegral; is
// no part of a secret.
const maxEntity = 12

func entity(s []byte) ([]byte, int) {
	end := bytes.IndexByte(s[:min(len(s), maxEntity)], ';')
	if end < 0 {
		return nil, 0
	}
	said := string(s[:end+1])
	if text := html.UnescapeString(said); text != said {
		return []byte(text), end + 1
	}
	return nil, 0
}

func backslash(s []byte) ([]byte, int) {
	if len(s) < 2 {
		return nil, 0
	}
	digits := map[byte]int{'u': 4, 'U': 8, 'x': 2}[s[1]]
	c, ok := number(s, 2, digits)
	switch {
	case digits == 0:
		if short, ok := shortEscapes[s[1]]; ok {
			return []byte{short}, 2
		}
	case !ok:
	case s[1] == 'x':
		return []byte{byte(c)}, 4 //nolint:gosec // two digits
	case utf16.IsSurrogate(rune(c)) && len(s) > 7 && s[6] == '\\' && s[7] == 'u': //nolint:gosec // at most eight digits
		if low, ok := number(s, 8, 4); ok {
			return utf8.AppendRune(nil, utf16.DecodeRune(rune(c), rune(low))), 12 //nolint:gosec // likewise
		}
	default:
		return utf8.AppendRune(nil, rune(c)), 2 + digits //nolint:gosec // likewise
	}
	return nil, 0
}

// shortEscapes are those of JSON and Go that have no digits.
var shortEscapes = map[byte]byte{
	'"': '"', '\\': '\\', '/': '/', '\'': '\'',
	'a': '\a', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t', 'v': '\v',
}

// number reads so many hexadecimal digits.
func number(s []byte, at, digits int) (uint64, bool) {
	if digits == 0 || len(s) < at+digits {
		return 0, false
	}
	n, err := strconv.ParseUint(string(s[at:at+digits]), 16, 32)
	return n, err == nil
}
