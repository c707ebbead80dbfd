package qualys

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"
	"time"

	"qualys-sentinel/handler/internal/qualys/xmlstream"
	"qualys-sentinel/handler/internal/record"
)

// envelope is what an answer says around its list, and whether that makes it a
// whole answer. The rule is positive: RESPONSE with its DATETIME, the list or
// nothing in its place, and warnings. Whatever else stands there, the answer may
// mean something that is not understood here, and a window must not end on it.
type envelope struct {
	responses int
	timed     bool   // DATETIME was there
	stated    string // its text
	warning   warning
	warnings  int
	told      []string // of all warnings, for people
	strange   bool     // a parent without records has something that is not known
	next      uint64   // the smallest id that a warning's link goes on with
	bare      bool     // a warning says without a link that more follows
	more      bool     // one may say so
	unsure    string   // the first warning that may say anything
	failed    *Error   // what the first warning says has failed
	refused   bool     // one has the code of a refused login
	echoed    bool     // REQUEST was there
	open      bool     // a WARNING is
}

// A warning is one WARNING element. Answers may have several (one for the rest
// of the list, one for the end of service of the API version), so each is judged
// by itself.
type warning struct {
	code, text, url string
	has             map[string]bool // its elements
}

// begin notes the start of an element of the envelope.
func (e *envelope) begin(name string) error {
	switch name {
	case "REQUEST":
		if e.echoed || e.responses > 0 {
			return envelopeError("it has a second REQUEST, or one behind its RESPONSE")
		}
		e.echoed = true
	case "RESPONSE":
		if e.responses++; e.responses > 1 {
			return envelopeError("it has a second RESPONSE")
		}
	case "DATETIME":
		if e.timed {
			return envelopeError("it has a second DATETIME")
		}
		e.timed = true
	case "WARNING":
		e.warning, e.open = warning{has: map[string]bool{}}, true
		// Enough for every warning that means something; the rest is a flood.
		if e.warnings++; e.warnings > maxWarnings {
			return envelopeError(fmt.Sprintf("it has more than %d warnings", maxWarnings))
		}
	case "CODE", "TEXT", "URL":
		if e.warning.has[name] { // which of them counts is not known
			return envelopeError("a WARNING has a second " + name)
		}
		e.warning.has[name] = true
	}
	return nil
}

// maxWarnings bounds what is kept of an answer's warnings.
const maxWarnings = 16

// text takes the text of a leaf of the envelope, by the leaf's name. cut says that
// it was longer than what is kept.
func (e *envelope) text(name, text string, cut bool) {
	switch name {
	case "DATETIME":
		e.stated = text
	case "CODE":
		e.warning.code = text
	case "TEXT":
		e.warning.text = text
	case "URL":
		if cut {
			text = "" // perhaps inside the number that counts
		}
		e.warning.url = text
	}
}

// tellOnce tells people something of the answer: the first of such.
func (e *envelope) tellOnce(format string, args ...any) {
	if !e.strange {
		e.strange = true
		e.told = append(e.told, fmt.Sprintf(format, args...))
	}
}

// endWarning judges the warning that was read.
func (e *envelope) endWarning() {
	w := e.warning
	e.open = false
	said := clip(w.code+" "+w.text, maxErrorText)
	of := judge(w)
	next, linked := idParam(w.url, "id_min")
	follows := linked || w.code == moreCode || strings.Contains(w.text, "record limit exceeded")
	switch {
	case of == notice && !follows: // whatever its code
		e.told = append(e.told, said)
	case w.code != moreCode && errorCode.MatchString(w.code), of == unknown && failure.MatchString(w.text):
		// What follows shows nothing of what has failed.
		one := classify(&Error{Code: w.code, Text: w.text}, nil, nil)
		e.failed = cmp.Or(e.failed, one)
		e.refused = e.refused || one.Kind == BadLogin
	case linked:
		if e.next == 0 || next < e.next {
			e.next = next
		}
	case follows:
		e.bare = true
	case of == perhapsMore:
		e.more = true
		e.told = append(e.told, said)
	default:
		if said == "" {
			said = "an empty WARNING"
		}
		e.unsure = cmp.Or(e.unsure, said)
		e.told = append(e.told, said)
	}
}

// doubtful tells that a warning, or one that was begun, may say that the answer is not whole.
func (e *envelope) doubtful() bool { return e.failed != nil || e.unsure != "" || e.open }

// moreCode is the code of the warning that more records follow.
const moreCode = "1980"

// errorCode is a code of Qualys' errors.
var errorCode = regexp.MustCompile(`^(9\d\d|1[89]\d\d|20[01]\d)$`)

// failure are words of a warning that records were lost, which more records do not bring.
var failure = regexp.MustCompile(`(?i)\b(errors?|fail\w*|left out|omit\w*|skip\w*|drop\w*|lost|missing|withheld|exclud\w*|could not|cannot|unable|timed|timeout|unexpected|internal|abort\w*|interrupt\w*|busy|overload\w*|throttl\w*|stale|inconsistent|unreliable|unavailable|corrupt\w*)\b`)

// finish judges the envelope of a document that was read to its end. highest is
// the highest id that was read; where says what to look for in a list, such as
// HOST.
func (e *envelope) finish(highest uint64, where string) (record.Page, error) {
	p := record.Page{Warning: strings.Join(e.told, "; "), Doubt: e.unsure}
	switch {
	case e.responses == 0:
		return p, envelopeError("it has no RESPONSE")
	case e.refused && highest == 0: // else it has answered the login
		return p, &Error{void: true, Kind: BadLogin, Text: e.said()}
	case e.failed != nil && e.failed.Kind == Limited:
		return p, &Error{void: true, Kind: Limited, Code: e.failed.Code, Text: e.failed.Text, After: e.failed.After}
	case e.failed != nil:
		return p, &Error{void: true, Kind: Broken, Text: "the answer says of itself that something has failed: " + e.said()}
	case e.unsure != "" && (e.bare || e.next != 0 || highest == 0):
		// That more follows is said beside it: it means what has come.
		return p, inDoubt(e.unsure)
	case e.bare && highest == 0:
		return p, &Error{Kind: Broken, Text: "the answer says that more records follow, but neither its URL nor a " + where + " says where"}
	case e.bare && e.next != 0:
		p.Next = min(e.next, highest+1) // what follows need not be where the link leads
	case e.next != 0:
		p.Next = e.next
	case highest > 0 && (e.bare || e.more || e.unsure != ""):
		p.Next = highest + 1
	}
	return p, nil
}

// said is what the first warning says that has failed.
func (e *envelope) said() string { return clip(e.failed.Code+" "+e.failed.Text, maxErrorText) }

// inDoubt is the error for an answer with a warning that may say that it is not whole,
// where the rest cannot be asked for.
func inDoubt(warning string) *Error {
	return &Error{void: true, Kind: Broken, Text: "the answer has a warning that is not known to be harmless, and nothing more can be asked for: " + warning}
}

// time is the answer's by Qualys' clock, when its first record comes or its end. date
// is that of the header.
func (e *envelope) time(date time.Time) (time.Time, error) {
	if !e.timed {
		return time.Time{}, notUnderstood("its RESPONSE has no DATETIME in front of its list")
	}
	return answerTime(e.stated, date)
}

// notUnderstood is the error for a document with the right root that is not the
// answer asked for.
func notUnderstood(why string) *Error {
	return &Error{Kind: Broken, Text: "the answer is not understood, so it does not count: " + why,
		Advice: "if it stays so, Qualys or something in between answers in a form that this version does not know"}
}

// envelopeError is notUnderstood of what stands around the list. What has come of the list
// counts for nothing: what it has left out does not show.
func envelopeError(why string) *Error {
	e := notUnderstood(why)
	e.void = true
	return e
}

// stray explains an element where only known ones may be, by what the rest of the
// document says. path is of the element, whose start tag was read; answered tells that
// records stand in front of it.
func stray(scan *xmlstream.Scanner, path string, answered bool) error {
	name := path[strings.LastIndexByte(path, '/')+1:]
	e := readLeaves(scan, []string{name})
	if e.Code == "" && e.Text == "" {
		return envelopeError(fmt.Sprintf("%.100q is not a part of it", path))
	}
	if e.Kind == BadLogin && answered {
		e.Kind = Broken // it has answered the login
	}
	e.void = true // as envelopeError
	e.Text = strings.TrimSuffix(fmt.Sprintf("%.100q in place of the list: %s", path, e.Text), ": ")
	return e
}
