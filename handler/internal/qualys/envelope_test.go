package qualys_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
)

// A document with the right root that is not the answer asked for must not count as
// one: a window that ended on it would lose what it did not bring.
func TestNotTheAnswer(t *testing.T) {
	const host = "<HOST><ID>1</ID><DETECTION_LIST><DETECTION><QID>5</QID></DETECTION></DETECTION_LIST></HOST>"
	list := func(inner string) string { return page("<HOST_LIST>" + inner + "</HOST_LIST>") }
	for name, c := range map[string]struct {
		doc, want string
		kind      qualys.Kind
	}{
		"root alone":              {"<HOST_LIST_VM_DETECTION_OUTPUT/>", "no RESPONSE", qualys.Broken},
		"no time":                 {"<HOST_LIST_VM_DETECTION_OUTPUT><RESPONSE/></HOST_LIST_VM_DETECTION_OUTPUT>", "no DATETIME", qualys.Broken},
		"list without time":       {"<HOST_LIST_VM_DETECTION_OUTPUT><RESPONSE><HOST_LIST>" + host + "</HOST_LIST></RESPONSE></HOST_LIST_VM_DETECTION_OUTPUT>", "no DATETIME", qualys.Broken},
		"no list, odd time":       {strings.Replace(page(""), "2026", "", 1), "DATETIME is", qualys.Broken},
		"two times":               {page("<DATETIME>2026-11-01T00:00:00Z</DATETIME>"), "second DATETIME", qualys.Broken},
		"error in RESPONSE":       {page("<ERROR>internal error</ERROR>"), `"RESPONSE/ERROR" in place of the list: internal error`, qualys.Broken},
		"server's code":           {page("<CODE>999</CODE><TEXT>Internal error. Please try later.</TEXT>"), "code 999", qualys.Unavailable},
		"limit's code":            {page("<CODE>1965</CODE><TEXT>again for another 2 minutes</TEXT>"), "code 1965", qualys.Limited},
		"unknown code":            {page("<CODE>4711</CODE><TEXT>why</TEXT>"), "code 4711", qualys.Refused},
		"error behind the list":   {page("<HOST_LIST>" + host + "</HOST_LIST><ERROR><CODE>999</CODE></ERROR>"), "code 999", qualys.Unavailable},
		"list renamed":            {page("<HOSTS>" + host + "</HOSTS>"), `"RESPONSE/HOSTS" is not a part of it`, qualys.Broken},
		"list in the root":        {strings.Replace(page(""), "<RESPONSE>", "<HOST_LIST>"+host+"</HOST_LIST><RESPONSE>", 1), `"HOST_LIST" is not`, qualys.Broken},
		"list in the request":     {strings.Replace(page(""), "<RESPONSE>", "<REQUEST><HOST_LIST>"+host+"</HOST_LIST></REQUEST><RESPONSE>", 1), `"REQUEST/HOST_LIST"`, qualys.Broken},
		"host beside the list":    {page("<HOST_LIST/>" + host), `"RESPONSE/HOST" is not`, qualys.Broken},
		"hosts renamed":           {list("<ASSET><ID>1</ID></ASSET>"), `"RESPONSE/HOST_LIST/ASSET" is not`, qualys.Broken},
		"text in the list":        {list("no hosts could be read"), "text between its elements", qualys.Broken},
		"text in the root":        {strings.Replace(page(""), "<RESPONSE>", "busy<RESPONSE>", 1), "text between its elements", qualys.Broken},
		"attribute of RESPONSE":   {strings.Replace(page(""), "<RESPONSE>", `<RESPONSE status="partial">`, 1), "attributes", qualys.Broken},
		"attribute of the list":   {page(`<HOST_LIST truncated="1">` + host + "</HOST_LIST>"), "attributes", qualys.Broken},
		"second RESPONSE":         {strings.Replace(list(host), "</RESPONSE>", "</RESPONSE><RESPONSE><DATETIME>2026-11-01T00:00:00Z</DATETIME></RESPONSE>", 1), "second RESPONSE", qualys.Broken},
		"warning's other element": {page("<WARNING><MESSAGE>cut</MESSAGE></WARNING>"), `"RESPONSE/WARNING/MESSAGE"`, qualys.Broken},
		"text in the warning":     {page("<WARNING>1980</WARNING>"), "text between", qualys.Broken},
		"a link, and more":        {page("<WARNING><URL>?id_min=99</URL></WARNING><WARNING><CODE>1980</CODE></WARNING>"), "where", qualys.Broken},
		"more, but nowhere":       {page("<WARNING><CODE>1980</CODE></WARNING>"), "where", qualys.Broken},
		"unknown warning alone":   {page("<WARNING><TEXT>results withheld</TEXT></WARNING>"), "something has failed: results withheld", qualys.Broken},
		"detections renamed":      {list("<HOST><ID>1</ID><DETECTIONS><DETECTION><QID>5</QID></DETECTION></DETECTIONS></HOST>"), "a HOST holds DETECTION", qualys.Broken},
		"findings in the list":    {list("<HOST><ID>1</ID><DETECTION_LIST><FINDING><QID>5</QID></FINDING></DETECTION_LIST></HOST>"), `"HOST/DETECTION_LIST/FINDING"`, qualys.Broken},
		"one of two renamed":      {list("<HOST><ID>1</ID><DETECTION_LIST><DETECTION><QID>5</QID></DETECTION><FINDING><QID>6</QID></FINDING></DETECTION_LIST></HOST>"), `"HOST/DETECTION_LIST/FINDING" stands among`, qualys.Broken},
		"error in a host":         {list("<HOST><ID>1</ID><ERROR>no detections could be read</ERROR></HOST>"), "a HOST holds ERROR: no detections could be read", qualys.Broken},
		"code in a list":          {list("<HOST><ID>1</ID><DETECTION_LIST><DETECTION><QID>5</QID></DETECTION><CODE>1960</CODE></DETECTION_LIST></HOST>"), "a HOST holds CODE", qualys.Broken},
	} {
		t.Run(name, func(t *testing.T) {
			_, p, err := decode(t, c.doc)
			var e *qualys.Error
			if !errors.As(err, &e) || !strings.Contains(err.Error(), c.want) || e.Kind != c.kind {
				t.Errorf("page = %+v, error = %v (kind %d), want %q of kind %d", p, err, kindOf(e), c.want, c.kind)
			}
		})
	}
}

func kindOf(e *qualys.Error) qualys.Kind {
	if e == nil {
		return 0
	}
	return e.Kind
}

// What a newer API adds beside what is known goes to AdditionalFields.
func TestNewElementsPass(t *testing.T) {
	for name, doc := range map[string]string{
		"leaf of a host":            "<HOST><ID>1</ID><NEW>x</NEW><DETECTION_LIST><DETECTION><QID>5</QID></DETECTION></DETECTION_LIST></HOST>",
		"group of a host":           "<HOST><ID>1</ID><NEW><A>x</A></NEW><DETECTION_LIST><DETECTION><QID>5</QID></DETECTION></DETECTION_LIST></HOST>",
		"leaf of a finding":         "<HOST><ID>1</ID><DETECTION_LIST><DETECTION><QID>5</QID><NEW>x</NEW></DETECTION></DETECTION_LIST></HOST>",
		"group of a finding":        "<HOST><ID>1</ID><DETECTION_LIST><DETECTION><QID>5</QID><NEW><ERROR>x</ERROR></NEW></DETECTION></DETECTION_LIST></HOST>",
		"attribute of a known part": `<HOST x="x"><ID>1</ID><DETECTION_LIST><DETECTION><QID>5</QID></DETECTION></DETECTION_LIST></HOST>`,
	} {
		t.Run(name, func(t *testing.T) {
			r, _, err := decode(t, hosts(doc))
			if err != nil || len(r.lines) != 1 || !strings.Contains(r.lines[0], `"x"}`) {
				t.Errorf("rows = %s, error = %v, want one row with x among AdditionalFields", r.lines, err)
			}
		})
	}
}

// The KnowledgeBase is read to the same rule, its entries and its lists of ids.
func TestNotTheKnowledgeBase(t *testing.T) {
	for name, inner := range map[string]string{
		"code":         "<CODE>999</CODE><TEXT>Internal error</TEXT>",
		"list renamed": "<VULNS><VULN><QID>1</QID></VULN></VULNS>",
		"text":         "busy",
		"warning":      "<WARNING><TEXT>results withheld</TEXT></WARNING>",
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := decodeOf(ingest.KB, idSet(inner)); err == nil {
				t.Error("entries: no error")
			}
			if _, _, err := qualys.ReadIDSet(strings.NewReader(idSet(inner)), ingest.KB.Schema.Root, time.Time{}); err == nil {
				t.Error("ids: no error")
			}
		})
	}
	if _, _, err := decodeOf(ingest.KB, idSet("<ID_SET><ID>1</ID></ID_SET>")); err == nil {
		t.Error("ids in place of entries: no error")
	}
}
