package integration_test

import (
	"context"
	"net/url"
	"strings"
	"testing"

	"qualys-sentinel/handler/internal/integration"
)

// Only names below Azure's own domains are addresses of Log Analytics, however others are
// written. Whatever is taken is an address that every reader reads alike.
func TestFurtherAddressesThatAreRefused(t *testing.T) {
	const azure = ".ingest.monitor.azure.com"
	for name, address := range map[string]string{
		"zone, encoded":                  "https://[fe80::1%25" + azure + "]",
		"zone of an IPv4-mapped address": "https://[::ffff:10.0.0.1%25" + azure + "]",
		"zone and a port":                "https://[::1%25eth0" + azure + "]:443",
		"zone, encoded twice":            "https://[::1%2525" + azure + "]",
		"zone without brackets":          "https://::1%25" + azure,
		"IPv4":                           "https://10.0.0.1",
		"IPv4, decimal":                  "https://2130706433",
		"IPv4, octal":                    "https://0177.0.0.1",
		"IPv4, hexadecimal":              "https://0x7f000001",
		"IPv4, short":                    "https://127.1",
		"IPv4, everything":               "https://0.0.0.0",
		"IPv6":                           "https://[2001:db8::1]",
		"IPv6, unspecified":              "https://[::]",
		"IPv4-mapped":                    "https://[::ffff:169.254.169.254]",
		"metadata service":               "https://169.254.169.254",
		"loopback":                       "https://127.0.0.1",
		"loopback in the clear":          "http://127.0.0.1:8080",
		"loopback, another":              "https://127.255.255.254",
		"loopback, IPv6":                 "https://[::1]",
		"loopback, IPv6 in full":         "https://[0:0:0:0:0:0:0:1]",
		"loopback, mapped":               "https://[::ffff:127.0.0.1]",
		"localhost":                      "https://localhost",
		"localhost, upper case":          "https://LOCALHOST",
		"localhost with a dot":           "https://localhost.",
		"user info":                      "https://user@rule-ab12" + azure,
		"user info of another host":      "https://rule-ab12" + azure + "@evil.example",
		"user info, encoded":             "https://rule-ab12" + azure + "%40evil.example",
		"password":                       "https://u:p@rule-ab12" + azure,
		"the suffix alone":               "https://ingest.monitor.azure.com",
		"the suffix behind a dot":        "https://" + azure,
		"joined to the suffix":           "https://xingest.monitor.azure.com",
		"suffix in the middle":           "https://x" + azure + ".evil.example",
		"suffix with a dash":             "https://x.ingest-monitor.azure.com",
		"another of Azure's":             "https://x.monitor.azure.com",
		"another top":                    "https://x.ingest.monitor.azure.co",
		"empty label":                    "https://x..ingest.monitor.azure.com",
		"label that begins with a dash":  "https://-x" + azure,
		"label that ends with a dash":    "https://x-" + azure,
		"trailing dot":                   "https://x" + azure + ".",
		"two trailing dots":              "https://x" + azure + "..",
		"backslash":                      `https://evil.example\` + azure,
		"backslash and at":               `https://evil.example\@x` + azure,
		"tab":                            "https://evil.example\t" + azure,
		"tab inside":                     "https://x.ingest\t.monitor.azure.com",
		"line break":                     "https://evil.example\n" + azure,
		"carriage return":                "https://x" + azure + "\r\nHost: evil.example",
		"blank":                          "https://evil.example " + azure,
		"NUL":                            "https://evil.example\x00" + azure,
		"NUL, encoded":                   "https://evil.example%00" + azure,
		"dot, encoded":                   "https://x%2eingest.monitor.azure.com",
		"slash, encoded":                 "https://evil.example%2f" + azure,
		"number sign, encoded":           "https://evil.example%23" + azure,
		"fragment":                       "https://evil.example#" + azure,
		"query":                          "https://evil.example?" + azure,
		"path":                           "https://evil.example/" + azure,
		"path parameters":                "https://evil.example;" + azure,
		"Cyrillic letter":                "https://x.ingest.monit\u043er.azure.com",
		"Kelvin sign":                    "https://x.ingest.monitor.azure.com\u212a",
		"long s":                         "https://x.inge\u017ft.monitor.azure.com",
		"full width":                     "https://x.ingest.monitor.ａzure.com",
		"ideographic full stop":          "https://x\u3002ingest.monitor.azure.com",
		"soft hyphen":                    "https://x.ingest.moni\u00adtor.azure.com",
		"zero width":                     "https://x.ingest.monitor.azure.com\u200b",
		"name beyond ASCII":              "https://bücher" + azure,
		"name beyond ASCII, encoded":     "https://b%C3%BCcher" + azure,
		"no scheme":                      "rule-ab12" + azure,
		"two slashes":                    "//rule-ab12" + azure,
		"one slash":                      "https:/rule-ab12" + azure,
		"no slash":                       "https:rule-ab12" + azure,
		"in the clear":                   "http://rule-ab12" + azure,
		"other scheme":                   "ftp://rule-ab12" + azure,
		"script":                         "javascript://rule-ab12" + azure,
		"empty port":                     "https://rule-ab12" + azure + ":",
		"port of words":                  "https://rule-ab12" + azure + ":https",
		"two ports":                      "https://rule-ab12" + azure + ":443:443",
		"port beyond 65535":              "https://rule-ab12" + azure + ":65536",
		"port zero":                      "https://rule-ab12" + azure + ":0",
		"label of 64":                    "https://" + strings.Repeat("x", 64) + azure,
		"name of 300":                    "https://" + strings.Repeat("abcdefghi.", 30) + "ingest.monitor.azure.com",
		"brackets around a name":         "https://[rule-ab12" + azure + "]",
		"old API, joined to the suffix":  "https://" + workspace + "xods.opinsights.azure.com",
		"old API, suffix in the middle":  "https://" + workspace + ".ods.opinsights.azure.com.evil.example",
		"old API, zone":                  "https://[::1%25" + workspace + ".ods.opinsights.azure.com]",
		"other cloud, joined":            "https://xingest.monitor.azure.us",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			doc := body(member("logAnalyticsUri", address), member("dcrImmutableId", rule), member("name", "n"))
			if strings.HasPrefix(name, "old API") {
				doc = keyed("n", member("logAnalyticsUri", address))
			}
			c, err := integration.Parse(doc)
			if err == nil {
				_, err = w.Add(context.Background(), c)
			}
			if err == nil || !strings.Contains(err.Error(), "logAnalyticsUri: ") {
				t.Errorf("%q: error = %v, want a refusal that names the field", address, err)
			}
		})
	}
}

// Good addresses are taken in any spelling, and kept as scheme and host.
func TestFurtherAddressesThatAreTaken(t *testing.T) {
	for in, want := range map[string]string{
		"https://rule-ab12.westeurope-1.ingest.monitor.azure.com":          "https://rule-ab12.westeurope-1.ingest.monitor.azure.com",
		"HTTPS://Rule-AB12.WestEurope-1.Ingest.Monitor.Azure.COM":          "https://rule-ab12.westeurope-1.ingest.monitor.azure.com",
		"\thttps://rule-ab12.westeurope-1.ingest.monitor.azure.com\n":      "https://rule-ab12.westeurope-1.ingest.monitor.azure.com",
		"https://rule-ab12.westeurope-1.ingest.monitor.azure.com/":         "https://rule-ab12.westeurope-1.ingest.monitor.azure.com",
		"https://rule-ab12.westeurope-1.ingest.monitor.azure.com/a?b=c#d":  "https://rule-ab12.westeurope-1.ingest.monitor.azure.com",
		"https://rule-ab12.westeurope-1.ingest.monitor.azure.com:443":      "https://rule-ab12.westeurope-1.ingest.monitor.azure.com:443",
		"https://rule-ab12.usgovvirginia-1.ingest.monitor.azure.us":        "https://rule-ab12.usgovvirginia-1.ingest.monitor.azure.us",
		"https://rule-ab12.chinanorth3-1.ingest.monitor.azure.cn":          "https://rule-ab12.chinanorth3-1.ingest.monitor.azure.cn",
		"https://" + strings.Repeat("x", 63) + ".ingest.monitor.azure.com": "https://" + strings.Repeat("x", 63) + ".ingest.monitor.azure.com",
		"https://127.0.0.1.ingest.monitor.azure.com":                       "https://127.0.0.1.ingest.monitor.azure.com",
	} {
		w := newWorld(t)
		i := w.add(t, body(member("logAnalyticsUri", in), member("dcrImmutableId", rule), member("name", "n")))
		if i.LogAnalyticsURI != want {
			t.Errorf("%q: kept as %q, want %q", in, i.LogAnalyticsURI, want)
		}
		if u, err := url.Parse(i.LogAnalyticsURI); err != nil || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
			t.Errorf("%q: kept as %q", in, i.LogAnalyticsURI)
		}
	}
}

// An update is judged as a new integration is, and leaves a refused address out.
func TestFurtherAddressesOfUpdates(t *testing.T) {
	w := newWorld(t)
	i := w.add(t, ruled("n"))
	for _, address := range []string{"https://127.0.0.1", "http://localhost:8080", "https://[::1%25.ingest.monitor.azure.com]", "https://x.ingest.monitor.azure.com.", "https://evil.example"} {
		c, err := integration.Parse(body(member("logAnalyticsUri", address)))
		if err == nil {
			_, err = w.Update(context.Background(), i.ID, c)
		}
		if err == nil {
			t.Errorf("%s was taken", address)
		}
	}
	after, err := w.Get(context.Background(), i.ID)
	if err != nil || after.LogAnalyticsURI != endpoint {
		t.Errorf("%+v, %v, want %s as before", after, err, endpoint)
	}
}
