//go:build linux

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/e2e/azurite"
	"qualys-sentinel/e2e/canary"
	"qualys-sentinel/handler/simulation"
)

// memoryLaw is the most that the handler may have resident, in MiB, whatever
// the size of a page or a field (design, law 2).
const memoryLaw = 64

// BenchmarkMemory takes pages and fields of growing size through the handler
// as it is deployed, with Azurite as state and a strict ingestion endpoint,
// and reports the peak of its resident memory.
func BenchmarkMemory(b *testing.B) {
	for _, c := range []struct {
		name       string
		hosts      int
		detections int
		huge       int
		change     map[string]string
	}{
		{name: "page=30MB", hosts: 330, detections: 50},
		{name: "page=300MB", hosts: 3300, detections: 50},
		{name: "page=300MB/data-collector", hosts: 3300, detections: 50, change: map[string]string{
			"logAnalyticsApi": "data-collector", "workspaceID": "11111111-1111-1111-1111-111111111111"}},
		{name: "results=20MB", hosts: 20, detections: 20, huge: 20_000_000},
		{name: "results=200MB", hosts: 20, detections: 20, huge: 200_000_000},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				s := startServices(b, c.hosts, c.detections)
				if c.huge > 0 {
					s.sub.HugeHost, s.sub.HugeBytes = c.hosts/2, c.huge
				}
				for k, v := range c.change {
					s.environ[k] = v
				}
				carry(b, s, step{function: "QualysVM"})
			}
		})
	}
}

// BenchmarkMemoryKnowledgeBase loads a whole KnowledgeBase, then carries over
// the changes of every tenth entry with the index in place, and detections
// that are joined with it, all in one process.
func BenchmarkMemoryKnowledgeBase(b *testing.B) {
	for _, qids := range []int{20_000, 200_000} {
		b.Run(fmt.Sprintf("qids=%d", qids), func(b *testing.B) {
			for b.Loop() {
				s := startServices(b, 1000, 50)
				s.setKnowledge(&simulation.Knowledge{Seed: 5, Size: qids})
				s.environ["enrichDetections"] = "true"
				carry(b, s, step{function: "QualysKB"}, step{function: "QualysKB", before: func() {
					now := s.clock()
					for n := range qids / 10 {
						s.sub.Knowledge.Edit(simulation.Edit{Index: n * 10, At: now, Visible: now})
					}
					s.advance(time.Hour)
				}}, step{function: "QualysVM"})
			}
		})
	}
}

// A step calls a function of the handler.
type step struct {
	function string
	before   func()
}

// carry runs the handler for some steps and reports what they read, the rows
// that arrived, and the peak of the handler's memory.
func carry(b *testing.B, s *services, steps ...step) {
	s.azure.Keep = nil
	s.environ["filterParameters"] = "&truncation_limit=100000"
	if s.environ["logAnalyticsApi"] == "data-collector" {
		s.environ["workspaceKey"] = canary.WorkspaceKeyText()
	}
	port := azurite.FreePort(b)
	cmd := exec.Command(filepath.Join(stage(b), "qualys-sentinel"))
	cmd.Env = append(os.Environ(), "FUNCTIONS_CUSTOMHANDLER_PORT="+port)
	for k, v := range s.environ {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	log, err := os.Create(filepath.Join(b.TempDir(), "handler.log"))
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	}()
	azurite.Eventually(b, 10*time.Second, "the handler listens", func() error {
		resp, err := http.Get("http://127.0.0.1:" + port + "/")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	began := time.Now()
	for _, step := range steps {
		if step.before != nil {
			step.before()
		}
		resp, err := http.Post("http://127.0.0.1:"+port+"/"+step.function, "application/json", strings.NewReader("{}"))
		if err != nil {
			b.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			text, _ := os.ReadFile(log.Name())
			b.Fatalf("status %d\n%s", resp.StatusCode, text)
		}
		peak, err := peakMiB(cmd.Process.Pid)
		if err != nil {
			b.Fatal(err)
		}
		b.Logf("after %s: peak %.1f MiB, %s", step.function, peak, time.Since(began).Round(time.Second))
	}
	took := time.Since(began).Seconds()
	peak, err := peakMiB(cmd.Process.Pid)
	if err != nil {
		b.Fatal(err)
	}
	arrived := s.azure.Arrived()
	text, err := os.ReadFile(log.Name())
	if err != nil {
		b.Fatal(err)
	}
	size := 0.0
	for _, read := range regexp.MustCompile(`"bytesRead":(\d+)`).FindAllSubmatch(text, -1) {
		n, err := strconv.ParseFloat(string(read[1]), 64)
		if err != nil {
			b.Fatal(err)
		}
		size += n
	}
	if arrived.Rows == 0 || size == 0 {
		b.Fatalf("nothing arrived\n%s", text)
	}
	b.ReportMetric(peak, "peak-MiB")
	b.ReportMetric(size/1e6, "read-MB")
	b.ReportMetric(float64(arrived.Rows)/took, "rows/s")
	if peak >= memoryLaw {
		b.Errorf("peak of %.1f MiB: the law is %d", peak, memoryLaw)
	}
}

// peakMiB is the largest resident size a process ever had.
func peakMiB(pid int) (float64, error) {
	doc, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(doc)
	if m == nil {
		return 0, fmt.Errorf("no VmHWM in /proc/%d/status", pid)
	}
	kb, err := strconv.ParseFloat(string(m[1]), 64)
	return kb / 1024, err
}
