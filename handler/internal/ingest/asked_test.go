package ingest_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/ingest"
)

// A window that somebody asks for sends all it holds, is gone on with, and
// leaves the dataset's own checkpoint as it is.
func TestAskedWindow(t *testing.T) {
	w := newWorld(t, 60, 5)
	w.mustComplete()
	before := w.checkpoint()
	keys := len(w.dest.keys)
	if keys < 60 {
		t.Fatalf("%d rows", keys)
	}

	asked := func() *ingest.Run {
		r := w.run()
		r.Asked = &ingest.Asked{ID: "a1"}
		return r
	}
	stopped := errors.New("stop here")
	saves := 0
	w.store.beforeSave = func([]byte) error {
		if saves++; saves == 3 {
			return stopped
		}
		return nil
	}
	report, err := asked().Do(context.Background())
	if !errors.Is(err, stopped) || report.Outcome != ingest.Failed || report.Request != "a1" {
		t.Fatalf("%+v, %v", report, err)
	}
	w.store.beforeSave = nil
	report, err = asked().Do(context.Background())
	if err != nil || report.Outcome != ingest.Complete || report.After != nil || report.Repeated != 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	if report.Parents == 60 {
		t.Error("the second run began at the beginning")
	}
	if len(w.dest.keys) != keys {
		t.Errorf("%d keys, there were %d", len(w.dest.keys), keys)
	}
	for key, n := range w.dest.keys {
		if n < 2 {
			t.Fatalf("row %s came %d times: it was not sent again", key, n)
		}
	}
	if after := w.checkpoint(); !after.Watermark.Equal(*before.Watermark) || after.LastRun != before.LastRun {
		t.Errorf("the dataset's checkpoint has changed: %+v", after)
	}
	// Whoever finds it whole has nothing to do.
	calls := len(w.qualys.Calls())
	if report, err := asked().Do(context.Background()); err != nil || report.Outcome != ingest.Complete || len(w.qualys.Calls()) != calls {
		t.Errorf("%+v, %v, %d calls", report, err, len(w.qualys.Calls())-calls)
	}
	// The own windows go on as if nothing had been.
	w.clock.advance(time.Hour)
	if report := w.mustComplete(); !report.After.Equal(before.Watermark.Add(-ingest.DefaultOverlap)) || report.Request != "" {
		t.Errorf("the next window begins at %v", report.After)
	}
}

// An asked window begins where it was asked to, with and beside the other.
func TestAskedWindowSince(t *testing.T) {
	w := newWorld(t, 60, 3)
	w.lookback = 30 * 24 * time.Hour // of the dataset's own first window
	since := w.clock.Now().Add(-7 * time.Hour)
	own := w.run()
	if err := own.Acquire(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := w.run().Acquire(context.Background()); !errors.Is(err, checkpoint.ErrHeld) {
		t.Fatalf("a second run: %v", err)
	}
	r := w.run()
	r.Asked = &ingest.Asked{ID: "a2", After: since}
	report, err := r.Do(context.Background())
	if err != nil || report.Outcome != ingest.Complete || report.After == nil || !report.After.Equal(since) {
		t.Fatalf("%+v, %v", report, err)
	}
	if got := w.qualys.Calls()[0].Get("vm_processed_after"); got != since.Format(time.RFC3339) {
		t.Errorf("asked for %s", got)
	}
	if report.Limits == nil || report.Limits.Calls != 300 || report.Limits.Remaining >= 300 {
		t.Errorf("limits %+v", report.Limits)
	}
	w.wantEach(since)
	if calls := len(w.qualys.Calls()); calls != int(report.Requests) || report.Retries != 0 {
		t.Errorf("%d calls, %+v", calls, report)
	}
	own.Release(context.Background())
	w.mustComplete()
}

// Nothing of the KnowledgeBase's index is touched by an asked window.
func TestAskedKnowledgeBase(t *testing.T) {
	w := newKBWorld(t, 40)
	w.mustComplete()
	before := w.checkpoint()
	r := w.run()
	r.Asked = &ingest.Asked{ID: "a3"}
	report, err := r.Do(context.Background())
	if err != nil || report.Outcome != ingest.Complete || report.Accepted != 40 {
		t.Fatalf("%+v, %v", report, err)
	}
	if after := w.checkpoint(); after.Index != before.Index || !after.Watermark.Equal(*before.Watermark) {
		t.Errorf("%+v, it was %+v", after, before)
	}
	if report := w.mustComplete(); report.Accepted != 0 {
		t.Errorf("%d entries sent again", report.Accepted)
	}
}

// What a run is doing can be read from its checkpoint by anybody.
func TestProgressIsKept(t *testing.T) {
	w := newWorld(t, 60, 5)
	var seen []*ingest.Progress
	w.store.afterSave = func([]byte) error {
		c, err := ingest.ReadCheckpoint(context.Background(), w.store, ingest.CheckpointName("default", "vm"), "vm")
		if err != nil || c == nil || c.Progress == nil {
			t.Errorf("%+v, %v", c, err)
			return nil
		}
		seen = append(seen, c.Progress)
		return nil
	}
	report := w.mustComplete()
	if len(seen) < 3 || !seen[0].Started.Equal(report.Started) || seen[len(seen)-1].Counts.Accepted != report.Accepted {
		t.Errorf("%d saves; the last has %+v", len(seen), seen[len(seen)-1])
	}
	if c, err := ingest.ReadCheckpoint(context.Background(), w.store, "checkpoints/default/none.json", "vm"); c != nil || err != nil {
		t.Errorf("%+v, %v", c, err)
	}
}

// A checkpoint that somebody's edit has made impossible is told, and nothing
// worse.
func TestImpossibleCheckpoint(t *testing.T) {
	for name, doc := range map[string]string{
		"stalled":  `{"version":1,"dataset":"vm","watermark":null,"stalled":-5}`,
		"pageSize": `{"version":1,"dataset":"vm","watermark":null,"pageSize":-1}`,
		"window":   `{"version":1,"dataset":"vm","watermark":null,"window":{"nextId":5}}`,
	} {
		w := newWorld(t, 3, 1)
		path := filepath.Join(w.state, "checkpoints", "default", "vm.json")
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(doc), 0o600); err != nil {
			t.Fatal(err)
		}
		if report, err := w.do(); err == nil || !strings.Contains(err.Error(), "the checkpoint is damaged") || report.Outcome != ingest.Failed {
			t.Errorf("%s: %+v, %v", name, report, err)
		}
	}
}
