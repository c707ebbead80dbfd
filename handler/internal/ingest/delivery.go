package ingest

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/record"
)

// maxRefusedOnly is how many rows may be refused before any is accepted. Then
// it is not the rows: the table or its rule does not fit, and every row of the
// subscription would become a dead letter.
const maxRefusedOnly = 20

// delivery takes records on the reading goroutine, packs them into batches,
// and sends these on goroutines of their own.
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
	inHost   bool   // a record of the parent in work was seen
	skip     string // parent that the page before has ended with
	lastID   string
	hostRows [2]int64 // repeated and cut rows of the host in work
	cuts     int      // dead letters for cut rows
	cutName  string   // of the next one
	sequence int
	recent   *recent
	idColumn int

	mu       sync.Mutex
	free     [][]byte
	acked    map[int]arrival // accepted batches, by sequence
	settled  int             // sequence of the next batch to settle
	saving   bool
	err      error
	accepted bool // any row ever was
	refused  int
	hintAt   time.Time // when recent was saved last
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

// cutName is where the whole fields of the n-th cut row are kept.
func cutName(r *Run, n int) string {
	return fmt.Sprintf("deadletter/%s/%s/cut-%06d.ndjson.gz", r.Dataset.Name, r.ID, n)
}

// beginPage says which page comes next.
func (d *delivery) beginPage(q record.Query) {
	d.query, d.ordered = q, true
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
		s.Window = &Window{Until: at.UTC(), NextHost: q.From, Source: d.run.identity()}
		if !q.After.IsZero() {
			s.Window.After = &q.After
		}
	}
	d.recent.begin(s.Window.Until, d.run.Overlap)
	return nil
}

// Record implements record.Sink: it appends the record to the batch.
func (d *delivery) Record(rec *record.Record) error {
	if !d.inHost {
		d.inHost = true
		d.checkOrder(rec)
	}
	if d.skip != "" {
		if id := rec.Field(d.idColumn).Head(); string(id) == d.skip {
			d.hostRows[0]++
			return nil // the page before has brought this host already
		}
	}
	r := d.run
	meta := record.Meta{Time: r.Clock.Now(), Run: r.ID, DeadLetter: d.cutName}
	if len(d.ends) == 0 {
		d.buf = append(d.buffer(), '[')
	}
	before := len(d.buf)
	if len(d.ends) > 0 {
		d.buf = append(d.buf, ',')
	}
	var row record.Row
	d.buf, row = d.enc.Append(d.buf, rec, meta)
	if d.recent.repeated(rec, row) {
		d.hostRows[0]++
		d.buf = d.buf[:before]
		if len(d.ends) == 0 {
			d.recycle(d.buf)
			d.buf = nil
		}
		return nil
	}
	if len(row.Cut) > 0 {
		if err := d.keepWhole(rec, row.Cut); err != nil {
			return err
		}
	}
	for len(d.buf)+1 > d.max && len(d.ends) > 0 {
		if err := d.sealWhole(); err != nil {
			return err
		}
	}
	d.ends = append(d.ends, len(d.buf))
	r.counts.decoded.Add(1)
	return nil
}

// sealWhole sends off the rows of the hosts that are whole. Those of the host
// in work open the next batch: were its page to break now, they would be read
// again. Only a host larger than a batch is parted.
func (d *delivery) sealWhole() error {
	rows := d.mark
	if rows == 0 {
		rows = len(d.ends)
	}
	end := d.ends[rows-1]
	rest := append(append(d.buffer(), '['), d.buf[end+1:]...) // the comma is dropped
	restEnds := slices.Clone(d.ends[rows:])
	for i := range restEnds {
		restEnds[i] -= end
	}
	d.buf, d.ends = d.buf[:end], d.ends[:rows]
	err := d.seal()
	d.buf, d.ends = rest, restEnds
	return err
}

// Done implements record.Sink: a host's records are all there.
func (d *delivery) Done(id uint64) error {
	if id <= d.lastDone {
		d.disorder(id)
	} else {
		d.lastDone = id
	}
	d.inHost = false
	d.lastID = strconv.FormatUint(id, 10)
	d.skip = ""
	d.mark = len(d.ends)
	d.recent.done()
	d.run.counts.parents.Add(1)
	d.run.counts.repeated.Add(d.hostRows[0])
	d.run.counts.cut.Add(d.hostRows[1])
	d.hostRows = [2]int64{}
	if !d.run.Clock.Now().Before(d.run.deadline) {
		return errPause
	}
	return context.Cause(d.ctx)
}

// checkOrder looks at the id of a host at its first record.
func (d *delivery) checkOrder(rec *record.Record) {
	id, err := strconv.ParseUint(string(rec.Field(d.idColumn).Head()), 10, 63)
	if err != nil || id <= d.lastDone {
		d.disorder(id)
	}
}

// disorder notes that the page does not ascend by id, as the API's paging
// needs it to. Only whole pages are safe points then.
func (d *delivery) disorder(id uint64) {
	if d.ordered {
		d.run.Log.Warn("hosts out of order: no safe point before the end of the page", zap.Uint64("host", id), zap.Uint64("after", d.lastDone))
	}
	d.ordered = false
}

// Tally implements record.Sink.
func (d *delivery) Tally(t record.Tally) { d.run.counts.addTally(t) }

// rollback drops the rows of a host that broke off, as far as they are not
// under way, and returns the host to ask for next.
func (d *delivery) rollback() uint64 {
	if len(d.ends) > d.mark {
		d.run.counts.decoded.Add(int64(d.mark - len(d.ends)))
		d.ends = d.ends[:d.mark]
		if d.mark > 0 {
			d.buf = d.buf[:d.ends[d.mark-1]]
		}
	}
	d.recent.forget()
	d.inHost = false
	d.hostRows = [2]int64{}
	if !d.ordered {
		return d.query.From
	}
	return d.lastDone + 1
}

// seal sends the batch off.
func (d *delivery) seal() error {
	if len(d.ends) == 0 {
		return nil
	}
	cursor := d.query.From
	if d.ordered {
		cursor = d.lastDone + 1
	}
	b := record.Batch{Body: append(d.buf, ']'), Ends: d.ends}
	arrived := arrival{cursor: cursor, recent: d.recent.take()}
	sequence := d.sequence
	d.sequence++
	d.buf, d.ends, d.mark = nil, nil, 0
	select {
	case d.slots <- struct{}{}:
	case <-d.quit:
		d.run.counts.abandoned.Add(int64(b.Rows()))
		return d.failure()
	case <-d.ctx.Done():
		d.run.counts.abandoned.Add(int64(b.Rows()))
		return context.Cause(d.ctx)
	}
	d.wg.Add(1)
	go func() {
		defer d.wg.Done()
		if delivered, err := d.deliver(b, sequence); err != nil {
			d.run.counts.abandoned.Add(int64(b.Rows() - delivered))
			d.fail(err)
			return
		}
		d.recycle(b.Body)
		d.settle(sequence, arrived)
	}()
	return nil
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
		hint, due := d.dueHint()
		d.mu.Unlock()
		if due {
			d.saveRecent(hint)
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

// hintInterval is how often at most the rows delivered lately are saved while a
// window goes on: those delivered since may be sent again after a kill. Saving
// takes some 50 ms where there are as many as are remembered.
const hintInterval = 2 * time.Second

// dueHint tells whether it is time to save them, and what.
func (d *delivery) dueHint() (recentDoc, bool) {
	now := d.run.Clock.Now()
	if now.Sub(d.hintAt) < hintInterval {
		return recentDoc{}, false
	}
	d.hintAt = now
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
	if err := doc.save(d.ctx, d.run.Store, d.run.recentName()); err != nil {
		d.run.Log.Warn("the rows delivered lately are not kept: some may be sent twice", zap.Error(err))
	}
}

// shipment is what has become of a batch's rows so far.
type shipment struct {
	accepted int
	letters  []letter
}

// deliver returns nil when every row of b was accepted or kept as a dead
// letter, and in any case how many were.
func (d *delivery) deliver(b record.Batch, sequence int) (int, error) {
	var s shipment
	err := d.sendAll(b, &s)
	if errors.Is(err, errNothingTaken) && d.probe(b) {
		s = shipment{} // it is the rows after all: part them to the last
		err = d.sendAll(b, &s)
	}
	if err != nil {
		return s.accepted, err
	}
	if len(s.letters) == 0 {
		return s.accepted, nil
	}
	name := fmt.Sprintf("deadletter/%s/%s/rows-%06d.ndjson.gz", d.run.Dataset.Name, d.run.ID, sequence)
	if err := d.keepLetters(name, s.letters); err != nil {
		return s.accepted, err
	}
	d.run.counts.deadLetters.Add(int64(len(s.letters)))
	d.run.Log.Error("rows refused for good: kept as dead letters", zap.Int("rows", len(s.letters)),
		zap.String("deadLetter", name), zap.String("reason", s.letters[0].reason))
	return s.accepted + len(s.letters), nil
}

// letter is a refused row.
type letter struct {
	row    []byte
	reason string
}

// sendAll sends b, in halves where it is refused whole, down to the rows that
// are refused by themselves.
func (d *delivery) sendAll(b record.Batch, s *shipment) error {
	sent, err := d.send(b)
	switch {
	case err == nil:
		s.accepted += b.Rows()
		d.run.counts.accepted.Add(int64(b.Rows()))
		d.run.counts.batches.Add(1)
		d.run.counts.bytesRows.Add(int64(len(b.Body)))
		d.run.counts.bytesSent.Add(sent)
		d.note(true)
		return nil
	case !isRefusal(err):
		return err
	case b.Rows() == 1:
		if d.note(false) {
			return fmt.Errorf("%w: check that table and data collection rule fit this version: %w", errNothingTaken, err)
		}
		s.letters = append(s.letters, letter{row: slices.Clone(b.Body[1 : len(b.Body)-1]), reason: err.Error()})
		return nil
	}
	half := b.Rows() / 2
	cut := b.Ends[half-1] // the comma between the halves closes one and opens the other
	b.Body[cut] = ']'
	if err := d.sendAll(record.Batch{Body: b.Body[:cut+1], Ends: b.Ends[:half]}, s); err != nil {
		return err
	}
	b.Body[cut] = '['
	rest := slices.Clone(b.Ends[half:])
	for i := range rest {
		rest[i] -= cut
	}
	return d.sendAll(record.Batch{Body: b.Body[cut:], Ends: rest}, s)
}

// errNothingTaken ends a run whose destination takes no row at all.
var errNothingTaken = fmt.Errorf("the destination has refused %d rows and accepted none, so it is not the rows", maxRefusedOnly)

// probes is how many rows of a batch are tried by themselves before the
// destination is given up.
const probes = 16

// probe tells whether any row of b is accepted by itself. The first that is
// will be sent a second time, with the others.
func (d *delivery) probe(b record.Batch) bool {
	d.restore(b)
	for n := range probes {
		i := n * (b.Rows() - 1) / (probes - 1)
		begin := 1
		if i > 0 {
			begin = b.Ends[i-1] + 1
		}
		row := append(append([]byte{'['}, b.Body[begin:b.Ends[i]]...), ']')
		if _, err := d.send(record.Batch{Body: row, Ends: []int{len(row) - 1}}); err == nil {
			d.note(true)
			return true
		}
	}
	return false
}

// restore makes one array again of a batch that was parted.
func (d *delivery) restore(b record.Batch) {
	b.Body[0] = '['
	for _, end := range b.Ends[:len(b.Ends)-1] {
		b.Body[end] = ','
	}
	b.Body[len(b.Body)-1] = ']'
}

// note counts refusals until the first row is accepted, and tells whether
// there were too many.
func (d *delivery) note(accepted bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if accepted {
		d.accepted = true
		return false
	}
	d.refused++
	return !d.accepted && d.refused > maxRefusedOnly
}

// send sends b until it is accepted or refused for good.
func (d *delivery) send(b record.Batch) (int64, error) {
	began := d.run.Clock.Now()
	for tries := 1; ; tries++ {
		sent, err := d.run.Destination.Send(d.ctx, b)
		if err == nil {
			if tries > 1 {
				d.run.Log.Info("accepted after all", zap.Int("tries", tries), zap.Duration("took", d.run.Clock.Now().Sub(began)))
			}
			return sent, nil
		}
		if cause := context.Cause(d.ctx); cause != nil {
			return 0, cause
		}
		after, ok := retryAfter(err)
		if !ok {
			return 0, err
		}
		// Time to send lasts longer than time to read: the last batches want it.
		if err := d.run.wait(d.ctx, d.run.deadline.Add(sendGrace), err, after, tries); err != nil {
			return 0, fmt.Errorf("not accepted in %d tries: %w", tries, err)
		}
	}
}

// keepWhole stores the fields of a row that its destination cuts.
func (d *delivery) keepWhole(rec *record.Record, columns []int) error {
	name := d.cutName
	d.cuts++
	d.cutName = cutName(d.run, d.cuts)
	d.hostRows[1]++
	return writeObject(d.ctx, d.run.Store, name, func(w io.Writer) error {
		gz := gzip.NewWriter(w)
		for _, column := range columns {
			if err := d.enc.WriteWhole(gz, rec, column); err != nil {
				return err
			}
		}
		return gz.Close()
	})
}

func (d *delivery) keepLetters(name string, letters []letter) error {
	return writeObject(d.ctx, d.run.Store, name, func(w io.Writer) error {
		gz := gzip.NewWriter(w)
		for _, l := range letters {
			line := record.AppendQuoted([]byte(`{"table":`), d.run.Dataset.Schema.Table)
			line = record.AppendQuoted(append(line, `,"reason":`...), l.reason)
			line = append(append(append(line, `,"row":`...), l.row...), "}\n"...)
			if _, err := gz.Write(line); err != nil {
				return err
			}
		}
		return gz.Close()
	})
}

// buffer returns an empty buffer for a batch.
func (d *delivery) buffer() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := len(d.free); n > 0 {
		b := d.free[n-1]
		d.free = d.free[:n-1]
		return b[:0]
	}
	return make([]byte, 0, d.max+d.max/8)
}

func (d *delivery) recycle(b []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.free) < 2 {
		d.free = append(d.free, b)
	}
}
