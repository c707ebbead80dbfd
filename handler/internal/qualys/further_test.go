package qualys_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
)

const (
	host41   = `<HOST><ID>41</ID><DETECTION_LIST><DETECTION><QID>7</QID></DETECTION></DETECTION_LIST></HOST>`
	hostList = `<HOST_LIST>` + host41 + `</HOST_LIST>`
	vuln7    = `<VULN><QID>7</QID><TITLE>t</TITLE></VULN>`
	vulnList = `<VULN_LIST>` + vuln7 + `</VULN_LIST>`
	more     = `<WARNING><CODE>1980</CODE><TEXT>1 record limit exceeded.</TEXT></WARNING>`
	linkTo42 = `<URL><![CDATA[https://q/?action=list&id_min=42]]></URL>`
	datetime = `<DATETIME>2026-11-01T00:00:00Z</DATETIME>`
)

// hostIDs wraps ids into a document of the host list.
func hostIDs(inner string) string {
	return strings.ReplaceAll(page(inner), "HOST_LIST_VM_DETECTION_OUTPUT", "HOST_LIST_OUTPUT")
}

// What Qualys, a gateway or a newer version may send that is no whole answer.
func TestFurtherDocumentsDoNotCloseTheWindow(t *testing.T) {
	inHost := func(inner string) string { return hosts(`<HOST><ID>41</ID>` + inner + `</HOST>`) }
	warned := func(inner string) string { return page(hostList + `<WARNING>` + inner + `</WARNING>`) }
	response := func(inner string) string {
		return strings.Replace(page(hostList), `</RESPONSE>`, `</RESPONSE>`+inner, 1)
	}
	for name, doc := range map[string]string{
		// the envelope
		"no DATETIME":                   strings.Replace(page(""), datetime, "", 1),
		"empty DATETIME":                strings.Replace(page(""), datetime, "<DATETIME/>", 1),
		"DATETIME is an error text":     strings.Replace(page(""), datetime, "<DATETIME>Internal error</DATETIME>", 1),
		"DATETIME under another name":   strings.Replace(page(""), "DATETIME>", "TIMESTAMP>", 2),
		"DATETIME in front of RESPONSE": strings.Replace(page(""), "<RESPONSE>"+datetime, datetime+"<RESPONSE>", 1),
		"RESPONSE under another name":   strings.ReplaceAll(page(hostList), "RESPONSE>", "RESULT>"),
		"no RESPONSE, as MSP lists":     strings.NewReplacer("<RESPONSE>", "", "</RESPONSE>", "").Replace(page(hostList)),
		"only the echoed request":       `<HOST_LIST_VM_DETECTION_OUTPUT><REQUEST>` + datetime + `<RESOURCE>x</RESOURCE></REQUEST></HOST_LIST_VM_DETECTION_OUTPUT>`,
		"the list in the request":       `<HOST_LIST_VM_DETECTION_OUTPUT><REQUEST>` + hostList + `</REQUEST><RESPONSE>` + datetime + `</RESPONSE></HOST_LIST_VM_DETECTION_OUTPUT>`,
		"RESPONSE in RESPONSE":          page(`<RESPONSE>` + datetime + hostList + `</RESPONSE>`),
		"all escaped by a gateway":      `<HOST_LIST_VM_DETECTION_OUTPUT><![CDATA[<RESPONSE>` + datetime + hostList + `</RESPONSE>]]></HOST_LIST_VM_DETECTION_OUTPUT>`,
		"the list escaped":              page(`&lt;HOST_LIST&gt;&lt;/HOST_LIST&gt;`),
		"the list is an entity":         `<!DOCTYPE HOST_LIST_VM_DETECTION_OUTPUT [<!ENTITY list SYSTEM "list.xml">]>` + strings.TrimPrefix(page(`&list;`), `<?xml version="1.0" encoding="UTF-8" ?>`),
		"prefixed names":                strings.NewReplacer("<HOST_LIST>", "<q:HOST_LIST>", "</HOST_LIST>", "</q:HOST_LIST>").Replace(page(hostList)),
		"RESPONSE says FAILED":          strings.Replace(page(""), "<RESPONSE>", `<RESPONSE status="FAILED" number="999">`, 1),
		"the root says FAILED":          strings.Replace(page(""), "OUTPUT>", `OUTPUT status="FAILED" number="999">`, 1),
		"the list says truncated":       page(strings.Replace(hostList, "<HOST_LIST>", `<HOST_LIST truncated="true">`, 1)),

		// a second envelope
		"second RESPONSE is empty":    response(`<RESPONSE>` + datetime + `</RESPONSE>`),
		"second RESPONSE has a code":  response(`<RESPONSE>` + datetime + `<CODE>999</CODE><TEXT>Internal error</TEXT></RESPONSE>`),
		"second RESPONSE warns":       response(`<RESPONSE>` + datetime + more + `</RESPONSE>`),
		"SIMPLE_RETURN at the end":    response(`<SIMPLE_RETURN><RESPONSE>` + datetime + `<CODE>999</CODE><TEXT>Internal error</TEXT></RESPONSE></SIMPLE_RETURN>`),
		"SIMPLE_RETURN inside":        page(`<SIMPLE_RETURN><RESPONSE>` + datetime + `<CODE>1960</CODE><TEXT>This API cannot be run again</TEXT></RESPONSE></SIMPLE_RETURN>`),
		"GENERIC_RETURN inside":       page(`<GENERIC_RETURN><RETURN status="FAILED" number="2002">Internal error</RETURN></GENERIC_RETURN>`),
		"second document":             page(hostList) + page(""),
		"JSON of a gateway behind it": page(hostList) + `{"status":504,"error":"Gateway Timeout"}`,
		"second DATETIME, no list":    page(`<DATETIME>2026-11-01T00:00:09Z</DATETIME><ITEM_LIST/>`),

		// errors beside, inside and in place of the list
		"ERROR behind RESPONSE":          response(`<ERROR number="999">Internal error</ERROR>`),
		"ERROR behind the list":          page(hostList + `<ERROR number="999">Internal error</ERROR>`),
		"ERROR in the list":              page(`<HOST_LIST>` + host41 + `<ERROR number="999">Internal error</ERROR></HOST_LIST>`),
		"ERROR in place of the findings": inHost(`<DETECTION_LIST><ERROR number="999">Internal error</ERROR></DETECTION_LIST>`),
		"ERROR behind the findings":      inHost(`<DETECTION_LIST><DETECTION><QID>7</QID></DETECTION><ERROR number="999">Internal error</ERROR></DETECTION_LIST>`),
		"text only":                      page(`<TEXT>Your request is being processed. Please try later.</TEXT>`),
		"item list of a limit":           page(`<ITEM_LIST><ITEM><KEY>SECONDS_TO_WAIT</KEY><VALUE>60</VALUE></ITEM></ITEM_LIST>`),
		"sentence behind DATETIME":       page(`The maximum execution time was exceeded.`),
		"sentence behind the list":       page(hostList + `The maximum execution time was exceeded.`),
		"sentence in the list":           hosts(`The maximum execution time was exceeded.`),
		"sentence behind a host":         hosts(host41 + `<![CDATA[The maximum execution time was exceeded.]]>`),
		"sentence for findings":          inHost(`<DETECTION_LIST>The maximum execution time was exceeded.</DETECTION_LIST>`),
		"sentence behind the findings":   inHost(`<DETECTION_LIST><DETECTION><QID>7</QID></DETECTION>The maximum execution time was exceeded.</DETECTION_LIST>`),
		"PHP warning in the list":        hosts(host41 + `<br /><b>Warning</b>: mysql_fetch_array() expects parameter 1 in <b>/usr/local/detection.php</b> on line <b>99</b><br />`),
		"page of a proxy inside":         page(`<html><body><h1>504 Gateway Time-out</h1></body></html>`),

		// the list renamed, moved, of another kind
		"list of another product":           page(`<ASSET_LIST><ASSET><ID>41</ID></ASSET></ASSET_LIST>`),
		"KnowledgeBase entries":             page(vulnList),
		"ids in place of hosts":             page(`<ID_SET><ID>41</ID></ID_SET>`),
		"hosts without a list":              page(host41),
		"list one level down":               page(`<RESULT_SET>` + hostList + `</RESULT_SET>`),
		"list in a list":                    page(`<HOST_LIST>` + hostList + `</HOST_LIST>`),
		"hosts under another name":          hosts(`<ASSET><ID>41</ID><DETECTION_LIST><DETECTION><QID>7</QID></DETECTION></DETECTION_LIST></ASSET>`),
		"some hosts under another name":     hosts(host41 + `<HOST_V2><ID>42</ID></HOST_V2>`),
		"list behind RESPONSE":              strings.Replace(page(""), "</RESPONSE>", "</RESPONSE>"+hostList, 1),
		"renamed list beside a list":        page(hostList + `<AGENT_HOST_LIST>` + host41 + `</AGENT_HOST_LIST>`),
		"findings under another name":       inHost(`<FINDING_LIST><FINDING><QID>7</QID></FINDING></FINDING_LIST>`),
		"findings beside an empty list":     inHost(`<DETECTION_LIST/><DETECTIONS><DETECTION><QID>7</QID></DETECTION></DETECTIONS>`),
		"findings without a list":           inHost(`<DETECTION><QID>7</QID></DETECTION>`),
		"findings one level down":           inHost(`<VM><DETECTION_LIST><DETECTION><QID>7</QID></DETECTION></DETECTION_LIST></VM>`),
		"findings in a list of kinds":       inHost(`<DETECTION_LIST><CONFIRMED><DETECTION><QID>7</QID></DETECTION></CONFIRMED></DETECTION_LIST>`),
		"some findings one level down":      inHost(`<DETECTION_LIST><DETECTION><QID>7</QID></DETECTION><POTENTIAL><DETECTION><QID>8</QID></DETECTION></POTENTIAL></DETECTION_LIST>`),
		"elements in findings renamed":      inHost(`<DETECTION_LIST><DETECTION><SIGNATURE>7</SIGNATURE></DETECTION><DETECTION><SIGNATURE>8</SIGNATURE></DETECTION></DETECTION_LIST>`),
		"finding without its QID":           inHost(`<DETECTION_LIST><DETECTION><STATUS>Active</STATUS></DETECTION><DETECTION><STATUS>Fixed</STATUS></DETECTION></DETECTION_LIST>`),
		"QIDs one level down":               inHost(`<DETECTION_LIST><DETECTION><INFO><QID>7</QID></INFO></DETECTION><DETECTION><INFO><QID>8</QID></INFO></DETECTION></DETECTION_LIST>`),
		"finding flattened into its host":   inHost(`<QID>7</QID><STATUS>Active</STATUS>`),
		"finding is attributes in its host": inHost(`<DETECTION qid="7" status="Active"/>`),
		"findings are JSON":                 inHost(`<DETECTIONS>[{"qid":7}]</DETECTIONS>`),
		"findings behind a link":            inHost(`<DETECTION_LIST href="https://q/host/41/detections"/>`),
		"findings say truncated":            inHost(`<DETECTION_LIST truncated="true"><DETECTION><QID>7</QID></DETECTION></DETECTION_LIST>`),
		"sentence in a host":                inHost(`The maximum execution time was exceeded.`),
		"host says FAILED":                  inHost(`<STATUS>FAILED</STATUS><MESSAGE>Findings could not be loaded.</MESSAGE>`),
		"host is empty":                     hosts(`<HOST/>`),
		"host without an id":                hosts(`<HOST><IP>10.0.0.1</IP></HOST>`),
		"id of a host is empty":             hosts(`<HOST><ID/><IP>10.0.0.1</IP></HOST>`),
		"elements in findings are attrs":    inHost(`<DETECTION_LIST><DETECTION qid="7"/><DETECTION qid="8"/></DETECTION_LIST>`),
		"findings are empty":                inHost(`<DETECTION_LIST><DETECTION/></DETECTION_LIST>`),
		"id is an attribute":                hosts(`<HOST id="41"><DETECTION_LIST><DETECTION><QID>7</QID></DETECTION></DETECTION_LIST></HOST>`),

		// more follows, told in another way
		"warning without hosts":               page(more),
		"warning in front of the list":        page(more + hostList),
		"warning between lists":               page(hostList + more + hostList),
		"warning in the list":                 page(`<HOST_LIST>` + host41 + more + `</HOST_LIST>`),
		"warning in a host":                   inHost(`<DETECTION_LIST><DETECTION><QID>7</QID></DETECTION></DETECTION_LIST>` + more),
		"warning in the findings":             inHost(`<DETECTION_LIST><DETECTION><QID>7</QID></DETECTION>` + more + `</DETECTION_LIST>`),
		"warning behind RESPONSE":             response(more),
		"warnings in a list":                  page(hostList + `<WARNING_LIST>` + more + `</WARNING_LIST>`),
		"warning in small letters":            page(hostList + strings.ToLower(more)),
		"warning is text":                     warned(`1000 record limit exceeded. Use URL to get next batch of results.`),
		"warning is attributes":               page(hostList + `<WARNING code="1980" url="https://q/?id_min=42"/>`),
		"warning with other members":          warned(`<NUMBER>1980</NUMBER><MESSAGE>record limit exceeded</MESSAGE><NEXT>42</NEXT>`),
		"warning in a warning":                warned(`<TEXT>This version reaches its End of Service.</TEXT>` + more),
		"code and text without a warning":     page(hostList + `<CODE>1980</CODE><TEXT>1 record limit exceeded.</TEXT>`),
		"TRUNCATION of the ticket list":       page(hostList + `<TRUNCATION last="41">truncated after 1 records</TRUNCATION>`),
		"hasMoreRecords of QPS":               page(hostList + `<HAS_MORE_RECORDS>true</HAS_MORE_RECORDS><LAST_ID>41</LAST_ID>`),
		"end of service with 1980":            warned(`<CODE>1980</CODE><TEXT>This version reaches its End of Service.</TEXT>`),
		"end of service with a link":          warned(`<TEXT>This version reaches its End of Service.</TEXT>` + linkTo42),
		"two links in a warning":              warned(linkTo42 + `<TEXT>This version reaches its End of Service.</TEXT><URL>https://docs.qualys.com/</URL>`),
		"two codes in a warning":              warned(`<CODE>1980</CODE><CODE>2100</CODE><TEXT>This version reaches its End of Service.</TEXT>`),
		"two texts in a warning":              warned(`<TEXT>1 record limit exceeded.</TEXT><TEXT>This version reaches its End of Service.</TEXT>`),
		"two texts, the other way":            warned(`<TEXT>This version reaches its End of Service.</TEXT><TEXT>1 record limit exceeded.</TEXT>`),
		"deprecated, and first hosts only":    warned(`<TEXT>detection_updated_since is deprecated. Only the first 500 hosts are listed.</TEXT>`),
		"end of life, some are missing":       warned(`<TEXT>API 2.0 is End of Life: some records may be missing.</TEXT>`),
		"end of support, partial":             warned(`<TEXT>API 4.0 has reached End of Support. Results are partial.</TEXT>`),
		"retired, capped":                     warned(`<TEXT>API 4.0 is being retired; responses are capped at 100 hosts.</TEXT>`),
		"superseded, could not be read":       warned(`<TEXT>API 4.0 is superseded by 5.0. 3 hosts could not be processed.</TEXT>`),
		"end of life, timed out":              warned(`<TEXT>This version is End of Life. Query timed out.</TEXT>`),
		"end of service in error 999":         warned(`<CODE>999</CODE><TEXT>Internal error. Unexpected end of service call.</TEXT>`),
		"end of service, another link":        warned(`<TEXT>This version reaches its End of Service.</TEXT><URL>https://q/api/5.0/fo/asset/host/vm/detection/?action=list&amp;cursor=MTAwMA</URL>`),
		"end of service, link in capitals":    warned(`<TEXT>This version reaches its End of Service.</TEXT><URL>https://q/?action=list&amp;ID_MIN=42</URL>`),
		"deprecated in PHP":                   warned(`<TEXT>Deprecated: Function split() in /detection.php. Skipped 3 hosts.</TEXT>`),
		"service ended early":                 warned(`<TEXT>Unexpected end of service response.</TEXT>`),
		"end of service beside a failed part": page(hostList + `<WARNING><TEXT>This version reaches its End of Service.</TEXT></WARNING><WARNING><CODE>999</CODE><TEXT>Internal error</TEXT></WARNING>`),
		"end of life, cut at a host":          warned(`<TEXT>API 5.0 is End of Life: the list was cut at host 41.</TEXT>`),
		"deprecated, at most":                 warned(`<TEXT>API 5.0 is deprecated and returns 1000 hosts at most.</TEXT>`),
		"end of service, one of 500":          warned(`<TEXT>End of Service: only 1 host of 500 is listed.</TEXT>`),
		"superseded, shortened":               warned(`<TEXT>This version is superseded. The response was shortened.</TEXT>`),
		"retired, call again":                 warned(`<TEXT>API 5.0 will be retired. Call again with id_min=42 for the rest.</TEXT>`),
		"deprecated, dropped":                 warned(`<TEXT>show_qds is deprecated. 12 hosts were dropped.</TEXT>`),
		"obsolete, left out":                  warned(`<TEXT>This version is obsolete: detections of 3 hosts are left out.</TEXT>`),
		"deprecated, continue":                warned(`<TEXT>API 5.0 is deprecated. Continue with id_min 42.</TEXT>`),
		"end of support, maximum":             warned(`<TEXT>API 5.0 reaches its End of Support. Maximum of 1 record reached.</TEXT>`),
		"end of service, a sample":            warned(`<TEXT>API 5.0: End of Service; a sample of your hosts is returned.</TEXT>`),
		"deprecated in PHP, lost":             warned(`<TEXT>Deprecated: Function split() in /detection.php. 3 hosts lost.</TEXT>`),
		"deprecated, suppressed":              warned(`<TEXT>API 5.0 is deprecated; Fixed detections are suppressed.</TEXT>`),
		"end of life, no data":                warned(`<TEXT>API 5.0 is End of Life and returns no data any more.</TEXT>`),
		"decommissioned, no hosts":            warned(`<TEXT>API 5.0 was decommissioned. No hosts are returned.</TEXT>`),
		"end of service, stopped":             warned(`<TEXT>End of service: processing was stopped after host 41.</TEXT>`),
		"deprecated, page 1":                  warned(`<TEXT>API 5.0 is deprecated. Page 1 of 10.</TEXT>`),
		"end of life, in German":              warned(`<TEXT>API 5.0 is End of Life: unvollständig.</TEXT>`),
		"deprecated, a link to more":          warned(`<TEXT>API 5.0 is deprecated.</TEXT><URL>https://q/api/5.0/page?last_id=41</URL>`),
		"truncated, among the findings":       inHost(`<DETECTION_LIST><DETECTION><QID>7</QID></DETECTION><TRUNCATION last="1">truncated after 1 records</TRUNCATION></DETECTION_LIST>`),
		"a text among the findings":           inHost(`<DETECTION_LIST><DETECTION><QID>7</QID></DETECTION><TEXT>Maximum execution time exceeded</TEXT></DETECTION_LIST>`),
		"more records, among the findings":    inHost(`<DETECTION_LIST><DETECTION><QID>7</QID></DETECTION><HAS_MORE_RECORDS>true</HAS_MORE_RECORDS></DETECTION_LIST>`),
		"a number among the findings":         inHost(`<DETECTION_LIST><DETECTION><QID>7</QID></DETECTION>999</DETECTION_LIST>`),
		"an attribute for a finding":          inHost(`<DETECTION_LIST><DETECTION><QID>7</QID></DETECTION><FINDING qid="8"/></DETECTION_LIST>`),
		"a second envelope in a host":         inHost(`<DETECTION_LIST><DETECTION><QID>7</QID></DETECTION></DETECTION_LIST><SIMPLE_RETURN><RESPONSE>` + datetime + `<CODE>999</CODE><TEXT>Internal error</TEXT></RESPONSE></SIMPLE_RETURN>`),
		"an old envelope in a host":           inHost(`<DETECTION_LIST><DETECTION><QID>7</QID></DETECTION></DETECTION_LIST><GENERIC_RETURN><RETURN status="FAILED" number="999">x</RETURN></GENERIC_RETURN>`),
		"a sentence in a host":                inHost(`<DETECTION_LIST><DETECTION><QID>7</QID></DETECTION></DETECTION_LIST>Maximum execution time exceeded`),
		"a response in a host":                inHost(`<DETECTION_LIST><DETECTION><QID>7</QID></DETECTION></DETECTION_LIST><RESPONSE><CODE>999</CODE></RESPONSE>`),
		"a page in a host":                    inHost(`<DETECTION_LIST><DETECTION><QID>7</QID></DETECTION></DETECTION_LIST><html><body>x</body></html>`),
		"a host in a host":                    inHost(`<DETECTION_LIST><DETECTION><QID>7</QID></DETECTION></DETECTION_LIST>` + host41),
		"findings under another list":         inHost(`<DETECTION_LIST><DETECTION><QID>7</QID></DETECTION></DETECTION_LIST><DETECTIONS><DETECTION><QID>8</QID></DETECTION></DETECTIONS>`),
		"a warning in a finding":              inHost(`<DETECTION_LIST><DETECTION><QID>7</QID>` + more + `</DETECTION></DETECTION_LIST>`),
		"a finding in a finding":              inHost(`<DETECTION_LIST><DETECTION><QID>7</QID><DETECTION><QID>8</QID></DETECTION></DETECTION></DETECTION_LIST>`),
		"an error in place of an id":          page(`<HOST_LIST><HOST><ID>Internal error</ID><DETECTION_LIST><DETECTION><QID>7</QID></DETECTION></DETECTION_LIST></HOST></HOST_LIST>`),
		"still being processed":               warned(`<CODE>1981</CODE><TEXT>Request is still being processed.</TEXT>`),
	} {
		t.Run("detections/"+name, func(t *testing.T) {
			if r, p, err := decode(t, doc); err == nil && p.Next == 0 {
				t.Errorf("got a last page, %d rows, warning %q; want an error or a next page\n%s", len(r.lines), p.Warning, doc)
			}
		})
	}

	for name, doc := range map[string]string{
		"no DATETIME":                  strings.Replace(idSet(""), datetime, "", 1),
		"ids in place of entries":      idSet(`<ID_SET><ID>7</ID></ID_SET>`),
		"ids beside entries":           idSet(vulnList + `<ID_SET><ID>8</ID></ID_SET>`),
		"hosts":                        idSet(hostList),
		"entries without a list":       idSet(vuln7),
		"list under another name":      idSet(`<VULNERABILITY_LIST>` + vuln7 + `</VULNERABILITY_LIST>`),
		"entries under another name":   knowledge(`<QID_INFO><QID>7</QID></QID_INFO>`),
		"entries by category":          knowledge(`<CATEGORY name="Local">` + vuln7 + `</CATEGORY>`),
		"some entries by category":     knowledge(vuln7 + `<CATEGORY name="Local">` + vuln7 + `</CATEGORY>`),
		"entry in an entry":            knowledge(`<VULN>` + vuln7 + `</VULN>`),
		"QID is an attribute":          knowledge(`<VULN qid="7"><TITLE>t</TITLE></VULN>`),
		"second RESPONSE":              strings.Replace(idSet(vulnList), "</RESPONSE>", `</RESPONSE><RESPONSE>`+datetime+`</RESPONSE>`, 1),
		"code and text":                idSet(`<CODE>2012</CODE><TEXT>Your subscription is not authorised.</TEXT>`),
		"text only":                    idSet(`<TEXT>No KnowledgeBase for this account</TEXT>`),
		"ERROR in the list":            knowledge(vuln7 + `<ERROR number="999">Internal error</ERROR>`),
		"sentence in the list":         knowledge(`Maximum execution time exceeded`),
		"sentence behind the list":     idSet(vulnList + `Maximum execution time exceeded`),
		"more, without a link":         idSet(vulnList + more),
		"more, in front":               idSet(more + vulnList),
		"more, in the list":            knowledge(vuln7 + more),
		"more, without entries":        idSet(more),
		"end of service, and the rest": idSet(vulnList + `<WARNING><CODE>2100</CODE><TEXT>Version 2.0 is End of Life: the list is incomplete.</TEXT></WARNING>`),
	} {
		t.Run("entries/"+name, func(t *testing.T) {
			if r, p, err := decodeOf(ingest.KB, doc); err == nil && p.Next == 0 {
				t.Errorf("got a last page, %d rows, warning %q; want an error or a next page\n%s", len(r.lines), p.Warning, doc)
			}
		})
	}

	const one = `<ID_SET><ID>5</ID></ID_SET>`
	for name, inner := range map[string]string{
		"code and text":              `<CODE>999</CODE><TEXT>Internal error</TEXT>`,
		"code behind the ids":        one + `<CODE>999</CODE><TEXT>Internal error</TEXT>`,
		"sentence":                   `Maximum execution time exceeded`,
		"sentence behind the ids":    one + `Maximum execution time exceeded`,
		"sentence among the ids":     `<ID_SET><ID>5</ID>Maximum execution time exceeded</ID_SET>`,
		"ids are text":               `<ID_SET>5,6,7</ID_SET>`,
		"ids one level down":         `<ID_SET><IDS><ID>5</ID></IDS></ID_SET>`,
		"ids are attributes":         `<ID_SET><ID value="5"/></ID_SET>`,
		"an id is empty":             `<ID_SET><ID>5</ID><ID/></ID_SET>`,
		"an id has a child":          `<ID_SET><ID>5<SUB>6</SUB></ID></ID_SET>`,
		"set under another name":     `<IDS><ID>5</ID></IDS>`,
		"ids without a set":          `<ID>5</ID>`,
		"set in a set":               `<ID_SET>` + one + `</ID_SET>`,
		"two ranges in one":          `<ID_SET><ID_RANGE>5-7,9-11</ID_RANGE></ID_SET>`,
		"range of attributes":        `<ID_SET><ID_RANGE from="5" to="7"/></ID_SET>`,
		"another range beside an id": `<ID_SET><ID>5</ID><ID_INTERVAL>6-9</ID_INTERVAL></ID_SET>`,
		"hosts in place of ids":      `<HOST_LIST><HOST><ID>5</ID></HOST></HOST_LIST>`,
		"SIMPLE_RETURN inside":       `<SIMPLE_RETURN><RESPONSE>` + datetime + `<CODE>999</CODE></RESPONSE></SIMPLE_RETURN>`,
		"warning in the set":         `<ID_SET><ID>5</ID>` + more + `</ID_SET>`,
		"warning in front":           more + one,
		"warning in small letters":   one + strings.ToLower(more),
		"warning is text":            one + `<WARNING>1000 record limit exceeded.</WARNING>`,
		"warning says nothing":       one + `<WARNING/>`,
		"warning of a failed part":   one + `<WARNING><CODE>999</CODE><TEXT>Internal error</TEXT></WARNING>`,
		"end of service, and more":   one + `<WARNING><TEXT>End of Service: only the first ids are listed.</TEXT></WARNING>`,
		"two texts, one of more":     one + `<WARNING><TEXT>1 record limit exceeded.</TEXT><TEXT>End of Service in June</TEXT></WARNING>`,
		"TRUNCATION":                 one + `<TRUNCATION last="5"/>`,
		"page of a proxy":            `<html><body>504 Gateway Time-out</body></html>`,
	} {
		t.Run("ids/"+name, func(t *testing.T) {
			n, _, err := qualys.ReadIDSet(strings.NewReader(idSet(inner)), "KNOWLEDGE_BASE_VULN_LIST_OUTPUT", time.Time{})
			if err == nil {
				t.Errorf("got %d ids; want an error\n%s", n, idSet(inner))
			}
			if strings.Contains(strings.ToLower(inner), "warning") {
				return // a list of hosts is asked for in part
			}
			c, _ := client(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, hostIDs(inner)) })
			ids, err := qualys.NewDetections(c, ingest.VM.Schema).IDs(context.Background(), record.Query{}, 100, func(record.Tally) {})
			if err == nil {
				t.Errorf("got hosts %d; want an error\n%s", ids, hostIDs(inner))
			}
		})
	}
}

// The one host that was asked for comes, and the answer says that it is not whole.
func TestFurtherPartOfARange(t *testing.T) {
	const doubt = `<WARNING><CODE>999</CODE><TEXT>Internal error: detections of host 41 are incomplete.</TEXT></WARNING>`
	c, _ := client(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, page(hostList+doubt)) })
	p, err := qualys.NewDetections(c, ingest.VM.Schema).Page(context.Background(), record.Query{From: 41, To: 41}, newRows())
	if err == nil && p.Next == 0 {
		t.Errorf("got a last page, warning %q; want an error or a next page", p.Warning)
	}
}

// What is odd, and a whole answer nevertheless.
func TestFurtherWholeAnswers(t *testing.T) {
	ends := func(inner string) string { return page(hostList + `<WARNING>` + inner + `</WARNING>`) }
	for name, c := range map[string]struct {
		doc  string
		rows int
		text string // in the page's warning
		from *ingest.Dataset
	}{
		// newer versions
		"new elements of a host":           {doc: hosts(strings.Replace(host41, "</ID>", `</ID><TRURISK_SCORE>812</TRURISK_SCORE><VM_AUTH_INSUFFICIENT_PRIVILEGE>1</VM_AUTH_INSUFFICIENT_PRIVILEGE><HARDWARE uuid="x"><CPU_LIST><CPU cores="4">i7</CPU></CPU_LIST></HARDWARE>`, 1)), rows: 1},
		"new elements of a finding":        {doc: hosts(`<HOST><ID>41</ID><DETECTION_LIST><DETECTION><QID>7</QID><LATEST_VULNERABILITY_DETECTION_SOURCE>Agent</LATEST_VULNERABILITY_DETECTION_SOURCE><MITRE_TACTIC_NAME>Execution</MITRE_TACTIC_NAME><SOURCES><SOURCE><CODE>x</CODE></SOURCE></SOURCES><LAST_ERROR/></DETECTION></DETECTION_LIST></HOST>`), rows: 1},
		"host without findings":            {doc: hosts(host41 + `<HOST><ID>42</ID><IP>10.0.0.2</IP><METADATA><EC2><ATTRIBUTE><NAME>n</NAME><LAST_STATUS>Fail</LAST_STATUS><VALUE/><LAST_ERROR>404 - Not Found</LAST_ERROR></ATTRIBUTE></EC2></METADATA></HOST>`), rows: 1},
		"new element, none found":          {doc: hosts(strings.Replace(host41, "</ID>", "</ID><TRURISK_SCORE>812</TRURISK_SCORE>", 1) + `<HOST><ID>42</ID><TRURISK_SCORE>100</TRURISK_SCORE></HOST>`), rows: 1},
		"new element, empty findings":      {doc: hosts(`<HOST><ID>42</ID><TRURISK_SCORE>100</TRURISK_SCORE><DETECTION_LIST/></HOST>`)},
		"results that quote a warning":     {doc: hosts(`<HOST><ID>41</ID><DETECTION_LIST><DETECTION><QID>7</QID><RESULTS><![CDATA[<WARNING><CODE>1980</CODE><TEXT>1 record limit exceeded</TEXT></WARNING></RESPONSE>]]></RESULTS></DETECTION></DETECTION_LIST></HOST>`), rows: 1},
		"new elements of an entry":         {doc: knowledge(`<VULN><QID>7</QID><TITLE>t</TITLE><TECHNOLOGY>Java</TECHNOLOGY><MITRE_LIST><MITRE id="T1059"><TACTIC>Execution</TACTIC></MITRE></MITRE_LIST><CWE><CODE>79</CODE></CWE></VULN>`), rows: 1, from: ingest.KB},
		"error code 0 of a finding":        {doc: hosts(`<HOST><ID>41</ID><DETECTION_LIST><DETECTION><QID>7</QID><ERROR_CODE>0</ERROR_CODE></DETECTION></DETECTION_LIST></HOST>`), rows: 1},
		"code of an entry":                 {doc: knowledge(`<VULN><QID>7</QID><TITLE>t</TITLE><CODE>CVE-2026-1</CODE></VULN>`), rows: 1, from: ingest.KB},
		"empty list":                       {doc: hosts("\n")},
		"two lists, of agents and scanner": {doc: page(hostList + hostList), rows: 2},

		// a version's end
		"end of service":               {doc: ends(`<TEXT>This API version will reach End-of-Service on 30 June 2027. Please migrate to 6.0.</TEXT>`), rows: 1, text: "End-of-Service"},
		"end over two lines":           {doc: ends("<CODE>2100</CODE>\n<TEXT><![CDATA[API version 5.0 reaches its End of\n   Life in June.]]></TEXT>\n"), rows: 1, text: "Life in June"},
		"end of support":               {doc: ends(`<TEXT>Version 4.0 is past its end-of-support date. For more information, see the release notes.</TEXT><URL>https://docs.qualys.com/en/vm/api/?id=5</URL>`), rows: 1, text: "end-of-support"},
		"EOS and EOL":                  {doc: ends(`<TEXT>EOS: 2026-12-31, EOL: 2027-06-30</TEXT>`), rows: 1, text: "EOS"},
		"deprecated":                   {doc: ends(`<TEXT>/api/5.0/fo/asset/host/vm/detection/ is DEPRECATED and will be removed. Use 6.0 for the next releases.</TEXT>`), rows: 1, text: "DEPRECATED"},
		"superseded":                   {doc: ends(`<TEXT>This version has been superseded by version 6.0.</TEXT>`), rows: 1, text: "superseded"},
		"no longer supported":          {doc: ends(`<TEXT>This version will no longer be supported after June 2027.</TEXT>`), rows: 1, text: "no longer"},
		"sunset":                       {doc: ends(`<TEXT>This API version will sunset on 30 June 2027.</TEXT>`), rows: 1, text: "sunset"},
		"retired":                      {doc: ends(`<TEXT>API 5.0 will be retired in June 2027.</TEXT>`), rows: 1, text: "retired"},
		"end, not all features":        {doc: ends(`<TEXT>API 5.0: End of Support. Not all features of 6.0 are available.</TEXT>`), rows: 1, text: "End of Support"},
		"end, two blanks":              {doc: ends(`<TEXT>API 5.0: End  of Service.</TEXT>`), rows: 1, text: "End of Service"},
		"end over two lines, no hosts": {doc: page("<WARNING><TEXT>API 5.0: End of\n  Service.</TEXT></WARNING>"), text: "End of Service"},
		"end in front":                 {doc: page(`<WARNING><TEXT>API 5.0: End of Service.</TEXT></WARNING>` + hostList), rows: 1, text: "End of Service"},
		"end, small letters":           {doc: page(hostList + `<warning><text>api 5.0: end of service</text></warning>`), rows: 1, text: "end of service"},
		"end, and no hosts":            {doc: page(`<WARNING><TEXT>API 5.0: End of Service.</TEXT></WARNING>`), text: "End of Service"},
		"end told twice":               {doc: ends(`<TEXT>API 5.0: End of Service.</TEXT></WARNING><WARNING><TEXT>show_igs is deprecated.</TEXT>`), rows: 1, text: "End of Service"},
		"end, of the entries":          {doc: idSet(vulnList + `<WARNING><TEXT>API 4.0: End of Life in June.</TEXT></WARNING>`), rows: 1, text: "End of Life", from: ingest.KB},
		"end with empty fields":        {doc: ends(`<CODE/><TEXT>API 5.0: End of Service.</TEXT><URL/>`), rows: 1, text: "End of Service"},

		// XML
		"small letters":             {doc: strings.Replace(strings.ToLower(page(hostList)), "2026-11-01t00:00:00z", "2026-11-01T00:00:00Z", 1), rows: 1},
		"attributes of the root":    {doc: strings.Replace(page(hostList), "OUTPUT>", `OUTPUT xmlns="https://qualys.example/5.0" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:schemaLocation="a b">`, 1), rows: 1},
		"DOCTYPE with declarations": {doc: strings.Replace(page(hostList), "?>", "?>\n<!DOCTYPE HOST_LIST_VM_DETECTION_OUTPUT SYSTEM \"https://q/api/5.0/\n output.dtd\" [\n<!ELEMENT ID (#PCDATA)><!-- ]> -->\n<!ENTITY gt2 \"]>\">]>", 1), rows: 1},
		"instructions everywhere":   {doc: strings.ReplaceAll(page(hostList), "><", "><?keep alive?><"), rows: 1},
		"comments everywhere":       {doc: strings.ReplaceAll(page(hostList), "><", "><!-- keep-alive for <HOST_LIST> & more -->\r\n<"), rows: 1},
		"blanks inside tags":        {doc: page(strings.ReplaceAll(hostList, ">", "\n >")), rows: 1},
		"DATETIME as CDATA":         {doc: strings.Replace(page(hostList), "2026-11-01T00:00:00Z", "\n  <![CDATA[ 2026-11-01T00:00:00Z\n]]>\n ", 1), rows: 1},
		"blanks as CDATA":           {doc: page("<![CDATA[ \n]]>" + hostList + "&#10;"), rows: 1},
		"byte order mark":           {doc: "\ufeff" + page(hostList) + "\r\n<!-- CONFIDENTIAL //-->\r\n", rows: 1},
		"echo that quotes":          {doc: strings.Replace(page(hostList), "<RESPONSE>", `<REQUEST>`+datetime+`<USER_LOGIN>u</USER_LOGIN><RESOURCE>https://q/?id_min=42</RESOURCE><PARAM_LIST><PARAM><KEY>truncation_limit</KEY><VALUE>1</VALUE></PARAM></PARAM_LIST><POST_DATA><![CDATA[record limit exceeded]]></POST_DATA></REQUEST><RESPONSE>`, 1), rows: 1},
	} {
		t.Run(name, func(t *testing.T) {
			if c.from == nil {
				c.from = ingest.VM
			}
			r, p, err := decodeOf(c.from, c.doc)
			if err != nil || p.Next != 0 || len(r.lines) != c.rows || !strings.Contains(p.Warning, c.text) {
				t.Errorf("got %v, next %d, %d rows, warning %q; want a last page of %d rows, warning %q\n%s", err, p.Next, len(r.lines), p.Warning, c.rows, c.text, c.doc)
			}
		})
	}

	for name, c := range map[string]struct {
		inner string
		ids   uint64
	}{
		"end of service":       {`<ID_SET><ID>5</ID></ID_SET><WARNING><CODE>2100</CODE><TEXT>Version 4.0: End of Service</TEXT><URL>https://docs.qualys.com/</URL></WARNING>`, 1},
		"comments":             {"<!-- keep-alive --><ID_SET>\n<!-- keep-alive --><ID>5</ID><?x?>\n<ID_RANGE><![CDATA[ 7 - 9 ]]></ID_RANGE></ID_SET>", 4},
		"two sets":             {`<ID_SET><ID>5</ID></ID_SET><ID_SET><ID>6</ID></ID_SET>`, 2},
		"small letters":        {`<id_set><id>5</id><id_range>7-9</id_range></id_set>`, 4},
		"none":                 {"\r\n", 0},
		"end over two lines":   {"<ID_SET><ID>5</ID></ID_SET><WARNING><TEXT>End\n of Service</TEXT></WARNING>", 1},
		"twice and unsorted":   {`<ID_SET><ID>9</ID><ID>5</ID><ID_RANGE>8-9</ID_RANGE></ID_SET>`, 3},
		"leading zeros, blank": {`<ID_SET><ID> 0005</ID></ID_SET>`, 1},
	} {
		t.Run("ids/"+name, func(t *testing.T) {
			for root, doc := range map[string]string{"KNOWLEDGE_BASE_VULN_LIST_OUTPUT": idSet(c.inner), "HOST_LIST_OUTPUT": hostIDs(c.inner)} {
				if n, _, err := qualys.ReadIDSet(strings.NewReader(doc), root, time.Time{}); err != nil || n != c.ids {
					t.Errorf("got %d ids, %v; want %d\n%s", n, err, c.ids, doc)
				}
			}
		})
	}
}
