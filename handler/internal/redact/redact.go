// Package redact cuts secrets out of texts that leave: errors, logs, state, answers.
// A service may send back what it was sent, such as the Authorization header, and such
// a text is quoted then.
//
// It knows in which encodings a secret travels, one inside the other (decode.go), and
// guarantees that none of them is in what Text returns, not even its beginning at the
// end of a text that was cut. Blanks inside do not count. A secret of fewer than
// minLength characters is cut as a part of a login only: it may stand in any text by
// chance. Where texts come from does not enter here.
package redact

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// mark stands in the place of what was cut.
const mark = "***"

const (
	// minLength is the shortest secret that is looked for by itself, in bytes that are
	// no blanks.
	minLength = 6
	// minPrefix is how much of a form at the end of a text is taken for the form.
	minPrefix = 6
)

// A Redactor knows secrets. Its zero value knows none but those that have a form of
// their own; a nil one does, too.
type Redactor struct {
	mu    sync.Mutex
	known map[string]bool // secrets, and logins
	// forms are squeezed, by how they begin: the search costs no more with many.
	forms   map[[minPrefix]byte][][]byte
	longest int // of them
}

// Know adds secrets.
func (r *Redactor) Know(secrets ...string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range secrets {
		r.add(s)
	}
}

// KnowLogin adds a password, and the login that it makes with the user's name.
func (r *Redactor) KnowLogin(user, password string) {
	if password != "" {
		r.Know(password, user+":"+password)
	}
}

// add adds the forms of a secret.
func (r *Redactor) add(secret string) {
	if r.known[secret] || len(squeeze(plainView(secret)).text) < minLength {
		return
	}
	if r.known == nil {
		r.known, r.forms = map[string]bool{}, map[[minPrefix]byte][][]byte{}
	}
	r.known[secret] = true
	for _, form := range formsOf(secret) {
		// Decoded as texts are, each once more: what is searched is decoded, too.
		for _, v := range views(form) {
			text := squeeze(v).text
			if len(text) < minLength {
				continue
			}
			begin := [minPrefix]byte(text)
			if !slices.ContainsFunc(r.forms[begin], func(f []byte) bool { return bytes.Equal(f, text) }) {
				r.forms[begin] = append(r.forms[begin], text)
				r.longest = max(r.longest, len(text))
			}
		}
	}
}

// formsOf are the forms of a secret that are no mere escapes of its characters.
func formsOf(s string) []string {
	in64 := base64.StdEncoding.EncodeToString([]byte(s))
	in16 := hex.EncodeToString([]byte(s))
	forms := slices.Concat([]string{s, in16, strings.ToUpper(in16)}, base64Of(s), base64Of(in64))
	asJSON, err := json.Marshal(s)
	if err != nil {
		return forms // a text can be written
	}
	for _, escaped := range []string{url.QueryEscape(s), url.PathEscape(s), string(asJSON[1 : len(asJSON)-1])} {
		if escaped != s {
			forms = append(forms, base64Of(escaped)...)
		}
	}
	return forms
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

// Code returns the error code of a service's answer as it is to be told: itself, if it is
// a name, as those of all services are. Anything else may be what the service was sent.
func Code(s string) string {
	if s == "" || aName.MatchString(s) {
		return s
	}
	return mark
}

var aName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$`)

// ownForms are secrets that show by their form: what follows the schemes of an
// Authorization header, and tokens.
var ownForms = regexp.MustCompile(`(?i)\b(basic|bearer|sharedkey|sharedkeylite)(\s+|%20|\+)[^\s"'<>,;&]{6,}|\beyJ[A-Za-z0-9_-]{10,}(\.[A-Za-z0-9_-]*){0,2}|(?i)\b(sig|accountkey|sharedaccesskey|password|passwd|pwd)=[^\s"'<>,;&]{4,}`)

var keepName = regexp.MustCompile(`(?i)^(basic|bearer|sharedkeylite|sharedkey|sig|accountkey|sharedaccesskey|password|passwd|pwd)(\s+|%20|\+|=)`)

// Text returns s without secrets.
func (r *Redactor) Text(s string) string {
	if s == "" {
		return s
	}
	return ownForms.ReplaceAllStringFunc(r.cut(s), func(found string) string {
		name := keepName.FindString(found)
		if !strings.HasSuffix(name, "=") && strings.Trim(found[len(name)+1:], "abcdefghijklmnopqrstuvwxyz") == "" {
			return found // a word: no token has small letters only, but for the first
		}
		return name + mark
	})
}

// cut returns s without the secrets that are known.
func (r *Redactor) cut(s string) string {
	if r == nil {
		return s
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.forms) == 0 {
		return s
	}
	var found []span
	for _, v := range views(s) {
		found = append(found, r.find(v, len(v.text))...)
		for _, e := range v.escapes {
			// Twice as long, for blanks in it.
			found = append(found, r.find(v.fromInside(e, 2*r.longest), e.end-e.at-1)...)
		}
	}
	return without(s, found)
}

// find lists where forms begin among the first bytes of a view: whole, or as far as they
// go where the text was cut.
func (r *Redactor) find(v view, first int) (found []span) {
	dense := squeeze(v)
	for at := range max(0, len(dense.text)-minPrefix+1) {
		if int(dense.at[at]) >= first {
			break
		}
		for _, form := range r.forms[[minPrefix]byte(dense.text[at:])] {
			if n := common(form, dense.text[at:]); n == len(form) || isCut(v.text[dense.at[at+n-1]+1:]) {
				found = append(found, span{int(dense.from[at]), int(dense.to[at+n-1])})
			}
		}
	}
	return found
}

// common is how many bytes two texts have in common at their begin.
func common(a, b []byte) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// isCut reports whether rest is what follows where a text was cut.
func isCut(rest []byte) bool { return cutEnd.Match(rest[:min(len(rest), maxCutEnd)]) }

// cutEnd is nothing, perhaps behind a piece of an escape, or what others write behind such
// a text.
var cutEnd = regexp.MustCompile(`^(%[0-9A-Fa-f]?|\\[uUx]?[0-9A-Fa-f]{0,7}|&#?[0-9A-Za-z]{0,7})?\s*($|\.\.\.|…|["'<\n\r]|[\[(]\s*(\.\.|…|trunc|cut))`)

// maxCutEnd is how much of what follows is looked at, in bytes.
const maxCutEnd = 40

// without returns s with a mark in the place of spans.
func without(s string, spans []span) string {
	if len(spans) == 0 {
		return s
	}
	slices.SortFunc(spans, func(a, b span) int { return a.from - b.from })
	var b strings.Builder
	at := 0
	for i := 0; i < len(spans); {
		from, to := spans[i].from, spans[i].to
		for i++; i < len(spans) && spans[i].from <= to; i++ {
			to = max(to, spans[i].to)
		}
		b.WriteString(s[at:from])
		b.WriteString(mark)
		at = to
	}
	b.WriteString(s[at:])
	return b.String()
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
