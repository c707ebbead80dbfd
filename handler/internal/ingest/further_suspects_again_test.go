package ingest_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/simulator"
)

// A window that holds only hosts whose answers hang, or drip.
func TestFurtherOnlySlowHosts(t *testing.T) {
	for _, name := range []string{"drips in a comment", "never begins", "never ends"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 60, 3)
				w.page, w.budget = 16, 25*time.Minute
				w.mustComplete()
				time.Sleep(time.Hour)
				for n := range 5 {
					w.qualys.Subscription.Rescan(20+n, w.now().Add(-10*time.Minute))
				}
				began := w.now()
				w.before = func(rw http.ResponseWriter, r *http.Request) bool {
					how := map[uint64]slowness{} // all of the window, and whoever is processed later
					w.qualys.Subscription.Expected(began.Add(-2*time.Hour), w.now(), func(h simulator.Host, _ simulator.Detection) {
						how[h.ID] = slownesses[name]
					})
					return w.slowly(how)(rw, r)
				}
				var reasons []string
				for n := range 36 {
					r, err := w.do()
					if r.Outcome == ingest.Complete {
						t.Logf("complete after %d runs, %d isolated", n+1, r.IsolatedTotal)
						return
					}
					reasons = append(reasons, fmt.Sprintf("%s %.160v", r.Outcome, err))
					time.Sleep(5 * time.Minute)
				}
				t.Errorf("a day of runs, and the window is open; isolated %d\n%s", len(w.checkpoint().Isolated), strings.Join(reasons[len(reasons)-3:], "\n"))
			})
		})
	}
}

// A window that holds hosts that hang, with one healthy one.
func TestFurtherSlowHostsAndAHealthyOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVirtualWorld(t, 60, 3)
		w.page, w.budget = 16, 25*time.Minute
		w.mustComplete()
		hosts := w.hostIDs()
		time.Sleep(time.Hour)
		how := map[uint64]slowness{}
		for n := range 16 {
			w.qualys.Subscription.Rescan(20+n, w.now().Add(-10*time.Minute))
			if n != 6 {
				how[hosts[20+n]] = slownesses["never begins"]
			}
		}
		w.slow(how)
		for n := range 72 {
			r, err := w.do()
			if n%8 == 0 || r.Outcome == ingest.Complete {
				t.Logf("%d %s %d isolated %.200v", n, r.Outcome, r.IsolatedTotal, err)
			}
			if r.Outcome == ingest.Complete {
				return
			}
			time.Sleep(time.Hour)
		}
		t.Errorf("window open")
	})
}

// Hosts that break off in a window that holds just them, and are well in any other.
func TestFurtherOnlyIllInTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVirtualWorld(t, 60, 3)
		w.page, w.budget = 16, 25*time.Minute
		w.mustComplete()
		time.Sleep(time.Hour)
		for n := range 4 {
			w.qualys.Subscription.Rescan(20+n, w.now().Add(-10*time.Minute))
		}
		w.before = func(rw http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/detection/") || !r.URL.Query().Has("vm_processed_after") {
				return false
			}
			answer := httptest.NewRecorder()
			r.Header.Del("Accept-Encoding")
			w.qualys.ServeHTTP(answer, r)
			if strings.Contains(answer.Body.String(), "<HOST>") {
				rw.WriteHeader(504)
				return true
			}
			io.WriteString(rw, answer.Body.String())
			return true
		}
		for n := range 24 {
			r, err := w.do()
			if r.Outcome == ingest.Complete {
				t.Logf("complete after %d runs, %d isolated", n+1, r.IsolatedTotal)
				return
			}
			if n > 20 {
				t.Logf("%s %.300v", r.Outcome, err)
			}
			time.Sleep(time.Hour)
		}
		t.Error("a day of runs, and the window is open")
	})
}

// Neighbours that break off within their rows, the list of ids fails, and a healthy host of the
// window comes behind them.
func TestFurtherPartOfASuspect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVirtualWorld(t, 60, 6)
		w.page, w.budget, w.dest.batch = 16, 25*time.Minute, 1_000_000
		w.mustComplete()
		w.dest.rows = map[string]map[string]any{}
		hosts := w.hostIDs()
		time.Sleep(time.Hour)
		ill := map[uint64]bool{}
		for n := range 5 {
			w.qualys.Subscription.Rescan(20+n, w.now().Add(-10*time.Minute))
			if n < 4 {
				ill[hosts[20+n]] = true
			}
		}
		w.qualys.Subscription.Rescan(10, w.now().Add(-10*time.Minute))
		w.before = func(rw http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "/fo/asset/host/") {
				rw.WriteHeader(504)
				return true
			}
			if !strings.HasSuffix(r.URL.Path, "/detection/") {
				return false
			}
			answer := httptest.NewRecorder()
			r.Header.Del("Accept-Encoding")
			w.qualys.ServeHTTP(answer, r)
			doc := answer.Body.String()
			for id := range ill {
				if i := strings.Index(doc, fmt.Sprintf("<ID>%d</ID>", id)); i >= 0 {
					e := i + strings.Index(doc[i:], "</HOST>") - 17
					doc = doc[:e] + "</WRONG>" + doc[e:]
				}
			}
			rw.Header().Set("Date", w.now().UTC().Format(http.TimeFormat))
			io.WriteString(rw, doc)
			return true
		}
		for range 10 {
			r, err := w.do()
			rows := 0
			for _, row := range w.dest.rows {
				if id := fmt.Sprint(row["HostId_s"]); ill[parse(id)] {
					rows++
				}
			}
			t.Logf("%s %d isolated %.200v; rows of those that are ill: %d", r.Outcome, r.IsolatedTotal, err, rows)
			if r.Outcome == ingest.Complete {
				if rows > 0 {
					t.Errorf("%d rows", rows)
				}
				return
			}
			time.Sleep(time.Hour)
		}
	})
}

func parse(s string) (n uint64) { fmt.Sscan(s, &n); return n }

// A list with a gap, and behind it a warning that drips.
func TestFurtherWarningThatDrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVirtualWorld(t, 20, 3)
		w.page, w.budget = 1000, 25*time.Minute
		first := true
		w.before = func(rw http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/detection/") || !first {
				return false
			}
			first = false
			doc := withoutFirst(w.answered(rw, r))
			list, _, _ := strings.Cut(doc, "</RESPONSE>")
			io.WriteString(rw, list+"<WARNING><CODE>999</CODE><TEXT>Internal error: a host is missing")
			drip(rw, r, ".")
			return true
		}
		w.allCame(10)
	})
}
