package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"qualys-sentinel/handler/internal/checkpoint/folder"
	"qualys-sentinel/handler/internal/functions"
	"qualys-sentinel/handler/internal/integration"
)

const (
	testUser     = "acme_ab1"
	testPassword = "the-password-of-qualys"
	testKey      = "dGhlLWtleS1vZi10aGUtd29ya3NwYWNl"
	addBody      = `{"workspaceId":"11111111-2222-3333-4444-555555555555","primaryKey":"` + testKey + `","name":"Sample Integration"}`
)

// pauses counts the pauses behind wrong logins; they take no time.
type pauses struct {
	mu   sync.Mutex
	n    int
	hold chan struct{} // pauses last until it is closed
}

func (p *pauses) Now() time.Time { return time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) }
func (p *pauses) Sleep(ctx context.Context, d time.Duration) error {
	p.mu.Lock()
	if d == loginPause {
		p.n++
	}
	hold := p.hold
	p.mu.Unlock()
	if hold != nil {
		<-hold
	}
	return context.Cause(ctx)
}

type memoryKeys struct{}

func (memoryKeys) Put(context.Context, int64, string) (string, error) {
	return "https://v.vault.azure.net/secrets/k", nil
}
func (memoryKeys) Get(context.Context, string) (string, error) { return testKey, nil }
func (memoryKeys) Remove(context.Context, string) error        { return nil }

type integrationBackend struct {
	registry Registry
	err      error
	off      bool
	renewed  string // password after a rotation
	renewals int
}

// data is the list of an answer; it must be there where there is a count.
func data(r serviceResponse) []string {
	if r.Data == nil {
		return nil
	}
	return *r.Data
}

func (b *integrationBackend) Renew(context.Context) (string, string, error) {
	b.renewals++
	if b.renewed == "" {
		return testUser, testPassword, nil
	}
	return testUser, b.renewed, nil
}

func (b *integrationBackend) Off() bool { return b.off }

func (b *integrationBackend) Registry(context.Context) (Registry, string, string, error) {
	return b.registry, testUser, testPassword, b.err
}

type desk struct {
	t       *testing.T
	backend *integrationBackend
	pauses  *pauses
	logs    *observer.ObservedLogs
	api     *Integration
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	d := &desk{t: t, pauses: &pauses{}, logs: logs}
	d.backend = &integrationBackend{registry: &integration.Registry{Store: folder.New(t.TempDir()), Keys: memoryKeys{}, Clock: d.pauses, Log: zap.New(core)}}
	d.api = NewIntegration(d.backend, d.pauses, zap.New(core))
	return d
}

// call is an answer, in the envelope.
func (d *desk) call(method, path, body string, header ...string) (int, serviceResponse, http.Header) {
	d.t.Helper()
	r := httptest.NewRequest(method, "/qps/rest/2.0/"+path, strings.NewReader(body))
	verb, rest, _ := strings.Cut(path, "/integration/azure/sentinel/")
	r.SetPathValue("verb", verb)
	r.SetPathValue("rest", rest)
	r.SetBasicAuth(testUser, testPassword)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	d.api.ServeHTTP(w, r)
	var doc struct{ ServiceResponse *serviceResponse }
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || doc.ServiceResponse == nil || doc.ServiceResponse.ResponseCode == "" {
		d.t.Fatalf("%s %s: no envelope: %s", method, path, w.Body)
	}
	if h := w.Header(); h.Get("Content-Type") != "application/json; charset=utf-8" || h.Get("Cache-Control") != "no-store" {
		d.t.Errorf("headers %v", h)
	}
	if strings.Contains(w.Body.String(), testKey) || strings.Contains(w.Body.String(), testPassword) {
		d.t.Errorf("a secret is in %s", w.Body)
	}
	return w.Code, *doc.ServiceResponse, w.Header()
}

const product1 = "integration/azure/sentinel/1/vm"

// The five calls, as the guide tells them.
func TestFiveCalls(t *testing.T) {
	d := newDesk(t)
	want := func(method, path, body, text string) {
		t.Helper()
		code, answer, _ := d.call(method, path, body)
		if code != 200 || answer.ResponseCode != "SUCCESS" || answer.Count == nil || *answer.Count != 1 || len(data(answer)) != 1 || data(answer)[0] != text || answer.Details != nil {
			t.Errorf("%s %s: %d %+v", method, path, code, answer)
		}
	}
	const one = "{integrationId=1, name='Sample Integration', customerId=0, customerUUID='00000000-0000-0000-0000-000000000000', workspaceId='11111111-2222-3333-4444-555555555555', minSeverity=3, baseCategory=Confirmed, customLogName='QUALYS_SECURITY_VM_FINDINGS', apiVersion='2016-04-01', resultSectionNeeded=false}"
	want("POST", "add/"+product, addBody, "integrationId=1")
	want("GET", "get/"+product, "", one)
	want("GET", "get/"+product1, "", one)
	want("PUT", "update/"+product1, `{"minSeverity":5,"baseCategory":"IG"}`, "Azure Sentinel integration successfully updated.")
	want("GET", "get/"+product1, "", strings.NewReplacer("minSeverity=3", "minSeverity=5", "Confirmed", "IG").Replace(one))
	want("DELETE", "delete/"+product1, "", "Azure Sentinel integration successfully deleted.")
	if code, answer, _ := d.call("GET", "get/"+product, ""); code != 200 || *answer.Count != 0 || answer.Data == nil || *answer.Data == nil || len(data(answer)) != 0 {
		t.Errorf("%d %+v: the list is empty, and there", code, answer)
	}
	if n := len(d.logs.FilterMessageSnippet("integration ").All()); n != 3 {
		t.Errorf("%d changes are logged", n)
	}
}

// Each refusal, in the envelope of Qualys' other endpoints.
func TestIntegrationRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		method, path, body string
		header             []string
		err                error
		code               int
		response, want     string
	}{
		"bad JSON":             {method: "POST", path: "add/" + product, body: `{"name"`, code: 400, response: "INVALID_REQUEST", want: "no JSON object"},
		"name of 51":           {method: "POST", path: "add/" + product, body: strings.Replace(addBody, "Sample Integration", strings.Repeat("x", 51), 1), code: 400, response: "INVALID_REQUEST", want: "name: it has 51 characters"},
		"name twice":           {method: "POST", path: "add/" + product, body: strings.Replace(addBody, "Sample Integration", "taken", 1), code: 400, response: "INVALID_REQUEST", want: "name: integration 1 has it already"},
		"severity 0":           {method: "POST", path: "add/" + product, body: strings.Replace(addBody, "}", `,"minSeverity":0}`, 1), code: 400, response: "INVALID_REQUEST", want: "minSeverity: 0 is no severity"},
		"severity 6":           {method: "PUT", path: "update/" + product1, body: `{"minSeverity":6}`, code: 400, response: "INVALID_REQUEST", want: "minSeverity: 6 is no severity"},
		"log with a dash":      {method: "POST", path: "add/" + product, body: strings.Replace(addBody, "}", `,"customLogName":"A-B"}`, 1), code: 400, response: "INVALID_REQUEST", want: `customLogName: "A-B"`},
		"unknown field":        {method: "PUT", path: "update/" + product1, body: `{"colour":1}`, code: 400, response: "INVALID_REQUEST", want: "colour: there is no such field"},
		"unknown id":           {method: "GET", path: "get/integration/azure/sentinel/99/vm", code: 404, response: "NOT_FOUND", want: "there is no such integration"},
		"unknown id to update": {method: "PUT", path: "update/integration/azure/sentinel/99/vm", body: `{"minSeverity":5}`, code: 404, response: "NOT_FOUND", want: "there is no such integration"},
		"unknown id to delete": {method: "DELETE", path: "delete/integration/azure/sentinel/99/vm", code: 404, response: "NOT_FOUND", want: "there is no such integration"},
		"id that is a name":    {method: "GET", path: "get/integration/azure/sentinel/taken/vm", code: 404, response: "NOT_FOUND", want: "there is no such integration"},
		"id 0":                 {method: "DELETE", path: "delete/integration/azure/sentinel/0/vm", code: 404, response: "NOT_FOUND", want: "there is no such integration"},
		"id that climbs":       {method: "GET", path: "get/integration/azure/sentinel/../vm", code: 404, response: "NOT_FOUND", want: "there is no such integration"},
		"wrong method":         {method: "POST", path: "get/" + product, body: addBody, code: 405, response: "OPERATION_NOT_SUPPORTED", want: "get is called by GET, not by POST"},
		"wrong method, add":    {method: "GET", path: "add/" + product, code: 405, response: "OPERATION_NOT_SUPPORTED", want: "add is called by POST"},
		"wrong verb":           {method: "GET", path: "search/" + product, code: 404, response: "NOT_FOUND", want: "there is no such call"},
		"update without id":    {method: "PUT", path: "update/" + product, body: "{}", code: 404, response: "NOT_FOUND", want: "there is no such call"},
		"add with an id":       {method: "POST", path: "add/" + product1, body: addBody, code: 404, response: "NOT_FOUND", want: "there is no such call"},
		"another product":      {method: "GET", path: "get/integration/azure/sentinel/was", code: 404, response: "NOT_FOUND", want: "there is no such call"},
		"oversized body":       {method: "POST", path: "add/" + product, body: strings.Repeat(" ", 70_000), code: 413, response: "LIMIT_EXCEEDED", want: "at most 65536 bytes"},
		"no credentials":       {method: "GET", path: "get/" + product, header: []string{"Authorization", ""}, code: 401, response: "INVALID_CREDENTIALS", want: "Authentication failed"},
		"a token":              {method: "GET", path: "get/" + product, header: []string{"Authorization", "Bearer x"}, code: 401, response: "INVALID_CREDENTIALS", want: "Authentication failed"},
		"half a password":      {method: "GET", path: "get/" + product, header: []string{"Authorization", basic(testUser, testPassword[:5])}, code: 401, response: "INVALID_CREDENTIALS", want: "Authentication failed"},
		"another user":         {method: "GET", path: "get/" + product, header: []string{"Authorization", basic("acme_ab2", testPassword)}, code: 401, response: "INVALID_CREDENTIALS", want: "Authentication failed"},
		"switched off":         {method: "GET", path: "get/" + product, err: ErrOff, code: 404, response: "OPERATION_NOT_SUPPORTED", want: "switched off"},
		"settings are wrong":   {method: "GET", path: "get/" + product, err: errors.New("apiPassword: secret of vault"), code: 503, response: "INTERNAL_ERROR", want: "the settings of the function app cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			if _, answer, _ := d.call("POST", "add/"+product, strings.Replace(addBody, "Sample Integration", "taken", 1)); answer.ResponseCode != "SUCCESS" {
				t.Fatalf("%+v", answer)
			}
			d.backend.err = c.err
			code, answer, header := d.call(c.method, c.path, c.body, c.header...)
			if code != c.code || answer.ResponseCode != c.response || answer.Details == nil || !strings.Contains(answer.Details.Message, c.want) || answer.Details.Resolution == "" || answer.Data != nil || answer.Count != nil {
				t.Errorf("%d %+v %+v\nwant %d %s %s", code, answer, answer.Details, c.code, c.response, c.want)
			}
			if (code == 401) != strings.HasPrefix(header.Get("WWW-Authenticate"), "Basic ") || (code == 503) != (header.Get("Retry-After") != "") {
				t.Errorf("headers %v", header)
			}
			d.backend.err = nil
			if _, answer, _ := d.call("GET", "get/"+product, ""); len(data(answer)) != 1 || !strings.Contains(data(answer)[0], "name='taken'") || !strings.Contains(data(answer)[0], "minSeverity=3") {
				t.Errorf("it has changed something: %+v", answer)
			}
		})
	}
}

func basic(user, password string) string {
	r := httptest.NewRequest("GET", "/", nil)
	r.SetBasicAuth(user, password)
	return r.Header.Get("Authorization")
}

// A hundred wrong logins are refused, slowed down one by one, and logged without a
// word of them; the right one is taken before, between and after.
func TestWrongLogins(t *testing.T) {
	d := newDesk(t)
	for n := range 100 {
		wrong := fmt.Sprintf("wrong-password-%d", n)
		code, answer, _ := d.call("POST", "add/"+product, addBody, "Authorization", basic("guessed-user", wrong), "X-Forwarded-For", "198.51.100.7, 203.0.113.9:52011")
		if code != 401 || answer.ResponseCode != "INVALID_CREDENTIALS" {
			t.Fatalf("%d %+v", code, answer)
		}
		if n == 50 {
			if code, _, _ := d.call("GET", "get/"+product, ""); code != 200 {
				t.Errorf("the right login: %d", code)
			}
		}
	}
	if code, answer, _ := d.call("GET", "get/"+product, ""); code != 200 || len(data(answer)) != 0 {
		t.Errorf("%d %+v", code, answer)
	}
	if d.pauses.n != 100 {
		t.Errorf("%d pauses", d.pauses.n)
	}
	logged := d.logs.FilterMessage("wrong login at the integration API")
	if logged.Len() != 100 || logged.All()[0].ContextMap()["address"] != "203.0.113.9" {
		t.Errorf("%d lines, %+v", logged.Len(), logged.All()[0])
	}
	for _, l := range d.logs.All() {
		for _, secret := range []string{"wrong-password", "guessed-user", testPassword, testKey, "Basic"} {
			if strings.Contains(fmt.Sprintf("%+v", l), secret) {
				t.Fatalf("%s is logged: %+v", secret, l)
			}
		}
	}
}

// A flood of guesses is checked one by one: neither more guesses in a second, nor more
// of them waiting than a few of each address. Who comes from another is served.
func TestFloodOfLogins(t *testing.T) {
	d := newDesk(t)
	d.pauses.hold = make(chan struct{})
	codes := make(chan int, 100)
	for n := range 100 {
		go func() { // the platform tells the port, too
			code, _, _ := d.call("GET", "get/"+product, "", "Authorization", basic("u", "p"), "X-Forwarded-For", fmt.Sprintf("198.51.100.7:%d", 50_000+n))
			codes <- code
		}()
	}
	for range 100 - maxFrom {
		if code := <-codes; code != http.StatusTooManyRequests {
			t.Fatalf("%d", code)
		}
	}
	d.pauses.mu.Lock()
	if d.pauses.n != 1 {
		t.Errorf("%d were checked at once", d.pauses.n)
	}
	d.pauses.mu.Unlock()
	owner := make(chan int)
	go func() {
		code, _, _ := d.call("GET", "get/"+product, "", "X-Forwarded-For", "203.0.113.5")
		owner <- code
	}()
	close(d.pauses.hold)
	for range maxFrom {
		if code := <-codes; code != http.StatusUnauthorized {
			t.Errorf("%d", code)
		}
	}
	if code := <-owner; code != http.StatusOK {
		t.Errorf("the owner: %d", code)
	}
	for n := range 2 * maxFrom { // and nothing is left over
		if code, _, _ := d.call("GET", "get/"+product, "", "X-Forwarded-For", "198.51.100.7"); code != http.StatusOK {
			t.Fatalf("%d: %d", n, code)
		}
	}
}

// A password that was changed where it is kept is taken at once, and looking for it is
// no way to make the vault be asked again and again.
func TestRenewedLogin(t *testing.T) {
	d := newDesk(t)
	d.backend.renewed = "the-new-password"
	if code, _, _ := d.call("GET", "get/"+product, "", "Authorization", basic(testUser, "the-new-password")); code != 200 || d.backend.renewals != 1 {
		t.Errorf("%d after %d", code, d.backend.renewals)
	}
	for range 5 {
		if code, _, _ := d.call("GET", "get/"+product, "", "Authorization", basic(testUser, "guess")); code != 401 {
			t.Errorf("%d", code)
		}
	}
	if d.backend.renewals != 1 {
		t.Errorf("%d times in a minute", d.backend.renewals)
	}
}

// A damaged document is the app's matter, not the caller's, and can be deleted.
func TestDamagedIntegration(t *testing.T) {
	dir := t.TempDir()
	d := newDesk(t)
	d.backend.registry = &integration.Registry{Store: folder.New(dir), Keys: memoryKeys{}, Clock: d.pauses, Log: zap.NewNop()}
	if code, _, _ := d.call("POST", "add/"+product, addBody); code != 200 {
		t.Fatal(code)
	}
	if err := os.WriteFile(filepath.Join(dir, "integrations", "7.json"), []byte(`{"version":1,"keySecret":"x"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{"get/" + product: 503, "get/integration/azure/sentinel/7/vm": 503, "get/" + product1: 200} {
		code, answer, _ := d.call("GET", path, "")
		if code != want || code == 503 && (answer.ResponseCode != "INTERNAL_ERROR" || !strings.Contains(answer.Details.Message, "integrations/7.json is damaged")) {
			t.Errorf("%s: %d %+v", path, code, answer)
		}
	}
	if code, _, _ := d.call("PUT", "update/"+product1, `{"minSeverity":5,"name":"another"}`); code != 200 {
		t.Errorf("another cannot be changed: %d", code)
	}
	if code, _, _ := d.call("POST", "add/"+product, addBody); code != 200 {
		t.Errorf("no other can be added: %d", code)
	}
	if code, _, _ := d.call("DELETE", "delete/integration/azure/sentinel/7/vm", ""); code != 200 {
		t.Errorf("it cannot be deleted: %d", code)
	}
	if code, _, _ := d.call("GET", "get/"+product, ""); code != 200 {
		t.Errorf("%d", code)
	}
}

// Through the Functions protocol what cannot be read is refused in the envelope, too.
func TestRefusedRequests(t *testing.T) {
	d := newDesk(t)
	host := &functions.Host{Log: zap.NewNop(), HTTP: map[string]http.Handler{"QualysIntegration": d.api}}
	d.backend.registry = nil
	d.backend.err = nil
	for body, want := range map[string]string{
		"{}": "INVALID_REQUEST",
		`{"Data":{"req":{"Method":"GET","Headers":{"Authorization":"` + basic(testUser, testPassword) + `"},"Params":{"verb":"get","rest":"vm"}}}}`: "INTERNAL_ERROR", // it panics
		`{"Data":{"req":{"Body":"` + strings.Repeat("x", 2<<20) + `"}}}`:                                                                            "LIMIT_EXCEEDED",
	} {
		w := httptest.NewRecorder()
		host.ServeHTTP(w, httptest.NewRequest("POST", "/QualysIntegration", strings.NewReader(body)))
		var doc struct {
			Outputs struct {
				Res struct{ Body string }
			}
		}
		if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || !strings.Contains(doc.Outputs.Res.Body, want) || !strings.Contains(doc.Outputs.Res.Body, `"ServiceResponse"`) {
			t.Errorf("%v, %s", err, w.Body)
		}
	}
}

// Places are counted by what a caller cannot choose: the address that the platform
// appends, in whatever form, and of IPv6 its network.
func TestAddress(t *testing.T) {
	for name, c := range map[string]struct {
		lines []string
		want  string
	}{
		"none":                     {nil, "unknown"},
		"plain":                    {[]string{"198.51.100.7"}, "198.51.100.7"},
		"with a port":              {[]string{"198.51.100.7:50001"}, "198.51.100.7"},
		"behind what was sent":     {[]string{"203.0.113.1, 10.0.0.1:1,198.51.100.7:50001"}, "198.51.100.7"},
		"in a header line behind":  {[]string{"203.0.113.1", "198.51.100.7:50001"}, "198.51.100.7"},
		"IPv4 in IPv6":             {[]string{"::ffff:198.51.100.7"}, "198.51.100.7"},
		"IPv4 in IPv6, with port":  {[]string{"[::ffff:c633:6407]:443"}, "198.51.100.7"},
		"IPv6":                     {[]string{"2001:db8:1:2:3:4:5:6"}, "2001:db8:1::/48"},
		"IPv6, the same network":   {[]string{"[2001:DB8:1:2::9]:50001"}, "2001:db8:1::/48"},
		"IPv6 with a zone":         {[]string{"fe80::1%eth0"}, "fe80::/48"},
		"a name":                   {[]string{"proxy.example"}, "unknown"},
		"nothing behind the comma": {[]string{"198.51.100.7,"}, "unknown"},
		"a long text":              {[]string{strings.Repeat("1", 5000)}, "unknown"},
	} {
		r := &http.Request{Header: http.Header{"X-Forwarded-For": c.lines}}
		if got := address(r); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

// One client takes no more than its places, whatever it sends in front.
func TestOneClientInManyForms(t *testing.T) {
	d := newDesk(t)
	d.pauses.hold = make(chan struct{})
	codes := make(chan int, 100)
	for n := range 100 {
		go func() {
			from := []string{
				fmt.Sprintf("198.51.100.7:%d", 50_000+n), fmt.Sprintf("10.0.0.%d, 198.51.100.7", n), "::ffff:198.51.100.7", fmt.Sprintf("[::ffff:198.51.100.7]:%d", n+1),
			}[n%4]
			code, _, _ := d.call("GET", "get/"+product, "", "Authorization", basic("u", "p"), "X-Forwarded-For", from)
			codes <- code
		}()
	}
	for range 100 - maxFrom {
		if code := <-codes; code != http.StatusTooManyRequests {
			t.Fatalf("code = %d, want 429", code)
		}
	}
	close(d.pauses.hold)
	if code, _, _ := d.call("GET", "get/"+product, "", "X-Forwarded-For", "203.0.113.5"); code != http.StatusOK {
		t.Errorf("the owner: %d, want 200", code)
	}
	for range maxFrom {
		<-codes
	}
}
