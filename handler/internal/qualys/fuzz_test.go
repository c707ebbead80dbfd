package qualys_test

import (
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
)

// script makes documents from the bytes of a fuzzer: each decision takes one,
// and texts take some. So a document always has the structure of a page, and
// everything else in it is the fuzzer's.
type script struct {
	bytes []byte
	out   strings.Builder
}

func (s *script) next() int {
	if len(s.bytes) == 0 {
		return 0
	}
	b := s.bytes[0]
	s.bytes = s.bytes[1:]
	return int(b)
}

// text is up to 31 of the bytes, as characters that XML allows.
func (s *script) text() string {
	n := min(s.next()%32, len(s.bytes))
	text := string(s.bytes[:n])
	s.bytes = s.bytes[n:]
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' && r != '\n' || r == 0xFFFD || r == 0xFFFE || r == 0xFFFF {
			return '.'
		}
		return r
	}, strings.ToValidUTF8(text, "."))
}

// content writes a text in one of the forms that XML has for it.
func (s *script) content(text string) {
	switch s.next() % 4 {
	case 0:
		s.out.WriteString("<![CDATA[" + strings.ReplaceAll(text, "]]>", "]]]]><![CDATA[>") + "]]>")
	case 1: // parted, with a comment in between
		half := len(text) / 2
		for half > 0 && text[half]&0xC0 == 0x80 {
			half--
		}
		s.escape(text[:half])
		s.out.WriteString("<!-- keep-alive <HOST> -->")
		s.escape(text[half:])
	case 2:
		for _, r := range text {
			fmt.Fprintf(&s.out, "&#x%X;", r)
		}
	default:
		s.escape(text)
	}
}

func (s *script) escape(text string) {
	if err := xml.EscapeText(&s.out, []byte(text)); err != nil {
		panic(err) // a strings.Builder does not fail
	}
}

// element writes one of the elements named, each at most once in its parent,
// with what may be inside.
func (s *script) elements(names []string, inside map[string][]string) {
	for _, name := range names {
		how := s.next()
		if how%3 == 0 {
			continue
		}
		if how%7 == 0 {
			s.out.WriteString("\n  ")
		}
		tag := name
		if how%11 == 0 {
			tag = strings.ToLower(name)
		}
		s.out.WriteString("<" + tag)
		if how%5 == 0 && inside[name] == nil && strings.HasPrefix(name, "NEW") {
			s.out.WriteString(` kind="`)
			s.escape(s.text())
			s.out.WriteString(`"`)
		}
		s.out.WriteString(">")
		if children := inside[name]; children != nil {
			s.elements(children, inside)
		} else {
			s.content(s.text())
		}
		s.out.WriteString("</" + tag + ">")
	}
}

// many calls one up to three times.
func (s *script) many(one func(n int)) {
	for n := range s.next() % 4 {
		one(n)
	}
}

var (
	hostNames      = []string{"IP", "IPV6", "NEWBEFORE", "TRACKING_METHOD", "OS", "DNS", "DNS_DATA", "NETBIOS", "QG_HOSTID", "TAGS", "NEWPARENT", "LAST_VM_SCANNED_DURATION"}
	detectionNames = []string{"QID", "TYPE", "SEVERITY", "PORT", "PROTOCOL", "FQDN", "SSL", "RESULTS", "STATUS", "NEWLEAF", "NEWGROUP", "TIMES_FOUND"}
	vulnNames      = []string{"VULN_TYPE", "SEVERITY_LEVEL", "TITLE", "CATEGORY", "NEWLEAF", "DIAGNOSIS", "CONSEQUENCE", "SOLUTION", "BUGTRAQ_LIST", "CVE_LIST", "NEWGROUP", "SOFTWARE_LIST"}
	insides        = map[string][]string{
		"DNS_DATA": {"HOSTNAME", "DOMAIN", "FQDN"}, "TAGS": {"TAG"}, "TAG": {"TAG_ID", "NAME", "COLOR"},
		"NEWPARENT": {"A", "B"}, "NEWGROUP": {"A", "NEWPARENT", "C"},
		"BUGTRAQ_LIST": {"BUGTRAQ"}, "BUGTRAQ": {"ID", "URL"}, "CVE_LIST": {"CVE"}, "CVE": {"ID", "URL"},
		"SOFTWARE_LIST": {"SOFTWARE"}, "SOFTWARE": {"PRODUCT", "VENDOR"},
	}
)

// Of every page that has a page's structure, every value that encoding/xml reads
// is in its row.
func FuzzDetectionValues(f *testing.F) {
	f.Add([]byte("\x03\x01\x05\x04abcd\x03\x02\x02\x07\x03xyz\x01\x02\x01\x04\x05\x07\x1fsome longer text <&> \t\n and more\x02"))
	f.Fuzz(func(t *testing.T, bytes []byte) {
		s := &script{bytes: bytes}
		s.many(func(n int) {
			fmt.Fprintf(&s.out, "<HOST><ID>%d</ID>", n+1)
			s.elements(hostNames, insides)
			s.out.WriteString("<DETECTION_LIST>")
			for range 1 + s.next()%3 { // the DTD wants one, and the decoder where there is anything unknown
				s.out.WriteString("<DETECTION><UNIQUE_VULN_ID>1</UNIQUE_VULN_ID>")
				s.elements(detectionNames, insides)
				s.out.WriteString("</DETECTION>")
			}
			s.out.WriteString("</DETECTION_LIST></HOST>")
		})
		doc := hosts(s.out.String())
		r, _, err := decode(t, doc)
		if err != nil {
			t.Fatalf("%v\n%s", err, doc)
		}
		checkLeaves(t, []byte(doc), r.lines)
	})
}

// As FuzzDetectionValues, of KnowledgeBase pages.
func FuzzKnowledgeBaseValues(f *testing.F) {
	f.Add([]byte("\x03\x01\x05\x04abcd\x03\x02\x02\x07\x03xyz\x01\x02\x01\x04\x05\x07\x1f<p>longer</p> &amp; <br>text &more\x02"))
	f.Fuzz(func(t *testing.T, bytes []byte) {
		s := &script{bytes: bytes}
		s.many(func(n int) {
			fmt.Fprintf(&s.out, "<VULN><QID>%d</QID>", n+1)
			s.elements(vulnNames, insides)
			s.out.WriteString("</VULN>")
		})
		doc := knowledge(s.out.String())
		r, _, err := decodeOf(ingest.KB, doc)
		if err != nil {
			t.Fatalf("%v\n%s", err, doc)
		}
		checkEntries(t, []byte(doc), r.lines)
	})
}

// Whatever an answer with another status holds, it becomes an error that tells
// what to do, and waits no longer than is sane.
func FuzzErrorAnswer(f *testing.F) {
	f.Add(409, "60", "", "<SIMPLE_RETURN><RESPONSE><CODE>1965</CODE><TEXT>again for another 3 hours, 2 minutes and 1 second.</TEXT><ITEM_LIST><ITEM><KEY>SECONDS_TO_WAIT</KEY><VALUE>12</VALUE></ITEM></ITEM_LIST></RESPONSE></SIMPLE_RETURN>")
	f.Add(429, "", "Wed, 21 Oct 2015 07:28:00 GMT", "<html>")
	f.Add(200, "x", "9999999999999999999", `<GENERIC_RETURN><RETURN status="FAILED" number="2012">no</RETURN></GENERIC_RETURN>`)
	f.Fuzz(func(t *testing.T, status int, toWait, retryAfter, body string) {
		header := http.Header{"X-Ratelimit-Towait-Sec": {toWait}, "Retry-After": {retryAfter}, "Date": {"Wed, 21 Oct 2015 07:28:00 GMT"}}
		err := qualys.ErrorAnswer(status, header, strings.NewReader(body))
		var e *qualys.Error
		if !errors.As(err, &e) || e.Kind == 0 {
			t.Fatalf("got %#v", err)
		}
		if e.After < 0 || e.After > 8*24*time.Hour || e.Limit() != (e.After > 0) && e.Kind == qualys.Limited {
			t.Errorf("waits %s: %v", e.After, err)
		}
		if text := err.Error(); len(text) > 2000 || strings.ContainsAny(text, "\n\r") {
			t.Errorf("unreadable: %q", text)
		}
	})
}
