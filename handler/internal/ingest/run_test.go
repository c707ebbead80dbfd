package ingest_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/record"
)

func TestWindowArrivesOnceAndTheNextIsNew(t *testing.T) {
	w := newWorld(t, 55, 8)
	began := w.clock.Now()
	report := w.mustComplete()
	if dup := w.wantEach(time.Time{}); dup != 0 {
		t.Errorf("%d rows arrived twice", dup)
	}
	want := len(w.expected(time.Time{}))
	if report.Decoded != int64(want) || report.Accepted != int64(want) || report.Pages != 6 || report.Parents != 55 || report.Requests != 6 || report.Repeated != 0 || report.BytesRead == 0 {
		t.Errorf("counts %+v, want %d rows in 6 pages", report.Counts, want)
	}
	c := w.checkpoint()
	if c.Watermark == nil || !c.Watermark.Equal(began) || c.Window != nil || c.LastRun != "run1" {
		t.Errorf("checkpoint %+v, want the time of the first page, %s", c, began)
	}

	// An hour later: 3 hosts were scanned. Only they, and what the overlap
	// brings again, are asked for; nothing is sent twice.
	w.clock.advance(time.Hour)
	for _, index := range []int{3, 30, 54} {
		w.qualys.Subscription.Rescan(index, w.clock.Now().Add(-5*time.Minute))
	}
	w.dest.keys = map[string]int{}
	report = w.mustComplete()
	calls := w.qualys.Calls()
	last := calls[len(calls)-1]
	if got := last.Get("vm_processed_after"); got != began.Add(-10*time.Minute).Format("2006-01-02T15:04:05Z") || last.Has("id_min") {
		t.Errorf("the next window asks for %s, want the watermark less 10 minutes", got)
	}
	for key := range w.dest.keys {
		if d := w.expected(began)[key]; d.UniqueID == 0 {
			t.Errorf("row %s is not of the new window", key)
		}
	}
	fresh := 0
	for key, d := range w.expected(began) {
		if d.Processed.After(began) {
			fresh++
			if w.dest.keys[key] != 1 {
				t.Errorf("new detection %s arrived %d times", key, w.dest.keys[key])
			}
		}
	}
	if report.Accepted != int64(fresh) || fresh == 0 {
		t.Errorf("accepted %d, want the %d new", report.Accepted, fresh)
	}
	// And once more, with nothing new.
	w.clock.advance(time.Minute)
	before := w.dest.sends
	if report = w.mustComplete(); report.Accepted != 0 || report.Requests != 1 || w.dest.sends != before {
		t.Errorf("an empty window: %+v", report.Counts)
	}
	if c := w.checkpoint(); !c.Watermark.Equal(w.clock.Now()) {
		t.Errorf("an empty window leaves the watermark at %s", c.Watermark)
	}
}

func TestLookback(t *testing.T) {
	w := newWorld(t, 5, 2)
	w.lookback = 7 * 24 * time.Hour
	w.mustComplete()
	if got := w.qualys.Calls()[0].Get("vm_processed_after"); got != "2026-10-25T12:00:00Z" {
		t.Errorf("asked after %s", got)
	}
	w = newWorld(t, 5, 2)
	w.mustComplete()
	if w.qualys.Calls()[0].Has("vm_processed_after") {
		t.Error("everything was asked for, but with a date")
	}
}

var errKilled = errors.New("killed")

// The process dies at every step, again and again, until the window is closed:
// nothing is missing, and only what was in flight arrives twice.
func TestKillAtEveryStep(t *testing.T) {
	for _, step := range []string{"before send", "after send", "before save", "after save", "before object"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t, 40, 10)
			w.dest.batch = 20_000
			kills, most := w.killAt(step)
			if dup := w.wantEach(time.Time{}); dup > most {
				t.Errorf("%d kills, %d rows twice, at most %d were in flight", kills, dup, most)
			}
			if kills == 0 && step != "before object" {
				t.Error("the step was never reached")
			}
			t.Logf("%d kills", kills)
		})
	}
}

// killAt kills the process at every few occurrences of a step, and starts it
// again, until the window is closed. It returns how often, and how many rows
// may have been in flight.
func (w *world) killAt(step string) (kills, most int) {
	w.t.Helper()
	var mu sync.Mutex
	var dead bool
	var n int
	maxBatch := 0
	die := func(at string) error {
		mu.Lock()
		defer mu.Unlock()
		if dead {
			return errKilled // a dead process does nothing more
		}
		if at != step {
			return nil
		}
		// More than a run may have in flight, so that every life of the
		// process gets something saved.
		if n++; n%(ingest.DefaultInFlight+2) != 0 {
			return nil
		}
		dead = true
		kills++
		return errKilled
	}
	w.dest.before = func(_ int, b record.Batch) error {
		maxBatch = max(maxBatch, b.Rows())
		return die("before send")
	}
	w.dest.after = func(int, record.Batch) error { return die("after send") }
	w.store.beforeSave = func([]byte) error { return die("before save") }
	w.store.afterSave = func([]byte) error { return die("after save") }
	w.store.beforeCreate = func(string) error { return die("before object") }
	w.store.beforeAppend = func() error { return die("before append") }
	w.store.afterAppend = func() error { return die("after append") }
	closed := false
	for range 200 {
		dead = false
		report, err := w.do()
		if err == nil && report.Outcome == ingest.Complete {
			closed = true
			break
		}
		if report.Outcome == ingest.Waiting {
			// So many lives may use up the calls of an hour.
			w.clock.advance(time.Hour)
			continue
		}
		if !errors.Is(err, errKilled) {
			w.t.Fatalf("%s: %v: %s", report.Outcome, err, report.Reason)
		}
	}
	if !closed {
		w.t.Errorf("the window is open after %d kills", kills)
	}
	// In flight: the batches of all slots, and the one being filled with the
	// host that it begins in.
	return kills, kills * (ingest.DefaultInFlight + 2) * maxBatch
}

func TestBrokenPageIsAskedAgainFromTheCursor(t *testing.T) {
	w := newWorld(t, 30, 10)
	w.page = 30
	broken := 0
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		if broken++; broken > 3 {
			return false
		}
		rec := httptest.NewRecorder()
		r.Header.Del("Accept-Encoding")
		w.qualys.ServeHTTP(rec, r)
		body := rec.Body.Bytes()
		rw.Write(body[:len(body)*broken/5]) // further each time, cut in the middle of a host
		return true
	}
	report := w.mustComplete()
	if dup := w.wantEach(time.Time{}); dup != 0 || report.Retries != 3 {
		t.Errorf("%d rows twice, %d retries", dup, report.Retries)
	}
	ids := map[string]bool{}
	for _, c := range w.qualys.Calls() {
		ids[c.Get("id_min")] = true
	}
	if len(ids) < 3 {
		t.Errorf("the retries begin at %v: not where the page broke off", ids)
	}
	if !w.checkpoint().Watermark.Equal(time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)) {
		t.Error("the watermark is not the time of the first answer")
	}
}

func TestPageThatAlwaysBreaks(t *testing.T) {
	w := newWorld(t, 30, 5)
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("id_min") == "" {
			return false
		}
		io.WriteString(rw, "<HOST_LIST_VM_DETECTION_OUTPUT><RESPONSE>")
		return true
	}
	report, err := w.do()
	if err == nil || report.Outcome != ingest.Failed || !strings.Contains(err.Error(), "none of them is the cause") {
		t.Fatalf("%s: %v", report.Outcome, err)
	}
	// What arrived is kept: the next run goes on behind the first page.
	c := w.checkpoint()
	if c.Watermark != nil || c.Window == nil || c.Window.NextID == 0 || report.Accepted != report.Decoded || report.Accepted == 0 {
		t.Errorf("checkpoint %+v, report %+v", c, report.Counts)
	}
	w.before = nil
	w.mustComplete()
	if dup := w.wantEach(time.Time{}); dup != 0 {
		t.Errorf("%d rows twice", dup)
	}
}

// A limit that lasts longer than the run ends it in good order.
func TestLongLimit(t *testing.T) {
	w := newWorld(t, 30, 4)
	w.budget = 10 * time.Minute
	calls := 0
	w.before = func(rw http.ResponseWriter, _ *http.Request) bool {
		if calls++; calls != 2 {
			return false
		}
		rw.Header().Set("X-RateLimit-ToWait-Sec", "68400")
		rw.WriteHeader(409)
		io.WriteString(rw, "<SIMPLE_RETURN><RESPONSE><CODE>1965</CODE><TEXT>wait</TEXT></RESPONSE></SIMPLE_RETURN>")
		return true
	}
	report, err := w.do()
	if err != nil || report.Outcome != ingest.Waiting || len(w.clock.slept) != 0 || !strings.Contains(report.Reason, "1h5m0s") {
		t.Fatalf("%s: %v, slept %v, %s", report.Outcome, err, w.clock.slept, report.Reason)
	}
	if c := w.checkpoint(); c.Window == nil || c.Watermark != nil {
		t.Errorf("checkpoint %+v", c)
	}
	w.mustComplete()
	if dup := w.wantEach(time.Time{}); dup != 0 {
		t.Errorf("%d rows twice", dup)
	}
}

func TestShortLimitIsWaitedFor(t *testing.T) {
	w := newWorld(t, 30, 4)
	calls := 0
	w.before = func(rw http.ResponseWriter, _ *http.Request) bool {
		if calls++; calls != 2 {
			return false
		}
		rw.WriteHeader(409)
		io.WriteString(rw, "<SIMPLE_RETURN><RESPONSE><CODE>1965</CODE><TEXT>for another 2 minutes and 3 seconds.</TEXT></RESPONSE></SIMPLE_RETURN>")
		return true
	}
	w.mustComplete()
	if len(w.clock.slept) != 1 || w.clock.slept[0] != 123*time.Second {
		t.Errorf("slept %v", w.clock.slept)
	}
}

// The budget ends a run at a safe point; the next goes on with the same window.
func TestBudget(t *testing.T) {
	w := newWorld(t, 50, 6)
	w.budget = time.Minute
	until := w.clock.Now()
	w.before = func(http.ResponseWriter, *http.Request) bool {
		w.clock.advance(25 * time.Second) // a page takes its time
		return false
	}
	paused := 0
	for {
		report, err := w.do()
		if err != nil {
			t.Fatal(err)
		}
		if report.Outcome == ingest.Complete {
			break
		}
		if report.Outcome != ingest.Paused || paused > 20 {
			t.Fatal(report.Outcome)
		}
		c := w.checkpoint()
		if c.Window == nil || !c.Window.Until.Equal(until.Add(25*time.Second)) {
			t.Fatalf("window %+v: its end must stay that of the first page", c.Window)
		}
		paused++
	}
	if dup := w.wantEach(time.Time{}); dup != 0 || paused < 2 {
		t.Errorf("%d rows twice, paused %d times", dup, paused)
	}
	if c := w.checkpoint(); !c.Watermark.Equal(until.Add(25 * time.Second)) {
		t.Errorf("watermark %s: what changed since the first page belongs to the next window", c.Watermark)
	}
}

func TestInterrupt(t *testing.T) {
	w := newWorld(t, 50, 6)
	ctx, cancel := context.WithCancel(context.Background())
	w.dest.after = func(n int, _ record.Batch) error {
		if n == 3 {
			cancel()
		}
		return nil
	}
	report, err := w.run().Do(ctx)
	if err != nil || report.Outcome != ingest.Paused {
		t.Fatalf("%s: %v", report.Outcome, err)
	}
	if report.Accepted != report.Decoded {
		t.Errorf("%+v", report.Counts)
	}
	w.mustComplete()
	if dup := w.wantEach(time.Time{}); dup != 0 {
		t.Errorf("%d rows twice after an orderly stop", dup)
	}
}

func TestOneRunAtATime(t *testing.T) {
	w := newWorld(t, 3, 3)
	l, err := w.store.Acquire(context.Background(), "checkpoints/default/vm.json")
	if err != nil {
		t.Fatal(err)
	}
	report, err := w.do()
	if err != nil || report.Outcome != ingest.Held || len(w.qualys.Calls()) != 0 {
		t.Errorf("%s: %v", report.Outcome, err)
	}
	if err := l.Release(context.Background()); err != nil {
		t.Fatal(err)
	}
	w.mustComplete()
}

func TestLostHoldStopsTheRun(t *testing.T) {
	w := newWorld(t, 50, 6)
	w.store.lost = make(chan struct{})
	w.dest.after = func(n int, _ record.Batch) error {
		if n == 2 {
			close(w.store.lost)
		}
		return nil
	}
	w.store.beforeSave = func([]byte) error {
		select {
		case <-w.store.lost:
			return checkpoint.ErrLost
		default:
			return nil
		}
	}
	report, err := w.do()
	if !errors.Is(err, checkpoint.ErrLost) || report.Outcome != ingest.Failed {
		t.Fatalf("%s: %v", report.Outcome, err)
	}
	w.store.lost, w.store.beforeSave, w.dest.after = nil, nil, nil
	w.mustComplete()
	w.wantEach(time.Time{})
}

// A save that is under way when the hold is lost ends with that, and not with
// what the storage makes of it.
func TestHoldLostDuringASave(t *testing.T) {
	w := newWorld(t, 60, 10)
	w.dest.batch = 20_000
	w.store.lost = make(chan struct{})
	saves := 0
	w.store.duringSave = func(ctx context.Context) error {
		if saves++; saves < 3 {
			return nil
		}
		close(w.store.lost)
		<-ctx.Done()
		return ctx.Err()
	}
	report, err := w.do()
	if !errors.Is(err, checkpoint.ErrLost) || report.Outcome != ingest.Failed {
		t.Fatalf("%s: %v", report.Outcome, err)
	}
	if saves != 3 {
		t.Errorf("%d saves", saves)
	}
}

// A window cannot go on with other settings: its first part would lack what
// the new ones ask for.
func TestOtherSettingsBeginTheWindowAgain(t *testing.T) {
	w := newWorld(t, 30, 6)
	w.filter = url.Values{"severities": {"5"}}
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Has("id_min") {
			rw.WriteHeader(400)
			return true
		}
		return false
	}
	if _, err := w.do(); err == nil {
		t.Fatal("no error")
	}
	w.page = 20 // another page size is no other request
	if _, err := w.do(); err == nil || w.logs.FilterMessageSnippet("going on with").Len() != 1 {
		t.Fatalf("the window did not go on: %v", err)
	}
	w.before, w.filter = nil, nil
	w.mustComplete()
	w.wantEach(time.Time{})
	if w.logs.FilterMessageSnippet("beginning it again").Len() != 1 {
		t.Error("the restart was not told")
	}
}
