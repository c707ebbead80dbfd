// Package api is the HTTP functions: sync on demand, status, check. It turns
// requests into calls and their results into status codes and documents.
//
// It guarantees that nothing a caller sends brings an answer of 500 and above,
// that a 400 names every fault, and that no answer is cached. Function keys do
// not enter here: the host has checked and package functions removed them. What
// is done is the business of a Backend.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/check"
	"qualys-sentinel/handler/internal/functions"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/ondemand"
	"qualys-sentinel/handler/internal/status"
)

// A Backend does what is asked for.
type Backend interface {
	// Sync takes a request and begins to carry it out. It returns its id when it
	// is in the state, and an *ondemand.BusyError if a run is going on.
	Sync(ctx context.Context, datasets []*ingest.Dataset, w ondemand.Window) (id string, err error)
	// CheckFilter says what is wrong with request parameters.
	CheckFilter(filter string) error
	// Status tells everything, host being the version of the Functions host.
	Status(ctx context.Context, host string) (status.Document, error)
	// Find tells of one sync or run; nil if there is none.
	Find(ctx context.Context, id string) (*status.SyncDocument, error)
	// Check tests the connection.
	Check(ctx context.Context) check.Report
}

// API are the functions.
type API struct {
	Backend Backend
	Log     *zap.Logger
	Now     func() time.Time
}

// All is the name of all datasets together.
const All = "all"

// Functions are the handlers by the names of their functions.
func (a *API) Functions() map[string]http.Handler {
	return map[string]http.Handler{
		"QualysSync":   a.handle(http.MethodPost, a.sync),
		"QualysStatus": a.handle(http.MethodGet, a.status),
		"QualysCheck":  a.handle(http.MethodGet, a.check),
	}
}

// handle refuses other methods, and says what holds for all answers.
func (a *API) handle(method string, f http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer") // the page's address holds the key
		if r.Method != method {
			h.Set("Allow", method)
			a.fail(w, http.StatusMethodNotAllowed, problem{Error: "use " + method})
			return
		}
		f(w, r)
	})
}

// problem is the document of every answer that is an error.
type problem struct {
	Error string `json:"error"`
	// Faults are all that is wrong with the request.
	Faults []string `json:"faults,omitempty"`
	// Run that is going on, Request that it carries, and where its status is.
	Run     string `json:"run,omitempty"`
	Request string `json:"request,omitempty"`
	Status  string `json:"status,omitempty"`
}

func (a *API) fail(w http.ResponseWriter, code int, p problem) { a.answer(w, code, p) }

// answer writes a document.
func (a *API) answer(w http.ResponseWriter, code int, doc any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(code)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(doc); err != nil {
		a.Log.Error("answer not written", zap.Error(err))
	}
}

// unwell answers a failure that is not the caller's.
func (a *API) unwell(w http.ResponseWriter, what string, err error) {
	a.Log.Error(what, zap.Error(err))
	a.fail(w, http.StatusServiceUnavailable, problem{Error: err.Error()})
}

// maxBody is the longest body that is read, in bytes.
const maxBody = 256 << 10

func (a *API) sync(w http.ResponseWriter, r *http.Request) {
	datasets, err := findDatasets(r.PathValue("dataset"))
	if err != nil {
		a.fail(w, http.StatusNotFound, problem{Error: err.Error()})
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		a.fail(w, http.StatusBadRequest, problem{Error: "the body cannot be read"})
		return
	}
	if len(body) == 0 && announced(r) {
		// A body that breaks off is handed over by the host as none, which would ask
		// for something else.
		a.fail(w, http.StatusBadRequest, problem{Error: "the body has not arrived: send it again, or none at all"})
		return
	}
	window, err := ondemand.Parse(body, a.Now(), a.Backend.CheckFilter)
	if err == nil {
		err = window.Fits(datasets)
	}
	var invalid *ondemand.InvalidError
	if errors.As(err, &invalid) {
		a.fail(w, http.StatusBadRequest, problem{Error: "what is asked for is wrong: " + strings.Join(invalid.Faults, "; "), Faults: invalid.Faults})
		return
	}
	id, err := a.Backend.Sync(r.Context(), datasets, window)
	var busy *ondemand.BusyError
	switch {
	case errors.As(err, &busy):
		p := problem{Error: busy.Error() + ". Ask again when it has ended", Run: busy.Run, Request: busy.Request, Status: statusPath(busy.Run)}
		if busy.Request != "" {
			p.Status = statusPath(busy.Request)
		}
		a.fail(w, http.StatusConflict, p)
		return
	case err != nil:
		a.unwell(w, "sync not started", err)
		return
	}
	a.Log.Info("sync asked for", zap.String("request", id), zap.Bool("own window", window.Own()))
	w.Header().Set("Location", statusPath(id))
	w.Header().Set("Retry-After", "5")
	doc, err := a.Backend.Find(r.Context(), id)
	if err != nil || doc == nil {
		// It is taken all the same.
		a.Log.Warn("the status of a new sync cannot be read", zap.Error(err))
		doc = &status.SyncDocument{Version: status.Version, At: a.Now().UTC(), ID: id, Syncs: []status.Sync{}}
	}
	a.answer(w, http.StatusAccepted, doc)
}

// announced tells whether a request's headers speak of a body.
func announced(r *http.Request) bool {
	n, err := strconv.ParseInt(r.Header.Get("Content-Length"), 10, 64)
	return r.Header.Get("Transfer-Encoding") != "" || err == nil && n > 0
}

// statusPath is where the status of a sync is.
func statusPath(id string) string { return "/api/status/" + id }

// findDatasets finds a dataset by its name, or all.
func findDatasets(name string) ([]*ingest.Dataset, error) {
	if name == All {
		return ingest.Datasets(), nil
	}
	var names []string
	for _, d := range ingest.Datasets() {
		if d.Name == name {
			return []*ingest.Dataset{d}, nil
		}
		names = append(names, d.Name)
	}
	return nil, fmt.Errorf("there is no such dataset. Accepted: %s, %s", strings.Join(names, ", "), All)
}

// idForm is that of run ids, which requests have as well.
var idForm = regexp.MustCompile(`^[a-z2-7]{16}$`)

func (a *API) status(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Vary", "Accept")
	if wantsPage(r) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", status.PagePolicy)
		_, _ = w.Write(status.Page) // into memory
		return
	}
	id := r.PathValue("run")
	if id == "" {
		doc, err := a.Backend.Status(r.Context(), hostVersion(r))
		if err != nil {
			a.unwell(w, "status not read", err)
			return
		}
		a.answer(w, http.StatusOK, doc)
		return
	}
	var doc *status.SyncDocument
	var err error
	if idForm.MatchString(id) {
		doc, err = a.Backend.Find(r.Context(), id)
	}
	switch {
	case err != nil:
		a.unwell(w, "status not read", err)
	case doc == nil:
		a.fail(w, http.StatusNotFound, problem{Error: "there is no such sync or run"})
	default:
		a.answer(w, http.StatusOK, doc)
	}
}

// wantsPage tells a browser, which asks for HTML, from everybody else.
func wantsPage(r *http.Request) bool {
	switch r.URL.Query().Get("format") {
	case "json":
		return false
	case "html":
		return true
	}
	return strings.Contains(strings.ToLower(r.Header.Get("Accept")), "text/html")
}

// hostVersion is that of the Functions host.
func hostVersion(r *http.Request) string { return r.Header.Get(functions.HeaderHostVersion) }

// checkTime is how long a check may take: the platform cuts an answer after 230
// seconds (Microsoft, "HTTP trigger", limits).
const checkTime = 3 * time.Minute

func (a *API) check(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), checkTime)
	defer cancel()
	report := a.Backend.Check(ctx)
	code := http.StatusOK
	if report.Outcome == check.Failed {
		// No 5xx: that would be this app's, and front ends replace its body.
		code = http.StatusFailedDependency
	}
	a.Log.Info("connection checked", zap.String("outcome", string(report.Outcome)))
	a.answer(w, code, report)
}
