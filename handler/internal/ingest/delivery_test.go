package ingest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/simulator"
)

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
	if c := w.checkpoint(); c.Watermark != nil || c.Window != nil && c.Window.NextID != 0 || c.Stalled != 1 {
		t.Errorf("the checkpoint moved: %+v", c)
	}
}

// Nor where each host fills a batch of its own.
func TestEveryRowOfLargeHostsRefused(t *testing.T) {
	for _, batch := range []int{8_000, 20_000, 60_000} {
		t.Run(fmt.Sprint(batch), func(t *testing.T) {
			w := newWorld(t, 6, 60)
			w.dest.batch = batch
			w.dest.before = func(int, record.Batch) error { return &problem{refused: true} }
			report, err := w.do()
			if err == nil || !strings.Contains(err.Error(), "accepted none") || report.Outcome != ingest.Failed {
				t.Fatalf("outcome = %s, error = %v, %d dead letters; want a failure", report.Outcome, err, report.DeadLetters)
			}
			if c := w.checkpoint(); c.Watermark != nil || report.DeadLetters > 120 {
				t.Errorf("watermark = %v, dead letters = %d; want none, and those of one host or two", c.Watermark, report.DeadLetters)
			}
			w.dest.before = nil
			w.mustComplete()
			if got := len(w.dest.keys) + int(report.DeadLetters); got < len(w.expected(time.Time{})) {
				t.Errorf("rows = %d, want %d", got, len(w.expected(time.Time{})))
			}
		})
	}
}

// One host whose many rows are all bad must not stop the others, whether they
// share its batch or not.
func TestManyBadRowsFirst(t *testing.T) {
	for _, batch := range []int{20_000, 60_000, 400_000} {
		t.Run(fmt.Sprint(batch), func(t *testing.T) { manyBadRowsFirst(t, batch) })
	}
}

func manyBadRowsFirst(t *testing.T, batch int) {
	w := newWorld(t, 12, 60)
	w.dest.batch = batch
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

// Rows of a run that shares its memory are no longer than it says, and what they lose
// is kept, where its destination's dead letters are.
func TestRowBytes(t *testing.T) {
	w := newWorld(t, 30, 3)
	w.qualys.Subscription.ResultsBytes = 40_000
	w.dest.batch, w.dest.limits = 1_000_000, record.Limits{FieldBytes: 64_000}
	run := w.run()
	run.RowBytes, run.BatchBytes, run.Integration, run.DestinationName = 20_000, 8_000, "3", "integration-3"
	run.Store = w.store
	longest := 0
	w.dest.before = func(_ int, b record.Batch) error {
		longest = max(longest, len(b.Body))
		return nil
	}
	report, err := run.Do(context.Background())
	if err != nil || report.Outcome != ingest.Complete || report.Cut == 0 || longest > 20_100 {
		t.Fatalf("%v, %+v, longest %d", err, report.Counts, longest)
	}
	lines := w.readLines("deadletter/integration-3/vm/run1/cut-*.ndjson.gz")
	if int64(len(lines)) != report.Cut {
		t.Errorf("%d fields kept, %d cut", len(lines), report.Cut)
	}
	if dup := w.wantEach(time.Time{}); dup != 0 {
		t.Errorf("%d twice", dup)
	}
}

// A field that cannot be kept ends the run; the rows before it still arrive.
func TestHugeFieldThatCannotBeKept(t *testing.T) {
	w := newWorld(t, 3, 3)
	w.qualys.Subscription.HugeHost, w.qualys.Subscription.HugeBytes = 1, 3_000_000
	w.dest.batch, w.dest.limits = 1_000_000, record.Limits{FieldBytes: 64_000}
	full := errors.New("disk full")
	w.store.beforeCreate = func(name string) error {
		if strings.HasPrefix(name, "deadletter") {
			return full
		}
		return nil
	}
	report, err := w.do()
	if !errors.Is(err, full) || report.Outcome != ingest.Failed || report.Accepted == 0 || report.Accepted != report.Decoded {
		t.Fatalf("%s: %v, %+v", report.Outcome, err, report.Counts)
	}
	if c := w.checkpoint(); c.Window == nil || c.Window.NextID == 0 {
		t.Errorf("checkpoint %+v: the first host has arrived", c)
	}
	w.store.beforeCreate = nil
	w.mustComplete()
	if dup := w.wantEach(time.Time{}); dup != 0 {
		t.Errorf("%d rows twice", dup)
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

// Rows that one destination took were never at another; rows of a checkpoint
// that was begun anew are to be sent anew.
func TestHintGoesWithItsState(t *testing.T) {
	for name, change := range map[string]func(w *world, r *ingest.Run){
		"another target": func(w *world, r *ingest.Run) { r.Target = "elsewhere" },
		"begun anew": func(w *world, _ *ingest.Run) {
			if err := os.Remove(filepath.Join(w.state, "checkpoints", "default", "vm.json")); err != nil {
				w.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 10, 5)
			for index := range 10 {
				w.qualys.Subscription.Rescan(index, w.clock.Now().Add(-time.Minute))
			}
			w.mustComplete()
			w.dest.keys = map[string]int{}
			r := w.run()
			change(w, r)
			report, err := r.Do(context.Background())
			if err != nil || report.Repeated != 0 || len(w.dest.keys) != len(w.expected(time.Time{})) {
				t.Errorf("%v: %d rows skipped, %d arrived", err, report.Repeated, len(w.dest.keys))
			}
		})
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
func (panicking) PageLimit() int                                                       { return 1 }
func (panicking) IDs(context.Context, record.Query, int, func(record.Tally)) ([]uint64, error) {
	return nil, nil
}
func (panicking) Identity() string              { return "" }
func (panicking) CallLimits() record.CallLimits { return record.NoCallLimits }

// A state that cannot be written shows before any row is sent: every run would
// send them again.
func TestStateThatCannotBeWritten(t *testing.T) {
	w := newWorld(t, 10, 3)
	w.store.beforeSave = func([]byte) error { return errors.New("permission denied") }
	if _, err := w.do(); err == nil || !strings.Contains(err.Error(), "permission denied") || w.dest.sends > 0 {
		t.Errorf("%v, %d sends", err, w.dest.sends)
	}
}

// A field of a host that is too long is kept whole once, for all of the host's rows; one
// of a row, with what else is cut there, for that row.
func TestLongFieldOfAHostIsKeptOnce(t *testing.T) {
	w := newWorld(t, 1, 1)
	w.dest.batch, w.dest.limits.FieldBytes = 200_000, 4_000
	tags, long := strings.Repeat("<TAG><TAG_ID>1</TAG_ID><NAME>a tag</NAME></TAG>", 1000), strings.Repeat("x", 9_000)
	var doc strings.Builder
	for id := range 3 {
		fmt.Fprintf(&doc, "<HOST><ID>%d</ID><TAGS>%s</TAGS><DETECTION_LIST>", id+1, tags)
		for n := range 40 {
			service := "ssh"
			if n == 20 {
				service = long
			}
			fmt.Fprintf(&doc, "<DETECTION><UNIQUE_VULN_ID>%d%02d</UNIQUE_VULN_ID><QID>5</QID><SERVICE>%s</SERVICE></DETECTION>", id+1, n, service)
		}
		doc.WriteString("</DETECTION_LIST></HOST>")
	}
	w.before = func(rw http.ResponseWriter, _ *http.Request) bool {
		fmt.Fprintf(rw, "<HOST_LIST_VM_DETECTION_OUTPUT><RESPONSE><DATETIME>%s</DATETIME><HOST_LIST>%s</HOST_LIST></RESPONSE></HOST_LIST_VM_DETECTION_OUTPUT>", w.clock.Now().Format(time.RFC3339), doc.String())
		return true
	}
	report := w.mustComplete()
	objects := map[any]int{}
	for _, row := range w.dest.rows {
		objects[row["DeadLetter_s"]]++
	}
	if report.Accepted != 120 || report.Cut != 120 || len(objects) != 6 || objects[nil] != 0 {
		t.Errorf("rows = %d, cut = %d, objects = %v, want 120, all cut, in two objects a host", report.Accepted, report.Cut, objects)
	}
	fields := map[string]int{}
	for _, line := range w.readLines("deadletter/vm/run1/cut-*.ndjson.gz") {
		fields[fmt.Sprint(line["field"])]++
		if text := fmt.Sprint(line["value"]); len(text) < 6_000 {
			t.Errorf("%s is not whole: %d bytes", line["field"], len(text))
		}
	}
	if want := map[string]int{"HOST/TAGS/TAG": 3, "HOST/TAGS/TAG/NAME": 3, "DETECTION/SERVICE": 3}; !maps.Equal(fields, want) {
		t.Errorf("kept %v, want %v", fields, want)
	}
}
