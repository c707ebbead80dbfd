//go:build linux

package e2e

import (
	"fmt"
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
			"BASELINE_QUALYS="+s.places["Qualys"].url+"/api/5.0/fo/asset/host/vm/detection/?action=list&show_asset_id=1&show_tags=1&show_qds=1&show_qds_factors=1&show_reopened_info=1&show_cloud_tags=1&status=New,Active,Re-Opened,Fixed&include_ignored=1&include_disabled=1",
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
	sizes := []int{10_000, 100_000}
	if os.Getenv("COST") == "all" {
		sizes = append(sizes, 1_000_000)
	}
	for _, hosts := range sizes {
		b.Run(fmt.Sprintf("hosts=%d", hosts), func(b *testing.B) {
			defer debug.SetGCPercent(debug.SetGCPercent(400))
			for b.Loop() {
				s := startServices(b, hosts, 59)
				s.sub.ResultsBytes = 300
				s.environ["filterParameters"] = "&truncation_limit=1000"
				if hosts > 100_000 { // or the calls of an hour are not enough
					s.environ["filterParameters"] = "&truncation_limit=5000"
				}
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
				ticks, began := 0, time.Now()
				for c := s.checkpoint("vm"); c == nil || c.Watermark == nil; c = s.checkpoint("vm") {
					h.call("QualysVM")
					ticks++
				}
				took := time.Since(began)
				arrived := s.azure.Arrived()
				million := float64(arrived.Rows) / 1e6
				b.ReportMetric(million, "Mdetections")
				b.ReportMetric(float64(ticks), "runs")
				b.ReportMetric(took.Seconds()/million, "wall-s/M")
				b.ReportMetric(h.cpu().Seconds()/million, "cpu-s/M")
				b.ReportMetric(h.peakMiB(), "peak-MiB")
				b.ReportMetric(float64(len(s.qualys.Calls()))/million, "qualys-calls/M")
				b.ReportMetric(h.logged("bytesRead")/1e9/million, "read-GB/M")
				b.ReportMetric(float64(arrived.Calls)/million, "ingestion-calls/M")
				b.ReportMetric(h.logged("bytesSent")/1e9/million, "sent-GB/M")
				b.ReportMetric(float64(arrived.Bytes)/1e9/million, "json-GB/M")
				b.ReportMetric(float64(arrived.Billed)/1e9/million, "billed-GB/M")
				b.ReportMetric(float64(writes.Load())/million, "storage-writes/M")
				b.ReportMetric(float64(reads.Load())/million, "storage-reads/M")
				h.stop()
			}
		})
	}
}
