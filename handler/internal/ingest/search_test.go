package ingest_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/simulator"
)

// processed lists the hosts that were processed since a time.
func (w *world) processed(since time.Time) (ids []uint64) {
	w.qualys.Subscription.Expected(since, w.clock.Now(), func(h simulator.Host, _ simulator.Detection) {
		if len(ids) == 0 || ids[len(ids)-1] != h.ID {
			ids = append(ids, h.ID)
		}
	})
	return ids
}

// One ill host in a window that holds few of the hosts, wherever it stands: it
// alone is isolated, in the first run, and all others arrive.
func TestIllHostInASmallWindow(t *testing.T) {
	t.Parallel()
	for _, page := range []int{16, 1000} {
		for _, breaks := range []bool{true, false} {
			for _, where := range []string{"first", "in the middle", "last"} {
				t.Run(fmt.Sprintf("%s, page of %d, breaks %v", where, page, breaks), func(t *testing.T) {
					w := newWorld(t, 200, 3)
					w.page, w.budget = page, 25*time.Minute
					w.mustComplete()
					began := w.clock.Now()
					w.clock.advance(6 * time.Hour)
					in := w.processed(began)
					place := map[string]int{"first": 0, "in the middle": len(in) / 2, "last": len(in) - 1}[where]
					ill := in[place]
					w.ill(breaks, ill)
					report, err := w.do()
					if err != nil || report.Outcome != ingest.Complete || len(report.Isolated) != 1 || report.Isolated[0].ID != ill {
						t.Fatalf("host %d of %d: %s, %v, isolated %+v", place, len(in), report.Outcome, err, report.Isolated)
					}
					if report.Requests > 40 {
						t.Errorf("host %d: %d requests", place, report.Requests)
					}
					w.before = nil
					w.clock.advance(24 * time.Hour)
					w.mustComplete()
					if n, c := w.lost(), w.checkpoint(); n > 0 || len(c.Isolated) > 0 {
						t.Errorf("host %d: %d lost, isolated %+v", place, n, c.Isolated)
					}
				})
			}
		}
	}
}

// The list that tells where to look leaves the ill host out, or names hosts that
// have no detection: neither costs a host, nor a detection.
func TestListThatIsWrong(t *testing.T) {
	for name, list := range map[string]func(ids []uint64, ill uint64) []uint64{
		"without the ill host": func(ids []uint64, ill uint64) []uint64 {
			return slices.DeleteFunc(ids, func(id uint64) bool { return id == ill })
		},
		"without its neighbours": func(ids []uint64, ill uint64) []uint64 {
			return slices.DeleteFunc(ids, func(id uint64) bool { return id > ill-400 && id < ill+400 })
		},
		"with all numbers": func(ids []uint64, ill uint64) []uint64 {
			for id := ids[0]; len(ids) < 900; id++ {
				ids = append(ids, id)
			}
			return ids
		},
		"only those behind": func(ids []uint64, ill uint64) []uint64 {
			return slices.DeleteFunc(ids, func(id uint64) bool { return id <= ill })
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 60, 3)
			w.page, w.budget = 16, 25*time.Minute
			ids := w.hostIDs()
			ill := ids[23]
			w.ill(true, ill)
			breaks := w.before
			w.before = func(rw http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, "/asset/host/") {
					return breaks(rw, r)
				}
				low, high, size := asks(r)
				named := list(slices.Clone(ids), ill)
				slices.Sort(named)
				var b strings.Builder
				b.WriteString("<HOST_LIST_OUTPUT><RESPONSE><DATETIME>2026-11-01T00:00:00Z</DATETIME><ID_SET>")
				for _, id := range slices.Compact(named) {
					if id >= low && id <= high && size > 0 {
						fmt.Fprintf(&b, "<ID>%d</ID>", id)
						size--
					}
				}
				io.WriteString(rw, b.String()+"</ID_SET></RESPONSE></HOST_LIST_OUTPUT>")
				return true
			}
			report, err := w.do()
			if err != nil || report.Outcome != ingest.Complete || len(report.Isolated) != 1 || report.Isolated[0].ID != ill {
				t.Fatalf("%s, %v, isolated %+v, want %d", report.Outcome, err, report.Isolated, ill)
			}
			w.before = nil
			w.clock.advance(time.Hour)
			w.mustComplete()
			if n := w.lost(); n > 0 {
				t.Errorf("%d lost", n)
			}
		})
	}
}

// Several ill hosts side by side are isolated when one further on shows that it
// is they.
func TestIllNeighbours(t *testing.T) {
	w := newWorld(t, 60, 3)
	w.page, w.budget = 16, 25*time.Minute
	ids := w.hostIDs()
	w.ill(true, ids[20:27]...)
	report, err := w.do()
	if err != nil || report.Outcome != ingest.Complete || len(report.Isolated) != 7 {
		t.Fatalf("%s, %v, isolated %+v", report.Outcome, err, report.Isolated)
	}
	w.before = nil
	for range 3 {
		w.clock.advance(time.Hour)
		w.mustComplete()
	}
	if n, c := w.lost(), w.checkpoint(); n > 0 || len(c.Isolated) > 0 {
		t.Errorf("%d lost, isolated %+v", n, c.Isolated)
	}
}

// A fault of the list that says where to look is one like any other.
func TestListThatFails(t *testing.T) {
	const limit = "<SIMPLE_RETURN><RESPONSE><CODE>1965</CODE><TEXT>wait</TEXT><ITEM_LIST><ITEM><KEY>SECONDS_TO_WAIT</KEY><VALUE>55</VALUE></ITEM></ITEM_LIST></RESPONSE></SIMPLE_RETURN>"
	for name, c := range map[string]struct {
		status int
		body   string
		times  int
		want   ingest.Outcome
	}{
		"a limit, once":     {409, limit, 1, ingest.Complete},
		"500 once":          {500, "", 1, ingest.Complete},
		"a limit, for ever": {409, limit, 1 << 30, ingest.Waiting},
		"500 for ever":      {500, "", 1 << 30, ingest.Complete},
		"refused":           {400, "", 1 << 30, ingest.Complete},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 60, 3)
			w.page, w.budget = 16, 25*time.Minute
			w.ill(true, w.hostIDs()[23])
			ill := w.before
			n := 0
			w.before = func(rw http.ResponseWriter, r *http.Request) bool {
				if strings.HasSuffix(r.URL.Path, "/asset/host/") {
					if n++; n <= c.times {
						rw.WriteHeader(c.status)
						io.WriteString(rw, c.body)
						return true
					}
				}
				return ill(rw, r)
			}
			report, err := w.do()
			if report.Outcome != c.want || (err != nil) != (c.want == ingest.Failed) {
				t.Errorf("%s, %v, want %s", report.Outcome, err, c.want)
			}
			if c.want == ingest.Complete && len(report.Isolated) != 1 {
				t.Errorf("isolated %+v", report.Isolated)
			}
		})
	}
}

// wantAll checks that nothing is missing: of what Qualys holds now, and of what
// it held then.
func (w *world) wantAll(then map[string]simulator.Detection) {
	w.t.Helper()
	never := 0
	for key := range then {
		if w.dest.keys[key] == 0 {
			never++
		}
	}
	if n := w.lost(); n > 0 || never > 0 {
		w.t.Errorf("%d lost, %d rows of then never came, isolated %+v", n, never, w.checkpoint().Isolated)
	}
}

// Hosts that were passed at the end of a run that met a limit are not lost,
// whatever batch was under way when it ended.
func TestPassedAndThenALimit(t *testing.T) {
	for _, batch := range []int{9_000, 10_000, 16_000} {
		t.Run(fmt.Sprint(batch), func(t *testing.T) {
			w := newWorld(t, 60, 6)
			w.page, w.budget, w.dest.batch = 16, 25*time.Minute, batch
			ids := w.hostIDs()
			first, second := ids[20], ids[21]
			w.dest.before = func(int, record.Batch) error {
				<-time.After(20 * time.Millisecond) // so that some are under way
				return nil
			}
			partial := false
			w.before = func(rw http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, "/detection/") {
					return false
				}
				if low, _, _ := asks(r); low > first && partial {
					rw.WriteHeader(409)
					io.WriteString(rw, "<SIMPLE_RETURN><RESPONSE><CODE>1965</CODE><TEXT>for another 23 hours</TEXT></RESPONSE></SIMPLE_RETURN>")
					return true
				}
				answer := httptest.NewRecorder()
				r.Header.Del("Accept-Encoding")
				w.qualys.ServeHTTP(answer, r)
				doc := answer.Body.String()
				if i := strings.Index(doc, fmt.Sprintf("<ID>%d</ID>", first)); i >= 0 {
					doc = doc[:i+20] + "</WRONG>" + doc[i+20:]
				} else if i := strings.Index(doc, fmt.Sprintf("<ID>%d</ID>", second)); i >= 0 {
					partial = true
					end := i + strings.Index(doc[i:], "</HOST>")
					doc = doc[:end] + "</WRONG>" + doc[end:]
				}
				io.WriteString(rw, doc)
				return true
			}
			then := w.expected(time.Time{})
			if report, err := w.do(); report.Outcome != ingest.Waiting {
				t.Fatalf("%s, %v", report.Outcome, err)
			}
			w.before, w.dest.before = nil, nil
			for range 4 {
				w.clock.advance(30 * time.Minute)
				w.mustComplete()
			}
			w.wantAll(then)
		})
	}
}

// An outage in the middle of a window takes nobody along, whatever batches were
// under way when it began.
func TestOutageInTheMiddle(t *testing.T) {
	t.Parallel()
	for _, batch := range []int{6_000, 7_000, 9_000, 13_000, 20_000} {
		t.Run(fmt.Sprint(batch), func(t *testing.T) {
			w := newWorld(t, 60, 6)
			w.page, w.budget, w.dest.batch = 16, 25*time.Minute, batch
			w.ill(true, w.hostIDs()...)
			broken, pages := w.before, 0
			w.before = func(rw http.ResponseWriter, r *http.Request) bool {
				if pages++; pages <= 2 {
					return false
				}
				return broken(rw, r)
			}
			then := w.expected(time.Time{})
			if report, err := w.do(); err == nil {
				t.Fatalf("%s", report.Outcome)
			}
			w.before = nil
			for range 4 {
				w.clock.advance(30 * time.Minute)
				if _, err := w.do(); err != nil {
					t.Fatal(err)
				}
			}
			w.wantAll(then)
		})
	}
}

// Hosts whose answer never begins are passed, however little of them fits into
// a run: with the product's timeouts and budget, and with tight ones.
func TestHostsThatHang(t *testing.T) {
	for name, c := range map[string]struct {
		hosts, runs  int
		hang, budget time.Duration
	}{
		"one, by the defaults":   {1, 8, 5 * time.Minute, 25 * time.Minute},
		"three of two minutes":   {3, 8, 2 * time.Minute, 25 * time.Minute},
		"one, in a short budget": {1, 8, 90 * time.Second, 7 * time.Minute},
		"two, in a short budget": {2, 8, time.Minute, 7 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 60, 3)
			w.page, w.budget = 1000, c.budget
			ids := w.hostIDs()
			w.ill(false, ids[20:20+c.hosts]...)
			answer := w.before
			w.before = func(rw http.ResponseWriter, r *http.Request) bool {
				rec := httptest.NewRecorder()
				if !answer(rec, r) {
					return false
				}
				if rec.Code == http.StatusGatewayTimeout {
					w.clock.advance(c.hang)
				}
				rw.WriteHeader(rec.Code)
				io.Copy(rw, rec.Body)
				return true
			}
			for n := 1; ; n++ {
				report, err := w.do()
				if report.Outcome == ingest.Complete {
					break
				} else if n == c.runs {
					t.Fatalf("run %d: %s, %v", n, report.Outcome, err)
				}
				w.clock.advance(5 * time.Minute)
			}
			w.before = nil
			for range 3 {
				w.clock.advance(24 * time.Hour)
				w.mustComplete()
			}
			if n := w.lost(); n > 0 || len(w.checkpoint().Isolated) > 0 {
				t.Errorf("%d lost, isolated %+v", n, w.checkpoint().Isolated)
			}
		})
	}
}

// Ill neighbours are told from an outage wherever they stand.
func TestIllNeighboursAnywhere(t *testing.T) {
	for name, c := range map[string]struct{ before, ill []int }{
		"before one that is isolated": {[]int{24}, []int{20, 21, 22, 23}},
		"the last ones":               {nil, []int{56, 57, 58, 59}},
		"the first ones":              {nil, []int{0, 1, 2, 3, 4}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 60, 3)
			w.page, w.budget = 16, 25*time.Minute
			ids := w.hostIDs()
			pick := func(places []int) (ill []uint64) {
				for _, i := range places {
					ill = append(ill, ids[i])
				}
				return ill
			}
			if len(c.before) > 0 {
				w.ill(true, pick(c.before)...)
				w.mustComplete()
				w.clock.advance(48 * time.Hour)
			}
			all := append(pick(c.before), pick(c.ill)...)
			w.ill(true, all...)
			if report, err := w.do(); err != nil || report.Outcome != ingest.Complete || len(report.Isolated) != len(all) {
				t.Fatalf("%s, %v, isolated %d", report.Outcome, err, len(report.Isolated))
			}
			w.before = nil
			for range 4 {
				w.clock.advance(24 * time.Hour)
				w.mustComplete()
			}
			if n := w.lost(); n > 0 || len(w.checkpoint().Isolated) > 0 {
				t.Errorf("%d lost, isolated %+v", n, w.checkpoint().Isolated)
			}
		})
	}
}
