package ingest_test

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/simulator"
)

// Answers with a warning where it is hard to see what it is of.

const standing = "Version 5.0 is deprecated: the wombat release takes its place."

// A notice that stands in empty answers, too, keeps no window open.
func TestFurtherNoticeInQuietWindows(t *testing.T) {
	for _, text := range []string{standing, "Version 5.0 is deprecated. See the wombat, reference %08d."} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 10, 6)
				w.changing(func(n int, doc string) string {
					if strings.Contains(text, "%") {
						return warning(fmt.Sprintf(text, n*7919))(doc)
					}
					return warning(text)(doc)
				})
				for range 6 {
					if report := w.mustComplete(); report.Requests > 6 {
						t.Errorf("%d calls", report.Requests)
					}
					time.Sleep(time.Minute)
				}
				if n := w.lost(); n > 0 {
					t.Errorf("%d rows are missing", n)
				}
			})
		})
	}
}

// The answer is for a range that ends before an isolated host: those behind it tell nothing.
func TestFurtherDoubtInARange(t *testing.T) {
	for _, text := range []string{rebuilt, "<WARNING><TEXT>The API version is deprecated; this reply is abridged.</TEXT></WARNING>"} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 30, 4)
				ids := w.hostIDs()
				at := 10
				for ids[at]-ids[at-1] < 3 { // with a gap in front of it
					at++
				}
				ill := fmt.Sprintf("<ID>%d</ID>", ids[at])
				spoilt := false
				w.changing(func(_ int, doc string) string {
					before, _, has := strings.Cut(doc, ill)
					switch {
					case has && w.runs < 7:
						return before + "</WRONG>"
					case w.runs >= 7 && !spoilt && strings.Contains(doc, "<HOST>"):
						spoilt = true
						return short(doc, text)
					}
					return doc
				})
				for w.runs < 6 {
					_, _ = w.do()
					time.Sleep(5 * time.Minute)
				}
				if c := w.checkpoint(); len(c.Isolated) != 1 {
					t.Fatalf("isolated %+v", c.Isolated)
				}
				time.Sleep(25 * time.Hour)
				w.allCame(6)
			})
		})
	}
}

// One host says something of a login: it is not that of the connector.
func TestFurtherLoginOfAHost(t *testing.T) {
	for _, part := range []string{
		"<ERROR>Bad login: authentication of the scan has failed</ERROR>",
		"<ERROR><CODE>2000</CODE><TEXT>Authentication failed</TEXT></ERROR>",
	} {
		t.Run(part, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 30, 4)
				id := w.hostIDs()[14]
				mark := fmt.Sprintf("<ID>%d</ID>", id)
				w.changing(func(_ int, doc string) string { return strings.Replace(doc, mark, mark+part, 1) })
				for range 6 {
					if report, _ := w.do(); report.Outcome == ingest.Complete {
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

// knowing answers for the KnowledgeBase with changes, by the number of the call.
func (w *world) knowing(entries int, change func(n int, doc string) string) {
	w.qualys.Subscription.Knowledge = &simulator.Knowledge{Seed: 5, Size: entries}
	w.dataset = ingest.KB
	var mu sync.Mutex
	n := 0
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		answer := httptest.NewRecorder()
		r.Header.Del("Accept-Encoding")
		w.qualys.ServeHTTP(answer, r)
		mu.Lock()
		n++
		doc := change(n, answer.Body.String())
		mu.Unlock()
		rw.Header().Set("Date", w.now().UTC().Format(http.TimeFormat))
		io.WriteString(rw, doc)
		return true
	}
}

// wantNoEntryOf checks that no entry is as an answer had it that was not whole.
func (w *world) wantNoEntryOf(mark string) {
	w.t.Helper()
	for _, row := range w.dest.rows {
		if s, _ := row["Severity_Level_s"].(string); len(s) > 1 && strings.HasPrefix(s, mark) {
			w.t.Errorf("QID %v is as the answer had it that is not whole", row["QID_s"])
		}
	}
}

// A notice in words that are not known stands in each answer of the KnowledgeBase.
func TestFurtherStandingNoticeOfTheKnowledgeBase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVirtualWorld(t, 1, 1)
		w.page = 40
		w.knowing(100, func(_ int, doc string) string { return warning(standing)(doc) })
		w.mustComplete()
		w.wantEntries(100)
		time.Sleep(time.Hour)
		w.mustComplete()
	})
}

// An answer is void while the journal of the index takes its time, and then the process is
// killed: the index has all entries that the checkpoint has passed.
func TestFurtherJournalBesideAVoidPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVirtualWorld(t, 1, 1)
		w.page, w.dest.batch, w.refresh, w.inFlight = 100, 60_000, 24*time.Hour, 64
		var mu sync.Mutex
		killed, armed := false, true
		lost := make(chan struct{})
		w.store.lost = lost
		isKilled := func() error {
			mu.Lock()
			defer mu.Unlock()
			if killed {
				return errors.New("killed")
			}
			return nil
		}
		w.store.beforeSave = func([]byte) error { return isKilled() }
		w.store.beforeAppend = func() error {
			mu.Lock()
			first := armed
			armed = false
			mu.Unlock()
			if !first {
				return isKilled()
			}
			time.Sleep(10 * time.Second)
			mu.Lock()
			killed = true
			mu.Unlock()
			close(lost)
			return errors.New("killed")
		}
		w.knowing(400, func(n int, doc string) string {
			if n == 3 {
				return strings.Replace(doc, "</RESPONSE>", err999+"</RESPONSE>", 1)
			}
			return doc
		})
		_, _ = w.do()
		time.Sleep(time.Minute)
		mu.Lock()
		killed = false
		mu.Unlock()
		w.store.lost = nil
		w.allCame(6)
		if got := w.indexed(w.checkpoint().Index); got != 400 {
			t.Errorf("the index has %d of 400 entries", got)
		}
	})
}

// indexed is how many ids a generation of the index has.
func (w *world) indexed(generation string) int {
	w.t.Helper()
	f, err := os.Open(filepath.Join(w.state, "checkpoints", "default", w.dataset.Name+".index", generation+".gz"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	gz, err := gzip.NewReader(f)
	if err != nil {
		w.t.Fatal(err)
	}
	ids := map[string]bool{}
	lines := bufio.NewScanner(gz)
	lines.Buffer(nil, 1<<20)
	lines.Scan() // what it is
	for lines.Scan() {
		id, _, _ := strings.Cut(lines.Text(), "\t")
		ids[id] = true
	}
	return len(ids)
}

// together lets several runs read together, in virtual time, as one process.
func (w *world) together(ctx context.Context, dests []*destination, change func(i int, r *ingest.Run)) []ingest.Report {
	w.t.Helper()
	convoy := &ingest.Convoy{Clock: ingest.SystemClock{}, Log: zap.NewNop(), Together: func(list []ingest.Joint) ingest.Source {
		var all []*qualys.Detections
		for _, s := range list {
			all = append(all, s.(*qualys.Detections))
		}
		return qualys.Together(all)
	}}
	reports := make([]ingest.Report, len(dests))
	var runs []func()
	number := w.runs + 1
	for i, d := range dests {
		r := w.run()
		r.DestinationName, r.Destination, r.Integration, r.Health = fmt.Sprintf("integration-%d", i+1), d, fmt.Sprint(i+1), nil
		if change != nil {
			change(i, r)
		}
		source, leave := convoy.Join(r.Source.(ingest.Joint))
		r.Source = source
		runs = append(runs, func() { defer leave(); reports[i], _ = r.Do(ctx) })
	}
	w.runs = number
	var all sync.WaitGroup
	for _, run := range runs {
		all.Go(run)
	}
	all.Wait()
	synctest.Wait() // as finish
	return reports
}

// allCameTogether lets the runs go on, time after time, until all are complete, so many times
// at most: then every destination has everything.
func (w *world) allCameTogether(dests []*destination, within int, every time.Duration) {
	w.t.Helper()
	complete := false
	for n := 0; n < within && !complete; n++ {
		complete = true
		for i, r := range w.together(context.Background(), dests, nil) {
			w.t.Logf("%d: %s %s", i, r.Outcome, r.Reason)
			complete = complete && r.Outcome == ingest.Complete
		}
		time.Sleep(every)
	}
	for i, d := range dests {
		if lost := w.missing(d); lost > 0 || !complete {
			w.t.Errorf("destination %d: complete %v, and %d rows are missing", i, complete, lost)
		}
	}
}

// missing counts what a destination does not have of all that there is.
func (w *world) missing(d *destination) (lost int) {
	for key := range w.expected(time.Time{}) {
		if d.keys[key] == 0 {
			lost++
		}
	}
	return lost
}

// newDestinations are so many, whose batches have room for so many bytes.
func newDestinations(n, batch int) (list []*destination) {
	for range n {
		list = append(list, &destination{keys: map[string]int{}, rows: map[string]map[string]any{}, batch: batch})
	}
	return list
}

// The process is killed, or the answer drips, while runs that read together ask what a
// doubt is of.
func TestFurtherDoubtOfSeveral(t *testing.T) {
	for _, how := range []string{"kill", "drip"} {
		for _, selects := range []bool{false, true} {
			for _, members := range []int{1, 2} {
				for _, page := range []int{20, 1000} {
					t.Run(fmt.Sprintf("%s, %d members, pages of %d, selected %v", how, members, page, selects), func(t *testing.T) {
						t.Parallel()
						synctest.Test(t, func(t *testing.T) {
							doubtOfSeveral(t, how, members, page, selects)
						})
					})
				}
			}
		}
	}
}

func doubtOfSeveral(t *testing.T, how string, members, page int, selects bool) {
	t.Helper()
	w := newVirtualWorld(t, 60, 8)
	w.page, w.inFlight, w.budget = page, 1, 25*time.Minute
	bad := cmp.Or(map[int]int{20: 2}[page], 1)
	var mu sync.Mutex
	killed, calls := false, 0
	lost := make(chan struct{})
	w.store.lost = lost
	w.store.beforeSave = func([]byte) error {
		mu.Lock()
		defer mu.Unlock()
		if killed {
			return errors.New("killed")
		}
		return nil
	}
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/detection/") {
			return false
		}
		answer := httptest.NewRecorder()
		r.Header.Del("Accept-Encoding")
		w.qualys.ServeHTTP(answer, r)
		doc := answer.Body.String()
		mu.Lock()
		calls++
		n := calls
		mu.Unlock()
		rw.Header().Set("Date", w.now().UTC().Format(http.TimeFormat))
		switch {
		case n == bad:
			doc = short(doc, rebuilt)
		case n == bad+1 && how == "kill":
			time.Sleep(10 * time.Second)
			mu.Lock()
			killed = true
			mu.Unlock()
			close(lost)
			time.Sleep(time.Second)
		case n == bad+1:
			drip(rw, r, " ")
			return true
		}
		io.WriteString(rw, doc)
		return true
	}
	dests := newDestinations(members, 8_000)
	for range 12 {
		reports := w.together(context.Background(), dests, func(_ int, r *ingest.Run) {
			if selects {
				r.Source.(*qualys.Detections).Select = &qualys.Selection{Severities: []string{"1", "2", "3", "4", "5"}}
			}
		})
		complete := 0
		for i, report := range reports {
			if report.Outcome != ingest.Complete {
				continue
			}
			complete++
			for key := range w.expected(time.Time{}) {
				if dests[i].keys[key] == 0 {
					t.Fatalf("member %d: complete, and %s is missing", i, key)
				}
			}
		}
		if complete == members {
			return
		}
		mu.Lock()
		killed = false
		mu.Unlock()
		w.store.lost = nil
		time.Sleep(5 * time.Minute)
	}
	t.Error("not complete after 12 runs")
}
