package ondemand

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/ingest"
)

const (
	// maxAge is for how long a request is carried on that does not arrive: an
	// outage may last some days, and who has asked will have asked again.
	maxAge = 7 * 24 * time.Hour
	// ownEvery is how often a tick that carries a request runs the dataset's own
	// window meanwhile: as often as the example schedule. The Functions host begins
	// no other tick before this one has ended.
	ownEvery = 5 * time.Minute
	// leastBudget is what is left of a tick that a request is still begun in.
	leastBudget = 10 * time.Second
	// noteTime is how long the last word on a request may take when the program
	// is stopping.
	noteTime = 15 * time.Second
)

// A Desk takes requests for one destination and carries them out, beside the
// ticks.
type Desk struct {
	File
	Clock ingest.Clock
	Log   *zap.Logger
	// NewRun makes a run: of what r asks for or, where that is nil or its own, of
	// the dataset's own next window. It sets all but Asked and Ending.
	NewRun func(d *ingest.Dataset, id string, r *Request) (*ingest.Run, error)
	// NewID makes ids of runs, which sort out nothing and never repeat.
	NewID func() string

	mu   sync.Mutex // of taking requests
	live live
}

// A BusyError is the answer to who asks for a run while one is going on.
type BusyError struct {
	Dataset string
	// Run that is going on; Request that it carries, if any.
	Run, Request string
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("a run of %s is going on: %s", e.Dataset, e.Run)
}

// A Job is a request that was accepted, with its run, which holds its
// checkpoint. It must be done.
type Job struct {
	*Request
	run  *ingest.Run
	done func()
}

// Ask takes a request for one window of each of the datasets. It returns a
// *BusyError if a run of one of them is going on, wherever. When it returns jobs
// they are in the state, under one id; Do carries them out.
func (k *Desk) Ask(ctx context.Context, datasets []*ingest.Dataset, w Window) (jobs []*Job, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	defer func() {
		if err == nil {
			return
		}
		for _, job := range jobs {
			err = errors.Join(err, k.takeBack(ctx, job))
		}
		jobs = nil
	}()
	for _, d := range datasets {
		if err := k.busy(ctx, d); err != nil {
			return jobs, err
		}
	}
	id := k.NewID()
	now := k.Clock.Now().UTC().Truncate(time.Second)
	for _, d := range datasets {
		r := &Request{Version: documentVersion, ID: id, Dataset: d.Name, Asked: now, Window: w}
		run, err := k.newRun(d, id, r)
		if err != nil {
			return jobs, err
		}
		if err := run.Acquire(ctx); err != nil {
			if errors.Is(err, checkpoint.ErrHeld) { // since we looked
				return jobs, k.holder(ctx, d)
			}
			return jobs, err
		}
		jobs = append(jobs, &Job{Request: r, run: run})
		carried := []*Request{r}
		if r.Own() { // those that are open ask for the same
			carried = append(carried, k.own(ctx, d)...)
		}
		if err := k.carries(ctx, run, carried); err != nil {
			return jobs, err
		}
	}
	for _, job := range jobs {
		job.done = k.live.add(job.run, id)
	}
	return jobs, nil
}

// takeBack undoes a request that could not be taken whole.
func (k *Desk) takeBack(ctx context.Context, job *Job) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteTime)
	defer cancel()
	err := k.Store.Delete(ctx, k.name(openState, job.Request))
	job.run.Release(ctx)
	return errors.Join(err, k.removeCheckpoint(ctx, job.Request))
}

// newRun makes a run with all that the desk knows.
func (k *Desk) newRun(d *ingest.Dataset, id string, r *Request) (*ingest.Run, error) {
	run, err := k.NewRun(d, id, r)
	if err != nil {
		return nil, fmt.Errorf("make the run: %w", err)
	}
	if r != nil {
		run.Asked = r.asked()
	}
	return run, nil
}

// carries notes in requests that a run carries them, and lets its end settle
// them, before anybody else can get hold of them.
func (k *Desk) carries(ctx context.Context, run *ingest.Run, requests []*Request) error {
	run.Ending = func(ctx context.Context, report ingest.Report, err error) {
		for _, r := range requests {
			k.settle(ctx, r, report, err)
		}
	}
	for _, r := range requests {
		r.began(run)
		if err := k.save(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// own are the open requests for the dataset's own next window, of which the
// caller holds the checkpoint.
func (k *Desk) own(ctx context.Context, d *ingest.Dataset) []*Request {
	open, err := k.Open(ctx, d.Name)
	if err != nil {
		// The own window is not to wait for that.
		k.Log.Warn("not all requests can be read", zap.String("dataset", d.Name), zap.Error(err))
	}
	return slices.DeleteFunc(open, func(r *Request) bool { return !r.Own() })
}

// busy tells of a run of the dataset that is going on, here or elsewhere.
func (k *Desk) busy(ctx context.Context, d *ingest.Dataset) error {
	if l := k.live.of(d); len(l) > 0 {
		return &BusyError{Dataset: d.Name, Run: l[0].Run.ID, Request: l[0].Request}
	}
	held, err := k.Store.Held(ctx, ingest.CheckpointName(k.Destination, d.Name))
	if err != nil {
		return fmt.Errorf("see whether a run is going on: %w", err)
	}
	if held {
		return k.holder(ctx, d)
	}
	open, err := k.Open(ctx, d.Name)
	if err != nil {
		k.Log.Warn("not all requests can be read", zap.Error(err))
	}
	for _, r := range open {
		if r.Own() {
			continue
		}
		held, err := k.Store.Held(ctx, ingest.AskedName(k.Destination, d.Name, r.ID))
		if err != nil {
			return fmt.Errorf("see whether a run is going on: %w", err)
		}
		if held {
			return &BusyError{Dataset: d.Name, Run: r.last(), Request: r.ID}
		}
	}
	return nil
}

// last is the run that has carried it last.
func (r *Request) last() string {
	if n := len(r.Attempts); n > 0 {
		return r.Attempts[n-1].Run
	}
	return r.ID
}

// holder is the error that names the run which holds the dataset's checkpoint: a
// run notes itself in the requests that it carries, then in the checkpoint.
func (k *Desk) holder(ctx context.Context, d *ingest.Dataset) error {
	if own := k.own(ctx, d); len(own) > 0 {
		return &BusyError{Dataset: d.Name, Run: own[0].last(), Request: own[0].ID}
	}
	busy := &BusyError{Dataset: d.Name, Run: "unknown"}
	c, err := ingest.ReadCheckpoint(ctx, k.Store, ingest.CheckpointName(k.Destination, d.Name), d.Name)
	if err != nil {
		return fmt.Errorf("see which run is going on: %w", err)
	}
	if c != nil && c.LastRun != "" {
		busy.Run = c.LastRun
	}
	return busy
}

// Run is the job's run.
func (j *Job) Run() *ingest.Run { return j.run }

// Do carries a job out, to its end or to that of its run's budget. A panic ends
// that job alone.
func (k *Desk) Do(ctx context.Context, job *Job) (report ingest.Report, err error) {
	defer job.done()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("internal error: %v", p)
			k.Log.Error("panic", zap.String("request", job.ID), zap.Any("panic", p), zap.Stack("stack"))
		}
	}()
	report, err = job.run.Do(ctx)
	if job.Ended != nil {
		k.clean(ctx, job.Request)
	}
	return report, err
}

// clean removes the checkpoint of a request that is closed.
func (k *Desk) clean(ctx context.Context, r *Request) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteTime)
	defer cancel()
	if err := k.removeCheckpoint(ctx, r); err != nil {
		k.Log.Warn("a checkpoint is left over that nothing needs", zap.String("request", r.ID), zap.Error(err))
	}
}

// settle closes a request that has arrived, or failed for good. The run that has
// carried it still holds its checkpoint.
func (k *Desk) settle(ctx context.Context, r *Request, report ingest.Report, err error) {
	now := k.Clock.Now().UTC().Truncate(time.Second)
	switch {
	case report.Outcome == ingest.Complete && len(report.Isolated) > 0 && !r.Own():
		// Those of its own windows are tried again by the next; here there is none.
		r.Outcome, r.Reason = ingest.Failed, missing(report.Isolated)
	case report.Outcome == ingest.Complete:
		r.Outcome = ingest.Complete
	case report.Outcome == ingest.Failed && ingest.IsWrong(err) && r.hasParameters():
		r.Outcome, r.Reason = ingest.Failed, report.Reason
	case r.expired(now):
		r.Outcome, r.Reason = ingest.Failed, fmt.Sprintf("given up after %s: %s", now.Sub(r.Asked), report.Reason)
	default:
		return // the next tick goes on: somebody may have to act, or a service to recover
	}
	r.Ended = &now
	k.end(ctx, r)
}

// hasParameters tells that it asks with parameters of its own, not just those of
// the settings, which somebody may mend.
func (r *Request) hasParameters() bool { return r.FilterParameters != "" || len(r.HostIDs) > 0 }

// missing names those whose answers have failed by themselves.
func missing(isolated []ingest.Isolated) string {
	var ids []string
	for _, i := range isolated {
		ids = append(ids, strconv.FormatUint(i.ID, 10))
	}
	return fmt.Sprintf("all has arrived but what fails by itself: %s; ask again for what is missing. The first: %s", strings.Join(ids, ", "), isolated[0].Reason)
}

// end closes a request. One that cannot be closed stays open, and is seen again
// at the next tick.
func (k *Desk) end(ctx context.Context, r *Request) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteTime)
	defer cancel()
	log := k.Log.With(zap.String("request", r.ID), zap.String("dataset", r.Dataset))
	if err := k.close(ctx, r); err != nil {
		r.Ended = nil
		log.Error("request not closed: the next tick tries again", zap.Error(err))
		return
	}
	log.Info("request closed", zap.String("outcome", string(r.Outcome)), zap.String("reason", r.Reason), zap.Int("tries", r.Tries))
}

// Tick carries the dataset's own next window, and beside it whatever was asked
// for and has not arrived.
func (k *Desk) Tick(ctx context.Context, d *ingest.Dataset) (ingest.Report, error) {
	run, done, err := k.Own(ctx, d)
	if err != nil {
		return ingest.Report{}, err
	}
	deadline := k.Clock.Now().Add(run.Budget)
	waiting, wake := context.WithCancel(ctx)
	defer wake()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer wake()
		k.carryOn(ctx, d, deadline)
	}()
	defer func() { <-ended }()
	report, err := doOwn(ctx, run, done)
	for k.Clock.Now().Add(ownEvery).Before(deadline) {
		if k.Clock.Sleep(waiting, ownEvery) != nil {
			break // there is nothing to wait for any more
		}
		again, done, ownErr := k.Own(ctx, d)
		if ownErr != nil {
			return report, errors.Join(err, ownErr)
		}
		again.Budget = min(again.Budget, deadline.Sub(k.Clock.Now()))
		report, err = doOwn(ctx, again, done)
	}
	return report, err
}

// doOwn runs. Even behind a panic the run is not listed any more.
func doOwn(ctx context.Context, run *ingest.Run, done func()) (ingest.Report, error) {
	defer done()
	return run.Do(ctx)
}

// Own makes a run of the dataset's own next window, which carries the open
// requests for it, too. done is to be called when it has ended.
func (k *Desk) Own(ctx context.Context, d *ingest.Dataset) (run *ingest.Run, done func(), err error) {
	if run, err = k.newRun(d, k.NewID(), nil); err != nil {
		return nil, nil, err
	}
	if held := run.Acquire(ctx) == nil; !held {
		return run, func() {}, nil // its Do tells why
	}
	own := k.own(ctx, d)
	if err := k.carries(ctx, run, own); err != nil {
		k.Log.Warn("the attempt is not noted in its request", zap.Error(err))
	}
	request := ""
	if len(own) > 0 {
		request = own[0].ID
	}
	return run, k.live.add(run, request), nil
}

// carryOn goes on with the requests for other windows that have not arrived,
// unless somebody does so: first those that have waited longest for a run.
func (k *Desk) carryOn(ctx context.Context, d *ingest.Dataset, deadline time.Time) {
	open, err := k.Open(ctx, d.Name)
	if err != nil {
		k.Log.Warn("not all requests can be read", zap.String("dataset", d.Name), zap.Error(err))
	}
	slices.SortStableFunc(open, func(a, b *Request) int { return a.lastStarted().Compare(b.lastStarted()) })
	for _, r := range open {
		budget := deadline.Sub(k.Clock.Now())
		if r.Own() || budget < leastBudget || ctx.Err() != nil {
			continue
		}
		log := k.Log.With(zap.String("request", r.ID), zap.String("dataset", r.Dataset))
		job, err := k.take(ctx, d, r)
		switch {
		case errors.Is(err, checkpoint.ErrHeld), errors.Is(err, fs.ErrNotExist): // somebody does, or has done so
		case err != nil:
			log.Error("request not carried on", zap.Error(err))
		default:
			job.run.Budget = min(job.run.Budget, budget)
			log.Info("going on with what was asked for", zap.Int("try", job.Tries))
			_, _ = k.Do(ctx, job) // the run has logged its end, and the request tells it
		}
	}
}

// lastStarted is when it was carried last.
func (r *Request) lastStarted() time.Time {
	if n := len(r.Attempts); n > 0 {
		return r.Attempts[n-1].Started
	}
	return time.Time{}
}

// take makes a job of an open request. The error is checkpoint.ErrHeld if
// somebody carries it, fs.ErrNotExist if it is closed.
func (k *Desk) take(ctx context.Context, d *ingest.Dataset, r *Request) (*Job, error) {
	run, err := k.newRun(d, k.NewID(), r)
	if err != nil {
		return nil, err
	}
	if err := run.Acquire(ctx); err != nil {
		return nil, err
	}
	// Now that nobody else can: is it still open, and what was tried?
	now, err := k.read(ctx, k.name(openState, r))
	if err == nil {
		err = k.carries(ctx, run, []*Request{now})
	}
	if err != nil {
		run.Release(ctx)
		if errors.Is(err, fs.ErrNotExist) {
			k.clean(ctx, r) // what Acquire has just made
		}
		return nil, err
	}
	return &Job{Request: now, run: run, done: k.live.add(run, r.ID)}, nil
}

// Resume takes up an open request for the same window, other than the dataset's
// own; nil if there is none. The error is checkpoint.ErrHeld if it is being
// carried.
func (k *Desk) Resume(ctx context.Context, d *ingest.Dataset, w Window) (*Job, error) {
	open, err := k.Open(ctx, d.Name)
	if err != nil {
		return nil, err
	}
	for _, r := range open {
		if r.Equal(w) {
			return k.take(ctx, d, r)
		}
	}
	return nil, nil
}
