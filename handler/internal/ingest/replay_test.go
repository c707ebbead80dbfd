package ingest_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/record"
)

// refuse makes the destination refuse the rows of some severities.
func (w *world) refuse(severities ...string) {
	w.dest.before = func(_ int, b record.Batch) error {
		for _, s := range severities {
			if strings.Contains(string(b.Body), `"Severity_s":"`+s+`"`) {
				return &problem{refused: true}
			}
		}
		return nil
	}
}

func (w *world) replay() *ingest.Replay {
	return &ingest.Replay{Store: w.store, Dataset: w.dataset, Destination: w.dest, Clock: w.clock, Log: zap.NewNop()}
}

func TestReplay(t *testing.T) {
	w := newWorld(t, 30, 10)
	w.refuse("3", "5")
	report := w.mustComplete()
	letters := int(report.DeadLetters)
	if letters < 50 {
		t.Fatalf("only %d dead letters", letters)
	}
	list, err := w.replay().List(context.Background())
	if err != nil || list.Rows != letters || list.Objects == 0 || list.Accepted != 0 || len(list.Reasons) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}

	// Half of them are taken now.
	w.refuse("5")
	first, err := w.replay().Do(context.Background())
	if err != nil || first.Rows != letters || first.Accepted == 0 || first.Refused == 0 || first.Accepted+first.Refused != letters {
		t.Fatalf("%+v, %v", first, err)
	}
	if left := w.readLines("deadletter/vm/run1/rows-*.ndjson.gz"); len(left) != first.Refused || left[0]["table"] != "QualysHostDetectionV2_CL" {
		t.Errorf("%d left, want %d", len(left), first.Refused)
	}

	// And the rest, after a while.
	tries := 0
	w.dest.before = func(int, record.Batch) error {
		if tries++; tries < 3 {
			return &problem{retry: true, after: 7 * time.Second}
		}
		return nil
	}
	second, err := w.replay().Do(context.Background())
	if err != nil || second.Accepted != first.Refused || second.Refused != 0 || len(w.clock.slept) != 2 {
		t.Fatalf("%+v, %v, slept %v", second, err, w.clock.slept)
	}
	if dup := w.wantEach(time.Time{}); dup != 0 {
		t.Errorf("%d rows twice", dup)
	}
	if left, err := filepath.Glob(filepath.Join(w.state, "deadletter/vm/*/rows-*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if third, err := w.replay().Do(context.Background()); err != nil || third.Objects != 0 {
		t.Errorf("%+v, %v", third, err)
	}
}

// What cannot be sent stays as it was.
func TestReplayThatFails(t *testing.T) {
	w := newWorld(t, 10, 10)
	w.refuse("3")
	report := w.mustComplete()
	for name, c := range map[string]struct {
		change func(r *ingest.Replay)
		want   string
	}{
		"role missing": {func(*ingest.Replay) {
			w.dest.before = func(int, record.Batch) error { return errors.New("answered 403") }
		}, "answered 403"},
		"down":          {func(*ingest.Replay) { w.dest.before = func(int, record.Batch) error { return &problem{retry: true} } }, "problem"},
		"the other API": {func(*ingest.Replay) { w.dest.limits.Naming = record.ByKey }, "the other API"},
		"unreadable":    {func(r *ingest.Replay) { r.Store = breaksOff{r.Store, errors.New("reset")} }, "reset"},
		"another table": {func(r *ingest.Replay) {
			other := *ingest.VM
			other.Schema = ingest.KB.Schema
			r.Dataset = &other
		}, "not QualysKB_CL"},
	} {
		t.Run(name, func(t *testing.T) {
			w.dest.before, w.dest.limits = nil, record.Limits{}
			r := w.replay()
			c.change(r)
			if _, err := r.Do(context.Background()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
			if left := w.readLines("deadletter/vm/run1/rows-*.ndjson.gz"); len(left) != int(report.DeadLetters) {
				t.Errorf("%d left of %d", len(left), report.DeadLetters)
			}
		})
	}
}

// The dead letters of an integration are its own: nobody else's replay sends them.
func TestReplayOfAnIntegration(t *testing.T) {
	w := newWorld(t, 30, 6)
	w.refuse("5")
	r := w.run()
	r.Integration, r.DestinationName = "3", "integration-3"
	report, err := r.Do(context.Background())
	if err != nil || report.DeadLetters == 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	w.dest.before = nil
	if all, err := w.replay().Do(context.Background()); err != nil || all.Rows+all.Accepted != 0 {
		t.Errorf("%+v, %v", all, err)
	}
	moved := w.replay() // it was turned elsewhere since
	moved.Of = "integration-3-1"
	if all, err := moved.Do(context.Background()); err != nil || all.Rows+all.Accepted != 0 {
		t.Errorf("%+v, %v", all, err)
	}
	own := w.replay()
	own.Of = "integration-3"
	if sent, err := own.Do(context.Background()); err != nil || int64(sent.Accepted) != report.DeadLetters {
		t.Errorf("%+v, %v", sent, err)
	}
}
