package ingest_test

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/simulator"
)

// end is how a run ends.
type end struct {
	outcome ingest.Outcome
	reason  string
}

// How a fault ends that does not go away, by its name; the reason it is told
// with. All that are not here are hosts' or pages' and stop the run after some
// tries, since no single host is to blame.
var lasting = map[string]end{
	// Mended, or of no effect on a page that makes progress.
	"answers without limits": {ingest.Complete, ""},
	"mismatched tags":        {ingest.Complete, ""}, "next page does not grow": {ingest.Complete, ""},
	"control characters": {ingest.Complete, ""}, "invalid UTF-8": {ingest.Complete, ""}, "entity bomb": {ingest.Complete, ""}, "next page elsewhere": {ingest.Complete, ""},
	"error 2012 with 200": {ingest.Failed, "role Reader or above"}, "403": {ingest.Failed, "role Reader or above"},
	"redirect elsewhere": {ingest.Failed, "follow no redirect"}, "401": {ingest.Failed, "check apiUsername and apiPassword"},
	"404": {ingest.Failed, "end of life"}, "409 code 2003": {ingest.Failed, "accept the terms"}, "414": {ingest.Failed, "414"},
	"409 code 1960": {ingest.Waiting, "1960"}, "409 code 1960 without headers": {ingest.Waiting, "1960"}, "409 without a code": {ingest.Waiting, "409"}, "409 code 1965, seconds": {ingest.Waiting, "1965"},
	"409 code 1965, in words": {ingest.Waiting, "1965"}, "409 code 1965, 19 hours": {ingest.Waiting, "1h5m0s"}, "429": {ingest.Waiting, "429"},
	"503":                     {ingest.Failed, "no progress in 6 tries"},
	"clock three hours ahead": {ingest.Complete, ""}, "DATETIME a year ahead": {ingest.Failed, "in its Date header"},
}

// final are the faults that end a run at once, even if they come once.
var final = []string{"error 2012 with 200", "403", "redirect elsewhere", "401", "404", "409 code 2003", "414", "DATETIME a year ahead", "409 code 1965, 19 hours"}

// lastingKB is lasting for the KnowledgeBase, where it ends otherwise.
var lastingKB = map[string]end{
	"403": {ingest.Failed, "ask Qualys Support"}, "error 2012 with 200": {ingest.Failed, "ask Qualys Support"},
}

// A matrix is the table of faults.
type matrix struct {
	mu    sync.Mutex
	lines []line
}

type line struct {
	name, how, outcome, reason string
	runs, retries, lost, twice int
}

// check runs w with its fault, which must end as said, and again when it is
// healed until all is well: then nothing is missing, and no more than some
// rows came twice.
func (m *matrix) check(t *testing.T, w *world, name, how string, want end, heal func(), mayTwice int) {
	t.Helper()
	report, err := w.do()
	m.judge(t, w, name, how, report, err, want, heal, mayTwice)
}

// judge is check behind the run with the fault.
func (m *matrix) judge(t *testing.T, w *world, name, how string, report ingest.Report, err error, want end, heal func(), mayTwice int) {
	t.Helper()
	if report.Outcome != want.outcome || !strings.Contains(report.Reason, want.reason) || (err == nil) == (want.outcome == ingest.Failed) {
		t.Errorf("%s: %v (%s), want %s with %q", report.Outcome, err, report.Reason, want.outcome, want.reason)
	}
	heal()
	w.clock.advance(24 * time.Hour)
	runs := 1
	for ; runs < 4; runs++ {
		if last, err := w.do(); err == nil && last.Outcome == ingest.Complete && len(w.checkpoint().Isolated) == 0 {
			break
		}
		w.clock.advance(24 * time.Hour)
	}
	w.mustComplete() // what has changed behind the cursor of the window that was begun
	l := line{name: name, how: how, outcome: string(report.Outcome), reason: report.Reason, runs: runs + 1, retries: int(report.Retries), lost: w.lost()}
	if n := len(report.Isolated); n > 0 {
		l.outcome = fmt.Sprintf("%s, %d isolated", report.Outcome, n)
		l.reason = report.Isolated[0].Reason
	}
	for _, n := range w.dest.keys {
		l.twice += n - 1
	}
	if l.lost > 0 || l.twice > mayTwice {
		t.Errorf("%d lost, %d twice", l.lost, l.twice)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lines = append(m.lines, l)
}

// lost counts what Qualys holds now, in this very state, and has not arrived.
func (w *world) lost() (n int) {
	if w.dataset == ingest.VM {
		for key := range w.expected(time.Time{}) {
			if w.dest.keys[key] == 0 {
				n++
			}
		}
		return n
	}
	arrived := map[string]bool{}
	for key := range w.dest.keys {
		// A key goes on where an entry has changed with its date unchanged.
		arrived[strings.Join(strings.SplitN(key, "@", 3)[:2], "@")] = true
	}
	for index := range w.knowledge().Entries() {
		if e, ok := w.knowledge().Entry(index, w.now()); ok && !arrived[entryKey(e)] {
			n++
		}
	}
	return n
}

// hangTime is when an answer is given up, where one hangs.
const hangTime = 60 * time.Millisecond

// faultWorld is what a fault meets.
func faultWorld(t *testing.T, dataset *ingest.Dataset) *world {
	w := newWorld(t, 60, 6)
	if dataset == ingest.KB {
		w.qualys.Subscription.Knowledge = &simulator.Knowledge{Seed: 3, Size: 60}
		w.dataset = dataset
	}
	w.page, w.dest.batch, w.budget = 16, 30_000, 20*time.Minute
	return w
}

// Every way in which Qualys, the destination or the state can go wrong, once and
// for as long as the run lasts: when it is over, nothing is missing and nothing
// came twice that need not. make faults prints the table.
func TestFaults(t *testing.T) {
	t.Parallel() // the longest
	const onePage = 120
	const oneHost = 20 // rows of one that had come are asked for again, to tell ill hosts from an outage
	m := &matrix{}
	for _, dataset := range ingest.Datasets() {
		for _, fault := range simulator.Faults() {
			for _, how := range []string{"once", "lasting"} {
				t.Run(dataset.Name+", "+fault.Name+", "+how, func(t *testing.T) {
					w := faultWorld(t, dataset)
					if strings.Contains(fault.Name, "hang") {
						w.timeout = hangTime
					}
					spoilt := 0
					faulty := &simulator.Faulty{Next: w.qualys}
					faulty.Arm(simulator.Spoiling{Fault: fault, When: func(n int, r *http.Request) bool {
						records := strings.HasSuffix(r.URL.Path, "/detection/") || r.URL.Query().Get("details") == "All"
						first := strings.Contains(fault.Name, "ahead") // what the first answer states counts
						if !first && n <= 2 || how == "once" && spoilt > 0 || !records {
							return false
						}
						spoilt++
						return true
					}})
					server := httptest.NewServer(faulty)
					defer server.Close()
					w.server = server
					want := end{ingest.Complete, ""}
					known, is := lasting[fault.Name]
					if other, ok := lastingKB[fault.Name]; ok && dataset == ingest.KB {
						known, is = other, true
					}
					switch {
					case is && (how == "lasting" || slices.Contains(final, fault.Name)):
						want = known
					case how == "lasting":
						want = end{ingest.Failed, dataset.Parents}
					}
					twice := oneHost
					if fault.Name == "a second root" {
						twice = onePage // what stands in front of it counts for nothing, and was sent
					}
					m.check(t, w, "Qualys, "+dataset.Name+": "+fault.Name, how, want, func() { faulty.Heal(); server.CloseClientConnections() }, twice)
				})
			}
		}
	}
	// The network in between.
	for how, n := range map[string]int{"once": 1, "lasting": 1 << 30} {
		t.Run("connection refused, "+how, func(t *testing.T) {
			w := faultWorld(t, ingest.VM)
			dials := 0
			w.dial = func() error {
				if dials++; dials >= 3 && dials < 3+n {
					return &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
				}
				return nil
			}
			want, reason := ingest.Complete, ""
			if how == "lasting" {
				want, reason = ingest.Failed, "connection refused"
			}
			m.check(t, w, "Qualys: connection refused", how, end{want, reason}, func() { w.dial = nil }, 0)
		})
	}
	// Hosts and pages that are ill, and no others.
	for name, c := range map[string]struct {
		spoil    func(w http.ResponseWriter, r *http.Request, doc []byte, host string)
		isolated int
	}{
		"pages of more than 4 hosts time out": {func(w http.ResponseWriter, r *http.Request, doc []byte, _ string) {
			if _, _, size := asks(r); size > 4 {
				<-r.Context().Done()
				return
			}
			w.Write(doc)
		}, 0},
		"one host times out": {func(w http.ResponseWriter, r *http.Request, doc []byte, host string) {
			if strings.Contains(string(doc), host) {
				<-r.Context().Done()
				return
			}
			w.Write(doc)
		}, 1},
		"one host breaks the XML": {func(w http.ResponseWriter, _ *http.Request, doc []byte, host string) {
			io.WriteString(w, strings.Replace(string(doc), host, host+"</BROKEN>", 1))
		}, 1},
		"one host resets the connection": {func(w http.ResponseWriter, r *http.Request, doc []byte, host string) {
			if i := strings.Index(string(doc), host); i >= 0 {
				w.Write(doc[:i])
				w.(http.Flusher).Flush()
				simulator.Reset(w, r, nil)
				return
			}
			w.Write(doc)
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := faultWorld(t, ingest.VM)
			if strings.Contains(name, "time") {
				w.timeout = hangTime
			}
			host := fmt.Sprintf("<ID>%d</ID>", w.hostIDs()[23])
			faulty := &simulator.Faulty{Next: w.qualys}
			faulty.Arm(simulator.Spoiling{
				Fault: simulator.Fault{Spoil: func(w http.ResponseWriter, r *http.Request, doc []byte) { c.spoil(w, r, doc, host) }},
				When:  func(_ int, r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/detection/") },
			})
			server := httptest.NewServer(faulty)
			defer server.Close()
			w.server = server
			m.check(t, w, "Qualys: "+name, "lasting", end{ingest.Complete, ""}, func() {
				if n := len(w.checkpoint().Isolated); n != c.isolated {
					t.Errorf("%d hosts are isolated, want %d", n, c.isolated)
				}
				faulty.Heal()
				server.CloseClientConnections()
			}, 0)
		})
	}
	// The destination.
	for name, p := range map[string]error{
		"400 for one row": &problem{refused: true}, "413, then smaller": &problem{refused: true}, "429": &problem{retry: true, limit: true, after: 30 * time.Second},
		"500": &problem{retry: true}, "403": errors.New("answered 403: role missing"),
	} {
		t.Run("a fake destination: "+name, func(t *testing.T) {
			w := faultWorld(t, ingest.VM)
			n := 0
			w.dest.before = func(_ int, b record.Batch) error {
				n++
				switch {
				case name == "400 for one row" && b.Rows() == 1 && n > 3, name == "413, then smaller" && b.Rows() > 2:
					return p
				case name == "400 for one row":
					return map[bool]error{true: p, false: nil}[n == 3]
				case name == "413, then smaller":
					return nil
				case n >= 3 && n <= 5:
					return p
				}
				return nil
			}
			want, reason := ingest.Complete, ""
			if name == "403" {
				want, reason = ingest.Failed, "role missing"
			}
			m.check(t, w, "a fake destination: "+name, "thrice", end{want, reason}, func() { w.dest.before = nil }, 0)
		})
	}
	t.Run("destination: answer lost after the rows were taken", func(t *testing.T) {
		w := faultWorld(t, ingest.VM)
		w.dest.after = func(n int, _ record.Batch) error {
			if n == 3 {
				return &problem{retry: true}
			}
			return nil
		}
		m.check(t, w, "a fake destination: answer lost", "once", end{ingest.Complete, ""}, func() {}, 40)
	})
	// The state.
	for name, fail := range map[string]func(w *world, err error){
		"save":        func(w *world, err error) { w.store.beforeSave = func([]byte) error { return err } },
		"saved, told": func(w *world, err error) { w.store.afterSave = func([]byte) error { return err } },
		"create": func(w *world, err error) {
			w.store.beforeCreate = func(string) error { return err }
		},
	} {
		t.Run("state: "+name, func(t *testing.T) {
			w := faultWorld(t, ingest.VM)
			fail(w, errors.New("a fake state: answered 503"))
			report, err := w.do()
			if err == nil || !strings.Contains(err.Error(), "503") {
				t.Errorf("%s: %v", report.Outcome, err)
			}
			report.Reason = err.Error()
			heal := func() { w.store.beforeSave, w.store.afterSave, w.store.beforeCreate = nil, nil, nil }
			m.judge(t, w, "a fake state: "+name+" fails", "a run", report, err, end{report.Outcome, "503"}, heal, (ingest.DefaultInFlight+1)*40)
		})
	}
	m.log(t)
}

// log prints the table.
func (m *matrix) log(t *testing.T) {
	slices.SortFunc(m.lines, func(a, b line) int { return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.how, b.how)) })
	for _, l := range m.lines {
		t.Logf("| %s | %s | %s | %d | %d | %d | %d | %s |", l.name, l.how, l.outcome, l.runs, l.retries, l.lost, l.twice, strings.Join(strings.Fields(l.reason), " "))
	}
}
