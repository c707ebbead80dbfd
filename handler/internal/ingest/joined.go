package ingest

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/scratch"
	"qualys-sentinel/handler/internal/turn"
)

// Joined adds to the rows of one dataset what the index of another holds. It
// lives as long as the process: the index is fetched again only when it has
// changed. Values wait in a temporary file; 12 bytes an entry are in memory.
type Joined struct {
	// Dataset whose index it is.
	Dataset *Dataset

	turn    turn.Turn
	current *joinTable
}

// joinTable is one state of an index. It does not change; the file is closed
// when no run uses it any more, by the garbage collector.
type joinTable struct {
	key   string
	ids   []uint64
	ends  []uint32 // of each entry's values in the file
	file  scratch.File
	empty bool // there is no index
}

// table returns the index as it is now.
func (j *Joined) table(ctx context.Context, store checkpoint.Store, destination, identity string) (*joinTable, error) {
	if err := j.turn.Take(ctx); err != nil {
		return nil, fmt.Errorf("wait for others who read it: %w", err)
	}
	defer j.turn.Leave()
	t, err := j.read(ctx, store, destination, identity)
	if err != nil {
		// A run has renewed the index since we read its name, or the storage is
		// not well: once more.
		t, err = j.read(ctx, store, destination, identity)
	}
	if err != nil && j.current != nil && strings.HasPrefix(j.current.key, destination+" "+identity+" ") {
		return j.current, nil // of before: better than none
	}
	return t, err
}

func (j *Joined) read(ctx context.Context, store checkpoint.Store, destination, identity string) (*joinTable, error) {
	generation, err := j.generation(ctx, store, destination)
	if err != nil || generation == "" {
		return &joinTable{empty: true}, err
	}
	journal, err := readJournal(ctx, store, journalName(destination, j.Dataset.Name, generation))
	if err != nil {
		return nil, err
	}
	key := fmt.Sprintf("%s %s %s %x", destination, identity, generation, xxhash.Sum64(journal.lines))
	if j.current != nil && j.current.key == key {
		return j.current, nil
	}
	r, err := store.Open(ctx, indexName(destination, j.Dataset.Name, generation))
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	defer r.Close() //nolint:errcheck // read only
	storage := &storeReader{Reader: r}
	index, err := newIndexReader(storage)
	if err != nil {
		return nil, storage.explain(err)
	}
	if !index.header.goesWith(identity, j.Dataset) || journal.lines != nil && !journal.goesWith(identity, j.Dataset) {
		return &joinTable{empty: true}, nil
	}
	t := &joinTable{key: key}
	if err := t.fill(index, journal.lines); err != nil {
		return nil, storage.explain(err)
	}
	j.current = t
	return t, nil
}

// generation is that of the index which counts; empty if there is none.
func (j *Joined) generation(ctx context.Context, store checkpoint.Store, destination string) (string, error) {
	state, err := ReadCheckpoint(ctx, store, CheckpointName(destination, j.Dataset.Name), j.Dataset.Name)
	if err != nil || state == nil {
		return "", err
	}
	return state.Index, nil
}

// fill writes the values to the table's file.
func (t *joinTable) fill(index *indexReader, journal []byte) error {
	file, err := scratch.New()
	if err != nil {
		return err
	}
	t.file = file
	w := bufio.NewWriterSize(file, 64<<10)
	var e indexEntry
	size := 0
	err = mergeIndex(index, journal, func(line []byte) error {
		if err := e.parse(line); err != nil {
			return err
		}
		for i, v := range e.values {
			if i > 0 {
				if err := w.WriteByte('\t'); err != nil {
					return err
				}
				size++
			}
			if _, err := w.Write(v); err != nil {
				return err
			}
			size += len(v)
		}
		if size > 1<<32-1 {
			return fmt.Errorf("%w: over 4 GB", errDamaged)
		}
		t.ids, t.ends = append(t.ids, e.id), append(t.ends, uint32(size)) //nolint:gosec // checked above
		return nil
	})
	t.ids, t.ends = slices.Clip(t.ids), slices.Clip(t.ends)
	if err = errors.Join(err, w.Flush()); err != nil {
		return errors.Join(fmt.Errorf("keep the index at hand: %w", err), file.Close())
	}
	return nil
}

// recentJoins is how many entries a run keeps at hand: the QIDs of one host
// are often those of the next; fewer where many runs share the memory, most of whose
// rows another run has joined already. Powers of two.
const (
	recentJoins       = 1024
	recentJoinsShared = 64
)

// join is a run's use of a table.
type join struct {
	table   *joinTable
	run     *Run
	key     int   // column of the id
	columns []int // of the joined values
	values  []int // which value of the index each takes
	size    int   // the longest value, in bytes
	hot     []hotEntry
}

type hotEntry struct {
	id    uint64
	known bool
	line  []byte
}

// openJoin opens what is joined. Findings are worth more than what is said of
// them: without an index they are sent as they are.
func (r *Run) openJoin(ctx context.Context) *join {
	j := &join{run: r, key: r.Dataset.Schema.Index(r.Dataset.JoinBy), size: maxIndexed}
	if r.BatchBytes > 0 {
		j.hot = make([]hotEntry, recentJoinsShared)
	} else {
		j.hot = make([]hotEntry, recentJoins)
	}
	if most := r.Destination.Limits().FieldBytes; most > 0 {
		j.size = min(j.size, most)
	}
	table, err := r.Joined.table(ctx, r.Store, cmp.Or(r.JoinedDestination, r.DestinationName), r.JoinedIdentity)
	if err != nil {
		r.Log.Warn("the KnowledgeBase's index cannot be read: rows go without its values", zap.Error(err))
		table = &joinTable{empty: true}
	} else if table.empty {
		r.Log.Warn("the KnowledgeBase is not loaded yet: rows go without its values", zap.String("dataset to run", r.Joined.Dataset.Name))
	}
	j.table = table
	for i := range r.Dataset.Schema.Columns {
		if path := r.Dataset.Schema.Columns[i].Joined; path != "" {
			j.columns = append(j.columns, i)
			j.values = append(j.values, slices.Index(r.Joined.Dataset.Indexed, path))
		}
	}
	return j
}

// fill adds the joined values to a record, unless another run that reads the same
// page has done so.
func (j *join) fill(rec *record.Record) error {
	for _, column := range j.columns {
		if rec.Field(column).Set() {
			return nil
		}
	}
	var line []byte
	var known bool
	// What is no number is in no index.
	if id, err := strconv.ParseUint(string(rec.Field(j.key).Head()), 10, 63); err == nil {
		if line, known, err = j.find(id); err != nil {
			return err
		}
	}
	if !known {
		j.run.counts.unjoined.Add(1)
		return nil
	}
	for n := 0; ; n++ {
		value, rest, more := bytes.Cut(line, []byte{'\t'})
		if i := slices.Index(j.values, n); i >= 0 && len(value) > 0 {
			if err := rec.Append(j.columns[i], record.Item, clipList(value, j.size)); err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
		line = rest
	}
}

// find returns the values of an id, with tabs between.
func (j *join) find(id uint64) (line []byte, known bool, err error) {
	h := &j.hot[id%uint64(len(j.hot))]
	if h.id == id && id != 0 {
		return h.line, h.known, nil
	}
	i, known := slices.BinarySearch(j.table.ids, id)
	h.id, h.known = id, known
	if !known {
		h.line = h.line[:0]
		return nil, false, nil
	}
	begin := uint32(0)
	if i > 0 {
		begin = j.table.ends[i-1]
	}
	h.line = slices.Grow(h.line[:0], int(j.table.ends[i]-begin))[:j.table.ends[i]-begin]
	if _, err := j.table.file.ReadAt(h.line, int64(begin)); err != nil {
		h.id = 0
		return nil, false, fmt.Errorf("read the KnowledgeBase's index: %w", err)
	}
	return h.line, true, nil
}
