package ingest_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/simulator"
)

// fleet is several destinations for one world.
type fleet struct {
	*world
	convoy  *ingest.Convoy
	members []*fleetMember
	calls   int // for detections
	mu      sync.Mutex
}

type fleetMember struct {
	name   string
	choose qualys.Selection
	dest   *destination
	after  time.Time // start of its first window; zero: everything
}

// patient is a clock whose waits end only when what is waited for has come.
type patient struct{ *clock }

func (patient) Sleep(ctx context.Context, _ time.Duration) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

func newFleet(t *testing.T, hosts, detections int, choices ...qualys.Selection) *fleet {
	t.Helper()
	f := &fleet{world: newWorld(t, hosts, detections)}
	f.qualys.Subscription.Infos = 3
	f.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/vm/detection/") {
			f.mu.Lock()
			f.calls++
			f.mu.Unlock()
		}
		return false
	}
	for i, c := range choices {
		f.members = append(f.members, &fleetMember{
			name: fmt.Sprintf("integration-%d", i+1), choose: c,
			dest: &destination{keys: map[string]int{}, rows: map[string]map[string]any{}, batch: 8_000},
		})
	}
	return f
}

// do runs all members, as one tick does.
func (f *fleet) do(t *testing.T, change func(i int, r *ingest.Run)) (reports []ingest.Report, errs []error) {
	t.Helper()
	f.convoy = &ingest.Convoy{Clock: patient{f.clock}, Log: zap.NewNop(), Together: func(list []ingest.Joint) ingest.Source {
		var all []*qualys.Detections
		for _, s := range list {
			switch o := s.(type) {
			case stopping:
				s = o.Detections
			case panics:
				s = o.Detections
			}
			all = append(all, s.(*qualys.Detections))
		}
		return qualys.Together(all)
	}}
	reports, errs = make([]ingest.Report, len(f.members)), make([]error, len(f.members))
	var begin []func()
	for i, m := range f.members {
		r := f.run()
		r.DestinationName, r.Destination, r.Integration, r.Health = m.name, m.dest, strconv.Itoa(i+1), nil
		d := r.Source.(*qualys.Detections)
		d.Select = &m.choose
		if !m.after.IsZero() {
			r.Lookback = f.clock.Now().Sub(m.after)
		}
		if change != nil {
			change(i, r)
		}
		source, leave := f.convoy.Join(r.Source.(ingest.Joint))
		r.Source = source
		begin = append(begin, func() {
			defer leave()
			reports[i], errs[i] = r.Do(context.Background())
		})
	}
	var wg sync.WaitGroup
	for _, b := range begin {
		wg.Go(b)
	}
	wg.Wait()
	return reports, errs
}

// wanted are the keys that a member is to get, by a filter of its own.
func (f *fleet) wanted(m *fleetMember, after time.Time) map[string]bool {
	keys := map[string]bool{}
	in := func(list []string, v string) bool { return len(list) == 0 || v == "" || slices.Contains(list, v) }
	f.qualys.Subscription.ExpectedWithInfo(after, f.clock.Now(), func(h simulator.Host, d simulator.Detection) {
		tagged := len(m.choose.Tags) == 0
		for _, tag := range h.Tags {
			tagged = tagged || slices.Contains(m.choose.Tags, tag.Name) || slices.Contains(m.choose.Tags, fmt.Sprint(tag.ID))
		}
		if tagged && in(m.choose.Types, d.Type) && in(m.choose.Severities, d.Severity) && in(m.choose.Statuses, d.Status) {
			keys[fmt.Sprintf("%d@%s", d.UniqueID, d.Processed.Format(time.RFC3339))] = true
		}
	})
	return keys
}

// wantExactly checks that each member has what it is to have; atMost bounds how often.
func (f *fleet) wantExactly(t *testing.T, after time.Time, atMost int) {
	t.Helper()
	for _, m := range f.members {
		want := f.wanted(m, after)
		if len(want) == 0 {
			t.Errorf("%s is to get nothing: the test is empty", m.name)
		}
		for key := range want {
			if n := m.dest.keys[key]; n == 0 || n > atMost {
				t.Errorf("%s has %s %d times", m.name, key, n)
			}
		}
		for key := range m.dest.keys {
			if !want[key] {
				t.Errorf("%s has %s, which it did not ask for: %.300v", m.name, key, m.dest.rows[key])
			}
		}
	}
}

var choices = []qualys.Selection{
	{},
	{Types: []string{qualys.Confirmed}, Severities: []string{"3", "4", "5"}},
	{Types: []string{qualys.Confirmed, qualys.Potential}, Severities: []string{"5"}},
	{Types: []string{qualys.Potential}, Statuses: []string{"New", "Re-Opened"}},
	{Types: qualys.Types, Severities: []string{"1", "2"}},
	{Tags: []string{"Servers", "90003"}},
	{Types: []string{qualys.Confirmed}, Tags: []string{"Büro Zürich"}, Statuses: []string{"Fixed"}},
}

func wantComplete(t *testing.T, reports []ingest.Report, errs []error) {
	t.Helper()
	for i, r := range reports {
		if r.Outcome != ingest.Complete || errs[i] != nil {
			t.Errorf("%d: %s: %v", i, r.Outcome, errs[i])
		}
	}
}

// One fetch serves all: as many calls as for one.
func TestConvoyReadsOnce(t *testing.T) {
	f := newFleet(t, 95, 6, choices...)
	reports, errs := f.do(t, nil)
	wantComplete(t, reports, errs)
	f.wantExactly(t, time.Time{}, 1)
	if f.calls != 10 {
		t.Errorf("%d calls for 10 pages", f.calls)
	}
	for _, r := range reports {
		if r.Pages != 10 || r.Parents != 95 || r.Integration == "" {
			t.Errorf("%+v", r)
		}
	}
	// The next window is at the same point for all, too, and brings nothing twice.
	f.clock.advance(5 * time.Minute)
	f.qualys.Subscription.Rescan(7, f.clock.Now().Add(-time.Minute))
	f.calls = 0
	reports, errs = f.do(t, nil)
	wantComplete(t, reports, errs)
	if f.calls != 1 {
		t.Errorf("%d calls for one page", f.calls)
	}
	for i, m := range f.members {
		for key, n := range m.dest.keys {
			if n != 1 {
				t.Errorf("%d has %s %d times", i, key, n)
			}
		}
	}
}

// Those whose first windows begin a little apart, as their clocks were looked at one
// after the other, read the same pages.
func TestFirstWindowsTogether(t *testing.T) {
	f := newFleet(t, 95, 6, choices...)
	for i, m := range f.members {
		m.after = f.clock.Now().Add(-240*time.Hour + time.Duration(i)*time.Second)
	}
	reports, errs := f.do(t, nil)
	wantComplete(t, reports, errs)
	if f.calls != 10 {
		t.Errorf("%d calls for 10 pages", f.calls)
	}
	// The second windows, too, of one that has joined late with everything.
	f.clock.advance(5 * time.Minute)
	f.members = append(f.members, &fleetMember{name: "integration-9", choose: choices[0], dest: &destination{keys: map[string]int{}, rows: map[string]map[string]any{}, batch: 8_000}})
	reports, errs = f.do(t, nil)
	wantComplete(t, reports, errs)
	f.clock.advance(5 * time.Minute)
	f.calls = 0
	reports, errs = f.do(t, nil)
	wantComplete(t, reports, errs)
	if f.calls != 1 {
		t.Errorf("%d calls for a page", f.calls)
	}
	for _, m := range f.members {
		for key, n := range m.dest.keys {
			if n > 1 {
				t.Errorf("%s has %s %d times", m.name, key, n)
			}
		}
	}
}

// Who is far behind has pages of its own and catches up; then it shares the others'.
func TestNewcomerCatchesUp(t *testing.T) {
	f := newFleet(t, 60, 4, choices[0], choices[1])
	reports, errs := f.do(t, nil)
	wantComplete(t, reports, errs)
	f.clock.advance(5 * time.Minute)
	f.qualys.Subscription.Rescan(3, f.clock.Now().Add(-time.Minute))
	f.members = append(f.members, &fleetMember{name: "integration-9", choose: choices[4], dest: &destination{keys: map[string]int{}, rows: map[string]map[string]any{}, batch: 8_000}})
	f.calls = 0
	reports, errs = f.do(t, nil)
	wantComplete(t, reports, errs)
	if f.calls != 7 { // one page of the others, six of its own
		t.Errorf("%d calls", f.calls)
	}
	if reports[0].Parents >= 30 || reports[2].Parents <= 50 {
		t.Errorf("%d, %d hosts", reports[0].Parents, reports[2].Parents)
	}
	newcomer := f.members[2]
	for key := range f.wanted(newcomer, time.Time{}) {
		if newcomer.dest.keys[key] != 1 {
			t.Errorf("the newcomer has %s %d times", key, newcomer.dest.keys[key])
		}
	}
	f.clock.advance(5 * time.Minute)
	f.calls = 0
	reports, errs = f.do(t, nil)
	wantComplete(t, reports, errs)
	if f.calls != 1 {
		t.Errorf("%d calls once it has caught up", f.calls)
	}
}

// One whose destination takes nothing fails by itself, and goes on later from where
// it had got to.
func TestConvoyWithoutTheFailing(t *testing.T) {
	f := newFleet(t, 95, 6, choices...)
	bad := f.members[2]
	bad.dest.before = func(n int, _ record.Batch) error {
		if n > 1 {
			return errors.New("the key is wrong")
		}
		return nil
	}
	reports, errs := f.do(t, nil)
	for i, r := range reports {
		if failed := i == 2; failed != (r.Outcome == ingest.Failed) || failed != (errs[i] != nil) {
			t.Errorf("%d: %s, %v", i, r.Outcome, errs[i])
		}
	}
	if f.calls > 12 {
		t.Errorf("%d calls for 10 pages", f.calls)
	}
	bad.dest.before = nil
	f.clock.advance(2 * time.Hour)
	reports, errs = f.do(t, nil)
	wantComplete(t, reports, errs)
	want := f.wanted(bad, time.Time{})
	have := maps.Clone(bad.dest.keys)
	for key, n := range have {
		if n > 2 {
			t.Errorf("%s came %d times", key, n)
		}
	}
	for key := range want {
		if have[key] == 0 {
			t.Errorf("%s is missing", key)
		}
	}
}

// Killed at different points, members are together again within a page or two.
func TestConvoyComesTogetherAgain(t *testing.T) {
	f := newFleet(t, 195, 6, choices[0], choices[1], choices[2], choices[5])
	// Each stops in the middle of the third page, after another host.
	stops := []int{23, 24, 26, 28}
	_, _ = f.do(t, func(i int, r *ingest.Run) {
		r.Source = stopping{r.Source.(*qualys.Detections), stops[i]}
	})
	f.calls = 0
	reports, errs := f.do(t, nil)
	wantComplete(t, reports, errs)
	f.wantExactly(t, time.Time{}, 2)
	if f.calls > 20 { // 18 pages are left
		t.Errorf("%d calls", f.calls)
	}
}

// stopping fails for good after some hosts.
type stopping struct {
	*qualys.Detections
	after int
}

func (s stopping) Only(sink record.Sink) record.Sink {
	return &stoppingSink{s.Detections.Only(sink), s.after}
}

type stoppingSink struct {
	record.Sink
	left int
}

func (s *stoppingSink) Done(id uint64) error {
	if s.left--; s.left == 0 {
		return errors.New("stopped by the test")
	}
	return s.Sink.Done(id)
}

// An ill host is found once for all, and isolated by each.
func TestIllHostInAConvoy(t *testing.T) {
	t.Parallel()
	for _, breaks := range []bool{true, false} {
		t.Run(fmt.Sprint("breaks ", breaks), func(t *testing.T) {
			alone := newFleet(t, 48, 6, choices[0])
			f := newFleet(t, 48, 6, choices[0], choices[1], choices[2], choices[4])
			var ill uint64
			for _, f := range []*fleet{alone, f} {
				ill = f.hostIDs()[23]
				f.ill(breaks, ill)
				count, lists := f.before, 0
				f.before = func(w http.ResponseWriter, r *http.Request) bool {
					f.mu.Lock()
					if strings.Contains(r.URL.Path, "/vm/detection/") {
						f.calls++
					} else {
						lists++
					}
					f.mu.Unlock()
					return count(w, r)
				}
				reports, errs := f.do(t, nil)
				wantComplete(t, reports, errs)
				for i, r := range reports {
					// The waits of all move the one clock on, so that it may be time to try it
					// again, alone. One that wants nothing of it is answered then.
					if isolated := len(r.Isolated) == 1 && r.Isolated[0].ID == ill; !isolated && (len(r.Isolated) > 0 || f.wantsOf(f.members[i], ill) > 0) {
						t.Errorf("%s: isolated = %+v, want host %d: it wants %d rows of it", f.members[i].name, r.Isolated, ill, f.wantsOf(f.members[i], ill))
					}
				}
				if lists > 2 {
					t.Errorf("the hosts were listed %d times", lists)
				}
			}
			if f.calls > alone.calls+10 {
				t.Errorf("%d calls, and alone %d", f.calls, alone.calls)
			}
			for _, m := range f.members {
				for key := range f.wanted(m, time.Time{}) {
					if n := m.dest.keys[key]; n != 1 && !ofHost(key, ill) {
						t.Errorf("%s has %s %d times", m.name, key, n)
					}
				}
			}
			// Well again, it arrives with all that each of them wants of it.
			f.before = nil
			for range 3 {
				f.clock.advance(24 * time.Hour)
				reports, errs := f.do(t, nil)
				wantComplete(t, reports, errs)
			}
			for _, m := range f.members {
				for key := range f.wanted(m, time.Time{}) {
					if m.dest.keys[key] == 0 {
						t.Errorf("%s has not %s", m.name, key)
					}
				}
			}
		})
	}
}

// ofHost reports whether a row's key is of a host: the simulator's ids of findings begin
// with the host's.
func ofHost(key string, host uint64) bool {
	return strings.HasPrefix(key, strconv.FormatUint(host, 10))
}

// wantsOf counts the rows that a member wants of a host.
func (f *fleet) wantsOf(m *fleetMember, host uint64) (n int) {
	for key := range f.wanted(m, time.Time{}) {
		if ofHost(key, host) {
			n++
		}
	}
	return n
}

// Whoever stops waiting, or panics, does so alone.
func TestConvoyWithoutTheStopped(t *testing.T) {
	f := newFleet(t, 95, 6, choices[0], choices[1], choices[2], choices[5])
	reports, errs := f.do(t, func(i int, r *ingest.Run) {
		switch i {
		case 1:
			r.Source = panics{r.Source.(*qualys.Detections)}
		case 3:
			r.Budget = 20 * time.Second
			r.Clock = &late{clock: f.clock}
		}
	})
	for i, want := range []ingest.Outcome{ingest.Complete, ingest.Failed, ingest.Complete, ingest.Paused} {
		if reports[i].Outcome != want {
			t.Errorf("%d: %s, %v", i, reports[i].Outcome, errs[i])
		}
	}
	if errs[1] == nil || !strings.Contains(errs[1].Error(), "internal error: boom") {
		t.Errorf("%v", errs[1])
	}
	if f.calls != 10 {
		t.Errorf("%d calls", f.calls)
	}
}

// late is a clock that has gone on whenever it is looked at.
type late struct {
	*clock
	looks atomic.Int64
}

func (c *late) Now() time.Time {
	return c.clock.Now().Add(time.Duration(c.looks.Add(1)) * time.Second)
}

type panics struct{ *qualys.Detections }

func (p panics) Only(sink record.Sink) record.Sink { return panickingSink{sink} }

type panickingSink struct{ record.Sink }

func (panickingSink) Done(uint64) error { panic("boom") }

// A run that is about to ask is waited for, but not for ever, and only once.
func TestConvoyDoesNotWaitForEver(t *testing.T) {
	f := newFleet(t, 95, 6, choices[0])
	gathered := &counting{clock: f.clock}
	reports, errs := f.do(t, func(_ int, r *ingest.Run) {
		f.convoy.Clock = gathered
		// It never asks.
		f.convoy.Join(r.Source.(ingest.Joint))
	})
	wantComplete(t, reports, errs)
	if gathered.n != 1 || f.calls != 10 {
		t.Errorf("waited %d times, %d calls", gathered.n, f.calls)
	}
}

// counting is a clock that counts how often something has waited to the end.
type counting struct {
	*clock
	n int
}

func (c *counting) Sleep(ctx context.Context, _ time.Duration) error {
	c.n++
	return context.Cause(ctx)
}

// One that runs seldom, beside one that runs often, does not make the other's rows be
// sent again.
func TestSeldomBesideOften(t *testing.T) {
	f := newFleet(t, 400, 3, qualys.Selection{}, qualys.Selection{Types: []string{qualys.Confirmed}})
	f.page = 1000
	all := f.members
	reports, errs := f.do(t, nil)
	wantComplete(t, reports, errs)
	for n := 1; n <= 12; n++ {
		f.clock.advance(5 * time.Minute)
		for k := range 15 {
			f.qualys.Subscription.Rescan(n*15+k, f.clock.Now().Add(-time.Minute))
		}
		if f.members = all[:1]; n%4 == 0 {
			f.members = all
		}
		reports, errs = f.do(t, nil)
		wantComplete(t, reports, errs)
	}
	for i, m := range all {
		twice := 0
		for _, n := range m.dest.keys {
			twice += n - 1
		}
		if twice > 20 { // hosts that are processed twice in a second of the window
			t.Errorf("%d: %d rows twice", i, twice)
		}
	}
}
