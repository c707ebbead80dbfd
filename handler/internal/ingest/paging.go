package ingest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/record"
)

const (
	// triesAlone is how often a page of a single parent may fail before the
	// parent is looked for, triesNamed how often one that holds just this parent.
	triesAlone = 3
	triesNamed = 2
	// maxSuspects is how many parents may fail each by itself, without one in
	// between that does not, before somebody else is asked for: then it may be
	// that Qualys answers nobody.
	maxSuspects = 3
)

// pager reads a window page by page. A page that fails is asked for again from
// where it had got to, half as large if that may help, down to one parent; a
// page that succeeds lets the next be twice as large again. Where a page of one
// parent fails, the parent is looked for, isolated and passed.
type pager struct {
	run *Run
	d   *delivery
	q   record.Query
	// tries since there was any progress, alone those with one parent.
	tries, alone int
	search       *search // for the parent that makes a page fail
	// suspects were passed, and no other parent has come since.
	suspects []uint64
	parents  int64 // that had come when the last of them was passed
}

// pages reads page after page until the last, the end of the budget, or an
// error that neither waiting nor a smaller page cures.
func (r *Run) pages(ctx context.Context, d *delivery) error {
	p := &pager{run: r, d: d, q: r.query()}
	// A page that no run has got anywhere with may be longer than the budget.
	p.q.Size = max(1, r.Source.PageLimit()>>min(r.state.Stalled, 30))
	for {
		if err := r.inTime(ctx); err != nil {
			p.forgive()
			return err
		}
		p.bound()
		d.beginPage(p.q)
		page, err := r.Source.Page(ctx, p.q, d)
		if err == nil {
			if more := p.succeeded(page); !more {
				return nil
			}
			continue
		}
		if err := p.failed(ctx, err); err != nil {
			p.forgive()
			return err
		}
	}
}

// bound lets the page end before the next parent that is isolated, and where a
// search wants it to.
func (p *pager) bound() {
	p.q.To = 0
	for _, i := range p.run.state.Isolated {
		if i.ID == p.q.From {
			p.q.From++
		} else if i.ID > p.q.From {
			p.q.To = i.ID - 1
			break
		}
	}
	if p.search == nil {
		return
	}
	to := p.search.bound(p.q.From)
	switch {
	case to == 0:
		p.search = nil
	case p.q.To == 0 || to < p.q.To:
		p.q.To = to
	}
}

// succeeded goes on behind a page. It reports false behind the last.
func (p *pager) succeeded(page record.Page) bool {
	r := p.run
	r.counts.pages.Add(1)
	p.tries, p.alone = 0, 0
	if r.counts.parents.Load() > p.parents {
		p.suspects = nil // others do come
	}
	p.q.Size = min(r.Source.PageLimit(), 2*p.q.Size)
	if page.Warning != "" {
		r.Log.Warn("Qualys sent a warning", zap.String("warning", page.Warning))
	}
	counts, _ := r.counts.snapshot()
	r.Log.Info("page read", zap.Int64("page", counts.Pages), zap.Int64(r.Dataset.Parents, counts.Parents),
		zap.Int64("decoded", counts.Decoded), zap.Int64("accepted", counts.Accepted), zap.Uint64("next", page.Next))
	next := page.Next
	if next == 0 && p.q.To != 0 {
		next = p.q.To + 1
		if p.search != nil {
			p.search.passed(p.q.To)
		}
	}
	if next == 0 {
		return false
	}
	p.d.endPage(next)
	p.q.From = next
	return true
}

// failed decides what follows a page that failed; nil is to go on.
func (p *pager) failed(ctx context.Context, err error) error {
	r := p.run
	from := p.d.rollback()
	var again *againError
	if errors.As(err, &again) {
		r.Log.Warn("reaching further back", zap.String("reason", again.Error()))
		p.q.After = again.after
		return nil
	}
	if errors.Is(err, errPause) || errors.Is(err, errStop) {
		return err
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	after, ok := retryAfter(err)
	if !ok {
		return err
	}
	if from > p.q.From {
		// Others have arrived: those that were passed are to blame themselves.
		p.tries, p.alone, p.suspects = 0, 0, nil
		p.q.From = from
	}
	if isLimit(err) { // no failure: a limit being kept
		return r.wait(ctx, r.deadline, err, after, p.tries)
	}
	p.tries++
	switch {
	case !isHeavy(err):
		if p.tries >= maxTries {
			return fmt.Errorf("no progress in %d tries: %w", p.tries, err)
		}
		return r.wait(ctx, r.deadline, err, after, p.tries)
	case p.search != nil && p.q.To > p.q.From:
		p.search.failed(p.q.To) // it is in here
		return r.wait(ctx, r.deadline, err, after, 1)
	case p.search != nil:
		if p.alone++; p.alone >= triesNamed {
			return p.isolate(ctx, err)
		}
	case p.q.Size > 1:
		p.q.Size /= 2
		r.Log.Warn("asking for a smaller page", zap.Int(r.Dataset.Parents, p.q.Size), zap.String("reason", err.Error()))
		return r.wait(ctx, r.deadline, err, after, 1)
	default:
		if p.alone++; p.alone >= triesAlone {
			return p.look(ctx, err)
		}
	}
	return r.wait(ctx, r.deadline, err, after, p.alone)
}

// look begins to look for the parent that makes a page of one fail.
func (p *pager) look(ctx context.Context, reason error) error {
	r := p.run
	ids, err := r.Source.IDs(ctx, p.q, maxListed, r.counts.addTally)
	after, again := retryAfter(err)
	switch {
	case err == nil:
		p.search = &search{ids: ids}
		p.alone = 0
		return nil
	case isLimit(err):
		return r.wait(ctx, r.deadline, err, after, p.tries)
	case !again || p.tries >= 2*maxTries+triesAlone:
		return errors.Join(fmt.Errorf("no progress with a single one of the %s from %d on: %w", r.Dataset.Parents, p.q.From, reason), err)
	}
	p.tries++
	return r.wait(ctx, r.deadline, err, after, p.alone)
}

// isolate passes the parent that fails by itself: just this one was asked for.
func (p *pager) isolate(ctx context.Context, reason error) error {
	r, id := p.run, p.q.From
	if len(p.suspects) == maxSuspects {
		if err := p.askForAnother(ctx, reason); err != nil {
			return err
		}
	}
	after := p.q.After
	if r.state.Window == nil {
		after = time.Time{} // nothing has been answered yet: the start may be wrong
	}
	if err := p.d.isolate(id, after, reason); err != nil {
		return err
	}
	p.suspects = append(p.suspects, id)
	p.parents = r.counts.parents.Load()
	p.search, p.alone, p.tries = nil, 0, 0
	p.q.From = id + 1
	return nil
}

// askForAnother asks for a parent further on, when several in a row have failed:
// if that one comes, it is they.
func (p *pager) askForAnother(ctx context.Context, reason error) error {
	r := p.run
	last := uint64(0)
	if n := len(p.search.ids); n > 0 {
		last = p.search.ids[n-1]
	}
	if last > p.q.From {
		before := r.counts.parents.Load()
		p.d.beginExtra()
		_, err := r.Source.Page(ctx, record.Query{After: p.q.After, From: last, To: last, Size: 1}, p.d)
		if err == nil && r.counts.parents.Load() > before {
			p.suspects = nil
			return nil
		}
		p.d.rollback()
		if errors.Is(err, errPause) || errors.Is(err, errStop) || isLimit(err) || context.Cause(ctx) != nil {
			return cmp.Or(context.Cause(ctx), err)
		}
	}
	return fmt.Errorf("%d %s in a row fail by themselves, and none further on comes, so it is not them: %w", maxSuspects, r.Dataset.Parents, reason)
}

// forgive takes back what was passed although nothing has shown that it was to
// blame: the next run begins there.
func (p *pager) forgive() {
	if len(p.suspects) == 0 || p.run.counts.parents.Load() > p.parents {
		return
	}
	p.d.beginPage(record.Query{From: p.suspects[0]})
	for _, id := range p.suspects {
		p.d.release(id)
	}
}
