package ingest_test

import (
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/simulator"
)

// wrongClock lets the answers of Qualys state a time that is ahead: in their
// documents, and if both is set in their Date headers. Findings are dated right.
func (w *world) wrongClock() (set func(ahead time.Duration, both bool)) {
	faulty := &simulator.Faulty{Next: w.qualys}
	server := httptest.NewServer(faulty)
	w.t.Cleanup(server.Close)
	w.server = server
	return func(ahead time.Duration, both bool) {
		faulty.Heal()
		if ahead != 0 {
			faulty.Arm(simulator.Spoiling{Fault: simulator.Fault{Spoil: simulator.ClockAhead(ahead, both)}})
		}
	}
}

// Whatever clock is wrong, how far, and for how many windows: when all go well
// again, nothing is missing.
func TestClocksThatAreWrong(t *testing.T) {
	for name, c := range map[string]struct {
		ahead   time.Duration // of Qualys' clock
		both    bool
		here    time.Duration // of this machine's
		windows int           // by a wrong clock
		step    time.Duration
	}{
		"Qualys' 3 h ahead, once":         {ahead: 3 * time.Hour, both: true, windows: 1, step: time.Hour},
		"Qualys' 3 h ahead, twice":        {ahead: 3 * time.Hour, both: true, windows: 2, step: 2 * time.Hour},
		"Qualys' 3 h ahead, for long":     {ahead: 3 * time.Hour, both: true, windows: 24, step: 20 * time.Minute},
		"DATETIME 50 min ahead, for long": {ahead: 50 * time.Minute, windows: 24, step: 20 * time.Minute},
		"Qualys' 3 h behind, once":        {ahead: -3 * time.Hour, both: true, windows: 1, step: time.Hour},
		"Qualys' 3 h behind, for long":    {ahead: -3 * time.Hour, both: true, windows: 24, step: 20 * time.Minute},
		"Qualys' 9 min behind":            {ahead: -9 * time.Minute, both: true, windows: 3, step: time.Hour},
		"this machine's two days ahead":   {here: 48 * time.Hour, windows: 3, step: time.Hour},
		"this machine's two hours behind": {here: -2 * time.Hour, windows: 3, step: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 60, 3)
			theirs := w.clock.Now()
			w.qualys.Now = func() time.Time { return theirs }
			set := w.wrongClock()
			began := theirs
			w.mustComplete()
			move := func(d, here time.Duration) {
				theirs = theirs.Add(d)
				w.clock.advance(d + here)
			}
			set(c.ahead, c.both)
			move(0, c.here)
			for range c.windows {
				move(c.step, 0)
				w.mustComplete()
			}
			set(0, false)
			move(0, -c.here)
			for range 3 {
				move(c.step, 0)
				w.mustComplete()
			}
			missing, all := 0, 0
			w.qualys.Subscription.Expected(began, theirs, func(_ simulator.Host, d simulator.Detection) {
				all++
				if w.dest.keys[fmt.Sprintf("%d@%s", d.UniqueID, d.Processed.Format(time.RFC3339))] == 0 {
					missing++
				}
			})
			if missing > 0 || all < 20 {
				t.Errorf("%d of %d detections of after the first window are missing", missing, all)
			}
			if got := *w.checkpoint().Watermark; !got.Equal(theirs) {
				t.Errorf("the watermark is %s in the end, want %s", got, theirs)
			}
		})
	}
}

// A clock that is a day ahead of this machine's is not believed.
func TestClocksThatAreFarApart(t *testing.T) {
	w := newWorld(t, 20, 3)
	set := w.wrongClock()
	set(25*time.Hour, true)
	if _, err := w.do(); err == nil || !strings.Contains(err.Error(), "one of them is wrong") {
		t.Errorf("got %v", err)
	}
	set(0, false)
	w.mustComplete()
	w.wantEach(time.Time{})
}

// The very first window begins a while back from Qualys' now, whatever this
// machine takes for now.
func TestLookbackByAWrongClock(t *testing.T) {
	w := newWorld(t, 60, 6)
	w.lookback = 30 * 24 * time.Hour
	theirs := w.clock.Now()
	w.qualys.Now = func() time.Time { return theirs }
	w.clock.advance(40 * 24 * time.Hour)
	if report := w.mustComplete(); report.Parents == 0 || !report.Until.Equal(theirs) {
		t.Errorf("%d hosts until %s", report.Parents, report.Until)
	}
	w.clock.advance(-40 * 24 * time.Hour)
	w.mustComplete()
	if n := w.lost(); n > 0 {
		t.Errorf("%d are missing", n)
	}
}

// The window is never shorter than its overlap by a clock that went back a bit.
func TestClockThatGoesBackABit(t *testing.T) {
	w := newWorld(t, 20, 3)
	theirs := 9 * time.Minute
	w.qualys.Now = func() time.Time { return w.clock.Now().Add(theirs) }
	w.clock.advance(time.Hour) // else this machine's bounds the window
	w.mustComplete()
	end := *w.checkpoint().Watermark
	theirs = 0
	w.clock.advance(time.Hour)
	report := w.mustComplete()
	if reach := end.Sub(*report.Until); reach > -50*time.Minute {
		t.Errorf("until %s, after %s", report.Until, end)
	}
}

// An edit that would skip data, or begin anew without a word, is refused.
func TestEditedCheckpoints(t *testing.T) {
	for name, c := range map[string]struct{ old, edited, want string }{
		"a watermark in the future": {`"watermark": "2026-`, `"watermark": "2062-`, "is in the future"},
		"a misspelt member":         {`"watermark": `, `"watermrk": `, `unknown field "watermrk"`},
		"no dataset":                {`"dataset": "vm"`, `"dataset": ""`, `belongs to dataset ""`},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 30, 3)
			w.mustComplete()
			path := filepath.Join(w.state, "checkpoints", "default", "vm.json")
			doc, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			edited := strings.Replace(string(doc), c.old, c.edited, 1)
			if err := os.WriteFile(path, []byte(edited), 0o600); err != nil {
				t.Fatal(err)
			}
			w.clock.advance(30 * time.Hour)
			if report, err := w.do(); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "checkpoints/default/vm.json") {
				t.Errorf("%s: %v", report.Outcome, err)
			}
			if got, err := os.ReadFile(path); err != nil || !strings.Contains(string(got), c.edited) {
				t.Errorf("the checkpoint was written: %s, %v", got, err)
			}
			if err := os.WriteFile(path, doc, 0o600); err != nil {
				t.Fatal(err)
			}
			w.mustComplete()
			if n := w.lost(); n > 0 {
				t.Errorf("%d lost", n)
			}
		})
	}
}
