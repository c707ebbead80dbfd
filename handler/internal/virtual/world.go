package virtual

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/simulator"
)

// Addresses of the services.
const (
	qualysHost   = "qualysapi.qg2.apps.qualys.com"
	ruleHost     = "rule.westeurope-1.ingest.monitor.azure.com"
	stateHost    = "qualysstate.blob.core.windows.net"
	vaultHost    = "qualys.vault.azure.net"
	keysHost     = "qualys-keys.vault.azure.net"
	identityHost = "identity.local"
	container    = "qualys-connector"
	user         = "acme_ab1"
	password     = "correct-horse-canary-1"
	passwordName = "qualys-password"
	// integrationKey is that of the workspaces of integrations, workspaceKey that of the
	// default destination's.
	integrationKey = "aW50ZWdyYXRpb24tY2FuYXJ5LTAxMjM0NTY3ODlhYg=="
)

var workspaceKey = base64.StdEncoding.EncodeToString(simulator.NewAzure().Key)

// begin is when every story begins.
var begin = time.Date(2026, 11, 1, 0, 7, 0, 0, time.UTC)

// A world is the services, and what goes wrong on the way to them.
type world struct {
	story  Story
	estate *simulator.Subscription
	qualys *simulator.Qualys
	azure  *simulator.Azure
	blobs  *simulator.Blobs
	laws   *laws

	mu       sync.Mutex
	rand     *rand.Rand
	acting   []*acting
	clock    wrongClock
	setting  string // one that has changed
	secrets  []string
	counts   map[string]int // calls, by what they are
	met      map[[2]string]int
	log      []string
	ids      int
	since    map[string]time.Time // of registration, by destination
	expected *expectation
}

// acting is an act that goes on.
type acting struct {
	Act
	kind *kind
	n    int // how many calls have met it so far
}

func newWorld(s Story) *world {
	w := &world{story: s, rand: rand.New(rand.NewPCG(s.Seed, 1)), counts: map[string]int{}, met: map[[2]string]int{}, since: map[string]time.Time{}, secrets: []string{password}}
	w.estate = simulator.NewSubscription(s.Seed, s.Hosts, s.Detections)
	w.estate.ResultsBytes, w.estate.ScanEvery, w.estate.Delay = 120, s.Scans, s.Shows
	w.estate.Knowledge = &simulator.Knowledge{Seed: s.Seed, Size: s.QIDs, EditEvery: s.Edits, Delay: 9 * time.Hour}
	w.qualys = simulator.NewQualys(w.estate, user, password)
	w.qualys.Finish = func(r *http.Request, done func()) { callOf(r).done = done }
	w.azure = simulator.NewAzure(ingest.Schemas()...)
	w.azure.Secrets[passwordName] = password
	w.azure.Places = map[string]*simulator.Place{}
	w.blobs = simulator.NewBlobs()
	w.blobs.Authorized = func(r *http.Request) bool { return w.azure.Authorized(r, "https://storage.azure.com") }
	w.laws = newLaws(w)
	w.azure.Keep = func(table string, row json.RawMessage) error { return w.laws.arrived("default", table, row) }
	for n := range s.Integrations {
		name := s.destination(n)
		place := &simulator.Place{}
		if strings.HasPrefix(name, "dcr-") {
			place.Streams = map[string][]record.TableColumn{ingest.VM.Schema.Stream(): ingest.VM.Schema.TableColumns()}
		} else {
			place.Key, _ = base64.StdEncoding.DecodeString(integrationKey) // a constant
		}
		place.Keep = func(table string, row json.RawMessage) error { return w.laws.arrived(name, table, row) }
		w.azure.Places[name] = place
	}
	for _, a := range s.Acts {
		if a.Kind == "a host is new" {
			w.estate.Appear(a.N%s.Hosts, begin.Add(a.At).Truncate(time.Second))
		}
	}
	return w
}

// say adds to the chronicle.
func (w *world) say(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.log) < maxChronicle {
		w.log = append(w.log, time.Since(begin).Round(time.Millisecond).String()+"  "+fmt.Sprintf(format, args...))
	}
}

// maxChronicle bounds the chronicle, in lines.
const maxChronicle = 20_000

// upTo is a random duration.
func (w *world) upTo(most time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Duration(w.rand.Int64N(int64(most)))
}

// A call is a request of a process.
type call struct {
	process *process
	// what it is, such as "rows" or "save a checkpoint".
	what string
	// name of the blob, or the destination of rows.
	name string
	left time.Time
	// run that rows are of.
	run string
	// done tells Qualys that its answer was read, or that the process has given it up.
	done func()
}

// callKey is that of a call in the context of its request.
type callKey struct{}

func callOf(r *http.Request) *call { return r.Context().Value(callKey{}).(*call) } //nolint:forcetypeassert // handler puts it there

// classify names a request.
func classify(r *http.Request) (what, name string) {
	path := r.URL.Path
	switch host := r.URL.Hostname(); {
	case host == qualysHost && strings.Contains(path, "/vm/detection/"):
		return "detections", ""
	case host == qualysHost && strings.Contains(path, "/knowledge_base/"):
		return "knowledge", ""
	case host == qualysHost:
		return "host ids", ""
	case host == vaultHost, host == keysHost:
		return "secret", ""
	case host == identityHost:
		return "token", ""
	case host == stateHost:
		return classifyBlob(r)
	}
	var rule, table string
	if workspace, ok := strings.CutSuffix(r.URL.Hostname(), collectorSuffix); ok {
		rule, table = workspace, r.Header.Get("Log-Type")+"_CL"
	} else if parts := strings.Split(path, "/"); len(parts) >= 5 {
		rule, table = parts[2], strings.TrimPrefix(parts[4], "Custom-")
	}
	switch {
	case table == ingest.Health.Table:
		return "health", ""
	case table == ingest.KB.Schema.Table:
		return "entries", "default"
	case rule == defaultRule, rule == defaultWorkspace:
		return "rows", "default"
	case rule == "":
		return "unknown", ""
	}
	return "rows of an integration", rule
}

// Those of the simulator.
const (
	defaultRule      = "dcr-00000000000000000000000000000001"
	defaultWorkspace = "11111111-1111-1111-1111-111111111111"
	collectorSuffix  = ".ods.opinsights.azure.com"
)

func classifyBlob(r *http.Request) (what, name string) {
	_, name, _ = strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	query := r.URL.Query()
	action := strings.ToLower(r.Header.Get("X-Ms-Lease-Action"))
	for key, v := range r.Header {
		if strings.EqualFold(key, "x-ms-lease-action") {
			action = v[0]
		}
	}
	write := r.Method == http.MethodPut
	document := strings.HasPrefix(name, "checkpoints/") && strings.HasSuffix(name, ".json")
	switch {
	case name == "" && query.Get("comp") == "list":
		return "list", query.Get("prefix")
	case name == "":
		return "container", ""
	case query.Get("comp") == "lease":
		return action + " a lease", name
	case name == "limits.json" && write:
		return "save the limits", name
	case name == "limits.json":
		return "load the limits", name
	case r.Method == http.MethodHead:
		return "look at a lease", name
	case r.Method == http.MethodDelete:
		return "delete", name
	case document && write:
		return "save a checkpoint", name
	case document:
		return "load a checkpoint", name
	case strings.Contains(name, ".recent.") && write:
		return "save the recent rows", name
	case strings.HasPrefix(name, "checkpoints/") && write:
		return "save the index", name
	case strings.HasPrefix(name, "checkpoints/"):
		return "load the ledger", name
	case strings.HasPrefix(name, "deadletter/"):
		return "save a dead letter", name
	case strings.HasPrefix(name, "runs/"):
		return "save a run record", name
	case strings.HasPrefix(name, "integrations/") && write:
		return "save an integration", name
	case strings.HasPrefix(name, "integrations/"):
		return "load an integration", name
	}
	return "other state", name
}

// headerTime is how long an answer may take to begin, as the transport of net/http has it
// for Qualys.
const headerTime = qualys.DefaultFirstByteTimeout

// timeoutError is what net/http says then.
type timeoutError struct{}

func (timeoutError) Error() string   { return "net/http: timeout awaiting response headers" }
func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return true }

// RoundTrip implements http.RoundTripper for a process.
func (p *process) RoundTrip(r *http.Request) (*http.Response, error) {
	w := p.world
	c := &call{process: p, done: func() {}}
	c.what, c.name = classify(r)
	if err := p.mayLeave(r.Context()); err != nil {
		return nil, err
	}
	c.left = time.Now()
	w.laws.leaves(c, r)
	acts := w.acts(c)
	for _, a := range acts {
		if a.kind.connect == nil {
			continue
		}
		if err := a.kind.connect(r.Context(), a); err != nil {
			return nil, err
		}
	}
	if trace := httptrace.ContextClientTrace(r.Context()); trace != nil && trace.GotConn != nil {
		trace.GotConn(httptrace.GotConnInfo{})
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	stop := context.AfterFunc(p.life, func() { cancel(errKilled) })
	if r.URL.Hostname() == qualysHost {
		header := time.AfterFunc(headerTime, func() { cancel(timeoutError{}) })
		defer header.Stop()
	}
	resp, err := simulator.Transport{Handler: w.handler(c, acts)}.RoundTrip(r.WithContext(ctx))
	if err != nil {
		stop()
		cancel(nil)
		return nil, err //nolint:wrapcheck // as the transport has it
	}
	switch c.what {
	case "rows", "entries", "rows of an integration":
		w.laws.told(c, resp.StatusCode)
	}
	if r.URL.Hostname() == qualysHost {
		w.laws.heard(c, r, resp)
	}
	resp.Body = &body{resp.Body, func() { stop(); cancel(nil) }}
	return resp, nil
}

// body ends what goes on for an answer.
type body struct {
	io.ReadCloser
	end func()
}

func (b *body) Close() error {
	defer b.end()
	return b.ReadCloser.Close() //nolint:wrapcheck // as the transport has it
}

// acts are those that a call meets, as they are at that moment: calls overlap.
func (w *world) acts(c *call) (met []*acting) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[c.what]++
	for _, a := range w.acting {
		if a.kind.fault() && a.concerns(c) && w.rand.IntN(100) < a.Share {
			a.n++
			w.met[[2]string{a.Kind, c.what}]++
			if a.kind.breaks && c.what == "detections" {
				w.laws.breaks()
			}
			now := *a
			met = append(met, &now)
		}
	}
	return met
}

// concerns tells whether an act is of such a call.
func (a *acting) concerns(c *call) bool {
	return slices.Contains(groups[a.On], c.what)
}

// handler answers a call.
func (w *world) handler(c *call, acts []*acting) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		drained(r) // all of it is on its way
		r = r.WithContext(context.WithValue(r.Context(), callKey{}, c))
		defer func() { c.done() }()
		way := w.latency(r)
		w.pause(r.Context(), w.upTo(way))
		for _, a := range acts {
			if a.kind.before != nil && a.kind.before(w, a, c, rw, r) {
				return
			}
		}
		answer := httptest.NewRecorder()
		w.serve(c, answer, r)
		w.pause(r.Context(), w.upTo(way))
		for _, a := range acts {
			if a.kind.answer != nil && a.kind.answer(w, a, c, rw, r, answer) {
				return
			}
		}
		give(rw, answer)
	})
}

// latency is the longest way of a call, and the longest back.
func (w *world) latency(r *http.Request) time.Duration {
	switch r.URL.Hostname() {
	case stateHost, vaultHost, keysHost, identityHost:
		return DefaultLatency // the connector waits seconds for them, not minutes
	}
	return w.story.Latency
}

// give passes an answer on.
func give(rw http.ResponseWriter, answer *httptest.ResponseRecorder) {
	for name, values := range answer.Header() {
		rw.Header()[name] = values
	}
	rw.WriteHeader(answer.Code)
	_, _ = rw.Write(answer.Body.Bytes()) // a client that has gone away
}

// pause lets time pass; it breaks the call off where that ends.
func (w *world) pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		panic(http.ErrAbortHandler)
	}
}

// serve is what the services do.
func (w *world) serve(c *call, rw *httptest.ResponseRecorder, r *http.Request) {
	switch r.URL.Hostname() {
	case qualysHost:
		r.Header.Del("Accept-Encoding")
		w.qualys.ServeHTTP(rw, r)
		w.laws.answered(c, r, rw)
	case vaultHost, keysHost:
		w.azure.Vault().ServeHTTP(rw, r)
	case identityHost:
		w.azure.ServeHTTP(rw, r)
	case stateHost:
		content := drained(r)
		w.blobs.ServeHTTP(rw, r)
		if rw.Code < 300 {
			w.laws.stored(c, r, content)
		}
	default:
		content := drained(r)
		w.laws.sends(c, plain(r, content))
		w.azure.ServeHTTP(rw, r)
		w.laws.sent(c)
	}
}

// plain is a body without its compression.
func plain(r *http.Request, content []byte) []byte {
	if r.Header.Get("Content-Encoding") != "gzip" {
		return content
	}
	gz, err := gzip.NewReader(bytes.NewReader(content))
	if err != nil {
		return nil
	}
	content, _ = io.ReadAll(gz) // what is wrong with it the service says
	return content
}
