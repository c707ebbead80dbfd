package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/checkpoint/blob"
	"qualys-sentinel/handler/internal/checkpoint/folder"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/loganalytics"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/settings"
)

// defaultDestination is the name, in the state, of the one destination that
// the settings describe.
const defaultDestination = "default"

// folderDestination is that of rows into a local folder: it has a checkpoint
// of its own.
const folderDestination = "folder"

// A connector is the parts that runs are made of, from one set of settings.
type connector struct {
	settings *settings.Settings
	client   *qualys.Client
	store    checkpoint.Store
	identity identity
	// knowledge is joined to detections, if the settings want it.
	knowledge ingest.Joined
	// rows, if not empty, is a local folder that rows go to instead.
	rows string
}

// identity makes the app's credential once, when it is first needed.
type identity struct {
	clientID string
	once     sync.Once
	made     azcore.TokenCredential
	err      error
}

// credential is the managed identity under Azure, and elsewhere whoever has
// signed in on the machine.
func (i *identity) credential() (azcore.TokenCredential, error) {
	i.once.Do(func() {
		// Tries belong to runs, which count and bound them.
		client := azcore.ClientOptions{Retry: policy.RetryOptions{MaxRetries: 1}}
		if os.Getenv("IDENTITY_ENDPOINT") == "" {
			i.made, i.err = azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{ClientOptions: client})
			return
		}
		options := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: client}
		if i.clientID != "" {
			options.ID = azidentity.ClientID(i.clientID)
		}
		i.made, i.err = azidentity.NewManagedIdentityCredential(options)
	})
	if i.err != nil {
		return nil, fmt.Errorf("identity: %w", i.err)
	}
	return i.made, nil
}

// purpose is what a connector is for: what it does not need is not asked for.
type purpose struct {
	rows                    string // a local folder that rows go to
	noSource, noDestination bool
}

// open makes a connector for runs.
func open(ctx context.Context, environ []string, rows string) (*connector, error) {
	return openFor(ctx, environ, purpose{rows: rows})
}

// openFor reads the settings and makes a connector.
func openFor(ctx context.Context, environ []string, p purpose) (*connector, error) {
	c := &connector{rows: p.rows, knowledge: ingest.Joined{Dataset: ingest.KB}}
	// Secrets are read with the same identity as everything else.
	c.identity.clientID = settings.ClientID(environ)
	s, err := settings.Load(ctx, settings.Options{
		Environ:            environ,
		Vault:              &settings.KeyVault{Credential: c.identity.credential},
		CheckFilter:        qualys.CheckFilter,
		WithoutDestination: p.rows != "" || p.noDestination,
		WithoutSource:      p.noSource,
	})
	if err != nil {
		return nil, err
	}
	c.settings = s
	c.client = &qualys.Client{
		Origin:      s.URI,
		Credentials: s.Credentials(),
		HTTP:        qualys.NewHTTPClient(),
		UserAgent:   "qualys-sentinel/" + version,
		Reserve:     s.CallReserve,
	}
	if c.store, err = c.openStore(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *connector) openStore() (checkpoint.Store, error) {
	s := c.settings
	switch {
	case s.StateFolder != "":
		return folder.New(s.StateFolder), nil
	case s.StorageConnection != "":
		return blob.FromConnectionString(s.StorageConnection, s.StateContainer)
	}
	credential, err := c.identity.credential()
	if err != nil {
		return nil, err
	}
	return blob.FromIdentity(s.StorageService, s.StateContainer, credential)
}

// source of a dataset's pages.
func (c *connector) source(dataset *ingest.Dataset) (ingest.Source, error) {
	s := c.settings
	switch dataset {
	case ingest.VM:
		d := qualys.NewDetections(c.client, dataset.Schema)
		d.Version, d.Filter, d.PageSize = s.DetectionAPIVersion, s.Filter, s.PageSize
		d.By = qualys.IncrementalBy(s.IncrementalBy)
		d.Results = s.ResultsBytes != 0
		return d, nil
	case ingest.KB:
		k := qualys.NewKnowledgeBase(c.client, dataset.Schema)
		k.Version, k.PageSize = s.KBAPIVersion, s.KBPageSize
		return k, nil
	}
	return nil, fmt.Errorf("dataset %s has no source", dataset.Name)
}

// destination of a table's rows.
func (c *connector) destination(schema *record.Schema, run string) (ingest.Destination, string, error) {
	s := c.settings
	if c.rows != "" {
		return loganalytics.NewFolder(c.rows, schema.Table, run), folderDestination, nil
	}
	if s.API == settings.DataCollector {
		d, err := loganalytics.NewCollector(loganalytics.CollectorConfig{
			Endpoint: s.LogAnalyticsURI, Workspace: s.WorkspaceID, Key: s.WorkspaceKey, LogType: schema.LogType(),
		})
		return d, defaultDestination, err
	}
	credential, err := c.identity.credential()
	if err != nil {
		return nil, "", err
	}
	d, err := loganalytics.NewIngestion(loganalytics.IngestionConfig{
		Endpoint: s.LogAnalyticsURI, Rule: s.DCRImmutableID, Stream: schema.Stream(),
		Credential: credential,
	})
	return d, defaultDestination, err
}

// run makes a run of a dataset.
func (c *connector) run(dataset *ingest.Dataset, log *zap.Logger) (*ingest.Run, error) {
	s := c.settings
	r := &ingest.Run{
		ID: strings.ToLower(rand.Text()[:16]), Dataset: dataset, Target: c.target(),
		Store: c.store, Policy: record.KeepAll, Budget: s.RunBudget, Clock: ingest.SystemClock{},
	}
	r.Log = log.With(zap.String("run", r.ID), zap.String("dataset", dataset.Name))
	var err error
	if r.Source, err = c.source(dataset); err != nil {
		return nil, err
	}
	if r.Destination, r.DestinationName, err = c.destination(dataset.Schema, r.ID); err != nil {
		return nil, err
	}
	if r.Health, _, err = c.destination(ingest.Health, r.ID); err != nil {
		return nil, err
	}
	switch dataset {
	case ingest.VM:
		r.Lookback, r.Overlap = s.Lookback, s.Overlap
		r.Policy = record.Policy{Bytes: s.ResultsBytes, Only: s.ResultQIDs, OnlyPath: "DETECTION/QID"}
		if s.Enrich {
			knowledge, err := c.source(ingest.KB)
			if err != nil {
				return nil, err
			}
			r.Joined, r.JoinedIdentity = &c.knowledge, ingest.Identity(knowledge, r.Target)
		}
	case ingest.KB:
		r.Overlap, r.Refresh = s.KBOverlap, s.KBRefresh
	}
	return r, nil
}

// target tells destinations apart: which rule, workspace or folder.
func (c *connector) target() string {
	s := c.settings
	switch {
	case c.rows != "":
		if abs, err := filepath.Abs(c.rows); err == nil {
			return abs // however it was spelt
		}
		return c.rows
	case s.API == settings.DataCollector:
		return s.LogAnalyticsURI.Hostname() + " " + s.WorkspaceID
	}
	return s.LogAnalyticsURI.Hostname() + " " + s.DCRImmutableID
}

// closeRun frees what a run's destination holds.
func closeRun(r *ingest.Run) error {
	var errs []error
	for _, d := range []ingest.Destination{r.Destination, r.Health} {
		if f, ok := d.(*loganalytics.Folder); ok {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}
