// Package ondemand carries out what people ask for by hand: a sync now, of an
// older window, of everything, of chosen hosts.
//
// It guarantees that what was accepted is in the state before anybody is told
// so, that whichever process comes next carries it on until it has arrived or
// failed for good, that its document tells of the attempts, and that it never
// moves a dataset's watermark back. How a window is carried is package ingest's
// job; HTTP does not enter here.
package ondemand

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/jsonobject"
)

// documentVersion is the version of the request document.
const documentVersion = 1

// A Request is what somebody asked for: the document in the state.
type Request struct {
	Version int       `json:"version"`
	ID      string    `json:"id"`
	Dataset string    `json:"dataset"`
	Asked   time.Time `json:"asked"`
	Window
	// Attempts are the runs that have carried it, the oldest first: of Tries many,
	// the first and the last. One without a run record was killed.
	Attempts []Attempt `json:"attempts"`
	Tries    int       `json:"tries"`
	// Ended is when it was closed, Outcome how: complete or failed; Reason why.
	Ended   *time.Time     `json:"ended,omitempty"`
	Outcome ingest.Outcome `json:"outcome,omitempty"`
	Reason  string         `json:"reason,omitempty"`
}

// An Attempt is a run that has carried a request.
type Attempt struct {
	Run     string    `json:"run"`
	Started time.Time `json:"started"`
}

// A Window is what a request asks for. Its zero value is the dataset's own next
// one: from its checkpoint to now.
type Window struct {
	// Since is the start of a window; null: none is given.
	Since *time.Time `json:"since,omitempty"`
	// Full asks for everything.
	Full bool `json:"full,omitempty"`
	// FilterParameters take the place of the setting of that name.
	FilterParameters string `json:"filterParameters,omitempty"`
	// HostIDs are the only hosts to ask for.
	HostIDs []uint64 `json:"hostIds,omitempty"`
}

// Own tells that it is the dataset's own next window.
func (w Window) Own() bool { return w.Since == nil && !w.Full && len(w.HostIDs) == 0 }

// Equal tells whether both ask for the same.
func (w Window) Equal(o Window) bool {
	same := w.Since == nil && o.Since == nil || w.Since != nil && o.Since != nil && w.Since.Equal(*o.Since)
	return same && w.Full == o.Full && w.FilterParameters == o.FilterParameters && slices.Equal(w.HostIDs, o.HostIDs)
}

// asked is the window as a run takes it; nil for the dataset's own.
func (r *Request) asked() *ingest.Asked {
	if r.Own() {
		return nil
	}
	a := &ingest.Asked{ID: r.ID}
	if r.Since != nil {
		a.After = *r.Since
	}
	return a
}

// InvalidError names everything that is wrong with what somebody asks for.
type InvalidError struct{ Faults []string }

func (e *InvalidError) Error() string { return strings.Join(e.Faults, "\n") }

const (
	// maxHosts is how many host ids a request may name: about as many as Qualys
	// takes in a call (its guide, "ids").
	maxHosts = 1000
	// maxBody is the longest body, in bytes: a thousand ids and a filter.
	maxBody = 64 << 10
	// maxAttempts is how many attempts a document names; a week of ticks has 2,000.
	maxAttempts = 20
	// maxMembers is more than there are, so that each that is wrong can be named.
	maxMembers = 20
)

// earliest is before any finding of Qualys.
var earliest = time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)

// Parse reads what is asked for, of JSON. An empty text asks for the dataset's
// own next window. The error is an *InvalidError. checkFilter says what is wrong
// with filterParameters.
func Parse(body []byte, now time.Time, checkFilter func(string) error) (Window, error) {
	if len(body) > maxBody {
		return Window{}, &InvalidError{[]string{fmt.Sprintf("the body is too long: at most %d bytes are accepted", maxBody)}}
	}
	p := &parser{now: now, checkFilter: checkFilter}
	var members []jsonobject.Member
	var err error
	if len(bytes.TrimSpace(body)) > 0 {
		members, err = jsonobject.Members(body, maxMembers)
	}
	if err != nil {
		return Window{}, &InvalidError{[]string{err.Error() + `. Accepted: a JSON object such as {"since": "2026-11-01T00:00:00Z"}, {"full": true} or {"hostIds": [123, 456]}, or nothing`}}
	}
	for i, m := range members {
		if slices.ContainsFunc(members[:i], func(o jsonobject.Member) bool { return o.Name == m.Name }) {
			p.fault(clip(m.Name), "it is there twice")
			continue
		}
		p.member(m.Name, m.Value)
	}
	p.combine()
	if len(p.faults) > 0 {
		return Window{}, &InvalidError{p.faults}
	}
	return p.window, nil
}

type parser struct {
	now         time.Time
	checkFilter func(string) error
	window      Window
	faults      []string
	bad         bool // a member of the window is wrong: what it combines to is not known
}

func (p *parser) fault(name, format string, args ...any) {
	p.faults = append(p.faults, name+": "+fmt.Sprintf(format, args...))
	p.bad = true
}

func (p *parser) member(name string, value json.RawMessage) {
	switch name {
	case "since":
		p.since(value)
	case "full":
		if json.Unmarshal(value, &p.window.Full) != nil || string(value) == "null" {
			p.fault(name, "it must be true or false")
		}
	case "filterParameters":
		p.filter(value)
	case "hostIds":
		p.hosts(value)
	default:
		p.fault(clip(name), "there is no such member. Accepted: since, full, filterParameters, hostIds")
	}
}

func (p *parser) since(value json.RawMessage) {
	const accepted = "Accepted: a time such as 2026-11-01T00:00:00Z, or a day such as 2026-11-01"
	var text string
	if json.Unmarshal(value, &text) != nil {
		p.fault("since", "it is no text. %s", accepted)
		return
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		at, err = time.Parse(time.DateOnly, text)
	}
	at = at.UTC().Truncate(time.Second)
	switch {
	case err != nil:
		p.fault("since", "%q is no time. %s", clip(text), accepted)
	case at.After(p.now):
		p.fault("since", "%s is in the future: here it is %s", at.Format(time.RFC3339), p.now.UTC().Format(time.RFC3339))
	case at.Before(earliest):
		p.fault("since", "%s is before %s: to have everything, ask with full", at.Format(time.RFC3339), earliest.Format(time.DateOnly))
	default:
		p.window.Since = &at
	}
}

func (p *parser) filter(value json.RawMessage) {
	var text string
	if json.Unmarshal(value, &text) != nil || strings.TrimSpace(text) == "" {
		p.fault("filterParameters", "it must be a text such as &severities=4,5&status=New,Active")
		return
	}
	if err := p.checkFilter(text); err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			p.fault("filterParameters", "%s", line)
		}
		return
	}
	p.window.FilterParameters = text
}

func (p *parser) hosts(value json.RawMessage) {
	var list []json.RawMessage
	if json.Unmarshal(value, &list) != nil || list == nil {
		p.fault("hostIds", "it must be a list such as [123, 456]")
		return
	}
	if len(list) == 0 || len(list) > maxHosts {
		p.fault("hostIds", "it holds %d ids: 1 to %d are accepted", len(list), maxHosts)
		return
	}
	for n, raw := range list {
		// As numbers, or as texts, which rows have them as.
		text := strings.Trim(string(raw), `"`)
		id, err := strconv.ParseUint(text, 10, 63)
		if err != nil || id == 0 {
			p.fault("hostIds", "number %d of the list, %s, is no host id: HostId_s of the rows has it", n+1, clip(string(raw)))
			return
		}
		p.window.HostIDs = append(p.window.HostIDs, id)
	}
	slices.Sort(p.window.HostIDs)
	p.window.HostIDs = slices.Compact(p.window.HostIDs)
}

// combine checks what concerns several members.
func (p *parser) combine() {
	w := p.window
	if w.Since != nil && w.Full {
		p.fault("full", "it is everything, and since asks for a part: leave one of the two out")
	}
	if !p.bad && w.FilterParameters != "" && w.Own() {
		p.fault("filterParameters", "it needs since, full or hostIds: the next window itself always takes the setting filterParameters")
	}
	if values, err := url.ParseQuery(strings.TrimLeft(w.FilterParameters, "?& ")); len(w.HostIDs) > 0 && err == nil && values.Has("ids") {
		p.fault("hostIds", "filterParameters names ids as well: leave one of the two out")
	}
}

// Fits says what of a window datasets do not know. The error is an *InvalidError.
func (w Window) Fits(datasets []*ingest.Dataset) error {
	var faults []string
	for _, d := range datasets {
		if d == ingest.VM {
			continue
		}
		if len(w.HostIDs) > 0 {
			faults = append(faults, "hostIds: "+d.Title+" has no hosts: ask for vm")
		}
		if w.FilterParameters != "" {
			faults = append(faults, "filterParameters: "+d.Title+" takes none: ask for vm")
		}
	}
	if len(faults) > 0 {
		return &InvalidError{faults}
	}
	return nil
}

// clip keeps a pasted value from filling an answer.
func clip(s string) string {
	const most = 80
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
