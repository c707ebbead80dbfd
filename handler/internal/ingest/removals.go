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

// A Confirmer is a Source that can tell which records are gone.
type Confirmer interface {
	// Gone returns those of ids that Qualys does not have any more. witnesses
	// are some that it has just sent: an answer that leaves all of them out is
	// an error. count is called with the requests it takes.
	Gone(ctx context.Context, ids, witnesses []uint64, count func(record.Tally)) ([]uint64, error)
}

const (
	// maxRemovedPart is how much of the index may be gone at once: a tenth.
	// More than that is no removal but an account that sees less than before.
	maxRemovedPart = 10
	// minRemoved may be gone in any case.
	minRemoved = 100
	// removedAtOnce is how many are confirmed, and sent, before the next are
	// asked about: what one request takes.
	removedAtOnce = 500
)

// removals sends a row for each record that is in the index and that a whole
// window, which brings everything, has not brought. It runs behind the
// window's last page, when all of it has arrived.
func (r *Run) removals(ctx context.Context, d *delivery, x *index) error {
	source, ok := r.Source.(Confirmer)
	if !ok {
		return nil
	}
	if len(x.journal) > 0 {
		if err := x.renew(ctx); err != nil {
			return fmt.Errorf("index of what was delivered: %w", err)
		}
	}
	missing, err := x.missing(ctx)
	if err != nil || len(missing.entries) == 0 {
		return err
	}
	if missing.news > max(minRemoved, missing.of/maxRemovedPart) || len(missing.witnesses) == 0 {
		r.Log.Error("too many are missing at once: they are not reported as removed. Does the account see less than before?",
			zap.Int(r.Dataset.Parents, missing.news), zap.Int("of", missing.of))
		return nil
	}
	rec := record.New(r.Dataset.Schema)
	defer rec.Close() //nolint:errcheck // such a record has no temporary file
	d.beginExtra()
	for part := range slices.Chunk(missing.entries, removedAtOnce) {
		var news []uint64
		for _, e := range part {
			if !e.known {
				news = append(news, e.id)
			}
		}
		gone, err := r.confirm(ctx, source, news, missing.witnesses)
		if err != nil {
			_, again := retryAfter(err)
			again = again || errors.Is(err, errStuck)
			if errors.Is(err, errPause) || isLimit(err) || context.Cause(ctx) != nil || again && r.state.Stalled < stalledRuns {
				return err
			}
			// Removals are worth some tries, but not the changes behind them.
			r.Log.Error("what is missing cannot be confirmed: it is not reported as removed", zap.Int(r.Dataset.Parents, len(news)), zap.Error(err))
			continue
		}
		for _, absent := range part {
			if _, isGone := slices.BinarySearch(gone, absent.id); !isGone && !absent.known {
				continue
			}
			var e indexEntry
			if err := e.parse([]byte(absent.line)); err != nil {
				return err
			}
			if err := x.fillRemoved(rec, &e); err != nil {
				return err
			}
			if err := d.Record(rec); err != nil {
				return err
			}
			if err := d.Done(e.id); err != nil {
				return err
			}
		}
	}
	return nil
}

// absentees is what a whole window has not brought.
type absentees struct {
	entries   []absentee
	news      int      // those that were there so far
	of        int      // records in the index
	witnesses []uint64 // some that the window has brought
}

// maxWitnesses is how many ids witness a confirmation: any of them may be gone
// itself by then.
const maxWitnesses = 8

// absentee is one of them; known tells that it was gone before.
type absentee struct {
	id    uint64
	line  string // in the index
	known bool
}

// missing lists what the window in work has not sent. Beyond the most that may
// be gone it only counts.
func (x *index) missing(ctx context.Context) (absentees, error) {
	var m absentees
	var e indexEntry
	most := max(minRemoved, len(x.ids)/maxRemovedPart)
	err := x.each(ctx, func(line []byte) error {
		if err := e.parse(line); err != nil {
			return err
		}
		m.of++
		known := len(e.removed) > 0
		switch {
		case string(e.sent) != x.until:
			if !known {
				m.news++
			}
			if known || m.news <= most {
				m.entries = append(m.entries, absentee{e.id, string(line), known})
			}
		case !known && len(m.witnesses) < maxWitnesses:
			m.witnesses = append(m.witnesses, e.id)
		case !known: // the first of the index, and the last
			m.witnesses[maxWitnesses/2+m.of%(maxWitnesses/2)] = e.id
		}
		return nil
	})
	return m, err
}

// fillRemoved makes the record of an entry that is gone.
func (x *index) fillRemoved(rec *record.Record, e *indexEntry) error {
	if err := rec.Reset(record.Parent); err != nil {
		return err
	}
	since := e.removed
	if len(since) == 0 {
		since = []byte(x.until)
	}
	errs := []error{
		rec.Append(x.idColumn, record.Parent, fmt.Appendf(nil, "%d", e.id)),
		rec.Append(x.modified, record.Parent, e.modified),
		rec.Append(x.removed, record.Parent, since),
	}
	for i, column := range x.columns {
		if i < len(e.values) {
			errs = append(errs, rec.Append(column, record.Parent, e.values[i]))
		}
	}
	return errors.Join(errs...)
}

// gone asks the source once, for as long as the answer for one parent may take: more would
// use up the time of the run, and of the next.
func (r *Run) gone(ctx context.Context, source Confirmer, ids, witnesses []uint64) ([]uint64, error) {
	limit := aloneTime(r.Budget)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w: %s", errStuck, limit.Round(time.Second)))
	defer cancel()
	gone, err := source.Gone(ctx, ids, witnesses, r.counts.addTally)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return nil, cause
	}
	return gone, err //nolint:wrapcheck // the source has said what was asked for
}

// confirm asks the source which are gone, as patiently as for a page.
func (r *Run) confirm(ctx context.Context, source Confirmer, ids, witnesses []uint64) ([]uint64, error) {
	for tries := 1; ; tries++ {
		if err := r.inTime(ctx); err != nil {
			return nil, err
		}
		if len(ids) == 0 {
			return nil, nil
		}
		gone, err := r.gone(ctx, source, ids, witnesses)
		if err == nil {
			slices.Sort(gone)
			return gone, nil
		}
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		after, ok := retryAfter(err)
		if !ok || tries == maxTries {
			return nil, err
		}
		if err := r.wait(ctx, r.deadline, err, after, tries); err != nil {
			return nil, err
		}
	}
}
