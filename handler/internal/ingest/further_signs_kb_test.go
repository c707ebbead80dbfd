package ingest_test

import (
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"qualys-sentinel/handler/internal/ingest"
)

var wholeEntry = regexp.MustCompile(`(?s)<VULN>\s*(<QID>\d+</QID>).*?</VULN>`)

// Each answer with entries is void.
func TestFurtherStandingVoidOfTheKnowledgeBase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVirtualWorld(t, 1, 1)
		w.page = 40
		calls := 0
		w.knowing(100, func(_ int, doc string) string {
			calls++
			if strings.Contains(doc, "<ID_SET>") {
				return doc
			}
			return replaced("</RESPONSE>", "<STATUS>partial</STATUS></RESPONSE>")(doc)
		})
		if r, err := w.do(); calls > 100 {
			t.Errorf("%s, %v, %d calls: %.120s", r.Outcome, err, calls, r.Reason)
		}
	})
}

// For 30 hours the list of ids is empty but for a text that says why.
func TestFurtherEmptyListWithText(t *testing.T) {
	ids := regexp.MustCompile(`(?s)<ID_SET>.*</ID_SET>`)
	const text = "Internal error: the list could not be read"
	for name, sign := range map[string]func(string) string{
		"in front of DATETIME": replaced("<RESPONSE>", "<RESPONSE>"+text),
		"behind RESPONSE":      replaced("</RESPONSE>", "</RESPONSE>"+text),
		"in front of RESPONSE": replaced("<RESPONSE>", text+"<RESPONSE>"),
		"in a glossary":        replaced("</RESPONSE>", "<GLOSSARY><ERROR><CODE>999</CODE><TEXT>"+text+"</TEXT></ERROR></GLOSSARY></RESPONSE>"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newVirtualWorld(t, 1, 1)
				w.page = 40
				bad := false
				w.knowing(100, func(_ int, doc string) string {
					if bad {
						return sign(ids.ReplaceAllString(doc, ""))
					}
					return doc
				})
				w.mustComplete()
				time.Sleep(time.Hour)
				w.knowledge().Edit(edit(3, time.Now()))
				bad = true
				for range 30 {
					time.Sleep(time.Hour)
					_, _ = w.do()
				}
				bad = false
				w.allCame(10)
			})
		})
	}
}

// The list, read whole, and the answer that is to confirm a removal leave a QID out, and
// have text in their ID_SET that says so.
func TestFurtherRemovedByText(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVirtualWorld(t, 1, 1)
		w.page, w.refresh = 1000, 24*time.Hour
		bad := false
		w.knowing(100, func(_ int, doc string) string {
			i := strings.Index(doc, "<ID>")
			switch {
			case !bad:
			case strings.Contains(doc, "<ID_SET>"):
				j := i + strings.Index(doc[i:], "</ID>") + len("</ID>")
				return doc[:i] + "Internal error: some QIDs were left out" + doc[j:]
			case strings.Contains(doc, "<VULN>"):
				return strings.Replace(doc, wholeEntry.FindString(doc), "", 1)
			}
			return doc
		})
		w.mustComplete()
		time.Sleep(25 * time.Hour)
		w.mustComplete()
		bad = true
		for range 3 {
			time.Sleep(25 * time.Hour)
			_, _ = w.do()
		}
		for key, row := range w.dest.rows {
			if row["Removed_DateTime_t"] != nil {
				t.Errorf("still there, and reported as removed: %s", key)
			}
		}
	})
}

// An entry says that it could not be read.
func TestFurtherEntryWithError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newVirtualWorld(t, 1, 1)
		w.page = 40
		done := false
		w.knowing(100, func(_ int, doc string) string {
			if done || !strings.Contains(doc, "<VULN>") {
				return doc
			}
			done = true
			first := wholeEntry.FindString(doc)
			return strings.Replace(doc, first, wholeEntry.ReplaceAllString(first, "<VULN>$1<ERROR><CODE>999</CODE><TEXT>Internal error: this entry could not be read.</TEXT></ERROR></VULN>"), 1)
		})
		for range 5 {
			if r, _ := w.do(); r.Outcome == ingest.Complete {
				break
			}
			time.Sleep(time.Hour)
		}
		w.wantEntries(100)
	})
}
