package e2e

import (
	"slices"
	"strings"
	"testing"

	"qualys-sentinel/e2e/kql"
)

// Whichever text of a finding looks like a GUID, the functions show it: a host may be
// named by one, and so may be its instance, its tags or its network. What names a GUID
// without dashes is stored with them.
func TestFurtherOldAPIColumns(t *testing.T) {
	t.Parallel()
	_, w := sentinel(t)
	const table = "QualysHostDetectionV2_CL"
	columns := map[string]string{
		"DnsFqdn": "HostFullName", "FQDN": "FQDN",
		"CloudResourceId": "CloudResourceId", "DnsName": "DnsName", "NetBios": "NetBios", "HostTags": "HostTags",
		"NetworkName": "NetworkName", "Instance": "Instance", "Service": "Service", "Results_0": "Results",
	}
	for name := range columns {
		w.Tables[table] = append(w.Tables[table], kql.Column{Name: name + "_g", Type: "guid"}, kql.Column{Name: name + "_t", Type: "datetime"})
	}
	queries, err := w.Check(kql.Source{Name: "findings", Text: "QualysFindings()"}, kql.Source{Name: "with", Text: "QualysFindingsWithKnowledge()"})
	if err != nil {
		t.Fatal(err)
	}
	const id = "57920d1f-eee5-2731-3658-340bb1ab101a"
	for name, shown := range columns {
		t.Run(name, func(t *testing.T) {
			for _, query := range queries {
				got, err := w.Run(query, findings(
					finding(kql.Row{"HostId_s": "1", "RowKey_s": "1", name + "_s": nil, name + "_g": id}),
					finding(kql.Row{"HostId_s": "2", "RowKey_s": "2", name + "_s": "", name + "_g": id}),
					finding(kql.Row{"HostId_s": "3", "RowKey_s": "3", name + "_s": "plain"}),
					finding(kql.Row{"HostId_s": "4", "RowKey_s": "4", name + "_s": "2026-11-26 10:00"})), noon)
				if err != nil {
					t.Fatal(err)
				}
				if lines := show(got, "HostId", shown); !slices.Equal(lines, []string{"1 " + id, "2 " + id, "3 plain", "4 2026-11-26 10:00"}) {
					t.Errorf("got %q", lines)
				}
			}
		})
	}
	// The name that rules show of a host is found in whichever column it has landed.
	for name, row := range map[string]kql.Row{
		"DNS name":       {"DnsName_s": nil, "NetBios_s": nil, "DnsName_g": id},
		"NetBIOS name":   {"DnsName_s": nil, "NetBios_s": nil, "NetBios_g": id},
		"full DNS name":  {"DnsName_s": nil, "NetBios_s": nil, "DnsFqdn_g": id},
		"GUID, and text": {"DnsName_s": nil, "NetBios_s": "WEB1", "DnsName_g": id},
	} {
		t.Run("host by "+name, func(t *testing.T) {
			got, err := w.Run(queries[0], findings(finding(row)), noon)
			if err != nil {
				t.Fatal(err)
			}
			if lines := show(got, "HostName"); strings.Join(lines, "|") != id {
				t.Errorf("the host is called %q", lines)
			}
		})
	}
}
