package ingest_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// T5c: the answers of one-host ranges come with the host, and never end.
func TestFurtherNeverEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVirtualWorld(t, 60, 3)
		w.page, w.budget = 16, 25*time.Minute
		ids := w.hostIDs()
		ill := ids[23]
		w.before = func(rw http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/detection/") {
				return false
			}
			answer := httptest.NewRecorder()
			r.Header.Del("Accept-Encoding")
			w.qualys.ServeHTTP(answer, r)
			doc := answer.Body.String()
			low, high, _ := asks(r)
			i := strings.Index(doc, "<ID>"+itoa(ill)+"</ID>")
			switch {
			case i < 0:
				io.WriteString(rw, doc)
			case low == ill && high == ill: // slow, but the host comes; the end does not
				head, _, _ := strings.Cut(doc, "</HOST_LIST>")
				io.WriteString(rw, head)
				drip(rw, r, "\n")
			default: // too much for one answer
				<-r.Context().Done()
			}
			return true
		}
		for n := range 5 {
			report, err := w.do()
			c := w.checkpoint()
			t.Logf("host %d, next %d, run %d: %s %v", ill, ids[24], n, report.Outcome, err)
			for _, i := range c.Isolated {
				t.Logf("  isolated %d: %s", i.ID, i.Reason)
			}
			if b := blames(c, ill); len(b) > 0 {
				t.Errorf("isolated although never asked for: %v (the host is %d)", b, ill)
				break
			}
			time.Sleep(5 * time.Minute)
		}
	})
}
