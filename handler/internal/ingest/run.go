package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/record"
)

const (
	// DefaultBudget is how long a run may go on. It leaves five minutes to the
	// functionTimeout of 30 for the last page and the last uploads.
	DefaultBudget = 25 * time.Minute
	// DefaultOverlap is how far a window reaches back behind the watermark,
	// for what Qualys shows later than it dates it. Rows that it brings again
	// unchanged are not sent again.
	DefaultOverlap = 10 * time.Minute
	// DefaultInFlight is how many batches may be sent, or wait for their
	// checkpoint, at once: enough to hide an upload behind the decoding, and
	// what a killed run repeats at most.
	DefaultInFlight = 4
	// readGrace is how long beyond the budget a page may take to reach a safe
	// point, sendGrace how long the last batches may.
	readGrace = 30 * time.Second
	sendGrace = 2 * time.Minute
	// stopGrace is how long batches in flight may take after an interruption.
	stopGrace = 15 * time.Second
	// recordGrace is how long the run record may take to be written: one call that
	// hangs, and another.
	recordGrace = 35 * time.Second
	// idleHold is how much longer than its budget a run may be silent: a page and
	// the last batches, and a clock that is not quite right.
	idleHold = 15 * time.Minute
	// maxTries is how often a page may fail without any progress where a smaller
	// one does not help.
	maxTries = 6
)

// A Run carries one window of a dataset as far as its budget allows. Use it once.
type Run struct {
	// ID of the run, unique.
	ID      string
	Dataset *Dataset
	Source  Source
	// Destination of the rows, and its name in the state.
	Destination     Destination
	DestinationName string
	// Integration is the number of the integration that the destination is of; empty
	// for the default one. Its records and dead letters are kept apart.
	Integration string
	// Asked is a window that somebody asked for; nil: the dataset's own next one.
	Asked *Asked
	// Ending, if not nil, is called with the run's end while it still holds the
	// checkpoint: until it returns no other run begins.
	Ending func(ctx context.Context, report Report, err error)
	// Target says which service the destination is: a window that was begun
	// with one cannot be continued with another.
	Target string
	Store  checkpoint.Store
	// Health takes the run's own row; nil: nobody does.
	Health Destination
	// Policy for the dataset's continued field.
	Policy record.Policy
	// Lookback is how far back the very first window begins; zero: everything.
	Lookback time.Duration
	// Refresh is after how long a window brings everything again; zero: never.
	Refresh time.Duration
	// Joined, if not nil, adds what the KnowledgeBase says to the rows;
	// JoinedIdentity is that of its source and destination, JoinedDestination the
	// destination's name in the state, if it is another.
	Joined            *Joined
	JoinedIdentity    string
	JoinedDestination string
	// Overlap, Budget and InFlight; their defaults if zero.
	Overlap  time.Duration
	Budget   time.Duration
	InFlight int
	// Patience is how long a page waits for the destination to take a batch, where
	// others read it as well; zero: as long as it takes.
	Patience time.Duration
	// MaxRecent is how many rows delivered lately are remembered; DefaultMaxRecent if
	// zero.
	MaxRecent int
	// BatchBytes is the longest batch, but for a single row that is longer; zero: what
	// the destination takes.
	BatchBytes int
	// RowBytes is the longest row, likewise; what does not fit is kept whole among the
	// dead letters.
	RowBytes int
	Clock    Clock
	Log      *zap.Logger

	counts   counters
	started  time.Time
	deadline time.Time
	// acquiring is when the run began, by the machine's own time.
	acquiring time.Time
	state     *Checkpoint
	began     position // where the checkpoint stood
	// savedIndex is the index that the checkpoint names as it was saved last.
	savedIndex string
	lease      checkpoint.Lease
	notHeld    error   // why there is no lease
	whole      *Window // the one that has arrived whole
	warnings   []string
}

// An Asked window is one that somebody asked for by hand. It has a checkpoint of
// its own, so that the dataset's watermark stays where it is, and it sends all
// that it reads: unchanged rows, too.
type Asked struct {
	// ID of what was asked for.
	ID string
	// After is the window's start; zero: everything.
	After time.Time
}

// errPause ends reading at a safe point.
var errPause = errors.New("the run's budget is used up")

// errStop is the cause when the program is asked to stop.
var errStop = errors.New("the run was interrupted")

// Progress tells what a run that is going on has done, and what it waits for.
func (r *Run) Progress() (Counts, string) { return r.counts.snapshot() }

// Do runs. The error is that of a Failed run; the report says the same.
func (r *Run) Do(ctx context.Context) (Report, error) {
	if r.Overlap == 0 {
		r.Overlap = DefaultOverlap
	}
	if r.Budget == 0 {
		r.Budget = DefaultBudget
	}
	if r.InFlight == 0 {
		r.InFlight = DefaultInFlight
	}
	// Even after a panic: what is not released blocks every later run.
	defer func() {
		if r.lease != nil {
			r.Release(ctx)
		}
	}()
	outcome, err := r.hold(ctx)
	report := Report{Version: stateVersion, Run: r.ID, Dataset: r.Dataset.Name, Integration: r.Integration, Started: r.started, Ended: r.Clock.Now().UTC(), Outcome: outcome}
	if r.Asked != nil {
		report.Request = r.Asked.ID
	}
	report.Warnings = r.warnings
	report.Counts, _ = r.counts.snapshot()
	if limits := r.Source.CallLimits(); limits != record.NoCallLimits {
		report.Limits = &limits
	}
	if wrong := report.check(); wrong != nil && outcome != Failed {
		outcome, err = Failed, wrong
	}
	report, err = r.end(ctx, report, outcome, err)
	if r.Ending != nil && r.lease != nil {
		r.Ending(ctx, report, err)
	}
	if outcome != Held {
		r.sendHealth(ctx, &report)
	}
	return report, err
}

// check is law 3. Nothing else would show that a row went nowhere.
func (r *Report) check() error {
	if r.Decoded != r.Accepted+r.DeadLetters+r.Abandoned || r.Outcome == Complete && r.Abandoned > 0 {
		return fmt.Errorf("the counts disagree: %d decoded, %d accepted, %d dead letters, %d abandoned", r.Decoded, r.Accepted, r.DeadLetters, r.Abandoned)
	}
	return nil
}

// end tells and keeps how the run ended.
func (r *Run) end(ctx context.Context, report Report, outcome Outcome, err error) (Report, error) {
	report.Outcome = outcome
	if r.state != nil {
		if w := r.state.Window; w != nil {
			report.After, report.Until, report.NextID = w.After, &w.Until, w.NextID
		} else if r.whole != nil {
			report.After, report.Until = r.whole.After, &r.whole.Until
		}
		report.Isolated, report.IsolatedTotal, report.Stalled = r.state.Isolated, len(r.state.Isolated), r.state.Stalled
		report.Isolated = report.Isolated[:min(maxReported, len(report.Isolated))]
	}
	if err != nil {
		report.Reason = err.Error()
	}
	if outcome != Held {
		if saveErr := r.keepReport(ctx, &report); saveErr != nil {
			err = errors.Join(err, saveErr)
			report.Outcome, report.Reason = Failed, err.Error()
		}
	}
	r.logEnd(&report, err)
	if report.Outcome != Failed && (errors.Is(err, errPause) || errors.Is(err, errStop) || isLimit(err) || errors.Is(err, checkpoint.ErrHeld)) {
		err = nil
	}
	return report, err
}

func (r *Run) logEnd(report *Report, err error) {
	fields := []zap.Field{zap.String("outcome", string(report.Outcome)), zap.Any("counts", report.Counts),
		zap.Duration("took", report.Ended.Sub(report.Started)), zap.Timep("until", report.Until)}
	switch {
	case report.Outcome == Failed:
		r.Log.Error("run failed", append(fields, zap.Error(err))...)
	case report.Stalled >= stalledRuns:
		r.Log.Error("runs without progress", append(fields, zap.Int("in a row", report.Stalled), zap.String("reason", report.Reason))...)
	case report.Outcome == Waiting:
		r.Log.Warn("run ended early", append(fields, zap.String("reason", err.Error()))...)
	case err != nil:
		r.Log.Info("run ended early", append(fields, zap.String("reason", err.Error()))...)
	default:
		r.Log.Info("run ended", fields...)
	}
}

// keepReport writes the run record. It has a context of its own: the run's may
// have ended.
func (r *Run) keepReport(ctx context.Context, report *Report) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordGrace)
	defer cancel()
	doc, err := encodeState(report)
	if err != nil {
		return fmt.Errorf("encode the run record: %w", err)
	}
	return checkpoint.Write(ctx, r.Store, RecordName(report.Integration, report.Dataset, report.Started, report.Run), func(w io.Writer) error {
		_, err := w.Write(doc)
		return err
	})
}

// idleHolder is the error for a hold under which nothing is written for longer
// than a run can go on. Held runs tell nobody; this one has to.
func (r *Run) idleHolder(ctx context.Context) error {
	// The holder may be about to write it; else the next run looks again.
	c, _ := ReadCheckpoint(ctx, r.Store, r.CheckpointName(), r.Dataset.Name)
	if c == nil || c.Saved == nil {
		return nil
	}
	if since := r.Clock.Now().Sub(*c.Saved); since > r.Budget+idleHold {
		return fmt.Errorf("%w, and has written nothing for %s: if none is going on, end its lease (az storage blob lease break, of %s)", checkpoint.ErrHeld, since.Round(time.Minute), r.CheckpointName())
	}
	return nil
}

// document is the checkpoint as it is to be saved now.
func (r *Run) document() ([]byte, error) {
	now := r.Clock.Now().UTC().Truncate(time.Second)
	r.state.Saved = &now
	counts, waiting := r.counts.snapshot()
	r.state.Progress = &Progress{Started: r.started, Counts: counts, Waiting: waiting}
	return r.state.encode()
}

// Started is when the run began; zero before that.
func (r *Run) Started() time.Time { return r.started }

// Acquire takes hold of the checkpoint, for callers that want to know before Do
// whether another run holds it: then it returns checkpoint.ErrHeld. Behind nil
// comes Do or Release; behind an error Do only reports it.
func (r *Run) Acquire(ctx context.Context) error {
	r.started, r.acquiring = r.Clock.Now().UTC(), time.Now()
	r.lease, r.notHeld = r.Store.Acquire(ctx, r.CheckpointName())
	if r.notHeld != nil && !errors.Is(r.notHeld, checkpoint.ErrHeld) {
		r.notHeld = fmt.Errorf("take hold of the checkpoint: %w", r.notHeld)
	}
	return r.notHeld
}

// Release lets go of the checkpoint. Do does so itself.
func (r *Run) Release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
	defer cancel()
	if err := r.lease.Release(ctx); err != nil {
		r.Log.Warn("checkpoint not released; it frees itself within a minute", zap.Error(err))
	}
}

// hold takes hold of the checkpoint, unless that is done, and works.
func (r *Run) hold(ctx context.Context) (Outcome, error) {
	err := r.notHeld
	if r.started.IsZero() {
		err = r.Acquire(ctx)
	}
	if errors.Is(err, checkpoint.ErrHeld) {
		if idle := r.idleHolder(ctx); idle != nil {
			return Failed, idle
		}
		return Held, err
	}
	if err != nil {
		return Failed, err
	}
	r.deadline = r.started.Add(r.Budget)
	r.Log.Info("run started", zap.Duration("budget", r.Budget))
	outcome, err := r.window(ctx)
	// A window that has arrived is progress, even where Qualys' clock stands still.
	if r.state != nil && outcome != Complete && !errors.Is(err, checkpoint.ErrLost) {
		r.countStalled(ctx, r.began)
	}
	return outcome, err
}

// window carries one window over, from where the checkpoint stands.
func (r *Run) window(parent context.Context) (Outcome, error) {
	doc, err := r.lease.Load(parent)
	if err != nil {
		return Failed, fmt.Errorf("load the checkpoint: %w", err)
	}
	if r.state, err = decodeCheckpoint(doc, r.Dataset.Name); err != nil {
		return Failed, fmt.Errorf("%s: %w", r.CheckpointName(), err)
	}
	if r.Asked != nil && r.state.Watermark != nil {
		return Complete, nil // a run before has ended right behind its end
	}
	r.began, r.savedIndex = r.state.position(), r.state.Index
	r.state.LastRun = r.ID
	// A state that cannot be written must show before rows are sent, not behind
	// them: every run would send them again.
	if doc, err = r.document(); err == nil {
		err = r.lease.Save(parent, doc)
	}
	if err != nil {
		return Failed, fmt.Errorf("save the checkpoint: %w", err)
	}
	seen, err := r.openLedger(parent)
	if err != nil {
		return Failed, err
	}

	// Sending goes on for a while when reading has to stop.
	sendCtx, stopSending := context.WithCancelCause(context.WithoutCancel(parent))
	defer stopSending(nil)
	left := r.Budget - time.Since(r.acquiring) // the state may have taken its time
	hard := time.AfterFunc(left+sendGrace, func() { stopSending(errPause) })
	defer hard.Stop()
	defer context.AfterFunc(parent, func() {
		time.AfterFunc(stopGrace, func() { stopSending(errStop) })
	})()
	go func() {
		select {
		case <-r.lease.Lost():
			stopSending(checkpoint.ErrLost)
		case <-sendCtx.Done():
		}
	}()
	readCtx, stopReading := context.WithCancelCause(sendCtx)
	defer stopReading(nil)
	soft := time.AfterFunc(left+readGrace, func() { stopReading(errPause) })
	defer soft.Stop()
	defer context.AfterFunc(parent, func() { stopReading(errStop) })()

	d := newDelivery(sendCtx, stopReading, r, seen)
	if r.Joined != nil {
		d.join = r.openJoin(parent)
	}
	readErr := r.prove(readCtx, d)
	if readErr == nil {
		readErr = r.pages(readCtx, d)
	}
	if err := d.drain(); err != nil {
		return endOf(err), err
	}
	if x, ok := seen.(*index); ok && readErr == nil && r.state.Window.After == nil {
		readErr = r.removals(readCtx, d, x)
		if err := d.drain(); err != nil {
			return endOf(err), err
		}
	}
	if readErr == nil {
		readErr = r.retryIsolated(readCtx, d)
		if err := d.drain(); err != nil {
			return endOf(err), err
		}
		// All pages have arrived: what there is no time for now does not hold the
		// window open.
		if errors.Is(readErr, errPause) || isLimit(readErr) {
			r.Log.Info("the isolated are left for the next run", zap.String("reason", readErr.Error()))
			readErr = nil
		}
	}
	if readErr != nil {
		d.pause()
		return endOf(readErr), readErr
	}
	if err := d.nothingTaken(); err != nil {
		d.pause()
		return Failed, err
	}
	r.askWitness(readCtx)
	if err := d.finish(); err != nil {
		return Failed, err
	}
	return Complete, nil
}

// endOf tells the good ends of an unfinished window from failures.
func endOf(err error) Outcome {
	switch {
	case errors.Is(err, errPause), errors.Is(err, errStop):
		return Paused
	case isLimit(err):
		return Waiting
	}
	return Failed
}

// identity is what a window is tied to.
func (r *Run) identity() string { return Identity(r.Source, r.Target) }

// Identity is what state is tied to: a source, and the service it goes to.
func Identity(source Source, target string) string { return source.Identity() + " to " + target }

// query is where reading begins: inside an unfinished window, or at the
// watermark less the overlap.
func (r *Run) query() record.Query {
	if w := r.state.Window; w != nil {
		if w.Source == r.identity() {
			q := record.Query{From: w.NextID}
			if w.After != nil {
				q.After = *w.After
				q.Known = r.known(q.After)
			}
			r.Log.Info("going on with an unfinished window", zap.Timep("after", w.After), zap.Time("until", w.Until), zap.Uint64("nextId", w.NextID))
			return q
		}
		r.Log.Warn("the settings ask for other records than the unfinished window was begun with: beginning it again")
		r.state.Window, r.state.Trouble = nil, nil
	}
	switch {
	case r.Asked != nil:
		return record.Query{After: r.Asked.After}
	case r.refreshIsDue():
		r.Log.Info("everything is sent again", zap.Timep("last", r.state.LastFull), zap.Duration("every", r.Refresh))
		return record.Query{}
	case r.state.Watermark != nil:
		after := r.state.Watermark.Add(-r.Overlap).Truncate(time.Second)
		return record.Query{After: after, Known: r.known(after)}
	case r.Lookback > 0:
		// The only time that is not Qualys': there is none of theirs yet.
		after := r.Clock.Now().Add(-r.Lookback).UTC().Truncate(time.Second)
		return record.Query{After: after, Known: r.known(after)}
	}
	return record.Query{}
}

// known is back to when all that a window from after on would bring twice is known to
// have been delivered: as far as the last window reached, and the ledger remembers it.
// Before the first there is nothing that could come twice.
func (r *Run) known(after time.Time) time.Time {
	s := r.state
	if s.Watermark == nil {
		return after.Add(-recentSlack)
	}
	known := s.Watermark.Add(-r.Overlap - recentSlack)
	switch {
	case s.LastAfter != nil && s.LastAfter.After(known):
		known = *s.LastAfter
	case s.LastAfter == nil && (s.LastFull == nil || !s.LastFull.Equal(*s.Watermark)):
		return after // the last window is one of an older version: where it began is not known
	}
	if known.After(after) {
		return after
	}
	return known
}

// refreshIsDue compares watermarks: both are of Qualys' clock.
func (r *Run) refreshIsDue() bool {
	s := r.state
	return r.Refresh > 0 && s.Watermark != nil && (s.LastFull == nil || s.LastFull.After(*s.Watermark) || s.Watermark.Sub(*s.LastFull) >= r.Refresh)
}
