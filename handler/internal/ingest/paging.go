package ingest

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	// maxOthers is how many others are asked for then.
	maxOthers = 4
)

// pager reads a window page by page. A page that fails is asked for again from
// where it had got to, half as large if that may help, down to one parent; a
// page that succeeds lets the next be twice as large again. Where a page of one
// parent fails, the parent is looked for, isolated and passed.
type pager struct {
	run *Run
	d   *delivery
	q   record.Query
	// away counts the failures in a row that no smaller page helps, alone those of
	// pages of one parent.
	away, alone int
	// triesAlone and triesNamed, or fewer; see pages.
	triesAlone, triesNamed int
	unlisted               int     // failures in a row to list ids
	last                   bool    // all pages were read
	search                 *search // for the parent that makes a page fail
	reason                 string  // of the last failure
	rehearse               bool    // the page counted for nothing: see rehearsal
	inDoubt                bool    // the page in work is: however it ends, it counts only if it is whole
	unproven               uint64  // where the first page began whose end was not seen; 0: none
}

// pages reads page after page until the last, the end of the budget, or an
// error that neither waiting nor a smaller page cures.
func (r *Run) pages(ctx context.Context, d *delivery) error {
	p := &pager{run: r, d: d, q: r.query()}
	// A few failures may take the whole budget: a run begins with the page that
	// the one before had got down to, and is sooner convinced where that has got
	// nowhere.
	size, stalled := r.Source.PageLimit(), r.state.Stalled
	if s := r.state.PageSize; s > 0 {
		size = min(size, s)
	}
	p.q.Size = max(1, size>>min(stalled, 30))
	p.triesAlone, p.triesNamed = max(1, triesAlone-stalled), max(1, triesNamed-stalled)
	d.doubted = p.doubt
	defer p.keepTrouble()
	if err := p.recall(ctx); err != nil {
		return err
	}
	for {
		if err := p.read(ctx); err != nil {
			return p.end(err)
		}
		if p.last {
			return nil
		}
	}
}

// read reads one page, and decides what follows it.
func (p *pager) read(ctx context.Context) error {
	r := p.run
	if err := r.inTime(ctx); err != nil {
		return err
	}
	p.bound()
	p.d.beginPage(p.q)
	p.inDoubt = false
	if p.rehearse {
		_, took, err := r.read(ctx, p.d, rehearsal{p.d}, p.q, p.limit())
		r.forget()
		if err != nil {
			return p.failed(ctx, err, took)
		}
		// What is left of before goes first: the rows that are read now are the later ones.
		if err := p.d.seal(); err != nil {
			return err
		}
		if err := p.d.settleAll(ctx); err != nil {
			return err
		}
		p.d.letGo()
		p.rehearse = false
	}
	page, took, err := r.read(ctx, p.d, p.d, p.q, p.limit())
	if err == nil {
		return p.succeeded(page)
	}
	return p.failed(ctx, err, took)
}

// rehearsal is a page that is read and not sent: one that counted for nothing is read so
// until it is whole, or all that it holds would be sent with every try.
type rehearsal struct{ *delivery }

// Begin implements record.Sink.
func (rehearsal) Begin(time.Time) error { return nil }

// Record implements record.Sink.
func (rehearsal) Record(*record.Record) error { return nil }

// Done implements record.Sink.
func (r rehearsal) Done(uint64) error {
	r.watch.safe()
	return nil
}

// voidFrom is where what counts for nothing begins: with the page, or with those before it
// whose ends were not seen.
func (p *pager) voidFrom(err error) uint64 {
	from := p.q.From
	if p.unproven != 0 {
		from = min(from, p.unproven)
	}
	var left interface{ From() uint64 }
	if errors.As(err, &left) {
		from = min(from, left.From())
	}
	return max(1, from) // where a search for one parent may begin
}

// doubt keeps that the page counts for nothing, until it is known what the doubt is of.
func (p *pager) doubt() error {
	if p.rehearse {
		return nil // nothing of it is sent
	}
	p.inDoubt = true
	from := p.voidFrom(nil)
	p.d.hold(from)
	t := p.trouble()
	if from != p.q.From { // what was found out is of another parent
		t.Tries, t.Search, t.High = 0, false, 0
	}
	t.ID, t.Void = from, true
	p.d.mu.Lock()
	p.run.state.Trouble = t
	p.d.mu.Unlock()
	return p.saveVoid()
}

// saveVoid saves that what has come counts for nothing, before anything can end the run.
func (p *pager) saveVoid() error {
	if err := p.d.saveAtLast(); err != nil {
		return fmt.Errorf("save the checkpoint: %w", err)
	}
	return nil
}

// end takes back what was passed although nothing has shown that it was to blame, and
// says what the time was lost with.
func (p *pager) end(err error) error {
	if err := p.hearOfLeft(); err != nil {
		return err
	}
	p.takeBack()
	if errors.Is(err, errNobody) && len(p.d.suspects) > 0 { // none of them is the cause
		p.q.From = p.d.suspects[0].ID
		p.d.suspects, p.search, p.alone = nil, nil, 0
	}
	if (errors.Is(err, errPause) || isLimit(err)) && p.reason != "" {
		return fmt.Errorf("%w; the last failure: %s", err, p.reason)
	}
	return err
}

// hearOfLeft takes back what counts for nothing of a page that others read on: no later run
// would hear of it.
func (p *pager) hearOfLeft() error {
	shared, ok := p.run.Source.(interface{ Left() error })
	if !ok {
		return nil
	}
	err := shared.Left()
	if err == nil {
		return nil
	}
	from := p.voidFrom(err)
	if suspects := p.d.suspects; len(suspects) > 0 {
		from = min(from, suspects[0].ID)
		p.d.suspects, p.search, p.alone = nil, nil, 0
	}
	p.d.rewind(from)
	p.q.From, p.rehearse = from, true
	p.keepTrouble()
	return p.saveVoid()
}

// limit is how long the page may be without a safe point. Where one is looked for,
// time was lost already.
func (p *pager) limit() time.Duration {
	if p.search != nil {
		return aloneTime(p.run.Budget)
	}
	return pageTime(p.run.Budget)
}

// recall takes up what the run before has found out.
func (p *pager) recall(ctx context.Context) error {
	t := p.run.state.Trouble
	if t == nil {
		return nil
	}
	p.reason = t.Reason
	if from := max(1, p.q.From); p.run.state.Window != nil && len(t.Suspects) > 0 && t.Suspects[0].ID == from && t.ID > t.Suspects[len(t.Suspects)-1].ID {
		// The cursor stands before them.
		p.d.suspects, p.q.From = slices.Clone(t.Suspects), t.ID
	} else if max(1, t.ID) != from {
		return nil
	}
	p.alone, p.rehearse, p.unproven = t.Tries, t.Void, t.Unproven
	if !t.Search {
		return nil
	}
	p.run.Log.Info("going on to look for the one that does not come", zap.Uint64("from", t.ID), zap.Uint64("to", t.High), zap.String("reason", t.Reason))
	if err := p.look(ctx, errors.New(t.Reason)); err != nil {
		if errors.Is(err, record.ErrNoList) {
			return nil // it comes with the first page
		}
		return p.end(err)
	}
	if p.search != nil {
		p.search.high, p.alone = t.High, t.Tries
	}
	return nil
}

// keepTrouble notes, for the next run, the page size and what was found out.
func (p *pager) keepTrouble() {
	s := p.run.state
	size := p.q.Size
	if size >= p.run.Source.PageLimit() {
		size = 0
	}
	t := p.trouble()
	if !t.Search && t.Tries == 0 && !t.Void && t.Unproven == 0 && len(t.Suspects) == 0 {
		t = nil
	}
	p.d.mu.Lock() // batches under way save the state
	defer p.d.mu.Unlock()
	if size != s.PageSize || t != nil || s.Trouble != nil {
		s.PageSize, s.Trouble, p.d.unsaved = size, t, true
	}
}

// trouble is what was found out so far.
func (p *pager) trouble() *Trouble {
	t := &Trouble{ID: p.q.From, Tries: p.alone, Void: p.rehearse, Unproven: p.unproven, Suspects: p.d.suspects, Reason: p.reason}
	if p.search != nil {
		t.Search, t.High = !p.search.again, p.search.high
	}
	return t
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

// succeeded goes on behind a page.
func (p *pager) succeeded(page record.Page) error {
	r := p.run
	r.counts.pages.Add(1)
	if p.d.came {
		if err := p.d.blame(); err != nil {
			return err
		}
	}
	p.away, p.alone, p.reason = 0, 0, ""
	if p.d.came { // an empty page has proved nothing
		p.unproven = 0
	}
	p.d.letGo()
	p.q.Size = min(r.Source.PageLimit(), 2*p.q.Size)
	if page.Warning != "" {
		r.warn("Qualys warns: " + page.Warning)
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
		p.last = true
		return p.d.blame() // Qualys answers, and there is nobody else
	}
	p.d.endPage(next)
	p.q.From = next
	if r.state.Trouble != nil { // that of the page is over
		p.keepTrouble()
	}
	return nil
}

// failed decides what follows a page that failed, after it had come to no safe point
// for so long; nil is to go on.
func (p *pager) failed(ctx context.Context, err error, took time.Duration) error {
	r := p.run
	broke := p.d.inHost
	from := p.d.rollback()
	var again *againError
	if errors.As(err, &again) {
		r.Log.Warn("reaching further back", zap.String("reason", again.Error()))
		p.q.After = again.after
		return nil
	}
	if isVoid(err) || p.inDoubt {
		// What has come was sent, and does not count.
		from = p.voidFrom(err)
		p.d.rewind(from)
		p.q.From, p.rehearse = from, true
		p.keepTrouble()
		if err := p.saveVoid(); err != nil {
			return err
		}
		if err := p.d.settleAll(ctx); err != nil {
			return err
		}
	} else if p.d.came { // what has come counts
		if err := p.d.blame(); err != nil {
			return err
		}
	}
	moved := from > p.q.From
	if moved && p.unproven == 0 {
		p.unproven = max(1, p.q.From)
	}
	if errors.Is(err, errSlow) { // no failure of the page's
		p.q.From = max(p.q.From, from)
		return p.d.settleAll(ctx)
	}
	if moved {
		p.away, p.alone, p.q.From = 0, 0, from
		if p.q.To != 0 && from > p.q.To && p.search != nil {
			// All parents that were asked for have come, and only the end has not.
			p.search.passed(p.q.To)
			if after, ok := retryAfter(err); ok || errors.Is(err, errStuck) {
				p.reason = firstRunes(err.Error(), maxReason)
				return r.wait(ctx, r.deadline, err, after, 1)
			}
		}
	}
	slow := took >= aloneTime(r.Budget)
	// One that is too large for the time of a run is as much of a wall as a slow one.
	if errors.Is(err, errPause) && (slow || broke && r.counts.parents.Load() == 0) {
		p.tookTheRest(moved)
	}
	if errors.Is(err, errPause) || errors.Is(err, errStop) {
		return err
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if !isLimit(err) {
		p.reason = firstRunes(err.Error(), maxReason)
	}
	if errors.Is(err, errStuck) {
		return p.tooSlow(ctx, err, moved)
	}
	after, ok := retryAfter(err)
	if !ok {
		return err
	}
	switch heavy := isHeavy(err); {
	case isLimit(err): // no failure: a limit being kept
		return r.wait(ctx, r.deadline, err, after, 1)
	case !heavy && p.away+1 == maxTries:
		return fmt.Errorf("no progress in %d tries: %w", maxTries, err)
	case !heavy:
		p.away++
		return r.wait(ctx, r.deadline, err, after, p.away)
	case slow:
		return p.tooSlow(ctx, err, moved)
	}
	p.away = 0
	switch {
	case p.search != nil && p.q.To > p.q.From:
		p.search.failed(p.q.To, moved) // it is in here
		return r.wait(ctx, r.deadline, err, after, 1)
	case p.search != nil:
		if p.alone++; p.alone >= p.triesNamed {
			return p.isolate(ctx, err)
		}
	case p.q.Size > 1:
		p.q.Size /= 2
		r.Log.Warn("asking for a smaller page", zap.Int(r.Dataset.Parents, p.q.Size), zap.String("reason", err.Error()))
		return r.wait(ctx, r.deadline, err, after, 1)
	default:
		if p.alone++; p.alone >= p.triesAlone {
			return p.look(ctx, err)
		}
	}
	return r.wait(ctx, r.deadline, err, after, p.alone)
}

// tooSlow looks at once for the parent that makes a page take so long: another page
// like it would take the rest of the budget.
func (p *pager) tooSlow(ctx context.Context, reason error, moved bool) error {
	p.run.Log.Warn("the page takes too long: looking for the one that makes it so", zap.Uint64("from", p.q.From), zap.Error(reason))
	p.away = 0
	switch {
	case p.search == nil:
		return p.look(ctx, reason)
	case p.q.To > p.q.From:
		p.search.failed(p.q.To, moved)
		return nil
	}
	return p.isolate(ctx, reason)
}

// tookTheRest notes that the page has used up the budget without coming to a safe
// point: the next run looks for the parent that makes it so.
func (p *pager) tookTheRest(moved bool) {
	p.reason = errStuck.Error()
	switch {
	case p.search == nil:
		p.search = &search{}
	case p.q.To > p.q.From:
		p.search.failed(p.q.To, moved)
	case len(p.d.suspects) < maxSuspects:
		p.pass(errStuck)
	default:
		p.search.again = false
		p.alone = max(p.alone, p.triesNamed-1)
	}
}

// look begins to look for the parent that makes a page of one fail. Where the
// ids cannot be listed it goes on without them.
func (p *pager) look(ctx context.Context, reason error) error {
	r := p.run
	ids, err := p.list(ctx, p.q)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	after, again := retryAfter(err)
	switch {
	case isLimit(err):
		return r.wait(ctx, r.deadline, err, after, 1)
	case again && p.unlisted < triesNamed:
		p.unlisted++
		return r.wait(ctx, r.deadline, err, after, p.unlisted)
	case errors.Is(err, record.ErrNoList):
		return fmt.Errorf("%w (%w)", reason, err)
	case err != nil && p.q.From <= 1:
		// Nothing has come yet: any number would be a guess.
		return fmt.Errorf("%w; and they cannot be listed: %w", reason, err)
	case err != nil:
		r.Log.Warn("looking for the one that fails without a list", zap.String("of", r.Dataset.Parents), zap.NamedError("list", err), zap.NamedError("reason", reason))
	}
	p.search = &search{ids: ids}
	p.alone, p.unlisted = 0, 0
	return nil
}

// list lists ids, for as long as one parent may take.
func (p *pager) list(ctx context.Context, q record.Query) ([]uint64, error) {
	limit := aloneTime(p.run.Budget)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w: %s", errStuck, limit.Round(time.Second)))
	defer cancel()
	return p.run.Source.IDs(ctx, q, maxListed, p.run.counts.addTally) //nolint:wrapcheck // the source has said what was asked for
}

// isolate passes the parent that fails by itself: just this one was asked for.
func (p *pager) isolate(ctx context.Context, reason error) error {
	if len(p.d.suspects) == maxSuspects {
		if err := p.askForAnother(ctx, reason); err != nil {
			return err
		}
	}
	p.pass(reason)
	return nil
}

// pass goes on behind a parent that fails by itself.
func (p *pager) pass(reason error) {
	r, id := p.run, p.q.From
	after := p.q.After
	if r.state.Window == nil {
		after = time.Time{} // nothing has been answered yet: the start may be wrong
	}
	p.d.suspects = append(p.d.suspects, r.suspect(id, after, reason))
	r.Log.Warn("one fails by itself: passing it", zap.Uint64("id", id), zap.String("of", r.Dataset.Parents), zap.Error(reason))
	p.alone, p.away = 0, 0
	p.search = &search{ids: p.search.ids, again: true} // bad ones are often neighbours
	p.q.From = id + 1
}

// errNobody is the end of a run in which every parent fails by itself.
var errNobody = errors.New("and of others")

// askForAnother asks for other parents, when several in a row have failed: if one
// comes, it is they. Those further on are asked for first, then one of those
// that have come before.
func (p *pager) askForAnother(ctx context.Context, reason error) error {
	r := p.run
	// An error leaves those that have come before.
	ids, err := p.list(ctx, record.Query{After: p.q.After, From: p.q.From + 1})
	if err != nil {
		r.Log.Warn("no list of others to ask for", zap.String("of", r.Dataset.Parents), zap.Error(err))
	}
	isolated := func(id uint64) bool {
		return slices.ContainsFunc(r.state.Isolated, func(i Isolated) bool { return i.ID == id })
	}
	ids = slices.DeleteFunc(slices.Clone(ids), isolated)
	var others []record.Query
	for n := len(ids); n > 0 && len(others) < maxOthers; n /= 2 { // the last, then half way, and so on
		others = append(others, record.Query{After: p.q.After, From: ids[n-1], To: ids[n-1], Size: 1})
	}
	others = append(others, record.Query{From: p.q.From + 1, Size: 1}) // of any window: this one may have only such
	if first := p.d.suspects[0].ID; first > 1 {
		others = append(others, record.Query{After: p.q.After, From: 1, To: first - 1, Size: 1}, record.Query{From: 1, To: first - 1, Size: 1})
	}
	for _, q := range others {
		before := r.counts.parents.Load()
		_, err := r.extra(ctx, p.d, q, aloneTime(r.Budget))
		came := err == nil && r.counts.parents.Load() > before
		if came && q.After.IsZero() && !p.q.After.IsZero() {
			came, err = p.isSomebody(ctx) // this window may be answered to nobody
		}
		if came {
			return p.d.blame() // it has shown that Qualys answers
		}
		p.d.rollback()
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		if errors.Is(err, errPause) || isLimit(err) {
			return err
		}
	}
	// The cause is what a person needs; that it was asked for one by one is not. The
	// next run begins where they are.
	return fmt.Errorf("%w: the same of %d %s that were asked for one by one, %w, so none of them is the cause", reason, maxSuspects, r.Dataset.Parents, errNobody)
}

// isSomebody tells whether the suspect is a parent at all, by asking for it outside of the
// window: it comes, or fails there as well. Where a window fails whatever is asked for, so
// do places in which there is nothing.
func (p *pager) isSomebody(ctx context.Context) (bool, error) {
	r := p.run
	before := r.counts.parents.Load()
	_, err := r.extra(ctx, p.d, record.Query{From: p.q.From, To: p.q.From, Size: 1}, aloneTime(r.Budget))
	if err == nil {
		return r.counts.parents.Load() > before, nil
	}
	p.d.rollback()
	return isHeavy(err) || errors.Is(err, errStuck), err
}

// takeBack sets the cursor back to the first of the suspects, as nothing has shown that
// they are to blame: the next run goes on behind them only as long as that is so.
func (p *pager) takeBack() {
	if suspects := p.d.suspects; len(suspects) > 0 {
		p.d.rewind(suspects[0].ID)
	}
}
