package qualys_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
)

func TestHostIDs(t *testing.T) {
	const head = `<HOST_LIST_OUTPUT><RESPONSE><DATETIME>2026-11-01T00:00:00Z</DATETIME>`
	const more = `<WARNING><CODE>1980</CODE><TEXT>1 record limit exceeded.</TEXT><URL>https://x.example/?id_min=9</URL></WARNING>`
	for name, c := range map[string]struct {
		answer string
		want   []uint64
		fails  bool
	}{
		"one of many": {head + `<ID_SET><ID>8</ID></ID_SET>` + more + `</RESPONSE></HOST_LIST_OUTPUT>`, []uint64{8}, false},
		"a range":     {head + `<ID_SET><ID_RANGE>8-11</ID_RANGE><ID>5</ID></ID_SET></RESPONSE></HOST_LIST_OUTPUT>`, []uint64{5, 8, 9}, false},
		"none":        {head + `</RESPONSE></HOST_LIST_OUTPUT>`, nil, false},
		"cut":         {head + `<ID_SET><ID>8</ID>`, nil, true},
		"refused":     {`<SIMPLE_RETURN><RESPONSE><CODE>1905</CODE><TEXT>bad</TEXT></RESPONSE></SIMPLE_RETURN>`, nil, true},
		"no id":       {head + `<ID_SET><ID>x</ID></ID_SET></RESPONSE></HOST_LIST_OUTPUT>`, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			var asked url.Values
			cl, _ := client(t, func(w http.ResponseWriter, r *http.Request) {
				asked = r.URL.Query()
				asked.Set("path", r.URL.Path)
				io.WriteString(w, c.answer)
			})
			var tally record.Tally
			d := qualys.NewDetections(cl, ingest.VM.Schema)
			d.Filter = url.Values{"severities": {"5"}, "ag_ids": {"3"}}
			ids, err := d.IDs(context.Background(), record.Query{After: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), From: 7, To: 99}, 3, tally.Add)
			if !slices.Equal(ids, c.want) || (err != nil) != c.fails || tally.Requests != 1 {
				t.Errorf("%d, %v, %+v", ids, err, tally)
			}
			if want := "action=list&ag_ids=3&details=None&id_max=99&id_min=7&path=%2Fapi%2F5.0%2Ffo%2Fasset%2Fhost%2F&truncation_limit=3&vm_processed_after=2026-11-01T00%3A00%3A00Z"; asked.Encode() != want {
				t.Errorf("asked %s", asked.Encode())
			}
		})
	}
}

func TestHeavy(t *testing.T) {
	for name, c := range map[string]struct {
		err  *qualys.Error
		want bool
	}{
		"broken":      {&qualys.Error{Kind: qualys.Broken}, true},
		"504":         {&qualys.Error{Kind: qualys.Unavailable, Status: 504}, true},
		"reset":       {&qualys.Error{Kind: qualys.Unavailable, Err: &net.OpError{Op: "read", Err: errors.New("reset")}}, true},
		"no server":   {&qualys.Error{Kind: qualys.Unreachable}, false},
		"bad proxy":   {&qualys.Error{Kind: qualys.BadProxy, Status: 407}, false},
		"maintenance": {&qualys.Error{Kind: qualys.Unavailable, Status: 503}, false},
		"1999":        {&qualys.Error{Kind: qualys.Unavailable, Status: 200, Code: "1999"}, false},
		"limit":       {&qualys.Error{Kind: qualys.Limited, Status: 409}, false},
		"login":       {&qualys.Error{Kind: qualys.BadLogin}, false},
	} {
		if got := c.err.Heavy(); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
