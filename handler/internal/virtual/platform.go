package virtual

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/simulator"
)

// A Machine is what a process of the connector runs on.
type Machine struct {
	Environ    []string
	Transport  http.RoundTripper
	Credential azcore.TokenCredential
	Clock      ingest.Clock
	NewID      func() string
	// BatchBytes, Hosts and QIDs bound batches and pages, Recent what is remembered of rows
	// delivered lately.
	BatchBytes, Hosts, QIDs, Recent int
	// Log takes what the process writes.
	Log io.Writer
}

// A Connector is one process, as package main wires it.
type Connector interface {
	// Tick is a timer's tick of a dataset.
	Tick(ctx context.Context, dataset string) error
	// Ask asks for a window by hand. It returns when that is accepted.
	Ask(ctx context.Context, dataset, body string) error
	// Status and Check answer what the functions of these names do.
	Status(ctx context.Context) ([]byte, error)
	Check(ctx context.Context) ([]byte, error)
	// Register adds an integration, Unregister takes one away, by its name.
	Register(ctx context.Context, body []byte) error
	Unregister(ctx context.Context, name string) error
	// Stop tells the process that it is to end; it waits until that is done, but not long.
	Stop()
}

// Start starts a process. life ends when the process is told to stop.
type Start func(life context.Context, m Machine) Connector

// errKilled is what a killed process hears of a call. It cannot do anything with it.
var errKilled = errors.New("the process was killed")

// process is one process of the connector.
type process struct {
	world     *world
	id        int
	connector Connector
	// life ends with the process, told when it is told to stop.
	// used ends when another takes its place.
	life, told, used context.Context //nolint:containedctx // of the process
	end, tell, spare context.CancelFunc

	mu     sync.Mutex
	thaw   chan struct{} // not nil: it is frozen until this is closed
	froze  bool          // it was frozen once
	works  int           // how many calls of the platform it works at
	tokens map[string]azcore.AccessToken
}

// platform is the Functions host and what it runs.
type platform struct {
	world *world
	start Start
	end   context.Context //nolint:containedctx // of the story
	all   sync.WaitGroup  // processes and timers

	mu    sync.Mutex
	lives map[int]*process // those that live
	count int
}

// open starts a process.
func (p *platform) open() *process {
	w := p.world
	p.mu.Lock()
	p.count++
	c := &process{world: w, id: p.count, tokens: map[string]azcore.AccessToken{}}
	p.lives[c.id] = c
	p.mu.Unlock()
	c.life, c.end = context.WithCancel(context.Background())
	c.told, c.tell = context.WithCancel(c.life)
	c.used, c.spare = context.WithCancel(c.told)
	w.say("process %d begins", c.id)
	c.connector = p.start(c.told, Machine{
		Environ: w.environ(), Transport: c, Credential: c, Clock: machineClock{w, c.id}, NewID: w.newID, BatchBytes: batchBytes, Hosts: w.story.Page, QIDs: w.story.KBPage, Recent: recent, Log: &journal{c},
	})
	return c
}

// batchBytes is the longest batch: some rows.
const batchBytes = 12_000

// recent is more rows than a story has.
const recent = 2_000

// close takes a process away, as a kill does.
func (p *platform) close(c *process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lives[c.id] != nil {
		delete(p.lives, c.id)
		c.kill()
	}
}

// kill ends a process at once: none of its calls leaves any more.
func (c *process) kill() {
	if c.life.Err() == nil {
		c.world.say("process %d is killed", c.id)
	}
	c.end()
}

// living are the processes that live.
func (p *platform) living() (list []*process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.lives {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b *process) int { return a.id - b.id })
	return list
}

func (p *platform) kill() {
	for _, c := range p.living() {
		p.close(c)
	}
}

// stop tells the processes to stop, and ends them as the host does.
func (p *platform) stop() {
	for _, c := range p.living() {
		p.world.say("process %d is told to stop", c.id)
		p.all.Go(func() { p.leave(c) })
	}
}

// leave ends a process in good order, if it makes use of its time.
func (p *platform) leave(c *process) {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		c.tell()
		c.connector.Stop()
		for c.working() {
			if sleep(c.life, 100*time.Millisecond) != nil {
				return
			}
		}
	}()
	select {
	case <-stopped:
	case <-time.After(30 * time.Second):
	}
	p.close(c)
}

// freeze holds the processes for some time.
func (p *platform) freeze(d time.Duration) {
	thaw := make(chan struct{})
	for _, c := range p.living() {
		p.world.say("process %d freezes", c.id)
		c.mu.Lock()
		if c.thaw == nil {
			c.thaw, c.froze = thaw, true
		}
		c.mu.Unlock()
	}
	time.Sleep(d)
	for _, c := range p.living() {
		c.mu.Lock()
		if c.thaw == thaw {
			c.thaw = nil
		}
		c.mu.Unlock()
	}
	close(thaw)
}

// replace freezes the processes for some time. The platform takes them for dead, and lets
// others work; they are ended some time after they have come back.
func (p *platform) replace(d time.Duration) {
	frozen := p.living()
	for _, c := range frozen {
		c.spare()
	}
	p.freeze(d)
	time.Sleep(replacedTime)
	for _, c := range frozen {
		p.all.Go(func() { p.leave(c) })
	}
}

// replacedTime is how long a process that has come back may go on.
const replacedTime = 2 * time.Minute

func (c *process) wasFrozen() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.froze
}

// mayLeave lets a call of a process leave, when it is not frozen, and lives.
func (c *process) mayLeave(ctx context.Context) error {
	for {
		if c.life.Err() != nil {
			return errKilled
		}
		c.mu.Lock()
		thaw := c.thaw
		c.mu.Unlock()
		if thaw == nil {
			return context.Cause(ctx) //nolint:wrapcheck // as net/http does
		}
		select {
		case <-thaw:
		case <-c.life.Done():
		}
	}
}

// timers run the timers of an app, until the end of the story or of the app.
func (p *platform) timers(end context.Context) {
	s := p.world.story
	app := &app{platform: p}
	for dataset, every := range map[string]time.Duration{ingest.VM.Name: s.Every, ingest.KB.Name: s.KBEvery} {
		p.all.Go(func() {
			for {
				next := time.Now().Truncate(every).Add(every)
				if sleep(end, time.Until(next)) != nil {
					return
				}
				app.tick(dataset)
			}
		})
	}
}

// work lets a process work at a call of the platform. The story waits for its end, also if
// the process is killed.
func (p *platform) work(c *process, call func()) {
	c.mu.Lock()
	c.works++
	c.mu.Unlock()
	p.all.Go(func() {
		defer func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.works--
		}()
		call()
	})
}

// working tells whether a process works at a call.
func (c *process) working() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.works > 0
}

// app is one instance of the function app.
type app struct {
	platform *platform
	mu       sync.Mutex
	process  *process
}

// enter is the process that works now.
func (a *app) enter() *process {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.process; c == nil || c.used.Err() != nil || a.platform.world.story.OneTick {
		a.process = a.platform.open()
	}
	return a.process
}

// functionTimeout ends a tick, and the process with it, as the host does.
const functionTimeout = 30 * time.Minute

func (a *app) tick(dataset string) {
	c := a.enter()
	done := make(chan struct{})
	a.platform.work(c, func() {
		defer close(done)
		a.platform.world.say("process %d: a tick of %s", c.id, dataset)
		err := c.connector.Tick(c.told, dataset)
		a.platform.world.say("process %d: the tick of %s has ended: %v", c.id, dataset, err)
	})
	over := time.NewTimer(functionTimeout)
	defer over.Stop()
	select {
	case <-done:
	case <-c.life.Done():
	case <-c.used.Done():
		if c.told.Err() == nil {
			return // another works in its place
		}
		select {
		case <-done:
		case <-c.life.Done():
		}
	case <-over.C:
		if !c.wasFrozen() {
			a.platform.world.laws.broken("a tick of %s took more than %s", dataset, functionTimeout)
		}
		a.platform.close(c)
	}
	if a.platform.world.story.OneTick {
		a.platform.leave(c)
	}
}

// second lets another app work with the same state for some time.
func (p *platform) second(d time.Duration) {
	ctx, cancel := context.WithTimeout(p.end, d)
	defer cancel()
	p.timers(ctx)
	<-ctx.Done()
}

// one is a process that lives, or a new one.
func (p *platform) one() *process {
	for _, c := range p.living() {
		if c.used.Err() == nil {
			return c
		}
	}
	return p.open()
}

// callTime is how long the platform lets a call over HTTP take.
const callTime = 230 * time.Second

// person calls a function over HTTP.
func (p *platform) person(what string, call func(ctx context.Context, c *process) error) {
	c := p.one()
	ctx, cancel := context.WithTimeout(c.told, callTime)
	defer cancel()
	began := time.Now()
	p.work(c, func() {
		err := call(ctx, c)
		p.world.say("process %d: %s: %v", c.id, what, err)
		if took := time.Since(began); took > callTime+time.Minute && c.life.Err() == nil && !c.wasFrozen() {
			p.world.laws.broken("%s took %s", what, took)
		}
	})
	<-ctx.Done()
	if p.world.story.OneTick {
		p.leave(c)
	}
}

func (p *platform) ask(body string) {
	p.person("asked for "+body, func(ctx context.Context, c *process) error {
		return c.connector.Ask(ctx, ingest.VM.Name, body) //nolint:wrapcheck // for the chronicle
	})
}

func (p *platform) status() {
	p.person("the status", func(ctx context.Context, c *process) error {
		doc, err := c.connector.Status(ctx)
		p.world.laws.tells("status", doc)
		return err //nolint:wrapcheck // for the chronicle
	})
}

func (p *platform) check() {
	p.person("the check", func(ctx context.Context, c *process) error {
		doc, err := c.connector.Check(ctx)
		p.world.laws.tells("check", doc)
		return err //nolint:wrapcheck // for the chronicle
	})
}

// register adds an integration, as its owner does: again until it works.
func (p *platform) register(ctx context.Context, n int) {
	w := p.world
	body := map[string]any{"name": teamOf(n), "baseCategory": "Potential", "minSeverity": 1 + n, "resultSectionNeeded": n%2 == 0}
	if name := w.story.destination(n); strings.HasPrefix(name, "dcr-") {
		body["logAnalyticsUri"], body["dcrImmutableId"] = "https://"+ruleHost, name
	} else {
		body["workspaceId"], body["primaryKey"] = name, integrationKey
	}
	doc, _ := json.Marshal(body) // texts and numbers
	p.insist(ctx, fmt.Sprintf("integration %d is registered", n), func(c *process) error {
		err := c.connector.Register(ctx, doc)
		if err != nil && !strings.Contains(err.Error(), "name") { // there is one of this name
			return err //nolint:wrapcheck // for the chronicle
		}
		w.mu.Lock()
		w.since[w.story.destination(n)] = time.Now()
		w.mu.Unlock()
		return nil
	})
}

// unregister takes an integration away.
func (p *platform) unregister(ctx context.Context, n int) {
	w := p.world
	p.insist(ctx, fmt.Sprintf("integration %d is taken away", n), func(c *process) error {
		if err := c.connector.Unregister(ctx, teamOf(n)); err != nil {
			return err //nolint:wrapcheck // for the chronicle
		}
		w.mu.Lock()
		delete(w.since, w.story.destination(n))
		w.mu.Unlock()
		w.laws.forget(w.story.destination(n))
		return nil
	})
}

func teamOf(n int) string { return fmt.Sprintf("team %d", n) }

// insist calls until it works, or the story ends.
func (p *platform) insist(ctx context.Context, what string, call func(c *process) error) {
	for {
		c := p.one()
		err := call(c)
		p.world.say("process %d: %s: %v", c.id, what, err)
		if err == nil || sleep(ctx, time.Minute) != nil {
			return
		}
	}
}

// environ are the settings.
func (w *world) environ() []string {
	s := w.story
	environ := []string{
		"apiUsername=" + user, "apiPassword=@Microsoft.KeyVault(SecretUri=https://" + vaultHost + "/secrets/" + passwordName + ")",
		"uri=https://" + qualysHost,
		"AzureWebJobsStorage__accountName=qualysstate", "stateContainer=" + container,
		"vmSchedule=0 */5 * * * *", "kbSchedule=0 0 * * * *", "integrationApi=true", "integrationVault=https://" + keysHost,
		fmt.Sprintf("runBudget=%s", s.Budget), fmt.Sprintf("enrichDetections=%t", s.Enrich), "logLevel=info",
	}
	if s.Refreshed {
		environ = append(environ, "kbFullRefreshDays=1")
	}
	if s.Collector {
		environ = append(environ, "workspaceID="+defaultWorkspace, "workspaceKey="+workspaceKey)
	} else {
		environ = append(environ, "logAnalyticsUri=https://"+ruleHost, "dcrImmutableId="+defaultRule)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	name, _, changed := strings.Cut(w.setting, "=")
	if changed {
		environ = slices.DeleteFunc(environ, func(one string) bool { return strings.HasPrefix(one, name+"=") })
		environ = append(environ, w.setting)
	}
	return environ
}

// set changes a setting: the platform starts the app again. An empty one changes it back.
func (w *world) set(p *platform, setting string) {
	w.mu.Lock()
	w.setting = setting
	w.mu.Unlock()
	p.stop()
}

// newID makes the id of a run.
func (w *world) newID() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ids++
	return fmt.Sprintf("%08x%08d", w.rand.Uint32(), w.ids)
}

// machineClock is the clock of a process' machine, which may be wrong.
type machineClock struct {
	world   *world
	process int
}

// Now implements ingest.Clock.
func (c machineClock) Now() time.Time {
	c.world.mu.Lock()
	defer c.world.mu.Unlock()
	return time.Now().Add(c.world.clock.of(c.process))
}

// wrongClock is how far clocks are ahead: those of all machines, or of each second.
type wrongClock struct {
	ahead time.Duration
	which int
}

func (c wrongClock) of(process int) time.Duration {
	if c.which%3 != 2 && c.which%3 != process%2 {
		return 0
	}
	return c.ahead
}

// Sleep implements ingest.Clock.
func (machineClock) Sleep(ctx context.Context, d time.Duration) error {
	return ingest.SystemClock{}.Sleep(ctx, d) //nolint:wrapcheck // it is one
}

// setClock sets machines' clocks for some time.
func (w *world) setClock(which int, ahead, d time.Duration) {
	w.mu.Lock()
	w.clock = wrongClock{ahead, which}
	w.mu.Unlock()
	time.Sleep(d)
	w.mu.Lock()
	w.clock = wrongClock{}
	w.mu.Unlock()
}

// rotate changes the password at Qualys, and after a while in the vault.
func (w *world) rotate(d time.Duration) {
	w.mu.Lock()
	fresh := fmt.Sprintf("correct-horse-canary-%d", 2+len(w.secrets))
	w.secrets = append(w.secrets, fresh)
	w.mu.Unlock()
	w.qualys.SetPassword(fresh)
	time.Sleep(d)
	w.mu.Lock()
	last := w.secrets[len(w.secrets)-1] // it may have changed again
	w.mu.Unlock()
	w.azure.SetSecret(passwordName, last)
}

// GetToken implements azcore.TokenCredential: a token of the simulated identity, which is
// kept while it is good.
func (c *process) GetToken(ctx context.Context, options policy.TokenRequestOptions) (azcore.AccessToken, error) {
	resource := strings.TrimSuffix(options.Scopes[0], "/.default")
	c.mu.Lock()
	token, ok := c.tokens[resource]
	c.mu.Unlock()
	if ok && time.Until(token.ExpiresOn) > 5*time.Minute {
		return token, nil
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+identityHost+simulator.IdentityPath+"?api-version=2019-08-01&resource="+resource, nil)
	if err != nil {
		return token, fmt.Errorf("token: %w", err)
	}
	r.Header.Set("X-Identity-Header", c.world.azure.IdentityHeader)
	resp, err := c.RoundTrip(r)
	if err != nil {
		return token, fmt.Errorf("token: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	var doc struct {
		Token   string `json:"access_token"`
		Expires int64  `json:"expires_on,string"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&doc); err != nil || resp.StatusCode != http.StatusOK || doc.Token == "" {
		return token, fmt.Errorf("token: answered %d", resp.StatusCode)
	}
	token = azcore.AccessToken{Token: doc.Token, ExpiresOn: time.Unix(doc.Expires, 0)}
	c.mu.Lock()
	c.tokens[resource] = token
	c.mu.Unlock()
	return token, nil
}

// journal takes the lines that a process logs.
type journal struct{ process *process }

func (j *journal) Write(line []byte) (int, error) {
	if j.process.life.Err() == nil {
		j.process.world.laws.logs(line)
		j.process.world.say("process %d: %s", j.process.id, bytes.TrimSpace(line))
	}
	return len(line), nil
}

// drained is a request's body, which can be read again.
func drained(r *http.Request) []byte {
	content, _ := io.ReadAll(r.Body) // in memory
	r.Body = io.NopCloser(bytes.NewReader(content))
	return content
}
