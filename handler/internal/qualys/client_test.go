package qualys_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
)

func client(t *testing.T, h http.HandlerFunc) (*qualys.Client, *login) {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	origin, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	l := &login{user: "user", pass: "canary-pass-äö+&%"}
	return &qualys.Client{Origin: origin, Credentials: l, HTTP: qualys.NewHTTPClient(), UserAgent: "test"}, l
}

func ask(c *qualys.Client) (*rows, record.Page, error) {
	r := newRows()
	p, err := qualys.NewDetections(c, ingest.VM.Schema).Page(context.Background(), record.Query{}, r)
	return r, p, err
}

func TestErrorAnswers(t *testing.T) {
	header := func(pairs ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return m
	}
	simple := func(code, text string) string {
		return "<SIMPLE_RETURN><RESPONSE><DATETIME>2026-01-01T00:00:00Z</DATETIME>" + code + "<TEXT>" + text + "</TEXT></RESPONSE></SIMPLE_RETURN>"
	}
	for name, c := range map[string]struct {
		status int
		header map[string]string
		body   string
		kind   qualys.Kind
		after  time.Duration
		text   string
	}{
		"rate, only text":          {status: 409, body: simple("<CODE>1965</CODE>", "This API cannot be run again for another 2 hours, 1 minute and 5 seconds."), kind: qualys.Limited, after: 65 * time.Minute},
		"rate, short text":         {status: 409, body: simple("<CODE>1965</CODE>", "This API cannot be run again for another 0 hours, 31 minutes and 5 seconds."), kind: qualys.Limited, after: 31*time.Minute + 5*time.Second},
		"rate, header":             {status: 409, header: header("X-RateLimit-ToWait-Sec", "90"), body: simple("<CODE>1965</CODE>", "for another 5 hours"), kind: qualys.Limited, after: 90 * time.Second},
		"no code, text of a limit": {status: 409, body: simple("", "This API cannot be run again until 1 currently running API instance has finished."), kind: qualys.Limited, after: qualys.DefaultLimitWait},
		"no body, header":          {status: 409, header: header("x-ratelimit-towait-sec", "7"), kind: qualys.Limited, after: 7 * time.Second},
		"409 of another kind":      {status: 409, body: simple("", "Something else"), kind: qualys.Refused},
		"429 with Retry-After":     {status: 429, header: header("Retry-After", "13"), kind: qualys.Limited, after: 13 * time.Second},
		"429 with nothing":         {status: 429, kind: qualys.Limited, after: qualys.DefaultLimitWait},
		"unknown code of a limit":  {status: 429, header: header("Retry-After", "30"), body: simple("<CODE>TOO_MANY_REQUESTS</CODE>", "x"), kind: qualys.Limited, after: 30 * time.Second},
		"unknown code of a login":  {status: 401, body: simple("<CODE>401</CODE>", "x"), kind: qualys.BadLogin},
		"unknown code of a fault":  {status: 503, body: simple("<CODE>503</CODE>", "x"), kind: qualys.Unavailable, after: time.Second},
		"endless wait":             {status: 409, body: strings.Replace(simple("<CODE>1965</CODE>", "x"), "</TEXT>", "</TEXT><ITEM_LIST><ITEM><KEY>SECONDS_TO_WAIT</KEY><VALUE>10000000000</VALUE></ITEM></ITEM_LIST>", 1), kind: qualys.Limited, after: 65 * time.Minute},
		"internal error":           {status: 501, body: simple("<CODE>999</CODE>", "Internal error"), kind: qualys.Unavailable},
		"maintenance":              {status: 503, body: simple("<CODE>1999</CODE>", "Maintenance"), kind: qualys.Unavailable, after: time.Second},
		"maintenance, for long":    {status: 503, header: header("Retry-After", "600"), body: simple("<CODE>1999</CODE>", "Maintenance"), kind: qualys.Unavailable, after: 10 * time.Minute},
		"gateway timeout":          {status: 504, body: "<html>", kind: qualys.Unavailable},
		"forbidden":                {status: 403, body: simple("<CODE>2012</CODE>", "User license is not authorized"), kind: qualys.Forbidden, text: "role Reader"},
		"gone version":             {status: 404, body: "nope", kind: qualys.Refused, text: "detectionApiVersion"},
		"redirect":                 {status: 301, header: header("Location", "http://evil.example:443/x"), kind: qualys.Refused, text: "evil.example"},
		"unknown parameter":        {status: 400, body: simple("<CODE>1901</CODE>", "Unrecognized parameter(s): x"), kind: qualys.Refused, text: "filterParameters"},
		"html with 200":            {status: 200, header: header("Content-Type", "text/html; charset=utf-8"), body: "<HOST_LIST_VM_DETECTION_OUTPUT/>", kind: qualys.Broken, text: "HTML"},
		"html without type":        {status: 200, body: "<!DOCTYPE html><html><body>x</body></html>", kind: qualys.Broken, text: "HTML"},
		"empty 200":                {status: 200, kind: qualys.Broken, text: "empty"},
		"forbidden with 200":       {status: 200, body: simple("<CODE>2012</CODE>", "no"), kind: qualys.Forbidden},
		"cut body":                 {status: 200, body: hosts("<HOST><ID>1</ID></HOST>")[:150], kind: qualys.Broken, text: "cut off"},
	} {
		t.Run(name, func(t *testing.T) {
			cl, _ := client(t, func(w http.ResponseWriter, _ *http.Request) {
				for k, v := range c.header {
					w.Header().Set(k, v)
				}
				w.WriteHeader(c.status)
				io.WriteString(w, c.body)
			})
			_, _, err := ask(cl)
			checkError(t, err, c.kind, c.after, c.text)
		})
	}
}

func checkError(t *testing.T, err error, kind qualys.Kind, after time.Duration, text string) {
	t.Helper()
	var e *qualys.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an *Error", err)
	}
	gotAfter, retry := e.Retry()
	if e.Kind != kind || gotAfter != after || !strings.Contains(err.Error(), text) {
		t.Errorf("kind %d, after %s: %v\nwant kind %d, after %s, text %q", e.Kind, gotAfter, err, kind, after, text)
	}
	if want := kind == qualys.Broken || kind == qualys.Unavailable || kind == qualys.Limited || kind == qualys.Unreachable; retry != want {
		t.Errorf("to be tried again: %v, want %v", retry, want)
	}
}

func TestRecordedErrors(t *testing.T) {
	dir := samples(t)
	for file, c := range map[string]struct {
		kind  qualys.Kind
		after time.Duration
		text  string
	}{
		"200_2001_account_expired_simple_return.xml": {qualys.Refused, 0, "This account has expired."},
		"200_qps_INVALID_CREDENTIALS.xml":            {qualys.BadLogin, 0, "Authentication failed"},
		"200_qps_INVALID_REQUEST.xml":                {qualys.Refused, 0, "Invalid value format"},
		"400_1905_bad_ids_detection.xml":             {qualys.Refused, 0, "parameter ids has invalid value"},
		"400_1905_bad_ids_kb.xml":                    {qualys.Refused, 0, "code 1905"},
		"401_2000_bad_login.xml":                     {qualys.BadLogin, 0, "lock the account"},
		"401_gateway_gav_not_authenticated.json":     {qualys.BadLogin, 0, "401"},
		"409_1960_concurrency.xml":                   {qualys.Limited, qualys.DefaultLimitWait, "code 1960"},
		"409_1965_ratelimit.xml":                     {qualys.Limited, 65 * time.Minute, "code 1965"},
		"409_2003_registration.xml":                  {qualys.Refused, 0, "accept the terms"},
		"409_2011_secureid.xml":                      {qualys.Refused, 0, "SecurID"},
		"414_uri_too_long.html":                      {qualys.Refused, 0, "HTML"},
	} {
		t.Run(file, func(t *testing.T) {
			body, err := os.ReadFile(filepath.Join(dir, "errors", file))
			if err != nil {
				t.Fatal(err)
			}
			status := 0
			fmt.Sscanf(file, "%d", &status)
			cl, _ := client(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(status)
				w.Write(body)
			})
			_, _, err = ask(cl)
			checkError(t, err, c.kind, c.after, c.text)
			golden(t, "error_"+file+".golden", err.Error()+"\n")
		})
	}
}

func TestRequest(t *testing.T) {
	var got *http.Request
	var form url.Values
	cl, _ := client(t, func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		got, form = r, r.Form
		io.WriteString(w, page(""))
	})
	d := qualys.NewDetections(cl, ingest.VM.Schema)
	d.Filter = url.Values{"severities": {"3-5"}, "os_pattern": {"a#b&c=d"}, "show_tags": {"0"}}
	d.PageSize = 500
	after := time.Date(2026, 11, 1, 2, 3, 4, 0, time.FixedZone("x", -3600))
	if _, err := d.Page(context.Background(), record.Query{After: after, From: 77}, newRows()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"action": "list", "truncation_limit": "500", "id_min": "77", "vm_processed_after": "2026-11-01T03:03:04Z",
		"status": "New,Active,Re-Opened,Fixed", "severities": "3-5", "os_pattern": "a#b&c=d", "show_tags": "0", "show_results": "1",
	} {
		if form.Get(name) != want {
			t.Errorf("%s=%q, want %q", name, form.Get(name), want)
		}
	}
	user, pass, _ := got.BasicAuth()
	if got.Method != http.MethodGet || got.URL.Path != "/api/5.0/fo/asset/host/vm/detection/" || user != "user" || pass != "canary-pass-äö+&%" || got.Header.Get("X-Requested-With") == "" || got.Header.Get("Accept-Encoding") != "gzip" {
		t.Errorf("%s %s, user %s, header %v", got.Method, got.URL.Path, user, got.Header["X-Requested-With"])
	}
	d.Filter = url.Values{"ids": {strings.Repeat("1234567,", 1000) + "1"}}
	d.By = qualys.ByDetection
	if _, err := d.Page(context.Background(), record.Query{After: after}, newRows()); err != nil {
		t.Fatal(err)
	}
	if got.Method != http.MethodPost || got.URL.RawQuery != "" || len(form.Get("ids")) != 8001 || form.Get("detection_updated_since") == "" || form.Has("vm_processed_after") || form.Has("id_min") {
		t.Errorf("a long list goes by %s, %d bytes", got.Method, len(form.Get("ids")))
	}
}

func TestCheckFilter(t *testing.T) {
	for in, want := range map[string]string{
		"severities=3-5&status=New": "",
		"vm_processed_after=x":      `"vm_processed_after" is set by the connector`,
		"ID_MIN=3":                  `"ID_MIN" is set by the connector`,
		"Status=New":                "lower case",
		"qids=1&qids=2":             "2 times",
		"a b=1":                     "no parameter name",
		"action=x&id_max=1&a%00=1":  `"id_max" is set`,
	} {
		v, err := url.ParseQuery(in)
		if err != nil {
			t.Fatal(err)
		}
		if err = qualys.CheckFilter(v); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", in, err, want)
		}
	}
}

func TestUsedUpWindowIsNotAsked(t *testing.T) {
	calls := 0
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	cl, _ := client(t, func(w http.ResponseWriter, _ *http.Request) {
		calls++
		w.Header().Set("X-RateLimit-Remaining", "0")
		w.Header().Set("X-RateLimit-ToWait-Sec", "120")
		io.WriteString(w, page(""))
	})
	cl.Now = func() time.Time { return now }
	if _, _, err := ask(cl); err != nil {
		t.Fatal(err)
	}
	now = now.Add(30 * time.Second)
	_, _, err := ask(cl)
	checkError(t, err, qualys.Limited, 90*time.Second, "used up")
	now = now.Add(91 * time.Second)
	if _, _, err := ask(cl); err != nil || calls != 2 {
		t.Errorf("after the wait: %v, %d calls", err, calls)
	}
}

func TestSilenceEndsTheRequest(t *testing.T) {
	release := make(chan struct{})
	cl, _ := client(t, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, hosts("")[:80])
		w.(http.Flusher).Flush()
		<-release
	})
	defer close(release)
	cl.IdleTimeout = 50 * time.Millisecond
	_, _, err := ask(cl)
	checkError(t, err, qualys.Unavailable, 0, "no byte arrived in time")
}

// A slow answer that keeps sending is not given up.
func TestKeepAliveComments(t *testing.T) {
	cl, _ := client(t, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "<?xml version=\"1.0\"?>")
		for range 10 {
			io.WriteString(w, "<!-- keep-alive for <HOST_LIST_VM_DETECTION_OUTPUT> -->")
			w.(http.Flusher).Flush()
			<-time.After(20 * time.Millisecond)
		}
		io.WriteString(w, strings.TrimPrefix(hosts("<HOST><ID>1</ID></HOST>"), `<?xml version="1.0" encoding="UTF-8" ?>`))
	})
	cl.IdleTimeout = 150 * time.Millisecond
	if r, _, err := ask(cl); err != nil || len(r.done) != 1 {
		t.Errorf("%v, %v", err, r.done)
	}
}

func TestConnectionFailures(t *testing.T) {
	cl, _ := client(t, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, hosts("")[:80])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	_, _, err := ask(cl)
	checkError(t, err, qualys.Unavailable, 0, "broke off")
	cl.Origin = &url.URL{Scheme: "http", Host: "127.0.0.1:1"}
	_, _, err = ask(cl)
	checkError(t, err, qualys.Unreachable, time.Second, "refused")
	if strings.Contains(err.Error(), "action=list") {
		t.Errorf("the query is in the error: %v", err)
	}
}

func TestNextPageMustGrow(t *testing.T) {
	cl, _ := client(t, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, page("<WARNING><CODE>1980</CODE><URL>https://x/?id_min=5</URL></WARNING>"))
	})
	_, err := qualys.NewDetections(cl, ingest.VM.Schema).Page(context.Background(), record.Query{From: 5}, newRows())
	checkError(t, err, qualys.Broken, 0, "never end")
}

func TestCancelTellsItsCause(t *testing.T) {
	cl, _ := client(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, hosts("")[:80])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	want := errors.New("my reason")
	ctx, cancel := context.WithCancelCause(context.Background())
	time.AfterFunc(30*time.Millisecond, func() { cancel(want) })
	if _, err := qualys.NewDetections(cl, ingest.VM.Schema).Page(ctx, record.Query{}, newRows()); !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

// A reader that is held up by a slow destination is no silence of Qualys.
func TestSlowSinkIsNoSilence(t *testing.T) {
	cl, _ := client(t, func(w http.ResponseWriter, _ *http.Request) {
		for _, part := range strings.SplitAfter(hosts("<HOST><ID>1</ID><DETECTION_LIST><DETECTION><QID>1</QID></DETECTION></DETECTION_LIST></HOST><HOST><ID>2</ID></HOST>"), "</HOST>") {
			io.WriteString(w, part)
			w.(http.Flusher).Flush()
		}
	})
	cl.IdleTimeout = 40 * time.Millisecond
	r := &slowRows{rows: newRows(), wait: 120 * time.Millisecond}
	if _, err := qualys.NewDetections(cl, ingest.VM.Schema).Page(context.Background(), record.Query{}, r); err != nil || len(r.done) != 2 {
		t.Errorf("%v, hosts %v", err, r.done)
	}
}

type slowRows struct {
	*rows
	wait time.Duration
}

func (r *slowRows) Done(id uint64) error {
	<-time.After(r.wait)
	return r.rows.Done(id)
}

// Qualys' headers do not always tell that the window is used up.
func TestUsedUpWindowByItsText(t *testing.T) {
	calls := 0
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	cl, _ := client(t, func(w http.ResponseWriter, _ *http.Request) {
		calls++
		w.WriteHeader(409)
		io.WriteString(w, "<SIMPLE_RETURN><RESPONSE><CODE>1965</CODE><TEXT>for another 19 hours.</TEXT></RESPONSE></SIMPLE_RETURN>")
	})
	cl.Now = func() time.Time { return now }
	_, _, err := ask(cl)
	checkError(t, err, qualys.Limited, 65*time.Minute, "1965")
	now = now.Add(time.Hour)
	_, _, err = ask(cl)
	checkError(t, err, qualys.Limited, 5*time.Minute, "said to a call just before: for another 19 hours")
	if calls != 1 {
		t.Errorf("%d calls in a window that is used up", calls)
	}
}

const detectionPath = "/api/5.0/fo/asset/host/vm/detection/"

// Qualys spells the headers in two ways, and leaves some out.
func TestLimits(t *testing.T) {
	for name, c := range map[string]struct {
		header map[string]string
		want   record.CallLimits
	}{
		"recorded":       {map[string]string{"X-RateLimit-Limit": "300", "X-RateLimit-Window-Sec": "3600", "X-RateLimit-Remaining": "298", "X-Concurrency-Limit-Limit": "2", "X-Concurrency-Limit-Running": "0"}, record.CallLimits{Calls: 300, Remaining: 298, WindowSec: 3600, Concurrent: 2, Running: 0}},
		"other spelling": {map[string]string{"x-concurrencylimit-limit": "5", "X-ConcurrencyLimit-Running": "1"}, record.CallLimits{Calls: -1, Remaining: -1, WindowSec: -1, Concurrent: 5, Running: 1}},
		"none":           {nil, record.CallLimits{Calls: -1, Remaining: -1, WindowSec: -1, Concurrent: -1, Running: -1}},
		"odd":            {map[string]string{"X-RateLimit-Limit": "many", "X-RateLimit-Remaining": " 7 "}, record.CallLimits{Calls: -1, Remaining: 7, WindowSec: -1, Concurrent: -1, Running: -1}},
	} {
		cl, _ := client(t, func(w http.ResponseWriter, _ *http.Request) {
			for k, v := range c.header {
				w.Header().Set(k, v)
			}
			io.WriteString(w, page(""))
		})
		if _, _, err := ask(cl); err != nil || cl.Limits()[detectionPath] != c.want {
			t.Errorf("%s: %+v, %v; want %+v", name, cl.Limits(), err, c.want)
		}
	}
}

// What other records a source returns makes it another source.
func TestIdentity(t *testing.T) {
	cl, _ := client(t, nil)
	source := func(change func(*qualys.Detections)) string {
		d := qualys.NewDetections(cl, ingest.VM.Schema)
		change(d)
		return d.Identity()
	}
	same := source(func(*qualys.Detections) {})
	if same != source(func(d *qualys.Detections) { d.PageSize = 7 }) {
		t.Error("the page size is no other request")
	}
	for name, change := range map[string]func(*qualys.Detections){
		"filter":  func(d *qualys.Detections) { d.Filter = url.Values{"severities": {"5"}} },
		"results": func(d *qualys.Detections) { d.Results = false },
		"by":      func(d *qualys.Detections) { d.By = qualys.ByDetection },
		"origin": func(d *qualys.Detections) {
			d.Client = &qualys.Client{Origin: &url.URL{Host: "x"}, Credentials: cl.Credentials}
		},
		"account": func(d *qualys.Detections) {
			d.Client = &qualys.Client{Origin: cl.Origin, Credentials: &login{user: "other"}}
		},
	} {
		if source(change) == same {
			t.Errorf("another %s gives the same identity", name)
		}
	}
	if strings.Contains(same, "user") && strings.Contains(same, "as user") {
		t.Error("the account's name is written down")
	}
}

const badLogin = `<SIMPLE_RETURN><RESPONSE><CODE>2000</CODE><TEXT>Bad Login/Password</TEXT></RESPONSE></SIMPLE_RETURN>`
