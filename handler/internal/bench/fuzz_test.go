package bench_test

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/qualys"
)

// FuzzRows puts any texts into a page, as text or as CDATA and with any
// indentation: where encoding/xml reads them, the rows are the baseline's.
func FuzzRows(f *testing.F) {
	f.Add("Windows Server 2022", "host.zürich.example", "Büro & Werk", "a\tb\r\n<c>\"\\ ]]> &amp;", "443", false, "\n  ")
	f.Add("東京", "\U0001F600", "x", " blanks \n", "", true, "")
	f.Add(strings.Repeat("é", 10_000), "a", "b", strings.Repeat("line\n", 30_000), "1", true, "\r\n\t")
	f.Fuzz(func(t *testing.T, system, dns, tag, results, port string, cdata bool, indent string) {
		if strings.Trim(indent, " \t\r\n") != "" || len(system)+len(dns)+len(tag)+len(port) > 50_000 || len(results) > 200_000 {
			return // no indentation, or more than the baseline's columns take
		}
		p := &page{doc: fuzzPage(system, dns, tag, results, port, cdata, indent)}
		var want [][]byte
		if err := baselineRows(p, made{pageTime, "run"}, func(row []byte) error {
			want = append(want, bytes.Clone(row))
			return nil
		}); err != nil {
			return // a character that XML forbids: the connector mends it, and counts it
		}
		s := newSink(p, true)
		var got [][]byte
		s.row = func(row []byte) error {
			got = append(got, bytes.Clone(row))
			return nil
		}
		if _, err := qualys.NewDecoder(p.dataset().Schema).Decode(bytes.NewReader(p.doc), time.Time{}, s); err != nil {
			t.Fatalf("%v\n%s", err, p.doc)
		}
		if len(got) != 2 || len(want) != 2 {
			t.Fatalf("%d rows, the baseline has %d\n%s", len(got), len(want), p.doc)
		}
		for i := range got {
			row, base := members(t, got[i]), members(t, want[i])
			for name, value := range base {
				if !reflect.DeepEqual(row[name], value) {
					t.Errorf("row %d, %s: %.200q, the baseline has %.200q", i, name, row[name], value)
				}
			}
			if len(row) != len(base) {
				t.Errorf("row %d has %d members, the baseline's %d: %.500q", i, len(row), len(base), got[i])
			}
		}
	})
}

// fuzzPage is a page of one host with two detections.
func fuzzPage(system, dns, tag, results, port string, cdata bool, indent string) []byte {
	var b bytes.Buffer
	leaf := func(name, value string) {
		if value == "" {
			return
		}
		fmt.Fprintf(&b, "%s<%s>", indent, name)
		if cdata {
			fmt.Fprintf(&b, "<![CDATA[%s]]>", strings.ReplaceAll(value, "]]>", "]]]]><![CDATA[>"))
		} else if err := xml.EscapeText(&b, []byte(value)); err != nil {
			panic(err)
		}
		fmt.Fprintf(&b, "</%s>", name)
	}
	// Blanks around a value mean nothing, but for RESULTS; encoding/xml keeps them.
	trim := func(s string) string { return strings.Trim(s, " \t\r\n") }
	open := func(name string) { fmt.Fprintf(&b, "%s<%s>", indent, name) }
	end := func(name string) { fmt.Fprintf(&b, "%s</%s>", indent, name) }
	open("HOST_LIST_VM_DETECTION_OUTPUT")
	open("RESPONSE")
	leaf("DATETIME", "2026-11-01T00:00:00Z")
	open("HOST_LIST")
	open("HOST")
	leaf("ID", "7")
	leaf("OS", trim(system))
	leaf("DNS", trim(dns))
	if tag = trim(tag); tag != "" {
		open("TAGS")
		open("TAG")
		leaf("NAME", tag)
		end("TAG")
		end("TAGS")
	}
	open("DETECTION_LIST")
	for _, id := range []string{"1", "2"} {
		open("DETECTION")
		leaf("UNIQUE_VULN_ID", id)
		leaf("PORT", trim(port))
		leaf("RESULTS", results)
		leaf("LAST_PROCESSED_DATETIME", "2026-11-01T00:00:00Z")
		end("DETECTION")
	}
	end("DETECTION_LIST")
	end("HOST")
	end("HOST_LIST")
	end("RESPONSE")
	end("HOST_LIST_VM_DETECTION_OUTPUT")
	return b.Bytes()
}
