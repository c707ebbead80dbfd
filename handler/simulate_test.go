package main

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/functions"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/integration"
	"qualys-sentinel/handler/internal/ondemand"
	"qualys-sentinel/handler/internal/redact"
	"qualys-sentinel/handler/internal/virtual"
)

var (
	seeds     = flag.Int("seeds", 40, "how many stories TestStories plays")
	firstSeed = flag.Uint64("first", 1, "the seed of the first of them")
	chronicle = flag.Bool("chronicle", false, "tell all that happens in the first story that breaks a law, once it is shrunk")
)

// virtualProcess is a process of the connector in a world of virtual time.
type virtualProcess struct{ app *app }

// startVirtual starts a process as serve does, with what the world has in place of a
// machine.
func startVirtual(life context.Context, m virtual.Machine) virtual.Connector {
	level := zap.NewAtomicLevel()
	secrets := &redact.Redactor{}
	a := newApp(life, newLog(m.Log, level, secrets), level)
	a.secrets = secrets
	a.environ = func() []string { return m.Environ }
	a.outside = outside{transport: m.Transport, credential: m.Credential, clock: m.Clock, newID: m.NewID, batchBytes: m.BatchBytes, hosts: m.Hosts, qids: m.QIDs, recent: m.Recent}
	return &virtualProcess{a}
}

func (p *virtualProcess) Tick(ctx context.Context, name string) error {
	dataset, err := findDataset(name)
	if err != nil {
		return err
	}
	return p.app.tick(ctx, dataset, functions.Invocation{Function: dataset.Function})
}

func (p *virtualProcess) Ask(ctx context.Context, name, body string) error {
	dataset, err := findDataset(name)
	if err != nil {
		return err
	}
	w, err := ondemand.Parse([]byte(body), time.Now(), checkFilter)
	if err != nil {
		return err
	}
	_, err = p.app.Sync(ctx, []*ingest.Dataset{dataset}, w)
	return err
}

func (p *virtualProcess) Status(ctx context.Context) ([]byte, error) {
	doc, err := p.app.Status(ctx, "")
	if err != nil {
		return nil, err
	}
	return json.Marshal(doc)
}

func (p *virtualProcess) Check(ctx context.Context) ([]byte, error) {
	return json.Marshal(p.app.Check(ctx))
}

func (p *virtualProcess) Register(ctx context.Context, body []byte) error {
	registry, _, _, err := p.app.Registry(ctx)
	if err != nil {
		return err
	}
	change, err := integration.Parse(body)
	if err != nil {
		return err
	}
	_, err = registry.Add(ctx, change)
	return err
}

func (p *virtualProcess) Unregister(ctx context.Context, name string) error {
	registry, _, _, err := p.app.Registry(ctx)
	if err != nil {
		return err
	}
	list, err := registry.List(ctx)
	if err != nil {
		return err
	}
	for _, i := range list {
		if i.Name == name {
			return registry.Delete(ctx, i.ID)
		}
	}
	return nil
}

func (p *virtualProcess) Stop() { p.app.wait(functions.StopGrace) }

// play plays a story in a bubble of its own.
func play(t *testing.T, s virtual.Story) (o virtual.Outcome) {
	synctest.Test(t, func(*testing.T) { o = virtual.Play(s, startVirtual) })
	return o
}

// Stories made from seeds: the whole connector in a world where several things go wrong
// at a time. See docs/simulation.md; make simulate plays more of them.
func TestStories(t *testing.T) {
	// Small worlds, thousands of them: the collector would take a third of the time.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	began := time.Now()
	var mu sync.Mutex
	met, calls := map[[2]string]int{}, map[string]int{}
	var took time.Duration
	var shrink sync.Once // the first that breaks a law: the others may do so for the same reason
	broken := 0
	next, last := *firstSeed, *firstSeed+uint64(*seeds)
	var all sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			for {
				mu.Lock()
				seed, enough := next, broken >= maxBroken
				next++
				mu.Unlock()
				if seed >= last || enough {
					return
				}
				s := virtual.NewStory(seed)
				o := play(t, s)
				mu.Lock()
				took += o.Took
				add(met, o.Met)
				add(calls, o.Calls)
				if len(o.Breaches) > 0 {
					broken++
				}
				mu.Unlock()
				if len(o.Breaches) > 0 {
					t.Errorf("%s\n%s\nagain: make simulate SEEDS=1 FIRST=%d", s, o, seed)
					shrink.Do(func() { t.Log(shrunk(t, s, o)) })
				}
			}
		})
	}
	all.Wait()
	t.Logf("%d stories in %s: %.0f of their hours a second", min(next, last)-*firstSeed, time.Since(began).Round(time.Second), took.Hours()/time.Since(began).Seconds())
	for _, what := range slices.Sorted(maps.Keys(calls)) {
		t.Logf("%9d times: %s", calls[what], what)
	}
	pairs, blind := virtual.Pairs(), 0
	slices.SortFunc(pairs, func(a, b [2]string) int { return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1])) })
	for _, pair := range pairs {
		t.Logf("%9d met: %s, at %s", met[pair], pair[0], pair[1])
		if met[pair] == 0 {
			blind++
		}
	}
	t.Logf("%d of %d pairs of a fault and a call were met", len(pairs)-blind, len(pairs))
}

// maxBroken is how many stories that break a law are told.
const maxBroken = 5

// Where goroutines take turns in another order a story may end well: it is played some
// times. Shrinking one takes a minute or two at most.
const (
	playsOfAStory = 3
	playsToShrink = 150
)

// shrunk tells a story that has broken a law, as short as it can be.
func shrunk(t *testing.T, s virtual.Story, o virtual.Outcome) string {
	law, plays := o.Breaches[0].Law, 0
	s = virtual.Shrink(s, playsToShrink, func(smaller virtual.Story) bool {
		for range playsOfAStory {
			plays++
			if again := play(t, smaller); again.Broke(law) {
				o = again
				return true
			}
		}
		return false
	})
	text := fmt.Sprintf("in short, after %d plays:\n%s\n%s", plays, s, o)
	if *chronicle {
		text += "\n" + strings.Join(o.Chronicle, "\n")
	}
	return text
}

// add adds numbers to others.
func add[K comparable](to, from map[K]int) {
	for k, n := range from {
		to[k] += n
	}
}
