package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/e2e/kql"
)

// tie is a query on rows of which several could be taken for the latest.
type tie struct {
	name, query, columns string
	data                 kql.Data
	want                 []string
}

// checkTies runs each query on its rows, and on the same rows in the other order: the
// service promises none.
func checkTies(t *testing.T, cases []tie) {
	t.Helper()
	_, w := sentinel(t)
	var sources []kql.Source
	for _, c := range cases {
		sources = append(sources, kql.Source{Name: c.name, Text: c.query})
	}
	queries, err := w.Check(sources...)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range cases {
		for _, order := range []string{"as written", "reversed"} {
			t.Run(c.name+"/"+order, func(t *testing.T) {
				data := kql.Data{}
				for table, list := range c.data {
					data[table] = slices.Clone(list)
					if order == "reversed" {
						slices.Reverse(data[table])
					}
				}
				got, err := w.Run(queries[i], data, noon)
				if err != nil {
					t.Fatal(err)
				}
				if lines := show(got, strings.Fields(c.columns)...); !slices.Equal(lines, c.want) {
					t.Errorf("%s\ngot  %q\nwant %q", c.columns, lines, c.want)
				}
			})
		}
	}
}

// The latest state of a finding is the last by Qualys' times, whatever the order and
// time in which rows arrive.
func TestFurtherTies(t *testing.T) {
	t.Parallel()
	at, tick := before(1, 0), 100*time.Nanosecond
	row := func(changes ...kql.Row) kql.Row {
		all := kql.Row{"TimeGenerated": at, "LastProcessed_t": at, "RowKey_s": "k@" + at.Format(time.RFC3339)}
		for _, c := range changes {
			for k, v := range c {
				all[k] = v
			}
		}
		return finding(all)
	}
	fixed, active := kql.Row{"Status_s": "Fixed"}, kql.Row{"Status_s": "Active"}
	checkTies(t, []tie{
		{"a tick of 100 ns apart", "QualysFindings()", "Status", findings(row(active), row(fixed, kql.Row{"TimeGenerated": at.Add(tick)})), []string{"Fixed"}},
		{"a tick apart, over a second", "QualysFindings()", "Status", findings(row(active, kql.Row{"TimeGenerated": at.Add(-tick)}), row(fixed)), []string{"Fixed"}},
		{"a tick that makes the text shorter", "QualysFindings()", "Status", findings(row(active, kql.Row{"TimeGenerated": at.Add(9999999 * tick)}), row(fixed, kql.Row{"TimeGenerated": at.Add(time.Second)})), []string{"Fixed"}},
		{"processed a second later, made a day earlier", "QualysFindings()", "Status", findings(row(active, kql.Row{"TimeGenerated": at.Add(24 * time.Hour)}), row(fixed, kql.Row{"LastProcessed_t": at.Add(time.Second)})), []string{"Fixed"}},
		{"equal last processed, updated a second later", "QualysFindings()", "Status", findings(row(active, kql.Row{"LastUpdate_t": at, "TimeGenerated": at.Add(time.Hour)}), row(fixed, kql.Row{"LastUpdate_t": at.Add(time.Second)})), []string{"Fixed"}},
		{"no last processed, updated later", "QualysFindings()", "Status", findings(
			row(active, kql.Row{"LastProcessed_t": nil, "LastUpdate_t": before(3, 0), "TimeGenerated": at.Add(time.Hour)}), row(fixed, kql.Row{"LastProcessed_t": nil, "LastUpdate_t": before(2, 0)})), []string{"Fixed"}},
		{"no times but found and tested", "QualysFindings()", "Status", findings(
			row(active, kql.Row{"LastProcessed_t": nil, "LastFound_t": before(3, 0), "LastTested_t": before(3, 0), "TimeGenerated": at.Add(time.Hour)}),
			row(fixed, kql.Row{"LastProcessed_t": nil, "LastFound_t": before(3, 0), "LastTested_t": before(2, 0)})), []string{"Fixed"}},
		{"no time at all: made later", "QualysFindings()", "Status", findings(
			row(active, kql.Row{"LastProcessed_t": nil, "LastFound_t": nil}), row(fixed, kql.Row{"LastProcessed_t": nil, "LastFound_t": nil, "TimeGenerated": at.Add(tick)})), []string{"Fixed"}},
		{"one has times, and the later one none", "QualysFindings()", "Status", findings(row(fixed), row(active, kql.Row{"LastProcessed_t": nil, "LastFound_t": nil, "TimeGenerated": at.Add(-tick)})), []string{"Fixed"}},
		{"equal last processed, and the older row has no last update", "QualysFindings()", "Status", findings(
			row(active), row(fixed, kql.Row{"LastUpdate_t": before(1, 1), "TimeGenerated": at.Add(time.Hour)})), []string{"Fixed"}},
		{"replayed from the dead letters weeks later", "QualysFindings()", "Status", findings(
			row(fixed, kql.Row{"LastProcessed_t": before(10, 0), "TimeGenerated": before(10, 0)}), row(active, kql.Row{"LastProcessed_t": before(30, 0), "TimeGenerated": before(0, 0.1), kql.Ingested: before(0, 0.1)})), []string{"Fixed"}},
		{"the same row twice", "QualysFindings()", "Status FirstTold", findings(row(fixed), row(fixed)), []string{"Fixed " + fmt.Sprint(at)}},
		{"the same row twice, and an older one that comes last", "QualysFindings()", "Status", findings(row(fixed), row(fixed), row(active, kql.Row{"LastProcessed_t": before(2, 0), "TimeGenerated": before(0, 0.1)})), []string{"Fixed"}},
		{"one QID on two hosts", "QualysFindings()", "HostId Status", findings(
			finding(kql.Row{"TimeGenerated": at, "LastProcessed_t": at, "Status_s": "Fixed"}), finding(kql.Row{"TimeGenerated": at, "LastProcessed_t": at, "HostId_s": "2"})), []string{"1 Fixed", "2 New"}},
		{"one QID on two hosts, without keys", "QualysFindings()", "HostId Status", findings(
			finding(kql.Row{"RowKey_s": "", "TimeGenerated": at, "Status_s": "Fixed"}), finding(kql.Row{"RowKey_s": "", "TimeGenerated": at, "HostId_s": "11"}),
			finding(kql.Row{"RowKey_s": "", "TimeGenerated": at.Add(-tick), "HostId_s": "11", "LastProcessed_t": before(3, 0), "Status_s": "Active"})), []string{"1 Fixed", "11 New"}},
		{"results of two parts stay with their state", "QualysFindings()", "Results Status", findings(
			row(fixed, kql.Row{"Results_0_s": "new", "Results_1_s": ""}), row(active, kql.Row{"LastProcessed_t": before(2, 0), "TimeGenerated": at.Add(time.Hour), "Results_0_s": "old", "Results_1_s": "old, too"})), []string{"new Fixed"}},
		{"an older state that comes late is not told as back", "QualysFindings()", "Status State", findings(
			row(fixed, kql.Row{"LastProcessed_t": before(1, 0)}), row(kql.Row{"Status_s": "Re-Opened", "LastProcessed_t": before(3, 0), "TimeGenerated": before(0, 0.1)})), []string{"Fixed Fixed"}},
		{"joined with the KnowledgeBase", "QualysFindingsWithKnowledge()", "Status KnowledgeSeverity", with(findings(row(fixed), row(active, kql.Row{"LastProcessed_t": before(2, 0), "TimeGenerated": before(0, 0.1)})), rows("QualysKB_CL", entry(nil), entry(nil))), []string{"Fixed 3"}},
	})
}

// The KnowledgeBase's last state is the last by Qualys' times, too: dead letters of it
// can be replayed (Log Analytics dates rows that are older than two days anew, and the
// HTTP Data Collector API all of them), and two runs may be a tick apart.
func TestFurtherTiesOfKnowledge(t *testing.T) {
	t.Parallel()
	version := func(made, modified time.Time, changes kql.Row) kql.Row {
		row := kql.Row{"TimeGenerated": made, "Last_Service_Modification_DateTime_t": modified}
		for k, v := range changes {
			row[k] = v
		}
		return entry(row)
	}
	exploited, harmless := kql.Row{"Threat_Intel_s": "Active_Attacks"}, kql.Row{"Threat_Intel_s": "No_Patch"}
	removed := kql.Row{"Removed_DateTime_t": before(2, 0), "Title_s": nil}
	checkTies(t, []tie{
		{"modified later, made earlier", "QualysKnowledge()", "KnownExploited", rows("QualysKB_CL", version(before(3, 0), before(4, 0), exploited), version(before(0, 1), before(9, 0), harmless)), []string{"true"}},
		{"modified later, made in the same moment", "QualysKnowledge()", "KnownExploited", rows("QualysKB_CL", version(before(3, 0), before(4, 0), exploited), version(before(3, 0), before(9, 0), harmless)), []string{"true"}},
		{"removed, and an older state is replayed", "QualysKnowledge()", "QID", rows("QualysKB_CL", version(before(2, 0), before(9, 0), removed), version(before(0, 1), before(20, 0), nil)), nil},
		{"removed in the same moment", "QualysKnowledge()", "QID", rows("QualysKB_CL", version(before(2, 0), before(9, 0), removed), version(before(2, 0), before(20, 0), nil)), nil},
		{"changed without another date", "QualysKnowledge()", "KnownExploited", rows("QualysKB_CL", version(before(3, 0), before(9, 0), harmless), version(before(2, 0), before(9, 0), exploited)), []string{"true"}},
		{"back after its removal, with the date of before", "QualysKnowledge()", "QID", rows("QualysKB_CL", version(before(3, 0), before(9, 0), removed), version(before(1, 0), before(9, 0), nil)), []string{"38739"}},
		{"the same entry twice", "QualysKnowledge()", "QID", rows("QualysKB_CL", version(before(3, 0), before(9, 0), nil), version(before(3, 0), before(9, 0), nil)), []string{"38739"}},
		{"two entries made in the same moment", "QualysKnowledge()", "QID", rows("QualysKB_CL", version(before(3, 0), before(9, 0), nil), version(before(3, 0), before(9, 0), kql.Row{"QID_s": "7"})), []string{"38739", "7"}},
		{"modified later, joined with findings", "QualysFindingsWithKnowledge()", "KnownExploited", with(findings(finding(nil)), rows("QualysKB_CL", version(before(3, 0), before(4, 0), exploited), version(before(0, 1), before(9, 0), harmless))), []string{"true"}},
	})
}

// What rules, hunting queries, the workbook and the alert say of a host or a dataset is
// of its latest state, too.
func TestFurtherTiesOfHosts(t *testing.T) {
	t.Parallel()
	c, _ := sentinel(t)
	query := map[string]string{"alert": c.Alert}
	for _, r := range c.Rules {
		query[r.Name] = r.Query
	}
	for _, h := range c.Hunts {
		query[h.Name] = h.Query
	}
	for _, tab := range c.Workbook.Tabs {
		for _, item := range tab.Items {
			query[item.Title] = c.Workbook.Fill(item.Query)
		}
	}
	const (
		login   = "Qualys - hosts that are scanned without login"
		seen    = "Qualys - host is not scanned any more"
		urgent  = "Qualys - many urgent vulnerabilities on a host"
		back    = "Qualys - fixed vulnerability is back"
		silent  = "Qualys - connector is silent, behind or has rows refused"
		methods = "How hosts are scanned"
		longest = "Hosts that were not scanned for the longest"
	)
	// A host that is scanned with login since yesterday, told then; and a finding that
	// was last looked at before, without login, whose row comes late.
	now := told(before(1, 0), kql.Row{"LastVMAuthScannedDateTime_t": before(1, 0)})
	late := told(before(20, 0), kql.Row{"QID_s": "7", "TimeGenerated": before(0, 0.1), "IPAddress": "10.9.9.9", "DnsName_s": "old.example.com"})
	var many10 []kql.Row
	for i := range 10 {
		many10 = append(many10, told(before(0, 2), kql.Row{"QID_s": fmt.Sprint(1000 + i)}))
	}
	lateUrgent := told(before(1, 12), kql.Row{"QID_s": "7", "TimeGenerated": before(0, 0.1), "IPAddress": "10.9.9.9", "DnsName_s": "old.example.com"})
	checkTies(t, []tie{
		{"an old row that comes late, and the host's login", query[login], "HostName", findings(now, late), nil},
		{"in the same moment, and the host's login", query[login], "HostName", findings(told(before(1, 0), kql.Row{"LastVMAuthScannedDateTime_t": before(1, 0)}), told(before(20, 0), kql.Row{"QID_s": "7", "TimeGenerated": before(1, 0)})), nil},
		{"an old row that comes late, and how hosts are scanned", query[methods], "TrackingMethod Login Hosts", findings(now, late), []string{"IP with login or agent 1"}},
		{"an old row that comes late, and the longest unscanned", query[longest], "HostName LastVMScan", findings(now, late), []string{"web1.example.com " + fmt.Sprint(before(1, 0))}},
		{"an old row that comes late, and the host's address", query[urgent], "HostName IPAddress UrgentFindings", findings(append(many10, lateUrgent)...), []string{"web1.example.com 10.0.0.1 11"}},
		{"an old row that comes late, and a host that is scanned", query[seen], "HostName", findings(told(before(1, 0), nil), told(before(7, 12), kql.Row{"QID_s": "7", "TimeGenerated": before(0, 0.1)})), nil},
		{"two hosts, one of them scanned", query[seen], "HostId", findings(told(before(1, 0), nil), told(before(7, 12), kql.Row{"HostId_s": "2", "TimeGenerated": before(1, 0)})), []string{"2"}},
		{"fixed since, and the old row that tells it back comes late", query[back], "HostName", findings(told(before(1, 0), kql.Row{"Status_s": "Fixed"}), told(before(3, 0), kql.Row{"Status_s": "Re-Opened", "TimeGenerated": before(0, 0.2)})), nil},
		{"two runs that end in the same moment", query[silent], "Dataset", rows("QualysConnectorHealth_CL", run(nil), run(kql.Row{"Dataset_s": "kb"}), run(kql.Row{"Integration_s": "1"})), nil},
		{"a run by hand that ends in the same moment", query[silent], "Dataset Trouble", health(nil, run(kql.Row{"Request_s": "abc", "Level_s": "error", "Outcome_s": "failed", "Reason_s": "401"})), []string{"vm it fails"}},
		{"the reason of what fails, with another run in the same moment", query[silent], "Dataset Reason", health(nil, run(kql.Row{"Request_s": "abc", "Level_s": "error", "Outcome_s": "failed", "Reason_s": "401"})), []string{"vm 401"}},
		{"the reason of what fails, in the alert by mail", query["alert"], "Dataset Reason", health(nil, run(kql.Row{"Request_s": "abc", "Level_s": "error", "Outcome_s": "failed", "Reason_s": "401"})), []string{"vm 401"}},
	})
}
