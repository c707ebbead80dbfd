package ondemand

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/ingest"
)

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
	t := Tick{Dataset: d, Members: []Member{{Desk: k, Requests: true}}, Clock: k.Clock, Log: k.Log}
	m := t.Do(ctx)[0]
	return *m.Report, m.Err
}

// Own makes a run of the dataset's own next window, which carries the open
// requests for it, too. done is to be called when it has ended.
func (k *Desk) Own(ctx context.Context, d *ingest.Dataset) (run *ingest.Run, done func(), err error) {
	return k.ownWith(ctx, d, func(*ingest.Run) {})
}

// ownWith is Own of a run that prepare has its say in, before anybody else can see it.
func (k *Desk) ownWith(ctx context.Context, d *ingest.Dataset, prepare func(*ingest.Run)) (run *ingest.Run, done func(), err error) {
	if run, err = k.newRun(d, k.NewID(), nil); err != nil {
		return nil, nil, err
	}
	prepare(run)
	if held := run.Acquire(ctx) == nil; !held {
		return run, func() {}, nil // its Do tells why
	}
	defer func() {
		if done == nil { // a panic: what is not released blocks every later run
			run.Release(ctx)
		}
	}()
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
	open := k.open(ctx, d)
	slices.SortStableFunc(open, func(a, b *Request) int { return a.latest().Started.Compare(b.latest().Started) })
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

// take makes a job of an open request. The error is checkpoint.ErrHeld if
// somebody carries it, fs.ErrNotExist if it is closed.
func (k *Desk) take(ctx context.Context, d *ingest.Dataset, r *Request) (*Job, error) {
	run, err := k.newRun(d, k.NewID(), r)
	if err != nil {
		k.settle(ctx, r, ingest.Report{Outcome: ingest.Failed, Reason: err.Error()}, err)
		return nil, err
	}
	if err := run.Acquire(ctx); err != nil {
		return nil, err
	}
	holding := true
	defer func() {
		if holding { // a panic
			run.Release(ctx)
		}
	}()
	// Now that nobody else can: is it still open, and what was tried?
	now, err := k.read(ctx, k.name(openState, r))
	if err == nil {
		err = k.carries(ctx, run, []*Request{now})
	}
	holding = false
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
