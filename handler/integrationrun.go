package main

import (
	"cmp"
	"context"
	"errors"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/integration"
	"qualys-sentinel/handler/internal/loganalytics"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/turn"
)

// integrationRun makes a run for an integration.
func (c *connector) integrationRun(i *integration.Integration, dataset *ingest.Dataset, id string) (*ingest.Run, error) {
	s := c.settings
	r := &ingest.Run{
		ID: id, Dataset: dataset, Target: c.integrationTarget(i), DestinationName: i.Destination(), Integration: i.Number(),
		Store: c.store, Budget: s.RunBudget, Clock: c.outside.time(), MaxRecent: c.outside.recent, Lookback: s.Lookback, Overlap: s.Overlap,
		Policy: record.Policy{Bytes: -1, Without: !i.ResultSectionNeeded}, RowBytes: longestRow,
		Log: c.log.With(zap.String("run", id), zap.String("dataset", dataset.Name), zap.String("integration", i.Number()), zap.String("name", i.Name)),
	}
	d := qualys.NewDetections(c.client, dataset.Schema)
	d.Version, d.PageSize, d.By, d.Results = s.DetectionAPIVersion, cmp.Or(c.outside.hosts, s.PageSize), qualys.IncrementalBy(s.IncrementalBy), i.ResultSectionNeeded
	// The settings say which hosts, and each integration which of their findings.
	d.Filter = qualys.WithoutSelection(s.Filter)
	d.Select = i.Selection()
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
		return loganalytics.NewCollector(loganalytics.CollectorConfig{Endpoint: c.collectorAddress(i), Workspace: i.WorkspaceID, Key: key, LogType: i.CustomLogName, Transport: c.outside.transport, Advice: "check the integration's workspaceId and primaryKey, and the clock of this machine, which is a part of the signature"})
	}
	credential, err := c.identity.credential()
	if err != nil {
		return nil, err
	}
	return loganalytics.NewIngestion(loganalytics.IngestionConfig{
		Endpoint: i.Address(), Rule: i.DCRImmutableID, Stream: "Custom-" + i.CustomLogName, Credential: credential, Compressor: c.gzips, Transport: c.outside.transport,
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

	turn    turn.Turn
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
	if err := d.turn.Take(ctx); err != nil {
		return nil, err
	}
	defer d.turn.Leave()
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
