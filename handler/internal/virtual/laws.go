package virtual

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"

	"qualys-sentinel/handler/internal/ingest"
)

// laws are what must hold, whatever happens. They are checked as it happens.
type laws struct {
	world *world
	// trusted tells that the state and the machines' clocks are good all the time: then
	// what one process has met, all know.
	trusted bool
	// alone tells that one process works at a time, and that the subscription's limits do
	// not change.
	alone bool
	// holding tells that holds on documents can be relied on: who loses one hears of it.
	holding bool

	mu       sync.Mutex
	breaches []Breach
	// rows are the latest states of findings that have arrived, by destination and
	// UNIQUE_VULN_ID; a refused one that was kept has arrived, too.
	rows map[string]map[uint64]state
	// entries are those of the KnowledgeBase, by QID, and removed those that are said to have
	// been removed.
	entries map[string]map[uint64]state
	removed map[uint64]bool
	// brought are the latest states of findings that a request has brought, by its checkpoint.
	brought map[string]map[uint64]time.Time
	keys    map[string]int // arrivals of each state, by destination and key
	twice   int
	// parted is how many runs' time was up, or how often a destination was too slow for the
	// others' pages: a host of which a part had arrived comes again, whole. broke is how often an
	// answer did: then a part has arrived only of one that fills a batch. longest is the
	// longest row, in bytes.
	parted, broke, longest int
	// isolated tells that something was, which is read again whole, whatever has come of it.
	isolated bool
	runs     map[string]*runOf
	holders  map[string][]holding
	refused  map[string]time.Time  // logins that were refused, by password
	tried    map[attempt]time.Time // when a process has heard that one is refused
	good     map[attempt]bool      // those that a process knows to be good
	resting  map[string]resting    // endpoints, by path
	sending  map[string]int        // batches on their way, by run
	unwanted map[string]bool       // destinations that have refused rows for what they are
	// disturbed is when an act that concerns a destination's dataset has last begun or
	// ended, by both.
	disturbed map[[2]string]time.Time
}

// state is that of a finding or an entry, as a row tells it.
type state struct {
	at     time.Time // of Qualys
	status string
}

// runOf is what is known of a run.
type runOf struct {
	document string // that of its checkpoint
	process  *process
	began    int // place in holders
	accepted int
}

// holding is one hold of a document.
type holding struct {
	process *process
	at      time.Time
}

// resting is a time without calls that was asked for.
type resting struct{ from, until time.Time }

func newLaws(w *world) *laws {
	l := &laws{
		world: w, trusted: true, holding: true, rows: map[string]map[uint64]state{}, entries: map[string]map[uint64]state{}, removed: map[uint64]bool{}, brought: map[string]map[uint64]time.Time{}, keys: map[string]int{}, runs: map[string]*runOf{},
		holders: map[string][]holding{}, refused: map[string]time.Time{}, tried: map[attempt]time.Time{}, good: map[attempt]bool{}, resting: map[string]resting{}, sending: map[string]int{}, unwanted: map[string]bool{}, disturbed: map[[2]string]time.Time{},
	}
	for _, a := range w.story.Acts {
		if slices.Contains(keepers, a.On) || slices.Contains(untrusted, a.Kind) {
			l.trusted = false
		}
		if slices.Contains(keepers, a.On) || slices.Contains(groups["storage"], a.On) || a.Kind == failover || slices.Contains(helpers, a.On) {
			l.holding = false
		}
	}
	l.alone = l.trusted && !w.story.OneTick && !slices.ContainsFunc(w.story.Acts, func(a Act) bool { return slices.Contains(crowding, a.Kind) })
	return l
}

// crowding are acts behind which an old process works beside a new one, or more calls run
// than Qualys then allows.
var crowding = []string{
	"the processes are told to stop", change, "the subscription allows one call at a time",
	"a call arrives late, whatever has become of who made it",
}

// untrusted are acts behind which processes do not know what others have met.
var untrusted = []string{
	failover, "the processes freeze", "the processes are killed", "the process is killed when a call leaves", "the process is killed when a call is done",
	"a second app works with the same state", "the processes freeze, and others take their place", "machines' clocks are ahead", "machines' clocks are behind",
}

// A Breach is a law that was broken.
type Breach struct {
	// Law is the same for all breaches of a law, Text tells what has happened.
	Law, Text string
}

// broken notes that a law was broken: its words without what they are filled with.
func (l *laws) broken(law string, args ...any) {
	text := fmt.Sprintf(law, args...)
	l.world.say("BROKEN: %s", text)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.breaches = append(l.breaches, Breach{law, text})
}

// Marks of secrets, as text and in the header of a login.
const canary = "correct-horse-canary"

var canaryLogin = strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(user+":"+canary)), "=")[:32]

// logs checks a line of a process' log.
func (l *laws) logs(line []byte) {
	l.tells("log", line)
	if bytes.Contains(line, []byte("too slow for the others")) {
		l.part()
	}
}

// part notes that a host may have come in part.
func (l *laws) part() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.parted++
}

// breaks notes that an answer has broken.
func (l *laws) breaks() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broke++
}

// mayRepeat is how many rows may come again since hosts have come in part.
func (l *laws) mayRepeat() int {
	most, times := l.world.largestHost(), l.parted
	if most*l.longest > batchBytes*9/10 {
		times += l.broke
	}
	return times * most
}

// tells checks what leaves for people.
func (l *laws) tells(what string, doc []byte) {
	for _, secret := range []string{canary, canaryLogin, workspaceKey, integrationKey} {
		if bytes.Contains(doc, []byte(secret)) {
			l.broken("a secret is in the %s: %.300s", what, doc)
		}
	}
}

// leaves checks a call that leaves.
func (l *laws) leaves(c *call, r *http.Request) {
	l.tells("address of a call", []byte(r.URL.String()))
	for name, values := range r.Header {
		if name != "Authorization" {
			l.tells("headers of a call", []byte(strings.Join(values, " ")))
		}
	}
	if r.URL.Hostname() != qualysHost || !l.trusted {
		return
	}
	_, secret, _ := r.BasicAuth()
	l.mu.Lock()
	refused, wasRefused := l.refused[secret]
	refusedHere, hereToo := l.tried[attempt{c.process.id, secret}]
	rest := l.resting[r.URL.Path]
	l.mu.Unlock()
	now := time.Now()
	if since := now.Sub(refused); wasRefused && since > known && since < time.Hour-time.Second {
		l.broken("a login that was refused is tried again after %s", since)
	}
	if since := now.Sub(refusedHere); hereToo && since > time.Second && since < time.Hour-time.Second {
		l.broken("process %d tries again a login that it was refused %s ago", c.process.id, since)
	}
	if now.Sub(rest.from) > known && now.Before(rest.until.Add(-time.Second)) {
		l.broken("%s is called again after %s, and was to rest for %s", c.what, now.Sub(rest.from), rest.until.Sub(rest.from))
	}
}

// known is how long it may take until all processes know what one has met.
const known = 10 * time.Second

// attempt is a password that a process has tried.
type attempt struct {
	process int
	secret  string
}

// heard notes what a process hears of Qualys.
func (l *laws) heard(c *call, r *http.Request, resp *http.Response) {
	_, secret, _ := r.BasicAuth()
	if resp.StatusCode == http.StatusUnauthorized {
		l.refuses(c, secret)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	wait, _ := strconv.Atoi(resp.Header.Get("X-RateLimit-ToWait-Sec")) // 0: it does not say
	if wait == 0 {
		wait, _ = strconv.Atoi(resp.Header.Get("Retry-After"))
	}
	switch {
	case resp.StatusCode == http.StatusUnauthorized:
		l.refused[secret] = now
	case resp.StatusCode == http.StatusOK:
		delete(l.refused, secret)
		delete(l.tried, attempt{c.process.id, secret})
		l.good[attempt{c.process.id, secret}] = true
	case resp.StatusCode == http.StatusConflict && wait > 0, resp.StatusCode == http.StatusTooManyRequests && wait > 0:
		l.resting[r.URL.Path] = resting{now, now.Add(min(time.Duration(wait)*time.Second, longestRest))}
	}
}

// refuses checks that a process tries a password that it does not know to be good with one
// call at a time: all are bad logins if it is not.
func (l *laws) refuses(c *call, secret string) {
	a := attempt{c.process.id, secret}
	l.mu.Lock()
	first, before := l.tried[a]
	good := l.good[a]
	l.tried[a] = time.Now()
	l.mu.Unlock()
	if before && !good && c.left.Before(first) && time.Since(c.left) < headerTime {
		l.broken("process %d tries a login by more than one call at a time", a.process)
	}
}

// longestRest is how long the connector lets an endpoint rest at most: it asks again then.
const longestRest = time.Hour

// answered checks what Qualys has to say of a call.
func (l *laws) answered(c *call, r *http.Request, answer *httptest.ResponseRecorder) {
	switch answer.Code {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusRequestURITooLong:
		l.broken("Qualys refuses the call for %s: %s %s: %d %.300s", c.what, r.Method, r.URL.RequestURI(), answer.Code, answer.Body)
	case http.StatusConflict:
		if l.alone && bytes.Contains(answer.Body.Bytes(), []byte("<CODE>1960<")) {
			l.broken("more calls for %s at a time than Qualys allows: %.300s", c.what, answer.Body)
		}
	}
}

// maxInFlight is how many batches of a run may be on their way.
const maxInFlight = ingest.DefaultInFlight

// told notes what a process hears of Log Analytics.
func (l *laws) told(c *call, status int) {
	if status != http.StatusBadRequest && status != http.StatusRequestEntityTooLarge {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	destination := c.name
	if l.world.azure.Places[destination] == nil {
		destination = "default" // by another address, where a setting has changed
	}
	l.unwanted[destination] = true
}

// sends checks rows that arrive.
func (l *laws) sends(c *call, body []byte) {
	l.tells("rows", body)
	if c.what == "health" {
		return
	}
	if c.run = cmp.Or(quoted(body, `"RunId_s":"`), quoted(body, `"RunId":"`)); c.run == "" {
		return // that of a check, which sends none
	}
	l.mu.Lock()
	l.sending[c.run]++
	n := l.sending[c.run]
	run := l.runs[c.run]
	var holders []holding
	if run != nil {
		holders = l.holders[run.document][run.began:]
	}
	l.mu.Unlock()
	if n > maxInFlight {
		l.broken("%d batches of run %s are on their way", n, c.run)
	}
	switch {
	case run == nil:
		l.broken("a run sends rows before it has saved its checkpoint: %.200s", body)
	case len(holders) > 0 && c.left.Sub(holders[0].at) > time.Second && l.holding:
		l.broken("run %s of process %d sends rows %s after process %d has taken hold", c.run, run.process.id, c.left.Sub(holders[0].at), holders[0].process.id)
	}
}

func (l *laws) sent(c *call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.run != "" {
		l.sending[c.run]--
	}
}

// quoted is the text between a mark and the next quote.
func quoted(doc []byte, mark string) string {
	_, rest, _ := bytes.Cut(doc, []byte(mark))
	text, _, _ := bytes.Cut(rest, []byte{'"'})
	return string(text)
}

// row is what the laws look at.
type row struct {
	Key, Run, QID, Status string
	Processed, Modified   time.Time
	Removed               bool
}

// UnmarshalJSON reads a row, with the names of the table's columns or those of the Data
// Collector API. It looks for what it needs only: a story has thousands of rows, of fifty
// columns each, and inside of a text no quote stands by itself.
func (r *row) UnmarshalJSON(doc []byte) error {
	text := func(name, suffix string) string {
		return cmp.Or(quoted(doc, `"`+name+suffix+`":"`), quoted(doc, `"`+name+`":"`))
	}
	*r = row{Key: text("RowKey", "_s"), Run: text("RunId", "_s"), QID: text("QID", "_s"), Status: text("Status", "_s"), Removed: text("Removed_DateTime", "_t") != ""}
	// A table has one of both; a row without a time has not arrived, for the laws.
	r.Processed, _ = time.Parse(time.RFC3339, text("LastProcessed", "_t"))
	r.Modified, _ = time.Parse(time.RFC3339, text("Last_Service_Modification_DateTime", "_t"))
	return nil
}

// arrived notes a row that was accepted.
func (l *laws) arrived(destination, table string, doc json.RawMessage) error {
	if table == ingest.Health.Table {
		return nil
	}
	var r row
	_ = r.UnmarshalJSON(doc) // it is one: the service has looked at each column
	if r.Removed {
		if qid, _ := strconv.ParseUint(r.QID, 10, 64); l.falselyRemoved(qid) { // 0: a QID that is none
			l.broken("an entry is said to have been removed, and Qualys has it: %.200s", doc)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reached(destination, table, r)
	l.longest = max(l.longest, len(doc))
	asked := false
	if run := l.runs[r.Run]; run != nil {
		run.accepted++
		asked = strings.Contains(run.document, "/requests/")
	}
	if key := destination + " " + table + " " + r.Key; !asked {
		if l.keys[key]++; l.keys[key] > 1 {
			l.twice++
		}
	}
	return nil
}

// reached notes the state of a finding or an entry.
func (l *laws) reached(destination, table string, r row) {
	states, at := l.rows, r.Processed
	id, _, _ := strings.Cut(r.Key, "@")
	if table == ingest.KB.Schema.Table {
		states, at, id = l.entries, r.Modified, r.QID
	}
	n, _ := strconv.ParseUint(id, 10, 63) // 0: one that is not expected
	if r.Removed {
		l.removed[n] = true
		return
	}
	if states[destination] == nil {
		states[destination] = map[uint64]state{}
	}
	if at.After(states[destination][n].at) {
		states[destination][n] = state{at, r.Status}
	}
	if run := l.runs[r.Run]; run != nil && strings.Contains(run.document, "/requests/") {
		if l.brought[run.document] == nil {
			l.brought[run.document] = map[uint64]time.Time{}
		}
		l.brought[run.document][n] = at
	}
}

// forget forgets what has arrived at a destination that has gone: should it come back, all
// comes again. Where the state may become an older one, what it was may come back.
func (l *laws) forget(destination string) {
	if slices.ContainsFunc(l.world.story.Acts, func(a Act) bool { return a.Kind == failover }) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.rows, destination)
}

// stored checks what was written to the state.
func (l *laws) stored(c *call, r *http.Request, content []byte) {
	if r.Method != http.MethodPut {
		return
	}
	l.tells("state, as "+c.name, content)
	switch c.what {
	case "acquire a lease":
		l.mu.Lock()
		l.holders[c.name] = append(l.holders[c.name], holding{c.process, time.Now()})
		l.mu.Unlock()
	case "save a checkpoint":
		if len(content) > 0 {
			l.saved(c, content)
		}
	case "save a dead letter":
		l.lettered(c)
	case "save a run record":
		l.reported(c, content)
	case "other state":
		if strings.HasPrefix(c.name, "requests/done/") {
			l.closed(content)
		}
	}
}

// destinationOf is that of a document of the state.
func (w *world) destinationOf(name string) string {
	parts := strings.Split(name, "/")
	if len(parts) > 1 {
		if number, ok := strings.CutPrefix(parts[1], "integration-"); ok {
			doc := w.blobs.Document(container, "integrations/"+number+".json")
			return cmp.Or(quoted(doc, `"dcrImmutableId": "`), quoted(doc, `"workspaceId": "`))
		}
	}
	return "default"
}

// lettered notes rows that were refused, and kept.
func (l *laws) lettered(c *call) {
	if !strings.Contains(c.name, "/rows-") {
		return
	}
	gz, err := gzip.NewReader(bytes.NewReader(l.world.blobs.Document(container, c.name)))
	if err != nil {
		return // a part of it
	}
	dec := json.NewDecoder(gz)
	destination := l.world.destinationOf(c.name)
	l.mu.Lock()
	wanted := !l.unwanted[destination]
	l.mu.Unlock()
	if wanted && destination != "" { // an integration that has gone
		l.broken("rows are kept as dead letters, and %s has refused none: %s", destination, c.name)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		var letter struct {
			Table string
			Row   row
		}
		if dec.Decode(&letter) != nil {
			return
		}
		l.reached(destination, letter.Table, letter.Row)
	}
}

// reported checks a run record.
func (l *laws) reported(c *call, content []byte) {
	var r ingest.Report
	if err := json.Unmarshal(content, &r); err != nil {
		l.broken("%s is no run record: %v", c.name, err)
		return
	}
	l.mu.Lock()
	accepted := 0
	if run := l.runs[r.Run]; run != nil {
		accepted = run.accepted
	}
	l.mu.Unlock()
	if r.Outcome == ingest.Paused {
		l.part()
	}
	if r.Decoded != r.Accepted+r.DeadLetters+r.Abandoned {
		l.broken("run %s: %d decoded, %d accepted, %d dead letters, %d abandoned", r.Run, r.Decoded, r.Accepted, r.DeadLetters, r.Abandoned)
	}
	if int(r.Accepted) > accepted {
		l.broken("run %s says that %d rows were accepted, and %d were", r.Run, r.Accepted, accepted)
	}
}

// saved checks a checkpoint: it must not be ahead of what has arrived.
func (l *laws) saved(c *call, content []byte) {
	var doc ingest.Checkpoint
	if err := json.Unmarshal(content, &doc); err != nil {
		return // of something else, such as a request
	}
	if doc.Dataset == "" || doc.LastRun == "" {
		return
	}
	l.mu.Lock()
	l.isolated = l.isolated || len(doc.Isolated) > 0
	if l.runs[doc.LastRun] == nil {
		l.runs[doc.LastRun] = &runOf{document: c.name, process: c.process, began: len(l.holders[c.name])}
	}
	l.mu.Unlock()
	if strings.Contains(c.name, "/requests/") {
		return
	}
	destination := l.world.destinationOf(c.name)
	var missing []string
	switch {
	case destination == "":
		// An integration that has gone: what it would have got is not missing.
	case doc.Window != nil && l.world.story.disordered():
		// The cursor rests on the order of hosts: until a host shows that there is none.
	case doc.Window != nil:
		missing = l.missing(destination, doc, doc.Window.After, doc.Window.Until, doc.Window.NextID)
	case doc.Watermark != nil:
		missing = l.missing(destination, doc, doc.LastAfter, *doc.Watermark, 1<<62)
	}
	if len(missing) > 0 {
		l.broken("the checkpoint %s of run %s is ahead: %s", c.name, doc.LastRun, strings.Join(missing[:min(3, len(missing))], "; "))
	}
}
