package qualys_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
)

// samples is the folder of recorded Qualys answers; it is not a part of the
// project.
func samples(tb testing.TB) string {
	tb.Helper()
	dir := os.Getenv("QUALYS_SAMPLES")
	if dir == "" {
		dir = "../../../../shared/samples"
	}
	if _, err := os.Stat(dir); err != nil {
		tb.Skipf("SKIPPED: no recorded answers at %s; set QUALYS_SAMPLES to their folder", dir)
	}
	return dir
}

// values flattens a row: its own strings, and those inside columns that hold JSON.
func values(t testing.TB, line string) map[string]bool {
	t.Helper()
	var row map[string]any
	if err := json.Unmarshal([]byte(line), &row); err != nil {
		t.Fatalf("row is no JSON: %v\n%s", err, line)
	}
	out := map[string]bool{}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case string:
			out[v] = true
			if strings.HasPrefix(v, "[") || strings.HasPrefix(v, "{") {
				var inner any
				if json.Unmarshal([]byte(v), &inner) == nil {
					walk(inner)
				}
			}
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			for _, e := range v {
				walk(e)
			}
		}
	}
	walk(row)
	return out
}

// leaves is an independent reading of a page, by encoding/xml: the leaf texts
// and attributes of each host, and of each detection.
type leaves struct {
	host       []string
	detections [][]string
}

func readLeaves(t testing.TB, doc []byte) (hosts []leaves, detections int) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(doc))
	type open struct {
		name   string
		text   strings.Builder
		parent bool
	}
	var stack []*open
	inDetection := false
	add := func(s string) {
		if s == "" || len(hosts) == 0 {
			return
		}
		h := &hosts[len(hosts)-1]
		if inDetection {
			h.detections[len(h.detections)-1] = append(h.detections[len(h.detections)-1], s)
		} else {
			h.host = append(h.host, s)
		}
	}
	inHost := false
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return hosts, detections
		}
		if err != nil {
			t.Fatal(err)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			name := strings.ToUpper(tok.Name.Local)
			switch name {
			case "HOST":
				hosts = append(hosts, leaves{})
				inHost = true
			case "DETECTION":
				detections++
				h := &hosts[len(hosts)-1]
				h.detections = append(h.detections, nil)
				inDetection = true
			}
			if len(stack) > 0 {
				stack[len(stack)-1].parent = true
			}
			stack = append(stack, &open{name: name})
			if inHost {
				for _, a := range tok.Attr {
					// The name of a factor is the name of its value.
					if name != "QDS_FACTOR" {
						add(a.Value)
					}
				}
			}
		case xml.CharData:
			if len(stack) > 0 {
				stack[len(stack)-1].text.Write(tok)
			}
		case xml.EndElement:
			e := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			switch {
			case e.name == "RESULTS":
				add(e.text.String()) // to the byte
			case inHost && !e.parent:
				add(strings.Trim(e.text.String(), " \t\r\n"))
			}
			switch e.name {
			case "DETECTION":
				inDetection = false
			case "HOST":
				inHost = false
			}
		}
	}
}

func checkLeaves(t testing.TB, doc []byte, lines []string) {
	t.Helper()
	hosts, detections := readLeaves(t, doc)
	if detections != len(lines) {
		t.Fatalf("%d rows for %d DETECTION elements", len(lines), detections)
	}
	n := 0
	for _, h := range hosts {
		for i, leafs := range h.detections {
			got := values(t, lines[n])
			n++
			for _, want := range append(append([]string(nil), h.host...), leafs...) {
				if !got[want] {
					t.Errorf("host %s, detection %d: %q is nowhere in its row\n%s", h.host[0], i, want, lines[n-1])
				}
			}
		}
	}
}

func TestSamplesGolden(t *testing.T) {
	dir := samples(t)
	for _, name := range []string{
		"QualysAPI-Doc-Center/hld_sample1.xml", "QualysAPI-Doc-Center/hld_sample7.xml",
		"chronicle-content-hub/detections_response.xml", "demisto-qualysv2/host_list_detections_raw.xml",
		"elastic-qualys_vmdr/detection_response.xml",
		"jupiterone-graph-qualys/hld_3_detections_odd_whitespace.xml", "jupiterone-graph-qualys/hld_empty.xml",
	} {
		t.Run(name, func(t *testing.T) {
			sampleGolden(t, ingest.VM, filepath.Join(dir, name), name, checkLeaves)
		})
	}
}

// sampleGolden decodes a recorded page: as a golden file says, with every leaf
// in its row, byte by byte too, and never if it is cut.
func sampleGolden(t *testing.T, d *ingest.Dataset, path, name string, check func(testing.TB, []byte, []string)) {
	t.Helper()
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, page, err := decodeOf(d, string(doc))
	if err != nil {
		t.Fatal(err)
	}
	check(t, doc, r.lines)
	var b strings.Builder
	for _, line := range r.lines {
		var out bytes.Buffer
		if err := json.Indent(&out, []byte(line), "", "  "); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s\n", out.String())
	}
	tally := r.tally
	tally.Bytes = 0
	fmt.Fprintf(&b, "at %s\npage %+v\n%s %v\ntally %+v\n", r.at.Format(time.RFC3339), page, d.Parents, r.done, tally)
	golden(t, strings.ReplaceAll(strings.TrimSuffix(name, ".xml"), "/", "_")+".golden", b.String())

	slow := newRowsOf(d)
	if _, err := qualys.NewDecoder(d.Schema).Decode(iotest.OneByteReader(bytes.NewReader(doc)), time.Time{}, slow); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(slow.lines, "\n"), strings.Join(r.lines, "\n"); got != want {
		t.Errorf("byte by byte the rows differ:\n%s\n%s", got, want)
	}
	end := "</" + d.Schema.Root + ">"
	root := bytes.LastIndex(doc, []byte(end)) + len(end)
	for n := 1; n < root; n += 1 + len(doc)/400 {
		if _, _, err := decodeOf(d, string(doc[:n])); err == nil {
			t.Errorf("cut after %d bytes: no error", n)
		}
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; see what changed with: go test ./handler/internal/qualys -update && git diff\n%s", path, got)
	}
}
