package loganalytics_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/loganalytics"
	"qualys-sentinel/handler/internal/simulator"
)

// furtherWaits are forms of Retry-After, and what is to be waited for.
var furtherWaits = map[string]struct {
	status int
	lines  []string
	want   time.Duration
}{
	"503, seconds":       {503, []string{"17"}, 17 * time.Second},
	"503, blanks":        {503, []string{" 17 "}, 17 * time.Second},
	"503, a date":        {503, []string{"Sun, 01 Nov 2026 12:00:17 GMT"}, 17 * time.Second},
	"503, an old form":   {503, []string{"Sunday, 01-Nov-26 12:00:17 GMT"}, 17 * time.Second},
	"503, a past date":   {503, []string{"Sun, 01 Nov 2026 11:59:59 GMT"}, 0},
	"503, negative":      {503, []string{"-17"}, 0},
	"503, zero":          {503, []string{"0"}, 0},
	"503, empty":         {503, []string{""}, 0},
	"503, words":         {503, []string{"soon"}, 0},
	"503, a fraction":    {503, []string{"17.5"}, 0},
	"503, two lines":     {503, []string{"17", "34"}, 17 * time.Second},
	"503, a year":        {503, []string{"31536000"}, 24 * time.Hour},
	"503, date far away": {503, []string{"Fri, 31 Dec 9999 23:59:59 GMT"}, 24 * time.Hour},
	"500, seconds":       {500, []string{"17"}, 17 * time.Second},
	"502, seconds":       {502, []string{"17"}, 17 * time.Second},
	"504, seconds":       {504, []string{"17"}, 17 * time.Second},
	"408, seconds":       {408, []string{"17"}, 17 * time.Second},
	"429, a date":        {429, []string{"Sun, 01 Nov 2026 12:00:17 GMT"}, 17 * time.Second},
	"429, a year":        {429, []string{"31536000"}, 24 * time.Hour},
}

// Both ways into Log Analytics wait as long as they are asked to.
func TestFurtherRetryAfter(t *testing.T) {
	now := func() time.Time { return time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC) }
	for name, c := range furtherWaits {
		t.Run(name, func(t *testing.T) {
			a, address := azure(t, func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == simulator.IdentityPath {
						next.ServeHTTP(w, r)
						return
					}
					w.Header()["Retry-After"] = c.lines
					w.WriteHeader(c.status)
				})
			})
			wait := func(api string, err error) {
				var e *loganalytics.Error
				if !errors.As(err, &e) || e.After != c.want {
					t.Errorf("%s: %v, waits %+v, want %s", api, err, e, c.want)
				}
			}
			collector, err := loganalytics.NewCollector(loganalytics.CollectorConfig{Endpoint: parse(t, address), Workspace: "w", Key: "AAAA", LogType: "T", Now: now})
			if err != nil {
				t.Fatal(err)
			}
			_, err = collector.Send(context.Background(), batch(`{}`))
			wait("collector", err)
			clients++
			credential, err := azidentity.NewManagedIdentityCredential(&azidentity.ManagedIdentityCredentialOptions{ID: azidentity.ClientID(fmt.Sprint("client-", clients))})
			if err != nil {
				t.Fatal(err)
			}
			rule, err := loganalytics.NewIngestion(loganalytics.IngestionConfig{Endpoint: parse(t, address), Rule: a.Rule, Stream: ingest.VM.Schema.Stream(), Credential: credential, Now: now})
			if err != nil {
				t.Fatal(err)
			}
			_, err = rule.Send(context.Background(), batch(goodRow))
			wait("ingestion", err)
		})
	}
}

// An answer that repeats what it was sent does not make key, signature or token a part
// of an error.
func TestFurtherEchoedKeys(t *testing.T) {
	key := base64.StdEncoding.EncodeToString([]byte("a workspace's key, 64 bytes long, as those of Azure are >>>???~~"))
	for name, echo := range map[string]func(authorization string) string{
		"header":             func(a string) string { return a },
		"JSON":               func(a string) string { return `{"Error":"InvalidAuthorization","Message":"got ` + a + `"}` },
		"code":               func(a string) string { return `{"Error":"` + a + `","Message":"x"}` },
		"error of a rule":    func(a string) string { return `{"error":{"code":"x","message":"` + a + `"}}` },
		"without its scheme": func(a string) string { return strings.TrimPrefix(strings.TrimPrefix(a, "Bearer "), "SharedKey ") },
		"the key":            func(string) string { return "key " + key + " is wrong" },
		"the key for URLs":   func(string) string { return strings.NewReplacer("+", "-", "/", "_", "=", "").Replace(key) },
		"the key in JSON": func(string) string {
			return `{"Error":"x","Message":"` + strings.NewReplacer("+", `\u002B`, "/", `\/`).Replace(key) + `"}`
		},
		"the key, escaped": func(string) string { return "key " + strings.NewReplacer("+", `\u002B`, "/", `\u002F`).Replace(key) },
		"the key in a query": func(string) string {
			return "?key=" + strings.NewReplacer("+", "%2b", "/", "%2f", "=", "%3d").Replace(key)
		},
		"cut behind 300 bytes": func(a string) string { return strings.Repeat("x", 280) + " " + key + " " + a },
		"cut behind 1 KiB":     func(string) string { return strings.Repeat(" ", 1000) + key },
	} {
		t.Run(name, func(t *testing.T) {
			sent := ""
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				sent = r.Header.Get("Authorization")
				w.WriteHeader(http.StatusForbidden)
				_, _ = w.Write([]byte(echo(sent)))
			}))
			defer server.Close()
			d, err := loganalytics.NewCollector(loganalytics.CollectorConfig{Endpoint: parse(t, server.URL), Workspace: "11111111-2222-3333-4444-555555555555", Key: key, LogType: "T"})
			if err != nil {
				t.Fatal(err)
			}
			_, err = d.Send(context.Background(), batch(`{}`))
			if err == nil {
				t.Fatal("no error")
			}
			said := err.Error()
			for _, secret := range []string{key[:20], key[20:40], key[len(key)-20:]} {
				if strings.Contains(said, secret) || strings.Contains(strings.NewReplacer(`\u002B`, "+", `\u002F`, "/", `\/`, "/", "%2b", "+", "%2f", "/").Replace(said), secret) {
					t.Errorf("%q is in %s", secret, said)
				}
			}
		})
	}
}

// The same for a data collection rule: neither the code nor the message of an answer
// carries the token on.
func TestFurtherEchoedTokens(t *testing.T) {
	for name, echo := range map[string]func(w http.ResponseWriter, authorization string){
		"message":        func(w http.ResponseWriter, a string) { answer(w, `{"error":{"code":"x","message":"got `+a+`"}}`) },
		"code":           func(w http.ResponseWriter, a string) { answer(w, `{"error":{"code":"`+a+`","message":"x"}}`) },
		"code of header": func(w http.ResponseWriter, a string) { w.Header().Set("x-ms-error-code", a); answer(w, `x`) },
		"plain text":     func(w http.ResponseWriter, a string) { answer(w, "Authorization: "+a) },
		"a page":         func(w http.ResponseWriter, a string) { answer(w, "<html><pre>Authorization: "+a+"</pre></html>") },
		"behind 300":     func(w http.ResponseWriter, a string) { answer(w, strings.Repeat("x", 270)+" "+a) },
		"nested":         func(w http.ResponseWriter, a string) { answer(w, `{"error":{"details":[{"message":"`+a+`"}]}}`) },
	} {
		for _, status := range []int{400, 401, 403, 404, 418, 503} {
			t.Run(fmt.Sprint(name, "/", status), func(t *testing.T) {
				sent := ""
				a, address := azure(t, func(next http.Handler) http.Handler {
					return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if r.URL.Path == simulator.IdentityPath {
							next.ServeHTTP(w, r)
							return
						}
						sent = r.Header.Get("Authorization")
						echo(statusFirst{w, status}, sent)
					})
				})
				_, err := ingestion(t, address, a.Rule, ingest.VM.Schema.Stream()).Send(context.Background(), batch(goodRow))
				if err == nil || sent == "" {
					t.Fatalf("%v, sent %q", err, sent)
				}
				token := strings.TrimPrefix(sent, "Bearer ")
				for _, part := range []string{token[:25], token[len(token)-20:]} {
					if strings.Contains(err.Error(), part) {
						t.Errorf("%q is in %s", part, err)
					}
				}
			})
		}
	}
}

// statusFirst sends a status with the first bytes.
type statusFirst struct {
	http.ResponseWriter
	status int
}

func answer(w http.ResponseWriter, body string) {
	w.WriteHeader(w.(statusFirst).status)
	_, _ = w.Write([]byte(body))
}
