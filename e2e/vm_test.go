//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"qualys-sentinel/e2e/azurite"
	"qualys-sentinel/e2e/canary"
	"qualys-sentinel/handler/simulation"
)

// The size that the tests of the main job work on.
const (
	hosts      = 520
	detections = 45
)

// windowAfter waits for a finished window that ends after a time.
func windowAfter(t *testing.T, s *services, h *functionsHost, dataset string, after time.Time) *simulation.Checkpoint {
	t.Helper()
	var cp *simulation.Checkpoint
	azurite.Eventually(t, 5*time.Minute, "the watermark moves", func() error {
		if cp = s.checkpoint(dataset); cp == nil || cp.Watermark == nil || !cp.Watermark.After(after) || cp.Window != nil {
			return fmt.Errorf("checkpoint %+v\n%s", cp, h.output())
		}
		return nil
	})
	return cp
}

// carryThrough fires the timer of a function until the window of its dataset has ended, and
// calls seen with each checkpoint on the way.
func carryThrough(t *testing.T, s *services, h *functionsHost, function, dataset string, seen func(*simulation.Checkpoint)) *simulation.Checkpoint {
	t.Helper()
	var cp *simulation.Checkpoint
	azurite.Eventually(t, 5*time.Minute, "the window ends", func() error {
		if cp = s.checkpoint(dataset); cp != nil {
			if seen(cp); cp.Watermark != nil && cp.Window == nil {
				return nil
			}
		}
		if err := h.trigger(function); err != nil {
			return err
		}
		<-time.After(3 * time.Second)
		return fmt.Errorf("checkpoint %+v\n%s", cp, h.output())
	})
	return cp
}

// The timer fires; every detection arrives once; the next tick asks only for
// the new window. Through both ways into Log Analytics.
func TestTimer(t *testing.T) {
	t.Parallel() // it mostly waits
	for name, change := range map[string]map[string]string{
		"logs ingestion": nil,
		"data collector": {"logAnalyticsApi": "data-collector", "dcrImmutableId": "", "workspaceID": "11111111-1111-1111-1111-111111111111", "workspaceKey": canary.WorkspaceKeyText()},
	} {
		t.Run(name, func(t *testing.T) {
			s := startServices(t, hosts, detections)
			for k, v := range change {
				s.environ[k] = v
			}
			s.environ["vmSchedule"] = "*/5 * * * * *"
			h := startHost(t, s)
			first := windowAfter(t, s, h, "vm", time.Time{})
			now := *first.Watermark
			dup, total, long := s.duplicates(time.Time{}, now)
			if dup != 0 {
				t.Errorf("%d rows arrived twice", dup)
			}
			if calls := s.qualys.Calls(); total < 20_000 || long == 0 || len(calls) < 5 || calls[0].Get("id_min") != "" || calls[4].Get("id_min") == "" {
				t.Errorf("too small a test: %d detections, %d of over 64 KB, %d calls", total, long, len(calls))
			}
			arrived := s.azure.Arrived()
			if len(arrived.Dropped) != 0 || arrived.Truncated != 0 {
				t.Errorf("the service would have dropped or cut: %+v", arrived)
			}
			t.Logf("%d detections in %d calls, %d of them over 64 KB", total, arrived.Calls, long)

			// Two hosts are scanned again.
			scanned := now.Add(30 * time.Second)
			s.sub.Rescan(7, scanned)
			s.sub.Rescan(300, scanned)
			calls := len(s.qualys.Calls())
			s.advance(time.Minute)
			second := windowAfter(t, s, h, "vm", scanned)
			if dup, _, _ := s.duplicates(scanned.Add(-time.Second), *second.Watermark); dup != 0 {
				t.Errorf("%d new rows arrived twice", dup)
			}
			for _, c := range s.qualys.Calls()[calls:] {
				after, err := time.Parse(time.RFC3339, c.Get("vm_processed_after"))
				if err != nil || after.Before(now.Add(-simulation.Overlap)) || c.Has("id_min") {
					t.Errorf("a later tick asks for %v: not only the new window", c)
				}
			}
			if all, _, _ := s.duplicates(time.Time{}, *second.Watermark); all != 0 {
				t.Errorf("%d rows arrived twice in all", all)
			}
			s.wantHealth(now, total)
			if out := h.output(); !strings.Contains(out, `"message":"run ended"`) || !strings.Contains(out, `"dataset":"vm"`) {
				t.Errorf("the log lacks the run's end:\n%s", out)
			}
		})
	}
}

// The handler is killed in the middle of a page; the next tick goes on.
func TestKilledInTheMiddleOfAPage(t *testing.T) {
	t.Parallel()
	s := startServices(t, hosts, detections)
	s.environ["filterParameters"] = "&truncation_limit=1000" // one page
	var h *functionsHost
	var killed atomic.Int64
	s.beforeIngest = func(n int) {
		if n != 9 || h == nil {
			return
		}
		pid, err := h.handlerPID()
		if err == nil {
			err = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err != nil {
			t.Error(err)
		}
		killed.Add(1)
	}
	h = startHost(t, s)
	var cursors []uint64
	// A killed run's lease frees itself within a minute.
	cp := carryThrough(t, s, h, "QualysVM", "vm", func(cp *simulation.Checkpoint) {
		if cp.Window != nil {
			cursors = append(cursors, cp.Window.NextID)
		}
	})
	dup, total, _ := s.duplicates(time.Time{}, *cp.Watermark)
	arrived := s.azure.Arrived()
	perCall := int(arrived.Rows)/int(arrived.Calls) + 1
	// In flight: the batches of all slots, and the one that the kill hit.
	most := int(killed.Load()) * (simulation.InFlight + 1) * perCall * 11 / 10
	if killed.Load() != 1 || dup > most {
		t.Errorf("%d kills; %d rows twice, at most %d were in flight", killed.Load(), dup, most)
	}
	if len(cursors) == 0 || cursors[len(cursors)-1] == 0 {
		t.Errorf("no cursor inside the page was seen: %v", cursors)
	}
	t.Logf("%d detections, %d kills, %d rows twice, about %d rows a call", total, killed.Load(), dup, perCall)
}

// Wrong settings fail the invocation, visibly and all at once, and the host
// stays up.
func TestWrongSettings(t *testing.T) {
	t.Parallel()
	s := startServices(t, 2, 2)
	s.environ["uri"] = "https://qualysguard.qg2.apps.qualys.com"
	s.environ["runBudget"] = "45m"
	h := startHost(t, s)
	if err := h.trigger("QualysVM"); err != nil {
		t.Fatal(err)
	}
	azurite.Eventually(t, 30*time.Second, "the fault is told", func() error {
		out := h.output()
		for _, want := range []string{"2 settings are wrong", "use https://qualysapi.qg2.apps.qualys.com", "runBudget", "Failed"} {
			if !strings.Contains(out, want) {
				return fmt.Errorf("no %q in:\n%s", want, out)
			}
		}
		return nil
	})
	if len(s.qualys.Calls()) != 0 {
		t.Error("Qualys was asked all the same")
	}
}

// A rotated password is read again once, on 401, in the same run.
func TestRotatedPassword(t *testing.T) {
	t.Parallel()
	s := startServices(t, 3, 3)
	s.azure.SetSecret("qualys-password", canary.OldPassword)
	s.qualys.Password = canary.OldPassword
	h := startHost(t, s)
	if err := h.trigger("QualysVM"); err != nil {
		t.Fatal(err)
	}
	first := windowAfter(t, s, h, "vm", time.Time{})
	s.qualys.Password = canary.NewPassword
	s.azure.SetSecret("qualys-password", canary.NewPassword)
	s.advance(time.Minute)
	if err := h.trigger("QualysVM"); err != nil {
		t.Fatal(err)
	}
	windowAfter(t, s, h, "vm", *first.Watermark)
}

// wantHealth looks for the health row of the first window.
func (s *services) wantHealth(until time.Time, accepted int) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, raw := range s.health {
		var row struct {
			Dataset_s, Outcome_s, Level_s string
			Accepted_d, Decoded_d         float64
			WindowUntil_t                 string
		}
		if err := json.Unmarshal(raw, &row); err != nil {
			s.t.Fatal(err)
		}
		if row.WindowUntil_t != until.Format(time.RFC3339) {
			continue
		}
		if row.Dataset_s != "vm" || row.Outcome_s != "complete" || row.Level_s != "info" || row.Accepted_d != float64(accepted) || row.Decoded_d != float64(accepted) {
			s.t.Errorf("health row %s", raw)
		}
		return
	}
	s.t.Errorf("no health row of the window until %s: %s", until, s.health)
}
