package ingest_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/checkpoint/folder"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/simulator"
)

func TestMain(m *testing.M) {
	debug.SetGCPercent(400) // small worlds, thousands of them: the collector took a fifth of the time
	goleak.VerifyTestMain(m)
}

// clock stands still; a sleep moves it on at once.
type clock struct {
	mu    sync.Mutex
	now   time.Time
	slept []time.Duration
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func (c *clock) Sleep(ctx context.Context, d time.Duration) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	c.slept = append(c.slept, d)
	return nil
}

// world is a subscription, a destination and a state that runs work between.
type world struct {
	t      *testing.T
	clock  *clock
	qualys *simulator.Qualys
	server *httptest.Server
	// before may take a Qualys request's place; it reports true if it did.
	before   func(w http.ResponseWriter, r *http.Request) bool
	dest     *destination
	store    *faultStore
	state    string
	logs     *observer.ObservedLogs
	runs     int
	budget   time.Duration
	filter   url.Values
	policy   record.Policy
	page     int
	lookback time.Duration
	dataset  *ingest.Dataset
	refresh  time.Duration
	joined   *ingest.Joined
	target   string
	inFlight int
	health   *destination
	timeout  time.Duration // of an answer's header and silence; zero: the product's
	// dial, if not nil, decides about a connection to Qualys.
	dial func() error
	// virtual says that the world is one of a bubble's time, without a network.
	virtual bool
}

func newWorld(t *testing.T, hosts, detections int) *world {
	t.Helper()
	w := newWorldApart(t, hosts, detections)
	w.server = httptest.NewServer(w)
	t.Cleanup(w.server.Close)
	return w
}

// newVirtualWorld returns a world for a bubble of testing/synctest.
func newVirtualWorld(t *testing.T, hosts, detections int) *world {
	t.Helper()
	w := newWorldApart(t, hosts, detections)
	w.virtual, w.qualys.Now = true, time.Now
	time.Sleep(time.Until(w.clock.Now()))
	return w
}

// now is the world's time.
func (w *world) now() time.Time {
	if w.virtual {
		return time.Now()
	}
	return w.clock.Now()
}

// ServeHTTP implements http.Handler.
func (w *world) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if w.before != nil && w.before(rw, r) {
		return
	}
	w.qualys.ServeHTTP(rw, r)
}

func newWorldApart(t *testing.T, hosts, detections int) *world {
	t.Helper()
	w := &world{t: t, clock: &clock{now: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)}, state: t.TempDir(), page: 10, policy: record.KeepAll, dataset: ingest.VM}
	w.qualys = simulator.NewQualys(simulator.NewSubscription(5, hosts, detections), "u", "p")
	w.qualys.Now = w.clock.Now
	w.dest = &destination{keys: map[string]int{}, rows: map[string]map[string]any{}, batch: 30_000}
	w.health = &destination{keys: map[string]int{}, rows: map[string]map[string]any{}, batch: 30_000}
	w.store = &faultStore{Store: folder.New(w.state)}
	return w
}

// run makes a run as a new process would.
func (w *world) run() *ingest.Run {
	w.t.Helper()
	w.runs++
	origin, clock := &url.URL{Scheme: "https", Host: "qualysapi.qualys.example"}, ingest.Clock(ingest.SystemClock{})
	if !w.virtual {
		var err error
		if origin, err = url.Parse(w.server.URL); err != nil {
			w.t.Fatal(err)
		}
		clock = w.clock
	}
	transport := &http.Transport{DisableKeepAlives: true, ResponseHeaderTimeout: w.timeout}
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if w.dial != nil {
			if err := w.dial(); err != nil {
				return nil, err
			}
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	var road http.RoundTripper = transport
	if w.virtual {
		road = simulator.Transport{Handler: w}
	}
	client := &qualys.Client{Origin: origin, Credentials: login{}, HTTP: &http.Client{Transport: road, CheckRedirect: qualys.NewHTTPClient().CheckRedirect}, UserAgent: "test", Now: clock.Now, IdleTimeout: w.timeout}
	detections := qualys.NewDetections(client, ingest.VM.Schema)
	detections.PageSize, detections.Filter = w.page, w.filter
	knowledge := qualys.NewKnowledgeBase(client, ingest.KB.Schema)
	knowledge.PageSize = w.page
	core, logs := observer.New(zap.DebugLevel)
	w.logs = logs
	r := &ingest.Run{
		ID: fmt.Sprintf("run%d", w.runs), Dataset: w.dataset, Source: detections, Destination: w.dest, DestinationName: "default", Target: w.target,
		Store: w.store, Health: w.health, Policy: w.policy, Lookback: w.lookback, Refresh: w.refresh, Budget: w.budget, InFlight: w.inFlight, Clock: clock, Log: zap.New(core),
	}
	r.Joined, r.JoinedIdentity = w.joined, ingest.Identity(knowledge, w.target)
	if w.dataset == ingest.KB {
		r.Source, r.Overlap, r.Joined = knowledge, 24*time.Hour, nil
	}
	return r
}

func (w *world) do() (ingest.Report, error) {
	w.t.Helper()
	return w.finish(context.Background(), w.run())
}

// finish makes a run. When it returns, nothing of the run is on its way any more: what
// answers may then be changed without a race.
func (w *world) finish(ctx context.Context, r *ingest.Run) (ingest.Report, error) {
	w.t.Helper()
	report, err := r.Do(ctx)
	if w.virtual {
		synctest.Wait() // an answer that was given up may still be on its way
	}
	return report, err //nolint:wrapcheck // the run's own
}

func (w *world) mustComplete() ingest.Report {
	w.t.Helper()
	report, err := w.do()
	if err != nil || report.Outcome != ingest.Complete {
		w.t.Fatalf("%s: %v", report.Outcome, err)
	}
	return report
}

func (w *world) checkpoint() ingest.Checkpoint {
	w.t.Helper()
	doc, err := os.ReadFile(filepath.Join(w.state, "checkpoints", "default", w.dataset.Name+".json"))
	if err != nil {
		w.t.Fatal(err)
	}
	var c ingest.Checkpoint
	if err := json.Unmarshal(doc, &c); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// expected is the key of every detection, as the simulator tells it.
func (w *world) expected(after time.Time) map[string]simulator.Detection {
	m := map[string]simulator.Detection{}
	w.qualys.Subscription.Expected(after, w.now(), func(_ simulator.Host, d simulator.Detection) {
		m[fmt.Sprintf("%d@%s", d.UniqueID, d.Processed.Format(time.RFC3339))] = d
	})
	return m
}

// wantEach checks that every expected detection arrived, whole, and returns
// how many arrived more than once.
func (w *world) wantEach(after time.Time) (duplicates int) {
	w.t.Helper()
	want := w.expected(after)
	for key, d := range want {
		n := w.dest.keys[key]
		if n == 0 {
			w.t.Errorf("detection %s is missing", key)
			continue
		}
		duplicates += n - 1
		row := w.dest.rows[key]
		var results strings.Builder
		for part := 0; ; part++ {
			s, ok := row[fmt.Sprintf("Results_%d_s", part)].(string)
			if !ok {
				break
			}
			results.WriteString(s)
		}
		if row["Cut_s"] == nil && results.String() != d.Results || row["Status_s"] != d.Status || row["QID_s"] != fmt.Sprint(d.QID) {
			w.t.Errorf("detection %s differs: %.200v", key, row)
		}
	}
	for key := range w.dest.keys {
		if _, ok := want[key]; !ok {
			w.t.Errorf("row %s was not expected", key)
		}
	}
	return duplicates
}

type login struct{}

func (login) Login() (string, string)              { return "u", "p" }
func (login) Reload(context.Context) (bool, error) { return false, nil }

// destination remembers what it accepted, and does what it is told.
type destination struct {
	mu     sync.Mutex
	keys   map[string]int
	rows   map[string]map[string]any
	sends  int
	batch  int
	limits record.Limits
	// before and after decide about a call: a non-nil error is its result. An
	// error from after comes although the rows were taken.
	before, after func(n int, b record.Batch) error
}

func (d *destination) Send(ctx context.Context, b record.Batch) (int64, error) {
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sends++
	if d.before != nil {
		if err := d.before(d.sends, b); err != nil {
			return 0, err
		}
	}
	if last := len(b.Body) - 1; len(b.Body) > d.batch || b.Rows() == 0 || b.Body[0] != '[' || b.Body[last] != ']' || b.Ends[b.Rows()-1] != last {
		return 0, fmt.Errorf("bad batch of %d bytes, %d rows, which end at %d", len(b.Body), b.Rows(), b.Ends)
	}
	rows, begin := make([]map[string]any, b.Rows()), 1
	for i, end := range b.Ends {
		if err := jsonv2.Unmarshal(b.Body[begin:end], &rows[i]); err != nil {
			return 0, fmt.Errorf("row %d of %d: %w", i, b.Rows(), err)
		}
		if i > 0 && b.Body[begin-1] != ',' {
			return 0, fmt.Errorf("row %d of %d begins behind %q", i, b.Rows(), b.Body[begin-1])
		}
		begin = end + 1
	}
	for _, row := range rows {
		key, ok := row["RowKey_s"].(string)
		if !ok {
			key, _ = row["Run_s"].(string)
		}
		d.keys[key]++
		d.rows[key] = row
	}
	if d.after != nil {
		return 0, d.after(d.sends, b)
	}
	return int64(len(b.Body)), nil
}

func (d *destination) Limits() record.Limits { return d.limits }
func (d *destination) BatchBytes() int       { return d.batch }

// problem is an error with the answers that the run asks for.
type problem struct {
	retry, refused, limit bool
	after                 time.Duration
}

func (p *problem) Error() string                { return fmt.Sprintf("problem %+v", *p) }
func (p *problem) Retry() (time.Duration, bool) { return p.after, p.retry }
func (p *problem) Refused() bool                { return p.refused }
func (p *problem) Limit() bool                  { return p.limit }

// faultStore is a store whose saves can fail.
type faultStore struct {
	checkpoint.Store
	beforeSave, afterSave func(doc []byte) error
	duringSave            func(ctx context.Context) error
	beforeCreate          func(name string) error
	// beforeAppend and afterAppend decide about an append to a journal.
	beforeAppend, afterAppend func() error
	lost                      chan struct{}
	held                      bool // by somebody else
}

func (s *faultStore) Acquire(ctx context.Context, name string) (checkpoint.Lease, error) {
	if s.held {
		return nil, checkpoint.ErrHeld
	}
	l, err := s.Store.Acquire(ctx, name)
	if err != nil {
		return nil, err
	}
	return &faultLease{Lease: l, s: s}, nil
}

func (s *faultStore) Create(ctx context.Context, name string) (io.WriteCloser, error) {
	if s.beforeCreate != nil {
		if err := s.beforeCreate(name); err != nil {
			return nil, err
		}
	}
	return s.Store.Create(ctx, name)
}

func (s *faultStore) Append(ctx context.Context, name string, p []byte) error {
	if s.beforeAppend != nil {
		if err := s.beforeAppend(); err != nil {
			return err
		}
	}
	if err := s.Store.Append(ctx, name, p); err != nil {
		return err
	}
	if s.afterAppend != nil {
		return s.afterAppend()
	}
	return nil
}

type faultLease struct {
	checkpoint.Lease
	s *faultStore
}

func (l *faultLease) Lost() <-chan struct{} {
	if l.s.lost != nil {
		return l.s.lost
	}
	return l.Lease.Lost()
}

func (l *faultLease) Save(ctx context.Context, doc []byte) error {
	if l.s.beforeSave != nil {
		if err := l.s.beforeSave(doc); err != nil {
			return err
		}
	}
	if l.s.duringSave != nil {
		if err := l.s.duringSave(ctx); err != nil {
			return err
		}
	}
	if err := l.Lease.Save(ctx, doc); err != nil {
		return err
	}
	if l.s.afterSave != nil {
		return l.s.afterSave(doc)
	}
	return nil
}

// readLines reads the lines of gzipped objects of the state, by a pattern.
func (w *world) readLines(pattern string) (lines []map[string]any) {
	w.t.Helper()
	files, err := filepath.Glob(filepath.Join(w.state, pattern))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			w.t.Fatal(err)
		}
		gz, err := gzip.NewReader(bytes.NewReader(raw))
		if err != nil {
			w.t.Fatal(err)
		}
		dec := json.NewDecoder(gz)
		for {
			var line map[string]any
			if err := dec.Decode(&line); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				w.t.Fatal(err)
			}
			lines = append(lines, line)
		}
	}
	return lines
}

// openFails is a store that gives nothing to read.
type openFails struct {
	checkpoint.Store
	err error
}

func (s openFails) Open(context.Context, string) (io.ReadCloser, error) { return nil, s.err }

// breaksOff is a store whose objects break off in the middle.
type breaksOff struct {
	checkpoint.Store
	err error
}

func (s breaksOff) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	r, err := s.Store.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	half := io.MultiReader(io.LimitReader(r, 700), iotest.ErrReader(s.err))
	return struct {
		io.Reader
		io.Closer
	}{half, r}, nil
}
