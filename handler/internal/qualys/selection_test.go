package qualys_test

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
)

// requests makes one request for each filter or selection.
func requests(t *testing.T, list ...any) (all []*qualys.Detections) {
	t.Helper()
	origin := &url.URL{Scheme: "https", Host: "qualysapi.example.com"}
	for _, v := range list {
		d := qualys.NewDetections(&qualys.Client{Origin: origin, Credentials: &login{}}, ingest.VM.Schema)
		switch v := v.(type) {
		case string:
			filter, err := url.ParseQuery(v)
			if err != nil {
				t.Fatal(err)
			}
			d.Filter = filter
		case qualys.Selection:
			d.Select = &v
		}
		all = append(all, d)
	}
	return all
}

// finding is what a selection looks at.
type finding struct{ kind, severity, status, tags string }

// takes tells whether a sink of a selection passes a finding on.
func takes(t *testing.T, d *qualys.Detections, f finding) bool {
	t.Helper()
	schema := ingest.VM.Schema
	rec := record.New(schema)
	defer rec.Close()
	for path, value := range map[string]string{"DETECTION/TYPE": f.kind, "DETECTION/SEVERITY": f.severity, "DETECTION/STATUS": f.status, "HOST/TAGS/TAG": f.tags} {
		if value == "" {
			continue
		}
		if err := rec.Append(schema.Index(path), record.Item, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	var got counter
	sink := d.Only(&got)
	if err := sink.Record(rec); err != nil {
		t.Fatal(err)
	}
	return got == 1
}

type counter int

func (*counter) Begin(time.Time) error         { return nil }
func (c *counter) Record(*record.Record) error { *c++; return nil }
func (*counter) Done(uint64) error             { return nil }
func (*counter) Tally(record.Tally)            {}
func (*counter) Doubt() error                  { return nil }

// What is asked for by parameters and what is chosen from the answer are the same; what
// is not known is kept.
func TestSelection(t *testing.T) {
	const servers, pci = `{"TAG_ID":"90001","NAME":"Servers"}`, `{"TAG_ID":"90003","NAME":"PCI"}`
	active := finding{"Confirmed", "4", "Active", servers + "," + pci}
	with := func(change func(*finding)) finding {
		f := active
		change(&f)
		return f
	}
	potential := with(func(f *finding) { f.kind = "Potential" })
	info := finding{kind: "Info", severity: "1", tags: servers}
	fixed := with(func(f *finding) { f.status = "Fixed" })
	low := with(func(f *finding) { f.severity = "2" })
	bare := finding{kind: "Confirmed"}
	odd := finding{"Vuln", "6", "REOPENED", servers}
	for name, c := range map[string]struct {
		of          any
		takes, not  []finding
		severities  string
		status, igs string
	}{
		"the default":     {"", []finding{active, potential, fixed, low, bare, odd}, []finding{info}, "", "New,Active,Re-Opened,Fixed", "0"},
		"severities":      {"severities=4,5", []finding{active, bare, odd}, []finding{low}, "4,5", "New,Active,Re-Opened,Fixed", "0"},
		"a range":         {"severities=1-3", []finding{low}, []finding{active}, "1-3", "New,Active,Re-Opened,Fixed", "0"},
		"statuses":        {"status=New,Active", []finding{active, bare, odd}, []finding{fixed}, "", "New,Active", "0"},
		"information":     {"show_igs=1", []finding{active, info}, nil, "", "New,Active,Re-Opened,Fixed", "1"},
		"confirmed":       {"include_vuln_type=confirmed", []finding{active}, []finding{potential, info}, "", "New,Active,Re-Opened,Fixed", "0"},
		"potential":       {"include_vuln_type=potential&show_igs=1", []finding{potential, info}, []finding{active}, "", "New,Active,Re-Opened,Fixed", "1"},
		"all there is":    {qualys.Selection{}, []finding{active, potential, info, fixed, low, bare, odd}, nil, "", "New,Active,Re-Opened,Fixed", "1"},
		"the guide's":     {qualys.Selection{Types: []string{"Confirmed"}, Severities: []string{"3", "4", "5"}}, []finding{active, fixed, bare, odd}, []finding{potential, info, low}, "3,4,5", "New,Active,Re-Opened,Fixed", "0"},
		"a tag by name":   {qualys.Selection{Tags: []string{"pci"}}, []finding{active}, []finding{info, bare}, "", "New,Active,Re-Opened,Fixed", "1"},
		"a tag by id":     {qualys.Selection{Tags: []string{"90003", "x"}}, []finding{active}, []finding{info, bare}, "", "New,Active,Re-Opened,Fixed", "1"},
		"damaged tags":    {qualys.Selection{Tags: []string{"PCI"}}, []finding{{kind: "Confirmed", tags: `{"TAG_ID":`}}, nil, "", "New,Active,Re-Opened,Fixed", "1"},
		"all at once":     {qualys.Selection{Types: []string{"Potential"}, Severities: []string{"4"}, Statuses: []string{"Active"}, Tags: []string{"Servers"}}, []finding{potential}, []finding{active, low, fixed, info}, "4", "Active", "0"},
		"odd severities":  {"severities=high", []finding{active, low, info}, nil, "high", "New,Active,Re-Opened,Fixed", "0"}, // only Qualys knows
		"odd statuses":    {"status=Open", []finding{active, fixed}, nil, "", "Open", "0"},
		"unknown to come": {"include_vuln_type=all", []finding{active, info}, nil, "", "New,Active,Re-Opened,Fixed", "0"},
	} {
		t.Run(name, func(t *testing.T) {
			d := requests(t, c.of)[0]
			for _, f := range c.takes {
				if !takes(t, d, f) {
					t.Errorf("%+v is dropped", f)
				}
			}
			for _, f := range c.not {
				if takes(t, d, f) {
					t.Errorf("%+v is kept", f)
				}
			}
			p := asked(t, d)
			if p.Get("severities") != c.severities || p.Get("status") != c.status || p.Get("show_igs") != c.igs {
				t.Errorf("it asks %s", p.Encode())
			}
		})
	}
}

// asked are the parameters of a request, as its identity tells them.
func asked(t *testing.T, d *qualys.Detections) url.Values {
	t.Helper()
	p, err := url.ParseQuery(strings.Fields(d.Identity())[1])
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// One request in place of several asks for what any of them wants, and only kin are
// asked together.
func TestTogether(t *testing.T) {
	confirmed := qualys.Selection{Types: []string{"Confirmed"}, Severities: []string{"4", "5"}}
	fixed := qualys.Selection{Types: []string{"Confirmed", "Potential"}, Severities: []string{"1", "5"}, Statuses: []string{"Fixed"}, Tags: []string{"x"}}
	for name, c := range map[string]struct {
		of                      []any
		severities, status, igs string
	}{
		"one":                {[]any{confirmed}, "4,5", "New,Active,Re-Opened,Fixed", "0"},
		"two":                {[]any{confirmed, fixed}, "1,4,5", "New,Active,Re-Opened,Fixed", "0"},
		"two of one status":  {[]any{fixed, fixed}, "1,5", "Fixed", "0"},
		"with the default":   {[]any{"severities=3", fixed}, "1,3,5", "Active,Fixed,New,Re-Opened", "0"},
		"with all":           {[]any{confirmed, qualys.Selection{}}, "", "New,Active,Re-Opened,Fixed", "1"},
		"statuses of two":    {[]any{qualys.Selection{Statuses: []string{"New"}}, fixed}, "", "Fixed,New", "1"},
		"what nobody parses": {[]any{"severities=high"}, "high", "New,Active,Re-Opened,Fixed", "0"},
	} {
		t.Run(name, func(t *testing.T) {
			all := requests(t, c.of...)
			for _, d := range all[1:] {
				if d.Kin() != all[0].Kin() {
					t.Fatalf("no kin: %s, %s", d.Kin(), all[0].Kin())
				}
			}
			before := fmt.Sprint(asked(t, all[0]))
			p := asked(t, qualys.Together(all))
			if p.Get("severities") != c.severities || p.Get("status") != c.status || p.Get("show_igs") != c.igs {
				t.Errorf("it asks %s", p.Encode())
			}
			if after := fmt.Sprint(asked(t, all[0])); after != before {
				t.Errorf("%s has become %s", before, after)
			}
		})
	}
	apart := requests(t, "", "ag_ids=5", "severities=high", "severities=odd", "show_tags=0", qualys.Selection{})
	var kin []string
	for _, d := range apart {
		kin = append(kin, d.Kin())
	}
	if kin[0] != kin[5] {
		t.Errorf("%s and %s could be asked together", kin[0], kin[5])
	}
	slices.Sort(kin)
	if n := len(slices.Compact(kin)); n != 5 {
		t.Errorf("%d kinds of 5", n)
	}
	results := requests(t, "", "")
	results[0].Results = false
	if p := asked(t, qualys.Together(results)); p.Get("show_results") != "1" {
		t.Errorf("results were wanted: %s", p.Encode())
	}
	if rest := qualys.WithoutSelection(requests(t, "ag_ids=5&severities=4&status=New&show_igs=1&include_vuln_type=confirmed")[0].Filter); rest.Encode() != "ag_ids=5" {
		t.Errorf("%s", rest.Encode())
	}
}

// Requests that choose differently are not continued by one another.
func TestSelectionIdentity(t *testing.T) {
	all := requests(t, "", qualys.Selection{}, qualys.Selection{Types: []string{"Confirmed"}}, qualys.Selection{Tags: []string{"a"}}, qualys.Selection{Tags: []string{"b"}}, qualys.Selection{Severities: []string{"5"}}, qualys.Selection{Statuses: []string{"New"}})
	seen := map[string]bool{}
	for _, d := range all {
		if id := d.Identity(); seen[id] {
			t.Errorf("%s is another's", id)
		} else {
			seen[id] = true
		}
	}
}
