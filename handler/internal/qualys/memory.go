package qualys

import (
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"qualys-sentinel/handler/internal/turn"
)

// A Memory keeps one document for all processes that ask with the same account. A
// process may live for one run only: what Qualys has refused or asked for must outlive
// it.
type Memory interface {
	// Load returns the document; nil if there is none.
	Load(ctx context.Context) ([]byte, error)
	// Update replaces it by what change makes of it. No process writes in between; change
	// may be called several times.
	Update(ctx context.Context, change func(doc []byte) ([]byte, error)) error
}

const (
	memoryVersion = 1
	// leastKept is the shortest rest that is kept: a shorter one is over before another
	// process could read of it.
	leastKept = 5 * time.Second
)

// A memory is the document. People may read it, and delete it to let all rests end.
type memory struct {
	Version int `json:"version"`
	// Logins and Proxies were refused, and rest; those of the last refusals first.
	Logins  refusals `json:"logins,omitempty"`
	Proxies refusals `json:"proxies,omitempty"`
	// Rests are times without calls, by the path of an endpoint; "all" for every one.
	Rests map[string]kept `json:"rests,omitempty"`
}

// kept is a rest as it is kept.
type kept struct {
	Until  time.Time `json:"until"`
	Kind   Kind      `json:"kind"`
	Status int       `json:"status,omitempty"`
	Code   string    `json:"code,omitempty"`
	Text   string    `json:"text,omitempty"`
}

// allEndpoints names, among kept rests, the one of all endpoints.
const allEndpoints = "all"

// refused is a secret that was refused, by a mark that does not tell it.
type refused struct {
	// Mark is 16 bits of a slow hash of the secret, with a salt. So few tell whether
	// the secret is another now, but for one change in 65,536, and cannot confirm a
	// guess to somebody who reads the state.
	Mark  string    `json:"mark"`
	Salt  string    `json:"salt"`
	Times int       `json:"times"`
	Until time.Time `json:"until"`
	Text  string    `json:"text,omitempty"` // what was said

	known map[string]bool // answers of is, by the hash of the secret
}

// DefaultMarkRounds make a guess cost some tens of milliseconds.
const DefaultMarkRounds = 100_000

// markRounds are fewer in tests that make hundreds of marks.
var markRounds = DefaultMarkRounds

func newRefused(secret string) *refused {
	r := &refused{Salt: rand.Text()}
	r.Mark = r.mark(secret)
	return r
}

func (r *refused) mark(secret string) string {
	key, err := pbkdf2.Key(sha256.New, secret, []byte(r.Salt), markRounds, 2)
	if err != nil {
		return "" // only for key lengths that are none
	}
	return hex.EncodeToString(key)
}

// is reports whether it is this secret that was refused.
func (r *refused) is(secret string) bool {
	if r == nil {
		return false
	}
	sum := sha256.Sum256([]byte(secret))
	id := string(sum[:])
	same, ok := r.known[id]
	if !ok {
		same = r.mark(secret) == r.Mark
		if r.known == nil {
			r.known = map[string]bool{}
		}
		r.known[id] = same // for as long as the process lives
	}
	return same
}

// refusals are some of the secrets that were refused. Several may be in use at a time,
// while one is changed, or by two apps that share the state.
type refusals []*refused

// maxRefused is how many are remembered.
const maxRefused = 4

// of finds the refusal of a secret; nil if there is none.
func (l refusals) of(secret string) *refused {
	for _, r := range l {
		if r.is(secret) {
			return r
		}
	}
	return nil
}

// resting is of, while it rests.
func (l refusals) resting(secret string, now time.Time) *refused {
	if r := l.of(secret); r != nil && now.Before(r.Until) {
		return r
	}
	return nil
}

// without is the list without a secret.
func (l refusals) without(secret string) refusals {
	return slices.DeleteFunc(slices.Clone(l), func(r *refused) bool { return r.is(secret) })
}

// answered is the list when Qualys has answered a secret, to a call that began when: what was
// said before that call is over.
func (l refusals) answered(secret string, began time.Time) refusals {
	return slices.DeleteFunc(slices.Clone(l), func(r *refused) bool { return r.is(secret) && began.After(r.last()) })
}

// since are those that were refused behind the beginning of a call that was answered.
func (l refusals) since(began time.Time) refusals {
	return slices.DeleteFunc(slices.Clone(l), func(r *refused) bool { return began.After(r.last()) })
}

// last is when it was refused last.
func (r *refused) last() time.Time { return r.Until.Add(-restOf(r.Times - 1)) }

// restOf is how long a secret rests that was refused so many times before.
func restOf(times int) time.Duration {
	return min(loginRestMost, loginRest<<min(max(times, 0), 10))
}

// again is the list when a secret was refused once more, by a call that began when. Calls
// that were under way together are one refusal.
func (l refusals) again(secret, text string, began, now time.Time) refusals {
	r := l.of(secret)
	if r == nil {
		r = newRefused(secret)
	} else if last := r.last(); !began.After(last) && !now.Before(last) {
		return l
	}
	next := *r
	next.Until = now.Add(restOf(r.Times))
	next.Times++
	next.Text = clip(text, maxErrorText)
	list := append(refusals{&next}, l.without(secret)...)
	return list[:min(maxRefused, len(list))]
}

// sane is the list as it was read: no secret rests for longer than one does, whatever
// the clock of the process said that wrote it. changed says that it was not so.
func (l refusals) sane(now time.Time) (list refusals, changed bool) {
	for _, r := range l[:min(maxRefused, len(l))] {
		if r == nil {
			continue
		}
		if most := now.Add(loginRestMost); r.Until.After(most) {
			r.Until, changed = most, true
		}
		list = append(list, r)
	}
	return list, changed
}

// standing is what is known of refusals and rests, here and, by the memory, elsewhere.
type standing struct {
	turn    turn.Turn  // of reading and writing the memory
	mu      sync.Mutex // of what follows
	logins  refusals
	proxies refusals
	news    []func(*memory) // what has happened here and is not kept yet
	odd     bool            // what was read is not what is believed of it
	good    login           // Qualys has begun to answer it
	refused use             // the last refusal that was met here, and when
	trying  *trial          // not nil: a call tries a login
}

// note takes in what has happened, to be kept. s.mu is held.
func (s *standing) note(news func(*memory)) {
	m := memory{Logins: s.logins, Proxies: s.proxies}
	news(&m)
	s.logins, s.proxies, s.news = m.Logins, m.Proxies, append(s.news, news)
}

// recall reads what other processes have met. Where the memory cannot be read, what is
// known here has to do: a run that holds its checkpoint in the same place has just
// read there.
func (c *Client) recall(ctx context.Context) error {
	s := &c.standing
	if c.Memory == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.recallTime())
	defer cancel()
	if err := s.turn.Take(ctx); err != nil {
		return fmt.Errorf("wait for others who read what Qualys has asked for: %w", err)
	}
	defer s.turn.Leave()
	doc, err := c.Memory.Load(ctx)
	if err != nil {
		return fmt.Errorf("read what Qualys has asked for before: %w", err)
	}
	now := c.now()
	m := parseMemory(doc)
	s.take(&m, now)
	c.limits.adopt(m.Rests, now)
	return nil
}

// take takes over what was read, and adds to it what has happened since. It returns how
// much that was.
func (s *standing) take(m *memory, now time.Time) (news int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var odd, odder bool
	m.Logins, odd = m.Logins.sane(now)
	m.Proxies, odder = m.Proxies.sane(now)
	m.Logins, m.Proxies = m.Logins.knowing(s.logins), m.Proxies.knowing(s.proxies)
	for _, news := range s.news {
		news(m)
	}
	s.logins, s.proxies, s.odd = m.Logins, m.Proxies, odd || odder
	return len(s.news)
}

// knowing is the list with what was worked out of it before.
func (l refusals) knowing(before refusals) refusals {
	for _, r := range l {
		for _, b := range before {
			if b.Mark == r.Mark && b.Salt == r.Salt {
				r.known = b.known
			}
		}
	}
	return l
}

// parseMemory reads a document. A damaged one, or that of another version, says nothing
// and is written anew: a login that is refused again and again is worse than a rest that
// is forgotten once.
func parseMemory(doc []byte) memory {
	var m memory
	if err := json.Unmarshal(doc, &m); err != nil || m.Version != memoryVersion {
		return memory{}
	}
	return m
}

// keep writes down what other processes are to know, beside what they have written.
func (c *Client) keep(ctx context.Context) error {
	s := &c.standing
	if c.Memory == nil || !s.hasNews() && !c.limits.unkept() {
		return nil
	}
	// The call may have ended with its time.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTime)
	defer cancel()
	if err := s.turn.Take(ctx); err != nil {
		return fmt.Errorf("wait for others who keep what Qualys has asked for: %w", err)
	}
	defer s.turn.Leave()
	if !s.hasNews() && !c.limits.unkept() {
		return nil // another has kept it
	}
	kept, rests := 0, 0
	err := c.Memory.Update(ctx, func(doc []byte) ([]byte, error) {
		now := c.now()
		m := parseMemory(doc)
		kept = s.take(&m, now)
		c.limits.adopt(m.Rests, now)
		m.Version = memoryVersion
		m.Rests, rests = c.limits.kept(now)
		doc, err := json.MarshalIndent(m, "", "  ")
		return append(doc, '\n'), err //nolint:wrapcheck // said below
	})
	if err != nil {
		return fmt.Errorf("keep what Qualys has asked for: %w", err)
	}
	s.wasKept(kept)
	c.limits.wasKept(rests)
	return nil
}

// hasNews tells whether there is something to keep.
func (s *standing) hasNews() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.news) > 0 || s.odd
}

// wasKept forgets so many news, which are kept.
func (s *standing) wasKept(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.news, s.odd = slices.Delete(s.news, 0, n), false
}

// recallTime is how long a call waits for what others have met. A good storage answers in a
// tenth of a second, and one that hangs must not hold up every call for long; but a login
// that this process does not know to be good may be one that another was refused. A check
// gives a step 50 seconds, in which both a look and keepTime have to have room.
func (c *Client) recallTime() time.Duration {
	current := c.login()
	s := &c.standing
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.good == current {
		return 10 * time.Second
	}
	return 25 * time.Second
}

// keepTime is how long that may take: longer than a process that was killed in the middle of
// it holds others up, which is 15 seconds.
const keepTime = 20 * time.Second

// kindNames are the kinds as the memory has them.
var kindNames = map[Kind]string{Broken: "broken", Unavailable: "unavailable", Limited: "limit", BadLogin: "login", Forbidden: "forbidden", Refused: "refused", Unreachable: "unreachable", BadProxy: "proxy"}

// MarshalText implements encoding.TextMarshaler.
func (k Kind) MarshalText() ([]byte, error) { return []byte(kindNames[k]), nil }

// UnmarshalText implements encoding.TextUnmarshaler. A kind that is not known is one to
// wait for.
func (k *Kind) UnmarshalText(text []byte) error {
	*k = Unavailable
	for kind, name := range kindNames {
		if name == string(text) {
			*k = kind
		}
	}
	return nil
}

// A Rest is a time without calls, for people.
type Rest struct {
	// Of is what rests: login, proxy, all calls, or the path of an endpoint.
	Of     string    `json:"of"`
	Until  time.Time `json:"until"`
	Reason string    `json:"reason"`
}

// Rests lists what a memory says rests now, by what it is of.
func Rests(doc []byte, now time.Time) (list []Rest, err error) {
	if len(doc) == 0 {
		return nil, nil
	}
	var m memory
	if err := json.Unmarshal(doc, &m); err != nil {
		return nil, fmt.Errorf("what Qualys has asked for is damaged: %w", err)
	}
	for of, refused := range map[string]refusals{"login": m.Logins, "proxy": m.Proxies} {
		for _, r := range refused {
			if r != nil && now.Before(r.Until) {
				list = append(list, Rest{of, r.Until, r.Text})
			}
		}
	}
	for _, path := range slices.Sorted(maps.Keys(m.Rests)) {
		if r := m.Rests[path]; now.Before(r.Until) {
			e := &Error{Kind: r.Kind, Status: r.Status, Code: r.Code, Text: r.Text}
			list = append(list, Rest{strings.ReplaceAll(path, allEndpoints, "all calls"), r.Until, e.Error()})
		}
	}
	slices.SortStableFunc(list, func(a, b Rest) int { return strings.Compare(a.Of, b.Of) })
	return list, nil
}
