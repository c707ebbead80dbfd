package qualys_test

import (
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
)

// simpleReturn is an error answer of Qualys.
func simpleReturn(code, text string, items ...string) string {
	list := ""
	for i := 0; i < len(items); i += 2 {
		list += "<ITEM><KEY>" + items[i] + "</KEY><VALUE>" + items[i+1] + "</VALUE></ITEM>"
	}
	if list != "" {
		list = "<ITEM_LIST>" + list + "</ITEM_LIST>"
	}
	return "<SIMPLE_RETURN><RESPONSE>" + datetime + "<CODE>" + code + "</CODE><TEXT>" + text + "</TEXT>" + list + "</RESPONSE></SIMPLE_RETURN>"
}

// client is a new process, which may ask for whatever it likes.
func (w *accountWorld) client(user, password string) *qualys.Client {
	w.t.Helper()
	origin, err := url.Parse(w.server.URL)
	if err != nil {
		w.t.Fatal(err)
	}
	return &qualys.Client{Origin: origin, Credentials: &login{user: user, pass: password}, HTTP: qualys.NewHTTPClient(), UserAgent: "test", Now: func() time.Time { return w.now }, Memory: w.memory}
}

// A wait in whatever form it is told rests in the next process, for an hour and a bit at
// most, and then is over.
func TestFurtherWaitsOverProcesses(t *testing.T) {
	const again = "This API cannot be run again for another "
	for name, c := range map[string]struct {
		status   int
		header   []string // pairs
		body     string
		least    time.Duration // a minute before, nothing is asked; zero: it is not said
		longest  time.Duration
		retryNow bool // nothing need be waited for
	}{
		"text: 23 hours":                {status: 409, body: simpleReturn("1965", again+"23 hours, 0 minutes and 0 seconds."), least: time.Hour, longest: 66 * time.Minute},
		"text: 31 minutes":              {status: 409, body: simpleReturn("1965", again+"0 hours, 31 minutes and 0 seconds."), least: 30 * time.Minute, longest: 33 * time.Minute},
		"text: huge hours":              {status: 409, body: simpleReturn("1965", again+"9999999999999999999999 hours."), longest: 66 * time.Minute},
		"text: many hours":              {status: 409, body: simpleReturn("1965", again+strings.Repeat("9000 hours ", 40)), least: time.Hour, longest: 66 * time.Minute},
		"item: 600,000 s":               {status: 409, body: simpleReturn("1965", "x", "SECONDS_TO_WAIT", "600000"), least: time.Hour, longest: 66 * time.Minute},
		"item: 20 minutes":              {status: 409, body: simpleReturn("1965", "x", "SECONDS_TO_WAIT", "1200"), least: 19 * time.Minute, longest: 21 * time.Minute},
		"item: blanks around":           {status: 409, body: simpleReturn("1965", "x", "SECONDS_TO_WAIT", " 1200\n"), least: 19 * time.Minute, longest: 21 * time.Minute},
		"item: negative":                {status: 409, body: simpleReturn("1965", "x", "SECONDS_TO_WAIT", "-1200"), longest: 5 * time.Minute},
		"item: beyond 64 bits":          {status: 409, body: simpleReturn("1965", "x", "SECONDS_TO_WAIT", "99999999999999999999"), longest: 66 * time.Minute},
		"item: overflows a duration":    {status: 409, body: simpleReturn("1965", "x", "SECONDS_TO_WAIT", "9223372037"), least: time.Hour, longest: 66 * time.Minute},
		"header: overflows a duration":  {status: 409, header: []string{"X-RateLimit-ToWait-Sec", "9223372036854775807"}, body: simpleReturn("1965", "x"), least: time.Hour, longest: 66 * time.Minute},
		"header: negative":              {status: 409, header: []string{"X-RateLimit-ToWait-Sec", "-5"}, body: simpleReturn("1965", "x"), longest: 5 * time.Minute},
		"429: negative":                 {status: 429, header: []string{"Retry-After", "-86400"}, longest: 5 * time.Minute},
		"429: a date in the past":       {status: 429, header: []string{"Retry-After", "Sat, 01 Nov 2025 00:00:00 GMT"}, longest: 5 * time.Minute},
		"429: year 9999":                {status: 429, header: []string{"Retry-After", "Fri, 31 Dec 9999 23:59:59 GMT"}, least: time.Hour, longest: 66 * time.Minute},
		"429: beyond 64 bits":           {status: 429, header: []string{"Retry-After", "99999999999999999999"}, longest: 66 * time.Minute},
		"429: a fraction":               {status: 429, header: []string{"Retry-After", "1200.5"}, longest: 66 * time.Minute},
		"429: no number":                {status: 429, header: []string{"Retry-After", "tomorrow"}, longest: 5 * time.Minute},
		"503: date, no Date":            {status: 503, header: []string{"Date", "", "Retry-After", "Sun, 01 Nov 2026 12:40:00 GMT"}, longest: 66 * time.Minute, retryNow: true},
		"503: two million s":            {status: 503, header: []string{"Retry-After", "2000000"}, body: simpleReturn("1999", "Maintenance"), least: time.Hour, longest: 66 * time.Minute},
		"502: Retry-After":              {status: 502, header: []string{"Retry-After", "1800"}, longest: 66 * time.Minute, retryNow: true},
		"200, last call, 600,000 s":     {status: 200, header: []string{"X-RateLimit-Remaining", "0", "X-RateLimit-ToWait-Sec", "600000"}, body: hosts(""), least: time.Hour, longest: 66 * time.Minute},
		"200, calls left, 600,000 s":    {status: 200, header: []string{"X-RateLimit-Remaining", "200", "X-RateLimit-ToWait-Sec", "600000"}, body: hosts(""), longest: time.Minute, retryNow: true},
		"200, -1 left":                  {status: 200, header: []string{"X-RateLimit-Remaining", "-1", "X-RateLimit-ToWait-Sec", "900"}, body: hosts(""), longest: 66 * time.Minute, retryNow: true},
		"200, a window of a week":       {status: 200, header: []string{"X-RateLimit-Limit", "1", "X-RateLimit-Window-Sec", "604800", "X-RateLimit-Remaining", "0", "X-RateLimit-ToWait-Sec", "604800"}, body: hosts(""), least: time.Hour, longest: 66 * time.Minute},
		"200 with a limit inside, long": {status: 200, body: simpleReturn("1965", again+"40 hours."), least: time.Hour, longest: 66 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			w := newAccountWorld(t, nil)
			w.server.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
				if w.calls++; w.calls > 1 {
					io.WriteString(rw, hosts(""))
					return
				}
				rw.Header().Set("Date", w.now.Format(http.TimeFormat))
				for i := 0; i < len(c.header); i += 2 {
					rw.Header().Set(c.header[i], c.header[i+1])
					if c.header[i+1] == "" {
						rw.Header()[c.header[i]] = nil
					}
				}
				rw.WriteHeader(c.status)
				io.WriteString(rw, c.body)
			})
			_ = w.process("p")
			if c.least > 0 {
				w.now = w.now.Add(c.least - time.Minute)
				if err := w.process("p"); err == nil || w.calls != 1 {
					t.Errorf("a minute early: got %v, %d calls; want 1", err, w.calls)
				}
				rests, err := qualys.Rests(w.memory.doc, w.now)
				if err != nil || len(rests) != 1 || rests[0].Until.After(w.now.Add(65*time.Minute)) || rests[0].Reason == "" {
					t.Errorf("got rests %+v, %v; want one, told", rests, err)
				}
				w.now = w.now.Add(time.Minute - c.least)
			}
			if w.now = w.now.Add(c.longest); w.process("p") != nil || w.calls != 2 {
				t.Errorf("after %s: %d calls, want 2: %s", c.longest, w.calls, w.memory.doc)
			}
		})
	}
}

// asks are the datasets' requests of a process.
func (w *accountWorld) asks() map[string]func() error {
	cl := func() *qualys.Client { return w.client("user", "p") }
	return map[string]func() error{
		"detections": func() error { _, _, err := ask(cl()); return err },
		"hosts":      func() error { return askHosts(cl()) },
		"entries": func() error {
			_, err := qualys.NewKnowledgeBase(cl(), ingest.KB.Schema).Page(context.Background(), record.Query{After: w.now.Add(-time.Hour)}, newRowsOf(ingest.KB))
			return err
		},
	}
}

// A limit of one endpoint is its own; 429, maintenance and a login are all endpoints'.
func TestFurtherRestsOfEndpoints(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		header [2]string
		body   string
		all    bool
	}{
		"409, 1965":          {409, [2]string{"X-RateLimit-ToWait-Sec", "1800"}, simpleReturn("1965", "x"), false},
		"409, 1960":          {409, [2]string{"X-RateLimit-ToWait-Sec", "1800"}, simpleReturn("1960", "x"), false},
		"409, no body":       {409, [2]string{"X-RateLimit-ToWait-Sec", "1800"}, "", false},
		"the last call":      {200, [2]string{"X-RateLimit-ToWait-Sec", "1800"}, hosts(""), false},
		"429":                {429, [2]string{"Retry-After", "1800"}, "", true},
		"429 with code 1965": {429, [2]string{"Retry-After", "1800"}, simpleReturn("1965", "x"), true},
		"503":                {503, [2]string{"Retry-After", "1800"}, "", true},
		"401":                {401, [2]string{"x", "y"}, simpleReturn("2000", "Bad Login/Password"), true},
		"403 and code 2000":  {403, [2]string{"x", "y"}, simpleReturn("2000", "Bad Login/Password"), true},
		"403 and 2012":       {403, [2]string{"x", "y"}, simpleReturn("2012", "not authorized"), false},
	} {
		for _, first := range []string{"detections", "hosts", "entries"} {
			t.Run(name+" of "+first, func(t *testing.T) {
				spoil := true
				w := newAccountWorld(t, func(rw http.ResponseWriter, r *http.Request) {
					if spoil {
						rw.Header().Set(c.header[0], c.header[1])
						rw.Header().Set("X-RateLimit-Remaining", "0")
						rw.WriteHeader(c.status)
						io.WriteString(rw, c.body)
						return
					}
					switch {
					case strings.Contains(r.URL.Path, "/knowledge_base/"):
						io.WriteString(rw, knowledge(""))
					case strings.Contains(r.URL.Path, "/detection/"):
						io.WriteString(rw, hosts(""))
					default:
						io.WriteString(rw, hostIDs(""))
					}
				})
				_ = w.asks()[first]()
				spoil = false
				w.now = w.now.Add(10 * time.Minute)
				for other, asks := range w.asks() {
					if other == first {
						continue
					}
					before := w.calls
					if err := asks(); (w.calls == before) != c.all {
						t.Errorf("%s: got %v, %d calls; want it to rest: %v", other, err, w.calls-before, c.all)
					}
				}
			})
		}
	}
}

// A login that is refused in whatever way is tried once in an hour, whatever changes but
// the login.
func TestFurtherRefusedLogins(t *testing.T) {
	for name, answer := range map[string]func(rw http.ResponseWriter){
		"401 without a body": func(rw http.ResponseWriter) { rw.WriteHeader(401) },
		"401 and HTML": func(rw http.ResponseWriter) {
			rw.Header().Set("Content-Type", "text/html")
			rw.WriteHeader(401)
			io.WriteString(rw, "<html>login</html>")
		},
		"403 and code 2000": func(rw http.ResponseWriter) {
			rw.WriteHeader(403)
			io.WriteString(rw, simpleReturn("2000", "Bad Login/Password"))
		},
		"409 and code 2000": func(rw http.ResponseWriter) {
			rw.WriteHeader(409)
			io.WriteString(rw, simpleReturn("2000", "Bad Login/Password"))
		},
		"200 and code 2000": func(rw http.ResponseWriter) { io.WriteString(rw, simpleReturn("2000", "Bad Login/Password")) },
		"200, GENERIC_RETURN": func(rw http.ResponseWriter) {
			io.WriteString(rw, `<GENERIC_RETURN><RETURN status="FAILED" number="2000">Bad Login/Password</RETURN></GENERIC_RETURN>`)
		},
		"inside of a document": func(rw http.ResponseWriter) { io.WriteString(rw, page(simpleReturn("2000", "Bad Login/Password"))) },
		"ServiceResponse": func(rw http.ResponseWriter) {
			rw.WriteHeader(401)
			io.WriteString(rw, `<ServiceResponse><responseCode>INVALID_CREDENTIALS</responseCode></ServiceResponse>`)
		},
		"200, ServiceResponse": func(rw http.ResponseWriter) {
			io.WriteString(rw, `<ServiceResponse><responseCode>INVALID_CREDENTIALS</responseCode></ServiceResponse>`)
		},
		"401 with a Retry-After": func(rw http.ResponseWriter) { rw.Header().Set("Retry-After", "5"); rw.WriteHeader(401) },
		"locked account": func(rw http.ResponseWriter) {
			rw.WriteHeader(401)
			io.WriteString(rw, simpleReturn("2002", "User account is locked"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newAccountWorld(t, nil)
			w.server.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				w.calls++
				if user, pass, _ := r.BasicAuth(); user == "user" && pass != "right" {
					answer(rw)
					return
				}
				io.WriteString(rw, hosts(""))
			})
			for n := range 4 {
				if err := w.process("wrong"); err == nil {
					t.Fatalf("process %d: no error", n+1)
				}
				w.now = w.now.Add(12 * time.Minute)
			}
			if w.calls != 1 {
				t.Errorf("got %d logins in 48 minutes, want 1", w.calls)
			}
			if err := w.process("also wrong"); err == nil || w.calls != 2 {
				t.Errorf("another password: got %v, %d logins; want 2", err, w.calls)
			}
			for range 3 { // both alternate, as where one process has the old secret
				_, _ = w.process("wrong"), w.process("also wrong")
			}
			if w.calls > 3 { // the first one's hour is over soon
				t.Errorf("two wrong ones in turn: got %d logins, want 3 at most", w.calls)
			}
			if _, _, err := ask(w.client("another", "wrong")); err != nil {
				t.Errorf("another user with the same password: got %v, want none", err)
			}
			if err := w.process("right"); err != nil {
				t.Errorf("the right one: got %v, want none", err)
			}
			if _, _, err := ask(w.client("user", "right")); err != nil {
				t.Errorf("the right one again: got %v, want none", err)
			}
		})
	}
}

// While other processes work with a password that is right, one that is not is tried as
// seldom.
func TestFurtherOldSecretBesideTheNew(t *testing.T) {
	w := newAccountWorld(t, wantPassword("right"))
	wrong := 0
	for range 6 {
		before := w.calls
		if err := w.process("wrong"); err == nil {
			t.Fatal("no error")
		}
		wrong += w.calls - before
		if err := w.process("right"); err != nil {
			t.Fatal(err)
		}
		w.now = w.now.Add(8 * time.Minute)
	}
	if wrong > 1 {
		t.Errorf("got %d logins with the wrong password in 48 minutes, want 1", wrong)
	}
}

// The password is changed back, while its rest is not over: after a good login with the
// other nothing is known against it but the old refusal.
func TestFurtherPasswordChangedBack(t *testing.T) {
	w := newAccountWorld(t, wantPassword("second"))
	_ = w.process("first")
	if err := w.process("second"); err != nil {
		t.Fatal(err)
	}
	w.server.Config.Handler = wantPassword("first") // Qualys took it back
	w.now = w.now.Add(2 * time.Hour)
	if err := w.process("second"); err == nil {
		t.Fatal("no error")
	}
	if err := w.process("first"); err != nil {
		t.Errorf("changed back, two hours later: got %v, want none", err)
	}
}

// The document tells no password, and nothing that can be tried against a list.
func TestFurtherMemoryTellsNoPassword(t *testing.T) {
	for name, password := range map[string]string{"plain": "Summer2026!", "quotes": `a"b\c<d>&e`, "long": strings.Repeat("s3cr3t-", 40), "umlauts": "pässwörd€", "blank inside": "correct horse"} {
		t.Run(name, func(t *testing.T) {
			w := newAccountWorld(t, func(rw http.ResponseWriter, r *http.Request) { // the answer quotes what was sent
				rw.WriteHeader(401)
				_, pass, _ := r.BasicAuth()
				io.WriteString(rw, simpleReturn("2000", "Bad Login/Password "+url.QueryEscape(pass)+" "+r.Header.Get("Authorization")))
			})
			err := w.process(password)
			_ = w.process(password)
			forms := map[string]string{"itself": password, "JSON": strings.Trim(fmt.Sprintf("%q", password), `"`), "escaped": url.QueryEscape(password)}
			for what, b := range map[string][]byte{"password": []byte(password), "login": []byte("user:" + password), "user and password": []byte("user" + password), "with NUL": []byte("user\x00" + password), "with newline": []byte("user\n" + password)} {
				m5, s1, s2, s5 := md5.Sum(b), sha1.Sum(b), sha256.Sum256(b), sha512.Sum512(b)
				for how, sum := range map[string][]byte{"bytes": b, "md5": m5[:], "sha1": s1[:], "sha256": s2[:], "sha512": s5[:]} {
					if how != "bytes" {
						sum = sum[:8] // a beginning would do
					}
					forms[what+" "+how+" hex"] = hex.EncodeToString(sum)
					forms[what+" "+how+" base64"] = base64.RawStdEncoding.EncodeToString(sum[:len(sum)/3*3])
					forms[what+" "+how+" base64url"] = base64.RawURLEncoding.EncodeToString(sum[:len(sum)/3*3])
				}
			}
			var told []string
			for form, text := range forms {
				if strings.Contains(strings.ToLower(string(w.memory.doc)+err.Error()), strings.ToLower(text)) {
					told = append(told, form)
				}
			}
			if len(told) > 0 {
				t.Errorf("the state or the error tells of the password: %q\n%s\n%v", told, w.memory.doc, err)
			}
			// The same login elsewhere has another mark.
			other := newAccountWorld(t, wantPassword("x"))
			_ = other.process(password)
			if a, b := words(string(w.memory.doc)), words(string(other.memory.doc)); slices.ContainsFunc(a, func(s string) bool { return len(s) > 16 && !strings.ContainsAny(s, " :/") && slices.Contains(b, s) }) {
				t.Errorf("two states share a mark:\n%s\n%s", w.memory.doc, other.memory.doc)
			}
		})
	}
}

func words(doc string) []string { return strings.Split(doc, `"`) }

// What stands in the document cannot stop the connector for longer than a rest lasts.
func TestFurtherMemoryThatIsWrong(t *testing.T) {
	rest := func(until string) string {
		return `{"version":1,"rests":{"all":{"until":` + until + `,"kind":"limit","reason":"x"}}}`
	}
	refused := newAccountWorld(t, wantPassword("other"))
	_ = refused.process("p")
	edited := func(old, now string) string {
		if !strings.Contains(string(refused.memory.doc), old) {
			t.Errorf("no %s in %s", old, refused.memory.doc)
		}
		return strings.ReplaceAll(string(refused.memory.doc), old, now)
	}
	for name, doc := range map[string]string{
		"empty":               "",
		"only blanks":         " \n",
		"null":                "null",
		"a list":              "[]",
		"a text":              `"x"`,
		"no version":          `{"rests":{}}`,
		"version 0":           `{"version":0}`,
		"negative version":    `{"version":-1}`,
		"rests are null":      `{"version":1,"rests":null}`,
		"a rest is null":      `{"version":1,"rests":{"all":null}}`,
		"rests are a list":    `{"version":1,"rests":[{"until":"2026-11-01T12:30:00Z"}]}`,
		"no until":            `{"version":1,"rests":{"all":{"kind":"limit"}}}`,
		"until is a number":   rest("1793534400"),
		"until is empty":      rest(`""`),
		"zero time":           rest(`"0001-01-01T00:00:00Z"`),
		"year 9999":           rest(`"9999-12-31T23:59:59Z"`),
		"year 10000":          rest(`"10000-01-01T00:00:00Z"`),
		"next year":           rest(`"2027-11-01T12:00:00Z"`),
		"in a zone":           rest(`"2026-11-01T23:30:00+11:00"`),
		"more behind it":      `{"version":1}{"version":1}`,
		"unknown members":     `{"version":1,"mood":"good","rests":{"moon":{"until":"2026-11-01T12:30:00Z"}}}`,
		"a byte order mark":   "\ufeff" + rest(`"2026-11-01T12:30:00Z"`),
		"wrong UTF-8":         "{\"version\":1,\"rests\":{\"\xff\":{\"until\":\"2026-11-01T12:30:00Z\"}}}",
		"cut":                 string(refused.memory.doc[:len(refused.memory.doc)/2]),
		"huge":                `{"version":1,"rests":{` + strings.Repeat(`"/api/x":{"until":"2027-11-01T12:00:00Z","kind":"limit","reason":"x"},`, 2_000) + `"all":{"until":"2027-11-01T12:00:00Z","kind":"limit"}}}`,
		"huge and no JSON":    strings.Repeat("x", 5<<20),
		"deep":                strings.Repeat("[", 100_000),
		"login for a century": edited("2026-11-01T13", "2126-11-01T13"),
		"login is null":       `{"version":1,"logins":[null]}`,
		"login is a text":     `{"version":1,"logins":"x"}`,
		"login of no mark":    `{"version":1,"logins":[{"until":"2027-11-01T12:00:00Z"}]}`,
		"negative times":      `{"version":1,"logins":[{"mark":"","salt":"","times":-9,"until":"2027-11-01T12:00:00Z"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			w := newAccountWorld(t, wantPassword("p"))
			w.memory.doc = []byte(doc)
			w.now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
			began := w.now
			for w.process("p") != nil {
				if w.now = w.now.Add(35 * time.Minute); w.now.Sub(began) > 28*time.Hour {
					t.Fatalf("nothing is asked for in 28 hours: %.300s", w.memory.doc)
				}
			}
			if rested := w.now.Sub(began); rested > 70*time.Minute && !strings.HasPrefix(name, "login") {
				t.Errorf("rested for %s, want 65 minutes at most", rested)
			}
			// It can be written anew.
			w.server.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
				w.calls++
				rw.Header().Set("Retry-After", "1800")
				rw.WriteHeader(429)
			})
			w.calls = 0
			for range 3 {
				_ = w.process("p")
				w.now = w.now.Add(time.Minute)
			}
			if w.calls != 1 {
				t.Errorf("a limit behind it: got %d calls of 3 processes, want 1: %.300s", w.calls, w.memory.doc)
			}
			if _, err := qualys.Rests([]byte(doc), began); err != nil {
				t.Logf("status: %v", err)
			}
		})
	}
}

// safely is a memory that several processes use at a time.
type safely struct {
	mu sync.Mutex
	shared
}

func (s *safely) Load(ctx context.Context) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shared.Load(ctx)
}

func (s *safely) Update(ctx context.Context, change func(doc []byte) ([]byte, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shared.Update(ctx, change)
}

// Two processes at the same time: what each has met is known to the third.
func TestFurtherTwoProcessesAtATime(t *testing.T) {
	memory, now := &safely{}, time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	var both sync.WaitGroup
	both.Add(2)
	var mu sync.Mutex
	calls := map[string]int{}
	w := newAccountWorld(t, nil)
	w.server.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		calls[r.URL.Path]++
		first := calls[r.URL.Path] == 1
		mu.Unlock()
		if first { // each has read the memory when the other is refused
			both.Done()
			both.Wait()
		}
		rw.Header().Set("X-RateLimit-ToWait-Sec", "1800")
		rw.WriteHeader(409)
		io.WriteString(rw, simpleReturn("1965", "x"))
	})
	process := func() *qualys.Client {
		cl := w.client("user", "p")
		cl.Memory, cl.Now = memory, func() time.Time { return now }
		return cl
	}
	var done sync.WaitGroup
	done.Go(func() { _, _, _ = ask(process()) })
	done.Go(func() { _ = askHosts(process()) })
	done.Wait()
	rests, err := qualys.Rests(memory.doc, now)
	if err != nil || len(rests) != 2 {
		t.Errorf("got rests %+v, %v; want both endpoints'", rests, err)
	}
	_, _, _ = ask(process())
	_ = askHosts(process())
	for path, n := range calls {
		if n != 1 {
			t.Errorf("%s: got %d calls, want 1", path, n)
		}
	}
}

// A memory that can be read and not written, or the reverse, stops nobody, and a process
// still keeps to what it has met itself.
func TestFurtherMemoryThatFails(t *testing.T) {
	w := newAccountWorld(t, wantPassword("right"))
	cl := w.client("user", "wrong")
	w.memory.err = errors.New("storage is down")
	for range 5 {
		if _, _, err := ask(cl); err == nil || !strings.HasPrefix(err.Error(), "ask for detections: qualys") {
			t.Errorf("got %v, want the refused login first", err)
		}
	}
	if w.calls != 1 {
		t.Errorf("got %d logins of one process, want 1", w.calls)
	}
	if err := w.process("right"); err != nil {
		t.Errorf("the right one: got %v, want none", err)
	}
}
