package ingest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/gzip"
	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/record"
)

const (
	// maxJournal is the longest journal, in bytes, before it is merged into the
	// index: it is in memory, and a merge rewrites the whole index.
	maxJournal = 4 << 20
	// maxJournalRead bounds what is read of one; a run ends soon behind
	// maxJournal.
	maxJournalRead = 8 * maxJournal
)

// index is the ledger of a dataset whose every record is remembered, with the
// hash of its row and the values that other datasets join.
//
// A row is in the journal before the checkpoint moves behind it. So the index
// misses nothing that has arrived: what it does not know is sent again, what
// a whole window did not bring is gone, and what it knows can be joined.
//
// It takes 24 bytes of memory a record, and the journal.
type index struct {
	run      *Run
	lost     string // why there is no generation although the checkpoint names one
	idColumn int
	modified int   // column of the last modification
	removed  int   // column of the removal
	columns  []int // of the values

	// As the last run has left it: ascending ids, the hashes of their rows, and
	// those of the window that sent them.
	ids  []uint64
	sums []uint64
	sent []uint64

	// Of the reading goroutine.
	full   bool // the window sends everything, known or not
	until  string
	window uint64 // its hash
	line   []byte
	ready  []byte

	// Of whoever settles batches.
	generation string   // of the index object; empty before the first
	made       int      // generations made by this run
	unsaved    []byte   // delivered, and not in the journal yet
	journal    []byte   // lines of the generation's journal
	header     bool     // the journal has one
	obsolete   []string // objects that nothing needs when the checkpoint is saved
}

var _ ledger = (*index)(nil)

// indexName and journalName are a generation's objects in the state.
func indexName(destination, dataset, generation string) string {
	return fmt.Sprintf("checkpoints/%s/%s.index/%s.gz", destination, dataset, generation)
}

func journalName(destination, dataset, generation string) string {
	return fmt.Sprintf("checkpoints/%s/%s.index/%s.journal", destination, dataset, generation)
}

func (x *index) name() string {
	return indexName(x.run.DestinationName, x.run.Dataset.Name, x.generation)
}

func (x *index) journalName() string {
	return journalName(x.run.DestinationName, x.run.Dataset.Name, x.generation)
}

// errForeign is the error for an index that belongs to another source or
// destination, or keeps other values.
var errForeign = errors.New("it belongs to another source or destination, or to another version of this program")

// openIndex reads the generation that the checkpoint names, with the journal
// that a killed run has left.
func openIndex(ctx context.Context, r *Run) (*index, error) {
	schema := r.Dataset.Schema
	x := &index{run: r, generation: r.state.Index, idColumn: schema.Index(schema.ParentID), modified: schema.Column(schema.Versions[0]), removed: schema.Column(removedColumn)}
	for _, path := range r.Dataset.Indexed {
		x.columns = append(x.columns, schema.Index(path))
	}
	if x.generation == "" {
		x.lost = "the checkpoint names none"
		return x, nil
	}
	err := x.load(ctx)
	switch {
	case errors.Is(err, errDamaged), errors.Is(err, errForeign), errors.Is(err, fs.ErrNotExist):
		x.lost = err.Error()
		x.obsolete = append(x.obsolete, x.name(), x.journalName())
		x.generation, x.journal, x.header, r.state.Index = "", nil, false, ""
		x.ids, x.sums, x.sent = nil, nil, nil
	case err != nil:
		return nil, fmt.Errorf("index of what was delivered: %w", err)
	}
	return x, nil
}

func (x *index) load(ctx context.Context) error {
	journal, err := readJournal(ctx, x.run.Store, x.journalName())
	if err != nil {
		return err
	}
	if journal.found {
		if journal.lines != nil && !journal.goesWith(x.run.identity(), x.run.Dataset) {
			return errForeign
		}
		// A kill may have cut its last line: nothing is appended to that.
		x.journal = journal.lines
		if err := x.renew(ctx); err != nil {
			return err
		}
	}
	var e indexEntry
	return x.each(ctx, func(line []byte) error {
		if err := e.parse(line); err != nil {
			return err
		}
		x.ids, x.sums = append(x.ids, e.id), append(x.sums, e.sum)
		x.sent = append(x.sent, xxhash.Sum64(e.sent))
		return nil
	})
}

// A journal is what readJournal found.
type journal struct {
	indexHeader
	found bool
	lines []byte // nil without a header
}

func readJournal(ctx context.Context, store checkpoint.Store, name string) (journal, error) {
	r, err := store.Open(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return journal{}, nil
	}
	if err != nil {
		return journal{}, fmt.Errorf("open the journal: %w", err)
	}
	defer r.Close() //nolint:errcheck // read only
	doc, err := io.ReadAll(io.LimitReader(r, maxJournalRead))
	if err != nil {
		return journal{}, fmt.Errorf("read the journal: %w", err)
	}
	h, lines, err := parseJournal(doc)
	return journal{indexHeader: h, found: true, lines: lines}, err
}

// each calls visit with each line of the index object.
func (x *index) each(ctx context.Context, visit func(line []byte) error) error {
	return x.open(ctx, func(old *indexReader) error {
		return mergeIndex(old, nil, visit)
	})
}

// open opens the index object for use; use gets nil before the first
// generation.
func (x *index) open(ctx context.Context, use func(*indexReader) error) error {
	if x.generation == "" {
		return use(nil)
	}
	r, err := x.run.Store.Open(ctx, x.name())
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer r.Close() //nolint:errcheck // read only
	storage := &storeReader{Reader: r}
	old, err := newIndexReader(storage)
	switch {
	case err != nil:
	case !old.header.goesWith(x.run.identity(), x.run.Dataset):
		err = errForeign
	default:
		err = use(old)
	}
	return storage.explain(err)
}

// A storeReader tells an object that is damaged from one that the storage does
// not give: only the first is to be made anew.
type storeReader struct {
	io.Reader
	err error
}

func (r *storeReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// explain returns the storage's error instead of what it looks like.
func (r *storeReader) explain(err error) error {
	if err != nil && r.err != nil {
		return fmt.Errorf("read: %w", r.err)
	}
	return err
}

func (x *index) begin(w *Window) {
	x.full, x.until = w.After == nil, w.Until.Format(time.RFC3339)
	x.window = xxhash.Sum64String(x.until)
}

func (x *index) repeated(rec *record.Record, row record.Row) bool {
	id, err := strconv.ParseUint(string(rec.Field(x.idColumn).Head()), 10, 63)
	if err != nil {
		x.line = x.line[:0]
		return false // no id to remember it by: the page was told to be out of order
	}
	e := indexEntry{
		id: id, modified: rec.Field(x.modified).Head(), sum: xxhash.Sum64(row.Stable),
		sent: []byte(x.until), removed: rec.Field(x.removed).Head(),
	}
	if i, known := slices.BinarySearch(x.ids, id); known && x.sums[i] == e.sum && (!x.full || x.sent[i] == x.window) {
		x.line = x.line[:0]
		return true
	}
	for _, column := range x.columns {
		e.values = append(e.values, rec.Field(column).Head())
	}
	x.line = e.append(x.line[:0])
	return false
}

func (x *index) done() {
	x.ready = append(x.ready, x.line...)
	x.forget()
}

func (x *index) forget() { x.line = x.line[:0] }

func (x *index) take() []byte {
	rows := x.ready
	x.ready = nil
	return rows
}

func (x *index) delivered(rows []byte) { x.unsaved = append(x.unsaved, rows...) }

func (x *index) due(time.Time) func(context.Context) error {
	if len(x.unsaved) == 0 {
		return nil
	}
	rows := x.unsaved
	x.unsaved = nil
	return func(ctx context.Context) error {
		if err := x.write(ctx, rows); err != nil {
			return fmt.Errorf("index of what was delivered: %w", err)
		}
		return nil
	}
}

// write appends lines to the journal.
func (x *index) write(ctx context.Context, rows []byte) error {
	if x.generation == "" {
		if err := x.renew(ctx); err != nil {
			return err
		}
	}
	x.journal = append(x.journal, rows...)
	if !x.header {
		line, err := json.Marshal(x.describe())
		if err != nil {
			return fmt.Errorf("encode its header: %w", err)
		}
		rows = append(append(line, '\n'), rows...)
	}
	for len(rows) > 0 {
		part := rows
		if len(part) > checkpoint.MaxAppend {
			part = part[:bytes.LastIndexByte(part[:checkpoint.MaxAppend], '\n')+1]
		}
		if err := x.run.Store.Append(ctx, x.journalName(), part); err != nil {
			return err
		}
		x.header = true
		rows = rows[len(part):]
	}
	if len(x.journal) > maxJournal {
		return x.renew(ctx)
	}
	return nil
}

// describe is the header of what this run writes.
func (x *index) describe() indexHeader {
	return indexHeader{Version: stateVersion, For: x.run.identity(), Values: x.run.Dataset.Indexed}
}

// renew makes a new generation, of the one before and its journal. It counts
// when the checkpoint is saved; till then the one before is kept.
func (x *index) renew(ctx context.Context) error {
	header, err := json.Marshal(x.describe())
	if err != nil {
		return fmt.Errorf("encode its header: %w", err)
	}
	x.made++
	next := fmt.Sprintf("%s-%d", x.run.ID, x.made)
	err = x.open(ctx, func(old *indexReader) error {
		return checkpoint.Write(ctx, x.run.Store, indexName(x.run.DestinationName, x.run.Dataset.Name, next), func(w io.Writer) error {
			gz, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
			if err != nil {
				return err
			}
			newline := []byte{'\n'}
			write := func(line []byte) error {
				if _, err := gz.Write(line); err != nil {
					return err
				}
				_, err := gz.Write(newline)
				return err
			}
			if err := write(header); err != nil {
				return err
			}
			if err := mergeIndex(old, x.journal, write); err != nil {
				return err
			}
			return gz.Close()
		})
	})
	if err != nil {
		return err
	}
	if x.generation != "" {
		x.obsolete = append(x.obsolete, x.name(), x.journalName())
	}
	x.generation, x.run.state.Index = next, next
	x.journal, x.header = x.journal[:0], false
	return nil
}

func (x *index) saved(ctx context.Context) {
	for _, name := range x.obsolete {
		if err := x.run.Store.Delete(ctx, name); err != nil {
			x.run.Log.Warn("an old index is not deleted, and not needed any more", zap.String("object", name), zap.Error(err))
		}
	}
	x.obsolete = nil
}

// end takes the journal in, so that it does not grow from run to run. What
// cannot be taken in now stays in the journal.
func (x *index) end(ctx context.Context, whole bool) {
	if len(x.journal) > 0 || whole && x.generation == "" {
		if err := x.renew(ctx); err != nil {
			x.run.Log.Warn("the index of what was delivered is not renewed; the journal keeps it", zap.Error(err))
		}
	}
}
