package functions

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"qualys-sentinel/e2e/azurite"
)

// timer is a request as the host sends it, recorded from host 4.1045.
const timer = `{"Data":{"timer":{"Schedule":{"AdjustForDST":true},"ScheduleStatus":{"Last":"2026-11-22T02:58:00.0010051+00:00","Next":"2026-11-22T02:59:00+00:00","LastUpdated":"2026-11-22T02:58:00.0010051+00:00"},"IsPastDue":%v}},"Metadata":{"sys":{"MethodName":"QualysVM","UtcNow":"2026-11-22T02:57:02.1949269Z","RandGuid":"c0e63ac5-65d0-4fd5-92f3-d374803bf53f"}}}`

func TestInvocations(t *testing.T) {
	var got Invocation
	var result error
	host := &Host{Log: zap.NewNop(), Timers: map[string]Timer{
		"QualysVM": func(_ context.Context, in Invocation) error { got = in; return result },
		"Panics":   func(context.Context, Invocation) error { panic("boom") },
	}}
	server := httptest.NewServer(host)
	defer server.Close()
	for name, c := range map[string]struct {
		method, path, body string
		result             error
		status             int
		want               Invocation
		log                string
	}{
		"timer":             {body: fmt.Sprintf(timer, false), status: 200, want: Invocation{Function: "QualysVM", ID: "id-1"}},
		"past due":          {body: fmt.Sprintf(timer, true), status: 200, want: Invocation{Function: "QualysVM", ID: "id-1", PastDue: true}},
		"no schedule":       {body: `{"Data":{"timer":{"Schedule":null,"ScheduleStatus":null,"IsPastDue":false}},"Metadata":{}}`, status: 200, want: Invocation{Function: "QualysVM", ID: "id-1"}},
		"manual start":      {body: `{"Data":{"timer":"text"},"Metadata":{"timer":"\"text\""}}`, status: 200, want: Invocation{Function: "QualysVM", ID: "id-1"}},
		"no body":           {status: 200, want: Invocation{Function: "QualysVM", ID: "id-1"}},
		"broken body":       {body: `{"Data":`, status: 200, want: Invocation{Function: "QualysVM", ID: "id-1"}},
		"failure":           {body: fmt.Sprintf(timer, false), result: errors.New("told why"), status: 500, want: Invocation{Function: "QualysVM", ID: "id-1"}, log: "told why"},
		"panic":             {path: "/Panics", status: 500, log: "internal error"},
		"unknown function":  {path: "/Nobody", status: 404},
		"ping":              {method: "GET", path: "/", status: 200},
		"get of a function": {method: "GET", status: 404},
	} {
		t.Run(name, func(t *testing.T) {
			got, result = Invocation{}, c.result
			if c.method == "" {
				c.method = "POST"
			}
			if c.path == "" {
				c.path = "/QualysVM"
			}
			req, err := http.NewRequest(c.method, server.URL+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-Azure-Functions-InvocationId", "id-1")
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			// An empty body, null or an array would hang the host or fail the call.
			var doc struct {
				Outputs map[string]any
				Logs    []string
			}
			if err := json.Unmarshal(body, &doc); err != nil || doc.Outputs == nil || resp.Header.Get("Content-Type") != "application/json" {
				t.Errorf("answer %q, %v, %s", body, err, resp.Header.Get("Content-Type"))
			}
			if resp.StatusCode != c.status || got != c.want || c.log != "" && !strings.Contains(strings.Join(doc.Logs, " "), c.log) {
				t.Errorf("status %d, %+v, logs %v; want %d, %+v, %q", resp.StatusCode, got, doc.Logs, c.status, c.want, c.log)
			}
		})
	}
}

func TestServeEndsCallsInGoodOrder(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	started, ended := make(chan struct{}), make(chan struct{})
	host := &Host{Log: zap.New(core), Timers: map[string]Timer{
		"Long": func(ctx context.Context, _ Invocation) error {
			close(started)
			<-ctx.Done()
			close(ended)
			return nil
		},
	}}
	port := azurite.FreePort(t)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- host.Serve(ctx, port) }()
	azurite.Eventually(t, 5*time.Second, "the port is open", func() error {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			return err
		}
		return c.Close()
	})
	answered := make(chan int, 1)
	go func() {
		resp, err := http.Post("http://127.0.0.1:"+port+"/Long", "application/json", bytes.NewReader(nil))
		if err != nil {
			answered <- 0
			return
		}
		resp.Body.Close()
		answered <- resp.StatusCode
	}()
	<-started
	stop()
	<-ended
	if status := <-answered; status != 200 {
		t.Errorf("the call in flight got %d", status)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if logs.FilterMessage("handler ready").Len() != 1 {
		t.Errorf("log: %v", logs.All())
	}
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if err := (&Host{Log: zap.NewNop()}).Serve(context.Background(), port); err == nil || !strings.Contains(err.Error(), "listen") {
		t.Errorf("got %v", err)
	}
}

// The protocol is defined twice: here, and in the folders that the host reads.
func TestExitCode(t *testing.T) {
	if ExitStopped == 0 {
		t.Error("the host never starts a handler again that has ended with 0")
	}
}

// Whatever is asked of the handler, the answer is an object in the protocol's
// form, and a known function is started.
func FuzzInvocation(f *testing.F) {
	f.Add("POST", "/QualysVM", "id", fmt.Sprintf(timer, true))
	f.Add("GET", "/", "", "")
	f.Add("PUT", "/../QualysVM?x#y", "\x00", `{"Data":{"a":[1],"b":{"IsPastDue":"x"}}}`)
	f.Fuzz(func(t *testing.T, method, path, id, body string) {
		started := 0
		host := &Host{Log: zap.NewNop(), Timers: map[string]Timer{"QualysVM": func(context.Context, Invocation) error {
			started++
			return nil
		}}}
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
		r.Method, r.URL.Path = method, path
		r.Header["X-Azure-Functions-Invocationid"] = []string{id}
		w := httptest.NewRecorder()
		host.ServeHTTP(w, r)
		var doc struct {
			Outputs     *struct{}
			Logs        []string
			ReturnValue any
		}
		if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || doc.Outputs == nil || doc.Logs == nil {
			t.Fatalf("%d %s: %v", w.Code, w.Body, err)
		}
		known := strings.Trim(path, "/") == "QualysVM" && method == http.MethodPost
		if known != (started == 1) || known && w.Code != http.StatusOK || w.Code >= 500 {
			t.Errorf("%s %q: %d, started %d", method, path, w.Code, started)
		}
	})
}

// door is an HTTP function that anybody may call.
type door struct {
	closed bool
	calls  atomic.Int64
}

func (d *door) MaxBody() int { return 1 << 10 }

func (d *door) Closed(w http.ResponseWriter) bool {
	if d.closed {
		w.WriteHeader(http.StatusNotFound)
	}
	return d.closed
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.calls.Add(1)
	_, _ = io.Copy(w, r.Body)
}

// counted counts what is read of a body.
type counted struct {
	io.Reader
	n atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// Of a request to a door that is closed nothing is read, and of one that is too long no
// more than it takes to know that.
func TestDoor(t *testing.T) {
	envelope := func(body string) string {
		return `{"Data":{"req":{"Url":"https://x/","Method":"POST","Headers":{},"Params":{},"Body":"` + body + `"}},"Metadata":{}}`
	}
	for name, c := range map[string]struct {
		closed  bool
		body    string
		unknown bool // the length is not announced
		status  int
		most    int64
	}{
		"closed":                     {true, strings.Repeat("x", 1<<20), false, 404, 0},
		"closed, no length":          {true, strings.Repeat("x", 1<<20), true, 404, 0},
		"open":                       {false, "hello", false, 200, 1 << 20},
		"too long":                   {false, strings.Repeat("x", 1<<20), false, 413, 0},
		"too long, no length":        {false, strings.Repeat("x", 1<<20), true, 413, 128 << 10},
		"as long as one may be":      {false, strings.Repeat("x", 1<<10), true, 200, 1 << 20},
		"escapes make it longer":     {false, strings.Repeat(`\u0041`, 300), true, 200, 1 << 20},
		"longer than a door, or two": {false, strings.Repeat("x", 70<<10), false, 413, 0},
	} {
		t.Run(name, func(t *testing.T) {
			d := &door{closed: c.closed}
			h := &Host{HTTP: map[string]http.Handler{"F": d}, Log: zap.NewNop()}
			body := &counted{Reader: strings.NewReader(envelope(c.body))}
			r := httptest.NewRequest(http.MethodPost, "/F", body)
			if r.ContentLength = int64(len(envelope(c.body))); c.unknown {
				r.ContentLength = -1
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			var doc struct {
				Outputs struct {
					Res struct{ StatusCode int }
				}
			}
			if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil {
				t.Fatal(err)
			}
			if got := doc.Outputs.Res.StatusCode; got != c.status || body.n.Load() > c.most || (d.calls.Load() == 1) != (c.status == 200) {
				t.Errorf("status = %d, read = %d, calls = %d, want status %d and at most %d bytes", got, body.n.Load(), d.calls.Load(), c.status, c.most)
			}
		})
	}
}
