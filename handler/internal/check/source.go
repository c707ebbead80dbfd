package check

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
)

// Titles of the steps of the Qualys side.
const (
	titleNetwork = "Qualys: network"
	titleServer  = "Qualys: API server"
	titleLogin   = "Qualys: credentials"
	titleAccess  = "Qualys: API access"
	titleVM      = "Qualys: VM detections"
	titleLimits  = "Qualys: limits"
	titleClock   = "Qualys: clock"
	titleHosts   = "Qualys: hosts"
	titleKB      = "Qualys: KnowledgeBase"
)

// test tests the Qualys side. One call for a single detection tells most of it.
func (s *Source) test(ctx context.Context, b *bench) {
	if s == nil {
		b.rest("the settings", 0)
		return
	}
	step, cancel := b.begin(ctx)
	network := s.network(step)
	cancel()
	b.end("network", titleNetwork, network)
	if network.result == Failed {
		b.rest("the network", 1)
		return
	}

	step, cancel = b.begin(ctx)
	seen := &sighting{}
	_, err := s.Detections.Page(step, record.Query{Size: 1}, seen)
	err = timedOut(step, err)
	cancel()
	blame, cause := blame(err, seen.requests)
	b.chain(blame, cause, seen)
	b.end("limits", titleLimits, s.limits(blame, cause))
	b.end("clock", titleClock, clock(seen.at, b.clock.Now()))
	switch blame {
	case "server", "login", "access", "slow":
		b.end("hosts", titleHosts, skipped("what failed above"))
		b.end("knowledgebase", titleKB, skipped("what failed above"))
		return
	}
	if blame == "vm" && cause.Wrong() {
		b.end("hosts", titleHosts, skipped("filterParameters"))
	} else {
		step, cancel = b.begin(ctx)
		asked := &sighting{}
		ids, err := s.Detections.IDs(step, record.Query{}, maxHosts+1, asked.Tally)
		b.end("hosts", titleHosts, asked.orBusy(hosts(len(ids), timedOut(step, err))))
		cancel()
	}
	step, cancel = b.begin(ctx)
	asked := &sighting{}
	err = s.KnowledgeBase.Permitted(step, asked.Tally)
	b.end("knowledgebase", titleKB, asked.orBusy(s.knowledgeBase(timedOut(step, err))))
	cancel()
}

// sighting is a sink that only looks.
type sighting struct {
	at       time.Time
	hosts    int
	requests int64 // that left
}

var _ record.Sink = (*sighting)(nil)

func (s *sighting) Begin(at time.Time) error    { s.at = at; return nil }
func (s *sighting) Record(*record.Record) error { return nil }
func (s *sighting) Done(uint64) error           { s.hosts++; return nil }
func (s *sighting) Tally(t record.Tally)        { s.requests += t.Requests }
func (s *sighting) Doubt() error                { return nil }

// busyText is what is said where no request left in time: this process makes one
// call of an endpoint at a time.
const busyText = "a run that is going on has the turn at Qualys, and does not leave it in time"

// slowText is what is said where an answer takes longer than a check can wait.
const slowText = "connected, but no answer yet: Qualys' first one may take minutes"

const adviceBusy = "nothing: check again when it has ended, or see on the status page that it gets on"

// orBusy is v, unless the time was up before it was this call's turn.
func (s *sighting) orBusy(v verdict) verdict {
	if v.detail == slowText && s.requests == 0 {
		return warning(busyText, adviceBusy)
	}
	return v
}

// steps of the Qualys side, in order.
var sourceSteps = []struct{ name, title string }{
	{"network", titleNetwork}, {"server", titleServer}, {"login", titleLogin}, {"access", titleAccess}, {"vm", titleVM},
	{"limits", titleLimits}, {"clock", titleClock}, {"hosts", titleHosts}, {"knowledgebase", titleKB},
}

// rest skips the steps from the n-th on.
func (b *bench) rest(first string, n int) {
	for _, s := range sourceSteps[n:] {
		b.end(s.name, s.title, skipped(first))
	}
}

// network looks the name up, connects, and checks the certificate.
func (s *Source) network(ctx context.Context) verdict {
	if s.Proxy != nil {
		return ok("through the proxy %s; the next step tells whether it lets requests pass", s.Proxy.Host)
	}
	host, port := s.Origin.Hostname(), cmp.Or(s.Origin.Port(), map[string]string{"https": "443", "http": "80"}[s.Origin.Scheme])
	addresses, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return failed(fmt.Sprintf("the name %s cannot be looked up: %v", host, timedOut(ctx, err)),
			"check uri: the console shows the API server's name under Help, About; if it is right, check the DNS of the app's virtual network")
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return failed(fmt.Sprintf("%s (%s) does not take a connection: %v", host, strings.Join(addresses, ", "), timedOut(ctx, err)),
			"let the app out to it on port "+port+": virtual network, firewall, or an outbound rule")
	}
	defer conn.Close() //nolint:errcheck // nothing was sent
	if s.Origin.Scheme != "https" {
		return ok("%s answers; not encrypted, which is allowed on this machine only", s.Origin.Host)
	}
	client := tls.Client(conn, &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12})
	if err := client.HandshakeContext(ctx); err != nil {
		return failed(fmt.Sprintf("no encrypted connection to %s: %v", host, timedOut(ctx, err)), adviceTLS(err))
	}
	state := client.ConnectionState()
	return ok("%s at %s, %s", host, strings.Join(addresses, ", "), tls.VersionName(state.Version))
}

func adviceTLS(err error) string {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	switch {
	case errors.As(err, &unknown):
		return "somebody in between opens the encryption, as some proxies do: let qualysapi pass, or name the proxy's certificate in SSL_CERT_FILE"
	case errors.As(err, &name):
		return "the server answers for another name: check uri"
	}
	return "check uri, and what stands in between"
}

// blame finds the step that an error of the detection call belongs to; empty for
// none. sent is how many requests left.
func blame(err error, sent int64) (step string, cause *qualys.Error) {
	switch {
	case err == nil:
		return "", nil
	case errors.Is(err, errTime) && sent == 0:
		return "busy", &qualys.Error{Err: err}
	case errors.Is(err, errTime):
		return "slow", &qualys.Error{Err: err}
	case !errors.As(err, &cause):
		return "server", &qualys.Error{Err: err}
	}
	switch e := cause; {
	case e.Code == "" && (e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden):
		return "server", e // Qualys gives a code: it is somebody else who refuses
	case e.Kind == qualys.BadLogin, e.Code == "2001", e.Code == "2002", e.Code == "2003", e.Code == "2011":
		return "login", e
	case e.Kind == qualys.Limited:
		return "limits", e
	case e.Empty():
		return "access", e
	case e.Kind == qualys.Forbidden, e.Wrong():
		return "vm", e
	}
	return "server", cause
}

// chain ends the steps that the detection call tells of: those before the one to
// blame went well, those behind it were not tried.
func (b *bench) chain(blame string, cause *qualys.Error, seen *sighting) {
	good := map[string]string{
		"server": "it answers as the API does",
		"login":  "Qualys takes them",
		"access": "the account may use the API",
		"vm":     "the account may read them",
	}
	if seen.hosts == 0 {
		good["vm"] = "the account may read them; none match filterParameters"
	}
	reached := true
	for _, s := range sourceSteps[1:5] {
		switch {
		case s.name == blame:
			b.end(s.name, s.title, failed(cause.Error(), advice(s.name, cause)))
			reached = false
		case blame == "busy":
			b.end(s.name, s.title, verdict{Skipped, "not tried: " + busyText, ""})
		case blame == "slow" && s.name == "server":
			b.end(s.name, s.title, warning(slowText, "check again; if runs do not complete either, see what stands in between"))
		case blame == "slow":
			b.end(s.name, s.title, verdict{Skipped, "not known: no answer in time", ""})
		case !reached:
			b.end(s.name, s.title, skipped("what failed above"))
		case cause != nil && (seen.requests == 0 || blame == "limits" && (s.name == "vm" || s.name == "access")):
			b.end(s.name, s.title, verdict{Skipped, "not tried: it is a time to wait for, see below", ""})
		default:
			b.end(s.name, s.title, ok("%s", good[s.name]))
		}
	}
}

// advice is what to do where the error itself does not say.
func advice(step string, e *qualys.Error) string {
	switch {
	case step == "server" && (e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden):
		return "let requests to the API server through: it is no answer of Qualys, but of a proxy or firewall that stands in between"
	case step == "server" && e.Kind == qualys.Unavailable && e.Status == http.StatusServiceUnavailable:
		return "nothing: Qualys is in maintenance; the connector goes on by itself"
	case step == "server" && e.Kind == qualys.Unavailable:
		return "check what stands in between; if nothing does, Qualys is down, and the connector goes on by itself"
	case step == "server":
		return "check uri: it has to be the API server, qualysapi and the name of your platform, not the console (qualysguard) or the gateway; the console shows it under Help, About"
	case step == "access":
		return "switch on API access in the user's profile in the Qualys console"
	case step == "vm" && e.Kind == qualys.Forbidden:
		return "give the account the role Reader or above, and see that the subscription has a licence for VM"
	case step == "vm":
		return "correct filterParameters: the text names the parameter"
	case e.Kind == qualys.BadLogin:
		return "log in to the Qualys console with this user and password; if that works, set apiUsername and apiPassword, or the secrets that they refer to, anew"
	}
	return "set it right in the Qualys console; the text says what"
}

// limits tells how many calls are left.
func (s *Source) limits(blame string, cause *qualys.Error) verdict {
	l := s.Detections.CallLimits()
	switch {
	case blame == "busy":
		return warning(busyText, adviceBusy)
	case blame == "limits":
		return warning(cause.Error(), "nothing: runs wait as long as Qualys asks. If it stays so, see which other tools use the subscription's calls")
	case l == record.NoCallLimits && blame != "":
		return skipped("what failed above")
	case l == record.NoCallLimits:
		return warning("the answer does not tell of limits", "nothing, unless a proxy removes headers: those of a standard subscription are kept")
	case l.Calls > 0 && l.Remaining >= 0 && l.Remaining*10 < l.Calls:
		return warning(fmt.Sprintf("%d of %d calls are left in %s", l.Remaining, l.Calls, window(l)), "see which other tools use the subscription's calls; a larger truncation_limit in filterParameters needs fewer")
	}
	return ok("%d of %d calls are left in %s; %d at once", l.Remaining, l.Calls, window(l), l.Concurrent)
}

func window(l record.CallLimits) string {
	return (time.Duration(max(l.WindowSec, 0)) * time.Second).String()
}

// clockWarning is how far clocks may be apart without a word.
const clockWarning = 5 * time.Minute

// clock compares Qualys' clock with this machine's.
func clock(there, here time.Time) verdict {
	if there.IsZero() {
		return skipped("what failed above")
	}
	ahead := there.Sub(here).Round(time.Second)
	text := fmt.Sprintf("Qualys' clock says %s, this machine's %s", there.UTC().Format(time.RFC3339), here.UTC().Format(time.RFC3339))
	switch {
	case ahead > ingest.MaxApart:
		return failed(text, "set this machine's clock right: nothing is read while they are over a day apart")
	case ahead.Abs() > clockWarning:
		return warning(text, "set this machine's clock right: windows end at the earlier of the two, and signatures of the HTTP Data Collector API fail beyond 15 minutes")
	}
	return ok("%s apart", ahead.Abs())
}

// maxHosts is how many hosts are counted: the list has 20 bytes of each.
const maxHosts = 100_000

func hosts(n int, err error) verdict {
	var e *qualys.Error
	switch {
	case errors.As(err, &e) && e.Kind == qualys.Limited:
		return warning(err.Error(), "nothing: check again later")
	case errors.As(err, &e) && e.Kind == qualys.Forbidden:
		return warning(err.Error(), "let the account list hosts, too: where the answer of one fails, the list helps to find which")
	case e != nil && e.Wrong():
		return warning(err.Error(), "nothing, if detections arrive: Qualys takes filterParameters there, and not all of them for its list of hosts")
	case errors.Is(err, errTime):
		return warning(slowText, "check again later")
	case err != nil:
		return failed(err.Error(), "check again; if it stays so, show the text to Qualys Support")
	case n == 0:
		return warning("the account sees no host", "give it the asset groups whose hosts it is to see, or another role; and check the parts of filterParameters that choose hosts")
	case n > maxHosts:
		return ok("more than %d hosts are visible", maxHosts)
	}
	return ok("%d hosts are visible: the account's role and asset groups decide, and what filterParameters says of hosts", n)
}

func (s *Source) knowledgeBase(err error) verdict {
	var e *qualys.Error
	switch {
	case err == nil:
		return ok("the subscription may download it")
	case errors.As(err, &e) && e.Kind == qualys.Limited:
		return warning(err.Error(), "nothing: check again later")
	case errors.Is(err, errTime):
		return warning(slowText, "check again later")
	case s.WithoutKnowledgeBase:
		return warning(err.Error(), "nothing, as QualysKB is off: kbSchedule is not set")
	case e != nil && e.Kind == qualys.Forbidden:
		return failed(err.Error(), "ask Qualys Support to authorise the subscription, or switch QualysKB off by removing kbSchedule; VM detections go on without it")
	}
	return failed(err.Error(), "check again; kbApiVersion may be too old or too new")
}
