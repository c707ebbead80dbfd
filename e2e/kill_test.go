//go:build linux

package e2e

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"qualys-sentinel/handler/simulation"
)

// DefaultKills is how often TestKills kills: they take half a minute. KILLS says
// otherwise; .ci/run asks for 200, make soak for 2,000.
const DefaultKills = 25

// The program is killed with SIGKILL at random moments and started again, over
// many windows of both datasets: nothing is missing in the end, and what came
// twice was in flight.
func TestKills(t *testing.T) {
	t.Parallel()
	kills := DefaultKills
	if text := os.Getenv("KILLS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		kills = n
	}
	if testing.Short() {
		kills = 20
	}
	s := startServices(t, 300, 45)
	s.setKnowledge(&simulation.Knowledge{Seed: 5, Size: 3000})
	delete(s.environ, "AzureWebJobsStorage") // a lease blocks for a minute after a kill; a lock does not
	s.environ["stateFolder"] = filepath.Join(t.TempDir(), "state")
	s.environ["kbPageSize"] = "700"
	program := program(t)
	random := rand.New(rand.NewPCG(1, uint64(kills)))
	log, err := os.Create(filepath.Join(outputDir(t), "kills.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()

	killed, windows := 0, 0
	// live runs a dataset once, and kills it after a while unless that is zero.
	// It reports whether the window was closed.
	live := func(dataset string, after time.Duration) bool {
		t.Helper()
		cmd := exec.Command(program, "sync", dataset)
		cmd.Env = os.Environ()
		for name, value := range s.environ {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if after > 0 {
			timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() }) // it may have ended
			defer timer.Stop()
		}
		err := cmd.Wait()
		var exit *exec.ExitError
		switch {
		case err == nil:
			windows++
			return true
		case errors.As(err, &exit) && exit.ExitCode() == -1:
			killed++
			return false
		}
		t.Fatalf("the program ended by itself: %v; see %s", err, log.Name())
		return false
	}
	longest := 350 * time.Millisecond
	for killed < kills {
		dataset := []string{"vm", "kb"}[random.IntN(2)]
		for lives := 0; killed < kills; lives++ {
			// Ever longer, so that a window is closed at last.
			if live(dataset, 10*time.Millisecond+time.Duration(random.Int64N(int64(longest)+int64(lives)*int64(20*time.Millisecond)))) {
				break
			}
		}
		now := s.clock()
		for range 40 {
			s.sub.Knowledge.Edit(simulation.Edit{Index: random.IntN(3000), At: now, Visible: now.Add(time.Duration(random.IntN(3)) * time.Hour)})
		}
		s.advance(time.Duration(1+random.IntN(5)) * time.Hour)
	}
	// Twice: the first may close a window that was begun before the clock moved.
	for _, dataset := range []string{"vm", "kb", "vm", "kb"} {
		if !live(dataset, 0) {
			t.Errorf("%s: the last run did not complete", dataset)
		}
	}
	arrived := s.azure.Arrived()
	dup, total, _ := s.duplicates(time.Time{}, s.clock())
	rows, twice := s.entries()
	missing := s.missingEntries(s.clock())
	if missing != 0 { // those of detections are errors already
		t.Errorf("%d KnowledgeBase entries are missing", missing)
	}
	all := 0
	s.mu.Lock()
	// Not so for entries: an edit that shows late may change one without changing
	// its date, which is a part of the key. The newest counts there.
	for key, list := range s.rows {
		all += len(list) - 1
		for _, row := range list[1:] {
			if a, b := lasting(t, list[0]), lasting(t, row); a != b {
				t.Errorf("row %s came twice, and not alike:\n%s\n%s", key, a, b)
			}
		}
	}
	s.mu.Unlock()
	perCall := int(arrived.Rows)/int(arrived.Calls) + 1
	if most := killed * (simulation.InFlight + 1) * perCall; all+twice > most {
		t.Errorf("%d and %d rows twice, at most %d were in flight", all, twice, most)
	}
	t.Logf("%d kills, %d windows, %d detections now, %d rows of entries; %d detections of now, %d of all times, %d entries came twice: %.1f rows a kill, %d rows a call",
		killed, windows, total, rows, dup, all, twice, float64(all+twice)/float64(max(killed, 1)), perCall)
}

// lasting is a row without what every sending makes anew. Of rows that are alike
// in it and in their key, a query that takes one of each key loses nothing.
func lasting(t *testing.T, row json.RawMessage) string {
	t.Helper()
	var members map[string]any
	if err := json.Unmarshal(row, &members); err != nil {
		t.Fatal(err)
	}
	delete(members, "TimeGenerated")
	delete(members, "RunId_s")
	text, err := json.Marshal(members)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
