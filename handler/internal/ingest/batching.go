package ingest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/record"
)

// beginPage says which page comes next.
func (d *delivery) beginPage(q record.Query) {
	d.query, d.ordered, d.waited, d.extra, d.came = q, true, 0, false, false
	d.lastDone = max(q.From, 1) - 1
}

// endPage says that a page ended and where the next begins.
func (d *delivery) endPage(next uint64) {
	// Whatever the order inside it was, behind a whole page it is safe.
	d.ordered, d.lastDone = true, next-1
	d.skip = d.lastID
}

// Begin implements record.Sink.
func (d *delivery) Begin(at time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.run.state
	if s.Window == nil {
		q := d.query
		clocks := Clocks{Qualys: at.UTC(), Here: d.run.Clock.Now().UTC()}
		after, until, err := d.run.stretch(q.After, clocks)
		if err != nil {
			return err
		}
		if q.After.Sub(after) >= time.Minute { // the second answer comes a little later
			return &againError{after}
		}
		s.Window = &Window{Until: until, NextID: q.From, Source: d.run.identity(), Clocks: &clocks}
		if !q.After.IsZero() {
			s.Window.After = &q.After
		}
	}
	d.ledger.begin(s.Window)
	return nil
}

// Record implements record.Sink: it appends the record to the batch.
func (d *delivery) Record(rec *record.Record) error {
	if !d.inHost {
		d.inHost = true
		d.checkOrder(rec)
	}
	if d.skip != 0 {
		if id, err := strconv.ParseUint(string(rec.Field(d.idColumn).Head()), 10, 63); err == nil && id == d.skip {
			d.host.repeated++
			return nil // the page before has brought this host already
		}
	}
	r := d.run
	if d.join != nil {
		if err := d.join.fill(rec); err != nil {
			return err
		}
	}
	meta := record.Meta{Time: r.Clock.Now(), Run: r.ID, DeadLetter: func(cut []int) string { return d.keeping.place(rec, cut) }}
	if len(d.ends) == 0 {
		d.begin()
	}
	before := len(d.buf)
	if len(d.ends) > 0 {
		d.buf = append(d.buf, ',')
	}
	var row record.Row
	d.buf, row = d.enc.Append(d.buf, rec, meta)
	if d.ledger.repeated(rec, row) {
		d.host.repeated++
		d.buf = d.buf[:before]
		if len(d.ends) == 0 {
			d.recycle(d.buf, d.ends)
			d.buf, d.ends = nil, nil
		}
		return nil
	}
	if len(row.Cut) > 0 {
		d.host.cut++
		if err := d.keeping.keep(d.ctx, rec, d.enc); err != nil {
			return err
		}
	}
	for len(d.buf)+1 > d.max && len(d.ends) > 0 {
		// Before anything is moved: behind an error the batch is as it was.
		if err := d.slot(false); err != nil {
			return err
		}
		d.sealWhole()
	}
	if len(d.ends) == 0 {
		d.first = d.parent
	}
	d.ends = append(d.ends, len(d.buf))
	r.counts.decoded.Add(1)
	return nil
}

// sealWhole sends off, in the slot that was taken, the rows of the hosts that are
// whole. Those of the host in work open the next batch: were its page to break now,
// they would be read again. Only a host larger than a batch is parted.
func (d *delivery) sealWhole() {
	rows := d.mark
	if rows == 0 {
		rows = len(d.ends)
	}
	end := d.ends[rows-1]
	buf, ends := d.buf, d.ends
	d.begin()
	d.buf = append(d.buf, buf[end+1:]...) // the comma is dropped
	for _, e := range ends[rows:] {
		d.ends = append(d.ends, e-end)
	}
	restBuf, restEnds := d.buf, d.ends
	d.buf, d.ends = buf[:end], ends[:rows]
	d.dispatch()
	d.buf, d.ends, d.first = restBuf, restEnds, d.parent
}

// Done implements record.Sink: a host's records are all there.
func (d *delivery) Done(id uint64) error {
	d.came = true
	switch {
	case d.extra: // the cursor stands where the last page ended
	case id <= d.lastDone:
		d.disorder(id)
	default:
		d.lastDone = id
	}
	d.inHost = false
	d.lastID, d.skip = id, 0
	if len(d.ends) > d.mark {
		d.whole++
	}
	d.mark = len(d.ends)
	d.ledger.done()
	d.watch.safe()
	d.run.counts.parents.Add(1)
	d.run.counts.repeated.Add(d.host.repeated)
	d.run.counts.cut.Add(d.host.cut)
	d.host.repeated, d.host.cut = 0, 0
	d.keeping.endParent()
	if !d.run.Clock.Now().Before(d.run.deadline) {
		return errPause
	}
	return context.Cause(d.ctx)
}

// checkOrder looks at the id of a host at its first record.
func (d *delivery) checkOrder(rec *record.Record) {
	id, err := strconv.ParseUint(string(rec.Field(d.idColumn).Head()), 10, 63)
	if d.parent = id; err != nil || id <= d.lastDone {
		d.disorder(id)
	}
}

// disorder notes that the page does not ascend by id, as the API's paging
// needs it to. Only whole pages are safe points then.
func (d *delivery) disorder(id uint64) {
	if d.ordered {
		d.run.Log.Warn(d.run.Dataset.Parents+" out of order: no safe point before the end of the page", zap.Uint64("id", id), zap.Uint64("after", d.lastDone))
	}
	d.ordered = false
}

// Tally implements record.Sink.
func (d *delivery) Tally(t record.Tally) {
	if t.Requests > 0 {
		d.watch.request()
	}
	d.run.counts.addTally(t)
}

// Alive says that a page which others read as well comes to safe points, although it
// has nothing for this run yet.
func (d *delivery) Alive() { d.watch.safe() }

// Aside tells that what follows is no page of the window.
func (d *delivery) Aside() bool { return d.extra }

// beginExtra says that records follow which belong to no page of the window:
// their ids lie behind the cursor, which stays where the last page ended.
func (d *delivery) beginExtra() {
	// A window that has not begun yet begins where the page before wanted it to.
	d.query, d.ordered, d.waited, d.extra = record.Query{After: d.query.After, From: d.lastDone + 1}, false, 0, true
	d.came = false
}

// rollback drops the rows of a host that broke off, as far as they are not
// under way, and returns the host to ask for next.
func (d *delivery) rollback() uint64 {
	d.run.counts.decoded.Add(int64(d.mark - len(d.ends)))
	d.ends = d.ends[:d.mark]
	if d.mark > 0 { // a row that could not be finished goes, too
		d.buf = d.buf[:d.ends[d.mark-1]]
	}
	d.ledger.forget()
	d.inHost = false
	d.host.repeated, d.host.cut = 0, 0
	d.keeping.endParent()
	if !d.ordered {
		return d.query.From
	}
	return d.lastDone + 1
}

// errSlow ends a page that others read as well: the destination takes no batch.
var errSlow = errors.New("the destination takes no batch")

// maxPatience is what patience grows to, with a destination that is slow again and
// again.
const maxPatience = 2 * time.Minute

// slot takes a slot for a batch. It waits until the page's patience is at an end, and
// returns errSlow then; or as long as it takes.
func (d *delivery) slot(patient bool) error {
	select {
	case d.slots <- struct{}{}:
		return nil
	default:
	}
	defer d.watch.hold()()
	var expired chan struct{}
	if !patient && d.patience > 0 {
		began := d.run.Clock.Now()
		defer func() { d.waited += d.run.Clock.Now().Sub(began) }()
		ctx, cancel := context.WithCancel(d.ctx)
		defer cancel()
		expired = make(chan struct{})
		left := max(0, d.patience-d.waited)
		go func() {
			_ = d.run.Clock.Sleep(ctx, left) // ends early with ctx
			close(expired)
		}()
	}
	select {
	case d.slots <- struct{}{}:
		return nil
	case <-d.quit:
		return d.failure()
	case <-d.ctx.Done():
		return context.Cause(d.ctx)
	case <-expired:
		// It may take whatever it does, but others wait: longer next time, so that a
		// parent of many batches gets through.
		d.patience = min(2*d.patience, max(maxPatience, d.run.Budget/2))
		return errSlow
	}
}

// settleAll waits until all batches have arrived.
func (d *delivery) settleAll(ctx context.Context) (err error) {
	taken := 0
	for err == nil && taken < cap(d.slots) {
		select {
		case d.slots <- struct{}{}:
			taken++
		case <-d.quit:
			err = d.failure()
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	for range taken {
		<-d.slots
	}
	return err
}

// seal sends the batch off.
func (d *delivery) seal() error {
	if len(d.ends) == 0 {
		return nil
	}
	if err := d.slot(true); err != nil {
		d.run.counts.abandoned.Add(int64(len(d.ends)))
		d.buf, d.ends, d.mark = nil, nil, 0
		return err
	}
	d.dispatch()
	return nil
}

// dispatch sends the batch off in the slot that was taken.
func (d *delivery) dispatch() {
	cursor := d.query.From
	if d.ordered {
		cursor = d.lastDone + 1
	}
	if len(d.suspects) > 0 {
		cursor = min(cursor, d.suspects[0].ID)
	}
	b := record.Batch{Body: append(d.buf, ']'), Ends: d.ends}
	arrived := arrival{cursor: cursor, rows: d.ledger.take()}
	s := shipment{parent: d.first, mixed: d.whole > 1}
	d.whole = 0
	sequence := d.sequence
	d.sequence++
	d.buf, d.ends, d.mark = nil, nil, 0
	d.wg.Add(1)
	go func() {
		defer d.wg.Done()
		delivered := 0
		defer func() {
			if p := recover(); p != nil { // it must end this run alone
				d.run.Log.Error("panic", zap.Any("panic", p), zap.Stack("stack"))
				d.run.counts.abandoned.Add(int64(b.Rows() - delivered))
				d.fail(fmt.Errorf("internal error: %v", p))
			}
		}()
		var err error
		if delivered, err = d.deliver(b, sequence, s); err != nil {
			d.run.counts.abandoned.Add(int64(b.Rows() - delivered))
			d.fail(err)
			return
		}
		d.recycle(b.Body, b.Ends)
		d.settle(sequence, arrived)
	}()
}

// room is the memory of a batch.
type room struct {
	buf  []byte
	ends []int
}

// begin begins a batch, in the memory of one before where there is any.
func (d *delivery) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.buf, d.ends = nil, nil
	if n := len(d.free); n > 0 {
		r := d.free[n-1]
		d.free = d.free[:n-1]
		d.buf, d.ends = r.buf[:0], r.ends[:0]
	}
	if d.buf == nil {
		d.buf = make([]byte, 0, d.max+d.max/8)
	}
	d.buf = append(d.buf, '[')
}

// recycle takes a batch's memory back.
func (d *delivery) recycle(buf []byte, ends []int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.free) < cap(d.slots) && cap(buf) <= 2*d.max { // one that had to grow is not kept
		d.free = append(d.free, room{buf, ends})
	}
}
