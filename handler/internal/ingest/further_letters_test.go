package ingest_test

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"
)

// What is the host's own is kept whole once for each host, whatever else is too long.
func TestWhatIsTheHostsOwnIsKeptOnceForEachHost(t *testing.T) {
	const hosts, rows = 3, 20
	tags := "<TAGS>" + strings.Repeat("<TAG><TAG_ID>1</TAG_ID><NAME>a tag</NAME></TAG>", 1000) + "</TAGS>"
	long := strings.Repeat("x", 9_000)
	every := func(int) string { return long }
	never := func(int) string { return "ssh" }
	for name, c := range map[string]struct {
		host    string // elements of the host
		service func(n int) string
		extra   func(n int) string // an unknown element of a detection
		kept    map[string]int     // lines by field
	}{
		"tags":                              {tags, never, nil, map[string]int{"HOST/TAGS/TAG": hosts, "HOST/TAGS/TAG/NAME": hosts}},
		"a name and tags":                   {"<DNS>" + long + "</DNS>" + tags, never, nil, map[string]int{"HOST/DNS": hosts, "HOST/TAGS/TAG": hosts, "HOST/TAGS/TAG/NAME": hosts}},
		"three names":                       {"<DNS>" + long + "</DNS><NETBIOS>" + long + "</NETBIOS><OS>" + long + "</OS>", never, nil, map[string]int{"HOST/DNS": hosts, "HOST/NETBIOS": hosts, "HOST/OS": hosts}},
		"no field of the host":              {"", every, nil, map[string]int{"DETECTION/SERVICE": hosts * rows}},
		"an element that is not known yet":  {"<NEWER>" + long + "</NEWER>", never, nil, map[string]int{"AdditionalFields": hosts}},
		"tags, and a field of every row":    {tags, every, nil, map[string]int{"HOST/TAGS/TAG": hosts, "HOST/TAGS/TAG/NAME": hosts, "DETECTION/SERVICE": hosts * rows}},
		"a name, and a field of every row":  {"<DNS>" + long + "</DNS>", every, nil, map[string]int{"HOST/DNS": hosts, "DETECTION/SERVICE": hosts * rows}},
		"tags, and what is not known yet":   {tags + "<NEWER>" + long + "</NEWER>", never, nil, map[string]int{"HOST/TAGS/TAG": hosts, "HOST/TAGS/TAG/NAME": hosts, "AdditionalFields": hosts}},
		"tags, and unknown ones of the row": {tags, never, every, map[string]int{"HOST/TAGS/TAG": hosts, "HOST/TAGS/TAG/NAME": hosts, "AdditionalFields": hosts * rows}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1, 1)
			w.dest.batch, w.dest.limits.FieldBytes = 200_000, 4_000
			var doc strings.Builder
			for id := range hosts {
				fmt.Fprintf(&doc, "<HOST><ID>%d</ID>%s<DETECTION_LIST>", id+1, c.host)
				for n := range rows {
					fmt.Fprintf(&doc, "<DETECTION><UNIQUE_VULN_ID>%d%02d</UNIQUE_VULN_ID><QID>5</QID><SERVICE>%s</SERVICE>", id+1, n, c.service(n))
					if c.extra != nil {
						fmt.Fprintf(&doc, "<NEWER>%s</NEWER>", c.extra(n))
					}
					doc.WriteString("</DETECTION>")
				}
				doc.WriteString("</DETECTION_LIST></HOST>")
			}
			w.before = func(rw http.ResponseWriter, _ *http.Request) bool {
				fmt.Fprintf(rw, "<HOST_LIST_VM_DETECTION_OUTPUT><RESPONSE><DATETIME>%s</DATETIME><HOST_LIST>%s</HOST_LIST></RESPONSE></HOST_LIST_VM_DETECTION_OUTPUT>", w.clock.Now().Format(time.RFC3339), doc.String())
				return true
			}
			report := w.mustComplete()
			if report.Accepted != hosts*rows || report.Cut != hosts*rows {
				t.Errorf("accepted = %d, cut = %d, want %d of each", report.Accepted, report.Cut, hosts*rows)
			}
			got, seen := map[string]int{}, map[string]bool{}
			for _, line := range w.readLines("deadletter/vm/run1/cut-*.ndjson.gz") {
				field, row := fmt.Sprint(line["field"]), fmt.Sprint(line["rowKey"])
				if !seen[field+row] { // a row that tells it twice is a matter of its own
					got[field]++
				}
				seen[field+row] = true
			}
			if !maps.Equal(got, c.kept) {
				t.Errorf("kept %v, want %v", got, c.kept)
			}
		})
	}
}

// A field that fills several columns is kept whole once.
func TestAFieldOfSeveralColumnsIsKeptOnce(t *testing.T) {
	long := strings.Repeat("x", 9_000)
	for name, host := range map[string]string{
		"tags":     "<TAGS>" + strings.Repeat("<TAG><TAG_ID>1</TAG_ID><NAME>a tag</NAME></TAG>", 1000) + "</TAGS>",
		"one tag":  "<TAGS><TAG><TAG_ID>1</TAG_ID><NAME>" + long + "</NAME></TAG></TAGS>",
		"DNS name": "<DNS>" + long + "</DNS>",
		"system":   "<OS>" + long + "</OS>",
		"tracking": "<TRACKING_METHOD>" + long + "</TRACKING_METHOD>",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1, 1)
			w.dest.batch, w.dest.limits.FieldBytes = 200_000, 4_000
			w.before = func(rw http.ResponseWriter, _ *http.Request) bool {
				fmt.Fprintf(rw, "<HOST_LIST_VM_DETECTION_OUTPUT><RESPONSE><DATETIME>%s</DATETIME><HOST_LIST><HOST><ID>1</ID>%s<DETECTION_LIST><DETECTION><UNIQUE_VULN_ID>1</UNIQUE_VULN_ID><QID>5</QID></DETECTION></DETECTION_LIST></HOST></HOST_LIST></RESPONSE></HOST_LIST_VM_DETECTION_OUTPUT>", w.clock.Now().Format(time.RFC3339), host)
				return true
			}
			w.mustComplete()
			got := map[any]int{}
			for _, line := range w.readLines("deadletter/vm/run1/cut-*.ndjson.gz") {
				got[line["field"]]++
			}
			for field, n := range got {
				if n != 1 {
					t.Errorf("%s is kept %d times, want once", field, n)
				}
			}
			if len(got) == 0 {
				t.Error("nothing is kept")
			}
		})
	}
}
