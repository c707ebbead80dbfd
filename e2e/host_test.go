//go:build linux

package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"qualys-sentinel/e2e/azurite"
	"qualys-sentinel/e2e/canary"
	"qualys-sentinel/handler/simulation"
)

// folder is for what the tests of this process share. It goes when they end.
var folder = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "qualys-e2e-*") })

// app is the staged function app, built once.
var app = sync.OnceValues(func() (string, error) {
	dir, err := folder()
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "run", "./tools/stage", "-out", dir, "-arch", runtime.GOARCH)
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("stage the app: %w\n%s", err, out)
	}
	// Its mode may be lost on the way into a package; here it is started.
	app := filepath.Join(dir, "app")
	return app, os.Chmod(filepath.Join(app, "qualys-sentinel"), 0o755)
})

// program is the binary of the staged app, for tests that run it by itself.
func program(t testing.TB) string {
	t.Helper()
	dir, err := app()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "qualys-sentinel")
}

func TestMain(m *testing.M) {
	code := m.Run()
	sharedStorage.stop()
	if dir, err := folder(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// stage returns a copy of the staged app of this test's own. Another process makes it:
// while this one has a program open for writing, each process that another test starts
// holds it open too for a moment, and the program cannot be started ("text file busy").
func stage(t testing.TB) string {
	t.Helper()
	from, err := app()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "app")
	if out, err := exec.Command("cp", "-Rp", from, dir).CombinedOutput(); err != nil {
		t.Fatalf("copy the app: %v\n%s", err, out)
	}
	return dir
}

// services are the simulated Qualys and Azure, and a real Azurite.
type services struct {
	t       testing.TB
	sub     *simulation.Subscription
	qualys  *simulation.Qualys
	azure   *simulation.Azure
	storage string
	// container of the state.
	container string
	environ   map[string]string
	// places are the servers, by name; see place.
	places map[string]*place
	// met counts the requests that met a fault.
	met atomic.Int64
	// program is the binary, for tests that run it without a host.
	program string
	// beforeIngest is called with the number of each ingestion call.
	beforeIngest func(n int)

	mu  sync.Mutex
	now time.Time // Qualys' clock
	// azureAhead is how far Azure's clock is ahead of this machine's.
	azureAhead time.Duration
	rows       map[string][]json.RawMessage // detections by RowKey
	kb         map[string][]json.RawMessage // KnowledgeBase entries by RowKey
	// health are the rows of the connector's own health.
	health []json.RawMessage
}

// storage is the Azurite of all tests of this process: to load one takes three seconds.
type storage struct {
	mu         sync.Mutex
	connection string
	stopIt     func()
	containers int
}

var sharedStorage storage

// container is the connection string, and the name of a container that no other test has.
func (s *storage) container(t testing.TB) (connection, name string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.connection == "" {
		dir, err := folder()
		if err != nil {
			t.Fatal(err)
		}
		s.connection, s.stopIt = azurite.Open(t, filepath.Join(dir, "azurite"))
	}
	s.containers++
	return s.connection, fmt.Sprintf("state-%d", s.containers)
}

func (s *storage) stop() {
	if s.stopIt != nil {
		s.stopIt()
	}
}

// startServices keeps the state in a container of its own.
func startServices(t testing.TB, hosts, detections int) *services {
	t.Helper()
	storage, container := sharedStorage.container(t)
	s := &services{t: t, storage: storage, container: container, places: map[string]*place{}, rows: map[string][]json.RawMessage{}, kb: map[string][]json.RawMessage{}}
	s.sub = simulation.NewSubscription(11, hosts, detections)
	s.qualys = simulation.NewQualys(s.sub, canary.User, canary.Password)
	// A year ago, so that a test may move it on: a window never ends later than
	// the machine's clock.
	s.now = time.Now().UTC().Truncate(time.Second).AddDate(-1, 0, 0)
	s.qualys.Now = s.clock
	s.azure = simulation.NewAzure()
	s.azure.IdentityHeader, s.azure.Key = canary.IdentityToken, canary.WorkspaceKey
	s.azure.SetSecret("qualys-password", canary.Password)
	s.azure.Keep = s.keep
	s.azure.Now = func() time.Time {
		s.mu.Lock()
		defer s.mu.Unlock()
		return time.Now().Add(s.azureAhead)
	}
	qualys := s.open("Qualys", s.qualys, false)
	calls := 0
	azure := s.open("Azure", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != simulation.IdentityPath && s.beforeIngest != nil {
			s.mu.Lock()
			calls++
			n := calls
			s.mu.Unlock()
			s.beforeIngest(n)
		}
		s.azure.ServeHTTP(w, r)
	}), false)
	vault := s.open("Key Vault", s.azure.Vault(), true)
	cert := filepath.Join(t.TempDir(), "vault.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: vault.server.Certificate().Raw})
	if err := os.WriteFile(cert, block, 0o600); err != nil {
		t.Fatal(err)
	}
	s.environ = map[string]string{
		"AzureWebJobsStorage": s.storage,
		"APIUSERNAME":         canary.User, // any case
		"apiPassword":         "@Microsoft.KeyVault(SecretUri=" + vault.url + "/secrets/qualys-password)",
		"SSL_CERT_FILE":       cert,
		"uri":                 qualys.url + "/api/2.0/fo/asset/host/vm/detection/?action=list&vm_processed_after=",
		"logAnalyticsUri":     azure.url,
		"logAnalyticsApi":     "logs-ingestion",
		"dcrImmutableId":      s.azure.Rule,
		"IDENTITY_ENDPOINT":   azure.url + simulation.IdentityPath,
		"IDENTITY_HEADER":     canary.IdentityToken,
		"filterParameters":    "&truncation_limit=100",
		"vmSchedule":          "0 0 0 1 1 *",
		"kbSchedule":          "0 0 0 1 1 *",
		"stateContainer":      container,
		"initialLookbackDays": "0",
	}
	t.Cleanup(func() { s.dumpState() })
	return s
}

// place is a server at an address of its own, that can go wrong and down.
type place struct {
	*simulation.Faulty
	url string
	tls bool

	mu     sync.Mutex
	server *httptest.Server
}

func (s *services) open(name string, h http.Handler, tls bool) *place {
	p := &place{Faulty: &simulation.Faulty{Next: h}, tls: tls}
	p.start(azurite.Listen(s.t))
	p.url = p.server.URL
	s.places[name] = p
	s.t.Cleanup(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.server.Close()
	})
	return p
}

func (p *place) start(l net.Listener) {
	server := httptest.NewUnstartedServer(p.Faulty)
	server.Listener.Close()
	server.Listener = l
	if p.tls {
		server.StartTLS()
	} else {
		server.Start()
	}
	p.server = server
}

// goDown refuses connections for a while.
func (p *place) goDown(s *services, d time.Duration) {
	p.mu.Lock()
	address := p.server.Listener.Addr().String()
	p.server.Listener.Close()
	p.server.CloseClientConnections()
	go func() {
		defer p.mu.Unlock()
		p.server.Close()
		<-time.After(d)
		l, err := net.Listen("tcp", address)
		if err != nil {
			s.t.Errorf("listen again: %v", err)
			return
		}
		p.start(l)
	}()
}

// clock is Qualys' time. It stands still unless a test moves it, so that what
// is expected of a window does not change while it is being carried over.
func (s *services) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

// setKnowledge gives the subscription a KnowledgeBase. The server, which runs
// already, reads it behind its clock's lock.
func (s *services) setKnowledge(k *simulation.Knowledge) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sub.Knowledge = k
}

func (s *services) advance(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}

// keep remembers an arrived row by its key.
func (s *services) keep(table string, row json.RawMessage) error {
	var key struct{ RowKey_s string }
	if err := json.Unmarshal(row, &key); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	rows := s.rows
	switch {
	case strings.HasPrefix(table, "QualysKB"):
		rows = s.kb
	case strings.HasPrefix(table, "QualysConnectorHealth"):
		s.health = append(s.health, bytes.Clone(row))
		return nil
	}
	rows[key.RowKey_s] = append(rows[key.RowKey_s], bytes.Clone(row))
	return nil
}

// duplicates counts rows that arrived more than once, and checks that every
// expected detection is there, whole.
func (s *services) duplicates(after, now time.Time) (duplicates, total, long int) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	missing := 0
	s.sub.Expected(after, now, func(h simulation.Host, d simulation.Detection) {
		total++
		key := fmt.Sprintf("%d@%s", d.UniqueID, d.Processed.Format(time.RFC3339))
		rows := s.rows[key]
		if len(rows) == 0 {
			if missing++; missing < 5 {
				s.t.Errorf("host %d: detection %s is missing", h.ID, key)
			}
			return
		}
		duplicates += len(rows) - 1
		var row map[string]any
		if err := json.Unmarshal(rows[0], &row); err != nil {
			s.t.Fatal(err)
		}
		var results strings.Builder
		for part := 0; ; part++ {
			text, ok := row[fmt.Sprintf("Results_%d_s", part)].(string)
			if !ok {
				break
			}
			results.WriteString(text)
		}
		if results.String() != d.Results {
			s.t.Errorf("detection %s: RESULTS differ: %d bytes arrived, %d were sent", key, results.Len(), len(d.Results))
		}
		if len(d.Results) > 64<<10 {
			long++
		}
	})
	if missing > 0 {
		s.t.Errorf("%d of %d detections are missing", missing, total)
	}
	return duplicates, total, long
}

// checkpoint reads a dataset's checkpoint blob; nil if there is none yet.
func (s *services) checkpoint(dataset string) *simulation.Checkpoint {
	s.t.Helper()
	var cp *simulation.Checkpoint
	for _, doc := range s.documents("checkpoints/default/" + dataset + ".json") {
		if len(doc) == 0 {
			continue
		}
		cp = &simulation.Checkpoint{}
		if err := json.Unmarshal(doc, cp); err != nil {
			s.t.Fatal(err)
		}
	}
	return cp
}

// documents reads the blobs of the state with a prefix, by name.
func (s *services) documents(prefix string) map[string][]byte {
	s.t.Helper()
	return s.documentsOf(s.container, prefix)
}

// documentsOf reads the blobs of any container.
func (s *services) documentsOf(name, prefix string) map[string][]byte {
	s.t.Helper()
	c, err := container.NewClientFromConnectionString(s.storage, name, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	docs := map[string][]byte{}
	pager := c.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: &prefix})
	for pager.More() {
		page, err := pager.NextPage(context.Background())
		if err != nil {
			return docs // no run has made the container
		}
		for _, b := range page.Segment.BlobItems {
			resp, err := c.NewBlobClient(*b.Name).DownloadStream(context.Background(), nil)
			if err != nil {
				continue // gone since
			}
			doc, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if gz, gzErr := gzip.NewReader(bytes.NewReader(doc)); gzErr == nil {
				doc, err = io.ReadAll(gz)
			}
			if err != nil {
				s.t.Error(err)
			}
			docs[*b.Name] = doc
		}
	}
	return docs
}

// outputDir is where everything that processes wrote is kept, for the search
// for secrets; see package leak.
func outputDir(t testing.TB) string {
	dir := os.Getenv("TEST_OUTPUT")
	if dir == "" {
		shared, err := folder()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(shared, "output")
	}
	dir = filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "_"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// dumpState keeps every blob of the state container among the outputs.
func (s *services) dumpState() {
	dir := outputDir(s.t)
	for name, doc := range s.documents("") {
		if err := os.WriteFile(filepath.Join(dir, strings.ReplaceAll(name, "/", "_")), doc, 0o644); err != nil {
			s.t.Error(err)
		}
	}
}

// hostID is the name of a host's locks and keys, which all hosts keep in the same
// containers of a storage account.
func (s *services) hostID() string { return "host-" + s.container }

// functionsHost is the real Azure Functions host with our app.
type functionsHost struct {
	t    testing.TB
	cmd  *exec.Cmd
	app  string
	port string
	log  *os.File
}

func startHost(t testing.TB, s *services, options ...string) *functionsHost {
	t.Helper()
	return startHostIn(t, s, stage(t), options...)
}

// startHostIn starts it on an app's folder.
func startHostIn(t testing.TB, s *services, app string, options ...string) *functionsHost {
	t.Helper()
	program := os.Getenv("FUNC")
	if program == "" {
		program = "func"
	}
	path, err := exec.LookPath(program)
	if err != nil {
		azurite.Missing(t, "func", "Azure Functions Core Tools are not installed ("+program+"); set FUNC to them")
	}
	h := &functionsHost{t: t, app: app, port: azurite.FreePort(t)}
	if h.log, err = os.Create(filepath.Join(outputDir(t), "host.log")); err != nil {
		t.Fatal(err)
	}
	h.cmd = exec.Command(path, append([]string{"start", "--script-root", h.app, "--port", h.port}, options...)...)
	h.cmd.Env = append(os.Environ(), "AzureFunctionsWebHost__hostid="+s.hostID())
	for name, value := range s.environ {
		h.cmd.Env = append(h.cmd.Env, name+"="+value)
	}
	h.cmd.Stdout, h.cmd.Stderr = h.log, h.log
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := h.cmd.Start(); err != nil {
		azurite.Missing(t, "func", err.Error())
	}
	ended := make(chan error, 1)
	go func() { ended <- h.cmd.Wait() }()
	t.Cleanup(func() {
		h.cmd.Process.Signal(os.Interrupt)
		select {
		case <-ended:
		case <-time.After(50 * time.Second):
			syscall.Kill(-h.cmd.Process.Pid, syscall.SIGKILL)
			<-ended
		}
		h.log.Close()
	})
	azurite.Eventually(t, 3*time.Minute, "the Functions host is up", func() error {
		select {
		case err := <-ended:
			ended <- err
			var exit *exec.ExitError
			if errors.As(err, &exit) && exit.ExitCode() == 69 {
				azurite.Missing(t, "func", "it cannot be installed here: "+h.output())
			}
			t.Fatalf("the host ended: %v\n%s", err, h.output())
		default:
		}
		req, err := http.NewRequest(http.MethodGet, "http://127.0.0.1:"+h.port+"/admin/host/status", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		doc, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		if resp.StatusCode == http.StatusUnauthorized { // it runs, and asks for keys
			return nil
		}
		if !strings.Contains(string(doc), `"Running"`) {
			return fmt.Errorf("state %s", doc)
		}
		return nil
	})
	return h
}

// output is the end of the host's log.
func (h *functionsHost) output() string {
	doc, err := os.ReadFile(h.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(doc[max(0, len(doc)-6000):])
}

// trigger runs a timer function now.
func (h *functionsHost) trigger(function string) error {
	resp, err := http.Post("http://127.0.0.1:"+h.port+"/admin/functions/"+function, "application/json", strings.NewReader("{}"))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

// handlerPID finds the handler process of this test's app.
func (h *functionsHost) handlerPID() (int, error) {
	procs, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return 0, err
	}
	for _, p := range procs {
		exe, err := os.Readlink(p)
		if err == nil && exe == filepath.Join(h.app, "qualys-sentinel") {
			return strconv.Atoi(filepath.Base(filepath.Dir(p)))
		}
	}
	return 0, errors.New("no handler runs")
}
