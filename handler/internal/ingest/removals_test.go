package ingest_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/simulator"
)

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
