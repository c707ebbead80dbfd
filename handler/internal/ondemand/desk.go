package ondemand

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/turn"
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

	turn turn.Turn // of taking requests
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

// Run is the job's run.
func (j *Job) Run() *ingest.Run { return j.run }

// Ask takes a request for one window of each of the datasets. It returns a
// *BusyError if a run of one of them is going on, wherever. When it returns jobs
// they are in the state, under one id; Do carries them out.
func (k *Desk) Ask(ctx context.Context, datasets []*ingest.Dataset, w Window) (jobs []*Job, err error) {
	if err := k.turn.Take(ctx); err != nil {
		return nil, fmt.Errorf("wait for others who ask for a run: %w", err)
	}
	defer k.turn.Leave()
	taken := false
	defer func() {
		if taken {
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
	taken = true
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
	return slices.DeleteFunc(k.open(ctx, d), func(r *Request) bool { return !r.Own() })
}

// open are the open requests that can be read: one that is damaged is told, and
// keeps nobody from anything.
func (k *Desk) open(ctx context.Context, d *ingest.Dataset) []*Request {
	open, err := k.Open(ctx, d.Name)
	if err != nil {
		k.Log.Warn("not all requests can be read", zap.String("dataset", d.Name), zap.Error(err))
	}
	return open
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
	for _, r := range k.open(ctx, d) {
		if r.Own() {
			continue
		}
		held, err := k.Store.Held(ctx, ingest.AskedName(k.Destination, d.Name, r.ID))
		if err != nil {
			return fmt.Errorf("see whether a run is going on: %w", err)
		}
		if held {
			return &BusyError{Dataset: d.Name, Run: r.latest().Run, Request: r.ID}
		}
	}
	return nil
}

// holder is the error that names the run which holds the dataset's checkpoint: a
// run notes itself in the requests that it carries, then in the checkpoint.
func (k *Desk) holder(ctx context.Context, d *ingest.Dataset) error {
	if own := k.own(ctx, d); len(own) > 0 {
		return &BusyError{Dataset: d.Name, Run: own[0].latest().Run, Request: own[0].ID}
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
