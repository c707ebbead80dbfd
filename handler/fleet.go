package main

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/integration"
	"qualys-sentinel/handler/internal/ondemand"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/settings"
	"qualys-sentinel/handler/internal/status"
)

// What the destinations of a tick share, so that their number is no matter of memory.
const (
	// sharedBatches is what their batches take together, in bytes: a few of each are
	// filled or on their way.
	sharedBatches = 6 << 20
	// leastBatch of one of them: smaller ones make calls, and save nothing.
	leastBatch = 48 << 10
	// sharedRecent is how many rows they remember together, leastRecent each of them.
	sharedRecent = 500_000
	leastRecent  = 10_000
	// longestRow of an integration, however many there are: that of RESULTS as nearly
	// all have them. What is longer is cut, flagged, and kept whole in the state.
	longestRow = 128 << 10
	// sharedInFlight is how many batches of each may be on their way; one of an integration
	// where there are more than fewDestinations.
	sharedInFlight  = 2
	fewDestinations = 11
)

// Behind a run without progress an integration waits twice as long each time, so that
// a destination that is wrong does not use up the calls to Qualys.
const (
	stalledFirst = 4 * time.Minute // less than the example schedule's five
	stalledMost  = 30 * time.Minute
)

// fleet is the destinations beside the default one, by their names in the state.
type fleet struct {
	mu     sync.Mutex
	berths map[string]*berth
}

// berth is what is kept of an integration between ticks.
type berth struct {
	desk   *ondemand.Desk
	status *status.Source // it keeps the records that it has read
	// known is the integration as it was read last; nil: it is gone.
	known atomic.Pointer[integration.Integration]
}

// registry of the integrations.
func (c *connector) newRegistry() *integration.Registry {
	r := &integration.Registry{Store: c.store, Clock: c.outside.time(), Log: c.log}
	// Where rows go to a simulator on this machine, others may, too.
	r.Local = c.settings.LogAnalyticsURI == nil || settings.Loopback(c.settings.LogAnalyticsURI)
	if vault := c.settings.IntegrationVault; vault != "" {
		r.Keys = &settings.KeyFile{KeyVault: *c.vault(), Vault: vault, NewID: func() string { return c.outside.runID()[:8] }}
	}
	return r
}

// tick is one of a dataset, for all destinations.
func (c *connector) tick(ctx context.Context, dataset *ingest.Dataset) (ingest.Report, error) {
	t := ondemand.Tick{Dataset: dataset, Clock: c.outside.time(), Log: c.log, Members: []ondemand.Member{{Desk: c.desk, Requests: true}}}
	if dataset == ingest.VM {
		t.Members = append(t.Members, c.muster(ctx, t.Members)...)
		t.More = c.muster
		if n := len(t.Members); n > 1 {
			t.Convoy = &ingest.Convoy{Together: together, Clock: t.Clock, Log: c.log}
			t.Began = func(run *ingest.Run) {
				share(run, n)
				run.BatchBytes = cmp.Or(c.outside.batchBytes, run.BatchBytes)
			}
		}
	}
	own := t.Do(ctx)[0]
	return *own.Report, own.Err
}

// muster reads the integrations and returns those that are not among the members. A
// member that is not there any more, or cannot be read, is not due.
func (c *connector) muster(ctx context.Context, members []ondemand.Member) (come []ondemand.Member) {
	integrations, err := c.integrations.List(ctx)
	if err != nil {
		// The others get theirs.
		c.log.Error("not all integrations can be read: those get nothing", zap.Error(err))
	}
	c.fleet.forget(integrations)
	for _, i := range integrations {
		b := c.berth(i)
		if slices.ContainsFunc(members, func(m ondemand.Member) bool { return m.Desk == b.desk }) {
			continue
		}
		come = append(come, ondemand.Member{Desk: b.desk, Due: func(ctx context.Context) bool {
			now := b.known.Load()
			return now != nil && c.due(ctx, now)
		}})
	}
	return come
}

// share gives a run its part of what n destinations share. The default one has batches as
// large as alone, but does not hold the others up.
func share(run *ingest.Run, n int) {
	run.Patience, run.InFlight = ingest.DefaultPatience, sharedInFlight
	if run.Integration == "" {
		return
	}
	if n > fewDestinations {
		run.InFlight = 1
	}
	run.BatchBytes = max(leastBatch, sharedBatches/(n*(sharedInFlight+1)))
	run.MaxRecent = min(cmp.Or(run.MaxRecent, ingest.DefaultMaxRecent), max(leastRecent, sharedRecent/n))
}

// together is one request for several runs.
func together(list []ingest.Joint) ingest.Source {
	var requests []*qualys.Detections
	for _, s := range list {
		if d, ok := s.(*qualys.Detections); ok { // there is nothing else
			requests = append(requests, d)
		}
	}
	return qualys.Together(requests)
}

// berth is that of an integration.
func (c *connector) berth(i *integration.Integration) *berth {
	c.fleet.mu.Lock()
	defer c.fleet.mu.Unlock()
	if c.fleet.berths == nil {
		c.fleet.berths = map[string]*berth{}
	}
	name := i.Destination()
	b := c.fleet.berths[name]
	if b == nil {
		b = &berth{}
		b.desk = &ondemand.Desk{
			File: ondemand.File{Store: c.store, Destination: name}, Clock: c.outside.time(), Log: c.log, NewID: c.outside.runID,
			NewRun: func(dataset *ingest.Dataset, id string, _ *ondemand.Request) (*ingest.Run, error) {
				return c.integrationRun(b.known.Load(), dataset, id)
			},
		}
		b.status = &status.Source{Store: c.store, Destination: name, Integration: i.Number(), Live: b.desk.Live, Now: c.outside.time().Now}
		c.fleet.berths[name] = b
	}
	b.known.Store(i)
	return b
}

// forget makes those that are not in a list unknown, and removes their berths where
// nothing goes on.
func (f *fleet) forget(list []*integration.Integration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.berths, func(name string, b *berth) bool {
		if slices.ContainsFunc(list, func(i *integration.Integration) bool { return i.Destination() == name }) {
			return false
		}
		b.known.Store(nil)
		return len(b.desk.Live(ingest.VM)) == 0
	})
}

// due tells whether an integration is to run now: by its schedule, or to go on with
// what is not complete.
func (c *connector) due(ctx context.Context, i *integration.Integration) bool {
	state, err := ingest.ReadCheckpoint(ctx, c.store, ingest.CheckpointName(i.Destination(), ingest.VM.Name), ingest.VM.Name)
	if err != nil || state == nil || state.Progress == nil {
		return true // its run tells what is wrong
	}
	last, now := state.Progress.Started, c.outside.time().Now()
	switch {
	case !last.Truncate(time.Second).After(i.Changed) || now.Before(last): // Changed has no fractions
		return true
	case state.Stalled > 0:
		return now.Sub(last) >= pause(state.Stalled)
	case state.Window != nil:
		return true
	}
	return i.Due(last, now)
}

// pause is how long after the begin of the last of n runs without progress the next
// begins.
func pause(n int) time.Duration { return min(stalledMost, stalledFirst<<min(n-1, 10)) }
