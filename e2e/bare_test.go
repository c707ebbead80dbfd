//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"qualys-sentinel/e2e/azurite"
	"qualys-sentinel/e2e/canary"
)

// bare is the handler as it is deployed, called as the Functions host does, but
// without the host: what is measured is its own.
type bare struct {
	t    testing.TB
	cmd  *exec.Cmd
	url  string
	log  string
	done bool
	// profile is the file that it writes a CPU profile to when it ends, by
	// HANDLER_PROFILE; empty: none.
	profile string
	// toFirstAnswer is the time from exec to the first answered request.
	toFirstAnswer time.Duration
}

// startBare starts the handler with the settings of the services.
func startBare(t testing.TB, s *services) *bare {
	t.Helper()
	s.azure.Keep = nil // millions of rows
	if s.environ["logAnalyticsApi"] == "data-collector" {
		s.environ["workspaceKey"] = canary.WorkspaceKeyText()
	}
	port := azurite.FreePort(t)
	h := &bare{t: t, url: "http://127.0.0.1:" + port + "/", log: filepath.Join(t.TempDir(), "handler.log")}
	h.cmd = exec.Command(filepath.Join(stage(t), "qualys-sentinel"))
	if h.profile = os.Getenv("HANDLER_PROFILE"); h.profile != "" {
		h.cmd = exec.Command(filepath.Join(t.TempDir(), "qualys-sentinel"))
		build := exec.Command("go", "build", "-tags", "profile", "-o", h.cmd.Path, "../handler")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
	}
	h.cmd.Env = append(os.Environ(), "FUNCTIONS_CUSTOMHANDLER_PORT="+port, "PROFILE="+h.profile)
	for k, v := range s.environ {
		h.cmd.Env = append(h.cmd.Env, k+"="+v)
	}
	log, err := os.Create(h.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	h.cmd.Stdout, h.cmd.Stderr = log, log
	began := time.Now()
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.stop)
	for {
		resp, err := http.Get(h.url)
		if err == nil {
			h.toFirstAnswer = time.Since(began)
			if err := resp.Body.Close(); err != nil {
				t.Fatal(err)
			}
			return h
		}
		if time.Since(began) > 10*time.Second {
			t.Fatalf("the handler does not listen: %v\n%s", err, h.output())
		}
		time.Sleep(time.Millisecond / 2)
	}
}

// call runs a function to its end.
func (h *bare) call(function string) {
	h.t.Helper()
	resp, err := http.Post(h.url+function, "application/json", strings.NewReader("{}"))
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		h.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		h.t.Fatalf("status %d\n%s", resp.StatusCode, h.output())
	}
}

// stop ends the handler.
func (h *bare) stop() {
	if h.done {
		return
	}
	h.done = true
	if h.profile != "" {
		h.cmd.Process.Signal(syscall.SIGUSR1)
	} else {
		h.cmd.Process.Signal(os.Interrupt)
	}
	h.cmd.Wait()
}

// cpu is the time that the handler has used on all cores.
func (h *bare) cpu() time.Duration {
	h.t.Helper()
	return cpuOf(h.t, h.cmd.Process.Pid)
}

// cpuOf is the time that a process has used, in ticks of 10 ms (proc(5)).
func cpuOf(t testing.TB, pid int) time.Duration {
	t.Helper()
	doc, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(doc[bytes.LastIndexByte(doc, ')')+1:]))
	ticks := 0
	for _, field := range fields[11:13] { // utime, stime
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// peakMiB is the largest resident size that the handler ever had.
func (h *bare) peakMiB() float64 {
	h.t.Helper()
	doc, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.cmd.Process.Pid))
	if err != nil {
		h.t.Fatal(err)
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(doc)
	if m == nil {
		h.t.Fatalf("no VmHWM: %s", doc)
	}
	kb, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		h.t.Fatal(err)
	}
	return kb / 1024
}

// logged sums a number that the handler logs at the end of each run.
func (h *bare) logged(name string) (sum float64) {
	h.t.Helper()
	for _, m := range regexp.MustCompile(`"`+name+`":(\d+)`).FindAllStringSubmatch(h.output(), -1) {
		n, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			h.t.Fatal(err)
		}
		sum += n
	}
	return sum
}

func (h *bare) output() string {
	text, err := os.ReadFile(h.log)
	if err != nil {
		return err.Error()
	}
	return string(text)
}
