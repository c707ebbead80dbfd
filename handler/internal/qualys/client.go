// Package qualys reads datasets from the Qualys API: one client that keeps the
// subscription's limits, and one streaming decoder that turns list documents
// into records.
//
// No answer is ever whole in memory, and no request leaves the configured
// origin. Every failure of Qualys or of the network is an *Error that says
// whether to ask again and when; the package itself repeats a request only
// once, with credentials read anew.
// Azure does not enter here.
package qualys

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/redact"
)

const (
	// DefaultIdleTimeout ends an answer that stays silent. Qualys sends
	// keep-alive comments while it prepares a slow answer.
	DefaultIdleTimeout = 2 * time.Minute
	// DefaultFirstByteTimeout is how long the answer's header may take. First
	// bytes after half a minute are normal, and a call given up at our side
	// goes on at theirs and keeps its slot.
	DefaultFirstByteTimeout = 5 * time.Minute
	// maxQuery is the longest query sent by GET, in bytes; Qualys answers
	// longer ones with 414.
	maxQuery = 2000
)

// Credentials are read for every request, so that they can change.
type Credentials interface {
	// Login returns the current user and password.
	Login() (user, password string)
	// Reload reads them anew from where they are kept. It reports false when
	// that brings nothing new.
	Reload(ctx context.Context) (bool, error)
}

// A Client asks one Qualys API server.
type Client struct {
	// Origin is scheme and host of the API server.
	Origin *url.URL
	// Credentials of the account.
	Credentials Credentials
	// HTTP sends the requests; see NewHTTPClient.
	HTTP *http.Client
	// UserAgent names the product and its version.
	UserAgent string
	// IdleTimeout; DefaultIdleTimeout if zero.
	IdleTimeout time.Duration
	// Now is the clock; time.Now if nil.
	Now func() time.Time

	// Reserve is the share of calls to leave to others, in percent.
	Reserve int
	// Memory is shared by all processes that ask with this account; nil: what is met is
	// known to this process only.
	Memory Memory
	// Redactor cuts what it knows out of what Qualys, or a proxy, says. It is told the
	// logins that are used. Nil: the client has one of its own.
	Redactor *redact.Redactor
	// Proxy tells what a request goes through, as that of HTTP's transport does; nil:
	// nothing.
	Proxy func(*http.Request) (*url.URL, error)

	limits   limits
	standing standing
	own      redact.Redactor
}

// redactor is the one in use.
func (c *Client) redactor() *redact.Redactor { return cmp.Or(c.Redactor, &c.own) }

// NewHTTPClient returns a client for the Qualys API: proxy from the
// environment, gzip, no redirects, no total timeout.
func NewHTTPClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			ForceAttemptHTTP2:     true,
			MaxIdleConnsPerHost:   2,
			IdleConnTimeout:       90 * time.Second,
			TLSHandshakeTimeout:   30 * time.Second,
			ResponseHeaderTimeout: DefaultFirstByteTimeout,

			OnProxyConnectResponse: refuseProxy,
		},
		// Following one would send the credentials elsewhere, or in clear.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// ask sends one request and lets read take the document of the answer, whose
// status was 200. It waits for its turn. sent counts the requests that left; at
// is the answer's Date, zero if it had none.
func (c *Client) ask(ctx context.Context, path string, params url.Values, sent func(), read func(doc io.Reader, at time.Time) error) error {
	memoryErr := c.recall(ctx)
	err := c.checkLogin(ctx)
	if err == nil {
		err = c.inTurn(ctx, path, params, sent, read)
	}
	memoryErr = cmp.Or(c.keep(ctx), memoryErr)
	if err != nil && memoryErr != nil {
		err = fmt.Errorf("%w; %w", err, memoryErr)
	}
	return err
}

// inTurn is ask in the turn of the call. Where the login is refused, and has changed
// meanwhile, it is made again with the new one.
func (c *Client) inTurn(ctx context.Context, path string, params url.Values, sent func(), read func(doc io.Reader, at time.Time) error) error {
	leave, err := c.limits.enter(ctx, path, c.now)
	if err != nil {
		return err
	}
	defer leave()
	changed, err := c.withLogin(ctx, path, params, sent, read)
	if changed {
		_, err = c.withLogin(ctx, path, params, sent, read)
	}
	return err
}

// withLogin makes a call with the login of now. changed says that Qualys has refused it,
// and that there is another.
func (c *Client) withLogin(ctx context.Context, path string, params url.Values, sent func(), read func(doc io.Reader, at time.Time) error) (changed bool, err error) {
	done, err := c.trial(ctx)
	if err != nil {
		return false, err
	}
	defer done()
	used, began := c.login(), c.now()
	err = c.once(ctx, path, params, used, sent, read)
	if e := asError(err); e != nil && e.Kind == BadLogin {
		defer c.distrust(used)()
		var reloadErr error
		if changed, reloadErr = c.changedSince(ctx, used); reloadErr != nil {
			err = fmt.Errorf("%w; reading the credentials again: %w", err, reloadErr)
		}
	}
	cause := context.Cause(ctx)
	if e := asError(err); e != nil && (cause == nil || e.Status != 0) {
		c.reject(used, began, path, e) // other processes may still have it, too
	}
	if err != nil && cause != nil {
		return false, cause // an end from outside shows as a broken answer
	}
	return changed, err
}

// trialTime is how long others wait for the first call with a login, before another of them
// tries it: as long as its answer may take to begin. Until then nothing is said of the
// login, and a refusal may still come.
const trialTime = DefaultFirstByteTimeout

// trial lets one call alone try a login that this process does not know to be good:
// several would be as many bad logins, and Qualys locks an account after some. done is to
// be called when the call has ended.
func (c *Client) trial(ctx context.Context) (done func(), err error) {
	s := &c.standing
	for {
		current := c.login()
		s.mu.Lock()
		good, trying := s.good == current, s.trying
		s.mu.Unlock()
		if good {
			return func() {}, nil
		}
		// Another call may have been refused while this one waited for its turn.
		if err := c.checkLogin(ctx); err != nil {
			return nil, err
		}
		if trying == nil {
			if mine := s.try(); mine != nil {
				return func() { s.tried(mine) }, nil
			}
			continue
		}
		patience := time.NewTimer(trialTime)
		select {
		case <-trying:
			patience.Stop()
		case <-patience.C:
			if mine := s.insteadOf(trying); mine != nil {
				return func() { s.tried(mine) }, nil
			}
		case <-ctx.Done():
			patience.Stop()
			return nil, context.Cause(ctx) //nolint:wrapcheck // an end from outside
		}
	}
}

// try begins a trial; nil: another goes on.
func (s *standing) try() chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trying != nil {
		return nil
	}
	s.trying = make(chan struct{})
	return s.trying
}

// insteadOf begins a trial in the place of another; nil: that has ended.
func (s *standing) insteadOf(trying chan struct{}) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trying != trying {
		return nil
	}
	close(trying)
	s.trying = make(chan struct{})
	return s.trying
}

// tried ends a trial, unless that was done.
func (s *standing) tried(trying chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trying == trying {
		close(trying)
		s.trying = nil
	}
}

// distrust lets others wait with a login that was good and was refused, until what to do
// about it is known: reading it anew may take its time. done is to be called then.
func (c *Client) distrust(as login) (done func()) {
	s := &c.standing
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.good == as {
		s.good = login{}
	}
	if s.trying != nil {
		return func() {} // the refused call's own, or another
	}
	mine := make(chan struct{})
	s.trying = mine
	return func() { s.tried(mine) }
}

// vouch notes that Qualys answers a login.
func (c *Client) vouch(as login) {
	s := &c.standing
	s.mu.Lock()
	s.good = as
	trying := s.trying
	s.mu.Unlock()
	if trying != nil {
		s.tried(trying)
	}
}

// once sends one request and reads its answer. A refusal may stand in a document
// with status 200.
func (c *Client) once(ctx context.Context, path string, params url.Values, as login, sent func(), read func(doc io.Reader, at time.Time) error) error {
	a, err := c.try(ctx, path, params, as, sent)
	if err != nil {
		return c.clean(err)
	}
	c.limits.answered()
	err = read(a, a.at)
	_ = a.Close() // read to its end, or given up: nothing can be lost here
	if e := asError(err); e != nil {
		e.waitAtLeast(a.retryAfter)
	}
	if err == nil {
		c.accept(as)
	}
	return c.clean(err)
}

// changedSince tells whether there is another login than the one that was used,
// perhaps because somebody else has just read it anew.
func (c *Client) changedSince(ctx context.Context, used login) (bool, error) {
	if c.login() != used {
		return true, nil
	}
	_, err := c.Credentials.Reload(ctx)
	return c.login() != used, err
}

// An answer is an answer with status 200 whose document has yet to be read.
type answer struct {
	io.ReadCloser
	at         time.Time     // by its Date header; zero if there was none
	retryAfter time.Duration // by its header
}

// login is a user and a password.
type login struct{ user, password string }

func (c *Client) login() login {
	user, password := c.Credentials.Login()
	c.redactor().KnowLogin(user, password)
	return login{user, password}
}

// clean cuts secrets out of an error.
func (c *Client) clean(err error) error {
	if e := asError(err); e != nil {
		e.Text, e.Code, e.Err = c.redactor().Text(e.Text), c.redactor().Text(e.Code), c.redactor().Error(e.Err)
	}
	return c.redactor().Error(err)
}

// cleanPage cuts secrets out of what an answer says beside its records.
func (c *Client) cleanPage(p record.Page) record.Page {
	p.Warning, p.Doubt = c.redactor().Text(p.Warning), c.redactor().Text(p.Doubt)
	return p
}

const (
	// loginRest is how long a login that was refused is left alone; twice as
	// long each time, up to loginRestMost. Qualys locks an account after some
	// bad logins, but one odd refusal must not stop the connector for good.
	loginRest     = time.Hour
	loginRestMost = 24 * time.Hour
)

// secret is a login as one text.
func (l login) secret() string { return l.user + "\x00" + l.password }

// checkLogin refuses a login that Qualys has refused before, unless it can be
// read anew, and a road that a proxy has closed.
func (c *Client) checkLogin(ctx context.Context) error {
	if err := c.closedRoad(); err != nil {
		return err
	}
	if c.rejected() == nil {
		return nil
	}
	if _, err := c.Credentials.Reload(ctx); err != nil {
		return fmt.Errorf("read the credentials again: %w", err)
	}
	if r := c.rejected(); r != nil {
		return &Error{Kind: BadLogin, Text: "the credentials are those that Qualys has refused before; they are tried again in " + r.Until.Sub(c.now()).Round(time.Second).String()}
	}
	return nil
}

// rejected is the refusal of the current login, while it rests.
func (c *Client) rejected() *refused {
	current := c.login()
	s := &c.standing
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logins.resting(current.secret(), c.now())
}

// closedRoad refuses a call through a proxy that has refused one before, as long as it
// is the same proxy, with the same login.
func (c *Client) closedRoad() error {
	proxy := c.proxy(c.toOrigin())
	if proxy == nil {
		return nil
	}
	s := &c.standing
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.proxies.resting(proxy.String(), c.now())
	if r == nil {
		return nil
	}
	return &Error{Kind: BadProxy, Text: r.Text + "; it is tried again in " + r.Until.Sub(c.now()).Round(time.Second).String()}
}

// toOrigin is a request as far as the choice of a proxy needs it.
func (c *Client) toOrigin() *http.Request { return &http.Request{URL: c.Origin} }

// reject notes what the failure of a call, which began when, says of calls to come: a
// refused login or proxy, a limit.
func (c *Client) reject(used login, began time.Time, path string, e *Error) {
	s, now := &c.standing, c.now()
	s.mu.Lock()
	switch e.Kind {
	case BadLogin:
		text := e.Error()
		s.good = login{}
		s.note(func(m *memory) { m.Logins = m.Logins.again(used.secret(), text, began, now) })
	case BadProxy:
		if proxy := c.proxy(c.toOrigin()); proxy != nil {
			text := e.Text
			s.note(func(m *memory) { m.Proxies = m.Proxies.again(proxy.String(), text, began, now) })
		}
	}
	s.mu.Unlock()
	c.limits.failed(path, e, now)
}

// accept forgets that a login, or the road, was refused: they are good.
func (c *Client) accept(used login) {
	c.vouch(used)
	s := &c.standing
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.logins.of(used.secret()) != nil {
		s.note(func(m *memory) { m.Logins = m.Logins.without(used.secret()) })
	}
	if len(s.proxies) > 0 { // whichever it is, the road is open
		s.note(func(m *memory) { m.Proxies = nil })
	}
}

func (c *Client) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

func (c *Client) try(ctx context.Context, path string, params url.Values, as login, sent func()) (*answer, error) {
	ctx, stands := traceRoad(ctx)
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := c.request(ctx, path, params, as)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	sent()
	resp, err := c.HTTP.Do(req) //nolint:bodyclose // the idleReader closes it
	if err != nil {
		cause := context.Cause(ctx)
		cancel(nil)
		if cause != nil {
			return nil, cause
		}
		if !stands.Load() {
			return nil, c.roadError(req, err)
		}
		return nil, &Error{Kind: Unavailable, Err: withoutURL(err)}
	}
	idle := c.IdleTimeout
	if idle == 0 {
		idle = DefaultIdleTimeout
	}
	body := newIdleReader(resp.Body, idle, cancel)
	c.limits.note(path, resp.Header, c.Reserve, c.now())
	if resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusTooManyRequests {
		// The status says it all: the text must not keep it from being heard.
		defer time.AfterFunc(errorTime, func() { cancel(errIdle) }).Stop()
	}
	if err := c.check(resp, body); err != nil {
		_ = body.Close() // given up: the reason is known already
		return nil, err
	}
	a := &answer{ReadCloser: &vouching{body, 0, func() { c.vouch(as) }}, retryAfter: retryAfter(c.dated(resp.Header))}
	if at, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		a.at = at
	}
	return a, nil
}

func (c *Client) request(ctx context.Context, path string, params url.Values, as login) (*http.Request, error) {
	u := *c.Origin
	u.Path = path
	query := params.Encode()
	method, body := http.MethodGet, io.Reader(nil)
	if len(query) > maxQuery {
		method, body = http.MethodPost, strings.NewReader(query)
	} else {
		u.RawQuery = query
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	req.SetBasicAuth(as.user, as.password)
	req.Header.Set("X-Requested-With", c.UserAgent) // required on every FO call
	req.Header.Set("User-Agent", c.UserAgent)
	req.Header.Set("Accept", "application/xml, text/xml")
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	return req, nil
}

// check turns every answer but a 200 that may hold a document into an error.
func (c *Client) check(resp *http.Response, body io.Reader) error {
	if resp.StatusCode >= 300 && resp.StatusCode < 400 {
		to := "nowhere"
		if u, err := resp.Location(); err == nil {
			to = u.Host
		}
		return &Error{Kind: Refused, Status: resp.StatusCode, Text: fmt.Sprintf("it redirects to %.100s, and credentials follow no redirect: check uri", to)}
	}
	if resp.StatusCode != http.StatusOK {
		return errorAnswer(resp.StatusCode, c.dated(resp.Header), body)
	}
	if t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err == nil && t == "text/html" {
		return &Error{Kind: Broken, Status: resp.StatusCode, Text: textHTML}
	}
	return nil
}

// dated is a header with a Date: where the answer has none, our own clock's.
func (c *Client) dated(header http.Header) http.Header {
	if header.Get("Date") == "" {
		header = header.Clone()
		header.Set("Date", c.now().UTC().Format(http.TimeFormat))
	}
	return header
}

// Limits tells what the headers of the last answer of each endpoint said, by
// its path.
func (c *Client) Limits() map[string]record.CallLimits { return c.limits.all() }

// number reads the first header of these that is there; -1 if none is a number.
func number(header http.Header, names ...string) int {
	for _, name := range names {
		if n, err := strconv.Atoi(strings.TrimSpace(header.Get(name))); err == nil && n >= 0 {
			return n
		}
	}
	return -1
}

// withoutURL drops the URL from a transport error: it adds nothing but a query
// that makes the message hard to read.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// vouching lets an answer vouch for a login when it is longer than any refusal in a
// document with status 200.
type vouching struct {
	io.ReadCloser
	read  int
	vouch func()
}

// longestRefusal is longer than those, in bytes.
const longestRefusal = 16 << 10

func (v *vouching) Read(p []byte) (int, error) {
	n, err := v.ReadCloser.Read(p)
	if v.read <= longestRefusal {
		if v.read += n; v.read > longestRefusal {
			v.vouch()
		}
	}
	return n, err //nolint:wrapcheck // the reader's own
}

// errorTime is how long the text of an error may take to come.
const errorTime = 10 * time.Second

// errIdle is the cause of a request that was ended for its silence.
var errIdle = errors.New("no byte arrived in time")

// idleReader ends a request whose answer stays silent.
type idleReader struct {
	body   io.ReadCloser
	idle   time.Duration
	timer  *time.Timer
	cancel context.CancelCauseFunc
	fired  chan struct{}
}

func newIdleReader(body io.ReadCloser, idle time.Duration, cancel context.CancelCauseFunc) *idleReader {
	r := &idleReader{body: body, idle: idle, cancel: cancel, fired: make(chan struct{})}
	r.timer = time.AfterFunc(idle, func() {
		close(r.fired)
		cancel(errIdle)
	})
	r.timer.Stop()
	return r
}

// Read waits for idle at most. The time runs only here: a reader that is held
// up by a slow destination is no silence of Qualys.
func (r *idleReader) Read(p []byte) (int, error) {
	r.timer.Reset(r.idle)
	n, err := r.body.Read(p)
	r.timer.Stop()
	if err != nil && !errors.Is(err, io.EOF) {
		select {
		case <-r.fired:
			err = fmt.Errorf("%w: %s of silence", errIdle, r.idle)
		default:
		}
		err = &Error{Kind: Unavailable, Text: "the answer broke off", Err: err}
	}
	return n, err
}

func (r *idleReader) Close() error {
	r.timer.Stop()
	defer r.cancel(nil)
	return r.body.Close()
}
