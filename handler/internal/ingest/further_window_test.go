package ingest_test

import (
	"testing"
	"time"

	"qualys-sentinel/handler/internal/ingest"
)

// T7b: all hosts that were processed since the last window are bad, all others are well.
func TestFurtherBadWindow(t *testing.T) {
	w := newWorld(t, 200, 3)
	w.page, w.budget = 16, 25*time.Minute
	w.mustComplete()
	began := w.clock.Now()
	w.clock.advance(30 * time.Minute)
	in := w.processed(began.Add(-10 * time.Minute))
	t.Logf("%d hosts in the window", len(in))
	w.ill(true, in...)
	for k := range 3 {
		report, err := w.do()
		c := w.checkpoint()
		t.Logf("run %d: %s isolated %d %v", k, report.Outcome, len(c.Isolated), err)
		if report.Outcome == ingest.Complete {
			return
		}
		w.clock.advance(10 * time.Second)
	}
	t.Errorf("stands still")
}
