package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"
	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/checkpoint/blob"
	"qualys-sentinel/handler/internal/checkpoint/folder"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/integration"
	"qualys-sentinel/handler/internal/loganalytics"
	"qualys-sentinel/handler/internal/ondemand"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/redact"
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
	// desk carries out runs for the default destination, and what is asked for by hand.
	desk *ondemand.Desk
	// integrations are the other destinations, fleet their desks.
	integrations *integration.Registry
	fleet        fleet
	// gzips is shared by all destinations.
	gzips   *loganalytics.Compressor
	log     *zap.Logger
	outside outside
}

// identity makes the app's credential once, when it is first needed.
type identity struct {
	clientID string
	// outside, if not nil, is there already.
	outside azcore.TokenCredential
	once    sync.Once
	made    azcore.TokenCredential
	err     error
}

// identityTime ends a call for a token that hangs; one takes less than a second.
const identityTime = 20 * time.Second

// credential is the managed identity under Azure, and elsewhere whoever has
// signed in on the machine.
func (i *identity) credential() (azcore.TokenCredential, error) {
	if i.outside != nil {
		return i.outside, nil
	}
	i.once.Do(func() {
		// Tries belong to runs, which count and bound them.
		client := azcore.ClientOptions{Retry: policy.RetryOptions{MaxRetries: 1, TryTimeout: identityTime}}
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
	// connecting leaves out what is wrong with settings that no connection needs.
	connecting bool
	// log of the runs; nil: nobody reads it.
	log *zap.Logger
	// secrets are told what the settings hold; nil: the connector has its own.
	secrets *redact.Redactor
	outside outside
}

// open reads the settings and makes a connector.
func open(ctx context.Context, environ []string, p purpose) (*connector, error) {
	c := &connector{rows: p.rows, knowledge: ingest.Joined{Dataset: ingest.KB}, log: p.log, outside: p.outside}
	if c.log == nil {
		c.log = zap.NewNop()
	}
	// Secrets are read with the same identity as everything else.
	c.identity.clientID, c.identity.outside = settings.ClientID(environ), p.outside.credential
	s, err := settings.Load(ctx, settings.Options{
		Environ:            environ,
		Vault:              c.vault(),
		CheckFilter:        qualys.CheckFilter,
		WithoutDestination: p.rows != "" || p.noDestination,
		WithoutSource:      p.noSource,
		Connecting:         p.connecting,
	})
	if err != nil {
		return nil, err
	}
	c.settings = s
	secrets := p.secrets
	if secrets == nil {
		secrets = &redact.Redactor{}
	}
	secrets.Know(s.Secrets()...)
	secrets.KnowLogin(s.Credentials().Login())
	c.client = &qualys.Client{
		Redactor:    secrets,
		Origin:      s.URI,
		Credentials: s.Credentials(),
		HTTP:        qualys.NewHTTPClient(),
		UserAgent:   "qualys-sentinel/" + version,
		Reserve:     s.CallReserve,
		Proxy:       http.ProxyFromEnvironment,
	}
	if c.outside.transport != nil {
		c.client.HTTP.Transport = c.outside.transport
	}
	if c.store, err = c.openStore(); err != nil {
		return nil, err
	}
	c.client.Memory = c.memory()
	c.gzips = loganalytics.NewCompressor(loganalytics.DefaultWriters)
	c.integrations = c.newRegistry()
	c.desk = &ondemand.Desk{
		File: ondemand.File{Store: c.store, Destination: c.destinationName()}, Clock: c.outside.time(), Log: c.log,
		NewRun: c.run, NewID: c.outside.runID,
	}
	return c, nil
}

// memory keeps what Qualys has refused or asked for.
func (c *connector) memory() checkpoint.Document {
	store := c.store
	if b, ok := store.(*blob.Store); ok {
		store = b.Brief()
	}
	return checkpoint.Document{Store: store, Name: "limits.json"}
}

// vault reads secrets with the app's identity.
func (c *connector) vault() *settings.KeyVault {
	v := &settings.KeyVault{Credential: c.identity.credential}
	if client := c.outside.client(); client != nil {
		v.Options = &azsecrets.ClientOptions{ClientOptions: azcore.ClientOptions{Transport: client}}
	}
	return v
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
	return blob.FromIdentity(s.StorageService, s.StateContainer, credential, c.outside.client())
}

// source of a dataset's pages, of the window w.
func (c *connector) source(dataset *ingest.Dataset, w ondemand.Window) (ingest.Source, error) {
	switch dataset {
	case ingest.VM:
		return c.detections(w)
	case ingest.KB:
		return c.knowledgeBase(), nil
	}
	return nil, fmt.Errorf("dataset %s has no source", dataset.Name)
}

func (c *connector) detections(w ondemand.Window) (*qualys.Detections, error) {
	s := c.settings
	d := qualys.NewDetections(c.client, ingest.VM.Schema)
	d.Version, d.Filter, d.PageSize = s.DetectionAPIVersion, s.Filter, s.PageSize
	d.PageSize = cmp.Or(c.outside.hosts, d.PageSize)
	d.By = qualys.IncrementalBy(s.IncrementalBy)
	d.Results = s.ResultsBytes != 0
	if w.FilterParameters != "" {
		filter, size, err := settings.ParseFilter(w.FilterParameters)
		if err == nil {
			err = qualys.CheckFilter(filter)
		}
		if err != nil {
			return nil, fmt.Errorf("filterParameters: %w", err)
		}
		d.Filter = filter
		if size > 0 {
			d.PageSize = size
		}
	}
	if len(w.HostIDs) > 0 {
		d.Filter = maps.Clone(d.Filter)
		if d.Filter == nil {
			d.Filter = url.Values{}
		}
		d.Filter.Set("ids", joinIDs(w.HostIDs))
	}
	return d, nil
}

func (c *connector) knowledgeBase() *qualys.KnowledgeBase {
	k := qualys.NewKnowledgeBase(c.client, ingest.KB.Schema)
	k.Version, k.PageSize = c.settings.KBAPIVersion, cmp.Or(c.outside.qids, c.settings.KBPageSize)
	return k
}

func joinIDs(ids []uint64) string {
	var b []byte
	for _, id := range ids {
		b = append(strconv.AppendUint(b, id, 10), ',')
	}
	return strings.TrimSuffix(string(b), ",")
}

// destinationName is the destination's in the state.
func (c *connector) destinationName() string {
	if c.rows != "" {
		return folderDestination
	}
	return defaultDestination
}

// destination of a table's rows.
func (c *connector) destination(schema *record.Schema, run string) (ingest.Destination, error) {
	s := c.settings
	if c.rows != "" {
		return loganalytics.NewFolder(c.rows, schema.Table, run), nil
	}
	if s.API == settings.DataCollector {
		return loganalytics.NewCollector(loganalytics.CollectorConfig{
			Endpoint: s.LogAnalyticsURI, Workspace: s.WorkspaceID, Key: s.WorkspaceKey, LogType: schema.LogType(), Transport: c.outside.transport,
		})
	}
	credential, err := c.identity.credential()
	if err != nil {
		return nil, err
	}
	return loganalytics.NewIngestion(loganalytics.IngestionConfig{
		Endpoint: s.LogAnalyticsURI, Rule: s.DCRImmutableID, Stream: schema.Stream(),
		Credential: credential, Compressor: c.gzips, Transport: c.outside.transport,
	})
}

// run makes a run of a dataset, of what asked asks for if that is not nil.
func (c *connector) run(dataset *ingest.Dataset, id string, asked *ondemand.Request) (*ingest.Run, error) {
	s := c.settings
	r := &ingest.Run{
		ID: id, Dataset: dataset, Target: c.target(), DestinationName: c.destinationName(),
		Store: c.store, Policy: record.KeepAll, Budget: s.RunBudget, Clock: c.outside.time(), BatchBytes: c.outside.batchBytes, MaxRecent: c.outside.recent,
	}
	r.Log = c.log.With(zap.String("run", r.ID), zap.String("dataset", dataset.Name))
	var window ondemand.Window
	if asked != nil {
		window = asked.Window
		r.Log = r.Log.With(zap.String("request", asked.ID))
	}
	var err error
	if r.Source, err = c.source(dataset, window); err != nil {
		return nil, err
	}
	if r.Destination, err = c.destination(dataset.Schema, r.ID); err != nil {
		return nil, err
	}
	if r.Health, err = c.destination(ingest.Health, r.ID); err != nil {
		return nil, err
	}
	switch dataset {
	case ingest.VM:
		r.Lookback, r.Overlap = s.Lookback, s.Overlap
		r.Policy = record.Policy{Bytes: s.ResultsBytes, Only: s.ResultQIDs, OnlyPath: "DETECTION/QID", Without: s.ResultsBytes == 0}
		if s.Enrich {
			r.Joined, r.JoinedIdentity = &c.knowledge, ingest.Identity(c.knowledgeBase(), r.Target)
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
