package ingest

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/klauspost/compress/gzip"
)

// The index is text that a person can read: a line of JSON about it, then a
// line for each record, ascending by id, with tabs between
//
//	id, last modification, hash of the row, end of the window that sent it,
//	since when it is gone, and the values that other datasets join.
//
// It is kept compressed. Beside it stands a journal of the same lines in the
// order of their delivery, which the next generation takes in. The checkpoint
// names the generation: whoever lost its lease can write another one, but not
// make it count.

// indexHeader is the first line.
type indexHeader struct {
	Version int `json:"version"`
	// For is the source and destination that it goes with.
	For string `json:"for"`
	// Values are the paths of the values in each line.
	Values []string `json:"values"`
}

// goesWith tells whether it is that of a source and destination, and holds what
// the dataset wants kept.
func (h *indexHeader) goesWith(identity string, d *Dataset) bool {
	return h.For == identity && slices.Equal(h.Values, d.Indexed)
}

// errDamaged is the error for an index that cannot be read: it is made anew.
var errDamaged = errors.New("it is damaged")

func parseIndexHeader(line []byte) (indexHeader, error) {
	var h indexHeader
	if err := json.Unmarshal(line, &h); err != nil {
		return h, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if h.Version > stateVersion {
		return h, fmt.Errorf("it has version %d, this program knows %d: use the program that wrote it, or a newer one", h.Version, stateVersion)
	}
	if h.Version != stateVersion {
		return h, fmt.Errorf("%w: it has version %d", errDamaged, h.Version)
	}
	return h, nil
}

// An indexEntry is a line, in pieces that are parts of it.
type indexEntry struct {
	id uint64
	// modified, sent and removed are times as Qualys writes them; modified and
	// removed may be empty.
	modified, sent, removed []byte
	sum                     uint64
	values                  [][]byte
}

// maxIndexed is the longest value that is kept, in bytes: what a column takes.
const maxIndexed = 64_000

func (e *indexEntry) append(dst []byte) []byte {
	dst = strconv.AppendUint(dst, e.id, 10)
	dst = append(append(dst, '\t'), e.modified...)
	dst = fmt.Appendf(dst, "\t%016x\t%s\t%s", e.sum, e.sent, e.removed)
	for _, v := range e.values {
		dst = append(dst, '\t')
		v = clipList(v, maxIndexed)
		for _, c := range v {
			if c < ' ' {
				c = ' ' // what parts lines and values
			}
			dst = append(dst, c)
		}
	}
	return append(dst, '\n')
}

// clipList cuts a value to a size: a list behind its last whole element, any
// other text at a rune border.
func clipList(v []byte, size int) []byte {
	if len(v) <= size {
		return v
	}
	if i := bytes.LastIndex(v[:size+1], []byte(", ")); i > size/2 {
		return v[:i]
	}
	v = v[:size]
	for r, n := utf8.DecodeLastRune(v); r == utf8.RuneError && n == 1; r, n = utf8.DecodeLastRune(v) {
		v = v[:len(v)-1]
	}
	return v
}

// parse reads a line without its end. values is reused.
func (e *indexEntry) parse(line []byte) error {
	var head [5][]byte
	rest := line
	for i := range head {
		var ok bool
		if head[i], rest, ok = bytes.Cut(rest, []byte{'\t'}); !ok && i < len(head)-1 {
			return fmt.Errorf("%w: %d of %d parts in a line", errDamaged, i+1, len(head))
		}
	}
	var err error
	if e.id, err = strconv.ParseUint(string(head[0]), 10, 63); err != nil {
		return fmt.Errorf("%w: id: %w", errDamaged, err)
	}
	if e.sum, err = strconv.ParseUint(string(head[2]), 16, 64); err != nil {
		return fmt.Errorf("%w: hash: %w", errDamaged, err)
	}
	e.modified, e.sent, e.removed = head[1], head[3], head[4]
	e.values = e.values[:0]
	for len(line) > 0 && len(rest) > 0 {
		var v []byte
		var more bool
		v, rest, more = bytes.Cut(rest, []byte{'\t'})
		e.values = append(e.values, v)
		if more && len(rest) == 0 {
			e.values = append(e.values, nil)
		}
	}
	return nil
}

// lineID is the id at the beginning of a line.
func lineID(line []byte) (uint64, error) {
	id, _, _ := bytes.Cut(line, []byte{'\t'})
	n, err := strconv.ParseUint(string(id), 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%w: id: %w", errDamaged, err)
	}
	return n, nil
}

// maxIndexLine is the longest line, in bytes.
const maxIndexLine = 16 * maxIndexed

// An indexReader reads a compressed index, line by line.
type indexReader struct {
	header indexHeader
	lines  *bufio.Scanner
	gz     *gzip.Reader
	last   uint64
}

func newIndexReader(r io.Reader) (*indexReader, error) {
	gz, err := gzip.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	x := &indexReader{gz: gz, lines: bufio.NewScanner(gz)}
	x.lines.Buffer(make([]byte, 0, 64<<10), maxIndexLine)
	if !x.lines.Scan() {
		return nil, fmt.Errorf("%w: %w", errDamaged, cmp.Or(x.lines.Err(), io.ErrUnexpectedEOF))
	}
	if x.header, err = parseIndexHeader(x.lines.Bytes()); err != nil {
		return nil, err
	}
	return x, nil
}

// next returns the next line and its id; a nil line at the end. The line is
// valid until the next call.
func (x *indexReader) next() ([]byte, uint64, error) {
	if !x.lines.Scan() {
		if err := x.lines.Err(); err != nil {
			return nil, 0, fmt.Errorf("%w: %w", errDamaged, err)
		}
		return nil, 0, nil
	}
	id, err := lineID(x.lines.Bytes())
	if err == nil && id <= x.last {
		err = fmt.Errorf("%w: %d stands behind %d", errDamaged, id, x.last)
	}
	if err != nil {
		return nil, 0, err
	}
	x.last = id
	return x.lines.Bytes(), id, nil
}

// parseJournal returns a journal's header and the lines behind it. A last line
// without its end was cut by a kill, and its rows were not yet behind the
// checkpoint.
func parseJournal(doc []byte) (indexHeader, []byte, error) {
	first, rest, ok := bytes.Cut(doc, []byte{'\n'})
	if !ok {
		return indexHeader{}, nil, nil
	}
	h, err := parseIndexHeader(first)
	rest = rest[:bytes.LastIndexByte(rest, '\n')+1]
	if !bytes.Contains(rest, []byte("{")) {
		return h, rest, err
	}
	// An append whose answer was lost was made twice, header and all.
	lines := rest[:0:0]
	for line := range bytes.Lines(rest) {
		if line[0] != '{' {
			lines = append(lines, line...)
		}
	}
	return h, lines, err
}

// journalLine is the place of a line in a journal.
type journalLine struct {
	id         uint64
	begin, end int
}

// sortJournal finds the lines of a journal: ascending, of equal ids the last.
func sortJournal(journal []byte) ([]journalLine, error) {
	var lines []journalLine
	begin := 0
	for line := range bytes.Lines(journal) {
		id, err := lineID(line)
		if err != nil {
			return nil, err
		}
		lines = append(lines, journalLine{id, begin, begin + len(line)})
		begin += len(line)
	}
	slices.SortStableFunc(lines, func(a, b journalLine) int { return cmp.Compare(a.id, b.id) })
	kept := lines[:0]
	for i, l := range lines {
		if i+1 == len(lines) || lines[i+1].id != l.id {
			kept = append(kept, l)
		}
	}
	return kept, nil
}

// mergeIndex calls visit with each line, without its end, of an index and a
// journal: ascending, of equal ids the journal's. old may be nil.
func mergeIndex(old *indexReader, journal []byte, visit func(line []byte) error) error {
	fresh, err := sortJournal(journal)
	if err != nil {
		return err
	}
	visitFresh := func(l journalLine) error { return visit(journal[l.begin : l.end-1]) }
	for old != nil {
		line, id, err := old.next()
		if err != nil {
			return err
		}
		if line == nil {
			break
		}
		for len(fresh) > 0 && fresh[0].id < id {
			if err := visitFresh(fresh[0]); err != nil {
				return err
			}
			fresh = fresh[1:]
		}
		if len(fresh) > 0 && fresh[0].id == id {
			continue // its turn comes before the next greater one
		}
		if err := visit(line); err != nil {
			return err
		}
	}
	for _, l := range fresh {
		if err := visitFresh(l); err != nil {
			return err
		}
	}
	return nil
}
