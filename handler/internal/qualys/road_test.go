package qualys_test

import (
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/qualys"
)

// throughProxy makes a client whose requests go through a proxy, as a new process would.
func throughProxy(t *testing.T, proxy, login string, memory *shared, now func() time.Time) *qualys.Client {
	t.Helper()
	u, err := url.Parse(strings.Replace(proxy, "://", "://"+login+"@", 1))
	if err != nil {
		t.Fatal(err)
	}
	choose := func(*http.Request) (*url.URL, error) { return u, nil }
	cl := &qualys.Client{Origin: &url.URL{Scheme: "https", Host: "qualysapi.qg9.invalid"}, Credentials: &loginOf, HTTP: qualys.NewHTTPClient(), UserAgent: "test", Memory: memory, Proxy: choose, Now: now}
	cl.HTTP.Transport.(*http.Transport).Proxy = choose
	return cl
}

var loginOf = login{user: "user", pass: "p"}

// A proxy that does not let a connection pass is asked seldom, and named, without its
// login.
func TestProxyThatRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		kind   qualys.Kind
		tries  int // of twelve processes
		advice string
	}{
		"wrong login":   {407, qualys.BadProxy, 1, "another login"},
		"not allowed":   {403, qualys.BadProxy, 1, "let the proxy pass requests to qualysapi.qg9.invalid"},
		"no such":       {404, qualys.BadProxy, 1, "let the proxy pass"},
		"no connection": {502, qualys.Unreachable, 12, "check HTTPS_PROXY"},
		"busy":          {503, qualys.Unreachable, 12, "check HTTPS_PROXY"},
	} {
		t.Run(name, func(t *testing.T) {
			tries := 0
			proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodConnect {
					tries++
				}
				w.WriteHeader(c.status)
			}))
			defer proxy.Close()
			now, memory := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC), &shared{}
			process := func(login string) error {
				_, _, err := ask(throughProxy(t, proxy.URL, login, memory, func() time.Time { return now }))
				return err
			}
			for range 12 {
				err := process("svc:canary-of-proxy")
				var e *qualys.Error
				if !errors.As(err, &e) || e.Kind != c.kind || e.Heavy() || !strings.Contains(err.Error(), "through the proxy "+proxy.URL) || strings.Contains(err.Error(), "canary") {
					t.Fatalf("got %v (heavy %v), want kind %d, and the proxy without its login", err, e.Heavy(), c.kind)
				}
				if tries == 1 && !strings.Contains(err.Error(), c.advice) && !strings.Contains(err.Error(), "tried again in") {
					t.Errorf("got %v, want advice %q", err, c.advice)
				}
				now = now.Add(5 * time.Minute)
			}
			if tries != c.tries {
				t.Errorf("tries = %d, want %d", tries, c.tries)
			}
			if strings.Contains(string(memory.doc), "canary") {
				t.Errorf("the state tells the login: %s", memory.doc)
			}
			before := tries
			if err := process("svc:another"); err == nil || tries != before+1 {
				t.Errorf("another login: %v, tries = %d, want %d", err, tries, before+1)
			}
		})
	}
}

// What fails before a connection stands is no answer of Qualys, whatever it is.
func TestRoadFailures(t *testing.T) {
	closed := httptest.NewServer(nil)
	closed.Close()
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, hosts("")) }))
	defer plain.Close()
	strange := httptest.NewUnstartedServer(nil)
	strange.Config.ErrorLog = log.New(io.Discard, "", 0)
	strange.StartTLS()
	defer strange.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	go func() {
		for {
			conn, err := silent.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	for name, origin := range map[string]string{
		"nobody listens":           closed.URL,
		"no TLS":                   strings.Replace(plain.URL, "http:", "https:", 1),
		"another's certificate":    strange.URL,
		"hangs up in the greeting": "https://" + silent.Addr().String(),
		"no such name":             "https://qualysapi.qg9.invalid",
		"no such port":             "https://127.0.0.1:70000",
	} {
		t.Run(name, func(t *testing.T) {
			u, err := url.Parse(origin)
			if err != nil {
				t.Fatal(err)
			}
			cl := &qualys.Client{Origin: u, Credentials: &loginOf, HTTP: qualys.NewHTTPClient(), UserAgent: "test"}
			_, _, err = ask(cl)
			var e *qualys.Error
			if !errors.As(err, &e) || e.Kind != qualys.Unreachable || e.Heavy() || !strings.Contains(err.Error(), "no connection") {
				t.Errorf("got %v, want an unreachable server", err)
			}
		})
	}
	t.Run("answered, then reset", func(t *testing.T) {
		cl, _ := client(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
		_, _, err := ask(cl)
		checkError(t, err, qualys.Unavailable, 0, "EOF")
	})
}
