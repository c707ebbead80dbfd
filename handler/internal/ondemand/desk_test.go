package ondemand_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/ondemand"
)

var full = ondemand.Window{Full: true}

var vm = []*ingest.Dataset{ingest.VM}

// What is asked for is in the state before it is begun, and closed when it has
// arrived.
func TestAsk(t *testing.T) {
	ctx := context.Background()
	for name, window := range map[string]ondemand.Window{"its own": {}, "everything": full} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 30)
			k := w.desk()
			jobs, err := k.Ask(ctx, vm, window)
			if err != nil || len(jobs) != 1 {
				t.Fatal(jobs, err)
			}
			if open, err := w.file().Open(ctx, "vm"); err != nil || len(open) != 1 || open[0].ID != jobs[0].ID || len(open[0].Attempts) != 1 || !open[0].Equal(window) {
				t.Errorf("%+v, %v", open, err)
			}
			// Nobody else gets a run meanwhile, here or elsewhere.
			for where, desk := range map[string]*ondemand.Desk{"here": k, "elsewhere": w.desk()} {
				for _, other := range []ondemand.Window{{}, full} {
					var busy *ondemand.BusyError
					if _, err := desk.Ask(ctx, vm, other); !errors.As(err, &busy) || busy.Dataset != "vm" || where == "here" && busy.Run != jobs[0].ID {
						t.Errorf("%s: %v", where, err)
					}
				}
			}
			report, err := k.Do(ctx, jobs[0])
			if err != nil || report.Outcome != ingest.Complete || len(w.rows) == 0 {
				t.Fatalf("%+v, %v", report, err)
			}
			if open, err := w.file().Open(ctx, "vm"); err != nil || len(open) != 0 {
				t.Errorf("%+v, %v", open, err)
			}
			done, err := w.file().Find(ctx, "vm", jobs[0].ID)
			if err != nil || done == nil || done.Outcome != ingest.Complete || done.Ended == nil {
				t.Errorf("%+v, %v", done, err)
			}
			if (w.watermark(ingest.VM) != time.Time{}) != window.Own() {
				t.Errorf("watermark %s", w.watermark(ingest.VM))
			}
			if left := w.names("checkpoints/default/requests/"); len(left) != 0 {
				t.Errorf("left over: %v", left)
			}
			if len(k.Live(ingest.VM)) != 0 {
				t.Error("a run is listed that has ended")
			}
		})
	}
}

// All datasets, or none: what could be taken of a request is given back.
func TestAskForAll(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, 20)
	busy, err := w.desk().Ask(ctx, []*ingest.Dataset{ingest.KB}, full)
	if err != nil {
		t.Fatal(err)
	}
	k := w.desk()
	both := []*ingest.Dataset{ingest.VM, ingest.KB}
	var is *ondemand.BusyError
	if jobs, err := k.Ask(ctx, both, full); !errors.As(err, &is) || is.Dataset != "kb" || is.Run != busy[0].ID || jobs != nil {
		t.Fatalf("%v, %v", jobs, err)
	}
	if names := w.names("requests/open/default/vm/"); len(names) != 0 {
		t.Errorf("%v", names)
	}
	if _, err := w.desk().Do(ctx, busy[0]); err != nil {
		t.Fatal(err)
	}
	jobs, err := k.Ask(ctx, both, full)
	if err != nil || len(jobs) != 2 || jobs[0].ID != jobs[1].ID {
		t.Fatal(jobs, err)
	}
	for _, job := range jobs {
		if report, err := k.Do(ctx, job); err != nil || report.Outcome != ingest.Complete {
			t.Errorf("%+v, %v", report, err)
		}
	}
	// A store that fails in the middle leaves nothing behind.
	k.Store = failing{Store: w.store, on: "requests/open/default/kb/"}
	if jobs, err := k.Ask(ctx, both, full); err == nil || jobs != nil {
		t.Fatal(jobs, err)
	}
	if names := append(w.names("requests/open/"), w.names("checkpoints/default/requests/")...); len(names) != 0 {
		t.Errorf("%v", names)
	}
	k.Store = w.store
	if _, err := k.Ask(ctx, both, ondemand.Window{}); err != nil {
		t.Errorf("a hold was not given back: %v", err)
	}
}

// failing is a store that creates no object under a prefix.
type failing struct {
	checkpoint.Store
	on string
}

func (s failing) Create(ctx context.Context, name string) (io.WriteCloser, error) {
	if strings.HasPrefix(name, s.on) {
		return nil, errors.New("no space left on device")
	}
	return s.Store.Create(ctx, name)
}
