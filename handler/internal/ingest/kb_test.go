package ingest_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/ingest"
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

const emptyList = "<KNOWLEDGE_BASE_VULN_LIST_OUTPUT><RESPONSE><DATETIME>2026-11-02T14:00:00Z</DATETIME></RESPONSE></KNOWLEDGE_BASE_VULN_LIST_OUTPUT>"

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
