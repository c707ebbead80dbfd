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
	memoryErr, err := c.mayAsk(ctx, path)
	if err == nil {
		err = c.inTurn(ctx, path, params, sent, read)
	}
	return noting(err, cmp.Or(c.keep(ctx), memoryErr))
}

// mayAsk refuses a call that Qualys is known to refuse, to this process or another one. That
// the memory of the others cannot be read is no reason.
func (c *Client) mayAsk(ctx context.Context, path string) (memoryErr, err error) {
	memoryErr = c.recall(ctx)
	if err = c.checkLogin(ctx); err == nil {
		err = c.limits.resting(path, c.now())
	}
	return memoryErr, err
}

// noting adds to an error that the memory has failed.
func noting(err, memoryErr error) error {
	if err != nil && memoryErr != nil {
		return fmt.Errorf("%w; %w", err, memoryErr)
	}
	return err
}

// inTurn is ask in the turn of the call. Where the login is refused, and has changed
// meanwhile, it is made again with the new one.
func (c *Client) inTurn(ctx context.Context, path string, params url.Values, sent func(), read func(doc io.Reader, at time.Time) error) error {
	leave, waited, err := c.limits.enter(ctx, path)
	if err != nil {
		return err
	}
	defer leave()
	if waited { // for minutes, perhaps, in which others may have met something
		if memoryErr, err := c.mayAsk(ctx, path); err != nil {
			return noting(err, memoryErr)
		}
	}
	changed, err := c.withLogin(ctx, path, params, sent, read)
	if changed {
		_, err = c.withLogin(ctx, path, params, sent, read)
	}
	return err
}

// once sends one request and reads its answer. A refusal may stand in a document
// with status 200.
func (c *Client) once(ctx context.Context, path string, params url.Values, as use, sent func(), read func(doc io.Reader, at time.Time) error) error {
	a, err := c.try(ctx, path, params, as, sent)
	if err != nil {
		return c.clean(err)
	}
	c.limits.answered()
	err = read(a, a.at)
	_ = a.Close() // read to its end, or given up: nothing can be lost here
	if e := asError(err); e != nil {
		e.waitAtLeast(a.asked)
	}
	if err == nil {
		c.accept(as)
	}
	return c.clean(err)
}

// An answer is an answer with status 200 whose document has yet to be read.
type answer struct {
	io.ReadCloser
	at    time.Time     // by its Date header; zero if there was none
	asked time.Duration // how long its header asks to wait, if it is no answer
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

func (c *Client) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

func (c *Client) try(ctx context.Context, path string, params url.Values, as use, sent func()) (*answer, error) {
	ctx, stands := traceRoad(ctx)
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := c.request(ctx, path, params, as.login)
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
	a := &answer{ReadCloser: &vouching{body, 0, func() { c.vouch(as) }}, asked: askedFor(c.dated(resp.Header))}
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
