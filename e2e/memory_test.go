//go:build linux

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
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

// BenchmarkMemoryAtOnce does everything at once: fifty destinations beside the first,
// half of them slow, and one so slow that it reads pages of its own, with the whole
// KnowledgeBase joined to their rows; anonymous calls of the integration API with bodies
// of 1 MB, a hundred a second; twenty who ask for the status, over 20,000 run records,
// each again a little after the answer; and a host of 4,000,000 detections.
func BenchmarkMemoryAtOnce(b *testing.B) {
	for b.Loop() {
		s := startServices(b, 1600, 20)
		s.setKnowledge(&simulation.Knowledge{Seed: 5, Size: 200_000})
		s.sub.ManyHost, s.sub.ManyDetections = 800, 4_000_000
		for k, v := range map[string]string{"enrichDetections": "true", "integrationApi": "true", "filterParameters": "&truncation_limit=1000", "runBudget": "25m"} {
			s.environ[k] = v
		}
		teams := s.teams(50)
		for n, team := range teams {
			team.keepNone()
			team.asks["tags"] = []string{"Servers", "PCI", "Linux", "Windows"}[n%4:][:1] // not the large host, which has none
			if n%2 == 0 {
				takes := 100 * time.Millisecond
				if n == 0 {
					takes = 2 * time.Second
				}
				s.azure.Places[team.place].Before = func(http.ResponseWriter) bool { <-time.After(takes); return false }
			}
		}
		s.register(teams...)
		s.writeRecords(20_000)
		h := startBare(b, s)
		h.call("QualysKB")
		b.Logf("the KnowledgeBase: peak %.1f MiB", h.peakMiB())
		ctx, stop := context.WithCancel(context.Background())
		var callers sync.WaitGroup
		statuses, refused := h.crowd(ctx, &callers)
		carryOn(b, s, h, step{function: "QualysVM"})
		stop()
		callers.Wait()
		b.ReportMetric(float64(statuses.Load()), "statuses")
		b.ReportMetric(float64(refused.Load()), "anonymous-calls")
	}
}

// writeRecords writes records of runs, one for every 15 seconds up to now.
func (s *services) writeRecords(count int) {
	ctx, c := context.Background(), s.stateContainer()
	_, _ = c.Create(ctx, nil) // it may be there
	const writers = 16
	var all sync.WaitGroup
	for first := range writers {
		all.Go(func() {
			for n := first; n < count; n += writers {
				at := s.clock().Add(-time.Duration(n) * 15 * time.Second).UTC()
				text := fmt.Sprintf(`{"version":1,"run":"r%d","dataset":"vm","started":%q,"ended":%q,"outcome":"complete"}`, n, at.Format(time.RFC3339), at.Format(time.RFC3339))
				name := fmt.Sprintf("runs/vm/%s-r%d.json", at.Format("20060102T150405Z"), n)
				if _, err := c.NewBlockBlobClient(name).UploadBuffer(ctx, []byte(text), nil); err != nil {
					s.t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

// statusEvery is how long each of those who ask for the status waits before it asks again.
// Azurite, on one core, has to list 20,000 names each time: were it asked without a
// pause, no run could save its checkpoint.
const statusEvery = time.Minute

// crowd lets others call the handler until ctx ends: a hundred anonymous bodies of 1 MB a
// second, and twenty who ask for the status, each again a little after the answer.
func (h *bare) crowd(ctx context.Context, callers *sync.WaitGroup) (statuses, refused *atomic.Int64) {
	statuses, refused = &atomic.Int64{}, &atomic.Int64{}
	long := strings.Repeat("x", 1<<20)
	// length is that of the body in the request, which ends it.
	call := func(function, request string, length int, count *atomic.Int64) {
		begin, end := `{"Data":{"req":`+request, `},"Metadata":{}}`
		if length > 0 {
			begin, end = begin[:len(begin)-1]+`,"Body":"`, `"}`+end
		}
		// The bytes are not made anew each time: making them would be most of the work.
		body := io.MultiReader(strings.NewReader(begin), strings.NewReader(long[:length]), strings.NewReader(end))
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url+function, body)
		if err != nil {
			h.t.Error(err)
			return
		}
		r.ContentLength = int64(len(begin) + length + len(end))
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			return // an end, or a body that was not wanted
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err == nil {
			count.Add(1)
		}
	}
	callers.Go(func() {
		ticker := time.NewTicker(10 * time.Millisecond)
		defer ticker.Stop()
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			callers.Go(func() {
				call("QualysIntegration", fmt.Sprintf(`{"Url":"https://x/qps/rest/2.0/add/integration/azure/sentinel/vm","Method":"POST","Headers":{"X-Forwarded-For":["10.0.%d.%d:1"]},"Params":{"verb":"add","rest":"integration/azure/sentinel/vm"}}`, n/250%250, n%250), len(long), refused)
			})
		}
	})
	for range 20 {
		callers.Go(func() {
			for ctx.Err() == nil {
				call("QualysStatus", `{"Url":"https://x/api/status","Method":"GET","Headers":{},"Params":{}}`, 0, statuses)
				select {
				case <-ctx.Done():
				case <-time.After(statusEvery):
				}
			}
		})
	}
	return statuses, refused
}

// A step calls a function of the handler.
type step struct {
	function string
	before   func()
}

// carry runs the handler for some steps and reports what they read, the rows
// that arrived, and the peak of the handler's memory.
func carry(b *testing.B, s *services, steps ...step) {
	carryOn(b, s, startBare(b, s), steps...)
}

// carryOn is carry with a handler that runs.
func carryOn(b *testing.B, s *services, h *bare, steps ...step) {
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
