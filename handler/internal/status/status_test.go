package status_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/checkpoint/folder"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/status"
)

var update = flag.Bool("update", false, "write the golden files anew")

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func put(t *testing.T, store checkpoint.Store, name, doc string) {
	t.Helper()
	w, err := store.Create(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, doc); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// newSource is a state with something of everything: a run that is going on in
// another process, one that was killed, what was asked for, and what went wrong.
func newSource(t *testing.T) (*status.Source, checkpoint.Store) {
	t.Helper()
	store := folder.New(t.TempDir())
	put(t, store, "checkpoints/default/vm.json", `{"version":1,"dataset":"vm","watermark":"2026-11-01T11:00:00Z","stalled":1,
		"window":{"after":"2026-11-01T10:50:00Z","until":"2026-11-01T11:55:00Z","nextId":4711,"source":"x"},
		"isolated":[{"id":99,"after":null,"since":"2026-11-01T09:00:00Z","again":"2026-11-01T13:00:00Z","tries":3,"reason":"broken"}],
		"lastRun":"own2","saved":"2026-11-01T11:59:50Z","progress":{"started":"2026-11-01T11:58:00Z","counts":{"pages":2,"parents":40,"decoded":90,"accepted":80},"waiting":"30s: qualys answered 409"}}`)
	lease, err := store.Acquire(context.Background(), "checkpoints/default/vm.json") // somebody else's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lease.Release(context.Background()) })
	put(t, store, "checkpoints/default/requests/vm-asked1.json", `{"version":1,"dataset":"vm","watermark":null,"window":null,"lastRun":"asked1b"}`)
	put(t, store, "requests/open/default/vm/20261101T113000Z-asked1.json", `{"version":1,"id":"asked1","dataset":"vm","asked":"2026-11-01T11:30:00Z","since":"2026-10-01T00:00:00Z","hostIds":[1,2],
		"filterParameters":"&severities=5","tries":2,"attempts":[{"run":"asked1","started":"2026-11-01T11:30:00Z"},{"run":"asked1b","started":"2026-11-01T11:35:00Z"}]}`)
	put(t, store, "runs/vm/20261101T113500Z-asked1b.json", `{"version":1,"run":"asked1b","dataset":"vm","request":"asked1","started":"2026-11-01T11:35:00Z","ended":"2026-11-01T11:50:00Z","outcome":"waiting","reason":"qualys answered 409 code 1965","after":"2026-10-01T00:00:00Z","until":"2026-11-01T11:30:00Z","nextId":2,"accepted":10,"decoded":10}`)
	put(t, store, "requests/done/default/vm/20261031T080000Z-asked0.json", `{"version":1,"id":"asked0","dataset":"vm","asked":"2026-10-31T08:00:00Z","tries":1,"attempts":[{"run":"asked0","started":"2026-10-31T08:00:00Z"}],"ended":"2026-10-31T08:01:00Z","outcome":"complete"}`)
	put(t, store, "runs/vm/20261031T080000Z-asked0.json", `{"version":1,"run":"asked0","dataset":"vm","started":"2026-10-31T08:00:00Z","ended":"2026-10-31T08:01:00Z","outcome":"complete","after":null,"until":"2026-10-31T08:00:00Z","accepted":5,"decoded":5,"limits":{"calls":300,"remaining":280,"windowSec":3600,"concurrent":2,"running":0}}`)
	put(t, store, "runs/vm/20260901T000000Z-ancient.json", `{"version":1,"run":"ancient","dataset":"vm","started":"2026-09-01T00:00:00Z","ended":"2026-09-01T00:01:00Z","outcome":"failed","reason":"long ago","after":null,"until":null}`)
	put(t, store, "deadletter/vm/r1/rows-000000.ndjson.gz", "x")
	put(t, store, "deadletter/vm/r1/cut-000000.ndjson.gz", "x")
	put(t, store, "deadletter/vm/r2/cut-000000.ndjson.gz", "x")
	put(t, store, "checkpoints/default/kb.json", `{"version":7}`)
	put(t, store, "runs/kb/20261101T100000Z-broken.json", `{`)
	put(t, store, "checkpoints/integration-3/vm.json", `{"version":1,"dataset":"vm","watermark":"2026-11-01T11:55:00Z","window":null,"lastRun":"team1","progress":{"started":"2026-11-01T11:55:00Z","counts":{}}}`)
	put(t, store, "runs/integrations/3/vm/20261101T115500Z-team1.json", `{"version":1,"run":"team1","dataset":"vm","integration":"3","started":"2026-11-01T11:55:00Z","ended":"2026-11-01T11:56:00Z","outcome":"complete","after":null,"until":"2026-11-01T11:55:00Z","accepted":7,"decoded":7}`)
	put(t, store, "deadletter/integration-3/vm/r3/rows-000000.ndjson.gz", "x")
	clock := func() time.Time { return now }
	return &status.Source{Store: store, Destination: "default", Now: clock,
		Program: status.Program{Version: "1.2.3", APIs: map[string]string{"vm": "5.0", "kb": "4.0"}},
		Others: func(context.Context) ([]status.Other, error) {
			return []status.Other{{
				Integration: status.Integration{ID: 3, Name: "Team", To: "workspace w", Wants: "Confirmed; severity 3, 4, 5", Schedule: "0 0 6 * * *", Dataset: status.Dataset{Table: "QUALYS_SECURITY_VM_FINDINGS_CL"}},
				Of:          ingest.VM, Source: &status.Source{Store: store, Destination: "integration-3", Integration: "3", Now: clock},
			}}, errors.New("integrations/4.json is damaged: unexpected end of JSON input; correct or delete it")
		}}, store
}

// The documents are a contract: a change shows here.
func TestDocuments(t *testing.T) {
	source, _ := newSource(t)
	ctx := context.Background()
	docs := map[string]any{}
	gathered := source.Gather(ctx)
	gathered.Program.Go = "go"
	docs["status"] = gathered
	for _, id := range []string{"asked1", "own2", "ancient", "team1"} {
		doc, err := source.Find(ctx, id)
		if err != nil || doc == nil {
			t.Fatal(id, doc, err)
		}
		docs["sync-"+id] = doc
	}
	for name, doc := range docs {
		got, err := json.MarshalIndent(doc, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, '\n')
		path := filepath.Join("testdata", name+".json")
		if *update {
			if err := os.MkdirAll("testdata", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs; go test -update writes it anew:\n%s", path, got)
		}
	}
	if doc, err := source.Find(ctx, "nobody"); doc != nil || err != nil {
		t.Errorf("%+v, %v", doc, err)
	}
}

// An empty state is a status, too, without a null where there is a list.
func TestNothingYet(t *testing.T) {
	source := &status.Source{Store: folder.New(t.TempDir()), Destination: "default", Now: func() time.Time { return now }}
	doc := source.Gather(context.Background())
	text, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range doc.Datasets {
		if d.Watermark != nil || len(d.Runs) != 0 || len(d.Problems) != 0 {
			t.Errorf("%+v", d)
		}
	}
	if m := regexp.MustCompile(`"(running|runs|syncs|isolated|problems)":null`).FindAll(text, -1); m != nil {
		t.Errorf("%s", m)
	}
}

// counting counts what is read of a store.
type counting struct {
	checkpoint.Store
	mu     sync.Mutex
	opened map[string]int
	fail   error
}

func (c *counting) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	c.mu.Lock()
	c.opened[name]++
	c.mu.Unlock()
	if c.fail != nil {
		return nil, c.fail
	}
	return c.Store.Open(ctx, name)
}

// Of many runs the last ten are told, and each record is read once.
func TestLastRuns(t *testing.T) {
	store := folder.New(t.TempDir())
	for i := range 40 {
		started := now.Add(-time.Duration(i) * 3 * time.Hour)
		put(t, store, ingest.RecordName("", "vm", started, fmt.Sprintf("run%d", i)), fmt.Sprintf(`{"version":1,"run":"run%d","started":%q,"ended":%q,"outcome":"complete"}`, i, started.Format(time.RFC3339), started.Format(time.RFC3339)))
	}
	c := &counting{Store: store, opened: map[string]int{}}
	source := &status.Source{Store: c, Destination: "default", Now: func() time.Time { return now }}
	for range 3 {
		doc := source.Gather(context.Background())
		var ids []string
		for _, r := range doc.Datasets[0].Runs {
			ids = append(ids, r.Run)
		}
		if got := strings.Join(ids, " "); got != "run0 run1 run2 run3 run4 run5 run6 run7 run8 run9" {
			t.Errorf("%s", got)
		}
	}
	for name, n := range c.opened {
		if strings.HasPrefix(name, "runs/") && n != 1 {
			t.Errorf("%s was read %d times", name, n)
		}
	}
}

// A storage that is not well is told, and breaks nothing.
func TestUnwellStorage(t *testing.T) {
	_, store := newSource(t)
	source := &status.Source{Store: &counting{Store: store, opened: map[string]int{}, fail: errors.New("state storage: answered 403")}, Destination: "default", Now: func() time.Time { return now }}
	doc := source.Gather(context.Background())
	for _, d := range doc.Datasets {
		if len(d.Problems) == 0 || !strings.Contains(d.Problems[0], "answered 403") {
			t.Errorf("%s: %v", d.Dataset, d.Problems)
		}
	}
	if doc, err := source.Find(context.Background(), "asked1"); err == nil || doc != nil {
		t.Errorf("%+v, %v", doc, err)
	}
}

// The page asks nobody but the app, and its policy lets just its own script and
// style run.
func TestPage(t *testing.T) {
	page := string(status.Page)
	if n := strings.Count(page, "<script>"); n != 1 || strings.Count(page, "<style>") != 1 {
		t.Errorf("%d scripts", n)
	}
	for _, bad := range []string{"http://", "https://", "innerHTML", "insertAdjacent", "document.write", "eval(", " onclick=", " style=", "localStorage", "sessionStorage", "console."} {
		if strings.Contains(page, bad) {
			t.Errorf("it has %q", bad)
		}
	}
	if !regexp.MustCompile(`^default-src 'none'; script-src 'sha256-[A-Za-z0-9+/]{43}='; style-src 'sha256-[A-Za-z0-9+/]{43}='; connect-src 'self'; `).MatchString(status.PagePolicy) || strings.Contains(status.PagePolicy, "unsafe") {
		t.Error(status.PagePolicy)
	}
}

// A run that was killed leaves no record: the checkpoint tells of it, until the
// next run goes on.
func TestKilledRun(t *testing.T) {
	store := folder.New(t.TempDir())
	put(t, store, "checkpoints/default/vm.json", `{"version":1,"dataset":"vm","watermark":null,"window":null,"lastRun":"gone","saved":"2026-11-01T11:59:50Z","progress":{"started":"2026-11-01T11:58:00Z","counts":{"accepted":80}}}`)
	source := &status.Source{Store: store, Destination: "default", Now: func() time.Time { return now }}
	killed := func() *status.Run { return source.Gather(context.Background()).Datasets[0].Killed }
	if r := killed(); r == nil || r.Run != "gone" || r.Counts.Accepted != 80 || !r.AsOf.Equal(now.Add(-10*time.Second)) {
		t.Errorf("%+v", r)
	}
	lease, err := store.Acquire(context.Background(), "checkpoints/default/vm.json")
	if err != nil {
		t.Fatal(err)
	}
	if r := killed(); r != nil {
		t.Errorf("it is going on: %+v", r)
	}
	if err := lease.Release(context.Background()); err != nil {
		t.Fatal(err)
	}
	put(t, store, "runs/vm/20261101T115800Z-gone.json", `{"version":1,"run":"gone","dataset":"vm","started":"2026-11-01T11:58:00Z","ended":"2026-11-01T11:59:59Z","outcome":"complete"}`)
	if r := killed(); r != nil {
		t.Errorf("it has a record: %+v", r)
	}
}
