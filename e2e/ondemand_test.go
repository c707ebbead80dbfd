//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"qualys-sentinel/e2e/azurite"
	"qualys-sentinel/e2e/canary"
	"qualys-sentinel/handler/simulation"
)

// caller calls the HTTP functions of a host.
type caller struct {
	t      testing.TB
	origin string
	key    string
}

// answer is what the caller got, and its document.
type answer struct {
	status int
	header http.Header
	body   string
}

func (c caller) call(method, path, body string, header ...string) answer {
	c.t.Helper()
	req, err := http.NewRequest(method, c.origin+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if c.key != "" {
		req.Header.Set("x-functions-key", c.key)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	doc, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(doc)}
}

// read decodes an answer's document.
func (a answer) read(t testing.TB, to any) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), to); err != nil {
		t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
}

func (h *functionsHost) caller() caller {
	return caller{t: h.t, origin: "http://127.0.0.1:" + h.port}
}

// syncState is the state of a sync's first dataset.
func (c caller) syncState(id string) (simulation.Sync, error) {
	c.t.Helper()
	a := c.call("GET", "/api/status/"+id, "")
	var doc simulation.SyncDocument
	if a.status != http.StatusOK {
		return simulation.Sync{}, fmt.Errorf("%d %s", a.status, a.body)
	}
	a.read(c.t, &doc)
	if len(doc.Syncs) == 0 {
		return simulation.Sync{}, fmt.Errorf("no sync: %s", a.body)
	}
	return doc.Syncs[0], nil
}

// The three HTTP functions, through the real host: routes, status codes,
// content types, and what they do.
func TestHTTPFunctions(t *testing.T) {
	t.Parallel()
	s := startServices(t, 60, 20)
	s.setKnowledge(&simulation.Knowledge{Seed: 1, Size: 50})
	h := startHost(t, s)
	c := h.caller()

	// Nothing has run.
	var doc simulation.StatusDocument
	a := c.call("GET", "/api/status", "")
	a.read(t, &doc)
	if a.status != 200 || !strings.HasPrefix(a.header.Get("Content-Type"), "application/json") || a.header.Get("Cache-Control") != "no-store" ||
		len(doc.Datasets) != 2 || doc.Datasets[0].Watermark != nil || !strings.HasPrefix(doc.Program.Host, "4.") {
		t.Fatalf("%d %v\n%s", a.status, a.header, a.body)
	}
	page := c.call("GET", "/api/status", "", "Accept", "text/html,application/xhtml+xml,*/*;q=0.8")
	if page.status != 200 || !strings.HasPrefix(page.header.Get("Content-Type"), "text/html") || !strings.Contains(page.header.Get("Content-Security-Policy"), "default-src 'none'") || !strings.HasPrefix(page.body, "<!doctype html>") {
		t.Errorf("%d %v\n%.200s", page.status, page.header, page.body)
	}

	// Check: all is well.
	var report simulation.CheckReport
	a = c.call("GET", "/api/check", "")
	a.read(t, &report)
	if a.status != 200 || report.Outcome != "warning" && report.Outcome != "ok" || len(report.Steps) < 15 {
		t.Errorf("%d\n%s", a.status, a.body)
	}
	for _, step := range report.Steps {
		// The simulated Qualys lives a year ago.
		if step.Result != "ok" && step.Name != "clock" {
			t.Errorf("step %+v", step)
		}
	}

	// A sync of what is new.
	a = c.call("POST", "/api/sync/vm", "")
	var begun simulation.SyncDocument
	a.read(t, &begun)
	if a.status != 202 || a.header.Get("Location") != "/api/status/"+begun.ID || len(begun.Syncs) != 1 || begun.Syncs[0].Dataset != "vm" {
		t.Fatalf("%d %v\n%s", a.status, a.header, a.body)
	}
	c.completes(begun.ID)
	cp := s.checkpoint("vm")
	if dup, total, _ := s.duplicates(time.Time{}, *cp.Watermark); dup != 0 || total < 1000 {
		t.Errorf("%d of %d came twice", dup, total)
	}

	// Chosen hosts again: the watermark stays.
	var host uint64
	s.sub.Expected(time.Time{}, s.clock(), func(h simulation.Host, _ simulation.Detection) { host = h.ID })
	before := s.azure.Arrived().Rows
	a = c.call("POST", "/api/sync/vm", fmt.Sprintf(`{"hostIds":[%d]}`, host))
	a.read(t, &begun)
	if sync := c.completes(begun.ID); sync.Attempts[0].Record.Parents != 1 {
		t.Errorf("%+v", sync)
	}
	if after := s.checkpoint("vm"); !after.Watermark.Equal(*cp.Watermark) || after.LastRun != cp.LastRun || s.azure.Arrived().Rows == before {
		t.Errorf("%d rows more, checkpoint %+v, it was %+v", s.azure.Arrived().Rows-before, after, cp)
	}

	// What is wrong is named.
	for name, b := range map[string]struct {
		method, path, body string
		status             int
		want               []string
	}{
		"two faults":      {"POST", "/api/sync/vm", `{"since":"tomorrow","colour":1}`, 400, []string{"since", "colour"}},
		"no dataset":      {"POST", "/api/sync/tv", "", 404, []string{"vm, kb, all"}},
		"hosts of the KB": {"POST", "/api/sync/all", `{"hostIds":[1]}`, 400, []string{"has no hosts"}},
		"another method":  {"GET", "/api/sync/vm", "", 405, []string{"POST"}},
		"unknown run":     {"GET", "/api/status/aaaaaaaaaaaaaaaa", "", 404, []string{"no such"}},
		"no id at all":    {"GET", "/api/status/no%20id%20%3Cb%3E", "", 404, nil},
		"no such route":   {"DELETE", "/api/check", "", 404, nil},
		"not even JSON":   {"POST", "/api/sync/vm", `{"since`, 400, []string{"no JSON object"}},
	} {
		a := c.call(b.method, b.path, b.body)
		for _, want := range b.want {
			if !strings.Contains(a.body, want) {
				t.Errorf("%s: %q is not in %s", name, want, a.body)
			}
		}
		if a.status != b.status {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}

	// Whatever is sent, the answer is no 5xx and tells nothing of the insides.
	for _, path := range []string{"/api/sync/vm", "/api/sync/%2e%2e%2fkb", "/api/sync/" + strings.Repeat("a", 2000), "/api/status/", "/api/status/%ff%fe", "/api/status?format=%00&code=", "/api/check?x=%zz"} {
		for _, method := range []string{"GET", "POST", "PUT", "OPTIONS"} {
			for _, body := range []string{"", "{", `{"hostIds":` + strings.Repeat("[", 5000) + "}", `{"since":"` + strings.Repeat("é", 50000) + `"}`, "\x00\xff\xfe", `{"full":1e999}`} {
				for _, kind := range []string{"application/json", "application/octet-stream", "multipart/form-data; boundary=\"", "text/html; charset=utf-7"} {
					a := c.call(method, path, body, "Content-Type", kind, "Accept", "text/plain;q=x, \"", "X-Azure-Functions-InvocationId", "forged")
					if a.status >= 500 || strings.Contains(a.body, ".go:") || strings.Contains(a.body, "goroutine") || strings.Contains(a.body, "   at ") {
						t.Errorf("%s %.50s %.20q as %s: %d %.200s", method, path, body, kind, a.status, a.body)
					}
					if a.status == http.StatusAccepted { // of an empty body
						var begun simulation.SyncDocument
						a.read(t, &begun)
						c.completes(begun.ID)
					}
				}
			}
		}
	}

	// A wrong password: the check says so, with a status of its own.
	s.qualys.SetPassword("another")
	a = c.call("GET", "/api/check", "")
	a.read(t, &report)
	if a.status != http.StatusFailedDependency || report.Outcome != "failed" || strings.Contains(a.body, canary.Password) {
		t.Errorf("%d\n%s", a.status, a.body)
	}
	for _, step := range report.Steps {
		if (step.Result == "failed") != (step.Name == "login") {
			t.Errorf("step %+v", step)
		}
	}
}

// completes waits until a sync of one dataset is complete.
func (c caller) completes(id string) (sync simulation.Sync) {
	c.t.Helper()
	azurite.Eventually(c.t, time.Minute, "the sync completes", func() (err error) {
		if sync, err = c.syncState(id); err == nil && sync.State != "complete" {
			err = fmt.Errorf("%+v", sync)
		}
		return err
	})
	return sync
}

// functionKey is the key that a host which asks for keys has made.
func (s *services) functionKey(h *functionsHost) (key string) {
	s.t.Helper()
	azurite.Eventually(s.t, time.Minute, "the host has made its keys", func() error {
		h.caller().call("GET", "/api/status?code=x", "") // makes it ask for them
		for name, doc := range s.documentsOf("azure-webjobs-secrets", "") {
			var keys struct {
				FunctionKeys []struct{ Value string } `json:"functionKeys"`
			}
			if name == s.hostID()+"/host.json" && json.Unmarshal(doc, &keys) == nil && len(keys.FunctionKeys) > 0 {
				key = keys.FunctionKeys[0].Value
				return nil
			}
		}
		return fmt.Errorf("no keys\n%s", h.output())
	})
	return key
}

// The host asks for a function key, by header or in the address; it appears
// nowhere.
func TestFunctionKeys(t *testing.T) {
	t.Parallel()
	s := startServices(t, 10, 5)
	s.setKnowledge(&simulation.Knowledge{Seed: 1, Size: 50})
	h := startHost(t, s, "--enableAuth")
	key := s.functionKey(h)
	without := h.caller()
	with := without
	with.key = key
	for _, f := range []struct{ method, path string }{{"GET", "/api/status"}, {"GET", "/api/check"}, {"POST", "/api/sync/kb"}} {
		if a := without.call(f.method, f.path, ""); a.status != http.StatusUnauthorized {
			t.Errorf("%s without a key: %d %s", f.path, a.status, a.body)
		}
		if a := with.call(f.method, f.path, ""); a.status >= 400 || strings.Contains(a.body, key) {
			t.Errorf("%s with a key: %d %s", f.path, a.status, a.body)
		}
	}
	if a := without.call("GET", "/api/status?code="+key, "", "Accept", "text/html"); a.status != 200 || strings.Contains(a.body, key) {
		t.Errorf("with the key in the address: %d", a.status)
	}
	azurite.Eventually(t, time.Minute, "the sync has ended", func() error {
		if cp := s.checkpoint("kb"); cp == nil || cp.Watermark == nil && cp.Window == nil && cp.Stalled == 0 {
			return fmt.Errorf("%+v", cp)
		}
		return nil
	})
	for name, doc := range s.documents("") {
		if strings.Contains(string(doc), key) {
			t.Errorf("the key is in %s", name)
		}
	}
	if strings.Contains(h.output(), key) {
		t.Error("the key is in the log")
	}
}

// A sync that was asked for over HTTP goes on after SIGKILL, at the next tick,
// and its status tells the story.
func TestSyncGoesOnAfterSIGKILL(t *testing.T) {
	t.Parallel() // it waits a minute for a killed run's lease
	s := startServices(t, hosts, detections)
	s.environ["filterParameters"] = "&truncation_limit=20"
	h := startHost(t, s)
	c := h.caller()
	// The dataset's own window first, so that the sync is of an older one.
	if err := h.trigger("QualysVM"); err != nil {
		t.Fatal(err)
	}
	own := windowAfter(t, s, h, "vm", time.Time{})

	hold := make(chan struct{})
	reached := make(chan struct{})
	calls := 0
	s.mu.Lock()
	s.beforeIngest = func(int) {
		s.mu.Lock()
		calls++
		n := calls
		s.mu.Unlock()
		if n == 12 {
			close(reached)
			<-hold
		}
	}
	s.mu.Unlock()
	a := c.call("POST", "/api/sync/vm", `{"full":true}`)
	var begun simulation.SyncDocument
	a.read(t, &begun)
	if a.status != 202 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	<-reached
	// While it goes on, its progress can be seen, and nobody gets a second one.
	sync, err := c.syncState(begun.ID)
	if err != nil || sync.State != "running" || sync.Attempts[0].Running == nil || sync.Attempts[0].Running.Counts.Accepted == 0 {
		t.Errorf("%+v, %v", sync, err)
	}
	var busy struct{ Error, Run, Request, Status string }
	a = c.call("POST", "/api/sync/all", "")
	a.read(t, &busy)
	if a.status != http.StatusConflict || busy.Run != begun.ID || busy.Status != "/api/status/"+begun.ID {
		t.Errorf("%d %s", a.status, a.body)
	}
	pid, err := h.handlerPID()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	close(hold)
	azurite.Eventually(t, time.Minute, "the handler is back", func() error {
		sync, err := c.syncState(begun.ID)
		if err != nil {
			return err
		}
		// The lease of the killed run lasts up to a minute.
		if sync.State != "queued" && sync.State != "running" {
			t.Fatalf("%+v", sync)
		}
		return nil
	})
	var ticked time.Time
	azurite.Eventually(t, 3*time.Minute, "a later tick carries it on", func() error {
		if time.Since(ticked) > 5*time.Second {
			ticked = time.Now()
			if err := h.trigger("QualysVM"); err != nil {
				return err
			}
		}
		sync, err = c.syncState(begun.ID)
		if err == nil && sync.State != "complete" {
			err = fmt.Errorf("%+v", sync)
		}
		return err
	})
	if n := len(sync.Attempts); n != 2 || sync.Attempts[0].Outcome != "killed" || sync.Attempts[1].Outcome != "complete" || sync.Attempts[1].Record.Request != begun.ID {
		t.Errorf("the story: %+v", sync.Attempts)
	} else if second := sync.Attempts[1].Record; second.Parents == 0 || second.Parents >= hosts {
		t.Errorf("the second attempt read %d of %d hosts: it did not go on where the first stood", second.Parents, hosts)
	}
	// All of it came again, and the watermark is where it was.
	_, total, _ := s.duplicates(time.Time{}, *own.Watermark)
	s.mu.Lock()
	for key, rows := range s.rows {
		if len(rows) < 2 {
			t.Fatalf("%s came once: it was not sent again", key)
		}
	}
	s.mu.Unlock()
	if after := s.checkpoint("vm"); after.Watermark.Before(*own.Watermark) || total < 20_000 {
		t.Errorf("watermark %s, it was %s; %d detections", after.Watermark, own.Watermark, total)
	}
	for name := range s.documents("") {
		if strings.HasPrefix(name, "requests/open/") || strings.HasPrefix(name, "checkpoints/default/requests/") {
			t.Errorf("left over: %s", name)
		}
	}
}

// A handler that is asked to stop ends what was asked for in good order, and
// leaves it to the next.
func TestStopDuringASync(t *testing.T) {
	t.Parallel()
	s := startServices(t, 400, 40)
	s.environ["filterParameters"] = "&truncation_limit=20"
	reached := make(chan struct{})
	s.beforeIngest = func(n int) {
		if n == 4 {
			close(reached)
		}
	}
	h := startBare(t, s)
	a := caller{t: t, origin: strings.TrimSuffix(h.url, "/")}.call("POST", "/QualysSync", `{"Data":{"req":{"Url":"http://x/api/sync/vm","Method":"POST","Params":{"dataset":"vm"},"Body":"{\"full\":true}"}}}`)
	var result struct {
		Outputs struct{ Res struct{ StatusCode int } }
	}
	a.read(t, &result)
	if result.Outputs.Res.StatusCode != http.StatusAccepted {
		t.Fatal(a.body)
	}
	<-reached
	h.stop()
	var open simulation.Request
	for _, doc := range s.documents("requests/open/default/vm/") {
		if err := json.Unmarshal(doc, &open); err != nil {
			t.Fatal(err)
		}
	}
	if len(open.Attempts) != 1 || !open.Full {
		t.Fatalf("%+v\n%s", open, h.output())
	}
	var record simulation.Report
	for _, doc := range s.documents("runs/vm/") {
		if err := json.Unmarshal(doc, &record); err != nil {
			t.Fatal(err)
		}
	}
	if record.Run != open.Attempts[0].Run || record.Outcome != "paused" || record.Parents == 0 || record.Abandoned != 0 {
		t.Errorf("%+v", record)
	}
	// The next tick goes on, in a new process.
	s.beforeIngest = nil
	startBare(t, s).call("QualysVM")
	if open := s.documents("requests/open/"); len(open) != 0 {
		t.Errorf("%v", open)
	}
	if done := s.documents("requests/done/default/vm/"); len(done) != 1 {
		t.Errorf("%v", done)
	}
}
