package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/integration"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/simulator"
)

// When an integration runs: by its schedule, at once when it was changed or is in the
// middle of a window, and ever more seldom while it makes no progress.
func TestDue(t *testing.T) {
	for n, want := range map[int]time.Duration{1: 4 * time.Minute, 2: 8 * time.Minute, 3: 16 * time.Minute, 4: 30 * time.Minute, 99: 30 * time.Minute} {
		if got := pause(n); got != want {
			t.Errorf("after %d runs %s, not %s", n, got, want)
		}
	}
	const window = `{"after":null,"until":"2026-11-01T00:00:00Z","nextId":5,"source":"x"}`
	for name, c := range map[string]struct {
		ago      time.Duration // of the last run; zero: there was none
		window   string
		stalled  int
		schedule string
		changed  time.Duration // ago
		due      bool
	}{
		"never ran":                    {due: true},
		"every tick":                   {ago: time.Minute, window: "null", due: true},
		"by schedule, not yet":         {ago: time.Minute, window: "null", schedule: "0 0 0 1 1 *"},
		"by schedule, in a window":     {ago: time.Minute, window: window, schedule: "0 0 0 1 1 *", due: true},
		"by schedule, changed":         {ago: time.Minute, window: "null", schedule: "0 0 0 1 1 *", changed: time.Second, due: true},
		"by schedule, over a year ago": {ago: 370 * 24 * time.Hour, window: "null", schedule: "0 0 0 1 1 *", due: true},
		"failed a minute ago":          {ago: time.Minute, window: window, stalled: 1},
		"failed five minutes ago":      {ago: 5 * time.Minute, window: window, stalled: 1, due: true},
		"failed often":                 {ago: 29 * time.Minute, window: window, stalled: 9},
		"failed often, half an hour":   {ago: 31 * time.Minute, window: window, stalled: 9, due: true},
		"failed often, changed":        {ago: time.Minute, window: window, stalled: 9, changed: time.Second, due: true},
		"by a clock that was ahead":    {ago: -time.Hour, window: "null", schedule: "0 0 0 1 1 *", due: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newCheckedWorld(t)
			conn, err := open(context.Background(), w.settings(), purpose{})
			if err != nil {
				t.Fatal(err)
			}
			now := time.Now().UTC()
			i := &integration.Integration{ID: 1, Changed: now.Add(-c.changed), Fields: integration.Fields{Schedule: c.schedule}}
			if c.changed == 0 {
				i.Changed = now.AddDate(-2, 0, 0)
			}
			if c.ago != 0 {
				doc := fmt.Sprintf(`{"version":1,"dataset":"vm","watermark":null,"window":%s,"stalled":%d,"lastRun":"x","progress":{"started":%q,"counts":{}}}`, c.window, c.stalled, now.Add(-c.ago).Format(time.RFC3339))
				path := filepath.Join(w.environ["stateFolder"], "checkpoints", "integration-1", "vm.json")
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(doc), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			if due := conn.due(context.Background(), i); due != c.due {
				t.Errorf("due: %t", due)
			}
		})
	}
}

// While the status is looked at a tick goes on, and the other way round; and of an
// integration that is deleted meanwhile nothing more is sent than what is on its way.
func TestTickIsLookedAt(t *testing.T) {
	w := newCheckedWorld(t)
	w.environ["initialLookbackDays"] = "0"
	w.integrate(0)
	c, err := open(context.Background(), w.settings(), purpose{log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	source := c.statusSource()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range 10 {
			if report, err := c.tick(context.Background(), ingest.VM); err != nil || report.Outcome != ingest.Complete {
				t.Errorf("%s, %v", report.Outcome, err)
			}
		}
	}()
	looks := 0
	for done := false; !done; looks++ {
		select {
		case <-ended:
			done = true
		default:
		}
		doc := source.Gather(context.Background())
		if len(doc.Integrations) != 2 || len(doc.Problems) != 0 {
			t.Fatalf("%+v", doc.Integrations)
		}
	}
	if looks < 3 {
		t.Errorf("%d looks", looks)
	}
	doc := source.Gather(context.Background())
	for _, i := range doc.Integrations {
		if i.Watermark == nil || len(i.Runs) == 0 || i.Runs[0].Outcome != ingest.Complete || i.Runs[0].Integration != fmt.Sprint(i.ID) {
			t.Errorf("%+v", i)
		}
	}
	if found, err := source.Find(context.Background(), doc.Integrations[1].Runs[0].Run); err != nil || found == nil || len(found.Syncs) != 1 {
		t.Errorf("%+v, %v", found, err)
	}
	if err := c.integrations.Delete(context.Background(), 1); err != nil {
		t.Fatal(err)
	}
	if _, err := c.tick(context.Background(), ingest.VM); err != nil {
		t.Error(err)
	}
	if n := len(c.fleet.berths); n != 1 {
		t.Errorf("%d are remembered", n)
	}
}

// Rows stop when their integration is deleted or turned elsewhere, and that is no fault.
func TestGoneIntegration(t *testing.T) {
	ctx := context.Background()
	w := newCheckedWorld(t)
	w.integrate(0)
	c, err := open(ctx, w.settings(), purpose{log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	rows := record.Batch{Body: []byte("[]")}
	for id, change := range map[int64]func() error{
		1: func() error { return c.integrations.Delete(ctx, 1) },
		2: func() error {
			change, err := integration.Parse([]byte(`{"customLogName":"Another"}`))
			if err == nil {
				_, err = c.integrations.Update(ctx, 2, change)
			}
			return err
		},
	} {
		i, err := c.integrations.Get(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		run, err := c.integrationRun(i, ingest.VM, "run")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := run.Destination.Send(ctx, rows); err != nil {
			t.Fatal(err)
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		run.Destination.(*lateDestination).checked = time.Time{} // some seconds later
		_, err = run.Destination.Send(ctx, rows)
		var gone *goneError
		if !errors.As(err, &gone) || !gone.Limit() || !strings.Contains(err.Error(), "nothing more is sent") {
			t.Errorf("%d: %v", id, err)
		}
	}
}

// An integration's workspace is in the cloud of the app, unless it says otherwise.
func TestCollectorAddress(t *testing.T) {
	const id = "22222222-0000-0000-0000-000000000001"
	for own, want := range map[string]string{
		"https://x.westeurope-1.ingest.monitor.azure.com": "https://" + id + ".ods.opinsights.azure.com",
		"https://x.usgovvirginia.ingest.monitor.azure.us": "https://" + id + ".ods.opinsights.azure.us",
		"https://x.chinaeast2.ingest.monitor.azure.cn":    "https://" + id + ".ods.opinsights.azure.cn",
		"http://127.0.0.1:7":                              "http://127.0.0.1:7",
	} {
		w := newCheckedWorld(t)
		w.environ["logAnalyticsUri"] = own
		w.environ["dcrImmutableId"] = simulator.NewAzure().Rule
		c, err := open(context.Background(), w.settings(), purpose{})
		if err != nil {
			t.Fatal(err)
		}
		if u := c.collectorAddress(&integration.Integration{Fields: integration.Fields{WorkspaceID: id}}); u.String() != want {
			t.Errorf("%s: %s", own, u)
		}
		other := "https://" + id + ".ods.opinsights.azure.us"
		if u := c.collectorAddress(&integration.Integration{Fields: integration.Fields{WorkspaceID: id, LogAnalyticsURI: other}}); u.String() != other {
			t.Errorf("%s: %s", own, u)
		}
	}
}
