//go:build linux

package e2e

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"

	"qualys-sentinel/e2e/canary"
	"qualys-sentinel/handler/simulation"
)

// Exit codes of the program.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
	exitPaused = 3
)

// A serviceFault is one way in which a service of Azure, or the network, goes
// wrong around the program.
type serviceFault struct {
	place, name string
	// server that meets it, if it is not the place's own.
	server string
	// on are the requests that meet it, counted among themselves from 1.
	on func(r *http.Request) bool
	// from and to bound it; to zero: for as long as the run lasts.
	from, to int
	// spoil answers them; nil: the server goes down for two seconds.
	spoil func(http.ResponseWriter, *http.Request, []byte)
	// taken lets the server do what it was asked for: only its answer is lost.
	taken bool
	// then happens when it is met.
	then func(s *services)
	// before happens before the first run, and heal before the second.
	before, heal func(s *services)
	// The end of the first run: exit code and a text of its output.
	code int
	want string
	// failures is how many runs more end like the first.
	failures int
	// mayTwice lets rows arrive twice.
	mayTwice bool
	// slow runs wait as long as the program allows: two minutes.
	slow bool
}

// how often it is met.
func (f *serviceFault) how() string {
	switch {
	case f.to == 0 && f.failures > 0:
		return fmt.Sprintf("%d runs", f.failures+1)
	case f.to == 0:
		return "a run"
	case f.to == f.from:
		return "once"
	}
	return fmt.Sprintf("%d times", f.to-f.from+1)
}

func stream(r *http.Request) bool {
	return strings.Contains(r.URL.Path, "/streams/Custom-QualysHostDetection")
}

func healthStream(r *http.Request) bool {
	return strings.Contains(r.URL.Path, "/streams/Custom-QualysConnectorHealth")
}

// hang takes a request and never answers. It hears that the client has gone only when
// the body is read.
func hang(_ http.ResponseWriter, r *http.Request, _ []byte) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

func oldStream(r *http.Request) bool {
	return r.URL.Path == "/api/logs" && strings.HasPrefix(r.Header.Get("Log-Type"), "QualysHostDetection")
}

// oldAPI sends by the HTTP Data Collector API.
func oldAPI(s *services) {
	s.environ["logAnalyticsApi"], s.environ["dcrImmutableId"] = "data-collector", ""
	s.environ["workspaceID"], s.environ["workspaceKey"] = s.azure.Workspace, canary.WorkspaceKeyText()
}

func token(resource string) func(r *http.Request) bool {
	return func(r *http.Request) bool {
		return r.URL.Path == simulation.IdentityPath && strings.HasPrefix(r.URL.Query().Get("resource"), resource)
	}
}

func anything(*http.Request) bool { return true }

// blobs are requests of one method for blobs below a path, with a comp
// parameter or without.
func blobs(method, path, comp string) func(r *http.Request) bool {
	return func(r *http.Request) bool {
		return r.Method == method && strings.Contains(r.URL.Path, path) && r.URL.Query().Get("comp") == comp
	}
}

// azureError is an answer of an Azure service.
func azureError(status int, code string, header ...string) func(http.ResponseWriter, *http.Request, []byte) {
	return simulation.Status(status, `{"error":{"code":"`+code+`","message":"simulated"}}`,
		append([]string{"Content-Type", "application/json", "x-ms-error-code", code}, header...)...)
}

// serviceFaults are all of them.
func serviceFaults() []serviceFault {
	const page = "<html><body>502 Bad Gateway</body></html>"
	const checkpoint = "/checkpoints/default/vm.json"
	poison := ""
	newSubscription().Expected(time.Time{}, time.Now().AddDate(-1, 0, 0), func(_ simulation.Host, d simulation.Detection) {
		poison = fmt.Sprintf(`"RowKey_s":"%d@`, d.UniqueID)
	})
	return []serviceFault{
		{place: "Qualys", name: "down for two seconds", on: anything, from: 3, to: 3},

		{place: "ingestion", name: "down for two seconds", on: stream, from: 2, to: 2, mayTwice: true},
		{place: "ingestion", name: "reset before the rows are taken", on: stream, from: 2, to: 2, spoil: simulation.Reset},
		{place: "ingestion", name: "reset after the rows are taken", on: stream, from: 2, to: 2, spoil: simulation.Reset, taken: true, mayTwice: true},
		{place: "ingestion", name: "400 for one poisoned row", on: func(r *http.Request) bool { return stream(r) && holds(r, poison) }, from: 1,
			spoil: azureError(400, "InvalidRecord"), heal: (*services).replay, want: "1 dead letters"},
		{place: "ingestion", name: "401 once", on: stream, from: 2, to: 2, spoil: azureError(401, "InvalidToken")},
		{place: "ingestion", name: "401 for ever", on: stream, from: 2, spoil: azureError(401, "InvalidToken"), code: exitFailed, want: "belongs to the cloud and tenant", mayTwice: true},
		{place: "ingestion", name: "the token ends before its time", on: stream, from: 2, to: 2, spoil: azureError(503, "Busy"), then: func(s *services) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.azureAhead = 25 * time.Hour
		}},
		{place: "ingestion", name: "403 for six runs", on: stream, from: 1, spoil: azureError(403, "OperationFailed"), failures: 5, code: exitFailed, want: "Monitoring Metrics Publisher"},
		{place: "ingestion", name: "404", on: stream, from: 2, spoil: azureError(404, "NotFound"), code: exitFailed, want: "check dcrImmutableId", mayTwice: true},
		{place: "ingestion", name: "413 for more than 20 kB", on: func(r *http.Request) bool { return stream(r) && r.ContentLength > 20_000 }, from: 1, spoil: azureError(413, "ContentLengthLimitExceeded")},
		{place: "ingestion", name: "429 with Retry-After", on: stream, from: 2, to: 3, spoil: azureError(429, "TooManyRequests", "Retry-After", "1")},
		{place: "ingestion", name: "429 for ten minutes", on: stream, from: 2, spoil: azureError(429, "TooManyRequests", "Retry-After", "600"), code: exitPaused, want: "429", mayTwice: true},
		{place: "ingestion", name: "500, 500, 500", on: stream, from: 2, to: 4, spoil: azureError(500, "InternalError")},
		{place: "ingestion", name: "502 as a page", on: stream, from: 2, to: 2, spoil: simulation.Status(502, page, "Content-Type", "text/html")},
		{place: "ingestion", name: "503 for ever", on: stream, from: 2, spoil: azureError(503, "Busy"), code: exitFailed, want: "not accepted in", slow: true, mayTwice: true},
		{place: "ingestion", name: "redirect", on: stream, from: 2, spoil: simulation.Status(302, "", "Location", "https://elsewhere.example/"), code: exitFailed, want: "302", mayTwice: true},
		{place: "ingestion", name: "200 that accepts nothing", on: stream, from: 2, spoil: simulation.Status(200, page), code: exitFailed, want: "200", mayTwice: true},
		{place: "ingestion", name: "403 for health rows only", on: healthStream, from: 1, spoil: azureError(403, "OperationFailed"), want: "the health row is not sent"},

		{place: "ingestion", name: "hangs before the rows are taken", on: stream, from: 2, to: 2, spoil: hang, code: exitPaused, want: "budget", slow: true},
		{place: "ingestion", name: "hangs after the rows are taken", on: stream, from: 2, to: 2, spoil: hang, taken: true, code: exitPaused, want: "budget", slow: true, mayTwice: true},
		{place: "ingestion", name: "hangs for a run", on: stream, from: 2, spoil: hang, code: exitPaused, want: "budget", slow: true, mayTwice: true},
		{place: "ingestion", name: "hangs for health rows", on: healthStream, from: 1, spoil: hang, want: "the health row is not sent", slow: true},

		{place: "Data Collector", name: "hangs", before: oldAPI, on: oldStream, from: 1, to: 1, spoil: hang, slow: true},
		{place: "Data Collector", name: "429 with Retry-After", before: oldAPI, on: oldStream, from: 2, to: 3, spoil: azureError(429, "TooManyRequests", "Retry-After", "1")},
		{place: "Data Collector", name: "403", before: oldAPI, on: oldStream, from: 1, spoil: simulation.Status(403, `{"Error":"InvalidAuthorization","Message":"simulated"}`), code: exitFailed, want: "check workspaceID, workspaceKey"},
		{place: "Data Collector", name: "200 that accepts nothing", before: oldAPI, on: oldStream, from: 1, spoil: simulation.Status(200, page), code: exitFailed, want: "check logAnalyticsUri"},
		{place: "Data Collector", name: "500 twice", before: oldAPI, on: oldStream, from: 1, to: 2, spoil: simulation.Status(500, `{"Error":"UnspecifiedError","Message":"simulated"}`)},
		{place: "Data Collector", name: "reset after the rows are taken", before: oldAPI, on: oldStream, from: 1, to: 1, spoil: simulation.Reset, taken: true, mayTwice: true},
		{place: "Data Collector", name: "down for two seconds", before: oldAPI, on: oldStream, from: 1, to: 1, mayTwice: true},

		{place: "identity", name: "down for two seconds", on: token("https://monitor"), from: 1, to: 1, mayTwice: true},
		{place: "identity", name: "500 once", on: token("https://monitor"), from: 1, to: 1, spoil: azureError(500, "InternalError")},
		{place: "identity", name: "429 twice", on: token("https://monitor"), from: 1, to: 2, spoil: azureError(429, "TooManyRequests", "Retry-After", "1")},
		{place: "identity", name: "500 for ever", on: token("https://monitor"), from: 1, spoil: azureError(500, "InternalError"), code: exitFailed, want: "no token for the destination", slow: true},
		{place: "identity", name: "no identity assigned", on: token("https://monitor"), from: 1, spoil: azureError(400, "identity_not_found"), code: exitFailed, want: "managed identity"},
		{place: "identity", name: "a page", on: token("https://monitor"), from: 1, spoil: simulation.Status(200, page), code: exitFailed, want: "no token for the destination", slow: true},

		{place: "identity", name: "hangs once", on: token("https://monitor"), from: 1, to: 1, spoil: hang, slow: true},
		{place: "identity", name: "hangs for a run", on: token("https://monitor"), from: 1, spoil: hang, code: exitPaused, want: "budget", slow: true},

		{place: "Key Vault", name: "hangs", on: anything, from: 2, to: 2, spoil: hang, slow: true},
		{place: "Key Vault", name: "hangs for a run", on: anything, from: 2, spoil: hang, code: exitUsage, want: "20s", slow: true},
		{place: "Key Vault", name: "down for two seconds", on: anything, from: 1, to: 1},
		{place: "Key Vault", name: "403", on: anything, from: 2, spoil: azureError(403, "Forbidden"), code: exitUsage, want: "Key Vault Secrets User"},
		{place: "Key Vault", name: "404", on: anything, from: 2, spoil: azureError(404, "SecretNotFound"), code: exitUsage, want: "no such secret"},
		{place: "Key Vault", name: "429 once", on: anything, from: 2, to: 2, spoil: azureError(429, "Throttled", "Retry-After", "1")},
		{place: "Key Vault", name: "500 for ever", on: anything, from: 2, spoil: azureError(500, "InternalError"), code: exitUsage, want: "the vault answered 500"},
		{place: "Key Vault", name: "down when the password changes", on: anything, from: 3, spoil: azureError(503, "Busy"), before: func(s *services) {
			s.qualys.SetPassword(canary.NewPassword) // the vault holds the old one
		}, heal: func(s *services) { s.azure.SetSecret("qualys-password", canary.NewPassword) }, code: exitFailed, want: "reading the credentials again"},

		{place: "storage", name: "hangs at the first call", on: anything, from: 1, to: 1, spoil: hang, slow: true},
		{place: "storage", name: "hangs at the lease", on: blobs("PUT", checkpoint, "lease"), from: 1, to: 1, spoil: hang, slow: true},
		{place: "storage", name: "hangs at the load", on: blobs("GET", checkpoint, ""), from: 1, to: 1, spoil: hang, slow: true},
		{place: "storage", name: "hangs at a save", on: blobs("PUT", checkpoint, ""), from: 3, to: 3, spoil: hang, slow: true},
		{place: "storage", name: "hangs at a save that is done", on: blobs("PUT", checkpoint, ""), from: 3, to: 3, spoil: hang, taken: true, slow: true},
		{place: "storage", name: "hangs at the limits of Qualys", on: blobs("GET", "limits.json", ""), from: 1, to: 1, spoil: hang, slow: true},
		{place: "storage", name: "hangs at the rows delivered lately", on: blobs("PUT", "vm.recent", ""), from: 1, to: 1, spoil: hang, slow: true},
		{place: "storage", name: "hangs at the run record", on: blobs("PUT", "/runs/", ""), from: 1, to: 1, spoil: hang, slow: true},
		{place: "storage", name: "hangs at every save", on: blobs("PUT", checkpoint, ""), from: 3, spoil: hang, code: exitFailed, want: "save the checkpoint", slow: true, mayTwice: true},
		{place: "storage", name: "down for two seconds", on: anything, from: 4, to: 4},
		{place: "storage", name: "500 once, at a save", on: blobs("PUT", checkpoint, ""), from: 3, to: 3, spoil: azureError(500, "InternalError")},
		{place: "storage", name: "503 for ever, at a save", on: blobs("PUT", checkpoint, ""), from: 3, spoil: azureError(503, "ServerBusy"), code: exitFailed, want: "answered 503 ServerBusy", mayTwice: true},
		{place: "storage", name: "the answer to a save is lost", on: blobs("PUT", checkpoint, ""), from: 3, to: 3, spoil: simulation.Reset, taken: true},
		{place: "storage", name: "412 at a save", on: blobs("PUT", checkpoint, ""), from: 3, to: 3, spoil: azureError(412, "ConditionNotMet"), code: exitFailed, want: "the hold on the checkpoint is lost", mayTwice: true},
		{place: "storage", name: "409 at a save", on: blobs("PUT", checkpoint, ""), from: 3, to: 3, spoil: azureError(409, "LeaseIdMismatchWithBlobOperation"), code: exitFailed, want: "the hold on the checkpoint is lost", mayTwice: true},
		{place: "storage", name: "404 at a save", on: blobs("PUT", checkpoint, ""), from: 3, to: 3, spoil: azureError(404, "ContainerNotFound"), code: exitFailed, want: "the hold on the checkpoint is lost", mayTwice: true},
		{place: "storage", name: "403 at the first call", on: anything, from: 1, spoil: azureError(403, "AuthorizationPermissionMismatch"), code: exitFailed, want: "Storage Blob Data Contributor"},
		{place: "storage", name: "503 once, at the lease", on: blobs("PUT", checkpoint, "lease"), from: 1, to: 1, spoil: azureError(503, "ServerBusy")},
		{place: "storage", name: "500 for ever, at the run record", on: blobs("PUT", "/runs/", ""), from: 1, spoil: azureError(500, "InternalError"), code: exitFailed, want: "answered 500"},
		{place: "storage", name: "500 for ever, at the rows delivered lately", on: blobs("PUT", "vm.recent", ""), from: 1, spoil: azureError(500, "InternalError"), want: "some may be sent twice", mayTwice: true},
		{place: "storage", name: "held by another run", before: func(s *services) { s.holdCheckpoint() }, heal: func(s *services) { s.breakLease() }, code: exitPaused, want: "another run"},
		{place: "storage", name: "container deleted under way", server: "Azure", on: stream, from: 3, to: 3, spoil: simulation.Status(204, ""), taken: true, then: func(s *services) {
			if _, err := s.stateContainer().Delete(context.Background(), nil); err != nil {
				s.t.Error(err)
			}
		}, code: exitFailed, want: "the hold on the checkpoint is lost", mayTwice: true},
		{place: "storage", name: "a damaged checkpoint", before: func(s *services) { s.writeBlob("checkpoints/default/vm.json", "{\"version\":1,") }, heal: func(s *services) { s.writeBlob("checkpoints/default/vm.json", "") }, code: exitFailed, want: "the checkpoint is damaged"},
		{place: "storage", name: "a checkpoint of a newer version", before: func(s *services) { s.writeBlob("checkpoints/default/vm.json", `{"version":9,"dataset":"vm"}`) }, heal: func(s *services) { s.writeBlob("checkpoints/default/vm.json", "") }, code: exitFailed, want: "version 9"},
	}
}

// newSubscription is what all rows of the table work on.
func newSubscription() *simulation.Subscription { return simulation.NewSubscription(11, 150, 20) }

// holds tells whether a request's rows hold a text. The body can be read again.
func holds(r *http.Request, text string) bool {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return false
	}
	r.Body = io.NopCloser(bytes.NewReader(raw))
	gz, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return false
	}
	body, err := io.ReadAll(gz)
	return err == nil && bytes.Contains(body, []byte(text))
}

// Every way in which the services around the program go wrong: it ends as it
// should and says why, and when it is over nothing is missing. make faults
// prints the table.
func TestFaults(t *testing.T) {
	t.Parallel() // it mostly waits
	program := program(t)
	var mu sync.Mutex
	var table []string
	var wg sync.WaitGroup
	defer wg.Wait()                // also when the test is given up: what reports to it then would panic
	turn := make(chan struct{}, 8) // they mostly wait
	faults := serviceFaults()
	// The slow ones first.
	slices.SortStableFunc(faults, func(a, b serviceFault) int { return cmp.Compare(slow(b), slow(a)) })
	for _, f := range faults {
		if which := os.Getenv("FAULTS"); which == "" && f.slow || which != "" && which != "all" && !strings.Contains(f.name, which) {
			continue // make faults has all; FAULTS=text those whose name has it
		}
		s := startServices(t, 150, 20)
		s.environ["uri"] = s.places["Qualys"].url
		s.environ["filterParameters"] = "&truncation_limit=20"
		s.environ["runBudget"] = "1m"
		s.program = program
		s.proxyStorage()
		dir := outputDir(t)
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			row := runFault(t, s, f, filepath.Join(dir, fmt.Sprintf("%s, %s.log", f.place, f.name)))
			mu.Lock()
			defer mu.Unlock()
			table = append(table, row)
		})
	}
	wg.Wait()
	slices.Sort(table)
	for _, row := range table {
		t.Logf("%s", row)
	}
}

func slow(f serviceFault) int {
	if f.slow {
		return 1
	}
	return 0
}

var (
	outcomeForm = regexp.MustCompile(`(?m)^VM detections: (\w+)`)
	retriesForm = regexp.MustCompile(`retries +(\d+)`)
	otherReason = regexp.MustCompile(`(?m)^  reason +(.*)$`)
	reasonForm  = regexp.MustCompile(`(?m)^error: (.*(?:\n +.*)?)$`)
)

// runFault runs the program with a fault until all is well again, and returns a
// row of the table.
func runFault(t *testing.T, s *services, f serviceFault, log string) string {
	name := f.place + ": " + f.name
	f.arm(s)
	if f.before != nil {
		f.before(s)
	}
	code, out := s.sync(log)
	if code != f.code || !strings.Contains(out, f.want) {
		t.Errorf("%s: exit code %d, want %d with %q:\n%s", name, code, f.code, f.want, out)
	}
	for n := range f.failures {
		if again, out := s.sync(log); again != f.code {
			t.Errorf("%s, run %d: exit code %d\n%s", name, n+2, again, out)
		}
	}
	for _, p := range s.places {
		p.Heal()
	}
	if f.heal != nil {
		f.heal(s)
	}
	runs := 1 + f.failures
	for code != exitOK {
		again, out := s.sync(log)
		if runs++; again == exitOK {
			break
		}
		if runs > f.failures+4 {
			t.Errorf("%s: exit code %d in run %d, with the fault gone:\n%s", name, again, runs, out)
			break
		}
	}
	if f.on != nil && s.met.Load() == 0 {
		t.Errorf("%s: nothing met it", name)
	}
	lost := 0
	s.mu.Lock()
	twice := 0
	s.sub.Expected(time.Time{}, s.now, func(_ simulation.Host, d simulation.Detection) {
		n := len(s.rows[fmt.Sprintf("%d@%s", d.UniqueID, d.Processed.Format(time.RFC3339))])
		lost += max(0, 1-n)
		twice += max(0, n-1)
	})
	s.mu.Unlock()
	if lost > 0 || twice > 0 && !f.mayTwice {
		t.Errorf("%s: %d lost, %d twice", name, lost, twice)
	}
	part := func(form *regexp.Regexp) string {
		if m := form.FindStringSubmatch(out); m != nil {
			return m[1]
		}
		return ""
	}
	outcome := cmp.Or(part(outcomeForm), "not started")
	if outcome == "complete" && code != exitOK {
		outcome = "complete, but failed to tell"
	}
	reason := cmp.Or(part(reasonForm), part(otherReason))
	return fmt.Sprintf("| %s | %s | %s | %d | %s | %d | %d | %s |", name, f.how(), outcome, runs, cmp.Or(part(retriesForm), "0"), lost, twice, strings.Join(strings.Fields(reason), " "))
}

// arm puts the fault into its place.
func (f *serviceFault) arm(s *services) {
	if f.on == nil {
		return
	}
	byPlace := map[string]string{"ingestion": "Azure", "Data Collector": "Azure", "identity": "Azure"}[f.place]
	p := s.places[cmp.Or(f.server, byPlace, f.place)]
	var n atomic.Int64
	met := &s.met
	when := func(_ int, r *http.Request) bool {
		if !f.on(r) {
			return false
		}
		i := int(n.Add(1))
		return i >= f.from && (f.to == 0 || i <= f.to)
	}
	p.Arm(simulation.Spoiling{Unasked: !f.taken, When: when, Fault: simulation.Fault{Name: f.name, Spoil: func(w http.ResponseWriter, r *http.Request, doc []byte) {
		first := met.Add(1) == 1
		if f.then != nil && first {
			f.then(s)
		}
		if f.spoil != nil {
			f.spoil(w, r, doc)
			return
		}
		if first {
			p.goDown(s, 2*time.Second)
		}
		simulation.Reset(w, r, doc)
	}}})
}

// sync runs the program once, and returns its exit code and output.
func (s *services) sync(log string, args ...string) (int, string) {
	t := s.t
	if len(args) == 0 {
		args = []string{"sync", "vm"}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.program, args...)
	cmd.Env = os.Environ()
	for name, value := range s.environ {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	out, err := cmd.CombinedOutput()
	file, openErr := os.OpenFile(log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if openErr != nil {
		t.Error(openErr)
		return -1, string(out)
	}
	_, writeErr := file.Write(out)
	if err := errors.Join(writeErr, file.Close()); err != nil {
		t.Error(err)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Error(err)
		return -1, string(out)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// replay sends the dead letters again.
func (s *services) replay() {
	if code, out := s.sync(filepath.Join(outputDir(s.t), "replay.log"), "replay", "vm"); code != exitOK {
		s.t.Errorf("replay: exit code %d\n%s", code, out)
	}
}

// proxyStorage puts a server that can go wrong in front of Azurite.
func (s *services) proxyStorage() {
	const key = "BlobEndpoint="
	i := strings.Index(s.storage, key) + len(key)
	endpoint := strings.TrimRight(s.storage[i:], ";")
	u, err := url.Parse(endpoint)
	if err != nil {
		s.t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: u.Scheme, Host: u.Host})
	p := s.open("storage", proxy, false)
	s.environ["AzureWebJobsStorage"] = s.storage[:i] + p.url + u.Path + ";"
}

func (s *services) stateContainer() *container.Client {
	c, err := container.NewClientFromConnectionString(s.storage, s.container, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// writeBlob writes a blob of the state.
func (s *services) writeBlob(name, text string) {
	ctx, c := context.Background(), s.stateContainer()
	_, _ = c.Create(ctx, nil) // it may be there
	if _, err := c.NewBlockBlobClient(name).Upload(ctx, streaming.NopCloser(strings.NewReader(text)), nil); err != nil {
		s.t.Error(err)
	}
}

// checkpointLease is a lease of somebody else.
func (s *services) checkpointLease() *lease.BlobClient {
	l, err := lease.NewBlobClient(s.stateContainer().NewBlobClient("checkpoints/default/vm.json"), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return l
}

func (s *services) holdCheckpoint() {
	s.writeBlob("checkpoints/default/vm.json", "")
	if _, err := s.checkpointLease().AcquireLease(context.Background(), -1, nil); err != nil {
		s.t.Error(err)
	}
}

func (s *services) breakLease() {
	if _, err := s.checkpointLease().BreakLease(context.Background(), &lease.BlobBreakOptions{BreakPeriod: new(int32)}); err != nil {
		s.t.Error(err)
	}
}
