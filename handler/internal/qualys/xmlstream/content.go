package xmlstream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxReference is the longest entity or character reference that is decoded,
// '&' and ';' included.
const maxReference = 16

// class tells clean which bytes need a closer look.
var class = func() (t [256]uint8) {
	for c := range t {
		switch {
		case c == '\t' || c == '\n':
		case c < ' ':
			t[c] = needsRewrite
		case c == '&':
			t[c] = needsReference
		case c >= utf8.RuneSelf:
			t[c] = needsUTF8
		}
	}
	return t
}()

const (
	needsUTF8 = 1 << iota
	needsReference
	needsRewrite
)

// Eight bytes at once: a byte in each of them.
const (
	eachByte  = 0x0101010101010101
	eachHigh  = 0x80 * eachByte
	eachBlank = ' ' * eachByte
	eachAmp   = '&' * eachByte
)

// classes is what the bytes of raw need, together.
func classes(raw []byte) (seen uint8) {
	high := uint64(0)
	for len(raw) >= 8 {
		// The sums borrow into the sign of a byte below ' ', and of one that is
		// '&' (Warren, "Hacker's Delight", 6-1).
		w := binary.LittleEndian.Uint64(raw)
		amp := w ^ eachAmp
		high |= w
		if ((w-eachBlank)&^w|(amp-eachByte)&^amp)&eachHigh != 0 {
			for _, c := range raw[:8] {
				seen |= class[c]
			}
		}
		raw = raw[8:]
	}
	for _, c := range raw {
		seen |= class[c]
	}
	if high&eachHigh != 0 {
		seen |= needsUTF8
	}
	return seen
}

// clean decodes character data: references if asked, line ends, and what XML
// or UTF-8 forbids. It returns raw itself where nothing is to be done.
func (s *Scanner) clean(raw []byte, references bool) []byte {
	seen := classes(raw)
	if !references {
		seen &^= needsReference
	}
	if seen == 0 || seen == needsUTF8 && utf8.Valid(raw) && !bytes.Contains(raw, []byte(noncharacters)) {
		return raw
	}
	out := s.scratch[:0]
	for i := 0; i < len(raw); {
		c := raw[i]
		switch {
		case c == '\r':
			out = append(out, '\n')
			if i++; i < len(raw) && raw[i] == '\n' {
				i++
			}
		case c == '&' && references:
			var n int
			out, n = s.reference(out, raw[i:])
			i += n
		case c < ' ' && c != '\t' && c != '\n':
			out = utf8.AppendRune(out, utf8.RuneError)
			s.Repairs.ControlChars++
			i++
		case c < utf8.RuneSelf:
			out = append(out, c)
			i++
		default:
			r, n := utf8.DecodeRune(raw[i:])
			switch {
			case r == utf8.RuneError && n == 1:
				s.Repairs.InvalidUTF8++
			case r == 0xFFFE || r == 0xFFFF:
				s.Repairs.ControlChars++
				r = utf8.RuneError
			}
			out = utf8.AppendRune(out, r)
			i += n
		}
	}
	s.scratch = out
	return out
}

// noncharacters begins U+FFFE and U+FFFF, which XML forbids.
const noncharacters = "\xef\xbf"

// reference decodes the reference that raw begins with and returns its length.
// Undeclared entities stay as they are: a DTD's are never expanded.
func (s *Scanner) reference(out, raw []byte) ([]byte, int) {
	end := bytes.IndexByte(raw[:min(len(raw), maxReference)], ';')
	if end < 0 {
		s.Repairs.Entities++
		return append(out, '&'), 1
	}
	name := string(raw[1:end])
	switch name {
	case "amp":
		return append(out, '&'), end + 1
	case "lt":
		return append(out, '<'), end + 1
	case "gt":
		return append(out, '>'), end + 1
	case "quot":
		return append(out, '"'), end + 1
	case "apos":
		return append(out, '\''), end + 1
	}
	if number, ok := strings.CutPrefix(name, "#"); ok {
		base := 10
		if hex, ok := strings.CutPrefix(number, "x"); ok {
			number, base = hex, 16
		}
		// ParseUint takes "_" and signs in no base but 0, so this is strict.
		if v, err := strconv.ParseUint(number, base, 32); err == nil {
			r := rune(utf8.RuneError)
			if v <= utf8.MaxRune && validChar(rune(v)) {
				r = rune(v)
			} else {
				s.Repairs.ControlChars++
			}
			return utf8.AppendRune(out, r), end + 1
		}
	}
	s.Repairs.Entities++
	return append(out, '&'), 1
}

// validChar tells whether XML 1.0 allows r (section 2.2 of the recommendation).
func validChar(r rune) bool {
	return r == '\t' || r == '\n' || r == '\r' ||
		r >= 0x20 && r <= 0xD7FF || r >= 0xE000 && r <= 0xFFFD || r >= 0x10000 && r <= utf8.MaxRune
}

// ParseAttrs walks the raw attribute text of a tag. Values are handed over
// without quotes and undecoded; AttrText decodes one.
func ParseAttrs(raw []byte, visit func(name, value []byte)) error {
	for len(raw) > 0 {
		eq := bytes.IndexByte(raw, '=')
		if eq < 0 {
			return errors.New("an attribute without a value")
		}
		name := bytes.TrimRight(raw[:eq], " \t\r\n")
		raw = bytes.TrimLeft(raw[eq+1:], " \t\r\n")
		if !validName(name) || len(raw) == 0 || raw[0] != '"' && raw[0] != '\'' {
			return errors.New("a malformed attribute")
		}
		end := bytes.IndexByte(raw[1:], raw[0])
		if end < 0 {
			return errors.New("an attribute without its closing quote")
		}
		visit(name, raw[1:1+end])
		rest := raw[end+2:]
		raw = bytes.TrimLeft(rest, " \t\r\n")
		if len(raw) > 0 && len(raw) == len(rest) {
			return errors.New("two attributes without a blank between them")
		}
	}
	return nil
}

// AttrText decodes an attribute value. The result is valid until the next call
// of AttrText or Next.
func (s *Scanner) AttrText(value []byte) []byte { return s.clean(value, true) }

// validName tells whether name is one by XML's rules for ASCII (section 2.3 of
// the recommendation); beyond it every valid UTF-8 is taken: names are only
// compared.
func validName(name []byte) bool {
	if len(name) == 0 || nameBytes[name[0]] == nameInside {
		return false
	}
	ascii := true
	for _, c := range name {
		switch {
		case nameBytes[c] != 0:
		case c >= utf8.RuneSelf:
			ascii = false
		default:
			return false
		}
	}
	return ascii || utf8.Valid(name)
}

// nameBytes tells what a byte may be in a name of ASCII; see validName.
var nameBytes = func() (t [256]uint8) {
	for c := range t {
		switch {
		case 'a' <= c && c <= 'z':
			t[c] = nameLower
		case 'A' <= c && c <= 'Z', c == '_', c == ':':
			t[c] = nameOther
		case '0' <= c && c <= '9', c == '-', c == '.':
			t[c] = nameInside
		}
	}
	return t
}()

const (
	nameLower  = 1 << iota
	nameOther  // may begin a name, too
	nameInside // may not
)

func hasLower(name []byte) bool {
	for _, c := range name {
		if nameBytes[c] == nameLower {
			return true
		}
	}
	return false
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

// declaredEncoding reads the encoding pseudo-attribute of an XML declaration.
func declaredEncoding(decl []byte) (enc string) {
	// A malformed declaration declares nothing; the document is taken as UTF-8.
	_ = ParseAttrs(bytes.Trim(decl, " \t\r\n"), func(name, value []byte) {
		if string(name) == "encoding" {
			enc = string(value)
		}
	})
	return enc
}

func utf8Compatible(enc string) bool {
	switch strings.ReplaceAll(strings.ToLower(strings.TrimSpace(enc)), "_", "-") {
	case "utf-8", "utf8", "unicode-1-1-utf-8", "us-ascii", "ascii":
		return true
	case "utf-16", "utf-16le", "utf-16be", "utf-32", "ucs-2": // the declaration was read, so it is none of these
		return true
	}
	return false
}
