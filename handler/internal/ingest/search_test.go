package ingest_test

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/ingest"
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
	for _, page := range []int{16, 1000} {
		for _, breaks := range []bool{true, false} {
			t.Run(fmt.Sprint("page of ", page, ", breaks ", breaks), func(t *testing.T) {
				for place := 0; ; place += 13 {
					w := newWorld(t, 200, 3)
					w.page, w.budget = page, 25*time.Minute
					w.mustComplete()
					began := w.clock.Now()
					w.clock.advance(6 * time.Hour)
					in := w.processed(began)
					if place >= len(in) {
						break
					}
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
				}
			})
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
		"500 for ever":      {500, "", 1 << 30, ingest.Failed},
		"refused":           {400, "", 1 << 30, ingest.Failed},
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
