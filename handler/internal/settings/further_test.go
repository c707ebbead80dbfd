package settings_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/e2e/canary"
	"qualys-sentinel/handler/internal/settings"
)

// Schedules that the Functions host takes, and when they come next after Sunday, 1
// November 2026, 12:00:00.
func TestFurtherGoodSchedules(t *testing.T) {
	for schedule, want := range map[string]string{
		"0 0 6 * * *":                  "2026-11-02T06:00:00Z",
		"  0   0  6 * *  * ":           "2026-11-02T06:00:00Z",
		"59 59 23 * * *":               "2026-11-01T23:59:59Z",
		"0 0 0 31 12 *":                "2026-12-31T00:00:00Z",
		"05 007 06 01 012 *":           "2026-12-01T06:07:05Z",
		"0 */5 * * * *":                "2026-11-01T12:05:00Z",
		"0 3/5 * * * *":                "2026-11-01T12:03:00Z",
		"0 50/5 * * * *":               "2026-11-01T12:50:00Z",
		"0 0 23/1 * * *":               "2026-11-01T23:00:00Z",
		"0 0 8-18/5 * * *":             "2026-11-01T13:00:00Z",
		"0 0 6 * * MON-FRI":            "2026-11-02T06:00:00Z",
		"0 0 6 * * mon,WED,Fri":        "2026-11-02T06:00:00Z",
		"0 0 6 * * sunday":             "2026-11-08T06:00:00Z",
		"0 0 6 * * Thurs":              "2026-11-05T06:00:00Z", // any beginning of a name
		"0 0 6 * Sept *":               "2027-09-01T06:00:00Z",
		"0 0 6 * * M":                  "2026-11-02T06:00:00Z",
		"0 0 6 * * 0":                  "2026-11-08T06:00:00Z",
		"0 0 6 * * Tue-Sat/2":          "2026-11-03T06:00:00Z",
		"0 0 6 * FEBRUARY *":           "2027-02-01T06:00:00Z",
		"0 0 6 1 mar,Sep *":            "2027-03-01T06:00:00Z",
		"0 0 6 * Dec/1 *":              "2026-12-01T06:00:00Z",
		"0 0,30,15 * * * *":            "2026-11-01T12:15:00Z",
		"0 1-2,40-50/5,*/30 13 * * *":  "2026-11-01T13:00:00Z",
		"0 0 6 29 2 *":                 "2028-02-29T06:00:00Z",
		"0 0 6 31 * *":                 "2026-12-31T06:00:00Z",
		"0 0 6 13 * Fri":               "2026-11-13T06:00:00Z", // both must match, unlike in cron
		"0 0 6 1-31 * 3":               "2026-11-04T06:00:00Z",
		"0 0 6 1-7 * Mon":              "2026-11-02T06:00:00Z",
		"0 0 6 8-14 * Tue":             "2026-11-10T06:00:00Z",
		"0 0 6 29 2 Tue":               "2028-02-29T06:00:00Z",
		"0 0 6 */2 * Tue":              "2026-11-03T06:00:00Z",
		"0 0 6 25 12 *":                "2026-12-25T06:00:00Z",
		"* * * * * *":                  "2026-11-01T12:00:01Z",
		"0-59 0-59 0-23 1-31 1-12 0-6": "2026-11-01T12:00:01Z",
		"0/20 * * * jan-dec sun-sat":   "2026-11-01T12:00:20Z",
		"0 30 2,2,2 * * *":             "2026-11-02T02:30:00Z",
		"0 0 12-12 * * *":              "2026-11-02T12:00:00Z",
	} {
		t.Run(schedule, func(t *testing.T) {
			s, err := settings.ParseSchedule(schedule)
			if err != nil {
				t.Fatalf("got %v, want a schedule", err)
			}
			if got := s.Next(time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)).Format(time.RFC3339); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
}

// Schedules for which the Functions host would disable the function, or that never come.
func TestFurtherWrongSchedules(t *testing.T) {
	for name, schedule := range map[string]string{
		"a word for all days":        "@daily",
		"a word for a span":          "@every 1h",
		"a word for starts":          "@reboot",
		"a zone in front":            "CRON_TZ=Europe/Berlin 0 0 6 * * *",
		"another zone in front":      "TZ=UTC 0 0 6 * * *",
		"a zone instead of seconds":  "TZ=UTC 0 6 * * *",
		"seven fields":               "0 0 6 * * * 2027",
		"a setting's name":           "%vmSchedule%",
		"in quotes":                  `"0 0 6 * * *"`,
		"minute of 60":               "0 60 * * * *",
		"minutes up to 60":           "0 0-60 * * * *",
		"minutes up from 60":         "0 60/5 * * * *",
		"day of 0":                   "0 0 6 0 * *",
		"day of 32":                  "0 0 6 32 * *",
		"days from 0":                "0 0 6 0-5 * *",
		"month of 13":                "0 0 6 * 13 *",
		"weekdays up to 7":           "0 0 6 * * 1-7",
		"weekday of 7 in a list":     "0 0 6 * * 1,7",
		"negative":                   "0 -5 * * * *",
		"negative step":              "0 */-5 * * * *",
		"signed":                     "0 +5 * * * *",
		"fraction":                   "0 0.5 * * * *",
		"empty item":                 "0 1,,2 * * * *",
		"comma at the end":           "0 1, * * * *",
		"comma in front":             "0 ,1 * * * *",
		"only a comma":               "0 , * * * *",
		"no end of a range":          "0 1- * * * *",
		"two dashes":                 "0 1-5-9 * * * *",
		"two steps":                  "0 */5/2 * * * *",
		"no step":                    "0 */ * * * *",
		"only a step":                "0 /5 * * * *",
		"step of a name":             "0 0 6 * */Feb *",
		"star in a range":            "0 *-5 * * * *",
		"star and a digit":           "0 *5 * * * *",
		"last day":                   "0 0 6 L * *",
		"last Friday":                "0 0 6 * * 5L",
		"second Monday":              "0 0 6 * * 1#2",
		"nearest weekday":            "0 0 6 15W * *",
		"question mark in a list":    "0 0 6 1,? * *",
		"question mark for weekdays": "0 0 6 * * ?",
		"question mark with a step":  "0 ?/5 * * * *",
		"name of another language":   "0 0 6 * * Mittwoch",
		"name and more":              "0 0 6 * * Monday1",
		"month for a weekday":        "0 0 6 * * Jan",
		"name for an hour":           "0 0 noon * * *",
		"days backwards":             "0 0 6 20-10 * *",
		"names backwards":            "0 0 6 * * Sat-Mon",
		"wide digits":                "0 0 ６ * * *",
		"tabs":                       "0\t0\t6\t*\t*\t*",
		"no-break spaces":            "0\u00a00\u00a06\u00a0*\u00a0*\u00a0*",
		"huge number":                "0 99999999999999999999 * * * *",
		"hex":                        "0 0x5 * * * *",
		"30 February":                "0 0 6 30 2 *",
		"31st of short months":       "0 0 6 31 4,6,9,11 *",
		"30 and 31 February":         "0 0 6 30-31 Feb *",
		"31 February, or a Monday":   "0 0 6 31 2 Mon", // both must match
		"a wrong one among commas":   "0 0 6,24 * * *",
		"a JSON list":                "[0,0,6,*,*,*]",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := load(map[string]string{"vmSchedule": schedule})
			var invalid *settings.InvalidError
			if !errors.As(err, &invalid) || len(invalid.Faults) != 1 || invalid.Faults[0].Setting != "vmSchedule" {
				t.Errorf("%s: got %v, want one fault of vmSchedule", schedule, err)
			}
		})
	}
}

// Proxies, and what goes around them, that are right.
func TestFurtherGoodProxies(t *testing.T) {
	for name, changes := range map[string]map[string]string{
		"IPv6":                       {"HTTPS_PROXY": "http://[2001:db8::1]:3128"},
		"IPv6 with a login":          {"HTTPS_PROXY": "http://svc:x@[::1]:3128"},
		"IPv4":                       {"HTTPS_PROXY": "http://10.0.0.4:8080"},
		"upper-case scheme":          {"HTTPS_PROXY": "HTTP://proxy.example:3128"},
		"https":                      {"HTTPS_PROXY": "https://proxy.example:8443"},
		"socks5":                     {"HTTPS_PROXY": "socks5://proxy.example:1080"},
		"socks5h with a login":       {"HTTPS_PROXY": "socks5h://svc:x@proxy.example:1080"},
		"user without a password":    {"HTTPS_PROXY": "http://svc@proxy.example:3128"},
		"empty password":             {"HTTPS_PROXY": "http://svc:@proxy.example:3128"},
		"percent-encoded login":      {"HTTPS_PROXY": "http://DOM%5Csvc:a%20b%40c%3A%2F%25@proxy.example:3128"},
		"@ in a password":            {"HTTPS_PROXY": "http://svc:a@b@proxy.example:3128"},
		"no port":                    {"HTTPS_PROXY": "http://proxy.example"},
		"a slash behind":             {"HTTPS_PROXY": "http://proxy.example:3128/"},
		"no scheme, login":           {"HTTPS_PROXY": "svc:x@proxy.example:3128"},
		"no scheme, IPv4":            {"HTTPS_PROXY": "10.0.0.4:8080"},
		"empty":                      {"HTTPS_PROXY": ""},
		"all go around":              {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "*"},
		"names go around":            {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "localhost, 169.254.169.254, .azure.com,*.windows.net,example.org:8443"},
		"IPv6 goes around":           {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "::1,fd00::/8,[::1]:443"},
		"a comma behind":             {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "localhost,"},
		"small letters":              {"https_proxy": "http://proxy:3128", "no_proxy": "localhost"},
		"forwarding is off":          {"AzureFunctionsJobHost__customHandler__enableForwardingHttpRequest": "False"},
		"certificates of the system": {"SSL_CERT_DIR": os.TempDir()},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := load(changes); err != nil {
				t.Errorf("%v: got %v, want no fault", changes, err)
			}
		})
	}
}

// What the program obeys but did not set, and what is wrong with it.
func TestFurtherEnvironmentFaults(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const forwards = "AzureFunctionsJobHost__customHandler__enableForwardingHttpRequest"
	for name, c := range map[string]struct{ setting, value string }{
		"no host":                   {"HTTPS_PROXY", "http://:3128"},
		"only a scheme":             {"HTTPS_PROXY", "http://"},
		"only a login":              {"HTTPS_PROXY", "http://svc:" + canary.OldPassword + "@"},
		"three slashes":             {"HTTPS_PROXY", "http:///proxy.example:3128"},
		"one slash":                 {"HTTPS_PROXY", "http:/proxy.example:3128"},
		"no slash":                  {"HTTPS_PROXY", "http:proxy.example:3128"},
		"no colon":                  {"HTTPS_PROXY", "http//proxy.example:3128"},
		"two schemes":               {"HTTPS_PROXY", "http://http://proxy.example:3128"},
		"port of 0":                 {"HTTPS_PROXY", "http://proxy.example:0"},
		"negative port":             {"HTTPS_PROXY", "http://proxy.example:-1"},
		"named port":                {"HTTPS_PROXY", "http://proxy.example:http"},
		"port of 65536":             {"HTTPS_PROXY", "http://proxy.example:65536"},
		"a query":                   {"HTTPS_PROXY", "http://proxy.example:3128?x=" + canary.OldPassword},
		"a fragment":                {"HTTPS_PROXY", "http://proxy.example:3128#x"},
		"in quotes":                 {"HTTPS_PROXY", `"http://proxy.example:3128"`},
		"in angle brackets":         {"HTTPS_PROXY", "<http://proxy.example:3128>"},
		"as Windows spells it":      {"HTTPS_PROXY", "http=proxy.example:80;https=proxy.example:3128"},
		"two":                       {"HTTPS_PROXY", "http://one.example:3128,http://two.example:3128"},
		"two with a blank":          {"HTTPS_PROXY", "http://one.example:3128 http://two.example:3128"},
		"a backslash in the login":  {"HTTPS_PROXY", `http://DOM\svc:` + canary.OldPassword + "@proxy.example:3128"},
		"a wrong escape":            {"HTTPS_PROXY", "http://svc:" + canary.OldPassword + "%zz@proxy.example:3128"},
		"a percent sign at the end": {"HTTPS_PROXY", "http://svc:" + canary.OldPassword + "%@proxy.example:3128"},
		"IPv6 without brackets":     {"HTTPS_PROXY", "http://2001:db8::1:3128"},
		"IPv6 half in brackets":     {"HTTPS_PROXY", "http://[2001:db8::1:3128"},
		"socks4":                    {"HTTPS_PROXY", "socks4://proxy.example:1080"},
		"a file":                    {"HTTPS_PROXY", "file:///etc/proxy"},
		"a PAC file":                {"HTTPS_PROXY", "pac+http://proxy.example/proxy.pac"},
		"a line break behind":       {"HTTPS_PROXY", "http://proxy.example:3128\n"},
		"a zero-width space behind": {"HTTPS_PROXY", "http://proxy.example:3128\u200b"},
		"a zero-width space inside": {"HTTPS_PROXY", "http://proxy\u200b.example:3128"},
		"a placeholder":             {"HTTPS_PROXY", "http://<proxy>:<port>"},
		"a reference to Key Vault":  {"HTTPS_PROXY", "@Microsoft.KeyVault(VaultName=v-1;SecretName=s)"},
		"around: semicolons":        {"NO_PROXY", "localhost;.azure.com"},
		"around: blanks":            {"NO_PROXY", "localhost .azure.com"},
		"around: too long a prefix": {"NO_PROXY", "10.0.0.0/33"},
		"around: a mask":            {"NO_PROXY", "10.0.0.0/255.0.0.0"},
		"around: stars in an IP":    {"NO_PROXY", "10.*"},
		"around: a star behind":     {"NO_PROXY", "qualysapi.*"},
		"around: a path":            {"NO_PROXY", "qualysapi.qualys.com/api"},
		"around: Windows' <local>":  {"NO_PROXY", "<local>"},
		"around: a range":           {"NO_PROXY", "10.0.0.1-10.0.0.9"},
		"certificates: a directory": {"SSL_CERT_FILE", dir},
		"certificates: empty":       {"SSL_CERT_FILE", file("empty.pem", "")},
		"certificates: a key":       {"SSL_CERT_FILE", file("key.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")},
		"certificates: damaged":     {"SSL_CERT_FILE", file("damaged.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")},
		"certificates: cut":         {"SSL_CERT_FILE", file("cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA")},
		"certificates: DER":         {"SSL_CERT_FILE", file("cert.der", "0\x82\x03\x05")},
		"forwarding, upper case":    {forwards, "TRUE"},
		"forwarding, blanks":        {forwards, " true "},
		"forwarding, no truth":      {forwards, "yes"},
		"timeout without colons":    {"AzureFunctionsJobHost__functionTimeout", "30"},
		"timeout of nothing":        {"AzureFunctionsJobHost__functionTimeout", "00:00:00"},
		"negative timeout":          {"AzureFunctionsJobHost__functionTimeout", "-00:30:00"},
		"timeout of 75 seconds":     {"AzureFunctionsJobHost__functionTimeout", "00:30:75"},
		"timeout as a duration":     {"AzureFunctionsJobHost__functionTimeout", "30m"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := load(map[string]string{c.setting: c.value})
			var invalid *settings.InvalidError
			if !errors.As(err, &invalid) || !strings.EqualFold(invalid.Faults[0].Setting, c.setting) {
				t.Errorf("%s=%q: got %v, want a fault of it", c.setting, c.value, err)
			}
			if err != nil {
				for _, secret := range canary.Forms() {
					if strings.Contains(err.Error(), secret) {
						t.Errorf("the error holds a secret: %v", err)
					}
				}
			}
		})
	}
}

// The host reads its names in any case, and both spellings of what is in between.
func TestFurtherNamesOfOverrides(t *testing.T) {
	for _, name := range []string{"azurefunctionsjobhost__functiontimeout", "AZUREFUNCTIONSJOBHOST__FUNCTIONTIMEOUT", "AzureFunctionsJobHost__FunctionTimeout"} {
		_, err := load(map[string]string{name: "00:05:00"})
		if err == nil || !strings.Contains(err.Error(), "runBudget") {
			t.Errorf("%s=00:05:00: got %v, want a fault of runBudget", name, err)
		}
	}
	for _, name := range []string{"azurefunctionsjobhost__customhandler__enableforwardinghttprequest", "AZUREFUNCTIONSJOBHOST__CUSTOMHANDLER__ENABLEFORWARDINGHTTPREQUEST"} {
		if _, err := load(map[string]string{name: "true"}); err == nil {
			t.Errorf("%s=true: got no fault, want one", name)
		}
	}
}

// Secrets with what cannot be seen are taken as they are or refused, and the same on
// every road.
func TestFurtherSecretsOnEveryRoad(t *testing.T) {
	for name, secret := range map[string]string{
		"plain":                     "canary-x",
		"one letter":                "x",
		"blank inside":              "canary x",
		"tab inside":                "canary\tx",
		"line break inside":         "canary\nx",
		"only blanks":               "   ",
		"only a line break":         "\n",
		"only a zero-width space":   "\u200b",
		"line break behind":         "canary-x\n",
		"carriage return behind":    "canary-x\r",
		"line feed in front":        "\ncanary-x",
		"zero-width space behind":   "canary-x\u200b",
		"zero-width space in front": "\u200bcanary-x",
		"byte order mark in front":  "\ufeffcanary-x",
		"byte order mark behind":    "canary-x\ufeff",
		"soft hyphen behind":        "canary-x\u00ad",
		"ideographic space behind":  "canary-x\u3000",
		"line separator behind":     "canary-x\u2028",
		"next line behind":          "canary-x\u0085",
		"NUL behind":                "canary-x\x00",
		"NUL inside":                "canary\x00x",
		"DEL behind":                "canary-x\x7f",
		"vertical tab behind":       "canary-x\v",
		"in quotes":                 `"canary-x"`,
		"beyond ASCII":              "canary-äöü€𝄞",
		"a reference's beginning":   "@canary",
		"a percent escape":          "canary%20x",
		"colons":                    "canary:x:y",
	} {
		t.Run(name, func(t *testing.T) {
			takes := func(err error, got string) string {
				if err != nil {
					if strings.Contains(err.Error(), "canary") {
						t.Errorf("the error holds the secret: %v", err)
					}
					return "refused"
				}
				if got != secret {
					t.Errorf("got %q, want %q or a fault", got, secret)
				}
				return "taken"
			}
			roads := map[string]string{}
			got := ""
			s, err := load(map[string]string{"apiPassword": secret})
			if err == nil {
				_, got = s.Credentials().Login()
			}
			if !strings.Contains(secret, "\x00") { // the environment has none
				roads["app setting"] = takes(err, got)
			}
			a, v, address := vault(t)
			a.SetSecret("qualys-password", secret)
			reference := map[string]string{"apiPassword": "@Microsoft.KeyVault(SecretUri=" + address + "/secrets/qualys-password)"}
			if s, err = loadWith(v, reference); err == nil {
				_, got = s.Credentials().Login()
			}
			roads["Key Vault"] = takes(err, got)
			a.SetSecret("qualys-password", "before")
			if s, err = loadWith(v, reference); err != nil {
				t.Fatal(err)
			}
			a.SetSecret("qualys-password", secret)
			if _, err = s.Credentials().Reload(context.Background()); err == nil {
				_, got = s.Credentials().Login()
			} else if _, old := s.Credentials().Login(); old != "before" {
				t.Errorf("after a refused reload: got %q, want the one before", old)
			}
			roads["reload"] = takes(err, got)
			if text := fmt.Sprint(roads); strings.Contains(text, "taken") && strings.Contains(text, "refused") {
				t.Errorf("got %v, want the same on every road", roads)
			}
			if strings.HasPrefix(name, "only") && roads["Key Vault"] == "taken" {
				t.Errorf("got %v, want what cannot be seen refused", roads)
			}
		})
	}
}

// A user's name is checked on every road, too.
func TestFurtherUsersOnEveryRoad(t *testing.T) {
	for name, user := range map[string]string{
		"blank behind": "acme_ab1 ", "line break behind": "acme_ab1\n", "colon": "acme:ab1", "only blanks": "  ", "NUL": "acme\x00ab1",
		"zero-width space behind": "acme_ab1\u200b", "byte order mark in front": "\ufeffacme_ab1", "line break inside": "acme\nab1",
	} {
		t.Run(name, func(t *testing.T) {
			_, plain := load(map[string]string{"apiUsername": user})
			a, v, address := vault(t)
			a.SetSecret("user", user)
			reference := map[string]string{"apiUsername": "@Microsoft.KeyVault(SecretUri=" + address + "/secrets/user)"}
			_, resolved := loadWith(v, reference)
			a.SetSecret("user", "acme_ab1")
			s, err := loadWith(v, reference)
			if err != nil {
				t.Fatal(err)
			}
			a.SetSecret("user", user)
			_, reloaded := s.Credentials().Reload(context.Background())
			if strings.Contains(user, "\x00") {
				plain = resolved
			}
			if (plain == nil) != (resolved == nil) || (plain == nil) != (reloaded == nil) {
				t.Errorf("app setting: %v\nKey Vault: %v\nreload: %v\nwant the same", plain, resolved, reloaded)
			}
			if got, _ := s.Credentials().Login(); reloaded != nil && got != "acme_ab1" {
				t.Errorf("got user %q after a refused reload, want the one before", got)
			}
		})
	}
}
