package ondemand_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/ondemand"
)

// named is a desk for another destination.
func (w *world) named(destination string, change func(r *ingest.Run) error) *ondemand.Desk {
	k := w.desk()
	k.Destination = destination
	newRun := k.NewRun
	k.NewRun = func(d *ingest.Dataset, id string, r *ondemand.Request) (*ingest.Run, error) {
		run, err := newRun(d, id, r)
		if err != nil {
			return nil, err
		}
		run.DestinationName, run.Budget = destination, 10_000*time.Hour
		return run, change(run)
	}
	return k
}

// A tick runs everybody who is due, takes in who comes while it goes on, and one that
// takes long, fails, panics or is not due is no matter of the others.
func TestTickOfMany(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, 20)
	w.batch = 1 << 20
	runs := map[string]*atomic.Int32{}
	member := func(name string, change func(r *ingest.Run) error) ondemand.Member {
		n := &atomic.Int32{}
		runs[name] = n
		return ondemand.Member{Desk: w.named(name, func(r *ingest.Run) error {
			n.Add(1)
			return change(r)
		})}
	}
	well := func(*ingest.Run) error { return nil }
	leave := make(chan struct{})
	long := member("long", func(r *ingest.Run) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		id := r.ID
		w.block = func(run string) {
			if run == id {
				<-leave
			}
		}
		return nil
	})
	never := member("never", well)
	never.Due = func(context.Context) bool { return false }
	late := member("late", well)
	tick := ondemand.Tick{Dataset: ingest.VM, Clock: w, Log: zap.NewNop(), Members: []ondemand.Member{
		member("well", well), long,
		member("panics", func(r *ingest.Run) error {
			r.Source = panicking{r.Source}
			return nil
		}),
		member("not made", func(*ingest.Run) error { return errors.New("no destination") }),
		member("panics early", func(*ingest.Run) error { panic("boom") }),
		never,
	}}
	asked := 0
	tick.More = func(context.Context, []ondemand.Member) []ondemand.Member {
		if asked++; asked == 2 {
			return []ondemand.Member{late}
		}
		return nil
	}
	left := false
	w.sleep = func(ctx context.Context) { // until the others have run again
		if !left && runs["well"].Load() >= 3 && runs["panics"].Load() >= 2 && runs["late"].Load() >= 2 {
			left = true
			close(leave)
		}
		if left {
			<-ctx.Done()
		}
	}
	reports := tick.Do(ctx)
	if len(reports) != 7 {
		t.Fatalf("%d reports", len(reports))
	}
	for i, want := range []ingest.Outcome{ingest.Complete, ingest.Complete, ingest.Failed, ingest.Failed, ingest.Failed, "", ingest.Complete} {
		got := ingest.Outcome("")
		if reports[i].Report != nil {
			got = reports[i].Outcome
		}
		if got != want || (reports[i].Err != nil) != (want == ingest.Failed) {
			t.Errorf("%d: %q, %v; want %q", i, got, reports[i].Err, want)
		}
	}
	if long, never := runs["long"].Load(), runs["never"].Load(); long != 1 || never != 0 {
		t.Errorf("the long one ran %d times, the one that is not due %d times", long, never)
	}
	for _, name := range []string{"well", "long", "late"} {
		c, err := ingest.ReadCheckpoint(ctx, w.store, ingest.CheckpointName(name, "vm"), "vm")
		if err != nil || c == nil || c.Watermark == nil || time.Since(*c.Watermark) < 0 {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}
