package redact_test

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"html"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"qualys-sentinel/handler/internal/redact"
)

// entity writes every character of s as a numeric reference.
func entity(s, form string) string {
	var b strings.Builder
	for _, r := range s {
		fmt.Fprintf(&b, form, r)
	}
	return b.String()
}

// special writes the characters of s that are no letters or digits by one of these.
func special(s string, each func(r rune) string) string {
	var b strings.Builder
	for _, r := range s {
		if r < 0x80 && strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", r) {
			b.WriteRune(r)
		} else {
			b.WriteString(each(r))
		}
	}
	return b.String()
}

// percentBytes writes the bytes of one character by their values.
func percentBytes(form string) func(r rune) string {
	return func(r rune) (s string) {
		for _, c := range []byte(string(r)) {
			s += fmt.Sprintf(form, c)
		}
		return s
	}
}

func jsonText(s string) string {
	doc, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(doc)
}

func xmlText(s string) string {
	var b strings.Builder
	if err := xml.EscapeText(&b, []byte(s)); err != nil {
		panic(err)
	}
	return b.String()
}

// furtherSecrets are of the kinds that people have: with blanks, with characters that
// each encoding escapes, and beyond ASCII.
var furtherSecrets = map[string]string{
	"letters and digits":  "Winter2026Garden",
	"marks":               `Tr0ub4dor&3<">'x`,
	"blanks inside":       "correct horse battery 9",
	"beyond ASCII":        "Grüße-aus-Köln-7",
	"a key in base64":     "c2VjcmV0LWtleS1v+/Zi10aGUtd29ya3NwYWNlLW51bWJlcg==",
	"slashes and a colon": "ab/cd:ef/gh:12",
	"percent, upper case": "a%2Fb%3Cc-12345",
	"percent, lower case": "a%2fb%3cc-12345",
	"backslash":           `C:\new\table9`,
	"outside the plane":   "key-😀-secret-1",
}

// furtherForms are ways in which a service may send a secret back.
var furtherForms = map[string]func(s string) string{
	"plain":                                  func(s string) string { return s },
	"base64, 0 before":                       func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
	"base64, 1 before":                       func(s string) string { return base64.StdEncoding.EncodeToString([]byte("a" + s + "zz")) },
	"base64, 2 before":                       func(s string) string { return base64.StdEncoding.EncodeToString([]byte("ab" + s + "z")) },
	"base64 for URLs, raw":                   func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) },
	"base64 for URLs, raw, 1 before":         func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte("u" + s)) },
	"base64 in a query":                      func(s string) string { return url.QueryEscape(base64.StdEncoding.EncodeToString([]byte(s))) },
	"query":                                  url.QueryEscape,
	"query, in lower case":                   func(s string) string { return lowerEscapes(url.QueryEscape(s)) },
	"path":                                   url.PathEscape,
	"user info of a URL":                     func(s string) string { return url.UserPassword("u", s).String() },
	"every special byte, lower case":         func(s string) string { return special(s, percentBytes("%%%02x")) },
	"every byte":                             func(s string) string { return everyByteOf(s, "%%%02X") },
	"query twice":                            func(s string) string { return url.QueryEscape(url.QueryEscape(s)) },
	"XML":                                    xmlText,
	"HTML":                                   html.EscapeString,
	"HTML with names":                        namedEntities,
	"decimal entities of special characters": func(s string) string { return special(s, func(r rune) string { return fmt.Sprintf("&#%d;", r) }) },
	"hex entities of special characters":     func(s string) string { return special(s, func(r rune) string { return fmt.Sprintf("&#x%x;", r) }) },
	"hex entities, upper case":               func(s string) string { return special(s, func(r rune) string { return fmt.Sprintf("&#x%X;", r) }) },
	"decimal entities of all":                func(s string) string { return entity(s, "&#%d;") },
	"XML twice":                              func(s string) string { return xmlText(xmlText(s)) },
	"JSON":                                   jsonText,
	"JSON in ASCII":                          func(s string) string { return strings.Trim(strconv.QuoteToASCII(s), `"`) },
	"JSON in ASCII, as most libraries":       asciiJSON,
	"JSON with \\/":                          func(s string) string { return strings.ReplaceAll(jsonText(s), "/", `\/`) },
	"JSON, upper case escapes":               upperJSON,
	"JSON in JSON":                           func(s string) string { return jsonText(jsonText(s)) },
	"quoted by Go":                           strconv.Quote,
	"quoted by Go twice":                     func(s string) string { return strconv.Quote(strconv.Quote(s)) },
	"hexadecimal":                            func(s string) string { return hex.EncodeToString([]byte(s)) },
	"base64 of what is escaped for a query": func(s string) string {
		return base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(s)))
	},
	"base64 of JSON": func(s string) string {
		text, _ := json.Marshal(s)
		return base64.StdEncoding.EncodeToString(text)
	},
	"base64 of base64": func(s string) string {
		return base64.StdEncoding.EncodeToString([]byte(base64.StdEncoding.EncodeToString([]byte(s))))
	},
}

func lowerEscapes(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			b.WriteString(strings.ToLower(s[i : i+3]))
			i += 2
		} else {
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

func everyByteOf(s, form string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, form, s[i])
	}
	return b.String()
}

func namedEntities(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&apos;").Replace(s)
}

// asciiJSON escapes as Java's and Python's libraries do: with surrogates.
func asciiJSON(s string) string {
	var b strings.Builder
	for _, r := range strings.Trim(jsonText(s), `"`) {
		switch {
		case r < 0x80:
			b.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+(r-0x10000)>>10, 0xdc00+(r-0x10000)&0x3ff)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// upperJSON escapes what .NET's library does, in upper case.
func upperJSON(s string) string {
	return special(s, func(r rune) string {
		if r > 0xffff {
			return fmt.Sprintf(`\u%04X\u%04X`, 0xd800+(r-0x10000)>>10, 0xdc00+(r-0x10000)&0x3ff)
		}
		if strings.ContainsRune(`"&'<>+`, r) || r >= 0x80 {
			return fmt.Sprintf(`\u%04X`, r)
		}
		return string(r)
	})
}

// Whatever a known secret holds, and in whatever form it comes back, it is cut.
func TestFurtherFormsOfSecretsAreCut(t *testing.T) {
	for kind, secret := range furtherSecrets {
		for name, form := range furtherForms {
			t.Run(kind+"/"+name, func(t *testing.T) {
				r := &redact.Redactor{}
				r.Know(secret)
				sent := form(secret)
				if got := r.Text("the server said: " + sent + " (and more)"); strings.Contains(got, sent) {
					t.Errorf("left: %s", got)
				}
			})
		}
	}
}

// The same for the login that the Authorization header has, also where the password is
// too short to be looked for by itself.
func TestFurtherFormsOfLoginsAreCut(t *testing.T) {
	for name, c := range map[string]struct{ user, password string }{
		"usual":          {"acme_ab1", "Winter2026Garden"},
		"short password": {"acme_ab1", "x9!"},
		"both short":     {"abc", "12345"},
		"blanks":         {"acme ab1", "two words 9"},
		"beyond ASCII":   {"müller", "straße9ß"},
		"colons":         {"acme_ab1", "::a:b::"},
	} {
		login := c.user + ":" + c.password
		basic := base64.StdEncoding.EncodeToString([]byte(login))
		for form, sent := range map[string]string{
			"header":                 "Authorization: Basic " + basic,
			"value alone":            basic,
			"for URLs, raw":          base64.RawURLEncoding.EncodeToString([]byte(login)),
			"in a query":             url.QueryEscape(basic),
			"JSON":                   jsonText("Basic " + basic),
			"lower case scheme":      "authorization: basic " + basic,
			"entities of its marks":  special(basic, func(r rune) string { return fmt.Sprintf("&#x%x;", r) }),
			"plain":                  login,
			"plain, in a URL":        url.UserPassword(c.user, c.password).String(),
			"plain, in a query":      url.QueryEscape(login),
			"plain, in JSON":         jsonText(login),
			"JSON in ASCII":          asciiJSON(login),
			"in base64 of a header":  base64.StdEncoding.EncodeToString([]byte("Authorization: Basic " + basic)),
			"in hexadecimal":         hex.EncodeToString([]byte(login)),
			"cut with three dots":    basic[:len(basic)-3] + "...",
			"cut in a quoted string": strconv.Quote(basic[:len(basic)-3]),
		} {
			t.Run(name+"/"+form, func(t *testing.T) {
				r := &redact.Redactor{}
				r.KnowLogin(c.user, c.password)
				if got := r.Text("said " + sent + " end"); strings.Contains(got, sent) || strings.Contains(got, basic) {
					t.Errorf("left: %s", got)
				}
			})
		}
	}
}

// What a program writes behind a text that it has cut is not only dots and quotes.
func TestFurtherCutTexts(t *testing.T) {
	const secret = "S3cretPasswordOfQualys!xyz"
	basic := base64.StdEncoding.EncodeToString([]byte("acme_ab1:" + secret))
	for name, end := range map[string]string{
		"two dots in brackets": " [...]",
		"an angle bracket":     "</TEXT>",
		"truncated":            " (truncated)",
		"JSON":                 `"}`,
		"a line break":         "\nnext line",
		"an HTML ellipsis":     "&hellip;",
	} {
		t.Run(name, func(t *testing.T) {
			r := &redact.Redactor{}
			r.KnowLogin("acme_ab1", secret)
			for _, s := range []string{secret, basic} {
				for n := len(s) / 2; n < len(s); n++ {
					if got := r.Text("said " + s[:n] + end); strings.Contains(got, s[:len(s)/2]) {
						t.Fatalf("left: %s", got)
					}
				}
			}
		})
	}
}

// What shows by its form is cut, however its header is written.
func TestFurtherOwnForms(t *testing.T) {
	jwt := "eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJodHRwczovL21vbml0b3IuYXp1cmUuY29tIn0.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg"
	var r *redact.Redactor
	for name, c := range map[string]struct{ text, secret string }{
		"bearer in JSON":          {`{"Authorization":"Bearer ` + jwt + `"}`, jwt},
		"bearer with two blanks":  {"Authorization: Bearer  " + jwt, jwt},
		"bearer with a tab":       {"Authorization: Bearer\t" + jwt, jwt},
		"token in a member":       {`{"access_token":"` + jwt + `"}`, jwt},
		"token, cut":              {"token " + jwt[:60] + "...", jwt[:60]},
		"token behind a word":     {"access_token=" + jwt, jwt},
		"signature in a query":    {"https://a.blob.core.windows.net/c?sv=2020&sig=aB%2Fc%3D123456", "aB%2Fc%3D123456"},
		"signature, first":        {"https://a.blob.core.windows.net/c?sig=aB%2Fc%3D123456&sv=2020", "aB%2Fc%3D123456"},
		"signature in XML":        {"?sv=2020&amp;sig=aB%2Fc%3D123456&amp;se=1", "aB%2Fc%3D123456"},
		"shared key":              {"Authorization: SharedKey devstore:AbCd+/efgh1234==", "AbCd+/efgh1234"},
		"shared key, in a query":  {"Authorization=SharedKey%20devstore%3AAbCd%2B%2Fefgh", "AbCd%2B%2Fefgh"},
		"account key":             {"DefaultEndpointsProtocol=https;AccountName=a;AccountKey=AbCd+/efgh1234==;X=1", "AbCd+/efgh1234"},
		"account key, lower case": {"accountname=a;accountkey=AbCd+/efgh1234==", "AbCd+/efgh1234"},
		"basic, lower case only":  {"authorization: basic ywjjzgvmz2hpamts", "ywjjzgvmz2hpamts"},
		"proxy header":            {"Proxy-Authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := r.Text(c.text); strings.Contains(got, c.secret) {
				t.Errorf("left: %s", got)
			}
		})
	}
}

// Words are no secrets: what people have to read stays.
func TestFurtherTextsThatStay(t *testing.T) {
	r := &redact.Redactor{}
	r.KnowLogin("acme_ab1", "Winter2026Garden")
	r.Know("abc", "12345", "secret")
	for _, text := range []string{
		"the basic authentication scheme is refused",
		"Winter is cold, 2026 is a year, a Garden is green",
		"bearer tokens are refused; basic credentials are too",
		"check apiUsername (acme_ab1) and apiPassword",
		"code 12345 and abc",
		"HTTP/1.1 503 Service Unavailable",
		"id 100383: 250 of 500 hosts, 50% of them",
		"https://qualysapi.qualys.example/api/5.0/fo/asset/host/vm/detection/?a=%2f",
	} {
		if got := r.Text(text); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}
