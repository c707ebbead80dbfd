// Package virtual plays stories: the whole connector, as package main wires it, in a world
// of virtual time, where several things go wrong at a time.
//
// A story is made from a seed: an estate, settings, and acts (acts.go), such as faults of
// calls, kills, changes of the estate, and people who ask for something. The world
// (world.go) is the simulator's services behind a network that obeys the acts; the
// platform (platform.go) starts, freezes and kills processes as the Functions host does.
// The laws (laws.go) are checked with every call, and at the end. A story is played in a
// bubble of testing/synctest, so that hours take no time.
//
// What the connector is does not enter here: who plays a story says how a process starts.
// The product never uses this package.
package virtual

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/simulator"
)

// A Story is what happens in one world: an estate, the settings, and acts. A seed makes
// one; a smaller one is made by leaving acts out.
type Story struct {
	Seed uint64
	// Hosts and Detections of each on average, QIDs of the KnowledgeBase.
	Hosts, Detections, QIDs int
	// Page is how many hosts are asked for at once, KBPage how many QIDs.
	Page, KBPage int
	// Every is how often the timer of the detections ticks, KBEvery that of the
	// KnowledgeBase.
	Every, KBEvery time.Duration
	Budget         time.Duration
	Enrich         bool
	// OneTick lets each process live for one tick only, as where an app scales to zero.
	OneTick bool
	// Scans is how often each host is scanned.
	Scans time.Duration
	// Edits is how often each entry of the KnowledgeBase is edited; zero: only by acts.
	Edits time.Duration
	// Shows is how long Qualys takes to show what it has processed.
	Shows time.Duration
	// Latency is the longest way to Qualys or Log Analytics, and the longest back.
	Latency time.Duration
	// Collector sends over the HTTP Data Collector API: to the default destination, and to
	// each second integration.
	Collector bool
	// Integrations are how many destinations there are beside the default one.
	Integrations int
	// Hours is how long acts may begin.
	Hours int
	// Refreshed reads the KnowledgeBase whole once a day, which shows what was removed: for
	// that the story is longer, and small.
	Refreshed bool
	// Idle lets the story go on for some ticks when all has arrived: nothing happens then.
	Idle bool
	// Confined says that no act concerns both datasets of the default destination.
	Confined bool
	Acts     []Act
}

// An Act is something that happens: a fault of calls for some time, or an event.
type Act struct {
	// At is when it begins, behind the beginning of the story; For how long it lasts.
	At, For time.Duration
	Kind    string
	// On are the calls that a fault concerns.
	On string
	// N is a host, a QID, a destination or a number, as the kind wants it.
	N int
	// Share of the calls that meet the fault, in percent.
	Share int
}

// DefaultLatency is that of services which are well.
const DefaultLatency = 40 * time.Millisecond

// A story has few kinds of acts, and each some times: what things do to each other shows
// there more often than where everything happens once.
const (
	mostKinds = 6
	mostActs  = 10
	// numbers is how many numbers an act may have.
	numbers = 1000
)

// NewStory makes the story of a seed.
func NewStory(seed uint64) Story {
	r := rand.New(rand.NewPCG(seed, 16))
	s := Story{
		Seed: seed, Hosts: 1 + r.IntN(24), Detections: 1 + r.IntN(6), QIDs: 1 + r.IntN(20),
		Page: 1 + r.IntN(10), KBPage: 1 + r.IntN(10),
		Every:  pick(r, 5*time.Minute, 10*time.Minute, 10*time.Minute, 15*time.Minute, 15*time.Minute, 30*time.Minute, 30*time.Minute),
		Budget: pick(r, 2*time.Minute, 5*time.Minute, 25*time.Minute),
		Enrich: r.IntN(3) == 0, OneTick: r.IntN(3) == 0,
		Scans: pick(r, simulator.DefaultScanEvery, 4*time.Hour, time.Hour, 25*time.Minute), Edits: pick(r, 0, 0, 5*time.Hour, time.Hour),
		Shows:        pick(r, 0, 0, time.Minute, 8*time.Minute),
		Latency:      pick(r, DefaultLatency, DefaultLatency, 3*time.Second),
		Integrations: max(0, r.IntN(6)-3),
		Hours:        pick(r, 1, 1, 2, 3),
		Collector:    r.IntN(5) == 0,
	}
	s.KBEvery = pick(r, time.Hour, 2*time.Hour)
	if r.IntN(4) == 0 { // what concerns one host, destination or dataset, for long
		s.Confined = true
	}
	if r.IntN(25) == 0 {
		s.Refreshed, s.Hosts, s.Integrations, s.Every, s.KBEvery, s.Hours = true, 1+r.IntN(3), 0, 30*time.Minute, 2*time.Hour, 2+r.IntN(28)
	}
	few := make([]*kind, 1+r.IntN(mostKinds))
	for i := range few {
		few[i] = anyKind(r)
	}
	for range 1 + r.IntN(mostActs) {
		a := s.newAct(r, few)
		if n := len(s.Acts); n > 0 && r.IntN(2) == 0 {
			// What two things do to each other shows where they meet.
			a.At = s.Acts[r.IntN(n)].At + time.Duration(r.IntN(10_000))*time.Millisecond
		}
		s.Acts = append(s.Acts, a)
	}
	slices.SortStableFunc(s.Acts, func(a, b Act) int { return int(a.At - b.At) })
	s.Idle = !s.Refreshed && r.IntN(10) == 0
	return s
}

// disordered tells that hosts come in another order at times.
func (s *Story) disordered() bool {
	return slices.ContainsFunc(s.Acts, func(a Act) bool { return a.Kind == disorder })
}

// changes tells that a setting is what the text says at times.
func (s *Story) changes(setting string) bool {
	return slices.ContainsFunc(s.Acts, func(a Act) bool { return a.Kind == change && a.setting() == setting })
}

// maySkip tells that a host may be lost for a known reason: the answers of Qualys ascend by
// id, and a run goes on behind the last host that it has read. Where they do not, and
// something ends an answer between two hosts, the one that was still to come is below.
func (s *Story) maySkip() bool {
	return s.disordered() && slices.ContainsFunc(s.Acts, func(a Act) bool {
		return a.Kind != disorder && !slices.Contains(quiet, a.Kind) || a.Kind == "a host is ill"
	})
}

// destination is the name of an integration's destination: the immutable id of its rule,
// or the id of its workspace.
func (s *Story) destination(integration int) string {
	if s.Collector && integration%2 == 1 {
		return fmt.Sprintf("22222222-2222-2222-2222-%012d", integration)
	}
	return fmt.Sprintf("dcr-%032d", integration+2)
}

// anyKind is a kind of any family.
func anyKind(r *rand.Rand) *kind {
	family := families[r.IntN(len(families))]
	return &family[r.IntN(len(family))]
}

// newAct makes an act of one of few kinds, or of any where none of them may be.
func (s *Story) newAct(r *rand.Rand, few []*kind) Act {
	k := few[r.IntN(len(few))]
	a := Act{At: time.Duration(r.IntN(s.Hours*3600)) * time.Second, Kind: k.name, N: r.IntN(numbers), Share: pick(r, 100, 100, 50, 20)}
	a.For = pick(r, time.Second, time.Minute, 10*time.Minute, 10*time.Minute, 30*time.Minute, 30*time.Minute, 2*time.Hour)
	if len(k.on) > 0 {
		a.On = k.on[r.IntN(len(k.on))]
	}
	if s.Confined {
		// Longer than what others may be late.
		a.For = calmTime + calmTicks*s.Every + time.Duration(10+r.IntN(50))*time.Minute
		if s.concerns(a, "default", ingest.VM.Name) && s.concerns(a, "default", ingest.KB.Name) {
			return s.newAct(r, []*kind{anyKind(r)})
		}
	}
	if r.IntN(2) == 0 {
		// While a tick works: between them little happens.
		began := begin.Add(a.At).Truncate(s.Every).Add(s.Every).Sub(begin)
		a.At = began + time.Duration(r.IntN(3000))*time.Millisecond
	}
	return a
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// String tells the story.
func (s Story) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %d hosts with about %d detections each, %d QIDs; pages of %d hosts and %d QIDs; detections every %s, the KnowledgeBase every %s; a run has %s",
		s.Seed, s.Hosts, s.Detections, s.QIDs, s.Page, s.KBPage, s.Every, s.KBEvery, s.Budget)
	if s.Idle {
		b.WriteString("; it goes on when all has arrived")
	}
	if s.Enrich {
		b.WriteString("; detections are enriched")
	}
	if s.Refreshed {
		b.WriteString("; the KnowledgeBase is read whole once a day")
	}
	if s.Collector {
		b.WriteString("; the Data Collector API")
	}
	if s.OneTick {
		b.WriteString("; a process lives for one tick")
	}
	fmt.Fprintf(&b, "; each host is scanned every %s", s.Scans)
	if s.Edits > 0 {
		fmt.Fprintf(&b, ", each entry edited every %s", s.Edits)
	}
	if s.Shows > 0 {
		fmt.Fprintf(&b, "; a scan shows after %s", s.Shows)
	}
	if s.Latency > DefaultLatency {
		fmt.Fprintf(&b, "; Qualys and Log Analytics are up to %s away", s.Latency)
	}
	if s.Integrations > 0 {
		fmt.Fprintf(&b, "; %d integrations", s.Integrations)
	}
	b.WriteString("\n")
	for _, a := range s.Acts {
		fmt.Fprintf(&b, "  %s\n", a)
	}
	return b.String()
}

// String tells the act.
func (a Act) String() string {
	k := kindOf(a.Kind)
	text := fmt.Sprintf("after %-9s %s", a.At, a.Kind)
	if a.On != "" {
		text += ", at " + a.On
	}
	switch {
	case a.Kind == change:
		text += ": " + a.setting()
	case k.numbered:
		text += fmt.Sprintf(" (%d)", a.N)
	}
	if k.answer != nil || k.before != nil {
		if a.Share < 100 {
			text += fmt.Sprintf(", %d %% of the calls", a.Share)
		}
	}
	if k.lasts {
		text += fmt.Sprintf(", for %s", a.For)
	}
	return text
}
