package ondemand_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/loganalytics"
	"qualys-sentinel/handler/internal/ondemand"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/simulator"
)

// What a process has left open the next tick carries on, beside the dataset's
// own window, from where it stood.
func TestTickCarriesOn(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, 60)
	first := w.desk()
	if report, err := first.Tick(ctx, ingest.VM); err != nil || report.Outcome != ingest.Complete {
		t.Fatalf("%+v, %v", report, err)
	}
	watermark := w.watermark(ingest.VM)
	rows := len(w.rows)

	jobs, err := first.Ask(ctx, vm, full)
	if err != nil {
		t.Fatal(err)
	}
	// The process is asked to stop in the middle.
	dying, die := context.WithCancel(ctx)
	w.mu.Lock()
	begin := w.n
	w.before = func(n int, _ http.ResponseWriter) bool {
		if n == begin+4 {
			die()
		}
		return false
	}
	w.mu.Unlock()
	report, _ := first.Do(dying, jobs[0])
	if report.Outcome != ingest.Paused || report.Parents == 0 {
		t.Fatalf("%+v", report)
	}
	sent := len(w.rows) - rows
	if sent == 0 || sent >= rows {
		t.Fatalf("%d of %d rows sent", sent, rows)
	}
	w.advance(5 * time.Minute)
	second := w.desk()
	if report, err := second.Tick(ctx, ingest.VM); err != nil || report.Outcome != ingest.Complete || report.Request != "" {
		t.Fatalf("%+v, %v", report, err)
	}
	done, err := w.file().Find(ctx, "vm", jobs[0].ID)
	if err != nil || done.Outcome != ingest.Complete || len(done.Attempts) != 2 || done.Attempts[0].Run != jobs[0].ID {
		t.Fatalf("%+v, %v", done, err)
	}
	counts := map[string]int{}
	for _, key := range w.rows {
		counts[key]++
	}
	twice := 0
	for key, n := range counts {
		if n < 2 {
			t.Errorf("%s came %d times", key, n)
		}
		twice += n - 2
	}
	if twice > sent {
		t.Errorf("%d rows more often than twice: it began at the beginning", twice)
	}
	if !w.watermark(ingest.VM).After(watermark) {
		t.Error("the own window did not go on")
	}
	if left := w.names("checkpoints/default/requests/"); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}

// A sync of what is new that was killed is closed by the tick that brings it.
func TestTickClosesOwn(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, 20)
	k := w.desk()
	jobs, err := k.Ask(ctx, vm, ondemand.Window{})
	if err != nil {
		t.Fatal(err)
	}
	jobs[0].Run().Release(ctx) // as a killed process does, sooner or later
	next := w.desk()
	if report, err := next.Tick(ctx, ingest.VM); err != nil || report.Outcome != ingest.Complete {
		t.Fatalf("%+v, %v", report, err)
	}
	if done, err := w.file().Find(ctx, "vm", jobs[0].ID); err != nil || done.Outcome != ingest.Complete || len(done.Attempts) != 2 {
		t.Errorf("%+v, %v", done, err)
	}
}

// An outage leaves a request open; a refusal for good, or too long a time,
// closes it with the reason.
func TestRequestsThatFail(t *testing.T) {
	ctx := context.Background()
	outage := func(_ int, rw http.ResponseWriter) bool {
		rw.WriteHeader(http.StatusBadGateway)
		return true
	}
	w := newWorld(t, 20)
	k := w.desk()
	ask := func(window ondemand.Window) *ondemand.Job {
		t.Helper()
		jobs, err := k.Ask(ctx, vm, window)
		if err != nil {
			t.Fatal(err)
		}
		return jobs[0]
	}
	w.before = outage
	job := ask(full)
	if report, err := k.Do(ctx, job); err == nil || report.Outcome != ingest.Failed {
		t.Fatalf("%+v, %v", report, err)
	}
	if open, err := w.file().Open(ctx, "vm"); err != nil || len(open) != 1 {
		t.Fatalf("%+v, %v", open, err)
	}
	w.advance(8 * 24 * time.Hour)
	if _, err := k.Tick(ctx, ingest.VM); err == nil {
		t.Error("the own window has arrived, in an outage")
	}
	if done, err := w.file().Find(ctx, "vm", job.ID); err != nil || done.Outcome != ingest.Failed || !strings.Contains(done.Reason, "given up after") {
		t.Errorf("%+v, %v", done, err)
	}
	w.mu.Lock()
	w.before = nil
	w.mu.Unlock()

	job = ask(ondemand.Window{Full: true, FilterParameters: "&colour=red"})
	if report, err := k.Do(ctx, job); err == nil || report.Outcome != ingest.Failed {
		t.Fatalf("%+v, %v", report, err)
	}
	if done, err := w.file().Find(ctx, "vm", job.ID); err != nil || done.Outcome != ingest.Failed || !strings.Contains(done.Reason, "colour") {
		t.Errorf("%+v, %v", done, err)
	}
	// What somebody can mend leaves it open: a role, a password, a setting.
	w.refuse = &loganalytics.Error{Kind: loganalytics.Misconfigured, Status: 403, Text: "no role"}
	job = ask(full)
	if report, err := k.Do(ctx, job); err == nil || report.Outcome != ingest.Failed {
		t.Fatalf("%+v, %v", report, err)
	}
	w.mu.Lock()
	begin := w.n
	w.refuse, w.before = nil, func(n int, rw http.ResponseWriter) bool {
		if n == begin+2 {
			rw.WriteHeader(http.StatusUnauthorized)
		}
		return n == begin+2
	}
	w.mu.Unlock()
	for try := range 4 {
		// After a refused login the credentials rest for an hour.
		if _, err := k.Tick(ctx, ingest.VM); err == nil && try > 0 {
			break
		}
		w.advance(2 * time.Hour)
	}
	if done, err := w.file().Find(ctx, "vm", job.ID); err != nil || done.Outcome != ingest.Complete || done.Tries < 2 {
		t.Errorf("%+v, %v", done, err)
	}
	if left := append(w.names("checkpoints/default/requests/"), w.names("requests/open/")...); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}

// While a tick carries a request, the dataset's own windows go on.
func TestOwnWindowsGoOn(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, 20)
	k := w.desk()
	if _, err := k.Tick(ctx, ingest.VM); err != nil {
		t.Fatal(err)
	}
	jobs, err := k.Ask(ctx, vm, full)
	if err != nil {
		t.Fatal(err)
	}
	jobs[0].Run().Release(ctx) // its process is gone
	leave := make(chan struct{})
	w.mu.Lock()
	w.batch = 1 << 20            // all is read before it is held up: calls of Qualys go one by one
	w.block = func(run string) { // the request's rows take long to arrive
		if open, err := w.file().Open(ctx, "vm"); err == nil && len(open) == 1 && open[0].Attempts[len(open[0].Attempts)-1].Run == run {
			<-leave
		}
	}
	w.mu.Unlock()
	before := w.watermark(ingest.VM)
	naps := 0
	w.sleep = func(ctx context.Context) {
		if naps++; naps == 4 {
			close(leave)
			<-ctx.Done()
		}
	}
	if _, err := w.desk().Tick(ctx, ingest.VM); err != nil {
		t.Fatal(err)
	}
	if moved := w.watermark(ingest.VM).Sub(before); moved < 14*time.Minute {
		t.Errorf("the watermark moved by %s in a tick of four times five minutes", moved)
	}
	if done, err := w.file().Find(ctx, "vm", jobs[0].ID); err != nil || done.Outcome != ingest.Complete {
		t.Errorf("%+v, %v", done, err)
	}
}

// Of several requests that do not arrive, each gets its turn.
func TestNoRequestStarves(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, 20)
	k := w.desk()
	if _, err := k.Tick(ctx, ingest.VM); err != nil {
		t.Fatal(err)
	}
	old, err := k.Ask(ctx, vm, full)
	if err != nil {
		t.Fatal(err)
	}
	old[0].Run().Release(ctx)
	w.advance(time.Minute)
	next := w.desk()
	young, err := next.Ask(ctx, vm, ondemand.Window{Full: true, FilterParameters: "&severities=5"})
	if err != nil {
		t.Fatal(err)
	}
	young[0].Run().Release(ctx)
	// The first takes all the time there is, every time.
	w.spoil = func(rw http.ResponseWriter, r *http.Request) bool {
		if r.FormValue("vm_processed_after") == "" && r.FormValue("severities") == "" {
			w.advance(2 * time.Hour)
			rw.WriteHeader(http.StatusBadGateway)
			return true
		}
		return false
	}
	for range 3 {
		_, _ = w.desk().Tick(ctx, ingest.VM)
		w.advance(5 * time.Minute)
	}
	if done, err := w.file().Find(ctx, "vm", young[0].ID); err != nil || done.Outcome != ingest.Complete {
		t.Errorf("%+v, %v", done, err)
	}
}

// What was asked for of one destination is not brought to another.
func TestDestinationsAreApart(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, 10)
	jobs, err := w.desk().Ask(ctx, vm, full)
	if err != nil {
		t.Fatal(err)
	}
	jobs[0].Run().Release(ctx) // its process is gone
	other := w.desk()
	other.Destination = "folder"
	if job, err := other.Resume(ctx, ingest.VM, full); job != nil || err != nil {
		t.Fatal(job, err)
	}
	if _, err := other.Tick(ctx, ingest.VM); err != nil {
		t.Fatal(err)
	}
	if open, err := w.file().Open(ctx, "vm"); err != nil || len(open) != 1 || open[0].Tries != 1 {
		t.Errorf("%+v, %v", open, err)
	}
}

// A tick that begins just when a sync ends does not open it again.
func TestNoSyncIsOpenedAgain(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, 10)
	k, other := w.desk(), w.desk()
	jobs, err := k.Ask(ctx, vm, ondemand.Window{})
	if err != nil {
		t.Fatal(err)
	}
	ending := jobs[0].Run().Ending
	jobs[0].Run().Ending = func(ctx context.Context, report ingest.Report, err error) {
		if report, err := other.Tick(ctx, ingest.VM); err != nil || report.Outcome != ingest.Held {
			t.Errorf("before it is settled: %+v, %v", report, err)
		}
		ending(ctx, report, err)
	}
	if _, err := k.Do(ctx, jobs[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Tick(ctx, ingest.VM); err != nil {
		t.Fatal(err)
	}
	done, err := w.file().Find(ctx, "vm", jobs[0].ID)
	if err != nil || done.Outcome != ingest.Complete || done.Tries != 1 {
		t.Errorf("%+v, %v", done, err)
	}
}

// A request that is given up in the middle of being taken is taken back.
func TestAskIsUndone(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	w := newWorld(t, 10)
	k := w.desk()
	k.Store = cancelling{failing{Store: w.store, on: "requests/open/default/kb/"}, cancel}
	if jobs, err := k.Ask(ctx, []*ingest.Dataset{ingest.VM, ingest.KB}, full); err == nil || jobs != nil {
		t.Fatal(jobs, err)
	}
	if left := append(w.names("checkpoints/default/requests/"), w.names("requests/open/")...); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}

// cancelling is a store that honours contexts, and ends one when it fails.
type cancelling struct {
	failing
	cancel context.CancelFunc
}

func (s cancelling) Create(ctx context.Context, name string) (io.WriteCloser, error) {
	o, err := s.failing.Create(ctx, name)
	if err != nil {
		s.cancel()
	}
	return o, err
}

func (s cancelling) Delete(ctx context.Context, name string) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return s.failing.Delete(ctx, name)
}

// Of many attempts the first and the last are told.
func TestManyAttempts(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, 5)
	k := w.desk()
	w.refuse = &loganalytics.Error{Kind: loganalytics.Misconfigured, Status: 403, Text: "no role"}
	jobs, err := k.Ask(ctx, vm, full)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Do(ctx, jobs[0]); err == nil {
		t.Fatal("it arrived")
	}
	for range 30 {
		job, err := k.Resume(ctx, ingest.VM, full)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = k.Do(ctx, job)
	}
	open, err := w.file().Open(ctx, "vm")
	if err != nil || open[0].Tries != 31 || len(open[0].Attempts) != 20 || open[0].Attempts[0].Run != jobs[0].ID || open[0].Attempts[19].Run == open[0].Attempts[18].Run {
		t.Errorf("%+v, %v", open, err)
	}
}

// A host whose answer fails by itself is missing of an asked window: that is not
// complete, and its name is told.
func TestAskedWithoutAHost(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, 20)
	k := w.desk()
	var bad uint64
	w.qualys.Subscription.Expected(time.Time{}, w.Now(), func(h simulator.Host, _ simulator.Detection) {
		if h.Index == 7 {
			bad = h.ID
		}
	})
	w.spoil = func(rw http.ResponseWriter, r *http.Request) bool {
		low, high := r.FormValue("id_min"), r.FormValue("id_max")
		from, _ := strconv.ParseUint(low, 10, 64)
		to, err := strconv.ParseUint(high, 10, 64)
		if !strings.Contains(r.URL.Path, "/vm/detection/") || from > bad || err == nil && to < bad || from+200 < bad && r.FormValue("truncation_limit") == "1" {
			return false
		}
		fmt.Fprint(rw, "<HOST_LIST_VM_DETECTION_OUTPUT><RESPONSE>") // cut
		return true
	}
	jobs, err := k.Ask(ctx, vm, full)
	if err != nil {
		t.Fatal(err)
	}
	report, err := k.Do(ctx, jobs[0])
	if err != nil || report.Outcome != ingest.Complete || len(report.Isolated) != 1 || report.Isolated[0].ID != bad {
		t.Fatalf("%+v, %v", report, err)
	}
	if done, err := w.file().Find(ctx, "vm", jobs[0].ID); err != nil || done.Outcome != ingest.Failed || !strings.Contains(done.Reason, strconv.FormatUint(bad, 10)) {
		t.Errorf("%+v, %v", done, err)
	}
}

// The same command goes on where it was interrupted.
func TestResume(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, 20)
	k := w.desk()
	if job, err := k.Resume(ctx, ingest.VM, full); job != nil || err != nil {
		t.Fatal(job, err)
	}
	jobs, err := k.Ask(ctx, vm, full)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Resume(ctx, ingest.VM, full); !errors.Is(err, checkpoint.ErrHeld) {
		t.Fatal(err)
	}
	jobs[0].Run().Release(ctx)
	if job, err := k.Resume(ctx, ingest.VM, ondemand.Window{Full: true, FilterParameters: "&severities=5"}); job != nil || err != nil {
		t.Fatal(job, err)
	}
	job, err := w.desk().Resume(ctx, ingest.VM, full)
	if err != nil || job == nil || job.ID != jobs[0].ID || len(job.Attempts) != 2 {
		t.Fatalf("%+v, %v", job, err)
	}
	if report, err := w.desk().Do(ctx, job); err != nil || report.Outcome != ingest.Complete {
		t.Errorf("%+v, %v", report, err)
	}
}

// A request that cannot be read keeps nobody from anything, and is told.
func TestDamagedRequest(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, 10)
	put := func(name, doc string) {
		t.Helper()
		o, err := w.store.Create(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(o, doc)
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
	}
	put("requests/open/default/vm/20261101T000000Z-a.json", "{")
	put("requests/open/default/vm/20261101T000000Z-b.json", `{"version":9}`)
	put("requests/open/default/vm/20261101T000000Z-c.json", `{"version":1,"id":"../x","dataset":"vm","asked":"2026-11-01T00:00:00Z"}`)
	if report, err := w.desk().Tick(ctx, ingest.VM); err != nil || report.Outcome != ingest.Complete {
		t.Errorf("%+v, %v", report, err)
	}
	if open, err := w.file().Open(ctx, "vm"); err == nil || len(open) != 0 || !strings.Contains(err.Error(), "is damaged") || !strings.Contains(err.Error(), "version 9") || !strings.Contains(err.Error(), "does not go with its name") {
		t.Errorf("%+v, %v", open, err)
	}
}

// A panic in what was asked for ends that alone.
func TestPanicIsContained(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, 5)
	k := w.desk()
	jobs, err := k.Ask(ctx, vm, full)
	if err != nil {
		t.Fatal(err)
	}
	jobs[0].Run().Release(ctx)
	k = w.desk() // of the next process
	newRun := k.NewRun
	k.NewRun = func(d *ingest.Dataset, id string, r *ondemand.Request) (*ingest.Run, error) {
		run, err := newRun(d, id, r)
		if err == nil && r != nil {
			run.Source = panicking{run.Source}
		}
		return run, err
	}
	if report, err := k.Tick(ctx, ingest.VM); err != nil || report.Outcome != ingest.Complete {
		t.Errorf("%+v, %v", report, err)
	}
	if open, err := w.file().Open(ctx, "vm"); err != nil || len(open) != 1 || open[0].Tries != 2 || len(k.Live(ingest.VM)) != 0 {
		t.Errorf("%+v, %v", open, err)
	}
}

// A panic in the dataset's own window is a failed tick, and keeps nobody from the
// next.
func TestPanicOfTheOwnWindow(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, 5)
	k := w.desk()
	newRun := k.NewRun
	k.NewRun = func(d *ingest.Dataset, id string, r *ondemand.Request) (*ingest.Run, error) {
		run, err := newRun(d, id, r)
		if err == nil {
			run.Source = panicking{run.Source}
		}
		return run, err
	}
	if report, err := k.Tick(ctx, ingest.VM); err == nil || report.Outcome != ingest.Failed || len(k.Live(ingest.VM)) != 0 {
		t.Errorf("%+v, %v", report, err)
	}
	k.NewRun = newRun
	if jobs, err := k.Ask(ctx, vm, ondemand.Window{}); err != nil || len(jobs) != 1 {
		t.Errorf("%v, %v", jobs, err)
	}
}

// A panic behind the moment in which a run has got hold of its checkpoint leaves nobody with
// that hold.
func TestPanicWithTheHold(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, 5)
	k := w.desk()
	k.Store = unlisted{k.Store}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic: the test is empty")
			}
		}()
		_, _, _ = k.Own(ctx, ingest.VM)
	}()
	if report, err := w.desk().Tick(ctx, ingest.VM); err != nil || report.Outcome != ingest.Complete {
		t.Errorf("%+v, %v", report, err)
	}
}

// unlisted is a state whose names nobody can read.
type unlisted struct{ checkpoint.Store }

func (unlisted) List(context.Context, string) ([]string, error) { panic("boom") }

type panicking struct{ ingest.Source }

func (panicking) Page(context.Context, record.Query, record.Sink) (record.Page, error) { panic("boom") }
