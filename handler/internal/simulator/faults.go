package simulator

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"time"
)

// A Fault is one way in which an answer goes wrong.
type Fault struct {
	Name string
	// Spoil answers a request; doc is what the answer would have been.
	Spoil func(w http.ResponseWriter, r *http.Request, doc []byte)
}

// Faulty is a server whose answers go wrong.
type Faulty struct {
	// Next is the server itself. It may be set before the first request.
	Next http.Handler

	mu    sync.Mutex
	n     int
	armed Spoiling
}

// A Spoiling is a fault in its place.
type Spoiling struct {
	Fault Fault
	// When tells which requests meet it; n counts from 1. Nil: all.
	When func(n int, r *http.Request) bool
	// Unasked keeps the requests that meet it from the server; else it does what
	// they ask for, and only its answer is lost.
	Unasked bool
}

// Arm lets requests meet a fault from now on.
func (f *Faulty) Arm(s Spoiling) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.armed = s
}

// ServeHTTP implements http.Handler.
func (f *Faulty) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.n++
	s := f.armed
	// One after the other: When may count.
	meets := s.Fault.Spoil != nil && (s.When == nil || s.When(f.n, r))
	f.mu.Unlock()
	if !meets {
		f.Next.ServeHTTP(w, r)
		return
	}
	r.Header.Del("Accept-Encoding") // the document, not its compression, is spoilt
	answer := httptest.NewRecorder()
	if !s.Unasked {
		f.Next.ServeHTTP(answer, r)
	}
	for _, name := range []string{"Date", "Content-Type", "X-RateLimit-Limit", "X-RateLimit-Remaining"} {
		if v := answer.Header().Get(name); v != "" {
			w.Header().Set(name, v)
		}
	}
	s.Fault.Spoil(w, r, answer.Body.Bytes())
}

// Heal ends the fault.
func (f *Faulty) Heal() { f.Arm(Spoiling{}) }

// give ignores a client that has gone away.
func give(w io.Writer, doc []byte) { _, _ = w.Write(doc) }

// giveNow sends what was written so far.
func giveNow(w http.ResponseWriter, doc []byte) {
	give(w, doc)
	_ = http.NewResponseController(w).Flush() // as above
}

// middle is the place behind the last occurrence of mark in the first half.
func middle(doc []byte, mark string) int {
	return bytes.LastIndex(doc[:len(doc)/2], []byte(mark)) + len(mark)
}

// parent is the end tag of the document's records.
func parent(doc []byte) string {
	if bytes.Contains(doc, []byte("</VULN>")) {
		return "</VULN>"
	}
	return "</HOST>"
}

// rootOf finds the document's root element and its name.
func rootOf(doc []byte) (at int, name string) {
	m := rootForm.FindSubmatchIndex(doc)
	return m[0], string(doc[m[2]:m[3]])
}

var rootForm = regexp.MustCompile(`<([A-Z_]+_OUTPUT)>`)

// insert puts text into the middle of a document, behind a mark.
func insert(mark, text string) func(http.ResponseWriter, *http.Request, []byte) {
	return func(w http.ResponseWriter, _ *http.Request, doc []byte) {
		at := middle(doc, mark)
		give(w, doc[:at])
		give(w, []byte(text))
		give(w, doc[at:])
	}
}

// Status answers with a status, headers and a body.
func Status(code int, body string, header ...string) func(http.ResponseWriter, *http.Request, []byte) {
	return func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
		give(w, []byte(body))
	}
}

// Reset resets the connection.
func Reset(w http.ResponseWriter, _ *http.Request, _ []byte) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // a reset, not an end
	}
	_ = conn.Close() // that is the fault
}

// simple is a SIMPLE_RETURN.
func simple(code, text, items string) string {
	return fmt.Sprintf(`<SIMPLE_RETURN><RESPONSE><DATETIME>2026-11-01T12:00:00Z</DATETIME><CODE>%s</CODE><TEXT>%s</TEXT>%s</RESPONSE></SIMPLE_RETURN>`, code, text, items)
}

var stated = regexp.MustCompile(`<DATETIME>[^<]*</DATETIME>`)

// ClockAhead lets the answer state a time that is ahead, in its document and,
// if header is set, in its Date header.
func ClockAhead(ahead time.Duration, header bool) func(http.ResponseWriter, *http.Request, []byte) {
	return func(w http.ResponseWriter, _ *http.Request, doc []byte) {
		at, err := http.ParseTime(w.Header().Get("Date"))
		if err != nil {
			panic(err) // the simulator's own
		}
		at = at.Add(ahead)
		if header {
			w.Header().Set("Date", at.Format(http.TimeFormat))
		}
		place := stated.FindIndex(doc)
		give(w, doc[:place[0]])
		give(w, []byte("<DATETIME>"+at.Format(time.RFC3339)+"</DATETIME>"))
		give(w, doc[place[1]:])
	}
}

// Faults lists the ways in which an answer of Qualys can go wrong.
func Faults() []Fault {
	const page = "<html><head><title>Maintenance</title></head><body>Please come back.</body></html>"
	return []Fault{
		{"reset in the body", func(w http.ResponseWriter, r *http.Request, doc []byte) {
			giveNow(w, doc[:len(doc)/2])
			Reset(w, r, nil)
		}},
		{"hang in the body", func(w http.ResponseWriter, r *http.Request, doc []byte) {
			giveNow(w, doc[:len(doc)/2])
			<-r.Context().Done()
		}},
		{"hang before the answer", func(_ http.ResponseWriter, r *http.Request, _ []byte) { <-r.Context().Done() }},
		{"cut between elements", func(w http.ResponseWriter, _ *http.Request, doc []byte) { give(w, doc[:middle(doc, parent(doc))]) }},
		{"cut in CDATA", func(w http.ResponseWriter, _ *http.Request, doc []byte) { give(w, doc[:middle(doc, "<![CDATA[")+3]) }},
		{"control characters", insert("<![CDATA[", "\x00\x01\x1b")},
		{"invalid UTF-8", insert("<![CDATA[", "\xff\xfe\xc3")},
		{"mismatched tags", func(w http.ResponseWriter, r *http.Request, doc []byte) { insert(parent(doc), "</WRONG>")(w, r, doc) }},
		{"a second root", func(w http.ResponseWriter, _ *http.Request, doc []byte) {
			_, name := rootOf(doc)
			give(w, append(bytes.Clone(doc), "<"+name+"/>"...))
		}},
		{"entity bomb", func(w http.ResponseWriter, _ *http.Request, doc []byte) {
			bomb := `<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>`
			root, _ := rootOf(doc)
			give(w, []byte(bomb))
			doc = bytes.Replace(doc[root:], []byte("<IP>"), []byte("<IP>&c;"), 1)
			give(w, bytes.Replace(doc, []byte("<CATEGORY>"), []byte("<CATEGORY>&c;"), 1))
		}},
		{"HTML with 200", Status(200, page, "Content-Type", "text/html")},
		{"HTML with 200, as XML", Status(200, page, "Content-Type", "text/xml")},
		{"empty 200", Status(200, "")},
		{"error 999 with 200", Status(200, simple("999", "Internal error", ""))},
		{"error 2012 with 200", Status(200, simple("2012", "no permission", ""))},
		{"redirect elsewhere", Status(301, "", "Location", "https://elsewhere.example/")},
		{"next page elsewhere", func(w http.ResponseWriter, _ *http.Request, doc []byte) {
			give(w, bytes.ReplaceAll(doc, []byte("<URL><![CDATA[https://"), []byte("<URL><![CDATA[https://elsewhere.example/?x=")))
		}},
		{"next page does not grow", func(w http.ResponseWriter, r *http.Request, doc []byte) {
			s := string(doc)
			if i := strings.LastIndex(s, "id_min="); i >= 0 {
				end := i + strings.IndexAny(s[i:], "&]")
				s = s[:i] + "id_min=1" + s[end:]
			}
			give(w, []byte(s))
		}},
		{"clock three hours ahead", ClockAhead(3*time.Hour, true)},
		{"DATETIME a year ahead", ClockAhead(365*24*time.Hour, false)},
		{"answers without limits", func(w http.ResponseWriter, _ *http.Request, doc []byte) {
			w.Header().Del("X-RateLimit-Limit")
			w.Header().Del("X-RateLimit-Remaining")
			give(w, doc)
		}},
		{"401", Status(401, simple("2000", "Bad Login/Password", ""))},
		{"403", Status(403, simple("2012", "no permission", ""))},
		{"404", Status(404, "not found")},
		{"409 code 1960", Status(409, simple("1960", "This API cannot be run again until 1 currently running API instance has finished.", ""), "X-Concurrency-Limit-Limit", "2", "X-Concurrency-Limit-Running", "2")},
		{"409 code 1960 without headers", Status(409, simple("1960", "This API cannot be run again until 1 currently running API instance has finished.", ""))},
		{"409 without a code", Status(409, "<SIMPLE_RETURN><RESPONSE><TEXT>This API cannot be run again until 1 currently running API instance has finished.</TEXT></RESPONSE></SIMPLE_RETURN>")},
		{"409 code 1965, seconds", Status(409, simple("1965", "wait", "<ITEM_LIST><ITEM><KEY>SECONDS_TO_WAIT</KEY><VALUE>55</VALUE></ITEM></ITEM_LIST>"))},
		{"409 code 1965, in words", Status(409, simple("1965", "This API cannot be run again for another 0 hours, 3 minutes and 7 seconds.", ""))},
		{"409 code 1965, 19 hours", Status(409, simple("1965", "wait", ""), "X-RateLimit-ToWait-Sec", "68400")},
		{"409 code 2003", Status(409, simple("2003", "registration", ""))},
		{"414", Status(414, page, "Content-Type", "text/html")},
		{"429", Status(429, "", "Retry-After", "33")},
		{"500", Status(500, simple("999", "Internal error", ""))},
		{"501", Status(501, "")},
		{"502", Status(502, page, "Content-Type", "text/html")},
		{"503", Status(503, simple("1999", "maintenance", ""))},
		{"504", Status(504, page, "Content-Type", "text/html")},
	}
}
