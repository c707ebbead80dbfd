package ingest_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"qualys-sentinel/handler/internal/ingest"
)

// T5: a host arrives whole, and the answer does not end behind it.
func TestFurtherBehindTheHost(t *testing.T) {
	for _, place := range []int{0, 23, 59} {
		synctest.Test(t, func(t *testing.T) {
			w := newVirtualWorld(t, 60, 3)
			w.page, w.budget = 16, 25*time.Minute
			ill := w.hostIDs()[place]
			w.slow(map[uint64]slowness{ill: func(w http.ResponseWriter, r *http.Request, doc string, at int) {
				io.WriteString(w, doc[:inside(doc, at, "</HOST>")])
				drip(w, r, "\n")
			}})
			for n := range 4 {
				report, err := w.do()
				c := w.checkpoint()
				t.Logf("place %d (host %d) run %d: %s %v", place, ill, n, report.Outcome, err)
				for _, i := range c.Isolated {
					t.Logf("  isolated %d: %s", i.ID, i.Reason)
				}
				if c.Trouble != nil {
					t.Logf("  trouble %+v", *c.Trouble)
				}
				if b := blames(c, ill); len(b) > 0 {
					t.Errorf("isolated although never asked for: %v (the host is %d)", b, ill)
					break
				}
				time.Sleep(5 * time.Minute)
			}
		})
	}
}

// T5b: a page that holds just one host brings it, and breaks off behind it; the run before has stalled.
func TestFurtherBreaksBehind(t *testing.T) {
	w := newWorld(t, 60, 3)
	w.page, w.budget = 16, 25*time.Minute
	ill := w.hostIDs()[23]
	w.spoil(func(doc string) (string, bool) {
		if i := strings.Index(doc, "<ID>"+itoa(ill)+"</ID>"); i >= 0 {
			return doc[:i+strings.Index(doc[i:], "</HOST>")+len("</HOST>")], true
		}
		return doc, true
	})
	report, err := w.do()
	c := w.checkpoint()
	t.Logf("%d %s %v %+v", ill, report.Outcome, err, c.Isolated)
}

func itoa(n uint64) string { return strings.TrimSpace(strings.Trim(string(fmtUint(n)), " ")) }
func fmtUint(n uint64) []byte {
	var b []byte
	for ; n > 0; n /= 10 {
		b = append([]byte{byte('0' + n%10)}, b...)
	}
	return b
}

// T8: an entry that ranges leave out, and that fails by name.
func TestFurtherByName(t *testing.T) {
	w := newKBWorld(t, 60)
	w.page, w.budget = 20, 25*time.Minute
	var qid string
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		q := r.URL.Query()
		if q.Get("details") == "None" {
			return false
		}
		answer := httptest.NewRecorder()
		r.Header.Del("Accept-Encoding")
		w.qualys.ServeHTTP(answer, r)
		doc := answer.Body.String()
		if qid == "" {
			parts := strings.Split(doc, "<QID>")
			qid, _, _ = strings.Cut(parts[8], "</QID>")
		}
		i := strings.Index(doc, "<QID>"+qid+"</QID>")
		if i >= 0 {
			if q.Get("ids") != "" {
				rw.WriteHeader(504)
				return true
			}
			begin := strings.LastIndex(doc[:i], "<VULN>")
			end := i + strings.Index(doc[i:], "</VULN>") + len("</VULN>")
			doc = doc[:begin] + doc[end:]
		}
		io.WriteString(rw, doc)
		return true
	}
	for n := range 5 {
		report, err := w.do()
		c := w.checkpoint()
		t.Logf("bad QID %s, run %d: %s, isolated %+v, rows %d, %v", qid, n, report.Outcome, c.Isolated, w.arrived(), err)
		for _, i := range c.Isolated {
			if string(fmtUint(i.ID)) != qid {
				t.Errorf("wrong blame: %d", i.ID)
			}
		}
		w.clock.advance(time.Hour)
		if report.Outcome == ingest.Complete {
			return
		}
	}
	t.Error("stands still")
}
