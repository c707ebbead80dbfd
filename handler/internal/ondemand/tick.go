package ondemand

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/ingest"
)

// A Tick carries the next window of a dataset for several destinations, together:
// where they are at the same point, a page of Qualys is read once for all. Whoever
// takes long holds nobody up: the others are run again every five minutes meanwhile,
// as the Functions host begins no other tick before this one has ended.
type Tick struct {
	Dataset *ingest.Dataset
	Members []Member
	// More, if not nil, is asked for those who have come and are not among the members,
	// whenever the tick begins runs again.
	More func(ctx context.Context, members []Member) []Member
	// Convoy of the members' runs; nil: each reads its own pages.
	Convoy *ingest.Convoy
	Clock  ingest.Clock
	Log    *zap.Logger
	// Began, if not nil, is called with each run when it is made, by several goroutines.
	Began func(run *ingest.Run)
}

// A Member is a destination in a tick.
type Member struct {
	Desk *Desk
	// Due tells whether it is to run now; nil: always.
	Due func(ctx context.Context) bool
	// Requests tells that the tick carries out what was asked for by hand, too.
	Requests bool
}

// A MemberReport is how a member's last run in a tick has ended; nil of one that was
// not due.
type MemberReport struct {
	*ingest.Report
	Err error
}

// running is what a tick does at once.
type running struct {
	*Tick
	deadline time.Time
	ended    chan int // by whom
	mu       sync.Mutex
	reports  []MemberReport
	busy     []bool
	working  int // members that are busy, and what was asked for
}

// Do works until everybody has ended. The reports are those of the members, in their
// order.
func (t *Tick) Do(ctx context.Context) []MemberReport {
	r := &running{Tick: t, ended: make(chan int), reports: make([]MemberReport, len(t.Members)), busy: make([]bool, len(t.Members))}
	r.start(ctx)
	for _, m := range t.Members {
		if m.Requests && !r.deadline.IsZero() {
			r.working++
			go func() {
				defer func() { r.ended <- besides }()
				defer guard(t.Log, m.Desk.Destination)
				m.Desk.carryOn(ctx, t.Dataset, r.deadline)
			}()
		}
	}
	wake := make(chan struct{})
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	next := func() {
		if t.Clock.Now().Add(ownEvery + leastBudget).Before(r.deadline) {
			go func() {
				if t.Clock.Sleep(waiting, ownEvery) == nil {
					select {
					case wake <- struct{}{}:
					case <-waiting.Done():
					}
				}
			}()
		}
	}
	next()
	for r.working > 0 {
		select {
		case i := <-r.ended:
			r.working--
			if i != besides {
				r.busy[i] = false
			}
		case <-wake:
			if ctx.Err() == nil {
				r.grow(ctx)
				r.start(ctx)
				next()
			}
		}
	}
	return r.reports
}

// grow takes in members that have come.
func (r *running) grow(ctx context.Context) {
	if r.More == nil {
		return
	}
	for _, m := range r.More(ctx, r.Members) {
		r.Members, r.busy = append(r.Members, m), append(r.busy, false)
		r.mu.Lock()
		r.reports = append(r.reports, MemberReport{})
		r.mu.Unlock()
	}
}

// besides is who has ended when that was no member: what was asked for.
const besides = -1

// guard keeps a panic from ending more than what it happened in.
func guard(log *zap.Logger, destination string) {
	if p := recover(); p != nil {
		log.Error("panic", zap.String("destination", destination), zap.Any("panic", p), zap.Stack("stack"))
	}
}

// started is a run that holds its checkpoint, or could not be made.
type started struct {
	run   *ingest.Run
	leave func() // of the convoy
	done  func()
	err   error
}

// start begins the next run of each member that has none: all hold their checkpoints,
// and have joined the convoy, before any asks for a page.
func (r *running) start(ctx context.Context) {
	runs := make([]started, len(r.Members))
	var wg sync.WaitGroup
	for i, m := range r.Members {
		if r.busy[i] {
			continue
		}
		wg.Go(func() {
			// That of a panic, if there is one.
			runs[i].err = errPanic
			defer guard(r.Log, m.Desk.Destination)
			if m.Due == nil || m.Due(ctx) {
				s := &runs[i]
				s.run, s.done, s.err = m.Desk.ownWith(ctx, r.Dataset, func(run *ingest.Run) { s.leave = r.prepare(run) })
				return
			}
			runs[i].err = nil
		})
	}
	wg.Wait()
	var begin []func()
	for i, s := range runs {
		switch {
		case s.err != nil:
			if s.leave != nil {
				s.leave()
			}
			r.Log.Error("run not started", zap.String("destination", r.Members[i].Desk.Destination), zap.Error(s.err))
			r.report(i, ingest.Report{Outcome: ingest.Failed, Reason: s.err.Error()}, s.err)
		case s.run != nil:
			r.busy[i] = true
			r.working++
			destination := r.Members[i].Desk.Destination
			begin = append(begin, func() { r.carry(ctx, i, destination, s) })
		}
	}
	for _, f := range begin {
		go f()
	}
}

// prepare lets a run join the convoy, before anybody else can see it.
func (r *running) prepare(run *ingest.Run) (leave func()) {
	r.mu.Lock()
	if r.deadline.IsZero() {
		r.deadline = r.Clock.Now().Add(run.Budget)
	}
	run.Budget = min(run.Budget, r.deadline.Sub(r.Clock.Now()))
	r.mu.Unlock()
	if r.Began != nil {
		r.Began(run)
	}
	leave = func() {}
	if joint, ok := run.Source.(ingest.Joint); ok && r.Convoy != nil {
		run.Source, leave = r.Convoy.Join(joint)
	}
	return leave
}

// carry carries a run out. Members may come meanwhile: it looks at none of them.
func (r *running) carry(ctx context.Context, i int, destination string, s started) {
	defer func() { r.ended <- i }()
	defer s.leave()
	defer s.done()
	defer guard(r.Log, destination)
	// That of a panic.
	report, err := ingest.Report{Run: s.run.ID, Outcome: ingest.Failed, Reason: errPanic.Error()}, errPanic
	defer func() { r.report(i, report, err) }()
	report, err = s.run.Do(ctx)
}

var errPanic = errors.New("internal error: the log tells more")

func (r *running) report(i int, report ingest.Report, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reports[i] = MemberReport{&report, err}
}
