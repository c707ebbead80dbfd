package bench_test

import (
	"fmt"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/simulator"
)

// A page is an input of the benchmarks, made by the simulator; the same in
// every run.
type page struct {
	name      string
	knowledge bool
	doc       []byte
	records   int
}

func (p *page) dataset() *ingest.Dataset {
	if p.knowledge {
		return ingest.KB
	}
	return ingest.VM
}

// pageTime is the time of every page's answer.
var pageTime = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

const (
	detectionQuery = "/api/5.0/fo/asset/host/vm/detection/?action=list&show_asset_id=1&show_tags=1&show_qds=1&show_qds_factors=1&show_reopened_info=1&host_metadata=all&show_cloud_tags=1&status=New,Active,Re-Opened,Fixed&truncation_limit=0"
	knowledgeQuery = "/api/4.0/fo/knowledge_base/vuln/?action=list&details=All&show_pci_reasons=1&show_supported_modules_info=1&show_disabled_flag=1&show_qid_change_log=1"
)

// kinds of pages. The first is of the size that people report: 1,000 hosts with
// 59 detections each, RESULTS of about 300 bytes. Tests use a tenth of each.
var kinds = []*kind{
	detections("hosts", func(share int) *simulator.Subscription {
		s := simulator.NewSubscription(1, 1000/share, 59)
		s.ResultsBytes = 300
		return s
	}),
	detections("long-results", func(share int) *simulator.Subscription {
		s := simulator.NewSubscription(2, 200/share, 20)
		s.ResultsBytes = 20_000
		return s
	}),
	detections("non-ascii", func(share int) *simulator.Subscription {
		s := simulator.NewSubscription(3, 500/share, 59)
		s.ResultsBytes = 900
		s.ResultsText = []string{"検出されたバージョン：日本語版　必要なバージョン：次の更新\t", "Größe größer als zulässig – Überprüfung nötig; «é à ç»\n", "обнаружена версия без исправления 🔒\n"}
		return s
	}),
	{name: "knowledge", make: func(share int) *page {
		s := simulator.NewSubscription(4, 1, 1)
		s.Knowledge = &simulator.Knowledge{Seed: 4, Size: 5000 / share}
		return answer(&page{knowledge: true}, s, knowledgeQuery)
	}},
}

func detections(name string, sub func(share int) *simulator.Subscription) *kind {
	return &kind{name: name, make: func(share int) *page { return answer(&page{}, sub(share), detectionQuery) }}
}

// kind makes pages, one of each size.
type kind struct {
	name  string
	make  func(share int) *page
	whole sync.Once
	page  *page
}

// get makes the whole page, once.
func (k *kind) get(t testing.TB) *page {
	k.whole.Do(func() { k.page = k.part(t, 1) })
	return k.page
}

// part makes a page of a share of the size.
func (k *kind) part(t testing.TB, share int) *page {
	p := k.make(share)
	p.name = k.name
	n, err := baselineRecords(p)
	if err != nil {
		t.Fatal(err)
	}
	p.records = n
	return p
}

// answer asks the simulator for the page.
func answer(p *page, s *simulator.Subscription, query string) *page {
	q := simulator.NewQualys(s, "user", "password")
	q.Now = func() time.Time { return pageTime }
	r := httptest.NewRequest("GET", query, nil)
	r.SetBasicAuth("user", "password")
	r.Header.Set("X-Requested-With", "bench")
	w := httptest.NewRecorder()
	q.ServeHTTP(w, r)
	if w.Code != 200 || w.Body.Len() < 100<<10 {
		panic(fmt.Sprintf("the simulator answers %d: %.300s", w.Code, w.Body))
	}
	p.doc = w.Body.Bytes()
	return p
}
