package ingest

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/record"
)

const (
	// triesAlone is how often a single parent may fail before it is a suspect.
	triesAlone = 3
	// maxSuspects is how many parents in a row may fail each by itself before it
	// is not them: then Qualys answers nobody.
	maxSuspects = 3
)

// pager reads a window page by page. A page that fails is asked for again from
// where it had got to, half as large if that may help, down to one parent; a
// page that succeeds lets the next be twice as large again. A parent that fails
// by itself, while the one behind it does not, is isolated and passed.
type pager struct {
	run *Run
	d   *delivery
	q   record.Query
	// tries since there was any progress, alone those with one parent.
	tries, alone int
	// suspects were passed, and nothing has succeeded since.
	suspects []uint64
}

// pages reads page after page until the last, the end of the budget, or an
// error that neither waiting nor a smaller page cures.
func (r *Run) pages(ctx context.Context, d *delivery) error {
	p := &pager{run: r, d: d, q: r.query()}
	// A page that no run has got anywhere with may be longer than the budget.
	p.q.Size = max(1, r.Source.PageLimit()>>min(r.state.Stalled, 30))
	for {
		if err := r.inTime(ctx); err != nil {
			return err
		}
		p.aroundIsolated()
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

// aroundIsolated lets the page end before the next parent that is isolated.
func (p *pager) aroundIsolated() {
	p.q.To = 0
	for _, i := range p.run.state.Isolated {
		switch {
		case i.ID == p.q.From:
			p.q.From++
		case i.ID > p.q.From:
			p.q.To = i.ID - 1
			return
		}
	}
}

// succeeded goes on behind a page. It reports false behind the last.
func (p *pager) succeeded(page record.Page) bool {
	r := p.run
	r.counts.pages.Add(1)
	p.tries, p.alone, p.suspects = 0, 0, nil
	p.q.Size = min(r.Source.PageLimit(), 2*p.q.Size)
	if page.Warning != "" {
		r.Log.Warn("Qualys sent a warning", zap.String("warning", page.Warning))
	}
	counts, _ := r.counts.snapshot()
	r.Log.Info("page read", zap.Int64("page", counts.Pages), zap.Int64(r.Dataset.Parents, counts.Parents),
		zap.Int64("decoded", counts.Decoded), zap.Int64("accepted", counts.Accepted), zap.Uint64("next", page.Next))
	next := page.Next
	if next == 0 && p.q.To != 0 {
		next = p.q.To + 2 // behind the one that is isolated
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
	var back *clockError
	if errors.As(err, &back) {
		r.Log.Warn("reaching further back", zap.String("reason", back.Error()))
		p.q.After = back.after
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
	case p.q.Size > 1:
		p.q.Size /= 2
		r.Log.Warn("asking for a smaller page", zap.Int(r.Dataset.Parents, p.q.Size), zap.String("reason", err.Error()))
		return r.wait(ctx, r.deadline, err, after, 1)
	default:
		if p.alone++; p.alone >= triesAlone {
			return p.suspect(ctx, err)
		}
	}
	return r.wait(ctx, r.deadline, err, after, p.tries)
}

// suspect passes the parent that has failed by itself. Whether it is the parent
// or Qualys shows at the next one.
func (p *pager) suspect(ctx context.Context, reason error) error {
	r := p.run
	if len(p.suspects) == maxSuspects {
		return fmt.Errorf("%d %s in a row fail by themselves, so it is not them: %w", maxSuspects, r.Dataset.Parents, reason)
	}
	id, err := r.Source.First(ctx, p.q, r.counts.addTally)
	if err != nil || id == 0 {
		return errors.Join(fmt.Errorf("no progress with a single one of the %s from %d on: %w", r.Dataset.Parents, p.q.From, reason), err)
	}
	if id != p.q.From {
		// Others may lie between that are in no page: try just this one.
		p.q.From, p.alone = id, 0
		return nil
	}
	if err := p.d.isolate(id, p.q.After, reason); err != nil {
		return err
	}
	p.suspects = append(p.suspects, id)
	p.alone, p.tries = 0, 0
	p.q.From = id + 1
	return nil
}

// forgive takes back what was passed although nothing has shown that it was to
// blame: the next run begins there.
func (p *pager) forgive() {
	if len(p.suspects) == 0 {
		return
	}
	p.d.beginPage(record.Query{From: p.suspects[0]})
	for _, id := range p.suspects {
		p.d.release(id)
	}
}
