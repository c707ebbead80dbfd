package bench_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/checkpoint/folder"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/loganalytics"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
)

// limits are those of the Logs Ingestion API.
var limits = record.Limits{FieldBytes: loganalytics.IngestionFieldBytes, RowBytes: loganalytics.IngestionBatchBytes - 2}

// sink encodes each record into one buffer, or drops it.
type sink struct {
	enc     *record.Encoder
	meta    record.Meta
	buf     []byte
	records int
	each    func(*record.Record) error
	row     func([]byte) error
}

func newSink(p *page, encode bool) *sink {
	s := &sink{meta: record.Meta{Time: pageTime, Run: "run"}}
	if encode {
		s.enc = record.NewEncoder(p.dataset().Schema, limits, record.KeepAll)
	}
	return s
}

func (s *sink) Begin(time.Time) error { return nil }

func (s *sink) Record(r *record.Record) error {
	s.records++
	if s.each != nil {
		return s.each(r)
	}
	if s.enc == nil {
		return nil
	}
	s.buf, _ = s.enc.Append(s.buf[:0], r, s.meta)
	if s.row == nil {
		return nil
	}
	return s.row(s.buf)
}

func (s *sink) Done(uint64) error  { return nil }
func (s *sink) Tally(record.Tally) {}
func (s *sink) Doubt() error       { return nil }

// source hands the same page to every run.
type source struct {
	page    *page
	decoder *qualys.Decoder
}

func (s source) Page(_ context.Context, _ record.Query, sink record.Sink) (record.Page, error) {
	return s.decoder.Decode(bytes.NewReader(s.page.doc), time.Time{}, sink)
}

func (s source) PageLimit() int                { return 1 << 20 }
func (s source) Identity() string              { return "bench" }
func (s source) CallLimits() record.CallLimits { return record.NoCallLimits }
func (s source) IDs(context.Context, record.Query, int, func(record.Tally)) ([]uint64, error) {
	return nil, nil
}

// destination compresses batches as the Logs Ingestion API gets them.
type destination struct{ *loganalytics.Compressor }

func (d *destination) Send(_ context.Context, b record.Batch) (sent int64, err error) {
	err = d.Compress(b.Body, func(packed []byte) error {
		sent = int64(len(packed))
		return nil
	})
	return sent, err
}

func (d *destination) Limits() record.Limits {
	return record.Limits{FieldBytes: loganalytics.IngestionFieldBytes}
}
func (d *destination) BatchBytes() int { return loganalytics.IngestionBatchBytes }

// compare runs the connector and the baseline on each page.
func compare(b *testing.B, connector, baseline func(b *testing.B, p *page) func() (int64, error)) {
	for _, kind := range kinds {
		for _, c := range []struct {
			name string
			make func(*testing.B, *page) func() (int64, error)
		}{{"connector", connector}, {"baseline", baseline}} {
			b.Run(fmt.Sprintf("page=%s/by=%s", kind.name, c.name), func(b *testing.B) {
				p := kind.get(b)
				do := c.make(b, p)
				b.SetBytes(int64(len(p.doc)))
				b.ReportAllocs()
				sent := int64(0)
				for b.Loop() {
					n, err := do()
					if err != nil {
						b.Fatal(err)
					}
					sent = n
				}
				b.ReportMetric(float64(p.records)*float64(b.N)/b.Elapsed().Seconds(), "records/s")
				if sent > 0 {
					b.ReportMetric(float64(sent)/float64(p.records), "sent-B/record")
				}
			})
		}
	}
}

// BenchmarkRecords decodes pages into records.
func BenchmarkRecords(b *testing.B) { compare(b, decode(false), plainBaseline(baselineRecords)) }

// BenchmarkRows decodes pages and encodes each record as JSON.
func BenchmarkRows(b *testing.B) {
	compare(b, decode(true), func(_ *testing.B, p *page) func() (int64, error) {
		return func() (int64, error) {
			return 0, baselineRows(p, made{pageTime, "run"}, func([]byte) error { return nil })
		}
	})
}

// BenchmarkChunks carries pages to compressed batches, as a run of the
// connector does it: with its checkpoint, in a folder, its accounting and its
// memory of what was delivered.
func BenchmarkChunks(b *testing.B) {
	compare(b, func(b *testing.B, p *page) func() (int64, error) {
		return chunks(b, p, &destination{loganalytics.NewCompressor(loganalytics.DefaultWriters)})
	}, func(_ *testing.B, p *page) func() (int64, error) {
		return func() (int64, error) { return baselineChunks(p, made{pageTime, "run"}) }
	})
}

func plainBaseline(do func(*page) (int, error)) func(*testing.B, *page) func() (int64, error) {
	return func(_ *testing.B, p *page) func() (int64, error) {
		return func() (int64, error) {
			_, err := do(p)
			return 0, err
		}
	}
}

func decode(encode bool) func(*testing.B, *page) func() (int64, error) {
	return func(b *testing.B, p *page) func() (int64, error) {
		d, s := qualys.NewDecoder(p.dataset().Schema), newSink(p, encode)
		return func() (int64, error) {
			s.records = 0
			_, err := d.Decode(bytes.NewReader(p.doc), time.Time{}, s)
			if s.records != p.records {
				b.Fatalf("%d records, not %d", s.records, p.records)
			}
			return 0, err
		}
	}
}

// chunks returns a run of the page from an empty state.
func chunks(t testing.TB, p *page, to ingest.Destination) func() (int64, error) {
	from := source{page: p, decoder: qualys.NewDecoder(p.dataset().Schema)}
	return func() (int64, error) {
		run := &ingest.Run{
			ID: "run", Dataset: p.dataset(), Source: from, Destination: to, DestinationName: "bench",
			Store: folder.New(t.TempDir()), Policy: record.KeepAll, Clock: fixed{}, Log: zap.NewNop(),
		}
		report, err := run.Do(context.Background())
		if err == nil && (report.Outcome != ingest.Complete || report.Accepted != int64(p.records)) {
			err = fmt.Errorf("%s: %d of %d rows accepted", report.Outcome, report.Accepted, p.records)
		}
		return report.BytesSent, err
	}
}

// fixed is a clock that stands still, at the pages' time.
type fixed struct{}

func (fixed) Now() time.Time                             { return pageTime }
func (fixed) Sleep(context.Context, time.Duration) error { return nil }

// BenchmarkCompression compares levels on the batches of the first page.
func BenchmarkCompression(b *testing.B) {
	var bodies [][]byte
	size := 0
	keep := &keeper{keep: func(body []byte) {
		bodies, size = append(bodies, bytes.Clone(body)), size+len(body)
	}}
	if _, err := chunks(b, kinds[0].get(b), keep)(); err != nil {
		b.Fatal(err)
	}
	for _, level := range []int{gzip.BestSpeed, 2, 3, 5, gzip.BestCompression} {
		b.Run(fmt.Sprintf("level=%d", level), func(b *testing.B) {
			var packed bytes.Buffer
			gz, err := gzip.NewWriterLevel(&packed, level)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(size))
			sum := 0
			for b.Loop() {
				sum = 0
				for _, body := range bodies {
					packed.Reset()
					gz.Reset(&packed)
					if _, err := gz.Write(body); err != nil {
						b.Fatal(err)
					}
					if err := gz.Close(); err != nil {
						b.Fatal(err)
					}
					sum += packed.Len()
				}
			}
			b.ReportMetric(float64(size)/float64(sum), "ratio")
		})
	}
}

// keeper hands bodies over instead of sending them.
type keeper struct {
	destination
	keep func([]byte)
}

func (k *keeper) Send(_ context.Context, b record.Batch) (int64, error) {
	k.keep(b.Body)
	return 0, nil
}

// The connector and the baseline write the same rows.
func TestBaselineWritesTheSameRows(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			p := kind.part(t, 10)
			var want [][]byte
			err := baselineRows(p, made{pageTime, "run"}, func(row []byte) error {
				want = append(want, bytes.Clone(row))
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			s := newSink(p, true)
			s.row = func(row []byte) error {
				if s.records > len(want) {
					return fmt.Errorf("more than %d rows", len(want))
				}
				got, expected := members(t, row), members(t, want[s.records-1])
				for name, value := range expected {
					if !reflect.DeepEqual(got[name], value) {
						return fmt.Errorf("row %d, %s: %v, the baseline has %v", s.records, name, got[name], value)
					}
				}
				if len(got) != len(expected) {
					return fmt.Errorf("row %d has %d members, the baseline's %d: %s", s.records, len(got), len(expected), row)
				}
				return nil
			}
			if _, err := qualys.NewDecoder(p.dataset().Schema).Decode(bytes.NewReader(p.doc), time.Time{}, s); err != nil {
				t.Fatal(err)
			}
			if s.records != len(want) || s.records < 300 {
				t.Errorf("%d rows, the baseline has %d", s.records, len(want))
			}
		})
	}
}

func members(t *testing.T, row []byte) map[string]any {
	var m map[string]any
	if err := json.Unmarshal(row, &m); err != nil {
		t.Fatalf("%v: %s", err, row)
	}
	return m
}

// An encoder that has encoded a host before, and has its columns at hand, writes
// what a new one writes, under limits that cut anywhere; and no row is over them.
func TestEncoderRemembersHosts(t *testing.T) {
	var all []record.Limits
	for _, field := range []int{0, 5, 40, 900} {
		for room := 50; room < 3200; room += 150 {
			all = append(all, record.Limits{FieldBytes: field, RowBytes: 4096 + room})
		}
	}
	for _, kind := range kinds[:3] {
		p := kind.part(t, 150)
		cuts := 0
		for _, l := range all {
			enc := record.NewEncoder(p.dataset().Schema, l, record.KeepAll)
			s := newSink(p, false)
			meta := s.meta
			s.each = func(r *record.Record) error {
				row, told := enc.Append(nil, r, meta)
				want, wantTold := record.NewEncoder(p.dataset().Schema, l, record.KeepAll).Append(nil, r, meta)
				if !bytes.Equal(row, want) || !slices.Equal(told.Cut, wantTold.Cut) {
					return fmt.Errorf("limits %+v: %.300s\na new encoder writes %.300s", l, row, want)
				}
				if len(row) > l.RowBytes || !json.Valid(row) {
					return fmt.Errorf("limits %+v: %d bytes: %.300s", l, len(row), row)
				}
				cuts += len(told.Cut)
				return nil
			}
			if _, err := qualys.NewDecoder(p.dataset().Schema).Decode(bytes.NewReader(p.doc), time.Time{}, s); err != nil {
				t.Fatal(err)
			}
		}
		if cuts < 1000 {
			t.Errorf("%s: only %d cuts", kind.name, cuts)
		}
	}
}
