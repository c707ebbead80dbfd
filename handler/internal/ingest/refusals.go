package ingest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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

// maxProved is how many pages of refused samples a run asks for at most: a page is a call of
// Qualys, and a table may stay broken for days. Runs in a row ask for one, two, three and
// so on, and begin anew.
const maxProved = 8

// prove asks a destination that has accepted nothing so far, before anything else is sent,
// for one row of each of some parents: those that are to come, and then those that have
// come before. If it takes one, it was the rows. Pages that have no row for it are passed
// as long as there is time.
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
	pages := 1 + r.state.Stalled%maxProved
	for _, q := range queries {
		taken, err := r.proveFrom(ctx, d, q, (pages+1)/len(queries), end)
		if taken || err != nil && !isRefusal(err) {
			return err
		}
		refused = cmp.Or(err, refused)
	}
	if refused == nil {
		return nil // there is no row to ask it for
	}
	return nothingAccepted(refused)
}

// proveFrom asks it for rows of some pages of a query: of the first, and then of those
// anywhere.
func (r *Run) proveFrom(ctx context.Context, d *delivery, q record.Query, left int, end time.Time) (taken bool, refused error) {
	h := hops{run: r, query: q, rand: rand.New(rand.NewPCG(uint64(r.state.Stalled), q.From))} //nolint:gosec // which are tried is no secret
	for left > 0 {
		s, page, pageErr := r.samples(ctx, d, q)
		if cause := context.Cause(ctx); cause != nil {
			return false, cause
		}
		taken, err := d.takesOne(s.list)
		if taken || err != nil && !isRefusal(err) {
			return taken, err
		}
		refused = cmp.Or(err, refused)
		switch {
		case pageErr != nil && !isHeavy(pageErr) && !errors.Is(pageErr, context.DeadlineExceeded):
			return false, refused // the reading meets it, too, and waits as it has to
		case pageErr == nil && err == nil && page.Next != 0 && !h.asked:
			q.From = page.Next // nobody of that page has a row
		default:
			left--
			if q = h.next(ctx); q.From == 0 {
				return false, refused
			}
		}
		if !r.Clock.Now().Before(end) {
			break
		}
	}
	return false, refused
}

// hops are the places at which samples are taken, behind pages that were refused or that do
// not come: by turns one parent by itself, which no other keeps from coming, and a page,
// which has more. They are anywhere among all, and others in each run.
type hops struct {
	run   *Run
	query record.Query
	rand  *rand.Rand
	alone bool // the next is of one parent
	ids   []uint64
	asked bool
}

// next is a query of the next place; its From is zero where there is none.
func (h *hops) next(ctx context.Context) record.Query {
	if !h.asked {
		ctx, cancel := context.WithTimeout(ctx, aloneTime(h.run.Budget)/samplePart)
		defer cancel()
		ids, err := h.run.Source.IDs(ctx, h.query, maxListed, h.run.counts.addTally)
		if err != nil {
			h.run.Log.Info("no list of others to take samples of", zap.Error(err))
		}
		h.ids, h.asked = ids, true
	}
	if len(h.ids) == 0 {
		return record.Query{}
	}
	q := h.query
	q.From = h.ids[h.rand.IntN(len(h.ids))]
	if h.alone = !h.alone; h.alone {
		q.To, q.Size = q.From, 1
	}
	return q
}

// takesOne sends rows one by one until the destination accepts one. The error is the last
// refusal, or another one, which ends the attempt.
func (d *delivery) takesOne(samples []sample) (taken bool, refusal error) {
	for _, sample := range samples {
		row := sample.row
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

// samples are rows of a page, each as a batch of its own.
func (r *Run) samples(ctx context.Context, d *delivery, q record.Query) (*sampler, record.Page, error) {
	ctx, cancel := context.WithTimeout(ctx, aloneTime(r.Budget)/samplePart)
	defer cancel()
	s := &sampler{d: d, step: 1, rand: rand.New(rand.NewPCG(uint64(r.state.Stalled), q.From))} //nolint:gosec // which rows are tried is no secret
	page, err := r.Source.Page(ctx, q, s)
	if err != nil {
		// That is for the reading to meet, and to tell.
		r.Log.Info("the page to take samples from has failed", zap.Error(err))
	}
	r.forget()
	return s, page, err //nolint:wrapcheck // it is told above
}

// samplePart of the time of one parent is that of a page of samples: one that does not
// come must leave time for others.
const samplePart = 4

// forget lets the source bring again what it has handed over to nobody.
func (r *Run) forget() {
	if source, ok := r.Source.(interface{ Forget() }); ok { // it hands nothing over twice
		source.Forget()
	}
}

// sampler takes a row of each of some parents, spread over a page: that of the first, and
// of every step-th. Both parents and rows are others with each run that got nowhere.
type sampler struct {
	d    *delivery
	step int
	rand *rand.Rand
	list []sample
	seen int // parents
	rows int // of the parent in work
}

// Aside tells that the page is none of the window's.
func (*sampler) Aside() bool { return true }

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

// Record implements record.Sink. Each row of a parent is as likely as the others to be its
// sample.
func (s *sampler) Record(rec *record.Record) error {
	if !s.wants(s.seen) {
		return nil
	}
	if s.rows++; s.rows > 1 && s.rand.IntN(s.rows) > 0 {
		return nil
	}
	if s.d.join != nil {
		if err := s.d.join.fill(rec); err != nil {
			return err
		}
	}
	r := s.d.run
	row, _ := s.d.enc.Append([]byte{'['}, rec, record.Meta{Time: r.Clock.Now(), Run: r.ID})
	if n := len(s.list) - 1; n >= 0 && s.list[n].parent == s.seen {
		s.list = s.list[:n]
	}
	s.list = append(s.list, sample{s.seen, append(row, ']')})
	s.thin()
	return nil
}

// thin drops samples where there are too many.
func (s *sampler) thin() {
	for {
		size := 0
		for _, o := range s.list {
			size += len(o.row)
		}
		if len(s.list) <= probes && (len(s.list) <= 2 || size <= maxSamples) {
			return
		}
		s.step *= 2
		s.list = slices.DeleteFunc(s.list, func(o sample) bool { return !s.wants(o.parent) })
	}
}

// Done implements record.Sink.
func (s *sampler) Done(uint64) error {
	s.seen++
	s.rows = 0
	return nil
}

// Tally implements record.Sink.
func (s *sampler) Tally(t record.Tally) { s.d.run.counts.addTally(t) }

// Doubt implements record.Sink: a sample of an answer that is not whole is one.
func (s *sampler) Doubt() error { return nil }
