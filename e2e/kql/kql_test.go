package kql

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// The evaluator computes what Microsoft's documentation of KQL says, where our
// queries depend on it.
func TestRun(t *testing.T) {
	w := &Workspace{
		Tables:    map[string][]Column{"T": {{"Name", "string"}, {"N", "long"}, {"At", "datetime"}, {"D", "dynamic"}}, "U": {{"Name", "string"}, {"M", "long"}}},
		Functions: []Function{{"Twice", "n:long=2, m:long=1", "print x = n * 2 + m"}},
	}
	now := time.Date(2026, 6, 15, 12, 0, 0, 0, time.UTC)
	data := Data{
		"T": {{"Name": "a", "N": int64(1), "At": now}, {"Name": "a", "N": int64(3), "At": now.AddDate(0, 0, -8), "D": map[string]any{"k": []any{"v"}}}, {"Name": "b", "N": nil}, {"N": int64(2)}},
		"U": {{"Name": "a", "M": int64(10)}, {"Name": "c", "M": int64(20)}},
	}
	cases := map[string]string{
		"print 7 / 2":                                         "3",
		"print 7.0 / 2":                                       "3.5",
		"print (now() - ago(36h)) / 1d":                       "1.5",
		"print 3 * 8h":                                        "24h0m0s",
		"print max_of(3h, 1h)":                                "3h0m0s",
		"print toint('')":                                     "<nil>",
		"print toint('5')":                                    "5",
		"print isnull(toint('x'))":                            "true",
		"print toint('') == 5":                                "false", // null is equal to nothing
		"print toint('') != 5":                                "true",
		"print iff(toint('') > 5, 'a', 'b')":                  "b",
		"print not(toint('') > 5)":                            "<nil>",
		"print toint('') > 5 or true":                         "true",
		"print toint('') > 5 and false":                       "false",
		"print coalesce('', 'b')":                             "b",
		"print isempty('')":                                   "true",
		"print 'A' == 'a'":                                    "false",
		"print 'A' =~ 'a'":                                    "true",
		"print 'A' in ('a')":                                  "false",
		"print 'A' in~ ('b', 'a')":                            "true",
		"print 'A' !in ('a')":                                 "true",
		"print 'AgentX' has 'agent'":                          "false", // a whole term
		"print 'Cloud Agent' has 'agent'":                     "true",
		"print 'AgentX' contains 'agent'":                     "true",
		"print 'a, b_c' has_any ('x', 'b_c')":                 "true",
		"print 5 between (1 .. 5)":                            "true",
		"print extract('^(.*)@', 1, 'a@b@c')":                 "a@b",
		"print extract('^(.*)@', 1, 'abc')":                   "",
		"print parse_json('{\"a\":[1,2]}').a[1]":              "2",
		"print array_length(parse_json('[1,2]'))":             "2",
		"print tostring(parse_json('{}').nothing)":            "",
		"print bin(datetime_diff('day', now(), ago(13h)), 1)": "1", // a midnight is between
		"print strcat('a', 1, true)":                          "a1true",
		"print round(2.345, 1)":                               "2.3",
		"print case(false, 'a', true, 'b', 'c')":              "b",
		"Twice()":                                             "5",
		"Twice(5)":                                            "11",
		"T | count":                                           "4",
		"T | where N > 1 | count":                             "2", // not the null
		"T | summarize max(N), min(N), count(), dcount(Name), sum(N), avg(N)":                                                     "3 1 4 3 6 2",
		"T | summarize n = count() by Name | order by Name asc":                                                                   " 1; a 2; b 1",
		"T | summarize arg_max(N, Name, At) | project N, Name":                                                                    "3 a",
		"T | summarize arg_max(At, *) by Name | where Name == 'b' | project Name, N":                                              "b <nil>",
		"T | summarize countif(N > 1), maxif(N, Name == 'a'), make_set(Name)":                                                     `2 3 ["a","b"]`,
		"T | where isempty(Name) | project N":                                                                                     "2",
		"T | where At > ago(7d) | project Name":                                                                                   "a",
		"T | top 2 by N desc | project N":                                                                                         "3; 2",
		"T | order by N asc | project N":                                                                                          "<nil>; 1; 2; 3",
		"T | where tostring(D.k[0]) == 'v' | project N":                                                                           "3",
		"T | join kind=inner U on Name | project Name, N, M | order by N asc":                                                     "a 1 10; a 3 10",
		"T | join kind=leftouter U on Name | where isnull(M) | project Name, Name1, N | order by N asc":                           "b  <nil>;   2",
		"T | join kind=leftanti U on Name | project N | order by N asc":                                                           "<nil>; 2",
		"union T, U | summarize count(), sum(M)":                                                                                  "6 30",
		"union withsource=Source T, U | summarize n = count() by Source | order by Source asc":                                    "T 4; U 2",
		"T | where N == toscalar(U | summarize min(M) / 10) | project Name":                                                       "a",
		"let t = materialize(T | where N > 1); t | join kind=inner (t | summarize m = max(N)) on $left.N == $right.m | project N": "3",
		"T | extend N = N + 1 | project-rename K = N | project-away At, D | where K > 2 | project K | order by K asc":             "3; 4",
		"T | summarize round(avg(N), 1), percentile(N, 50)":                                                                       "2 2",
	}
	var sources []Source
	for query := range cases {
		sources = append(sources, Source{query, query})
	}
	queries, err := w.Check(sources...)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range queries {
		rows, err := w.Run(q, data, now)
		if err != nil {
			t.Errorf("%s: %v", q.Name, err)
			continue
		}
		var lines []string
		for _, row := range rows {
			var values []string
			for _, c := range q.Columns {
				v := row[c.Name]
				if _, ok := v.([]any); ok {
					v = toText(v)
				}
				values = append(values, fmt.Sprint(v))
			}
			lines = append(lines, strings.Join(values, " "))
		}
		if got := strings.Join(lines, "; "); got != cases[q.Name] {
			t.Errorf("%s\ngot  %q\nwant %q", q.Name, got, cases[q.Name])
		}
	}
}

// What it does not know it refuses by name, and what the service refuses is
// told with its place.
func TestRefused(t *testing.T) {
	w := &Workspace{Tables: map[string][]Column{"T": {{"Name", "string"}}}}
	queries, err := w.Check(Source{"unknown", "T | mv-expand split(Name, ',')"}, Source{"function", "print hash_sha256('a')"})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"MvExpandOperator", "hash_sha256"} {
		if _, err := w.Run(queries[i], Data{"T": {{"Name": "a"}}}, time.Now()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", queries[i].Name, err)
		}
	}
	if _, err := w.Check(Source{"wrong", "T\n| where Nam == 1"}); err == nil || !strings.Contains(err.Error(), "wrong, line 2: error KS142") {
		t.Errorf("%v", err)
	}
	if _, err := w.Check(Source{"none", "let a = 1;"}); err == nil || !strings.Contains(err.Error(), "there is no query") {
		t.Errorf("%v", err)
	}
	count, err := w.Check(Source{"count", "T | count"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Run(count[0], Data{"T": {{"Other": 1}}}, time.Now()); err == nil || !strings.Contains(err.Error(), "column Other of T") {
		t.Errorf("a row with a column that the table lacks: %v", err)
	}
}
