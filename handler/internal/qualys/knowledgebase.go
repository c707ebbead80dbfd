package qualys

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"qualys-sentinel/handler/internal/record"
)

const (
	// DefaultKnowledgeBaseVersion of the KnowledgeBase endpoint.
	DefaultKnowledgeBaseVersion = "4.0"
	// DefaultKnowledgeBasePage in QIDs: some 30 MB. The whole KnowledgeBase of
	// 200,000 then takes 40 calls, of the 300 an hour that a subscription has.
	DefaultKnowledgeBasePage = 5000
	// confirmPage is how many QIDs one request asks about by name.
	confirmPage = 1000
)

// KnowledgeBase reads the KnowledgeBase: list the ids of a window, then the
// entries in ranges of ids. The endpoint knows no pages, and all of it in one
// answer would be over a gigabyte.
//
// Ranges leave no gap between them, so an entry that appears while the window
// is being read comes with the range that it falls into.
type KnowledgeBase struct {
	Client *Client
	// Version of the endpoint; DefaultKnowledgeBaseVersion if empty.
	Version string
	// PageSize in QIDs; DefaultKnowledgeBasePage if zero.
	PageSize int

	decoder *Decoder
	schema  *record.Schema
	listed  *idSet // of the window in work
	after   time.Time
	taken   *arrivals // of the range that was tried last
}

// NewKnowledgeBase returns a reader of the KnowledgeBase as schema describes it.
func NewKnowledgeBase(client *Client, schema *record.Schema) *KnowledgeBase {
	return &KnowledgeBase{Client: client, schema: schema, decoder: NewDecoder(schema)}
}

// Identity tells apart the requests that return different records. All
// accounts of a subscription read the same KnowledgeBase.
func (s *KnowledgeBase) Identity() string { return s.Client.Origin.Hostname() + " KnowledgeBase" }

// Page reads the entries of one range of QIDs. It holds the answer to the list:
// an entry outside of the range is dropped, as it comes with its own; one that
// is listed and does not come is asked for by name.
func (s *KnowledgeBase) Page(ctx context.Context, q record.Query, sink record.Sink) (record.Page, error) {
	if s.listed == nil || !s.after.Equal(q.After) {
		if err := s.list(ctx, q, sink); err != nil {
			return record.Page{}, err
		}
	}
	if s.listed.from(q.From) == 0 {
		return record.Page{}, sink.Begin(s.listed.at)
	}
	size := s.PageLimit()
	if q.Size > 0 {
		size = min(size, q.Size)
	}
	next := s.listed.after(q.From, size)
	high := next - 1 // wraps around where the range has no end
	if q.To > 0 && high >= q.To {
		next, high = 0, q.To
	}
	params := s.params(q)
	if q.From > 0 {
		params.Set("id_min", strconv.FormatUint(q.From, 10))
	}
	if high != math.MaxUint64 {
		params.Set("id_max", strconv.FormatUint(high, 10))
	}
	taken := s.taken
	if taken == nil || taken.low != q.From || taken.listed != s.listed {
		taken = &arrivals{low: q.From, listed: s.listed, came: map[uint64]bool{}}
		if s.taken != nil { // a larger range may have brought some of this one
			taken.came = s.taken.behind(q.From)
		}
		s.taken = taken
	}
	warning := ""
	if !taken.whole { // else only what it left out is still to come
		taken.try(sink, s.listed.at, high)
		page, err := s.read(ctx, params, taken)
		if err != nil {
			return record.Page{}, err
		}
		// The DTD allows a link to more of the range.
		if page.Next != 0 && page.Next <= q.From {
			return record.Page{}, &Error{Kind: Broken, Text: fmt.Sprintf("the next page begins with QID %d, not after this page's %d: it would never end", page.Next, q.From)}
		}
		if page.Doubt != "" && !s.listed.anyOf(page.Next, high) {
			s.taken = nil
			return record.Page{}, inDoubt(page.Doubt) // all has come: it means what is in that
		}
		if page.Next != 0 && page.Next-1 < high {
			next, high = page.Next, page.Next-1
		}
		warning = page.Warning
		taken.whole, taken.next, taken.high = true, next, high
	} else {
		taken.try(sink, s.listed.at, taken.high)
	}
	if err := s.askByName(ctx, q, taken); err != nil {
		return record.Page{}, err
	}
	s.taken = nil
	next = taken.next
	if next == 0 && q.To > 0 {
		next = q.To + 1 // a larger range may have brought what is behind this one
	}
	if next != 0 {
		s.taken = &arrivals{low: next, listed: s.listed, came: taken.behind(next)}
	}
	return record.Page{Next: taken.next, Warning: strings.TrimSpace(warning + " " + taken.warning())}, nil
}

// Forget lets the next page bring again what the last has handed over.
func (s *KnowledgeBase) Forget() { s.taken = nil }

// PageLimit is the page size, in QIDs.
func (s *KnowledgeBase) PageLimit() int {
	if s.PageSize == 0 {
		return DefaultKnowledgeBasePage
	}
	return s.PageSize
}

// CallLimits are those of the KnowledgeBase endpoint.
func (s *KnowledgeBase) CallLimits() record.CallLimits { return s.Client.limits.of(s.path()) }

// IDs are the lowest QIDs of the list.
func (s *KnowledgeBase) IDs(_ context.Context, q record.Query, n int, _ func(record.Tally)) ([]uint64, error) {
	if s.listed == nil {
		return nil, record.ErrNoList
	}
	high := q.To
	if high == 0 {
		high = math.MaxUint64
	}
	return s.listed.lowest(q.From, high, n), nil
}

// askByName asks for the entries that are listed and have not come. One that
// does not come by name either, and is not listed any more, is gone; one that
// still is listed breaks the page.
func (s *KnowledgeBase) askByName(ctx context.Context, q record.Query, taken *arrivals) error {
	missing := taken.missing(taken.listed)
	if len(missing) == 0 {
		return nil
	}
	for part := range slices.Chunk(missing, confirmPage) {
		for more := true; more && len(part) > 0; {
			before := len(part)
			taken.only = part
			page, err := s.read(ctx, url.Values{"action": {"list"}, "ids": {names(part)}}, taken)
			if err != nil {
				if taken.failed++; taken.failed > 1 {
					taken.whole = false // a smaller range parts it from the others
				}
				return err
			}
			part = slices.DeleteFunc(slices.Clone(part), func(id uint64) bool { return taken.came[id] })
			if page.Doubt != "" && len(part) == 0 {
				s.taken = nil
				return inDoubt(page.Doubt)
			}
			more = page.Next != 0 && len(part) < before // a link to more of them
		}
	}
	taken.only = nil
	missing = taken.missing(taken.listed)
	if len(missing) == 0 {
		return nil
	}
	params := s.params(q)
	params.Set("details", "None")
	now, err := s.ids(ctx, params, taken.Tally)
	if err != nil {
		return fmt.Errorf("list the KnowledgeBase again: %w", s.explain(err))
	}
	if now.count == 0 && q.After.IsZero() {
		return &Error{Kind: Broken, Text: "it lists no QID any more in a window that began with some"}
	}
	for _, id := range missing {
		if now.has(id) {
			taken.whole = false // a smaller range parts it from the others
			return &Error{Kind: Broken, Text: fmt.Sprintf("QID %d is listed and does not come, not by name either", id)}
		}
	}
	taken.gone = len(missing)
	return nil
}

// arrivals passes on the entries that were asked for, and notes them, over all
// tries of a range: one that has come is not passed on again.
type arrivals struct {
	record.Sink
	at        time.Time
	low, high uint64   // of the range; high wraps around where it has no end
	only      []uint64 // asked for by name
	listed    *idSet
	came      map[uint64]bool
	earlier   int    // of them, in earlier tries
	whole     bool   // the range was read to its end
	next      uint64 // behind it
	last      uint64 // highest that came
	gap       bool   // a listed one did not come in its turn
	drop      bool   // the record in work
	began     bool
	dropped   int
	gone      int
	failed    int // calls by name
}

// try begins another try.
func (a *arrivals) try(sink record.Sink, at time.Time, high uint64) {
	a.Sink, a.at, a.high, a.only = sink, at, high, nil
	a.earlier, a.last, a.began, a.drop, a.gap, a.dropped = len(a.came), 0, false, false, false, 0
}

// behind are the entries that came with ids from low on.
func (a *arrivals) behind(low uint64) map[uint64]bool {
	came := map[uint64]bool{}
	for id := range a.came {
		if id >= low {
			came[id] = true
		}
	}
	return came
}

// Begin lets a window begin at the time of its list: what changes while it is
// read belongs to the next one.
func (a *arrivals) Begin(time.Time) error {
	if a.began {
		return nil
	}
	a.began = true
	return a.Sink.Begin(a.at)
}

func (a *arrivals) Record(rec *record.Record) error {
	id, err := strconv.ParseUint(string(rec.Field(rec.Schema.Index(rec.Schema.ParentID)).Head()), 10, 63)
	if err != nil {
		return a.Sink.Record(rec) // no number: it cannot have been listed
	}
	_, wanted := slices.BinarySearch(a.only, id)
	if a.drop = a.only != nil && !wanted || id < a.low || id > a.high; !a.drop && id > a.last {
		a.gap = a.gap || a.listed.between(max(a.last+1, a.low), id) > 0
		a.last = id
	}
	if a.drop = a.drop || a.came[id]; a.drop {
		a.dropped++
		return nil
	}
	a.came[id] = true
	return a.Sink.Record(rec)
}

// Done passes on that an entry is whole. Behind one that is missing there is no
// place to resume before that has come: then the id is not told.
func (a *arrivals) Done(id uint64) error {
	if a.drop {
		a.drop = false
		return nil
	}
	if a.gap || a.only != nil {
		id = 0
	}
	return a.Sink.Done(id)
}

// missing lists what is listed for the range and has not come.
func (a *arrivals) missing(listed *idSet) (ids []uint64) {
	for id := range listed.all(a.low, a.high) {
		if !a.came[id] {
			ids = append(ids, id)
		}
	}
	return ids
}

// warning says what was odd about the answers.
func (a *arrivals) warning() string {
	var odd []string
	if a.gone > 0 {
		odd = append(odd, fmt.Sprintf("%d QIDs were listed and do not come, and are not listed any more: gone since", a.gone))
	}
	if a.dropped > a.earlier {
		odd = append(odd, fmt.Sprintf("%d entries came twice or outside of the range that was asked for: dropped, they come with their own", a.dropped-a.earlier))
	}
	return strings.Join(odd, "; ")
}

// list reads the ids of the whole window.
func (s *KnowledgeBase) list(ctx context.Context, q record.Query, sink record.Sink) error {
	params := s.params(q)
	params.Set("details", "None")
	set, err := s.ids(ctx, params, sink.Tally)
	if err != nil {
		return fmt.Errorf("list the KnowledgeBase: %w", s.explain(err))
	}
	switch {
	case set.count > 0:
	case !q.After.IsZero():
		// Nothing has changed, or what had is gone since.
	case q.From > 1:
		return &Error{Kind: Broken, Text: fmt.Sprintf("it lists no QID any more in a window that has brought some, up to %d", q.From-1)}
	default:
		return &Error{Kind: Forbidden, Text: "it lists no QID at all", Advice: adviceKnowledgeBase}
	}
	sink.Tally(record.Tally{Expected: int64(set.from(q.From))}) //nolint:gosec // at most maxIDs
	s.listed, s.after = &set, q.After
	return nil
}

// ids lists QIDs. Where an answer may mean that more follow, they are asked for, until
// none come.
func (s *KnowledgeBase) ids(ctx context.Context, params url.Values, count func(record.Tally)) (idSet, error) {
	set, err := s.idsOnce(ctx, params, count)
	for last := set; err == nil && last.more != 0; {
		more := last.more
		params = maps.Clone(params)
		params.Set("id_min", strconv.FormatUint(more, 10))
		var rest idSet
		if rest, err = s.idsOnce(ctx, params, count); err == nil && rest.more != 0 && rest.more <= more {
			err = &Error{Kind: Broken, Text: "the list of ids goes on where it was: it would never end"}
		}
		if err == nil && rest.count == 0 && last.doubt != "" {
			err = inDoubt(last.doubt)
		}
		if err == nil {
			last = rest
			set.ranges = append(set.ranges, rest.ranges...)
			err = set.normalise()
		}
	}
	return set, err
}

func (s *KnowledgeBase) idsOnce(ctx context.Context, params url.Values, count func(record.Tally)) (idSet, error) {
	var set idSet
	err := s.Client.ask(ctx, s.path(), params, func() { count(record.Tally{Requests: 1}) }, func(doc io.Reader, at time.Time) (err error) {
		var size int64
		set, size, err = readIDSet(doc, s.schema.Root, at)
		count(record.Tally{Bytes: size})
		return err
	})
	set.doubt = s.Client.redactor().Text(set.doubt)
	return set, err
}

// read reads entries and hands them to sink.
func (s *KnowledgeBase) read(ctx context.Context, params url.Values, sink record.Sink) (record.Page, error) {
	params.Set("details", "All")
	for _, name := range []string{"show_pci_reasons", "show_supported_modules_info", "show_disabled_flag", "show_qid_change_log"} {
		params.Set(name, "1")
	}
	var page record.Page
	err := s.Client.ask(ctx, s.path(), params, func() { sink.Tally(record.Tally{Requests: 1}) }, func(doc io.Reader, at time.Time) (err error) {
		page, err = s.decoder.Decode(doc, at, sink)
		return err
	})
	if err != nil {
		return record.Page{}, fmt.Errorf("ask for the KnowledgeBase: %w", s.explain(err))
	}
	return s.Client.cleanPage(page), nil
}

// Gone returns those of ids that the KnowledgeBase does not hold: an unknown
// QID is left out of an answer (recorded answers). witnesses are some that it
// does hold; an answer without any of them proves nothing.
func (s *KnowledgeBase) Gone(ctx context.Context, ids, witnesses []uint64, count func(record.Tally)) ([]uint64, error) {
	var gone []uint64
	for part := range slices.Chunk(ids, confirmPage-len(witnesses)) {
		set, err := s.ids(ctx, url.Values{"action": {"list"}, "details": {"None"}, "ids": {names(slices.Concat(part, witnesses))}}, count)
		if err != nil {
			return nil, fmt.Errorf("ask for QIDs by name: %w", s.explain(err))
		}
		if !slices.ContainsFunc(witnesses, set.has) {
			return nil, &Error{Kind: Broken, Text: "asked for QIDs by name, it leaves out those that it has just sent: " + names(witnesses)}
		}
		for _, id := range part {
			if !set.has(id) {
				gone = append(gone, id)
			}
		}
	}
	return gone, nil
}

// Permitted asks for the id of one QID, as cheap a call as there is. The error
// says why the KnowledgeBase cannot be read.
func (s *KnowledgeBase) Permitted(ctx context.Context, count func(record.Tally)) error {
	_, err := s.idsOnce(ctx, url.Values{"action": {"list"}, "details": {"None"}, "id_min": {"6"}, "id_max": {"6"}}, count)
	if err != nil {
		return fmt.Errorf("ask for the KnowledgeBase: %w", s.explain(err))
	}
	return nil
}

// names writes ids as a parameter wants them.
func names(ids []uint64) string {
	var b []byte
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, id, 10)
	}
	return string(b)
}

func (s *KnowledgeBase) path() string {
	version := s.Version
	if version == "" {
		version = DefaultKnowledgeBaseVersion
	}
	return "/api/" + version + "/fo/knowledge_base/vuln/"
}

// params are those of every request of a window.
func (s *KnowledgeBase) params(q record.Query) url.Values {
	p := url.Values{"action": {"list"}}
	if !q.After.IsZero() {
		p.Set("last_modified_after", formatTime(q.After))
	}
	return p
}

// adviceKnowledgeBase is what to do about a missing permission.
const adviceKnowledgeBase = "this subscription may not download the KnowledgeBase by API: ask Qualys Support or your account manager to authorise it; VM detections go on without it"

// explain adds what a person can do about an error here.
func (s *KnowledgeBase) explain(err error) error {
	var e *Error
	switch {
	case !errors.As(err, &e):
	case e.Kind == Forbidden:
		e.Advice = adviceKnowledgeBase
	case e.Code == "1901":
		e.Advice = "the API version may not know a parameter: see kbApiVersion"
	}
	return err
}
