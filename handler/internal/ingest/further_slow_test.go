package ingest_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/record"
)

// wantHealed makes all answers good again, and checks that then all arrives and nobody
// stays isolated.
func (w *world) wantHealed() {
	w.t.Helper()
	w.before = nil
	const most = 8
	for day := 1; ; day++ {
		time.Sleep(24 * time.Hour)
		report, err := w.do()
		n := w.lost()
		if report.Outcome == ingest.Complete && n == 0 && report.IsolatedTotal == 0 {
			return
		}
		if day == most {
			w.t.Errorf("got %s, %v, %d rows lost, isolated %+v after %d days of good answers; want none", report.Outcome, err, n, report.Isolated, most)
			return
		}
	}
}

// takes is a slowness of an answer that drips comments for a while in front of the
// host, and is whole.
func takes(d time.Duration) slowness {
	return func(w http.ResponseWriter, r *http.Request, doc string, at int) {
		io.WriteString(w, doc[:at])
		for range int(d / (10 * time.Second)) {
			select {
			case <-r.Context().Done():
				return
			case <-time.After(10 * time.Second):
			}
			if _, err := io.WriteString(w, "<!-- keep-alive -->"); err != nil {
				return
			}
		}
		io.WriteString(w, doc[at:])
	}
}

// comesByItself lets a run begin every hour for a day and a half, or until all has arrived
// and nobody is isolated, with answers as slow as they are.
func (w *world) comesByItself() {
	w.t.Helper()
	began := time.Now()
	var report ingest.Report
	for time.Since(began) < 36*time.Hour {
		ran := time.Now()
		if report, _ = w.do(); report.Outcome == ingest.Complete && report.IsolatedTotal == 0 {
			w.t.Logf("all has come after %s", time.Since(began))
			return
		}
		time.Sleep(max(time.Minute, time.Hour-time.Since(ran)))
	}
	w.t.Errorf("after 36 hours: got %s, %d isolated, such as %+v; want that all has come", report.Outcome, report.IsolatedTotal, report.Isolated[:min(1, len(report.Isolated))])
}

// dripsAt is a slowness that writes the answer up to a mark behind the host's
// beginning, and then a text for ever.
func dripsAt(mark, begin, text string) slowness {
	return func(w http.ResponseWriter, r *http.Request, doc string, at int) {
		io.WriteString(w, doc[:inside(doc, at, mark)]+begin)
		drip(w, r, text)
	}
}

// blames tells whether anybody but some hosts is isolated.
func blames(c ingest.Checkpoint, but ...uint64) (ids []uint64) {
	for _, i := range c.Isolated {
		if !slices.Contains(but, i.ID) {
			ids = append(ids, i.ID)
		}
	}
	return ids
}

// Further ways in which the answer for one host takes too long.
func TestFurtherSlownesses(t *testing.T) {
	for name, c := range map[string]struct {
		how slowness
		may bool // the host itself may have come
	}{
		"in an attribute":     {dripsAt("<HOST", ` note="`, "x"), false},
		"in a tag's name":     {dripsAt("</ID>", "<X", "x"), false},
		"in CDATA":            {dripsAt("</ID>", "<OS><![CDATA[", "x"), false},
		"in an entity":        {dripsAt("</ID>", "<OS>&", "x"), false},
		"in elements unknown": {dripsAt("</ID>", "", "<X>1</X>"), false},
		"in nested elements":  {dripsAt("</ID>", "<METADATA>", "<X>"), false},
		"in hosts that repeat": {func(w http.ResponseWriter, r *http.Request, doc string, at int) {
			io.WriteString(w, doc[:at])
			drip(w, r, "<HOST><IP>10.0.0.1</IP></HOST>")
		}, false},
		"in front of the XML": {func(w http.ResponseWriter, r *http.Request, _ string, _ int) { drip(w, r, "\r\n") }, false},
		"in the XML declaration": {func(w http.ResponseWriter, r *http.Request, _ string, _ int) {
			io.WriteString(w, "<?xml ")
			drip(w, r, " ")
		}, false},
		"in the DOCTYPE": {func(w http.ResponseWriter, r *http.Request, _ string, _ int) {
			io.WriteString(w, "<!DOCTYPE HOST_LIST_VM_DETECTION_OUTPUT [")
			drip(w, r, "<!-- x -->")
		}, false},
		"behind </HOST_LIST>": {dripsAt("</HOST_LIST>", "", "<!-- x -->"), true},
		"behind the root":     {dripsAt("</HOST_LIST_VM_DETECTION_OUTPUT>", "", "\n"), true},
		"silent behind the root": {func(w http.ResponseWriter, r *http.Request, doc string, _ int) {
			io.WriteString(w, doc)
			<-r.Context().Done()
		}, true},
		"in the warning":           {dripsAt("</HOST_LIST>", "<WARNING><TEXT>", "x"), true},
		"500 with a dripping body": {func(w http.ResponseWriter, r *http.Request, _ string, _ int) { w.WriteHeader(500); drip(w, r, "x") }, false},
		"409 with a dripping body": {func(w http.ResponseWriter, r *http.Request, _ string, _ int) {
			w.WriteHeader(409)
			io.WriteString(w, "<SIMPLE_RETURN>")
			drip(w, r, "<!-- x -->")
		}, false},
	} {
		for _, place := range []int{0, 23, 59}[len(name)%3:][:1] {
			t.Run(fmt.Sprintf("%s, host %d", name, place), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					w := newVirtualWorld(t, 60, 4)
					w.page, w.budget = 16, 25*time.Minute
					ill := w.hostIDs()[place]
					w.slow(map[uint64]slowness{ill: c.how})
					others := w.findingsBut(ill)
					_, report := w.ticks(4)
					if ids := blames(w.checkpoint(), ill); len(ids) > 0 || report.IsolatedTotal == 0 && !c.may {
						t.Errorf("isolated = %+v, want host %d", report.Isolated, ill)
					}
					w.wantFindings(others)
					w.wantHealed()
				})
			})
		}
	}
}

// Slow hosts at odd places, in runs of few and of many minutes.
func TestFurtherSlowPlaces(t *testing.T) {
	for name, c := range map[string]struct {
		hosts  int
		places []int
		budget time.Duration
		how    string
	}{
		"two side by side":       {60, []int{23, 24}, 60, "drips in a comment"},
		"three side by side":     {60, []int{22, 23, 24}, 2, "never ends"},
		"five side by side":      {60, []int{20, 21, 22, 23, 24}, 5, "never begins"},
		"at a page's end":        {60, []int{15, 16}, 5, "drips in a value"},
		"first and last":         {60, []int{0, 59}, 2, "drips in a comment"},
		"the last three":         {60, []int{57, 58, 59}, 60, "never ends"},
		"the first":              {60, []int{0}, 2, "never begins"},
		"one of two":             {2, []int{1}, 2, "drips in a comment"},
		"every fourth of twenty": {20, []int{3, 7, 11, 15, 19}, 2, "never ends"},
	} {
		t.Run(fmt.Sprintf("%s, %d minutes, %s", name, c.budget, c.how), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, c.hosts, 3)
				w.page, w.budget = 16, c.budget*time.Minute
				var ill []uint64
				how := map[uint64]slowness{}
				for _, n := range c.places {
					ill = append(ill, w.hostIDs()[n])
					how[w.hostIDs()[n]] = slownesses[c.how]
				}
				w.slow(how)
				others := w.findingsBut(ill...)
				runs, report := w.ticks(2 + 4*len(ill))
				if report.IsolatedTotal != len(ill) || len(blames(w.checkpoint(), ill...)) > 0 {
					t.Errorf("isolated = %+v after %d runs, want hosts %d", report.Isolated, runs, ill)
				}
				w.wantFindings(others)
				w.wantHealed()
			})
		})
	}
}

// A subscription of one host, which is slow: whatever is said of it, it arrives when it
// is well.
func TestFurtherSlowOnlyHost(t *testing.T) {
	for name, how := range slownesses {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 1, 5)
				w.budget = 25 * time.Minute
				w.slow(map[uint64]slowness{w.hostIDs()[0]: how})
				for n := range 8 {
					report, err := w.do()
					if n > 3 && report.Outcome != ingest.Complete && (report.Outcome != ingest.Failed || err == nil) {
						t.Errorf("run %d: got %s, %v; want its end, or the failure told", n+1, report.Outcome, err)
					}
					time.Sleep(5 * time.Minute)
				}
				w.wantHealed()
			})
		})
	}
}

// Hosts that are slow and end: they arrive, though nobody heals them.
func TestFurtherSlowButWhole(t *testing.T) {
	perHost := func(each time.Duration) func(w *world) {
		return func(w *world) { // the first byte takes the longer the more hosts there are
			w.before = func(rw http.ResponseWriter, r *http.Request) bool {
				answer := httptest.NewRecorder()
				w.qualys.ServeHTTP(answer, r)
				if strings.HasSuffix(r.URL.Path, "/detection/") {
					select {
					case <-r.Context().Done():
					case <-time.After(time.Duration(strings.Count(answer.Body.String(), "</HOST>")) * each):
					}
				}
				io.WriteString(rw, answer.Body.String())
				return true
			}
		}
	}
	some := func(how slowness, places ...int) func(w *world) {
		return func(w *world) {
			m := map[uint64]slowness{}
			for _, n := range places {
				m[w.hostIDs()[n]] = how
			}
			w.slow(m)
		}
	}
	for name, c := range map[string]struct {
		budget time.Duration
		slow   func(w *world)
	}{
		"3 of 25 minutes":                     {25, some(takes(3*time.Minute), 23)},
		"10 of 25 minutes":                    {25, some(takes(10*time.Minute), 23)},
		"3 of 5 minutes":                      {5, some(takes(3*time.Minute), 23)},
		"10 of 12 minutes, at a page's end":   {12, some(takes(10*time.Minute), 15)},
		"24 of 25 minutes":                    {25, some(takes(24*time.Minute), 30)},
		"a minute for each, before any comes": {25, perHost(time.Minute)},
		"20 s for each of a page, 5 minutes":  {5, perHost(20 * time.Second)},
		"110 s for each, of 5 minutes":        {5, perHost(110 * time.Second)},
		"2 minutes for each of a page of 5":   {5, perHost(2 * time.Minute)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 60, 3)
				w.page, w.budget = 16, c.budget*time.Minute
				c.slow(w)
				all := w.findingsBut()
				w.comesByItself()
				w.wantFindings(all)
				w.wantHealed()
			})
		})
	}
}

// Some hosts side by side that are slow and end: each run takes some of them.
func TestFurtherSlowNeighboursThatEnd(t *testing.T) {
	for _, c := range []struct{ takes, budget time.Duration }{{10, 25}, {3, 5}, {7, 10}, {2, 60}} {
		t.Run(fmt.Sprintf("%d of %d minutes", c.takes, c.budget), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 40, 3)
				w.page, w.budget = 16, c.budget*time.Minute
				ill := w.hostIDs()[10:18]
				w.before = func(rw http.ResponseWriter, r *http.Request) bool {
					answer := httptest.NewRecorder()
					w.qualys.ServeHTTP(answer, r)
					rw.Header().Set("Date", w.now().UTC().Format(http.TimeFormat))
					doc := answer.Body.String()
					for strings.Contains(doc, "<HOST>") {
						i := strings.Index(doc, "</HOST>") + len("</HOST>")
						host := doc[:i]
						doc = doc[i:]
						if slices.ContainsFunc(ill, func(id uint64) bool { return strings.Contains(host, fmt.Sprintf("<ID>%d</ID>", id)) }) {
							takes(c.takes*time.Minute)(rw, r, host, strings.Index(host, "<HOST>"))
							if r.Context().Err() != nil {
								return true
							}
						} else {
							io.WriteString(rw, host)
						}
					}
					io.WriteString(rw, doc)
					return true
				}
				all := w.findingsBut()
				for began := time.Now(); time.Since(began) < 36*time.Hour; {
					ran := time.Now()
					_, _ = w.do() // those that are slow may be isolated anew
					time.Sleep(max(time.Minute, time.Hour-time.Since(ran)))
				}
				w.wantFindings(all)
				w.wantHealed()
			})
		})
	}
}

// hesitant is a destination that takes its time.
type hesitant struct {
	*destination
	takes time.Duration
	// fails, if not nil, is the error for each batch that comes for the first time.
	fails error
	// came holds the bodies that came. It counts by batch, as a count of all calls
	// would leave it to their order whether any batch ever gets through.
	came *sync.Map
}

func (h hesitant) Send(ctx context.Context, b record.Batch) (int64, error) {
	select {
	case <-time.After(h.takes):
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	if _, again := h.came.LoadOrStore(string(b.Body), true); !again && h.fails != nil {
		return 0, h.fails
	}
	return h.destination.Send(ctx, b)
}

// What the destination takes too long for is no host's fault.
func TestFurtherSlowDestination(t *testing.T) {
	for name, c := range map[string]struct {
		takes time.Duration
		fails error
		slow  string
	}{
		"20 minutes for each batch":            {20 * time.Minute, nil, ""},
		"throttles for 10 minutes, each batch": {0, &problem{retry: true, limit: true, after: 10 * time.Minute}, ""},
		"fails each batch once":                {time.Minute, &problem{retry: true}, ""},
		"6 minutes, and a host drips":          {6 * time.Minute, nil, "drips in a comment"},
		"20 minutes, and a host never ends":    {20 * time.Minute, nil, "never ends"},
		"throttles, and a host never begins":   {0, &problem{retry: true, limit: true, after: 5 * time.Minute}, "never begins"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 60, 4)
				w.page, w.budget = 16, 25*time.Minute
				var ill uint64
				var came sync.Map
				if c.slow != "" {
					ill = w.hostIDs()[23]
					w.slow(map[uint64]slowness{ill: slownesses[c.slow]})
				}
				others := w.findingsBut(ill)
				done := false
				for range 16 {
					r := w.run()
					r.Destination = hesitant{w.dest, c.takes, c.fails, &came}
					report, err := w.finish(context.Background(), r)
					if ids := blames(w.checkpoint(), ill); len(ids) > 0 {
						t.Fatalf("got %s, %v, isolated %d; want at most host %d", report.Outcome, err, ids, ill)
					}
					if done = report.Outcome == ingest.Complete; done {
						break
					}
					time.Sleep(5 * time.Minute)
				}
				if !done {
					t.Errorf("not complete after 16 runs: %+v", w.checkpoint().Trouble)
				}
				w.wantFindings(others)
				w.wantHealed()
			})
		})
	}
}

// A process that is asked to stop in the middle of a drip blames nobody.
func TestFurtherSlowAndInterrupted(t *testing.T) {
	for name, how := range map[string]slowness{
		"never ends":        slownesses["never ends"],
		"drips in a value":  slownesses["drips in a value"],
		"never begins":      slownesses["never begins"],
		"takes ten minutes": takes(10 * time.Minute),
		"takes 12 minutes":  takes(12 * time.Minute),
	} {
		for _, after := range []time.Duration{time.Minute, 9 * time.Minute}[len(name)%2:] {
			t.Run(fmt.Sprintf("%s, stopped after %s", name, after), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					w := newVirtualWorld(t, 60, 3)
					w.page, w.budget = 16, 25*time.Minute
					ill := w.hostIDs()[23]
					w.slow(map[uint64]slowness{ill: how})
					others := w.findingsBut(ill)
					for range 8 {
						ctx, cancel := context.WithTimeout(context.Background(), after)
						report, err := w.finish(ctx, w.run())
						cancel()
						if report.IsolatedTotal > 0 || err != nil {
							t.Fatalf("got %s, %v, isolated %+v; want a pause", report.Outcome, err, report.Isolated)
						}
						time.Sleep(time.Minute)
					}
					_, report := w.ticks(5)
					whole := strings.HasPrefix(name, "takes")
					if ids := blames(w.checkpoint(), ill); len(ids) > 0 || (report.IsolatedTotal > 0) == whole {
						t.Errorf("got isolated %+v, want host %d: %v", report.Isolated, ill, !whole)
					}
					w.wantFindings(others)
					w.wantHealed()
				})
			})
		}
	}
}

// slowToHold is a state that lets wait for a hold.
type slowToHold struct {
	checkpoint.Store
	takes time.Duration
}

func (s slowToHold) Acquire(ctx context.Context, name string) (checkpoint.Lease, error) {
	time.Sleep(s.takes)
	return s.Store.Acquire(ctx, name)
}

// neverTakes is a destination that does not answer.
type neverTakes struct{ *destination }

func (neverTakes) Send(ctx context.Context, _ record.Batch) (int64, error) {
	<-ctx.Done()
	return 0, context.Cause(ctx)
}

// The time that the state takes is a part of the run's: the host ends a process that goes on
// for too long.
func TestSlowStateCountsToTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVirtualWorld(t, 20, 3)
		r := w.run()
		r.Destination = neverTakes{w.dest}
		r.Budget, r.Store = 5*time.Minute, slowToHold{r.Store, 3 * time.Minute}
		began := time.Now()
		var took time.Duration
		r.Ending = func(context.Context, ingest.Report, error) { took = time.Since(began) }
		report, _ := w.finish(context.Background(), r)
		if took == 0 || took > r.Budget+3*time.Minute {
			t.Errorf("%s: it went on for %s", report.Outcome, took)
		}
	})
}
