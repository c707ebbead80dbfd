package loganalytics_test

import (
	"context"
	"encoding/json"
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

	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"qualys-sentinel/e2e/canary"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/loganalytics"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/simulator"
)

// batch makes a batch of rows.
func batch(rows ...string) record.Batch {
	b := record.Batch{Body: []byte("[")}
	for i, row := range rows {
		if i > 0 {
			b.Body = append(b.Body, ',')
		}
		b.Body = append(b.Body, row...)
		b.Ends = append(b.Ends, len(b.Body))
	}
	b.Body = append(b.Body, ']')
	return b
}

func parse(t testing.TB, address string) *url.URL {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// azure starts the simulated services and points the identity at them.
func azure(t *testing.T, wrap func(http.Handler) http.Handler) (*simulator.Azure, string) {
	t.Helper()
	a := simulator.NewAzure(ingest.VM.Schema)
	a.IdentityHeader, a.Key = canary.IdentityToken, canary.WorkspaceKey
	var h http.Handler = a
	if wrap != nil {
		h = wrap(h)
	}
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	t.Setenv("IDENTITY_ENDPOINT", server.URL+simulator.IdentityPath)
	t.Setenv("IDENTITY_HEADER", a.IdentityHeader)
	return a, server.URL
}

// clients numbers user-assigned identities: the SDK keeps tokens by identity
// for the whole process, and each test wants its own.
var clients int

func ingestion(t *testing.T, address, rule, stream string) *loganalytics.Ingestion {
	t.Helper()
	clients++
	credential, err := azidentity.NewManagedIdentityCredential(&azidentity.ManagedIdentityCredentialOptions{ID: azidentity.ClientID(fmt.Sprint("client-", clients))})
	if err != nil {
		t.Fatal(err)
	}
	d, err := loganalytics.NewIngestion(loganalytics.IngestionConfig{Endpoint: parse(t, address), Rule: rule, Stream: stream, Credential: credential})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

const goodRow = `{"TimeGenerated":"2026-11-01T00:00:00Z","QID_s":"1","ResultsBytes_d":3,"AdditionalFields":{"a":"b"}}`

func TestIngestion(t *testing.T) {
	a, address := azure(t, nil)
	var kept []string
	a.Keep = func(table string, row json.RawMessage) error {
		kept = append(kept, table+" "+string(row))
		return nil
	}
	d := ingestion(t, address, a.Rule, ingest.VM.Schema.Stream())
	sent, err := d.Send(context.Background(), batch(goodRow, goodRow))
	if err != nil || sent == 0 {
		t.Fatal(sent, err)
	}
	got := a.Arrived()
	if got.Rows != 2 || len(kept) != 2 || kept[0] != "QualysHostDetectionV2_CL "+goodRow || len(got.Dropped) != 0 {
		t.Errorf("%+v %v", got, kept)
	}
	if got.Tokens["https://monitor.azure.com/"] != 1 && got.Tokens["https://monitor.azure.com"] != 1 {
		t.Errorf("tokens asked for: %v", got.Tokens)
	}
}

// kind reads what an error asks of the run.
func kind(err error) string {
	var e *loganalytics.Error
	if !errors.As(err, &e) {
		return fmt.Sprintf("%T", err)
	}
	after, retry := e.Retry()
	switch {
	case retry:
		return fmt.Sprintf("retry %s limit=%v", after, e.Limit())
	case e.Refused():
		return "refused"
	}
	return "stop"
}

func TestIngestionErrors(t *testing.T) {
	answerWith := func(status int, header, value, body string) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == simulator.IdentityPath {
					next.ServeHTTP(w, r)
					return
				}
				if header != "" {
					w.Header().Set(header, value)
				}
				w.WriteHeader(status)
				io.WriteString(w, body)
			})
		}
	}
	for name, c := range map[string]struct {
		wrap func(http.Handler) http.Handler
		row  string
		rule string
		want string
		text string
	}{
		"bad row":          {row: `{"QID_s":"1"}`, want: "refused", text: "no TimeGenerated"},
		"wrong type":       {row: strings.Replace(goodRow, `"1"`, `1`, 1), want: "refused", text: "QID_s"},
		"too large":        {row: strings.Replace(goodRow, `"1"`, `"`+strings.Repeat("x", 1<<20)+`"`, 1), want: "refused", text: "413"},
		"wrong rule":       {row: goodRow, rule: "dcr-ffffffffffffffffffffffffffffffff", want: "stop", text: "check dcrImmutableId"},
		"no role":          {wrap: answerWith(403, "", "", `{"error":{"code":"OperationFailed","message":"The authentication token provided does not have access"}}`), row: goodRow, want: "stop", text: "Monitoring Metrics Publisher"},
		"refused token":    {wrap: answerWith(401, "", "", ""), row: goodRow, want: "retry 0s limit=false"},
		"throttled":        {wrap: answerWith(429, "Retry-After", "17", ""), row: goodRow, want: "retry 17s limit=true"},
		"broken":           {wrap: answerWith(503, "", "", ""), row: goodRow, want: "retry 0s limit=false"},
		"200 is no accept": {wrap: answerWith(200, "", "", ""), row: goodRow, want: "stop"},
	} {
		t.Run(name, func(t *testing.T) {
			a, address := azure(t, c.wrap)
			rule := a.Rule
			if c.rule != "" {
				rule = c.rule
			}
			_, err := ingestion(t, address, rule, ingest.VM.Schema.Stream()).Send(context.Background(), batch(c.row))
			if err == nil || kind(err) != c.want || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "Bearer") {
				t.Errorf("got %s: %v\nwant %s, %q", kind(err), err, c.want, c.text)
			}
			if n := a.Arrived().Rows; n != 0 {
				t.Errorf("%d rows arrived", n)
			}
		})
	}
	t.Run("wrong cloud", func(t *testing.T) {
		a, address := azure(t, answerWith(401, "", "", ""))
		d := ingestion(t, address, a.Rule, ingest.VM.Schema.Stream())
		var err error
		for tries := 1; ; tries++ {
			if _, err = d.Send(context.Background(), batch(goodRow)); kind(err) == "stop" {
				break
			}
			if tries == 20 {
				t.Fatalf("a token that is refused for ever: %v", err)
			}
		}
		if !strings.Contains(err.Error(), "check that logAnalyticsUri belongs to the cloud") {
			t.Error(err)
		}
	})
	t.Run("the token ends before its time", func(t *testing.T) {
		a, address := azure(t, nil)
		d := ingestion(t, address, a.Rule, ingest.VM.Schema.Stream())
		for n := range 3 {
			if _, err := d.Send(context.Background(), batch(goodRow)); err != nil {
				t.Fatalf("%d: %v", n, err)
			}
			// Expired there; by this machine's clock it is good for another day.
			now := a.Now().Add(25 * time.Hour)
			a.Now = func() time.Time { return now }
			if _, err := d.Send(context.Background(), batch(goodRow)); kind(err) != "retry 0s limit=false" {
				t.Fatalf("%d: %s %v", n, kind(err), err)
			}
		}
	})
	t.Run("connection refused", func(t *testing.T) {
		a, _ := azure(t, nil)
		if _, err := ingestion(t, "http://127.0.0.1:1", a.Rule, "Custom-X").Send(context.Background(), batch(goodRow)); kind(err) != "retry 0s limit=false" {
			t.Errorf("%s: %v", kind(err), err)
		}
	})
	t.Run("no token", func(t *testing.T) {
		a, address := azure(t, nil)
		a.IdentityHeader = "another"
		_, err := ingestion(t, address, a.Rule, "Custom-X").Send(context.Background(), batch(goodRow))
		if kind(err) != "stop" || !strings.Contains(err.Error(), "managed identity") || strings.Contains(err.Error(), canary.IdentityToken) {
			t.Errorf("%s: %v", kind(err), err)
		}
	})
}

// The vector of Microsoft's algorithm, computed independently.
func TestSignature(t *testing.T) {
	if got := loganalytics.Signature([]byte("0123456789abcdef0123456789abcdef"), 1024, "Mon, 04 Apr 2016 08:00:00 GMT"); got != "rMoVf9OAAVQU+RTRgO9GQOxWZzlOmtlVQV6VV5+bUg0=" {
		t.Errorf("signature %s", got)
	}
}

func TestCollector(t *testing.T) {
	a, address := azure(t, nil)
	config := loganalytics.CollectorConfig{Endpoint: parse(t, address), Workspace: a.Workspace, Key: canary.WorkspaceKeyText(), LogType: ingest.VM.Schema.LogType()}
	d, err := loganalytics.NewCollector(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Send(context.Background(), batch(`{"QID":"1"}`, `{"QID":"2"}`)); err != nil {
		t.Fatal(err)
	}
	if got := a.Arrived(); got.Rows != 2 || got.Truncated != 0 {
		t.Errorf("%+v", got)
	}
	for name, c := range map[string]struct{ row, want, text string }{
		"reserved name": {`{"TimeGenerated":"x"}`, "refused", "reserved"},
		"nested":        {`{"A":{"b":"c"}}`, "refused", "nested"},
	} {
		if _, err := d.Send(context.Background(), batch(c.row)); kind(err) != c.want || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %s %v", name, kind(err), err)
		}
	}
	config.Key = "AAAA"
	if d, err = loganalytics.NewCollector(config); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Send(context.Background(), batch(`{"QID":"1"}`)); kind(err) != "stop" || !strings.Contains(err.Error(), "workspaceKey") {
		t.Errorf("wrong key: %s %v", kind(err), err)
	}
	config.Key = "not base64!"
	if _, err = loganalytics.NewCollector(config); err == nil || strings.Contains(err.Error(), "not base64!") {
		t.Errorf("malformed key: %v", err)
	}
}

func TestCollectorErrors(t *testing.T) {
	for status, want := range map[int]string{
		400: "stop", 403: "stop", 404: "stop", 413: "refused", 429: "retry 9s limit=true", 500: "retry 9s limit=false", 503: "retry 9s limit=false", 302: "stop",
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "9")
			w.WriteHeader(status)
		}))
		d, err := loganalytics.NewCollector(loganalytics.CollectorConfig{Endpoint: parse(t, server.URL), Workspace: "w", Key: "AAAA", LogType: "T"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Send(context.Background(), batch(`{}`)); kind(err) != want {
			t.Errorf("%d: %s, want %s: %v", status, kind(err), want, err)
		}
		server.Close()
	}
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "<html><body>Bad Gateway</body></html>") // with 200
	}))
	defer page.Close()
	somebody, err := loganalytics.NewCollector(loganalytics.CollectorConfig{Endpoint: parse(t, page.URL), Workspace: "w", Key: "AAAA", LogType: "T"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := somebody.Send(context.Background(), batch(`{}`)); kind(err) != "stop" || !strings.Contains(err.Error(), "check logAnalyticsUri") {
		t.Errorf("a page that takes nothing: %s %v", kind(err), err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(400)
		io.WriteString(w, `{"Error":"InvalidCustomerId","Message":"no such workspace"}`)
	}))
	defer server.Close()
	d, err := loganalytics.NewCollector(loganalytics.CollectorConfig{Endpoint: parse(t, server.URL), Workspace: "w", Key: "AAAA", LogType: "T"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Send(context.Background(), batch(`{}`)); kind(err) != "stop" {
		t.Errorf("a wrong workspace: %s %v", kind(err), err)
	}
}

func TestFolder(t *testing.T) {
	dir := t.TempDir()
	d := loganalytics.NewFolder(dir, "T_CL", "run1")
	for _, b := range []record.Batch{batch(`{"a":1}`, `{"b":2}`), batch(`{"c":3}`)} {
		if _, err := d.Send(context.Background(), b); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "T_CL", "run1.ndjson"))
	if err != nil || string(got) != "{\"a\":1}\n{\"b\":2}\n{\"c\":3}\n" {
		t.Errorf("%q, %v", got, err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loganalytics.NewFolder(file, "T", "r").Send(context.Background(), batch(`{}`)); kind(err) != "stop" {
		t.Errorf("a folder that cannot be made: %s %v", kind(err), err)
	}
}

func TestClouds(t *testing.T) {
	for host, want := range map[string]string{
		"a.westeurope-1.ingest.monitor.azure.com": "https://login.microsoftonline.com/", "a.usgovvirginia-1.ingest.monitor.azure.us": "https://login.microsoftonline.us/", "a.chinanorth3-1.ingest.monitor.azure.cn": "https://login.chinacloudapi.cn/", "127.0.0.1": "https://login.microsoftonline.com/",
	} {
		if got := loganalytics.Cloud(host).ActiveDirectoryAuthorityHost; got != want {
			t.Errorf("%s: %s, want %s", host, got, want)
		}
	}
}
