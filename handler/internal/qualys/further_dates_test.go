package qualys_test

import (
	"strings"
	"testing"

	"qualys-sentinel/handler/internal/ingest"
)

// furtherFinding is a page of one finding whose last processing is at a time.
func furtherFinding(status, processed string) string {
	return hosts("<HOST><ID>7</ID><DETECTION_LIST><DETECTION><UNIQUE_VULN_ID>9</UNIQUE_VULN_ID><QID>1</QID><STATUS>" + status + "</STATUS><LAST_PROCESSED_DATETIME>" + processed + "</LAST_PROCESSED_DATETIME></DETECTION></DETECTION_LIST></HOST>")
}

// Every form that says which moment it means is read, and the same moment makes the same
// key in all of them.
func TestFurtherDatesAreRead(t *testing.T) {
	for in, want := range map[string]string{
		"2026-11-26T10:00:00.0Z":                 "2026-11-26T10:00:00Z",
		"2026-11-26T10:00:00.000000000Z":         "2026-11-26T10:00:00Z",
		"2026-11-26T10:00:00.123456789012Z":      "2026-11-26T10:00:00.1234567Z",
		"2026-11-26T10:00:00.00000001Z":          "2026-11-26T10:00:00Z",
		"2026-11-26T10:00:00,25Z":                "2026-11-26T10:00:00.25Z",
		"2026-11-26t10:00:00.25z":                "2026-11-26T10:00:00.25Z",
		"2026-11-26T10:00:00+0000":               "2026-11-26T10:00:00Z",
		"2026-11-26T10:00:00-00:00":              "2026-11-26T10:00:00Z",
		"2026-11-26T10:00:00+00":                 "2026-11-26T10:00:00Z",
		"2026-11-26 10:00:00+00":                 "2026-11-26T10:00:00Z",
		"2026-11-26T12:00:00.5+02":               "2026-11-26T10:00:00.5Z",
		"2026-11-26T15:30:00+05:30":              "2026-11-26T10:00:00Z",
		"2026-11-26T15:45:00.000+0545":           "2026-11-26T10:00:00Z",
		"2026-11-27T00:00:00+14:00":              "2026-11-26T10:00:00Z",
		"2026-11-25T22:00:00-12:00":              "2026-11-26T10:00:00Z",
		"2024-02-29T23:59:59.9999999Z":           "2024-02-29T23:59:59.9999999Z",
		"2024-02-29T23:59:59.99999999Z":          "2024-02-29T23:59:59.9999999Z",
		"2026-12-31T23:59:59.5-00:01":            "2027-01-01T00:00:59.5Z",
		"2026-11-26T10:00Z":                      "2026-11-26T10:00:00Z",
		"2026-11-26T10:00+00:00":                 "2026-11-26T10:00:00Z",
		"\t2026-11-26T10:00:00.0Z\r\n ":          "2026-11-26T10:00:00Z",
		"<![CDATA[2026-11-26T10:00:00.0Z]]>":     "2026-11-26T10:00:00Z",
		"2026-11-26T10:00:00&#43;00:00":          "2026-11-26T10:00:00Z",
		"2026-11-26T10:<!-- a comment -->00:00Z": "2026-11-26T10:00:00Z",
		"0001-01-01T00:00:00Z":                   "0001-01-01T00:00:00Z",
		"1970-01-01T00:00:00.000Z":               "1970-01-01T00:00:00Z",
	} {
		t.Run(in, func(t *testing.T) {
			r, _, err := decode(t, furtherFinding("New", in))
			if err != nil {
				t.Fatal(err)
			}
			if got, key := field(t, r.lines[0], "LastProcessed_t"), field(t, r.lines[0], "RowKey_s"); got != want || key != "9@"+want {
				t.Errorf("got %v, key %v, want %s: %s", got, key, want, r.lines[0])
			}
		})
	}
}

// What does not say which moment it means, or is none, is no date; its text is kept, and
// the page is read.
func TestFurtherTextsThatAreNoDates(t *testing.T) {
	for _, in := range []string{
		"2026-11-26T23:59:60Z", "2026-11-26T10:00:00.Z", "2026-11-26T25:00:00+01:00", "2026-11-26T10:60:00.1Z", "2026-13-01T10:00:00.1Z",
		"2025-02-29T10:00:00.1Z", "0000-12-31T10:00:00.5Z", "0001-01-01T00:30:00+01:00", "10000-01-01T00:00:00Z", "-0001-01-01T00:00:00Z",
		"2026-11-26", "10:00:00Z", "2026-11-26T10:00:00", "2026-11-26T10:00:00 EST", "2026-11-26T10:00:00+99:99", "2026-11-26T10:00:00Z+01:00",
		"N/A", "-", "null", "0", "now", "2026-11-26T10:00:00.5Z" + strings.Repeat("0", 60), "２０２６-11-26T10:00:00.5Z",
	} {
		t.Run(in, func(t *testing.T) {
			r, _, err := decode(t, furtherFinding("New", in))
			if err != nil {
				t.Fatal(err)
			}
			if got := field(t, r.lines[0], "LastProcessed_t"); got != nil || !values(t, r.lines[0])[in] || field(t, r.lines[0], "RowKey_s") != "9" {
				t.Errorf("got %v: %s", got, r.lines[0])
			}
			if r.tally.Unknown == 0 {
				t.Error("nothing was counted: nobody is told")
			}
		})
	}
}

// An element that is there and empty has no date, and takes nothing else along.
func TestFurtherEmptyDates(t *testing.T) {
	for _, in := range []string{"", " ", "\n\t", "<![CDATA[]]>", "<![CDATA[ ]]>", "<!-- never -->"} {
		r, _, err := decode(t, furtherFinding("New", in))
		if err != nil {
			t.Fatal(err)
		}
		if got, key := field(t, r.lines[0], "LastProcessed_t"), field(t, r.lines[0], "RowKey_s"); got != nil && got != "" || key != "9" && key != "9@" || field(t, r.lines[0], "Status_s") != "New" {
			t.Errorf("%q: got %v, key %v: %s", in, got, key, r.lines[0])
		}
	}
}

// The time of an answer is read in the same forms as those of records: it ends a window.
func TestFurtherTimesOfAnswers(t *testing.T) {
	for in, want := range map[string]string{
		"2026-11-01T00:00:00.000Z": "2026-11-01T00:00:00Z", "2026-11-01T00:00:00.75Z": "2026-11-01T00:00:00.75Z", "2026-11-01T02:00:00+02:00": "2026-11-01T00:00:00Z",
		"2026-11-01t00:00:00z": "2026-11-01T00:00:00Z", "2026-11-01 00:00:00+0000": "2026-11-01T00:00:00Z", "2026-11-01T00:00:00+00": "2026-11-01T00:00:00Z",
		"2026-11-01": "", "": "", "2026-11-01T00:00:00": "", "2026-11-01T23:59:60Z": "",
	} {
		t.Run(in, func(t *testing.T) {
			r, _, err := decodeOf(ingest.VM, strings.Replace(hosts("<HOST><ID>1</ID></HOST>"), "2026-11-01T00:00:00Z", in, 1))
			switch {
			case want == "" && (err == nil || in != "" && !strings.Contains(err.Error(), in)):
				t.Errorf("%v, want an error that shows the text", err)
			case want != "" && (err != nil || r.at.UTC().Format("2006-01-02T15:04:05.999Z") != want):
				t.Errorf("%s, %v, want %s", r.at, err, want)
			}
		})
	}
}
