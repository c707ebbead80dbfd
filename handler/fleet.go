package main

import (
	"context"
	"errors"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/integration"
	"qualys-sentinel/handler/internal/loganalytics"
	"qualys-sentinel/handler/internal/ondemand"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/settings"
	"qualys-sentinel/handler/internal/status"
)

// What the destinations of a tick share, so that their number is no matter of memory.
const (
	// sharedBatches is what their batches take together, in bytes: a few of each are
	// filled or on their way.
	sharedBatches = 12 << 20
	// leastBatch of one of them: smaller ones make calls, and save nothing.
	leastBatch = 64 << 10
	// sharedRecent is how many rows they remember together, leastRecent each of them.
	sharedRecent = 1_000_000
	leastRecent  = 10_000
	// longestRow of an integration, however many there are: that of RESULTS as nearly
	// all have them. What is longer is cut, flagged, and kept whole in the state.
	longestRow = 128 << 10
	// sharedInFlight is how many batches of each may be on their way; one where there
	// are more than fewDestinations.
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
	// known is the integration as it was read last.
	known atomic.Pointer[integration.Integration]
}

// registry of the integrations.
func (c *connector) newRegistry() *integration.Registry {
	r := &integration.Registry{Store: c.store, Clock: ingest.SystemClock{}, Log: c.log}
	// Where rows go to a simulator on this machine, others may, too.
	r.Local = c.settings.LogAnalyticsURI == nil || settings.Loopback(c.settings.LogAnalyticsURI)
	if vault := c.settings.IntegrationVault; vault != "" {
		r.Keys = &settings.KeyFile{KeyVault: settings.KeyVault{Credential: c.identity.credential}, Vault: vault, NewID: func() string { return newRunID()[:8] }}
	}
	return r
}

// tick is one of a dataset, for all destinations.
func (c *connector) tick(ctx context.Context, dataset *ingest.Dataset) (ingest.Report, error) {
	t := ondemand.Tick{Dataset: dataset, Clock: ingest.SystemClock{}, Log: c.log, Members: []ondemand.Member{{Desk: c.desk, Requests: true}}}
	if dataset == ingest.VM {
		t.Members = append(t.Members, c.newcomers(ctx, t.Members)...)
		members := t.Members
		t.More = func(ctx context.Context) []ondemand.Member {
			come := c.newcomers(ctx, members)
			members = append(members, come...)
			return come
		}
		if n := len(t.Members); n > 1 {
			t.Convoy = &ingest.Convoy{Together: together, Clock: t.Clock, Log: c.log}
			t.Began = func(run *ingest.Run) { share(run, n) }
		}
	}
	own := t.Do(ctx)[0]
	return *own.Report, own.Err
}

// newcomers are the integrations that are not among the members.
func (c *connector) newcomers(ctx context.Context, members []ondemand.Member) (list []ondemand.Member) {
	integrations, err := c.integrations.List(ctx)
	if err != nil {
		// The others get theirs.
		c.log.Error("not all integrations can be read: those get nothing", zap.Error(err))
	} else {
		c.forget(integrations)
	}
	for _, i := range integrations {
		b := c.berth(i)
		if slices.ContainsFunc(members, func(m ondemand.Member) bool { return m.Desk == b.desk }) {
			continue
		}
		list = append(list, ondemand.Member{Desk: b.desk, Due: func(ctx context.Context) bool {
			// It may have been changed or deleted since.
			now, err := c.integrations.Get(ctx, i.ID)
			if err != nil || now.Destination() != i.Destination() {
				return false
			}
			b.known.Store(now)
			return c.due(ctx, now)
		}})
	}
	return list
}

// share gives a run its part of what n destinations share. The default one has what it
// has alone, but does not hold the others up.
func share(run *ingest.Run, n int) {
	run.Patience = ingest.DefaultPatience
	if run.Integration == "" {
		return
	}
	run.InFlight = sharedInFlight
	if n > fewDestinations {
		run.InFlight = 1
	}
	run.BatchBytes = max(leastBatch, sharedBatches/(n*(sharedInFlight+1)))
	run.MaxRecent = min(ingest.DefaultMaxRecent, max(leastRecent, sharedRecent/n))
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
		b.known.Store(i)
		b.desk = &ondemand.Desk{
			File: ondemand.File{Store: c.store, Destination: name}, Clock: ingest.SystemClock{}, Log: c.log, NewID: newRunID,
			NewRun: func(dataset *ingest.Dataset, id string, _ *ondemand.Request) (*ingest.Run, error) {
				return c.integrationRun(b.known.Load(), dataset, id)
			},
		}
		b.status = &status.Source{Store: c.store, Destination: name, Integration: i.Number(), Live: b.desk.Live, Now: time.Now}
		c.fleet.berths[name] = b
	}
	return b
}

// forget keeps the berths of those that there are.
func (c *connector) forget(list []*integration.Integration) {
	c.fleet.mu.Lock()
	defer c.fleet.mu.Unlock()
	maps.DeleteFunc(c.fleet.berths, func(name string, b *berth) bool {
		return len(b.desk.Live(ingest.VM)) == 0 && !slices.ContainsFunc(list, func(i *integration.Integration) bool { return i.Destination() == name })
	})
}

// due tells whether an integration is to run now: by its schedule, or to go on with
// what is not complete.
func (c *connector) due(ctx context.Context, i *integration.Integration) bool {
	state, err := ingest.ReadCheckpoint(ctx, c.store, ingest.CheckpointName(i.Destination(), ingest.VM.Name), ingest.VM.Name)
	if err != nil || state == nil || state.Progress == nil {
		return true // its run tells what is wrong
	}
	last, now := state.Progress.Started, time.Now()
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

// integrationRun makes a run for an integration.
func (c *connector) integrationRun(i *integration.Integration, dataset *ingest.Dataset, id string) (*ingest.Run, error) {
	s := c.settings
	r := &ingest.Run{
		ID: id, Dataset: dataset, Target: c.integrationTarget(i), DestinationName: i.Destination(), Integration: i.Number(),
		Store: c.store, Budget: s.RunBudget, Clock: ingest.SystemClock{}, Lookback: s.Lookback, Overlap: s.Overlap,
		Policy: record.Policy{Bytes: -1, Without: !i.ResultSectionNeeded}, RowBytes: longestRow,
		Log: c.log.With(zap.String("run", id), zap.String("dataset", dataset.Name), zap.String("integration", i.Number()), zap.String("name", i.Name)),
	}
	d := qualys.NewDetections(c.client, dataset.Schema)
	d.Version, d.PageSize, d.By, d.Results = s.DetectionAPIVersion, s.PageSize, qualys.IncrementalBy(s.IncrementalBy), i.ResultSectionNeeded
	// The settings say which hosts, and each integration which of their findings.
	d.Filter = qualys.WithoutSelection(s.Filter)
	d.Select = selection(i)
	r.Source = d
	r.Destination = &lateDestination{Destination: kindOf(i), open: func(ctx context.Context) (ingest.Destination, error) { return c.integrationDestination(ctx, i) }, check: func(ctx context.Context) error { return c.stillWanted(ctx, i) }}
	var err error
	if r.Health, err = c.destination(ingest.Health, id); err != nil {
		return nil, err
	}
	if s.Enrich {
		r.Joined, r.JoinedIdentity, r.JoinedDestination = &c.knowledge, ingest.Identity(c.knowledgeBase(), c.target()), c.destinationName()
	}
	return r, nil
}

// selection is what an integration wants.
func selection(i *integration.Integration) *qualys.Selection {
	types := map[string]string{
		integration.CategoryConfirmed: qualys.Confirmed, integration.CategoryPotential: qualys.Potential, integration.CategoryIG: qualys.Info,
	}
	s := &qualys.Selection{Severities: i.WantedSeverities(), Statuses: i.Statuses, Tags: i.Tags}
	for _, category := range i.Categories() {
		s.Types = append(s.Types, types[category])
	}
	return s
}

// integrationTarget tells an integration's destinations apart.
func (c *connector) integrationTarget(i *integration.Integration) string {
	if i.ByRule() {
		return i.Address().Hostname() + " " + i.DCRImmutableID + " " + i.CustomLogName
	}
	return c.collectorAddress(i).Hostname() + " " + i.WorkspaceID + " " + i.CustomLogName
}

// collectorAddress is that of an integration's workspace: in the app's own cloud,
// where it names no other.
func (c *connector) collectorAddress(i *integration.Integration) *url.URL {
	if u := i.Address(); u != nil {
		return u
	}
	own := c.settings.LogAnalyticsURI
	if own != nil && own.Scheme == "http" { // a simulator's, on this machine
		return own
	}
	cloud := "com"
	if own != nil {
		cloud = own.Hostname()[strings.LastIndex(own.Hostname(), ".")+1:]
	}
	return &url.URL{Scheme: "https", Host: i.WorkspaceID + ".ods.opinsights.azure." + cloud}
}

// integrationDestination takes an integration's rows.
func (c *connector) integrationDestination(ctx context.Context, i *integration.Integration) (ingest.Destination, error) {
	if !i.ByRule() {
		key, err := c.integrations.Key(ctx, i)
		if err != nil {
			return nil, err
		}
		return loganalytics.NewCollector(loganalytics.CollectorConfig{Endpoint: c.collectorAddress(i), Workspace: i.WorkspaceID, Key: key, LogType: i.CustomLogName, Advice: "check the integration's workspaceId and primaryKey, and the clock of this machine, which is a part of the signature"})
	}
	credential, err := c.identity.credential()
	if err != nil {
		return nil, err
	}
	return loganalytics.NewIngestion(loganalytics.IngestionConfig{
		Endpoint: i.Address(), Rule: i.DCRImmutableID, Stream: "Custom-" + i.CustomLogName, Credential: credential, Compressor: c.gzips,
	})
}

// goneError ends the run of an integration that was deleted, or turned to another
// workspace: nothing is wrong with it.
type goneError struct{ what string }

func (e *goneError) Error() string { return e.what }

// Limit implements the error that is no fault.
func (*goneError) Limit() bool { return true }

// stillWanted tells whether rows may still go where an integration has sent them.
func (c *connector) stillWanted(ctx context.Context, i *integration.Integration) error {
	now, err := c.integrations.Get(ctx, i.ID)
	switch {
	case errors.Is(err, integration.ErrNotFound):
		return &goneError{"the integration was deleted: nothing more is sent"}
	case err == nil && now.Destination() != i.Destination():
		return &goneError{"the integration was turned elsewhere: nothing more is sent here"}
	}
	return nil // what cannot be read says nothing
}

// kindOf is an integration's destination as far as its limits go.
func kindOf(i *integration.Integration) ingest.Destination {
	if i.ByRule() {
		return &loganalytics.Ingestion{}
	}
	return &loganalytics.Collector{}
}

// lateDestination is opened when the first rows are sent: its key is in a vault, which
// may be slow, and nobody else is to wait for that.
type lateDestination struct {
	ingest.Destination // tells the limits
	open               func(ctx context.Context) (ingest.Destination, error)
	// check, if not nil, is asked now and then whether rows may still be sent.
	check func(ctx context.Context) error

	mu      sync.Mutex
	opened  ingest.Destination
	checked time.Time
}

// checkEvery is how long rows may go on to an integration that was deleted or turned
// elsewhere: a document is read so often.
const checkEvery = 5 * time.Second

// Send implements ingest.Destination.
func (d *lateDestination) Send(ctx context.Context, b record.Batch) (int64, error) {
	opened, err := d.get(ctx)
	if err != nil {
		return 0, err
	}
	return opened.Send(ctx, b) //nolint:wrapcheck // a wrapper adds nothing
}

func (d *lateDestination) get(ctx context.Context) (ingest.Destination, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := time.Now(); d.check != nil && now.Sub(d.checked) >= checkEvery {
		if err := d.check(ctx); err != nil {
			return nil, err
		}
		d.checked = now
	}
	if d.opened == nil {
		opened, err := d.open(ctx)
		if err != nil {
			return nil, err
		}
		d.opened = opened
	}
	return d.opened, nil
}
