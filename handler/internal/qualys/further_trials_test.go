package qualys_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/simulator"
)

// A call waits for the first call with a login, which is told that all calls are to rest.
func TestFurtherLimitBehindATrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		h := http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			calls++
			time.Sleep(time.Minute)
			rw.Header().Set("Retry-After", "1800")
			rw.WriteHeader(http.StatusTooManyRequests)
			io.WriteString(rw, simpleReturn("1965", "x"))
		})
		cl := processAt(h, &safely{})
		var all sync.WaitGroup
		all.Go(func() { _, _, _ = ask(cl) })
		time.Sleep(time.Second)
		all.Go(func() { _ = askKnowledge(cl) }) // waits for the first
		all.Wait()
		if calls != 1 {
			t.Errorf("%d calls; the first was told to wait for half an hour", calls)
		}
	})
}

// A call waits for the first call with a login; meanwhile another process is refused.
func TestFurtherRefusalBehindATrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, memory := newAccount(), &safely{}
		cl := a.process(memory, old())
		a.first = 2 * time.Minute
		var all sync.WaitGroup
		all.Go(func() { _, _, _ = ask(cl) })
		time.Sleep(time.Second)
		all.Go(func() { _ = askKnowledge(cl) }) // waits for the first
		time.Sleep(10 * time.Second)
		a.set(func() { a.good, a.first = "new", 0 })
		_, _, _ = ask(a.process(memory, old())) // another process is refused
		all.Wait()
		if a.bad["old"] != 1 {
			t.Errorf("got %d bad logins in two minutes; want 1", a.bad["old"])
		}
	})
}

func processAt(h http.Handler, memory qualys.Memory) *qualys.Client {
	return &qualys.Client{Origin: &url.URL{Scheme: "https", Host: "q"}, Credentials: old(), UserAgent: "test", Memory: memory,
		HTTP: &http.Client{Transport: simulator.Transport{Handler: h}}}
}

// A long answer that has begun before the proxy refused ends behind that.
func TestFurtherLongAnswerForgetsARefusalOfTheProxy(t *testing.T) {
	begun, end := make(chan bool), make(chan bool)
	var calls atomic.Int32
	server := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if calls.Add(1) == 1 {
			io.WriteString(rw, hosts(""))
			return
		}
		head, tail, _ := strings.Cut(hosts(""), "</RESPONSE>")
		io.WriteString(rw, head)
		rw.(http.Flusher).Flush()
		begun <- true
		<-end
		io.WriteString(rw, "</RESPONSE>"+tail)
	}))
	defer server.Close()
	var refuses atomic.Bool
	var refused atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if refuses.Load() {
			refused.Add(1)
			rw.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		there, err := net.Dial("tcp", r.Host)
		if err != nil {
			t.Error(err)
			return
		}
		here, _, _ := http.NewResponseController(rw).Hijack()
		io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(there, here); there.Close() }()
		_, _ = io.Copy(here, there)
		here.Close()
	}))
	defer proxy.Close()
	through, err := url.Parse(strings.Replace(proxy.URL, "://", "://svc:p@", 1))
	if err != nil {
		t.Fatal(err)
	}
	origin, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	choose := func(*http.Request) (*url.URL, error) { return through, nil }
	memory := &safely{}
	process := func() *qualys.Client {
		cl := &qualys.Client{Origin: origin, Credentials: old(), HTTP: qualys.NewHTTPClient(), UserAgent: "test", Memory: memory, Proxy: choose}
		road := cl.HTTP.Transport.(*http.Transport)
		road.Proxy, road.TLSClientConfig, road.DisableKeepAlives = choose, &tls.Config{InsecureSkipVerify: true}, true
		return cl
	}
	long := make(chan error)
	cl := process()
	mustAsk(t, cl)
	go func() { _, _, err := ask(cl); long <- err }()
	<-begun
	refuses.Store(true)
	_ = askKnowledge(cl)        // refused by the proxy
	_ = askKnowledge(process()) // not tried
	if n := refused.Load(); n != 1 {
		t.Fatalf("%d refused, want 1", n)
	}
	end <- true
	if err := <-long; err != nil {
		t.Fatal(err)
	}
	_ = askKnowledge(cl)
	_ = askKnowledge(process())
	if n := refused.Load(); n != 1 {
		t.Errorf("the proxy refused %d logins within a second; want 1", n)
	}
}

// hangs is a memory of which each read takes as long as the client of the blob storage lets it:
// four tries of 15 seconds, and what is between them.
type hangs struct{ safely }

func (h *hangs) Load(ctx context.Context) ([]byte, error) {
	select {
	case <-time.After(75 * time.Second):
		return nil, errors.New("storage hangs")
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// The memory of the others hangs: calls go on, nearly as without.
func TestFurtherMemoryThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAccount()
		cl := a.process(&hangs{}, old())
		began := time.Now()
		var all sync.WaitGroup
		all.Go(func() {
			for range 10 {
				mustAsk(t, cl)
			}
		})
		all.Go(func() {
			for range 10 {
				if err := askKnowledge(cl); err == nil {
					t.Error("the document is another: an error was to come")
				}
			}
		})
		all.Wait()
		if took := time.Since(began); took > 10*time.Minute {
			t.Errorf("20 calls, each answered at once, took %s", took)
		}
	})
}
