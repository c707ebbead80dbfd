//go:build linux

package e2e

import (
	"fmt"
	"testing"
	"time"

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
		{name: "page=3GB", hosts: 33_000, detections: 50},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				s := startServices(b, c.hosts, c.detections)
				s.environ["filterParameters"] = "&truncation_limit=100000"
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
				s.environ["filterParameters"] = "&truncation_limit=100000"
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

// BenchmarkMemoryIntegrations carries a large page to many workspaces at once, every
// other with RESULTS and by a rule, the others by their keys, and reports how often
// Qualys was asked.
func BenchmarkMemoryIntegrations(b *testing.B) {
	for _, c := range []struct{ count, hosts, detections, results int }{
		{1, 3300, 20, 0}, {20, 3300, 20, 0}, {50, 3300, 20, 0}, {50, 40, 4, 500_000},
	} {
		b.Run(fmt.Sprintf("integrations=%d/results=%d", c.count, c.results), func(b *testing.B) {
			for b.Loop() {
				s := startServices(b, c.hosts, c.detections)
				s.sub.ResultsBytes = c.results
				s.environ["filterParameters"] = "&truncation_limit=1000"
				teams := s.teams(c.count)
				for _, team := range teams {
					team.keepNone()
					team.asks["resultSectionNeeded"] = team.n%2 == 1 || c.results > 0
				}
				s.register(teams...)
				carry(b, s, step{function: "QualysVM"}, step{function: "QualysVM", before: func() { s.advance(time.Hour) }})
				b.ReportMetric(float64(len(s.qualys.Calls())), "calls")
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
	h := startBare(b, s)
	began := time.Now()
	for _, step := range steps {
		if step.before != nil {
			step.before()
		}
		h.call(step.function)
		b.Logf("after %s: peak %.1f MiB, %s", step.function, h.peakMiB(), time.Since(began).Round(time.Second))
	}
	took := time.Since(began).Seconds()
	peak := h.peakMiB()
	h.stop()
	arrived := s.azure.Arrived()
	if arrived.Rows == 0 || h.logged("bytesRead") == 0 {
		b.Fatalf("nothing arrived\n%s", h.output())
	}
	b.ReportMetric(peak, "peak-MiB")
	b.ReportMetric(h.logged("bytesRead")/1e6, "read-MB")
	b.ReportMetric(float64(arrived.Rows)/took, "rows/s")
	if peak >= memoryLaw {
		b.Errorf("peak of %.1f MiB: the law is %d", peak, memoryLaw)
	}
}
