package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/e2e/kql"
)

// noon is when the queries are asked.
var noon = time.Date(2026, 6, 15, 12, 0, 0, 0, time.UTC)

// before is a time so many days and hours before noon.
func before(days, hours float64) time.Time {
	return noon.Add(-time.Duration((days*24 + hours) * float64(time.Hour)))
}

// finding is a row as the connector sends one: a new finding of severity 5 on
// host 1, found, processed and delivered half an hour ago. With changes.
func finding(changes kql.Row) kql.Row {
	at := before(0, 0.5)
	row := kql.Row{
		"TimeGenerated": at, "HostId_s": "1", "DnsName_s": "web1.example.com", "NetBios_s": "WEB1", "IPAddress": "10.0.0.1", "TrackingMethod_s": "IP",
		"QID_s": "38739", "Type_s": "Confirmed", "Status_s": "New", "Severity_s": "5", "Ignored_s": "0", "Disabled_s": "0",
		"FirstFound_t": at, "LastFound_t": at, "LastProcessed_t": at, "LastVMScannedDateTime_t": at, "LastScanDateTime_t": at, "TimesFound_s": "1",
	}
	maps.Copy(row, changes)
	if row["RowKey_s"] == nil {
		row["RowKey_s"] = fmt.Sprintf("%s-%s@%s", row["HostId_s"], row["QID_s"], row["LastProcessed_t"].(time.Time).Format(time.RFC3339))
	}
	return row
}

// told is the same finding delivered, processed and scanned at another time.
func told(at time.Time, changes kql.Row) kql.Row {
	row := kql.Row{"TimeGenerated": at, "LastProcessed_t": at, "LastFound_t": at, "LastVMScannedDateTime_t": at, "LastScanDateTime_t": at}
	maps.Copy(row, changes)
	return finding(row)
}

// many are findings with different QIDs on a host.
func many(n int, host string, changes kql.Row) (rows []kql.Row) {
	for i := range n {
		row := kql.Row{"HostId_s": host, "QID_s": fmt.Sprint(1000 + i), "DnsName_s": "host" + host}
		maps.Copy(row, changes)
		rows = append(rows, finding(row))
	}
	return rows
}

// spread is one finding on n hosts.
func spread(n int, changes kql.Row) (rows []kql.Row) {
	for i := range n {
		row := kql.Row{"HostId_s": fmt.Sprint(i + 1), "DnsName_s": fmt.Sprintf("host%d", i+1)}
		maps.Copy(row, changes)
		rows = append(rows, finding(row))
	}
	return rows
}

func entry(changes kql.Row) kql.Row {
	row := kql.Row{"TimeGenerated": before(3, 0), "RowKey_s": "38739@x", "QID_s": "38739", "Title_s": "Deprecated SSH settings", "Severity_Level_s": "3", "CVE_ID_s": "CVE-2020-0001", "CVSS3_Base_s": "9.8", "Patchable_s": "1", "Threat_Intel_s": "Exploit_Public, Cisa_Known_Exploited_Vulns", "Published_DateTime_t": before(900, 0)}
	maps.Copy(row, changes)
	return row
}

func run(changes kql.Row) kql.Row {
	row := kql.Row{"TimeGenerated": before(0, 0.5), "Dataset_s": "vm", "Level_s": "info", "Outcome_s": "complete", "DeadLetters_d": 0.0, "Isolated_d": 0.0, "WindowUntil_t": before(0, 0.6)}
	maps.Copy(row, changes)
	return row
}

// health is a run of the KnowledgeBase that is well, and one of the detections,
// with changes, and more.
func health(changes kql.Row, more ...kql.Row) kql.Data {
	return rows("QualysConnectorHealth_CL", append(more, run(changes), run(kql.Row{"Dataset_s": "kb"}))...)
}

// hourly are runs of so many hours, the first of which completed its window.
func hourly(hours int, changes kql.Row) (runs []kql.Row) {
	for i := range hours {
		row := kql.Row{"TimeGenerated": before(0, float64(i)+0.5)}
		maps.Copy(row, changes)
		runs = append(runs, run(row))
	}
	return append(runs, run(kql.Row{"TimeGenerated": before(0, float64(hours)+0.5)}))
}

// rows are those of a table.
func rows(table string, list ...kql.Row) kql.Data { return kql.Data{table: list} }

func findings(list ...kql.Row) kql.Data { return rows("QualysHostDetectionV2_CL", list...) }

func with(a, b kql.Data) kql.Data {
	both := maps.Clone(a)
	maps.Copy(both, b)
	return both
}

// show is the values of some columns, row by row, for comparison.
func show(rows []kql.Row, columns ...string) (lines []string) {
	for _, row := range rows {
		var values []string
		for _, c := range columns {
			values = append(values, fmt.Sprint(row[c]))
		}
		lines = append(lines, strings.TrimSpace(strings.Join(values, " ")))
	}
	slices.Sort(lines)
	return lines
}

// What the functions make of rows: each finding once, in its last state.
func TestFunctions(t *testing.T) {
	t.Parallel()
	_, w := sentinel(t)
	cases := []struct {
		name, query, columns string
		data                 kql.Data
		want                 []string
	}{
		{"the latest of three deliveries", "QualysFindings()", "QID Status State TimesFound",
			findings(told(before(3, 0), nil), told(before(1, 0), kql.Row{"Status_s": "Active", "TimesFound_s": "3"}), told(before(2, 0), kql.Row{"Status_s": "Active", "TimesFound_s": "2"})),
			[]string{"38739 Active Open 3"}},
		{"two states made in the same moment", "QualysFindings()", "Status", findings(
			finding(kql.Row{"TimeGenerated": before(1, 0), "LastProcessed_t": before(2, 0), "Status_s": "Fixed"}), finding(kql.Row{"TimeGenerated": before(1, 0), "LastProcessed_t": before(3, 0)}),
			finding(kql.Row{"TimeGenerated": before(1, 0), "QID_s": "7", "RowKey_s": "7@a", "LastProcessed_t": before(3, 0)}), finding(kql.Row{"TimeGenerated": before(1, 0), "QID_s": "7", "RowKey_s": "7@b", "LastProcessed_t": before(2, 0), "Status_s": "Active"})),
			[]string{"Active", "Fixed"}},
		{"an older state that arrives later", "QualysFindings()", "Status", findings(finding(kql.Row{"TimeGenerated": before(2, 0), "LastProcessed_t": before(2, 0), "Status_s": "Fixed"}), finding(kql.Row{"TimeGenerated": before(0, 0.1), "LastProcessed_t": before(4, 0)})), []string{"Fixed"}},
		{"processed at one time, updated later", "QualysFindings()", "Status", findings(finding(kql.Row{"TimeGenerated": before(2, 0), "LastUpdate_t": before(3, 0), "Status_s": "Fixed"}), finding(kql.Row{"TimeGenerated": before(1, 0), "LastUpdate_t": before(4, 0)})), []string{"Fixed"}},
		{"the same state, told otherwise later", "QualysFindings()", "QDS", findings(finding(kql.Row{"TimeGenerated": before(2, 0), "QDS_s": "40"}), finding(kql.Row{"TimeGenerated": before(1, 0), "QDS_s": "95"})), []string{"95"}},
		{"the same state delivered twice", "QualysFindings()", "QID State", findings(finding(nil), finding(kql.Row{"TimeGenerated": before(0, 0.4)})), []string{"38739 Open"}},
		{"fixed", "QualysFindings()", "QID State", findings(told(before(2, 0), nil), told(before(1, 0), kql.Row{"Status_s": "Fixed"})), []string{"38739 Fixed"}},
		{"found again", "QualysFindings()", "QID State", findings(told(before(2, 0), kql.Row{"Status_s": "Fixed"}), told(before(1, 0), kql.Row{"Status_s": "Re-Opened"})), []string{"38739 Open"}},
		{"two ports are two findings", "QualysFindings()", "QID Port", findings(finding(kql.Row{"RowKey_s": "111@a", "Port_s": "22"}), finding(kql.Row{"RowKey_s": "222@a", "Port_s": "443"})), []string{"38739 22", "38739 443"}},
		{"a key with @ in it", "QualysFindings()", "FindingKey Status", findings(told(before(2, 0), kql.Row{"RowKey_s": "1|2|user@host@2026-06-13T12:00:00Z"}), told(before(1, 0), kql.Row{"RowKey_s": "1|2|user@host@2026-06-14T12:00:00Z", "Status_s": "Active"})), []string{"1|2|user@host Active"}},
		{"rows of the old function app have no key", "QualysFindings()", "FindingKey Status", findings(told(before(2, 0), kql.Row{"RowKey_s": ""}), told(before(1, 0), kql.Row{"RowKey_s": "", "Status_s": "Active"}), told(before(1, 0), kql.Row{"RowKey_s": "", "QID_s": "7"})), []string{"1/38739 Active", "1/7 New"}},
		{"a host that is not scanned any more", "QualysFindings()", "QID State", findings(told(before(46, 0), nil)), []string{"38739 Stale"}},
		{"a host of a monthly scan", "QualysFindings()", "QID State", findings(told(before(44, 0), nil)), []string{"38739 Open"}},
		{"a finding that its host's scans have not looked at for long", "QualysFindings()", "QID State", findings(told(before(50, 0), nil), told(before(1, 0), kql.Row{"QID_s": "7"})), []string{"38739 Stale", "7 Open"}},
		{"the same with a longer staleAfter", "QualysFindings(90d, 60d)", "QID State", findings(told(before(50, 0), nil), told(before(1, 0), kql.Row{"QID_s": "7"})), []string{"38739 Open", "7 Open"}},
		{"fixed long ago is fixed", "QualysFindings()", "QID State", findings(told(before(60, 0), kql.Row{"Status_s": "Fixed"})), []string{"38739 Fixed"}},
		{"older than the lookback", "QualysFindings(7d)", "QID", findings(told(before(8, 0), nil)), nil},
		{"loaded late, with old dates", "QualysFindings()", "QID State", findings(finding(kql.Row{"LastProcessed_t": before(100, 0), "LastVMScannedDateTime_t": before(100, 0), "LastScanDateTime_t": before(100, 0)})), []string{"38739 Stale"}},
		{"types", "QualysFindings()", "Severity QDS SSL Ignored HostName", findings(finding(kql.Row{"QDS_s": "95", "SSL_s": "1", "Ignored_s": "1"})), []string{"5 95 true true web1.example.com"}},
		{"an information has little", "QualysFindings()", "QID Severity State HostName", findings(finding(kql.Row{"QID_s": "45038", "Type_s": "Info", "Severity_s": nil, "Status_s": nil, "DnsName_s": nil, "NetBios_s": nil})), []string{"45038 <nil> Info 10.0.0.1"}},

		{"keys without a time", "QualysFindings()", "FindingKey HostId", findings(finding(kql.Row{"RowKey_s": "111"}), finding(kql.Row{"RowKey_s": "222", "HostId_s": "2"}), finding(kql.Row{"RowKey_s": "sha256:aa", "HostId_s": "3"})), []string{"111 1", "222 2", "sha256:aa 3"}},
		{"as other platforms spell it", "QualysFindings()", "Status State", findings(finding(kql.Row{"Status_s": "REOPENED"}), finding(kql.Row{"QID_s": "7", "Status_s": "FIXED"}), finding(kql.Row{"QID_s": "8", "Status_s": "NEW"}), finding(kql.Row{"QID_s": "9", "Status_s": "ACTIVE"})), []string{"Active Open", "Fixed Fixed", "New Open", "Re-Opened Open"}},
		{"the latest is the one made last", "QualysFindings()", "Status FirstTold", findings(told(before(2, 0), kql.Row{kql.Ingested: before(0, 0.1)}), told(before(1, 0), kql.Row{"Status_s": "Active"})), []string{"Active " + fmt.Sprint(before(1, 0))}},
		{"names of a host", "QualysFindings()", "HostName HostFullName", findings(finding(kql.Row{"DnsFqdn_s": "web1.corp.example.com"}), finding(kql.Row{"HostId_s": "2", "DnsName_s": ""}), finding(kql.Row{"HostId_s": "3", "DnsName_s": "", "NetBios_s": ""})), []string{"10.0.0.1", "WEB1 WEB1", "web1.corp.example.com web1.corp.example.com"}},
		{"a host is seen by whatever date it has", "QualysFindings()", "HostId State", findings(
			told(before(50, 0), kql.Row{"LastProcessed_t": before(1, 0)}),
			finding(kql.Row{"HostId_s": "2", "RowKey_s": "2@", "LastProcessed_t": nil, "LastFound_t": before(50, 0), "LastScanDateTime_t": before(50, 0), "LastVMScannedDateTime_t": before(44, 0)}),
			finding(kql.Row{"HostId_s": "3", "RowKey_s": "3@", "LastProcessed_t": nil, "LastFound_t": before(50, 0), "LastScanDateTime_t": before(50, 0), "LastVMScannedDateTime_t": before(50, 0)})), []string{"1 Open", "2 Open", "3 Stale"}},
		{"its own columns", "QualysFindings()", "CVEs SSL LastFixed LastFound Port Results", findings(finding(kql.Row{"CVE_ID_s": "CVE-1", "Title_s": "T", "LastFixed_t": before(3, 0), "LastFound_t": before(4, 0), "Port_s": "22", "Results_0_s": "seen"})), []string{"CVE-1 false " + fmt.Sprint(before(3, 0)) + " " + fmt.Sprint(before(4, 0)) + " 22 seen"}},
		{"its own columns, more of them", "QualysFindings()", "QDSSeverity IPv6 HostTags NetworkName LastScan Service Protocol Instance", findings(finding(kql.Row{"QDSSeverity_s": "HIGH", "IPv6_s": "fe80::1", "HostTags_s": "Servers", "NetworkName_s": "net", "LastScanDateTime_t": before(2, 0), "Service_s": "ssh", "Protocol_s": "tcp", "Instance_s": "db"})), []string{"HIGH fe80::1 Servers net " + fmt.Sprint(before(2, 0)) + " ssh tcp db"}},
		{"a finding is seen by whatever date it has", "QualysFindings()", "QID State", findings(
			finding(nil),
			finding(kql.Row{"QID_s": "1", "RowKey_s": "1", "LastProcessed_t": nil, "LastTested_t": before(1, 0), "LastFound_t": before(60, 0), "LastVMScannedDateTime_t": before(60, 0)}),
			finding(kql.Row{"QID_s": "2", "RowKey_s": "2", "LastProcessed_t": nil, "LastFound_t": before(1, 0), "LastVMScannedDateTime_t": before(60, 0)}),
			finding(kql.Row{"QID_s": "3", "LastProcessed_t": before(1, 0), "LastTested_t": before(60, 0)})), []string{"1 Open", "2 Open", "3 Open", "38739 Open"}},
		{"information is no weakness, fixed or not", "QualysFindings()", "QID State", findings(finding(kql.Row{"Type_s": "Information Gathered", "Status_s": "Fixed"})), []string{"38739 Info"}},
		{"when it was first told, and to be back", "QualysFindings()", "FirstTold ReopenedTold", findings(told(before(9, 0), nil), told(before(5, 0), kql.Row{"Status_s": "Re-Opened"}), told(before(3, 0), kql.Row{"Status_s": "Re-Opened"})), []string{fmt.Sprint(before(9, 0)) + " " + fmt.Sprint(before(5, 0))}},
		{"91 days are not in 90", "QualysFindings()", "QID", findings(told(before(91, 0), nil)), nil},

		{"the KnowledgeBase once", "QualysKnowledge()", "QID VulnerabilityTitle CVSS KnownExploited", rows("QualysKB_CL", entry(kql.Row{"Title_s": "old"}), entry(kql.Row{"TimeGenerated": before(1, 0)})), []string{"38739 Deprecated SSH settings 9.8 true"}},
		{"an entry that Qualys has removed", "QualysKnowledge()", "QID", rows("QualysKB_CL", entry(nil), kql.Row{"TimeGenerated": before(1, 0), "QID_s": "38739", "Removed_DateTime_t": before(1, 0)}), nil},
		{"CVSS 2 where there is no 3", "QualysKnowledge()", "CVSS KnownExploited", rows("QualysKB_CL", entry(kql.Row{"CVSS3_Base_s": nil, "CVSS_Base_s": "6.4", "Threat_Intel_s": "Exploit_Public"})), []string{"6.4 false"}},

		{"its columns", "QualysKnowledge()", "Category Patchable RemotelyDiscoverable CVSSVector", rows("QualysKB_CL", entry(kql.Row{"Category": "Web", "Discovery_Remote_s": "1", "CVSS3_Vector_s": "3", "CVSS_Vector_s": "2"}), entry(kql.Row{"QID_s": "2", "Category_s": "Local", "Patchable_s": "0", "Discovery_Remote_s": "0", "CVSS_Vector_s": "2"})), []string{"Local false false 2", "Web true true 3"}},
		{"its texts and dates", "QualysKnowledge()", "Diagnosis Consequence Solution PatchPublished Published Disabled", rows("QualysKB_CL", entry(kql.Row{"Diagnosis_s": "d", "Consequence_s": "c", "Solution_s": "s", "Patch_Published_Date_t": before(5, 0), "Published_DateTime_t": before(9, 0), "Is_Disabled_s": "1"})), []string{"d c s " + fmt.Sprint(before(5, 0)) + " " + fmt.Sprint(before(9, 0)) + " true"}},
		{"known to be exploited", "QualysKnowledge()", "QID KnownExploited", rows("QualysKB_CL", entry(kql.Row{"Threat_Intel_s": "Easy_Exploit, Active_Attacks"}), entry(kql.Row{"QID_s": "2", "Threat_Intel_s": "Easy_Exploit"}), entry(kql.Row{"QID_s": "3", "Threat_Intel_s": nil})), []string{"2 false", "3 false", "38739 true"}},
		{"61 days are not in 60", "QualysKnowledge()", "QID", rows("QualysKB_CL", entry(kql.Row{"TimeGenerated": before(61, 0)})), nil},
		{"with the finding's own CVEs", "QualysFindingsWithKnowledge()", "QID CVEs", with(findings(finding(kql.Row{"CVE_ID_s": "CVE-9"}), finding(kql.Row{"QID_s": "7", "CVE_ID_s": "CVE-7"})), rows("QualysKB_CL", entry(nil))), []string{"38739 CVE-2020-0001", "7 CVE-7"}},
		{"joined, with a longer staleAfter", "QualysFindingsWithKnowledge(90d, 60d)", "State", findings(told(before(50, 0), nil)), []string{"Open"}},
		{"joined, with a shorter lookback", "QualysFindingsWithKnowledge(7d)", "State", findings(told(before(8, 0), nil)), nil},
		{"joined, with a shorter lookback of the KnowledgeBase", "QualysFindingsWithKnowledge(90d, 45d, 2d)", "InKnowledgeBase", with(findings(finding(nil)), rows("QualysKB_CL", entry(nil))), []string{"false"}},
		{"the KnowledgeBase's title comes first", "QualysFindingsWithKnowledge()", "VulnerabilityTitle", with(findings(finding(kql.Row{"Title_s": "own"})), rows("QualysKB_CL", entry(nil))), []string{"Deprecated SSH settings"}},
		{"joined", "QualysFindingsWithKnowledge()", "QID VulnerabilityTitle CVEs KnownExploited InKnowledgeBase Severity", with(findings(finding(nil)), rows("QualysKB_CL", entry(nil))), []string{"38739 Deprecated SSH settings CVE-2020-0001 true true 5"}},
		{"not in the KnowledgeBase", "QualysFindingsWithKnowledge()", "QID VulnerabilityTitle KnownExploited InKnowledgeBase", findings(finding(kql.Row{"Title_s": "own title"})), []string{"38739 own title false false"}},
		{"exploited by its own score", "QualysFindingsWithKnowledge()", "KnownExploited", findings(finding(kql.Row{"QDSFactors_s": `{"CISA_vuln":"YES","CVSS":"7.7"}`})), []string{"true"}},
		{"under attack by its own score", "QualysFindingsWithKnowledge()", "KnownExploited", findings(finding(kql.Row{"QDSFactors_s": `{"RTI":"local,active_attacks"}`})), []string{"true"}},
	}
	var sources []kql.Source
	for _, c := range cases {
		sources = append(sources, kql.Source{Name: c.name, Text: c.query})
	}
	queries, err := w.Check(sources...)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := w.Run(queries[i], c.data, noon)
			if err != nil {
				t.Fatal(err)
			}
			if lines := show(got, strings.Fields(c.columns)...); !slices.Equal(lines, c.want) {
				t.Errorf("%s\ngot  %q\nwant %q", c.columns, lines, c.want)
			}
		})
	}
}

// The HTTP Data Collector API puts a text that looks like a GUID or a date into a column
// of its own. The functions read that, too, and do without it where there is none.
func TestOldAPIColumns(t *testing.T) {
	t.Parallel()
	_, w := sentinel(t)
	const table = "QualysHostDetectionV2_CL"
	for _, name := range []string{"CloudResourceId", "DnsName", "HostTags", "Instance", "NetBios", "NetworkName", "Results_0", "Service"} {
		w.Tables[table] = append(w.Tables[table], kql.Column{Name: name + "_g", Type: "string"}, kql.Column{Name: name + "_t", Type: "datetime"})
	}
	queries, err := w.Check(kql.Source{Name: "findings", Text: "QualysFindings()"})
	if err != nil {
		t.Fatal(err)
	}
	const id = "57920d1f-eee5-2731-3658-340bb1ab101a"
	at := before(1, 0).Format("2006-01-02T15:04:05.0000000Z")
	for name, want := range map[string]string{
		"CloudResourceId": "CloudResourceId", "DnsName": "DnsName", "HostTags": "HostTags", "Instance": "Instance",
		"NetBios": "NetBios", "NetworkName": "NetworkName", "Results_0": "Results", "Service": "Service",
	} {
		got, err := w.Run(queries[0], findings(
			finding(kql.Row{"HostId_s": "1", "RowKey_s": "1", name + "_s": nil, name + "_g": id}),
			finding(kql.Row{"HostId_s": "2", "RowKey_s": "2", name + "_s": nil, name + "_t": before(1, 0)}),
			finding(kql.Row{"HostId_s": "3", "RowKey_s": "3", name + "_s": "plain"})), noon)
		if err != nil {
			t.Fatal(err)
		}
		if lines := show(got, "HostId", want); !slices.Equal(lines, []string{"1 " + id, "2 " + at, "3 plain"}) {
			t.Errorf("%s: got %q", name, lines)
		}
	}
}

// What each rule fires on, and what it does not.
func TestRules(t *testing.T) {
	t.Parallel()
	c, w := sentinel(t)
	exploited := kql.Row{"QDSFactors_s": `{"CISA_vuln":"YES"}`}
	changed := func(changes ...kql.Row) kql.Row {
		all := kql.Row{}
		for _, c := range changes {
			maps.Copy(all, c)
		}
		return all
	}
	type fixture struct {
		name string
		data kql.Data
		want []string
	}
	cases := map[string]struct {
		columns  string
		fixtures []fixture
	}{
		"Qualys - many urgent vulnerabilities on a host": {"HostName UrgentFindings HighestQDS", []fixture{
			{"ten on one host, nine on another", findings(append(many(10, "1", nil), many(9, "2", nil)...)...), []string{"host1 10 <nil>"}},
			{"with scores", findings(append(many(10, "1", kql.Row{"QDS_s": "80"}), finding(kql.Row{"QDS_s": "99"}))...), []string{"host1 11 99"}},
			{"scanned 36 hours ago", findings(many(10, "1", kql.Row{"LastVMScannedDateTime_t": before(1, 12)})...), []string{"host1 10 <nil>"}},
			{"ten deliveries of nine", findings(append(many(9, "1", nil), many(9, "1", kql.Row{"TimeGenerated": before(0, 1)})...)...), nil},
			{"severity 4", findings(many(20, "1", kql.Row{"Severity_s": "4"})...), nil},
			{"fixed since", findings(append(many(10, "1", kql.Row{"TimeGenerated": before(0, 2)}), many(1, "1", kql.Row{"Status_s": "Fixed"})...)...), nil},
			{"ignored", findings(many(10, "1", kql.Row{"Ignored_s": "1"})...), nil},
			{"disabled", findings(many(10, "1", kql.Row{"Disabled_s": "1"})...), nil},
			{"information", findings(many(10, "1", kql.Row{"Type_s": "Info"})...), nil},
			{"told two days ago", findings(many(10, "1", kql.Row{"TimeGenerated": before(2, 0)})...), nil},
			{"the first load of what was scanned long ago", findings(many(12, "1", kql.Row{"LastVMScannedDateTime_t": before(20, 0)})...), nil},
			{"two hosts", findings(append(many(10, "1", nil), many(12, "2", nil)...)...), []string{"host1 10 <nil>", "host2 12 <nil>"}},
		}},
		"Qualys - new severity 5 vulnerability across hosts": {"QID HostName Hosts", []fixture{
			{"on five hosts", findings(spread(5, nil)...), []string{"38739 host1 5"}},
			{"on four", findings(spread(4, nil)...), nil},
			{"on five ports of one host", findings(finding(kql.Row{"RowKey_s": "1@"}), finding(kql.Row{"RowKey_s": "2@"}), finding(kql.Row{"RowKey_s": "3@"}), finding(kql.Row{"RowKey_s": "4@"}), finding(kql.Row{"RowKey_s": "5@"})), nil},
			{"on five, fixed on one", findings(append(spread(5, kql.Row{"TimeGenerated": before(0, 1)}), finding(kql.Row{"Status_s": "Fixed"}))...), nil},
			{"scanned again since", findings(append(spread(5, kql.Row{"TimeGenerated": before(0, 2)}), spread(5, kql.Row{"Status_s": "Active"})...)...), []string{"38739 host1 5"}},
			{"the first load of old findings", findings(spread(50, kql.Row{"FirstFound_t": before(8, 0)})...), nil},
			{"severity 3", findings(spread(50, kql.Row{"Severity_s": "3"})...), nil},
			{"ignored", findings(spread(50, kql.Row{"Ignored_s": "1"})...), nil},
			{"disabled", findings(spread(50, kql.Row{"Disabled_s": "1"})...), nil},
			{"told two days ago, and scanned again today", findings(append(spread(50, kql.Row{"TimeGenerated": before(2, 0), "FirstFound_t": before(3, 0)}), spread(50, kql.Row{"FirstFound_t": before(3, 0)})...)...), nil},
			{"told five days ago, and one host today", findings(append(spread(4, kql.Row{"TimeGenerated": before(5, 0), "FirstFound_t": before(5, 0)}), finding(kql.Row{"HostId_s": "9", "DnsName_s": "host9"}))...), []string{"38739 host9 5"}},
		}},
		"Qualys - vulnerability that is exploited in the wild": {"HostName QID VulnerabilityTitle", []fixture{
			{"by its score", findings(finding(exploited)), []string{"web1.example.com 38739"}},
			{"by the KnowledgeBase", with(findings(finding(nil)), rows("QualysKB_CL", entry(nil))), []string{"web1.example.com 38739 Deprecated SSH settings"}},
			{"not exploited", with(findings(finding(nil)), rows("QualysKB_CL", entry(kql.Row{"Threat_Intel_s": "No_Patch"}))), nil},
			{"an entry that the rule's 14 days do not show", with(findings(finding(nil)), rows("QualysKB_CL", entry(kql.Row{"TimeGenerated": before(20, 0)}))), nil},
			{"told by the rule before", findings(finding(changed(exploited, kql.Row{"TimeGenerated": before(0, 1.5)}))), nil},
			{"made long ago, arrived now", findings(finding(changed(exploited, kql.Row{"TimeGenerated": before(0, 1.5), kql.Ingested: before(0, 0.2)}))), []string{"web1.example.com 38739"}},
			{"told yesterday, active now", findings(told(before(1, 0), exploited), finding(changed(exploited, kql.Row{"Status_s": "Active", "FirstFound_t": before(1, 0)}))), nil},
			{"found and scanned again before it was told", findings(finding(changed(exploited, kql.Row{"Status_s": "Active", "FirstFound_t": before(1, 0)}))), []string{"web1.example.com 38739"}},
			{"new, delivered yesterday and again", findings(finding(changed(exploited, kql.Row{"TimeGenerated": before(1, 0)})), finding(exploited)), nil},
			{"new, and its host processed again", findings(told(before(1, 0), changed(exploited, kql.Row{"FirstFound_t": before(1, 0)})), finding(changed(exploited, kql.Row{"FirstFound_t": before(1, 0)}))), nil},
			{"found 10 days ago, new, told now", findings(finding(changed(exploited, kql.Row{"FirstFound_t": before(10, 0)}))), []string{"web1.example.com 38739"}},
			{"back again, delivered yesterday and again", findings(finding(changed(exploited, kql.Row{"Status_s": "Re-Opened", "TimeGenerated": before(1, 0), "LastReopened_t": before(5, 0)})), finding(changed(exploited, kql.Row{"Status_s": "Re-Opened", "LastReopened_t": before(5, 0)}))), nil},
			{"an entry of 10 days ago", with(findings(finding(nil)), rows("QualysKB_CL", entry(kql.Row{"TimeGenerated": before(10, 0)}))), []string{"web1.example.com 38739 Deprecated SSH settings"}},
			{"on a host last seen 20 days ago", findings(finding(changed(exploited, kql.Row{"LastProcessed_t": before(20, 0)}))), []string{"web1.example.com 38739"}},
			{"an outage over a weekend", findings(finding(changed(exploited, kql.Row{"Status_s": "Active", "FirstFound_t": before(3, 12)}))), []string{"web1.example.com 38739"}},
			{"active for weeks, and new to the rule's days", findings(finding(changed(exploited, kql.Row{"Status_s": "Active", "FirstFound_t": before(10, 0)}))), nil},
			{"ignored", findings(finding(changed(exploited, kql.Row{"Ignored_s": "1"}))), nil},
			{"on a host that is not scanned any more", findings(finding(changed(exploited, kql.Row{"LastProcessed_t": before(50, 0)}))), nil},
			{"back again long ago", findings(finding(changed(exploited, kql.Row{"Status_s": "Re-Opened", "FirstFound_t": before(300, 0), "LastReopened_t": before(15, 0)}))), nil},
			{"back again", findings(finding(changed(exploited, kql.Row{"Status_s": "Re-Opened", "FirstFound_t": before(300, 0), "LastReopened_t": before(1, 0)}))), []string{"web1.example.com 38739"}},
			{"the first load of old findings", findings(finding(changed(exploited, kql.Row{"FirstFound_t": before(300, 0)}))), nil},
			{"fixed since", findings(finding(exploited), finding(changed(exploited, kql.Row{"Status_s": "Fixed", "TimeGenerated": before(0, 0.1)}))), nil},
			{"disabled", findings(finding(changed(exploited, kql.Row{"Disabled_s": "1"}))), nil},
		}},
		"Qualys - fixed vulnerability is back": {"HostName QID TimesReopened", []fixture{
			{"severity 4", findings(finding(kql.Row{"Status_s": "Re-Opened", "Severity_s": "4", "LastReopened_t": before(0, 1), "TimesReopened_s": "2"})), []string{"web1.example.com 38739 2"}},
			{"severity 3", findings(finding(kql.Row{"Status_s": "Re-Opened", "Severity_s": "3"})), nil},
			{"ignored", findings(finding(kql.Row{"Status_s": "Re-Opened", "Ignored_s": "1"})), nil},
			{"disabled", findings(finding(kql.Row{"Status_s": "Re-Opened", "Disabled_s": "1"})), nil},
			{"on a host that is not scanned any more", findings(finding(kql.Row{"Status_s": "Re-Opened", "LastProcessed_t": before(50, 0)})), nil},
			{"reopened 13 days ago", findings(finding(kql.Row{"Status_s": "Re-Opened", "LastReopened_t": before(13, 0)})), []string{"web1.example.com 38739 <nil>"}},
			{"new", findings(finding(nil)), nil},
			{"reopened long ago, loaded now", findings(finding(kql.Row{"Status_s": "Re-Opened", "LastReopened_t": before(15, 0)})), nil},
			{"without a date", findings(finding(kql.Row{"Status_s": "RE-OPENED"})), []string{"web1.example.com 38739 <nil>"}},
			{"told by the rule before", findings(finding(kql.Row{"Status_s": "Re-Opened", "TimeGenerated": before(0, 2)})), nil},
			{"told, and active by the next scan", findings(finding(kql.Row{"Status_s": "Re-Opened"}), finding(kql.Row{"Status_s": "Active", "TimeGenerated": before(0, 0.1)})), []string{"web1.example.com 38739 <nil>"}},
			{"delivered yesterday and again", findings(finding(kql.Row{"Status_s": "Re-Opened", "TimeGenerated": before(1, 0)}), finding(kql.Row{"Status_s": "Re-Opened"})), nil},
			{"known for days, and reopened now", findings(told(before(2, 0), kql.Row{"Status_s": "Fixed"}), finding(kql.Row{"Status_s": "Re-Opened"})), []string{"web1.example.com 38739 <nil>"}},
			{"made two hours ago, arrived now", findings(finding(kql.Row{"Status_s": "Re-Opened", "TimeGenerated": before(0, 2), kql.Ingested: before(0, 0.5)})), []string{"web1.example.com 38739 <nil>"}},
		}},
		"Qualys - new finding with a critical detection score": {"HostName QDS", []fixture{
			{"95", findings(finding(kql.Row{"QDS_s": "95"})), []string{"web1.example.com 95"}},
			{"94", findings(finding(kql.Row{"QDS_s": "94"})), nil},
			{"100 is more than 95", findings(finding(kql.Row{"QDS_s": "100"})), []string{"web1.example.com 100"}},
			{"no score", findings(finding(nil)), nil},
			{"told yesterday, active now", findings(told(before(1, 0), kql.Row{"QDS_s": "95"}), finding(kql.Row{"QDS_s": "95", "Status_s": "Active", "FirstFound_t": before(1, 0)})), nil},
			{"found and scanned again before it was told", findings(finding(kql.Row{"QDS_s": "95", "Status_s": "Active"})), []string{"web1.example.com 95"}},
			{"back again", findings(finding(kql.Row{"QDS_s": "95", "Status_s": "Re-Opened", "FirstFound_t": before(100, 0)})), []string{"web1.example.com 95"}},
			{"back again long ago", findings(finding(kql.Row{"QDS_s": "95", "Status_s": "Re-Opened", "FirstFound_t": before(100, 0), "LastReopened_t": before(15, 0)})), nil},
			{"found 10 days ago, new, told now", findings(finding(kql.Row{"QDS_s": "95", "FirstFound_t": before(10, 0)})), []string{"web1.example.com 95"}},
			{"found 10 days ago, active, told now", findings(finding(kql.Row{"QDS_s": "95", "Status_s": "Active", "FirstFound_t": before(10, 0)})), nil},
			{"new, delivered yesterday and again", findings(finding(kql.Row{"QDS_s": "95", "TimeGenerated": before(1, 0)}), finding(kql.Row{"QDS_s": "95"})), nil},
			{"made two hours ago, arrived now", findings(finding(kql.Row{"QDS_s": "95", "TimeGenerated": before(0, 2), kql.Ingested: before(0, 0.5)})), []string{"web1.example.com 95"}},
			{"told by the rule before", findings(finding(kql.Row{"QDS_s": "95", "TimeGenerated": before(0, 2)})), nil},
			{"disabled", findings(finding(kql.Row{"QDS_s": "95", "Disabled_s": "1"})), nil},
			{"on a host that is not scanned any more", findings(finding(kql.Row{"QDS_s": "95", "LastProcessed_t": before(50, 0)})), nil},
			{"the first load of old findings", findings(finding(kql.Row{"QDS_s": "95", "FirstFound_t": before(20, 0)})), nil},
			{"ignored", findings(finding(kql.Row{"QDS_s": "95", "Ignored_s": "1"})), nil},
		}},
		"Qualys - host is not scanned any more": {"HostName LastScan", []fixture{
			{"the day it passes the limit", findings(told(before(7, 12), nil)), []string{"web1.example.com " + fmt.Sprint(before(7, 12))}},
			{"a day before", findings(told(before(6, 12), nil)), nil},
			{"with no scan's date but its processing", findings(finding(kql.Row{"LastVMScannedDateTime_t": nil, "LastScanDateTime_t": nil, "LastProcessed_t": before(7, 12)})), []string{"web1.example.com " + fmt.Sprint(before(7, 12))}},
			{"another kind of scan goes on", findings(finding(kql.Row{"LastVMScannedDateTime_t": before(7, 12)})), []string{"web1.example.com " + fmt.Sprint(before(7, 12))}},
			{"with a scan of another kind alone", findings(finding(kql.Row{"LastVMScannedDateTime_t": nil, "LastScanDateTime_t": before(7, 12)})), []string{"web1.example.com " + fmt.Sprint(before(7, 12))}},
			{"a day after: it was told", findings(told(before(8, 12), nil)), nil},
			{"an old finding on a host that is scanned", findings(told(before(7, 12), nil), told(before(1, 0), kql.Row{"QID_s": "7"})), nil},
			{"the host's last scan counts, not the finding's", findings(finding(kql.Row{"LastProcessed_t": before(7, 12)})), nil},
		}},
		"Qualys - connector is silent, behind or has rows refused": {"Dataset Trouble", []fixture{
			{"all is well", health(nil), nil},
			{"it never ran", nil, []string{"kb silent: it has not run in two weeks, or never", "vm silent: it has not run in two weeks, or never"}},
			{"one dataset has not run yet", rows("QualysConnectorHealth_CL", run(nil)), nil},
			{"one dataset never ran", rows("QualysConnectorHealth_CL", run(nil), run(kql.Row{"TimeGenerated": before(0, 4)})), []string{"kb silent: it has not run in two weeks, or never"}},
			{"one dataset is silent", rows("QualysConnectorHealth_CL", run(nil), run(kql.Row{"Dataset_s": "kb", "TimeGenerated": before(0, 4)}), run(kql.Row{"Dataset_s": "kb", "TimeGenerated": before(0, 5)})), []string{"kb silent: it has not run for long"}},
			{"one that runs once a day", rows("QualysConnectorHealth_CL", run(nil), run(kql.Row{"Dataset_s": "kb", "TimeGenerated": before(0, 23)}), run(kql.Row{"Dataset_s": "kb", "TimeGenerated": before(1, 23)})), nil},
			{"that is silent for four days", rows("QualysConnectorHealth_CL", run(nil), run(kql.Row{"Dataset_s": "kb", "TimeGenerated": before(4, 0)}), run(kql.Row{"Dataset_s": "kb", "TimeGenerated": before(5, 0)})), []string{"kb silent: it has not run for long"}},
			{"its first run was hours ago", rows("QualysConnectorHealth_CL", run(nil), run(kql.Row{"Dataset_s": "kb", "TimeGenerated": before(0, 23)})), nil},
			{"it fails", health(kql.Row{"Level_s": "error", "Outcome_s": "failed", "Reason_s": "401"}), []string{"vm it fails"}},
			{"it failed hours ago, and is well", health(nil, run(kql.Row{"Level_s": "error", "Outcome_s": "failed", "TimeGenerated": before(0, 5)})), nil},
			{"rows are refused", health(kql.Row{"DeadLetters_d": 3.0}), []string{"vm the workspace refuses rows: they are kept as dead letters"}},
			{"it stalls, run after run", health(kql.Row{"Level_s": "error", "Outcome_s": "waiting"}), []string{"vm it fails"}},
			{"what was asked for by hand fails", health(nil, run(kql.Row{"Level_s": "error", "Outcome_s": "failed", "Request_s": "abc"})), []string{"vm it fails"}},
			{"once a day, complete yesterday", rows("QualysConnectorHealth_CL", run(nil), run(kql.Row{"Dataset_s": "kb", "TimeGenerated": before(0, 1), "Outcome_s": "waiting"}), run(kql.Row{"Dataset_s": "kb", "TimeGenerated": before(1, 2)}), run(kql.Row{"Dataset_s": "kb", "TimeGenerated": before(2, 3)})), nil},
			{"a sync by hand before the first complete window", health(kql.Row{"Outcome_s": "paused"}, run(kql.Row{"TimeGenerated": before(2, 0), "Request_s": "abc"})), nil},
			{"a sync by hand is complete, the windows are not", health(kql.Row{"Request_s": "abc"}, hourly(30, kql.Row{"Outcome_s": "waiting"})...), []string{"vm behind: no window was completed for long"}},
			{"hosts are passed", health(kql.Row{"Isolated_d": 1.0}), []string{"vm hosts or QIDs are passed, because their answers fail"}},
			{"no window was completed for a day", health(kql.Row{"Outcome_s": "waiting"}, hourly(25, kql.Row{"Outcome_s": "waiting"})...), []string{"vm behind: no window was completed for long"}},
			{"a first load that takes some hours", health(kql.Row{"Outcome_s": "paused"}, run(kql.Row{"Outcome_s": "paused", "TimeGenerated": before(0, 6)})), nil},
			{"requests by hand do not hide a dead timer", health(kql.Row{"Request_s": "abc"}, hourly(25, kql.Row{"Request_s": "abc"})...), []string{"vm silent: it has not run for long"}},
			{"dead letters and passed hosts of hours ago", health(nil, run(kql.Row{"TimeGenerated": before(0, 3), "DeadLetters_d": 2.0, "Isolated_d": 1.0})), nil},
			{"made before, arrived now", health(nil, run(kql.Row{"TimeGenerated": before(0, 1.2), kql.Ingested: before(0, 0.9), "DeadLetters_d": 2.0})), []string{"vm the workspace refuses rows: they are kept as dead letters"}},
			{"an integration fails", health(nil, run(kql.Row{"Integration_s": "3", "Level_s": "error", "Outcome_s": "failed"})), []string{"vm of integration 3 it fails"}},
			{"an integration does not hide that the windows are not complete", health(kql.Row{"Outcome_s": "waiting"}, append(hourly(30, kql.Row{"Outcome_s": "waiting"}), hourly(30, kql.Row{"Integration_s": "1"})...)...), []string{"vm behind: no window was completed for long"}},
			{"an integration does not hide a dead timer", rows("QualysConnectorHealth_CL", append(hourly(30, kql.Row{"Integration_s": "1"}), run(kql.Row{"Dataset_s": "kb"}), run(kql.Row{"TimeGenerated": before(1, 6)}), run(kql.Row{"TimeGenerated": before(1, 7)}))...), []string{"vm silent: it has not run for long"}},
			{"an integration is behind", health(nil, hourly(30, kql.Row{"Integration_s": "1", "Outcome_s": "waiting"})...), []string{"vm of integration 1 behind: no window was completed for long"}},
			{"an integration was deleted days ago", health(nil, run(kql.Row{"Integration_s": "1", "TimeGenerated": before(3, 0)}), run(kql.Row{"Integration_s": "1", "TimeGenerated": before(3, 1), "Outcome_s": "waiting"})), nil},
			{"a first load that is stuck for days", rows("QualysConnectorHealth_CL", append(hourly(72, kql.Row{"Outcome_s": "waiting"})[:72], run(kql.Row{"Dataset_s": "kb"}))...), []string{"vm behind: no window was completed for long"}},
		}},
	}
	var sources []kql.Source
	for _, r := range c.Rules {
		sources = append(sources, kql.Source{Name: r.Name, Text: r.Query})
	}
	queries, err := w.Check(sources...)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range c.Rules {
		of, ok := cases[r.Name]
		if !ok {
			t.Errorf("rule %s has no rows to be tested on", r.Name)
			continue
		}
		period := time.Duration(r.QueryPeriod)
		for _, f := range of.fixtures {
			t.Run(r.Name+"/"+f.name, func(t *testing.T) {
				got, err := w.Run(queries[i], within(f.data, period), noon)
				if err != nil {
					t.Fatal(err)
				}
				if lines := show(got, strings.Fields(of.columns)...); !slices.Equal(lines, f.want) {
					t.Errorf("%s\ngot  %q\nwant %q", of.columns, lines, f.want)
				}
				for _, row := range got {
					for _, column := range r.Columns() {
						if _, ok := row[column]; !ok {
							t.Errorf("a row without %s", column)
						}
					}
				}
			})
		}
		delete(cases, r.Name)
	}
	for name := range cases {
		t.Errorf("there is no rule %s", name)
	}
}

// within is what a scheduled rule sees: rows of its period, whatever its query
// asks for (Microsoft, "Scheduled analytics rules", query scheduling).
func within(data kql.Data, period time.Duration) kql.Data {
	seen := kql.Data{}
	for table, list := range data {
		for _, row := range list {
			if row["TimeGenerated"].(time.Time).After(noon.Add(-period)) {
				seen[table] = append(seen[table], row)
			}
		}
	}
	return seen
}

// What the hunting queries and the alert find.
func TestHunts(t *testing.T) {
	t.Parallel()
	c, w := sentinel(t)
	exploited := `{"CISA_vuln":"YES"}`
	cases := map[string]struct {
		columns string
		data    kql.Data
		want    []string
	}{
		"Qualys - exploited in the wild and open for a month": {"QID OpenForDays", findings(
			finding(kql.Row{"QDSFactors_s": exploited, "FirstFound_t": before(40, 0)}),
			finding(kql.Row{"QDSFactors_s": exploited, "FirstFound_t": before(20, 0), "QID_s": "1"}),
			finding(kql.Row{"FirstFound_t": before(40, 0), "QID_s": "2"}),
			finding(kql.Row{"QDSFactors_s": exploited, "FirstFound_t": before(40, 0), "QID_s": "4", "Ignored_s": "1"}),
			finding(kql.Row{"QDSFactors_s": exploited, "FirstFound_t": before(40, 0), "QID_s": "5", "Disabled_s": "1"}),
			finding(kql.Row{"QDSFactors_s": exploited, "FirstFound_t": before(40, 0), "QID_s": "3", "Status_s": "Fixed"})), []string{"38739 40"}},
		"Qualys - exploitable over the network, with a public exploit": {"QID Hosts Ports", with(findings(
			finding(kql.Row{"Port_s": "22"}), finding(kql.Row{"Port_s": "22", "HostId_s": "2"}), finding(kql.Row{"Port_s": "2222", "HostId_s": "2", "RowKey_s": "x@"}),
			finding(kql.Row{"HostId_s": "3"}), finding(kql.Row{"Port_s": "22", "QID_s": "7"}),
			finding(kql.Row{"Port_s": "23", "HostId_s": "4", "Ignored_s": "1"}), finding(kql.Row{"Port_s": "24", "HostId_s": "5", "Disabled_s": "1"}),
			finding(kql.Row{"Port_s": "80", "QID_s": "8"}), finding(kql.Row{"Port_s": "81", "QID_s": "9"})),
			rows("QualysKB_CL", entry(kql.Row{"Discovery_Remote_s": "1"}), entry(kql.Row{"QID_s": "7", "Discovery_Remote_s": "1", "Threat_Intel_s": "No_Patch"}),
				entry(kql.Row{"QID_s": "8", "Discovery_Remote_s": "1", "Threat_Intel_s": nil, "Exploits_s": `[{"REF":"CVE-1"}]`}), entry(kql.Row{"QID_s": "9", "Discovery_Remote_s": "0"}))), []string{"38739 2 [22 2222]", "8 1 [80]"}},
		"Qualys - hosts that are scanned without login": {"HostName Findings", findings(
			finding(nil), finding(kql.Row{"QID_s": "7", "Status_s": "Fixed"}),
			finding(kql.Row{"HostId_s": "2", "LastVMAuthScannedDateTime_t": before(3, 0)}),
			finding(kql.Row{"HostId_s": "3", "TrackingMethod_s": "AGENT"}),
			finding(kql.Row{"HostId_s": "4", "DnsName_s": "host4", "LastVMAuthScannedDateTime_t": before(33, 0)}),
			finding(kql.Row{"HostId_s": "6", "LastVMAuthScannedDateTime_t": before(20, 0)}),
			told(before(50, 0), kql.Row{"HostId_s": "7", "LastVMScannedDateTime_t": before(1, 0)}),
			told(before(40, 0), kql.Row{"HostId_s": "5"})), []string{"host4 1", "web1.example.com 1"}},
		"Qualys - findings that keep coming back": {"QID TimesReopened", findings(finding(kql.Row{"TimesReopened_s": "3"}), finding(kql.Row{"QID_s": "7", "TimesReopened_s": "2"}), finding(kql.Row{"QID_s": "8"}), told(before(50, 0), kql.Row{"QID_s": "9", "TimesReopened_s": "5"})), []string{"38739 3"}},
		"Qualys - found of what Qualys published this week": {"QID Hosts", with(findings(finding(nil), finding(kql.Row{"HostId_s": "2", "Status_s": "Fixed"})),
			rows("QualysKB_CL", entry(kql.Row{"Published_DateTime_t": before(2, 0)}), entry(kql.Row{"QID_s": "7", "Published_DateTime_t": before(2, 0)}), entry(kql.Row{"QID_s": "8"}))), []string{"38739 1", "7 0"}},
	}
	var sources []kql.Source
	for _, h := range c.Hunts {
		sources = append(sources, kql.Source{Name: h.Name, Text: h.Query})
	}
	queries, err := w.Check(append(sources, kql.Source{Name: "alert", Text: c.Alert})...)
	if err != nil {
		t.Fatal(err)
	}
	for i, h := range c.Hunts {
		of, ok := cases[h.Name]
		if !ok {
			t.Errorf("hunting query %s has no rows to be tested on", h.Name)
			continue
		}
		got, err := w.Run(queries[i], of.data, noon)
		if err != nil {
			t.Fatal(err)
		}
		if lines := show(got, strings.Fields(of.columns)...); !slices.Equal(lines, of.want) {
			t.Errorf("%s: %s\ngot  %q\nwant %q", h.Name, of.columns, lines, of.want)
		}
	}
	for name, a := range map[string]struct {
		data kql.Data
		want []string
	}{
		"well":               {health(nil), nil},
		"never":              {nil, []string{"kb", "vm"}},
		"one not yet":        {rows("QualysConnectorHealth_CL", run(nil)), nil},
		"one never":          {rows("QualysConnectorHealth_CL", run(nil), run(kql.Row{"TimeGenerated": before(0, 4)})), []string{"kb"}},
		"hosts are passed":   {health(kql.Row{"Isolated_d": 1.0}), []string{"vm"}},
		"by hand alone":      {health(kql.Row{"Request_s": "abc"}, hourly(30, kql.Row{"Request_s": "abc"})...), []string{"vm"}},
		"silent":             {rows("QualysConnectorHealth_CL", run(kql.Row{"TimeGenerated": before(0, 4)}), run(kql.Row{"TimeGenerated": before(0, 5)}), run(kql.Row{"Dataset_s": "kb"})), []string{"vm"}},
		"once a day":         {rows("QualysConnectorHealth_CL", run(nil), run(kql.Row{"Dataset_s": "kb", "TimeGenerated": before(0, 22)})), nil},
		"fails":              {health(kql.Row{"Level_s": "error"}), []string{"vm"}},
		"integration fails":  {health(nil, run(kql.Row{"Integration_s": "3", "Level_s": "error"})), []string{"vm of integration 3"}},
		"integrations alone": {rows("QualysConnectorHealth_CL", run(kql.Row{"Integration_s": "3"}), run(kql.Row{"TimeGenerated": before(0, 4)}), run(kql.Row{"TimeGenerated": before(0, 5)}), run(kql.Row{"Dataset_s": "kb"})), []string{"vm"}},
		"refused":            {health(kql.Row{"DeadLetters_d": 1.0}), []string{"vm"}},
		"was not well once":  {health(nil, run(kql.Row{"Level_s": "error", "TimeGenerated": before(0, 2)})), nil},
	} {
		got, err := w.Run(queries[len(c.Hunts)], a.data, noon)
		if err != nil {
			t.Fatal(err)
		}
		if lines := show(got, "Dataset"); !slices.Equal(lines, a.want) {
			t.Errorf("alert, %s: %q, want %q", name, lines, a.want)
		}
	}
}
