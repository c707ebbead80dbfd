package qualys_test

import (
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/qualys"
)

// What an answer asks to wait for is believed, in each form that HTTP has, and up to a
// maximum; what cannot be read leaves the usual wait.
func TestFurtherRetryAfter(t *testing.T) {
	const most = 65 * time.Minute
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	date := now.Format(http.TimeFormat)
	maintenance := "<SIMPLE_RETURN><RESPONSE><DATETIME>2026-11-01T12:00:00Z</DATETIME><CODE>1999</CODE><TEXT>Maintenance</TEXT></RESPONSE></SIMPLE_RETURN>"
	for name, c := range map[string]struct {
		status int
		after  []string // lines of the header
		date   string
		body   string
		want   time.Duration
	}{
		"503: seconds":                       {503, []string{"120"}, date, "", 2 * time.Minute},
		"503: blanks around":                 {503, []string{"  120 "}, date, "", 2 * time.Minute},
		"503: zeros before":                  {503, []string{"000120"}, date, "", 2 * time.Minute},
		"503: a date":                        {503, []string{"Sun, 01 Nov 2026 12:07:00 GMT"}, date, "", 7 * time.Minute},
		"503: a date of RFC 850":             {503, []string{"Sunday, 01-Nov-26 12:07:00 GMT"}, date, "", 7 * time.Minute},
		"503: a date as of C":                {503, []string{"Sun Nov  1 12:07:00 2026"}, date, "", 7 * time.Minute},
		"503: a date by a slow clock":        {503, []string{"Sun, 01 Nov 2026 11:07:00 GMT"}, "Sun, 01 Nov 2026 11:00:00 GMT", "", 7 * time.Minute},
		"503: a date that is over":           {503, []string{"Sun, 01 Nov 2026 11:00:00 GMT"}, date, "", time.Second},
		"503: a date, and no Date":           {503, []string{"Sun, 01 Nov 2026 12:07:00 GMT"}, "", "", 7 * time.Minute},
		"503: a date of next year":           {503, []string{"Mon, 01 Nov 2027 12:00:00 GMT"}, date, "", most},
		"503: a week":                        {503, []string{"604800"}, date, "", most},
		"503: a second over the maximum":     {503, []string{"3901"}, date, "", most},
		"503: negative":                      {503, []string{"-120"}, date, "", time.Second},
		"503: zero":                          {503, []string{"0"}, date, "", time.Second},
		"503: empty":                         {503, []string{""}, date, "", time.Second},
		"503: words":                         {503, []string{"soon"}, date, "", time.Second},
		"503: a unit":                        {503, []string{"120s"}, date, "", time.Second},
		"503: hexadecimal":                   {503, []string{"0x78"}, date, "", time.Second},
		"503: two lines":                     {503, []string{"120", "240"}, date, "", 2 * time.Minute},
		"503: with a document":               {503, []string{"120"}, date, maintenance, 2 * time.Minute},
		"503: with a page":                   {503, []string{"120"}, date, "<html><body>down</body></html>", 2 * time.Minute},
		"503: with text that is no document": {503, []string{"120"}, date, "down for maintenance", 2 * time.Minute},
		"502: seconds":                       {502, []string{"120"}, date, "", 2 * time.Minute},
		"504: a date":                        {504, []string{"Sun, 01 Nov 2026 12:07:00 GMT"}, date, "", 7 * time.Minute},
		"500: seconds":                       {500, []string{"120"}, date, "", 2 * time.Minute},
		"408: seconds":                       {408, []string{"120"}, date, "", 2 * time.Minute},
		"504: a week":                        {504, []string{"604800"}, date, "", most},
		"429: a date":                        {429, []string{"Sun, 01 Nov 2026 12:07:00 GMT"}, date, "", 7 * time.Minute},
		"429: negative":                      {429, []string{"-1"}, date, "", qualys.DefaultLimitWait},
		"429: empty":                         {429, []string{""}, date, "", qualys.DefaultLimitWait},
		"429: a week":                        {429, []string{"604800"}, date, "", most},
		"200: maintenance, by its code":      {200, []string{"120"}, date, maintenance, 2 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			cl, _ := client(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header()["Date"] = nil
				if c.date != "" {
					w.Header()["Date"] = []string{c.date}
				}
				w.Header()["Retry-After"] = c.after
				w.WriteHeader(c.status)
				io.WriteString(w, c.body)
			})
			cl.Now = func() time.Time { return now }
			_, _, err := ask(cl)
			var e *qualys.Error
			if !errors.As(err, &e) || e.After != c.want {
				t.Errorf("got %v, want to wait for %s", err, c.want)
			}
		})
	}
}

// A fraction of seconds is no form of HTTP; whoever writes one means some wait all the
// same, and that is bounded too.
func TestFurtherFractionOfRetryAfter(t *testing.T) {
	for value, most := range map[string]time.Duration{"120.5": 121 * time.Second, "1e9": 65 * time.Minute, "99999999999999999999": 65 * time.Minute, "+120": 2 * time.Minute, "120, 240": 4 * time.Minute} {
		for _, status := range []int{429, 502, 503, 504} {
			cl, _ := client(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", value)
				w.WriteHeader(status)
			})
			_, _, err := ask(cl)
			var e *qualys.Error
			if !errors.As(err, &e) || e.After < 0 || e.After > most {
				t.Errorf("%d with %q: %v, want to wait for %s at most", status, value, err, most)
			}
		}
	}
}
