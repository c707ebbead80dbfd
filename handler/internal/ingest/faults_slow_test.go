package ingest_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/simulator"
)

// A slowness is a way in which the answer for a host takes too long. It serves doc,
// in which the host begins at at.
type slowness func(w http.ResponseWriter, r *http.Request, doc string, at int)

// drip writes a text again and again, every ten seconds: no reader takes it for
// silence.
func drip(w http.ResponseWriter, r *http.Request, text string) {
	for {
		select {
		case <-r.Context().Done():
			return
		case <-time.After(10 * time.Second):
		}
		if _, err := io.WriteString(w, text); err != nil {
			return
		}
	}
}

// inside is a place in the host's document, behind a mark.
func inside(doc string, at int, mark string) int {
	return at + strings.Index(doc[at:], mark) + len(mark)
}

var slownesses = map[string]slowness{
	"drips in a comment": func(w http.ResponseWriter, r *http.Request, doc string, at int) {
		io.WriteString(w, doc[:inside(doc, at, "</ID>")]+"<!-- ")
		drip(w, r, "keep-alive ")
	},
	"drips in a value": func(w http.ResponseWriter, r *http.Request, doc string, at int) {
		io.WriteString(w, doc[:inside(doc, at, "<QID>")])
		drip(w, r, "x")
	},
	"drips between hosts": func(w http.ResponseWriter, r *http.Request, doc string, at int) {
		io.WriteString(w, doc[:at])
		drip(w, r, "\n")
	},
	"never begins": func(_ http.ResponseWriter, r *http.Request, _ string, _ int) {
		<-r.Context().Done()
	},
	"falls silent": func(w http.ResponseWriter, r *http.Request, doc string, at int) {
		io.WriteString(w, doc[:inside(doc, at, "</ID>")])
		<-r.Context().Done()
	},
	"never ends": func(w http.ResponseWriter, r *http.Request, doc string, at int) {
		io.WriteString(w, doc[:inside(doc, at, "</DETECTION>")])
		drip(w, r, strings.Repeat("<DETECTION><QID>5</QID></DETECTION>", 20))
	},
	"fails after 80 % of the budget": func(w http.ResponseWriter, r *http.Request, doc string, at int) {
		select {
		case <-r.Context().Done():
		case <-time.After(20 * time.Minute):
			w.WriteHeader(http.StatusGatewayTimeout)
		}
	},
	"breaks off after 80 % of the budget": func(w http.ResponseWriter, r *http.Request, doc string, at int) {
		io.WriteString(w, doc[:inside(doc, at, "</ID>")])
		for range 20 {
			io.WriteString(w, "<!-- keep-alive -->")
			time.Sleep(time.Minute)
		}
	},
}

// slow makes the answers for some hosts slow.
func (w *world) slow(how map[uint64]slowness) { w.before = w.slowly(how) }

// slowly answers so.
func (w *world) slowly(how map[uint64]slowness) func(rw http.ResponseWriter, r *http.Request) bool {
	return func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/detection/") {
			return false
		}
		answer := httptest.NewRecorder()
		w.qualys.ServeHTTP(answer, r)
		doc := answer.Body.String()
		var first uint64
		at := len(doc)
		for id := range how {
			if i := strings.Index(doc, fmt.Sprintf("<ID>%d</ID>", id)); i >= 0 && i < at {
				first, at = id, strings.LastIndex(doc[:i], "<HOST>")
			}
		}
		if first == 0 {
			return false
		}
		rw.Header().Set("Date", w.now().UTC().Format(http.TimeFormat))
		how[first](rw, r, doc, at)
		return true
	}
}

// ticks lets processes of one tick each work, every five minutes or as soon as the one
// before has ended, until a run completes.
func (w *world) ticks(most int) (runs int, last ingest.Report) {
	w.t.Helper()
	for runs = 1; ; runs++ {
		began := time.Now()
		report, err := w.do()
		if report.Outcome == ingest.Complete {
			return runs, report
		}
		if runs == most {
			w.t.Fatalf("run %d: %s, %v, trouble %+v", runs, report.Outcome, err, w.checkpoint().Trouble)
		}
		time.Sleep(max(0, 5*time.Minute-time.Since(began)))
	}
}

// A host whose answer is slow is no wall: a few processes later it is passed, all
// others have arrived, and when it is well again it arrives, too.
func TestSlowFaults(t *testing.T) {
	t.Parallel()
	m := &matrix{}
	for name, how := range slownesses {
		for _, place := range []int{23, 0, 59} {
			if place != 23 && os.Getenv("FAULTS") != "all" {
				break
			}
			t.Run(fmt.Sprintf("%s, host %d", name, place), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newVirtualWorld(t, 60, 6)
					w.page, w.budget = 16, 25*time.Minute
					ill := w.hostIDs()[place]
					w.slow(map[uint64]slowness{ill: how})
					began := time.Now()
					others := w.findingsBut(ill)
					runs, report := w.ticks(3)
					took := time.Since(began)
					if len(report.Isolated) != 1 || report.Isolated[0].ID != ill {
						t.Fatalf("isolated = %+v, want host %d", report.Isolated, ill)
					}
					w.wantFindings(others)
					w.before = nil
					time.Sleep(24 * time.Hour)
					w.mustComplete()
					l := line{name: "Qualys, vm: " + name, how: fmt.Sprintf("host %d of 60", place+1), outcome: fmt.Sprintf("complete, 1 isolated, in %s", took.Round(time.Second)), runs: runs, retries: int(report.Retries), lost: w.lost(), reason: report.Isolated[0].Reason}
					if l.lost > 0 {
						t.Errorf("%d lost", l.lost)
					}
					m.lines = append(m.lines, l)
				})
			})
		}
	}
	m.log(t)
}

// findingsBut are the findings of all hosts, but for some.
func (w *world) findingsBut(hosts ...uint64) (ids []string) {
	w.qualys.Subscription.Expected(time.Time{}, w.now(), func(h simulator.Host, d simulator.Detection) {
		if !slices.Contains(hosts, h.ID) {
			ids = append(ids, strconv.FormatUint(d.UniqueID, 10))
		}
	})
	return ids
}

// wantFindings checks that findings have arrived, in whatever state.
func (w *world) wantFindings(ids []string) {
	w.t.Helper()
	arrived := map[string]bool{}
	for key := range w.dest.keys {
		id, _, _ := strings.Cut(key, "@")
		arrived[id] = true
	}
	missing := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return arrived[id] })
	if len(missing) > 0 {
		w.t.Errorf("%d of %d findings are missing, such as %s", len(missing), len(ids), missing[0])
	}
}

// A hundred bad hosts of every kind among a thousand, and processes of one tick each:
// the nine hundred arrive, the hundred are named, and tried again.
func TestHundredBadHosts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newVirtualWorld(t, 1000, 2)
		w.page, w.budget = 1000, 25*time.Minute
		kinds := []slowness{
			func(w http.ResponseWriter, _ *http.Request, doc string, at int) { // ill-formed
				io.WriteString(w, doc[:at+30]+"</WRONG>")
			},
			func(w http.ResponseWriter, _ *http.Request, _ string, _ int) {
				w.WriteHeader(http.StatusGatewayTimeout)
			},
			func(w http.ResponseWriter, _ *http.Request, doc string, at int) { // says so itself
				i := inside(doc, at, "</ID>")
				io.WriteString(w, doc[:i]+"<ERROR>not available</ERROR>"+doc[i:])
			},
			func(w http.ResponseWriter, _ *http.Request, doc string, at int) { io.WriteString(w, doc[:at+40]) }, // cut
		}
		for _, name := range []string{"drips in a comment", "drips in a value", "never begins", "falls silent", "never ends", "fails after 80 % of the budget"} {
			kinds = append(kinds, slownesses[name])
		}
		ill := map[uint64]slowness{}
		var ids []uint64
		for n, id := range w.hostIDs() {
			if n%10 == 7 || n >= 500 && n < 505 { // some side by side
				ill[id] = kinds[len(ids)%len(kinds)]
				ids = append(ids, id)
			}
		}
		w.slow(ill)
		began := time.Now()
		others := w.findingsBut(ids...)
		runs, report := w.ticks(100)
		t.Logf("%d bad hosts of 1,000: %d runs, %s", len(ids), runs, time.Since(began).Round(time.Minute))
		if report.IsolatedTotal != len(ids) {
			t.Errorf("isolated = %d, want %d", report.IsolatedTotal, len(ids))
		}
		w.wantFindings(others)
		w.before = nil
		for range 4 {
			time.Sleep(24 * time.Hour)
			w.mustComplete()
		}
		if n, c := w.lost(), w.checkpoint(); n > 0 || len(c.Isolated) > 0 {
			t.Errorf("%d rows lost, %d hosts isolated, want none", n, len(c.Isolated))
		}
	})
}
