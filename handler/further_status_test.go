package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/api"
	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/checkpoint/folder"
	"qualys-sentinel/handler/internal/functions"
	"qualys-sentinel/handler/internal/status"
)

// slowState is an empty state whose lists take their time, until the caller goes.
type slowState struct {
	checkpoint.Store
	takes time.Duration // zero: they never come
	err   error
	lists atomic.Int64
}

func (s *slowState) List(ctx context.Context, _ string) ([]string, error) {
	s.lists.Add(1)
	if s.takes == 0 {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	select {
	case <-time.After(s.takes):
		return nil, s.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (s *slowState) Open(context.Context, string) (io.ReadCloser, error) { return nil, fs.ErrNotExist }
func (s *slowState) Held(context.Context, string) (bool, error)          { return false, nil }

// appOn is an app whose status is read in a state, by a clock.
func appOn(store checkpoint.Store, now func() time.Time) *app {
	a := newApp(context.Background(), zap.NewNop(), zap.NewAtomicLevel())
	a.connector = &connector{store: store}
	a.status = &status.Source{Store: store, Destination: "default", Now: now}
	return a
}

// No caller is told what was read before it came, whatever the machine's clock does
// between two calls.
func TestNoCallerIsToldWhatWasReadBeforeItCame(t *testing.T) {
	for name, step := range map[string]time.Duration{
		"the clock goes on":                       0,
		"the clock was a second behind":           -time.Second,
		"the clock was an hour behind":            -time.Hour,
		"the clock was a second ahead":            time.Second,
		"the clock was an hour ahead, and is set": time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			ahead := step
			now := func() time.Time { return time.Now().Add(ahead) }
			store := &slowState{takes: time.Nanosecond}
			a := appOn(store, now)
			if _, err := a.Status(context.Background(), ""); err != nil {
				t.Fatal(err)
			}
			ahead = 0
			before := store.lists.Load()
			if _, err := a.Status(context.Background(), ""); err != nil {
				t.Fatal(err)
			}
			if store.lists.Load() == before {
				t.Error("the second caller is told what the first has read")
			}
		})
	}
}

// Callers who wait together share one reading, whatever becomes of the one who reads.
func TestCallersOfTheStatusShareOneReading(t *testing.T) {
	for name, c := range map[string]struct {
		goes     bool // the first goes away while it reads
		othersGo int  // of those who wait
		err      error
		readings int64
	}{
		"all stay":                      {false, 0, nil, 2},
		"the one who reads goes":        {true, 0, nil, 2},
		"half of those who wait go":     {false, 10, nil, 2},
		"all but one of those who wait": {true, 19, nil, 2},
		"the state cannot be read":      {false, 0, errors.New("403"), 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				one := &slowState{takes: time.Millisecond, err: c.err}
				appOn(one, time.Now).status.Gather(context.Background())
				perReading := one.lists.Load()
				store := &slowState{takes: time.Second, err: c.err}
				a := appOn(store, time.Now)
				first, leave := context.WithCancel(context.Background())
				var callers sync.WaitGroup
				callers.Go(func() {
					_, _ = a.Status(first, "")
				})
				synctest.Wait()
				time.Sleep(time.Millisecond)
				var told atomic.Int64
				var cancels []context.CancelFunc
				for n := range 20 {
					ctx, cancel := context.WithCancel(context.Background())
					cancels = append(cancels, cancel)
					callers.Go(func() {
						doc, err := a.Status(ctx, fmt.Sprint(n))
						switch {
						case err != nil:
						case doc.Program.Host != fmt.Sprint(n) || len(doc.Datasets) == 0:
							t.Errorf("caller %d is told %+v", n, doc.Program)
						case (c.err != nil) != (len(doc.Datasets[0].Problems) > 0):
							t.Errorf("problems = %v", doc.Datasets[0].Problems)
						default:
							told.Add(1)
						}
					})
				}
				synctest.Wait()
				for n := range c.othersGo {
					cancels[n]()
				}
				if c.goes {
					leave()
				}
				callers.Wait()
				leave()
				for _, cancel := range cancels {
					cancel()
				}
				if told.Load() != int64(20-c.othersGo) || store.lists.Load() > c.readings*perReading {
					t.Errorf("told = %d, lists = %d, want %d told, and %d readings of %d lists at most", told.Load(), store.lists.Load(), 20-c.othersGo, c.readings, perReading)
				}
			})
		})
	}
}

// A state that does not answer keeps nobody waiting for longer than two readings take,
// however many ask, as the platform cuts an answer after 230 seconds.
func TestStatusOfAStateThatHangsIsToldInTime(t *testing.T) {
	const limit = 230 * time.Second
	for name, c := range map[string]struct{ statuses, finds int }{
		"one status":                      {1, 0},
		"twenty statuses":                 {20, 0},
		"one sync":                        {0, 1},
		"five syncs, and five statuses":   {5, 5},
		"twenty syncs":                    {0, 20},
		"twenty syncs, and ten statuses":  {10, 20},
		"a hundred statuses, and no sync": {100, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := appOn(&slowState{}, time.Now)
				began := time.Now()
				var longest atomic.Int64
				var callers sync.WaitGroup
				done := func() { longest.Store(max(longest.Load(), int64(time.Since(began)))) }
				for range c.finds {
					callers.Go(func() {
						_, _ = a.Find(context.Background(), "aaaaaaaaaaaaaaaa")
						done()
					})
				}
				for range c.statuses {
					callers.Go(func() {
						_, _ = a.Status(context.Background(), "")
						done()
					})
				}
				callers.Wait()
				if took := time.Duration(longest.Load()); took > limit {
					t.Errorf("the last is told after %s, want %s at most", took, limit)
				}
			})
		})
	}
}

// lastByte is an answer that takes its bytes when all others have theirs ready.
type lastByte struct {
	*httptest.ResponseRecorder
	wait func()
	once sync.Once
}

func (w *lastByte) Write(p []byte) (int, error) {
	w.once.Do(w.wait)
	return len(p), nil
}

// Twenty who ask for the status at once take little memory, whatever there is to tell.
// The law is 64 MiB for the whole process, which has 16 before it does anything.
func TestStatusOfManyCallersTakesLittleMemory(t *testing.T) {
	const callers = 20
	reason := strings.Repeat("the page breaks off at this host. ", 8)
	for _, isolated := range []int{0, 100, 1_000, 10_000} {
		t.Run(fmt.Sprintf("isolated=%d", isolated), func(t *testing.T) {
			store := folder.New(t.TempDir())
			var hosts []string
			for n := range isolated {
				hosts = append(hosts, fmt.Sprintf(`{"id":%d,"after":null,"since":"2026-11-01T09:00:00Z","again":"2026-11-28T13:00:00Z","tries":3,"reason":%q}`, n+1, reason))
			}
			err := checkpoint.Write(context.Background(), store, "checkpoints/default/vm.json", func(w io.Writer) error {
				_, err := fmt.Fprintf(w, `{"version":1,"dataset":"vm","watermark":"2026-11-01T11:00:00Z","window":null,"isolated":[%s],"lastRun":"a"}`, strings.Join(hosts, ","))
				return err
			})
			hosts = nil
			if err != nil {
				t.Fatal(err)
			}
			a := appOn(store, time.Now)
			host := &functions.Host{Log: zap.NewNop(), HTTP: (&api.API{Backend: a, Log: zap.NewNop(), Now: time.Now}).Functions()}
			heap := func() int64 {
				var stats runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&stats)
				return int64(stats.HeapAlloc)
			}
			before := heap()
			var come atomic.Int64
			all := make(chan int64)
			given := make(chan struct{})
			var group sync.WaitGroup
			for range callers {
				group.Go(func() {
					w := &lastByte{ResponseRecorder: httptest.NewRecorder(), wait: func() {
						if come.Add(1) == callers {
							all <- heap()
						}
						<-given
					}}
					host.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/QualysStatus", strings.NewReader(`{"Data":{"req":{"Url":"https://x/api/status","Method":"GET","Headers":{},"Params":{}}},"Metadata":{}}`)))
				})
			}
			took := (<-all - before) >> 20
			close(given)
			group.Wait()
			if took > 32 {
				t.Errorf("took = %d MiB, want 32 at most", took)
			}
		})
	}
}
