//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/e2e/kql"
	"qualys-sentinel/handler/simulation"
)

// deployed is the columns of tables and of the rule's streams, with their types,
// as a template of arm declares them.
type deployed struct {
	tables, streams map[string]map[string]string
	// flows are the tables that streams feed.
	flows map[string]string
}

// readTemplate finds tables and rules in a template and those nested in it.
func readTemplate(t *testing.T, path string) deployed {
	t.Helper()
	type column struct{ Name, Type string }
	type template struct {
		Resources []struct {
			Type       string
			Properties json.RawMessage
		}
	}
	d := deployed{map[string]map[string]string{}, map[string]map[string]string{}, map[string]string{}}
	columns := func(list []column) map[string]string {
		types := map[string]string{}
		for _, c := range list {
			types[c.Name] = strings.ToLower(c.Type)
		}
		return types
	}
	var read func(tp template)
	read = func(tp template) {
		for _, r := range tp.Resources {
			var p struct {
				Template *template
				Schema   struct {
					Name    string
					Columns []column
				}
				StreamDeclarations map[string]struct{ Columns []column }
				DataFlows          []struct {
					Streams      []string
					OutputStream string
				}
			}
			if r.Properties[0] != '{' {
				continue // an expression
			}
			if r.Type == "Microsoft.Resources/deployments" || strings.HasSuffix(r.Type, "/tables") || strings.HasSuffix(r.Type, "/dataCollectionRules") {
				if err := json.Unmarshal(r.Properties, &p); err != nil {
					t.Fatal(err)
				}
			}
			switch {
			case p.Template != nil:
				read(*p.Template)
			case strings.HasSuffix(r.Type, "/tables"):
				d.tables[p.Schema.Name] = columns(p.Schema.Columns)
			case strings.HasSuffix(r.Type, "/dataCollectionRules"):
				for name, s := range p.StreamDeclarations {
					d.streams[name] = columns(s.Columns)
				}
				for _, f := range p.DataFlows {
					d.flows[f.Streams[0]] = strings.TrimPrefix(f.OutputStream, "Custom-")
				}
			}
		}
	}
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var tp template
	if err := json.Unmarshal(doc, &tp); err != nil {
		t.Fatal(err)
	}
	read(tp)
	return d
}

// columnType says what a value of a row is to Azure; dates are text in JSON.
func columnType(v any, declared string) string {
	switch v := v.(type) {
	case string:
		if _, err := time.Parse(time.RFC3339, v); err == nil && declared == "datetime" {
			return "datetime"
		}
		return "string"
	case float64:
		return "real"
	case bool:
		return "boolean"
	}
	return "dynamic"
}

// The rows that the connector really sends, the streams that take them and the
// tables behind those have the same columns, of the same types; and every query
// that is deployed can be asked of these rows.
func TestDeployed(t *testing.T) {
	t.Parallel()
	s := startServices(t, 40, 30)
	s.setKnowledge(&simulation.Knowledge{Seed: 5, Size: 400})
	s.program = program(t)
	s.environ["enrichDetections"] = "true"
	for window := range 2 {
		if window > 0 {
			s.advance(26 * time.Hour)
		}
		for _, dataset := range []string{"kb", "vm"} {
			if code, out := s.start(dataset).wait(t); code != exitOK {
				t.Fatalf("exit code %d\n%s", code, out)
			}
		}
	}
	sent := map[string][]map[string]any{}
	s.mu.Lock()
	for table, docs := range map[string][]json.RawMessage{
		"QualysHostDetectionV2_CL": slices.Concat(slices.Collect(maps.Values(s.rows))...),
		"QualysKB_CL":              slices.Concat(slices.Collect(maps.Values(s.kb))...),
		"QualysConnectorHealth_CL": s.health,
	} {
		for _, doc := range docs {
			var row map[string]any
			if err := json.Unmarshal(doc, &row); err != nil {
				t.Fatal(err)
			}
			sent[table] = append(sent[table], row)
		}
	}
	s.mu.Unlock()
	// Real answers of Qualys have elements that the simulated one has not.
	shown, recorded := maps.Clone(sent), recordedRows(t)
	for table, list := range recorded {
		shown[table] = slices.Concat(shown[table], list)
	}

	for _, path := range []string{"../arm/azuredeploy.json", "../arm/tables.json"} {
		d := readTemplate(t, path)
		if len(d.tables) != 3 || len(d.streams) != 3 || len(d.flows) != 3 {
			t.Fatalf("%s: %d tables, %d streams, %d flows", path, len(d.tables), len(d.streams), len(d.flows))
		}
		for stream, table := range d.flows {
			if stream != "Custom-"+strings.TrimSuffix(table, "_CL") {
				t.Errorf("%s: %s feeds %s", path, stream, table)
			}
			if !maps.Equal(d.streams[stream], d.tables[table]) {
				t.Errorf("%s: stream %s has %v\nits table %v", path, stream, d.streams[stream], d.tables[table])
			}
			unused := maps.Clone(d.tables[table])
			if len(shown[table]) == 0 {
				t.Errorf("no row for %s", table)
			}
			for _, row := range shown[table] {
				for name, v := range row {
					if want := d.tables[table][name]; want != columnType(v, want) {
						t.Fatalf("%s: a row has %s = %v, and the column is %q", table, name, v, want)
					}
					delete(unused, name)
				}
			}
			if got := slices.Sorted(maps.Keys(unused)); !slices.Equal(got, neverSent[table]) {
				t.Errorf("%s: no row has the columns %q, want %q", table, got, neverSent[table])
			}
		}
	}

	// What the workspace would hold.
	c, w := sentinel(t)
	data := ingested(t, w, sent)
	var sources []kql.Source
	add := func(name, query string) { sources = append(sources, kql.Source{Name: name, Text: query}) }
	// Qualys' clock is a year behind here.
	add("all findings", "QualysFindings(90d, 3650d)")
	add("with knowledge", "QualysFindingsWithKnowledge(90d, 3650d)")
	for _, r := range c.Rules {
		add(r.Name, r.Query)
	}
	for _, h := range c.Hunts {
		add(h.Name, h.Query)
	}
	for _, tab := range c.Workbook.Tabs {
		for _, item := range tab.Items {
			add(tab.Name+": "+item.Title, c.Workbook.Fill(item.Query))
		}
	}
	add("alert", c.Alert)
	queries, err := w.Check(sources...)
	if err != nil {
		t.Fatal(err)
	}
	for i, q := range queries {
		got, err := w.Run(q, data, time.Now().Add(time.Minute))
		if err != nil {
			t.Errorf("%s: %v", q.Name, err)
			continue
		}
		for _, row := range got {
			for _, column := range q.Columns {
				if _, ok := row[column.Name]; !ok {
					t.Fatalf("%s: a row lacks %s", q.Name, column.Name)
				}
			}
		}
		if i < 2 {
			s.wantFindings(t, q.Name, got)
		}
	}

	// Each finding of the real answers is one, however it is keyed.
	want := map[string]bool{}
	for _, row := range recorded["QualysHostDetectionV2_CL"] {
		key := row["RowKey_s"].(string)
		if at := strings.LastIndexByte(key, '@'); at >= 0 {
			key = key[:at]
		}
		want[key] = true
	}
	all, err := w.Check(kql.Source{Name: "recorded", Text: "QualysFindings(36500d)"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := w.Run(all[0], ingested(t, w, recorded), time.Now()); err != nil || len(got) != len(want) || len(want) < 10 {
		t.Errorf("%d recorded findings, not %d: %v", len(got), len(want), err)
	}
}

// ingested are rows as the workspace holds them.
func ingested(t *testing.T, w *kql.Workspace, sent map[string][]map[string]any) kql.Data {
	t.Helper()
	data := kql.Data{}
	for table, list := range sent {
		for _, values := range list {
			row := kql.Row{"_BilledSize": 1000.0, "_IsBillable": true}
			for _, column := range w.Tables[table] {
				v := values[column.Name]
				if at, ok := v.(string); ok && column.Type == "datetime" {
					when, err := time.Parse(time.RFC3339, at)
					if err != nil {
						t.Fatal(err)
					}
					v = when
				}
				if v != nil {
					row[column.Name] = v
				}
			}
			data[table] = append(data[table], row)
		}
	}
	return data
}

// wantFindings compares what a function tells with what the subscription has:
// each detection once, in the state it is in.
func (s *services) wantFindings(t *testing.T, name string, got []kql.Row) {
	t.Helper()
	want := map[string]string{}
	s.sub.Expected(time.Time{}, s.clock(), func(_ simulation.Host, d simulation.Detection) { want[fmt.Sprint(d.UniqueID)] = d.Status })
	open, fixed := 0, 0
	for _, row := range got {
		status, ok := want[row["FindingKey"].(string)]
		if !ok || status != row["Status"] || (row["State"] == "Fixed") != (status == "Fixed") {
			t.Errorf("%s: %v is %v, %v; want %q, %v", name, row["FindingKey"], row["Status"], row["State"], status, ok)
		}
		delete(want, row["FindingKey"].(string))
		switch row["State"] {
		case "Open":
			open++
		case "Fixed":
			fixed++
		}
	}
	if len(want) > 0 || open == 0 || fixed == 0 {
		t.Errorf("%s: %d findings are missing; %d open, %d fixed", name, len(want), open, fixed)
	}
}

// recordedRows are those that the decoders make of recorded answers of Qualys,
// as the golden files of their tests hold them.
func recordedRows(t *testing.T) map[string][]map[string]any {
	t.Helper()
	files, err := filepath.Glob("../handler/internal/qualys/testdata/*.golden")
	if err != nil {
		t.Fatal(err)
	}
	recorded := map[string][]map[string]any{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		// Rows come first; the rest is not JSON.
		for d := json.NewDecoder(bytes.NewReader(text)); ; {
			var row map[string]any
			if d.Decode(&row) != nil {
				break
			}
			table := "QualysKB_CL"
			if row["HostId_s"] != nil {
				table = "QualysHostDetectionV2_CL"
			}
			recorded[table] = append(recorded[table], row)
		}
	}
	if len(recorded) != 2 {
		t.Fatalf("golden files have rows of %d tables", len(recorded))
	}
	return recorded
}

// neverSent are the columns that neither a simulated nor a recorded answer
// fills: elements of the DTDs alone, cuts of very long fields, troubles, and what
// Microsoft's parsers want to be there.
var neverSent = map[string][]string{
	"QualysHostDetectionV2_CL": strings.Fields(`AffectExploitableConfig_s AffectRunningService_s AssetCVE_s Cut_s DeadLetter_s LastVMAuthScannedDuration_s ResultInstance_s Results_10_s Results_11_s Results_12_s Results_13_s Results_14_s Results_15_s Results_2_s Results_3_s Results_4_s Results_5_s Results_6_s Results_7_s Results_8_s Results_9_s Source_s`),
	"QualysKB_CL":              strings.Fields(`AdditionalFields Automatic_PCI_Fail_s CVSS3_Attack_Complexity_s CVSS3_Attack_Vector_s CVSS3_Base_Source_s CVSS3_Exploit_Code_Maturity_s CVSS3_Impact_Availability_s CVSS3_Impact_Confidentiality_s CVSS3_Impact_Integrity_s CVSS3_Privileges_Required_s CVSS3_Remediation_Level_s CVSS3_Report_Confidence_s CVSS3_Scope_s CVSS3_Temporal_s CVSS3_User_Interaction_s CVSS_Authentication_s CVSS_Exploitability_s CVSS_Impact_Availability_s CVSS_Impact_Confidentiality_s CVSS_Impact_Integrity_s CVSS_Remediation_Level_s CVSS_Report_Confidence_s Computer Consequence_Comment_s Cut_s DeadLetter_s Detection_Info_s Diagnosis_Comment_s MG ManagementGroupName RawData Removed_DateTime_t Solution_Comment_s SourceSystem`),
	"QualysConnectorHealth_CL": strings.Fields(`Integration_s IsolatedIds_s NextId_s Reason_s Request_s Warnings_s`),
}

// The columns that Microsoft's parsers, rules and workbooks read of the tables of
// the old function apps (Azure-Sentinel, Solutions/QualysVM and Solutions/Qualys
// VM Knowledgebase) are there, under their names and with their types.
func TestOldNames(t *testing.T) {
	t.Parallel()
	old := map[string]string{
		"QualysHostDetectionV2_CL": `TimeGenerated:datetime HostId_s IPAddress TrackingMethod_s OperatingSystem_s DnsName_s NetBios_s QGHostId_g
			LastScanDateTime_t:datetime LastVMScannedDateTime_t:datetime LastVMAuthScannedDateTime_t:datetime HostTags_s HostTags
			QID_s SSL_s Type_s Status_s Ignored_s Severity_s Disabled_s FirstFound_t:datetime LastFound_t:datetime LastFixed_t:datetime
			LastUpdate_t:datetime LastProcessed_t:datetime TimesFound_s Result_column_count_d:real Results_0_s`,
		"QualysKB_CL": `TimeGenerated:datetime QID_s Title_s Category Category_s Vuln_Type_s Severity_Level_s Diagnosis_s Consequence_s Solution_s
			Last_Service_Modification_DateTime_t:datetime Published_DateTime_t:datetime Patchable_s PCI_Flag_s CVE_ID_s CVE_URL_s
			Vendor_Reference_ID_s Vendor_Reference_URL_s Software_Product_s Software_Vendor_s Discovery_Additional_Info_s
			Discovery_Auth_Type_s Discovery_Remote_s THREAT_INTELLIGENCE_s SourceSystem MG ManagementGroupName Computer RawData`,
	}
	d := readTemplate(t, "../arm/azuredeploy.json")
	for table, columns := range old {
		for _, column := range strings.Fields(columns) {
			name, want, typed := strings.Cut(column, ":")
			if !typed {
				want = "string"
			}
			if got := d.tables[table][name]; got != want {
				t.Errorf("%s: column %s is %q, not %q", table, name, got, want)
			}
		}
	}
}
