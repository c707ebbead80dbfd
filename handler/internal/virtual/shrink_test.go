package virtual_test

import (
	"slices"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/virtual"
)

func has(s virtual.Story, kind string) bool {
	return slices.ContainsFunc(s.Acts, func(a virtual.Act) bool { return a.Kind == kind })
}

// A story that breaks a law by two of its acts, with three hosts, is shrunk to these.
func TestShrink(t *testing.T) {
	act := func(kind string) virtual.Act {
		return virtual.Act{Kind: kind, On: "detections", At: time.Hour, For: time.Hour, Share: 20}
	}
	s := virtual.Story{Hosts: 20, Detections: 6, QIDs: 12, Integrations: 2, Enrich: true, OneTick: true, Shows: time.Minute, Acts: []virtual.Act{
		act("no connection"), act("an answer drips"), act("the processes freeze"), act("an answer ends early"), act("hosts come twice"),
	}}
	plays := 0
	got := virtual.Shrink(s, 500, func(s virtual.Story) bool {
		plays++
		return s.Hosts >= 3 && s.OneTick && has(s, "an answer drips") && has(s, "hosts come twice")
	})
	if got.Hosts != 3 || got.Detections != 1 || got.QIDs != 1 || got.Integrations != 0 || got.Enrich || !got.OneTick || got.Shows != 0 || len(got.Acts) != 2 {
		t.Errorf("got, in %d plays,\n%s\nwant two acts and three hosts", plays, got)
	}
	for _, a := range got.Acts {
		if a.Share != 100 || a.For > time.Minute {
			t.Errorf("got %s; want it for all calls, and short", a)
		}
	}
	if len(s.Acts) != 5 || s.Acts[1].Share != 20 {
		t.Errorf("the story itself was changed: %s", s)
	}
	plays = 0
	virtual.Shrink(s, 7, func(virtual.Story) bool { plays++; return false })
	if plays != 7 {
		t.Errorf("played %d times; want 7", plays)
	}
}
