package ingest_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"qualys-sentinel/handler/internal/ingest"
)

func replaced(old, new string) func(string) string {
	return func(doc string) string { return strings.Replace(doc, old, new, 1) }
}

// withoutFirst leaves out the first host of an answer.
func withoutFirst(doc string) string {
	from, to := strings.Index(doc, "<HOST>"), strings.Index(doc, "</HOST>")
	if from < 0 {
		return doc
	}
	return doc[:from] + doc[to+len("</HOST>"):]
}

// Each answer of detections is void.
func TestFurtherStandingVoid(t *testing.T) {
	for name, sign := range map[string]func(string) string{
		"element behind the list": replaced("</RESPONSE>", "<STATUS>partial</STATUS></RESPONSE>"),
		"attribute":               replaced("<RESPONSE>", `<RESPONSE version="6">`),
		"error 999":               replaced("</RESPONSE>", err999+"</RESPONSE>"),
		"a notice":                replaced("</RESPONSE>", "<WARNING><TEXT>Qualys platform maintenance is scheduled for 5 December 2026.</TEXT></WARNING></RESPONSE>"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 60, 4)
				w.page = 20
				calls, limited := 0, 0
				w.before = func(rw http.ResponseWriter, r *http.Request) bool {
					if !strings.HasSuffix(r.URL.Path, "/detection/") {
						return false
					}
					answer := httptest.NewRecorder()
					r.Header.Del("Accept-Encoding")
					w.qualys.ServeHTTP(answer, r)
					calls++
					for k, v := range answer.Header() {
						rw.Header()[k] = v
					}
					doc := answer.Body.String()
					if answer.Code == http.StatusOK {
						doc = sign(doc)
					} else {
						limited++
					}
					rw.WriteHeader(answer.Code)
					io.WriteString(rw, doc)
					return true
				}
				for range 3 {
					calls, limited = 0, 0
					r, err := w.do()
					if r.Outcome != ingest.Failed || limited > 0 || calls > 100 {
						t.Errorf("%s, error %v, %d calls, %d of them refused for the limit: %.120s", r.Outcome, err, calls, limited, r.Reason)
					}
					time.Sleep(2 * time.Hour)
				}
			})
		})
	}
}

// The first host is left out, and the answer says that something is wrong.
func TestFurtherGapsAndASign(t *testing.T) {
	const simple = "<SIMPLE_RETURN><RESPONSE><DATETIME>2026-11-01T12:00:00Z</DATETIME><CODE>999</CODE><TEXT>Internal error</TEXT></RESPONSE></SIMPLE_RETURN>"
	cut := func(at string, sign func(string) string) func(string) string {
		return func(doc string) string { before, _, _ := strings.Cut(sign(doc), at); return before }
	}
	inLast := func(in string) func(string) string {
		return func(doc string) string {
			i := strings.LastIndex(doc, "</HOST>")
			return doc[:i] + in + doc[i:]
		}
	}
	link := regexp.MustCompile(`(?s)<WARNING>.*?(<URL>.*?</URL>)\s*</WARNING>`)
	warns := func(said string) func(string) string { // in place of what says that more follows
		return func(doc string) string { return link.ReplaceAllString(doc, "<WARNING>"+said+"</WARNING>") }
	}
	behind := func(said string) func(string) string {
		return replaced("</RESPONSE>", "<WARNING>"+said+"</WARNING></RESPONSE>")
	}
	for name, sign := range map[string]func(string) string{
		// a) a warning was read, and something else fails
		"error, then cut off":            cut("</RESPONSE>", replaced("</RESPONSE>", err999+"</RESPONSE>")),
		"error in front, then cut off":   cut("</HOST_LIST>", replaced("<HOST_LIST>", err999+"<HOST_LIST>")),
		"unknown in front, then cut off": cut("</HOST_LIST>", replaced("<HOST_LIST>", rebuilt+"<HOST_LIST>")),
		"error in front, then bad host": func(doc string) string {
			return inLast("<ERROR>busy</ERROR>")(replaced("<HOST_LIST>", err999+"<HOST_LIST>")(doc))
		},
		"half an error": cut("</WARNING>", replaced("</RESPONSE>", err999+"</RESPONSE>")),
		// b) behind the root
		"document behind the root": func(doc string) string { return doc + simple },
		"text behind the root":     func(doc string) string { return doc + "Internal error: some hosts were left out" },
		// c) in a host
		"document in a host": inLast(simple),
		// d) the warning's own words
		"999 and a link":                warns("<CODE>999</CODE><TEXT>Internal error: some hosts were left out.</TEXT>$1"),
		"1965 and a link":               warns("<CODE>1965</CODE><TEXT>Some hosts were left out.</TEXT>$1"),
		"words and a link":              warns("<TEXT>Internal error: some hosts were left out.</TEXT>$1"),
		"words, and no link":            warns("<TEXT>Internal error: some hosts were left out.</TEXT>"),
		"999 and record limit exceeded": behind("<CODE>999</CODE><TEXT>Internal error: some hosts were left out; record limit exceeded.</TEXT>"),
		"1980 and other words":          behind("<CODE>1980</CODE><TEXT>Internal error: some hosts were left out.</TEXT>"),
		"deprecated, and a part":        behind("<TEXT>This API version is deprecated: what you get is but a part of your machines.</TEXT>"),
		// e) parts that are passed over
		"attribute of the root": replaced("<HOST_LIST_VM_DETECTION_OUTPUT>", `<HOST_LIST_VM_DETECTION_OUTPUT xml:partial="true">`),
		"request":               replaced("</RESPONSE>", "</RESPONSE><REQUEST><POST_DATA>Internal error: some hosts were left out</POST_DATA></REQUEST>"),
	} {
		for _, page := range []int{20, 1000} {
			t.Run(fmt.Sprintf("%s, pages of %d", name, page), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newVirtualWorld(t, 60, 4)
					w.page = page
					told := false
					w.changing(func(n int, doc string) string {
						if n > 1 {
							return doc
						}
						left := withoutFirst(doc)
						doc = sign(left)
						told = doc != left
						return doc
					})
					_, _ = w.do()
					if !told {
						t.Skip("the last page has no link")
					}
					w.before = nil
					time.Sleep(time.Hour)
					w.allCame(40)
				})
			})
		}
	}
}

// The same where the run ends while the list is read.
func TestFurtherEndBehindASign(t *testing.T) {
	for name, sign := range map[string]string{"error": err999, "unknown": rebuilt} {
		for _, how := range []string{"stop", "kill"} {
			t.Run(name+", "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newVirtualWorld(t, 60, 8)
					w.page, w.dest.batch = 1000, 8000
					ctx, stop := context.WithCancel(t.Context())
					defer stop()
					kill, revive := w.killable()
					w.changing(func(n int, doc string) string {
						if n > 1 {
							return doc
						}
						end := map[string]func(){"stop": stop, "kill": kill}[how]
						time.AfterFunc(30*time.Second, end)
						return replaced("<HOST_LIST>", sign+"<HOST_LIST>")(withoutFirst(doc))
					})
					w.endsLate()
					_, _ = w.finish(ctx, w.run())
					time.Sleep(5 * time.Minute)
					revive()
					w.before = nil
					w.allCame(12)
				})
			})
		}
	}
}

// R2d: what shall show that hosts follow is an answer with hosts that do not, or a void one.
func TestFurtherDoubtDispelledByTheWrongAnswer(t *testing.T) {
	for name, second := range map[string]string{"the same again": rebuilt, "void": err999} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 60, 4)
				w.page = 1000
				first := ""
				w.changing(func(n int, doc string) string {
					switch n {
					case 1:
						first = withoutFirst(doc)
						return replaced("</RESPONSE>", rebuilt+"</RESPONSE>")(first)
					case 2:
						return replaced("</RESPONSE>", second+"</RESPONSE>")(first)
					}
					return doc
				})
				_, _ = w.do()
				w.before = nil
				time.Sleep(time.Hour)
				w.allCame(12)
			})
		})
	}
}

// Each answer for what was processed since is void, those for everything are well.
func TestFurtherStandingVoidOfAWindow(t *testing.T) {
	hostList := regexp.MustCompile(`(?s)<HOST_LIST>.*</HOST_LIST>`)
	for name, sign := range map[string]func(string) string{
		"a notice of a parameter": replaced("</RESPONSE>", "<WARNING><TEXT>Parameter vm_processed_after: see the release notes of December 2026.</TEXT></WARNING></RESPONSE>"),
		"error 999 and no host": func(doc string) string {
			return replaced("</RESPONSE>", err999+"</RESPONSE>")(hostList.ReplaceAllString(doc, ""))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 60, 3)
				w.page, w.budget = 16, 25*time.Minute
				w.mustComplete()
				hosts := w.hostIDs()
				time.Sleep(time.Hour)
				for n := range 30 {
					w.qualys.Subscription.Rescan(20+n, w.now().Add(-10*time.Minute))
				}
				calls := 0
				w.before = func(rw http.ResponseWriter, r *http.Request) bool {
					if !strings.HasSuffix(r.URL.Path, "/detection/") {
						return false
					}
					answer := httptest.NewRecorder()
					r.Header.Del("Accept-Encoding")
					w.qualys.ServeHTTP(answer, r)
					calls++
					doc := answer.Body.String()
					for k, v := range answer.Header() {
						rw.Header()[k] = v
					}
					if answer.Code == http.StatusOK && r.URL.Query().Has("vm_processed_after") {
						doc = sign(doc)
					}
					rw.WriteHeader(answer.Code)
					io.WriteString(rw, doc)
					return true
				}
				for n := range 3 {
					calls = 0
					r, _ := w.do()
					if calls > 100 {
						t.Errorf("run %d: %d calls: %s %.100s", n, calls, r.Outcome, r.Reason)
					}
					c := w.checkpoint()
					if c.Window != nil && c.Window.After == nil {
						t.Errorf("run %d: the window of an hour has become one of everything", n)
					}
					for _, i := range c.Isolated {
						if !slices.Contains(hosts, i.ID) {
							t.Errorf("run %d: isolated %d, which is no host", n, i.ID)
							break
						}
					}
					time.Sleep(2 * time.Hour)
				}
			})
		})
	}
}
