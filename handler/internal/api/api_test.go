package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/check"
	"qualys-sentinel/handler/internal/functions"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/ondemand"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/settings"
	"qualys-sentinel/handler/internal/status"
)

// backend answers as it is told.
type backend struct {
	syncErr error
	err     error
	outcome check.Result
	asked   []string // dataset of each sync
	window  ondemand.Window
}

const known = "abcdefghijklmnop"

func (b *backend) Sync(_ context.Context, datasets []*ingest.Dataset, w ondemand.Window) (string, error) {
	if b.syncErr != nil {
		return "", b.syncErr
	}
	for _, d := range datasets {
		b.asked = append(b.asked, d.Name)
	}
	b.window = w
	return known, nil
}

func (b *backend) CheckFilter(filter string) error {
	values, _, err := settings.ParseFilter(filter)
	if err != nil {
		return err
	}
	return qualys.CheckFilter(values)
}

func (b *backend) Status(_ context.Context, host string) (status.Document, error) {
	return status.Document{Version: status.Version, Program: status.Program{Host: host}, Datasets: []status.Dataset{}}, b.err
}

func (b *backend) Find(_ context.Context, id string) (*status.SyncDocument, error) {
	if id != known {
		return nil, b.err
	}
	return &status.SyncDocument{Version: status.Version, ID: id, Syncs: []status.Sync{{ID: id, Dataset: "vm", State: status.Running}}}, b.err
}

func (b *backend) Check(context.Context) check.Report {
	return check.Report{Version: check.Version, Outcome: b.outcome, Steps: []check.Step{{Name: "settings", Result: b.outcome}}}
}

func newAPI(b *backend) map[string]http.Handler {
	return (&API{Backend: b, Log: zap.NewNop(), Now: func() time.Time { return time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC) }}).Functions()
}

func TestAnswers(t *testing.T) {
	busy := &ondemand.BusyError{Dataset: "vm", Run: "run7"}
	for name, c := range map[string]struct {
		backend  backend
		function string
		method   string
		path     map[string]string // values
		query    string
		accept   string
		announce string // length of the body
		body     string
		code     int
		want     []string
		header   map[string]string
	}{
		"sync":               {function: "QualysSync", method: "POST", path: map[string]string{"dataset": "vm"}, code: 202, want: []string{`"id": "` + known}, header: map[string]string{"Location": "/api/status/" + known, "Retry-After": "5"}},
		"sync all":           {function: "QualysSync", method: "POST", path: map[string]string{"dataset": "all"}, body: `{"full":true}`, code: 202},
		"sync nothing":       {function: "QualysSync", method: "POST", path: map[string]string{"dataset": ""}, code: 404, want: []string{"Accepted: vm, kb, all"}},
		"sync, all faults":   {function: "QualysSync", method: "POST", path: map[string]string{"dataset": "vm"}, body: `{"since":1,"full":2,"filterParameters":"&id_min=1"}`, code: 400, want: []string{`"faults": [`, "since:", "full:", "id_min"}},
		"sync, no fit":       {function: "QualysSync", method: "POST", path: map[string]string{"dataset": "kb"}, body: `{"hostIds":[1],"filterParameters":"&a=b"}`, code: 400, want: []string{"has no hosts", "takes none"}},
		"sync, busy":         {backend: backend{syncErr: busy}, function: "QualysSync", method: "POST", path: map[string]string{"dataset": "vm"}, code: 409, want: []string{`"run": "run7"`, `"status": "/api/status/run7"`}},
		"sync, of a request": {backend: backend{syncErr: &ondemand.BusyError{Dataset: "vm", Run: "run7", Request: "req1"}}, function: "QualysSync", method: "POST", path: map[string]string{"dataset": "vm"}, code: 409, want: []string{`"request": "req1"`, `"status": "/api/status/req1"`}},
		"sync, no storage":   {backend: backend{syncErr: errors.New("state storage: answered 403")}, function: "QualysSync", method: "POST", path: map[string]string{"dataset": "vm"}, code: 503, want: []string{"answered 403"}},
		"sync by GET":        {function: "QualysSync", method: "GET", path: map[string]string{"dataset": "vm"}, code: 405, want: []string{"use POST"}, header: map[string]string{"Allow": "POST"}},
		"sync, broken off":   {function: "QualysSync", method: "POST", path: map[string]string{"dataset": "vm"}, announce: "5", code: 400, want: []string{"has not arrived"}},
		"sync, empty":        {function: "QualysSync", method: "POST", path: map[string]string{"dataset": "vm"}, announce: "0", code: 202},
		"sync, huge":         {function: "QualysSync", method: "POST", path: map[string]string{"dataset": "vm"}, body: strings.Repeat("x", 300<<10), code: 400, want: []string{"at most 65536 bytes"}},

		"status":              {function: "QualysStatus", method: "GET", code: 200, want: []string{`"datasets": []`, `"host": "4.1"`}, header: map[string]string{"Content-Type": "application/json; charset=utf-8", "Cache-Control": "no-store", "Vary": "Accept"}},
		"status for a person": {function: "QualysStatus", method: "GET", accept: "text/html,application/xml;q=0.9", code: 200, want: []string{"<!doctype html>"}, header: map[string]string{"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": status.PagePolicy, "Referrer-Policy": "no-referrer"}},
		"status as JSON":      {function: "QualysStatus", method: "GET", accept: "text/html", query: "format=json", code: 200, want: []string{`"datasets"`}},
		"status as a page":    {function: "QualysStatus", method: "GET", query: "format=html", code: 200, want: []string{"<!doctype html>"}},
		"status of one":       {function: "QualysStatus", method: "GET", path: map[string]string{"run": known}, code: 200, want: []string{`"state": "running"`}},
		"status of nobody":    {function: "QualysStatus", method: "GET", path: map[string]string{"run": "bbbbbbbbbbbbbbbb"}, code: 404, want: []string{"no such"}},
		"status of no id":     {function: "QualysStatus", method: "GET", path: map[string]string{"run": "../../x<script>"}, code: 404, want: []string{"no such"}},
		"status, no settings": {backend: backend{err: errors.New("1 setting is wrong")}, function: "QualysStatus", method: "GET", code: 503, want: []string{"1 setting is wrong"}},
		"status, unwell":      {backend: backend{err: errors.New("state storage")}, function: "QualysStatus", method: "GET", path: map[string]string{"run": known}, code: 503, want: []string{"state storage"}},

		"check":         {backend: backend{outcome: check.OK}, function: "QualysCheck", method: "GET", code: 200, want: []string{`"outcome": "ok"`}},
		"check, warns":  {backend: backend{outcome: check.Warning}, function: "QualysCheck", method: "GET", code: 200, want: []string{`"outcome": "warning"`}},
		"check, failed": {backend: backend{outcome: check.Failed}, function: "QualysCheck", method: "GET", code: 424, want: []string{`"outcome": "failed"`}},
		"check by POST": {function: "QualysCheck", method: "POST", code: 405},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(c.method, "/?"+c.query, strings.NewReader(c.body))
			r.Header.Set("Accept", c.accept)
			r.Header.Set("Content-Length", c.announce)
			r.Header.Set(functions.HeaderHostVersion, "4.1")
			for name, value := range c.path {
				r.SetPathValue(name, value)
			}
			w := httptest.NewRecorder()
			newAPI(&c.backend)[c.function].ServeHTTP(w, r)
			if w.Code != c.code {
				t.Errorf("%d %s; want %d", w.Code, w.Body, c.code)
			}
			for _, want := range c.want {
				if !strings.Contains(w.Body.String(), want) {
					t.Errorf("%q is not in %.500s", want, w.Body)
				}
			}
			for name, want := range c.header {
				if got := w.Header().Get(name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
			if c.code == 202 && len(c.backend.asked) == 0 || c.code != 202 && len(c.backend.asked) != 0 {
				t.Errorf("asked for %v", c.backend.asked)
			}
		})
	}
}

// What is asked for reaches the backend.
func TestSyncPassesOn(t *testing.T) {
	b := &backend{}
	r := httptest.NewRequest("POST", "/", strings.NewReader(`{"hostIds":["7"],"since":"2026-10-01"}`))
	r.SetPathValue("dataset", "vm")
	newAPI(b)["QualysSync"].ServeHTTP(httptest.NewRecorder(), r)
	if !slices.Equal(b.asked, []string{"vm"}) || !slices.Equal(b.window.HostIDs, []uint64{7}) || b.window.Since == nil || b.window.Since.Month() != time.October {
		t.Errorf("%v %+v", b.asked, b.window)
	}
}

// Whatever is sent to the HTTP functions, through the host's envelope, the
// answer is a document, no 5xx, and tells nothing of the program's insides.
func FuzzFunctions(f *testing.F) {
	for _, seed := range []struct{ function, method, url, accept, contentType, param, body string }{
		{"QualysSync", "POST", "http://h/api/sync/vm?code=x", "", "application/json", "vm", `{"since":"2026-10-01"}`},
		{"QualysSync", "POST", "/api/sync/all", "", "application/octet-stream", "all", `eyJmdWxsIjp0cnVlfQ==`},
		{"QualysSync", "GET", "/api/sync/kb", "", "", "kb", ""},
		{"QualysStatus", "GET", "/api/status/" + known, "text/html", "", known, ""},
		{"QualysStatus", "HEAD", "http://[::1%25]/?format=json&format=html", "*/*", "multipart/form-data; boundary=x", "<img>", "\x00"},
		{"QualysCheck", "GET", "/api/check#x", "", "", "", "{"},
		{"QualysCheck", "G T", "::", "\r\n", "", "", ""},
	} {
		f.Add(seed.function, seed.method, seed.url, seed.accept, seed.contentType, seed.param, seed.body)
	}
	f.Fuzz(func(t *testing.T, function, method, url, accept, contentType, param, body string) {
		host := &functions.Host{Log: zap.NewNop(), HTTP: newAPI(&backend{outcome: check.OK})}
		if host.HTTP[function] == nil {
			function = "QualysSync"
		}
		envelope, err := json.Marshal(map[string]any{"Data": map[string]any{"req": map[string]any{
			"Url": url, "Method": method, "Body": body, "Params": map[string]any{"dataset": param, "run": param},
			"Headers": map[string]any{"Accept": []string{accept}, "Content-Type": []string{contentType}, accept: contentType, "x-functions-key": "KEY-KEY"},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, doc := range [][]byte{envelope, []byte(body)} {
			w := httptest.NewRecorder()
			host.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/"+function, bytes.NewReader(doc)))
			var out struct {
				Outputs struct {
					Res *struct {
						StatusCode int
						Headers    map[string]string
						Body       string
					}
				}
			}
			if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || w.Code != 200 || out.Outputs.Res == nil {
				t.Fatalf("%d %s: %v", w.Code, w.Body, err)
			}
			res := out.Outputs.Res
			if res.StatusCode < 200 || res.StatusCode >= 500 || strings.Contains(res.Body, ".go:") || strings.Contains(res.Body, "goroutine") || strings.Contains(res.Body, "KEY-KEY") {
				t.Fatalf("%d %.500s", res.StatusCode, res.Body)
			}
			if !strings.HasPrefix(res.Headers["Content-Type"], "text/html") && !json.Valid([]byte(res.Body)) {
				t.Fatalf("%d %v %.500s", res.StatusCode, res.Headers, res.Body)
			}
		}
	})
}
