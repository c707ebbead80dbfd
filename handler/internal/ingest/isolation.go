package ingest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/record"
)

const (
	// maxIsolated is how many parents may be isolated at once: the checkpoint holds
	// them all, at some 400 bytes each, and is written with every batch.
	maxIsolated = 10_000
	// isolatedFirst is how long after its isolation a parent is tried again;
	// then it is twice as long each time, up to isolatedMost.
	isolatedFirst = 15 * time.Minute
	isolatedMost  = 24 * time.Hour
	// maxRetried is how many of them may fail again in a run, or a part of retriedPart
	// if that is more: the window stays open meanwhile, and each may take until its
	// answer is given up.
	maxRetried  = 3
	retriedPart = 100
	// maxReason is how much of a reason is kept, in characters.
	maxReason = 200
)

// Isolated is a parent, such as a host, whose page fails by itself: it is
// passed in every window and tried again now and then, until all that it has
// brought since has arrived.
type Isolated struct {
	ID uint64 `json:"id"`
	// After is the start of what is missing of it; null: everything.
	After *time.Time `json:"after"`
	// Since is when it was isolated, Again when it is tried next, by the clock of
	// this machine.
	Since  time.Time `json:"since"`
	Again  time.Time `json:"again"`
	Tries  int       `json:"tries"`
	Reason string    `json:"reason"`
}

// suspect describes a parent that fails by itself.
func (r *Run) suspect(id uint64, after time.Time, reason error) Isolated {
	now := r.Clock.Now().UTC().Truncate(time.Second)
	i := Isolated{ID: id, Since: now, Again: now.Add(isolatedFirst), Reason: firstRunes(reason.Error(), maxReason)}
	if !after.IsZero() {
		i.After = &after
	}
	return i
}

// blame adds the suspects to the checkpoint's list of isolated parents, which is saved
// with the next cursor.
func (d *delivery) blame() error {
	if len(d.suspects) == 0 {
		return nil
	}
	list := d.suspects
	d.suspects = nil
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.run.state
	for n, i := range list {
		if len(s.Isolated) >= maxIsolated {
			d.suspects = list[n:] // the cursor stays before them
			return fmt.Errorf("%d %s are isolated already, and that is as many as the state keeps: %s", len(s.Isolated), d.run.Dataset.Parents, i.Reason)
		}
		s.Isolated = append(slices.Clone(s.Isolated), i) // batches under way save the list
		d.unsaved = true
		d.run.Log.Error("one fails by itself: it is isolated, passed, and tried again later", zap.Uint64("id", i.ID), zap.String("of", d.run.Dataset.Parents), zap.String("reason", i.Reason))
	}
	slices.SortFunc(s.Isolated, func(a, b Isolated) int { return cmp.Compare(a.ID, b.ID) })
	return nil
}

// release takes a parent off the list.
func (d *delivery) release(id uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.run.state.Isolated = slices.DeleteFunc(slices.Clone(d.run.state.Isolated), func(i Isolated) bool { return i.ID == id })
}

// retryIsolated tries the isolated parents whose time has come, behind the
// window's last page. One that fails again stays isolated, and fails nothing
// else.
func (r *Run) retryIsolated(ctx context.Context, d *delivery) error {
	var arrived []uint64
	due := slices.Clone(r.state.Isolated)
	slices.SortStableFunc(due, func(a, b Isolated) int { return a.Again.Compare(b.Again) })
	failed := 0
	var ended error
	n := -1 // of those that were tried
	for _, i := range due {
		if wait := i.Again.Sub(r.Clock.Now()); wait > 0 && wait <= isolatedMost { // longer: this clock was wrong
			continue
		}
		if ended = r.inTime(ctx); ended != nil {
			break
		}
		if failed == max(maxRetried, len(due)/retriedPart) {
			break
		}
		n++
		q := record.Query{From: i.ID, To: i.ID, Size: 1}
		if i.After != nil {
			q.After = *i.After
		}
		// One that is slow, but comes, gets more time with each try.
		limit := min(r.Budget, aloneTime(r.Budget)<<min(max(i.Tries, 0), 10))
		took, err := r.extra(ctx, d, q, limit)
		if err == nil {
			r.counts.pages.Add(1)
			arrived = append(arrived, i.ID)
			continue
		}
		d.rollback()
		if errors.Is(err, errPause) {
			if n == 0 && took >= limit/2 {
				d.postpone(i.ID, err)
			} // else it has not had all the time that a run can give, and is the first of the next
			ended = err
			break
		}
		if errors.Is(err, errStop) || isLimit(err) || context.Cause(ctx) != nil {
			ended = err
			break
		}
		failed++
		d.postpone(i.ID, err)
	}
	// Even of those that have not arrived batches may be on their way.
	if err := d.drain(); err != nil {
		return err
	}
	for _, id := range arrived {
		d.release(id)
		d.unsaved = true
		r.Log.Info("not isolated any more: all of it has arrived", zap.Uint64("id", id), zap.String("of", r.Dataset.Parents))
	}
	return ended
}

// extra reads a page beside those of the window. That the destination is slow says
// nothing of the page.
func (r *Run) extra(ctx context.Context, d *delivery, q record.Query, limit time.Duration) (took time.Duration, err error) {
	for {
		d.beginExtra()
		_, took, err = r.read(ctx, d, d, q, limit)
		if !errors.Is(err, errSlow) {
			return took, err
		}
		d.rollback()
		if err := d.settleAll(ctx); err != nil {
			return took, err
		}
	}
}

// read reads a page into sink, and gives it up if it comes to no safe point within limit. It
// returns how long it had come to none.
func (r *Run) read(ctx context.Context, d *delivery, sink record.Sink, q record.Query, limit time.Duration) (record.Page, time.Duration, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	d.watch = newWatch(r.Clock, limit, func() { cancel(fmt.Errorf("%w: %s", errStuck, limit.Round(time.Second))) })
	page, err := r.Source.Page(ctx, q, sink)
	return page, d.watch.end(), err //nolint:wrapcheck // the source has said what was asked for
}

// postpone notes that an isolated parent has failed again.
func (d *delivery) postpone(id uint64, reason error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.run.state
	s.Isolated = slices.Clone(s.Isolated)
	for n := range s.Isolated {
		if i := &s.Isolated[n]; i.ID == id {
			i.Tries++
			i.Again = d.run.Clock.Now().UTC().Truncate(time.Second).Add(min(isolatedMost, isolatedFirst<<min(max(i.Tries, 0), 10)))
			i.Reason = firstRunes(reason.Error(), maxReason)
		}
	}
	d.unsaved = true
	d.run.Log.Warn("it fails again and stays isolated", zap.Uint64("id", id), zap.String("of", d.run.Dataset.Parents), zap.Error(reason))
}

// firstRunes is the beginning of a text.
func firstRunes(s string, n int) string {
	if runes := []rune(s); len(runes) > n {
		return string(runes[:n]) + "..."
	}
	return s
}
