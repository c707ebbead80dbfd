package virtual

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"qualys-sentinel/handler/internal/simulator"
)

// A kind is one way in which things go wrong, or change.
type kind struct {
	name string
	// on are the groups of calls that it may concern; none: it concerns no calls.
	on []string
	// numbered tells that N means something, lasts that For does.
	numbered, lasts bool
	// connect fails a call before it reaches the service.
	connect func(ctx context.Context, a *acting) error
	// before may take the place of the service; it tells whether it did.
	before func(w *world, a *acting, c *call, rw http.ResponseWriter, r *http.Request) bool
	// answer may give the service's answer in a way of its own; it tells whether it did.
	answer func(w *world, a *acting, c *call, rw http.ResponseWriter, r *http.Request, answer *httptest.ResponseRecorder) bool
	// happen is an event. It may take time.
	happen func(w *world, p *platform, a Act)
	// unclean may make rows be sent twice: what was in flight. breaks ends an answer anywhere:
	// of the host that it has got to rows may have been sent.
	unclean, breaks bool
}

// fault tells that it concerns calls.
func (k *kind) fault() bool { return k.connect != nil || k.before != nil || k.answer != nil }

func kindOf(name string) *kind {
	i := slices.IndexFunc(kinds, func(k kind) bool { return k.name == name })
	return &kinds[i]
}

// groups are calls that go wrong together.
var groups = map[string][]string{
	"Qualys":        {"detections", "knowledge", "host ids"},
	"Log Analytics": {"rows", "entries", "health", "rows of an integration"},
	"storage": {"acquire a lease", "renew a lease", "release a lease", "load a checkpoint", "save a checkpoint", "save the recent rows", "save the index",
		"load the ledger", "save a dead letter", "save a run record", "save an integration", "load an integration", "load the limits", "save the limits", "look at a lease", "list", "delete", "container", "other state"},
	"leases": {"acquire a lease", "renew a lease", "release a lease"},
	"ledger": {"load the ledger", "save the recent rows", "save the index"},
}

func init() {
	for _, all := range [][]string{groups["Qualys"], groups["Log Analytics"], groups["storage"], {"token", "secret"}} {
		for _, one := range all {
			groups[one] = []string{one}
		}
	}
}

var (
	readers = []string{"Qualys", "detections", "knowledge", "host ids"}
	senders = []string{"Log Analytics", "rows", "entries", "rows of an integration", "health"}
	keepers = []string{"storage", "leases", "ledger", "acquire a lease", "renew a lease", "release a lease", "load a checkpoint", "save a checkpoint",
		"save the recent rows", "save the index", "load the ledger", "save a dead letter", "save a run record", "load the limits", "save the limits", "list"}
	helpers  = []string{"token", "secret"}
	anything = slices.Concat(readers, senders, keepers, helpers)
)

// families are all kinds of acts, and kinds the same in one list.
var (
	families = [][]kind{onTheWay, answersOfQualys, answersOfAzure, ofProcesses, ofTheEstate, ofPeople}
	kinds    = slices.Concat(families...)
)

// onTheWay is faults on the way to all services.
var onTheWay = []kind{
	{name: "no connection", on: anything, lasts: true, unclean: true, connect: func(ctx context.Context, _ *acting) error {
		if err := sleep(ctx, 3*time.Second); err != nil {
			return err
		}
		return errors.New("connect: connection refused")
	}},
	{name: "connections hang", on: anything, lasts: true, unclean: true, connect: func(ctx context.Context, _ *acting) error {
		if err := sleep(ctx, 30*time.Second); err != nil {
			return err
		}
		return errors.New("dial tcp: i/o timeout")
	}},
	{name: "nothing answers", on: anything, lasts: true, unclean: true, before: func(_ *world, _ *acting, _ *call, _ http.ResponseWriter, r *http.Request) bool {
		<-r.Context().Done()
		return true
	}},
	{name: "what was asked is done, and the answer lost", on: anything, lasts: true, unclean: true, answer: func(*world, *acting, *call, http.ResponseWriter, *http.Request, *httptest.ResponseRecorder) bool {
		panic(http.ErrAbortHandler)
	}},
	{name: "what was asked is done, and nothing answers", on: anything, lasts: true, unclean: true, answer: func(_ *world, _ *acting, _ *call, _ http.ResponseWriter, r *http.Request, _ *httptest.ResponseRecorder) bool {
		<-r.Context().Done()
		return true
	}},
	{name: "all is slow", on: anything, numbered: true, lasts: true, unclean: true, before: func(w *world, a *acting, _ *call, _ http.ResponseWriter, r *http.Request) bool {
		w.pause(r.Context(), time.Duration(1+a.N%240)*time.Second)
		return false
	}},
	{name: "a call arrives late, whatever has become of who made it", on: slices.Concat(senders, keepers), numbered: true, lasts: true, unclean: true, before: func(_ *world, a *acting, _ *call, _ http.ResponseWriter, _ *http.Request) bool {
		time.Sleep(time.Duration(1+a.N%200) * time.Second)
		return false
	}},
}

// answersOfQualys is what Qualys answers, and what it allows.
var answersOfQualys = []kind{
	{name: "an answer drips", on: readers, numbered: true, lasts: true, breaks: true, answer: func(w *world, a *acting, _ *call, rw http.ResponseWriter, r *http.Request, answer *httptest.ResponseRecorder) bool {
		w.drip(rw, r, answer, place(a, answer), time.Duration(1+a.N%40)*time.Minute)
		return true
	}},
	{name: "an answer hangs in the middle", on: readers, numbered: true, lasts: true, breaks: true, answer: func(_ *world, a *acting, _ *call, rw http.ResponseWriter, r *http.Request, answer *httptest.ResponseRecorder) bool {
		begun(rw, answer, place(a, answer))
		<-r.Context().Done()
		return true
	}},
	{name: "an answer breaks off", on: readers, numbered: true, lasts: true, breaks: true, answer: func(_ *world, a *acting, _ *call, rw http.ResponseWriter, _ *http.Request, answer *httptest.ResponseRecorder) bool {
		begun(rw, answer, place(a, answer))
		panic(http.ErrAbortHandler)
	}},
	{name: "an answer ends early", on: readers, numbered: true, lasts: true, breaks: true, answer: func(_ *world, a *acting, _ *call, rw http.ResponseWriter, _ *http.Request, answer *httptest.ResponseRecorder) bool {
		begun(rw, answer, place(a, answer))
		return true
	}},
	{name: "an answer that is another", on: readers, numbered: true, lasts: true, unclean: true, answer: func(_ *world, a *acting, _ *call, rw http.ResponseWriter, r *http.Request, answer *httptest.ResponseRecorder) bool {
		f := foreign(a.N)
		for _, name := range []string{"Date", "Content-Type", "X-RateLimit-Limit", "X-RateLimit-Remaining"} {
			if v := answer.Header().Get(name); v != "" {
				rw.Header().Set(name, v)
			}
		}
		f.Spoil(rw, r, answer.Body.Bytes())
		return true
	}},
	{name: "Qualys repeats the login in an error", on: readers, lasts: true, answer: func(_ *world, _ *acting, _ *call, rw http.ResponseWriter, r *http.Request, answer *httptest.ResponseRecorder) bool {
		name, secret, _ := r.BasicAuth()
		rw.Header().Set("Date", answer.Header().Get("Date"))
		rw.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(rw, "<SIMPLE_RETURN><RESPONSE><DATETIME>2026-11-01T12:00:00Z</DATETIME><CODE>1905</CODE><TEXT>no call for %s with %s (%s)</TEXT></RESPONSE></SIMPLE_RETURN>", name, secret, r.Header.Get("Authorization"))
		return true
	}},
	{name: "hosts come twice", on: []string{"detections"}, numbered: true, lasts: true, unclean: true, answer: func(_ *world, a *acting, _ *call, _ http.ResponseWriter, _ *http.Request, answer *httptest.ResponseRecorder) bool {
		shuffled(answer, func(hosts [][]byte) [][]byte {
			n := a.N % len(hosts)
			return slices.Insert(slices.Clone(hosts), n, hosts[n])
		})
		return false
	}},
	{name: disorder, on: []string{"detections"}, numbered: true, lasts: true, answer: func(_ *world, a *acting, _ *call, _ http.ResponseWriter, _ *http.Request, answer *httptest.ResponseRecorder) bool {
		shuffled(answer, func(hosts [][]byte) [][]byte {
			n := a.N % len(hosts)
			return append(slices.Clone(hosts[n:]), hosts[:n]...)
		})
		return false
	}},
	{name: "a host is ill", on: []string{"detections"}, numbered: true, lasts: true, unclean: true, answer: func(w *world, a *acting, _ *call, rw http.ResponseWriter, r *http.Request, answer *httptest.ResponseRecorder) bool {
		id := w.estate.Host(a.N%w.story.Hosts, time.Now()).ID
		return w.spoilAt(a, rw, r, answer, fmt.Sprintf("<ID>%d</ID>", id))
	}},
	{name: "a QID is ill", on: []string{"knowledge"}, numbered: true, lasts: true, unclean: true, answer: func(w *world, a *acting, _ *call, rw http.ResponseWriter, r *http.Request, answer *httptest.ResponseRecorder) bool {
		return w.spoilAt(a, rw, r, answer, fmt.Sprintf("<QID>%d</QID>", w.estate.Knowledge.QID(a.N%w.story.QIDs)))
	}},
	{name: "an answer is not whole, and says so", on: readers, numbered: true, lasts: true, unclean: true, answer: func(w *world, a *acting, _ *call, rw http.ResponseWriter, r *http.Request, answer *httptest.ResponseRecorder) bool {
		n := a.N
		how := unwhole[n%len(unwhole)]
		n /= len(unwhole)
		if !says(answer, how.text, n%3 == 0) {
			return false
		}
		// What stands behind a list that takes several batches shows only when some of them
		// have arrived: until then nothing says that there is a gap in front of them.
		late := n%3 != 0 && answer.Body.Len() > batchBytes
		shortened(answer, n, how.ends || late)
		switch end := max(0, bytes.LastIndex(answer.Body.Bytes(), []byte("</RESPONSE>"))); n % 5 {
		case 0:
			begun(rw, answer, end)
			panic(http.ErrAbortHandler)
		case 1:
			w.drip(rw, r, answer, end, time.Duration(1+n%20)*time.Minute)
			return true
		}
		return false
	}},
	{name: "an answer bears a notice", on: readers, numbered: true, lasts: true, answer: func(_ *world, a *acting, _ *call, _ http.ResponseWriter, _ *http.Request, answer *httptest.ResponseRecorder) bool {
		_ = says(answer, notices[a.N%len(notices)], a.N%3 == 0) // it may be no list
		return false
	}},
	{name: "an error of Qualys hangs in its text", on: readers, numbered: true, lasts: true, before: func(_ *world, a *acting, _ *call, rw http.ResponseWriter, r *http.Request) bool {
		rw.Header().Set("Date", time.Now().UTC().Format(http.TimeFormat))
		status := []int{400, 401, 403, 409, 429, 500, 503}[a.N%7]
		if status == http.StatusConflict || status == http.StatusTooManyRequests {
			rw.Header().Set("X-RateLimit-ToWait-Sec", "600")
		}
		rw.WriteHeader(status)
		fmt.Fprint(rw, "<SIMPLE_RETURN><RESPONSE><DATETIME>2026-11-01T12:00:00Z</DATETIME><CODE>")
		<-r.Context().Done()
		return true
	}},
	{name: "the subscription allows one call at a time", lasts: true, happen: func(w *world, _ *platform, a Act) {
		w.qualys.SetLimits(callsPerHour, 1)
		time.Sleep(a.For)
		w.qualys.SetLimits(callsPerHour, 2)
	}},
	{name: "others use up the calls", lasts: true, happen: func(w *world, _ *platform, a Act) {
		w.qualys.SetLimits(1, 2)
		time.Sleep(a.For)
		w.qualys.SetLimits(callsPerHour, 2)
	}},
}

// answersOfAzure is what Log Analytics, the storage, the identity and the vault answer.
var answersOfAzure = []kind{
	{name: "Log Analytics refuses", on: senders, numbered: true, lasts: true, unclean: true, before: func(_ *world, a *acting, _ *call, rw http.ResponseWriter, _ *http.Request) bool {
		refusals := []struct {
			status int
			code   string
		}{{500, "InternalError"}, {503, "ServiceUnavailable"}, {429, "TooManyRequests"}, {408, "RequestTimeout"}, {403, "OperationFailed"}, {404, "NotFound"}, {413, "ContentLengthLimitExceeded"}, {401, "InvalidToken"}, {400, "InvalidPayload"}}
		s := refusals[a.N%len(refusals)]
		if s.status == http.StatusTooManyRequests {
			rw.Header().Set("Retry-After", "30")
		}
		rw.Header().Set("Content-Type", "application/json")
		rw.WriteHeader(s.status)
		fmt.Fprintf(rw, `{"error":{"code":%q,"message":"simulated"}}`, s.code)
		return true
	}},
	{name: "rows of a QID are refused", on: []string{"rows", "entries", "rows of an integration"}, numbered: true, lasts: true, unclean: true, before: func(w *world, a *acting, c *call, rw http.ResponseWriter, r *http.Request) bool {
		if !w.bodyHas(r, `"QID_s":"`+strconv.Itoa(w.estate.Knowledge.QID(a.N%w.story.QIDs))+`"`) {
			return false
		}
		rw.Header().Set("Content-Type", "application/json")
		rw.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(rw, `{"error":{"code":"InvalidRecord","message":"simulated"}}`)
		return true
	}},
	{name: "storage refuses", on: keepers, numbered: true, lasts: true, unclean: true, before: func(_ *world, a *acting, _ *call, rw http.ResponseWriter, _ *http.Request) bool {
		refusals := []struct {
			status int
			code   string
		}{{500, "InternalError"}, {503, "ServerBusy"}, {403, "AuthorizationPermissionMismatch"}, {500, "OperationTimedOut"}}
		s := refusals[a.N%len(refusals)]
		rw.Header().Set("X-Ms-Error-Code", s.code)
		rw.WriteHeader(s.status)
		return true
	}},
	{name: "identity or vault refuses", on: helpers, numbered: true, lasts: true, unclean: true, before: func(_ *world, a *acting, _ *call, rw http.ResponseWriter, _ *http.Request) bool {
		rw.Header().Set("Content-Type", "application/json")
		rw.WriteHeader([]int{500, 403, 429, 400}[a.N%4])
		fmt.Fprint(rw, `{"error":{"code":"Simulated","message":"simulated"}}`)
		return true
	}},
	{name: failover, numbered: true, unclean: true, happen: func(w *world, p *platform, a Act) {
		before := w.blobs.Snapshot()
		time.Sleep(time.Duration(1+a.N%900) * time.Second)
		w.blobs.Restore(before)
		w.say("the state is an older one")
		// Their owners find that the youngest are not there.
		for n := range w.story.Integrations {
			if !w.registered(w.story.destination(n)).IsZero() {
				p.register(p.end, n)
			}
		}
	}},
}

// ofProcesses is what happens to processes and their machines.
var ofProcesses = []kind{
	{name: "the processes are killed", unclean: true, happen: func(_ *world, p *platform, _ Act) { p.kill() }},
	{name: "the process is killed when a call leaves", on: anything, numbered: true, lasts: true, unclean: true, before: func(_ *world, a *acting, c *call, _ http.ResponseWriter, _ *http.Request) bool {
		if a.n != 1+a.N%7 {
			return false
		}
		c.process.kill()
		return true
	}},
	{name: "the process is killed when a call is done", on: anything, numbered: true, lasts: true, unclean: true, answer: func(_ *world, a *acting, c *call, _ http.ResponseWriter, _ *http.Request, _ *httptest.ResponseRecorder) bool {
		if a.n != 1+a.N%7 {
			return false
		}
		c.process.kill()
		return true
	}},
	{name: "the processes are told to stop", unclean: true, happen: func(_ *world, p *platform, _ Act) { p.stop() }},
	{name: "the processes freeze", lasts: true, unclean: true, happen: func(_ *world, p *platform, a Act) { p.freeze(a.For) }},
	{name: "a second app works with the same state", lasts: true, unclean: true, happen: func(_ *world, p *platform, a Act) { p.second(a.For) }},
	{name: "the processes freeze, and others take their place", lasts: true, unclean: true, happen: func(_ *world, p *platform, a Act) { p.replace(a.For) }},
	{name: "machines' clocks are ahead", numbered: true, lasts: true, unclean: true, happen: func(w *world, _ *platform, a Act) { w.setClock(a.N, time.Duration(a.N%180)*time.Minute, a.For) }},
	{name: "machines' clocks are behind", numbered: true, lasts: true, unclean: true, happen: func(w *world, _ *platform, a Act) { w.setClock(a.N, -time.Duration(a.N%180)*time.Minute, a.For) }},
}

// ofTheEstate is what changes at Qualys.
var ofTheEstate = []kind{
	{name: "a host is scanned again", numbered: true, happen: func(w *world, _ *platform, a Act) {
		w.estate.Rescan(a.N%w.story.Hosts, time.Now().Truncate(time.Second))
	}},
	{name: "all hosts are scanned again", happen: func(w *world, _ *platform, _ Act) {
		for n := range w.story.Hosts {
			w.estate.Rescan(n, time.Now().Truncate(time.Second))
		}
	}},
	{name: "a host is new", numbered: true, happen: func(*world, *platform, Act) {}}, // the estate knows when: see newWorld
	{name: "a host is purged", numbered: true, happen: func(w *world, _ *platform, a Act) {
		w.estate.Purge(a.N%w.story.Hosts, time.Now().Truncate(time.Second))
	}},
	{name: "an entry is edited", numbered: true, happen: func(w *world, _ *platform, a Act) {
		w.edit(a.N%w.story.QIDs, simulator.Changed)
	}},
	{name: removal, numbered: true, happen: func(w *world, _ *platform, a Act) {
		w.edit(a.N%w.story.QIDs, simulator.Removed)
	}},
}

// ofPeople is what people do.
var ofPeople = []kind{
	{name: "a person asks for everything", happen: func(_ *world, p *platform, _ Act) { p.ask(`{"full":true}`) }},
	{name: "a person asks for the next window", happen: func(_ *world, p *platform, _ Act) { p.ask(``) }},
	{name: "a person asks for a host", numbered: true, happen: func(w *world, p *platform, a Act) {
		p.ask(fmt.Sprintf(`{"hostIds":[%d]}`, w.estate.Host(a.N%w.story.Hosts, time.Now()).ID))
	}},
	{name: change, numbered: true, lasts: true, unclean: true, happen: func(w *world, p *platform, a Act) {
		w.set(p, a.setting())
		time.Sleep(a.For)
		w.set(p, "")
	}},
	{name: "an integration goes, and comes back", numbered: true, lasts: true, unclean: true, happen: func(w *world, p *platform, a Act) {
		if n := w.story.Integrations; n > 0 {
			p.unregister(p.end, a.N%n)
			time.Sleep(a.For)
			p.register(p.end, a.N%n)
		}
	}},
	{name: "a person looks at the status", happen: func(_ *world, p *platform, _ Act) { p.status() }},
	{name: "a person checks the connection", happen: func(_ *world, p *platform, _ Act) { p.check() }},
	{name: "the password changes at Qualys, and later in the vault", lasts: true, happen: func(w *world, _ *platform, a Act) { w.rotate(a.For) }},
}

// Pairs are all faults, each with all calls that it may meet: kind and call.
func Pairs() (list [][2]string) {
	for _, k := range kinds {
		if !k.fault() {
			continue
		}
		var calls []string
		for _, group := range k.on {
			calls = append(calls, groups[group]...)
		}
		slices.Sort(calls)
		for _, call := range slices.Compact(calls) {
			list = append(list, [2]string{k.name, call})
		}
	}
	return list
}

// unwhole are ways in which an answer says that it is not whole: elements around its list,
// or, where there are none, the words of its link to more. ends tells that the answer has ended early; others have gaps anywhere.
var unwhole = []struct {
	text string
	ends bool
}{
	{"<WARNING><CODE>1980</CODE><TEXT>5 record limit exceeded.</TEXT></WARNING>", true},
	{"<WARNING><CODE>1981</CODE><TEXT>The answer is incomplete.</TEXT></WARNING>", false},
	{"<CODE>999</CODE><TEXT>Internal error. Please contact support.</TEXT>", false},
	{"<WARNING><TEXT>Some records could not be read in time.</TEXT></WARNING>", false},
	{"<WARNING><CODE>999</CODE><TEXT>Internal error</TEXT></WARNING>", false},
	{"<ERROR><CODE>1999</CODE><TEXT>We are performing scheduled maintenance.</TEXT></ERROR>", false},
	{"<WARNING><CODE>1980</CODE><TEXT>This version is deprecated.</TEXT></WARNING><WARNING><TEXT>Results have been truncated.</TEXT></WARNING>", true},
	{"<STATUS>partial</STATUS>", false},
	{"", false},
}

// notices are what an answer may say of something else, in its end.
var notices = []string{
	"<WARNING><TEXT>This version of the API will reach End-of-Life on 2027-03-31.</TEXT></WARNING>",
	"<WARNING><TEXT>This API version is deprecated.</TEXT></WARNING>",
	"<WARNING><CODE>1990</CODE><TEXT>API version 4.0 is deprecated. Please migrate to version 5.0.</TEXT><URL>https://docs.qualys.com/en/vm/api</URL></WARNING>",
	"<WARNING><TEXT>This version has reached End-of-Support. No updates or fixes will be provided.</TEXT></WARNING>",
}

// changes are settings with other values than those of the stories.
var changes = []string{"runBudget=1m", "runBudget=27m", "enrichDetections=true", "enrichDetections=false", "overlap=30m", "kbOverlap=36h", "kbPageSize=2", "logLevel=debug", "resultsPolicy=none", "apiPassword=", "dcrImmutableId=dcr-1", "kbFullRefreshDays=1", fewer}

// fewer is a setting by which the default destination asks for findings from a severity on.
const (
	fewer     = "filterParameters=&severities=4,5"
	fewerFrom = 4
)

// Acts that the laws have to know by name: see maySkip, changes, forget and unremoved.
const (
	disorder = "hosts come in another order"
	failover = "the state fails over to an older one"
	change   = "a setting changes, and changes back"
	removal  = "an entry is removed"
)

// setting is what a setting becomes in a change.
func (a Act) setting() string { return changes[a.N%len(changes)] }

// callsPerHour is the limit of the subscription, for each endpoint.
const callsPerHour = 300

// place is somewhere in an answer, from its beginning to its end.
func place(a *acting, answer *httptest.ResponseRecorder) int {
	return a.N * answer.Body.Len() / numbers
}

// foreign is one of the simulator's ways in which an answer goes wrong.
func foreign(n int) simulator.Fault {
	all := simulator.Faults()
	return all[n%len(all)]
}

// sleep sleeps until the context ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx) //nolint:wrapcheck // as net/http does
	}
}

// begun sends an answer up to a place.
func begun(rw http.ResponseWriter, answer *httptest.ResponseRecorder, to int) {
	for name, values := range answer.Header() {
		rw.Header()[name] = values
	}
	rw.WriteHeader(answer.Code)
	_, _ = rw.Write(answer.Body.Bytes()[:to]) // a client that has gone away
}

// drip sends an answer that takes its time at a place: comments where they may stand,
// else one byte after the other.
func (w *world) drip(rw http.ResponseWriter, r *http.Request, answer *httptest.ResponseRecorder, at int, d time.Duration) {
	doc := answer.Body.Bytes()
	inValue := false
	if end := bytes.IndexByte(doc[at:], '<'); end >= 0 && !bytes.Contains(doc[at:at+end], []byte("]]>")) {
		at += end
	}
	if open := bytes.LastIndex(doc[:at], []byte("<![CDATA[")); open >= 0 && !bytes.Contains(doc[open:at], []byte("]]>")) {
		inValue = true
	}
	begun(rw, answer, at)
	for passed := time.Duration(0); passed < d; passed += 20 * time.Second {
		w.pause(r.Context(), 20*time.Second)
		piece := []byte("<!-- keep-alive -->")
		if inValue && at < len(doc) {
			piece = doc[at : at+1]
			at++
		}
		if _, err := rw.Write(piece); err != nil {
			return
		}
	}
	_, _ = rw.Write(doc[at:]) // a client that has gone away
}

// spoilAt spoils an answer at the parent that has a mark; it tells whether it is in it.
func (w *world) spoilAt(a *acting, rw http.ResponseWriter, r *http.Request, answer *httptest.ResponseRecorder, mark string) bool {
	at := bytes.Index(answer.Body.Bytes(), []byte(mark))
	if at < 0 {
		return false
	}
	switch a.N / 7 % 6 {
	case 0:
		doc := slices.Insert(bytes.Clone(answer.Body.Bytes()), at, []byte("</WRONG>")...)
		answer.Body = bytes.NewBuffer(doc)
		give(rw, answer)
	case 1:
		begun(rw, answer, at)
		panic(http.ErrAbortHandler)
	case 2:
		begun(rw, answer, at)
		<-r.Context().Done()
	case 3:
		w.drip(rw, r, answer, at+len(mark), 50*time.Minute)
	case 4:
		rw.WriteHeader(http.StatusInternalServerError)
		fmt.Fprint(rw, "<SIMPLE_RETURN><RESPONSE><DATETIME>2026-11-01T12:00:00Z</DATETIME><CODE>999</CODE><TEXT>Internal error</TEXT></RESPONSE></SIMPLE_RETURN>")
	default:
		begun(rw, answer, at)
	}
	return true
}

// edit edits an entry of the KnowledgeBase. That shows up to nine hours later, each entry by
// a delay of its own: an edit never shows before an older one.
func (w *world) edit(index int, kind simulator.EditKind) {
	now := time.Now().Truncate(time.Second)
	w.estate.Knowledge.Edit(simulator.Edit{Index: index, Kind: kind, At: now, Visible: now.Add(time.Duration(index*97%540) * time.Minute)})
}

// says puts elements in front of an answer's list, or in its end; an empty text changes what
// its link says. It reports whether there was a place for that.
func says(answer *httptest.ResponseRecorder, text string, front bool) bool {
	doc := bytes.Clone(answer.Body.Bytes())
	at := bytes.LastIndex(doc, []byte("</RESPONSE>"))
	if front {
		at = bytes.Index(doc, []byte("</DATETIME>")) + len("</DATETIME>")
	}
	switch {
	case at < 0, !bytes.Contains(doc, []byte("</RESPONSE>")), text == "" && !linkText.Match(doc):
		return false
	case text == "":
		doc = linkText.ReplaceAll(doc, []byte("<TEXT>Internal error: some were left out.</TEXT>"))
	default:
		doc = slices.Insert(doc, at, []byte(text)...)
	}
	answer.Body = bytes.NewBuffer(doc)
	return true
}

// linkText is what the warning says that goes with a link to more.
var linkText = regexp.MustCompile(`<TEXT>[^<]*(<!\[CDATA\[[^\]]*\]\]>)?[^<]*</TEXT>`)

// shortened takes parents of an answer away: those at its end, or some anywhere.
func shortened(answer *httptest.ResponseRecorder, n int, end bool) {
	for _, parent := range []string{"HOST", "VULN", "ID"} {
		first, last := []byte("<"+parent+">"), []byte("</"+parent+">")
		doc := answer.Body.Bytes()
		from, to := bytes.Index(doc, first), bytes.LastIndex(doc, last)
		if from < 0 || to < from {
			continue
		}
		to += len(last)
		list := bytes.SplitAfter(doc[from:to], last)
		list = list[:len(list)-1] // what is behind the last is empty
		if end {
			list = list[:n%len(list)]
		} else {
			at := -1
			list = slices.DeleteFunc(list, func([]byte) bool { at++; return n>>(at%7)&1 == 0 })
		}
		answer.Body = bytes.NewBuffer(slices.Concat(doc[:from], bytes.Join(list, nil), doc[to:]))
		return
	}
}

// shuffled changes the order of an answer's hosts.
func shuffled(answer *httptest.ResponseRecorder, change func(hosts [][]byte) [][]byte) {
	doc := answer.Body.Bytes()
	first := bytes.Index(doc, []byte("<HOST>"))
	last := bytes.LastIndex(doc, []byte("</HOST>"))
	if first < 0 || last < 0 {
		return
	}
	last += len("</HOST>")
	hosts := bytes.SplitAfter(doc[first:last], []byte("</HOST>"))
	hosts = hosts[:len(hosts)-1] // what is behind the last is empty
	answer.Body = bytes.NewBuffer(slices.Concat(doc[:first], bytes.Join(change(hosts), nil), doc[last:]))
}

// bodyHas tells whether a request's body holds a text.
func (w *world) bodyHas(r *http.Request, text string) bool {
	content := drained(r)
	return strings.Contains(string(plain(r, content)), text)
}
