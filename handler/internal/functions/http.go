package functions

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"
)

// httpRequest is what an HTTP trigger hands over (observed on host 4.1045).
type httpRequest struct {
	URL     string `json:"Url"`
	Method  string
	Headers map[string]json.RawMessage // text, or a list of texts
	Params  map[string]*string         // null for an optional one that is absent
	Body    json.RawMessage
}

// httpResponse is what the caller is to get.
type httpResponse struct {
	StatusCode int               `json:"statusCode"`
	Headers    map[string]string `json:"headers"`
	Body       string            `json:"body"`
}

// refuse answers in a function's own form, where it has one.
func refuse(answer *answer, f http.Handler, status int, text string) {
	if own, ok := f.(Refuser); ok {
		own.Refuse(answer, status, text)
		return
	}
	answer.fail(status, text)
}

// A Door is an HTTP function that anybody may call. What it says holds before anything
// of a request's body is read, so that who is not let in costs next to nothing.
type Door interface {
	// Closed reports whether the function is switched off, and answers then.
	Closed(w http.ResponseWriter) bool
	// MaxBody is the longest body of a request, in bytes.
	MaxBody() int
}

// A Refuser is an HTTP function whose errors have a form of their own.
type Refuser interface {
	// Refuse answers a request that could not be read, or whose answer broke.
	Refuse(w http.ResponseWriter, status int, text string)
}

// serveHTTP answers an invocation of an HTTP function. Whatever the caller gets,
// the invocation itself has succeeded: the host throws a failed one's answer
// away.
func (h *Host) serveHTTP(w http.ResponseWriter, r *http.Request, name string, f http.Handler) {
	answer := newAnswer()
	// The host has the whole request: it sends it at once, or never. What is not wanted
	// of it is read by the server, behind the answer, and in this time, too.
	deadline(w, time.Now().Add(readTime))
	size := limits{invocation: maxInvocation, body: maxInvocation}
	if door, ok := f.(Door); ok {
		if door.Closed(answer) {
			finish(w, answer)
			return
		}
		size = limits{invocation: min(maxInvocation, 2*door.MaxBody()+maxEnvelope), body: door.MaxBody()}
	}
	req, err := h.read(w, r, size)
	if err == nil {
		deadline(w, time.Time{}) // of what the function takes
	}
	if err != nil {
		status := http.StatusBadRequest
		if errors.Is(err, errTooLong) {
			status = http.StatusRequestEntityTooLarge
		}
		h.Log.Warn("request not understood", zap.String("function", name), zap.Error(err))
		refuse(answer, f, status, err.Error())
	} else {
		h.callHTTP(answer, req, name, f)
	}
	finish(w, answer)
}

// deadline sets when a request has to be there, as far as its connection knows that.
func deadline(w http.ResponseWriter, at time.Time) {
	_ = http.NewResponseController(w).SetReadDeadline(at)
}

// finish gives the host its answer.
func finish(w http.ResponseWriter, answer *answer) {
	doc := response{Logs: []string{}}
	doc.Outputs.Response = answer.response()
	doc.write(w, http.StatusOK)
}

// maxEnvelope is what the host adds to a body, in bytes: headers, twice, and parameters.
// In JSON a body may be twice as long, for its escapes.
const maxEnvelope = 64 << 10

// maxReading is how many requests are read at once: each takes a few times its length
// until it is decoded. Others wait, with their bodies on the wire.
const maxReading = 4

// read reads a request when it is its turn.
func (h *Host) read(w http.ResponseWriter, r *http.Request, size limits) (*http.Request, error) {
	h.once.Do(func() { h.reading = make(chan struct{}, maxReading) })
	select {
	case h.reading <- struct{}{}:
		defer func() { <-h.reading }()
	case <-r.Context().Done():
		return nil, fmt.Errorf("read the invocation: %w", context.Cause(r.Context()))
	}
	deadline(w, time.Now().Add(readTime)) // the wait for its turn does not count
	return readRequest(r, size)
}

// limits are how long an invocation may be, and the body of the request in it, in bytes.
type limits struct{ invocation, body int }

// readTime is how long a request may take to arrive from the host.
const readTime = 30 * time.Second

// callHTTP turns a panic into an answer: others go on.
func (h *Host) callHTTP(answer *answer, req *http.Request, name string, f http.Handler) {
	defer func() {
		if p := recover(); p != nil {
			h.Log.Error("panic", zap.String("function", name), zap.Any("panic", p), zap.Stack("stack"))
			*answer = *newAnswer()
			refuse(answer, f, http.StatusInternalServerError, "internal error: the log of the function app tells more")
		}
	}()
	f.ServeHTTP(answer, req)
}

var errTooLong = errors.New("the request is too long")

// readRequest makes the caller's request of an invocation. The function key is left out:
// the host has checked it.
func readRequest(r *http.Request, size limits) (*http.Request, error) {
	tooLong := fmt.Errorf("%w: at most %d KiB", errTooLong, size.body>>10)
	if r.ContentLength > int64(size.invocation) {
		return nil, tooLong
	}
	doc, err := io.ReadAll(io.LimitReader(r.Body, int64(size.invocation)+1))
	if err != nil {
		return nil, fmt.Errorf("read the invocation: %w", err)
	}
	if len(doc) > size.invocation {
		return nil, tooLong
	}
	var envelope struct {
		Data struct {
			Request *httpRequest `json:"req"`
		}
	}
	if err := json.Unmarshal(doc, &envelope); err != nil || envelope.Data.Request == nil {
		return nil, errors.New("the invocation holds no HTTP request")
	}
	req, err := envelope.Data.Request.open(r.Context(), r.Header)
	if err == nil && req.ContentLength > int64(size.body) {
		return nil, tooLong
	}
	return req, err
}

// open makes an http.Request.
func (in *httpRequest) open(ctx context.Context, host http.Header) (*http.Request, error) {
	// Scheme and host are the caller's to choose: only the path counts.
	u, err := url.Parse(in.URL)
	if err != nil {
		return nil, errors.New("the address is malformed")
	}
	query := u.Query()
	for name := range query {
		if strings.EqualFold(name, "code") {
			query.Del(name)
		}
	}
	header := http.Header{}
	for name, raw := range in.Headers {
		for _, value := range texts(raw) {
			header.Add(name, value)
		}
	}
	header.Del("x-functions-key")
	for _, name := range []string{HeaderInvocation, HeaderHostVersion} {
		header.Set(name, host.Get(name)) // not the caller's
	}
	body, err := in.content(header)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, in.Method, "/", bytes.NewReader(body))
	if err != nil {
		return nil, errors.New("the method is malformed")
	}
	req.URL = &url.URL{Path: "/" + strings.TrimLeft(u.Path, "/"), RawQuery: query.Encode()}
	req.Header = header
	for name, value := range in.Params {
		if value != nil {
			req.SetPathValue(name, *value)
		}
	}
	return req, nil
}

// content is the body as it was sent: the host passes binary ones as base64.
func (in *httpRequest) content(header http.Header) ([]byte, error) {
	if len(in.Body) == 0 || string(in.Body) == "null" {
		return nil, nil
	}
	var text string
	if in.Body[0] != '"' {
		return in.Body, nil // an object, as some hosts pass JSON
	}
	malformed := errors.New("the body is malformed")
	if json.Unmarshal(in.Body, &text) != nil {
		return nil, malformed
	}
	if kind, _, _ := mime.ParseMediaType(header.Get("Content-Type")); kind != "application/octet-stream" && !strings.HasPrefix(kind, "multipart/") {
		return []byte(text), nil
	}
	body, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, malformed
	}
	return body, nil
}

// texts reads a text, or a list of them.
func texts(raw json.RawMessage) (list []string) {
	var one string
	if json.Unmarshal(raw, &one) == nil {
		return []string{one}
	}
	_ = json.Unmarshal(raw, &list) // anything else is no header
	return list
}

// answer takes what a handler writes.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func newAnswer() *answer { return &answer{header: http.Header{}} }

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}

func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(p)
}

// fail answers as the functions do themselves.
func (a *answer) fail(status int, text string) {
	a.header.Set("Content-Type", "application/json")
	a.WriteHeader(status)
	_ = json.NewEncoder(a).Encode(map[string]string{"error": text}) // into memory
}

func (a *answer) response() *httpResponse {
	a.WriteHeader(http.StatusOK)
	r := &httpResponse{StatusCode: a.status, Headers: map[string]string{}, Body: strings.ToValidUTF8(a.body.String(), "\uFFFD")}
	for name, values := range a.header {
		r.Headers[name] = strings.Join(values, ", ")
	}
	return r
}
