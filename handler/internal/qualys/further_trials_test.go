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

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
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

// A call waits for a trial. The trial ends well; meanwhile another process was refused with the
// same login, and the vault has the new one.
func TestFurtherStaleGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, memory, l := newAccount(), &safely{}, old()
		cl := a.process(memory, l)
		a.first = 0
		a.slow = 3 * time.Minute // the answer to "old" has begun
		var all sync.WaitGroup
		all.Go(func() { mustAsk(t, cl) })
		time.Sleep(time.Second)
		all.Go(func() { _ = askKnowledge(cl) }) // waits for the first
		time.Sleep(10 * time.Second)
		a.set(func() { a.good = "new" })
		l.mu.Lock()
		l.next = "new" // the vault has it
		l.mu.Unlock()
		_ = askKnowledge(a.process(memory, old())) // another process is refused
		all.Wait()
		if a.bad["old"] != 1 {
			t.Errorf("got %d bad logins with the old password in three minutes; want 1", a.bad["old"])
		}
	})
}

// The trial takes longer than others wait for it; meanwhile another process was refused.
func TestFurtherPatienceRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, memory := newAccount(), &safely{}
		cl := a.process(memory, old())
		a.slow = 8 * time.Minute // keep-alive comments
		var all sync.WaitGroup
		all.Go(func() { _, _, _ = ask(cl) })
		time.Sleep(time.Second)
		all.Go(func() { _ = askKnowledge(cl) }) // waits for five minutes
		time.Sleep(10 * time.Second)
		a.set(func() { a.good = "new" })
		_ = askKnowledge(a.process(memory, old())) // another process is refused
		all.Wait()
		if a.bad["old"] != 1 {
			t.Errorf("got %d bad logins in ten minutes; want 1", a.bad["old"])
		}
	})
}

// The same with a wait that Qualys has asked another process for.
func TestFurtherPatienceLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		calls, limited := 0, false
		h := http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			mu.Lock()
			calls++
			n, lim := calls, limited
			mu.Unlock()
			if lim {
				rw.Header().Set("Retry-After", "1800")
				rw.WriteHeader(http.StatusTooManyRequests)
				io.WriteString(rw, simpleReturn("1965", "x"))
				return
			}
			if n == 1 {
				time.Sleep(8 * time.Minute)
			}
			io.WriteString(rw, hosts(""))
		})
		memory := &safely{}
		cl := processAt(h, memory)
		var all sync.WaitGroup
		all.Go(func() { _, _, _ = ask(cl) })
		time.Sleep(time.Second)
		all.Go(func() { _ = askKnowledge(cl) })
		time.Sleep(10 * time.Second)
		mu.Lock()
		limited = true
		mu.Unlock()
		_, _, _ = ask(processAt(h, memory)) // told to wait for half an hour
		all.Wait()
		if calls != 2 {
			t.Errorf("%d calls; the second was told to wait for half an hour", calls)
		}
	})
}

// latent is a memory of which a read takes a while.
type latent struct {
	safely
	takes time.Duration
}

func (s *latent) Load(ctx context.Context) ([]byte, error) {
	select {
	case <-time.After(s.takes):
		return s.safely.Load(ctx)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// vault is credentials that take a while to be read anew.
type vault struct{ *login }

func (v vault) Reload(ctx context.Context) (bool, error) {
	time.Sleep(10 * time.Second)
	return v.login.Reload(ctx)
}

// Two calls wait for a trial, which ends well. The one that looks first is refused while the
// other looks: that is known when the other sends.
func TestFurtherRefusedDuringTheLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, memory := newAccount(), &latent{takes: time.Second}
		l := old()
		cl := a.process(memory, vault{l})
		a.slow = time.Minute
		var all sync.WaitGroup
		all.Go(func() { mustAsk(t, cl) })
		time.Sleep(3 * time.Second)
		all.Go(func() { _ = askKnowledge(cl) })
		all.Go(func() { _ = askHosts(cl) })
		time.Sleep(20 * time.Second)
		a.set(func() { a.good = "new" })
		l.mu.Lock()
		l.next = "new"
		l.mu.Unlock()
		all.Wait()
		if a.bad["old"] != 1 {
			t.Errorf("got %d bad logins; want 1", a.bad["old"])
		}
	})
}

// The storage is slow, not dead: what it knows of a refused login is there in 12 seconds.
func TestFurtherSlowMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, memory := newAccount(), &latent{}
		a.good = "new"
		_, _, _ = ask(a.process(memory, old()))
		memory.takes = 12 * time.Second
		for range 5 {
			time.Sleep(5 * time.Minute)
			_, _, _ = ask(a.process(memory, old()))
		}
		if a.bad["old"] != 1 {
			t.Errorf("got %d bad logins in half an hour; want 1", a.bad["old"])
		}
	})
}

func TestFurtherNoticesThatSayMore(t *testing.T) {
	const one = `<HOST_LIST><HOST><ID>41</ID><DETECTION_LIST><DETECTION><QID>7</QID></DETECTION></DETECTION_LIST></HOST></HOST_LIST>`
	for _, text := range []string{
		"This API version is deprecated: not all of it is returned.",
		"This API version has reached its end of support, and not all devices are shown. Please use version 6.0.",
		"Version 5.0 of this API is deprecated and returns some of your machines. Use version 6.0 for all of them.",
		"This API version is deprecated. Some computers were unavailable and are not shown.",
		"This API version is deprecated. Internal problem: some servers are not shown.",
		"This API version is no longer supported; systems added since 2026 are not shown.",
	} {
		warning := "<WARNING><TEXT>" + text + "</TEXT></WARNING>"
		if _, p, err := decode(t, page(warning+one)); err == nil && p.Doubt == "" {
			t.Errorf("%q: next %d, no doubt", text, p.Next)
		}
	}
}

// The storage hangs; a step of the check, which has 50 seconds (check.DefaultStepTime), asks Qualys,
// which is well.
func TestFurtherCheckWithAMemoryThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cl := newAccount().process(&hangs{}, old())
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second)
		defer cancel()
		if _, err := qualys.NewDetections(cl, ingest.VM.Schema).Page(ctx, record.Query{}, newRows()); err != nil {
			t.Errorf("Qualys is well, and the check says: %v", err)
		}
	})
}
