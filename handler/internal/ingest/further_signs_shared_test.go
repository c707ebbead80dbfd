package ingest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/checkpoint/folder"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
)

// With several destinations: the warning stands in front of the list, and the process is
// killed while the list is read.
func TestFurtherKillBehindASignOfSeveral(t *testing.T) {
	for name, sign := range map[string]string{"error": err999, "unknown": rebuilt} {
		for _, members := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s, %d members", name, members), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newVirtualWorld(t, 60, 8)
					w.page = 1000
					kill, revive := w.killable()
					w.changing(func(n int, doc string) string {
						if n > 1 {
							return doc
						}
						time.AfterFunc(30*time.Second, kill)
						return replaced("<HOST_LIST>", sign+"<HOST_LIST>")(withoutFirst(doc))
					})
					w.endsLate()
					var dests []*destination
					for range members {
						dests = append(dests, &destination{keys: map[string]int{}, rows: map[string]map[string]any{}, batch: 8000})
					}
					_ = w.together(dests, false)
					time.Sleep(5 * time.Minute)
					revive()
					w.before = nil
					complete := false
					for n := 0; n < 12 && !complete; n++ {
						complete = true
						for _, r := range w.together(dests, false) {
							complete = complete && r.Outcome == ingest.Complete
						}
						time.Sleep(time.Hour)
					}
					for i, d := range dests {
						lost := 0
						for key := range w.expected(time.Time{}) {
							if d.keys[strings.TrimSpace(key)] == 0 {
								lost++
							}
						}
						if lost > 0 || !complete {
							t.Errorf("destination %d: complete %v, and %d rows are missing", i, complete, lost)
						}
					}
				})
			})
		}
	}
}

// One answer says in front of its list that it is not whole, and the destination takes a batch
// in half a minute: the run goes on when the page is well again.
func TestFurtherSlowDestinationBehindASign(t *testing.T) {
	for name, sign := range map[string]string{"none": "", "error": err999, "unknown": rebuilt} {
		for _, members := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s, %d members", name, members), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newVirtualWorld(t, 30, 6)
					w.page = 1000
					w.changing(func(n int, doc string) string {
						if n > 1 {
							return doc
						}
						return replaced("<HOST_LIST>", sign+"<HOST_LIST>")(doc)
					})
					convoy := &ingest.Convoy{Clock: ingest.SystemClock{}, Log: zap.NewNop(), Together: func(list []ingest.Joint) ingest.Source {
						var all []*qualys.Detections
						for _, s := range list {
							all = append(all, s.(*qualys.Detections))
						}
						return qualys.Together(all)
					}}
					reports := make([]ingest.Report, members)
					var runs []func()
					for i := range members {
						d := &destination{keys: map[string]int{}, rows: map[string]map[string]any{}, batch: 8000}
						r := w.run()
						r.DestinationName, r.Integration, r.Health = fmt.Sprintf("integration-%d", i+1), fmt.Sprint(i+1), nil
						r.Destination, r.InFlight, r.Patience, r.Budget = slowDest{d, 10 * time.Second}, 1, ingest.DefaultPatience, 25*time.Minute
						source, leave := convoy.Join(r.Source.(ingest.Joint))
						r.Source = source
						runs = append(runs, func() { defer leave(); reports[i], _ = r.Do(context.Background()) })
					}
					var all sync.WaitGroup
					for _, run := range runs {
						all.Go(run)
					}
					all.Wait()
					synctest.Wait()
					for i, r := range reports {
						if r.Outcome != ingest.Complete {
							t.Errorf("%d: %s: %s", i, r.Outcome, r.Reason)
						}
					}
				})
			})
		}
	}
}

// An answer leaves its first host out, and says so behind its list. The first run has left the
// page, as its destination is slow; the second hears of the sign, and cannot save.
func TestFurtherTheLastToHearFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVirtualWorld(t, 30, 6)
		w.page = 1000
		w.changing(func(n int, doc string) string {
			if n > 1 {
				return doc
			}
			return replaced("</RESPONSE>", err999+"</RESPONSE>")(withoutFirst(doc))
		})
		convoy := &ingest.Convoy{Clock: ingest.SystemClock{}, Log: zap.NewNop(), Together: func(list []ingest.Joint) ingest.Source {
			var all []*qualys.Detections
			for _, s := range list {
				all = append(all, s.(*qualys.Detections))
			}
			return qualys.Together(all)
		}}
		reports := make([]ingest.Report, 2)
		var dests []*destination
		var runs []func()
		for i := range 2 {
			d := &destination{keys: map[string]int{}, rows: map[string]map[string]any{}, batch: 8000}
			dests = append(dests, d)
			r := w.run()
			r.DestinationName, r.Integration, r.Health = fmt.Sprintf("integration-%d", i+1), fmt.Sprint(i+1), nil
			r.Destination, r.InFlight, r.Patience, r.Budget = d, 1, ingest.DefaultPatience, 25*time.Minute
			if i == 0 {
				r.Destination = slowDest{d, 20 * time.Second}
			} else {
				r.Store = &faultStore{Store: folder.New(w.state), beforeSave: func(doc []byte) error {
					if strings.Contains(string(doc), `"trouble"`) {
						return errors.New("the storage fails")
					}
					return nil
				}}
			}
			source, leave := convoy.Join(r.Source.(ingest.Joint))
			r.Source = source
			runs = append(runs, func() { defer leave(); reports[i], _ = r.Do(context.Background()) })
		}
		var all sync.WaitGroup
		for _, run := range runs {
			all.Go(run)
		}
		all.Wait()
		synctest.Wait()
		t.Logf("the second: %s %s", reports[1].Outcome, reports[1].Reason)
		lost := 0
		for key := range w.expected(time.Time{}) {
			if dests[0].keys[strings.TrimSpace(key)] == 0 {
				lost++
			}
		}
		if reports[0].Outcome == ingest.Complete && lost > 0 {
			t.Errorf("complete, and %d rows are missing", lost)
		} else {
			t.Logf("%s %s, lost %d", reports[0].Outcome, reports[0].Reason, lost)
		}
	})
}
