package ingest

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/checkpoint/folder"
	"qualys-sentinel/handler/internal/record"
)

// nothing is a source and destination of an empty subscription.
type nothing struct{}

func (nothing) Page(_ context.Context, _ record.Query, sink record.Sink) (record.Page, error) {
	return record.Page{}, sink.Begin(time.Unix(0, 0))
}
func (nothing) PageLimit() int { return 1 }
func (nothing) IDs(context.Context, record.Query, int, func(record.Tally)) ([]uint64, error) {
	return nil, nil
}
func (nothing) Identity() string                                  { return "" }
func (nothing) CallLimits() record.CallLimits                     { return record.NoCallLimits }
func (nothing) Send(context.Context, record.Batch) (int64, error) { return 0, nil }
func (nothing) Limits() record.Limits                             { return record.Limits{} }
func (nothing) BatchBytes() int                                   { return 1000 }

// Law 3: a run whose counts disagree fails loudly.
func TestCountsThatDisagree(t *testing.T) {
	for lost, want := range map[int64]Outcome{0: Complete, 1: Failed} {
		r := &Run{ID: "r", Dataset: VM, Source: nothing{}, Destination: nothing{}, DestinationName: "d", Store: folder.New(t.TempDir()), Clock: SystemClock{}, Log: zap.NewNop()}
		r.counts.decoded.Add(lost)
		report, err := r.Do(context.Background())
		if report.Outcome != want || (err != nil) != (want == Failed) || err != nil && !strings.Contains(err.Error(), "1 decoded, 0 accepted") {
			t.Errorf("%d lost: %s, %v", lost, report.Outcome, err)
		}
	}
}

func TestCatalogue(t *testing.T) {
	for _, d := range Datasets() {
		names := map[string]bool{}
		for _, c := range d.Schema.TableColumns() {
			if names[c.Name] || len(c.Name) > 45 || c.Doc == "" || slices.Contains(strings.Fields("id Title Type TenantId UniqueId BilledSize IsBillable"), c.Name) {
				t.Errorf("%s: column %q is taken, reserved, too long or undocumented", d.Name, c.Name)
			}
			names[c.Name] = true
		}
		if len(names) > 500 {
			t.Errorf("%d columns", len(names))
		}
		for _, c := range d.Schema.Columns {
			if c.Joined != "" && !slices.Contains(KB.Indexed, c.Joined) {
				t.Errorf("%s joins %s, which the index does not keep", c.Name, c.Joined)
			}
			if c.SameAs != "" && d.Schema.Column(c.SameAs) < 0 {
				t.Errorf("%s is as %s, which there is not", c.Name, c.SameAs)
			}
		}
		for _, name := range d.Schema.Versions {
			if d.Schema.Column(name) < 0 {
				t.Errorf("%s: version column %s is none", d.Name, name)
			}
		}
		for _, path := range append(append([]string{d.Schema.ParentID}, d.Schema.NaturalKey...), d.Indexed...) {
			if d.Schema.Index(path) < 0 {
				t.Errorf("%s: no column holds %s", d.Name, path)
			}
		}
	}
}

// The columns of the old function app's QualysKB_CL, with the types that the
// classic table has.
func TestColumnsOfTheOldKnowledgeBase(t *testing.T) {
	types := map[string]string{}
	for _, c := range KB.Schema.TableColumns() {
		types[c.Name] = c.Type
	}
	for _, name := range strings.Fields(`QID_s Title_s Category Category_s Vuln_Type_s Severity_Level_s Diagnosis_s Consequence_s Solution_s Patchable_s PCI_Flag_s
		CVE_ID_s CVE_URL_s Vendor_Reference_ID_s Vendor_Reference_URL_s Software_Product_s Software_Vendor_s
		Discovery_Additional_Info_s Discovery_Auth_Type_s Discovery_Remote_s THREAT_INTELLIGENCE_s
		SourceSystem MG ManagementGroupName Computer RawData
		Last_Service_Modification_DateTime_t Published_DateTime_t TimeGenerated`) {
		want := "string"
		if strings.HasSuffix(name, "_t") || name == "TimeGenerated" {
			want = "datetime"
		}
		if types[name] != want {
			t.Errorf("%s is %q, want %s", name, types[name], want)
		}
	}
}
