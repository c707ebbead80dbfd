package ingest_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
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

// The neighbour of a host that is isolated comes in every window, whichever side it is on
// and however many of them are isolated: ids may follow each other without a gap.
func TestNeighboursOfTheIsolated(t *testing.T) {
	for name, ill := range map[string][]uint64{"one": {5}, "the first": {2}, "the last": {10}, "two beside each other": {5, 6}, "two around one": {4, 6}, "three": {3, 4, 7}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1, 1)
			w.before = func(rw http.ResponseWriter, r *http.Request) bool {
				low, high, _ := asks(r)
				if !strings.Contains(r.URL.Path, "detection") {
					fmt.Fprintf(rw, "<HOST_LIST_OUTPUT><RESPONSE><DATETIME>%s</DATETIME><ID_SET><ID_RANGE>%d-10</ID_RANGE></ID_SET></RESPONSE></HOST_LIST_OUTPUT>", w.clock.Now().Format(time.RFC3339), max(low, 2))
					return true
				}
				fmt.Fprintf(rw, "<HOST_LIST_VM_DETECTION_OUTPUT><RESPONSE><DATETIME>%s</DATETIME><HOST_LIST>", w.clock.Now().Format(time.RFC3339))
				for id := max(low, 2); id <= 10 && (high == 0 || id <= high); id++ {
					fmt.Fprintf(rw, "<HOST><ID>%d</ID><DETECTION_LIST><DETECTION><QID>5</QID><LAST_PROCESSED_DATETIME>%s</LAST_PROCESSED_DATETIME></DETECTION></DETECTION_LIST>", id, w.clock.Now().Format(time.RFC3339))
					if slices.Contains(ill, id) {
						panic(http.ErrAbortHandler)
					}
					fmt.Fprint(rw, "</HOST>")
				}
				fmt.Fprint(rw, "</HOST_LIST></RESPONSE></HOST_LIST_VM_DETECTION_OUTPUT>")
				return true
			}
			for window := range 3 {
				clear(w.dest.keys)
				for range 12 {
					if report, _ := w.do(); report.Outcome == ingest.Complete {
						break
					}
				}
				var came []uint64
				for key := range w.dest.keys {
					id, err := strconv.ParseUint(key[:strings.IndexByte(key, '|')], 10, 64)
					if err != nil {
						t.Fatal(err)
					}
					came = append(came, id)
				}
				for id := uint64(2); id <= 10; id++ {
					if !slices.Contains(ill, id) && !slices.Contains(came, id) {
						t.Errorf("window %d: host %d is missing", window, id)
					}
				}
				w.clock.advance(time.Hour)
			}
		})
	}
}
