package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"qualys-sentinel/e2e/azurite"
	"qualys-sentinel/handler/simulation"
)

// Every query of README and docs resolves on the tables as they are deployed, by
// Microsoft's Kusto language service; see KQLCHECK in .ci/run.
func TestDocumentedQueries(t *testing.T) {
	program := os.Getenv("KQLCHECK")
	if program == "" {
		azurite.Missing(t, "kqlcheck", "KQLCHECK does not name the script that checks queries by the Kusto language service")
	}
	documents, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	var queries []string
	for _, document := range append(documents, "../README.md") {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range regexp.MustCompile("(?s)```kusto\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
			queries = append(queries, q[1])
		}
	}
	if len(queries) < 2 {
		t.Fatalf("%d queries in README and docs", len(queries))
	}
	tables := map[string]string{}
	for _, table := range simulation.Tables() {
		var columns []string
		for _, c := range table.Columns {
			columns = append(columns, c.Name+":"+c.Type)
		}
		columns = append(columns, "_BilledSize:real", "_IsBillable:bool") // every table has these
		tables[table.Name] = "(" + strings.Join(columns, ", ") + ")"
	}
	schema, err := json.Marshal(map[string]any{"tables": tables})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "schema.json"), schema, 0o644); err != nil {
		t.Fatal(err)
	}
	check := func(query string) error {
		file := filepath.Join(dir, "query.kql")
		if err := os.WriteFile(file, []byte(query), 0o644); err != nil {
			return err
		}
		out, err := exec.Command("node", program, "--schema", filepath.Join(dir, "schema.json"), file).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	}
	for _, q := range queries {
		if err := check(q); err != nil {
			t.Errorf("%s\n%v", q, err)
		}
	}
	if check("QualysKB_CL | project NoSuchColumn_s") == nil {
		t.Error("the check takes anything")
	}
	// What Microsoft's parser QualysKB 1.0.0 names without column_ifexists.
	if err := check(`QualysKB_CL | project SourceSystem, MG, ManagementGroupName, Computer, RawData, TimeGenerated, QID_s, Title_s, Category, Consequence_s, Diagnosis_s, Patchable_s, CVE_ID_s, CVE_URL_s, Vendor_Reference_ID_s, Vendor_Reference_URL_s, PCI_Flag_s, Severity_Level_s, Software_Product_s, Software_Vendor_s, Solution_s, Vuln_Type_s, Discovery_Additional_Info_s, Discovery_Remote_s, Discovery_Auth_Type_s, THREAT_INTELLIGENCE_s`); err != nil {
		t.Error(err)
	}
}
