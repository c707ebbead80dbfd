//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"qualys-sentinel/e2e/canary"
	"qualys-sentinel/handler/simulation"
)

// team is a workspace beside the first, what it asks for, and what it has got.
type team struct {
	name  string
	n     int
	asks  map[string]any
	table string
	place string // its workspace or rule
	// keepNone forgets what arrives: it may be millions of rows.
	keepNone func()

	mu     sync.Mutex
	rows   map[string]int // by RowKey
	fields map[string]int // by name
}

// teams is further workspaces of the services: every other one by a rule, the others
// by their keys.
func (s *services) teams(count int) (list []*team) {
	s.azure.Places = map[string]*simulation.Place{}
	filters := []map[string]any{
		{},
		{"minSeverity": 1, "baseCategory": "IG"},
		{"minSeverity": 5},
		{"minSeverity": 2, "baseCategory": "Potential", "resultSectionNeeded": true},
		{"severities": []int{1, 4}, "statuses": []string{"New", "Re-Opened"}},
		{"tags": []string{"Servers", "90003"}, "minSeverity": 1},
		{"statuses": []string{"Fixed"}, "baseCategory": "Potential", "tags": []string{"Büro Zürich"}},
	}
	for n := range count {
		t := &team{name: fmt.Sprint("Team ", n), n: n, asks: map[string]any{"name": fmt.Sprint("Team ", n)}, rows: map[string]int{}, fields: map[string]int{}}
		for name, value := range filters[n%len(filters)] {
			t.asks[name] = value
		}
		if n >= len(filters) { // no two alike
			t.asks["customLogName"] = fmt.Sprint("Findings_", n)
		}
		place := &simulation.Place{Keep: t.keep}
		t.keepNone = func() { place.Keep = nil }
		var id string
		if n%2 == 0 {
			id = workspaceOf(n)
			place.Key = canary.IntegrationKey(n)
			t.asks["workspaceId"], t.asks["primaryKey"] = id, canary.IntegrationKeyText(n)
			t.table = "QUALYS_SECURITY_VM_FINDINGS_CL"
		} else {
			id = fmt.Sprintf("dcr-%032x", n+100)
			t.table = "QualysHostDetectionV2_CL"
			t.asks["logAnalyticsUri"], t.asks["dcrImmutableId"] = s.environ["logAnalyticsUri"], id
		}
		if log, ok := t.asks["customLogName"]; ok {
			t.table = fmt.Sprint(log, "_CL")
		}
		if place.Key == nil {
			place.Streams = s.azure.StreamsOf("Custom-"+strings.TrimSuffix(t.table, "_CL"), "Custom-QualysHostDetectionV2")
		}
		s.azure.Places[id], t.place = place, id
		list = append(list, t)
	}
	s.environ["integrationVault"] = s.places["Key Vault"].url
	return list
}

func workspaceOf(n int) string { return fmt.Sprintf("22222222-0000-0000-0000-%012d", n) }

func (t *team) keep(table string, row json.RawMessage) error {
	if table != t.table {
		return fmt.Errorf("a row of table %s, not %s", table, t.table)
	}
	var members map[string]any
	if err := json.Unmarshal(row, &members); err != nil {
		return err
	}
	key := fmt.Sprint(members["RowKey_s"])
	if members["RowKey_s"] != nil {
		key = fmt.Sprint(members["RowKey_s"])
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows[key]++
	for name := range members {
		t.fields[strings.TrimSuffix(name, "_s")]++
	}
	return nil
}

// body is what the team asks for.
func (t *team) body(tb testing.TB) string {
	tb.Helper()
	doc, err := json.Marshal(t.asks)
	if err != nil {
		tb.Fatal(err)
	}
	return string(doc)
}

// wants is the independent filter: whether a team is to have a finding.
func (t *team) wants(h simulation.Host, d simulation.Detection) bool {
	severity, _ := strconv.Atoi(d.Severity)
	least := 3
	if n, ok := t.asks["minSeverity"].(int); ok {
		least = n
	}
	if list, ok := t.asks["severities"].([]int); ok {
		if !slices.Contains(list, severity) {
			return false
		}
	} else if severity < least {
		return false
	}
	switch t.asks["baseCategory"] {
	case "IG":
	case "Potential":
		if d.Type == "Info" {
			return false
		}
	default:
		if d.Type != "Confirmed" {
			return false
		}
	}
	if list, ok := t.asks["statuses"].([]string); ok && d.Status != "" && !slices.Contains(list, d.Status) {
		return false
	}
	list, ok := t.asks["tags"].([]string)
	if !ok {
		return true
	}
	return slices.ContainsFunc(h.Tags, func(tag simulation.Tag) bool {
		return slices.Contains(list, tag.Name) || slices.Contains(list, fmt.Sprint(tag.ID))
	})
}

// compare tells how many rows of a team are missing, not wanted, or there twice. What
// it got of an earlier state of a finding, as before tells, is none of these.
func (t *team) compare(s *services, before map[string]bool) (wanted, missing, foreign, twice int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	want := map[string]bool{}
	s.sub.ExpectedWithInfo(time.Time{}, s.clock(), func(h simulation.Host, d simulation.Detection) {
		if t.wants(h, d) {
			want[fmt.Sprintf("%d@%s", d.UniqueID, d.Processed.Format(time.RFC3339))] = true
		}
	})
	for key := range want {
		if t.rows[key] == 0 {
			missing++
		}
	}
	for key, n := range t.rows {
		if !want[key] && !before[key] {
			foreign++
		}
		twice += n - 1
	}
	return len(want), missing, foreign, twice
}

// expectations are what all teams are to have now.
func expectations(s *services, teams []*team, sum map[*team]map[string]bool) {
	s.sub.ExpectedWithInfo(time.Time{}, s.clock(), func(h simulation.Host, d simulation.Detection) {
		for _, t := range teams {
			if t.wants(h, d) {
				if sum[t] == nil {
					sum[t] = map[string]bool{}
				}
				sum[t][fmt.Sprintf("%d@%s", d.UniqueID, d.Processed.Format(time.RFC3339))] = true
			}
		}
	})
}

// command runs the program's command line with the settings of the services.
func (s *services) command(stdin string, args ...string) (string, error) {
	cmd := exec.Command(program(s.t), args...)
	cmd.Env = os.Environ()
	for name, value := range s.environ {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err := os.WriteFile(filepath.Join(outputDir(s.t), fmt.Sprintf("command-%d.txt", time.Now().UnixNano())), out, 0o600); err != nil {
		s.t.Error(err)
	}
	return string(out), err
}

// register adds teams by the command line.
func (s *services) register(teams ...*team) {
	s.t.Helper()
	for _, t := range teams {
		if out, err := s.command(t.body(s.t), "integrations", "add", "-"); err != nil || !strings.Contains(out, "is added") {
			s.t.Fatalf("%v: %s", err, out)
		}
	}
}
