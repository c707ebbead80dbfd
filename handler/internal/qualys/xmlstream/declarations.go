package xmlstream

import (
	"bytes"
	"fmt"
)

// instruction skips a processing instruction. That of the XML declaration may name an
// encoding.
func (s *Scanner) instruction() error {
	declaration := !s.rooted && s.need(6) && bytes.HasPrefix(s.buf[s.pos:s.end], []byte("<?xml")) && isBlank(s.buf[s.pos+5])
	if !declaration {
		return s.skip(2, "?>", "a processing instruction")
	}
	at := s.Offset()
	for {
		raw := s.buf[s.pos:s.end]
		if i := bytes.Index(raw, []byte("?>")); i >= 0 {
			enc := declaredEncoding(raw[5:i])
			s.pos += i + 2
			if enc == "" {
				return nil
			}
			return s.useEncoding(enc, at)
		}
		if !s.fill() {
			return s.cut("the XML declaration")
		}
	}
}

// declaration skips a comment or DOCTYPE, or enters a CDATA section.
func (s *Scanner) declaration() error {
	const comment, cdata, doctype = "<!--", "<![CDATA[", "<!DOCTYPE"
	if s.need(len(comment)) && bytes.HasPrefix(s.buf[s.pos:s.end], []byte(comment)) {
		return s.skip(len(comment), "-->", "a comment")
	}
	if !s.need(len(cdata)) {
		return s.cut("a declaration")
	}
	head := s.buf[s.pos : s.pos+len(cdata)]
	switch {
	case string(head) == cdata && len(s.open) > 0:
		s.pos += len(cdata)
		s.cdata = true
		return nil
	case bytes.EqualFold(head, []byte(doctype)) && !s.rooted:
		return s.doctype()
	}
	return s.syntax(fmt.Sprintf("unexpected declaration %q", head))
}

// skip consumes from pos up to and with end, in constant memory.
func (s *Scanner) skip(from int, end, what string) error {
	s.pos += from
	for {
		raw := s.buf[s.pos:s.end]
		if i := bytes.Index(raw, []byte(end)); i >= 0 {
			s.pos += i + len(end)
			return nil
		}
		s.pos += max(0, len(raw)-len(end)+1)
		if !s.fill() {
			return s.cut(what)
		}
	}
}

// doctype skips a document type declaration with its internal subset. Nothing
// it declares is kept.
func (s *Scanner) doctype() error {
	const comment = 0x3c212d2d // "<!--"
	brackets, quote, last := 0, byte(0), uint32(0)
	for {
		for s.pos < s.end {
			c := s.buf[s.pos]
			s.pos++
			last = last<<8 | uint32(c)
			switch {
			case quote == 0 && last == comment:
				if err := s.skip(0, "-->", "a comment"); err != nil {
					return err
				}
			case quote != 0:
				if c == quote {
					quote = 0
				}
			case c == '"' || c == '\'':
				quote = c
			case c == '[':
				brackets++
			case c == ']':
				brackets--
			case c == '>' && brackets <= 0:
				return nil
			}
		}
		if !s.fill() {
			return s.cut("the DOCTYPE")
		}
	}
}
