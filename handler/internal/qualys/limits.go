package qualys

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"qualys-sentinel/handler/internal/record"
)

const (
	// looks is how many calls of a window are made into the reserve, to see
	// whether the others have left more again.
	looks = 10
	// maxRest is the longest that a server which is down is left alone.
	maxRest = time.Minute
)

// limits keeps the calls of all datasets within what the subscription allows.
// Qualys counts by endpoint (its guide, "API limits"), so each has limits of its
// own; a server that is down, or answers 429, is down for all.
type limits struct {
	mu        sync.Mutex
	rests     int // how many have been met that are worth to be kept
	keptRests int // as many of them are kept
	endpoints map[string]*endpoint
	rest      rest // of all
	strikes   int  // failures in a row of the server as a whole
}

// endpoint is what is known of one path.
type endpoint struct {
	told    record.CallLimits
	rest    rest
	running int // calls of ours
	waiting []chan struct{}
}

// rest is a time without calls.
type rest struct {
	until time.Time
	why   Error
}

// over returns the reason while the rest goes on.
func (r *rest) over(now time.Time) error {
	left := r.until.Sub(now)
	if left <= 0 {
		return nil
	}
	why := r.why
	why.After = left
	return &why
}

func (l *limits) endpoint(path string) *endpoint {
	if l.endpoints == nil {
		l.endpoints = map[string]*endpoint{}
	}
	if l.endpoints[path] == nil {
		l.endpoints[path] = &endpoint{told: record.NoCallLimits}
	}
	return l.endpoints[path]
}

// slots is how many calls may run at once: one less than Qualys allows, for the
// customer's other tools, and one as long as it has not told.
func (e *endpoint) slots() int { return max(1, e.told.Concurrent-1) }

// enter waits for a slot of the endpoint, first come first served; waited says that it was
// not free. leave must be called once, when the answer is read.
func (l *limits) enter(ctx context.Context, path string) (leave func(), waited bool, err error) {
	l.mu.Lock()
	e := l.endpoint(path)
	if e.running < e.slots() && len(e.waiting) == 0 {
		e.running++
		l.mu.Unlock()
	} else {
		waited = true
		turn := make(chan struct{})
		e.waiting = append(e.waiting, turn)
		l.mu.Unlock()
		select {
		case <-turn:
		case <-ctx.Done():
			l.mu.Lock()
			defer l.mu.Unlock()
			if i := slices.Index(e.waiting, turn); i >= 0 {
				e.waiting = slices.Delete(e.waiting, i, i+1)
			} else {
				e.leave() // the turn came in this very moment
			}
			return nil, waited, context.Cause(ctx)
		}
	}
	leave = func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		e.leave()
	}
	return leave, waited, nil
}

// resting refuses a call that Qualys is known to refuse.
func (l *limits) resting(path string, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return cmp.Or(l.rest.over(now), l.endpoint(path).rest.over(now))
}

// leave gives a slot to whoever waits longest.
func (e *endpoint) leave() {
	e.running--
	for len(e.waiting) > 0 && e.running < e.slots() {
		close(e.waiting[0])
		e.waiting = e.waiting[1:]
		e.running++
	}
}

// note keeps what an answer's headers say of the endpoint's limits. reserve is
// in percent.
func (l *limits) note(path string, header http.Header, reserve int, now time.Time) {
	told := record.CallLimits{
		Calls:      number(header, "X-RateLimit-Limit"),
		Remaining:  number(header, "X-RateLimit-Remaining"),
		WindowSec:  number(header, "X-RateLimit-Window-Sec"),
		Concurrent: number(header, "X-Concurrency-Limit-Limit", "X-ConcurrencyLimit-Limit"),
		Running:    number(header, "X-Concurrency-Limit-Running", "X-ConcurrencyLimit-Running"),
	}
	if told == record.NoCallLimits {
		return // a proxy's answer, or a bad login's
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.endpoint(path)
	e.told = told
	toWait := number(header, "X-RateLimit-ToWait-Sec")
	switch {
	case told.Remaining == 0 && toWait > 0:
		// Another answer may have told of a longer one.
		if until := now.Add(seconds(toWait)); until.After(e.rest.until) {
			l.rests++
			e.rest = rest{until, Error{Kind: Limited, Text: "the calls of this window are used up"}}
		}
	case now.Before(e.rest.until):
		// It is known already, from an answer that knew better.
	case told.Remaining >= 0 && told.Calls > 0 && told.WindowSec > 0 && told.Remaining <= told.Calls*reserve/100:
		l.rests++
		e.rest = rest{now.Add(seconds(told.WindowSec) / looks), Error{Kind: Limited, Text: fmt.Sprintf("%d of %d calls of this window are left, and kept for the customer's other tools", told.Remaining, told.Calls)}}
	}
}

// failed keeps a failure that concerns other calls, too: of this endpoint, or
// of all. It sets how long to wait where Qualys did not say, so that whoever
// met the failure and whoever is told of it here wait alike.
func (l *limits) failed(path string, e *Error, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := &l.rest
	switch {
	case e.Kind == Limited && e.Status != http.StatusTooManyRequests:
		at = &l.endpoint(path).rest
	case e.Kind == Limited:
	case e.Kind == Unreachable, e.Kind == Unavailable && !e.Heavy():
		if e.After == 0 {
			e.After = min(maxRest, time.Second<<min(l.strikes, 6))
		}
		l.strikes++
	default:
		return
	}
	if until := now.Add(e.After); until.After(at.until) {
		if e.After >= leastKept {
			l.rests++
		}
		*at = rest{until, Error{Kind: e.Kind, Status: e.Status, Code: e.Code, Text: strings.TrimSpace("said to a call just before: " + e.Text), Err: e.Err}}
	}
}

// adopt takes over rests that other processes have met. None is believed for longer
// than one that is told by Qualys.
func (l *limits) adopt(rests map[string]kept, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for path, k := range rests {
		at := &l.rest
		if path != allEndpoints {
			if len(path) > maxPath || !now.Before(k.Until) {
				continue
			}
			at = &l.endpoint(path).rest
		}
		until := earlier(k.Until, now.Add(maxWait))
		if until.Before(k.Until) {
			l.rests++ // written down as it is believed, so that it ends for others, too
		}
		if until.After(at.until) {
			*at = rest{until, Error{Kind: k.Kind, Status: k.Status, Code: k.Code, Text: k.Text}}
		}
	}
}

// maxPath bounds the path of an endpoint that is read from the state.
const maxPath = 200

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// kept is what other processes are to know, and how many rests that takes in of those that
// were met.
func (l *limits) kept(now time.Time) (rests map[string]kept, met int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	rests = map[string]kept{}
	add := func(path string, r rest) {
		if r.until.After(now) {
			text := r.why.Text
			if r.why.Err != nil {
				text += ": " + r.why.Err.Error()
			}
			// The state has whole seconds: the next one, so that no process calls early.
			rests[path] = kept{r.until.UTC().Add(time.Second - 1).Truncate(time.Second), r.why.Kind, r.why.Status, r.why.Code, clip(text, maxErrorText)}
		}
	}
	add(allEndpoints, l.rest)
	for path, e := range l.endpoints {
		add(path, e.rest)
	}
	return rests, l.rests
}

// unkept reports whether there is anything to keep.
func (l *limits) unkept() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rests != l.keptRests
}

// wasKept notes that so many of the rests that were met are kept: another may have been
// met meanwhile.
func (l *limits) wasKept(met int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keptRests = met
}

// answered ends the failures in a row.
func (l *limits) answered() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.strikes = 0
}

// all copies what is known, by path.
func (l *limits) all() map[string]record.CallLimits {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := make(map[string]record.CallLimits, len(l.endpoints))
	for path, e := range l.endpoints {
		m[path] = e.told
	}
	return m
}

// of is what is known of one endpoint.
func (l *limits) of(path string) record.CallLimits {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.endpoint(path).told
}

// asError is err as an *Error, or nil.
func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return nil
}
