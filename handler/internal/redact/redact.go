// Package redact cuts secrets out of texts that leave: errors, logs, state, answers.
// A service may send back what it was sent, such as the Authorization header, and such
// a text is quoted then.
//
// It knows the forms in which a secret travels, and guarantees that none of them is in
// what Text returns, not even its beginning at the end of a text that was cut. A secret
// of fewer than minLength characters is cut as a part of a login only: it may stand in
// any text by chance. Where texts come from does not enter here.
package redact

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"html"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// mark stands in the place of what was cut.
const mark = "***"

const (
	// minLength is the shortest secret that is looked for by itself.
	minLength = 6
	// minPrefix is how much of a form at the end of a text is taken for the form.
	minPrefix = 6
)

// A Redactor knows secrets. Its zero value knows none but those that have a form of
// their own; a nil one does, too.
type Redactor struct {
	mu    sync.Mutex
	known map[string]bool // secrets, and logins
	forms []string        // the longest first
}

// Know adds secrets.
func (r *Redactor) Know(secrets ...string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range secrets {
		if len(s) >= minLength && r.isNew(s) {
			r.add(formsOf(s))
		}
	}
}

// KnowLogin adds a password, and the login that it makes with the user's name.
func (r *Redactor) KnowLogin(user, password string) {
	if r == nil || password == "" {
		return
	}
	r.Know(password)
	r.mu.Lock()
	defer r.mu.Unlock()
	if login := user + ":" + password; r.isNew(login) {
		r.add(append(base64Of(login), login))
	}
}

func (r *Redactor) isNew(secret string) bool {
	if r.known[secret] {
		return false
	}
	if r.known == nil {
		r.known = map[string]bool{}
	}
	r.known[secret] = true
	return true
}

func (r *Redactor) add(forms []string) {
	r.forms = append(r.forms, slices.DeleteFunc(forms, func(f string) bool { return len(f) < minLength })...)
	slices.SortFunc(r.forms, func(a, b string) int { return len(b) - len(a) })
	r.forms = slices.Compact(r.forms)
}

// formsOf are the forms in which a secret travels.
func formsOf(s string) []string {
	query, path := url.QueryEscape(s), url.PathEscape(s)
	quoted, _ := json.Marshal(s) // a string always has a JSON form
	plain := strings.NewReplacer(`\u0026`, "&", `\u003c`, "<", `\u003e`, ">").Replace(string(quoted))
	var inXML strings.Builder
	_ = xml.EscapeText(&inXML, []byte(s)) // a strings.Builder does not fail
	return append(base64Of(s), s, query, path, everyByte(s),
		strings.Trim(string(quoted), `"`), strings.Trim(plain, `"`), inXML.String(), html.EscapeString(s),
		hex.EncodeToString([]byte(s)), strings.ToUpper(hex.EncodeToString([]byte(s))))
}

// base64Of is what a text has in common with any base64 text that holds it, by its
// place in a group of three bytes.
func base64Of(s string) (forms []string) {
	for lead := range 3 {
		padded := strings.Repeat("\x00", lead) + s
		for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			text := enc.EncodeToString([]byte(padded))
			// The characters at the ends depend on the neighbours, too.
			text = text[(lead*8+5)/6:]
			if cut := len(padded) % 3; cut != 0 {
				text = text[:max(0, len(text)-1)]
			}
			forms = append(forms, text)
		}
	}
	return forms
}

// everyByte is the percent-encoding of every byte that is no letter or digit.
func everyByte(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' {
			b.WriteByte(c)
		} else {
			b.WriteString("%" + strings.ToUpper(hex.EncodeToString([]byte{c})))
		}
	}
	return b.String()
}

var percent = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)

// upperEscapes writes percent-encoding in upper case, as the forms have it.
func upperEscapes(s string) string { return percent.ReplaceAllStringFunc(s, strings.ToUpper) }

// ownForms are secrets that show by their form: what follows the schemes of an
// Authorization header, and tokens.
var ownForms = regexp.MustCompile(`(?i)\b(basic|bearer|sharedkey|sharedkeylite)(\s+|%20|\+)[^\s"'<>,;&]{6,}|\beyJ[A-Za-z0-9_-]{10,}(\.[A-Za-z0-9_-]*){0,2}|(?i)\b(sig|accountkey|sharedaccesskey|password|passwd|pwd)=[^\s"'<>,;&]{4,}`)

var keepName = regexp.MustCompile(`(?i)^(basic|bearer|sharedkeylite|sharedkey|sig|accountkey|sharedaccesskey|password|passwd|pwd)(\s+|%20|\+|=)`)

// Text returns s without secrets.
func (r *Redactor) Text(s string) string {
	if s == "" {
		return s
	}
	if r != nil {
		r.mu.Lock()
		upper := upperEscapes(s)
		for _, form := range r.forms {
			if strings.Contains(upper, form) {
				s = strings.ReplaceAll(upper, form, mark)
				upper = s
			}
		}
		s = cutEnd(s, r.forms)
		r.mu.Unlock()
	}
	return ownForms.ReplaceAllStringFunc(s, func(found string) string {
		name := keepName.FindString(found)
		if !strings.HasSuffix(name, "=") && strings.Trim(found[len(name):], "abcdefghijklmnopqrstuvwxyz") == "" {
			return found // a word: no token has small letters only
		}
		return name + mark
	})
}

// cutEnd cuts the beginning of a form where a text was cut itself: at its end, and before
// dots and closing quotes inside, as others add something behind.
func cutEnd(s string, forms []string) string {
	for _, form := range forms {
		for n := min(len(form), len(s)); n >= minPrefix; n-- {
			begin := form[:n]
			for at := 0; ; {
				i := strings.Index(s[at:], begin)
				if i < 0 {
					break
				}
				at += i
				if isCut(s[at+n:]) {
					s = s[:at] + mark + s[at+n:]
				}
				at++
			}
		}
	}
	return s
}

// isCut reports whether a text in front of rest may have been cut there.
func isCut(rest string) bool {
	return rest == "" || strings.HasPrefix(rest, "...") || strings.HasPrefix(rest, "…") || strings.HasPrefix(rest, `"`) || strings.HasPrefix(rest, `\"`) || strings.HasPrefix(rest, "'")
}

// Error returns err with a text without secrets; err itself where there are none. What
// it wraps stays.
func (r *Redactor) Error(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if clean := r.Text(text); clean != text {
		return &cleanError{err, clean}
	}
	return err
}

// cleanError is an error with another text.
type cleanError struct {
	err  error
	text string
}

func (e *cleanError) Error() string { return e.text }

func (e *cleanError) Unwrap() error { return e.err }
