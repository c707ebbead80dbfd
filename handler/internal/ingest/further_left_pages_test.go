package ingest_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/record"
)

// As TestFurtherWarningThatDrips, but the run reads in a convoy, as all runs of the program do.
func TestFurtherBegunWarningInAConvoy(t *testing.T) {
	for _, members := range []int{1, 2} {
		t.Run(fmt.Sprint(members), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 20, 3)
				w.page, w.budget = 1000, 25*time.Minute
				first := true
				w.before = func(rw http.ResponseWriter, r *http.Request) bool {
					if !strings.HasSuffix(r.URL.Path, "/detection/") || !first {
						return false
					}
					first = false
					doc := withoutFirst(w.answered(rw, r))
					list, _, _ := strings.Cut(doc, "</RESPONSE>")
					io.WriteString(rw, list+"<WARNING><CODE>999</CODE><TEXT>Internal error: a host is missing")
					drip(rw, r, ".")
					return true
				}
				w.allCameTogether(newDestinations(members, 30_000), 10, 5*time.Minute)
			})
		})
	}
}

// slowAndWell makes two runs; the destination of the first is slow. The first answer leaves its first
// host out, says so behind its list, and does not end.
func slowAndWell(t *testing.T, behind func(w *world, stop func()), prepare ...func(w *world)) (w *world, dests []*destination, reports []ingest.Report) {
	w = newVirtualWorld(t, 30, 6)
	w.page = 1000
	for _, f := range prepare {
		f(w)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	n := 0
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/detection/") {
			return false
		}
		if n++; n > 1 {
			return false
		}
		doc := withoutFirst(w.answered(rw, r))
		list, _, _ := strings.Cut(doc, "</RESPONSE>")
		io.WriteString(rw, list+err999+"<!-- ")
		if behind != nil {
			behind(w, stop)
		}
		drip(rw, r, "keep-alive ")
		return true
	}
	dests = newDestinations(2, 8_000)
	reports = w.together(ctx, dests, func(i int, r *ingest.Run) {
		r.InFlight, r.Patience, r.Budget = 1, ingest.DefaultPatience, 25*time.Minute
		if i == 0 {
			r.Destination = slowDest{dests[0], 20 * time.Second}
		}
	})
	return w, dests, reports
}

// The second run gives the page up: the first hears of it, and goes on.
func TestFurtherTheLastToHearGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, dests, reports := slowAndWell(t, nil)
		for i, r := range reports {
			t.Logf("%d: %s %s, missing %d", i, r.Outcome, r.Reason, w.missing(dests[i]))
			if r.Outcome == ingest.Failed {
				t.Errorf("%d: %s %s", i, r.Outcome, r.Reason)
			}
		}
	})
}

// The program is told to stop behind the sign, when the first run has left the page.
func TestFurtherStopBehindTheSign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, dests, reports := slowAndWell(t, func(_ *world, stop func()) {
			time.Sleep(time.Minute)
			stop()
		})
		for i, r := range reports {
			t.Logf("%d: %s %s, missing %d", i, r.Outcome, r.Reason, w.missing(dests[i]))
		}
		w.allCameTogether(dests, 10, 5*time.Minute)
	})
}

// The process is killed behind the sign, when the first run has left the page.
func TestFurtherKillBehindTheSign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kill, revive func()
		w, dests, reports := slowAndWell(t, func(*world, func()) {
			time.Sleep(time.Minute)
			kill()
		}, func(w *world) { kill, revive = w.killable() })
		for i, r := range reports {
			t.Logf("%d: %s %s, missing %d", i, r.Outcome, r.Reason, w.missing(dests[i]))
		}
		time.Sleep(5 * time.Minute)
		revive()
		w.allCameTogether(dests, 10, 5*time.Minute)
	})
}

// For three hours Qualys answers no window, not even an empty one; what has no window is answered.
func TestFurtherNoWindowIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVirtualWorld(t, 60, 3)
		w.page, w.budget = 16, 25*time.Minute
		w.mustComplete()
		time.Sleep(time.Hour)
		for n := range 30 {
			w.qualys.Subscription.Rescan(20+n, w.now().Add(-10*time.Minute))
		}
		then := w.expected(time.Time{})
		calls := 0
		w.before = func(rw http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/detection/") {
				return false
			}
			calls++
			if !r.URL.Query().Has("vm_processed_after") {
				return false
			}
			rw.WriteHeader(504)
			return true
		}
		for range 3 {
			r, err := w.do()
			t.Logf("%s, %d isolated, %d calls: %.150v", r.Outcome, r.IsolatedTotal, calls, err)
			if r.Outcome == ingest.Complete || r.IsolatedTotal > 0 {
				t.Errorf("%s, %d isolated", r.Outcome, r.IsolatedTotal)
			}
			time.Sleep(time.Hour)
		}
		w.before = nil
		began := w.now()
		for range 100 {
			r, _ := w.do()
			missing := 0
			for key := range then {
				if w.dest.keys[key] == 0 {
					missing++
				}
			}
			if missing == 0 && r.IsolatedTotal == 0 {
				break
			}
			t.Logf("%s after: %s, %d isolated, %d rows missing", w.now().Sub(began), r.Outcome, r.IsolatedTotal, missing)
			time.Sleep(30 * time.Minute)
		}
		t.Logf("all there after %s", w.now().Sub(began))
	})
}

// The suspects fail; somebody of another window comes; then the road is closed.
func TestFurtherUnreachableWhenAskedOutside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVirtualWorld(t, 60, 3)
		w.page, w.budget = 16, 25*time.Minute
		w.mustComplete()
		time.Sleep(time.Hour)
		for n := range 6 {
			w.qualys.Subscription.Rescan(20+n, w.now().Add(-10*time.Minute))
		}
		outside := 0
		w.before = func(rw http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/detection/") {
				return false
			}
			if r.URL.Query().Has("vm_processed_after") {
				rw.WriteHeader(504)
				return true
			}
			if outside++; outside > 1 {
				rw.WriteHeader(503) // in maintenance
				return true
			}
			return false
		}
		r, err := w.do()
		t.Logf("%s, %d isolated: %.200v", r.Outcome, r.IsolatedTotal, err)
		if r.IsolatedTotal > 0 {
			t.Errorf("%d isolated", r.IsolatedTotal)
		}
	})
}

// The first run has less time for a page (it has begun later in its tick) and gives the page up while
// the answer drips; behind that the answer says to the second run that it is not whole.
func TestFurtherGivenUpBeforeTheSign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVirtualWorld(t, 30, 6)
		w.page = 1000
		n := 0
		w.before = func(rw http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/detection/") {
				return false
			}
			if n++; n > 1 {
				return false
			}
			doc := withoutFirst(w.answered(rw, r))
			half := strings.Index(doc[len(doc)/2:], "<HOST>") + len(doc)/2
			io.WriteString(rw, doc[:half])
			for range 24 {
				time.Sleep(10 * time.Second)
				io.WriteString(rw, "<!-- keep-alive -->")
			}
			io.WriteString(rw, strings.Replace(doc[half:], "</RESPONSE>", err999+"</RESPONSE>", 1))
			return true
		}
		dests := newDestinations(2, 8_000)
		reports := w.together(context.Background(), dests, func(i int, r *ingest.Run) {
			r.Patience, r.Budget = ingest.DefaultPatience, []time.Duration{6 * time.Minute, 25 * time.Minute}[i]
		})
		for i, r := range reports {
			t.Logf("%d: %s %s", i, r.Outcome, r.Reason)
			if lost := w.missing(dests[i]); r.Outcome == ingest.Complete && lost > 0 {
				t.Errorf("%d: complete, and %d rows are missing", i, lost)
			}
		}
	})
}

// The first run has left the page, and its destination takes minutes for a batch; meanwhile the
// page says at its end that it is not whole. The run ends before it asks for another.
func TestLeftPageIsVoidAndTheRunEnds(t *testing.T) {
	type turned struct {
		stop func()
		dest *stuckDest
	}
	for name, ends := range map[string]func(turned){
		"it is told to stop":     func(n turned) { n.stop(); close(n.dest.calm) },
		"the destination fails":  func(n turned) { n.dest.fails.Store(true); close(n.dest.calm) },
		"its time is up":         func(n turned) { time.Sleep(10 * time.Minute); close(n.dest.calm) },
		"it asks for the next":   func(n turned) { close(n.dest.calm) },
		"the last word is doubt": func(n turned) { n.stop(); close(n.dest.calm) },
		"it saves the doubt":     func(n turned) { close(n.dest.calm) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 30, 6)
				w.page = 1000
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				dests := newDestinations(2, 8_000)
				stuck := &stuckDest{destination: dests[0], calm: make(chan struct{})}
				first := true
				w.before = func(rw http.ResponseWriter, r *http.Request) bool {
					if !strings.HasSuffix(r.URL.Path, "/detection/") || !first {
						return false
					}
					first = false
					list, end, _ := strings.Cut(withoutFirst(w.answered(rw, r)), "</RESPONSE>")
					io.WriteString(rw, list)
					time.Sleep(time.Minute) // the first run has lost its patience
					io.WriteString(rw, err999)
					if name == "the last word is doubt" || name == "it saves the doubt" {
						io.WriteString(rw, "<!-- ")
						time.Sleep(10 * time.Second)
						w.store.beforeSave = func([]byte) error {
							time.Sleep(10 * time.Second)
							return nil
						}
						ends(turned{stop, stuck})
					}
					switch name {
					case "the last word is doubt":
						drip(rw, r, ".")
						return true
					case "it saves the doubt":
						time.Sleep(5 * time.Second) // and the page ends in that time
						io.WriteString(rw, "--></RESPONSE>"+end)
						return true
					}
					io.WriteString(rw, "</RESPONSE>"+end)
					go func() {
						time.Sleep(time.Minute)
						ends(turned{stop, stuck})
					}()
					return true
				}
				reports := w.together(ctx, dests, func(i int, r *ingest.Run) {
					r.InFlight, r.Patience, r.Budget = 1, ingest.DefaultPatience, 25*time.Minute
					if i == 0 {
						r.Destination, r.Budget = stuck, 8*time.Minute
					}
				})
				t.Logf("%s %s, missing %d", reports[0].Outcome, reports[0].Reason, w.missing(dests[0]))
				time.Sleep(time.Minute)
				w.before = nil
				w.allCameTogether(dests, 10, 5*time.Minute)
			})
		})
	}
}

// stuckDest takes the first batches, holds the next until all is calm, and may fail then.
type stuckDest struct {
	*destination
	calm  chan struct{}
	fails atomic.Bool
	sends atomic.Int32
}

func (s *stuckDest) Send(ctx context.Context, b record.Batch) (int64, error) {
	if s.sends.Add(1) == 3 {
		<-s.calm
		if s.fails.Load() {
			return 0, &problem{}
		}
	}
	return s.destination.Send(ctx, b)
}
