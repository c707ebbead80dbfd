package xmlstream

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/htmlindex"
	"golang.org/x/text/transform"
)

// useEncoding goes on in the encoding that the XML declaration names. Those of one
// byte a character are converted. Of others only what is ASCII is safe to read: the
// declaration itself was read as such. at is the offset of the declaration.
func (s *Scanner) useEncoding(name string, at int64) error {
	if utf8Compatible(name) || at == int64(len(byteOrderMark)) {
		return nil // a byte order mark knows better than the declaration
	}
	if escaping(name) {
		return s.syntax(fmt.Sprintf("encoding %.40q is not supported, only UTF-8 and those of one byte a character", name))
	}
	var rest io.Reader = &resume{bytes.Clone(s.buf[s.pos:s.end]), s.readErr, s.r}
	if table := oneByte(name); table != nil {
		rest = transform.NewReader(rest, table.NewDecoder())
	} else {
		rest = &asciiReader{rest, name, s.Offset()}
	}
	s.r, s.end, s.readErr = rest, s.pos, nil
	return nil
}

// oneByte returns the table of an encoding of one byte a character, by any of its
// names; nil if it is none. All that are known there have ASCII in their lower half.
func oneByte(name string) *charmap.Charmap {
	e, err := htmlindex.Get(name)
	if err != nil {
		return nil
	}
	table, _ := e.(*charmap.Charmap)
	return table
}

// escaping reports whether ASCII characters of an encoding may mean others.
func escaping(name string) bool {
	name = strings.ToLower(name)
	return strings.HasPrefix(name, "iso-2022") || strings.HasPrefix(name, "hz") || strings.HasPrefix(name, "utf-7") || strings.HasPrefix(name, "unicode-1-1-utf-7")
}

// resume reads what was read ahead, and then what follows.
type resume struct {
	ahead []byte
	err   error // behind it; nil: what follows
	r     io.Reader
}

func (r *resume) Read(p []byte) (int, error) {
	if len(r.ahead) > 0 {
		n := copy(p, r.ahead)
		r.ahead = r.ahead[n:]
		return n, nil
	}
	if r.err != nil {
		return 0, r.err
	}
	return r.r.Read(p) //nolint:wrapcheck // the scanner looks for io.EOF
}

// asciiReader passes ASCII on, and nothing else.
type asciiReader struct {
	r        io.Reader
	encoding string
	offset   int64
}

func (r *asciiReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	for i, c := range p[:n] {
		if c >= 0x80 {
			return i, &SyntaxError{r.offset + int64(i), fmt.Sprintf("encoding %.40q is not supported, and what is not ASCII cannot be read; only UTF-8 and those of one byte a character are", r.encoding)}
		}
	}
	r.offset += int64(n)
	return n, err //nolint:wrapcheck // the scanner looks for io.EOF
}
