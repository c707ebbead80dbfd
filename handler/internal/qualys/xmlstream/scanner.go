// Package xmlstream turns the bytes of one XML document into a stream of
// tokens, in constant memory.
//
// It is strict about structure: a document counts only if its one root element
// was opened and closed, every tag matched, and nothing but blanks, comments
// and processing instructions stood around it. It is tolerant of content:
// characters that XML forbids and invalid UTF-8 become U+FFFD and are counted,
// and undeclared entities stay as they are. Entities of a DTD are never
// expanded and nothing is ever fetched. What elements mean does not enter here.
package xmlstream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// DefaultBuffer is the read buffer in bytes: a few TLS records, and more than
// any tag that Qualys has been seen to write.
const DefaultBuffer = 64 << 10

// byteOrderMark may precede a document.
const byteOrderMark = "\xef\xbb\xbf"

// maxDepth bounds the element stack. The deepest Qualys document has 9 levels.
const maxDepth = 64

var (
	// ErrEmpty reports a body without any element: no bytes, or blanks only.
	ErrEmpty = errors.New("empty document")
	// ErrCut reports a document that ended before its root element was closed.
	ErrCut = fmt.Errorf("document cut off: %w", io.ErrUnexpectedEOF)
)

// A SyntaxError says what breaks the structure and at which byte.
type SyntaxError struct {
	Offset int64
	Msg    string
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("malformed document at byte %d: %s", e.Offset, e.Msg)
}

// Kind tells tokens apart.
type Kind uint8

// The kinds of token. Comments, declarations and processing instructions are
// skipped and never seen.
const (
	Start Kind = iota + 1
	End
	Text
)

// A Token is one event. Its slices are valid until the next call of Next.
type Token struct {
	Kind Kind
	// Name of a Start or End token in upper case: Qualys has written element
	// names in both cases.
	Name []byte
	// Attrs is the raw attribute text of a Start token, checked for syntax.
	// ParseAttrs walks it.
	Attrs []byte
	// Text of a Text token: decoded, valid UTF-8, line ends as LF. A long text
	// comes in several tokens.
	Text []byte
	// CDATA tells that Text stood in a CDATA section.
	CDATA bool
}

// Repairs counts what was mended in the content.
type Repairs struct {
	ControlChars int64 // characters that XML forbids, replaced by U+FFFD
	InvalidUTF8  int64 // invalid byte sequences, replaced by U+FFFD
	Entities     int64 // undeclared entities, kept as written
}

// Total is the sum of all repairs.
func (r Repairs) Total() int64 { return r.ControlChars + r.InvalidUTF8 + r.Entities }

// A Scanner reads one document. Make it with New; Reset reuses its buffers.
type Scanner struct {
	// Repairs counts what was mended since New or Reset.
	Repairs Repairs

	r        io.Reader
	buf      []byte
	pos, end int
	base     int64 // document offset of buf[0]
	readErr  error // sticky; io.EOF at the end

	names   []byte // open element names, one after the other
	open    []element
	rootEnd bool
	rooted  bool

	tok        Token
	cdata      bool // inside a CDATA section
	pendingEnd bool // <a/> owes its End token
	upper      []byte
	scratch    []byte
}

// element is an open element.
type element struct {
	start int  // of its name in names
	lower bool // the name has lower case letters
}

// New returns a Scanner that reads a document from r.
func New(r io.Reader) *Scanner {
	s := &Scanner{buf: make([]byte, DefaultBuffer)}
	s.Reset(r)
	return s
}

// Reset makes s ready for another document.
func (s *Scanner) Reset(r io.Reader) {
	*s = Scanner{
		r: r, buf: s.buf, names: s.names[:0], open: s.open[:0],
		upper: s.upper, scratch: s.scratch,
	}
}

// Offset is the number of bytes consumed so far.
func (s *Scanner) Offset() int64 { return s.base + int64(s.pos) }

// Next returns the next token, which is valid until the next call. It returns
// io.EOF only after a whole document; any other error is final.
func (s *Scanner) Next() (*Token, error) {
	if s.pendingEnd {
		s.pendingEnd = false
		return s.endElement(), nil
	}
	for {
		var ok bool
		var err error
		switch {
		case s.cdata:
			ok, err = s.cdataChunk()
		case s.pos == s.end && !s.fill():
			return nil, s.finish()
		case s.buf[s.pos] != '<':
			ok, err = s.textChunk()
		default:
			ok, err = s.markup()
		}
		if err != nil {
			return nil, err
		}
		if ok {
			return &s.tok, nil
		}
	}
}

// Leaf returns the text of the element that the last token has opened, and
// passes its end tag, where the element holds nothing but one run of text or
// one CDATA section, and the buffer holds it all. Otherwise it does nothing,
// and Next returns the same piece by piece. The text is valid until the next
// call of Leaf or Next.
func (s *Scanner) Leaf() (text []byte, ok bool) {
	const cdata, cdataEnd = "<![CDATA[", "]]>"
	if s.pendingEnd {
		return nil, false
	}
	raw := s.buf[s.pos:s.end]
	section := bytes.HasPrefix(raw, []byte(cdata))
	begin, end, behind := 0, bytes.IndexByte(raw, '<'), 0
	if section {
		begin, end, behind = len(cdata), bytes.Index(raw[len(cdata):], []byte(cdataEnd)), len(cdataEnd)
	}
	if end < 0 {
		return nil, false
	}
	text, behind = raw[begin:begin+end], begin+end+behind
	n := s.endTagLength(raw[behind:])
	if n == 0 {
		return nil, false
	}
	s.pos += behind + n
	s.pop()
	return s.clean(text, !section), true
}

// SkipBlanks passes blanks that stand between here and the next markup, for
// callers to whom they mean nothing.
func (s *Scanner) SkipBlanks() {
	if s.cdata || s.pendingEnd {
		return
	}
	i := s.pos
	for s.end-i >= 8 && binary.LittleEndian.Uint64(s.buf[i:]) == eachBlank {
		i += 8
	}
	for ; i < s.end; i++ {
		switch s.buf[i] {
		case ' ', '\n', '\t', '\r':
		case '<':
			s.pos = i
			return
		default:
			return
		}
	}
}

// fill reads more bytes behind the unread ones. It reports false when nothing
// could be added: the input has ended or failed, or the buffer is full.
func (s *Scanner) fill() bool {
	if s.pos > 0 {
		s.base += int64(s.pos)
		copy(s.buf, s.buf[s.pos:s.end])
		s.end -= s.pos
		s.pos = 0
	}
	for s.readErr == nil && s.end < len(s.buf) {
		n, err := s.r.Read(s.buf[s.end:])
		s.end += n
		s.readErr = err
		if n > 0 {
			return true
		}
	}
	return false
}

// need makes n unread bytes available, or reports that they will not come.
func (s *Scanner) need(n int) bool {
	for s.end-s.pos < n {
		if !s.fill() {
			return false
		}
	}
	return true
}

// finish explains why no more bytes come.
func (s *Scanner) finish() error {
	switch {
	case s.readErr != nil && !errors.Is(s.readErr, io.EOF):
		return s.readErr
	case len(s.open) > 0 || s.cdata:
		return ErrCut
	case !s.rooted:
		return ErrEmpty
	}
	return io.EOF
}

// cut is the error for a construct that the end of the input or the size of
// the buffer interrupts.
func (s *Scanner) cut(what string) error {
	if s.readErr == nil {
		return s.syntax(what + " is longer than the read buffer")
	}
	if errors.Is(s.readErr, io.EOF) {
		return ErrCut
	}
	return s.readErr
}

func (s *Scanner) syntax(msg string) error {
	return &SyntaxError{Offset: s.Offset(), Msg: msg}
}

// textChunk consumes character data up to the next tag, or as much of it as
// the buffer holds.
func (s *Scanner) textChunk() (bool, error) {
	raw := s.buf[s.pos:s.end]
	if i := bytes.IndexByte(raw, '<'); i >= 0 {
		raw = raw[:i]
	} else if s.readErr == nil {
		// More may come: keep back what could be the first half of something.
		if raw = raw[:len(raw)-heldBack(raw, true)]; len(raw) == 0 {
			if !s.fill() && s.readErr == nil {
				return false, s.cut("an entity")
			}
			return false, nil
		}
	}
	if len(s.open) == 0 {
		return false, s.outside(raw)
	}
	s.pos += len(raw)
	s.tok = Token{Kind: Text, Text: s.clean(raw, true)}
	return true, nil
}

// outside accepts blanks around the root element, and a byte order mark before it.
func (s *Scanner) outside(raw []byte) error {
	rest := raw
	if !s.rooted && s.Offset() == 0 {
		if len(rest) < len(byteOrderMark) && s.readErr == nil && byteOrderMark[:len(rest)] == string(rest) {
			s.fill()
			return nil
		}
		rest = bytes.TrimPrefix(rest, []byte(byteOrderMark))
	}
	if rest = bytes.TrimLeft(rest, " \t\r\n"); len(rest) > 0 {
		s.pos += len(raw) - len(rest)
		if s.rootEnd {
			return s.syntax("text after the root element")
		}
		return s.syntax("text before the root element: this is no XML document")
	}
	s.pos += len(raw)
	return nil
}

// cdataChunk consumes the inside of a CDATA section up to its end, or as much
// of it as the buffer holds.
func (s *Scanner) cdataChunk() (bool, error) {
	raw := s.buf[s.pos:s.end]
	i := bytes.Index(raw, []byte("]]>"))
	if i >= 0 {
		raw = raw[:i]
		s.cdata = false
	} else {
		held := heldBack(raw, false)
		for n := min(2, len(raw)); n > 0; n-- {
			if bytes.HasSuffix(raw, []byte("]]")[:n]) {
				held = max(held, n)
				break
			}
		}
		raw = raw[:len(raw)-held]
		if len(raw) == 0 {
			if !s.fill() {
				return false, s.cut("a CDATA section")
			}
			return false, nil
		}
	}
	text := s.clean(raw, false)
	s.pos += len(raw)
	if i >= 0 {
		s.pos += 3
	}
	if len(text) == 0 && i >= 0 {
		return false, nil
	}
	s.tok = Token{Kind: Text, Text: text, CDATA: true}
	return true, nil
}

// heldBack is the number of bytes at the end of raw that may be the first part
// of a line end, a UTF-8 sequence or a reference.
func heldBack(raw []byte, references bool) int {
	n := len(raw)
	if n == 0 {
		return 0
	}
	if raw[n-1] == '\r' {
		return 1
	}
	for i := 1; i <= utf8.UTFMax && i <= n; i++ {
		c := raw[n-i]
		if utf8.RuneStart(c) {
			if c >= utf8.RuneSelf && !utf8.FullRune(raw[n-i:]) {
				return i
			}
			break
		}
	}
	if references {
		if i := bytes.LastIndexByte(raw[max(0, n-maxReference):], '&'); i >= 0 {
			tail := raw[max(0, n-maxReference)+i:]
			if bytes.IndexByte(tail, ';') < 0 {
				return len(tail)
			}
		}
	}
	return 0
}

// markup consumes one construct that begins with '<'.
func (s *Scanner) markup() (bool, error) {
	if !s.need(2) {
		return false, s.cut("a tag")
	}
	switch s.buf[s.pos+1] {
	case '/':
		return true, s.endTag()
	case '?':
		return false, s.instruction()
	case '!':
		return false, s.declaration()
	}
	return true, s.startTag()
}

func (s *Scanner) startTag() error {
	raw := s.buf[s.pos+1 : s.end]
	i, letters := 0, uint8(0)
	for i < len(raw) && nameBytes[raw[i]] != 0 {
		letters |= nameBytes[raw[i]]
		i++
	}
	if i > 0 && i < len(raw) && raw[i] == '>' && nameBytes[raw[0]] != nameInside {
		return s.startElement(i+2, raw[:i], nil, letters&nameLower != 0)
	}
	// What is not as short and plain as that.
	n, err := s.tagLength()
	if err != nil {
		return err
	}
	inner := s.buf[s.pos+1 : s.pos+n-1]
	empty := len(inner) > 0 && inner[len(inner)-1] == '/'
	if empty {
		inner = inner[:len(inner)-1]
	}
	name := inner
	if i := bytes.IndexAny(inner, " \t\r\n"); i >= 0 {
		name = inner[:i]
	}
	if !validName(name) {
		return s.syntax("a tag without a proper name")
	}
	attrs := bytes.Trim(inner[len(name):], " \t\r\n")
	if len(attrs) > 0 {
		if err := ParseAttrs(attrs, func(_, _ []byte) {}); err != nil {
			return s.syntax(fmt.Sprintf("tag %.40q: %v", name, err))
		}
	}
	if err := s.startElement(n, name, attrs, hasLower(name)); err != nil {
		return err
	}
	s.pendingEnd = empty
	return nil
}

// startElement opens an element, whose tag is n bytes long.
func (s *Scanner) startElement(n int, name, attrs []byte, lower bool) error {
	if len(s.open) == 0 {
		if s.rooted {
			return s.syntax(fmt.Sprintf("a second root element %.40q", name))
		}
		s.rooted = true
	}
	if len(s.open) == maxDepth {
		return s.syntax(fmt.Sprintf("more than %d elements inside each other", maxDepth))
	}
	s.open = append(s.open, element{start: len(s.names), lower: lower})
	s.names = append(s.names, name...)
	s.pos += n
	if lower {
		name = s.toUpper(name)
	}
	s.tok = Token{Kind: Start, Name: name, Attrs: attrs}
	return nil
}

func (s *Scanner) endTag() error {
	if n := s.endTagLength(s.buf[s.pos:s.end]); n > 0 {
		s.pos += n
		s.endElement()
		return nil
	}
	n, err := s.tagLength()
	if err != nil {
		return err
	}
	name := bytes.TrimRight(s.buf[s.pos+2:s.pos+n-1], " \t\r\n")
	if len(s.open) == 0 {
		return s.syntax(fmt.Sprintf("end tag %.40q without a start tag", name))
	}
	if open := s.names[s.open[len(s.open)-1].start:]; !bytes.Equal(open, name) {
		return s.syntax(fmt.Sprintf("element %.40q ends with tag %.40q", open, name))
	}
	s.pos += n
	s.endElement()
	return nil
}

// endTagLength is the length of the end tag of the innermost element that raw
// begins with; 0 if it begins with anything else, or with blanks in the tag.
func (s *Scanner) endTagLength(raw []byte) int {
	if len(s.open) == 0 {
		return 0
	}
	name := s.names[s.open[len(s.open)-1].start:]
	n := len(name) + 3
	if len(raw) >= n && raw[0] == '<' && raw[1] == '/' && raw[n-1] == '>' && bytes.Equal(raw[2:n-1], name) {
		return n
	}
	return 0
}

// endElement closes the innermost element and makes its End token.
func (s *Scanner) endElement() *Token {
	name, lower := s.pop()
	if lower {
		name = s.toUpper(name)
	}
	s.tok = Token{Kind: End, Name: name}
	return &s.tok
}

// pop closes the innermost element. Its name stays until another is opened.
func (s *Scanner) pop() (name []byte, lower bool) {
	last := len(s.open) - 1
	e := s.open[last]
	name = s.names[e.start:]
	s.names = s.names[:e.start]
	s.open = s.open[:last]
	s.rootEnd = last == 0
	return name, e.lower
}

// tagLength is the length of the tag at pos, '<' and '>' included.
func (s *Scanner) tagLength() (int, error) {
	from, quote := 1, byte(0)
	for {
		raw := s.buf[s.pos:s.end]
		for i := from; i < len(raw); i++ {
			switch c := raw[i]; {
			case c == '<': // not even in an attribute's value
				return 0, s.syntax("'<' inside a tag")
			case quote != 0:
				if c == quote {
					quote = 0
				}
			case c == '>':
				return i + 1, nil
			case c == '"' || c == '\'':
				quote = c
			}
		}
		from = len(raw)
		if !s.fill() {
			return 0, s.cut("a tag")
		}
	}
}

// toUpper returns name in upper case.
func (s *Scanner) toUpper(name []byte) []byte {
	s.upper = append(s.upper[:0], name...)
	for i, c := range s.upper {
		if 'a' <= c && c <= 'z' {
			s.upper[i] = c - ('a' - 'A')
		}
	}
	return s.upper
}
