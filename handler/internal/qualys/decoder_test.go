package qualys_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
)

var update = flag.Bool("update", false, "write golden files anew")

// rows is a sink that encodes what it gets.
type rows struct {
	enc   *record.Encoder
	at    time.Time
	lines []string
	done  []uint64
	tally record.Tally
	fail  error
}

func newRows() *rows { return newRowsOf(ingest.VM) }

func newRowsOf(d *ingest.Dataset) *rows {
	return &rows{enc: record.NewEncoder(d.Schema, record.Limits{}, record.KeepAll)}
}

func (r *rows) Begin(at time.Time) error { r.at = at; return nil }

func (r *rows) Record(rec *record.Record) error {
	line, _ := r.enc.Append(nil, rec, record.Meta{Time: time.Unix(0, 0), Run: "run"})
	r.lines = append(r.lines, string(line))
	return r.fail
}

func (r *rows) Done(id uint64) error { r.done = append(r.done, id); return nil }
func (r *rows) Tally(t record.Tally) { r.tally.Add(t) }
func (r *rows) Doubt() error         { return nil }

func decode(t testing.TB, doc string) (*rows, record.Page, error) {
	t.Helper()
	return decodeOf(ingest.VM, doc)
}

func decodeOf(d *ingest.Dataset, doc string) (*rows, record.Page, error) {
	r := newRowsOf(d)
	page, err := qualys.NewDecoder(d.Schema).Decode(strings.NewReader(doc), time.Time{}, r)
	return r, page, err
}

// page wraps hosts into a document.
func page(inner string) string {
	return `<?xml version="1.0" encoding="UTF-8" ?><HOST_LIST_VM_DETECTION_OUTPUT><RESPONSE><DATETIME>2026-11-01T00:00:00Z</DATETIME>` + inner + `</RESPONSE></HOST_LIST_VM_DETECTION_OUTPUT>`
}

func hosts(inner string) string { return page("<HOST_LIST>" + inner + "</HOST_LIST>") }

func field(t *testing.T, line, name string) any {
	t.Helper()
	var row map[string]any
	if err := json.Unmarshal([]byte(line), &row); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	return row[name]
}

func TestUnknownElementsAreKept(t *testing.T) {
	doc := hosts(`<HOST new="attr"><ID>1</ID><IP>10.0.0.1</IP><IP>10.0.0.2</IP><NEW>a<!-- c -->b</NEW><NEW>c</NEW>
	  <LIST><X><Y>1</Y></X><X><Y>2</Y></X></LIST><EMPTY/><OS>Linux<SUB>s</SUB> more</OS><LAST_SCAN_DATETIME>2026-11-
	  01</LAST_SCAN_DATETIME><TAGS><TAG><NAME>T1</NAME><NAME>T2</NAME><DEEP><D>x</D></DEEP></TAG></TAGS>
	  <METADATA><OCI><ATTRIBUTE><NAME>n</NAME><VALUE>v</VALUE></ATTRIBUTE></OCI></METADATA>
	  <DETECTION_LIST><DETECTION kind="k"><QID>5</QID><QDS severity="LOW" method="m">7</QDS><FUTURE><![CDATA[<b> & "q"]]></FUTURE><QDS_FACTORS><QDS_FACTOR name="a">1</QDS_FACTOR><QDS_FACTOR name="a">2</QDS_FACTOR><QDS_FACTOR>3</QDS_FACTOR></QDS_FACTORS></DETECTION></DETECTION_LIST></HOST>`)
	r, _, err := decode(t, doc)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(field(t, r.lines[0], "AdditionalFields"))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"DETECTION/@kind":"k","DETECTION/FUTURE":"\u003cb\u003e \u0026 \"q\"","DETECTION/QDS/@method":"m","HOST/@new":"attr","HOST/IP":"10.0.0.2","HOST/LAST_SCAN_DATETIME":"2026-11-\n\t  01","HOST/LIST/X/Y":"1","HOST/LIST/X/Y[2]":"2","HOST/NEW":"ab","HOST/NEW[2]":"c","HOST/OS":"more","HOST/OS/SUB":"s"}`
	if string(got) != want {
		t.Errorf("AdditionalFields\n got %s\nwant %s", got, want)
	}
	for name, want := range map[string]any{
		"IPAddress": "10.0.0.1", "OperatingSystem_s": "Linux", "QDSSeverity_s": "LOW", "HostTags_s": "T1, T2", "HostTags": "T1, T2",
		"Tags_s":             `[{"NAME":"T1","NAME[2]":"T2","DEEP/D":"x"}]`,
		"CloudMetadata_s":    `[{"PROVIDER":"OCI","NAME":"n","VALUE":"v"}]`,
		"QDSFactors_s":       `{"a":"1","a[2]":"2","#text":"3"}`,
		"LastScanDateTime_t": nil,
	} {
		if got := field(t, r.lines[0], name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

func TestHostElementsAfterTheDetections(t *testing.T) {
	doc := hosts(`<HOST><ID>1</ID><DETECTION_LIST><DETECTION><QID>1</QID></DETECTION><DETECTION><QID>2</QID></DETECTION></DETECTION_LIST><DNS>late</DNS></HOST>` +
		`<HOST><ID>2</ID><DETECTION_LIST><DETECTION><QID>3</QID></DETECTION></DETECTION_LIST></HOST>`)
	r, _, err := decode(t, doc)
	if err != nil || len(r.lines) != 3 {
		t.Fatal(err, r.lines)
	}
	for i, want := range []any{nil, "late", nil} {
		if got := field(t, r.lines[i], "DnsName_s"); got != want {
			t.Errorf("row %d: DnsName_s is %v, want %v", i, got, want)
		}
	}
	if r.tally.Late != 1 {
		t.Errorf("late elements counted: %d, want 1", r.tally.Late)
	}
}

func TestResultsAreExact(t *testing.T) {
	for in, want := range map[string]any{
		"<RESULTS><![CDATA[ a\tb\n c ]]></RESULTS>":                   " a\tb\n c ",
		"<RESULTS>\n   <![CDATA[ a\n]]>\n   </RESULTS>":               " a\n",
		"<RESULTS> plain &lt;b&gt; text </RESULTS>":                   " plain <b> text ",
		"<RESULTS><![CDATA[a]]]]><![CDATA[>b]]></RESULTS>":            "a]]>b",
		"<RESULTS><![CDATA[]]></RESULTS>":                             nil,
		"<RESULTS></RESULTS>":                                         nil,
		"<RESULTS><![CDATA[x\x0by\xff]]></RESULTS>":                   "x\uFFFDy\uFFFD",
		"<RESULTS><![CDATA[&quot;-&gt;]]></RESULTS>":                  "&quot;-&gt;",
		"<RESULTS> <![CDATA[a]]> <!-- c --> <![CDATA[b]]> </RESULTS>": "a  b",
		"<RESULTS><![CDATA[a]]> b \n</RESULTS>":                       "a b",
		"<RESULTS> a \n</RESULTS>":                                    " a \n",
		"<RESULTS> \n</RESULTS>":                                      " \n",
	} {
		doc := hosts("<HOST><ID>1</ID><DETECTION_LIST><DETECTION><QID>1</QID>" + in + "</DETECTION></DETECTION_LIST></HOST>")
		for kind, from := range map[string]io.Reader{"at once": strings.NewReader(doc), "byte by byte": iotest.OneByteReader(strings.NewReader(doc))} {
			r := newRowsOf(ingest.VM)
			if _, err := qualys.NewDecoder(ingest.VM.Schema).Decode(from, time.Time{}, r); err != nil {
				t.Fatalf("%q: %v", in, err)
			}
			if got := field(t, r.lines[0], "Results_0_s"); got != want {
				t.Errorf("%q %s: Results_0_s is %q, want %q", in, kind, got, want)
			}
		}
	}
}

// Text in an element that has children, and another spelling of attributes.
func TestOddPlaces(t *testing.T) {
	doc := hosts(`<HOST>...<ID>1</ID><TAGS>no tags visible</TAGS><DNS_DATA>none</DNS_DATA><METADATA>off<EC2>x</EC2></METADATA><LAST_SCAN_DATETIME>2026-02-31T00:00:00Z</LAST_SCAN_DATETIME>
	  <DETECTION_LIST><DETECTION><QID>5</QID><QDS SEVERITY="LOW">7</QDS><QDS_FACTORS>unavailable<QDS_FACTOR NAME="a">1</QDS_FACTOR></QDS_FACTORS></DETECTION></DETECTION_LIST></HOST>`)
	r, _, err := decode(t, doc)
	if err != nil {
		t.Fatal(err)
	}
	got := values(t, r.lines[0])
	for _, want := range []string{"...", "no tags visible", "none", "off", "x", "unavailable", "2026-02-31T00:00:00Z"} {
		if !got[want] {
			t.Errorf("%q is nowhere in %s", want, r.lines[0])
		}
	}
	if field(t, r.lines[0], "QDSSeverity_s") != "LOW" || field(t, r.lines[0], "QDSFactors_s") != `{"a":"1"}` {
		t.Errorf("attributes in upper case: %s", r.lines[0])
	}
}

// Rows without a host id would be taken for those of other hosts.
func TestHostIDAfterTheDetections(t *testing.T) {
	_, _, err := decode(t, hosts(`<HOST><DETECTION_LIST><DETECTION><QID>5</QID></DETECTION></DETECTION_LIST><ID>1</ID></HOST>`))
	if err == nil || !strings.Contains(err.Error(), "does not tell its id") {
		t.Errorf("got %v", err)
	}
}

// Hostile sizes are bounded.
func TestBounds(t *testing.T) {
	var factors strings.Builder
	for n := range 5000 {
		fmt.Fprintf(&factors, `<QDS_FACTOR name="n%d">1</QDS_FACTOR>`, n)
	}
	for name, inner := range map[string]string{
		"factors": "<HOST><ID>1</ID><DETECTION_LIST><DETECTION><QDS_FACTORS>" + factors.String(),
		"members": "<HOST><ID>1</ID><TAGS><TAG>" + strings.Repeat("<A>x</A>", 5000),
	} {
		if _, _, err := decode(t, hosts(inner)); err == nil || !strings.Contains(err.Error(), "not the document") {
			t.Errorf("%s: %v", name, err)
		}
	}
	blanks := strings.Repeat(" ", 1<<20)
	r, _, err := decode(t, hosts("<HOST><ID>1</ID><OS>a"+blanks+"b"+blanks+"</OS><DETECTION_LIST><DETECTION><QID>5</QID></DETECTION></DETECTION_LIST></HOST>"))
	if err != nil || !strings.HasPrefix(fmt.Sprint(field(t, r.lines[0], "OperatingSystem_s")), "a"+blanks[:1000]) {
		t.Errorf("long blanks: %v", err)
	}
	long := "<WARNING><CODE>1980</CODE><URL>https://x/?ids=" + strings.Repeat("1,", 4083) + "&amp;id_min=5641285</URL></WARNING>"
	if _, p, err := decode(t, page("<HOST_LIST><HOST><ID>41</ID></HOST></HOST_LIST>"+long)); err != nil || p.Next != 42 {
		t.Errorf("a link that is too long: next %d, %v", p.Next, err)
	}
}

func TestRowKey(t *testing.T) {
	one := func(inner string) any {
		r, _, err := decode(t, hosts("<HOST><ID>7</ID><DETECTION_LIST><DETECTION>"+inner+"</DETECTION></DETECTION_LIST></HOST>"))
		if err != nil {
			t.Fatal(err)
		}
		return field(t, r.lines[0], "RowKey_s")
	}
	for in, want := range map[string]string{
		"<UNIQUE_VULN_ID>9</UNIQUE_VULN_ID><QID>1</QID><LAST_PROCESSED_DATETIME>2026-01-01T00:00:00Z</LAST_PROCESSED_DATETIME>":    "9@2026-01-01T00:00:00Z",
		"<QID>1</QID><PORT>443</PORT><PROTOCOL>tcp</PROTOCOL><SSL>1</SSL><SERVICE>x</SERVICE><INSTANCE>i</INSTANCE><FQDN>f</FQDN>": "7|1|443|tcp|f|1|i|x",
		"<QID>1</QID>": "7|1||||||",
	} {
		if got := one(in); got != want {
			t.Errorf("%s: key %v, want %s", in, got, want)
		}
	}
	if got := fmt.Sprint(one("<QID>1</QID><INSTANCE>" + strings.Repeat("x", 5000) + "</INSTANCE>")); !strings.HasPrefix(got, "sha256:") || len(got) != 71 {
		t.Errorf("key of a huge instance: %.100s", got)
	}
}

func TestPaging(t *testing.T) {
	warning := func(inner string) string {
		return page(`<HOST_LIST><HOST><ID>41</ID></HOST></HOST_LIST><WARNING>` + inner + `</WARNING>`)
	}
	for name, c := range map[string]struct {
		doc  string
		next uint64
		text string
	}{
		"last page":         {doc: hosts("<HOST><ID>41</ID></HOST>")},
		"foreign link":      {doc: warning("<CODE>1980</CODE><TEXT>1 record limit exceeded.</TEXT><URL><![CDATA[http://evil.example/x?action=list&id_min=99]]></URL>"), next: 99},
		"broken over lines": {doc: warning("<URL>https://q/x?\n  id_min=\n99&amp;a=b </URL>"), next: 99},
		"no link":           {doc: warning("<CODE>1980</CODE>"), next: 42},
		"no code":           {doc: warning("<TEXT>1000 record limit exceeded. Use URL</TEXT>"), next: 42},
		"bad id":            {doc: warning("<CODE>1980</CODE><URL>https://q/?id_min=-3</URL>"), next: 42},
		"unknown warning":   {doc: warning("<CODE>77</CODE><TEXT>beware</TEXT>"), next: 42, text: "77 beware"},
		"says nothing":      {doc: warning(""), next: 42, text: "an empty WARNING"},
		"end of service":    {doc: warning("<CODE>2100</CODE><TEXT>This version of the API reaches its end of life.</TEXT><URL>https://docs.example/api</URL>"), text: "2100 This version of the API reaches its end of life."},
		"end, and cut":      {doc: warning("<TEXT>This version is deprecated: the list was truncated.</TEXT>"), next: 42, text: "This version is deprecated: the list was truncated."},
		"warning behind":    {doc: warning("<CODE>1980</CODE><URL>?id_min=99</URL></WARNING><WARNING><CODE>2100</CODE><TEXT>End of Service in June</TEXT><URL>https://docs.example/</URL>"), next: 99, text: "2100 End of Service in June"},
		"warning in front":  {doc: warning("<TEXT>EOL: June</TEXT></WARNING><WARNING><CODE>1980</CODE><URL>?id_min=99</URL>"), next: 99, text: "EOL: June"},
		"more, unlinked":    {doc: warning("<URL>?id_min=99</URL></WARNING><WARNING><CODE>1980</CODE><TEXT>1 record limit exceeded.</TEXT>"), next: 42},
		"a coded notice":    {doc: warning("<CODE>1990</CODE><TEXT>API version 4.0 is deprecated. Please migrate to version 5.0.</TEXT>"), text: "1990 API version 4.0 is deprecated. Please migrate to version 5.0."},
		"two links":         {doc: warning("<URL>?id_min=99</URL></WARNING><WARNING><CODE>1980</CODE><URL>?id_min=50</URL>"), next: 50},
		"several lists":     {doc: page("<HOST_LIST><HOST><ID>1</ID></HOST></HOST_LIST><HOST_LIST><HOST><ID>2</ID></HOST></HOST_LIST>")},
		"echoed request":    {doc: strings.Replace(page(""), "<RESPONSE>", "<REQUEST><DATETIME>2020-01-01T00:00:00Z</DATETIME><USER_LOGIN>u</USER_LOGIN></REQUEST><RESPONSE>", 1)},
		"no hosts":          {doc: page("")},
	} {
		t.Run(name, func(t *testing.T) {
			r, p, err := decode(t, c.doc)
			if err != nil || p.Next != c.next || p.Warning != c.text || !r.at.Equal(time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)) {
				t.Errorf("got %+v, %v; want next %d, warning %q", p, err, c.next, c.text)
			}
		})
	}
}

// Errors come with any status; the root element tells.
func TestOtherDocuments(t *testing.T) {
	for doc, want := range map[string]string{
		"<SIMPLE_RETURN><RESPONSE><CODE>2001</CODE><TEXT>This account has expired.</TEXT></RESPONSE></SIMPLE_RETURN>": "code 2001: This account has expired.",
		"<html><body>login</body></html>":                                                 "an HTML page",
		"<MAP_LIST><ERROR><CODE>1905</CODE><TEXT>why it failed</TEXT></ERROR></MAP_LIST>": "code 1905: why it failed",
		"<OTHER/>": `"OTHER"`,
		"":         "empty document",
		"{}":       "no XML document",
		"<GENERIC_RETURN><RETURN status=\"FAILED\" number=\"2\">Bad</RETURN></GENERIC_RETURN>": "code 2: Bad",
	} {
		_, _, err := decode(t, doc)
		var e *qualys.Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", doc, err, want)
		}
	}
}

func TestSinkEndsThePage(t *testing.T) {
	want := errors.New("enough")
	r := newRows()
	r.fail = want
	doc := hosts("<HOST><ID>1</ID><DETECTION_LIST><DETECTION><QID>1</QID></DETECTION><DETECTION><QID>2</QID></DETECTION></DETECTION_LIST></HOST>")
	if _, err := qualys.NewDecoder(ingest.VM.Schema).Decode(strings.NewReader(doc), time.Time{}, r); !errors.Is(err, want) || len(r.lines) != 1 {
		t.Errorf("got %v after %d rows, want %v after 1", err, len(r.lines), want)
	}
}

// Every byte in every place of a datetime: as the standard library judges it.
func TestValidTime(t *testing.T) {
	texts := []string{"", "2026-11-22", "2026-11-22T23:59:59+00:00", "2026-11-22T23:59:59.5Z"}
	for _, day := range []string{"2024-02-29", "2026-02-29", "2026-02-28", "2026-04-31", "2026-12-31", "0000-01-01", "9999-12-31", "2026-00-10", "2026-13-10", "2026-10-00"} {
		for _, hour := range []string{"00:00:00", "23:59:59", "24:00:00", "12:60:00", "12:00:60", "09:09:09"} {
			texts = append(texts, day+"T"+hour+"Z")
		}
	}
	for place := range "2026-11-22T23:59:59Z" {
		for c := range 256 {
			text := []byte("2026-11-22T23:59:59Z")
			text[place] = byte(c)
			texts = append(texts, string(text))
		}
	}
	for _, text := range texts {
		_, err := time.Parse("2006-01-02T15:04:05Z", text)
		if want := err == nil && len(text) == 20; qualys.ValidTime([]byte(text)) != want {
			t.Errorf("%q: %v, want %v", text, !want, want)
		}
	}
}

// A decoder that met a broken page must give the next one untouched.
func TestDecoderIsReusable(t *testing.T) {
	d := qualys.NewDecoder(ingest.VM.Schema)
	good := hosts("<HOST><ID>1</ID><IP>10.0.0.1</IP><DETECTION_LIST><DETECTION><QID>1</QID></DETECTION></DETECTION_LIST></HOST>")
	bad := hosts("<HOST><ID>9</ID><DNS>left-over</DNS><NEW>x</NEW><TAGS><TAG><NAME>n")
	clean := newRows()
	if _, err := d.Decode(strings.NewReader(good), time.Time{}, clean); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Decode(strings.NewReader(bad[:len(bad)-60]), time.Time{}, newRows()); err == nil {
		t.Fatal("no error")
	}
	again := newRows()
	if _, err := d.Decode(strings.NewReader(good), time.Time{}, again); err != nil || strings.Join(again.lines, "") != strings.Join(clean.lines, "") {
		t.Errorf("%v\n%s\n%s", err, again.lines, clean.lines)
	}
}

// FuzzDetections: whatever comes, every row is JSON, and every error tells
// whether to ask again.
func FuzzDetections(f *testing.F) {
	f.Add([]byte(hosts("<HOST a='b'><ID>1</ID><X><Y/>t</X><TAGS><TAG><NAME>n</NAME></TAG></TAGS><DETECTION_LIST><DETECTION><QDS severity='LOW'>1</QDS><QDS_FACTORS><QDS_FACTOR name='a'>b</QDS_FACTOR></QDS_FACTORS><RESULTS><![CDATA[x]]></RESULTS></DETECTION></DETECTION_LIST></HOST>")))
	f.Add([]byte(page("<WARNING><URL>?id_min=2</URL></WARNING>")))
	f.Fuzz(func(t *testing.T, doc []byte) {
		r := newRows()
		_, err := qualys.NewDecoder(ingest.VM.Schema).Decode(bytes.NewReader(doc), time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), r)
		for _, line := range r.lines {
			if !json.Valid([]byte(line)) {
				t.Fatalf("row is no JSON: %s", line)
			}
		}
		var e *qualys.Error
		if err != nil && !errors.As(err, &e) {
			t.Fatalf("an error of another type: %v", err)
		}
	})
}

// A datetime in another form that says which moment it means is read; what is none is
// kept as text.
func TestDateForms(t *testing.T) {
	for in, want := range map[string]string{
		"2026-11-26T10:00:00Z":                "2026-11-26T10:00:00Z",
		" 2026-11-26T10:00:00Z\n":             "2026-11-26T10:00:00Z",
		"2026-11-26T10:00:00.000Z":            "2026-11-26T10:00:00Z",
		"2026-11-26T10:00:00.5Z":              "2026-11-26T10:00:00.5Z",
		"2026-11-26T10:00:00.123456789Z":      "2026-11-26T10:00:00.1234567Z",
		"2026-11-26T10:00:00+00:00":           "2026-11-26T10:00:00Z",
		"2026-11-26T01:00:00+02:00":           "2026-11-25T23:00:00Z",
		"2026-11-26T23:30:00.25-0800":         "2026-11-27T07:30:00.25Z",
		"2026-11-26t10:00:00z":                "2026-11-26T10:00:00Z",
		"2026-11-26 10:00:00Z":                "2026-11-26T10:00:00Z",
		"2026-11-26":                          "",
		"2026-11-26T10:00:00":                 "", // of which zone?
		"2026-02-30T10:00:00.5Z":              "",
		"2026-11-26T24:00:00.5Z":              "",
		"26 Nov 2026 10:00:00 GMT":            "",
		"1795687200":                          "",
		"0000-01-01T00:00:00.5Z":              "",
		"9999-12-31T23:59:59.5-01:00":         "",
		"2026-11-26T10:00:00Z and some words": "",
	} {
		r, _, err := decode(t, hosts("<HOST><ID>7</ID><DETECTION_LIST><DETECTION><UNIQUE_VULN_ID>9</UNIQUE_VULN_ID><QID>1</QID><LAST_PROCESSED_DATETIME>"+in+"</LAST_PROCESSED_DATETIME></DETECTION></DETECTION_LIST></HOST>"))
		if err != nil {
			t.Fatalf("%q: %v", in, err)
		}
		got, key := field(t, r.lines[0], "LastProcessed_t"), field(t, r.lines[0], "RowKey_s")
		if want == "" {
			if got != nil || key != "9" || !strings.Contains(r.lines[0], strings.TrimSpace(in)) {
				t.Errorf("%q: %v, key %v, want the text among AdditionalFields: %s", in, got, key, r.lines[0])
			}
			continue
		}
		if got != want || key != "9@"+want {
			t.Errorf("%q: %v, key %v, want %s", in, got, key, want)
		}
	}
}
