package ingest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/simulator"
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

// The process dies at every step, again and again, until the window is closed:
// nothing is missing, and only what was in flight arrives twice.
func TestKillAtEveryStep(t *testing.T) {
	errKilled := errors.New("killed")
	for _, step := range []string{"before send", "after send", "before save", "after save", "before object"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t, 40, 10)
			w.dest.batch = 20_000
			var dead atomic.Bool
			var n, kills int
			maxBatch := 0
			die := func(at string) error {
				if dead.Load() {
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
				dead.Store(true)
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
			closed := false
			for range 200 {
				dead.Store(false)
				report, err := w.do()
				if err == nil && report.Outcome == ingest.Complete {
					closed = true
					break
				}
				if !errors.Is(err, errKilled) {
					t.Fatalf("%s: %v", report.Outcome, err)
				}
			}
			dup := w.wantEach(time.Time{})
			// In flight: the batches of all slots, and the one being filled
			// with the host that it begins in.
			if most := kills * (ingest.DefaultInFlight + 2) * maxBatch; !closed || dup > most {
				t.Errorf("closed %v after %d kills; %d rows twice, at most %d were in flight", closed, kills, dup, most)
			}
			if kills == 0 && step != "before object" {
				t.Error("the step was never reached")
			}
			t.Logf("%d kills, %d rows twice", kills, dup)
		})
	}
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
	if err == nil || report.Outcome != ingest.Failed || !strings.Contains(err.Error(), "no progress in 6 tries") {
		t.Fatalf("%s: %v", report.Outcome, err)
	}
	// What arrived is kept: the next run goes on behind the first page.
	c := w.checkpoint()
	if c.Watermark != nil || c.Window == nil || c.Window.NextHost == 0 || report.Accepted != report.Decoded || report.Accepted == 0 {
		t.Errorf("checkpoint %+v, report %+v", c, report.Counts)
	}
	w.before = nil
	w.mustComplete()
	if dup := w.wantEach(time.Time{}); dup != 0 {
		t.Errorf("%d rows twice", dup)
	}
}

func TestRefusedRowsBecomeDeadLetters(t *testing.T) {
	w := newWorld(t, 20, 10)
	poison := map[string]bool{}
	for key, d := range w.expected(time.Time{}) {
		if d.QID%7 == 0 {
			poison[key] = true
		}
	}
	w.dest.before = func(_ int, b record.Batch) error {
		for key := range poison {
			if strings.Contains(string(b.Body), `"RowKey_s":"`+key+`"`) {
				return &problem{refused: true}
			}
		}
		return nil
	}
	report := w.mustComplete()
	letters := w.readLines("deadletter/vm/run1/rows-*.ndjson.gz")
	if len(letters) != len(poison) || report.DeadLetters != int64(len(poison)) || report.Decoded != report.Accepted+report.DeadLetters {
		t.Fatalf("%d letters, report %+v, want %d", len(letters), report.Counts, len(poison))
	}
	for _, l := range letters {
		row, _ := l["row"].(map[string]any)
		if key, _ := row["RowKey_s"].(string); !poison[key] || w.dest.keys[key] != 0 || l["table"] != "QualysHostDetectionV2_CL" || !strings.Contains(fmt.Sprint(l["reason"]), "refused:true") {
			t.Errorf("letter %v", l)
		}
	}
	if got := len(w.dest.keys) + len(poison); got != len(w.expected(time.Time{})) {
		t.Errorf("%d rows arrived or are dead letters, want %d", got, len(w.expected(time.Time{})))
	}
	if w.logs.FilterMessage("rows refused for good: kept as dead letters").Len() == 0 {
		t.Error("nobody was told")
	}
}

// If no row is ever taken it is not the rows: stop, and do not drain a whole
// subscription into dead letters.
func TestEveryRowRefused(t *testing.T) {
	w := newWorld(t, 30, 10)
	w.dest.batch = 200_000
	w.dest.before = func(int, record.Batch) error { return &problem{refused: true} }
	report, err := w.do()
	if err == nil || !strings.Contains(err.Error(), "accepted none") || report.Outcome != ingest.Failed {
		t.Fatalf("%s: %v", report.Outcome, err)
	}
	if w.checkpointExists() {
		t.Errorf("the checkpoint moved: %+v", w.checkpoint())
	}
}

// One host whose many rows are all bad must not stop the others.
func TestManyBadRowsFirst(t *testing.T) {
	w := newWorld(t, 12, 60)
	w.dest.batch = 400_000
	bad := ""
	w.qualys.Subscription.Expected(time.Time{}, w.clock.Now(), func(h simulator.Host, _ simulator.Detection) {
		if bad == "" {
			bad = fmt.Sprintf(`"HostId_s":"%d"`, h.ID)
		}
	})
	w.dest.before = func(_ int, b record.Batch) error {
		if strings.Contains(string(b.Body), bad) {
			return &problem{refused: true}
		}
		return nil
	}
	report := w.mustComplete()
	if report.DeadLetters < 25 || report.Accepted == 0 || report.Decoded != report.Accepted+report.DeadLetters {
		t.Errorf("%+v", report.Counts)
	}
	if got := len(w.dest.keys) + int(report.DeadLetters); got != len(w.expected(time.Time{})) {
		t.Errorf("%d rows arrived or are dead letters, want %d", got, len(w.expected(time.Time{})))
	}
}

func (w *world) checkpointExists() bool {
	_, err := os.Stat(filepath.Join(w.state, "checkpoints", "default", "vm.json"))
	return err == nil
}

// A dead letter that cannot be kept holds the checkpoint back.
func TestDeadLetterThatCannotBeKept(t *testing.T) {
	w := newWorld(t, 5, 10)
	w.dest.before = func(n int, _ record.Batch) error {
		if n > 1 {
			return &problem{refused: true}
		}
		return nil
	}
	full := errors.New("disk full")
	w.store.beforeCreate = func(name string) error {
		if strings.HasPrefix(name, "deadletter") {
			return full
		}
		return nil
	}
	if report, err := w.do(); !errors.Is(err, full) || report.Outcome != ingest.Failed {
		t.Fatalf("%s: %v", report.Outcome, err)
	}
	w.store.beforeCreate, w.dest.before = nil, nil
	w.mustComplete()
	w.wantEach(time.Time{})
}

func TestRetriesWaitAsAsked(t *testing.T) {
	w := newWorld(t, 3, 3)
	w.dest.before = func(n int, _ record.Batch) error {
		switch n {
		case 1:
			return &problem{retry: true, limit: true, after: 37 * time.Second}
		case 2, 3:
			return &problem{retry: true}
		}
		return nil
	}
	report := w.mustComplete()
	if len(w.clock.slept) != 3 || w.clock.slept[0] != 37*time.Second || report.Retries != 3 || w.clock.slept[2] < time.Second || report.WaitSeconds < 38 {
		t.Errorf("slept %v, %+v", w.clock.slept, report.Counts)
	}
	if w.logs.FilterMessage("accepted after all").Len() != 1 {
		t.Error("the recovery was not told")
	}
}

func TestFinalErrorStopsTheRun(t *testing.T) {
	w := newWorld(t, 30, 10)
	w.dest.before = func(n int, _ record.Batch) error {
		if n > 3 {
			return errors.New("answered 403: role missing")
		}
		return nil
	}
	report, err := w.do()
	if err == nil || report.Outcome != ingest.Failed || !strings.Contains(report.Reason, "role missing") {
		t.Fatalf("%s: %v", report.Outcome, err)
	}
	w.dest.before = nil
	w.mustComplete()
	w.wantEach(time.Time{})
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
	if err != nil || report.Outcome != ingest.Waiting || len(w.clock.slept) != 0 || !strings.Contains(report.Reason, "19h0m0s") {
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

// Ids out of order make the cursor useless inside the page: only its end is safe.
func TestHostsOutOfOrder(t *testing.T) {
	w := newWorld(t, 1, 1)
	w.dest.batch = 20_000
	host := func(id int) string {
		return fmt.Sprintf("<HOST><ID>%d</ID><DETECTION_LIST><DETECTION><QID>%d</QID><RESULTS>%s</RESULTS></DETECTION></DETECTION_LIST></HOST>", id, id, strings.Repeat("x", 3000))
	}
	fail := true
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		min := 0
		fmt.Sscanf(r.URL.Query().Get("id_min"), "%d", &min)
		io.WriteString(rw, "<HOST_LIST_VM_DETECTION_OUTPUT><RESPONSE><DATETIME>2026-11-01T12:00:00Z</DATETIME><HOST_LIST>")
		for _, id := range []int{5, 9, 3, 10, 11, 12, 2, 13, 14} {
			if id >= min {
				io.WriteString(rw, host(id))
			}
		}
		if fail {
			return true // cut
		}
		io.WriteString(rw, "</HOST_LIST></RESPONSE></HOST_LIST_VM_DETECTION_OUTPUT>")
		return true
	}
	if _, err := w.do(); err == nil {
		t.Fatal("no error")
	}
	fail = false
	w.mustComplete()
	for _, id := range []int{2, 3, 5, 9, 10, 11, 12, 13, 14} {
		if w.dest.keys[fmt.Sprintf("%d|%d||||||", id, id)] == 0 {
			t.Errorf("host %d is missing", id)
		}
	}
}

// The first host of a page may repeat the last of the one before.
func TestRepeatedHostBetweenPages(t *testing.T) {
	w := newWorld(t, 1, 1)
	host := func(id int) string {
		return fmt.Sprintf("<HOST><ID>%d</ID><DETECTION_LIST><DETECTION><QID>1</QID></DETECTION></DETECTION_LIST></HOST>", id)
	}
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		body := host(5) + "</HOST_LIST>"
		if !r.URL.Query().Has("id_min") {
			body = host(4) + host(5) + "</HOST_LIST><WARNING><CODE>1980</CODE><URL>https://x/?id_min=5</URL></WARNING>"
		}
		io.WriteString(rw, "<HOST_LIST_VM_DETECTION_OUTPUT><RESPONSE><DATETIME>2026-11-01T12:00:00Z</DATETIME><HOST_LIST>"+body+"</RESPONSE></HOST_LIST_VM_DETECTION_OUTPUT>")
		return true
	}
	w.mustComplete()
	if w.dest.keys["5|1||||||"] != 1 || w.dest.keys["4|1||||||"] != 1 {
		t.Errorf("arrived %v", w.dest.keys)
	}
}

// A field that no row can hold is kept whole in the state container.
func TestHugeFieldIsKeptWhole(t *testing.T) {
	w := newWorld(t, 3, 3)
	w.qualys.Subscription.HugeHost, w.qualys.Subscription.HugeBytes = 1, 3_000_000
	w.dest.batch, w.dest.limits = 1_000_000, record.Limits{FieldBytes: 64_000}
	report := w.mustComplete()
	if dup := w.wantEach(time.Time{}); dup != 0 || report.Cut != 1 {
		t.Fatalf("%d twice, %+v", dup, report.Counts)
	}
	lines := w.readLines("deadletter/vm/run1/cut-*.ndjson.gz")
	for key, d := range w.expected(time.Time{}) {
		if len(d.Results) < 1_000_000 {
			continue
		}
		row := w.dest.rows[key]
		if row["Cut_s"] != "DETECTION/RESULTS (limit)" || row["DeadLetter_s"] != "deadletter/vm/run1/cut-000000.ndjson.gz" || row["ResultsBytes_d"] != float64(len(d.Results)) {
			t.Errorf("row %v %v %v", row["Cut_s"], row["DeadLetter_s"], row["ResultsBytes_d"])
		}
		if len(lines) != 1 || lines[0]["value"] != d.Results || lines[0]["rowKey"] != key || lines[0]["field"] != "DETECTION/RESULTS" {
			t.Errorf("%d lines kept, %.100v", len(lines), lines)
		}
	}
}

func TestStateThatIsNotOurs(t *testing.T) {
	for doc, want := range map[string]string{
		`{"version":2,"dataset":"vm"}`: "version 2",
		`{"version":1,"dataset":"kb"}`: `dataset "kb"`,
		`{"version":1,"wat`:            "damaged",
	} {
		w := newWorld(t, 1, 1)
		path := filepath.Join(w.state, "checkpoints", "default", "vm.json")
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(doc), 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := w.do(); err == nil || !strings.Contains(err.Error(), want) || len(w.qualys.Calls()) != 0 {
			t.Errorf("%s: %v", doc, err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != doc {
			t.Errorf("%s was overwritten with %s", doc, got)
		}
	}
}

func TestRunRecord(t *testing.T) {
	w := newWorld(t, 3, 3)
	report := w.mustComplete()
	files, err := filepath.Glob(filepath.Join(w.state, "runs", "vm", "20261101T120000Z-run1.json"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	doc, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	var got ingest.Report
	if err := json.Unmarshal(doc, &got); err != nil || got.Counts != report.Counts || got.Outcome != ingest.Complete || got.Run != "run1" {
		t.Errorf("%+v, %v", got, err)
	}
}

// What the log says of a run is what machines read: one event a line, with run
// id, dataset and counts.
func TestLog(t *testing.T) {
	w := newWorld(t, 3, 3)
	r := w.run()
	r.Log = r.Log.With(zap.String("run", r.ID))
	if _, err := r.Do(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, message := range []string{"run started", "page read", "run ended"} {
		if w.logs.FilterMessage(message).FilterField(zap.String("run", "run1")).Len() != 1 {
			t.Errorf("no %q in %v", message, w.logs.All())
		}
	}
}

// The budget ends reading; the last batches may still be tried again.
func TestLastBatchesAreTriedAgain(t *testing.T) {
	w := newWorld(t, 20, 4)
	w.budget = time.Minute
	w.dest.batch = 1_000_000 // all in the last batch
	w.before = func(http.ResponseWriter, *http.Request) bool {
		w.clock.advance(50 * time.Second)
		return false
	}
	w.dest.before = func(n int, _ record.Batch) error {
		if n == 1 {
			return &problem{retry: true, after: 30 * time.Second}
		}
		return nil
	}
	report, err := w.do()
	if err != nil || report.Outcome != ingest.Paused || report.Accepted == 0 || report.Accepted != report.Decoded {
		t.Errorf("%s: %v, %+v", report.Outcome, err, report.Counts)
	}
}

// Rows that are left behind are counted, and read again by the next run.
func TestAbandonedRowsAreCounted(t *testing.T) {
	w := newWorld(t, 40, 8)
	w.dest.before = func(n int, _ record.Batch) error {
		if n > 2 {
			return &problem{retry: true, limit: true, after: time.Hour}
		}
		return nil
	}
	report, err := w.do()
	if err != nil || report.Outcome != ingest.Waiting || report.Abandoned == 0 || report.Decoded != report.Accepted+report.Abandoned {
		t.Fatalf("%s: %v, %+v", report.Outcome, err, report.Counts)
	}
	w.dest.before = nil
	w.mustComplete()
	w.wantEach(time.Time{})
}

// What helps to save money must not stop the findings.
func TestDamagedHint(t *testing.T) {
	w := newWorld(t, 3, 3)
	w.mustComplete()
	path := filepath.Join(w.state, "checkpoints", "default", "vm.recent.json.gz")
	if err := os.WriteFile(path, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.mustComplete()
	if w.logs.FilterMessageSnippet("may be sent twice").Len() != 1 {
		t.Error("nobody was told")
	}
	// The same when it cannot be written.
	w.store.beforeCreate = func(name string) error {
		if strings.Contains(name, "recent") {
			return errors.New("disk full")
		}
		return nil
	}
	w.mustComplete()
}

// A window over several runs remembers the rows of all of them.
func TestOverlapAfterSeveralRuns(t *testing.T) {
	w := newWorld(t, 50, 6)
	now := w.clock.Now()
	for index := range 50 {
		w.qualys.Subscription.Rescan(index, now.Add(-time.Minute)) // all in the overlap of the next window
	}
	w.budget = time.Minute
	w.before = func(http.ResponseWriter, *http.Request) bool {
		w.clock.advance(25 * time.Second)
		return false
	}
	for n := 0; ; n++ {
		if report, err := w.do(); err != nil || n > 10 {
			t.Fatal(err)
		} else if report.Outcome == ingest.Complete {
			break
		}
	}
	w.before, w.budget = nil, 0
	if report := w.mustComplete(); report.Accepted != 0 || report.Repeated == 0 {
		t.Errorf("accepted again %d, recognised %d", report.Accepted, report.Repeated)
	}
}

// After a kill, too, the overlap brings again only what was in flight.
func TestOverlapAfterAKill(t *testing.T) {
	w := newWorld(t, 60, 8)
	now := w.clock.Now()
	for index := range 60 {
		w.qualys.Subscription.Rescan(index, now.Add(-time.Minute))
	}
	w.dest.batch = 20_000
	killed := errors.New("killed")
	most := 0
	w.dest.before = func(n int, b record.Batch) error {
		most = max(most, b.Rows())
		w.clock.advance(2 * time.Second)
		if n > 15 {
			return killed
		}
		return nil
	}
	if _, err := w.do(); !errors.Is(err, killed) {
		t.Fatal(err)
	}
	w.dest.before = nil
	w.mustComplete()
	w.mustComplete() // the overlap brings all hosts again
	if dup := w.wantEach(time.Time{}); dup > (ingest.DefaultInFlight+1)*most {
		t.Errorf("%d rows twice, at most %d were in flight", dup, (ingest.DefaultInFlight+1)*most)
	}
}

// A panic must not hold the checkpoint for ever.
func TestPanicReleasesTheCheckpoint(t *testing.T) {
	w := newWorld(t, 3, 3)
	r := w.run()
	r.Source = panicking{}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		r.Do(context.Background())
	}()
	w.mustComplete()
}

type panicking struct{}

func (panicking) Page(context.Context, record.Query, record.Sink) (record.Page, error) { panic("boom") }
func (panicking) Identity() string                                                     { return "" }
