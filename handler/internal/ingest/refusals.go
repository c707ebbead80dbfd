package ingest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/record"
)

// maxRefusedOnly is how many rows may be refused before any is accepted. Then
// it is not the rows: the table or its rule does not fit, and every row of the
// subscription would become a dead letter.
const maxRefusedOnly = 20

// Refusals are the rows that a destination has refused since it accepted one: those kept
// as dead letters, and those with which a run has stopped. Runs share the count: where each began its own, a
// table that takes no row would be filled into the dead letters piece by piece.
type Refusals struct {
	Rows int `json:"rows"`
	// Parent is that of the first of them, Others says that some are of others.
	Parent uint64 `json:"parent,omitempty"`
	Others bool   `json:"others,omitempty"`
}

// doubtful reports whether it may be the destination and not the rows. All rows of one
// parent may be bad, and that says nothing of it; but two such parents do.
func (r *Refusals) doubtful() bool { return r.Rows > maxRefusedOnly && r.Others }

// taken notes that a row was accepted.
func (d *delivery) taken() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.accepted, d.refused, d.run.state.Refused = true, Refusals{}, nil
}

// hasTaken reports whether a row was accepted in this run.
func (d *delivery) hasTaken() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.accepted
}

// refuse notes that a row of a batch was refused, and reports whether there were too
// many, and none accepted.
func (d *delivery) refuse(s *shipment) (tooMany bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.accepted {
		return false
	}
	r := &d.refused
	if r.Rows == 0 {
		r.Parent = s.parent
	}
	r.Rows++
	d.refusedNow++
	r.Others = r.Others || s.mixed || s.parent != r.Parent
	if !r.doubtful() {
		return false
	}
	doubt := *r
	d.run.state.Refused = &doubt // the next run begins with it
	return true
}

// nothingTaken is the error of a window whose rows were all of one parent, and all
// refused. They are kept, and the next run goes on behind them; but it may be the
// destination.
func (d *delivery) nothingTaken() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refusedNow == 0 || d.refused.Rows <= maxRefusedOnly {
		return nil
	}
	return fmt.Errorf("all rows of the window, %d, are of one of the %s, and were refused: they are kept as dead letters; if others are refused, too, check that table and data collection rule fit this version", d.refusedNow, d.run.Dataset.Parents)
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
			d.taken()
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

// maxProved is how many pages of refused samples a run asks for at most, in each
// direction: a page is a call of Qualys, and a table may stay broken for days. Runs in a
// row ask for one, two, three and so on, and begin anew.
const maxProved = 8

// prove asks a destination that has accepted nothing so far, before anything else is sent,
// for one row of each of some parents: those that are to come, and then those that have
// come before. If it takes one, it was the rows. Each run tries others. Pages that have no
// row for it are passed as long as there is time.
func (r *Run) prove(ctx context.Context, d *delivery) error {
	if !d.refused.doubtful() {
		return nil
	}
	queries := []record.Query{r.query()}
	if next := queries[0].From; next > 1 {
		queries = append(queries, record.Query{From: 1, To: next - 1})
	}
	end := r.Clock.Now().Add(aloneTime(r.Budget))
	var refused error
	for _, q := range queries {
		for left := 1 + r.state.Stalled%maxProved; left > 0; {
			rows, next := r.samples(ctx, d, q)
			taken, err := d.takesOne(rows)
			if taken || err != nil && !isRefusal(err) {
				return err
			}
			if err != nil {
				refused = err
				left--
			}
			if next == 0 || !r.Clock.Now().Before(end) {
				break
			}
			q.From = next
		}
	}
	if refused == nil {
		return nil // there is no row to ask it for
	}
	return nothingAccepted(refused)
}

// takesOne sends rows one by one until the destination accepts one. The error is the last
// refusal, or another one, which ends the attempt.
func (d *delivery) takesOne(rows [][]byte) (taken bool, refusal error) {
	for _, row := range rows {
		_, err := d.send(record.Batch{Body: row, Ends: []int{len(row) - 1}})
		if err == nil {
			d.run.Log.Info("the destination accepts rows: those that it has refused were to blame")
			d.taken()
			return true, nil
		}
		if refusal = err; !isRefusal(err) {
			break
		}
	}
	return false, refusal
}

// nothingAccepted explains a destination that takes no row.
func nothingAccepted(reason error) error {
	return fmt.Errorf("%w: check that table and data collection rule fit this version: %w", errNothingTaken, reason)
}

// samples are rows of a page, each as a batch of its own, and where the next page begins.
func (r *Run) samples(ctx context.Context, d *delivery, q record.Query) (rows [][]byte, next uint64) {
	ctx, cancel := context.WithTimeout(ctx, aloneTime(r.Budget))
	defer cancel()
	s := &sampler{d: d, step: 1}
	page, err := r.Source.Page(ctx, q, s)
	if err != nil {
		// That is for the reading to meet, and to tell.
		r.Log.Info("the page to take samples from has failed", zap.Error(err))
	}
	if source, ok := r.Source.(interface{ Forget() }); ok { // it hands nothing over twice
		source.Forget()
	}
	for _, sample := range s.list {
		rows = append(rows, sample.row)
	}
	return rows, page.Next
}

// sampler takes the first row of each of some parents, spread over a page: that of the
// first, and of every step-th, which are others with each run that got nowhere.
type sampler struct {
	d    *delivery
	step int
	list []sample
	size int  // of their rows, in bytes
	seen int  // parents
	has  bool // the parent in work had its turn
}

// maxSamples is how much the samples of a run take, in bytes: fifty destinations may be in
// doubt at once.
const maxSamples = 256 << 10

type sample struct {
	parent int // its place in the page, from 0
	row    []byte
}

var _ record.Sink = (*sampler)(nil)

// wants reports whether a parent is one of those.
func (s *sampler) wants(parent int) bool {
	return parent == 0 || parent%s.step == s.d.run.state.Stalled%s.step
}

// Begin implements record.Sink.
func (*sampler) Begin(time.Time) error { return nil }

// Record implements record.Sink.
func (s *sampler) Record(rec *record.Record) error {
	if s.has || !s.wants(s.seen) {
		return nil
	}
	s.has = true
	if s.d.join != nil {
		if err := s.d.join.fill(rec); err != nil {
			return err
		}
	}
	r := s.d.run
	row, _ := s.d.enc.Append([]byte{'['}, rec, record.Meta{Time: r.Clock.Now(), Run: r.ID})
	s.list = append(s.list, sample{s.seen, append(row, ']')})
	s.size += len(row) + 1
	for len(s.list) > probes || len(s.list) > 2 && s.size > maxSamples {
		s.step *= 2
		s.list = slices.DeleteFunc(s.list, func(o sample) bool { return !s.wants(o.parent) })
		s.size = 0
		for _, o := range s.list {
			s.size += len(o.row)
		}
	}
	return nil
}

// Done implements record.Sink.
func (s *sampler) Done(uint64) error {
	s.seen++
	s.has = false
	return nil
}

// Tally implements record.Sink.
func (s *sampler) Tally(t record.Tally) { s.d.run.counts.addTally(t) }
