package ingest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"
)

// A Clock tells the time and waits.
type Clock interface {
	Now() time.Time
	// Sleep returns early, with the context's cause, when ctx ends.
	Sleep(ctx context.Context, d time.Duration) error
}

// SystemClock is the machine's clock.
type SystemClock struct{}

// Now implements Clock.
func (SystemClock) Now() time.Time { return time.Now() }

// Sleep implements Clock.
func (SystemClock) Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// inTime tells whether there is budget left to begin something.
func (r *Run) inTime(ctx context.Context) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if !r.Clock.Now().Before(r.deadline) {
		return errPause
	}
	return nil
}

// wait waits before the next try, as long as the other side wants or, if it
// did not say, twice as long each time. A wait beyond the deadline ends the run
// with the reason.
func (r *Run) wait(ctx context.Context, deadline time.Time, reason error, after time.Duration, tries int) error {
	after = backOff(after, tries)
	if !r.Clock.Now().Add(after).Before(deadline) {
		r.Log.Warn("the wait is longer than the run's budget: ending the run", zap.Duration("wait", after), zap.String("reason", reason.Error()))
		return reason
	}
	r.Log.Warn("waiting before another try", zap.Duration("wait", after), zap.Int("try", tries), zap.String("reason", reason.Error()))
	r.counts.retries.Add(1)
	r.counts.waited.Add(int64(after))
	r.counts.setWaiting(fmt.Sprintf("%s: %v", after.Round(time.Second), reason))
	defer r.counts.setWaiting("")
	return r.Clock.Sleep(ctx, after)
}

// backOff is how long to wait before another try: as long as the other side
// wants or, if it did not say, twice as long each time.
func backOff(after time.Duration, tries int) time.Duration {
	if after > 0 {
		return after
	}
	after = doubling(tries)
	return after + rand.N(after/2) //nolint:gosec // spreads retries, guards nothing
}

// doubling is a second, and twice as long with each try, up to a minute.
func doubling(tries int) time.Duration {
	return min(time.Minute, time.Second<<min(max(tries, 1)-1, 6))
}
