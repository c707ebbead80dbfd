package ingest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/turn"
)

// delivery takes records on the reading goroutine and packs them into batches
// (batching.go), and sends these on goroutines of their own (sending.go).
//
// The way of a batch: a slot is taken, the batch is sent until it is accepted
// or its refused rows are stored, the checkpoint moves behind it as soon as all
// batches before it are there too, and only then the slot is free again. So a
// killed run repeats at most the rows of InFlight batches and the one that was
// being filled.
type delivery struct {
	ctx   context.Context //nolint:containedctx // of sending; outlives the reading
	stop  context.CancelCauseFunc
	run   *Run
	enc   *record.Encoder
	max   int
	slots chan struct{}
	quit  chan struct{} // closed at the first failure: no slot will come free
	wg    sync.WaitGroup

	// Of the reading goroutine.
	buf      []byte
	ends     []int
	mark     int    // rows in buf up to the last whole parent
	lastDone uint64 // highest parent id handed over whole
	query    record.Query
	ordered  bool   // parents of the page came in ascending order
	extra    bool   // records follow that belong to no page
	came     bool   // a parent of the page in work has come
	inHost   bool   // a record of the parent in work was seen
	skip     uint64 // parent that the page before has ended with; 0: none
	lastID   uint64
	host     struct{ repeated, cut int64 } // rows of the host in work
	keeping  keeping                       // of fields that are cut
	sequence int
	ledger   ledger
	watch    *watch // of the page in work
	join     *join  // nil: nothing is joined
	idColumn int
	parent   uint64 // in work; 0: its id is no number
	first    uint64 // parent of the first row in buf
	whole    int    // whole parents with rows in buf
	// suspects fail by themselves, and no other parent has come since. Until one has, no
	// cursor passes them: it may be that none comes.
	suspects []Isolated
	// patience is how long a page may wait, in all, for a destination that takes no
	// batch, and waited how long it has; zero: for ever.
	patience, waited time.Duration
	// unsaved tells that the checkpoint has to be saved although no batch moved it.
	unsaved bool
	// doubted is called when the page in work may not be whole.
	doubted func() error
	saves   turn.Turn // one saves at a time: the last to save knows most

	mu      sync.Mutex
	free    []room
	acked   map[int]arrival // accepted batches, by sequence
	settled int             // sequence of the next batch to settle
	saving  bool
	// held keeps the cursor at floor: what was read behind that may count for nothing.
	held     bool
	floor    uint64
	err      error
	accepted bool // any row was, in this run
	refused  Refusals
	// refusedNow is how many rows were refused in this run, as long as none is accepted.
	refusedNow int
}

// arrival is what an accepted batch moves.
type arrival struct {
	cursor uint64
	rows   []byte // of the ledger
}

func newDelivery(ctx context.Context, stop context.CancelCauseFunc, r *Run, seen ledger) *delivery {
	limits := r.Destination.Limits()
	if most := r.Destination.BatchBytes() - 2; limits.RowBytes == 0 || limits.RowBytes > most {
		limits.RowBytes = most
	}
	if r.RowBytes > 0 {
		limits.RowBytes = min(limits.RowBytes, r.RowBytes)
	}
	most := r.Destination.BatchBytes()
	if r.BatchBytes > 0 {
		most = min(most, r.BatchBytes)
	}
	d := &delivery{
		ctx: ctx, stop: stop, run: r,
		enc:      record.NewEncoder(r.Dataset.Schema, limits, r.Policy),
		max:      most,
		slots:    make(chan struct{}, r.InFlight),
		quit:     make(chan struct{}),
		acked:    map[int]arrival{},
		ledger:   seen,
		idColumn: r.Dataset.Schema.Index(r.Dataset.Schema.ParentID),
		keeping:  keeping{run: r},
		patience: r.Patience,
	}
	if r.state.Refused != nil {
		d.refused = *r.state.Refused
	}
	return d
}

// fail keeps the first error and ends the reading. The slot of the batch stays
// taken: nothing behind it can settle.
func (d *delivery) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failLocked(err)
}

func (d *delivery) failLocked(err error) {
	if d.err != nil {
		return
	}
	d.err = err
	close(d.quit)
	d.stop(err)
}

func (d *delivery) failure() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// settle moves the checkpoint behind all batches that have arrived without a
// gap. It is the only place where a cursor is saved, and it runs only after
// deliver has returned nil.
func (d *delivery) settle(sequence int, arrived arrival) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.acked[sequence] = arrived
	if d.saving || d.err != nil {
		// Whoever saves takes this batch along. Behind a failure nothing moves:
		// what failed may be just what comes before this batch.
		return
	}
	d.saving = true
	defer func() { d.saving = false }()
	for {
		n := 0
		var cursor uint64
		for {
			a, ok := d.acked[d.settled]
			if !ok {
				break
			}
			delete(d.acked, d.settled)
			cursor = a.cursor
			d.ledger.delivered(a.rows)
			d.settled++
			n++
		}
		if n == 0 {
			return
		}
		if d.refused.Rows > 0 {
			refused := d.refused
			d.run.state.Refused = &refused
		}
		keep := d.ledger.due(d.run.Clock.Now())
		before := d.run.state.Window.NextID
		d.mu.Unlock()
		err := d.saves.Take(d.ctx)
		if err == nil {
			err = d.advance(cursor, keep)
			d.saves.Leave()
		}
		d.mu.Lock()
		if err != nil {
			// What is not saved must not be a part of a later save.
			d.setCursor(before)
			if cause := context.Cause(d.ctx); cause != nil {
				err = cause // the lease was lost, or the time is up, under way
			}
			d.failLocked(fmt.Errorf("save the checkpoint: %w", err))
			return
		}
		for range n {
			<-d.slots
		}
	}
}

// setCursor moves the cursor of the state, as far as it may.
func (d *delivery) setCursor(cursor uint64) {
	if d.held {
		cursor = min(cursor, d.floor)
	}
	d.run.state.Window.NextID = cursor
}

// advance keeps what has to be there before the cursor moves, moves it, and saves it. The
// turn to save is taken: another save in between would have one without the other.
func (d *delivery) advance(cursor uint64, keep func(context.Context) error) error {
	if keep != nil {
		if err := keep(d.ctx); err != nil {
			return err
		}
	}
	d.mu.Lock()
	d.setCursor(cursor)
	d.mu.Unlock()
	return d.write(d.ctx)
}

// save saves the checkpoint as it stands.
func (d *delivery) save() error { return d.saveIn(d.ctx) }

// saveAtLast saves it although the time to send may be over.
func (d *delivery) saveAtLast() error {
	if err := d.save(); err == nil || d.ctx.Err() == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.ctx), stopGrace)
	defer cancel()
	return d.saveIn(ctx)
}

func (d *delivery) saveIn(ctx context.Context) error {
	if err := d.saves.Take(ctx); err != nil {
		return err //nolint:wrapcheck // the end of the run
	}
	defer d.saves.Leave()
	return d.write(ctx)
}

// write is save with the turn taken.
func (d *delivery) write(ctx context.Context) error {
	d.mu.Lock()
	doc, err := d.run.document()
	d.mu.Unlock()
	index := d.run.state.Index
	if err == nil {
		err = d.run.lease.Save(ctx, doc)
	}
	if err == nil {
		d.run.savedIndex = index
		d.ledger.saved(ctx)
	}
	return err
}

// hold keeps the cursor at a parent, whatever arrives of those behind it, until it is let go.
func (d *delivery) hold(at uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held {
		at = min(at, d.floor)
	}
	d.held, d.floor, d.unsaved = true, at, true
	if w := d.run.state.Window; w != nil {
		d.setCursor(w.NextID)
	}
}

// letGo lets the cursor move again.
func (d *delivery) letGo() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held = false
}

// rewind sets the cursor back to a parent, and holds it there.
func (d *delivery) rewind(to uint64) {
	d.hold(to)
	d.query, d.ordered, d.lastDone = record.Query{After: d.query.After, From: to}, true, max(to, 1)-1
	d.lastID, d.skip = 0, 0 // none of those behind has been brought
}

// Doubt implements record.Sink.
func (d *delivery) Doubt() error {
	if d.extra || d.doubted == nil {
		return nil // it belongs to no page
	}
	defer d.watch.hold()() // the time that it takes to save is none of the page's
	return d.doubted()
}

// pause keeps what is known of an unfinished window.
func (d *delivery) pause() {
	s := d.run.state
	moved := s.Index != d.run.savedIndex || d.unsaved
	// All that was handed over is settled. Parents that brought nothing new have
	// moved no cursor so far.
	if s.Window != nil && d.ordered && d.lastDone+1 > s.Window.NextID {
		d.setCursor(d.lastDone + 1)
		moved = true
	}
	d.ledger.end(d.ctx, false)
	if s.Index == d.run.savedIndex && !moved {
		return // the checkpoint stands as it was saved last
	}
	if err := d.save(); err != nil {
		d.run.Log.Warn("the checkpoint goes with the index of before, and its journal", zap.Error(err))
	}
}

// drain sends what is complete and waits until all is settled or has failed.
func (d *delivery) drain() error {
	d.rollback()
	sealErr := d.seal()
	d.wg.Wait()
	if err := d.failure(); err != nil {
		return err
	}
	if sealErr == nil {
		d.ledger.delivered(d.ledger.take()) // hosts that brought no new row
	}
	return sealErr
}

// finish closes the window: everything has arrived.
func (d *delivery) finish() error {
	d.ledger.end(d.ctx, true)
	s := d.run.state
	if s.Window.After == nil {
		s.LastFull = &s.Window.Until
	}
	w := s.Window
	s.Watermark, s.Clocks, s.Window, s.Stalled, s.Trouble, s.LastAfter = &w.Until, w.Clocks, nil, 0, nil, w.After
	if err := d.save(); err != nil {
		return fmt.Errorf("save the checkpoint: %w", err)
	}
	d.run.whole = w
	return nil
}
