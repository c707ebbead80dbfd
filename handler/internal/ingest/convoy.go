package ingest

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/turn"
)

const (
	// gatherTime is how long a page waits for runs that are about to ask for it.
	gatherTime = 5 * time.Second
	// DefaultPatience is how long a page waits for one of several destinations to
	// take a batch. An upload takes a second or two.
	DefaultPatience = 15 * time.Second
	// maxPassed is how many pages of those behind it a run lets pass before it has
	// one of its own: they catch up, and it does not stand still.
	maxPassed = 3
)

// A Joint source can be asked together with others.
type Joint interface {
	Source
	// Kin names what requests have in common that can be asked together.
	Kin() string
	// Only passes on to sink those records of a shared page that it would bring
	// itself.
	Only(sink record.Sink) record.Sink
}

// A Convoy lets runs for several destinations read the same pages. Each run goes on
// by itself, with its own window, cursor, filter and checkpoint; but where several
// are at the same point, one call brings the page of all. Calls are made one at a
// time. A run that is far behind has pages of its own, in turn with the others; one
// whose destination is too slow for them has them when nobody else asks.
type Convoy struct {
	// Together returns the source of what several of one kin would bring.
	Together func(list []Joint) Source
	Clock    Clock
	Log      *zap.Logger

	mu      sync.Mutex
	members []*companion
	asking  []*asked
	reading bool          // serve is going on
	changed chan struct{} // somebody has begun to ask, or left
	turns   int64

	naming turn.Turn // of asking for a list of ids
	named  atomic.Pointer[namedIDs]
}

// companion is a run's source in a convoy.
type companion struct {
	Joint
	convoy *Convoy
	slow   bool // its destination has held the others up
	away   bool // the last page did not wait for it to the end
	// served is the turn in which it last had a page, passed how many it has let pass.
	served int64
	passed int
	failed int // pages in a row that have failed
	// back is the end of a page that it had left: what it has had of it counts for nothing.
	// doubt says that such a page may come to that, and is going on.
	back  error
	doubt bool
}

// asked is a page that a run waits for.
type asked struct {
	*companion
	q    record.Query
	ctx  context.Context //nolint:containedctx // of the call that waits
	sink record.Sink
	// alive tells the run that its page goes on, although with nothing for it yet.
	alive func()
	// aside tells that the page is none of the window's: what comes of it counts as far as
	// it comes whole.
	aside bool

	work    turn.Turn // of its sink
	gone    bool      // its call has returned: its sink is not to be touched
	touched bool      // its sink has had something of a parent
	beside  bool      // the page in work begins before what it asks for
	done    chan struct{}
	page    record.Page
	err     error
}

// Join returns a source for one run; leave must be called when the run has ended. All
// that are to begin together join before the first of them begins.
func (c *Convoy) Join(source Joint) (joined Source, leave func()) {
	m := &companion{Joint: source, convoy: c}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changed == nil {
		c.changed = make(chan struct{}, 1)
	}
	c.members = append(c.members, m)
	return m, sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.members = slices.DeleteFunc(c.members, func(o *companion) bool { return o == m })
		c.tell()
	})
}

// tell wakes whoever gathers.
func (c *Convoy) tell() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// Page implements Source.
func (m *companion) Page(ctx context.Context, q record.Query, sink record.Sink) (record.Page, error) {
	c := m.convoy
	a := &asked{companion: m, q: q, ctx: ctx, sink: m.Only(sink), alive: func() {}, done: make(chan struct{})}
	if s, ok := sink.(interface{ Alive() }); ok {
		a.alive = s.Alive
	}
	if s, ok := sink.(interface{ Aside() bool }); ok {
		a.aside = s.Aside()
	}
	c.mu.Lock()
	for m.back != nil || m.doubt { // saving a doubt takes its time
		back := m.note()
		c.mu.Unlock()
		if back != nil {
			return record.Page{}, back
		}
		if err := sink.Doubt(); err != nil {
			return record.Page{}, err //nolint:wrapcheck // the sink's own
		}
		c.mu.Lock()
	}
	c.asking = append(c.asking, a)
	m.away = false
	if !c.reading {
		c.reading = true
		go c.serve()
	}
	c.tell()
	c.mu.Unlock()
	select {
	case <-a.done:
		return a.result()
	case <-ctx.Done():
	}
	c.drop(a)
	defer a.atWork()() // not while its sink is
	a.gone = true
	select {
	case <-a.done:
		return a.result()
	default:
		return record.Page{}, a.cause()
	}
}

// note takes what was noted for the run, of a page that it has left; nil: that it is in doubt.
func (m *companion) note() (back error) {
	back = m.back
	m.back, m.doubt = nil, false
	return back
}

// Left tells a run that asks for no more pages what was noted of one that it has left: what it
// has had of it counts for nothing.
func (m *companion) Left() error {
	m.convoy.mu.Lock()
	defer m.convoy.mu.Unlock()
	if m.back == nil && !m.doubt {
		return nil
	}
	return cmp.Or(m.note(), errUnseen)
}

// atWork waits until nobody works with the sink. That ends by itself: the sink has the
// context of the call.
func (a *asked) atWork() (leave func()) {
	_ = a.work.Take(context.Background()) // it has no end
	return a.work.Leave
}

// cause is why the call ends. A page that hangs before it has come to what the run asks
// for says nothing of that: the run asks again, as when its destination is slow.
func (a *asked) cause() error {
	cause := context.Cause(a.ctx)
	if errors.Is(cause, errStuck) && a.beside && !a.touched {
		return errSlow
	}
	return cause
}

// result is what the page has come to. That nobody else waits for it is no reason.
func (a *asked) result() (record.Page, error) {
	if a.ctx.Err() != nil && errors.Is(a.err, errAlone) {
		return record.Page{}, a.cause()
	}
	return a.page, a.err
}

// end gives a call its result.
func (a *asked) end(page record.Page, err error) {
	a.page, a.err = page, err
	a.gone = true
	close(a.done)
}

// namedIDs is the last list of ids.
type namedIDs struct {
	q   record.Query
	n   int
	ids []uint64
}

// IDs implements Source. Those who look for the same parent ask for the same, at the
// same time: they get the same list.
func (m *companion) IDs(ctx context.Context, q record.Query, n int, count func(record.Tally)) ([]uint64, error) {
	c := m.convoy
	if err := c.naming.Take(ctx); err != nil {
		return nil, err //nolint:wrapcheck // the cause of the end
	}
	defer c.naming.Leave()
	if cause := context.Cause(ctx); cause != nil {
		return nil, cause // while others asked
	}
	if l := c.named.Load(); l != nil && l.n == n && l.q.From == q.From && l.q.To == q.To && l.q.After.Equal(q.After) {
		return l.ids, nil
	}
	ids, err := m.Joint.IDs(ctx, q, n, count)
	if err == nil {
		c.named.Store(&namedIDs{q, n, ids})
	}
	return ids, err
}

// Witness is that of the run's own source, if it has one.
func (m *companion) Witness(ctx context.Context, q record.Query, count func(record.Tally)) (uint64, error) {
	if w, ok := m.Joint.(witness); ok {
		return w.Witness(ctx, q, count)
	}
	return 0, nil
}

// serve reads pages until nobody asks for one.
func (c *Convoy) serve() {
	for {
		c.gather()
		c.mu.Lock()
		group := c.choose()
		if len(group) == 0 {
			c.reading = false
			c.mu.Unlock()
			return
		}
		c.turns++
		c.mu.Unlock()
		c.read(group)
	}
}

// gather waits until all runs ask, but not long: some have other things to do.
func (c *Convoy) gather() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var expired chan struct{}
	for {
		if len(c.awaited()) == 0 {
			return
		}
		if expired == nil {
			expired = make(chan struct{})
			go func() {
				_ = c.Clock.Sleep(ctx, gatherTime) // ends early with ctx
				close(expired)
			}()
		}
		select {
		case <-c.changed:
		case <-expired:
			for _, m := range c.awaited() {
				c.mu.Lock()
				m.away = true
				c.mu.Unlock()
			}
			return
		}
	}
}

// awaited are those that may be about to ask, while others do.
func (c *Convoy) awaited() (list []*companion) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.asking) == 0 {
		return nil
	}
	for _, m := range c.members {
		if !m.away && !m.slow && !slices.ContainsFunc(c.asking, func(a *asked) bool { return a.companion == m }) {
			list = append(list, m)
		}
	}
	return list
}

// choose takes those whose page is read next: of one kin and of windows that may begin
// together, those that have waited longest; among them from the one that is furthest
// behind, unless others have let it pass too often. A slow one comes when nobody else
// asks.
func (c *Convoy) choose() []*asked {
	candidates := slices.DeleteFunc(slices.Clone(c.asking), func(a *asked) bool { return a.slow })
	if len(candidates) == 0 {
		candidates = c.asking
	}
	if len(candidates) == 0 {
		return nil
	}
	longest := slices.MinFunc(candidates, func(a, b *asked) int { return cmp.Compare(a.served, b.served) })
	group := []*asked{longest}
	for _, a := range candidates {
		if a != longest && !a.slow && !longest.slow && a.Kin() == longest.Kin() && oneWindow(append(slices.Clone(group), a)) {
			group = append(group, a)
		}
	}
	from := slices.MinFunc(group, func(a, b *asked) int {
		if late := a.passed >= maxPassed; late != (b.passed >= maxPassed) {
			return cmp.Compare(b.passed, a.passed)
		}
		return cmp.Compare(a.q.From, b.q.From)
	}).q.From
	return slices.DeleteFunc(group, func(a *asked) bool { return a.q.From < from })
}

// oneWindow tells whether the windows of a group may begin where the first of them
// does: what that brings to the others they know, and do not send again.
func oneWindow(group []*asked) bool {
	after := query(group).After
	for _, a := range group {
		known := a.q.After
		if !a.q.Known.IsZero() {
			known = a.q.Known
		}
		if after.Before(known) {
			return false
		}
	}
	return true
}

// query is what serves all of a group. A page of the size that the boldest asks for is
// no larger than it would be without the others.
func query(group []*asked) record.Query {
	q := group[0].q
	for _, a := range group[1:] {
		if a.q.After.Before(q.After) {
			q.After = a.q.After
		}
		q.From = min(q.From, a.q.From)
		if a.q.To != 0 && (q.To == 0 || a.q.To < q.To) {
			q.To = a.q.To
		}
		if q.Size != 0 && (a.q.Size == 0 || a.q.Size > q.Size) {
			q.Size = a.q.Size
		}
	}
	return q
}

// read reads one page for a group.
func (c *Convoy) read(group []*asked) {
	q := query(group)
	sources := make([]Joint, len(group))
	for i, a := range group {
		sources[i] = a.Joint
		leave := a.atWork()
		a.beside = q.From < a.q.From
		leave()
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	f := &fan{group: group, cancel: cancel, idColumn: -1}
	for _, a := range group {
		defer context.AfterFunc(a.ctx, f.leave)()
	}
	f.leave()
	page, err := f.page(ctx, func() Source { return c.Together(sources) }, q)
	if err == nil {
		c.named.Store(nil) // hosts come and go
	}
	for _, a := range group {
		told := c.settle(a, q, page, err)
		switch {
		case err == nil:
			c.mu.Lock()
			a.doubt = false
			c.mu.Unlock()
		case told:
		case errors.Is(err, errAlone) && (f.doubt || isVoid(err)):
			c.takeBack(a, errUnseen)
		case isVoid(err):
			c.takeBack(a, err)
		case f.doubt:
			c.takeBack(a, errUnseen)
		}
	}
}

// errUnseen is what a page in doubt comes to for a run that has left it, when all others have
// left it, too: nobody has seen its end.
var errUnseen error = &unseenError{}

type unseenError struct{}

func (*unseenError) Error() string {
	return "the answer may not be whole, and nobody has read it to its end"
}

// Void implements the error that takes back what has come.
func (*unseenError) Void() bool { return true }

// Retry implements the error that may go away.
func (*unseenError) Retry() (time.Duration, bool) { return 0, true }

// tellDoubt tells a run that has left a page with something of it that this may not be
// whole: it must not be saved as if it were, whatever ends the run meanwhile.
func (c *Convoy) tellDoubt(a *asked) {
	leave := a.atWork()
	left := a.touched && a.gone && !a.aside
	leave()
	if !left {
		return
	}
	c.tellNow(a.companion, func() { a.doubt = true }, func(waiting *asked) {
		if err := guarded(waiting, func(a *asked) error { return a.sink.Doubt() }); err != nil {
			c.drop(waiting)
			waiting.end(record.Page{}, err)
		}
	})
}

// tellNow tells a run something by the page that it waits for. Where it waits for none, note
// is called: the run hears of it when it asks.
func (c *Convoy) tellNow(m *companion, note func(), tell func(waiting *asked)) {
	for told := false; !told; {
		c.mu.Lock()
		i := slices.IndexFunc(c.asking, func(o *asked) bool { return o.companion == m })
		if i < 0 {
			note()
			c.mu.Unlock()
			return
		}
		waiting := c.asking[i]
		c.mu.Unlock()
		told = waiting.whileThere(tell)
	}
}

// whileThere calls tell, unless the call has left, in this very moment.
func (a *asked) whileThere(tell func(a *asked)) bool {
	defer a.atWork()()
	if a.gone {
		return false
	}
	tell(a)
	return true
}

// drop forgets that a page was asked for.
func (c *Convoy) drop(a *asked) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asking = slices.DeleteFunc(c.asking, func(o *asked) bool { return o == a })
}

// takenBackError is the error for a run that has left a page before its end, and had something
// of it from a parent on.
type takenBackError struct {
	error
	from uint64
}

func (e *takenBackError) Unwrap() error { return e.error }

// From is where the page began for the run.
func (e *takenBackError) From() uint64 { return e.from }

// takeBack tells a run that has left a page with something of it that this counts for
// nothing: the page that it asks for meanwhile comes to that.
func (c *Convoy) takeBack(a *asked, err error) {
	leave := a.atWork()
	counts := a.touched && !a.aside
	leave()
	if !counts {
		return
	}
	back := &takenBackError{err, a.q.From}
	c.tellNow(a.companion, func() { a.back = back }, func(waiting *asked) {
		c.drop(waiting)
		waiting.end(record.Page{}, back)
	})
}

// settle tells one of a group what its page has come to, unless it is to wait for the
// page that it asks for, or has left. told says that it knows.
func (c *Convoy) settle(a *asked, q record.Query, page record.Page, err error) (told bool) {
	defer a.atWork()()
	c.mu.Lock()
	defer c.mu.Unlock()
	behind := page.Next - 1 // the highest that the page has brought all of
	if page.Next == 0 {
		behind = q.To
	}
	switch all := page.Next == 0 && q.To == 0; {
	case a.gone:
		return false
	case err != nil && (a.q.From == q.From || a.touched):
		a.failed++
		a.end(record.Page{}, a.again(err))
	case err != nil, !all && behind < a.q.From:
		a.passed++
		return true // still asking
	case all, a.q.To != 0 && behind >= a.q.To:
		a.end(record.Page{Warning: page.Warning}, nil)
	default:
		a.end(record.Page{Next: behind + 1, Warning: page.Warning}, nil)
	}
	a.served, a.passed = c.turns, 0
	if a.err == nil {
		a.failed = 0
	}
	c.asking = slices.DeleteFunc(c.asking, func(o *asked) bool { return o == a })
	return !errors.Is(err, errAlone) // then it is about to leave, for a reason of its own
}

// together is an error that several runs meet. All wait for the same time, so that
// they go on together.
type together struct {
	error
	after time.Duration
}

func (e *together) Unwrap() error { return e.error }

// Retry implements the error that may go away.
func (e *together) Retry() (time.Duration, bool) {
	_, ok := retryAfter(e.error)
	return e.after, ok
}

// again is an error with the time after which all of a group ask again. Chance would
// part them.
func (a *asked) again(err error) error {
	after, ok := retryAfter(err)
	if !ok {
		return err
	}
	return &together{err, cmp.Or(after, doubling(a.failed))}
}
