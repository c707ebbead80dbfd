package ingest_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/simulator"
)

// refusesAll is a destination whose table takes no row.
func refusesAll(int, record.Batch) error { return &problem{refused: true} }

// oneRow is a size of batches into which one row goes.
const oneRow = 12_000

// pack makes batches of a size.
func (w *world) pack(batch int) {
	w.dest.batch = batch
	if batch == oneRow {
		w.qualys.Subscription.ResultsBytes = 9_000
	}
}

// Nothing accepted and much refused stops the run, however the rows are packed and
// however the destination says no; the watermark stays, and what is kept as dead letters
// is little. When the table is mended everything arrives.
func TestFurtherTablesThatTakeNoRow(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		hosts, detections, batch, inFlight, page int
		refuse                                   func(n int, b record.Batch) error
		letters                                  int // at most
	}{
		"hosts of several batches":        {hosts: 8, detections: 120, batch: 8_000, refuse: refusesAll, letters: 240},
		"batches of one row":              {hosts: 40, detections: 5, batch: oneRow, refuse: refusesAll, letters: 40},
		"batches of one row, large hosts": {hosts: 6, detections: 40, batch: oneRow, refuse: refusesAll, letters: 80},
		"hosts of one row":                {hosts: 60, detections: 1, batch: 30_000, refuse: refusesAll, letters: 40},
		"hosts of one row, alone":         {hosts: 60, detections: 1, batch: oneRow, refuse: refusesAll, letters: 40},
		"one batch at a time":             {hosts: 8, detections: 60, batch: 60_000, inFlight: 1, refuse: refusesAll, letters: 120},
		"sixteen batches at a time":       {hosts: 40, detections: 25, batch: 8_000, inFlight: 16, refuse: refusesAll, letters: 500},
		"one host a page":                 {hosts: 8, detections: 60, batch: 60_000, page: 1, refuse: refusesAll, letters: 120},
		"one batch for all":               {hosts: 30, detections: 10, batch: 1_000_000, refuse: refusesAll, letters: 0},
		"large hosts among small":         {hosts: 30, detections: 3, batch: 8_000, refuse: refusesAll, letters: 40},
		"every other call is a retry": {hosts: 8, detections: 60, batch: 20_000, letters: 120, refuse: func(n int, _ record.Batch) error {
			if n%2 == 0 {
				return &problem{retry: true}
			}
			return &problem{refused: true}
		}},
		"limits first": {hosts: 8, detections: 60, batch: 20_000, letters: 120, refuse: func(n int, _ record.Batch) error {
			if n <= 5 {
				return &problem{retry: true, limit: true, after: 5 * time.Second}
			}
			return &problem{refused: true}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, c.hosts, c.detections)
			w.inFlight = c.inFlight
			w.pack(c.batch)
			if c.page > 0 {
				w.page = c.page
			}
			w.dest.before = c.refuse
			report, err := w.do()
			if err == nil || !strings.Contains(err.Error(), "accepted none") || report.Outcome != ingest.Failed {
				t.Fatalf("%s: %v, %d dead letters; want a failure", report.Outcome, err, report.DeadLetters)
			}
			if got := w.checkpoint(); got.Watermark != nil || report.DeadLetters > int64(c.letters) {
				t.Errorf("watermark %v, %d dead letters of %d rows; want none, and at most %d", got.Watermark, report.DeadLetters, len(w.expected(time.Time{})), c.letters)
			}
			w.dest.before = nil
			w.mustComplete()
			if replayed, err := w.replay().Do(context.Background()); err != nil || replayed.Refused != 0 {
				t.Errorf("replay: %+v, %v", replayed, err)
			}
			for key := range w.expected(time.Time{}) {
				if w.dest.keys[key] == 0 {
					t.Errorf("detection %s is missing", key)
				}
			}
		})
	}
}

// A run that was stopped has moved no cursor far: the runs after it meet the same table,
// and must not carry the whole window into the dead letters piece by piece, and close it.
func TestFurtherLaterRunsIntoATableThatTakesNoRow(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ hosts, detections, batch int }{
		"hosts of one row, alone": {60, 1, oneRow},
		"batches of one row":      {40, 5, oneRow},
		"hosts of two rows":       {30, 2, 8_000},
		"large hosts":             {6, 60, 8_000},
		"hosts that fill a batch": {8, 60, 60_000},
		"one batch for all":       {30, 10, 1_000_000},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, c.hosts, c.detections)
			w.pack(c.batch)
			w.dest.before = refusesAll
			letters, all := int64(0), len(w.expected(time.Time{}))
			for n := range 12 {
				report, err := w.do()
				letters += report.DeadLetters
				if err == nil || w.checkpoint().Watermark != nil {
					t.Fatalf("run %d: %s: %v, watermark %v, and %d of %d rows are dead letters", n+1, report.Outcome, err, w.checkpoint().Watermark, letters, all)
				}
				w.clock.advance(5 * time.Minute)
			}
			if letters > int64(all/2) {
				t.Errorf("%d of %d rows are dead letters after 12 runs", letters, all)
			}
		})
	}
}

// A table that takes no row is met by small windows, too, as the connector has them every
// five minutes: run after run a few rows, all refused. That is no other case, and it must
// not go on for ever with every row of the subscription a dead letter.
func TestFurtherSmallWindowsOfATableThatTakesNoRow(t *testing.T) {
	for _, c := range []struct{ hosts, detections int }{{3, 5}, {1, 20}, {5, 2}} {
		t.Run(fmt.Sprintf("%d hosts of %d", c.hosts, c.detections), func(t *testing.T) {
			w := newWorld(t, c.hosts, c.detections)
			w.dest.before = refusesAll
			letters, failed := int64(0), false
			for range 15 {
				report, err := w.do()
				letters += report.DeadLetters
				failed = failed || err != nil
				w.clock.advance(24 * time.Hour) // the hosts are scanned again
			}
			if letters > 60 && !failed {
				t.Errorf("%d rows, all refused, became dead letters in 15 runs that ended well; watermark %v", letters, w.checkpoint().Watermark)
			}
		})
	}
}

// One host alone, all of whose many rows are refused, says little of the table: the run
// is told as a failure, and every row is kept.
func TestFurtherOneHostOnly(t *testing.T) {
	for _, batch := range []int{8_000, 20_000, 60_000, 1_000_000} {
		t.Run(fmt.Sprint(batch), func(t *testing.T) {
			w := newWorld(t, 1, 100)
			w.dest.batch = batch
			w.dest.before = refusesAll
			report, err := w.do()
			if err == nil || report.Outcome != ingest.Failed || w.checkpoint().Watermark != nil || report.DeadLetters != report.Decoded {
				t.Fatalf("%s: %v, watermark %v, %+v", report.Outcome, err, w.checkpoint().Watermark, report.Counts)
			}
			w.dest.before = nil
			w.mustComplete()
			if replayed, err := w.replay().Do(context.Background()); err != nil || replayed.Refused != 0 {
				t.Errorf("replay: %+v, %v", replayed, err)
			}
			w.wantEach(time.Time{})
		})
	}
}

// The KnowledgeBase: each entry is one row of its own.
func TestFurtherKnowledgeBaseThatIsNotTaken(t *testing.T) {
	for name, c := range map[string]struct{ size, batch int }{
		"many in a batch": {300, 60_000}, "one in a batch": {300, 4_000}, "few": {25, 30_000}, "all in a batch": {300, 4_000_000},
	} {
		t.Run(name, func(t *testing.T) {
			w := newKBWorld(t, c.size)
			w.dest.batch = c.batch
			w.dest.before = refusesAll
			report, err := w.do()
			if err == nil || report.Outcome != ingest.Failed || w.checkpoint().Watermark != nil || report.DeadLetters > 60 {
				t.Errorf("%s: %v, watermark %v, %d dead letters", report.Outcome, err, w.checkpoint().Watermark, report.DeadLetters)
			}
			w.dest.before = nil
			w.mustComplete()
			if replayed, err := w.replay().Do(context.Background()); err != nil || replayed.Refused != 0 {
				t.Errorf("replay: %+v, %v", replayed, err)
			}
			if len(w.dest.keys) != c.size {
				t.Errorf("%d entries arrived, want %d", len(w.dest.keys), c.size)
			}
		})
	}
}

// A table that takes no row any more stops a load of the whole KnowledgeBase, and what
// tells of removals, as the first.
func TestFurtherRefreshThatIsNotTaken(t *testing.T) {
	w := newKBWorld(t, 300)
	w.refresh = 24 * time.Hour
	w.mustComplete()
	at := w.clock.Now()
	for index := range 60 {
		w.knowledge().Edit(simulator.Edit{Index: index * 5, Kind: simulator.Removed, At: at, Visible: at})
	}
	w.dest.before = refusesAll
	failed, letters := 0, int64(0)
	for range 4 {
		w.clock.advance(25 * time.Hour)
		before := *w.checkpoint().Watermark
		report, err := w.do()
		letters += report.DeadLetters
		if err != nil {
			failed++
		}
		t.Logf("%s: %v, watermark %v after %v, %+v", report.Outcome, err, w.checkpoint().Watermark, before, report.Counts)
		if report.DeadLetters > 60 || report.DeadLetters > 20 && err == nil {
			t.Errorf("%s: %v, %d dead letters", report.Outcome, err, report.DeadLetters)
		}
	}
	if failed == 0 {
		t.Error("no run failed")
	}
	w.dest.before = nil
	for range 3 {
		w.clock.advance(25 * time.Hour)
		w.mustComplete()
	}
	if replayed, err := w.replay().Do(context.Background()); err != nil || replayed.Refused != 0 {
		t.Errorf("replay: %+v, %v", replayed, err)
	}
	removed := 0
	for _, row := range w.dest.rows {
		if row["Removed_DateTime_t"] != nil {
			removed++
		}
	}
	if removed != 60 {
		t.Errorf("%d removals arrived, want 60", removed)
	}
}

// Of several destinations the one whose table takes no row fails by itself; the others
// get theirs, and the failing one gets all when its table is mended.
func TestFurtherOneDestinationThatTakesNoRow(t *testing.T) {
	for _, batch := range []int{8_000, 20_000, 60_000} {
		t.Run(fmt.Sprint(batch), func(t *testing.T) {
			all := qualys.Selection{}
			f := newFleet(t, 12, 30, all, all, all)
			for _, m := range f.members {
				m.dest.batch = batch
			}
			ill := f.members[1]
			ill.dest.before = refusesAll
			reports, errs := f.do(t, nil)
			for i := range reports {
				if i == 1 {
					if errs[i] == nil || reports[i].Outcome != ingest.Failed || reports[i].DeadLetters > 120 {
						t.Errorf("the failing one: %s, %v, %d dead letters", reports[i].Outcome, errs[i], reports[i].DeadLetters)
					}
					continue
				}
				if errs[i] != nil || reports[i].Outcome != ingest.Complete || reports[i].DeadLetters != 0 {
					t.Errorf("%d: %s, %v, %d dead letters", i, reports[i].Outcome, errs[i], reports[i].DeadLetters)
				}
			}
			ill.dest.before = nil
			letters := reports[1].DeadLetters
			reports, errs = f.do(t, nil)
			if errs[1] != nil || reports[1].Outcome != ingest.Complete {
				t.Fatalf("mended: %s, %v", reports[1].Outcome, errs[1])
			}
			if got, want := len(ill.dest.keys), len(f.members[0].dest.keys); got+int(letters) < want {
				t.Errorf("%d rows arrived and %d are dead letters, want %d", got, letters, want)
			}
		})
	}
}

// Dead letters that are refused again stay, all of them.
func TestFurtherReplayIntoATableThatTakesNoRow(t *testing.T) {
	for name, refuse := range map[string]func(n int, b record.Batch) error{
		"all refused":  refusesAll,
		"role missing": func(int, record.Batch) error { return fmt.Errorf("answered 403: role missing") },
		"never there":  func(int, record.Batch) error { return &problem{retry: true} },
		"retries, then no": func(n int, _ record.Batch) error {
			if n%3 != 0 {
				return &problem{retry: true}
			}
			return &problem{refused: true}
		},
		"half of them": func(_ int, b record.Batch) error {
			if strings.Contains(string(b.Body), `"Severity_s":"3"`) {
				return &problem{refused: true}
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 30, 10)
			w.refuse("3", "5")
			letters := int(w.mustComplete().DeadLetters)
			w.dest.sends, w.dest.before = 0, refuse
			report, err := w.replay().Do(context.Background())
			left := len(w.readLines("deadletter/vm/run1/rows-*.ndjson.gz"))
			if left+report.Accepted < letters {
				t.Errorf("%d left, %d accepted, of %d: %v", left, report.Accepted, letters, err)
			}
			if name == "all refused" && w.dest.sends > letters {
				t.Logf("%d calls for %d letters that are all refused", w.dest.sends, letters)
			}
			w.dest.before = nil
			if report, err = w.replay().Do(context.Background()); err != nil || report.Refused != 0 {
				t.Errorf("%+v, %v", report, err)
			}
			if w.wantEach(time.Time{}) > letters {
				t.Error("too many rows arrived twice")
			}
		})
	}
}
