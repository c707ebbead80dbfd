package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/e2e/azurite"
	"qualys-sentinel/e2e/canary"
	"qualys-sentinel/handler/internal/check"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/integration"
	"qualys-sentinel/handler/internal/simulator"
)

// TestMain makes the certificate of all test servers one that the system knows:
// it reads them once in a process.
func TestMain(m *testing.M) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	dir, err := os.MkdirTemp("", "roots-*")
	if err == nil {
		cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
		err = os.WriteFile(filepath.Join(dir, "roots.pem"), cert, 0o600)
	}
	if err == nil {
		err = os.Setenv("SSL_CERT_FILE", filepath.Join(dir, "roots.pem"))
	}
	if err != nil {
		panic(err)
	}
	code := m.Run()
	server.Close()
	os.RemoveAll(dir)
	os.Exit(code)
}

// checkedWorld is what a check tests: all is well until a case spoils it.
type checkedWorld struct {
	t       *testing.T
	sub     *simulator.Subscription
	qualys  *simulator.Qualys
	azure   *simulator.Azure
	atQ     *simulator.Faulty
	atAzure *simulator.Faulty
	vault   *simulator.Faulty
	calls   map[string]int // of Qualys, by path
	environ map[string]string
}

func newCheckedWorld(t *testing.T) *checkedWorld {
	w := &checkedWorld{t: t, calls: map[string]int{}}
	w.sub = simulator.NewSubscription(3, 40, 2)
	w.sub.Knowledge = &simulator.Knowledge{Seed: 1, Size: 30}
	w.qualys = simulator.NewQualys(w.sub, canary.User, canary.Password)
	w.azure = simulator.NewAzure(ingest.Schemas()...)
	w.azure.IdentityHeader, w.azure.Key = canary.IdentityToken, canary.WorkspaceKey
	w.azure.SetSecret("qualys-password", canary.Password)
	w.atQ = &simulator.Faulty{Next: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.qualys.ServeHTTP(rw, r)
	})}
	w.atAzure = &simulator.Faulty{Next: w.azure}
	w.vault = &simulator.Faulty{Next: w.azure.Vault()}
	serve := func(h http.Handler, tls bool) string {
		server := httptest.NewUnstartedServer(h)
		if tls {
			server.StartTLS()
		} else {
			server.Start()
		}
		t.Cleanup(server.Close)
		return server.URL
	}
	azure := serve(w.atAzure, false)
	t.Setenv("IDENTITY_ENDPOINT", azure+simulator.IdentityPath)
	t.Setenv("IDENTITY_HEADER", canary.IdentityToken)
	w.environ = map[string]string{
		"apiUsername": canary.User, "apiPassword": "@Microsoft.KeyVault(SecretUri=" + serve(w.vault, true) + "/secrets/qualys-password)",
		"uri": serve(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			w.calls[r.URL.Path]++
			w.atQ.ServeHTTP(rw, r)
		}), true), "logAnalyticsUri": azure, "logAnalyticsApi": "logs-ingestion", "dcrImmutableId": w.azure.Rule,
		"stateFolder": filepath.Join(t.TempDir(), "state"), "vmSchedule": "0 */5 * * * *", "kbSchedule": "0 0 * * * *",
	}
	return w
}

// answers makes Qualys answer on a path so.
func (w *checkedWorld) answers(path string, status int, body string, header ...string) {
	w.atQ.Arm(simulator.Spoiling{Fault: simulator.Fault{Name: "x", Spoil: simulator.Status(status, body, header...)}, Unasked: true,
		When: func(_ int, r *http.Request) bool { return strings.HasSuffix(r.URL.Path, path) }})
}

// code is an error document of Qualys.
func (w *checkedWorld) code(path string, status int, code, text string) {
	w.answers(path, status, "<SIMPLE_RETURN><RESPONSE><DATETIME>2026-11-01T12:00:00Z</DATETIME><CODE>"+code+"</CODE><TEXT>"+text+"</TEXT></RESPONSE></SIMPLE_RETURN>")
}

// settings are as a process has them.
func (w *checkedWorld) settings() (environ []string) {
	for name, value := range w.environ {
		environ = append(environ, name+"="+value)
	}
	return environ
}

func (w *checkedWorld) check() check.Report {
	w.t.Helper()
	ctx := context.Background()
	c, err := open(ctx, w.settings(), purpose{})
	return newChecked(ctx, c, err, w.settings(), purpose{}, nil).run(ctx, nil)
}

const (
	detectionPath = "/fo/asset/host/vm/detection/"
	knowledgePath = "/fo/knowledge_base/vuln/"
	htmlPage      = "<html><body>Welcome, please log in</body></html>"
)

// Each misconfiguration is found, at its cause and nowhere else.
func TestCheckFindsTheCause(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(w *checkedWorld)
		// step is the name of the only one that fails or, behind "warning ", warns.
		step, want string
	}{
		"all is well": {func(*checkedWorld) {}, "", ""},
		// Settings.
		"no password":                  {func(w *checkedWorld) { delete(w.environ, "apiPassword") }, "settings", "apiPassword: it is missing"},
		"the console's address":        {func(w *checkedWorld) { w.environ["uri"] = "https://qualysguard.qg2.apps.qualys.com" }, "settings", "use https://qualysapi.qg2.apps.qualys.com"},
		"the gateway's address":        {func(w *checkedWorld) { w.environ["uri"] = "https://gateway.qg1.apps.qualys.com" }, "settings", "use https://qualysapi.qualys.com"},
		"a parameter of the connector": {func(w *checkedWorld) { w.environ["filterParameters"] = "&vm_processed_after=2026-01-01" }, "settings", "is set by the connector itself"},
		"no rule":                      {func(w *checkedWorld) { delete(w.environ, "dcrImmutableId") }, "settings", "dcrImmutableId: it is missing"},
		"a wrong schedule":             {func(w *checkedWorld) { w.environ["vmSchedule"] = "often" }, "settings", "vmSchedule"},
		"no schedule":                  {func(w *checkedWorld) { delete(w.environ, "vmSchedule") }, "warning schedules", "off: QualysVM"},
		"no such secret":               {func(w *checkedWorld) { delete(w.azure.Secrets, "qualys-password") }, "keyvault", "apiPassword: secret qualys-password"},
		"no access to the vault": {func(w *checkedWorld) {
			w.vault.Arm(simulator.Spoiling{Fault: simulator.Fault{Spoil: simulator.Status(403, `{"error":{"code":"Forbidden","message":"Caller is not authorized"}}`)}, Unasked: true,
				When: func(_ int, r *http.Request) bool { return r.Header.Get("Authorization") != "" }})
		}, "keyvault", "Key Vault Secrets User"},
		// Network.
		"a name that is not known": {func(w *checkedWorld) { w.environ["uri"] = "https://qualysapi.invalid" }, "network", "cannot be looked up"},
		"nobody listens":           {func(w *checkedWorld) { w.environ["uri"] = "https://127.0.0.1:" + azurite.FreePort(w.t) }, "network", "does not take a connection"},
		"an unknown certificate":   {func(w *checkedWorld) { w.environ["uri"] = selfSigned(w.t) }, "network", "somebody in between opens the encryption"},
		"another server's certificate": {func(w *checkedWorld) {
			w.environ["uri"] = strings.Replace(w.environ["uri"], "127.0.0.1", "localhost", 1)
		}, "network", "answers for another name"},
		// Not the API server.
		"a web server": {func(w *checkedWorld) { w.answers("/", 200, htmlPage, "Content-Type", "text/html") }, "server", "an HTML page instead"},
		"a redirect":   {func(w *checkedWorld) { w.answers("/", 302, "", "Location", "https://qualysguard.example/") }, "server", "redirects to qualysguard.example"},
		"a dead API version": {func(w *checkedWorld) {
			w.environ["detectionApiVersion"] = "2.0"
		}, "server", "detectionApiVersion"},
		"a firewall's page": {func(w *checkedWorld) { w.answers("/", 403, htmlPage, "Content-Type", "text/html") }, "server", "stands in between"},
		"a proxy's login":   {func(w *checkedWorld) { w.answers("/", 401, htmlPage, "Content-Type", "text/html") }, "server", "stands in between"},
		"maintenance":       {func(w *checkedWorld) { w.code("/", 503, "1999", "maintenance") }, "server", "maintenance"},
		// The account.
		"a wrong password":     {func(w *checkedWorld) { w.qualys.SetPassword("another") }, "login", "check apiUsername and apiPassword"},
		"terms not accepted":   {func(w *checkedWorld) { w.code("/", 409, "2003", "registration") }, "login", "accept the terms"},
		"a second factor":      {func(w *checkedWorld) { w.code("/", 409, "2011", "SecureID") }, "login", "without SecurID"},
		"an expired account":   {func(w *checkedWorld) { w.code("/", 200, "2001", "expired") }, "login", "renew or activate"},
		"no API access":        {func(w *checkedWorld) { w.answers("/", 200, "") }, "access", "switch on API access"},
		"no permission for VM": {func(w *checkedWorld) { w.code(detectionPath, 403, "2012", "no permission") }, "vm", "role Reader"},
		"no permission, behind a 200": {func(w *checkedWorld) {
			w.code(detectionPath, 200, "2012", "no permission")
		}, "vm", "role Reader"},
		"a filter that Qualys does not know":  {func(w *checkedWorld) { w.environ["filterParameters"] = "&colour=red" }, "vm", "colour"},
		"no permission for the KnowledgeBase": {func(w *checkedWorld) { w.sub.Knowledge.Refused = true }, "knowledgebase", "Qualys Support"},
		"the same, with QualysKB off": {func(w *checkedWorld) {
			w.sub.Knowledge.Refused = true
			delete(w.environ, "kbSchedule")
		}, "warning schedules, knowledgebase", "QualysKB is off"},
		"no permission to list hosts": {func(w *checkedWorld) { w.code("/5.0/fo/asset/host/", 403, "2012", "no permission") }, "warning hosts", "let the account list hosts"},
		"a filter of hosts":           {func(w *checkedWorld) { w.environ["filterParameters"] = "&ids=1-999999" }, "", ""},
		"tags that hosts have": {func(w *checkedWorld) {
			w.environ["filterParameters"] = "&severities=3-5&use_tags=1&tag_set_by=name&tag_set_include=Servers"
		}, "", ""},
		"a filter that is wrong twice": {func(w *checkedWorld) { w.environ["filterParameters"] = "&ids=abc" }, "vm", "ids"},
		"an account without hosts":     {func(w *checkedWorld) { w.sub.Hosts = 0 }, "warning hosts", "asset groups"},
		"no calls left": {func(w *checkedWorld) {
			w.qualys.CallsPerHour = 1
			w.check()
			clear(w.calls)
		}, "warning limits, hosts, knowledgebase", "kept for the customer"},
		"few calls left":         {func(w *checkedWorld) { w.qualys.CallsPerHour = 1 }, "warning limits", "0 of 1 calls"},
		"a clock that is ahead":  {func(w *checkedWorld) { w.qualys.Now = func() time.Time { return time.Now().Add(20 * time.Minute) } }, "warning clock", "clock right"},
		"a clock two days ahead": {func(w *checkedWorld) { w.qualys.Now = func() time.Time { return time.Now().Add(48 * time.Hour) } }, "clock", "nothing is read"},
		// The state.
		"a folder that cannot be written": {func(w *checkedWorld) {
			file := filepath.Join(w.t.TempDir(), "file")
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				w.t.Fatal(err)
			}
			w.environ["stateFolder"] = filepath.Join(file, "state")
		}, "storage", "not a directory"},
		"a storage key that is not right": {func(w *checkedWorld) {
			delete(w.environ, "stateFolder")
			connection := azurite.Start(w.t)
			before, rest, _ := strings.Cut(connection, "AccountKey=")
			_, after, _ := strings.Cut(rest, ";")
			w.environ["AzureWebJobsStorage"] = before + "AccountKey=" + base64.StdEncoding.EncodeToString([]byte("another")) + ";" + after
		}, "storage", "answered 403"},
		"a damaged checkpoint": {func(w *checkedWorld) {
			path := filepath.Join(w.environ["stateFolder"], "checkpoints", "default", "vm.json")
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				w.t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(`{"version":1,"dataset":"vm","watermrk":null}`), 0o600); err != nil {
				w.t.Fatal(err)
			}
		}, "checkpoints", "watermrk"},
		// Log Analytics.
		"no identity": {func(w *checkedWorld) {
			w.environ["AzureWebJobsStorage__clientId"] = "nobody-has-asked-for-this-one" // tokens are kept for the process
			w.environ["apiPassword"] = canary.Password
			w.t.Setenv("IDENTITY_HEADER", "another")
		}, "token", "identity"},
		"a wrong rule":               {func(w *checkedWorld) { w.environ["dcrImmutableId"] = "dcr-00000000000000000000000000000002" }, "table QualysHostDetectionV2_CL, table QualysKB_CL, table QualysConnectorHealth_CL", "dcrImmutableId"},
		"a rule of an older version": {func(w *checkedWorld) { delete(w.azure.Streams, "Custom-QualysConnectorHealth") }, "table QualysConnectorHealth_CL", "deploy it again"},
		"no role on the rule": {func(w *checkedWorld) {
			w.atAzure.Arm(simulator.Spoiling{Fault: simulator.Fault{Spoil: simulator.Status(403, `{"error":{"code":"OperationFailed","message":"no access"}}`)}, Unasked: true,
				When: func(_ int, r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/dataCollectionRules/") }})
		}, "table QualysHostDetectionV2_CL, table QualysKB_CL, table QualysConnectorHealth_CL", "Monitoring Metrics Publisher"},
		"nobody at the endpoint": {func(w *checkedWorld) { w.environ["logAnalyticsUri"] = "http://127.0.0.1:" + azurite.FreePort(w.t) }, "token", "let the app out"},
		"another server": {func(w *checkedWorld) {
			w.atAzure.Arm(simulator.Spoiling{Fault: simulator.Fault{Spoil: simulator.Status(404, htmlPage)}, Unasked: true,
				When: func(_ int, r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/dataCollectionRules/") }})
		}, "token", "no API of Log Analytics"},
		"a wrong workspace key": {func(w *checkedWorld) {
			w.collector()
			w.environ["workspaceKey"] = base64.StdEncoding.EncodeToString([]byte("another key"))
		}, "token", "workspaceKey"},
		"the old API": {func(w *checkedWorld) { w.collector() }, "", ""},
		// Integrations.
		"integrations that take rows":     {func(w *checkedWorld) { w.integrate(0) }, "", ""},
		"an integration with a wrong key": {func(w *checkedWorld) { w.integrate(7) }, "integration 2", "primaryKey"},
		"an integration without its key": {func(w *checkedWorld) {
			w.integrate(0)
			w.azure.Secrets = map[string]string{"qualys-password": canary.Password}
		}, "integration 2", "the key of integration 2"},
		"an integration without its rule": {func(w *checkedWorld) {
			w.integrate(0)
			w.azure.Places = map[string]*simulator.Place{canaryWorkspace: w.azure.Places[canaryWorkspace]}
		}, "integration 1", "dcrImmutableId"},
		"an integration without a vault": {func(w *checkedWorld) {
			w.integrate(0)
			delete(w.environ, "integrationVault")
		}, "integration 2", "set integrationVault"},
		"an integration that is damaged": {func(w *checkedWorld) {
			w.integrate(0)
			if err := os.WriteFile(filepath.Join(w.environ["stateFolder"], "integrations", "1.json"), []byte("{"), 0o600); err != nil {
				w.t.Fatal(err)
			}
		}, "integrations", "integrations/1.json is damaged"},
		"an integration that fails": {func(w *checkedWorld) {
			w.integrate(0)
			doc := []byte(`{"version":1,"dataset":"vm","watermark":"2026-11-01T00:00:00Z","window":null,"stalled":4,"lastRun":"x"}`)
			name := filepath.Join(w.environ["stateFolder"], "checkpoints", "integration-2", "vm.json")
			if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, doc, 0o600)); err != nil {
				w.t.Fatal(err)
			}
		}, "warning integration 2", "its last 4 runs made no progress"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newCheckedWorld(t)
			c.spoil(w)
			report := w.check()
			var failed, warned []string
			text := ""
			for _, s := range report.Steps {
				switch s.Result {
				case check.Failed:
					failed = append(failed, s.Name)
				case check.Warning:
					warned = append(warned, s.Name)
				case check.OK, check.Skipped:
					if s.Advice != "" {
						t.Errorf("%s is %s, with advice %q", s.Name, s.Result, s.Advice)
					}
					continue
				}
				text += s.Detail + " " + s.Advice + "\n"
				if s.Advice == "" {
					t.Errorf("%s is %s without advice: %s", s.Name, s.Result, s.Detail)
				}
			}
			wantFailed, wantWarned := c.step, ""
			outcome := check.Failed
			if step, ok := strings.CutPrefix(c.step, "warning "); ok {
				wantFailed, wantWarned, outcome = "", step, check.Warning
			} else if c.step == "" {
				outcome = check.OK
			}
			if strings.Join(failed, ", ") != wantFailed || strings.Join(warned, ", ") != wantWarned || !strings.Contains(text, c.want) || report.Outcome != outcome {
				t.Errorf("%s; failed: %v, warned: %v; want %q, %q\n%s", report.Outcome, failed, warned, c.step, c.want, text)
			}
			doc, err := json.Marshal(report)
			if err != nil || strings.Contains(string(doc), canary.Password) || strings.Contains(string(doc), canary.WorkspaceKeyText()) {
				t.Errorf("a secret is in it: %s, %v", doc, err)
			}
			for path, n := range w.calls {
				if n > 1 {
					t.Errorf("%s was asked %d times", path, n)
				}
			}
			left := []string{}
			if w.environ["AzureWebJobsStorage"] == "" {
				_ = filepath.Walk(w.environ["stateFolder"], func(path string, info os.FileInfo, err error) error {
					if err == nil && !info.IsDir() && filepath.Base(path) != "vm.json" && !strings.HasPrefix(filepath.Base(path), "limits.json") && filepath.Base(filepath.Dir(path)) != "integrations" {
						left = append(left, path)
					}
					return nil
				})
			}
			if arrived := w.azure.Arrived(); arrived.Rows != 0 || len(left) > 0 {
				t.Errorf("it has changed something: %d rows, %v", arrived.Rows, left)
			}
		})
	}
}

// collector turns to the HTTP Data Collector API.
func (w *checkedWorld) collector() {
	w.environ["logAnalyticsApi"], w.environ["workspaceID"], w.environ["workspaceKey"] = "data-collector", w.azure.Workspace, canary.WorkspaceKeyText()
	delete(w.environ, "dcrImmutableId")
}

// canaryWorkspace is that of an integration.
const canaryWorkspace = "22222222-0000-0000-0000-000000000001"

// integrate registers two workspaces, one by a rule and one with the key of another
// workspace, where n is not 0.
func (w *checkedWorld) integrate(n int) {
	w.t.Helper()
	vault, _, _ := strings.Cut(strings.TrimPrefix(w.environ["apiPassword"], "@Microsoft.KeyVault(SecretUri="), "/secrets")
	w.environ["integrationVault"] = vault
	const rule = "dcr-00000000000000000000000000000009"
	w.azure.Places = map[string]*simulator.Place{
		canaryWorkspace: {Key: canary.IntegrationKey(0)},
		rule:            {Streams: w.azure.Streams},
	}
	c, err := open(context.Background(), w.settings(), purpose{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, doc := range []string{
		`{"name":"by rule","logAnalyticsUri":"` + w.environ["logAnalyticsUri"] + `","dcrImmutableId":"` + rule + `"}`,
		`{"name":"by key","workspaceId":"` + canaryWorkspace + `","primaryKey":"` + canary.IntegrationKeyText(n) + `"}`,
	} {
		change, err := integration.Parse([]byte(doc))
		if err == nil {
			_, err = c.integrations.Add(context.Background(), change)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// selfSigned serves with a certificate that nobody knows.
func selfSigned(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}}
	server.StartTLS()
	t.Cleanup(server.Close)
	return strings.Replace(server.URL, "127.0.0.1", "localhost", 1)
}

// app is the function app with these settings.
func (w *checkedWorld) app() *app {
	for name, value := range w.environ {
		w.t.Setenv(name, value)
	}
	return newApp(context.Background(), zap.NewNop(), zap.NewAtomicLevel())
}

// A login that was refused once is not tried by every check that follows, be the
// other settings right or not.
func TestCheckDoesNotLockTheAccount(t *testing.T) {
	for name, spoil := range map[string]func(w *checkedWorld){
		"all else is well":   func(*checkedWorld) {},
		"no rule is set yet": func(w *checkedWorld) { delete(w.environ, "dcrImmutableId") },
	} {
		t.Run(name, func(t *testing.T) {
			w := newCheckedWorld(t)
			w.qualys.SetPassword("another")
			spoil(w)
			a := w.app()
			for range 3 {
				report := a.Check(context.Background())
				i := slices.IndexFunc(report.Steps, func(s check.Step) bool { return s.Name == "login" })
				if i < 0 || report.Steps[i].Result != check.Failed {
					t.Fatalf("%+v", report)
				}
			}
			if n := w.calls["/api/5.0"+detectionPath]; n != 1 {
				t.Errorf("the password was tried %d times", n)
			}
		})
	}
}

// What was not asked is not said to be well.
func TestCheckWhileResting(t *testing.T) {
	w := newCheckedWorld(t)
	w.qualys.CallsPerHour = 1
	a := w.app()
	a.Check(context.Background()) // the reserve is reached
	w.qualys.SetPassword("another")
	clear(w.calls)
	for _, s := range a.Check(context.Background()).Steps {
		if (s.Name == "server" || s.Name == "login") && s.Result != check.Skipped {
			t.Errorf("%+v", s)
		}
	}
	if len(w.calls) > 0 {
		t.Errorf("%v", w.calls)
	}
}

// An answer that takes longer than a check can wait is nobody's fault.
func TestCheckOfASlowQualys(t *testing.T) {
	w := newCheckedWorld(t)
	leave := make(chan struct{})
	w.atQ.Arm(simulator.Spoiling{Fault: simulator.Fault{Spoil: func(http.ResponseWriter, *http.Request, []byte) { <-leave }}, Unasked: true})
	defer close(leave)
	c, err := open(context.Background(), w.settings(), purpose{})
	if err != nil {
		t.Fatal(err)
	}
	report := check.Run(context.Background(), check.Parts{Source: c.checkedSource(), Clock: ingest.SystemClock{}, StepTime: 300 * time.Millisecond})
	for _, s := range report.Steps {
		if s.Result == check.Failed || s.Name == "server" && s.Result != check.Warning {
			t.Errorf("%+v", s)
		}
	}
}

// A run that has the turn at Qualys is no fault of anything.
func TestCheckBesideARun(t *testing.T) {
	w := newCheckedWorld(t)
	c, err := open(context.Background(), w.settings(), purpose{})
	if err != nil {
		t.Fatal(err)
	}
	// Before the login is known to be good, one call alone tries it.
	check.Run(context.Background(), check.Parts{Source: c.checkedSource(), Clock: ingest.SystemClock{}})
	reached, leave := make(chan struct{}), make(chan struct{})
	var met atomic.Bool
	w.atQ.Arm(simulator.Spoiling{Fault: simulator.Fault{Spoil: func(http.ResponseWriter, *http.Request, []byte) {
		close(reached)
		<-leave
	}}, Unasked: true, When: func(int, *http.Request) bool { return met.CompareAndSwap(false, true) }})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = c.desk.Tick(context.Background(), ingest.VM)
	}()
	<-reached
	report := check.Run(context.Background(), check.Parts{
		Source: c.checkedSource(), Clock: ingest.SystemClock{}, StepTime: 200 * time.Millisecond,
	})
	close(leave)
	<-ended
	results := map[string]check.Result{}
	for _, s := range report.Steps {
		results[s.Name] = s.Result
	}
	for name, want := range map[string]check.Result{"network": check.OK, "server": check.Skipped, "login": check.Skipped, "vm": check.Skipped, "limits": check.Warning, "hosts": check.OK, "knowledgebase": check.OK} {
		if results[name] != want {
			t.Errorf("%s is %s, want %s", name, results[name], want)
		}
	}
}
