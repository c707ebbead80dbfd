package qualys_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/simulator"
)

// entryLeaves is an independent reading of a KnowledgeBase page: the leaf
// texts and attributes of each VULN.
func entryLeaves(t testing.TB, doc []byte) (entries [][]string) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(doc))
	type element struct {
		text   strings.Builder
		parent bool
	}
	var stack []*element
	inside := false
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			if tok.Name.Local == "VULN" {
				inside = true
				entries = append(entries, nil)
			}
			if len(stack) > 0 {
				stack[len(stack)-1].parent = true
			}
			stack = append(stack, &element{})
			for _, a := range tok.Attr {
				if inside && a.Value != "" {
					entries[len(entries)-1] = append(entries[len(entries)-1], a.Value)
				}
			}
		case xml.CharData:
			if len(stack) > 0 {
				stack[len(stack)-1].text.Write(tok)
			}
		case xml.EndElement:
			e := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			if text := strings.Trim(e.text.String(), " \t\r\n"); inside && !e.parent && text != "" {
				entries[len(entries)-1] = append(entries[len(entries)-1], text)
			}
			inside = inside && tok.Name.Local != "VULN"
		}
	}
}

func checkEntries(t testing.TB, doc []byte, lines []string) {
	t.Helper()
	entries := entryLeaves(t, doc)
	if len(entries) != len(lines) {
		t.Fatalf("%d rows for %d VULN elements", len(lines), len(entries))
	}
	for i, leafs := range entries {
		got := values(t, lines[i])
		for _, want := range leafs {
			if !got[want] {
				t.Errorf("entry %d: %q is nowhere in its row\n%s", i, want, lines[i])
			}
		}
	}
}

func TestKnowledgeBaseSamplesGolden(t *testing.T) {
	dir := samples(t)
	for _, name := range []string{
		"jupiterone-graph-qualys/kb_42_vulns.xml", "jupiterone-graph-qualys/kb_1_web_application_vuln.xml",
		"jupiterone-graph-qualys/kb_keepalive_comment_in_body.xml", "jupiterone-graph-qualys/kb_empty_keepalive_after_root.xml",
		"elastic-qualys_vmdr/kb_response.xml", "elastic-qualys_vmdr/kb_response_empty.xml",
		"demisto-qualysv2/vulnerabilities_raw.xml", "chronicle-content-hub/knowledge_base_response.xml",
	} {
		t.Run(name, func(t *testing.T) {
			sampleGolden(t, ingest.KB, filepath.Join(dir, name), name, checkEntries)
		})
	}
}

// A dtd is the part of a DTD that tells what is inside what.
type dtd struct {
	children map[string][]string
	attrs    map[string][]string
}

func readDTD(t testing.TB, path string) dtd {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Skipf("SKIPPED: no DTD at %s", path)
	}
	text = regexp.MustCompile(`(?s)<!--.*?-->`).ReplaceAll(text, nil)
	d := dtd{map[string][]string{}, map[string][]string{}}
	for _, m := range regexp.MustCompile(`(?s)<!ELEMENT\s+(\S+)\s+(\(.*?\)[?*+]?)\s*>`).FindAllStringSubmatch(string(text), -1) {
		d.children[m[1]] = slices.DeleteFunc(regexp.MustCompile(`[\w#]+`).FindAllString(m[2], -1), func(s string) bool { return s == "#PCDATA" })
	}
	for _, m := range regexp.MustCompile(`(?s)<!ATTLIST\s+(\S+)\s+(\S+)\s`).FindAllStringSubmatch(string(text), -1) {
		d.attrs[m[1]] = append(d.attrs[m[1]], m[2])
	}
	return d
}

// document writes an element with a text of its own in every leaf and
// attribute below it, each as often as given.
func (d dtd) document(b *strings.Builder, name, path string, n *int, texts map[string]string) {
	b.WriteString("<" + name)
	for _, a := range d.attrs[name] {
		*n++
		texts[path+"/@"+a] = fmt.Sprintf("attr%d", *n)
		fmt.Fprintf(b, ` %s="attr%d"`, a, *n)
	}
	b.WriteString(">")
	switch children := d.children[name]; {
	case len(children) > 0:
		for _, c := range children {
			d.document(b, c, path+"/"+c, n, texts)
		}
	case strings.HasSuffix(name, "DATETIME"):
		*n++
		texts[path] = time.Date(2026, 1, 1, 0, 0, *n, 0, time.UTC).Format(time.RFC3339)
		b.WriteString(texts[path])
	default:
		*n++
		texts[path] = fmt.Sprintf("text%d", *n)
		if name == "QID" {
			texts[path] = strconv.Itoa(*n)
		}
		b.WriteString(texts[path])
	}
	b.WriteString("</" + name + ">")
}

// Every element that the DTD allows under VULN has a column.
func TestKnowledgeBaseDTDIsCovered(t *testing.T) {
	d := readDTD(t, filepath.Join(samples(t), "..", "reference", "dtd", "knowledge_base_vuln_list_output.dtd"))
	d.children["VULN"] = append(d.children["VULN"], "TECHNOLOGY", "CODE_MODIFIED_DATETIME", "PATCH_PUBLISHED_DATETIME") // of version 4.0; the last by its first name
	texts := map[string]string{}
	var b strings.Builder
	n := 0
	d.document(&b, "VULN", "VULN", &n, texts)
	vuln := strings.ReplaceAll(b.String(), "PATCH_PUBLISHED_DATETIME", "PATCH_PUBLISHED_DATE")
	r, _, err := decodeOf(ingest.KB, knowledge(vuln))
	if err != nil || len(r.lines) != 1 {
		t.Fatal(err, r.lines)
	}
	if len(texts) < 75 {
		t.Errorf("only %d leaves: the DTD was not understood", len(texts))
	}
	if extra := field(t, r.lines[0], "AdditionalFields"); extra != nil {
		t.Errorf("no column holds %v", extra)
	}
	got := values(t, r.lines[0])
	for path, text := range texts {
		if !got[text] {
			t.Errorf("%s is in no column", path)
		}
	}
}

// knowledge wraps VULN elements into a document.
func knowledge(inner string) string {
	return `<?xml version="1.0" encoding="UTF-8" ?><KNOWLEDGE_BASE_VULN_LIST_OUTPUT><RESPONSE><DATETIME>2026-11-01T00:00:00Z</DATETIME><VULN_LIST>` + inner + `</VULN_LIST></RESPONSE></KNOWLEDGE_BASE_VULN_LIST_OUTPUT>`
}

func TestKnowledgeBaseRows(t *testing.T) {
	r, _, err := decodeOf(ingest.KB, knowledge(`
	  <VULN><QID>7</QID><TITLE><![CDATA[ Title, with comma ]]></TITLE><DIAGNOSIS><![CDATA[A<P>B<UL><LI>c</UL>]]></DIAGNOSIS>
	    <CVE_LIST><CVE><ID>CVE-1</ID><URL>u1</URL></CVE><CVE><ID></ID></CVE><CVE><ID>CVE-2</ID></CVE></CVE_LIST>
	    <CORRELATION><EXPLOITS>
	      <EXPLT_SRC><SRC_NAME><![CDATA[nvd]]></SRC_NAME><EXPLT_LIST><EXPLT><REF>r1</REF></EXPLT><EXPLT><REF>r2</REF><DESC>d&amp;2</DESC></EXPLT><EXPLT></EXPLT></EXPLT_LIST></EXPLT_SRC>
	      <EXPLT_SRC><EXPLT_LIST><EXPLT><REF>r3</REF></EXPLT></EXPLT_LIST></EXPLT_SRC>
	      <EXPLT_SRC><SRC_NAME>seebug</SRC_NAME></EXPLT_SRC></EXPLOITS></CORRELATION>
	    <THREAT_INTELLIGENCE><THREAT_INTEL id="2"><![CDATA[Exploit_Public]]></THREAT_INTEL><THREAT_INTEL id="8">No_Patch</THREAT_INTEL></THREAT_INTELLIGENCE>
	    <PCI_REASONS><PCI_REASON>one "quoted"</PCI_REASON><PCI_REASON/><PCI_REASON>two<![CDATA[ and a half]]></PCI_REASON></PCI_REASONS>
	    <DISCOVERY><REMOTE>1</REMOTE><AUTH_TYPE_LIST><AUTH_TYPE>Unix</AUTH_TYPE><AUTH_TYPE>SNMP</AUTH_TYPE></AUTH_TYPE_LIST></DISCOVERY>
	    <LAST_SERVICE_MODIFICATION_DATETIME>2026-10-01T01:02:03Z</LAST_SERVICE_MODIFICATION_DATETIME><NEW><A>x</A></NEW></VULN>
	  <VULN><QID>9</QID><SEVERITY_LEVEL>5</SEVERITY_LEVEL><CVSS><BASE source="service">6.8</BASE></CVSS></VULN>`))
	if err != nil || len(r.lines) != 2 || !slices.Equal(r.done, []uint64{7, 9}) || r.tally.Late != 0 {
		t.Fatal(err, r.lines, r.done, r.tally)
	}
	for name, want := range map[string]any{
		"RowKey_s": "7@2026-10-01T01:02:03Z", "Title_s": "Title, with comma",
		"Diagnosis_HTML_s": "A<P>B<UL><LI>c</UL>", "Diagnosis_s": "A\n\nB\n\n- c", "Solution_s": nil,
		"CVE_ID_s": "CVE-1, CVE-2", "CVE_URL_s": "u1", "CVEs_s": `[{"ID":"CVE-1","URL":"u1"},{"ID":"CVE-2"}]`,
		"Exploits_s":        `[{"SRC_NAME":"nvd","REF":"r1"},{"SRC_NAME":"nvd","REF":"r2","DESC":"d&2"},{"REF":"r3"}]`,
		"Exploit_Sources_s": `["nvd","seebug"]`, "Malware_s": nil,
		"THREAT_INTELLIGENCE_s": `[{"@id":"2","#text":"Exploit_Public"},{"@id":"8","#text":"No_Patch"}]`,
		"Threat_Intel_s":        "Exploit_Public, No_Patch",
		"PCI_Reasons_s":         `["one \"quoted\"","two and a half"]`,
		"Discovery_Auth_Type_s": "Unix, SNMP", "Discovery_Auth_Types_s": `["Unix","SNMP"]`,
		"Category": nil, "Category_s": nil, "CVSS_Base_s": nil, "SourceSystem": nil,
	} {
		if got := field(t, r.lines[0], name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if got, _ := json.Marshal(field(t, r.lines[0], "AdditionalFields")); string(got) != `{"VULN/NEW/A":"x"}` {
		t.Errorf("AdditionalFields %s", got)
	}
	// Nothing of one entry reaches the next.
	for name, want := range map[string]any{"RowKey_s": "9", "Title_s": nil, "Exploits_s": nil, "PCI_Reasons_s": nil, "AdditionalFields": nil, "Severity_Level_s": "5", "CVSS_Base_s": "6.8", "CVSS_Base_Source_s": "service"} {
		if got := field(t, r.lines[1], name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

// An object that has a member by its group's name keeps both.
func TestGroupNameInTheObject(t *testing.T) {
	r, _, err := decodeOf(ingest.KB, knowledge(`<VULN><QID>7</QID><CORRELATION><EXPLOITS><EXPLT_SRC><SRC_NAME>nvd</SRC_NAME><EXPLT_LIST><EXPLT><REF>r</REF><SRC_NAME>other</SRC_NAME></EXPLT></EXPLT_LIST></EXPLT_SRC></EXPLOITS></CORRELATION></VULN>`))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := field(t, r.lines[0], "Exploits_s"), `[{"SRC_NAME":"nvd","REF":"r","SRC_NAME[2]":"other"}]`; got != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

func TestEntryWithoutQID(t *testing.T) {
	_, _, err := decodeOf(ingest.KB, knowledge(`<VULN><TITLE>x</TITLE></VULN>`))
	var e *qualys.Error
	if !errors.As(err, &e) || e.Kind != qualys.Broken || !strings.Contains(e.Text, "VULN does not tell its id") {
		t.Errorf("got %v", err)
	}
}

// api is a KnowledgeBase endpoint that answers as it is told.
func api(t *testing.T, answer func(url.Values) string) (*qualys.KnowledgeBase, *[]url.Values) {
	t.Helper()
	var calls []url.Values
	c, _ := client(t, func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			t.Error(err)
		}
		calls = append(calls, r.Form)
		io.WriteString(w, answer(r.Form))
	})
	s := qualys.NewKnowledgeBase(c, ingest.KB.Schema)
	s.PageSize = 3
	return s, &calls
}

// holds answers requests for a KnowledgeBase of some QIDs, as Qualys does.
func holds(p url.Values, qids ...uint64) string {
	var b strings.Builder
	for _, qid := range qids {
		low, high := uint64(0), uint64(1<<62)
		fmt.Sscan(p.Get("id_min"), &low)
		fmt.Sscan(p.Get("id_max"), &high)
		named := p.Get("ids") == "" || slices.Contains(strings.Split(p.Get("ids"), ","), fmt.Sprint(qid))
		if qid >= low && qid <= high && named {
			fmt.Fprintf(&b, "<VULN><QID>%d</QID></VULN>", qid)
		}
	}
	return knowledge(b.String())
}

func idSet(inner string) string {
	return `<KNOWLEDGE_BASE_VULN_LIST_OUTPUT><RESPONSE><DATETIME>2026-11-01T00:00:00Z</DATETIME>` + inner + `</RESPONSE></KNOWLEDGE_BASE_VULN_LIST_OUTPUT><!-- keep-alive for KNOWLEDGE_BASE_VULN_LIST_OUTPUT  -->`
}

func TestKnowledgeBaseRanges(t *testing.T) {
	s, calls := api(t, func(p url.Values) string {
		if p.Get("details") == "None" {
			return idSet(`<!-- keep-alive for KNOWLEDGE_BASE_VULN_LIST_OUTPUT  --><ID_SET><ID>40</ID><ID_RANGE>5-8</ID_RANGE><ID> 7 </ID><ID_RANGE>9 - 10</ID_RANGE><ID>50</ID></ID_SET>`)
		}
		return strings.Replace(holds(p, 5, 6, 7, 8, 9, 10, 40, 50, 60), "2026-11-01", "2026-11-02", 1)
	})
	q := record.Query{From: 1}
	var ranges []string
	for {
		r := newRowsOf(ingest.KB)
		page, err := s.Page(context.Background(), q, r)
		if err != nil {
			t.Fatal(err)
		}
		if r.at.Day() != 1 {
			t.Errorf("the window ends at %s, not at the time of the list", r.at)
		}
		last := (*calls)[len(*calls)-1]
		ranges = append(ranges, last.Get("id_min")+"-"+last.Get("id_max"))
		if len(ranges) == 1 && r.tally.Expected != 8 {
			t.Errorf("%d expected, want 8", r.tally.Expected)
		}
		if page.Next == 0 {
			break
		}
		q.From = page.Next
	}
	if want := []string{"1-7", "8-39", "40-"}; !slices.Equal(ranges, want) || len(*calls) != 4 {
		t.Errorf("ranges %v in %d calls, want %v", ranges, len(*calls), want)
	}
	for _, name := range []string{"show_pci_reasons", "show_supported_modules_info", "show_disabled_flag", "show_qid_change_log"} {
		if (*calls)[1].Get(name) != "1" || (*calls)[0].Has(name) {
			t.Errorf("%s is %q", name, (*calls)[1].Get(name))
		}
	}
}

// What an answer leaves out is asked for by name; what it brings beyond what was
// asked for, or twice, is dropped; and no cursor passes what is missing.
func TestKnowledgeBaseHoldsAnswersToTheList(t *testing.T) {
	list := idSet(`<ID_SET><ID_RANGE>1-6</ID_RANGE></ID_SET>`)
	for name, c := range map[string]struct {
		page    string // of the range 1 to 3
		byName  []uint64
		rows    int
		done    []uint64
		warning string
		gone    string // from the list, when it is asked for again
		err     string
	}{
		"all there":          {page: knowledge(`<VULN><QID>1</QID></VULN><VULN><QID>2</QID></VULN><VULN><QID>3</QID></VULN>`), rows: 3, done: []uint64{1, 2, 3}},
		"one comes by name":  {page: knowledge(`<VULN><QID>1</QID></VULN><VULN><QID>3</QID></VULN>`), byName: []uint64{2}, rows: 3, done: []uint64{1, 0, 0}},
		"the first is late":  {page: knowledge(`<VULN><QID>2</QID></VULN><VULN><QID>3</QID></VULN>`), byName: []uint64{1}, rows: 3, done: []uint64{0, 0, 0}},
		"one is gone since":  {page: knowledge(`<VULN><QID>1</QID></VULN><VULN><QID>2</QID></VULN>`), gone: "3", rows: 2, done: []uint64{1, 2}, warning: "1 QIDs were listed and do not come"},
		"all are gone since": {page: idSet(""), gone: "1-3", rows: 0, warning: "3 QIDs were listed and do not come"},
		"list empties":       {page: knowledge(`<VULN><QID>1</QID></VULN><VULN><QID>2</QID></VULN>`), gone: "all", err: "lists no QID any more"},
		"never comes":        {page: knowledge(`<VULN><QID>1</QID></VULN><VULN><QID>2</QID></VULN>`), err: "QID 3 is listed and does not come"},
		"outside and twice":  {page: knowledge(`<VULN><QID>1</QID></VULN><VULN><QID>1</QID></VULN><VULN><QID>2</QID></VULN><VULN><QID>3</QID></VULN><VULN><QID>900</QID></VULN>`), rows: 3, done: []uint64{1, 2, 3}, warning: "2 entries came twice or outside"},
		"no list of entries": {page: idSet(""), byName: []uint64{1, 2, 3}, rows: 3, done: []uint64{0, 0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			lists := 0
			s, _ := api(t, func(p url.Values) string {
				switch {
				case p.Get("details") == "None":
					if lists++; lists > 1 && c.gone == "all" {
						return idSet("")
					} else if lists > 1 && c.gone != "" {
						return idSet(strings.ReplaceAll(`<ID_SET><ID_RANGE>`+map[string]string{"3": "1-2</ID_RANGE><ID_RANGE>4-6", "1-3": "4-6"}[c.gone]+`</ID_RANGE></ID_SET>`, "\n", ""))
					}
					return list
				case p.Has("ids"):
					return holds(p, c.byName...)
				}
				return c.page
			})
			r := newRowsOf(ingest.KB)
			page, err := s.Page(context.Background(), record.Query{From: 1}, r)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil || page.Next != 4 || len(r.lines) != c.rows || !slices.Equal(r.done, c.done) || !strings.Contains(page.Warning, c.warning) || c.warning == "" && page.Warning != "" {
				t.Errorf("%v, page %+v, %d rows, done %v", err, page, len(r.lines), r.done)
			}
		})
	}
}

// A try that fails behind a missing entry is not made twice: what has come is
// not passed on again, and a range that was read whole is not read again.
func TestTriesOfARange(t *testing.T) {
	lists, pages, named := 0, 0, 0
	s, _ := api(t, func(p url.Values) string {
		switch {
		case p.Get("details") == "None":
			lists++
			return idSet(`<ID_SET><ID_RANGE>1-6</ID_RANGE></ID_SET>`)
		case p.Has("ids"):
			if named++; named == 1 {
				return "cut off"
			}
			return holds(p, 2)
		}
		if pages++; pages == 1 {
			doc, _, _ := strings.Cut(knowledge(`<VULN><QID>1</QID></VULN><VULN><QID>3</QID></VULN>`), "</VULN_LIST>")
			return doc
		}
		return knowledge(`<VULN><QID>1</QID></VULN><VULN><QID>3</QID></VULN>`)
	})
	r := newRowsOf(ingest.KB)
	for try := range 3 {
		page, err := s.Page(context.Background(), record.Query{From: 1}, r)
		if (err == nil) != (try == 2) || err == nil && page.Next != 4 {
			t.Fatalf("try %d: %v, %+v", try, err, page)
		}
	}
	if len(r.lines) != 3 || lists != 1 || pages != 2 || named != 2 {
		t.Errorf("%d rows; %d lists, %d pages, %d by name", len(r.lines), lists, pages, named)
	}
}

// A window that has brought entries cannot list none when it goes on.
func TestEmptyListOnResume(t *testing.T) {
	s, _ := api(t, func(url.Values) string { return idSet("") })
	_, err := s.Page(context.Background(), record.Query{From: 7}, newRowsOf(ingest.KB))
	var e *qualys.Error
	if !errors.As(err, &e) || e.Kind != qualys.Broken || !strings.Contains(e.Text, "lists no QID any more") {
		t.Errorf("got %v", err)
	}
	// A window of changes may be empty, from the start or because what had changed
	// is gone, and one at its end is at its end.
	for _, from := range []uint64{0, 7} {
		if page, err := s.Page(context.Background(), record.Query{From: from, After: time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC)}, newRowsOf(ingest.KB)); err != nil || page.Next != 0 {
			t.Error(err)
		}
	}
	s, calls := api(t, func(url.Values) string { return idSet("<ID_SET><ID>6</ID></ID_SET>") })
	if page, err := s.Page(context.Background(), record.Query{From: 7}, newRowsOf(ingest.KB)); err != nil || page.Next != 0 || len(*calls) != 1 {
		t.Error(err)
	}
}

// The DTD allows a link to more; only its id_min is used.
func TestKnowledgeBaseNextLink(t *testing.T) {
	link := ""
	s, calls := api(t, func(p url.Values) string {
		if p.Get("details") == "None" {
			return idSet(`<ID_SET><ID_RANGE>1-6</ID_RANGE></ID_SET>`)
		}
		warning := "<WARNING><CODE>1980</CODE><TEXT>limit</TEXT><URL><![CDATA[https://elsewhere.example/?id_min=" + link + "]]></URL></WARNING>"
		return strings.Replace(holds(p, 1, 2, 3, 4, 5, 6), "</VULN_LIST>", "</VULN_LIST>"+warning, 1)
	})
	for next, want := range map[string]uint64{"2": 2, "4": 4, "9": 4} {
		link = next
		page, err := s.Page(context.Background(), record.Query{From: 1}, newRowsOf(ingest.KB))
		if err != nil || page.Next != want {
			t.Errorf("link to %s: next %d, %v; want %d", next, page.Next, err, want)
		}
	}
	link = "1"
	if _, err := s.Page(context.Background(), record.Query{From: 1}, newRowsOf(ingest.KB)); err == nil || !strings.Contains(err.Error(), "never end") {
		t.Errorf("a page that leads to itself: %v", err)
	}
	if len(*calls) != 5 {
		t.Errorf("%d calls", len(*calls))
	}
}

func TestIDSetsThatAreNone(t *testing.T) {
	for name, c := range map[string]struct{ doc, want string }{
		"no number":     {idSet("<ID_SET><ID>x</ID></ID_SET>"), "holds"},
		"zero":          {idSet("<ID_SET><ID>0</ID></ID_SET>"), "holds"},
		"backwards":     {idSet("<ID_SET><ID_RANGE>9-5</ID_RANGE></ID_SET>"), "holds"},
		"half a range":  {idSet("<ID_SET><ID_RANGE>9-</ID_RANGE></ID_SET>"), "holds"},
		"everything":    {idSet("<ID_SET><ID_RANGE>1-9000000000000000000</ID_RANGE></ID_SET>"), "more than"},
		"many ranges":   {idSet("<ID_SET><ID_RANGE>1-500000</ID_RANGE><ID_RANGE>2000000-2500000</ID_RANGE></ID_SET>"), "more than"},
		"cut":           {idSet("<ID_SET><ID>1</ID></ID_SET>")[:120], "unexpected"},
		"empty":         {"", "empty"},
		"more, no code": {idSet("<ID_SET><ID>1</ID></ID_SET><WARNING><TEXT>1000 record limit exceeded.</TEXT></WARNING>"), "never end"},
		"more, by link": {idSet("<ID_SET><ID>1</ID></ID_SET><WARNING><URL>https://x.example/?id_min=2</URL></WARNING>"), "never end"},
		"entries":       {knowledge("<VULN><QID>1</QID></VULN>"), `"RESPONSE/VULN_LIST" is not a part of it`},
		"more follow":   {idSet("<ID_SET><ID>1</ID></ID_SET><WARNING><CODE>1980</CODE><TEXT>limit</TEXT></WARNING>"), "never end"},
		"no time":       {strings.Replace(idSet("<ID_SET><ID>1</ID></ID_SET>"), "2026", "", 1), ""},
		"html":          {"<html><body>login</body></html>", "HTML page"},
		"not permitted": {"<SIMPLE_RETURN><RESPONSE><CODE>2012</CODE><TEXT>no</TEXT></RESPONSE></SIMPLE_RETURN>", "authorise"},
		"nothing":       {idSet(""), "no QID at all"},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := api(t, func(url.Values) string { return c.doc })
			_, err := s.Page(context.Background(), record.Query{}, newRowsOf(ingest.KB))
			if c.want == "" { // the Date header tells it
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestGone(t *testing.T) {
	s, calls := api(t, func(p url.Values) string {
		if strings.HasPrefix(p.Get("ids"), "1,") {
			return idSet("<ID_SET><ID>1</ID><ID_RANGE>3-1000</ID_RANGE><ID>5000</ID></ID_SET>")
		}
		return idSet("<ID_SET><ID>5000</ID></ID_SET>")
	})
	var ids []uint64
	for id := range uint64(1001) {
		ids = append(ids, id+1)
	}
	if _, err := s.Gone(context.Background(), ids, []uint64{7777, 8888}, func(record.Tally) {}); err == nil || !strings.Contains(err.Error(), "7777,8888") {
		t.Errorf("without its witness: %v", err)
	}
	*calls = nil
	requests := int64(0)
	gone, err := s.Gone(context.Background(), ids, []uint64{4999, 5000}, func(t record.Tally) { requests += t.Requests })
	if err != nil || !slices.Equal(gone, []uint64{2, 999, 1000, 1001}) || len(*calls) != 2 || requests != 2 || (*calls)[0].Get("details") != "None" {
		t.Errorf("gone %v, %v, %d calls", gone, err, len(*calls))
	}
}

// Whatever stands in a page, decoding it ends without a panic, and a page that
// encoding/xml takes keeps all its leaves.
func FuzzKnowledgeBase(f *testing.F) {
	f.Add(knowledge(`<VULN><QID>1</QID><CVE_LIST><CVE><ID>a</ID></CVE></CVE_LIST><THREAT_INTELLIGENCE><THREAT_INTEL id="1">x</THREAT_INTEL></THREAT_INTELLIGENCE></VULN>`))
	f.Add(knowledge(`<VULN><QID>1</QID><CORRELATION><EXPLOITS><EXPLT_SRC><SRC_NAME>s</SRC_NAME><EXPLT_LIST><EXPLT><REF>r</REF></EXPLT></EXPLT_LIST></EXPLT_SRC></EXPLOITS></CORRELATION><DIAGNOSIS><![CDATA[<p>x]]></DIAGNOSIS></VULN>`))
	f.Add(idSet("<ID_SET><ID>1</ID><ID_RANGE>2-3</ID_RANGE></ID_SET>"))
	f.Fuzz(func(t *testing.T, doc string) {
		r, _, err := decodeOf(ingest.KB, doc)
		for _, line := range r.lines {
			if !json.Valid([]byte(line)) {
				t.Errorf("row is no JSON: %s", line)
			}
		}
		if err == nil && len(r.lines) != len(r.done) {
			t.Errorf("%d rows, %d entries", len(r.lines), len(r.done))
		}
		set, _, err := qualys.ReadIDSet(strings.NewReader(doc), "KNOWLEDGE_BASE_VULN_LIST_OUTPUT", time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC))
		if err == nil && set > 600_000 {
			t.Errorf("%d ids", set)
		}
	})
}

// The simulator's KnowledgeBase is what the DTD allows, and decodes without a
// left-over.
func TestSimulatedKnowledgeBase(t *testing.T) {
	q := simulator.NewQualys(simulator.NewSubscription(1, 1, 1), "u", "p")
	q.Subscription.Knowledge = &simulator.Knowledge{Seed: 1, Size: 300}
	r := httptest.NewRequest(http.MethodGet, "/api/4.0/fo/knowledge_base/vuln/?action=list&details=All&show_pci_reasons=1&show_disabled_flag=1&show_qid_change_log=1&show_supported_modules_info=1", nil)
	r.SetBasicAuth("u", "p")
	r.Header.Set("X-Requested-With", "test")
	w := httptest.NewRecorder()
	q.ServeHTTP(w, r)
	rows, _, err := decodeOf(ingest.KB, w.Body.String())
	if err != nil || len(rows.lines) != 300 || rows.tally.Unknown != 0 {
		t.Fatal(err, len(rows.lines), rows.tally)
	}
	checkEntries(t, w.Body.Bytes(), rows.lines)
}
