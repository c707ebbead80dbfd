package record

import (
	"math/bits"
	"unicode/utf8"
)

const hex = "0123456789abcdef"

// escaped tells which bytes JSON text cannot hold as they are.
var escaped = func() (t [256]bool) {
	for c := range 0x20 {
		t[c] = true
	}
	t['"'], t['\\'] = true, true
	return t
}()

// AppendQuoted appends s, which must be valid UTF-8, as a JSON string.
func AppendQuoted[S ~string | ~[]byte](dst []byte, s S) []byte {
	dst = append(dst, '"')
	dst = AppendEscaped(dst, s)
	return append(dst, '"')
}

// maxEscape is how many bytes of JSON a byte may take.
const maxEscape = len(`\u0000`)

// Eight bytes at once: a byte in each of them.
const (
	eachByte      = 0x0101010101010101
	eachHigh      = 0x80 * eachByte
	eachBlank     = ' ' * eachByte
	eachQuote     = '"' * eachByte
	eachBackslash = '\\' * eachByte
)

// AppendEscaped appends s as the inside of a JSON string.
func AppendEscaped[S ~string | ~[]byte](dst []byte, s S) []byte {
	from, i := 0, 0
	for i < len(s) {
		if i+8 <= len(s) {
			// The sums borrow into the sign of the first byte that is below ' ', a
			// quote or a backslash (Warren, "Hacker's Delight", 6-1).
			w := uint64(s[i]) | uint64(s[i+1])<<8 | uint64(s[i+2])<<16 | uint64(s[i+3])<<24 |
				uint64(s[i+4])<<32 | uint64(s[i+5])<<40 | uint64(s[i+6])<<48 | uint64(s[i+7])<<56
			quote, backslash := w^eachQuote, w^eachBackslash
			found := ((w-eachBlank)&^w | (quote-eachByte)&^quote | (backslash-eachByte)&^backslash) & eachHigh
			if found == 0 {
				i += 8
				continue
			}
			i += bits.TrailingZeros64(found) / 8
		} else if !escaped[s[i]] {
			i++
			continue
		}
		dst = append(dst, s[from:i]...)
		switch c := s[i]; c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\t':
			dst = append(dst, '\\', 't')
		case '\r':
			dst = append(dst, '\\', 'r')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
		from = i
	}
	return append(dst, s[from:]...)
}

// escapedPrefix is the longest prefix of s that ends at a rune border, is at
// most raw bytes long, and takes at most encoded bytes inside a JSON string.
func escapedPrefix(s []byte, raw, encoded int) []byte {
	n := min(len(s), max(raw, 0))
	size := 0
	for i := range n {
		w := 1
		if escaped[s[i]] {
			w = 6
			if c := s[i]; c == '"' || c == '\\' || c == '\n' || c == '\t' || c == '\r' {
				w = 2
			}
		}
		if size += w; size > encoded {
			n = i
			break
		}
	}
	if n < len(s) {
		for n > 0 && !utf8.RuneStart(s[n]) {
			n--
		}
	}
	return s[:n]
}

// escapingWriter escapes what is written to it for the inside of a JSON string.
type escapingWriter struct {
	w   interface{ Write([]byte) (int, error) }
	buf []byte
}

func (e *escapingWriter) Write(p []byte) (int, error) {
	e.buf = AppendEscaped(e.buf[:0], p)
	if _, err := e.w.Write(e.buf); err != nil {
		return 0, err
	}
	return len(p), nil
}
