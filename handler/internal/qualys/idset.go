package qualys

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"qualys-sentinel/handler/internal/qualys/xmlstream"
)

// maxIDs bounds the ids of a set: three times the KnowledgeBase of 2026. More
// are no list of QIDs, and take too much memory.
const maxIDs = 600_000

// An idRange is ids from low to high, both included.
type idRange struct{ low, high uint64 }

// An idSet is ids in ascending ranges.
type idSet struct {
	envelope envelope
	at       time.Time // of the answer, by Qualys' clock
	ranges   []idRange
	below    []uint64 // ids in the ranges before each
	count    uint64
	highest  uint64
	more     uint64 // more may follow from here on; 0: none do
	doubt    string // a warning that is only good if more do
}

// readIDSet reads a list document that holds ID_SET instead of records: ids
// and ranges of ids, in any order. date is the answer's by its header. A
// document without an ID_SET is an empty set.
func readIDSet(r io.Reader, root string, date time.Time) (idSet, int64, error) {
	scan := xmlstream.New(r)
	s, err := scanIDSet(scan, root, false)
	if err == nil {
		s.at, err = s.envelope.time(date)
	}
	return s, scan.Offset(), err
}

// scanIDSet reads the document; cut says that it may be one of several pages. It
// holds the answer to the same rule as the decoder: see envelope.
func scanIDSet(scan *xmlstream.Scanner, root string, cut bool) (idSet, error) {
	tok, err := scan.Next()
	if err != nil {
		return idSet{}, documentError(err)
	}
	if string(tok.Name) != root {
		return idSet{}, readError(scan, string(tok.Name), 200, nil)
	}
	if err := rootAttributes(root, tok.Attrs); err != nil {
		return idSet{}, err
	}
	var s idSet
	var path []string
	var text []byte
	for {
		tok, err := scan.Next()
		if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return idSet{}, documentError(err)
		}
		switch tok.Kind {
		case xmlstream.Start:
			err = noText(text)
			path, text = append(path, string(tok.Name)), text[:0]
			if err == nil {
				err = s.open(scan, strings.Join(path, "/"), tok.Attrs)
			}
		case xmlstream.Text:
			text = appendEnvelope(text, tok.Text)
		case xmlstream.End:
			if len(path) == 0 { // the root's
				if err = noText(text); err != nil {
					return idSet{}, err
				}
				continue
			}
			err = s.close(strings.Join(path, "/"), text)
			path, text = path[:len(path)-1], text[:0]
		}
		if err != nil {
			return idSet{}, err
		}
	}
	page, err := s.envelope.finish(s.highest, "ID")
	if err == nil && !cut {
		s.more, s.doubt = page.Next, page.Doubt
	}
	if err != nil {
		return idSet{}, err
	}
	return s, s.normalise()
}

// idSetParts are the elements of a document of ids.
var idSetParts = []string{
	"RESPONSE", "RESPONSE/DATETIME", "RESPONSE/WARNING", "RESPONSE/WARNING/CODE", "RESPONSE/WARNING/TEXT", "RESPONSE/WARNING/URL",
	"RESPONSE/ID_SET", "RESPONSE/ID_SET/ID", "RESPONSE/ID_SET/ID_RANGE",
}

// open takes the start of an element.
func (s *idSet) open(scan *xmlstream.Scanner, path string, attrs []byte) error {
	switch {
	case isIgnored(path):
		if path == "REQUEST" {
			return s.envelope.begin(path)
		}
		return nil // ids in it are none
	case !slices.Contains(idSetParts, path):
		return stray(scan, path, s.highest > 0)
	case len(attrs) > 0:
		return notUnderstood(fmt.Sprintf("%.100q has attributes: %.100q", path, attrs))
	}
	return s.envelope.begin(lastName(path))
}

// isIgnored tells whether a path is that of a part which is for nobody, or leads to one.
func isIgnored(path string) bool {
	return slices.ContainsFunc(ignoredParts, func(part string) bool {
		return path != "RESPONSE" && (part == path || strings.HasPrefix(part, path+"/"))
	})
}

// noText refuses text that stands between elements.
func noText(raw []byte) error {
	if text := strings.TrimSpace(string(raw)); text != "" {
		return envelopeError(fmt.Sprintf("text between its elements: %q", clip(text, maxErrorText)))
	}
	return nil
}

// close takes an element's text.
func (s *idSet) close(path string, raw []byte) error {
	text := strings.TrimSpace(string(raw))
	switch path {
	case "RESPONSE/ID_SET/ID":
		return s.add(text, text)
	case "RESPONSE/ID_SET/ID_RANGE":
		low, high, _ := strings.Cut(text, "-")
		return s.add(strings.TrimSpace(low), strings.TrimSpace(high))
	case "RESPONSE/WARNING":
		s.envelope.endWarning()
	case "RESPONSE", "RESPONSE/ID_SET":
	default:
		if slices.Contains(idSetParts, path) {
			s.envelope.text(lastName(path), text, len(raw) == maxEnvelope)
		}
		if slices.Contains(idSetParts, path) || slices.Contains(ignoredParts, path) {
			return nil // a leaf
		}
	}
	return noText(raw)
}

// lowestIDs reads up to n ids of a list document that is cut on purpose.
func lowestIDs(r io.Reader, root string, n int) ([]uint64, int64, error) {
	scan := xmlstream.New(r)
	s, err := scanIDSet(scan, root, true)
	if err != nil {
		return nil, scan.Offset(), err
	}
	return s.lowest(0, math.MaxUint64, n), scan.Offset(), nil
}

// lowest lists up to n of the ids from low to high, both included.
func (s *idSet) lowest(low, high uint64, n int) (ids []uint64) {
	for id := range s.all(low, high) {
		if len(ids) == n {
			break
		}
		ids = append(ids, id)
	}
	return ids
}

func (s *idSet) add(low, high string) error {
	a, errLow := strconv.ParseUint(low, 10, 63)
	b, errHigh := strconv.ParseUint(high, 10, 63)
	if errLow != nil || errHigh != nil || a > b || a == 0 {
		return &Error{Kind: Broken, Text: fmt.Sprintf("a list of ids holds %.40q to %.40q", low, high)}
	}
	if b-a >= maxIDs || len(s.ranges) == maxIDs {
		return &Error{Kind: Broken, Text: fmt.Sprintf("a list of more than %d ids", maxIDs)}
	}
	s.ranges = append(s.ranges, idRange{a, b})
	s.highest = max(s.highest, b)
	return nil
}

// normalise sorts the ranges, joins those that touch, and counts the ids.
func (s *idSet) normalise() error {
	slices.SortFunc(s.ranges, func(a, b idRange) int { return cmp.Compare(a.low, b.low) })
	joined := s.ranges[:0]
	for _, r := range s.ranges {
		if last := len(joined) - 1; last >= 0 && r.low <= joined[last].high+1 {
			joined[last].high = max(joined[last].high, r.high)
			continue
		}
		joined = append(joined, r)
	}
	s.ranges, s.count = slices.Clip(joined), 0
	s.below = make([]uint64, len(s.ranges))
	for i, r := range s.ranges {
		s.below[i] = s.count
		s.count += r.high - r.low + 1
	}
	if s.count > maxIDs {
		return &Error{Kind: Broken, Text: fmt.Sprintf("a list of more than %d ids", maxIDs)}
	}
	return nil
}

// rank is how many ids are below low.
func (s *idSet) rank(low uint64) uint64 {
	i, _ := slices.BinarySearchFunc(s.ranges, low, func(r idRange, low uint64) int { return cmp.Compare(r.high, low) })
	if i == len(s.ranges) {
		return s.count
	}
	return s.below[i] + max(low, s.ranges[i].low) - s.ranges[i].low
}

// from counts the ids from low on.
func (s *idSet) from(low uint64) uint64 { return s.count - s.rank(low) }

// after returns the id that stands n places behind the first one from low on;
// zero if there is none.
func (s *idSet) after(low uint64, n int) uint64 {
	place := s.rank(low) + uint64(n) //nolint:gosec // a page size
	if place >= s.count {
		return 0
	}
	i, exact := slices.BinarySearch(s.below, place)
	if !exact {
		i--
	}
	return s.ranges[i].low + place - s.below[i]
}

// between counts the ids from low on and below high.
func (s *idSet) between(low, high uint64) uint64 {
	if low >= high {
		return 0
	}
	return s.from(low) - s.from(high)
}

// anyOf tells whether there is an id from low to high, both included.
func (s *idSet) anyOf(low, high uint64) bool {
	for range s.all(low, high) {
		return true
	}
	return false
}

// all walks the ids from low to high, both included.
func (s *idSet) all(low, high uint64) iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		first, _ := slices.BinarySearchFunc(s.ranges, low, func(r idRange, low uint64) int { return cmp.Compare(r.high, low) })
		for _, r := range s.ranges[first:] {
			if r.low > high {
				return
			}
			for id := max(r.low, low); id <= min(r.high, high); id++ {
				if !yield(id) {
					return
				}
			}
		}
	}
}

func (s *idSet) has(id uint64) bool {
	_, ok := slices.BinarySearchFunc(s.ranges, id, func(r idRange, id uint64) int {
		switch {
		case id < r.low:
			return 1
		case id > r.high:
			return -1
		}
		return 0
	})
	return ok
}
