package ingest_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
)

// T9: a member that looks for a host further on, beside one whose page hangs further back.
func TestFurtherConvoyBlame(t *testing.T) {
	for _, how := range []string{"never begins", "drips between hosts", "drips in a value"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 60, 3)
				w.page, w.budget = 16, 25*time.Minute
				ids := w.hostIDs()
				bad := []uint64{ids[10], ids[40]}
				dests := newDestinations(2, 8_000)
				do := func(members int) []ingest.Report {
					return w.together(context.Background(), dests[:members], func(_ int, r *ingest.Run) {
						r.Source.(*qualys.Detections).Select = &qualys.Selection{}
					})
				}
				w.slow(map[uint64]slowness{bad[1]: slownesses[how]})
				w.budget = 13 * time.Minute
				reports := do(1)
				t.Logf("A alone: %s next %d: %s", reports[0].Outcome, reports[0].NextID, reports[0].Reason)
				w.budget = 25 * time.Minute
				w.slow(map[uint64]slowness{bad[0]: slownesses[how], bad[1]: slownesses[how]})
				for n := range 4 {
					reports = do(2)
					for i, r := range reports {
						t.Logf("run %d of %c: %s next %d %.150s", n, 'A'+i, r.Outcome, r.NextID, r.Reason)
						for _, iso := range r.Isolated {
							if iso.ID != bad[0] && iso.ID != bad[1] {
								t.Errorf("run %d of %c: isolated %d, which is well (bad are %v): %s", n, 'A'+i, iso.ID, bad, iso.Reason)
							}
						}
					}
					time.Sleep(5 * time.Minute)
				}
			})
		})
	}
}

// T11: a host whose batches wait for more than the longest patience in all.
func TestFurtherPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVirtualWorld(t, 5, 400)
		w.page, w.budget, w.dest.batch = 16, 25*time.Minute, 20_000
		dest := w.dest
		for n := range 4 {
			r := w.run()
			r.Patience, r.InFlight = ingest.DefaultPatience, 1
			r.Destination = slowDest{dest, 10 * time.Second}
			report, err := w.finish(context.Background(), r)
			t.Logf("run %d: %s, next %d, parents %d, accepted %d, batches %d: %v", n, report.Outcome, report.NextID, report.Parents, report.Accepted, report.Batches, err)
			if report.Outcome == ingest.Complete {
				return
			}
			time.Sleep(5 * time.Minute)
		}
		t.Errorf("stands still")
	})
}

type slowDest struct {
	*destination
	takes time.Duration
}

func (s slowDest) Send(ctx context.Context, b record.Batch) (int64, error) {
	time.Sleep(s.takes)
	return s.destination.Send(ctx, b)
}
