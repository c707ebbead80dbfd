package ingest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/record"
)

var _ = context.Background
var _ = url.Values{}

// limitBehind: host "bad" breaks; any ask from behind it is a limit.
func (w *world) limitBehind(bad uint64) {
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/detection/") {
			return false
		}
		if low, _, _ := asks(r); low > bad {
			rw.WriteHeader(409)
			io.WriteString(rw, "<SIMPLE_RETURN><RESPONSE><CODE>1965</CODE><TEXT>for another 23 hours</TEXT></RESPONSE></SIMPLE_RETURN>")
			return true
		}
		answer := httptest.NewRecorder()
		r.Header.Del("Accept-Encoding")
		w.qualys.ServeHTTP(answer, r)
		doc := answer.Body.String()
		if i := strings.Index(doc, fmt.Sprintf("<ID>%d</ID>", bad)); i >= 0 {
			doc = doc[:i+20] + "</WRONG>" + doc[i+20:]
		}
		io.WriteString(rw, doc)
		return true
	}
}

// T1: suspects in Trouble, while batches before them were not accepted.
func TestFurtherRecallPastAbandoned(t *testing.T) {
	w := newWorld(t, 60, 6)
	w.page, w.budget, w.dest.batch = 16, 25*time.Minute, 1_000_000
	ids := w.hostIDs()
	w.limitBehind(ids[20])
	w.dest.before = func(int, record.Batch) error { return fmt.Errorf("403 for good") }
	then := w.expected(time.Time{})
	report, err := w.do()
	c := w.checkpoint()
	t.Logf("run 1: %s %v; next %+v trouble %+v", report.Outcome, err, c.Window, c.Trouble)
	w.before, w.dest.before = nil, nil
	for range 4 {
		w.clock.advance(30 * time.Minute)
		report, err := w.do()
		c := w.checkpoint()
		t.Logf("%s %v isolated %d trouble %v", report.Outcome, err, len(c.Isolated), c.Trouble)
	}
	n := 0
	for key := range then {
		if w.dest.keys[key] == 0 {
			n++
		}
	}
	if n > 0 {
		t.Errorf("%d of %d lost", n, len(then))
	}
}

// T2: settings changed while there are suspects.
func TestFurtherRecallAfterSettingsChange(t *testing.T) {
	w := newWorld(t, 60, 6)
	w.page, w.budget = 16, 25*time.Minute
	ids := w.hostIDs()
	w.limitBehind(ids[20])
	w.filter = url.Values{"show_tags": {"0"}}
	report, err := w.do()
	c := w.checkpoint()
	t.Logf("run 1: %s %v; next %+v trouble %+v", report.Outcome, err, c.Window, c.Trouble)
	w.before, w.filter = nil, nil
	w.dest.keys = map[string]int{} // as in a new target
	then := w.expected(time.Time{})
	for range 4 {
		w.clock.advance(30 * time.Minute)
		w.mustComplete()
	}
	n := 0
	for key := range then {
		if w.dest.keys[key] == 0 {
			n++
		}
	}
	if n > 0 {
		t.Errorf("%d of %d do not come in the window begun again", n, len(then))
	}
}

// T3: as many are isolated as the state keeps.
func TestFurtherMaxIsolated(t *testing.T) {
	w := newWorld(t, 60, 6)
	w.page, w.budget, w.dest.batch = 16, 25*time.Minute, 1_000_000
	ids := w.hostIDs()
	w.ill(true, ids[20])
	then := w.expected(time.Time{})
	c := ingest.Checkpoint{Version: 1, Dataset: "vm"}
	far := w.clock.Now().Add(20 * time.Hour)
	for n := range 10_000 {
		c.Isolated = append(c.Isolated, ingest.Isolated{ID: 1<<40 + uint64(n), Since: w.clock.Now(), Again: far, Reason: "x"})
	}
	doc, _ := json.Marshal(c)
	name := filepath.Join(w.state, "checkpoints", "default", "vm.json")
	os.MkdirAll(filepath.Dir(name), 0o755)
	if err := os.WriteFile(name, doc, 0o644); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		report, err := w.do()
		c = w.checkpoint()
		t.Logf("run %d: %s %v; window %+v, trouble %+v", n, report.Outcome, err, c.Window, c.Trouble)
		w.clock.advance(time.Hour)
	}
	in := map[uint64]bool{}
	for _, i := range c.Isolated {
		in[i.ID] = true
	}
	t.Logf("bad %d isolated %v; next host %d", ids[20], in[ids[20]], ids[21])
	lost := 0
	for key, d := range then {
		_ = d
		if w.dest.keys[key] == 0 {
			lost++
			t.Logf("lost %s", key)
		}
	}
	t.Logf("%d of %d not arrived", lost, len(then))
	if c.Window == nil || c.Window.NextID > ids[20] {
		t.Errorf("the cursor has passed host %d, which has not arrived and is not isolated", ids[20])
	}
}

// T4: the first of the others breaks off behind its host.
func TestFurtherAskForAnother(t *testing.T) {
	w := newWorld(t, 60, 6)
	w.page, w.budget, w.dest.batch = 16, 25*time.Minute, 1_000_000
	ids := w.hostIDs()
	last := ids[len(ids)-1]
	bad := ids[20:24]
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/detection/") {
			return false
		}
		low, high, _ := asks(r)
		answer := httptest.NewRecorder()
		r.Header.Del("Accept-Encoding")
		w.qualys.ServeHTTP(answer, r)
		doc := answer.Body.String()
		for _, id := range bad {
			if i := strings.Index(doc, fmt.Sprintf("<ID>%d</ID>", id)); i >= 0 {
				doc = doc[:i+20] + "</WRONG>" + doc[i+20:]
				io.WriteString(rw, doc)
				return true
			}
		}
		switch {
		case low == last && high == last: // comes, and the document is cut behind it
			doc = doc[:strings.LastIndex(doc, "</HOST>")+len("</HOST>")]
		case low == high || high < 1<<40: // does not come at all
			rw.WriteHeader(504)
			return true
		}
		io.WriteString(rw, doc)
		return true
	}
	broken := w.before
	first := true
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		if low, high, _ := asks(r); strings.HasSuffix(r.URL.Path, "/detection/") && low < bad[0] && high >= bad[0] && first {
			return broken(rw, r)
		}
		return broken(rw, r)
	}
	then := w.expected(time.Time{})
	report, err := w.do()
	c := w.checkpoint()
	t.Logf("run 1: %s %v; window %+v trouble %+v isolated %d; bad %v last %d", report.Outcome, err, c.Window, c.Trouble, len(c.Isolated), bad, last)
	w.before = nil
	for range 4 {
		w.clock.advance(30 * time.Minute)
		w.mustComplete()
	}
	lost := 0
	for key := range then {
		if w.dest.keys[key] == 0 {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d lost", lost, len(then))
	}
}

// T6: every answer has a warning that is not known.
func TestFurtherUnknownWarning(t *testing.T) {
	w := newWorld(t, 30, 3)
	w.page, w.budget = 16, 25*time.Minute
	w.spoil(func(doc string) (string, bool) {
		i := strings.Index(doc, "</DATETIME>") + len("</DATETIME>")
		if strings.Contains(doc, "</HOST_LIST>") {
			i = strings.Index(doc, "</HOST_LIST>") + len("</HOST_LIST>")
		}
		return doc[:i] + "<WARNING><TEXT>Please note our new terms of use</TEXT></WARNING>" + doc[i:], true
	})
	for n := range 4 {
		report, err := w.do()
		c := w.checkpoint()
		t.Logf("run %d: %s isolated %d requests %d trouble %+v\n %v", n, report.Outcome, len(c.Isolated), report.Requests, c.Trouble, err)
		w.clock.advance(time.Hour)
		if len(c.Isolated) > 0 {
			t.Errorf("isolated: %d, e.g. %+v; hosts end with %d", len(c.Isolated), c.Isolated[0], w.hostIDs()[29])
			break
		}
	}
}
