package ingest

import (
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/record"
)

// maxRecent bounds the rows that are remembered, and with them the memory: 16
// bytes each. Rows beyond it may be sent twice.
const maxRecent = 200_000

// recentSlack is how much older than the overlap a host's youngest date may be
// for its rows to be remembered: what was processed in the overlap carries that
// date as a rule, but an older scan's where Qualys leaves it out.
const recentSlack = time.Hour

// recent remembers the rows that the last window delivered and that the
// overlap of the next will bring again, by hash. It saves their price a second
// time; when it is lost, rows are sent twice and nothing else happens.
type recent struct {
	// Of the reading goroutine.
	last  map[uint64]struct{} // delivered by the window before
	since []byte              // youngest date from which a host's rows are remembered
	times []int               // columns that hold dates
	host  []uint64            // rows of the host in work
	young bool                // any of them has such a date
	ready []uint64            // rows of whole hosts that no batch has taken along yet

	// Of whoever settles batches.
	now     map[uint64]struct{} // delivered by this window
	dropped int
}

func newRecent(schema *record.Schema, doc recentDoc) *recent {
	r := &recent{last: unpack(doc.Rows), now: unpack(doc.Next)}
	for i := range schema.Columns {
		if schema.Columns[i].Kind == record.Time && schema.Columns[i].Path != "" {
			r.times = append(r.times, i)
		}
	}
	return r
}

// begin says when the window ends.
func (r *recent) begin(until time.Time, overlap time.Duration) {
	r.since = until.Add(-overlap-recentSlack).AppendFormat(nil, time.RFC3339)
}

// repeated tells whether the window before has delivered the row, unchanged.
func (r *recent) repeated(rec *record.Record, row record.Row) bool {
	sum := xxhash.Sum64(row.Stable)
	r.host = append(r.host, sum)
	r.young = r.young || r.isYoung(rec)
	_, ok := r.last[sum]
	return ok
}

// done says that a host is whole. Its rows are worth remembering if the
// overlap of the next window may bring it again.
func (r *recent) done() {
	if r.young {
		r.ready = append(r.ready, r.host...)
	}
	r.forget()
}

// take hands the rows over to the batch that brings the last of them.
func (r *recent) take() []uint64 {
	sums := r.ready
	r.ready = nil
	return sums
}

// delivered remembers rows that have arrived.
func (r *recent) delivered(sums []uint64) {
	for _, sum := range sums {
		if len(r.now) == maxRecent {
			r.dropped++
			continue
		}
		r.now[sum] = struct{}{}
	}
}

// forget drops the rows of a host that broke off.
func (r *recent) forget() { r.host, r.young = r.host[:0], false }

// isYoung tells whether any date of the row is recent. Dates all have one form,
// so they compare as text.
func (r *recent) isYoung(rec *record.Record) bool {
	for _, i := range r.times {
		if f := rec.Field(i).Head(); len(f) > 0 && string(f) >= string(r.since) {
			return true
		}
	}
	return false
}

// recentDoc is the document in the state. Rows are hashes of 8 bytes each,
// big-endian, ascending.
type recentDoc struct {
	Version int `json:"version"`
	// For is the checkpoint that the rows go with; see Run.recentFor. With any
	// other, rows might be taken for delivered that never were.
	For string `json:"for"`
	// Rows were delivered by the last window that arrived whole.
	Rows []byte `json:"rows"`
	// Next were delivered by the window in work.
	Next []byte `json:"next,omitempty"`
}

// finished is the document after a window that arrived whole.
func (r *recent) finished() recentDoc {
	return recentDoc{Version: stateVersion, Rows: pack(r.now)}
}

// unfinished is the document for the run that goes on with the window.
func (r *recent) unfinished() recentDoc {
	return recentDoc{Version: stateVersion, Rows: pack(r.last), Next: pack(r.now)}
}

func pack(sums map[uint64]struct{}) []byte {
	b := make([]byte, 0, 8*len(sums))
	for _, sum := range slices.Sorted(maps.Keys(sums)) {
		b = binary.BigEndian.AppendUint64(b, sum)
	}
	return b
}

func unpack(b []byte) map[uint64]struct{} {
	sums := make(map[uint64]struct{}, len(b)/8)
	for sum := range slices.Chunk(b[:len(b)/8*8], 8) {
		sums[binary.BigEndian.Uint64(sum)] = struct{}{}
	}
	return sums
}

// loadRecent reads the document; an empty one if there is none.
func loadRecent(ctx context.Context, store checkpoint.Store, name string) (recentDoc, error) {
	r, err := store.Open(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return recentDoc{}, nil
	}
	if err != nil {
		return recentDoc{}, fmt.Errorf("open %s: %w", name, err)
	}
	defer r.Close() //nolint:errcheck // read only
	gz, err := gzip.NewReader(r)
	if err != nil {
		return recentDoc{}, fmt.Errorf("read %s: %w", name, err)
	}
	var doc recentDoc
	if err := json.NewDecoder(io.LimitReader(gz, maxRecent*32)).Decode(&doc); err != nil {
		return recentDoc{}, fmt.Errorf("read %s: %w", name, err)
	}
	if doc.Version != stateVersion {
		return recentDoc{}, fmt.Errorf("%s has version %d, this program knows %d", name, doc.Version, stateVersion)
	}
	return doc, nil
}

func (doc recentDoc) save(ctx context.Context, store checkpoint.Store, name string) error {
	return writeObject(ctx, store, name, func(w io.Writer) error {
		gz := gzip.NewWriter(w)
		if err := json.NewEncoder(gz).Encode(doc); err != nil {
			return fmt.Errorf("encode: %w", err)
		}
		return gz.Close()
	})
}
