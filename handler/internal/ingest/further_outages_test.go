package ingest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
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
)

// Every answer is slow, or wrong in one way: nobody is isolated for it, and the cause
// comes first.
func TestFurtherOutages(t *testing.T) {
	drips := func(begin, text string) func(http.ResponseWriter, *http.Request, string) {
		return func(w http.ResponseWriter, r *http.Request, _ string) { io.WriteString(w, begin); drip(w, r, text) }
	}
	says := func(status int, body string, header ...string) func(http.ResponseWriter, *http.Request, string) {
		return func(w http.ResponseWriter, _ *http.Request, _ string) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}
	change := func(change func(doc string) string) func(http.ResponseWriter, *http.Request, string) {
		return func(w http.ResponseWriter, _ *http.Request, doc string) { io.WriteString(w, change(doc)) }
	}
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request, doc string)
		cause  string // told in the first 250 letters
	}{
		"drips from the first byte":   {drips("", "\n"), ""},
		"drips in the DOCTYPE":        {drips("<!DOCTYPE X [", "<!-- x -->"), ""},
		"drips in front of the hosts": {drips("<HOST_LIST_VM_DETECTION_OUTPUT><RESPONSE><DATETIME>2026-11-01T12:00:00Z</DATETIME>", "<!-- x -->"), ""},
		"never begins":                {func(_ http.ResponseWriter, r *http.Request, _ string) { <-r.Context().Done() }, ""},
		"504 after 20 minutes": {func(w http.ResponseWriter, r *http.Request, _ string) {
			slownesses["fails after 80 % of the budget"](w, r, "", 0)
		}, "not come whole"},
		"502 at once":           {says(502, ""), "502"},
		"HTML of a proxy":       {says(200, "<html><body>log in</body></html>", "Content-Type", "text/html"), "HTML"},
		"another encoding":      {change(func(doc string) string { return strings.Replace(doc, "UTF-8", "ISO-2022-JP", 1) }), "ISO-2022-JP"},
		"cut at 700 bytes":      {change(func(doc string) string { return doc[:min(700, len(doc))] }), ""},
		"cut in each host":      {change(func(doc string) string { before, _, _ := strings.Cut(doc, "</ID>"); return before }), ""},
		"an error in each host": {change(func(doc string) string { return strings.ReplaceAll(doc, "<IP>", "<ERROR>database is down</ERROR><IP>") }), "database is down"},
		"an error in the list": {change(func(doc string) string {
			return strings.Replace(doc, "<HOST_LIST>", "<HOST_LIST><ERROR>database is down</ERROR>", 1)
		}), "database is down"},
		"a gateway's JSON": {says(200, `{"error":"upstream"}`, "Content-Type", "application/json"), ""},
		"another root":     {says(200, `<ServiceResponse><responseCode>INTERNAL</responseCode></ServiceResponse>`), "INTERNAL"},
	} {
		for _, page := range []int{10, 1000}[len(name)%2:][:1] {
			t.Run(fmt.Sprintf("%s, pages of %d", name, page), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					w := newVirtualWorld(t, 40, 3)
					w.page, w.budget = page, 25*time.Minute
					w.mustComplete()
					time.Sleep(24 * time.Hour)
					w.before = func(rw http.ResponseWriter, r *http.Request) bool {
						if !strings.HasSuffix(r.URL.Path, "/detection/") {
							return false
						}
						rw.Header().Set("Date", w.now().UTC().Format(http.TimeFormat))
						answer := httptest.NewRecorder()
						w.qualys.ServeHTTP(answer, r)
						if answer.Code != http.StatusOK { // calls count, whatever is answered
							rw.WriteHeader(answer.Code)
							io.WriteString(rw, answer.Body.String())
							return true
						}
						c.answer(rw, r, answer.Body.String())
						return true
					}
					for n := range 6 {
						report, err := w.do()
						told := strings.ToValidUTF8(report.Reason[:min(250, len(report.Reason))], "")
						if report.Outcome == ingest.Complete {
							t.Fatalf("run %d: complete, with no answer", n+1)
						}
						if report.IsolatedTotal > 0 {
							t.Fatalf("run %d: got %s, %v, isolated %d, such as host %d; want nobody isolated", n+1, report.Outcome, err, report.IsolatedTotal, report.Isolated[0].ID)
						}
						if strings.Contains(told, "by themselves") || report.Outcome != ingest.Waiting && n > 3 && !strings.Contains(told, c.cause) {
							t.Fatalf("run %d: got %q, want %q first", n+1, report.Reason, c.cause)
						}
						if took := report.Ended.Sub(report.Started); took > w.budget+3*time.Minute {
							t.Errorf("run %d: took %s of %s", n+1, took, w.budget)
						}
						time.Sleep(5 * time.Minute)
					}
					w.before = nil
					if runs, report := w.ticks(2); report.IsolatedTotal > 0 {
						t.Errorf("when all is well again: isolated %+v after %d runs, want none", report.Isolated, runs)
					}
					w.wantHealed()
				})
			})
		}
	}
}

// Two of five hosts are bad, all in one way.
func TestFurtherTwoOfFiveAreBad(t *testing.T) {
	for name, c := range map[string]struct {
		hosts int
		how   slowness
	}{
		"ill-formed": {60, func(w http.ResponseWriter, _ *http.Request, doc string, at int) {
			io.WriteString(w, doc[:at+30]+"</WRONG>")
		}},
		"504 at once":          {300, func(w http.ResponseWriter, _ *http.Request, _ string, _ int) { w.WriteHeader(504) }},
		"cut":                  {60, func(w http.ResponseWriter, _ *http.Request, doc string, at int) { io.WriteString(w, doc[:at+40]) }},
		"drips in a comment":   {60, slownesses["drips in a comment"]},
		"never begins":         {60, slownesses["never begins"]},
		"504 after 20 minutes": {60, slownesses["fails after 80 % of the budget"]},
	} {
		t.Run(fmt.Sprintf("%s, of %d", name, c.hosts), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, c.hosts, 1)
				w.page, w.budget = 1000, 25*time.Minute
				ill, ids := map[uint64]slowness{}, []uint64{}
				for n, id := range w.hostIDs() {
					if n%5 == 1 || n%5 == 2 {
						ill[id] = c.how
						ids = append(ids, id)
					}
				}
				w.slow(ill)
				others := w.findingsBut(ids...)
				runs, report := w.ticks(300)
				t.Logf("%d runs", runs)
				if report.IsolatedTotal != len(ids) || len(blames(w.checkpoint(), ids...)) > 0 {
					t.Errorf("isolated = %d, want %d", report.IsolatedTotal, len(ids))
				}
				w.wantFindings(others)
				w.wantHealed()
			})
		})
	}
}

// A road on which no connection to Qualys stands ends a run after few tries, names the
// proxy without its login, and blames no host.
func TestFurtherRunsOnABadRoad(t *testing.T) {
	const after200 = "HTTP/1.1 200 Connection established\r\n\r\n"
	for name, answer := range map[string]string{
		"407":                    "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n",
		"403 and HTML":           "HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<html></html>",
		"301":                    "HTTP/1.1 301 Moved Permanently\r\nLocation: https://login.example/\r\nContent-Length: 0\r\n\r\n",
		"302":                    "HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\nContent-Length: 0\r\n\r\n",
		"502":                    "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
		"504":                    "HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\n\r\n",
		"429":                    "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 600000\r\nContent-Length: 0\r\n\r\n",
		"204":                    "HTTP/1.1 204 No Content\r\n\r\n",
		"closes at once":         "",
		"garbage":                "\x00\x01garbage\r\n\r\n",
		"SSH":                    "SSH-2.0-OpenSSH_9.6\r\n",
		"200, then closes":       after200,
		"200, then garbage":      after200 + strings.Repeat("garbage ", 20),
		"200, then HTML":         after200 + "<html><body>blocked</body></html>",
		"200, then an answer":    after200 + "HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\n\r\n<html>blocked</html>",
		"200 with HTML":          "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<html></html>",
		"200, then an alert":     after200 + "\x15\x03\x03\x00\x02\x02\x28",
		"header that never ends": "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 40, 3)
			w.budget = 25 * time.Minute
			w.mustComplete()
			var tries atomic.Int64
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			served := make(chan struct{})
			defer func() { listener.Close(); <-served }()
			go func() {
				defer close(served)
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					tries.Add(1)
					if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
						io.WriteString(conn, answer)
					}
					conn.Close()
				}
			}()
			proxy, err := url.Parse("http://svc:canary-of-proxy@" + listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			choose := func(*http.Request) (*url.URL, error) { return proxy, nil }
			for n := range 3 {
				w.clock.advance(5 * time.Minute)
				tries.Store(0)
				cl := &qualys.Client{Origin: &url.URL{Scheme: "https", Host: "qualysapi.qg9.invalid"}, Credentials: login{}, HTTP: qualys.NewHTTPClient(), UserAgent: "test", Now: w.clock.Now, Proxy: choose}
				cl.HTTP.Transport.(*http.Transport).Proxy = choose
				r := w.run()
				r.Source = qualys.NewDetections(cl, ingest.VM.Schema)
				report, err := w.finish(context.Background(), r)
				cl.HTTP.CloseIdleConnections()
				if err == nil || report.Outcome != ingest.Failed || len(w.checkpoint().Isolated) > 0 {
					t.Fatalf("run %d: got %s, %v, isolated %+v; want a failure, and none", n+1, report.Outcome, err, w.checkpoint().Isolated)
				}
				if !strings.Contains(err.Error(), "through the proxy http://"+listener.Addr().String()) || strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), "host ") {
					t.Errorf("run %d: got %v; want the proxy without its login", n+1, err)
				}
				if n := tries.Load(); n > 6 || n == 0 || name[0] == '4' && n > 1 {
					t.Errorf("run %d: got %d tries, want few", n+1, tries.Load())
				}
				var e *qualys.Error
				if !errors.As(err, &e) || e.Kind != qualys.BadProxy && e.Kind != qualys.Unreachable {
					t.Errorf("run %d: got %v, want a kind of its own", n+1, err)
				}
			}
		})
	}
}
