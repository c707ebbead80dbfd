package ingest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/record"
)

// fan hands the records of one page to a group.
type fan struct {
	group  []*asked
	cancel context.CancelCauseFunc

	idColumn int
	inParent bool
	id       uint64 // of the parent in work; 0: not known
	doubt    bool   // the page may not be whole
}

var _ record.Sink = (*fan)(nil)

// page reads it. A panic must leave nobody waiting.
func (f *fan) page(ctx context.Context, source func() Source, q record.Query) (page record.Page, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("internal error: %v", p)
		}
	}()
	return source().Page(ctx, q, f)
}

// errAlone ends a page that nobody waits for any more.
var errAlone = errors.New("nobody waits for the page")

// leave ends the page when the last of its group has gone.
func (f *fan) leave() {
	for _, a := range f.group {
		if a.ctx.Err() == nil && !a.isGone() {
			return
		}
	}
	f.cancel(errAlone)
}

func (a *asked) isGone() bool {
	defer a.atWork()()
	return a.gone
}

// each calls the sinks of those who are there. One whose sink fails has got its
// answer, and the others go on.
func (f *fan) each(call func(a *asked) error) error {
	left := 0
	for _, a := range f.group {
		if f.one(a, call) {
			left++
		}
	}
	if left == 0 {
		return errAlone
	}
	return nil
}

func (f *fan) one(a *asked, call func(a *asked) error) (stays bool) {
	defer a.atWork()()
	if a.gone || a.ctx.Err() != nil {
		return false
	}
	err := guarded(a, call)
	if err == nil {
		return true
	}
	c := a.convoy
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(err, errSlow) {
		a.slow = true
		c.Log.Warn("a destination is too slow for the others: its pages are its own from now on")
	}
	a.served = c.turns
	a.end(record.Page{}, err)
	c.asking = slices.DeleteFunc(c.asking, func(o *asked) bool { return o == a })
	return false
}

// guarded makes the panic of one run's sink that run's error.
func guarded(a *asked, call func(a *asked) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			a.convoy.Log.Error("panic", zap.Any("panic", p), zap.Stack("stack"))
			err = fmt.Errorf("internal error: %v", p)
		}
	}()
	return call(a)
}

// Begin implements record.Sink.
func (f *fan) Begin(at time.Time) error {
	return f.each(func(a *asked) error { return a.sink.Begin(at) })
}

// Record implements record.Sink.
func (f *fan) Record(r *record.Record) error {
	if !f.inParent {
		if f.idColumn < 0 {
			f.idColumn = r.Schema.Index(r.Schema.ParentID)
		}
		f.inParent = true
		f.id, _ = strconv.ParseUint(string(r.Field(f.idColumn).Head()), 10, 63) // 0: no number
	}
	return f.each(func(a *asked) error {
		if a.ahead(f.id) {
			return nil
		}
		if err := f.touch(a); err != nil {
			return err
		}
		return a.sink.Record(r)
	})
}

// Done implements record.Sink.
func (f *fan) Done(id uint64) error {
	f.inParent = false
	return f.each(func(a *asked) error {
		if a.ahead(id) {
			a.alive()
			return nil
		}
		if err := f.touch(a); err != nil {
			return err
		}
		return a.sink.Done(id)
	})
}

// touch notes that a run has something of the page. One that is in doubt is so for the run
// before it has.
func (f *fan) touch(a *asked) error {
	if a.touched {
		return nil
	}
	a.touched = true
	if !f.doubt {
		return nil
	}
	return a.sink.Doubt()
}

// Doubt implements record.Sink, for those who have had something of the page, and may have
// left it; others hear of it when they do.
func (f *fan) Doubt() error {
	f.doubt = true
	for _, a := range f.group {
		a.convoy.tellDoubt(a)
	}
	return f.each(func(a *asked) error {
		if !a.touched {
			return nil
		}
		return a.sink.Doubt()
	})
}

// ahead tells that a run has had the parent already.
func (a *asked) ahead(id uint64) bool { return id != 0 && id < a.q.From }

// Tally implements record.Sink: the page is everybody's.
func (f *fan) Tally(t record.Tally) {
	for _, a := range f.group {
		func() {
			defer a.atWork()()
			if !a.gone {
				a.sink.Tally(t)
			}
		}()
	}
}
