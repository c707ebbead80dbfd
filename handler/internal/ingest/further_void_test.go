package ingest_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/record"
)

// err999 says, in the end of an answer, that it is not whole.
const err999 = "<WARNING><CODE>999</CODE><TEXT>Internal error: the detections of some hosts are incomplete.</TEXT></WARNING>"

// changing changes the documents of detections. n counts the calls, from 1.
func (w *world) changing(change func(n int, doc string) string) {
	n := 0
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/detection/") {
			return false
		}
		n++
		io.WriteString(rw, change(n, w.answered(rw, r)))
		return true
	}
}

// answered is what Qualys answers, with the time at which it does.
func (w *world) answered(rw http.ResponseWriter, r *http.Request) string {
	answer := httptest.NewRecorder()
	r.Header.Del("Accept-Encoding")
	w.qualys.ServeHTTP(answer, r)
	rw.Header().Set("Date", w.now().UTC().Format(http.TimeFormat))
	return answer.Body.String()
}

// short leaves the first finding of each host, and says so.
func short(doc, warning string) string {
	if !strings.Contains(doc, "<HOST>") {
		return doc
	}
	return strings.Replace(behindFirst.ReplaceAllString(doc, "$1$2"), "</RESPONSE>", warning+"</RESPONSE>", 1)
}

// allCame runs until a window is complete and nobody is isolated: then nothing is missing.
func (w *world) allCame(most int) {
	w.t.Helper()
	for n := 0; ; n++ {
		report, err := w.do()
		if report.Outcome == ingest.Complete && report.IsolatedTotal == 0 {
			if lost := w.lost(); lost > 0 {
				w.t.Errorf("complete, and %d rows are missing, %d repeated", lost, report.Repeated)
			}
			return
		}
		if n == most {
			w.t.Fatalf("after %d runs: %s, %v, isolated %d", n, report.Outcome, err, report.IsolatedTotal)
		}
		time.Sleep(time.Hour)
	}
}

// Answers that are not whole for some calls: the first ones, or just one of them while
// another host is looked for.
func TestFurtherVoidAtEachCall(t *testing.T) {
	for _, hosts := range []int{1, 3, 10} {
		for _, bad := range []int{1, 6, 11, 12, 13, 14, 16, 20} {
			t.Run(fmt.Sprintf("%d hosts, the first %d", hosts, bad), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					w := newVirtualWorld(t, hosts, 8)
					w.page = 1000
					w.changing(func(n int, doc string) string {
						if n <= bad {
							return short(doc, err999)
						}
						return doc
					})
					w.allCame(12)
				})
			})
		}
	}
	for bad := range 20 {
		t.Run(fmt.Sprintf("call %d, beside an ill host", bad), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 30, 4)
				w.page = 7
				ill := fmt.Sprintf("<ID>%d</ID>", w.hostIDs()[9])
				w.changing(func(n int, doc string) string {
					if before, _, has := strings.Cut(doc, ill); has && w.runs < 3 {
						return before + "</WRONG>"
					}
					if n == bad {
						return short(doc, err999)
					}
					return doc
				})
				w.allCame(30)
			})
		})
	}
}

// That more follows is said beside it: so a doubt means what has come.
func TestFurtherDoubtBesideALink(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newVirtualWorld(t, 30, 4)
		healed := w.now().Add(2 * time.Hour)
		w.changing(func(_ int, doc string) string {
			if strings.Contains(doc, "<CODE>1980") && w.now().Before(healed) {
				return short(doc, "<WARNING><TEXT>Internal error: detections of some hosts are incomplete.</TEXT></WARNING>")
			}
			return doc
		})
		w.allCame(12)
	})
}

// A run that leaves a page before its end, as its destination is slow, hears what the end
// says.
func TestFurtherSlowMemberLeavesAVoidPage(t *testing.T) {
	f := newFleet(t, 95, 6, choices[0], choices[0], choices[0])
	f.page = 200
	var first atomic.Bool
	f.before = func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/vm/detection/") || !first.CompareAndSwap(false, true) {
			return false
		}
		answer := httptest.NewRecorder()
		r.Header.Del("Accept-Encoding")
		f.qualys.ServeHTTP(answer, r)
		rw.Header().Set("Date", f.now().UTC().Format(http.TimeFormat))
		io.WriteString(rw, short(answer.Body.String(), err999))
		return true
	}
	calm, others := make(chan struct{}), int32(2)
	f.members[2].dest.before = func(n int, _ record.Batch) error {
		if n > 2 {
			<-calm
		}
		return nil
	}
	reports, errs := f.do(t, func(i int, r *ingest.Run) {
		f.convoy.Log = zap.NewNop()
		if i == 2 {
			r.InFlight, r.Patience, r.Clock = 1, brief, impatient{f.clock, calm}
			return
		}
		r.Ending = func(context.Context, ingest.Report, error) {
			if atomic.AddInt32(&others, -1) == 0 {
				close(calm)
			}
		}
	})
	for i, m := range f.members {
		missing := 0
		for key := range f.wanted(m, time.Time{}) {
			if m.dest.keys[key] == 0 {
				missing++
			}
		}
		if missing > 0 && reports[i].Outcome == ingest.Complete || errs[i] != nil {
			t.Errorf("member %d: %s, %v, %d rows are missing", i, reports[i].Outcome, errs[i], missing)
		}
	}
}

// The last host of all does not come, and the rows of the first are refused.
func TestFurtherRefusedRowsAndTheLastHost(t *testing.T) {
	hostID := regexp.MustCompile(`"HostId_s":"(\d+)"`)
	for _, bad := range []int{2, 30} {
		for name, how := range map[string]slowness{
			"504": func(w http.ResponseWriter, _ *http.Request, _ string, _ int) {
				w.WriteHeader(http.StatusGatewayTimeout)
			},
			"never begins": slownesses["never begins"],
		} {
			t.Run(fmt.Sprintf("%d refused, %s", bad, name), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					w := newVirtualWorld(t, 60, 30)
					w.page, w.budget, w.dest.batch = 1000, 25*time.Minute, 8_000
					ids := w.hostIDs()
					refused := map[string]bool{}
					for _, id := range ids[:bad] {
						refused[fmt.Sprint(id)] = true
					}
					w.dest.before = refusing(hostID, func(id string) bool { return refused[id] })
					w.slow(map[uint64]slowness{ids[59]: how})
					for n := 0; ; n++ {
						report, _ := w.do()
						if report.Outcome == ingest.Complete {
							return
						}
						if n == 20 {
							t.Fatalf("after %d runs: %s: %s", n, report.Outcome, report.Reason)
						}
						time.Sleep(5 * time.Minute)
					}
				})
			})
		}
	}
}

// A destination that is in doubt, and a Qualys that answers nothing but errors: a run
// makes as many calls as it would without the doubt.
func TestFurtherDoubtWhileQualysIsDown(t *testing.T) {
	for _, status := range []int{500, 503, 403, 401, 409} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 60, 30)
				w.budget, w.dest.batch = 25*time.Minute, 8_000
				w.dest.before = func(int, record.Batch) error { return &problem{refused: true} }
				w.do()
				if w.checkpoint().Refused == nil {
					t.Fatal("it is not in doubt")
				}
				calls := 0
				w.before = func(rw http.ResponseWriter, _ *http.Request) bool {
					calls++
					rw.WriteHeader(status)
					return true
				}
				w.do()
				if calls > 60 {
					t.Errorf("got %d calls in a run", calls)
				}
			})
		})
	}
}

// Notices of an end of service, and new elements deep in hosts and findings, keep nothing
// from coming.
func TestFurtherHarmlessNews(t *testing.T) {
	for name, change := range map[string]func(doc string) string{
		"please contact": warning("This API version is deprecated. Please contact Qualys Support or your TAM."),
		"a product":      warning("The Host List VM Detection API v2.0 is deprecated."),
		"no updates":     warning("This version of the API has reached End-of-Support. No updates or fixes will be provided."),
		"an output":      every("</DETECTION>", "<SCRIPT_OUTPUT>x</SCRIPT_OUTPUT></DETECTION>"),
		"a request":      every("</DETECTION>", "<HTTP><REQUEST>GET</REQUEST></HTTP></DETECTION>"),
		"a related host": every("</DETECTION>", "<RELATED><HOST>a</HOST></RELATED></DETECTION>"),
		"a country":      every("<DETECTION_LIST>", "<LOCATION><COUNTRY><CODE>DE</CODE></COUNTRY></LOCATION><DETECTION_LIST>"),
		"an agent":       every("<DETECTION_LIST>", "<AGENT_STATUS><MESSAGE>ok</MESSAGE><ERROR/></AGENT_STATUS><DETECTION_LIST>"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 30, 4)
				w.changing(func(_ int, doc string) string { return change(doc) })
				w.mustComplete()
				if lost := w.lost(); lost > 0 {
					t.Errorf("%d rows are missing", lost)
				}
			})
		})
	}
}

// The KnowledgeBase is listed before it is read: a notice with words that are not known is
// asked behind, there, too.
func TestFurtherNoticesOfTheKnowledgeBase(t *testing.T) {
	for _, text := range []string{"This version of the API has reached End-of-Support. No updates or fixes will be provided.", "This API version is deprecated."} {
		synctest.Test(t, func(t *testing.T) {
			w := newVirtualWorld(t, 1, 1)
			w.page = 40
			change := warning(text)
			w.knowing(100, func(_ int, doc string) string { return change(doc) })
			w.mustComplete()
			w.wantEntries(100)
		})
	}
}

func warning(text string) func(string) string {
	return every("</RESPONSE>", "<WARNING><TEXT>"+text+"</TEXT></WARNING></RESPONSE>")
}

func every(old, now string) func(string) string {
	return func(doc string) string { return strings.ReplaceAll(doc, old, now) }
}
