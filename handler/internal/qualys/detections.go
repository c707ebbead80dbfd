package qualys

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"qualys-sentinel/handler/internal/record"
)

const (
	// DefaultDetectionVersion of the host list detection endpoint. The older
	// ones reached their end of life in June 2026.
	DefaultDetectionVersion = "5.0"
	// DefaultPageSize in hosts: Qualys' own default.
	DefaultPageSize = 1000
)

// Time forms of the FO API; fractions and offsets are refused by it.
const timeForm = "2006-01-02T15:04:05Z"

// IncrementalBy says which findings a window holds.
type IncrementalBy string

const (
	// ByHost returns all detections of every host processed since.
	ByHost IncrementalBy = "host"
	// ByDetection returns only detections updated since.
	ByDetection IncrementalBy = "detection"
)

// ownedParameters decide what a window and a page hold. Were a customer to set
// one, findings would be missed without a sign.
var ownedParameters = []string{
	"action", "output_format", "echo_request", "id_min", "id_max",
	"vm_processed_after", "vm_processed_before",
	"detection_updated_since", "detection_updated_before",
	"detection_processed_after", "detection_processed_before",
	"max_days_since_detection_updated", "show_results", "suppress_duplicated_data_from_csv",
}

// defaultParameters are sent unless the customer says otherwise. Fixed,
// ignored and disabled findings are asked for: Qualys leaves them out by
// default, and a finding that disappears would stay open in Sentinel for ever.
var defaultParameters = map[string]string{
	"status":             "New,Active,Re-Opened,Fixed",
	"show_igs":           "0",
	"show_reopened_info": "1",
	"show_asset_id":      "1",
	"show_tags":          "1",
	"show_qds":           "1",
	"show_qds_factors":   "1",
	"show_cloud_tags":    "1",
	"host_metadata":      "all",
	"include_ignored":    "1",
	"include_disabled":   "1",
}

// Detections reads host list detections.
type Detections struct {
	Client *Client
	// Version of the endpoint; DefaultDetectionVersion if empty.
	Version string
	// Filter is the customer's own parameters.
	Filter url.Values
	// PageSize in hosts; DefaultPageSize if zero.
	PageSize int
	// By is the window's rule.
	By IncrementalBy
	// Results asks for RESULTS, the largest part of an answer.
	Results bool
	// Select, if not nil, chooses among the findings, in place of what Filter does;
	// see Only.
	Select *Selection

	decoder *Decoder
	schema  *record.Schema
}

// NewDetections returns a reader of detections as schema describes them.
func NewDetections(client *Client, schema *record.Schema) *Detections {
	return &Detections{Client: client, schema: schema, decoder: NewDecoder(schema), Results: true, By: ByHost}
}

// Identity tells apart the requests that return different records: a window
// that was begun with one cannot be continued with another.
func (s *Detections) Identity() string {
	p := s.params(record.Query{})
	p.Del("truncation_limit")
	user, _ := s.Client.Credentials.Login()
	// What an account sees is its own; its name is nothing to write down.
	account := sha256.Sum256([]byte(user))
	if s.Select != nil { // what no parameter asks for
		p["only"] = slices.Concat(s.Select.Types, s.Select.Tags)
	}
	return fmt.Sprintf("%s %s by %s as %x", s.Client.Origin.Hostname(), p.Encode(), s.By, account[:4])
}

// Page reads one page and hands its records to sink.
func (s *Detections) Page(ctx context.Context, q record.Query, sink record.Sink) (record.Page, error) {
	path := s.path()
	var page record.Page
	err := s.Client.ask(ctx, path, s.params(q), func() { sink.Tally(record.Tally{Requests: 1}) }, func(doc io.Reader, at time.Time) (err error) {
		page, err = s.decoder.Decode(doc, at, sink)
		return err
	})
	if err != nil {
		return record.Page{}, fmt.Errorf("ask for detections: %w", err)
	}
	page = s.Client.cleanPage(page)
	if page.Doubt != "" {
		if err := sink.Doubt(); err != nil {
			return record.Page{}, err //nolint:wrapcheck // the sink's own
		}
		if err := s.dispel(ctx, q, page, sink.Tally); err != nil {
			return record.Page{}, err
		}
	}
	if q.To != 0 && page.Next > q.To {
		page.Next = 0 // all of the range is there
	}
	if page.Next != 0 && page.Next <= q.From {
		return record.Page{}, &Error{Kind: Broken, Text: fmt.Sprintf("the next page begins with host %d, not after this page's %d: it would never end", page.Next, q.From)}
	}
	return page, nil
}

// dispel asks whether the doubt of a page is of what follows its last host: then that
// comes with the next page. Where nothing follows, the answer has meant what it has
// brought, and that does not count.
func (s *Detections) dispel(ctx context.Context, q record.Query, page record.Page, count func(record.Tally)) error {
	if q.To != 0 && page.Next > q.To {
		return inDoubt(page.Doubt)
	}
	q.From, q.Size = page.Next, 1
	follows := &following{from: q.From, count: count}
	err := s.Client.ask(ctx, s.path(), s.params(q), func() { count(record.Tally{Requests: 1}) }, func(doc io.Reader, at time.Time) error {
		_, err := s.decoder.Decode(doc, at, follows)
		return err
	})
	switch {
	case follows.any && !isVoid(err): // an answer that counts for nothing shows nothing
		return nil
	case err != nil:
		return &voidError{fmt.Errorf("ask whether hosts follow an answer that is in doubt (%s): %w", page.Doubt, err)}
	}
	return inDoubt(page.Doubt)
}

// isVoid tells whether what has come of an answer counts for nothing.
func isVoid(err error) bool {
	var e interface{ Void() bool }
	return errors.As(err, &e) && e.Void()
}

// voidError is an error behind which what has come of the answer counts for nothing.
type voidError struct{ error }

func (e *voidError) Unwrap() error { return e.error }

// Void implements the error that takes back what has come.
func (*voidError) Void() bool { return true }

// following sees whether anything comes that was asked for: of a lower id, it is an answer to
// something else.
type following struct {
	from  uint64
	count func(record.Tally)
	any   bool
}

func (f *following) Begin(time.Time) error       { return nil }
func (f *following) Record(*record.Record) error { return nil }
func (f *following) Done(id uint64) error        { f.any = f.any || id >= f.from; return nil }
func (f *following) Doubt() error                { return nil }
func (f *following) Tally(t record.Tally)        { f.count(record.Tally{Bytes: t.Bytes}) }

func (s *Detections) path() string { return "/api/" + s.version() + "/fo/asset/host/vm/detection/" }

func (s *Detections) version() string {
	if s.Version == "" {
		return DefaultDetectionVersion
	}
	return s.Version
}

// CallLimits are those of the detection endpoint.
func (s *Detections) CallLimits() record.CallLimits { return s.Client.limits.of(s.path()) }

// PageLimit is the page size, in hosts.
func (s *Detections) PageLimit() int {
	if s.PageSize == 0 {
		return DefaultPageSize
	}
	return s.PageSize
}

// hostListFilters are the parameters that detections and the host list share.
var hostListFilters = []string{
	"ids", "ips", "ipv6", "ag_ids", "ag_titles", "network_ids", "os_pattern", "compliance_enabled",
	"use_tags", "tag_set_by", "tag_include_selector", "tag_exclude_selector", "tag_set_include", "tag_set_exclude",
}

// IDs asks the host list: it is answered when the detections of a host are not.
// Hosts without a detection that the filter wants are among them.
func (s *Detections) IDs(ctx context.Context, q record.Query, n int, count func(record.Tally)) (ids []uint64, err error) {
	p := url.Values{"action": {"list"}, "details": {"None"}, "truncation_limit": {strconv.Itoa(n)}}
	for _, name := range hostListFilters {
		if values := s.Filter[name]; len(values) > 0 {
			p.Set(name, values[len(values)-1])
		}
	}
	if !q.After.IsZero() { // what was updated since was processed since
		p.Set("vm_processed_after", formatTime(q.After))
	}
	if q.From > 0 {
		p.Set("id_min", strconv.FormatUint(q.From, 10))
	}
	if q.To > 0 {
		p.Set("id_max", strconv.FormatUint(q.To, 10))
	}
	err = s.Client.ask(ctx, "/api/"+s.version()+"/fo/asset/host/", p, func() { count(record.Tally{Requests: 1}) }, func(doc io.Reader, _ time.Time) (err error) {
		var size int64
		ids, size, err = lowestIDs(doc, "HOST_LIST_OUTPUT", n)
		count(record.Tally{Bytes: size})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ask for the ids of hosts: %w", err)
	}
	return ids, nil
}

// Witness asks the host list whether a window has any host; zero: it names none, or
// what it names says nothing about the window.
func (s *Detections) Witness(ctx context.Context, q record.Query, count func(record.Tally)) (uint64, error) {
	if s.By != ByHost {
		return 0, nil // a host that was scanned need not have a finding that changed
	}
	ids, err := s.IDs(ctx, record.Query{After: q.After}, 1, count)
	if err != nil || len(ids) == 0 {
		return 0, err
	}
	return ids[0], nil
}

func (s *Detections) params(q record.Query) url.Values {
	p := url.Values{}
	for name, value := range defaultParameters {
		p.Set(name, value)
	}
	for name, values := range s.Filter {
		p.Set(name, values[len(values)-1])
	}
	if s.Select != nil {
		s.Select.ask(p)
	}
	if p.Get("show_qds") == "0" && s.Filter.Get("show_qds_factors") == "" {
		p.Set("show_qds_factors", "0") // factors of a score that is not asked for
	}
	p.Set("action", "list")
	p.Set("show_results", "0")
	if s.Results {
		p.Set("show_results", "1")
	}
	size := s.PageLimit()
	if q.Size > 0 {
		size = min(size, q.Size)
	}
	p.Set("truncation_limit", strconv.Itoa(size))
	if q.From > 0 {
		p.Set("id_min", strconv.FormatUint(q.From, 10))
	}
	if q.To > 0 {
		p.Set("id_max", strconv.FormatUint(q.To, 10))
	}
	name := "vm_processed_after"
	if s.By == ByDetection {
		name = "detection_updated_since"
	}
	p.Set(name, formatTime(q.After))
	if q.After.IsZero() {
		p.Del(name)
	}
	return p
}

func formatTime(t time.Time) string { return t.UTC().Format(timeForm) }

// CheckFilter names what is wrong with a customer's parameters.
func CheckFilter(filter url.Values) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(filter)) {
		switch {
		case slices.Contains(ownedParameters, strings.ToLower(name)):
			errs = append(errs, fmt.Errorf("parameter %q is set by the connector itself: remove it", name))
		case name != strings.ToLower(name):
			errs = append(errs, fmt.Errorf("parameter %q: Qualys' parameter names are in lower case", name))
		case len(filter[name]) > 1:
			errs = append(errs, fmt.Errorf("parameter %q is given %d times; Qualys would use the last only", name, len(filter[name])))
		case strings.TrimFunc(name, isParameterChar) != "":
			errs = append(errs, fmt.Errorf("%q is no parameter name", name))
		}
	}
	return errors.Join(errs...)
}

func isParameterChar(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '_'
}
