package ingest_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/simulator"
)

// Qualys' clock is ahead for a while: the watermark is, too, and what is dated
// by the right clock afterwards would be behind it. Or this machine's clock
// jumps, which must cost nothing but a longer window.
func TestClocksThatJump(t *testing.T) {
	ahead := slices.IndexFunc(simulator.Faults(), func(f simulator.Fault) bool { return f.Name == "clock three hours ahead" })
	for name, c := range map[string]struct {
		wrong bool          // Qualys' clock, in the first window
		after time.Duration // of the healing
		here  time.Duration // this machine's clock jumps
		reach time.Duration // of the second window, behind the first one's end by the right clock
	}{
		"both go well":                    {after: 2 * time.Hour, reach: 10 * time.Minute},
		"Qualys' was ahead, seen at once": {wrong: true, after: 2 * time.Hour, reach: 10 * time.Minute},
		"Qualys' was ahead, seen late":    {wrong: true, after: 30 * time.Hour, reach: 10 * time.Minute},
		"this machine's jumps ahead":      {after: 2 * time.Hour, here: 48 * time.Hour, reach: 48*time.Hour + 10*time.Minute},
		"this machine's jumps back":       {after: 2 * time.Hour, here: -48 * time.Hour, reach: 10 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 60, 6)
			faulty := &simulator.Faulty{Next: w.qualys, When: func(int, *http.Request) bool { return true }}
			if c.wrong {
				faulty.Fault = &simulator.Faults()[ahead]
			}
			var asked []url.Values
			server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				asked = append(asked, r.URL.Query())
				faulty.ServeHTTP(rw, r)
			}))
			defer server.Close()
			w.server = server
			began := w.clock.Now()
			w.mustComplete()
			want := began
			if c.wrong {
				want = began.Add(3 * time.Hour)
			}
			if got := *w.checkpoint().Watermark; !got.Equal(want) {
				t.Fatalf("the watermark is %s, want %s", got, want)
			}

			faulty.Heal()
			theirs := began.Add(c.after)
			w.qualys.Now = func() time.Time { return theirs }
			w.clock.advance(c.after + c.here)
			asked = nil
			w.mustComplete()
			last, err := time.Parse(time.RFC3339, asked[len(asked)-1].Get("vm_processed_after"))
			if err != nil {
				t.Fatal(err)
			}
			if reach := began.Sub(last); reach != c.reach {
				t.Errorf("the window reaches back %s, want %s", reach, c.reach)
			}
			missing, all := 0, 0
			w.qualys.Subscription.Expected(began, theirs, func(_ simulator.Host, d simulator.Detection) {
				all++
				if w.dest.keys[fmt.Sprintf("%d@%s", d.UniqueID, d.Processed.Format(time.RFC3339))] == 0 {
					missing++
				}
			})
			if missing > 0 || all == 0 {
				t.Errorf("%d of %d detections of after the first window are missing", missing, all)
			}
			if got := *w.checkpoint().Watermark; !got.Equal(theirs) {
				t.Errorf("the watermark is %s in the end, want %s", got, theirs)
			}
		})
	}
}
