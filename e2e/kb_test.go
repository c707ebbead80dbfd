//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/e2e/azurite"
	"qualys-sentinel/e2e/canary"
	"qualys-sentinel/handler/simulation"
)

// entries counts arrived rows of the KnowledgeBase: all, and how many states of
// an entry arrived more than once.
func (s *services) entries() (rows, twice int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, list := range s.kb {
		rows += len(list)
		twice += len(list) - 1
	}
	return rows, twice
}

// missing counts entries whose state at a time has not arrived.
func (s *services) missingEntries(now time.Time) (missing int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for index := range s.sub.Knowledge.Entries() {
		e, ok := s.sub.Knowledge.Entry(index, now)
		if ok && len(s.kb[fmt.Sprintf("%d@%s", e.QID, e.Modified.Format(time.RFC3339))])+len(s.kb[fmt.Sprintf("%d@%s@%s", e.QID, e.Modified.Format(time.RFC3339), e.Customized())]) == 0 {
			missing++
		}
	}
	return missing
}

// reports reads the run records of a dataset.
func (s *services) reports(dataset string) (list []simulation.Report) {
	for _, doc := range s.documents("runs/" + dataset + "/") {
		var r simulation.Report
		if err := json.Unmarshal(doc, &r); err != nil {
			s.t.Error(err)
		}
		list = append(list, r)
	}
	return list
}

// The whole KnowledgeBase arrives over several ticks, each QID once; then each
// change once, however late it becomes visible, and nothing else.
func TestKnowledgeBase(t *testing.T) {
	t.Parallel() // it mostly waits
	for name, c := range map[string]struct {
		size   int
		change map[string]string
	}{
		"logs ingestion": {20_000, nil},
		"data collector": {3_000, map[string]string{"logAnalyticsApi": "data-collector", "dcrImmutableId": "", "workspaceID": "11111111-1111-1111-1111-111111111111", "workspaceKey": canary.WorkspaceKeyText()}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startServices(t, 40, 30)
			for k, v := range c.change {
				s.environ[k] = v
			}
			s.environ["kbSchedule"], s.environ["runBudget"], s.environ["enrichDetections"] = "*/2 * * * * *", "3s", "true"
			s.environ["kbPageSize"] = strconv.Itoa(c.size / 8)
			kb := &simulation.Knowledge{Seed: 5, Size: c.size, Pause: func() { <-time.After(200 * time.Millisecond) }}
			s.setKnowledge(kb)
			h := startHost(t, s)
			loaded := windowAfter(t, s, h, "kb", time.Time{})
			rows, twice := s.entries()
			if missing := s.missingEntries(s.clock()); rows != c.size || twice != 0 || missing != 0 {
				t.Fatalf("%d rows of %d entries, %d twice, %d missing", rows, c.size, twice, missing)
			}
			paused := 0
			for _, r := range s.reports("kb") {
				if r.Outcome == "paused" {
					paused++
				}
				if r.Decoded != r.Accepted {
					t.Errorf("run %s: %+v", r.Run, r.Counts)
				}
			}
			if paused < 2 || loaded.LastFull == nil {
				t.Errorf("loaded in one go: %d runs were paused, checkpoint %+v", paused, loaded)
			}
			t.Logf("%d entries, %d paused runs, %d calls", rows, paused, len(s.qualys.KnowledgeCalls()))
			calls := len(s.qualys.KnowledgeCalls())

			// 300 edits: some changed, disabled or new, and a third of them shows
			// nine hours after its date.
			now := s.clock()
			for n := range 300 {
				edit := simulation.Edit{Index: n * (c.size / 300), At: now, Visible: now}
				switch n % 10 {
				case 1:
					edit.Kind = simulation.Disabled
				case 2:
					edit.Kind, edit.Index = simulation.Published, c.size+n/10
				}
				if n%3 == 0 {
					edit.Visible = now.Add(9 * time.Hour)
				}
				kb.Edit(edit)
			}
			for _, step := range []struct {
				after time.Duration
				want  int
			}{{20 * time.Minute, 200}, {10 * time.Hour, 300}, {10 * time.Hour, 300}, {20 * time.Hour, 300}} {
				s.advance(step.after)
				windowAfter(t, s, h, "kb", s.clock().Add(-time.Second))
				rows, twice := s.entries()
				if missing := s.missingEntries(s.clock()); rows != c.size+step.want || twice != 0 || missing != 0 {
					t.Errorf("%s on: %d rows of %d entries and %d edits, %d twice, %d missing", step.after, rows, c.size, step.want, twice, missing)
				}
			}
			for _, call := range s.qualys.KnowledgeCalls()[calls:] {
				if !call.Has("last_modified_after") {
					t.Errorf("a later tick asks for everything: %v", call)
				}
			}
			if arrived := s.azure.Arrived(); len(arrived.Dropped) != 0 || arrived.Truncated != 0 {
				t.Errorf("the service would have dropped or cut: %+v", arrived)
			}
			s.checkJoin(t, h)
		})
	}
}

// checkJoin carries the detections over, and looks at what the KnowledgeBase
// has added to each.
func (s *services) checkJoin(t *testing.T, h *functionsHost) {
	t.Helper()
	// On a busy machine the time of one run may be too short.
	carryThrough(t, s, h, "QualysVM", "vm", func(*simulation.Checkpoint) {})
	titles := map[string]string{}
	for index := range s.sub.Knowledge.Entries() {
		if e, ok := s.sub.Knowledge.Entry(index, s.clock()); ok {
			titles[strconv.Itoa(e.QID)] = e.Title + "|" + strings.Join(e.CVEs, ", ") + "|" + e.CVSS
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, list := range s.rows {
		var row map[string]string
		var raw map[string]any
		if err := json.Unmarshal(list[0], &raw); err != nil {
			t.Fatal(err)
		}
		row = map[string]string{}
		for name, v := range raw {
			if text, ok := v.(string); ok {
				row[strings.TrimSuffix(name, "_s")] = text
			}
		}
		if got := row["Title"] + "|" + row["CVE_ID"] + "|" + row["CVSS_Base"]; got != titles[row["QID"]] {
			t.Fatalf("detection %s of QID %s carries %q, want %q", key, row["QID"], got, titles[row["QID"]])
		}
	}
	if len(s.rows) < 500 {
		t.Errorf("only %d detections", len(s.rows))
	}
}

// A subscription that may not download the KnowledgeBase is told so, and its
// detections arrive all the same.
func TestKnowledgeBaseRefused(t *testing.T) {
	t.Parallel()
	s := startServices(t, 3, 3)
	s.setKnowledge(&simulation.Knowledge{Seed: 5, Size: 10, Refused: true})
	s.environ["enrichDetections"] = "true"
	h := startHost(t, s)
	for _, function := range []string{"QualysKB", "QualysVM"} {
		if err := h.trigger(function); err != nil {
			t.Fatal(err)
		}
	}
	windowAfter(t, s, h, "vm", time.Time{})
	azurite.Eventually(t, 30*time.Second, "the fault is told", func() error {
		for _, want := range []string{"answered 403 code 2012", "may not download the KnowledgeBase by API: ask Qualys Support", "the KnowledgeBase is not loaded yet"} {
			if out := h.output(); !strings.Contains(out, want) {
				return fmt.Errorf("no %q in:\n%s", want, out)
			}
		}
		return nil
	})
	if dup, total, _ := s.duplicates(time.Time{}, s.clock()); dup != 0 || total == 0 {
		t.Errorf("%d of %d detections twice", dup, total)
	}
}
