package ingest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/checkpoint/folder"
	"qualys-sentinel/handler/internal/record"
)

// hostRow makes a record of a host that was processed at a time.
func hostRow(t *testing.T, processed string) *record.Record {
	t.Helper()
	rec := record.New(VM.Schema)
	if err := rec.Append(VM.Schema.Index("DETECTION/LAST_PROCESSED_DATETIME"), record.Item, []byte(processed)); err != nil {
		t.Fatal(err)
	}
	return rec
}

func testRecent(doc recentDoc) *recent {
	r := newRecent(&Run{Dataset: VM, Overlap: 10 * time.Minute}, doc)
	r.goesFor = "a state"
	return r
}

func TestRecent(t *testing.T) {
	until := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	young, old := hostRow(t, "2026-11-01T11:55:00Z"), hostRow(t, "2026-10-01T11:55:00Z")
	row := func(s string) record.Row { return record.Row{Stable: []byte(s)} }
	store := folder.New(t.TempDir())
	ctx := context.Background()

	r := testRecent(recentDoc{})
	r.begin(&Window{Until: until})
	// Host 1 was just processed: all its rows count, old ones too.
	r.repeated(old, row("1a"))
	r.repeated(young, row("1b"))
	r.done()
	// Host 2 was not. Host 3 broke off.
	r.repeated(old, row("2a"))
	r.done()
	r.repeated(young, row("3a"))
	r.forget()
	if err := r.finished().save(ctx, store, "early.gz"); err != nil || len(r.now) != 0 {
		t.Errorf("%d rows are remembered before they have arrived, %v", len(r.now)/8, err)
	}
	r.delivered(r.take())
	if err := r.finished().save(ctx, store, "recent.gz"); err != nil {
		t.Fatal(err)
	}
	last, err := loadRecent(ctx, store, "recent.gz")
	if err != nil || len(last.Rows) != 16 {
		t.Fatalf("%d remembered, %v; want 2", len(last.Rows)/8, err)
	}
	// A run that ends inside the next window hands over both.
	r = testRecent(last)
	r.begin(&Window{Until: until.Add(time.Hour)})
	r.repeated(hostRow(t, "2026-11-01T12:58:00Z"), row("9z"))
	r.done()
	r.delivered(r.take())
	doc := r.unfinished()
	if len(doc.Rows) != 16 || len(doc.Next) != 8 || len(testRecent(doc).now) != 8 {
		t.Errorf("%d and %d bytes handed over", len(doc.Rows), len(doc.Next))
	}
	r = testRecent(last)
	r.begin(&Window{Until: until.Add(time.Hour)})
	for s, want := range map[string]bool{"1a": true, "1b": true, "2a": false, "3a": false, "1c": false} {
		if got := r.repeated(young, row(s)); got != want {
			t.Errorf("row %s repeated: %v, want %v", s, got, want)
		}
	}
}

func TestRecentIsBounded(t *testing.T) {
	r := testRecent(recentDoc{})
	r.begin(&Window{Until: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)})
	young := hostRow(t, "2026-11-01T12:00:00Z")
	for n := range DefaultMaxRecent + 7 {
		r.repeated(young, record.Row{Stable: fmt.Append(nil, n)})
		r.done()
	}
	r.delivered(r.take())
	if len(r.now) != 8*DefaultMaxRecent || r.dropped+r.over != 7 {
		t.Errorf("%d remembered, %d dropped", len(r.now)/8, r.dropped)
	}
	store := folder.New(t.TempDir())
	if err := r.finished().save(context.Background(), store, "r.gz"); err != nil {
		t.Fatal(err)
	}
	if last, err := loadRecent(context.Background(), store, "r.gz"); err != nil || len(last.Rows) != 8*DefaultMaxRecent {
		t.Errorf("%d came back, %v", len(last.Rows)/8, err)
	}
}

// A document of more rows than are remembered, whoever wrote it, is cut.
func TestRecentThatIsTooLong(t *testing.T) {
	r := testRecent(recentDoc{Next: make([]byte, 8*DefaultMaxRecent+13)})
	r.delivered(make([]byte, 16))
	if len(r.now) != 8*DefaultMaxRecent || r.dropped+r.over != 2 {
		t.Errorf("%d remembered, %d dropped", len(r.now)/8, r.dropped)
	}
}

func TestRecentThatIsDamaged(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "r.gz"), []byte("no gzip"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadRecent(context.Background(), folder.New(dir), "r.gz"); err == nil || !strings.Contains(err.Error(), "r.gz") {
		t.Errorf("got %v", err)
	}
}
