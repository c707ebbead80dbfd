package ingest_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/simulator"
)

// hostIDs lists the ids of the subscription's hosts.
func (w *world) hostIDs() (ids []uint64) {
	w.qualys.Subscription.Expected(time.Time{}, w.clock.Now(), func(h simulator.Host, _ simulator.Detection) {
		if len(ids) == 0 || ids[len(ids)-1] != h.ID {
			ids = append(ids, h.ID)
		}
	})
	return ids
}

// asks tells which ids a request is about.
func asks(r *http.Request) (low, high uint64, size int) {
	high = 1 << 62
	fmt.Sscan(r.URL.Query().Get("id_min"), &low)
	fmt.Sscan(r.URL.Query().Get("id_max"), &high)
	fmt.Sscan(r.URL.Query().Get("truncation_limit"), &size)
	return low, high, size
}

// ill makes the pages that hold one of some hosts fail: at the host, where the
// page breaks, or whole, as one that takes too long does.
func (w *world) ill(breaks bool, ids ...uint64) {
	w.spoil(func(doc string) (string, bool) {
		for _, id := range ids {
			i := strings.Index(doc, fmt.Sprintf("<ID>%d</ID>", id))
			switch {
			case i < 0:
			case !breaks:
				return "", false
			default:
				doc = doc[:i+20] + "</WRONG>" + doc[i+20:]
			}
		}
		return doc, true
	})
}

// spoil changes what Qualys answers to calls for detections; not ok: it does not in
// time.
func (w *world) spoil(change func(doc string) (changed string, ok bool)) {
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/detection/") {
			return false
		}
		answer := httptest.NewRecorder()
		r.Header.Del("Accept-Encoding")
		w.qualys.ServeHTTP(answer, r)
		doc, ok := change(answer.Body.String())
		if !ok {
			rw.WriteHeader(http.StatusGatewayTimeout)
			return true
		}
		io.WriteString(rw, doc)
		return true
	}
}

// A page that takes too long is asked for in smaller ones, which grow again.
func TestPageSizeAdapts(t *testing.T) {
	w := newWorld(t, 60, 3)
	w.page = 40
	slow := w.hostIDs()[20]
	var sizes []int
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		low, _, size := asks(r)
		sizes = append(sizes, size)
		if size > 6 && low <= slow {
			rw.WriteHeader(http.StatusGatewayTimeout)
			return true
		}
		return false
	}
	report := w.mustComplete()
	if dup := w.wantEach(time.Time{}); dup != 0 {
		t.Errorf("%d rows twice", dup)
	}
	if !slices.Equal(sizes[:4], []int{40, 20, 10, 5}) || slices.Max(sizes[4:]) != 40 || len(report.Isolated) != 0 {
		t.Errorf("sizes %v, isolated %v", sizes, report.Isolated)
	}
}

// A host whose detections cannot be had is passed, told, and tried again until
// they can; the others arrive at once.
func TestIllHostIsIsolated(t *testing.T) {
	for _, breaks := range []bool{true, false} {
		for name, which := range map[string][]int{"first": {0}, "in the middle": {25}, "last": {59}, "two neighbours": {30, 31}, "three apart": {3, 20, 50}} {
			t.Run(fmt.Sprintf("%s, breaks %v", name, breaks), func(t *testing.T) {
				w := newWorld(t, 60, 3)
				w.page = 16
				var ids []uint64
				for _, n := range which {
					ids = append(ids, w.hostIDs()[n])
				}
				w.ill(breaks, ids...)
				report := w.mustComplete()
				want := w.expected(time.Time{})
				missing := 0
				w.qualys.Subscription.Expected(time.Time{}, w.clock.Now(), func(h simulator.Host, d simulator.Detection) {
					key := fmt.Sprintf("%d@%s", d.UniqueID, d.Processed.Format(time.RFC3339))
					if arrived := w.dest.keys[key] == 1; arrived == slices.Contains(ids, h.ID) {
						t.Errorf("host %d: row %s arrived %d times", h.ID, key, w.dest.keys[key])
					} else if !arrived {
						missing++
					}
				})
				if len(w.dest.keys)+missing != len(want) || len(report.Isolated) != len(ids) || w.logs.FilterLevelExact(zap.ErrorLevel).Len() != len(ids) {
					t.Fatalf("%d arrived, %d missing of %d, isolated %+v", len(w.dest.keys), missing, len(want), report.Isolated)
				}
				for i, isolated := range w.checkpoint().Isolated {
					if isolated.ID != ids[i] || isolated.Reason == "" || isolated.After != nil {
						t.Errorf("%+v, want %d", isolated, ids[i])
					}
				}

				// Later windows pass it without a failure, and try it now and then.
				for range 4 {
					w.clock.advance(10 * time.Minute)
					report = w.mustComplete()
				}
				if c := w.checkpoint().Isolated; len(c) != len(ids) || c[0].Tries == 0 || report.Retries != 0 {
					t.Errorf("isolated %+v, %d retries", c, report.Retries)
				}
				w.before = nil
				w.clock.advance(25 * time.Hour)
				if report = w.mustComplete(); len(report.Isolated) != 0 || len(w.checkpoint().Isolated) != 0 {
					t.Errorf("still isolated: %+v", report.Isolated)
				}
				for key := range w.expected(time.Time{}) {
					if w.dest.keys[key] != 1 {
						t.Errorf("row %s arrived %d times", key, w.dest.keys[key])
					}
				}
			})
		}
	}
}

// When Qualys answers nobody it is no host's fault.
func TestOutageIsolatesNobody(t *testing.T) {
	w := newWorld(t, 60, 3)
	w.page = 16
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		if low, _, _ := asks(r); low == 0 || strings.HasSuffix(r.URL.Path, "/host/") {
			return false
		}
		rw.WriteHeader(http.StatusGatewayTimeout)
		return true
	}
	report, err := w.do()
	if err == nil || report.Outcome != ingest.Failed || !strings.HasPrefix(err.Error(), "ask for detections: qualys answered 504") || !strings.Contains(err.Error(), "none of them is the cause") || len(report.Isolated) != 0 {
		t.Fatalf("%s: %v, isolated %v", report.Outcome, err, report.Isolated)
	}
	if c := w.checkpoint(); len(c.Isolated) != 0 {
		t.Errorf("isolated in the checkpoint: %v", c.Isolated)
	}
	w.before = nil
	w.mustComplete()
	if dup := w.wantEach(time.Time{}); dup != 0 {
		t.Errorf("%d rows twice", dup)
	}
}

// A server that is in maintenance is not asked for smaller pages.
func TestMaintenanceKeepsThePageSize(t *testing.T) {
	w := newWorld(t, 10, 3)
	var sizes []int
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		_, _, size := asks(r)
		sizes = append(sizes, size)
		if len(sizes) <= 3 {
			rw.WriteHeader(http.StatusServiceUnavailable)
		}
		return len(sizes) <= 3
	}
	w.mustComplete()
	w.wantEach(time.Time{})
	if slices.Min(sizes) != 10 {
		t.Errorf("sizes %v", sizes)
	}
}

// However many hosts are ill, those that are not arrive.
func TestEverySecondHostIsIll(t *testing.T) {
	w := newWorld(t, 150, 2)
	w.page = 20
	var ill []uint64
	for n, id := range w.hostIDs() {
		if n%2 == 0 {
			ill = append(ill, id)
		}
	}
	w.ill(true, ill...)
	w.budget = 24 * time.Hour
	report := w.mustComplete()
	if report.IsolatedTotal != 75 || report.Parents != 75 {
		t.Errorf("isolated = %d, hosts = %d, want 75 of each", report.IsolatedTotal, report.Parents)
	}
	w.before = nil
	for range 3 {
		w.clock.advance(48 * time.Hour)
		w.mustComplete()
	}
	if n, c := w.lost(), w.checkpoint(); n > 0 || len(c.Isolated) > 0 {
		t.Errorf("%d rows lost, %d hosts isolated, want none", n, len(c.Isolated))
	}
}

// The process dies again and again while a host is ill.
func TestIsolationKilledAtEveryStep(t *testing.T) {
	for _, step := range []string{"before send", "after send", "before save", "after save"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t, 30, 8)
			w.dest.batch = 8_000
			ids := w.hostIDs()
			w.ill(true, ids[10], ids[20])
			w.killAt(step)
			if c := w.checkpoint(); len(c.Isolated) != 2 {
				t.Fatalf("isolated %+v", c.Isolated)
			}
			w.before = nil
			w.dest.before, w.dest.after, w.store = nil, nil, &faultStore{Store: w.store.Store}
			w.clock.advance(time.Hour)
			w.mustComplete()
			for key := range w.expected(time.Time{}) {
				if w.dest.keys[key] == 0 {
					t.Errorf("row %s is missing", key)
				}
			}
		})
	}
}

// A run that dies while an isolated host comes at last, at any batch or save, has not
// lost it: it stays isolated until all of its rows are accepted.
func TestKilledWhileAnIsolatedHostComes(t *testing.T) {
	for _, step := range []string{"send", "save"} {
		kills := 0
		for n := 1; ; n++ {
			w := newWorld(t, 6, 40)
			w.dest.batch = 8_000
			ids := w.hostIDs()
			w.ill(true, ids[4])
			w.mustComplete()
			if c := w.checkpoint(); len(c.Isolated) != 1 {
				t.Fatalf("isolated %+v", c.Isolated)
			}
			w.before = nil
			w.clock.advance(time.Hour)
			var mu sync.Mutex
			dead, met := false, 0
			die := func(at string) error {
				mu.Lock()
				defer mu.Unlock()
				if at == step {
					met++
				}
				if dead = dead || met == n; dead {
					return errKilled
				}
				return nil
			}
			w.dest.before = func(int, record.Batch) error { return die("send") }
			w.store.beforeSave = func([]byte) error { return die("save") }
			w.do()
			if !dead {
				break
			}
			kills++
			w.dest.before, w.store.beforeSave = nil, nil
			w.clock.advance(time.Hour)
			w.mustComplete()
			for key := range w.expected(time.Time{}) {
				if w.dest.keys[key] == 0 {
					t.Errorf("killed at %s %d: row %s is missing", step, n, key)
				}
			}
		}
		if kills < 4 {
			t.Errorf("%d kills at a %s", kills, step)
		}
	}
}

// The KnowledgeBase passes an entry that cannot be had, too.
func TestIllEntryIsIsolated(t *testing.T) {
	w := newKBWorld(t, 150)
	ill := w.knowledge().QID(70)
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		low, high, _ := asks(r)
		if r.URL.Query().Get("details") != "All" || r.URL.Query().Has("ids") || uint64(ill) < low || uint64(ill) > high {
			return false
		}
		rw.WriteHeader(http.StatusGatewayTimeout)
		return true
	}
	report := w.mustComplete()
	if len(report.Isolated) != 1 || report.Isolated[0].ID != uint64(ill) || w.arrived() != 149 {
		t.Fatalf("%d rows, isolated %+v", w.arrived(), report.Isolated)
	}
	w.before = nil
	w.clock.advance(time.Hour)
	if report := w.mustComplete(); len(report.Isolated) != 0 {
		t.Errorf("isolated %+v", report.Isolated)
	}
	w.wantEntries(150)
	if lines := w.indexLines(); len(lines) != 150 || !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, strconv.Itoa(ill)+"\t") }) {
		t.Errorf("%d lines in the index", len(lines))
	}
}

// An entry that is listed for ever and never comes is isolated, and no other.
func TestListedEntryThatNeverComes(t *testing.T) {
	w := newKBWorld(t, 150)
	ill := w.knowledge().QID(70)
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("details") != "All" {
			return false
		}
		answer := httptest.NewRecorder()
		r.Header.Del("Accept-Encoding")
		w.qualys.ServeHTTP(answer, r)
		doc := answer.Body.String()
		if i := strings.Index(doc, fmt.Sprintf("<QID>%d</QID>", ill)); i >= 0 {
			begin, end := strings.LastIndex(doc[:i], "<VULN>"), i+strings.Index(doc[i:], "</VULN>")+len("</VULN>")
			doc = doc[:begin] + doc[end:]
		}
		io.WriteString(rw, doc)
		return true
	}
	report := w.mustComplete()
	if len(report.Isolated) != 1 || report.Isolated[0].ID != uint64(ill) || w.arrived() != 149 || len(w.dest.keys) != 149 {
		t.Fatalf("%d rows, isolated %+v", w.arrived(), report.Isolated)
	}
	w.before = nil
	w.clock.advance(time.Hour)
	w.mustComplete()
	w.wantEntries(150)
}
