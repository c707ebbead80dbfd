package qualys

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"qualys-sentinel/handler/internal/qualys/xmlstream"
)

// Kind says what to do about an Error.
type Kind uint8

const (
	// Broken is an answer that is no whole document: ask again.
	Broken Kind = iota + 1
	// Unavailable is a failing server, or a connection that fails: ask again later.
	Unavailable
	// Limited is a limit of the subscription: ask again After.
	Limited
	// BadLogin is a wrong user or password. Repeating it locks the account.
	BadLogin
	// Forbidden is a missing permission or licence, for this dataset.
	Forbidden
	// Refused is a request that Qualys will refuse every time.
	Refused
	// Unreachable is a road on which no connection to Qualys stands: ask again later.
	Unreachable
	// BadProxy is a proxy that refuses to let connections to Qualys pass. Repeating it
	// may lock the account of the proxy's login.
	BadProxy
)

// An Error is an answer of Qualys other than the document asked for, or none.
type Error struct {
	Kind   Kind
	Status int    // of HTTP; zero if there was no answer
	Code   string // of Qualys, such as 1965; may be empty
	Text   string
	After  time.Duration // how long Qualys wants us to wait; zero: it did not say
	Advice string        // what a person can do, where the endpoint knows better than advice
	Err    error
	void   bool // what has come of the answer counts for nothing
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("qualys")
	if e.Status != 0 {
		fmt.Fprintf(&b, " answered %d", e.Status)
	}
	if e.Code != "" {
		fmt.Fprintf(&b, " code %s", e.Code)
	}
	if e.Text != "" {
		b.WriteString(": " + e.Text)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	if e.After > 0 {
		fmt.Fprintf(&b, " (to be left alone for %s)", e.After)
	}
	if advice := e.advice(); advice != "" {
		b.WriteString(" (" + advice + ")")
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// Retry tells whether the same request may succeed later, and after how long;
// zero leaves that to the caller.
func (e *Error) Retry() (after time.Duration, ok bool) {
	switch e.Kind {
	case Broken, Unavailable, Limited, Unreachable:
		return e.After, true
	}
	return 0, false
}

// Heavy tells that a smaller page may not meet the error: the answer took too
// long, or what stands in it breaks it. A server that cannot be reached, or is
// in maintenance, is not helped by that.
func (e *Error) Heavy() bool {
	return e.Kind == Broken || e.Kind == Unavailable && e.Status != http.StatusServiceUnavailable && e.Code != "1999"
}

// Void tells that the answer has said of itself, behind what has come of it, that it may
// not be whole: what has come counts for nothing.
func (e *Error) Void() bool { return e.void }

// Empty tells that there was no document at all: so an account without API access
// is answered.
func (e *Error) Empty() bool { return errors.Is(e.Err, xmlstream.ErrEmpty) }

// Wrong tells that Qualys does not take the parameters.
func (e *Error) Wrong() bool {
	return e.Kind == Refused && (strings.HasPrefix(e.Code, "19") || e.Code != "" && e.Status == http.StatusBadRequest || e.Status == http.StatusRequestURITooLong)
}

// Limit tells that the error is a limit being kept, not a fault.
func (e *Error) Limit() bool { return e.Kind == Limited }

// advice says what a person can do about it.
func (e *Error) advice() string {
	switch {
	case e.Advice != "":
		return e.Advice
	case e.Status == http.StatusRequestURITooLong:
		return "check filterParameters: they are too long"
	case e.Text == textHTML:
		return "let it pass requests to the API server through"
	case e.Kind == BadLogin:
		return "check apiUsername and apiPassword; until they change they are tried but seldom, because repeated bad logins lock the account"
	case e.Code == "2003":
		return "log in to the Qualys console once with this account and accept the terms"
	case e.Code == "2011":
		return "use an account without SecurID or two-factor login"
	case e.Code == "2001" || e.Code == "2002":
		return "ask the subscription's manager to renew or activate the account"
	case e.Kind == Forbidden:
		return "the account needs role Reader or above with API access, and the subscription a licence for this API"
	case e.Status == http.StatusNotFound || e.Status == http.StatusGone:
		return "the API version may have reached its end of life, or uri is not an API server: see uri, detectionApiVersion and kbApiVersion"
	case e.Kind == Refused && strings.HasPrefix(e.Code, "19"):
		return "check filterParameters; the account or the API version may not know a parameter or its value"
	}
	return ""
}

// documentError classifies what went wrong while a document was read.
func documentError(err error) error {
	var own *Error
	if errors.As(err, &own) {
		return err
	}
	e := &Error{Kind: Broken, Err: err}
	if errors.Is(err, xmlstream.ErrEmpty) {
		e.Advice = "an account without API access is answered so: switch on API in the user's profile"
	}
	return e
}

// textHTML is what is said of an answer that is a page for people.
const textHTML = "an HTML page instead of an API answer, from a proxy or web server in between"

// maxErrorBody bounds what is read of an answer that is not the document.
const maxErrorBody = 64 << 10

// maxErrorText bounds what an error message quotes of it.
const (
	maxErrorText = 500
	maxErrorCode = 40
)

// otherDocument explains a document with another root, which has been read up
// to and with the root's start tag.
func (d *Decoder) otherDocument(root string) error {
	return readError(d.scan, root, http.StatusOK, nil)
}

// errorAnswer explains an answer with a status other than 200.
func errorAnswer(status int, header http.Header, body io.Reader) error {
	scan := xmlstream.New(io.LimitReader(body, maxErrorBody))
	tok, err := scan.Next()
	if err != nil {
		// No XML, or none of ours: the status has to do.
		return classify(&Error{Status: status, Text: http.StatusText(status)}, header, nil)
	}
	return readError(scan, string(tok.Name), status, header)
}

// readError explains an error document, whose root's start tag was read.
func readError(scan *xmlstream.Scanner, root string, status int, header http.Header) error {
	if root == "HTML" {
		return classify(&Error{Status: status, Text: textHTML}, header, nil)
	}
	e, items := leavesOf(scan, nil)
	e.Status = status
	if e.Code == "" && e.Text == "" {
		e.Text = fmt.Sprintf("a document %.60q that was not asked for", root)
	}
	return classify(e, header, items)
}

// readLeaves explains what a document with status 200 says from an element on, whose
// start tag was read.
func readLeaves(scan *xmlstream.Scanner, open []string) *Error {
	e, items := leavesOf(scan, open)
	return classify(e, nil, items)
}

// leavesOf reads the rest of a document by the names of its leaves: the forms of
// Qualys (SIMPLE_RETURN, GENERIC_RETURN, ServiceResponse) share them. open are the
// elements whose start tags were read.
func leavesOf(scan *xmlstream.Scanner, open []string) (e *Error, items map[string]string) {
	e = &Error{}
	items = map[string]string{}
	stack := open
	var text strings.Builder
	var key string
	number := ""
	limit := scan.Offset() + maxErrorBody
	for scan.Offset() < limit {
		tok, err := scan.Next()
		if err != nil {
			break // what was read so far has to do
		}
		switch tok.Kind {
		case xmlstream.Start:
			if len(open) > 0 && string(tok.Name) == "WARNING" {
				limit = 0 // it says nothing of what it stands behind
				break
			}
			stack = append(stack, string(tok.Name))
			text.Reset()
			if xmlstream.ParseAttrs(tok.Attrs, func(name, value []byte) {
				if strings.EqualFold(string(name), "number") {
					number = string(value)
				}
			}) != nil {
				number = "" // what stands in it is not known
			}
		case xmlstream.Text:
			if text.Len() < maxErrorText {
				text.Write(tok.Text)
			}
		case xmlstream.End:
			if len(stack) == 0 {
				break
			}
			value := strings.Join(strings.Fields(text.String()), " ")
			text.Reset()
			switch stack[len(stack)-1] {
			case "CODE", "RESPONSECODE", "ERROR_CODE":
				e.Code = value
			case "TEXT", "ERRORMESSAGE", "ERROR_MESSAGE", "RETURN", "ERROR":
				if value != "" { // the last two may hold the first
					e.Text = value
				}
			case "KEY":
				key = value
			case "VALUE":
				items[key] = value
			}
			stack = stack[:len(stack)-1]
		}
	}
	if e.Code == "" {
		e.Code = number
	}
	e.Text = clip(e.Text, maxErrorText)
	e.Code = clip(e.Code, maxErrorCode)
	return e, items
}

func clip(s string, most int) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}

// classify decides by code first, then by status: Qualys sends errors with
// 200, and 409 for more than limits (reference: API guide, error codes).
func classify(e *Error, header http.Header, items map[string]string) *Error {
	switch e.Code {
	case "1960", "1920", "1965":
		e.Kind = Limited
	case "1981", "999", "1999":
		e.Kind = Unavailable
	case "2000", "INVALID_CREDENTIALS":
		e.Kind = BadLogin
	case "2012", "UNAUTHORIZED", "INSUFFICIENT_PERMISSION":
		e.Kind = Forbidden
	case "":
		e.Kind = kindOfStatus(e, header)
		if badLogin.MatchString(e.Text) {
			e.Kind = BadLogin
		}
	default:
		e.Kind = Refused // another code will not change by asking again,
		switch kind := kindOfStatus(e, header); {
		case e.Status == 0, e.Status == http.StatusOK, e.Status == http.StatusConflict:
		case kind != Refused:
			e.Kind = kind // unless the status says so
		}
	}
	if e.Status == http.StatusUnauthorized && e.Kind != Forbidden {
		e.Kind = BadLogin // whatever its code: to ask again is one more bad login
	}
	switch e.Kind {
	case Limited:
		e.After = wait(header, items, e.Text)
	case Unavailable: // in maintenance, with luck it says for how long
		e.After = retryAfter(header)
	}
	return e
}

// badLogin is the text of a refused login.
var badLogin = regexp.MustCompile(`(?i)^bad login`)

func kindOfStatus(e *Error, header http.Header) Kind {
	switch s := e.Status; {
	case s == http.StatusUnauthorized:
		return BadLogin
	case s == http.StatusForbidden:
		return Forbidden
	case s == http.StatusTooManyRequests:
		return Limited
	case s == http.StatusConflict && (strings.HasPrefix(e.Text, "This API cannot be run again") || number(header, "X-RateLimit-ToWait-Sec") > 0):
		return Limited
	case s >= 500 || s == http.StatusRequestTimeout:
		return Unavailable
	case s == http.StatusOK, s == 0:
		return Broken // HTML, or a document of another kind
	}
	return Refused
}

var waitText = regexp.MustCompile(`(\d+) (hour|minute|second)s?`)

// DefaultLimitWait is how long to wait at a limit for which Qualys names no
// time: the length of a short call of somebody else.
const DefaultLimitWait = 45 * time.Second

// wait is how long Qualys wants us to stay away: by the answer's items, which
// are right where its text is not, then headers, then text.
func wait(header http.Header, items map[string]string, text string) time.Duration {
	if n, err := strconv.Atoi(items["SECONDS_TO_WAIT"]); err == nil && n > 0 {
		return seconds(n)
	}
	if after := askedFor(header); after > 0 {
		return after
	}
	var total time.Duration
	for _, m := range waitText.FindAllStringSubmatch(text, -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			continue // more digits than any wait has
		}
		total += seconds(min(n, 200)) * map[string]time.Duration{"hour": 3600, "minute": 60, "second": 1}[m[2]]
		total = min(total, maxWait)
	}
	if total > 0 {
		return total
	}
	return DefaultLimitWait
}

// askedFor is how long the header of an answer asks to wait; zero: it does not.
func askedFor(header http.Header) time.Duration {
	if n := number(header, "X-RateLimit-ToWait-Sec"); n > 0 {
		return seconds(n)
	}
	return retryAfter(header)
}

// maxWait is the longest wait that is believed: Qualys counts calls by the hour, and a
// longer wait may be one odd answer. Where it is not, asking once more an hour later
// costs one call, and is told to wait again.
const maxWait = 65 * time.Minute

// seconds is n seconds, and no overflow.
func seconds(n int) time.Duration {
	return time.Duration(min(n, int(maxWait/time.Second))) * time.Second
}

// waitAtLeast makes an error wait for what the header of its answer asked for, where the
// document has not said more.
func (e *Error) waitAtLeast(after time.Duration) {
	if e.Kind == Unavailable || e.Kind == Limited {
		e.After = max(e.After, after)
	}
}

// retryAfter reads Retry-After as seconds or as a date.
func retryAfter(header http.Header) time.Duration {
	value := strings.TrimSpace(header.Get("Retry-After"))
	if n, err := strconv.Atoi(value); err == nil && n > 0 {
		return seconds(n)
	}
	at, err := http.ParseTime(value)
	date, dateErr := http.ParseTime(header.Get("Date"))
	if err == nil && dateErr == nil && at.After(date) {
		return min(at.Sub(date), maxWait)
	}
	return 0
}

// idParam reads a parameter of a next-page link that is an id. Only the number
// is ever used: such links name foreign hosts, and following one would hand
// over the credentials.
func idParam(link, name string) (uint64, bool) {
	link = strings.Join(strings.Fields(link), "")
	u, err := url.Parse(strings.ReplaceAll(link, "&amp;", "&"))
	if err != nil {
		return 0, false
	}
	id, err := strconv.ParseUint(u.Query().Get(name), 10, 63)
	return id, err == nil && id > 0
}
