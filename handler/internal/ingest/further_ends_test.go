package ingest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/record"
)

// What the tests of this file have in common: an answer has said that it is not whole, and
// then something else ends the run. What was sent of it must not count in the next.

const rebuilt = "<WARNING><TEXT>Scan data of some hosts are being rebuilt.</TEXT></WARNING>"

// The destination, or the state, fails once behind it.
func TestFurtherFaultBehindVoid(t *testing.T) {
	for _, how := range []string{"destination", "a save", "a stop", "a panic"} {
		for _, page := range []int{20, 30} {
			t.Run(fmt.Sprintf("%s, pages of %d", how, page), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					w := newVirtualWorld(t, 60, 8)
					w.page, w.dest.batch = page, 8000
					var behind, failed atomic.Bool
					ctx, stop := context.WithCancel(t.Context())
					defer stop()
					w.dest.before = func(int, record.Batch) error {
						switch {
						case !behind.Load() || w.runs > 1:
						case how == "destination":
							return &problem{}
						case how == "a panic":
							panic("of a test")
						}
						return nil
					}
					w.store.beforeSave = func([]byte) error {
						if behind.Load() && w.runs == 1 && how == "a save" && failed.CompareAndSwap(false, true) {
							return errors.New("of a test")
						}
						return nil
					}
					w.changing(func(n int, doc string) string {
						if n == 2 {
							return short(doc, err999)
						}
						behind.Store(n > 2)
						if how == "a stop" && n > 2 && w.runs == 1 {
							stop()
						}
						return doc
					})
					_, _ = w.finish(ctx, w.run())
					time.Sleep(time.Hour)
					w.allCame(12)
				})
			})
		}
	}
}

// The process is killed while it reads the page again: with batches on their way when the
// end of the answer came, or with all of them settled.
func TestFurtherKilledBehindVoid(t *testing.T) {
	for _, settled := range []bool{false, true} {
		for _, at := range []int{2, 3} {
			for _, page := range []int{20, 1000} {
				t.Run(fmt.Sprintf("settled %v, at call %d, pages of %d", settled, at, page), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						w := newVirtualWorld(t, 60, 8)
						w.page, w.dest.batch = page, 8000
						kill, revive := w.killable()
						w.changing(func(n int, doc string) string {
							switch {
							case n == at && w.runs == 1:
								kill()
								time.Sleep(time.Second)
							case n == 1:
								return short(doc, err999)
							}
							return doc
						})
						if settled {
							w.endsLate()
						}
						_, _ = w.do()
						time.Sleep(time.Minute)
						revive()
						w.allCame(12)
					})
				})
			}
		}
	}
}

// Once the page was read whole, the cursor moves on: what is behind it is not read again.
func TestFurtherCursorBehindAVoidPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVirtualWorld(t, 60, 8)
		w.page, w.dest.batch = 20, 8000
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		ids := w.hostIDs()
		w.changing(func(n int, doc string) string {
			if n == 1 {
				return short(doc, err999)
			}
			if strings.Contains(doc, fmt.Sprintf("<ID>%d</ID>", ids[59])) && w.runs == 1 {
				stop()
				time.Sleep(time.Second)
			}
			return doc
		})
		if report, err := w.finish(ctx, w.run()); report.NextID <= ids[20] {
			t.Errorf("got %s, %v, next %d; want it behind host %d", report.Outcome, err, report.NextID, ids[20])
		}
		time.Sleep(time.Minute)
		w.allCame(3)
	})
}

// An answer that has gaps, and says behind its list that something went wrong: what it has
// brought shows nothing of what it has left out.
func TestFurtherGapsBeforeAStrayElement(t *testing.T) {
	for _, stray := range []string{
		"<CODE>999</CODE><TEXT>Internal error. Please contact support.</TEXT>",
		"<ERROR><CODE>1999</CODE><TEXT>Maintenance</TEXT></ERROR>",
		"<STATUS>partial</STATUS>",
		"<TEXT>wombat</TEXT>",
		"Internal error",
		"<WARNING><TEXT>This API version is deprecated.</TEXT><TEXT>Not all hosts.</TEXT></WARNING>",
		"</RESPONSE><RESPONSE><DATETIME>2026-11-01T12:00:00Z</DATETIME>",
		`<WARNING hosts="left out"><TEXT>This API version is deprecated.</TEXT></WARNING>`,
	} {
		for _, calls := range []int{1, 3, 1000} { // that are answered so
			for _, page := range []int{20, 1000} {
				if (calls != 1 || page != 20) && !strings.HasPrefix(stray, "<STATUS>") {
					continue // what they are makes no difference there
				}
				t.Run(fmt.Sprintf("%.16s, %d calls, pages of %d", stray, calls, page), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						w := newVirtualWorld(t, 60, 4)
						w.page = page
						w.changing(func(n int, doc string) string {
							from, to := strings.Index(doc, "<HOST>"), strings.Index(doc, "</HOST>")
							if n > calls || from < 0 {
								return doc
							}
							return strings.Replace(doc[:from]+doc[to+len("</HOST>"):], "</RESPONSE>", stray+"</RESPONSE>", 1)
						})
						w.do()
						if w.checkpoint().Window != nil {
							w.wantBelow(w.checkpoint().Window.NextID)
						}
						w.before = nil
						time.Sleep(time.Hour)
						w.allCame(40)
					})
				})
			}
		}
	}
}

// wantBelow checks that nothing is missing of the hosts below a cursor that are not isolated.
func (w *world) wantBelow(cursor uint64) {
	w.t.Helper()
	isolated := w.checkpoint().Isolated
	for key, d := range w.expected(time.Time{}) {
		host := d.UniqueID / 10_000
		known := slices.ContainsFunc(isolated, func(i ingest.Isolated) bool { return i.ID == host })
		if host < cursor && !known && w.dest.keys[key] == 0 {
			w.t.Errorf("the cursor is at host %d, and finding %s is missing", cursor, key)
			return
		}
	}
}

// killable makes two functions: behind kill the run saves nothing, and its hold is lost;
// behind revive the next one works again.
func (w *world) killable() (kill, revive func()) {
	var killed atomic.Bool
	w.store.beforeSave = func([]byte) error {
		if killed.Load() {
			return errors.New("killed")
		}
		return nil
	}
	lost := make(chan struct{})
	w.store.lost = lost
	kill = func() {
		killed.Store(true)
		close(lost)
	}
	revive = func() {
		killed.Store(false)
		w.store.lost = nil
	}
	return kill, revive
}

// endsLate lets each answer end a minute behind its last host.
func (w *world) endsLate() {
	answer := w.before
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		whole := httptest.NewRecorder()
		if !answer(whole, r) {
			return false
		}
		rw.Header().Set("Date", whole.Header().Get("Date"))
		doc := whole.Body.String()
		end := max(0, strings.Index(doc, "</HOST_LIST>"))
		io.WriteString(rw, doc[:end])
		time.Sleep(time.Minute)
		io.WriteString(rw, doc[end:])
		return true
	}
}

// The run is told to stop, its budget ends, or it is killed, while it asks what a doubt is
// of.
func TestFurtherEndBehindVoid(t *testing.T) {
	for _, how := range []string{"a stop", "a kill", "the end of the budget"} {
		for _, page := range []int{20, 1000} {
			if how == "the end of the budget" && page == 1000 {
				continue // the first page comes long before
			}
			t.Run(fmt.Sprintf("%s, pages of %d", how, page), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					w := newVirtualWorld(t, 60, 8)
					w.page, w.dest.batch, w.budget, w.inFlight = page, 8000, 25*time.Minute, 1
					ctx, stop := context.WithCancel(t.Context())
					defer stop()
					bad := map[int]int{20: 3, 1000: 1}[page] // the last page
					kill, revive := w.killable()
					w.changing(func(n int, doc string) string {
						switch {
						case w.runs > 1:
						case how == "the end of the budget" && n < bad:
							time.Sleep(8 * time.Minute)
						case n == bad:
							if how == "the end of the budget" {
								time.Sleep(6 * time.Minute)
							}
							return short(doc, rebuilt)
						case n == bad+1 && how == "a kill":
							kill()
							time.Sleep(time.Second)
						case n == bad+1 && how == "a stop":
							stop()
							time.Sleep(time.Second)
						case n == bad+1:
							time.Sleep(5 * time.Minute)
						}
						return doc
					})
					_, _ = w.finish(ctx, w.run())
					time.Sleep(5 * time.Minute)
					revive()
					w.allCame(12)
				})
			})
		}
	}
}

// Entries of the KnowledgeBase are sent as the whole answer has them.
func TestFurtherKnowledgeBaseVoid(t *testing.T) {
	for _, warning := range []string{err999, rebuilt} {
		for _, bad := range []int{2, 4, 6} {
			for _, fault := range []string{"nothing", "the destination", "a save"} {
				t.Run(fmt.Sprintf("%.20s, call %d, then %s", warning, bad, fault), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						w := newVirtualWorld(t, 1, 1)
						w.page, w.dest.batch = 60, 60_000
						var mu sync.Mutex
						armed, behind := false, false
						w.knowing(200, func(n int, doc string) string {
							mu.Lock()
							defer mu.Unlock()
							if behind = n > bad; n == bad {
								doc = strings.Replace(doc, "</RESPONSE>", warning+"</RESPONSE>", 1)
								doc = strings.ReplaceAll(doc, "<SEVERITY_LEVEL>", "<SEVERITY_LEVEL>9")
								armed = true
							}
							return doc
						})
						once := func(what string, err error) error {
							mu.Lock()
							defer mu.Unlock()
							if armed && behind && fault == what {
								armed = false
								return err
							}
							return nil
						}
						w.dest.before = func(int, record.Batch) error { return once("the destination", &problem{}) }
						w.store.beforeSave = func([]byte) error { return once("a save", errors.New("of a test")) }
						w.allCame(10)
						w.wantNoEntryOf("9")
					})
				})
			}
		}
	}
}

// One destination of several that read together fails once behind it.
func TestFurtherMemberFailsBehindVoid(t *testing.T) {
	for failing := range 3 {
		t.Run(fmt.Sprint("member ", failing), func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, 95, 6, choices[0], choices[0], choices[0])
			f.page = 40
			var mu sync.Mutex
			calls, failed := 0, false
			f.before = func(rw http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "/vm/detection/") {
					return false
				}
				mu.Lock()
				defer mu.Unlock()
				if calls++; calls != 2 {
					return false
				}
				answer := httptest.NewRecorder()
				r.Header.Del("Accept-Encoding")
				f.qualys.ServeHTTP(answer, r)
				rw.Header().Set("Date", f.now().UTC().Format(http.TimeFormat))
				io.WriteString(rw, short(answer.Body.String(), err999))
				return true
			}
			f.members[failing].dest.before = func(int, record.Batch) error {
				mu.Lock()
				defer mu.Unlock()
				if calls > 2 && !failed {
					failed = true
					return &problem{}
				}
				return nil
			}
			for range 4 {
				reports, _ := f.do(t, nil)
				for i, m := range f.members {
					if reports[i].Outcome != ingest.Complete {
						continue
					}
					for key := range f.wanted(m, time.Time{}) {
						if m.dest.keys[key] == 0 {
							t.Fatalf("member %d: complete, and %s is missing", i, key)
						}
					}
				}
			}
			if !failed {
				t.Error("the destination has not failed")
			}
		})
	}
}

// Notices that say in words of their own that the answer is not whole.
func TestFurtherNoticesOfThisAnswer(t *testing.T) {
	for _, text := range []string{
		"This API version has reached end of support and delivers a subset of what version 6.0 delivers.",
		"End-of-Support API version: details have been reduced to keep the load low.",
		"This deprecated API version does not deliver everything. Use version 6.0.",
		"This API version is deprecated: some systems could be absent from this document.",
		"API version 5.0 is deprecated and throttled: processing ended early. Use version 6.0.",
		"Deprecated API version. The service was too busy to deliver everything; repeat the call later.",
		"Version 5.0 is deprecated. Internal problem while loading; not everything is shown.",
		"The API version is deprecated; this reply is abridged.",
	} {
		for _, page := range []int{4, 1000} {
			t.Run(fmt.Sprintf("%s, pages of %d", text, page), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					w := newVirtualWorld(t, 10, 6)
					w.page = page
					w.changing(func(n int, doc string) string {
						if n == 1 {
							return short(doc, "<WARNING><TEXT>"+text+"</TEXT></WARNING>")
						}
						return doc
					})
					w.allCame(12)
				})
			})
		}
	}
}

// Notices of an end of service that stand in each answer, in words that are not known or
// sound like others: windows close.
func TestFurtherStandingNotices(t *testing.T) {
	for _, text := range []string{
		"This API version is deprecated. Please migrate to version 6.0 to continue using the API.",
		"Host List Detection API v5.0 will reach End of Service on June 30, 2027. Upgrade to v6.0 to avoid errors.",
		"API 5.0 is deprecated. To continue receiving detections, move to 6.0 before 30 June 2027.",
		"The /api/5.0/fo/asset/host/vm/detection/ endpoint will be EOS in June 2027. Use /api/6.0/fo/asset/host/vm/detection/ to fetch host detections.",
		"This API version is deprecated. Only version 6.0 will be supported after June 2027.",
		"End of Support: the first version without XML output is 6.0.",
		"DEPRECATION NOTICE: EOL for Detection API v5.0 is 2027-06-30. Contact Qualys Support if you are unable to migrate.",
		"Version 5.0 of this API is deprecated; the response of version 6.0 is compatible.",
		"This API version will be End of Life (EOL) in 6 months. We recommend to use version 6.0 for better data and performance.",
		"Version 5.0 is deprecated: the wombat release takes its place.",
	} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 30, 4)
				w.page = 10
				change := warning(text)
				w.changing(func(_ int, doc string) string { return change(doc) })
				report := w.mustComplete()
				if n := w.lost(); n > 0 || len(report.Warnings) != 1 || report.Requests > 8 {
					t.Errorf("%d rows missing, %d calls, warnings %q; want one, told", n, report.Requests, report.Warnings)
				}
			})
		})
	}
}

// A doubt that comes with one host only is that host's.
func TestFurtherDoubtOfOneHost(t *testing.T) {
	for _, text := range []string{
		"Results for 1 host could not be retrieved.",
		"Scan data of host %d are being rebuilt.",
		"Asset merge in progress for one asset.",
		"Detections of a host have been archived.",
		"<![CDATA[QDS is not available for some assets.]]>",
	} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 30, 4)
				w.page = 10
				id := w.hostIDs()[14]
				change := warning(strings.ReplaceAll(text, "%d", fmt.Sprint(id)))
				w.changing(func(_ int, doc string) string {
					if strings.Contains(doc, fmt.Sprintf("<ID>%d</ID>", id)) {
						return change(doc)
					}
					return doc
				})
				for range 6 {
					if report, _ := w.do(); report.Outcome == ingest.Complete {
						if len(report.Isolated) != 1 || report.Isolated[0].ID != id {
							t.Errorf("isolated %+v; want host %d", report.Isolated, id)
						}
						w.wantFindings(w.findingsBut(id))
						return
					}
					time.Sleep(5 * time.Minute)
				}
				t.Error("not complete after 6 runs")
			})
		})
	}
}

// A list of the KnowledgeBase that is cut is asked on.
func TestFurtherCutLists(t *testing.T) {
	for name, warning := range map[string]string{
		"with a link":         "<CODE>1980</CODE><TEXT>40 record limit exceeded. Use URL to get next batch of results.</TEXT><URL>https://q/api/4.0/fo/knowledge_base/vuln/?action=list&amp;id_min=%d</URL>",
		"without a link":      "<CODE>1980</CODE><TEXT>40 record limit exceeded.</TEXT><!-- %d -->",
		"with only a link":    "<URL>https://q/?id_min=%d</URL>",
		"with another text":   "<TEXT>Maximum number of QIDs reached.</TEXT><!-- %d -->",
		"with a wombat's":     "<TEXT>This API version is deprecated: see the wombat.</TEXT><!-- %d -->",
		"with a text of more": "<TEXT>This API version is deprecated: call again for the rest.</TEXT><!-- %d -->",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 1, 1)
				w.page = 40
				w.knowing(100, func(_ int, doc string) string { return cutList(doc, 40, warning) })
				w.mustComplete()
				w.wantEntries(100)
			})
		})
	}
}

// cutList leaves the first n ids of a list, and says so.
func cutList(doc string, n int, warning string) string {
	from, to := strings.Index(doc, "<ID_SET>"), strings.Index(doc, "</ID_SET>")
	if from < 0 {
		return doc
	}
	from += len("<ID_SET>")
	ids := strings.SplitAfter(doc[from:to], "</ID>")
	if len(ids) <= n {
		return doc
	}
	var last int
	fmt.Sscanf(strings.TrimSpace(ids[n-1]), "<ID>%d</ID>", &last)
	return doc[:from] + strings.Join(ids[:n], "") + "</ID_SET><WARNING>" + fmt.Sprintf(warning, last+1) + "</WARNING>" + doc[to+len("</ID_SET>"):]
}

// Hosts without findings in which something stands that is not known are told.
func TestFurtherHostsWithoutFindings(t *testing.T) {
	for _, part := range []string{
		"<FAILURE>detections could not be loaded</FAILURE>",
		"<STATUS>ERROR: timeout while reading detections</STATUS>",
		"<NOTE>detections are not available</NOTE>",
		"<VULNS>38170 38173</VULNS>",
		"<REASON>scan data archived</REASON><DETECTION_LIST/>",
	} {
		t.Run(part, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 10, 6)
				w.changing(func(n int, doc string) string {
					if n > 1 {
						return doc
					}
					from, to := strings.Index(doc, "<DETECTION_LIST>"), strings.Index(doc, "</DETECTION_LIST>")
					return doc[:from] + part + doc[to+len("</DETECTION_LIST>"):]
				})
				if report, err := w.do(); err == nil && len(report.Warnings) == 0 && report.IsolatedTotal == 0 && w.lost() > 0 {
					t.Errorf("got %s, %d rows are missing, and nothing is told", report.Outcome, w.lost())
				}
			})
		})
	}
}
