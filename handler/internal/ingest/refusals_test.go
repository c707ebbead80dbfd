package ingest_test

import (
	"errors"
	"fmt"
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
	t.Parallel()
	hostID := regexp.MustCompile(`"HostId_s":"(\d+)"`)
	for _, c := range []struct{ bad, page int }{{2, 60}, {45, 60}, {45, 10}} {
		bad := c.bad
		t.Run(fmt.Sprintf("%d hosts, pages of %d", bad, c.page), func(t *testing.T) {
			w := newWorld(t, 60, 30)
			w.page = c.page
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

// A destination that takes rows again is believed, although those at the cursor are bad:
// others of the page show it, or, where it holds no others, those that have come before.
func TestDestinationThatIsWellAgain(t *testing.T) {
	hostID := regexp.MustCompile(`"HostId_s":"(\d+)"`)
	// refuse refuses the rows of some hosts.
	refuse := func(bad func(id uint64) bool, reason error) func(int, record.Batch) error {
		return func(_ int, b record.Batch) error {
			for _, m := range hostID.FindAllSubmatch(b.Body, -1) {
				if id, err := strconv.ParseUint(string(m[1]), 10, 64); err != nil || bad(id) {
					return reason
				}
			}
			return nil
		}
	}
	for name, c := range map[string]struct {
		hosts, detections, batch int
		bad                      int   // the hosts from this one on
		before                   error // how they are refused at first
		all                      bool  // all others are, too
	}{
		"the last of a page are bad":   {40, 3, 1_000_000, 24, &problem{refused: true}, true},
		"the first of a page are well": {40, 3, 1_000_000, 1, &problem{refused: true}, true},
		"the last of all are bad":      {10, 30, 8_000, 8, errors.New("answered 403"), false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, c.hosts, c.detections)
			w.page, w.dest.batch = 60, c.batch
			bad := func(id uint64) bool { return id >= w.hostIDs()[c.bad] }
			w.dest.before = refuse(func(id uint64) bool { return c.all || bad(id) }, c.before)
			for range 3 {
				if report, err := w.do(); err == nil {
					t.Fatalf("%s", report.Outcome)
				}
				w.clock.advance(5 * time.Minute)
			}
			w.dest.before = refuse(bad, &problem{refused: true})
			var report ingest.Report
			for range 8 {
				if report, _ = w.do(); report.Outcome == ingest.Complete {
					return
				}
				w.clock.advance(5 * time.Minute)
			}
			t.Errorf("%s: %s", report.Outcome, report.Reason)
		})
	}
}

// A table that takes no row for days costs Qualys a few calls a run, not the estate.
func TestBrokenTableCostsFewCalls(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 300, 3)
	w.dest.before = func(int, record.Batch) error { return &problem{refused: true} }
	most := 0
	for n := range 8 {
		had := len(w.qualys.Calls())
		if report, err := w.do(); err == nil {
			t.Fatalf("run %d: %s", n, report.Outcome)
		}
		most = max(most, len(w.qualys.Calls())-had)
		w.clock.advance(5 * time.Minute)
	}
	if most < 5 || most > 10 {
		t.Errorf("%d calls in a run, of 30 pages; want 5 to 10", most)
	}
}
