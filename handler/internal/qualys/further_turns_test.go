package qualys_test

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/simulator"
)

// account is Qualys with a password, which counts the bad logins by password.
type account struct {
	mu    sync.Mutex
	good  string
	bad   map[string]int
	slow  time.Duration // of the body of detections
	first time.Duration // until the first byte
	limit func(r *http.Request) bool
	rest  time.Time
	early []time.Duration // calls in the half hour that was asked for
}

func (a *account) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	good, slow, first := a.good, a.slow, a.first
	a.mu.Unlock()
	time.Sleep(first)
	_, p, _ := r.BasicAuth()
	a.mu.Lock()
	if p != good {
		a.bad[p]++
	}
	limited := a.limit != nil && a.limit(r)
	if limited {
		if since := time.Since(a.rest); since < 30*time.Minute {
			a.early = append(a.early, since)
		}
		a.rest = time.Now()
	}
	a.mu.Unlock()
	switch {
	case limited:
		rw.Header().Set("X-RateLimit-ToWait-Sec", "1800")
		rw.WriteHeader(http.StatusConflict)
		io.WriteString(rw, simpleReturn("1965", "x"))
	case p == good && slow > 0 && strings.Contains(r.URL.Path, "/detection/"):
		head, tail, _ := strings.Cut(hosts(""), "</RESPONSE>")
		io.WriteString(rw, head)
		for ; slow > 0; slow -= time.Minute {
			io.WriteString(rw, "<!-- keep-alive -->")
			rw.(http.Flusher).Flush()
			time.Sleep(time.Minute)
		}
		io.WriteString(rw, "</RESPONSE>"+tail)
	default:
		wantPassword(good)(rw, r)
	}
}

func (a *account) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
}

// process is a process that asks there.
func (a *account) process(memory qualys.Memory, credentials qualys.Credentials) *qualys.Client {
	return &qualys.Client{Origin: &url.URL{Scheme: "https", Host: "q"}, Credentials: credentials, UserAgent: "test", Memory: memory,
		HTTP: &http.Client{Transport: simulator.Transport{Handler: a}}}
}

func newAccount() *account { return &account{good: "old", bad: map[string]int{}} }

func old() *login { return &login{user: "user", pass: "old"} }

func askKnowledge(cl *qualys.Client) error {
	return qualys.NewKnowledgeBase(cl, ingest.KB.Schema).Permitted(context.Background(), func(record.Tally) {})
}

func mustAsk(t *testing.T, cl *qualys.Client) {
	t.Helper()
	if _, _, err := ask(cl); err != nil {
		t.Fatal(err)
	}
}

// R5: a long answer that has begun before a refusal ends behind it.
func TestFurtherLongAnswerForgetsARefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, memory := newAccount(), &safely{}
		cl := a.process(memory, old())
		mustAsk(t, cl)
		a.slow = 10 * time.Minute
		var all sync.WaitGroup
		all.Go(func() { mustAsk(t, cl) })
		time.Sleep(2 * time.Minute)
		a.set(func() { a.good = "new" }) // in the vault it is still the old one
		_ = askKnowledge(cl)             // refused
		all.Wait()
		time.Sleep(time.Minute)
		_ = askKnowledge(a.process(memory, old())) // another process
		if a.bad["old"] != 1 {
			t.Errorf("got %d bad logins in 12 minutes; want 1", a.bad["old"])
		}
	})
}

// R6: a long answer to the old password ends while another call tries the new one.
func TestFurtherLongAnswerEndsATrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, l := newAccount(), old()
		cl := a.process(&safely{}, l)
		mustAsk(t, cl)
		a.slow = 4 * time.Minute
		var all sync.WaitGroup
		all.Go(func() { _, _, _ = ask(cl) })
		time.Sleep(3*time.Minute + 50*time.Second)
		l.next = "wrong"
		_, _ = l.Reload(t.Context()) // as Check and Renew do
		a.set(func() { a.first = 30 * time.Second })
		all.Go(func() { _ = askKnowledge(cl) })
		time.Sleep(time.Second)
		all.Go(func() { _ = askHosts(cl) })
		all.Wait()
		if a.bad["wrong"] != 1 {
			t.Errorf("got %d bad logins of the new password; want 1", a.bad["wrong"])
		}
	})
}

// turning is credentials that somebody reads anew behind so many looks.
type turning struct {
	mu          sync.Mutex
	looks, last int
}

func (l *turning) Login() (user, password string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.looks++; l.last > 0 && l.looks > l.last {
		return "user", "wrong"
	}
	return "user", "old"
}

func (l *turning) Reload(context.Context) (bool, error) { return false, nil }

// R6: the login is read anew between the look whether it is good and its use.
func TestFurtherLoginChangesUnderATrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, l := newAccount(), &turning{}
		cl := a.process(&safely{}, l)
		mustAsk(t, cl)
		a.first = 10 * time.Second
		l.looks, l.last = 0, 2 // checkLogin's and trial's
		var all sync.WaitGroup
		all.Go(func() { _ = askKnowledge(cl) })
		synctest.Wait()
		all.Go(func() { _ = askHosts(cl) })
		all.Wait()
		if a.bad["wrong"] != 1 {
			t.Errorf("got %d bad logins of the new password; want 1", a.bad["wrong"])
		}
	})
}

// R7: a call waits for its turn; meanwhile another process is refused, or told to wait.
func TestFurtherQueuedCall(t *testing.T) {
	for what, change := range map[string]func(a *account){
		"login": func(a *account) { a.good = "new" },
		"limit": func(a *account) { a.limit = func(*http.Request) bool { return true } },
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, memory := newAccount(), &safely{}
				cl := a.process(memory, old())
				mustAsk(t, cl)
				time.Sleep(time.Minute)
				a.slow = 10 * time.Minute
				var all sync.WaitGroup
				all.Go(func() { _, _, _ = ask(cl) })
				time.Sleep(time.Second)
				all.Go(func() { _, _, _ = ask(cl) }) // waits for the first
				time.Sleep(2 * time.Minute)
				a.set(func() { change(a) })
				_, _, _ = ask(a.process(memory, old())) // another process is told
				all.Wait()
				if a.bad["old"] > 1 || len(a.early) > 0 {
					t.Errorf("%d bad logins in 10 minutes; calls %s after a rest of half an hour began", a.bad["old"], a.early)
				}
			})
		})
	}
}

// R8: two processes, twenty seconds from each other.
func TestFurtherTwoProcesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, memory := newAccount(), &safely{}
		one, two := a.process(memory, old()), a.process(memory, old())
		mustAsk(t, one)
		mustAsk(t, two)
		time.Sleep(5 * time.Second)
		a.good = "new"
		_, _, _ = ask(one)
		time.Sleep(20 * time.Second)
		_, _, _ = ask(two)
		if a.bad["old"] != 1 {
			t.Errorf("got %d bad logins; want 1", a.bad["old"])
		}
	})
}

// slowlyKept is a memory of which a write takes its time, as one over a network does.
type slowlyKept struct{ safely }

func (s *slowlyKept) Update(ctx context.Context, change func(doc []byte) ([]byte, error)) error {
	return s.safely.Update(ctx, func(doc []byte) ([]byte, error) {
		doc, err := change(doc)
		time.Sleep(100 * time.Millisecond)
		return doc, err
	})
}

// R9: a second limit is met while the first is written down.
func TestFurtherTwoRestsAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, memory := newAccount(), &slowlyKept{}
		memory.doc = []byte("{}")
		cl := a.process(memory, old())
		mustAsk(t, cl)
		calls := map[string]int{}
		a.limit = func(r *http.Request) bool { calls[r.URL.Path]++; return true }
		a.first = 10 * time.Millisecond
		var all sync.WaitGroup
		all.Go(func() { _, _, _ = ask(cl) })
		time.Sleep(5 * time.Millisecond)
		a.set(func() { a.first = 40 * time.Millisecond })
		all.Go(func() { _ = askKnowledge(cl) })
		all.Wait()
		time.Sleep(time.Minute)
		_, _, _ = ask(a.process(memory, old()))
		_ = askKnowledge(a.process(memory, old()))
		for path, n := range calls {
			if n != 1 {
				t.Errorf("%s: %d calls; want 1, and a rest of half an hour", path, n)
			}
		}
	})
}

// R10: something else is kept at the end of a rest, and a process begins.
func TestFurtherEndOfARest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, memory := newAccount(), &safely{}
		a.limit = func(*http.Request) bool { return true }
		_, _, _ = ask(a.process(memory, old())) // half an hour
		a.limit = func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/detection/") }
		time.Sleep(30*time.Minute - 4*time.Second)
		a.good = "new"
		_ = askKnowledge(a.process(memory, old()))                          // a refusal is kept
		_, _, _ = ask(a.process(memory, &login{user: "user", pass: "new"})) // the next process
		if len(a.early) > 0 {
			t.Errorf("called %s after a rest of 30m began", a.early)
		}
	})
}

// R11: an answer under way says that the calls are used up, behind one that asked for less.
func TestFurtherLongerWaitBehindAShorter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin, n := time.Now(), 0
		var mu sync.Mutex
		h := http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			mu.Lock()
			n++
			call := n
			mu.Unlock()
			header := rw.Header()
			header.Set("X-Concurrency-Limit-Limit", "5")
			header.Set("X-RateLimit-Limit", "300")
			header.Set("X-RateLimit-Window-Sec", "3600")
			switch call {
			case 1:
				header.Set("X-RateLimit-Remaining", "100")
			case 2:
				time.Sleep(10 * time.Second)
				header.Set("X-RateLimit-Remaining", "0")
				header.Set("X-RateLimit-ToWait-Sec", "3000")
			case 3:
				time.Sleep(time.Second)
				header.Set("X-RateLimit-Remaining", "1")
				rw.WriteHeader(http.StatusConflict)
				io.WriteString(rw, simpleReturn("1960", "x"))
				return
			default:
				t.Errorf("called after %s; it was to rest for 50 minutes", time.Since(begin))
			}
			io.WriteString(rw, hosts(""))
		})
		cl := &qualys.Client{Origin: &url.URL{Scheme: "https", Host: "q"}, Credentials: old(), UserAgent: "test", HTTP: &http.Client{Transport: simulator.Transport{Handler: h}}}
		mustAsk(t, cl)
		var all sync.WaitGroup
		all.Go(func() { _, _, _ = ask(cl) })
		time.Sleep(time.Millisecond)
		all.Go(func() { _, _, _ = ask(cl) })
		all.Wait()
		time.Sleep(time.Minute)
		_, _, _ = ask(cl)
	})
}

// R12: limits in answers with status 200.
func TestFurtherLimitWithStatus200(t *testing.T) {
	for name, doc := range map[string]string{
		"document": simpleReturn("1965", "This API cannot be run again."),
		"warning":  page("<WARNING><CODE>1965</CODE><TEXT>This API cannot be run again for another 30 minutes.</TEXT></WARNING>"),
	} {
		t.Run(name, func(t *testing.T) {
			cl, _ := client(t, func(rw http.ResponseWriter, _ *http.Request) {
				rw.Header().Set("X-RateLimit-ToWait-Sec", "1800")
				io.WriteString(rw, doc)
			})
			_, _, err := ask(cl)
			checkError(t, err, qualys.Limited, 30*time.Minute, "")
		})
	}
}

// R13: a login that was answered with hosts was not refused.
func TestFurtherRefusalBehindHosts(t *testing.T) {
	const host = "<HOST_LIST><HOST><ID>1</ID><DETECTION_LIST><DETECTION><QID>5</QID></DETECTION></DETECTION_LIST></HOST></HOST_LIST>"
	calls := 0
	cl, _ := client(t, func(rw http.ResponseWriter, _ *http.Request) {
		if calls++; calls == 1 {
			io.WriteString(rw, page(host+"<ERROR><CODE>2000</CODE><TEXT>Bad Login/Password</TEXT></ERROR>"))
			return
		}
		io.WriteString(rw, page(host))
	})
	_, _, first := ask(cl)
	if _, _, err := ask(cl); err != nil {
		t.Errorf("the first: %v\nthe second: %v", first, err)
	}
}
