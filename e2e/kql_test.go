package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"qualys-sentinel/e2e/kql"
	"qualys-sentinel/handler/catalogue"
	"qualys-sentinel/tools/templates/content"
)

// sentinel is what is deployed into the workspace, and the workspace itself.
func sentinel(t testing.TB) (*content.Content, *kql.Workspace) {
	t.Helper()
	c, err := content.Load(os.DirFS("../arm/sentinel"))
	if err != nil {
		t.Fatal(err)
	}
	w := &kql.Workspace{Tables: map[string][]kql.Column{}}
	for _, table := range catalogue.Tables() {
		var columns []kql.Column
		for _, c := range table.Columns {
			columns = append(columns, kql.Column{Name: c.Name, Type: kqlType(c.Type)})
		}
		// Every table has these, too.
		columns = append(columns, kql.Column{Name: "_BilledSize", Type: "real"}, kql.Column{Name: "_IsBillable", Type: "bool"})
		w.Tables[table.Name] = columns
	}
	for _, f := range c.Functions {
		w.Functions = append(w.Functions, kql.Function{Name: f.Name, Parameters: f.Parameters, Body: f.Query})
	}
	return c, w
}

func kqlType(declared string) string {
	if declared == "boolean" {
		return "bool"
	}
	return declared
}

// Every query that we give away resolves on the tables as they are deployed, by
// Microsoft's Kusto language service: functions, rules, hunting queries, the
// workbook with its parameters filled in, the alert, and those of the documents.
func TestQueries(t *testing.T) {
	t.Parallel()
	c, w := sentinel(t)
	var queries []kql.Source
	add := func(name, query string) { queries = append(queries, kql.Source{Name: name, Text: query}) }
	for _, f := range c.Functions {
		add("function "+f.Name, f.Name+"()")
	}
	for _, r := range c.Rules {
		add("rule "+r.Name, r.Query)
	}
	for _, h := range c.Hunts {
		add("hunting query "+h.Name, h.Query)
	}
	for _, tab := range c.Workbook.Tabs {
		for _, item := range tab.Items {
			add("workbook "+tab.Name+": "+item.Title, c.Workbook.Fill(item.Query))
		}
	}
	add("alert", c.Alert)
	documents, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	written := 0
	for _, document := range append(documents, "../README.md") {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range regexp.MustCompile("(?s)```kusto\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
			add(document, q[1])
			written++
		}
	}
	if len(c.Functions) < 3 || len(c.Rules) < 6 || len(c.Hunts) < 3 || written < 2 {
		t.Errorf("%d functions, %d rules, %d hunting queries, %d in documents", len(c.Functions), len(c.Rules), len(c.Hunts), written)
	}
	analysed, err := w.Check(queries...)
	if err != nil {
		t.Fatal(err)
	}
	columns := func(q *kql.Query) (names []string) {
		for _, c := range q.Columns {
			names = append(names, c.Name)
		}
		return names
	}
	for i, r := range c.Rules {
		q := analysed[len(c.Functions)+i]
		for _, column := range r.Columns() {
			if !slices.Contains(columns(q), column) {
				t.Errorf("rule %s: an alert takes column %s, and the query has %v", r.Name, column, columns(q))
			}
		}
	}

	if _, err := w.Check(kql.Source{Text: "QualysKB_CL | project NoSuchColumn_s"}); err == nil {
		t.Error("the check takes anything")
	}
	// What Microsoft's parser QualysKB 1.0.0 names without column_ifexists.
	if _, err := w.Check(kql.Source{Name: "QualysKB", Text: `QualysKB_CL | project SourceSystem, MG, ManagementGroupName, Computer, RawData, TimeGenerated, QID_s, Title_s, Category, Consequence_s, Diagnosis_s, Patchable_s, CVE_ID_s, CVE_URL_s, Vendor_Reference_ID_s, Vendor_Reference_URL_s, PCI_Flag_s, Severity_Level_s, Software_Product_s, Software_Vendor_s, Solution_s, Vuln_Type_s, Discovery_Additional_Info_s, Discovery_Remote_s, Discovery_Auth_Type_s, THREAT_INTELLIGENCE_s`}); err != nil {
		t.Error(err)
	}
}
