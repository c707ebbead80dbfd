package ingest_test

import (
	"regexp"
	"strconv"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/record"
)

// Hosts whose rows are all refused, many of them in a row, look like a table that takes
// nothing. Runs find out that it takes those of others, and go on.
func TestBadHostsAtTheCursor(t *testing.T) {
	hostID := regexp.MustCompile(`"HostId_s":"(\d+)"`)
	for _, bad := range []int{2, 20, 45} {
		t.Run(strconv.Itoa(bad), func(t *testing.T) {
			w := newWorld(t, 60, 30)
			w.page = 60
			w.dest.batch = 8_000 // a host fills several
			last := w.hostIDs()[bad-1]
			w.dest.before = func(_ int, b record.Batch) error {
				for _, m := range hostID.FindAllSubmatch(b.Body, -1) {
					if id, err := strconv.ParseUint(string(m[1]), 10, 64); err != nil || id <= last {
						return &problem{refused: true}
					}
				}
				return nil
			}
			var report ingest.Report
			for range 8 {
				if report, _ = w.do(); report.Outcome == ingest.Complete {
					break
				}
				w.clock.advance(5 * time.Minute)
			}
			if report.Outcome != ingest.Complete || w.checkpoint().Refused != nil {
				t.Fatalf("%s: %s, refused %+v", report.Outcome, report.Reason, w.checkpoint().Refused)
			}
			if letters := len(w.readLines("deadletter/vm/*/rows-*.ndjson.gz")); letters < bad*20 {
				t.Errorf("%d dead letters of %d hosts", letters, bad)
			}
			w.dest.before = nil
			if replayed, err := w.replay().Do(t.Context()); err != nil || replayed.Refused != 0 {
				t.Errorf("replay: %+v, %v", replayed, err)
			}
			for key := range w.expected(time.Time{}) {
				if w.dest.keys[key] == 0 {
					t.Errorf("detection %s is missing", key)
				}
			}
		})
	}
}
