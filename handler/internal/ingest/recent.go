package ingest

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sort"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/gzip"
	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/record"
)

// DefaultMaxRecent bounds the rows that are remembered, and with them the memory: 8
// bytes each, and as much again of those of the window before. Rows beyond it
// may be sent twice.
const DefaultMaxRecent = 200_000

// recentSlack is how much older than the overlap a host's youngest date may be
// for its rows to be remembered: what was processed in the overlap carries that
// date as a rule, but an older scan's where Qualys leaves it out.
const recentSlack = time.Hour

// The rows delivered lately are saved while a window goes on, because those
// delivered since may be sent again after a kill. Saving takes tens of milliseconds where
// there are as many as are remembered: the interval grows with their number, so
// that it takes a few hundredths of the time.
const (
	recentInterval = 100 * time.Millisecond
	recentPerRow   = 10 * time.Microsecond
)

// recent remembers the rows that the last window delivered and that the
// overlap of the next will bring again, by hash. It saves their price a second
// time; when it is lost, rows are sent twice and nothing else happens.
type recent struct {
	run     *Run
	most    int    // rows to remember
	goesFor string // the state that it goes with; see goesWith

	// Of the reading goroutine.
	last  []byte // delivered by the window before: hashes of 8 bytes, big-endian, ascending
	since []byte // youngest date from which a host's rows are remembered
	times []int  // columns that hold dates
	host  []byte // rows of the host in work, 8 bytes each
	young bool   // any of them has such a date
	ready []byte // rows of whole hosts that no batch has taken along yet
	over  int    // rows that there was no room for

	// Of whoever settles batches.
	now     []byte // delivered by this window: hashes in the order of arrival
	dropped int
	savedAt time.Time
	unsaved bool // a save has failed: only the end of the run tries again
}

var _ ledger = (*recent)(nil)

// openRecent reads what the runs before have delivered lately. It is a hint:
// without it some rows are sent twice, and that is no reason to send none.
func openRecent(ctx context.Context, run *Run) *recent {
	doc, err := loadRecent(ctx, run.Store, recentName(run))
	if err != nil {
		run.Log.Warn("the rows delivered lately are not known: some may be sent twice", zap.Error(err))
	}
	if doc.For != goesWith(run) {
		doc = recentDoc{}
	}
	return newRecent(run, doc)
}

func newRecent(run *Run, doc recentDoc) *recent {
	r := &recent{run: run, most: run.MaxRecent, last: ascending(doc.Rows)}
	if r.most == 0 {
		r.most = DefaultMaxRecent
	}
	// All that it may come to need: memory that is not used is not there.
	next := doc.Next[:min(len(doc.Next)/8, r.most)*8]
	r.now = append(make([]byte, 0, 8*r.most), next...)
	for i, c := range run.Dataset.Schema.Columns {
		if c.Kind == record.Time && c.Path != "" {
			r.times = append(r.times, i)
		}
	}
	return r
}

func recentName(run *Run) string {
	return fmt.Sprintf("checkpoints/%s/%s.recent.json.gz", run.DestinationName, run.Dataset.Name)
}

// goesWith names the state that the recent rows go with: source and
// destination, and the window in work or the watermark. One that was rewound,
// begun anew or turned elsewhere must not skip a row.
func goesWith(run *Run) string {
	at := "the beginning"
	switch s := run.state; {
	case s.Window != nil:
		at = "until " + s.Window.Until.Format(time.RFC3339)
	case s.Watermark != nil:
		at = "until " + s.Watermark.Format(time.RFC3339)
	}
	return run.identity() + " " + at
}

func (r *recent) begin(w *Window) {
	r.since = w.Until.Add(-r.run.Overlap-recentSlack).AppendFormat(nil, time.RFC3339)
	if r.goesFor == "" { // once, before there is a goroutine that reads it
		r.goesFor = goesWith(r.run)
	}
}

func (r *recent) repeated(rec *record.Record, row record.Row) bool {
	sum := xxhash.Sum64(row.Stable)
	if len(r.host) < 8*r.most { // a host may have more rows than are remembered of all
		r.host = binary.BigEndian.AppendUint64(r.host, sum)
	} else {
		r.over++
	}
	r.young = r.young || r.isYoung(rec)
	return contains(r.last, sum)
}

// done says that a host is whole. Its rows are worth remembering if the
// overlap of the next window may bring it again.
func (r *recent) done() {
	if r.young && len(r.ready) < 8*r.most {
		r.ready = append(r.ready, r.host...)
	} else if r.young {
		r.over += len(r.host) / 8
	}
	r.forget()
}

func (r *recent) take() []byte {
	rows := r.ready
	r.ready = make([]byte, 0, len(rows))
	return rows
}

func (r *recent) delivered(rows []byte) {
	if room := 8*r.most - len(r.now); len(rows) > room {
		r.dropped += (len(rows) - room) / 8
		rows = rows[:room]
	}
	r.now = append(r.now, rows...)
}

func (r *recent) forget() { r.host, r.young = r.host[:0], false }

// due saves what is known now and then.
func (r *recent) due(now time.Time) func(context.Context) error {
	if r.unsaved || now.Sub(r.savedAt) < recentInterval+time.Duration(len(r.now)/8)*recentPerRow {
		return nil
	}
	r.savedAt = now
	doc := r.unfinished()
	return func(ctx context.Context) error {
		r.save(ctx, doc)
		return nil // a hint; see openRecent
	}
}

func (r *recent) saved(context.Context) {}

func (r *recent) end(ctx context.Context, whole bool) {
	if r.goesFor == "" {
		return // the run got no answer
	}
	if !whole {
		r.save(ctx, r.unfinished())
		return
	}
	r.save(ctx, r.finished())
	if dropped := r.dropped + r.over; dropped > 0 { // nobody reads any more
		r.run.Log.Warn("too many recent rows to remember: some may be sent twice by the next run", zap.Int("rows", dropped))
	}
}

func (r *recent) save(ctx context.Context, doc recentDoc) {
	doc.For = r.goesFor
	if err := doc.save(ctx, r.run.Store, recentName(r.run)); err != nil {
		r.unsaved = true
		r.run.Log.Warn("the rows delivered lately are not kept: some may be sent twice", zap.Error(err))
	}
}

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
// big-endian, in any order.
type recentDoc struct {
	Version int `json:"version"`
	// For is the checkpoint that the rows go with; see goesWith. With any
	// other, rows might be taken for delivered that never were.
	For string `json:"for"`
	// Rows were delivered by the last window that arrived whole.
	Rows []byte `json:"rows"`
	// Next were delivered by the window in work.
	Next []byte `json:"next,omitempty"`
}

// finished is the document after a window that arrived whole.
func (r *recent) finished() recentDoc {
	return recentDoc{Version: stateVersion, Rows: r.now}
}

// unfinished is the document for the run that goes on with the window.
func (r *recent) unfinished() recentDoc {
	return recentDoc{Version: stateVersion, Rows: r.last, Next: r.now}
}

// ascending puts hashes into order, in their place.
func ascending(hashes []byte) []byte {
	sums := make([]uint64, 0, len(hashes)/8)
	for sum := range slices.Chunk(hashes[:len(hashes)/8*8], 8) {
		sums = append(sums, binary.BigEndian.Uint64(sum))
	}
	slices.Sort(sums)
	hashes = hashes[:0]
	for _, sum := range sums {
		hashes = binary.BigEndian.AppendUint64(hashes, sum)
	}
	return hashes
}

// contains tells whether a hash is among hashes in ascending order.
func contains(hashes []byte, sum uint64) bool {
	at := func(i int) uint64 { return binary.BigEndian.Uint64(hashes[8*i:]) }
	n := len(hashes) / 8
	i := sort.Search(n, func(i int) bool { return at(i) >= sum })
	return i < n && at(i) == sum
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
	doc, err := readRecent(r)
	if err != nil {
		return recentDoc{}, fmt.Errorf("read %s: %w", name, err)
	}
	return doc, nil
}

func readRecent(r io.Reader) (doc recentDoc, err error) {
	gz, err := gzip.NewReader(r)
	if err != nil {
		return recentDoc{}, err
	}
	if err := json.NewDecoder(io.LimitReader(gz, DefaultMaxRecent*32)).Decode(&doc); err != nil {
		return recentDoc{}, err
	}
	if doc.Version != stateVersion {
		return recentDoc{}, fmt.Errorf("it has version %d, this program knows %d", doc.Version, stateVersion)
	}
	return doc, nil
}

func (doc recentDoc) save(ctx context.Context, store checkpoint.Store, name string) error {
	return writePacked(ctx, store, name, doc.write)
}

// write writes the document as JSON, which in one piece would be the largest
// thing in memory.
func (doc recentDoc) write(w io.Writer) error {
	goesFor, err := json.Marshal(doc.For)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if _, err := fmt.Fprintf(w, `{"version":%d,"for":%s,"rows":"`, doc.Version, goesFor); err != nil {
		return err
	}
	for i, rows := range [][]byte{doc.Rows, doc.Next} {
		if i > 0 {
			if _, err := io.WriteString(w, `","next":"`); err != nil {
				return err
			}
		}
		text := base64.NewEncoder(base64.StdEncoding, w)
		if _, err := text.Write(rows); err != nil {
			return err
		}
		if err := text.Close(); err != nil {
			return err
		}
	}
	_, err = io.WriteString(w, `"}`)
	return err
}
