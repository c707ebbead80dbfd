package virtual

import (
	"context"
	"slices"
	"strings"
	"time"

	"qualys-sentinel/handler/internal/ingest"
)

// How long what Qualys shows may take to arrive, while nothing goes wrong that concerns it,
// and for as long before: a rest that was asked for is over by then. One host that does not
// come, one destination that is slow, or one dataset delays the others by no more.
const (
	calmTime  = 90 * time.Minute
	calmTicks = 10
)

// quiet are acts that concern no other than themselves: what a person does, what changes in
// the estate, and what is wrong with one host, one QID or a health row.
var quiet = []string{
	"a host is ill", "a QID is ill", "a host is scanned again", "all hosts are scanned again", "a host is purged", "a host is new", "an entry is edited", removal,
	"a person asks for everything", "a person asks for the next window", "a person asks for a host", "a person looks at the status", "a person checks the connection",
}

// concerns tells whether an act may delay a dataset of a destination.
func (s *Story) concerns(a Act, destination, dataset string) bool {
	switch {
	case slices.Contains(quiet, a.Kind), a.On == "health":
		return false
	case a.Kind == "rows of a QID are refused" && s.QIDs >= 5:
		return false // they are kept as dead letters
	case a.On == "rows":
		return destination == "default" && dataset == ingest.VM.Name
	case a.On == "entries":
		return dataset == ingest.KB.Name
	case a.On == "rows of an integration", a.Kind == "an integration goes, and comes back":
		return destination != "default"
	}
	return true
}

// each visits the datasets of all destinations.
func (w *world) each(visit func(destination, dataset string)) {
	visit("default", ingest.VM.Name)
	visit("default", ingest.KB.Name)
	for n := range w.story.Integrations {
		visit(w.story.destination(n), ingest.VM.Name)
	}
}

// disturb notes that an act begins or ends.
func (l *laws) disturb(a Act) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.world.each(func(destination, dataset string) {
		if l.world.story.concerns(a, destination, dataset) {
			l.disturbed[[2]string{destination, dataset}] = time.Now()
		}
	})
}

// watch looks, again and again, for what is late.
func (l *laws) watch(ctx context.Context) {
	told := false
	for sleep(ctx, 10*time.Minute) == nil && !told {
		l.world.each(func(destination, dataset string) {
			if late := l.late(destination, dataset); len(late) > 0 {
				told = true
				l.broken("%d are late although nothing concerns them: %s", len(late), strings.Join(late[:min(3, len(late))], "; "))
			}
		})
	}
}

// late is what was shown so long ago that it must have arrived.
func (l *laws) late(destination, dataset string) []string {
	every := l.world.story.Every
	if dataset == ingest.KB.Name {
		every = l.world.story.KBEvery
	}
	calm := calmTime + calmTicks*every
	l.world.mu.Lock()
	for _, a := range l.world.acting {
		if l.world.story.concerns(a.Act, destination, dataset) {
			l.world.mu.Unlock()
			return nil
		}
	}
	l.world.mu.Unlock()
	l.mu.Lock()
	disturbed := l.disturbed[[2]string{destination, dataset}]
	l.mu.Unlock()
	since := begin
	if destination != "default" {
		since = l.world.registered(destination)
	}
	if disturbed.After(since) {
		since = disturbed
	}
	if since.IsZero() || time.Since(since) < calm {
		return nil
	}
	return l.missing(destination, ingest.Checkpoint{Dataset: dataset, Isolated: l.world.ill()}, nil, time.Now().Add(-calm), 1<<62)
}

// ill are the hosts and QIDs that are ill now, or were a while ago: they are tried again
// but seldom.
func (w *world) ill() (list []ingest.Isolated) {
	for _, a := range w.story.Acts {
		if time.Since(begin) < a.At || time.Since(begin) > a.At+a.For+endurance {
			continue
		}
		switch a.Kind {
		case "a host is ill":
			list = append(list, ingest.Isolated{ID: w.estate.Host(a.N%w.story.Hosts, begin).ID})
		case "a QID is ill":
			list = append(list, ingest.Isolated{ID: uint64(w.estate.Knowledge.QID(a.N % w.story.QIDs))})
		}
	}
	return list
}

// registered is when an integration was; zero: it is not.
func (w *world) registered(destination string) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.since[destination]
}
