package ingest_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/simulator"
)

// firstFinding matches what a host has behind its first finding.
var behindFirst = regexp.MustCompile(`(?s)(</DETECTION>).*?(</DETECTION_LIST>)`)

// An answer that says, in its end, that it is not whole never closes a window: whether it
// is one time so or for hours, and whether more follows or not.
func TestDoubtfulAnswers(t *testing.T) {
	const internal = "<WARNING><CODE>999</CODE><TEXT>Internal error: the detections of some hosts are incomplete.</TEXT></WARNING>"
	const unknown = "<WARNING><TEXT>Scan data of some hosts are being rebuilt.</TEXT></WARNING>"
	for name, warning := range map[string]string{"a code of an error": internal, "a text that is not known": unknown} {
		for _, page := range []int{7, 100} {
			t.Run(fmt.Sprintf("%s, pages of %d", name, page), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					w := newVirtualWorld(t, 30, 4)
					w.page = page
					w.before = func(rw http.ResponseWriter, r *http.Request) bool {
						answer := httptest.NewRecorder()
						w.qualys.ServeHTTP(answer, r)
						doc := answer.Body.String()
						if strings.HasSuffix(r.URL.Path, "/detection/") && strings.Contains(doc, "<HOST>") && !strings.Contains(doc, "<CODE>1980") {
							doc = behindFirst.ReplaceAllString(doc, "$1$2")
							doc = strings.Replace(doc, "</RESPONSE>", warning+"</RESPONSE>", 1)
						}
						rw.Header().Set("Date", w.now().UTC().Format(http.TimeFormat))
						io.WriteString(rw, doc)
						return true
					}
					all := w.findingsBut()
					for n := range 6 {
						if report, err := w.do(); report.Outcome == ingest.Complete && report.IsolatedTotal == 0 {
							t.Fatalf("run %d is complete, %v", n, err)
						}
						time.Sleep(5 * time.Minute)
					}
					sent := 0
					for _, n := range w.dest.keys {
						sent += n
					}
					if sent > 4*len(all) {
						t.Errorf("%d rows were sent, of %d: with each run again", sent, len(all))
					}
					w.wantHealed()
					w.wantFindings(all)
				})
			})
		}
	}
}

// Hosts whose rows are all refused, then one whose answer does not come: the others
// arrive.
func TestRefusedRowsAndAnIllHost(t *testing.T) {
	hostID := regexp.MustCompile(`"HostId_s":"(\d+)"`)
	ways := map[string]slowness{
		"ill-formed": func(w http.ResponseWriter, _ *http.Request, doc string, at int) {
			io.WriteString(w, doc[:at]+"</WRONG>"+doc[at:])
		},
		"504": func(w http.ResponseWriter, _ *http.Request, _ string, _ int) {
			w.WriteHeader(http.StatusGatewayTimeout)
		},
	}
	for _, name := range []string{"drips in a comment", "never begins"} {
		ways[name] = slownesses[name]
	}
	for name, how := range ways {
		for _, ill := range []int{2, 9} {
			t.Run(fmt.Sprintf("%s, host %d", name, ill), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					w := newVirtualWorld(t, 60, 30)
					w.page, w.budget, w.dest.batch = 60, 25*time.Minute, 8_000
					ids := w.hostIDs()
					w.dest.before = refusing(hostID, func(id string) bool { return id == fmt.Sprint(ids[0]) || id == fmt.Sprint(ids[1]) })
					w.slow(map[uint64]slowness{ids[ill]: how})
					others := w.findingsBut(ids[0], ids[1], ids[ill])
					runs := 0
					for report, _ := w.do(); report.Outcome != ingest.Complete; report, _ = w.do() {
						if runs++; runs == 20 {
							t.Fatalf("after %d runs: %s: %s", runs, report.Outcome, report.Reason)
						}
						time.Sleep(5 * time.Minute)
					}
					w.wantFindings(others)
				})
			})
		}
	}
}

// refusing refuses batches with rows of which a mark is bad.
func refusing(mark *regexp.Regexp, bad func(mark string) bool) func(int, record.Batch) error {
	return func(_ int, b record.Batch) error {
		for _, m := range mark.FindAllSubmatch(b.Body, -1) {
			if bad(string(m[1])) {
				return &problem{refused: true}
			}
		}
		return nil
	}
}

// Many hosts in a row that are refused, with small pages.
func TestManyRefusedHostsOnSmallPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 400, 2)
	w.page, w.dest.batch = 10, 8_000
	hostID := regexp.MustCompile(`"HostId_s":"(\d+)"`)
	bad := map[string]bool{}
	for _, id := range w.hostIDs()[:150] {
		bad[fmt.Sprint(id)] = true
	}
	w.dest.before = refusing(hostID, func(id string) bool { return bad[id] })
	runs := 0
	for report, _ := w.do(); report.Outcome != ingest.Complete; report, _ = w.do() {
		if runs++; runs == 12 {
			t.Fatalf("after %d runs: %s: %s", runs, report.Outcome, report.Reason)
		}
		w.clock.advance(5 * time.Minute)
	}
}

// Of each host just the first finding is refused, and two hosts whole.
func TestFirstRowsThatAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 60, 30)
	w.dest.batch = 8_000
	key := regexp.MustCompile(`"UniqueVulnId_s":"(\d+)"`)
	first, ids := map[string]bool{}, w.hostIDs()
	for _, id := range ids {
		first[fmt.Sprint(id*10_000)] = true
	}
	w.dest.before = refusing(key, func(id string) bool {
		return first[id] || strings.HasPrefix(id, fmt.Sprint(ids[0])) || strings.HasPrefix(id, fmt.Sprint(ids[1]))
	})
	runs := 0
	for report, _ := w.do(); report.Outcome != ingest.Complete; report, _ = w.do() {
		if runs++; runs == 12 {
			t.Fatalf("after %d runs: %s: %s", runs, report.Outcome, report.Reason)
		}
		w.clock.advance(5 * time.Minute)
	}
}

// What is asked beside the pages may be slow: the window closes all the same.
func TestSlowAnswersBesideThePages(t *testing.T) {
	for name, how := range map[string]func(rw http.ResponseWriter, r *http.Request){
		"drips":        func(rw http.ResponseWriter, r *http.Request) { drip(rw, r, " ") },
		"never begins": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
	} {
		t.Run("what is gone, "+name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 1, 1)
				w.qualys.Subscription.Knowledge = &simulator.Knowledge{Seed: 5, Size: 100}
				w.dataset, w.refresh, w.budget = ingest.KB, 24*time.Hour, 25*time.Minute
				w.mustComplete()
				at := w.now()
				w.qualys.Subscription.Knowledge.Edit(simulator.Edit{Index: 50, Kind: simulator.Removed, At: at, Visible: at})
				time.Sleep(25 * time.Hour)
				w.before = func(rw http.ResponseWriter, r *http.Request) bool {
					if r.URL.Query().Has("ids") {
						how(rw, r)
					}
					return r.URL.Query().Has("ids")
				}
				for n := 0; ; n++ {
					report, _ := w.do()
					if report.Outcome == ingest.Complete {
						break
					}
					if n == 6 {
						t.Fatalf("after %d runs: %s: %s", n, report.Outcome, report.Reason)
					}
					time.Sleep(5 * time.Minute)
				}
			})
		})
		t.Run("a witness, "+name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 1, 1)
				w.mustComplete()
				time.Sleep(time.Hour)
				w.qualys.Subscription.Purge(0, w.now())
				w.before = func(rw http.ResponseWriter, r *http.Request) bool {
					if strings.HasSuffix(r.URL.Path, "/asset/host/") {
						how(rw, r)
						return true
					}
					return false
				}
				began := w.now()
				w.mustComplete()
				if took := w.now().Sub(began); took > 2*time.Minute {
					t.Errorf("took %s", took)
				}
			})
		})
	}
}
