package ingest_test

import (
	"context"
	"io"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/record"
)

// meeting holds those who come until all are there. The last one looks at the memory.
type meeting struct {
	want int32
	come atomic.Int32
	all  chan struct{}
	end  sync.Once
	heap int64
}

func newMeeting(want int) *meeting { return &meeting{want: int32(want), all: make(chan struct{})} }

func (m *meeting) wait() {
	if m.come.Add(1) == m.want {
		var stats runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&stats)
		m.heap = int64(stats.HeapAlloc)
		m.off()
	}
	<-m.all
}

// off ends the meeting: a run that should have come has ended without.
func (m *meeting) off() { m.end.Do(func() { close(m.all) }) }

// lettersMeet is a store whose dead letters wait for each other, half written.
type lettersMeet struct {
	checkpoint.Store
	*meeting
}

func (s lettersMeet) Create(ctx context.Context, name string) (io.WriteCloser, error) {
	w, err := s.Store.Create(ctx, name)
	if err == nil && strings.HasPrefix(name, "deadletter/") {
		w = &letterMeets{WriteCloser: w, meeting: s.meeting}
	}
	return w, err
}

type letterMeets struct {
	io.WriteCloser
	*meeting
	writes int
}

func (l *letterMeets) Write(p []byte) (int, error) {
	if l.writes++; l.writes == 2 { // behind the header of gzip
		l.wait()
	}
	return l.WriteCloser.Write(p)
}

// However many destinations refuse a row at the same time, to keep those rows takes
// little memory beyond what their runs take. The law is 64 MiB for the whole process,
// which has about 50 in use with fifty destinations.
func TestRefusedRowsOfManyDestinationsTakeLittleMemory(t *testing.T) {
	for _, destinations := range []int{1, 10, 51} {
		t.Run(strconv.Itoa(destinations), func(t *testing.T) {
			w := newWorld(t, 2, 3)
			// A run that has to wait for Qualys sets the clock of all, and those whose
			// budget that ends come to no meeting.
			w.qualys.Concurrent = destinations
			sending, keeping := newMeeting(destinations), newMeeting(destinations)
			store := lettersMeet{w.store, keeping}
			var list []func()
			for n := range destinations {
				r := w.run()
				name := "integration-" + strconv.Itoa(n+1)
				r.DestinationName, r.Integration, r.Health, r.Store = name, strconv.Itoa(n+1), nil, store
				// As the fleet shares them among 51.
				r.InFlight, r.BatchBytes, r.MaxRecent = 1, 80<<10, 20_000
				dest := &destination{keys: map[string]int{}, rows: map[string]map[string]any{}, batch: 200_000}
				sends, single := 0, 0
				dest.before = func(_ int, b record.Batch) error {
					if sends++; sends == 1 {
						sending.wait()
					}
					if b.Rows() == 1 {
						single++
					}
					if b.Rows() > 1 || single == 1 {
						return &problem{refused: true}
					}
					return nil
				}
				r.Destination = dest
				list = append(list, func() {
					if report, err := r.Do(context.Background()); err != nil || report.DeadLetters != 1 {
						t.Errorf("%s: %s, %v, dead letters = %d, want 1", name, report.Outcome, err, report.DeadLetters)
						sending.off()
						keeping.off()
					}
				})
			}
			var runs sync.WaitGroup
			for _, f := range list {
				runs.Go(f)
			}
			runs.Wait()
			if took := (keeping.heap - sending.heap) >> 20; took > 10 {
				t.Errorf("took = %d MiB more, want 10 at most", took)
			}
		})
	}
}
