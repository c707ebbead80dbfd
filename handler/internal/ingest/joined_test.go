package ingest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/simulator"
)

// The storage fails for a moment: what was joined before is joined still.
func TestJoinWhileTheStorageIsNotWell(t *testing.T) {
	w := newKBWorld(t, 50)
	w.mustComplete()
	w.qualys.Subscription.Hosts, w.qualys.Subscription.Detections = 10, 10
	w.dataset, w.joined = ingest.VM, &ingest.Joined{Dataset: ingest.KB}
	w.mustComplete()
	w.clock.advance(20 * time.Hour)
	w.store.Store = opensOnly{w.store.Store, "kb.json"}
	if report := w.mustComplete(); report.Unjoined != 0 || report.Decoded == 0 {
		t.Errorf("%+v", report.Counts)
	}
}

// opensOnly is a store that does not open one document.
type opensOnly struct {
	checkpoint.Store
	not string
}

func (s opensOnly) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if strings.HasSuffix(name, s.not) {
		return nil, errors.New("storage is down")
	}
	return s.Store.Open(ctx, name)
}

func TestJoin(t *testing.T) {
	w := newKBWorld(t, 500)
	w.mustComplete()
	kb := w.knowledge()
	w.qualys.Subscription.Hosts, w.qualys.Subscription.Detections = 60, 30
	w.dataset, w.joined, w.page = ingest.VM, &ingest.Joined{Dataset: ingest.KB}, 20
	w.dest.keys, w.dest.rows = map[string]int{}, map[string]map[string]any{}
	if report := w.mustComplete(); report.Unjoined != 0 || report.Decoded < 1000 {
		t.Errorf("%+v", report.Counts)
	}
	w.wantEach(time.Time{})
	byQID := map[string]simulator.Entry{}
	for index := range kb.Entries() {
		e, _ := kb.Entry(index, w.clock.Now())
		byQID[strconv.Itoa(e.QID)] = e
	}
	check := func(revised string) {
		t.Helper()
		for _, row := range w.dest.rows {
			e := byQID[row["QID_s"].(string)]
			for name, want := range map[string]string{
				"Title_s": e.Title, "Severity_Level_s": e.Severity, "CVE_ID_s": strings.Join(e.CVEs, ", "),
				"CVSS_Base_s": e.CVSS, "CVSS3_Base_s": e.CVSS3, "Patchable_s": map[bool]string{true: "1", false: "0"}[e.Patchable],
			} {
				if name == "Title_s" {
					want += revised
				}
				if got, _ := row[name].(string); got != want {
					t.Fatalf("QID %d: %s is %q, want %q", e.QID, name, got, want)
				}
			}
		}
	}
	check("")

	// The KnowledgeBase changes; the findings do not: nothing is sent again, and
	// what is new carries the new title.
	now := w.clock.Now()
	for index := range 500 {
		kb.Edit(simulator.Edit{Index: index, At: now, Visible: now})
	}
	w.clock.advance(time.Minute)
	w.dataset = ingest.KB
	w.mustComplete()
	w.dataset = ingest.VM
	w.dest.keys, w.dest.rows = map[string]int{}, map[string]map[string]any{}
	if report := w.mustComplete(); report.Repeated == 0 || report.Decoded > report.Repeated {
		t.Errorf("findings are sent again because their entry has changed: %+v", report.Counts)
	}
	check(", revision 1")
	w.clock.advance(20 * time.Hour)
	w.mustComplete()
	if len(w.dest.rows) == 0 {
		t.Fatal("no host was scanned in 20 hours")
	}
	check(", revision 1")

	// The index of one destination is not joined for another.
	w.target = "dcr-2"
	if report := w.mustComplete(); w.logs.FilterMessageSnippet("not loaded yet").Len() != 1 || report.Unjoined != report.Decoded {
		t.Errorf("%+v", report.Counts)
	}
}

// A list too long for the destination's column is cut between its values, and
// is no dead letter: the entry's own row has it.
func TestJoinOfALongList(t *testing.T) {
	w := newKBWorld(t, 9)
	w.mustComplete()
	w.qualys.Subscription.Hosts, w.qualys.Subscription.Detections = 5, 30
	w.dataset, w.joined, w.dest.limits = ingest.VM, &ingest.Joined{Dataset: ingest.KB}, record.Limits{FieldBytes: 100}
	w.policy = record.Policy{}
	w.dest.keys, w.dest.rows = map[string]int{}, map[string]map[string]any{}
	w.mustComplete()
	long := 0
	for _, row := range w.dest.rows {
		if list, _ := row["CVE_ID_s"].(string); len(list) > 80 {
			for _, cve := range strings.Split(list, ", ") {
				if long++; !regexp.MustCompile(`^CVE-\d{4}-\d{4,5}$`).MatchString(cve) || len(list) > 100 || strings.Contains(fmt.Sprint(row["Cut_s"]), "CVE") {
					t.Fatalf("%q of %v", cve, row)
				}
			}
		}
	}
	if long == 0 {
		t.Error("no long list")
	}
}

// Findings do not wait for the KnowledgeBase.
func TestJoinWithoutIndex(t *testing.T) {
	w := newWorld(t, 10, 10)
	w.joined = &ingest.Joined{Dataset: ingest.KB}
	report := w.mustComplete()
	w.wantEach(time.Time{})
	if report.Unjoined != report.Decoded || w.logs.FilterMessageSnippet("not loaded yet").Len() != 1 {
		t.Errorf("%+v", report.Counts)
	}
	dir := filepath.Join(w.state, "checkpoints", "default")
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "kb.json"), []byte(`{"version":1,"dataset":"kb","index":"g"}`), 0o600), os.Mkdir(filepath.Join(dir, "kb.index"), 0o700),
		os.WriteFile(filepath.Join(dir, "kb.index", "g.gz"), []byte("no gzip"), 0o600)); err != nil {
		t.Fatal(err)
	}
	w.clock.advance(20 * time.Hour)
	w.mustComplete()
	if w.logs.FilterMessageSnippet("cannot be read").Len() != 1 {
		t.Error("nobody was told")
	}
}

// What a killed run has left in the journal is joined, too.
func TestJoinReadsTheJournal(t *testing.T) {
	w := newKBWorld(t, 100)
	w.mustComplete()
	now := w.clock.Now()
	w.knowledge().Edit(simulator.Edit{Index: 5, At: now, Visible: now})
	w.clock.advance(time.Minute)
	saves := 0
	w.store.beforeSave = func([]byte) error {
		if saves++; saves == 1 {
			return nil // the run finds out whether it can save
		}
		return errKilled
	}
	w.store.beforeCreate = func(string) error { return errKilled }
	if _, err := w.do(); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	w.store.beforeSave, w.store.beforeCreate = nil, nil
	w.qualys.Subscription.Hosts, w.qualys.Subscription.Detections = 30, 30
	w.dataset, w.joined = ingest.VM, &ingest.Joined{Dataset: ingest.KB}
	w.mustComplete()
	e, _ := w.knowledge().Entry(5, w.clock.Now())
	found := false
	for _, row := range w.dest.rows {
		if row["TrackingMethod_s"] != nil && row["QID_s"] == strconv.Itoa(e.QID) {
			if found = true; row["Title_s"] != e.Title {
				t.Errorf("title %v, want %s", row["Title_s"], e.Title)
			}
		}
	}
	if !found {
		t.Error("no detection of the QID")
	}
}
