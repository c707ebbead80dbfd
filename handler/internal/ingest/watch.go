package ingest

import (
	"errors"
	"sync"
	"time"
)

// errStuck ends a page that comes to no safe point: a parent whose answer drips, or
// does not end, would use up the budget of every run.
var errStuck = errors.New("it has not come whole in the time that one page has")

// leastAlone is how long the answer for a single parent may take at least, in a run
// that is long enough: Qualys needs half a minute for its first byte now and then.
const leastAlone = 3 * time.Minute

// pageTime is how long a page may be without a safe point, in a run that has budget:
// half of it, so that what is behind the page has its turn in the same run.
func pageTime(budget time.Duration) time.Duration { return budget / 2 }

// aloneTime is how long the answer for a single parent may take: short enough to
// find several that do not come in one run.
func aloneTime(budget time.Duration) time.Duration {
	return min(pageTime(budget), max(budget/8, leastAlone))
}

// A watch measures how long a page has been without a safe point, and gives it up
// behind its limit. Time in which the destination takes no batch does not count, nor
// that before the request was sent.
type watch struct {
	clock  Clock
	limit  time.Duration
	giveUp func()

	mu      sync.Mutex
	timer   *time.Timer
	asked   bool
	since   time.Time // of the last request, safe point or hold
	used    time.Duration
	holding bool
}

func newWatch(clock Clock, limit time.Duration, giveUp func()) *watch {
	return &watch{clock: clock, limit: limit, giveUp: giveUp}
}

// request notes that a request was sent.
func (w *watch) request() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer == nil {
		w.timer = time.AfterFunc(w.limit, w.giveUp)
	}
	w.asked = true
	w.restart()
}

// safe notes a safe point.
func (w *watch) safe() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.asked {
		w.restart()
	}
}

func (w *watch) restart() {
	w.used, w.since = 0, w.clock.Now()
	if !w.holding {
		w.timer.Reset(w.limit)
	}
}

// hold stops the time, until the function that it returns is called.
func (w *watch) hold() (goOn func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holding = true
	if w.asked {
		w.used += w.clock.Now().Sub(w.since)
		w.timer.Stop()
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.holding = false
		if w.asked {
			w.since = w.clock.Now()
			w.timer.Reset(max(0, w.limit-w.used))
		}
	}
}

// end stops the time, and returns how long the page has been without a safe point.
func (w *watch) end() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.asked {
		return 0
	}
	w.timer.Stop()
	if w.holding {
		return w.used
	}
	return w.used + w.clock.Now().Sub(w.since)
}
