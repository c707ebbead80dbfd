package qualys_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
)

// askHosts asks another endpoint than ask does.
func askHosts(c *qualys.Client) error {
	_, err := qualys.NewDetections(c, ingest.VM.Schema).IDs(context.Background(), record.Query{}, 1, func(record.Tally) {})
	return err
}

// slowly is a server whose clock a test sets, and that counts its calls.
type slowly struct {
	mu    sync.Mutex
	now   time.Time
	calls map[string]int
}

func (s *slowly) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *slowly) advance(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}

// serve counts a call and writes an answer's body that fits its path.
func (s *slowly) serve(w http.ResponseWriter, r *http.Request) (call int, good func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls == nil {
		s.calls = map[string]int{}
	}
	s.calls[r.URL.Path]++
	return s.calls[r.URL.Path], func() {
		if strings.HasSuffix(r.URL.Path, "/detection/") {
			io.WriteString(w, page(""))
		} else {
			io.WriteString(w, `<HOST_LIST_OUTPUT><RESPONSE><ID_SET><ID>5</ID></ID_SET></RESPONSE></HOST_LIST_OUTPUT>`)
		}
	}
}

// The last calls of a window are the customer's other tools': one in ten of a
// window's length looks whether they have left more again.
func TestReserve(t *testing.T) {
	s := &slowly{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	remaining := 31
	cl, _ := client(t, func(w http.ResponseWriter, r *http.Request) {
		_, good := s.serve(w, r)
		w.Header().Set("X-RateLimit-Limit", "300")
		w.Header().Set("X-RateLimit-Window-Sec", "3600")
		w.Header().Set("X-RateLimit-ToWait-Sec", "0")
		w.Header().Set("X-RateLimit-Remaining", strconv.Itoa(remaining))
		if !strings.HasSuffix(r.URL.Path, "/detection/") {
			w.Header().Set("X-RateLimit-Remaining", "299")
		}
		good()
	})
	cl.Now, cl.Reserve = s.clock, 10
	for range 2 { // at 31, then at 30
		if _, _, err := ask(cl); err != nil {
			t.Fatal(err)
		}
		remaining--
	}
	_, _, err := ask(cl)
	checkError(t, err, qualys.Limited, 6*time.Minute, "30 of 300 calls of this window are left, and kept for the customer's other tools")
	if err := askHosts(cl); err != nil { // has calls of its own
		t.Error(err)
	}
	s.advance(6 * time.Minute)
	if _, _, err := ask(cl); err != nil || s.calls[detectionPath] != 3 {
		t.Errorf("%v, %d calls", err, s.calls[detectionPath])
	}
	remaining = 200
	s.advance(6 * time.Minute)
	for range 5 {
		if _, _, err := ask(cl); err != nil {
			t.Fatal(err)
		}
	}
}

// blocking is a sink that holds its page up.
type blocking struct {
	*rows
	entered chan int
	release chan struct{}
	name    int
}

func (b *blocking) Begin(time.Time) error {
	b.entered <- b.name
	<-b.release
	return nil
}

// One call less than Qualys allows runs at once, and those that wait go in the
// order in which they came.
func TestConcurrency(t *testing.T) {
	for allowed, want := range map[string]int{"1": 1, "2": 1, "4": 3} {
		t.Run(allowed, func(t *testing.T) {
			cl, _ := client(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("X-Concurrency-Limit-Limit", allowed)
				io.WriteString(w, page(""))
			})
			if _, _, err := ask(cl); err != nil { // now the limit is known
				t.Fatal(err)
			}
			entered, release := make(chan int, 100), make(chan struct{})
			results := make(chan error, 100)
			start := func(ctx context.Context, name int) {
				go func() {
					_, err := qualys.NewDetections(cl, ingest.VM.Schema).Page(ctx, record.Query{}, &blocking{newRows(), entered, release, name})
					results <- err
				}()
			}
			for n := range want {
				start(context.Background(), n)
				<-entered
			}
			reason := errors.New("the budget is used up")
			impatient, cancel := context.WithCancelCause(context.Background())
			start(impatient, -1)
			waitFor(t, func() bool { return cl.Waiting(detectionPath) == 1 })
			for n := range 3 {
				start(context.Background(), want+n)
				waitFor(t, func() bool { return cl.Waiting(detectionPath) == n+2 })
			}
			cancel(reason)
			if err := <-results; !errors.Is(err, reason) {
				t.Errorf("the impatient one: %v", err)
			}
			for n := range 3 {
				if len(entered) > 0 {
					t.Fatalf("%d calls at once, %d allowed", want+1, want)
				}
				release <- struct{}{}
				if err := <-results; err != nil {
					t.Fatal(err)
				}
				if got := <-entered; got != want+n {
					t.Errorf("%d came before %d", got, want+n)
				}
			}
			close(release)
			for range want {
				if err := <-results; err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func waitFor(t *testing.T, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); {
		if time.Now().After(deadline) {
			t.Fatal("it did not come")
		}
	}
}

// panics is a sink with a fault of ours.
type panics struct{ *rows }

func (panics) Begin(time.Time) error { panic("boom") }

// A call that ends in a panic gives its slot free: the process goes on.
func TestPanicFreesTheSlot(t *testing.T) {
	cl, _ := client(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, page("")) })
	func() {
		defer func() { _ = recover() }()
		_, _ = qualys.NewDetections(cl, ingest.VM.Schema).Page(context.Background(), record.Query{}, panics{newRows()})
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := qualys.NewDetections(cl, ingest.VM.Schema).Page(ctx, record.Query{}, newRows()); err != nil {
		t.Error(err)
	}
}

// What one dataset is told keeps the others away, too: all of them where the
// server as a whole is meant, those of the endpoint where its limits are.
func TestBackOffIsShared(t *testing.T) {
	simple := func(code, text string) string {
		return "<SIMPLE_RETURN><RESPONSE><CODE>" + code + "</CODE><TEXT>" + text + "</TEXT></RESPONSE></SIMPLE_RETURN>"
	}
	for name, c := range map[string]struct {
		status int
		header [2]string
		body   string
		kind   qualys.Kind
		shared bool
		after  []time.Duration // of calls in a row that meet it
	}{
		"maintenance":         {status: 503, body: simple("1999", "Maintenance"), kind: qualys.Unavailable, shared: true, after: []time.Duration{1 * time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second, time.Minute, time.Minute}},
		"429":                 {status: 429, header: [2]string{"Retry-After", "33"}, kind: qualys.Limited, shared: true, after: []time.Duration{33 * time.Second, 33 * time.Second}},
		"calls used up":       {status: 409, header: [2]string{"X-RateLimit-ToWait-Sec", "90"}, body: simple("1965", "x"), kind: qualys.Limited, after: []time.Duration{90 * time.Second}},
		"too many at once":    {status: 409, body: simple("1960", "x"), kind: qualys.Limited, after: []time.Duration{qualys.DefaultLimitWait}},
		"a gateway's timeout": {status: 504, kind: qualys.Unavailable, after: []time.Duration{0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &slowly{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
			bad := true
			cl, _ := client(t, func(w http.ResponseWriter, r *http.Request) {
				_, good := s.serve(w, r)
				if !bad || !strings.HasSuffix(r.URL.Path, "/detection/") {
					good()
					return
				}
				if c.header[0] != "" {
					w.Header().Set(c.header[0], c.header[1])
				}
				w.WriteHeader(c.status)
				io.WriteString(w, c.body)
			})
			cl.Now = s.clock
			for n, after := range c.after {
				_, _, err := ask(cl)
				checkError(t, err, c.kind, after, "")
				if after == 0 {
					continue
				}
				s.advance(after - time.Millisecond)
				if _, _, err := ask(cl); err == nil || s.calls[detectionPath] != n+1 {
					t.Errorf("asked %d times within the wait: %v", s.calls[detectionPath]-n, err)
				}
				if err := askHosts(cl); (err != nil) != c.shared {
					t.Errorf("the other endpoint: %v", err)
				} else if err != nil {
					checkError(t, err, c.kind, time.Millisecond, "said to a call just before")
				}
				s.advance(time.Millisecond)
			}
			bad = false
			if _, _, err := ask(cl); err != nil {
				t.Errorf("when it is over: %v", err)
			}
			bad = true
			if _, _, err := ask(cl); err == nil || c.after[0] > 0 && !strings.Contains(err.Error(), c.after[0].String()) {
				t.Errorf("met again after a good answer: %v", err)
			}
		})
	}
}
