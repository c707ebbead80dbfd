package redact_test

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"net/url"
	"strings"
	"testing"

	"qualys-sentinel/handler/internal/redact"
)

const user, password = "acme_ab1", "c4nary+P&ss<w>rd%ä\"'/ #"

func known() *redact.Redactor {
	r := &redact.Redactor{}
	r.KnowLogin(user, password)
	return r
}

// No form of a secret is left, and nothing else is cut.
func TestForms(t *testing.T) {
	r := known()
	quoted, err := json.Marshal(password)
	if err != nil {
		t.Fatal(err)
	}
	basic := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	for name, form := range map[string]string{
		"plain":                 password,
		"login":                 user + ":" + password,
		"Basic":                 "Basic " + basic,
		"base64 of the login":   basic,
		"its URL form":          base64.URLEncoding.EncodeToString([]byte(user + ":" + password)),
		"base64":                base64.StdEncoding.EncodeToString([]byte(password)),
		"inside other base64":   base64.StdEncoding.EncodeToString([]byte(`{"a":"` + password + `","b":1}`)),
		"one byte further":      base64.StdEncoding.EncodeToString([]byte(`{"ab":"` + password + `","b":1}`)),
		"two bytes further":     base64.StdEncoding.EncodeToString([]byte(`{"abc":"` + password + `","b":1}`)),
		"query":                 url.QueryEscape(password),
		"query, lower case":     strings.ReplaceAll(strings.ReplaceAll(url.QueryEscape(password), "%2B", "%2b"), "%3C", "%3c"),
		"path":                  url.PathEscape(password),
		"JSON":                  string(quoted),
		"HTML":                  html.EscapeString(password),
		"hexadecimal":           hex.EncodeToString([]byte(password)),
		"in a header of a dump": "Authorization: Basic " + basic + "\r\nAccept: */*",
	} {
		for _, secret := range []string{form} {
			text := r.Text("the server said: " + secret + " (and more)")
			if core := secret[len(secret)/4 : len(secret)/2]; strings.Contains(text, core) || !strings.Contains(text, "***") {
				t.Errorf("%s: %q is left of %q", name, text, secret)
			}
			if !strings.HasPrefix(text, "the server said: ") || !strings.HasSuffix(text, "(and more)") {
				t.Errorf("%s: more was cut: %q", name, text)
			}
		}
	}
}

// A text that was cut inside a secret keeps nothing of it.
func TestCutTexts(t *testing.T) {
	r := known()
	basic := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	for n := 6; n < len(basic); n++ {
		for _, end := range []string{"", "...", "…"} {
			if text := r.Text("said " + basic[:n] + end); strings.Contains(text, basic[:6]) {
				t.Errorf("%d characters of the secret are left: %q", n, text)
			}
		}
	}
}

// What shows by its form is cut without being known.
func TestOwnForms(t *testing.T) {
	var r *redact.Redactor
	for in, want := range map[string]string{
		"Authorization: Bearer abcDefghijkl":                       "Authorization: Bearer ***",
		"authorization=basic dXNlcjpwYXNz":                         "authorization=basic ***",
		"SharedKey 1234:c2lnbmF0dXJl":                              "SharedKey ***",
		"token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx.c2ln here":        "token *** here",
		"AccountName=a;AccountKey=c2VjcmV0c2VjcmV0;Endpoint=x":     "AccountName=a;AccountKey=***;Endpoint=x",
		"https://a.blob.example/x?sv=1&sig=abc%2Fdef%3D&se=2":      "https://a.blob.example/x?sv=1&sig=***&se=2",
		"the bearer of this letter, a basic rule, a signal":        "the bearer of this letter, a basic rule, a signal",
		"Basic authentication is required":                         "Basic authentication is required",
		"HTTP Basic Authentication is not enabled":                 "HTTP Basic Authentication is not enabled",
		"password=hunter22 was refused":                            "password=*** was refused",
		"check apiUsername and apiPassword; see password rotation": "check apiUsername and apiPassword; see password rotation",
	} {
		if got := r.Text(in); got != want {
			t.Errorf("%q\ngot  %q\nwant %q", in, got, want)
		}
	}
}

// Short secrets do not eat every text.
func TestShortSecrets(t *testing.T) {
	r := &redact.Redactor{}
	r.KnowLogin("u", "p")
	r.Know("a", "")
	if got := r.Text("a plain paper"); got != "a plain paper" {
		t.Errorf("got %q", got)
	}
	if got := r.Text("x " + base64.StdEncoding.EncodeToString([]byte("user:pa")) + " y"); !strings.HasPrefix(got, "x ") {
		t.Errorf("got %q", got)
	}
}

// An error keeps what it wraps.
func TestError(t *testing.T) {
	r := known()
	err := r.Error(fmt.Errorf("said %s: %w", password, io.EOF))
	if !errors.Is(err, io.EOF) || strings.Contains(err.Error(), "c4nary") || !strings.Contains(err.Error(), "EOF") {
		t.Errorf("got %v", err)
	}
	if plain := errors.New("plain"); r.Error(plain) != plain || r.Error(nil) != nil {
		t.Error("an error without secrets is another now")
	}
}

// Whatever the secret and the text around it, it is not in the result.
func FuzzText(f *testing.F) {
	f.Add("user", password, "before", "after")
	f.Add("u", "aaaaaaa", "a", "a")
	f.Fuzz(func(t *testing.T, user, secret, before, after string) {
		dense := strings.NewReplacer(" ", "", "\t", "", "\n", "", "\r", "", "+", "").Replace(secret)
		if len(dense) < 6 || len(secret) > 200 || strings.Trim(dense, "*") == "" {
			return
		}
		r := &redact.Redactor{}
		r.KnowLogin(user, secret)
		for _, form := range []string{secret, url.QueryEscape(secret), base64.StdEncoding.EncodeToString([]byte(user + ":" + secret))} {
			if got := r.Text(before + form + after); strings.Contains(got, secret) && !strings.Contains(before+"***"+after, secret) {
				t.Fatalf("%q is left in %q", secret, got)
			}
		}
	})
}

// What stands before a secret may make an escape of how it begins.
func TestEscapesAcrossTheBegin(t *testing.T) {
	for secret, texts := range map[string][]string{
		"nab&cdef99":   {`C:\nab%26cdef99`, `path\nab&amp;cdef99`, `DOM\nab\u0026cdef99 x`, `DOM\\nab\\u0026cdef99`},
		"ab12&cd34":    {`50%ab12%26cd34`},
		"amp;secret&9": {`x&amp;secret%269`},
	} {
		r := &redact.Redactor{}
		r.Know(secret)
		for _, text := range texts {
			if got := r.Text("said " + text + " end"); strings.Contains(got, text[len(text)-5:]) || !strings.HasSuffix(got, "end") {
				t.Errorf("%s: left %s", text, got)
			}
		}
	}
}

// The log asks for every line, with the keys of many integrations.
func BenchmarkText(b *testing.B) {
	r := known()
	for n := range 50 {
		r.Know(base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "the key of workspace %d, which is as long as those of Azure are", n)))
	}
	line := `{"level":"info","time":"2026-11-01T12:00:00.000Z","message":"run ended","run":"xz4uu3jamgocxcbl","dataset":"vm","outcome":"complete","counts":{"pages":1,"parents":1000,"decoded":54000,"repeated":0,"accepted":54000,"deadLetters":0},"took":"12.3s","reason":"\"quoted\""}`
	for b.Loop() {
		r.Text(line)
	}
}

// Texts that were cut stand inside others: what is left of a secret there goes, too.
func TestCutInQuotes(t *testing.T) {
	r := &redact.Redactor{}
	secret := "S3cretPasswordOfQualys!xyz"
	r.KnowLogin("user", secret)
	attrs := strings.Repeat("a", 80) + secret
	for _, text := range []string{
		fmt.Sprintf("%.40q has attributes: %.100q", "RESPONSE", attrs),
		fmt.Sprintf("text between its elements: %q", attrs[:100]+"..."),
		attrs[:100] + "...; another warning",
	} {
		if out := r.Text(text); strings.Contains(out, secret[:15]) {
			t.Errorf("%s", out)
		}
	}
}
