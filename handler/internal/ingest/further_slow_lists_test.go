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

// The list of ids is slow while it is needed to find an ill host.
func TestFurtherSlowIDList(t *testing.T) {
	for name, answer := range map[string]func(w http.ResponseWriter, r *http.Request){
		"never begins": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"drips blanks": func(w http.ResponseWriter, r *http.Request) { drip(w, r, "\n") },
		"drips in a set": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "<HOST_LIST_OUTPUT><RESPONSE><DATETIME>2026-11-01T00:00:00Z</DATETIME><ID_SET>")
			drip(w, r, "<!-- x -->")
		},
		"drips ids": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "<HOST_LIST_OUTPUT><RESPONSE><DATETIME>2026-11-01T00:00:00Z</DATETIME><ID_SET>")
			drip(w, r, "<ID>5</ID>")
		},
		"drips in an id": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "<HOST_LIST_OUTPUT><RESPONSE><DATETIME>2026-11-01T00:00:00Z</DATETIME><ID_SET><ID>")
			drip(w, r, "0")
		},
		"504 after 20 minutes": func(w http.ResponseWriter, r *http.Request) {
			slownesses["fails after 80 % of the budget"](w, r, "", 0)
		},
	} {
		for _, kind := range []string{"ill-formed", "drips in a comment"}[len(name)%2:][:1] {
			t.Run(name+", host "+kind, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					w := newVirtualWorld(t, 60, 3)
					w.page, w.budget = 16, 25*time.Minute
					ill := w.hostIDs()[23]
					how := slownesses[kind]
					if how == nil {
						how = func(w http.ResponseWriter, _ *http.Request, doc string, at int) {
							io.WriteString(w, doc[:at+30]+"</WRONG>")
						}
					}
					w.slow(map[uint64]slowness{ill: how})
					slow := w.before
					w.before = func(rw http.ResponseWriter, r *http.Request) bool {
						if strings.HasSuffix(r.URL.Path, "/asset/host/") {
							answer(rw, r)
							return true
						}
						return slow(rw, r)
					}
					others := w.findingsBut(ill)
					runs, report := w.ticks(8)
					if report.IsolatedTotal != 1 || report.Isolated[0].ID != ill {
						t.Errorf("isolated = %+v after %d runs, want host %d", report.Isolated, runs, ill)
					}
					w.wantFindings(others)
					w.wantHealed()
				})
			})
		}
	}
}

// slowEntry makes answers slow that hold an entry of the KnowledgeBase.
func (w *world) slowEntry(qid int, how slowness) {
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		answer := httptest.NewRecorder()
		w.qualys.ServeHTTP(answer, r)
		doc := answer.Body.String()
		i := strings.Index(doc, fmt.Sprintf("<QID>%d</QID>", qid))
		if r.URL.Query().Get("details") != "All" || i < 0 {
			return false
		}
		rw.Header().Set("Date", w.now().UTC().Format(http.TimeFormat))
		how(rw, r, doc, strings.LastIndex(doc[:i], "<VULN>"))
		return true
	}
}

// The KnowledgeBase has slow entries, and a slow list of them, too.
func TestFurtherSlowKnowledgeBase(t *testing.T) {
	for name, how := range map[string]slowness{
		"drips in a comment":  dripsAt("</QID>", "<!-- ", "x "),
		"drips in a value":    dripsAt("<QID>", "", "x"),
		"drips in CDATA":      dripsAt("</QID>", "<TITLE><![CDATA[", "x"),
		"drips in a CVE list": dripsAt("</QID>", "<CVE_LIST>", "<CVE><ID>CVE-1</ID></CVE>"),
		"drips between":       dripsAt("", "", "\n"),
		"never begins":        func(_ http.ResponseWriter, r *http.Request, _ string, _ int) { <-r.Context().Done() },
		"falls silent": func(w http.ResponseWriter, r *http.Request, doc string, at int) {
			io.WriteString(w, doc[:at+20])
			<-r.Context().Done()
		},
		"504 after 20 minutes": slownesses["fails after 80 % of the budget"],
	} {
		for _, place := range []int{0, 70, 149}[len(name)%3:][:1] {
			t.Run(fmt.Sprintf("%s, entry %d", name, place), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					w := newVirtualWorld(t, 1, 1)
					w.qualys.Subscription.Knowledge = &simulator.Knowledge{Seed: 3, Size: 150}
					w.dataset, w.page, w.budget = ingest.KB, 50, 25*time.Minute
					ill := w.knowledge().QID(place)
					w.slowEntry(ill, how)
					runs, report := w.ticks(4)
					if report.IsolatedTotal != 1 || report.Isolated[0].ID != uint64(ill) || w.lost() > 1 {
						t.Errorf("isolated = %+v, %d missing after %d runs; want QID %d", report.Isolated, w.lost(), runs, ill)
					}
					w.wantHealed()
				})
			})
		}
	}
	for name, answer := range map[string]func(w http.ResponseWriter, r *http.Request){
		"never begins": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"drips":        func(w http.ResponseWriter, r *http.Request) { drip(w, r, "\n") },
		"drips ids": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "<KNOWLEDGE_BASE_VULN_LIST_OUTPUT><RESPONSE><DATETIME>2026-11-01T00:00:00Z</DATETIME><ID_SET>")
			drip(w, r, "<ID>5</ID>")
		},
	} {
		t.Run("the list "+name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 1, 1)
				w.qualys.Subscription.Knowledge = &simulator.Knowledge{Seed: 3, Size: 150}
				w.dataset, w.page, w.budget = ingest.KB, 50, 25*time.Minute
				w.before = func(rw http.ResponseWriter, r *http.Request) bool {
					if r.URL.Query().Get("details") != "None" {
						return false
					}
					rw.Header().Set("Date", w.now().UTC().Format(http.TimeFormat))
					answer(rw, r)
					return true
				}
				for n := range 6 {
					report, err := w.do()
					if report.IsolatedTotal > 0 || report.Ended.Sub(report.Started) > w.budget+3*time.Minute {
						t.Errorf("run %d: got %s in %s, isolated %d, such as QID %d: %s; want none within its budget", n+1, report.Outcome, report.Ended.Sub(report.Started), report.IsolatedTotal, report.Isolated[0].ID, report.Isolated[0].Reason)
						break
					}
					if n == 5 && report.Outcome != ingest.Complete && err == nil && report.Stalled < 3 {
						t.Errorf("got %s, %q, stalled %d; want it told", report.Outcome, report.Reason, report.Stalled)
					}
					time.Sleep(5 * time.Minute)
				}
				w.wantHealed()
			})
		})
	}
}
