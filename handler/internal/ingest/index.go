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
// It takes 17 bytes of memory a record, and the journal.
type index struct {
	run      *Run
	exists   bool // there was one for this source and destination
	idColumn int
	modified int   // column of the last modification
	removed  int   // column of the removal
	columns  []int // of the values

	// As the last run has left it: ascending ids, the hashes of their rows, and
	// whether the window sentUntil has sent them already.
	ids       []uint64
	sums      []uint64
	sent      []bool
	sentUntil string

	// Of the reading goroutine.
	full  bool // the window sends everything, known or not
	until string
	line  []byte
	ready []byte

	// Of whoever settles batches.
	unsaved    []byte // delivered, and not in the journal yet
	journal    []byte // lines of the journal
	header     bool   // the journal has one
	generation int
}

var _ ledger = (*index)(nil)

// indexName and journalName are the objects in the state.
func indexName(destination, dataset string) string {
	return fmt.Sprintf("checkpoints/%s/%s.index.gz", destination, dataset)
}

func journalName(destination, dataset string) string {
	return fmt.Sprintf("checkpoints/%s/%s.journal", destination, dataset)
}

func (x *index) name() string { return indexName(x.run.DestinationName, x.run.Dataset.Name) }

func (x *index) journalName() string {
	return journalName(x.run.DestinationName, x.run.Dataset.Name)
}

// openIndex reads the index, after it has taken in a journal that a killed run
// has left.
func openIndex(ctx context.Context, r *Run) (*index, error) {
	schema := r.Dataset.Schema
	x := &index{run: r, idColumn: schema.Index(schema.ParentID), modified: schema.Column(schema.Versions[0]), removed: schema.Column(removedColumn)}
	for _, path := range r.Dataset.Indexed {
		x.columns = append(x.columns, schema.Index(path))
	}
	if w := r.state.Window; w != nil {
		x.sentUntil = w.Until.Format(time.RFC3339)
	}
	err := x.load(ctx)
	if errors.Is(err, errDamaged) {
		r.Log.Warn("the index of what was delivered cannot be read", zap.String("object", x.name()), zap.Error(err))
		*x = index{run: r, idColumn: x.idColumn, modified: x.modified, removed: x.removed, columns: x.columns}
		err = x.discard(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("index of what was delivered: %w", err)
	}
	return x, nil
}

func (x *index) load(ctx context.Context) error {
	journal, err := readJournal(ctx, x.run.Store, x.journalName())
	switch {
	case err != nil:
		return err
	case journal.lines != nil && journal.For == x.run.identity():
		x.journal, x.header = journal.lines, true
		if err := x.merge(ctx); err != nil {
			return err
		}
	case journal.found: // of another destination, or a kill has cut its first line
		if err := x.run.Store.Delete(ctx, x.journalName()); err != nil {
			return err
		}
	}
	var e indexEntry
	return x.each(ctx, func(line []byte) error {
		if err := e.parse(line); err != nil {
			return err
		}
		if len(e.removed) > 0 {
			e.sum = 0 // should it come back, it is news
		}
		x.ids, x.sums = append(x.ids, e.id), append(x.sums, e.sum)
		x.sent = append(x.sent, string(e.sent) == x.sentUntil)
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

// each calls visit with each line of the index object. It sets exists.
func (x *index) each(ctx context.Context, visit func(line []byte) error) error {
	return x.open(ctx, func(old *indexReader) error {
		return mergeIndex(old, nil, visit)
	})
}

// open opens the index object for use; use gets nil if there is none for this
// source and destination.
func (x *index) open(ctx context.Context, use func(*indexReader) error) error {
	r, err := x.run.Store.Open(ctx, x.name())
	if errors.Is(err, fs.ErrNotExist) {
		return use(nil)
	}
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer r.Close() //nolint:errcheck // read only
	storage := &storeReader{Reader: r}
	old, err := newIndexReader(storage)
	switch {
	case err != nil:
	case old.header.For != x.run.identity():
		err = use(nil)
	default:
		x.exists = true
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

// discard removes what cannot be read.
func (x *index) discard(ctx context.Context) error {
	return errors.Join(x.run.Store.Delete(ctx, x.name()), x.run.Store.Delete(ctx, x.journalName()))
}

func (x *index) begin(w *Window) {
	x.full, x.until = w.After == nil, w.Until.Format(time.RFC3339)
	if x.until != x.sentUntil { // another window than the one it was loaded for
		x.sentUntil = x.until
		clear(x.sent)
	}
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
	if i, known := slices.BinarySearch(x.ids, id); known && x.sums[i] == e.sum && (!x.full || x.sent[i]) {
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
		if len(x.journal) > maxJournal {
			return x.merge(ctx)
		}
		return nil
	}
}

// write appends lines to the journal.
func (x *index) write(ctx context.Context, rows []byte) error {
	x.journal = append(x.journal, rows...)
	if !x.header {
		line, err := json.Marshal(indexHeader{Version: stateVersion, For: x.run.identity()})
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
	return nil
}

// merge writes the index anew, with what is in the journal. Were it to end in
// between, the next merge takes the same journal in once more.
func (x *index) merge(ctx context.Context) error {
	x.generation++
	header, err := json.Marshal(indexHeader{Version: stateVersion, For: x.run.identity(), Generation: fmt.Sprintf("%s-%d", x.run.ID, x.generation)})
	if err != nil {
		return fmt.Errorf("encode its header: %w", err)
	}
	err = x.open(ctx, func(old *indexReader) error {
		return writeObject(ctx, x.run.Store, x.name(), func(w io.Writer) error {
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
	x.exists = true
	if err := x.run.Store.Delete(ctx, x.journalName()); err != nil {
		return fmt.Errorf("delete the journal: %w", err)
	}
	x.journal, x.header = x.journal[:0], false
	return nil
}

// end merges the journal, so that others find all in the index. The journal
// keeps what cannot be merged now.
func (x *index) end(ctx context.Context, _ bool) {
	if !x.exists || len(x.journal) > 0 {
		if err := x.merge(ctx); err != nil {
			x.run.Log.Warn("the index of what was delivered is not renewed; the journal keeps it", zap.Error(err))
		}
	}
}
