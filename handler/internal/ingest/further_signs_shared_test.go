package ingest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"qualys-sentinel/handler/internal/checkpoint/folder"
	"qualys-sentinel/handler/internal/ingest"
)

// With several destinations: the warning stands in front of the list, and the process is
// killed while the list is read.
func TestFurtherKillBehindASignOfSeveral(t *testing.T) {
	for name, sign := range map[string]string{"error": err999, "unknown": rebuilt} {
		for _, members := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s, %d members", name, members), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newVirtualWorld(t, 60, 8)
					w.page = 1000
					kill, revive := w.killable()
					w.changing(func(n int, doc string) string {
						if n > 1 {
							return doc
						}
						time.AfterFunc(30*time.Second, kill)
						return replaced("<HOST_LIST>", sign+"<HOST_LIST>")(withoutFirst(doc))
					})
					w.endsLate()
					dests := newDestinations(members, 8_000)
					w.together(context.Background(), dests, nil)
					time.Sleep(5 * time.Minute)
					revive()
					w.before = nil
					w.allCameTogether(dests, 12, time.Hour)
				})
			})
		}
	}
}

// One answer says in front of its list that it is not whole, and the destination takes a batch
// in half a minute: the run goes on when the page is well again.
func TestFurtherSlowDestinationBehindASign(t *testing.T) {
	for name, sign := range map[string]string{"none": "", "error": err999, "unknown": rebuilt} {
		for _, members := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s, %d members", name, members), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newVirtualWorld(t, 30, 6)
					w.page = 1000
					w.changing(func(n int, doc string) string {
						if n > 1 {
							return doc
						}
						return replaced("<HOST_LIST>", sign+"<HOST_LIST>")(doc)
					})
					dests := newDestinations(members, 8_000)
					reports := w.together(context.Background(), dests, func(i int, r *ingest.Run) {
						r.InFlight, r.Patience, r.Budget = 1, ingest.DefaultPatience, 25*time.Minute
						r.Destination = slowDest{dests[i], 10 * time.Second}
					})
					for i, r := range reports {
						if r.Outcome != ingest.Complete {
							t.Errorf("%d: %s: %s", i, r.Outcome, r.Reason)
						}
					}
				})
			})
		}
	}
}

// An answer leaves its first host out, and says so behind its list. The first run has left the
// page, as its destination is slow; the second hears of the sign, and cannot save.
func TestFurtherTheLastToHearFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVirtualWorld(t, 30, 6)
		w.page = 1000
		w.changing(func(n int, doc string) string {
			if n > 1 {
				return doc
			}
			return replaced("</RESPONSE>", err999+"</RESPONSE>")(withoutFirst(doc))
		})
		dests := newDestinations(2, 8_000)
		reports := w.together(context.Background(), dests, func(i int, r *ingest.Run) {
			r.InFlight, r.Patience, r.Budget = 1, ingest.DefaultPatience, 25*time.Minute
			if i == 0 {
				r.Destination = slowDest{dests[0], 20 * time.Second}
				return
			}
			r.Store = &faultStore{Store: folder.New(w.state), beforeSave: func(doc []byte) error {
				if strings.Contains(string(doc), `"trouble"`) {
					return errors.New("the storage fails")
				}
				return nil
			}}
		})
		lost := w.missing(dests[0])
		t.Logf("the second: %s %s; the first: %s %s, lost %d", reports[1].Outcome, reports[1].Reason, reports[0].Outcome, reports[0].Reason, lost)
		if reports[0].Outcome == ingest.Complete && lost > 0 {
			t.Errorf("complete, and %d rows are missing", lost)
		}
	})
}
