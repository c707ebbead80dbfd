package qualys_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"qualys-sentinel/handler/internal/redact"
)

// Whatever the password holds, and wherever an answer repeats it, neither error, warning
// nor the state that all processes share has it.
func TestFurtherEchoedPasswords(t *testing.T) {
	inXML := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace
	answers := map[string]func(w http.ResponseWriter, password, header string){
		"text": func(w http.ResponseWriter, password, _ string) {
			w.WriteHeader(500)
			io.WriteString(w, "<SIMPLE_RETURN><RESPONSE><TEXT>no login with "+inXML(password)+" here</TEXT></RESPONSE></SIMPLE_RETURN>")
		},
		"code": func(w http.ResponseWriter, password, _ string) {
			w.WriteHeader(400)
			io.WriteString(w, "<SIMPLE_RETURN><RESPONSE><CODE>"+inXML(password)+"</CODE><TEXT>x</TEXT></RESPONSE></SIMPLE_RETURN>")
		},
		"warning": func(w http.ResponseWriter, password, _ string) {
			io.WriteString(w, page("<HOST_LIST><HOST><ID>1</ID></HOST></HOST_LIST><WARNING><TEXT>"+inXML(password)+"</TEXT></WARNING>"))
		},
		"a limit that is kept": func(w http.ResponseWriter, password, _ string) {
			w.Header().Set("Retry-After", "600")
			w.WriteHeader(503)
			io.WriteString(w, "<SIMPLE_RETURN><RESPONSE><TEXT>"+inXML(password)+"</TEXT></RESPONSE></SIMPLE_RETURN>")
		},
		"between elements": func(w http.ResponseWriter, password, _ string) { io.WriteString(w, page("x "+inXML(password))) },
		"header in two lines": func(w http.ResponseWriter, _, header string) {
			w.WriteHeader(500)
			io.WriteString(w, "<SIMPLE_RETURN><RESPONSE><TEXT>Authorization: "+header[:22]+"\n"+header[22:]+"</TEXT></RESPONSE></SIMPLE_RETURN>")
		},
	}
	for kind, password := range map[string]string{
		"usual":               "Winter2026Garden-of-Eden",
		"two blanks inside":   "Winter  2026  Garden",
		"a tab inside":        "Winter\t2026-Garden",
		"percent, lower case": "Winter%2f2026-Garden",
		"marks":               `Winter"2026'<Garden>`,
		"beyond ASCII":        "Wïnter-2026-Gärten",
		"a backslash":         `Winter\2026\Garden`,
	} {
		for name, answer := range answers {
			t.Run(kind+"/"+name, func(t *testing.T) {
				cl, l := client(t, func(w http.ResponseWriter, r *http.Request) { answer(w, password, r.Header.Get("Authorization")) })
				l.pass = password
				cl.Redactor, cl.Memory = &redact.Redactor{}, &shared{}
				_, p, err := ask(cl)
				said := fmt.Sprintf("%v %s %s %s", err, p.Warning, p.Doubt, cl.Memory.(*shared).doc)
				basic := base64.StdEncoding.EncodeToString([]byte("user:" + password))
				for _, part := range []string{password, strings.Join(strings.Fields(password), " "), fmt.Sprintf("%.17q", password)[1:16], basic[len(basic)-16:]} {
					if strings.Contains(said, part) {
						t.Errorf("%q is in %s", part, said)
					}
				}
				if err == nil && p.Warning == "" {
					t.Error("neither an error nor a warning")
				}
			})
		}
	}
}
