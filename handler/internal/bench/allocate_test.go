//go:build !race

package bench_test

import (
	"bytes"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/loganalytics"
	"qualys-sentinel/handler/internal/qualys"
)

// In steady state nothing is allocated for a detection on its way to compressed
// batches: what a page needs, it needs once. The state's documents, a few for
// each megabyte, are not counted. (The race detector
// allocates, too.)
func TestDetectionsDoNotAllocate(t *testing.T) {
	for _, kind := range kinds[:3] {
		t.Run(kind.name, func(t *testing.T) {
			p := kind.part(t, 4)
			d, s := qualys.NewDecoder(p.dataset().Schema), newSink(p, true)
			var batch []byte
			gz := loganalytics.NewCompressor(loganalytics.DefaultWriters)
			s.row = func(row []byte) error {
				if len(batch)+len(row) > loganalytics.IngestionBatchBytes {
					if err := gz.Compress(batch, func([]byte) error { return nil }); err != nil {
						return err
					}
					batch = batch[:0]
				}
				batch = append(batch, row...)
				return nil
			}
			r := bytes.NewReader(p.doc)
			allocs := testing.AllocsPerRun(1, func() {
				r.Reset(p.doc)
				if _, err := d.Decode(r, time.Time{}, s); err != nil {
					t.Fatal(err)
				}
			})
			if most := float64(p.records) / 100; allocs > most {
				t.Errorf("%.0f allocations for %d detections: at most %.0f", allocs, p.records, most)
			}
			t.Logf("%.0f allocations for %d detections", allocs, p.records)
		})
	}
}
