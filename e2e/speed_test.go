//go:build linux

package e2e

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"qualys-sentinel/e2e/canary"
)

// BenchmarkWholeRun carries a subscription from the simulated Qualys to the
// strict ingestion endpoint, with Azurite as state: three processes on the same
// cores, all talk over loopback. It reports where the CPU time went. The
// baseline is a program of the usual packages, without any state.
func BenchmarkWholeRun(b *testing.B) {
	const hosts, detections = 10_000, 59
	// The simulators share the cores, and are not what is measured.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	subscription := func(b *testing.B) *services {
		s := startServices(b, hosts, detections)
		s.sub.ResultsBytes = 300
		s.azure.Keep = nil // so many rows
		s.environ["filterParameters"] = "&truncation_limit=1000"
		return s
	}
	report := func(b *testing.B, s *services, took, cpu, simulators time.Duration, peakMiB float64) {
		rows := float64(s.azure.Arrived().Rows)
		if rows < 0.9*hosts*detections*float64(b.N) {
			b.Fatalf("%.0f rows", rows)
		}
		b.ReportMetric(rows/took.Seconds(), "detections/s")
		b.ReportMetric(float64(cpu.Microseconds())/rows, "program-µs/detection")
		b.ReportMetric(float64(simulators.Microseconds())/rows, "simulators-µs/detection")
		b.ReportMetric(peakMiB, "peak-MiB")
	}
	b.Run("by=connector", func(b *testing.B) {
		s := subscription(b)
		h := startBare(b, s)
		theirs, began := cpuOf(b, os.Getpid()), time.Now()
		for b.Loop() {
			h.call("QualysVM")
			s.advance(48 * time.Hour) // all hosts are scanned again
		}
		report(b, s, time.Since(began), h.cpu(), cpuOf(b, os.Getpid())-theirs, h.peakMiB())
	})
	b.Run("by=baseline", func(b *testing.B) {
		s := subscription(b)
		program := filepath.Join(b.TempDir(), "baseline")
		build := exec.Command("go", "test", "-c", "-o", program, "../handler/internal/bench")
		if out, err := build.CombinedOutput(); err != nil {
			b.Fatalf("build the baseline: %v\n%s", err, out)
		}
		environ := append(os.Environ(),
			"BASELINE_QUALYS="+s.places["Qualys"].url+"/api/5.0/fo/asset/host/vm/detection/?action=list&show_asset_id=1&show_tags=1&show_qds=1&show_qds_factors=1&show_reopened_info=1&show_cloud_tags=1&host_metadata=all&status=New,Active,Re-Opened,Fixed&include_ignored=1&include_disabled=1",
			"BASELINE_INGESTION="+s.environ["logAnalyticsUri"]+"/dataCollectionRules/"+s.azure.Rule+"/streams/Custom-QualysHostDetectionV2?api-version=2023-01-01",
			"BASELINE_USER="+canary.User, "BASELINE_PASSWORD="+canary.Password,
			"IDENTITY_ENDPOINT="+s.environ["IDENTITY_ENDPOINT"], "IDENTITY_HEADER="+s.environ["IDENTITY_HEADER"])
		var cpu time.Duration
		peak := int64(0)
		theirs, began := cpuOf(b, os.Getpid()), time.Now()
		for b.Loop() {
			cmd := exec.Command(program, "-test.run", "^TestBaselineProgram$")
			cmd.Env = environ
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("the baseline: %v\n%s", err, out)
			}
			cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
			peak = max(peak, cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss)
		}
		report(b, s, time.Since(began), cpu, cpuOf(b, os.Getpid())-theirs, float64(peak)/1024)
	})
}

// BenchmarkColdStart measures the time from exec to the first answer.
func BenchmarkColdStart(b *testing.B) {
	s := startServices(b, 1, 1)
	var took []time.Duration
	for b.Loop() {
		h := startBare(b, s)
		took = append(took, h.toFirstAnswer)
		h.stop()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "median-ms")
	b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "slowest-ms")
}

// BenchmarkCost loads whole subscriptions and reports what a million detections
// cost: CPU time, requests, and bytes. COST=all adds the largest.
func BenchmarkCost(b *testing.B) {
	type size struct {
		name   string
		hosts  int
		change map[string]string
	}
	sizes := []size{
		{name: "hosts=10000", hosts: 10_000},
		{name: "hosts=10000/resultsPolicy=none", hosts: 10_000, change: map[string]string{"resultsPolicy": "none"}},
		{name: "hosts=100000", hosts: 100_000},
	}
	if os.Getenv("COST") == "all" {
		// Pages of 1,000 would want more calls than Qualys allows in an hour.
		sizes = append(sizes, size{name: "hosts=1000000", hosts: 1_000_000, change: map[string]string{"filterParameters": "&truncation_limit=5000"}})
	}
	for _, c := range sizes {
		b.Run(c.name, func(b *testing.B) {
			defer debug.SetGCPercent(debug.SetGCPercent(400))
			for b.Loop() {
				s := startServices(b, c.hosts, 59)
				s.sub.ResultsBytes = 300
				s.environ["filterParameters"] = "&truncation_limit=1000"
				for k, v := range c.change {
					s.environ[k] = v
				}
				cost(b, s)
			}
		})
	}
}

// cost runs the handler until everything has arrived.
func cost(b *testing.B, s *services) {
	var writes, reads atomic.Int64
	s.proxyStorage()
	storage := s.places["storage"]
	next := storage.Next
	storage.Next = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			reads.Add(1)
		} else {
			writes.Add(1)
		}
		next.ServeHTTP(w, r)
	})
	h := startBare(b, s)
	defer h.stop()
	runs, began := 0, time.Now()
	for c := s.checkpoint("vm"); c == nil || c.Watermark == nil; c = s.checkpoint("vm") {
		if runs++; runs > 20 {
			b.Fatalf("not complete after %d runs\n%s", runs, h.output())
		}
		h.call("QualysVM")
	}
	took := time.Since(began)
	arrived := s.azure.Arrived()
	if arrived.Rows < int64(s.sub.Hosts*s.sub.Detections)*9/10 {
		b.Fatalf("%d rows\n%s", arrived.Rows, h.output())
	}
	million := float64(arrived.Rows) / 1e6
	for unit, n := range map[string]float64{
		"wall-s/M":          took.Seconds(),
		"cpu-s/M":           h.cpu().Seconds(),
		"qualys-calls/M":    float64(len(s.qualys.Calls())),
		"read-GB/M":         h.logged("bytesRead") / 1e9,
		"ingestion-calls/M": float64(arrived.Calls),
		"sent-GB/M":         h.logged("bytesSent") / 1e9,
		"json-GB/M":         float64(arrived.Bytes) / 1e9,
		"billed-GB/M":       float64(arrived.Billed) / 1e9,
		"storage-writes/M":  float64(writes.Load()),
		"storage-reads/M":   float64(reads.Load()),
	} {
		b.ReportMetric(n/million, unit)
	}
	b.ReportMetric(million, "Mdetections")
	b.ReportMetric(float64(runs), "runs")
	b.ReportMetric(h.peakMiB(), "peak-MiB")
}
