package functions

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// request is an HTTP invocation as the host sends it, recorded from host 4.1045.
const request = `{"Data":{"req":{"Url":"http://evil.example/api/sync/kb?x=1&code=SECRET&Code=SECRET2","Method":"POST","Query":{"x":"1","code":"SECRET"},
 "Headers":{"Host":["evil.example"],"Content-Type":["application/json"],"x-functions-key":["SECRET"],"Accept":"text/html","X-Azure-Functions-InvocationId":["forged"]},
 "Params":{"dataset":"kb","run":null},"Identities":[{"AuthenticationType":null}],"Body":"{\"a\":1}"}},
 "Metadata":{"a":"\"1\"","code":"\"SECRET\"","Headers":{"Host":"evil.example"},"sys":{"MethodName":"QualysSync"}}}`

// invoke calls an HTTP function and returns what its caller gets.
func invoke(t *testing.T, host *Host, body string) (int, httpResponse) {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "/F", strings.NewReader(body))
	r.Header.Set(HeaderInvocation, "id-1")
	r.Header.Set(HeaderHostVersion, "4.1")
	w := httptest.NewRecorder()
	host.ServeHTTP(w, r)
	var doc struct {
		Outputs struct{ Res *httpResponse }
		Logs    []string
	}
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || doc.Outputs.Res == nil || doc.Logs == nil {
		t.Fatalf("%d %s, %v", w.Code, w.Body, err)
	}
	return w.Code, *doc.Outputs.Res
}

func TestHTTPInvocation(t *testing.T) {
	host := &Host{Log: zap.NewNop(), HTTP: map[string]http.Handler{"F": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Location", "/x")
		w.Header().Add("X-Two", "1")
		w.Header().Add("X-Two", "2")
		w.WriteHeader(http.StatusAccepted)
		w.WriteHeader(http.StatusTeapot) // too late
		fmt.Fprintf(w, "%s %s %q %q accept=%s id=%s host=%s key=%q %s", r.Method, r.URL, r.PathValue("dataset"), r.PathValue("run"),
			r.Header.Get("Accept"), r.Header.Get(HeaderInvocation), r.Header.Get(HeaderHostVersion), r.Header.Get("x-functions-key"), body)
	})}}
	code, got := invoke(t, host, request)
	want := `POST /api/sync/kb?x=1 "kb" "" accept=text/html id=id-1 host=4.1 key="" {"a":1}`
	if code != 200 || got.StatusCode != 202 || got.Body != want || got.Headers["Location"] != "/x" || got.Headers["X-Two"] != "1, 2" {
		t.Errorf("%d %+v\nwant %s", code, got, want)
	}
}

func TestHTTPBodies(t *testing.T) {
	host := &Host{Log: zap.NewNop(), HTTP: map[string]http.Handler{"F": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
	})}}
	binary := base64.StdEncoding.EncodeToString([]byte("bytes"))
	for name, c := range map[string]struct {
		body   string
		status int
		want   string
	}{
		"none":           {`{"Data":{"req":{"Url":"/","Method":"GET"}}}`, 200, ""},
		"null":           {`{"Data":{"req":{"Url":"/","Method":"GET","Body":null}}}`, 200, ""},
		"text":           {`{"Data":{"req":{"Url":"/","Method":"GET","Body":"a\u0000ü"}}}`, 200, "a\x00ü"},
		"object":         {`{"Data":{"req":{"Url":"/","Method":"GET","Body":{"a":[1]}}}}`, 200, `{"a":[1]}`},
		"binary":         {`{"Data":{"req":{"Url":"/","Method":"GET","Headers":{"Content-Type":["application/octet-stream"]},"Body":"` + binary + `"}}}`, 200, "bytes"},
		"broken binary":  {`{"Data":{"req":{"Url":"/","Method":"GET","Headers":{"Content-Type":["multipart/x; a=b"]},"Body":"%"}}}`, 400, "malformed"},
		"no request":     {`{"Data":{}}`, 400, "no HTTP request"},
		"no JSON":        {`{`, 400, "no HTTP request"},
		"broken address": {`{"Data":{"req":{"Url":"http://[","Method":"GET"}}}`, 400, "address"},
		"broken method":  {`{"Data":{"req":{"Url":"/","Method":"G T"}}}`, 400, "method"},
		"too long":       {`{"Data":{"req":{"Url":"/","Method":"GET","Body":"` + strings.Repeat("a", maxInvocation) + `"}}}`, 413, "too long"},
	} {
		t.Run(name, func(t *testing.T) {
			code, got := invoke(t, host, c.body)
			if code != 200 || got.StatusCode != c.status || !strings.Contains(got.Body, c.want) || c.want == "" && got.Body != "" {
				t.Errorf("%d %+v", code, got)
			}
		})
	}
}

// A panic is an answer without a stack trace; the log has it.
func TestHTTPPanic(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	host := &Host{Log: zap.New(core), HTTP: map[string]http.Handler{"F": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "half an answer")
		panic("boom")
	})}}
	code, got := invoke(t, host, request)
	if code != 200 || got.StatusCode != 500 || strings.Contains(got.Body, "boom") || strings.Contains(got.Body, "half") || strings.Contains(got.Body, ".go:") {
		t.Errorf("%d %+v", code, got)
	}
	if logs.FilterMessage("panic").Len() != 1 {
		t.Errorf("%v", logs.All())
	}
}
