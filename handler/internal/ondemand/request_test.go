package ondemand

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/ingest"
)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// noColours is a check of filters.
func noColours(filter string) error {
	if strings.Contains(filter, "colour") {
		return errors.New("parameter \"colour\" is unknown\nand red is no colour")
	}
	return nil
}

func TestParse(t *testing.T) {
	since := time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		body   string
		want   Window
		faults []string // parts of them, in order
	}{
		"nothing":              {"", Window{}, nil},
		"blanks":               {" \n", Window{}, nil},
		"an empty object":      {"{}", Window{}, nil},
		"not full":             {`{"full":false}`, Window{}, nil},
		"full":                 {`{"full":true}`, Window{Full: true}, nil},
		"a day":                {`{"since":"2026-10-01"}`, Window{Since: &since}, nil},
		"a time":               {`{"since":"2026-10-01T02:00:00.7+02:00"}`, Window{Since: &since}, nil},
		"hosts":                {`{"hostIds":[7,"5",7]}`, Window{HostIDs: []uint64{5, 7}}, nil},
		"hosts, with a filter": {`{"hostIds":[7],"filterParameters":"&severities=5"}`, Window{HostIDs: []uint64{7}, FilterParameters: "&severities=5"}, nil},
		"hosts, since":         {`{"hostIds":[7],"since":"2026-10-01"}`, Window{Since: &since, HostIDs: []uint64{7}}, nil},

		"a list":               {"[]", Window{}, []string{"no JSON object"}},
		"a word":               {"full", Window{}, []string{"no JSON object"}},
		"cut":                  {`{"full":true`, Window{}, []string{"no JSON object"}},
		"twice":                {`{"full":true,"full":false}`, Window{}, []string{`full: it is there twice`}},
		"two objects":          {`{}{}`, Window{}, []string{"something follows"}},
		"all wrong at once":    {`{"since":5,"full":"yes","filterParameters":7,"hostIds":{},"Full":true}`, Window{}, []string{"since: it is no text", "full: it must be", "filterParameters: it must be", "hostIds: it must be", "Full: there is no such member"}},
		"a null":               {`{"full":null,"hostIds":null}`, Window{}, []string{"full:", "hostIds:"}},
		"the future":           {`{"since":"2026-11-01T12:00:01Z"}`, Window{}, []string{"in the future"}},
		"too early":            {`{"since":"1998-01-01"}`, Window{}, []string{"ask with full"}},
		"no day":               {`{"since":"2026-02-30"}`, Window{}, []string{"is no time"}},
		"since and full":       {`{"since":"2026-10-01","full":true}`, Window{}, []string{"leave one of the two out"}},
		"a filter alone":       {`{"filterParameters":"&severities=5"}`, Window{}, []string{"needs since, full or hostIds"}},
		"a filter that is bad": {`{"full":true,"filterParameters":"&colour=1"}`, Window{}, []string{"colour", "and red"}},
		"an empty filter":      {`{"full":true,"filterParameters":" "}`, Window{}, []string{"filterParameters: it must be"}},
		"hosts twice":          {`{"hostIds":[1],"filterParameters":"&ids=1"}`, Window{}, []string{"names ids as well"}},
		"no hosts":             {`{"hostIds":[]}`, Window{}, []string{"it holds 0 ids"}},
		"too many hosts":       {`{"hostIds":[` + strings.TrimSuffix(strings.Repeat("1,", maxHosts+1), ",") + `]}`, Window{}, []string{"1 to 1000"}},
		"no host":              {`{"hostIds":[1,-2]}`, Window{}, []string{"number 2 of the list, -2"}},
		"a fraction":           {`{"hostIds":[1.5]}`, Window{}, []string{"number 1 of the list, 1.5"}},
		"markup":               {`{"<img src=x onerror=alert(1)>":1}`, Window{}, []string{"there is no such member"}},
		"too many members":     {`{"a1":1,"a2":1,"a3":1,"a4":1,"a5":1,"a6":1,"a7":1,"a8":1,"a9":1,"b1":1,"b2":1,"b3":1,"b4":1,"b5":1,"b6":1,"b7":1,"b8":1,"b9":1,"c1":1,"c2":1,"c3":1}`, Window{}, []string{"more than 20"}},
		"too long":             {strings.Repeat(" ", maxBody+1), Window{}, []string{"at most 65536"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Parse([]byte(c.body), now, noColours)
			var invalid *InvalidError
			if errors.As(err, &invalid) != (c.faults != nil) || invalid == nil && (err != nil || !got.Equal(c.want)) {
				t.Fatalf("%+v, %v; want %+v", got, err, c.want)
			}
			if invalid == nil {
				return
			}
			if len(invalid.Faults) != len(c.faults) {
				t.Fatalf("%q; want %q", invalid.Faults, c.faults)
			}
			for i, want := range c.faults {
				if !strings.Contains(invalid.Faults[i], want) {
					t.Errorf("%q; want %q", invalid.Faults[i], want)
				}
			}
		})
	}
}

func TestFits(t *testing.T) {
	all := Window{HostIDs: []uint64{1}, FilterParameters: "&a=b"}
	var invalid *InvalidError
	if err := all.Fits([]*ingest.Dataset{ingest.VM}); err != nil {
		t.Error(err)
	}
	if err := all.Fits(ingest.Datasets()); !errors.As(err, &invalid) || len(invalid.Faults) != 2 {
		t.Error(err)
	}
	if err := (Window{Full: true}).Fits(ingest.Datasets()); err != nil {
		t.Error(err)
	}
}

// What is accepted is sound, whatever the text; what is not names a fault.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{"", "{}", `{"since":"2026-10-01","hostIds":[1,"2"],"filterParameters":"&a=b"}`, `{"full":true,"x":[]}`, `{"since":"2026-10-01T00:00:00+25:00"}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		w, err := Parse(body, now, noColours)
		var invalid *InvalidError
		if errors.As(err, &invalid) {
			for _, fault := range invalid.Faults {
				if fault == "" || len(fault) > 1000 {
					t.Fatalf("fault %q", fault)
				}
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if w.Since != nil && (w.Since.After(now) || w.Full) || len(w.HostIDs) > maxHosts || !slices.IsSorted(w.HostIDs) || slices.Contains(w.HostIDs, 0) || w.Own() && w.FilterParameters != "" {
			t.Fatalf("%+v", w)
		}
		// It means the same when it comes back.
		doc, err := json.Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := Parse(doc, now, noColours); err != nil || !again.Equal(w) {
			t.Fatalf("%s: %+v, %v; it was %+v", doc, again, err, w)
		}
	})
}

func ExampleWindow_Own() {
	fmt.Println(Window{}.Own(), Window{Full: true}.Own())
	// Output: true false
}
