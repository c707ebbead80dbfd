package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/functions"
)

// The last of the addresses counts, in every form that a front end may write it in, and
// nothing that stands before it.
func TestFurtherAddresses(t *testing.T) {
	hundred := strings.Repeat("203.0.113.9, ", 100)
	for name, c := range map[string]struct {
		lines []string
		want  string
	}{
		"a hundred before it":              {[]string{hundred + "198.51.100.7:50001"}, "198.51.100.7"},
		"a hundred lines before it":        {append(strings.Split(hundred, " "), "198.51.100.7"), "198.51.100.7"},
		"a megabyte before it":             {[]string{strings.Repeat("x", 1<<20) + ",198.51.100.7"}, "198.51.100.7"},
		"blanks and tabs around it":        {[]string{"203.0.113.9,\t 198.51.100.7:50001 \t"}, "198.51.100.7"},
		"empty entries before it":          {[]string{",,,", "", ",198.51.100.7"}, "198.51.100.7"},
		"quotes before it":                 {[]string{`"203.0.113.9, 198.51.100.8", 198.51.100.7`}, "198.51.100.7"},
		"port 0":                           {[]string{"198.51.100.7:0"}, "198.51.100.7"},
		"a port that is none":              {[]string{"198.51.100.7:http"}, "198.51.100.7"},
		"brackets around IPv4":             {[]string{"[198.51.100.7]:443"}, "198.51.100.7"},
		"IPv6 in brackets, no port":        {[]string{"[2001:db8:1:2::9]"}, "2001:db8:1::/48"},
		"IPv6, written in full":            {[]string{"2001:0db8:0001:0002:0000:0000:0000:0009"}, "2001:db8:1::/48"},
		"IPv6 with a zone and a port":      {[]string{"[fe80::1%12]:443"}, "fe80::/48"},
		"IPv4 in IPv6, with a zone":        {[]string{"::ffff:198.51.100.7%eth0"}, "198.51.100.7"},
		"IPv4 in IPv6, in hexadecimal":     {[]string{"0:0:0:0:0:FFFF:C633:6407"}, "198.51.100.7"},
		"an empty header":                  {[]string{""}, "unknown"},
		"blanks only":                      {[]string{"  "}, "unknown"},
		"a port only":                      {[]string{":443"}, "unknown"},
		"brackets only":                    {[]string{"[]:443"}, "unknown"},
		"leading zeros, which mean either": {[]string{"198.051.100.007"}, "unknown"},
		"a number":                         {[]string{"3325256711"}, "unknown"},
		"a network":                        {[]string{"198.51.100.0/24"}, "unknown"},
		"Forwarded's form":                 {[]string{"for=198.51.100.7"}, "unknown"},
		"two addresses in one":             {[]string{"198.51.100.7 203.0.113.9"}, "unknown"},
		"NUL behind it":                    {[]string{"198.51.100.7\x00"}, "unknown"},
	} {
		if got := address(&http.Request{Header: http.Header{"X-Forwarded-For": c.lines}}); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

// One who has a network of his own takes no more places than one who has an address.
func TestOneClientWithANetworkLeavesPlacesToTheOwner(t *testing.T) {
	for name, c := range map[string]struct {
		first string
		bits  int // the network that a provider gives, or that an IPv4 address brings along
	}{
		"one network of IPv6":                   {"2001:db8:1:2::", 64},
		"a home's network":                      {"2001:db8:1:200::", 56},
		"a site's network":                      {"2001:db8:1::", 48},
		"6to4, which an IPv4 address gives":     {"2002:c633:6407::", 48},
		"a NAT64, which many are behind":        {"64:ff9b::c633:6407", 96},
		"addresses of a link, which are no one": {"fe80::", 64},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.pauses.hold = make(chan struct{})
			codes := make(chan int, maxLogins)
			first := netip.MustParseAddr(c.first).As16()
			for n := range maxLogins {
				go func() {
					at := first
					if c.bits < networkBits {
						at[7] += byte(n / maxFrom) // another network of 64 bits for every few
					}
					at[15] += byte(n)
					code, _, _ := d.call("GET", "get/"+product, "", "Authorization", basic("u", "p"), "X-Forwarded-For", fmt.Sprintf("[%s]:50000", netip.AddrFrom16(at)))
					codes <- code
				}()
			}
			refused := 0
			for full := false; !full && refused < maxLogins-maxFrom; {
				select {
				case code := <-codes:
					if code != http.StatusTooManyRequests {
						t.Errorf("code = %d, want 429", code)
					}
					refused++
				default:
					d.api.mu.Lock()
					full = d.api.calls == maxLogins
					d.api.mu.Unlock()
					runtime.Gosched()
				}
			}
			if _, err := d.api.enter("203.0.113.5"); err != nil {
				t.Errorf("the owner: %v, want a place", err)
			}
			close(d.pauses.hold)
			for range maxLogins - refused {
				<-codes
			}
		})
	}
}

// panicking is a registry that panics, as a mistake of ours would.
type panicking struct{ Registry }

// Whatever becomes of a call, its place is free behind it.
func TestPlacesAreFreeBehindEveryCall(t *testing.T) {
	right := basic(testUser, testPassword)
	for name, c := range map[string]struct {
		method, path, body, auth string
		err                      error
		registry                 Registry
		gone                     bool
	}{
		"served":                    {method: "GET", path: "get/" + product, auth: right},
		"wrong login":               {method: "GET", path: "get/" + product, auth: basic("u", "p")},
		"no login":                  {method: "GET", path: "get/" + product},
		"a login that is no base64": {method: "GET", path: "get/" + product, auth: "Basic %%%"},
		"a login of 100 kB":         {method: "GET", path: "get/" + product, auth: "Basic " + strings.Repeat("QUFB", 25_000)},
		"HEAD":                      {method: "HEAD", path: "get/" + product, auth: right},
		"PATCH":                     {method: "PATCH", path: "update/" + product1, auth: right},
		"OPTIONS":                   {method: "OPTIONS", path: "add/" + product, auth: right},
		"a body that is too long":   {method: "POST", path: "add/" + product, auth: right, body: strings.Repeat(" ", 70_000)},
		"deep JSON":                 {method: "POST", path: "add/" + product, auth: right, body: strings.Repeat("[", 60_000)},
		"deep JSON in a member":     {method: "POST", path: "add/" + product, auth: right, body: `{"tags":` + strings.Repeat("[", 30_000) + strings.Repeat("]", 30_000) + "}"},
		"an id of 60 kB":            {method: "GET", path: "get/integration/azure/sentinel/" + strings.Repeat("9", 60_000) + "/vm", auth: right},
		"settings that are wrong":   {method: "GET", path: "get/" + product, err: errors.New("broken")},
		"switched off":              {method: "GET", path: "get/" + product, err: ErrOff},
		"a panic":                   {method: "GET", path: "get/" + product, auth: right, registry: panicking{}},
		"a caller who has gone":     {method: "GET", path: "get/" + product, auth: basic("u", "p"), gone: true},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			registry := d.backend.registry
			d.backend.err = c.err
			if c.registry != nil {
				d.backend.registry = c.registry
			}
			for range 3 * maxFrom {
				ctx, cancel := context.WithCancel(context.Background())
				if c.gone {
					cancel()
				}
				r := httptest.NewRequest(c.method, "/qps/rest/2.0/x", strings.NewReader(c.body)).WithContext(ctx)
				verb, rest, _ := strings.Cut(c.path, "/integration/azure/sentinel/")
				r.SetPathValue("verb", verb)
				r.SetPathValue("rest", rest)
				r.Header.Set("X-Forwarded-For", "198.51.100.7")
				if c.auth != "" {
					r.Header.Set("Authorization", c.auth)
				}
				w := httptest.NewRecorder()
				func() {
					defer func() { _ = recover() }()
					d.api.ServeHTTP(w, r)
				}()
				cancel()
				if w.Code == http.StatusTooManyRequests {
					t.Fatal("a place is lost")
				}
			}
			d.backend.err, d.backend.registry = nil, registry
			if code, _, _ := d.call("GET", "get/"+product, "", "X-Forwarded-For", "198.51.100.7"); code != http.StatusOK {
				t.Errorf("the owner: %d, want 200", code)
			}
			d.api.mu.Lock()
			defer d.api.mu.Unlock()
			if d.api.calls != 0 || len(d.api.from) != 0 {
				t.Errorf("calls = %d, from = %v, want none", d.api.calls, d.api.from)
			}
		})
	}
}

// Two hundred anonymous callers, each with the longest body that is read, take little
// memory while they wait for their turn to log in.
func TestAnonymousBodiesTakeLittleMemory(t *testing.T) {
	long := strings.Repeat("x", 120<<10)
	header := `{"X-Forwarded-For":["198.51.%d.7:1"],"Authorization":["Basic dTpw"]%s}`
	var headers strings.Builder
	for n := range 100 { // as many, and as long, as the host's server takes
		fmt.Fprintf(&headers, `,"X-%d":["%s"]`, n, strings.Repeat("h", 300))
	}
	for name, c := range map[string]struct{ headers, body string }{
		"text":          {"", `"` + long + `"`},
		"many escapes":  {"", `"` + strings.Repeat(`\"`, 60<<10) + `"`},
		"NUL":           {"", `"` + strings.Repeat(`\u0000`, 20<<10) + `"`},
		"an object":     {"", `{"a":"` + long + `"}`},
		"a deep array":  {"", strings.Repeat("[", 9_000) + strings.Repeat("]", 9_000)},
		"a wide array":  {"", "[" + strings.Repeat("0,", 50<<10) + "0]"},
		"base64":        {`,"Content-Type":["application/octet-stream"]`, `"` + strings.Repeat("QUFB", 30<<10) + `"`},
		"broken base64": {`,"Content-Type":["multipart/form-data; boundary=x"]`, `"` + strings.Repeat("%", 120<<10) + `"`},
		"long headers":  {headers.String(), `"x"`},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.pauses.hold = make(chan struct{})
			host := &functions.Host{Log: zap.NewNop(), HTTP: map[string]http.Handler{"QualysIntegration": d.api}}
			heap := func() int64 {
				var stats runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&stats)
				return int64(stats.HeapAlloc)
			}
			before := heap()
			const callers = 200
			codes := make(chan int, callers)
			for n := range callers {
				go func() {
					parts := []io.Reader{
						strings.NewReader(`{"Data":{"req":{"Url":"https://x/","Method":"POST","Headers":` + fmt.Sprintf(header, n, c.headers) + `,"Params":{"verb":"add","rest":"vm"},"Body":`),
						strings.NewReader(c.body), strings.NewReader(`}},"Metadata":{}}`),
					}
					w := httptest.NewRecorder()
					host.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/QualysIntegration", io.MultiReader(parts...)))
					var doc struct {
						Outputs struct {
							Res struct{ StatusCode int }
						}
					}
					if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil {
						t.Error(err)
					}
					codes <- doc.Outputs.Res.StatusCode
				}()
			}
			inside := maxLogins
			if slices.Contains([]string{"text", "an object", "base64", "broken base64", "a wide array"}, name) { // too long, or broken
				inside = 0
			}
			for range callers - inside {
				// Longer than any integration is, it does not even get a place.
				if code := <-codes; code != http.StatusTooManyRequests && code != http.StatusRequestEntityTooLarge && inside > 0 {
					t.Errorf("code = %d, want 429 or 413", code)
				}
			}
			if took := (heap() - before) >> 20; took > 12 {
				t.Errorf("took = %d MiB, want 12 at most", took)
			}
			close(d.pauses.hold)
			for range inside {
				<-codes
			}
		})
	}
}
