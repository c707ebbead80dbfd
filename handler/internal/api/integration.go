package api

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/functions"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/integration"
)

// A Registry is where integrations are kept; integration.Registry says what its
// methods do.
type Registry interface {
	List(ctx context.Context) ([]*integration.Integration, error)
	Get(ctx context.Context, id int64) (*integration.Integration, error)
	Add(ctx context.Context, c *integration.Change) (*integration.Integration, error)
	Update(ctx context.Context, id int64, c *integration.Change) (*integration.Integration, error)
	Delete(ctx context.Context, id int64) error
}

// An IntegrationBackend has what the integration API works with.
type IntegrationBackend interface {
	// Registry returns the integrations, and the login that may change them. The
	// error is ErrOff where the API is switched off. Anybody may call it.
	Registry(ctx context.Context) (r Registry, user, password string, err error)
	// Renew reads the login anew, if it was changed where it is kept.
	Renew(ctx context.Context) (user, password string, err error)
	// Off reports whether the API is known to be switched off.
	Off() bool
}

// ErrOff is the error for an API that is switched off.
var ErrOff = errors.New("the integration API is switched off")

const (
	// loginPause is how long a wrong login takes, and everybody behind it:
	// guesses come one at a time.
	loginPause = time.Second
	// maxLogins is how many calls may be served at once, maxFrom how many of one
	// address: who floods is sent away, and keeps others waiting for maxFrom pauses.
	maxLogins = 64
	maxFrom   = 4
	// renewEvery is how often a wrong login makes the right one be read anew.
	renewEvery = time.Minute
)

// Integration is the function QualysIntegration: Qualys' own integration API, as its
// "Qualys Integration with Azure Sentinel, API User Guide" (30 November 2021) tells,
// with the errors of Qualys' other qps/rest endpoints.
//
// It guarantees that nothing is read or changed without the connector's own Qualys
// login, and that no answer and no log holds that login or a workspace's key.
type Integration struct {
	Backend IntegrationBackend
	Clock   ingest.Clock
	Log     *zap.Logger

	checking chan struct{} // holds a token while a login is checked
	renewed  time.Time     // of whoever has the token

	mu    sync.Mutex
	calls int
	from  map[string]int // calls by address
}

// NewIntegration returns the function.
func NewIntegration(backend IntegrationBackend, clock ingest.Clock, log *zap.Logger) *Integration {
	return &Integration{Backend: backend, Clock: clock, Log: log, checking: make(chan struct{}, 1), from: map[string]int{}}
}

// Response codes of Qualys' qps/rest endpoints.
const (
	codeSuccess      = "SUCCESS"
	codeRequest      = "INVALID_REQUEST"
	codeCredentials  = "INVALID_CREDENTIALS" //nolint:gosec // the name of an error
	codeNotFound     = "NOT_FOUND"
	codeNotSupported = "OPERATION_NOT_SUPPORTED"
	codeLimit        = "LIMIT_EXCEEDED"
	codeInternal     = "INTERNAL_ERROR"
)

// envelope is every answer.
type envelope struct {
	ServiceResponse serviceResponse
}

type serviceResponse struct {
	Data         *[]string     `json:"data,omitempty"`
	Count        *int          `json:"count,omitempty"`
	ResponseCode string        `json:"responseCode"`
	Details      *errorDetails `json:"responseErrorDetails,omitempty"`
}

type errorDetails struct {
	Message    string `json:"errorMessage"`
	Resolution string `json:"errorResolution"`
}

// callError is an answer other than SUCCESS.
type callError struct {
	status              int
	code                string
	message, resolution string
}

func (e *callError) Error() string { return e.message }

// errSwitchedOff answers every call of an API that is switched off.
var errSwitchedOff = &callError{http.StatusNotFound, codeNotSupported, ErrOff.Error(), "Set integrationApi=true in the settings of the function app."}

// ServeHTTP implements http.Handler.
func (a *Integration) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	leave, err := a.enter(address(r))
	var data []string
	if err == nil {
		defer leave()
		data, err = a.serve(r)
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	if data == nil {
		data = []string{}
	}
	count := len(data)
	a.write(w, http.StatusOK, serviceResponse{Data: &data, Count: &count, ResponseCode: codeSuccess})
}

// Closed implements functions.Door. What cannot be known before the settings are read is
// known when a call has logged in.
func (a *Integration) Closed(w http.ResponseWriter) bool {
	if !a.Backend.Off() {
		return false
	}
	a.writeError(w, errSwitchedOff)
	return true
}

// MaxBody implements functions.Door.
func (a *Integration) MaxBody() int { return integration.MaxBody }

// Refuse answers a request that could not be read, or whose answer broke. It implements functions.Refuser.
func (a *Integration) Refuse(w http.ResponseWriter, status int, text string) {
	code := codeRequest
	if status == http.StatusRequestEntityTooLarge {
		code = codeLimit
	}
	resolution := "Send a request as the guide tells."
	if status >= http.StatusInternalServerError {
		code, resolution = codeInternal, "See the log of the function app."
	}
	a.write(w, status, serviceResponse{ResponseCode: code, Details: &errorDetails{text, resolution}})
}

func (a *Integration) write(w http.ResponseWriter, status int, response serviceResponse) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(envelope{response}); err != nil {
		a.Log.Error("answer not written", zap.Error(err))
	}
}

// fail answers an error. What is the app's own is told to those who have logged in,
// and to the log.
func (a *Integration) fail(w http.ResponseWriter, r *http.Request, err error) {
	var call *callError
	var invalid *integration.InvalidError
	var damaged *integration.DamagedError
	switch {
	case errors.As(err, &call):
	case errors.As(err, &damaged):
		call = &callError{http.StatusServiceUnavailable, codeInternal, err.Error(), "Correct the document in the state, or delete the integration."}
	case errors.As(err, &invalid):
		call = &callError{http.StatusBadRequest, codeRequest, invalid.Error(), "Correct what the message names."}
	case errors.Is(err, integration.ErrNotFound):
		call = &callError{http.StatusNotFound, codeNotFound, err.Error(), "GET " + basePath + "get/" + product + " lists those that there are."}
	case errors.Is(err, integration.ErrBusy):
		call = &callError{http.StatusServiceUnavailable, codeInternal, err.Error(), "Try again."}
	case errors.Is(err, integration.ErrNoVault):
		call = &callError{http.StatusBadRequest, codeRequest, err.Error(), "Set integrationVault, or name a data collection rule."}
	default:
		a.Log.Error("integration call failed", zap.String("invocation", invocation(r)), zap.Error(err))
		call = &callError{http.StatusServiceUnavailable, codeInternal, err.Error(), "See the message, and the log of the function app; then try again."}
	}
	switch call.status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Basic realm="Qualys account of the connector", charset="UTF-8"`)
	case http.StatusMethodNotAllowed:
		w.Header().Set("Allow", a.verbs()[r.PathValue("verb")].method)
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		w.Header().Set("Retry-After", "60")
	}
	a.writeError(w, call)
}

func (a *Integration) writeError(w http.ResponseWriter, e *callError) {
	a.write(w, e.status, serviceResponse{ResponseCode: e.code, Details: &errorDetails{e.message, e.resolution}})
}

// Paths of the calls.
const (
	basePath = "/qps/rest/2.0/"
	product  = "integration/azure/sentinel/vm"
)

// call is one of the five.
type call struct {
	method string
	// needsID tells that it concerns one integration, takesID that it may.
	needsID, takesID bool
	do               func(ctx context.Context, registry Registry, id int64, body []byte) ([]string, error)
}

func (a *Integration) verbs() map[string]call {
	return map[string]call{
		"add":    {method: http.MethodPost, do: a.add},
		"update": {method: http.MethodPut, needsID: true, do: a.update},
		"get":    {method: http.MethodGet, takesID: true, do: a.get},
		"delete": {method: http.MethodDelete, needsID: true, do: a.delete},
	}
}

func (a *Integration) serve(r *http.Request) ([]string, error) {
	registry, user, password, err := a.Backend.Registry(r.Context())
	if errors.Is(err, ErrOff) {
		return nil, errSwitchedOff
	}
	if err != nil {
		// Nobody has logged in yet: no word of the settings.
		a.Log.Error("integration call not served", zap.Error(err))
		return nil, &callError{http.StatusServiceUnavailable, codeInternal, "the settings of the function app cannot be read", "See its log, or call api/check."}
	}
	if err := a.login(r, user, password); err != nil {
		return nil, err
	}
	verb := r.PathValue("verb")
	c, known := a.verbs()[verb]
	id, hasID, ok := target(r.PathValue("rest"))
	switch {
	case !known || !ok || hasID != c.needsID && !c.takesID:
		return nil, &callError{http.StatusNotFound, codeNotFound, "there is no such call", fmt.Sprintf("Use POST %[1]sadd/%[2]s, PUT %[1]supdate/integration/azure/sentinel/{integrationId}/vm, GET %[1]sget/%[2]s, GET %[1]sget/integration/azure/sentinel/{integrationId}/vm or DELETE %[1]sdelete/integration/azure/sentinel/{integrationId}/vm.", basePath, product)}
	case r.Method != c.method:
		resolution := "Use " + c.method + "."
		if r.Method == http.MethodPost {
			resolution += " To add an integration, POST " + basePath + "add/" + product + "."
		}
		return nil, &callError{http.StatusMethodNotAllowed, codeNotSupported, fmt.Sprintf("%s is called by %s, not by %s", verb, c.method, r.Method), resolution}
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, integration.MaxBody+1))
	if err != nil {
		return nil, &callError{http.StatusBadRequest, codeRequest, "the body cannot be read", "Send it again."}
	}
	if len(body) > integration.MaxBody {
		return nil, &callError{http.StatusRequestEntityTooLarge, codeLimit, fmt.Sprintf("the body is too long: at most %d bytes are accepted", integration.MaxBody), "Send a shorter one."}
	}
	return c.do(r.Context(), registry, id, body)
}

// target reads what follows the product in a path: vm, or an id and vm.
func target(rest string) (id int64, hasID, ok bool) {
	parts := strings.Split(strings.Trim(rest, "/"), "/")
	switch {
	case len(parts) == 1:
		return 0, false, parts[0] == "vm"
	case len(parts) == 2 && parts[1] == "vm":
		id, isID := integration.ParseID(parts[0])
		if !isID {
			id = -1 // such as a name: there is none of it
		}
		return id, true, true
	}
	return 0, false, false
}

// enter counts a call, until leave.
func (a *Integration) enter(from string) (leave func(), err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.calls >= maxLogins || a.from[from] >= maxFrom {
		return nil, &callError{http.StatusTooManyRequests, codeLimit, "too many calls at once", "Try again in a minute."}
	}
	a.calls++
	a.from[from]++
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.calls--
		if a.from[from]--; a.from[from] == 0 {
			delete(a.from, from)
		}
	}, nil
}

// login checks the credentials of a call. One is checked at a time, and a wrong one
// takes its time: so many guesses in a minute, however many ask at once.
func (a *Integration) login(r *http.Request, user, password string) error {
	select {
	case a.checking <- struct{}{}:
		defer func() { <-a.checking }()
	case <-r.Context().Done():
		return &callError{http.StatusServiceUnavailable, codeInternal, "the app is stopping", "Try again."}
	}
	givenUser, givenPassword, ok := r.BasicAuth()
	right := func(user, password string) bool { // both are always compared
		return ok && equal(givenUser, user)&equal(givenPassword, password) == 1
	}
	if right(user, password) {
		return nil
	}
	if now := a.Clock.Now(); ok && now.Sub(a.renewed) >= renewEvery {
		a.renewed = now
		user, password, err := a.Backend.Renew(r.Context())
		if err != nil {
			a.Log.Warn("the login cannot be read anew", zap.Error(err))
		} else if right(user, password) {
			return nil
		}
	}
	a.Log.Warn("wrong login at the integration API", zap.String("invocation", invocation(r)), zap.String("address", address(r)), zap.Bool("credentials", ok))
	_ = a.Clock.Sleep(r.Context(), loginPause) // it is refused in any case
	return &callError{http.StatusUnauthorized, codeCredentials, "Authentication failed", "Use HTTP Basic with user and password of the connector's own Qualys account."}
}

// equal compares texts in a time that tells nothing of them.
func equal(a, b string) int {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:])
}

// address is where the platform's front end says that a call comes from: it adds the
// last one itself, what stands before it is the caller's word.
func address(r *http.Request) string {
	// The platform appends the address that it sees, with the port, behind whatever the
	// caller has sent, in one header or several.
	list := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	last := strings.TrimSpace(list[len(list)-1])
	if host, _, err := net.SplitHostPort(last); err == nil {
		last = host
	}
	at, err := netip.ParseAddr(strings.Trim(last, "[]"))
	if err != nil {
		return "unknown"
	}
	if at = at.Unmap().WithZone(""); at.Is4() {
		return at.String()
	}
	network, err := at.Prefix(networkBits) // its owner may choose any of them
	if err != nil {
		return "unknown"
	}
	return network.String()
}

// networkBits is how much of an IPv6 address its provider gives: a site gets up to a /48
// (RFC 6177), and of 6to4 addresses that much is an IPv4 address.
const networkBits = 48

func invocation(r *http.Request) string { return r.Header.Get(functions.HeaderInvocation) }

func (a *Integration) add(ctx context.Context, registry Registry, _ int64, body []byte) ([]string, error) {
	change, err := integration.Parse(body)
	if err != nil {
		return nil, err
	}
	i, err := registry.Add(ctx, change)
	if err != nil {
		return nil, err
	}
	a.Log.Info("integration added", zap.Int64("integration", i.ID), zap.String("name", i.Name))
	return []string{"integrationId=" + i.Number()}, nil
}

func (a *Integration) update(ctx context.Context, registry Registry, id int64, body []byte) ([]string, error) {
	change, err := integration.Parse(body)
	if err != nil {
		return nil, err
	}
	i, err := registry.Update(ctx, id, change)
	if err != nil {
		return nil, err
	}
	a.Log.Info("integration updated", zap.Int64("integration", i.ID), zap.String("name", i.Name))
	return []string{"Azure Sentinel integration successfully updated."}, nil
}

func (a *Integration) delete(ctx context.Context, registry Registry, id int64, _ []byte) ([]string, error) {
	if err := registry.Delete(ctx, id); err != nil {
		return nil, err
	}
	a.Log.Info("integration deleted", zap.Int64("integration", id))
	return []string{"Azure Sentinel integration successfully deleted."}, nil
}

// get answers those that can be read. One that cannot is told where all are: nobody
// may take it for deleted.
func (a *Integration) get(ctx context.Context, registry Registry, id int64, _ []byte) (data []string, err error) {
	var list []*integration.Integration
	if id != 0 {
		var i *integration.Integration
		i, err = registry.Get(ctx, id)
		list = []*integration.Integration{i}
	} else {
		list, err = registry.List(ctx)
	}
	if err != nil {
		return nil, err
	}
	for _, i := range list {
		data = append(data, i.String())
	}
	return data, nil
}
