package ondemand_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/checkpoint/folder"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/ondemand"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/simulator"
)

// world is a simulated Qualys, a state, and desks as processes have them.
type world struct {
	t      *testing.T
	qualys *simulator.Qualys
	server *httptest.Server
	state  string
	store  checkpoint.Store
	runs   int
	mu     sync.Mutex
	now    time.Time
	// before is called with each request to Qualys.
	before func(n int, w http.ResponseWriter) (answered bool)
	n      int
	batch  int
	// block may hold up rows of a run.
	block func(run string)
	// sleep takes the place of five minutes.
	sleep func(ctx context.Context)
	// spoil may take a request's place.
	spoil func(w http.ResponseWriter, r *http.Request) bool
	rows  []string // RowKey of each row that arrived
	// refuse is the error of each sending.
	refuse error
}

func newWorld(t *testing.T, hosts int) *world {
	t.Helper()
	w := &world{t: t, state: t.TempDir(), batch: 20_000, now: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)}
	w.store = folder.New(w.state)
	sub := simulator.NewSubscription(5, hosts, 3)
	sub.Knowledge = &simulator.Knowledge{Seed: 1, Size: 30}
	w.qualys = simulator.NewQualys(sub, "u", "p")
	w.qualys.Now = w.Now
	w.server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.n++
		n, before := w.n, w.before
		w.mu.Unlock()
		if before != nil && before(n, rw) || w.spoil != nil && w.spoil(rw, r) {
			return
		}
		w.qualys.ServeHTTP(rw, r)
	}))
	t.Cleanup(w.server.Close)
	return w
}

func (w *world) Now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

// Sleep moves the clock on at once, but for waits that something is to end.
func (w *world) Sleep(ctx context.Context, d time.Duration) error {
	w.mu.Lock()
	sleep := w.sleep
	w.mu.Unlock()
	if d == 5*time.Minute && sleep == nil {
		<-ctx.Done()
	} else if sleep != nil && d == 5*time.Minute {
		sleep(ctx)
	}
	w.advance(d)
	return context.Cause(ctx)
}

func (w *world) advance(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func (w *world) Login() (string, string)            { return "u", "p" }
func (*world) Reload(context.Context) (bool, error) { return false, nil }
func (*world) Limits() record.Limits                { return record.Limits{Naming: record.ByColumn} }
func (w *world) BatchBytes() int                    { return w.batch }
func (w *world) Send(ctx context.Context, b record.Batch) (int64, error) {
	var rows []struct{ RowKey_s, RunId_s string }
	if err := json.Unmarshal(b.Body, &rows); err != nil {
		return 0, err
	}
	w.mu.Lock()
	block := w.block
	w.mu.Unlock()
	if block != nil && len(rows) > 0 {
		block(rows[0].RunId_s)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refuse != nil {
		return 0, w.refuse
	}
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	for _, r := range rows {
		w.rows = append(w.rows, r.RowKey_s)
	}
	return int64(len(b.Body)), nil
}

func (w *world) file() ondemand.File {
	return ondemand.File{Store: w.store, Destination: "default"}
}

// desk is that of a new process.
func (w *world) desk() *ondemand.Desk {
	origin, err := url.Parse(w.server.URL)
	if err != nil {
		w.t.Fatal(err)
	}
	client := &qualys.Client{Origin: origin, Credentials: w, HTTP: w.server.Client(), UserAgent: "test", Now: w.Now}
	return &ondemand.Desk{
		File: w.file(), Clock: w, Log: zap.NewNop(),
		NewID: func() string {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.runs++
			return fmt.Sprintf("run%d", w.runs)
		},
		NewRun: func(d *ingest.Dataset, id string, r *ondemand.Request) (*ingest.Run, error) {
			run := &ingest.Run{ID: id, Dataset: d, Destination: w, DestinationName: "default", Store: w.store, Policy: record.KeepAll, Budget: time.Hour, Clock: w, Log: zap.NewNop()}
			if d == ingest.KB {
				k := qualys.NewKnowledgeBase(client, d.Schema)
				run.Source = k
				return run, nil
			}
			s := qualys.NewDetections(client, d.Schema)
			s.PageSize = 10
			if r != nil && r.FilterParameters != "" {
				filter, err := url.ParseQuery(strings.TrimLeft(r.FilterParameters, "&"))
				if err != nil {
					return nil, err
				}
				s.Filter = filter
			}
			run.Source = s
			return run, nil
		},
	}
}

// names lists the state.
func (w *world) names(prefix string) []string {
	w.t.Helper()
	names, err := w.store.List(context.Background(), prefix)
	if err != nil {
		w.t.Fatal(err)
	}
	return names
}

func (w *world) watermark(d *ingest.Dataset) time.Time {
	w.t.Helper()
	c, err := ingest.ReadCheckpoint(context.Background(), w.store, ingest.CheckpointName("default", d.Name), d.Name)
	if err != nil {
		w.t.Fatal(err)
	}
	if c == nil || c.Watermark == nil {
		return time.Time{}
	}
	return *c.Watermark
}
