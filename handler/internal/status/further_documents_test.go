package status_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/checkpoint/folder"
	"qualys-sentinel/handler/internal/status"
)

// Whatever is written into a document of the state, the status is told, and what can be
// read is in it.
func TestStatusWithDocumentsThatAreBroken(t *testing.T) {
	const (
		kept    = "checkpoints/default/vm.json"
		asked   = "requests/open/default/vm/20261101T113000Z-asked1.json"
		done    = "requests/done/default/vm/20261101T113000Z-asked1.json"
		written = "runs/vm/20261101T113500Z-run1.json"
	)
	deep := strings.Repeat(`[`, 100_000)
	for name, c := range map[string]struct {
		in, doc string
		told    bool // as a problem
	}{
		"checkpoint, empty":                 {kept, ``, false},
		"checkpoint, null":                  {kept, `null`, true},
		"checkpoint, a list":                {kept, `[]`, true},
		"checkpoint, deep":                  {kept, deep, true},
		"checkpoint, cut off":               {kept, `{"version":1,"dataset":"vm","isolated":[{"id":1`, true},
		"checkpoint, of another":            {kept, `{"version":1,"dataset":"kb"}`, true},
		"checkpoint, null among isolated":   {kept, `{"version":1,"dataset":"vm","isolated":[null]}`, false},
		"checkpoint, a window of nothing":   {kept, `{"version":1,"dataset":"vm","window":{}}`, true},
		"checkpoint, progress of nothing":   {kept, `{"version":1,"dataset":"vm","lastRun":"a","progress":{}}`, false},
		"checkpoint, times far off":         {kept, `{"version":1,"dataset":"vm","watermark":"9999-12-31T23:59:59-23:59","saved":"0000-01-01T00:00:00+23:59","progress":{"started":"9999-12-31T23:59:59-23:59","counts":{}}}`, false},
		"checkpoint, a huge number":         {kept, `{"version":1,"dataset":"vm","window":{"nextId":1e400}}`, true},
		"checkpoint, 8 MiB of blanks":       {kept, strings.Repeat(" ", 8<<20) + `{"version":1}`, true},
		"request, empty":                    {asked, ``, true},
		"request, null":                     {asked, `null`, true},
		"request, null among attempts":      {asked, `{"version":1,"id":"asked1","dataset":"vm","asked":"2026-11-01T11:30:00Z","attempts":[null]}`, false},
		"request, attempts far off":         {asked, `{"version":1,"id":"asked1","dataset":"vm","asked":"2026-11-01T11:30:00Z","attempts":[{"run":"../../x","started":"9999-12-31T23:59:59-23:59"}]}`, true},
		"request, of another":               {asked, `{"version":1,"id":"other","dataset":"kb","asked":"2026-11-01T11:30:00Z"}`, true},
		"closed request, null":              {done, `null`, true},
		"closed request, without its end":   {done, `{"version":1,"id":"asked1","dataset":"vm","asked":"2026-11-01T11:30:00Z"}`, false},
		"run record, empty":                 {written, ``, true},
		"run record, null":                  {written, `null`, false},
		"run record, a text":                {written, `"x"`, true},
		"run record, limits of nothing":     {written, `{"version":1,"run":"run1","limits":{},"isolated":[{}],"warnings":[""]}`, false},
		"run record, times that overflow":   {written, `{"version":1,"run":"run1","started":"9999-12-31T23:59:59-23:59","ended":"0000-01-01T00:00:00+23:59"}`, false},
		"run record, not UTF-8":             {written, "{\"version\":1,\"run\":\"run1\",\"reason\":\"\xff\xfe\"}", false},
		"a folder in the place of a record": {written + "/x", `x`, true},
	} {
		t.Run(name, func(t *testing.T) {
			store := folder.New(t.TempDir())
			put(t, store, c.in, c.doc)
			put(t, store, "runs/kb/20261101T113500Z-fine.json", `{"version":1,"run":"fine","dataset":"kb","started":"2026-11-01T11:35:00Z","ended":"2026-11-01T11:36:00Z","outcome":"complete"}`)
			source := &status.Source{Store: store, Destination: "default", Now: func() time.Time { return now }}
			doc := source.Gather(context.Background())
			if _, err := json.Marshal(doc); err != nil {
				t.Errorf("the status cannot be written: %v", err)
			}
			problems := 0
			for _, d := range doc.Datasets {
				problems += len(d.Problems)
				if d.Dataset == "kb" && (len(d.Runs) != 1 || len(d.Problems) != 0) {
					t.Errorf("the other dataset: runs = %d, problems = %v", len(d.Runs), d.Problems)
				}
			}
			if (problems > 0) != c.told {
				t.Errorf("problems = %s, want told = %v", fmt.Sprint(doc.Datasets[0].Problems), c.told)
			}
			for _, id := range []string{"asked1", "run1", "fine"} {
				found, err := source.Find(context.Background(), id)
				if _, marshal := json.Marshal(found); marshal != nil {
					t.Errorf("%s cannot be written: %v", id, marshal)
				}
				if id == "fine" && (err != nil || found == nil) {
					t.Errorf("%s: %v, %v", id, found, err)
				}
			}
		})
	}
}
