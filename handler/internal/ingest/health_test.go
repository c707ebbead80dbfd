package ingest_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/record"
)

func TestHealthRow(t *testing.T) {
	w := newWorld(t, 20, 5)
	began := w.clock.Now()
	w.before = func(http.ResponseWriter, *http.Request) bool { w.clock.advance(3 * time.Second); return false }
	report := w.mustComplete()
	row := w.health.rows[report.Run]
	for name, want := range map[string]any{
		"Run_s": "run1", "Dataset_s": "vm", "Level_s": "info", "Outcome_s": "complete", "Reason_s": nil, "Stalled_d": 0.0,
		"Started_t": began.Format(time.RFC3339), "DurationSeconds_d": 6.0, "WindowAfter_t": nil, "WindowUntil_t": report.Until.Format(time.RFC3339),
		"Pages_d": 2.0, "Parents_d": 20.0, "Decoded_d": float64(report.Decoded), "Accepted_d": float64(report.Accepted), "DeadLetters_d": 0.0,
		"Requests_d": 2.0, "BytesRead_d": float64(report.BytesRead), "BytesSent_d": float64(report.BytesSent), "Isolated_d": 0.0, "IsolatedIds_s": nil,
		"TimeGenerated": w.clock.Now().Format(time.RFC3339),
	} {
		if row[name] != want {
			t.Errorf("%s is %v, want %v", name, row[name], want)
		}
	}
}

// A row that cannot be sent fails no run, and is told.
func TestHealthThatIsNotTaken(t *testing.T) {
	for name, p := range map[string]*problem{"for good": {}, "for a while": {retry: true}, "for a day": {retry: true, after: 24 * time.Hour}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 5, 5)
			w.health.before = func(int, record.Batch) error { return p }
			w.mustComplete()
			want := 1
			if p.retry && p.after == 0 {
				want = 3
			}
			if w.health.sends != want || w.logs.FilterMessageSnippet("the health row is not sent").Len() != 1 {
				t.Errorf("tried %d times", w.health.sends)
			}
		})
	}
}

// Three runs in a row without progress are an error, whatever the reason of
// each; the first that gets further ends it.
func TestStalledRuns(t *testing.T) {
	w := newWorld(t, 30, 4)
	w.budget = 10 * time.Minute
	w.dest.batch = 15_000
	limited := func(rw http.ResponseWriter, r *http.Request) bool {
		if low, _, _ := asks(r); low == 0 {
			return false
		}
		rw.Header().Set("X-RateLimit-ToWait-Sec", "68400")
		rw.WriteHeader(http.StatusConflict)
		return true
	}
	w.before = limited
	for n, want := range []struct {
		stalled int
		level   string
	}{{0, "warning"}, {1, "warning"}, {2, "warning"}, {3, "error"}, {4, "error"}} {
		report, err := w.do()
		row := w.health.rows[report.Run]
		if err != nil || report.Outcome != ingest.Waiting || report.Stalled != want.stalled || row["Level_s"] != want.level || row["Stalled_d"] != float64(want.stalled) {
			t.Errorf("run %d: %s, %v, stalled %d, %v", n, report.Outcome, err, report.Stalled, row["Level_s"])
		}
		told := w.logs.FilterLevelExact(zap.ErrorLevel).FilterMessage("runs without progress").Len()
		if (told == 1) != (want.level == "error") {
			t.Errorf("run %d: told %d times", n, told)
		}
	}
	w.before = nil
	if report := w.mustComplete(); report.Stalled != 0 || w.health.rows[report.Run]["Level_s"] != "info" {
		t.Errorf("stalled %d", report.Stalled)
	}
	w.clock.advance(time.Hour)
	if report := w.mustComplete(); report.Stalled != 0 || w.checkpoint().Stalled != 0 {
		t.Errorf("stalled %d", report.Stalled)
	}
	w.wantEach(time.Time{})
}

// A failed run is an error at once, with its reason.
func TestHealthOfAFailure(t *testing.T) {
	w := newWorld(t, 5, 5)
	w.dest.before = func(int, record.Batch) error { return errors.New("answered 403: role missing") }
	report, err := w.do()
	row := w.health.rows[report.Run]
	reason, _ := row["Reason_s"].(string)
	if err == nil || row["Level_s"] != "error" || row["Outcome_s"] != "failed" || !strings.Contains(reason, "role missing") || row["Stalled_d"] != 1.0 {
		t.Errorf("%v", row)
	}
}

// Rows that come again unchanged move the cursor, too: else a budget shorter
// than the overlap's pages would never get past them.
func TestBudgetAmongRepeatedRows(t *testing.T) {
	w := newKBWorld(t, 300)
	w.mustComplete()
	now := w.clock.Now()
	for index := range 300 {
		w.knowledge().Edit(edit(index, now))
	}
	w.clock.advance(time.Minute)
	w.mustComplete()
	w.clock.advance(time.Minute)
	w.budget = 70 * time.Second
	w.before = func(http.ResponseWriter, *http.Request) bool { w.clock.advance(30 * time.Second); return false }
	for n := 0; ; n++ {
		report, err := w.do()
		if err != nil || report.Stalled != 0 || n > 10 {
			t.Fatalf("%s: %v, stalled %d after %d runs", report.Outcome, err, report.Stalled, n)
		}
		if report.Outcome == ingest.Complete {
			break
		}
	}
	w.wantEntries(600)
}

// A hold under which nothing happens is told, where a run that merely finds
// another one going on is silent.
func TestIdleHolder(t *testing.T) {
	w := newWorld(t, 10, 3)
	w.mustComplete()
	rows := len(w.health.rows)
	w.store.held = true
	w.clock.advance(20 * time.Minute)
	if report, err := w.do(); err != nil || report.Outcome != ingest.Held || len(w.health.rows) != rows {
		t.Errorf("%s, %v, %d health rows", report.Outcome, err, len(w.health.rows)-rows)
	}
	w.clock.advance(30 * time.Minute)
	report, err := w.do()
	if err == nil || report.Outcome != ingest.Failed || !strings.Contains(err.Error(), "has written nothing for 50m") || len(w.health.rows) != rows+1 {
		t.Errorf("%s, %v, %d health rows", report.Outcome, err, len(w.health.rows)-rows)
	}
	w.store.held = false
	w.mustComplete()
}
