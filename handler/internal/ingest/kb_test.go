package ingest_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/simulator"
)

// newKBWorld is a world whose runs carry the KnowledgeBase.
func newKBWorld(t *testing.T, size int) *world {
	w := newWorld(t, 1, 1)
	w.qualys.Subscription.Knowledge = &simulator.Knowledge{Seed: 3, Size: size}
	w.dataset, w.page = ingest.KB, 50
	return w
}

func (w *world) knowledge() *simulator.Knowledge { return w.qualys.Subscription.Knowledge }

// entryKey is the key of an entry's row.
func entryKey(e simulator.Entry) string {
	return fmt.Sprintf("%d@%s", e.QID, e.Modified.Format(time.RFC3339))
}

// edit is a change that shows at once.
func edit(index int, at time.Time) simulator.Edit {
	return simulator.Edit{Index: index, At: at, Visible: at}
}

// wantEntries checks that every entry of the KnowledgeBase has arrived in its
// latest state, and how often rows arrived in all.
func (w *world) wantEntries(rows int) {
	w.t.Helper()
	k := w.knowledge()
	for index := range k.Entries() {
		e, ok := k.Entry(index, w.clock.Now())
		if !ok {
			continue
		}
		found := false
		for key, row := range w.dest.rows {
			if strings.HasPrefix(key, entryKey(e)) {
				found = row["Title_s"] == e.Title && row["Diagnosis_HTML_s"] == strings.TrimSpace(e.Diagnosis) && row["Is_Disabled_s"] == map[bool]string{true: "1", false: "0"}[e.Disabled]
				break
			}
		}
		if !found {
			w.t.Errorf("QID %d is missing, or another state of it arrived", e.QID)
		}
	}
	if got := w.arrived(); got != rows {
		w.t.Errorf("%d rows arrived, want %d", got, rows)
	}
}

// arrived counts rows, again and again the same one too.
func (w *world) arrived() (n int) {
	for _, times := range w.dest.keys {
		n += times
	}
	return n
}

func TestKnowledgeBaseLoadsOnceAndThenItsChanges(t *testing.T) {
	w := newKBWorld(t, 230)
	report := w.mustComplete()
	w.wantEntries(230)
	if calls := w.qualys.KnowledgeCalls(); len(calls) != 6 || calls[0].Get("details") != "None" || calls[1].Get("id_max") == "" || calls[5].Has("id_max") || report.Requests != 6 || report.Expected != 230 || report.Parents != 230 {
		t.Errorf("%d calls: %v\n%+v", len(calls), calls, report.Counts)
	}

	// Nothing has changed: one request, no row.
	w.clock.advance(30 * time.Hour)
	calls := len(w.qualys.KnowledgeCalls())
	if report := w.mustComplete(); report.Requests != 1 || report.Decoded != 0 || len(w.qualys.KnowledgeCalls()) != calls+1 {
		t.Errorf("an empty window: %+v", report.Counts)
	}

	// Changes, some of which show up nine hours after their date, one entry new.
	now := w.clock.Now()
	late := now.Add(9 * time.Hour)
	w.knowledge().Edit(
		simulator.Edit{Index: 3, At: now, Visible: now},
		simulator.Edit{Index: 4, At: now, Visible: late},
		simulator.Edit{Index: 230, Kind: simulator.Published, At: now, Visible: late},
		simulator.Edit{Index: 9, Kind: simulator.Disabled, At: now, Visible: now},
	)
	for range 30 { // every half hour
		w.clock.advance(30 * time.Minute)
		w.mustComplete()
		if told := w.logs.FilterLevelExact(zap.ErrorLevel).All(); len(told) > 0 {
			t.Fatalf("a window of changes: %v", told)
		}
	}
	w.wantEntries(234)
	for _, c := range w.qualys.KnowledgeCalls()[calls+1:] {
		if !c.Has("last_modified_after") || c.Has("ids") {
			t.Errorf("everything was asked for again: %v", c)
		}
	}
}

// The account's customer edits an entry without a new date of Qualys: its
// content tells.
func TestChangedContentWithTheSameDate(t *testing.T) {
	w := newKBWorld(t, 20)
	w.mustComplete()
	at := w.clock.Now()
	w.knowledge().Edit(simulator.Edit{Index: 3, At: at, Visible: at})
	w.clock.advance(time.Minute)
	w.mustComplete()
	w.knowledge().Edit(simulator.Edit{Index: 3, At: at, Visible: at.Add(2 * time.Minute)})
	w.clock.advance(2 * time.Minute)
	w.mustComplete()
	w.wantEntries(22)
}

func TestKnowledgeBaseInManyRuns(t *testing.T) {
	w := newKBWorld(t, 300)
	w.budget = time.Minute
	w.before = func(http.ResponseWriter, *http.Request) bool {
		w.clock.advance(25 * time.Second)
		return false
	}
	runs := 0
	for report, err := w.do(); report.Outcome != ingest.Complete; report, err = w.do() {
		if runs++; err != nil || report.Outcome != ingest.Paused || runs > 20 {
			t.Fatalf("%s: %v", report.Outcome, err)
		}
	}
	if runs < 2 {
		t.Errorf("%d runs", runs)
	}
	w.before = nil
	w.wantEntries(300)
	w.clock.advance(time.Hour)
	w.mustComplete()
	w.wantEntries(300)
}

// Killed at every step of the first load, and of the changes after it.
func TestKnowledgeBaseKilledAtEveryStep(t *testing.T) {
	for _, step := range []string{"before send", "after send", "before append", "after append", "before save", "after save", "before object"} {
		t.Run(step, func(t *testing.T) {
			w := newKBWorld(t, 120)
			kills, most := w.killAt(step)
			if dup := w.arrived() - len(w.dest.keys); dup > most {
				t.Errorf("%d kills, %d rows twice, at most %d were in flight", kills, dup, most)
			}
			w.wantEntries(w.arrived())
			if kills == 0 && step != "before object" {
				t.Error("the step was never reached")
			}
			now := w.clock.Now()
			for index := range 60 {
				w.knowledge().Edit(simulator.Edit{Index: index * 2, At: now, Visible: now})
			}
			w.clock.advance(time.Minute)
			more, _ := w.killAt(step)
			w.wantEntries(w.arrived())
			before := w.arrived()
			w.dest.before, w.dest.after = nil, nil
			w.store = &faultStore{Store: w.store.Store}
			w.clock.advance(time.Hour)
			w.mustComplete()
			if got := w.arrived(); got != before {
				t.Errorf("%d rows more from an overlap that brings nothing new", got-before)
			}
			t.Logf("%d and %d kills, %d rows for %d", kills, more, before, 180)
		})
	}
}

// journalHeader is the first line of a journal of these tests.
const journalHeader = `{"version":1,"for":"127.0.0.1 KnowledgeBase to ","values":["VULN/TITLE","VULN/SEVERITY_LEVEL","VULN/CVE_LIST/CVE/ID","VULN/CVSS/BASE","VULN/CVSS_V3/BASE","VULN/PATCHABLE"]}` + "\n"

// indexPath is the file of the index that the checkpoint names, or of its
// journal.
func (w *world) indexPath(ext string) string {
	return filepath.Join(w.state, "checkpoints", "default", "kb.index", w.checkpoint().Index+ext)
}

// indexLines reads the index's lines, without the header.
func (w *world) indexLines() []string {
	w.t.Helper()
	raw, err := os.ReadFile(w.indexPath(".gz"))
	if err != nil {
		w.t.Fatal(err)
	}
	gz, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		w.t.Fatal(err)
	}
	text, err := io.ReadAll(gz)
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")[1:]
}

// What is in the journal is not sent again, not in a full window either: with
// one batch in flight nothing is, when the kill comes behind its append.
func TestNothingTwiceBehindTheJournal(t *testing.T) {
	for _, step := range []string{"after append", "before save"} {
		t.Run(step, func(t *testing.T) {
			w := newKBWorld(t, 150)
			w.inFlight, w.refresh = 1, 24*time.Hour
			kills, _ := w.killAt(step)
			w.wantEntries(150)
			w.clock.advance(25 * time.Hour)
			again, _ := w.killAt(step) // the window after the load
			w.clock.advance(time.Hour)
			more, _ := w.killAt(step) // the refresh
			if kills == 0 || more == 0 || w.arrived() != 300 {
				t.Errorf("%d, %d and %d kills, %d rows, want 300", kills, again, more, w.arrived())
			}
		})
	}
}

// One append fails, and the batches that were under way behind it arrive: the
// checkpoint must not pass the rows that the journal lacks.
func TestAppendThatFailsOnce(t *testing.T) {
	for _, taken := range []bool{false, true} { // the lines are there all the same
		t.Run(fmt.Sprint(taken), func(t *testing.T) {
			w := newKBWorld(t, 300)
			w.page = 300
			blip := errors.New("a blip")
			var once sync.Once
			failed, behind := make(chan struct{}), make(chan struct{})
			fail := func() (err error) {
				once.Do(func() {
					<-behind // others are accepted while this one is under way
					err = blip
					close(failed)
				})
				return err
			}
			if taken {
				w.store.afterAppend = fail
			} else {
				w.store.beforeAppend = fail
			}
			w.dest.after = func(n int, _ record.Batch) error {
				if n == 3 {
					close(behind)
					w.dest.mu.Unlock() // Send holds it
					<-failed
					w.dest.mu.Lock()
				}
				return nil
			}
			if _, err := w.do(); !errors.Is(err, blip) {
				t.Fatal(err)
			}
			for range 3 {
				w.mustComplete()
				w.clock.advance(time.Hour)
			}
			w.wantEntries(w.arrived())
			if lines := w.indexLines(); len(lines) != 300 {
				t.Errorf("%d lines in the index, want 300", len(lines))
			}
		})
	}
}

// A journal that grows too long is taken in while the run goes on.
func TestLongJournal(t *testing.T) {
	w := newKBWorld(t, 1)
	title := strings.Repeat("é", 30_000)
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		io.WriteString(rw, "<KNOWLEDGE_BASE_VULN_LIST_OUTPUT><RESPONSE><DATETIME>2026-11-01T12:00:00Z</DATETIME>")
		if r.URL.Query().Get("details") == "None" {
			io.WriteString(rw, "<ID_SET><ID_RANGE>1-200</ID_RANGE></ID_SET>")
		} else {
			low, high := 1, 200
			fmt.Sscan(r.URL.Query().Get("id_min"), &low)
			fmt.Sscan(r.URL.Query().Get("id_max"), &high)
			io.WriteString(rw, "<VULN_LIST>")
			for id := low; id <= high; id++ {
				fmt.Fprintf(rw, "<VULN><QID>%d</QID><TITLE>%s</TITLE></VULN>", id, title)
			}
			io.WriteString(rw, "</VULN_LIST>")
		}
		io.WriteString(rw, "</RESPONSE></KNOWLEDGE_BASE_VULN_LIST_OUTPUT>")
		return true
	}
	w.dest.batch = 200_000
	generations := map[string]bool{}
	w.store.beforeCreate = func(name string) error {
		if strings.Contains(name, "kb.index/") {
			generations[name] = true
		}
		return nil
	}
	w.mustComplete()
	// The first, one for each 4 MB of 12, and that of the end.
	if len(generations) < 4 || len(w.indexLines()) != 200 || w.arrived() != 200 {
		t.Errorf("generations %v, %d lines, %d rows", generations, len(w.indexLines()), w.arrived())
	}
	if left, err := os.ReadDir(filepath.Dir(w.indexPath(""))); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Somebody deletes the index while a run goes on.
func TestIndexDeletedInARun(t *testing.T) {
	w := newKBWorld(t, 60)
	w.mustComplete()
	now := w.clock.Now()
	w.knowledge().Edit(simulator.Edit{Index: 5, At: now, Visible: now})
	w.clock.advance(time.Minute)
	w.store.afterAppend = func() error { return os.Remove(w.indexPath(".gz")) }
	w.mustComplete() // with a warning: the journal keeps it
	if w.logs.FilterMessageSnippet("is not renewed").Len() != 1 {
		t.Error("nobody was told")
	}
	w.store.afterAppend = nil
	w.clock.advance(time.Minute)
	w.mustComplete()
	w.wantEntries(60 + 1 + 60)
	if got := len(w.indexLines()); got != 60 {
		t.Errorf("%d lines in the index", got)
	}
}

// A run that was frozen beyond its lease wakes up: what it still writes counts
// for nothing.
func TestFrozenHolder(t *testing.T) {
	w := newKBWorld(t, 120)
	w.mustComplete()
	now := w.clock.Now()
	editAll := func(from, to int) {
		for index := from; index < to; index++ {
			w.knowledge().Edit(edit(index, now))
		}
	}
	editAll(0, 40)
	w.clock.advance(time.Minute)
	frozen, awake := make(chan struct{}), make(chan struct{})
	lost := make(chan struct{})
	first := w.run()
	first.Store = &faultStore{Store: unlocked{w.store.Store}, lost: lost, beforeCreate: func(name string) error {
		if strings.Contains(name, "kb.index/") {
			close(frozen)
			<-awake
		}
		return nil
	}, beforeSave: func([]byte) error {
		select {
		case <-awake:
			return checkpoint.ErrLost // as the lease id has changed
		default:
			return nil
		}
	}}
	ended := make(chan error)
	go func() {
		_, err := first.Do(context.Background())
		ended <- err
	}()
	<-frozen
	w.store.Store = unlocked{w.store.Store}
	w.mustComplete()
	editAll(40, 60)
	w.clock.advance(time.Minute)
	w.mustComplete()
	before := w.checkpoint()
	close(awake)
	if err := <-ended; !errors.Is(err, checkpoint.ErrLost) {
		t.Errorf("the frozen run ended with %v", err)
	}
	if after := w.checkpoint(); after.Index != before.Index || !after.Watermark.Equal(*before.Watermark) {
		t.Errorf("the checkpoint is another one: %+v, before %+v", after, before)
	}
	arrived := w.arrived()
	w.clock.advance(time.Minute)
	w.mustComplete()
	w.wantEntries(arrived)
	if got := len(w.indexLines()); got != 120 {
		t.Errorf("%d lines in the index", got)
	}
}

// unlocked is a store that lets a second run take over while the first still
// believes to hold the checkpoint, as a lease that has run out does.
type unlocked struct{ checkpoint.Store }

func (s unlocked) Acquire(ctx context.Context, name string) (checkpoint.Lease, error) {
	l, err := s.Store.Acquire(ctx, name)
	if err == nil {
		err = l.Release(ctx)
	}
	return unlockedLease{l, s.Store, name}, err
}

type unlockedLease struct {
	checkpoint.Lease
	store checkpoint.Store
	name  string
}

func (l unlockedLease) Save(ctx context.Context, doc []byte) error {
	held, err := l.store.Acquire(ctx, l.name)
	if err != nil {
		return err
	}
	return errors.Join(held.Save(ctx, doc), held.Release(ctx))
}

func (l unlockedLease) Release(context.Context) error { return nil }

func TestFullRefresh(t *testing.T) {
	w := newKBWorld(t, 220)
	w.refresh = 30 * 24 * time.Hour
	w.mustComplete()
	now := w.clock.Now().Add(10 * 24 * time.Hour)
	w.knowledge().Edit(
		simulator.Edit{Index: 0, Kind: simulator.Removed, At: now, Visible: now},
		simulator.Edit{Index: 100, Kind: simulator.Removed, At: now, Visible: now},
		simulator.Edit{Index: 219, Kind: simulator.Removed, At: now, Visible: now},
		simulator.Edit{Index: 7, Kind: simulator.Disabled, At: now, Visible: now},
	)
	for range 29 {
		w.clock.advance(24 * time.Hour)
		w.mustComplete()
	}
	w.wantEntries(221) // the disabled one; who is gone shows only in a refresh
	gone, _ := simulatorEntry(w, 100, time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC))
	for _, refreshed := range []time.Duration{0, 30 * 24 * time.Hour} {
		// The refresh is due at the window after the one that reaches the date.
		w.clock.advance(refreshed)
		for range 2 {
			w.clock.advance(24 * time.Hour)
			w.mustComplete()
		}
		rows := 0
		for key, row := range w.dest.rows {
			if at := row["Removed_DateTime_t"]; at != nil {
				rows++
				if row["QID_s"] == fmt.Sprint(gone.QID) && (row["Title_s"] != gone.Title || !strings.HasPrefix(key, entryKey(gone)+"@") || row["Severity_Level_s"] != gone.Severity) {
					t.Errorf("the row of a removed QID: %v", row)
				}
			}
		}
		if rows != 3 {
			t.Errorf("%d removed QIDs, want 3, under the same keys each time", rows)
		}
	}
	w.wantEntries(221 + 2*220) // 217 that are there and 3 that are not, twice
	if lines := w.indexLines(); len(lines) != 220 {
		t.Errorf("%d lines in the index", len(lines))
	}
	// It comes back.
	now = w.clock.Now()
	w.knowledge().Edit(simulator.Edit{Index: 100, Kind: simulator.Published, At: now, Visible: now})
	w.clock.advance(time.Hour)
	w.mustComplete()
	w.wantEntries(221 + 2*220 + 1)
}

func simulatorEntry(w *world, index int, at time.Time) (simulator.Entry, bool) {
	return w.knowledge().Entry(index, at)
}

// A refresh that is killed, or out of time, goes on; nobody is taken for gone
// who was sent by an earlier run of it.
func TestRefreshInManyRuns(t *testing.T) {
	w := newKBWorld(t, 150)
	w.refresh = 24 * time.Hour
	w.mustComplete()
	at := w.clock.Now()
	w.knowledge().Edit(simulator.Edit{Index: 30, Kind: simulator.Removed, At: at, Visible: at}, simulator.Edit{Index: 149, Kind: simulator.Removed, At: at, Visible: at})
	w.clock.advance(25 * time.Hour)
	w.mustComplete()
	before := w.arrived()
	w.clock.advance(time.Hour)
	kills, most := w.killAt("after append")
	removed := 0
	for key, row := range w.dest.rows {
		if row["Removed_DateTime_t"] != nil {
			removed++
			if w.dest.keys[key] > 1+kills {
				t.Errorf("%s arrived %d times", key, w.dest.keys[key])
			}
		}
	}
	if got := w.arrived() - before; kills == 0 || removed != 2 || got < 150 || got > 150+most {
		t.Errorf("%d kills, %d removed, %d rows", kills, removed, got)
	}
}

// What has left the pages is reported as removed only if Qualys says so, part
// by part; until then changes go on.
func TestRemovalsAreConfirmed(t *testing.T) {
	for name, c := range map[string]struct {
		confirm func(n int, rw http.ResponseWriter) bool
		removed int
		failed  bool
	}{
		"at once":      {nil, 60, false},
		"after a 503":  {func(n int, rw http.ResponseWriter) bool { rw.WriteHeader(503); return n == 1 }, 60, false},
		"never":        {func(_ int, rw http.ResponseWriter) bool { rw.WriteHeader(503); return true }, 0, true},
		"refused":      {func(_ int, rw http.ResponseWriter) bool { rw.WriteHeader(400); return true }, 0, false},
		"empty answer": {func(_ int, rw http.ResponseWriter) bool { io.WriteString(rw, emptyList); return true }, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newKBWorld(t, 300)
			w.refresh = 24 * time.Hour
			w.mustComplete()
			at := w.clock.Now()
			for index := range 60 {
				w.knowledge().Edit(simulator.Edit{Index: index * 5, Kind: simulator.Removed, At: at, Visible: at})
			}
			w.clock.advance(25 * time.Hour)
			w.mustComplete()
			w.clock.advance(time.Hour)
			n := 0
			cursor := uint64(0)
			w.store.beforeSave = func([]byte) error {
				if window := w.checkpoint().Window; window != nil {
					if window.NextID < cursor {
						t.Errorf("the cursor went back from %d to %d", cursor, window.NextID)
					}
					cursor = window.NextID
				}
				return nil
			}
			w.before = func(rw http.ResponseWriter, r *http.Request) bool {
				if c.confirm == nil || !r.URL.Query().Has("ids") {
					return false
				}
				n++
				probe := httptest.NewRecorder()
				if !c.confirm(n, probe) {
					return false
				}
				c.confirm(n, rw)
				return true
			}
			report, err := w.do()
			if (err != nil) != c.failed || c.failed == (report.Outcome == ingest.Complete) {
				t.Errorf("%s: %v", report.Outcome, err)
			}
			removed := 0
			for _, row := range w.dest.rows {
				if row["Removed_DateTime_t"] != nil {
					removed++
				}
			}
			if removed != c.removed || removed == 0 && w.logs.FilterLevelExact(zap.ErrorLevel).Len() == 0 {
				t.Errorf("%d reported as removed, want %d", removed, c.removed)
			}
		})
	}
}

const emptyList = "<KNOWLEDGE_BASE_VULN_LIST_OUTPUT><RESPONSE><DATETIME>2026-11-02T14:00:00Z</DATETIME></RESPONSE></KNOWLEDGE_BASE_VULN_LIST_OUTPUT>"

// A page that leaves an entry out does not remove it: it is asked for by name.
func TestEntryLeftOutOfARefresh(t *testing.T) {
	w := newKBWorld(t, 100)
	w.refresh = 24 * time.Hour
	w.mustComplete()
	w.clock.advance(25 * time.Hour)
	w.mustComplete()
	w.clock.advance(time.Hour)
	left := fmt.Sprintf("<QID>%d</QID>", w.knowledge().QID(30))
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("details") != "All" || r.URL.Query().Has("ids") {
			return false
		}
		answer := httptest.NewRecorder()
		r.Header.Del("Accept-Encoding")
		w.qualys.ServeHTTP(answer, r)
		doc := answer.Body.String()
		if i := strings.Index(doc, left); i >= 0 {
			begin, end := strings.LastIndex(doc[:i], "<VULN>"), i+strings.Index(doc[i:], "</VULN>")+len("</VULN>")
			doc = doc[:begin] + doc[end:]
		}
		io.WriteString(rw, doc)
		return true
	}
	w.mustComplete()
	w.before = nil
	w.wantEntries(200)
	for _, row := range w.dest.rows {
		if row["Removed_DateTime_t"] != nil {
			t.Fatal("reported as removed")
		}
	}
}

// Whoever witnesses a confirmation may be gone by then: others do.
func TestWitnessThatIsGone(t *testing.T) {
	w := newKBWorld(t, 100)
	w.refresh = 24 * time.Hour
	w.mustComplete()
	at := w.clock.Now()
	w.knowledge().Edit(simulator.Edit{Index: 50, Kind: simulator.Removed, At: at, Visible: at})
	w.clock.advance(25 * time.Hour)
	w.mustComplete()
	w.clock.advance(time.Hour)
	w.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Has("ids") {
			for _, index := range []int{0, 99} {
				w.knowledge().Edit(simulator.Edit{Index: index, Kind: simulator.Removed, At: at, Visible: at})
			}
		}
		return false
	}
	report := w.mustComplete()
	if report.Accepted != 100 { // 99 entries and the one that is gone
		t.Errorf("%d rows", report.Accepted)
	}
}

// A confirmation that never works holds the changes back for some runs only.
func TestConfirmationThatNeverWorks(t *testing.T) {
	w := newKBWorld(t, 100)
	w.refresh = 24 * time.Hour
	w.mustComplete()
	at := w.clock.Now()
	w.knowledge().Edit(simulator.Edit{Index: 50, Kind: simulator.Removed, At: at, Visible: at})
	w.clock.advance(25 * time.Hour)
	w.mustComplete()
	w.clock.advance(time.Hour)
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Has("ids") {
			io.WriteString(rw, emptyList)
		}
		return r.URL.Query().Has("ids")
	}
	runs := 0
	for report, err := w.do(); err != nil; report, err = w.do() {
		if runs++; runs > 6 || report.Outcome != ingest.Failed {
			t.Fatalf("%s: %v", report.Outcome, err)
		}
	}
	now := w.clock.Now()
	w.knowledge().Edit(edit(3, now))
	w.clock.advance(time.Minute)
	w.mustComplete()
	w.wantEntries(100 + 99 + 1)
	if left, err := os.ReadDir(filepath.Dir(w.indexPath(""))); err != nil || len(left) != 1 {
		t.Errorf("left behind after %d runs: %v, %v", runs, left, err)
	}
}

// A page that is longer than the budget, and without a safe point because its
// first entry is missing, gets smaller until a run gets through it.
func TestGapAndBudget(t *testing.T) {
	w := newKBWorld(t, 300)
	w.page, w.budget = 300, time.Minute
	left := fmt.Sprintf("<QID>%d</QID>", w.knowledge().QID(0))
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("details") != "All" || r.URL.Query().Has("ids") {
			return false
		}
		answer := httptest.NewRecorder()
		r.Header.Del("Accept-Encoding")
		w.qualys.ServeHTTP(answer, r)
		for entry := range strings.SplitAfterSeq(answer.Body.String(), "</VULN>") {
			if strings.Contains(entry, left) {
				entry, _, _ = strings.Cut(entry, "<VULN>")
			}
			w.clock.advance(400 * time.Millisecond) // 150 entries a minute
			io.WriteString(rw, entry)
			rw.(http.Flusher).Flush()
		}
		return true
	}
	runs := 0
	for report, err := w.do(); report.Outcome != ingest.Complete; report, err = w.do() {
		if runs++; err != nil || runs > 200 {
			t.Fatalf("run %d: %s: %v, %d entries arrived", runs, report.Outcome, err, w.arrived())
		}
	}
	w.wantEntries(w.arrived())
}

// The storage fails for a moment: what was joined before is joined still.
func TestJoinWhileTheStorageIsNotWell(t *testing.T) {
	w := newKBWorld(t, 50)
	w.mustComplete()
	w.qualys.Subscription.Hosts, w.qualys.Subscription.Detections = 10, 10
	w.dataset, w.joined = ingest.VM, &ingest.Joined{Dataset: ingest.KB}
	w.mustComplete()
	w.clock.advance(20 * time.Hour)
	w.store.Store = opensOnly{w.store.Store, "kb.json"}
	if report := w.mustComplete(); report.Unjoined != 0 || report.Decoded == 0 {
		t.Errorf("%+v", report.Counts)
	}
}

// opensOnly is a store that does not open one document.
type opensOnly struct {
	checkpoint.Store
	not string
}

func (s opensOnly) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if strings.HasSuffix(name, s.not) {
		return nil, errors.New("storage is down")
	}
	return s.Store.Open(ctx, name)
}

// An account that suddenly sees much less is not a mass removal.
func TestShrunkenKnowledgeBase(t *testing.T) {
	w := newKBWorld(t, 400)
	w.refresh = 24 * time.Hour
	w.mustComplete()
	at := w.clock.Now()
	for index := range 150 {
		w.knowledge().Edit(simulator.Edit{Index: index, Kind: simulator.Removed, At: at, Visible: at})
	}
	w.clock.advance(25 * time.Hour)
	w.mustComplete()
	w.clock.advance(time.Hour)
	w.mustComplete()
	for _, row := range w.dest.rows {
		if row["Removed_DateTime_t"] != nil {
			t.Fatal("reported as removed")
		}
	}
	if w.logs.FilterLevelExact(zap.ErrorLevel).FilterMessageSnippet("too many are missing").Len() != 1 {
		t.Error("nobody was told")
	}
}

// Without its index the KnowledgeBase is loaded again: the join would miss
// entries for ever.
func TestIndexThatIsLost(t *testing.T) {
	index := func(w *world) string { return w.indexPath(".gz") }
	journal := func(w *world) string { return w.indexPath(".journal") }
	for name, lose := range map[string]func(t *testing.T, w *world) error{
		"deleted": func(_ *testing.T, w *world) error { return os.Remove(index(w)) },
		"damaged": func(_ *testing.T, w *world) error { return os.WriteFile(index(w), []byte("no gzip"), 0o600) },
		"cut":     func(_ *testing.T, w *world) error { return os.Truncate(index(w), 500) },
		"empty":   func(_ *testing.T, w *world) error { return os.Truncate(index(w), 0) },
		"foreign journal": func(_ *testing.T, w *world) error {
			return os.WriteFile(journal(w), []byte("{\"version\":1}\nx\ty\n"), 0o600)
		},
		"damaged journal": func(_ *testing.T, w *world) error {
			return os.WriteFile(journal(w), []byte(journalHeader+"x\ty\n"), 0o600)
		},
		"deleted, with a journal": func(_ *testing.T, w *world) error {
			line := fmt.Sprintf("%d\t\t00ff\t2026-11-01T12:00:00Z\t\n", w.knowledge().QID(5))
			return errors.Join(os.Remove(index(w)), os.WriteFile(journal(w), []byte(journalHeader+line), 0o600))
		},
		"other values": func(_ *testing.T, w *world) error {
			var b bytes.Buffer
			gz := gzip.NewWriter(&b)
			fmt.Fprintln(gz, `{"version":1,"for":"127.0.0.1 KnowledgeBase to ","values":["VULN/TITLE"]}`)
			return errors.Join(gz.Close(), os.WriteFile(index(w), b.Bytes(), 0o600))
		},
		"another workspace": func(_ *testing.T, w *world) error { w.target = "dcr-2"; return nil },
	} {
		t.Run(name, func(t *testing.T) {
			w := newKBWorld(t, 60)
			w.mustComplete()
			w.clock.advance(time.Hour)
			if err := lose(t, w); err != nil {
				t.Fatal(err)
			}
			w.mustComplete()
			w.wantEntries(120)
			if w.logs.FilterMessageSnippet("everything is loaded again").Len() != 1 {
				t.Error("nobody was told")
			}
			w.clock.advance(time.Hour)
			w.mustComplete()
			w.wantEntries(120)
			if left, err := os.ReadDir(filepath.Dir(index(w))); err != nil || len(left) != 1 {
				t.Errorf("left behind: %v, %v", left, err)
			}
			if got := len(w.indexLines()); got != 60 {
				t.Errorf("%d lines in the index", got)
			}
		})
	}
	t.Run("of a newer program", func(t *testing.T) {
		w := newKBWorld(t, 60)
		w.mustComplete()
		var b bytes.Buffer
		gz := gzip.NewWriter(&b)
		fmt.Fprintln(gz, `{"version":2,"for":"x"}`)
		gz.Close()
		if err := os.WriteFile(index(w), b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		if report, err := w.do(); err == nil || report.Outcome != ingest.Failed || !strings.Contains(err.Error(), "version 2") {
			t.Errorf("%s: %v", report.Outcome, err)
		}
	})
	t.Run("breaks off", func(t *testing.T) {
		w := newKBWorld(t, 60)
		w.mustComplete()
		before, err := os.ReadFile(index(w))
		if err != nil {
			t.Fatal(err)
		}
		reset := errors.New("connection reset")
		store := w.store.Store
		w.store.Store = breaksOff{store, reset}
		if report, err := w.do(); !errors.Is(err, reset) || report.Outcome != ingest.Failed {
			t.Errorf("%s: %v: everything would be loaded again", report.Outcome, err)
		}
		w.store.Store = store
		if after, err := os.ReadFile(index(w)); err != nil || !bytes.Equal(before, after) {
			t.Errorf("the index is another one, %v", err)
		}
		w.mustComplete()
		w.wantEntries(60)
	})
	t.Run("cannot be opened", func(t *testing.T) {
		w := newKBWorld(t, 60)
		w.mustComplete()
		down := errors.New("storage is down")
		w.store.Store = openFails{w.store.Store, down}
		if report, err := w.do(); !errors.Is(err, down) || report.Outcome != ingest.Failed {
			t.Errorf("%s: %v: everything would be loaded again", report.Outcome, err)
		}
	})
}

func TestKnowledgeBaseRefused(t *testing.T) {
	w := newKBWorld(t, 10)
	w.knowledge().Refused = true
	for _, status := range []int{http.StatusForbidden, http.StatusOK} { // a 200 may hide a refusal
		w.before = func(rw http.ResponseWriter, _ *http.Request) bool {
			if status == http.StatusOK {
				io.WriteString(rw, "<SIMPLE_RETURN><RESPONSE><DATETIME>2026-11-01T12:00:00Z</DATETIME><CODE>2012</CODE><TEXT>no</TEXT></RESPONSE></SIMPLE_RETURN>")
			}
			return status == http.StatusOK
		}
		report, err := w.do()
		if err == nil || report.Outcome != ingest.Failed || report.Requests != 1 || !strings.Contains(err.Error(), "may not download the KnowledgeBase") {
			t.Errorf("%d: %s after %d requests: %v", status, report.Outcome, report.Requests, err)
		}
	}
	w.before, w.knowledge().Refused, w.knowledge().Size = nil, false, 0
	if _, err := w.do(); err == nil || !strings.Contains(err.Error(), "no QID at all") {
		t.Errorf("an empty KnowledgeBase: %v", err)
	}
}

// Slow answers keep themselves alive by comments.
func TestKeepAlive(t *testing.T) {
	w := newKBWorld(t, 60)
	pauses := 0
	w.knowledge().Pause = func() { pauses++ }
	w.knowledge().WithoutCVSS = true
	w.mustComplete()
	w.wantEntries(60)
	if pauses < 6 {
		t.Errorf("%d pauses", pauses)
	}
	for _, row := range w.dest.rows {
		if row["CVSS_Base_s"] != nil || row["CVSS3_Base_s"] != nil {
			t.Fatal("a score from nowhere")
		}
	}
}

func TestJoin(t *testing.T) {
	w := newKBWorld(t, 500)
	w.mustComplete()
	kb := w.knowledge()
	w.qualys.Subscription.Hosts, w.qualys.Subscription.Detections = 60, 30
	w.dataset, w.joined, w.page = ingest.VM, &ingest.Joined{Dataset: ingest.KB}, 20
	w.dest.keys, w.dest.rows = map[string]int{}, map[string]map[string]any{}
	if report := w.mustComplete(); report.Unjoined != 0 || report.Decoded < 1000 {
		t.Errorf("%+v", report.Counts)
	}
	w.wantEach(time.Time{})
	byQID := map[string]simulator.Entry{}
	for index := range kb.Entries() {
		e, _ := kb.Entry(index, w.clock.Now())
		byQID[strconv.Itoa(e.QID)] = e
	}
	check := func(revised string) {
		t.Helper()
		for _, row := range w.dest.rows {
			e := byQID[row["QID_s"].(string)]
			for name, want := range map[string]string{
				"Title_s": e.Title, "Severity_Level_s": e.Severity, "CVE_ID_s": strings.Join(e.CVEs, ", "),
				"CVSS_Base_s": e.CVSS, "CVSS3_Base_s": e.CVSS3, "Patchable_s": map[bool]string{true: "1", false: "0"}[e.Patchable],
			} {
				if name == "Title_s" {
					want += revised
				}
				if got, _ := row[name].(string); got != want {
					t.Fatalf("QID %d: %s is %q, want %q", e.QID, name, got, want)
				}
			}
		}
	}
	check("")

	// The KnowledgeBase changes; the findings do not: nothing is sent again, and
	// what is new carries the new title.
	now := w.clock.Now()
	for index := range 500 {
		kb.Edit(simulator.Edit{Index: index, At: now, Visible: now})
	}
	w.clock.advance(time.Minute)
	w.dataset = ingest.KB
	w.mustComplete()
	w.dataset = ingest.VM
	w.dest.keys, w.dest.rows = map[string]int{}, map[string]map[string]any{}
	if report := w.mustComplete(); report.Repeated == 0 || report.Decoded > report.Repeated {
		t.Errorf("findings are sent again because their entry has changed: %+v", report.Counts)
	}
	check(", revision 1")
	w.clock.advance(20 * time.Hour)
	w.mustComplete()
	if len(w.dest.rows) == 0 {
		t.Fatal("no host was scanned in 20 hours")
	}
	check(", revision 1")

	// The index of one destination is not joined for another.
	w.target = "dcr-2"
	if report := w.mustComplete(); w.logs.FilterMessageSnippet("not loaded yet").Len() != 1 || report.Unjoined != report.Decoded {
		t.Errorf("%+v", report.Counts)
	}
}

// A list too long for the destination's column is cut between its values, and
// is no dead letter: the entry's own row has it.
func TestJoinOfALongList(t *testing.T) {
	w := newKBWorld(t, 9)
	w.mustComplete()
	w.qualys.Subscription.Hosts, w.qualys.Subscription.Detections = 5, 30
	w.dataset, w.joined, w.dest.limits = ingest.VM, &ingest.Joined{Dataset: ingest.KB}, record.Limits{FieldBytes: 100}
	w.policy = record.Policy{}
	w.dest.keys, w.dest.rows = map[string]int{}, map[string]map[string]any{}
	w.mustComplete()
	long := 0
	for _, row := range w.dest.rows {
		if list, _ := row["CVE_ID_s"].(string); len(list) > 80 {
			for _, cve := range strings.Split(list, ", ") {
				if long++; !regexp.MustCompile(`^CVE-\d{4}-\d{4,5}$`).MatchString(cve) || len(list) > 100 || strings.Contains(fmt.Sprint(row["Cut_s"]), "CVE") {
					t.Fatalf("%q of %v", cve, row)
				}
			}
		}
	}
	if long == 0 {
		t.Error("no long list")
	}
}

// Findings do not wait for the KnowledgeBase.
func TestJoinWithoutIndex(t *testing.T) {
	w := newWorld(t, 10, 10)
	w.joined = &ingest.Joined{Dataset: ingest.KB}
	report := w.mustComplete()
	w.wantEach(time.Time{})
	if report.Unjoined != report.Decoded || w.logs.FilterMessageSnippet("not loaded yet").Len() != 1 {
		t.Errorf("%+v", report.Counts)
	}
	dir := filepath.Join(w.state, "checkpoints", "default")
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "kb.json"), []byte(`{"version":1,"dataset":"kb","index":"g"}`), 0o600), os.Mkdir(filepath.Join(dir, "kb.index"), 0o700),
		os.WriteFile(filepath.Join(dir, "kb.index", "g.gz"), []byte("no gzip"), 0o600)); err != nil {
		t.Fatal(err)
	}
	w.clock.advance(20 * time.Hour)
	w.mustComplete()
	if w.logs.FilterMessageSnippet("cannot be read").Len() != 1 {
		t.Error("nobody was told")
	}
}

// What a killed run has left in the journal is joined, too.
func TestJoinReadsTheJournal(t *testing.T) {
	w := newKBWorld(t, 100)
	w.mustComplete()
	now := w.clock.Now()
	w.knowledge().Edit(simulator.Edit{Index: 5, At: now, Visible: now})
	w.clock.advance(time.Minute)
	w.store.beforeSave = func([]byte) error { return errKilled }
	w.store.beforeCreate = func(string) error { return errKilled }
	if _, err := w.do(); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	w.store.beforeSave, w.store.beforeCreate = nil, nil
	w.qualys.Subscription.Hosts, w.qualys.Subscription.Detections = 30, 30
	w.dataset, w.joined = ingest.VM, &ingest.Joined{Dataset: ingest.KB}
	w.mustComplete()
	e, _ := w.knowledge().Entry(5, w.clock.Now())
	found := false
	for _, row := range w.dest.rows {
		if row["TrackingMethod_s"] != nil && row["QID_s"] == strconv.Itoa(e.QID) {
			if found = true; row["Title_s"] != e.Title {
				t.Errorf("title %v, want %s", row["Title_s"], e.Title)
			}
		}
	}
	if !found {
		t.Error("no detection of the QID")
	}
}

func TestJournalCutByAKill(t *testing.T) {
	w := newKBWorld(t, 50)
	w.mustComplete()
	now := w.clock.Now()
	w.knowledge().Edit(simulator.Edit{Index: 5, At: now, Visible: now})
	w.clock.advance(time.Minute)
	for _, left := range []string{"", `{"version":1,"for":"`, journalHeader, journalHeader + "10005\t2026", journalHeader + journalHeader + "10005\t2026"} {
		if err := os.WriteFile(w.indexPath(".journal"), []byte(left), 0o600); err != nil {
			t.Fatal(err)
		}
		w.mustComplete()
		w.wantEntries(51)
		if got := len(w.indexLines()); got != 50 {
			t.Errorf("%d lines in the index", got)
		}
	}
}

func TestKnowledgeBaseLog(t *testing.T) {
	w := newKBWorld(t, 60)
	r := w.run()
	if report, err := r.Do(context.Background()); err != nil || report.Dataset != "kb" {
		t.Fatal(err)
	}
	pages := w.logs.FilterMessage("page read").All()
	if len(pages) != 2 || pages[0].ContextMap()["QIDs"] != int64(50) {
		t.Errorf("%v", pages)
	}
}
