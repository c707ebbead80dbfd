// Package functions is the custom-handler protocol of the Azure Functions
// host: an invocation comes in over HTTP, a result goes out.
//
// It guarantees what the host needs to stay well: every invocation is answered
// with a status and a JSON object, the process never ends with exit code 0 and
// never outlives its host. HTTP functions are http.Handlers, which never see a
// function key. What a function does does not enter here.
package functions

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// maxInvocation bounds the body of an invocation, in bytes. The host passes
	// up to 100 MB; nothing that is of use comes near a megabyte.
	maxInvocation = 1 << 20
	// StopGrace is how long calls in flight may take to end in good order.
	StopGrace = 20 * time.Second
	// parentCheck is how often to see whether the host is still there.
	parentCheck = time.Second
	// ExitStopped is the exit code of an orderly end. The host never starts a
	// handler again that has ended with 0.
	ExitStopped = 1
)

// An Invocation is one call of a timer function.
type Invocation struct {
	Function string
	// ID is the host's, for finding the call in its logs.
	ID string
	// PastDue tells that a timer's tick was missed.
	PastDue bool
}

// A Timer does the work of a tick. An error marks the invocation as failed; the
// function has logged it.
type Timer func(ctx context.Context, in Invocation) error

// A Host answers invocations, of functions by their names.
type Host struct {
	Timers map[string]Timer
	// HTTP functions find the parameters of their route as path values, and in
	// the header HeaderInvocation the id of the call in the host's logs.
	HTTP map[string]http.Handler
	Log  *zap.Logger

	once    sync.Once
	reading chan struct{} // holds a token for each request that is being read
}

// Headers of the host: the invocation's id, and its own version.
const (
	HeaderInvocation  = "X-Azure-Functions-InvocationId"
	HeaderHostVersion = "X-Azure-Functions-HostVersion"
)

// ServeHTTP implements http.Handler.
func (h *Host) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.Trim(r.URL.Path, "/")
	if name == "" {
		reply(w, http.StatusOK, "") // the host's question whether we are up
		return
	}
	if f := h.HTTP[name]; f != nil && r.Method == http.MethodPost {
		h.serveHTTP(w, r, name, f)
		return
	}
	f := h.Timers[name]
	if f == nil || r.Method != http.MethodPost {
		reply(w, http.StatusNotFound, "no such function: "+name)
		return
	}
	in, err := readInvocation(r)
	if err != nil {
		// The payload only tells when the tick was due: run all the same.
		h.Log.Warn("invocation not understood", zap.String("function", name), zap.Error(err))
	}
	in.Function = name
	if err := h.call(r.Context(), f, in); err != nil {
		reply(w, http.StatusInternalServerError, err.Error())
		return
	}
	reply(w, http.StatusOK, "")
}

// call turns a panic into a failed invocation: others go on.
func (h *Host) call(ctx context.Context, f Timer, in Invocation) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: internal error: %v", in.Function, p)
			h.Log.Error("panic", zap.String("function", in.Function), zap.Any("panic", p), zap.Stack("stack"))
		}
	}()
	return f(ctx, in)
}

// reply answers with an object: the host waits for ever after an empty body.
func reply(w http.ResponseWriter, status int, message string) {
	doc := response{Logs: []string{}}
	if message != "" {
		doc.Logs = append(doc.Logs, message)
	}
	doc.write(w, status)
}

// response is what the host wants to hear.
type response struct {
	Outputs     outputs  `json:"Outputs"`
	Logs        []string `json:"Logs"`
	ReturnValue any      `json:"ReturnValue"`
}

// outputs are by the names of the bindings.
type outputs struct {
	Response *httpResponse `json:"res,omitempty"`
}

func (doc response) write(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(doc) // a host that has gone away
}

// readInvocation reads what of the envelope is of use. The host's timer fields
// may be null or odd: nothing in them is worth failing for.
func readInvocation(r *http.Request) (Invocation, error) {
	in := Invocation{ID: r.Header.Get(HeaderInvocation)}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxInvocation))
	if err != nil {
		return in, fmt.Errorf("read the invocation: %w", err)
	}
	var envelope struct {
		Data map[string]json.RawMessage
	}
	if err := json.Unmarshal(body, &envelope); err != nil {
		return in, fmt.Errorf("decode the invocation: %w", err)
	}
	for _, binding := range envelope.Data {
		var timer struct{ IsPastDue bool }
		if json.Unmarshal(binding, &timer) == nil && timer.IsPastDue {
			in.PastDue = true
		}
	}
	return in, nil
}

// Serve answers the host on port until ctx ends or the host is gone, and then
// returns when the calls in flight have ended, or were given up.
func (h *Host) Serve(ctx context.Context, port string) error {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return fmt.Errorf("listen for the Functions host: %w", err)
	}
	calls, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return calls },
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	h.Log.Info("handler ready")
	select {
	case err := <-failed:
		return fmt.Errorf("serve the Functions host: %w", err)
	case <-ctx.Done():
		h.Log.Info("stopping: asked to")
	case <-orphaned(ctx):
		h.Log.Info("stopping: the Functions host is gone")
	}
	cancel() // calls end at their next safe point
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), StopGrace)
	defer done()
	if err := server.Shutdown(stop); err != nil {
		return fmt.Errorf("calls given up: %w", err)
	}
	return nil
}

// orphaned is closed when the parent process changes: a handler outlives a
// host that was killed, and would go on writing beside the next one. In a
// container the host itself may be process 1, so only a change counts.
func orphaned(ctx context.Context) <-chan struct{} {
	gone := make(chan struct{})
	parent := os.Getppid()
	go func() {
		ticker := time.NewTicker(parentCheck)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				if os.Getppid() != parent {
					close(gone)
					return
				}
			}
		}
	}()
	return gone
}
