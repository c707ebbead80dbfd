package virtual

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// An Outcome is how a story has ended.
type Outcome struct {
	// Breaches are the laws that were broken, in their order; none: all was well.
	Breaches []Breach
	// Chronicle is what happened, in the story's time.
	Chronicle []string
	// Calls by what they were, Met how often an act met a call.
	Calls map[string]int
	Met   map[[2]string]int
	// Took is how long the story was, in its own time.
	Took time.Duration
}

const (
	// patience is how long behind the last act all must have arrived, beside two ticks of
	// the KnowledgeBase: one may end a window that is old; and a day where it is read whole.
	// endurance is how long for what was isolated.
	patience  = 4 * time.Hour
	endurance = 30 * time.Hour
)

// Play plays a story. It is to be called in a bubble of virtual time.
func Play(s Story, start Start) Outcome {
	time.Sleep(time.Until(begin))
	w := newWorld(s)
	ctx, cancel := context.WithCancel(context.Background())
	p := &platform{world: w, start: start, end: ctx, lives: map[int]*process{}}
	var acts sync.WaitGroup
	for _, a := range s.Acts {
		acts.Go(func() {
			time.Sleep(a.At)
			w.say("act: %s", a)
			w.act(p, a)
			w.say("over: %s", a)
		})
	}
	p.timers(ctx)
	p.all.Go(func() {
		for n := range s.Integrations {
			p.register(ctx, n)
		}
	})
	p.all.Go(func() { w.laws.watch(ctx) })
	acts.Wait()
	w.say("all acts are over")
	w.settle()
	if s.Idle {
		w.idle()
	}
	cancel()
	for _, c := range p.living() {
		p.leave(c)
	}
	p.all.Wait()
	w.laws.agree()
	w.laws.duplicates()
	return Outcome{Breaches: w.laws.breaches, Chronicle: w.log, Calls: w.counts, Met: w.met, Took: time.Since(begin)}
}

// act lets an act happen, and waits for its end.
func (w *world) act(p *platform, a Act) {
	act := &acting{Act: a, kind: kindOf(a.Kind)}
	w.mu.Lock()
	w.acting = append(w.acting, act)
	w.mu.Unlock()
	w.laws.disturb(a)
	if act.kind.happen != nil {
		act.kind.happen(w, p, a)
	} else {
		time.Sleep(a.For)
	}
	w.laws.disturb(a)
	w.mu.Lock()
	w.acting = slices.DeleteFunc(w.acting, func(o *acting) bool { return o == act })
	w.mu.Unlock()
}

// settle waits until all that Qualys shows now has arrived.
func (w *world) settle() {
	over := time.Now()
	patience := patience + 2*w.story.KBEvery
	if w.story.Refreshed {
		patience += 24 * time.Hour
	}
	for {
		time.Sleep(w.story.Every)
		missing := w.laws.outstanding(over)
		switch waited := time.Since(over); {
		case len(missing) == 0:
			return
		case waited > endurance, waited > patience && !w.isolates():
			w.laws.broken("%s after all acts are over, %d are missing: %s", waited, len(missing), strings.Join(missing[:min(3, len(missing))], "; "))
			return
		}
	}
}

// idle lets some ticks pass in which nothing happens: no row comes twice then, whatever has
// happened before. The first of them may still make up for that.
func (w *world) idle() {
	time.Sleep(2 * w.story.KBEvery)
	before, isolated := w.laws.unexplained(), w.isolates()
	time.Sleep(2 * w.story.KBEvery)
	if again := w.laws.unexplained() - before; again > 0 && !isolated && !w.isolates() {
		w.laws.broken("%d rows have come again in %s in which nothing happened", again, 2*w.story.KBEvery)
	}
}

// isolates tells whether a checkpoint names what fails by itself.
func (w *world) isolates() bool {
	for _, name := range w.blobs.Names(container, "checkpoints/") {
		if strings.HasSuffix(name, ".json") && strings.Contains(string(w.blobs.Document(container, name)), `"isolated"`) {
			return true
		}
	}
	return false
}

// Broke tells whether a law was broken.
func (o Outcome) Broke(law string) bool {
	return slices.ContainsFunc(o.Breaches, func(b Breach) bool { return b.Law == law })
}

// String tells what has broken.
func (o Outcome) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d laws broken:", len(o.Breaches))
	for _, one := range o.Breaches {
		fmt.Fprintf(&b, "\n  %s", one.Text)
	}
	return b.String()
}
