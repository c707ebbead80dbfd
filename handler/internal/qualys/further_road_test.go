package qualys_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
)

// talks is a server that answers each connection, once it has sent something, with a
// text, and closes it.
func talks(t *testing.T, text string) (address string, tries *atomic.Int64) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tries = new(atomic.Int64)
	done := make(chan struct{})
	t.Cleanup(func() { listener.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			tries.Add(1)
			conn.SetDeadline(time.Now().Add(time.Second))
			if _, err := conn.Read(make([]byte, 4096)); err == nil {
				io.WriteString(conn, text)
			}
			conn.Close()
		}
	}()
	return listener.Addr().String(), tries
}

// Further ways of a proxy that lets no connection pass.
func TestFurtherProxies(t *testing.T) {
	const ok = "HTTP/1.1 200 Connection established\r\n\r\n"
	says := func(status string, header ...string) string {
		return "HTTP/1.1 " + status + "\r\n" + strings.Join(append(header, "Content-Length: 0"), "\r\n") + "\r\n\r\n"
	}
	for name, c := range map[string]struct {
		scheme, answer string
		refuses        bool // it is asked once in an hour
	}{
		"407 without a scheme":     {"http", says("407 Proxy Authentication Required"), true},
		"407 wants NTLM":           {"http", says("407 Proxy Authentication Required", "Proxy-Authenticate: NTLM"), true},
		"407 with a Retry-After":   {"http", says("407 Proxy Authentication Required", "Retry-After: 1"), true},
		"407 and odd words":        {"http", says("407 authenticationrequired"), true},
		"407 of HTTP/1.0":          {"http", "HTTP/1.0 407 Proxy Authentication Required\r\n\r\n", true},
		"407 without words":        {"http", "HTTP/1.1 407\r\n\r\n", true},
		"407, words are a number":  {"http", says("407 502"), true},
		"401":                      {"http", says("401 Unauthorized"), true},
		"403, words of 407":        {"http", says("403 Proxy Authentication Required"), true},
		"405":                      {"http", says("405 Method Not Allowed"), true},
		"451":                      {"http", says("451 Unavailable For Legal Reasons"), true},
		"301":                      {"http", says("301 Moved Permanently", "Location: https://login.example/"), false},
		"302":                      {"http", says("302 Found", "Location: http://login.example/?u=canary"), false},
		"511":                      {"http", says("511 Network Authentication Required"), false},
		"500":                      {"http", says("500 Internal Server Error"), false},
		"504":                      {"http", says("504 Gateway Timeout"), false},
		"408":                      {"http", says("408 Request Timeout"), false},
		"closes at once":           {"http", "", false},
		"garbage":                  {"http", "garbage\r\n\r\n", false},
		"half a status line":       {"http", "HTTP/1.1 4", false},
		"200, then closes":         {"http", ok, false},
		"200, then garbage":        {"http", ok + strings.Repeat("garbage", 9), false},
		"200, then HTML":           {"http", ok + "<html>blocked</html>", false},
		"200, then an HTTP answer": {"http", ok + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false},
		"200, then a TLS alert":    {"http", ok + "\x15\x03\x03\x00\x02\x02\x28", false},
		"200 of 204":               {"http", says("204 No Content"), false},
		"https, and is none":       {"https", ok, false},
		"socks5, and speaks HTTP":  {"socks5", says("400 Bad Request"), false},
		"socks5 wants no login":    {"socks5", "\x05\xff", false},
		"socks5 refuses the login": {"socks5", "\x05\x02\x01\x01", false},
		"socks5 closes":            {"socks5", "", false},
		"socks5h closes":           {"socks5h", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			address, tries := talks(t, c.answer)
			now, memory := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC), &shared{}
			for n := range 6 {
				_, _, err := ask(throughProxy(t, c.scheme+"://"+address, "svc:canary-of-proxy", memory, func() time.Time { return now }))
				var e *qualys.Error
				if !errors.As(err, &e) || e.Kind != qualys.BadProxy && e.Kind != qualys.Unreachable || e.Heavy() {
					t.Fatalf("process %d: got %v, want a road that does not stand", n+1, err)
				}
				if !strings.Contains(err.Error(), "through the proxy "+c.scheme+"://"+address) || strings.Contains(err.Error(), "canary") || strings.Contains(string(memory.doc), "canary") {
					t.Errorf("process %d: got %v, %s; want the proxy without its login", n+1, err, memory.doc)
				}
				now = now.Add(9 * time.Minute)
			}
			if got := tries.Load(); c.refuses && got != 1 || got > 6 {
				t.Errorf("got %d tries of 6 processes in 54 minutes, want one: %v, and 6 at most", got, c.refuses)
			}
		})
	}
}

// A proxy that cannot be reached is named as well.
func TestFurtherProxiesThatAreNotThere(t *testing.T) {
	closed := httptest.NewServer(nil)
	closed.Close()
	for name, proxy := range map[string]string{"nobody listens": closed.URL, "no such name": "http://proxy.qg9.invalid:3128", "IPv6, nobody listens": "http://[::1]:1", "port 0": "http://127.0.0.1:0", "socks5, nobody listens": strings.Replace(closed.URL, "http", "socks5", 1)} {
		t.Run(name, func(t *testing.T) {
			_, _, err := ask(throughProxy(t, proxy, "svc:canary-of-proxy", &shared{}, time.Now))
			var e *qualys.Error
			if !errors.As(err, &e) || e.Kind != qualys.Unreachable || e.Heavy() || !strings.Contains(err.Error(), "through the proxy "+proxy) || strings.Contains(err.Error(), "canary") {
				t.Errorf("got %v, want the proxy without its login", err)
			}
		})
	}
}

// However a proxy's login is spelt, none of it is told.
func TestFurtherProxyLoginsAreNotTold(t *testing.T) {
	for name, login := range map[string]string{"password": "svc:canary-x", "only a user": "canary-x", "empty user": ":canary-x", "percent-encoded": "DOM%5Csvc:canary%20x%40%3A", "two colons": "svc:canary:x", "long": "svc:" + strings.Repeat("canary", 200)} {
		t.Run(name, func(t *testing.T) {
			for _, status := range []string{"407 Proxy Authentication Required", "403 Forbidden", "502 Bad Gateway"} {
				address, _ := talks(t, "HTTP/1.1 "+status+"\r\nContent-Length: 0\r\n\r\n")
				memory := &shared{}
				_, _, err := ask(throughProxy(t, "http://"+address, login, memory, time.Now))
				rests, _ := qualys.Rests(memory.doc, time.Now())
				for _, text := range []string{err.Error(), string(memory.doc)} {
					if strings.Contains(text, "canary") || strings.Contains(text, "Y2FuYXJ5") {
						t.Errorf("%s: the login is told: %s, %+v", status, text, rests)
					}
				}
				if !strings.Contains(err.Error(), address) {
					t.Errorf("%s: got %v, want the proxy", status, err)
				}
			}
		})
	}
}

// tunnel is a proxy that lets connections pass to a server of Qualys, when it is told to.
func tunnel(t *testing.T, answer func(try int) int) (proxy string, cl func(memory *shared, now func() time.Time) *qualys.Client) {
	t.Helper()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, hosts("")) }))
	t.Cleanup(server.Close)
	try := 0
	through := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		try++
		if status := answer(try); status != 200 {
			w.WriteHeader(status)
			return
		}
		there, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		defer there.Close()
		here, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer here.Close()
		io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(there, here); there.Close() }()
		_, _ = io.Copy(here, there)
	}))
	t.Cleanup(through.Close)
	return through.URL, func(memory *shared, now func() time.Time) *qualys.Client {
		cl := throughProxy(t, through.URL, "svc:canary-x", memory, now)
		config := server.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
		config.ServerName = "example.com"
		cl.HTTP.Transport.(*http.Transport).TLSClientConfig = config
		t.Cleanup(cl.HTTP.CloseIdleConnections)
		return cl
	}
}

// A proxy that refuses, and then does not, is asked again when the rest is over, and all
// is forgotten.
func TestFurtherProxyThatIsWellAgain(t *testing.T) {
	for name, c := range map[string]struct {
		answers []int // then 200
		after   time.Duration
	}{
		"407 once": {[]int{407}, 61 * time.Minute}, "403 once": {[]int{403}, 61 * time.Minute}, "502 once": {[]int{502}, 0}, "200": {nil, 0},
		"407 twice": {[]int{407, 407}, 61*time.Minute + 125*time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			_, process := tunnel(t, func(try int) int {
				if try <= len(c.answers) {
					return c.answers[try-1]
				}
				return 200
			})
			now, memory := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC), &shared{}
			clock := func() time.Time { return now }
			for end := now.Add(c.after); now.Before(end); now = now.Add(10 * time.Minute) {
				_, _, _ = ask(process(memory, clock))
			}
			if len(c.answers) == 1 && c.after == 0 {
				_, _, _ = ask(process(memory, clock))
			}
			if _, _, err := ask(process(memory, clock)); err != nil {
				t.Fatalf("after %s: got %v, want none", c.after, err)
			}
			if rests, err := qualys.Rests(memory.doc, now); err != nil || len(rests) != 0 {
				t.Errorf("got rests %+v, %v; want none", rests, err)
			}
		})
	}
}

// A rest of the login to Qualys is told as that, and one of the proxy as that, where both
// are wrong in turn.
func TestFurtherProxyRestIsNoLoginsRest(t *testing.T) {
	address, _ := talks(t, "HTTP/1.1 407 x\r\nContent-Length: 0\r\n\r\n")
	memory, now := &shared{}, time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	_, _, _ = ask(throughProxy(t, "http://"+address, "svc:x", memory, clock))
	w := newAccountWorld(t, wantPassword("p"))
	w.memory = memory
	if err := w.process("p"); err != nil {
		t.Errorf("without the proxy: got %v, want none", err)
	}
	_, process := tunnel(t, func(int) int { return 200 })
	if _, _, err := ask(process(memory, clock)); err != nil {
		t.Errorf("through another proxy: got %v, want none", err)
	}
	rests, err := qualys.Rests(memory.doc, now)
	if err != nil || len(rests) > 1 || len(rests) == 1 && rests[0].Of != "proxy" {
		t.Errorf("got rests %+v, %v; want that of the proxy at most", rests, err)
	}
}

// A proxy that hangs is given up, is no answer of Qualys, and no smaller page is asked
// for.
func TestFurtherProxyThatHangs(t *testing.T) {
	for name, answer := range map[string]string{"at CONNECT": "", "in the status line": "HTTP/1.1 2", "in the header": "HTTP/1.1 200 OK\r\nX: ", "behind 200": "HTTP/1.1 200 OK\r\n\r\n"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				proxy := &url.URL{Scheme: "http", Host: "proxy.example:3128", User: url.UserPassword("svc", "canary-x")}
				choose := func(*http.Request) (*url.URL, error) { return proxy, nil }
				cl := &qualys.Client{Origin: &url.URL{Scheme: "https", Host: "qualysapi.qg9.invalid"}, Credentials: &loginOf, HTTP: qualys.NewHTTPClient(), UserAgent: "test", Proxy: choose, Memory: &shared{}}
				transport := cl.HTTP.Transport.(*http.Transport)
				transport.Proxy = choose
				transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
					here, there := net.Pipe()
					go func() {
						defer there.Close()
						r := bufio.NewReader(there)
						if _, err := http.ReadRequest(r); err != nil {
							return
						}
						io.WriteString(there, answer)
						_, _ = io.Copy(io.Discard, r) // until it is given up
					}()
					return here, nil
				}
				began := time.Now()
				_, err := qualys.NewDetections(cl, ingest.VM.Schema).Page(context.Background(), record.Query{}, newRows())
				cl.HTTP.CloseIdleConnections()
				var e *qualys.Error
				if !errors.As(err, &e) || e.Kind != qualys.Unreachable || e.Heavy() || !strings.Contains(err.Error(), "through the proxy http://proxy.example:3128") || strings.Contains(err.Error(), "canary") {
					t.Errorf("got %v, want the proxy without its login", err)
				}
				if took := time.Since(began); took > 6*time.Minute {
					t.Errorf("took %s, want it given up soon", took)
				}
			})
		})
	}
}
