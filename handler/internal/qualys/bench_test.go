package qualys_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/simulator"
)

// benchPage is one page of about 20 MB, as the simulator answers it.
var benchPage = sync.OnceValue(func() []byte {
	q := simulator.NewQualys(simulator.NewSubscription(1, 300, 60), "u", "p")
	q.Subscription.ResultsBytes = 300
	q.Now = func() time.Time { return time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC) }
	r := httptest.NewRequest("GET", "/api/5.0/fo/asset/host/vm/detection/?action=list&show_tags=1&show_qds=1&show_qds_factors=1", nil)
	r.SetBasicAuth("u", "p")
	r.Header.Set("X-Requested-With", "bench")
	w := httptest.NewRecorder()
	q.ServeHTTP(w, r)
	return w.Body.Bytes()
})

// discard encodes rows into one buffer, as a batch does, and drops them.
type discard struct {
	enc  *record.Encoder
	buf  []byte
	rows int
	meta record.Meta
}

func (d *discard) Begin(time.Time) error { return nil }
func (d *discard) Record(r *record.Record) error {
	if d.enc != nil {
		d.buf, _ = d.enc.Append(d.buf[:0], r, d.meta)
	}
	d.rows++
	return nil
}
func (d *discard) Done(uint64) error  { return nil }
func (d *discard) Tally(record.Tally) {}

func BenchmarkDecode(b *testing.B) {
	run := func(b *testing.B, enc *record.Encoder) {
		doc := benchPage()
		d := qualys.NewDecoder(ingest.VM.Schema)
		s := &discard{enc: enc, meta: record.Meta{Time: time.Unix(0, 0), Run: "run"}}
		b.SetBytes(int64(len(doc)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := d.Decode(bytes.NewReader(doc), time.Time{}, s); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(s.rows)/b.Elapsed().Seconds(), "rows/s")
	}
	b.Run("records", func(b *testing.B) { run(b, nil) })
	b.Run("rows", func(b *testing.B) {
		run(b, record.NewEncoder(ingest.VM.Schema, record.Limits{FieldBytes: 64_000, RowBytes: 1_000_000}, record.KeepAll))
	})
	b.Run("baseline", baseline)
}

// The baseline is how Go programs usually do it: encoding/xml into structs a
// host, encoding/json a detection. It keeps fewer columns than we do.
type (
	baseHost struct {
		ID, IP, TRACKING_METHOD, OS, DNS, NETBIOS, QG_HOSTID, NETWORK_ID, LAST_SCAN_DATETIME, LAST_VM_SCANNED_DATE string
		TAGS                                                                                                       struct {
			TAG []struct{ TAG_ID, NAME string }
		}
		DETECTION_LIST struct{ DETECTION []baseDetection }
	}
	baseDetection struct {
		UNIQUE_VULN_ID, QID, TYPE, SEVERITY, PORT, PROTOCOL, FQDN, SSL, INSTANCE, RESULTS, STATUS, FIRST_FOUND_DATETIME, LAST_FOUND_DATETIME, QDS, TIMES_FOUND, LAST_TEST_DATETIME, LAST_UPDATE_DATETIME, LAST_FIXED_DATETIME, SERVICE, IS_IGNORED, IS_DISABLED, LAST_PROCESSED_DATETIME string
	}
	baseRow struct {
		TimeGenerated string
		baseHost
		baseDetection
		HostTags string
	}
)

func baseline(b *testing.B) {
	doc := benchPage()
	b.SetBytes(int64(len(doc)))
	b.ReportAllocs()
	rows := 0
	for b.Loop() {
		dec := xml.NewDecoder(bytes.NewReader(doc))
		var out bytes.Buffer
		for {
			tok, err := dec.Token()
			if err != nil {
				break
			}
			start, ok := tok.(xml.StartElement)
			if !ok || start.Name.Local != "HOST" {
				continue
			}
			var h baseHost
			if err := dec.DecodeElement(&h, &start); err != nil {
				b.Fatal(err)
			}
			detections := h.DETECTION_LIST.DETECTION
			h.DETECTION_LIST.DETECTION = nil
			var tags []string
			for _, t := range h.TAGS.TAG {
				tags = append(tags, t.NAME)
			}
			for _, d := range detections {
				out.Reset()
				if err := json.NewEncoder(&out).Encode(baseRow{TimeGenerated: "1970-01-01T00:00:00Z", baseHost: h, baseDetection: d, HostTags: strings.Join(tags, ", ")}); err != nil {
					b.Fatal(err)
				}
				rows++
			}
		}
	}
	b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
}

// The benchmark is of what it says: as many rows as the page has detections.
func TestBenchPage(t *testing.T) {
	doc := benchPage()
	s := &discard{}
	if _, err := qualys.NewDecoder(ingest.VM.Schema).Decode(bytes.NewReader(doc), time.Time{}, s); err != nil {
		t.Fatal(err)
	}
	if want := bytes.Count(doc, []byte("<DETECTION>")); s.rows != want || want < 10_000 {
		t.Errorf("%d rows of %d detections, %s", s.rows, want, fmt.Sprint(strconv.Itoa(len(doc)), " bytes"))
	}
}
