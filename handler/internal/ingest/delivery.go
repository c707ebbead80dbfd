package ingest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/record"
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
	buf       []byte
	ends      []int
	mark      int    // rows in buf up to the last whole parent
	lastDone  uint64 // highest parent id handed over whole
	query     record.Query
	ordered   bool   // parents of the page came in ascending order
	inHost    bool   // a record of the parent in work was seen
	skip      string // parent that the page before has ended with
	lastID    string
	host      struct{ repeated, cut int64 } // rows of the host in work
	cuts      int                           // dead letters for cut rows
	cutName   string                        // of the next one
	sequence  int
	recent    *recent
	recentFor string // the state that recent goes with
	idColumn  int
	hosts     int // whole hosts with rows in buf

	mu       sync.Mutex
	free     [][]byte
	acked    map[int]arrival // accepted batches, by sequence
	settled  int             // sequence of the next batch to settle
	saving   bool
	err      error
	accepted bool // any row ever was
	refused  int
	recentAt time.Time // when recent was saved last
}

// arrival is what an accepted batch moves.
type arrival struct {
	cursor uint64
	recent []uint64
}

func newDelivery(ctx context.Context, stop context.CancelCauseFunc, r *Run, seen *recent) *delivery {
	limits := r.Destination.Limits()
	if most := r.Destination.BatchBytes() - 2; limits.RowBytes == 0 || limits.RowBytes > most {
		limits.RowBytes = most
	}
	return &delivery{
		ctx: ctx, stop: stop, run: r,
		enc:      record.NewEncoder(r.Dataset.Schema, limits, r.Policy),
		max:      r.Destination.BatchBytes(),
		slots:    make(chan struct{}, r.InFlight),
		quit:     make(chan struct{}),
		acked:    map[int]arrival{},
		recent:   seen,
		idColumn: r.Dataset.Schema.Index(r.Dataset.Schema.ParentID),
		cutName:  cutName(r, 0),
	}
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
	if d.saving {
		return // whoever saves takes this batch along
	}
	d.saving = true
	defer func() { d.saving = false }()
	for {
		n := 0
		for {
			a, ok := d.acked[d.settled]
			if !ok {
				break
			}
			delete(d.acked, d.settled)
			d.run.state.Window.NextHost = a.cursor
			d.recent.delivered(a.recent)
			d.settled++
			n++
		}
		if n == 0 {
			return
		}
		doc, err := d.run.state.encode()
		lately, due := d.dueRecent()
		d.mu.Unlock()
		if due {
			d.saveRecent(lately)
		}
		if err == nil {
			err = d.run.lease.Save(d.ctx, doc)
		}
		d.mu.Lock()
		if err != nil {
			d.failLocked(fmt.Errorf("save the checkpoint: %w", err))
			return
		}
		for range n {
			<-d.slots
		}
	}
}

// The rows delivered lately are saved while a window goes on, because those
// delivered since may be sent again after a kill. Saving takes some 50 ms where
// there are as many as are remembered: the interval grows with their number, so
// that it takes a few hundredths of the time.
const (
	recentInterval = 100 * time.Millisecond
	recentPerRow   = 10 * time.Microsecond
)

// dueRecent tells whether it is time to save them, and what.
func (d *delivery) dueRecent() (recentDoc, bool) {
	now := d.run.Clock.Now()
	if now.Sub(d.recentAt) < recentInterval+time.Duration(len(d.recent.now))*recentPerRow {
		return recentDoc{}, false
	}
	d.recentAt = now
	return d.recent.unfinished(), true
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
		d.recent.delivered(d.recent.take()) // hosts that brought no new row
	}
	return sealErr
}

// finish closes the window: everything has arrived.
func (d *delivery) finish() error {
	d.saveRecent(d.recent.finished())
	if d.recent.dropped > 0 {
		d.run.Log.Warn("too many recent rows to remember: some may be sent twice by the next run", zap.Int("rows", d.recent.dropped))
	}
	s := d.run.state
	s.Watermark, s.Window = &s.Window.Until, nil
	doc, err := s.encode()
	if err != nil {
		return err
	}
	if err := d.run.lease.Save(d.ctx, doc); err != nil {
		return fmt.Errorf("save the checkpoint: %w", err)
	}
	return nil
}

// saveRecent keeps what was delivered lately; see Run.loadRecent for a failure.
func (d *delivery) saveRecent(doc recentDoc) {
	doc.For = d.recentFor
	if err := doc.save(d.ctx, d.run.Store, d.run.recentName()); err != nil {
		d.run.Log.Warn("the rows delivered lately are not kept: some may be sent twice", zap.Error(err))
	}
}
