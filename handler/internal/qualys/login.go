package qualys

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// login is a user and a password.
type login struct{ user, password string }

func (c *Client) login() login {
	user, password := c.Credentials.Login()
	c.redactor().KnowLogin(user, password)
	return login{user, password}
}

// secret is a login as one text.
func (l login) secret() string { return l.user + "\x00" + l.password }

// withLogin makes a call with the login of now. changed says that Qualys has refused it,
// and that there is another.
func (c *Client) withLogin(ctx context.Context, path string, params url.Values, sent func(), read func(doc io.Reader, at time.Time) error) (changed bool, err error) {
	used, done, err := c.trial(ctx, path)
	if err != nil {
		return false, err
	}
	defer done()
	began := c.now()
	err = c.once(ctx, path, params, use{used, began}, sent, read)
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
	switch {
	case err == nil || cause == nil:
		return changed, err
	case isVoid(err):
		return false, &voidError{cause}
	}
	return false, cause // an end from outside shows as a broken answer
}

// use is a call with a login, and when it began.
type use struct {
	login
	began time.Time
}

// trialTime is how long others wait for the first call with a login, before another of them
// tries it: as long as its answer may take to begin. Until then nothing is said of the
// login, and a refusal may still come.
const trialTime = DefaultFirstByteTimeout

// A trial is a login that one call alone tries; over is closed at its end.
type trial struct {
	of   login
	over chan struct{}
}

// trial lets one call alone try a login that this process does not know to be good:
// several would be as many bad logins, and Qualys locks an account after some. It returns
// the login to use. done is to be called when the call has ended.
func (c *Client) trial(ctx context.Context, path string) (as login, done func(), err error) {
	s := &c.standing
	var patient *trial // it has been waited for long enough
	for waited := false; ; {
		if waited { // for minutes, perhaps, in which others may have met something
			if memoryErr, err := c.mayAsk(ctx, path); err != nil {
				return login{}, nil, noting(err, memoryErr)
			}
		}
		current := c.login()
		s.mu.Lock()
		good, trying := s.good == current, s.trying
		s.mu.Unlock()
		if good {
			return current, func() {}, nil
		}
		// Another call may have been refused while this one waited for its turn.
		if err := c.checkLogin(ctx); err != nil {
			return login{}, nil, err
		}
		if c.login() != current {
			continue // read anew
		}
		if trying == nil || trying == patient {
			if mine := s.try(current, trying); mine != nil {
				return current, func() { s.tried(mine) }, nil
			}
			continue
		}
		waited = true
		patience := time.NewTimer(trialTime)
		select {
		case <-trying.over:
			patience.Stop()
		case <-patience.C:
			patient = trying
		case <-ctx.Done():
			patience.Stop()
			return login{}, nil, context.Cause(ctx) //nolint:wrapcheck // an end from outside
		}
	}
}

// try begins a trial, in the place of another if there is one; nil: a third goes on.
func (s *standing) try(as login, instead *trial) *trial {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trying != instead {
		return nil
	}
	if instead != nil {
		close(instead.over)
	}
	s.trying = &trial{as, make(chan struct{})}
	return s.trying
}

// tried ends a trial, unless that was done.
func (s *standing) tried(one *trial) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trying == one {
		close(one.over)
		s.trying = nil
	}
}

// distrust lets others wait with a login that was good and was refused, until what to do
// about it is known: reading it anew may take its time. done is to be called then.
func (c *Client) distrust(as login) (done func()) {
	s := &c.standing
	now := c.now()
	s.mu.Lock()
	s.refused = use{as, now}
	if s.good == as {
		s.good = login{}
	}
	s.mu.Unlock()
	mine := s.try(as, nil)
	if mine == nil {
		return func() {} // the refused call's own goes on, or another
	}
	return func() { s.tried(mine) }
}

// vouch notes that Qualys answers a login, in a call that began when.
func (c *Client) vouch(as use) {
	s := &c.standing
	s.mu.Lock()
	outdated := s.outdated(as)
	if !outdated {
		s.good = as.login
	}
	trying := s.trying
	s.mu.Unlock()
	if !outdated && trying != nil && trying.of == as.login {
		s.tried(trying)
	}
}

// outdated tells whether a login was refused behind the beginning of a call: that call's
// answer, which may take minutes, says nothing of it any more. mu is held.
func (s *standing) outdated(as use) bool {
	if s.refused.login == as.login && !as.began.After(s.refused.began) {
		return true
	}
	r := s.logins.of(as.secret())
	return r != nil && !as.began.After(r.last())
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
		if s.good == used {
			s.good = login{}
		}
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
func (c *Client) accept(as use) {
	c.vouch(as)
	s := &c.standing
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.logins.of(as.secret()) != nil && !s.outdated(as) {
		s.note(func(m *memory) { m.Logins = m.Logins.answered(as.secret(), as.began) })
	}
	if len(s.proxies.since(as.began)) < len(s.proxies) { // whichever it is, the road was open
		s.note(func(m *memory) { m.Proxies = m.Proxies.since(as.began) })
	}
}
