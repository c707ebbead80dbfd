package ingest

import (
	"cmp"
	"context"
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

// maxProved is how many pages of refused samples a run asks for at most, in each
// direction: a page is a call of Qualys, and a table may stay broken for days. Runs in a
// row ask for one, two, three and so on, and begin anew.
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
	for _, q := range queries {
		taken, err := r.proveFrom(ctx, d, q, end)
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

// proveFrom asks it for rows of a query's pages, until the end of their time.
func (r *Run) proveFrom(ctx context.Context, d *delivery, q record.Query, end time.Time) (taken bool, refused error) {
	h := hops{run: r, far: r.state.Stalled % maxFar}
	for left := 1 + r.state.Stalled%maxProved; left > 0; {
		s, page, pageErr := r.samples(ctx, d, q)
		taken, err := d.takesOne(s.list)
		if taken || err != nil && !isRefusal(err) {
			return taken, err
		}
		next := page.Next
		if err != nil {
			refused = err
			left--
		}
		if pageErr != nil {
			next = max(q.From, s.last) + 1
		}
		if next != 0 && (err != nil || pageErr != nil) {
			next = h.from(ctx, q, next)
		}
		if next == 0 || !r.Clock.Now().Before(end) {
			break
		}
		q.From = next
	}
	return false, refused
}

// hops are the parents at which pages of samples begin, behind those that were refused or
// that do not come: each is twice as far as the one before. Runs in a row begin with
// others.
type hops struct {
	run  *Run
	far  int // the next is so many parents away, as a power of two
	ids  []uint64
	done bool // no list can be had
}

// maxFar is as far as a list of ids goes, as a power of two.
const maxFar = 10

// from is where the page behind next begins; zero: nowhere.
func (h *hops) from(ctx context.Context, q record.Query, next uint64) uint64 {
	if len(h.ids) == 0 && !h.done {
		ctx, cancel := context.WithTimeout(ctx, aloneTime(h.run.Budget)/samplePart)
		defer cancel()
		ids, err := h.run.Source.IDs(ctx, record.Query{After: q.After, From: next, To: q.To}, maxListed, h.run.counts.addTally)
		if err != nil {
			h.run.Log.Info("no list of others to take samples of", zap.Error(err))
		}
		h.ids, h.done = ids, err != nil
	}
	first, _ := slices.BinarySearch(h.ids, next)
	if first == len(h.ids) { // there is nobody behind it, or that is not known
		if !h.done {
			return 0
		}
		return next
	}
	place := min(first+1<<h.far-1, len(h.ids)-1)
	h.far = min(h.far+1, maxFar)
	return h.ids[place]
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
	seen int    // parents
	rows int    // of the parent in work
	last uint64 // the highest parent that has come
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
func (s *sampler) Done(id uint64) error {
	s.seen++
	s.rows = 0
	s.last = max(s.last, id)
	return nil
}

// Tally implements record.Sink.
func (s *sampler) Tally(t record.Tally) { s.d.run.counts.addTally(t) }
