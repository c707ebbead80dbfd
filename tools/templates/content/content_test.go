package content

import (
	"maps"
	"strings"
	"testing"
	"testing/fstest"
)

const (
	aFunction = "// name: F\n// parameters: a:timespan=1d\n// description: What it does.\nT | where TimeGenerated > ago(a)\n"
	aRule     = `id: 8a1c1f53-6a0c-4f4c-9a55-2f4d3d6a7b01
name: A rule
description: What it finds.
severity: High
queryFrequency: 1h
queryPeriod: 14d
tactics: [InitialAccess]
relevantTechniques: [T1190]
query: F() | project Host
entityMappings: [{entityType: Host, fieldMappings: [{identifier: FullName, columnName: Host}]}]
customDetails: {Name: Host}
group: {by: Selected, details: [Name], for: 1d}
`
	aHunt = `id: 8a1c1f53-6a0c-4f4c-9a55-2f4d3d6a7c01
name: A hunt
description: What it looks for.
tactics: [InitialAccess]
relevantTechniques: [T1190]
query: F()
`
	aWorkbook = `name: A workbook
id: 8a1c1f53-6a0c-4f4c-9a55-2f4d3d6a7d01
parameters: [{name: P, label: A parameter, options: {b: B, a: A}, default: b}]
tabs: [{name: One, items: [{title: A chart, query: "F({P})"}]}]
`
)

func files(changes map[string]string) fstest.MapFS {
	texts := map[string]string{"functions/F.kql": aFunction, "rules/a.yaml": aRule, "hunting/a.yaml": aHunt, "workbook.yaml": aWorkbook, "alert.kql": "F()"}
	maps.Copy(texts, changes)
	dir := fstest.MapFS{}
	for name, text := range texts {
		if text != "" {
			dir[name] = &fstest.MapFile{Data: []byte(text)}
		}
	}
	return dir
}

func TestLoad(t *testing.T) {
	c, err := Load(files(map[string]string{"functions/A.kql": strings.ReplaceAll(strings.Replace(aFunction, "T |", "G() |", 1), "name: F", "name: A"), "functions/G.kql": strings.Replace(aFunction, "name: F", "name: G", 1)}))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Functions) != 3 || c.Functions[0].Name != "F" || c.Functions[1].Name != "G" || c.Functions[2].Name != "A" {
		t.Errorf("functions stand before those they call: %+v", c.Functions)
	}
	if r := c.Rules[0]; r.QueryPeriod.ISO() != "P14D" || r.QueryFrequency.ISO() != "PT1H" || len(r.Columns()) != 1 {
		t.Errorf("%+v", r)
	}
	if got := c.Workbook.Fill(c.Workbook.Tabs[0].Items[0].Query); got != "F(b)" || c.Workbook.Parameters[0].Options[0].Label != "B" {
		t.Errorf("%s, %+v", got, c.Workbook)
	}
}

// A mistake in a file is named, with the file.
func TestFaults(t *testing.T) {
	rule := func(old, new string) map[string]string {
		return map[string]string{"rules/a.yaml": strings.Replace(aRule, old, new, 1)}
	}
	cases := map[string]struct {
		changes map[string]string
		want    string
	}{
		"a rule looks back too far":     {rule("14d", "15d"), "rules/a.yaml: queryFrequency 1h0m0s and queryPeriod 360h0m0s"},
		"a period below the frequency":  {rule("14d", "30m"), "queryPeriod"},
		"no length of time":             {rule("14d", "P14D"), `"P14D" is no length of time`},
		"an unknown member":             {rule("severity:", "sevrity:"), "sevrity"},
		"an unknown severity":           {rule("High", "Urgent"), `severity "Urgent"`},
		"an unknown tactic":             {rule("[InitialAccess]", "[Initial Access]"), `tactic "Initial Access"`},
		"no technique":                  {rule("T1190", "1190"), `technique "1190"`},
		"an unknown identifier":         {rule("FullName", "Fullname"), "entity Host: Fullname"},
		"a group by what is no detail":  {rule("details: [Name]", "details: [Other]"), "Other is no custom detail"},
		"no entity":                     {rule("entityMappings: [{entityType: Host, fieldMappings: [{identifier: FullName, columnName: Host}]}]", ""), "0 entityMappings"},
		"no GUID":                       {rule("8a1c1f53-", "8A1C1F53-"), "is no GUID"},
		"the same id twice":             {map[string]string{"hunting/a.yaml": strings.Replace(aHunt, "7c01", "7b01", 1)}, "have the same id"},
		"two rules with the same id":    {map[string]string{"rules/b.yaml": aRule}, "have the same id"},
		"a function without a head":     {map[string]string{"functions/F.kql": "T"}, "functions/F.kql: the line // description: is missing"},
		"a function without a query":    {map[string]string{"functions/F.kql": "// name: F\n// parameters: a:int=1\n// description: d\n"}, "there is no query"},
		"a function in another's file":  {map[string]string{"functions/G.kql": aFunction}, "is to be named F.kql"},
		"functions in a circle":         {map[string]string{"functions/F.kql": strings.Replace(aFunction, "T |", "G() |", 1), "functions/G.kql": strings.Replace(strings.Replace(aFunction, "T |", "F() |", 1), "name: F", "name: G", 1)}, "in a circle"},
		"a parameter that is not there": {map[string]string{"workbook.yaml": strings.Replace(aWorkbook, "{P}", "{Q}", 1)}, "there is no parameter Q"},
		"a workbook without tabs":       {map[string]string{"workbook.yaml": "name: x\n"}, "workbook.yaml: a GUID"},
		"no workbook":                   {map[string]string{"workbook.yaml": ""}, "workbook.yaml"},
		"no alert":                      {map[string]string{"alert.kql": ""}, "alert.kql"},
		"no YAML":                       {rule("id:", "\tid:"), "rules/a.yaml"},
		"an empty file":                 {map[string]string{"rules/a.yaml": "\n"}, "rules/a.yaml"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if _, err := Load(files(c.changes)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
}
