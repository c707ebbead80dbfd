package ingest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/simulator"
)

// atHost does something behind a number of hosts of each page, before the last of them
// counts as read.
type atHost struct {
	*qualys.Detections
	after int
	do    func() error
}

func (s atHost) Page(ctx context.Context, q record.Query, sink record.Sink) (record.Page, error) {
	return s.Detections.Page(ctx, q, &atHostSink{sink, s.after, s.do})
}

type atHostSink struct {
	record.Sink
	left int
	do   func() error
}

func (s *atHostSink) Done(id uint64) error {
	if s.left--; s.left == 0 {
		if err := s.do(); err != nil {
			return err
		}
	}
	return s.Sink.Done(id)
}

// However a run ends at whichever host of a page, in whatever order its hosts come: the
// next runs bring all of them.
func TestFurtherEndsInAPage(t *testing.T) {
	t.Parallel()
	orders := map[string][]int{
		"ascending, neighbours": {2, 3, 4, 5, 6, 7, 8, 9, 10},
		"out of order":          {5, 9, 3, 10, 11, 12, 2, 13, 14},
		"descending":            {14, 12, 11, 10, 9, 5, 4, 3, 2},
		"the last one first":    {90, 2, 3, 4, 5, 6, 7, 8, 9},
	}
	for order, ids := range orders {
		for after := 1; after <= len(ids); after++ {
			// Nothing shows yet that the order is not that which paging by id rests on.
			if slices.IsSorted(ids[:after]) && after < len(ids) && slices.Min(ids[after:]) < ids[after-1] {
				continue
			}
			for _, end := range []string{"budget", "interrupted", "error"} {
				t.Run(fmt.Sprintf("%s, %s behind %d", order, end, after), func(t *testing.T) {
					w := newWorld(t, 1, 1)
					w.dest.batch = 7_000 // two hosts
					w.budget = time.Hour
					w.before = func(rw http.ResponseWriter, r *http.Request) bool {
						low, _, _ := asks(r)
						io.WriteString(rw, "<HOST_LIST_VM_DETECTION_OUTPUT><RESPONSE><DATETIME>2026-11-01T12:00:00Z</DATETIME><HOST_LIST>")
						for _, id := range ids {
							if uint64(id) >= low {
								fmt.Fprintf(rw, "<HOST><ID>%d</ID><DETECTION_LIST><DETECTION><QID>%d</QID><RESULTS>%s</RESULTS></DETECTION></DETECTION_LIST></HOST>", id, id, strings.Repeat("x", 3000))
							}
						}
						io.WriteString(rw, "</HOST_LIST></RESPONSE></HOST_LIST_VM_DETECTION_OUTPUT>")
						return true
					}
					ctx, interrupt := context.WithCancel(context.Background())
					defer interrupt()
					run := w.run()
					run.Source = atHost{run.Source.(*qualys.Detections), after, func() error {
						switch end {
						case "budget":
							w.clock.advance(2 * time.Hour)
						case "interrupted":
							interrupt()
						default:
							return errors.New("the end")
						}
						return nil
					}}
					report, _ := run.Do(ctx)
					if report.Outcome == ingest.Complete && end != "interrupted" {
						t.Fatal("it is complete")
					}
					// Not another window: that would bring them all again.
					if report.Outcome != ingest.Complete {
						w.mustComplete()
					}
					for _, id := range ids {
						if w.dest.keys[fmt.Sprintf("%d|%d||||||", id, id)] == 0 {
							t.Errorf("host %d is missing", id)
						}
					}
				})
			}
		}
	}
}

// An isolated host that comes again while the destination, the state or the time is at
// an end stays isolated until all of it has arrived.
func TestFurtherIsolatedComesInBadTime(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for name, bad := range map[string]func(w *world, stop func()){
		"the destination fails for good": func(w *world, _ func()) {
			w.dest.before = func(int, record.Batch) error { return broken }
		},
		"the destination takes the rows and fails": func(w *world, _ func()) {
			w.dest.after = func(int, record.Batch) error { return broken }
		},
		"the destination is down for longer than the run": func(w *world, _ func()) {
			w.dest.before = func(int, record.Batch) error { return &problem{retry: true, after: time.Hour} }
		},
		"the destination is at its limit": func(w *world, _ func()) {
			w.dest.before = func(int, record.Batch) error { return &problem{retry: true, limit: true, after: 5 * time.Hour} }
		},
		"the run is interrupted": func(w *world, stop func()) {
			w.dest.before = func(int, record.Batch) error { stop(); return broken }
		},
		"the destination panics": func(w *world, _ func()) {
			w.dest.before = func(int, record.Batch) error { panic("boom") }
		},
		"the checkpoint cannot be saved": func(w *world, _ func()) {
			var sent atomic.Bool
			w.dest.before = func(int, record.Batch) error {
				sent.Store(true)
				return nil
			}
			w.store.beforeSave = func([]byte) error {
				if sent.Load() {
					return broken
				}
				return nil
			}
		},
		"the dead letters cannot be kept": func(w *world, _ func()) {
			w.dest.before = func(int, record.Batch) error { return &problem{refused: true} }
			w.store.beforeCreate = func(name string) error {
				if strings.Contains(name, "/rows-") {
					return broken
				}
				return nil
			}
		},
		"the time is up": func(w *world, _ func()) {
			w.dest.before = func(int, record.Batch) error { w.clock.advance(30 * time.Hour); return broken }
		},
	} {
		for which, batch := range map[int]int{0: 6_000, 12: 60_000} { // in several batches, and in one
			if which != 0 && !strings.Contains(name, " cannot be ") {
				continue // the destination is asked either way
			}
			t.Run(fmt.Sprintf("%s, host %d", name, which), func(t *testing.T) {
				w := newWorld(t, 25, 12)
				w.page, w.dest.batch = 16, batch
				ill := w.hostIDs()[which]
				w.ill(true, ill)
				if report := w.mustComplete(); len(report.Isolated) != 1 || report.Isolated[0].ID != ill {
					t.Fatalf("isolated = %+v, want %d", report.Isolated, ill)
				}
				w.before = nil
				w.clock.advance(3 * time.Hour) // it may have failed again already, while others were waited for
				ctx, stop := context.WithCancel(context.Background())
				defer stop()
				bad(w, stop)
				// The rows of the window itself arrive.
				of, before, after := fmt.Sprintf(`"HostId_s":"%d"`, ill), w.dest.before, w.dest.after
				w.dest.before = func(n int, b record.Batch) error {
					if before == nil || !strings.Contains(string(b.Body), of) {
						return nil
					}
					return before(n, b)
				}
				w.dest.after = func(n int, b record.Batch) error {
					if after == nil || !strings.Contains(string(b.Body), of) {
						return nil
					}
					return after(n, b)
				}
				sends := w.dest.sends
				report, err := w.finish(ctx, w.run())
				if err == nil && report.Outcome == ingest.Complete || w.dest.sends == sends {
					t.Fatalf("%s, %v, %d calls: the host came in good time", report.Outcome, err, w.dest.sends-sends)
				}
				w.dest.before, w.dest.after, w.store = nil, nil, &faultStore{Store: w.store.Store}
				// No later than that: hosts that are scanned again would hide a loss.
				for range 3 {
					w.clock.advance(31 * time.Minute)
					w.mustComplete()
				}
				if n, c := w.lost(), w.checkpoint(); n > 0 || len(c.Isolated) > 0 {
					t.Errorf("%d rows lost, isolated %+v", n, c.Isolated)
				}
			})
		}
	}
}

// A host that is isolated before anything was answered is missing from the beginning,
// whatever this machine takes for now.
func TestFurtherIsolatedByAWrongClock(t *testing.T) {
	for _, ahead := range []time.Duration{0, 40 * 24 * time.Hour, 400 * 24 * time.Hour} {
		for _, which := range [][]int{{0}, {0, 1}, {0, 19}} {
			t.Run(fmt.Sprint(ahead, which), func(t *testing.T) {
				w := newWorld(t, 20, 6)
				w.lookback = 30 * 24 * time.Hour
				theirs := w.clock.Now()
				w.qualys.Now = func() time.Time { return theirs }
				var ill []uint64
				for _, n := range which {
					ill = append(ill, w.hostIDs()[n])
				}
				began := theirs.Add(-w.lookback)
				w.clock.advance(ahead)
				w.ill(false, ill...)
				report, err := w.do()
				if err != nil || !slices.ContainsFunc(report.Isolated, func(i ingest.Isolated) bool { return i.ID == ill[0] }) {
					t.Skipf("%s, %v: host %d of no window", report.Outcome, err, ill[0])
				}
				w.before = nil
				for range 2 {
					w.clock.advance(25 * time.Hour)
					theirs = theirs.Add(25 * time.Hour)
					w.mustComplete()
				}
				missing, all := 0, 0
				w.qualys.Subscription.Expected(began, theirs, func(_ simulator.Host, d simulator.Detection) {
					all++
					if w.dest.keys[fmt.Sprintf("%d@%s", d.UniqueID, d.Processed.Format(time.RFC3339))] == 0 {
						missing++
					}
				})
				if missing > 0 || all == 0 {
					t.Errorf("%d of %d rows are missing", missing, all)
				}
			})
		}
	}
}
