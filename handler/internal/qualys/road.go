package qualys

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync/atomic"
)

// What happens on the road to Qualys, before a connection to it stands, is no answer
// of Qualys: no smaller page helps, and no host is to blame.

// proxyError is the answer of a proxy that does not let a connection pass.
type proxyError struct{ status int }

func (e *proxyError) Error() string {
	return fmt.Sprintf("the proxy answered %d %s", e.status, http.StatusText(e.status))
}

// refuseProxy is for http.Transport.OnProxyConnectResponse: the error that the
// transport makes by itself has the status' text only.
func refuseProxy(_ context.Context, _ *url.URL, _ *http.Request, answer *http.Response) error {
	if answer.StatusCode == http.StatusOK {
		return nil
	}
	return &proxyError{answer.StatusCode}
}

// traceRoad notes, in the context of a request, whether a connection stands.
func traceRoad(ctx context.Context) (traced context.Context, stands *atomic.Bool) {
	stands = &atomic.Bool{}
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { stands.Store(true) },
	}), stands
}

// proxy is what a request goes through; nil: it goes straight.
func (c *Client) proxy(r *http.Request) *url.URL {
	if c.Proxy == nil {
		return nil
	}
	u, err := c.Proxy(r)
	if err != nil {
		return nil // the transport says so, too
	}
	return u
}

// roadError explains a request that has not reached Qualys.
func (c *Client) roadError(r *http.Request, err error) *Error {
	e := &Error{Kind: Unreachable, Err: withoutURL(err)}
	proxy := c.proxy(r)
	if proxy != nil && proxy.User != nil {
		password, _ := proxy.User.Password()
		c.redactor().KnowLogin(proxy.User.Username(), password)
	}
	if proxy == nil {
		e.Text = "no connection"
		e.Advice = "check uri, DNS, and what stands in between: virtual network, firewall, an outbound rule"
		return e
	}
	name := proxy.Scheme + "://" + proxy.Host // without its login
	e.Text = "no connection through the proxy " + name
	e.Advice = "check HTTPS_PROXY, and whether the proxy lets requests to " + r.URL.Host + " pass"
	var refusal *proxyError
	switch {
	case !errors.As(err, &refusal):
	case refusal.status == http.StatusProxyAuthRequired:
		e.Kind, e.Status = BadProxy, refusal.status
		e.Advice = "the proxy wants another login: put it into HTTPS_PROXY, as in http://user:password@host:port, with %23 for # and so on; until it changes it is tried but seldom, because repeated bad logins lock accounts"
	case refusal.status < http.StatusInternalServerError:
		e.Kind, e.Status = BadProxy, refusal.status
		e.Advice = "let the proxy pass requests to " + r.URL.Host + " from this app"
	}
	return e
}
