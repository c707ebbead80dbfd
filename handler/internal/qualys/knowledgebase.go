package qualys

import (
	"context"
	"errors"
	"fmt"
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
}

// NewKnowledgeBase returns a reader of the KnowledgeBase as schema describes it.
func NewKnowledgeBase(client *Client, schema *record.Schema) *KnowledgeBase {
	return &KnowledgeBase{Client: client, schema: schema, decoder: NewDecoder(schema)}
}

// Identity tells apart the requests that return different records. All
// accounts of a subscription read the same KnowledgeBase.
func (s *KnowledgeBase) Identity() string { return s.Client.Origin.Hostname() + " KnowledgeBase" }

// Page reads the entries of one range of QIDs.
func (s *KnowledgeBase) Page(ctx context.Context, q record.Query, sink record.Sink) (record.Page, error) {
	if s.listed == nil || !s.after.Equal(q.After) {
		if err := s.list(ctx, q, sink); err != nil {
			return record.Page{}, err
		}
	}
	if s.listed.from(q.From) == 0 {
		return record.Page{}, sink.Begin(s.listed.at)
	}
	size := s.PageSize
	if size == 0 {
		size = DefaultKnowledgeBasePage
	}
	next := s.listed.after(q.From, size)
	params := s.params(q)
	params.Set("details", "All")
	for _, name := range []string{"show_pci_reasons", "show_supported_modules_info", "show_disabled_flag", "show_qid_change_log"} {
		params.Set(name, "1")
	}
	if next != 0 {
		params.Set("id_max", strconv.FormatUint(next-1, 10))
	}
	page, err := s.read(ctx, params, &beginning{Sink: sink, at: s.listed.at})
	if err != nil {
		return record.Page{}, err
	}
	// The DTD allows a link to more of the range.
	if page.Next > q.From && (next == 0 || page.Next < next) {
		return page, nil
	}
	if page.Next != 0 && page.Next <= q.From {
		return record.Page{}, &Error{Kind: Broken, Text: fmt.Sprintf("the next page begins with QID %d, not after this page's %d: it would never end", page.Next, q.From)}
	}
	page.Next = next
	return page, nil
}

// beginning lets a window begin at the time of its list: what changes while it
// is read belongs to the next one.
type beginning struct {
	record.Sink
	at time.Time
}

func (b *beginning) Begin(time.Time) error { return b.Sink.Begin(b.at) }

// list reads the ids of the window, from q.From on.
func (s *KnowledgeBase) list(ctx context.Context, q record.Query, sink record.Sink) error {
	params := s.params(q)
	params.Set("details", "None")
	set, err := s.ids(ctx, params, sink.Tally)
	if err != nil {
		return fmt.Errorf("list the KnowledgeBase: %w", s.explain(err))
	}
	if q.After.IsZero() && q.From == 0 && set.count == 0 {
		return &Error{Kind: Forbidden, Text: "it lists no QID at all", Advice: adviceKnowledgeBase}
	}
	sink.Tally(record.Tally{Expected: int64(set.from(q.From))}) //nolint:gosec // at most maxIDs
	s.listed, s.after = &set, q.After
	return nil
}

func (s *KnowledgeBase) ids(ctx context.Context, params url.Values, count func(record.Tally)) (idSet, error) {
	body, err := s.Client.open(ctx, s.path(), params, func() { count(record.Tally{Requests: 1}) })
	if err != nil {
		return idSet{}, err
	}
	set, size, err := readIDSet(body, s.schema.Root, body.at)
	_ = body.Close() // read to its end, or given up: nothing can be lost here
	count(record.Tally{Bytes: size})
	return set, s.Client.read(ctx, err)
}

// read reads entries and hands them to sink.
func (s *KnowledgeBase) read(ctx context.Context, params url.Values, sink record.Sink) (record.Page, error) {
	body, err := s.Client.open(ctx, s.path(), params, func() { sink.Tally(record.Tally{Requests: 1}) })
	if err != nil {
		return record.Page{}, fmt.Errorf("ask for the KnowledgeBase: %w", s.explain(err))
	}
	page, err := s.decoder.Decode(body, body.at, sink)
	_ = body.Close() // as above
	if err := s.Client.read(ctx, err); err != nil {
		return record.Page{}, fmt.Errorf("read the KnowledgeBase: %w", s.explain(err))
	}
	return page, nil
}

// Gone returns those of ids that the KnowledgeBase does not hold: an unknown
// QID is left out of an answer (recorded answers).
func (s *KnowledgeBase) Gone(ctx context.Context, ids []uint64, count func(record.Tally)) ([]uint64, error) {
	var gone []uint64
	for part := range slices.Chunk(ids, confirmPage) {
		names := make([]string, len(part))
		for i, id := range part {
			names[i] = strconv.FormatUint(id, 10)
		}
		set, err := s.ids(ctx, url.Values{"action": {"list"}, "details": {"None"}, "ids": {strings.Join(names, ",")}}, count)
		if err != nil {
			return nil, fmt.Errorf("ask for QIDs by name: %w", s.explain(err))
		}
		for _, id := range part {
			if !set.has(id) {
				gone = append(gone, id)
			}
		}
	}
	return gone, nil
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
	if q.From > 0 {
		p.Set("id_min", strconv.FormatUint(q.From, 10))
	}
	return p
}

// adviceKnowledgeBase is what to do about a missing permission.
const adviceKnowledgeBase = "this subscription may not download the KnowledgeBase by API: ask Qualys Support or your account manager to authorise it; VM detections go on without it"

// explain adds what a missing permission means here.
func (s *KnowledgeBase) explain(err error) error {
	var e *Error
	if errors.As(err, &e) && e.Kind == Forbidden {
		e.Advice = adviceKnowledgeBase
	}
	return err
}
