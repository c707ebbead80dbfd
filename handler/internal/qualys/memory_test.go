package qualys_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
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

// shared is a memory that processes share.
type shared struct {
	doc   []byte
	err   error
	saves int
}

func (m *shared) Load(context.Context) ([]byte, error) { return m.doc, m.err }

func (m *shared) Update(_ context.Context, change func(doc []byte) ([]byte, error)) error {
	doc, err := change(m.doc)
	if err != nil {
		return err
	}
	m.saves++
	m.doc = doc
	return m.err
}

// accountWorld is a Qualys server, its clock, and what processes share.
type accountWorld struct {
	t      *testing.T
	now    time.Time
	memory *shared
	server *httptest.Server
	calls  int
}

func newAccountWorld(t *testing.T, answer http.HandlerFunc) *accountWorld {
	w := &accountWorld{t: t, now: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC), memory: &shared{}}
	w.server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.calls++
		answer(rw, r)
	}))
	t.Cleanup(w.server.Close)
	return w
}

// process asks once, as a new process would.
func (w *accountWorld) process(password string) error {
	w.t.Helper()
	origin, err := url.Parse(w.server.URL)
	if err != nil {
		w.t.Fatal(err)
	}
	cl := &qualys.Client{Origin: origin, Credentials: &login{user: "user", pass: password}, HTTP: qualys.NewHTTPClient(), UserAgent: "test", Now: func() time.Time { return w.now }, Memory: w.memory}
	_, _, err = ask(cl)
	return err
}

// wantPassword answers as Qualys does.
func wantPassword(password string) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		if _, got, _ := r.BasicAuth(); got != password {
			rw.WriteHeader(http.StatusUnauthorized)
			io.WriteString(rw, "<SIMPLE_RETURN><RESPONSE><CODE>2000</CODE><TEXT>Bad Login/Password</TEXT></RESPONSE></SIMPLE_RETURN>")
			return
		}
		io.WriteString(rw, hosts(""))
	}
}

// Twelve processes in a row with a wrong password are one login; a new secret is one
// more, at once.
func TestWrongPasswordOverProcesses(t *testing.T) {
	w := newAccountWorld(t, wantPassword("right-canary"))
	for n := range 12 {
		err := w.process("wrong-canary")
		var e *qualys.Error
		if !errors.As(err, &e) || e.Kind != qualys.BadLogin {
			t.Fatalf("process %d: %v, want a bad login", n+1, err)
		}
		w.now = w.now.Add(4 * time.Minute)
	}
	if w.calls != 1 {
		t.Errorf("logins = %d, want 1", w.calls)
	}
	if doc := string(w.memory.doc); strings.Contains(doc, "canary") {
		t.Errorf("the state tells a password: %s", doc)
	}
	rests, err := qualys.Rests(w.memory.doc, w.now.Add(-time.Hour))
	if err != nil || len(rests) != 1 || rests[0].Of != "login" || !strings.Contains(rests[0].Reason, "2000") {
		t.Errorf("rests = %+v, %v, want one of the login", rests, err)
	}
	if err := w.process("right-canary"); err != nil || w.calls != 2 {
		t.Errorf("the new secret: %v, logins = %d, want 2", err, w.calls)
	}
	if err := w.process("wrong-canary"); err == nil || w.calls != 2 {
		t.Errorf("the old secret again: %v, logins = %d, want 2: it still rests", err, w.calls)
	}
}

// A refused login is tried after an hour, then after two, and so on.
func TestRefusedLoginRestsLonger(t *testing.T) {
	w := newAccountWorld(t, wantPassword("right"))
	var tried []time.Duration
	began := w.now
	for w.now.Sub(began) < 48*time.Hour {
		before := w.calls
		if err := w.process("wrong"); err == nil {
			t.Fatal("no error")
		}
		if w.calls > before {
			tried = append(tried, w.now.Sub(began).Round(time.Hour))
		}
		w.now = w.now.Add(time.Hour)
	}
	if len(tried) != 6 { // after 0, 1, 3, 7, 15 and 31 hours
		t.Errorf("tried after %v, want six tries in two days", tried)
	}
	w.server.Config.Handler = wantPassword("wrong") // it is the right one now
	w.now = w.now.Add(48 * time.Hour)
	if err := w.process("wrong"); err != nil {
		t.Fatal(err)
	}
	if rests, err := qualys.Rests(w.memory.doc, w.now); err != nil || len(rests) != 0 || strings.Contains(string(w.memory.doc), "mark") {
		t.Errorf("rests = %+v, %v, want none: %s", rests, err, w.memory.doc)
	}
}

// A limit that one process has met holds for the next, and none for more than an hour
// and five minutes, whatever is said.
func TestWaitsOverProcesses(t *testing.T) {
	const rate = "<SIMPLE_RETURN><RESPONSE><CODE>1965</CODE><TEXT>wait</TEXT></RESPONSE></SIMPLE_RETURN>"
	for name, c := range map[string]struct {
		status int
		header [2]string
		body   string
		rest   time.Duration
	}{
		"rate, by header":           {409, [2]string{"X-RateLimit-ToWait-Sec", "1800"}, rate, 30 * time.Minute},
		"rate, 600,000 seconds":     {409, [2]string{"X-RateLimit-ToWait-Sec", "600000"}, rate, 65 * time.Minute},
		"429 for a day":             {429, [2]string{"Retry-After", "86400"}, "", 65 * time.Minute},
		"429 until the next year":   {429, [2]string{"Retry-After", "Fri, 01 Jan 2027 00:00:00 GMT"}, "", 65 * time.Minute},
		"maintenance of 40 minutes": {503, [2]string{"Retry-After", "2400"}, "", 40 * time.Minute},
		"maintenance of a month":    {503, [2]string{"Retry-After", "2592000"}, "", 65 * time.Minute},
		"the last call of a window": {200, [2]string{"X-RateLimit-ToWait-Sec", "1200"}, hosts(""), 20 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			w := newAccountWorld(t, nil)
			w.now = w.now.Add(700 * time.Millisecond) // the state has whole seconds
			w.server.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
				if w.calls++; w.calls > 1 {
					io.WriteString(rw, hosts(""))
					return
				}
				rw.Header().Set("Date", w.now.Format(http.TimeFormat))
				rw.Header().Set(c.header[0], c.header[1])
				rw.Header().Set("X-RateLimit-Remaining", "0")
				rw.WriteHeader(c.status)
				io.WriteString(rw, c.body)
			})
			if err := w.process("p"); (err == nil) != (c.status == 200) {
				t.Fatalf("first process: %v", err)
			}
			w.now = w.now.Add(c.rest - 100*time.Millisecond)
			if err := w.process("p"); err == nil || w.calls != 1 {
				t.Errorf("a little early: %v, calls = %d, want 1", err, w.calls)
			}
			w.now = w.now.Add(time.Second)
			if err := w.process("p"); err != nil || w.calls != 2 {
				t.Errorf("a little late: %v, calls = %d, want 2", err, w.calls)
			}
		})
	}
}

// What stands in the state cannot silence the connector for longer, and a state that
// cannot be read does not stop it.
func TestMemoryThatIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		memory shared
		calls  int
	}{
		"for a year":      {shared{doc: []byte(`{"version":1,"rests":{"all":{"until":"2027-11-01T12:00:00Z","kind":"limit"}}}`)}, 0},
		"damaged":         {shared{doc: []byte(`{"version":1,"rests":`)}, 1},
		"of a newer one":  {shared{doc: []byte(`{"version":9,"rests":[]}`)}, 1},
		"an unknown kind": {shared{doc: []byte(`{"version":1,"rests":{"all":{"until":"2026-11-01T12:30:00Z","kind":"moon"}}}`)}, 0},
		"not readable":    {shared{err: errors.New("storage is down")}, 1},
		"over":            {shared{doc: []byte(`{"version":1,"rests":{"all":{"until":"2026-11-01T11:30:00Z","kind":"limit"}}}`)}, 1},
		"another's login": {shared{doc: []byte(`{"version":1,"logins":[{"mark":"0000","salt":"x","times":3,"until":"2026-11-02T12:00:00Z"}]}`)}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newAccountWorld(t, wantPassword("p"))
			w.memory = &c.memory
			err := w.process("p")
			if w.calls != c.calls || (err == nil) != (c.calls == 1) {
				t.Errorf("calls = %d, error %v, want %d calls", w.calls, err, c.calls)
			}
			w.now = w.now.Add(66 * time.Minute)
			w.memory.err = nil
			if err := w.process("p"); name == "for a year" && err != nil {
				t.Errorf("66 minutes later: %v, want an answer", err)
			}
		})
	}
}

// Nothing is written where nothing was met.
func TestMemoryIsWrittenSeldom(t *testing.T) {
	w := newAccountWorld(t, wantPassword("p"))
	for range 5 {
		if err := w.process("p"); err != nil {
			t.Fatal(err)
		}
	}
	if w.memory.saves != 0 {
		t.Errorf("saves = %d, want none", w.memory.saves)
	}
	for range 5 {
		_ = w.process("wrong")
	}
	if w.memory.saves != 1 || !json.Valid(w.memory.doc) {
		t.Errorf("saves = %d, want 1: %s", w.memory.saves, w.memory.doc)
	}
}

// Two processes that are refused at a time, each with a password of its own: both
// passwords rest for a third.
func TestTwoLoginsAreRefusedAtATime(t *testing.T) {
	memory, now := &safely{}, time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	w := newAccountWorld(t, nil)
	var logins atomic.Int32
	var both sync.WaitGroup
	both.Add(2)
	w.server.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if logins.Add(1) <= 2 { // each has read the memory when the other is refused
			both.Done()
			both.Wait()
		}
		wantPassword("right")(rw, r)
	})
	process := func(password string) error {
		cl := w.client("user", password)
		cl.Memory, cl.Now = memory, func() time.Time { return now }
		_, _, err := ask(cl)
		return err
	}
	var done sync.WaitGroup
	for _, password := range []string{"one", "two"} {
		done.Go(func() { _ = process(password) })
	}
	done.Wait()
	for _, password := range []string{"one", "two"} {
		if err := process(password); err == nil {
			t.Errorf("%s: got an answer, want a refusal", password)
		}
	}
	if n := logins.Load(); n != 2 {
		t.Errorf("got %d logins, want 2", n)
	}
	if err := process("right"); err != nil {
		t.Error(err)
	}
}

// Calls for several datasets at a time, as of two timers at a full hour: one of them
// tries a login that is not known to be good, and what it hears holds for all.
func TestCallsAtATimeAreOneLogin(t *testing.T) {
	for _, secret := range []string{"wrong", "right"} {
		w := newAccountWorld(t, nil)
		var logins atomic.Int32
		w.server.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if _, p, _ := r.BasicAuth(); p != "right" {
				time.Sleep(50 * time.Millisecond) // the others are there by then
				logins.Add(1)
			}
			wantPassword("right")(rw, r)
		})
		cl := w.client("user", secret)
		cl.Memory = &safely{}
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() { _, _, _ = ask(cl) })
			all.Go(func() { _ = askHosts(cl) })
		}
		all.Wait()
		if want := map[string]int32{"wrong": 1}[secret]; logins.Load() != want {
			t.Errorf("%s: got %d bad logins, want %d", secret, logins.Load(), want)
		}
	}
}

// Processes whose calls were under way together have met one refusal: it rests for an
// hour, not for two.
func TestRefusalsUnderWayTogether(t *testing.T) {
	memory, now := &safely{}, time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	w := newAccountWorld(t, nil)
	var both sync.WaitGroup
	both.Add(2)
	w.server.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		both.Done()
		both.Wait()
		wantPassword("right")(rw, r)
	})
	var done sync.WaitGroup
	for range 2 {
		done.Go(func() {
			cl := w.client("user", "wrong")
			cl.Memory, cl.Now = memory, func() time.Time { return now }
			_, _, _ = ask(cl)
		})
	}
	done.Wait()
	rests, err := qualys.Rests(memory.doc, now)
	if err != nil || len(rests) != 1 || rests[0].Until.Sub(now) != time.Hour {
		t.Errorf("got %+v, %v, want an hour", rests, err)
	}
}

// A refusal is heard by its status, although its text never comes, and although the page
// has no time left.
func TestRefusalWhoseTextNeverComes(t *testing.T) {
	for name, patience := range map[string]time.Duration{"a patient call": time.Hour, "a call that ends first": 5 * time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				logins := 0
				hang := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
					logins++
					rw.WriteHeader(http.StatusUnauthorized)
					io.WriteString(rw, "<SIMPLE_RETURN><RESPONSE><CODE>20")
					<-r.Context().Done()
				})
				memory := &shared{}
				for range 3 {
					cl := &qualys.Client{Origin: &url.URL{Scheme: "https", Host: "q"}, Credentials: &login{user: "user", pass: "p"}, UserAgent: "test", Memory: memory}
					cl.HTTP = &http.Client{Transport: simulator.Transport{Handler: hang}}
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					_, err := qualys.NewDetections(cl, ingest.VM.Schema).IDs(ctx, record.Query{}, 1, func(record.Tally) {})
					cancel()
					if err == nil {
						t.Error("got an answer")
					}
				}
				if logins != 1 {
					t.Errorf("got %d logins of 3 processes, want 1", logins)
				}
			})
		})
	}
}

// A password that has changed is refused once: processes that still have the old one hear
// of it before they try.
func TestRotationOverProcesses(t *testing.T) {
	w := newAccountWorld(t, nil)
	right, bad := "old", 0
	w.server.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if _, p, _ := r.BasicAuth(); p != right {
			bad++
		}
		wantPassword(right)(rw, r)
	})
	memory := &safely{}
	clients, logins := make([]*qualys.Client, 4), make([]*login, 4)
	for i := range clients {
		logins[i] = &login{user: "user", pass: "old"}
		clients[i] = w.client("user", "old")
		clients[i].Credentials, clients[i].Memory, clients[i].Now = logins[i], memory, func() time.Time { return w.now }
		if _, _, err := ask(clients[i]); err != nil {
			t.Fatal(err)
		}
	}
	w.now = w.now.Add(time.Hour)
	right = "new"
	for i, cl := range clients {
		logins[i].next = "new"
		if _, _, err := ask(cl); err != nil {
			t.Error(err)
		}
	}
	if bad != 1 {
		t.Errorf("got %d bad logins of 4 processes, want 1", bad)
	}
}

// A refusal that takes its time is one login, too, whatever waits for it.
func TestSlowRefusals(t *testing.T) {
	for _, slow := range []time.Duration{5 * time.Second, 45 * time.Second, 100 * time.Second, 4 * time.Minute} {
		t.Run(slow.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var logins atomic.Int32
				h := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
					logins.Add(1)
					time.Sleep(slow)
					wantPassword("right-canary")(rw, r)
				})
				memory := &safely{}
				for range 3 {
					cl := &qualys.Client{Origin: &url.URL{Scheme: "https", Host: "q"}, Credentials: &login{user: "user", pass: "wrong-canary"}, UserAgent: "test", Memory: memory}
					cl.HTTP = &http.Client{Transport: simulator.Transport{Handler: h}}
					var all sync.WaitGroup
					all.Go(func() { _, _, _ = ask(cl) })
					all.Go(func() { _ = askHosts(cl) })
					all.Go(func() {
						_ = qualys.NewKnowledgeBase(cl, ingest.KB.Schema).Permitted(t.Context(), func(record.Tally) {})
					})
					all.Wait()
					time.Sleep(5 * time.Minute)
				}
				if n := logins.Load(); n != 1 {
					t.Errorf("got %d logins; want 1", n)
				}
			})
		})
	}
}

// slowLogin is a login that takes its time to be read anew.
type slowLogin struct{ login }

func (l *slowLogin) Reload(ctx context.Context) (bool, error) {
	select {
	case <-time.After(8 * time.Second):
	case <-ctx.Done():
	}
	return false, nil
}

// A login that was good, and is refused, is one bad login, however long it takes to be read
// anew: calls that begin meanwhile wait.
func TestRefusedWhileItIsReadAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var password atomic.Value
		var bad atomic.Int32
		password.Store("before-canary")
		h := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if _, p, _ := r.BasicAuth(); p != password.Load() {
				bad.Add(1)
			}
			wantPassword(password.Load().(string))(rw, r)
		})
		cl := &qualys.Client{Origin: &url.URL{Scheme: "https", Host: "q"}, Credentials: &slowLogin{login{user: "user", pass: "before-canary"}}, UserAgent: "test", Memory: &safely{}}
		cl.HTTP = &http.Client{Transport: simulator.Transport{Handler: h}}
		if _, _, err := ask(cl); err != nil {
			t.Fatal(err)
		}
		password.Store("behind-canary")
		var all sync.WaitGroup
		for n, call := range []func(){ // each of an endpoint of its own
			func() { _ = askHosts(cl) },
			func() { _, _, _ = ask(cl) },
			func() {
				_ = qualys.NewKnowledgeBase(cl, ingest.KB.Schema).Permitted(t.Context(), func(record.Tally) {})
			},
		} {
			all.Go(func() {
				time.Sleep(time.Duration(n) * 3 * time.Second)
				call()
			})
		}
		all.Wait()
		if n := bad.Load(); n != 1 {
			t.Errorf("got %d bad logins; want 1", n)
		}
	})
}

// Where calls under way together meet a refused login, and the new one is wrong, too, that
// is one bad login of the new one.
func TestNewLoginIsWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := map[string]int{}
		var mu sync.Mutex
		good := "first-canary"
		h := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			mu.Lock()
			defer mu.Unlock()
			if _, p, _ := r.BasicAuth(); p != good {
				bad[p]++
			}
			wantPassword(good)(rw, r)
		})
		cl := &qualys.Client{Origin: &url.URL{Scheme: "https", Host: "q"}, Credentials: &login{user: "user", pass: "first-canary", next: "second-canary"}, UserAgent: "test", Memory: &safely{}}
		cl.HTTP = &http.Client{Transport: simulator.Transport{Handler: h}}
		if _, _, err := ask(cl); err != nil {
			t.Fatal(err)
		}
		good = "third-canary"
		var all sync.WaitGroup
		all.Go(func() { _ = askHosts(cl) })
		all.Go(func() { _, _, _ = ask(cl) })
		all.Go(func() {
			_ = qualys.NewKnowledgeBase(cl, ingest.KB.Schema).Permitted(t.Context(), func(record.Tally) {})
		})
		all.Wait()
		// The first was good: three were under way with it.
		if bad["first-canary"] != 3 || bad["second-canary"] != 1 {
			t.Errorf("got bad logins %v; want one of the second", bad)
		}
	})
}

// A login that nobody says anything of is tried by one at a time.
func TestLoginWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logins atomic.Int32
		h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			logins.Add(1)
			<-r.Context().Done()
		})
		cl := &qualys.Client{Origin: &url.URL{Scheme: "https", Host: "q"}, Credentials: &login{user: "user", pass: "canary"}, UserAgent: "test", Memory: &safely{}}
		cl.HTTP = &http.Client{Transport: simulator.Transport{Handler: h}}
		ctx, cancel := context.WithTimeout(t.Context(), 2*qualys.DefaultFirstByteTimeout+time.Minute)
		defer cancel()
		var all sync.WaitGroup
		none := func(record.Tally) {}
		detections := qualys.NewDetections(cl, ingest.VM.Schema)
		all.Go(func() { _, _ = detections.Page(ctx, record.Query{}, newRowsOf(ingest.VM)) })
		all.Go(func() { _, _ = detections.IDs(ctx, record.Query{}, 1, none) })
		all.Go(func() { _ = qualys.NewKnowledgeBase(cl, ingest.KB.Schema).Permitted(ctx, none) })
		all.Wait()
		if n := logins.Load(); n != 3 {
			t.Errorf("got %d logins in 11 minutes; want 3", n)
		}
	})
}

// A refused login is one, whatever the form in which Qualys says so.
func TestFormsOfRefusals(t *testing.T) {
	const bad = "<CODE>2000</CODE><TEXT>Bad Login/Password</TEXT>"
	for name, c := range map[string]struct {
		status int
		doc    string
	}{
		"in a warning":         {200, page("<WARNING>" + bad + "</WARNING>")},
		"in place of the list": {200, page(bad)},
		"401, HTML":            {401, "<html><body>Unauthorized</body></html>"},
		"401, JSON":            {401, `{"responseCode":"INVALID_CREDENTIALS"}`},
		"401, another code":    {401, simpleReturn("2002", "User account is inactive.")},
		"401, a limit's code":  {401, simpleReturn("1965", "try later")},
		"401, internal error":  {401, simpleReturn("999", "Internal error")},
		"409":                  {409, simpleReturn("2000", "Bad Login/Password")},
		"a text without code":  {200, "<SIMPLE_RETURN><RESPONSE><TEXT>Bad Login/Password</TEXT></RESPONSE></SIMPLE_RETURN>"},
		"a number":             {200, `<GENERIC_RETURN><API name="x"/><RETURN status="FAILED" number="2000">Bad Login/Password</RETURN></GENERIC_RETURN>`},
	} {
		t.Run(name, func(t *testing.T) {
			w := newAccountWorld(t, func(rw http.ResponseWriter, _ *http.Request) {
				rw.WriteHeader(c.status)
				io.WriteString(rw, c.doc)
			})
			var err error
			for range 12 {
				err = w.process("wrong-canary")
				w.now = w.now.Add(4 * time.Minute)
			}
			if w.calls != 1 {
				t.Errorf("got %d logins in 12 processes, %v; want 1", w.calls, err)
			}
		})
	}
}
