package ingest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/record"
)

// A Replay sends the dead letters of a dataset again: rows that the destination
// had refused for good, as a table or rule that did not fit makes it do.
//
// An object is removed when all its rows were accepted, and holds only those
// refused again otherwise. A replay that ends in the middle of an object leaves
// it as it was: its rows are sent again next time.
type Replay struct {
	// Keep leaves the objects as they are: the destination is one to look at.
	Keep    bool
	Store   checkpoint.Store
	Dataset *Dataset
	// Of is the name, in the state, of the integration's destination whose dead letters
	// they are; empty for those of the default one.
	Of          string
	Destination Destination
	Clock       Clock
	Log         *zap.Logger
}

// ReplayReport is what a replay did, or would do.
type ReplayReport struct {
	Objects  int `json:"objects"`
	Rows     int `json:"rows"`
	Accepted int `json:"accepted"`
	Refused  int `json:"refused"` // again: still there
	// Reasons counts the rows by why they were refused.
	Reasons map[string]int `json:"reasons"`
}

// deadLetter is a line of an object.
type deadLetter struct {
	Table  string          `json:"table"`
	Reason string          `json:"reason"`
	Row    json.RawMessage `json:"row"`
}

// objects lists the dead letters that are rows; the others are fields of rows
// that have arrived.
func (r *Replay) objects(ctx context.Context) (names []string, err error) {
	all, err := r.Store.List(ctx, LetterPrefix(r.Of, r.Dataset.Name))
	if err != nil {
		return nil, fmt.Errorf("list the dead letters: %w", err)
	}
	for _, name := range all {
		if strings.HasPrefix(path.Base(name), "rows-") {
			names = append(names, name)
		}
	}
	return names, nil
}

// List tells what there is to send.
func (r *Replay) List(ctx context.Context) (ReplayReport, error) {
	return r.walk(ctx, func(name string, report *ReplayReport) error {
		return r.read(ctx, name, func(l deadLetter) error {
			report.Rows++
			report.Reasons[l.Reason]++
			return nil
		})
	})
}

// Do sends all of them.
func (r *Replay) Do(ctx context.Context) (ReplayReport, error) {
	return r.walk(ctx, func(name string, report *ReplayReport) error { return r.object(ctx, name, report) })
}

func (r *Replay) walk(ctx context.Context, visit func(name string, report *ReplayReport) error) (ReplayReport, error) {
	report := ReplayReport{Reasons: map[string]int{}}
	names, err := r.objects(ctx)
	if err != nil {
		return report, err
	}
	var errs []error
	for _, name := range names {
		report.Objects++
		err := visit(name, &report)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
		if err != nil && !errors.Is(err, errUnreadable) {
			break // it would be no better with the next
		}
	}
	return report, errors.Join(errs...)
}

// read calls visit with each row of an object.
func (r *Replay) read(ctx context.Context, name string, visit func(deadLetter) error) error {
	object, err := r.Store.Open(ctx, name)
	if err != nil {
		return fmt.Errorf("open the dead letter: %w", err)
	}
	defer object.Close() //nolint:errcheck // read only
	return readLetters(object, func(l deadLetter) error {
		if l.Table != r.Dataset.Schema.Table {
			return fmt.Errorf("%w: a row is of table %q, not %s", errUnreadable, l.Table, r.Dataset.Schema.Table)
		}
		if err := r.fits(l.Row); err != nil {
			return err
		}
		return visit(l)
	})
}

// errUnreadable is an object that is damaged, or not for here: the others may
// be well.
var errUnreadable = errors.New("the dead letter cannot be used")

// readLetters calls visit with each line of an object.
func readLetters(object io.Reader, visit func(deadLetter) error) error {
	gz, err := gzip.NewReader(bufio.NewReader(object))
	if err != nil {
		return fmt.Errorf("%w: %w", errUnreadable, err)
	}
	lines := json.NewDecoder(gz)
	for {
		var l deadLetter
		if err := lines.Decode(&l); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("%w: %w", errUnreadable, err)
		}
		if err := visit(l); err != nil {
			return err
		}
	}
}

// fits tells whether a row is made for the destination: the two APIs want the
// members named differently, and drop others without a word.
func (r *Replay) fits(row []byte) error {
	if r.Destination == nil {
		return nil // only listed
	}
	byColumn := bytes.Contains(row, []byte(`"RunId_s":`))
	if byColumn != (r.Destination.Limits().Naming == record.ByColumn) {
		return fmt.Errorf("%w: its rows were made for the other API of Log Analytics: set logAnalyticsApi and its settings as they were then", errUnreadable)
	}
	return nil
}

// object sends the rows of one object.
func (r *Replay) object(ctx context.Context, name string, report *ReplayReport) error {
	b := record.Batch{Body: []byte{'['}}
	var refused []letter
	flush := func() error {
		if b.Rows() == 0 {
			return nil
		}
		b.Body = append(b.Body, ']')
		again := len(refused)
		err := part(b, func(b record.Batch) error { return r.send(ctx, b) }, func(l letter, _ error) error {
			refused = append(refused, l)
			return nil
		})
		if err != nil {
			return err
		}
		report.Accepted += b.Rows() - (len(refused) - again)
		b = record.Batch{Body: append(b.Body[:0], '[')}
		return nil
	}
	if err := r.read(ctx, name, func(l deadLetter) error {
		report.Rows++
		if len(b.Body)+len(l.Row)+2 > r.Destination.BatchBytes() {
			if err := flush(); err != nil {
				return err
			}
		}
		if b.Rows() > 0 {
			b.Body = append(b.Body, ',')
		}
		b.Body = append(b.Body, l.Row...)
		b.Ends = append(b.Ends, len(b.Body))
		return nil
	}); err != nil {
		return err
	}
	if err := flush(); err != nil {
		return err
	}
	if r.Keep {
		return nil
	}
	if len(refused) == 0 {
		if err := r.Store.Delete(ctx, name); err != nil {
			return fmt.Errorf("its rows are accepted, but it is not removed: %w", err)
		}
		return nil
	}
	report.Refused += len(refused)
	for _, l := range refused {
		report.Reasons[l.reason]++
	}
	return writeLetters(ctx, r.Store, name, r.Dataset, refused)
}

// send sends a batch until it is accepted or refused.
func (r *Replay) send(ctx context.Context, b record.Batch) error {
	for tries := 1; ; tries++ {
		_, err := r.Destination.Send(ctx, b)
		if err == nil {
			return nil
		}
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		after, again := retryAfter(err)
		if !again || tries == maxTries {
			return err
		}
		after = backOff(after, tries)
		r.Log.Warn("waiting before another try", zap.Duration("wait", after), zap.Int("try", tries), zap.Error(err))
		if err := r.Clock.Sleep(ctx, after); err != nil {
			return err
		}
	}
}
