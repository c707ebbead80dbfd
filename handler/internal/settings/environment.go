package settings

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// What the program obeys without having a use for it itself: Go's own settings of
// proxies and certificates, and overrides of host.json. A wrong one shows as something
// else, such as an unknown host, so it is checked with the others.

const acceptedProxy = "Accepted: http://host:port or http://user:password@host:port, also https and socks5; in the login, write # / ? @ % and blanks as %23 %2F %3F %40 %25 %20"

// checkProxy checks the address of a proxy as Go's HTTP client reads it. The value is
// not repeated: it may hold a password.
func checkProxy(_ *Settings, v string) error {
	if !strings.Contains(v, "://") {
		v = "http://" + v // as Go does
	}
	u, err := url.Parse(v)
	switch {
	case err == nil && !validPort(u):
		return errors.New("its port is not a number from 1 to 65535. " + acceptedProxy)
	case err != nil, !validHost(u), u.Path != "" && u.Path != "/", u.RawQuery != "", u.ForceQuery, u.Fragment != "", strings.Contains(v, "#"):
		return errors.New("it is not the address of a proxy. " + acceptedProxy)
	case !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme):
		return errors.New("its scheme is not one of http, https, socks5 and socks5h. " + acceptedProxy)
	}
	return nil
}

// checkNoProxy checks the hosts that are reached without a proxy.
func checkNoProxy(_ *Settings, v string) error {
	for entry := range strings.SplitSeq(v, ",") {
		if entry = strings.TrimSpace(entry); entry != "" && !matchesHosts(entry) {
			return fmt.Errorf("%q matches nothing. Accepted: names of hosts and domains, IP addresses and networks such as 10.0.0.0/8, separated by comma; or *", clip(entry))
		}
	}
	return nil
}

// matchesHosts reports whether Go's HTTP client can match any host with an entry.
func matchesHosts(entry string) bool {
	if entry == "*" {
		return true
	}
	if _, _, err := net.ParseCIDR(entry); err == nil {
		return true
	}
	host := entry
	if h, port, err := net.SplitHostPort(entry); err == nil {
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return false
		}
		host = h
	}
	if net.ParseIP(strings.Trim(host, "[]")) != nil {
		return true
	}
	name := strings.TrimPrefix(strings.TrimPrefix(host, "*"), ".")
	numbers := strings.Trim(name, "0123456789.") == ""
	return hostName.MatchString(name) && !numbers && !rangeForm.MatchString(name)
}

// rangeForm is two IP addresses with a dash, which looks like a name.
var rangeForm = regexp.MustCompile(`^[0-9.]+-[0-9.]+$`)

// checkCertificates checks a file of certificates. Go passes over one that it cannot
// read, and trusts nobody then.
func checkCertificates(_ *Settings, v string) error {
	pem, err := os.ReadFile(v)
	if err != nil {
		return fmt.Errorf("it cannot be read: %w. Accepted: a file of certificates in PEM form", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s holds no certificate. Accepted: a file of certificates in PEM form", clip(v))
	}
	return nil
}

// checkOff refuses an override that changes how the host calls the program.
func checkOff(_ *Settings, v string) error {
	if strings.EqualFold(v, "false") {
		return nil
	}
	return errors.New("it changes how the Functions host calls this program, which does not understand it then: remove it")
}

var timeoutForm = regexp.MustCompile(`^(?:(\d{1,3})\.)?(\d{1,2}):(\d{2}):(\d{2})$`)

func setTimeout(s *Settings, v string) error {
	if v == "-1" {
		s.functionMax = 1 << 62
		return nil
	}
	m := timeoutForm.FindStringSubmatch(v)
	if m == nil {
		return fmt.Errorf("%q is not a functionTimeout. Accepted: hh:mm:ss, or -1", clip(v))
	}
	part := func(i int) int {
		n, _ := strconv.Atoi(m[i]) // digits; empty for no days
		return n
	}
	if part(2) > 23 || part(3) > 59 || part(4) > 59 {
		return fmt.Errorf("%q is not a functionTimeout: at most 23 hours, 59 minutes and 59 seconds, and days in front as in 1.00:00:00. Accepted: hh:mm:ss, or -1", clip(v))
	}
	if part(1)+part(2)+part(3) == 0 {
		return fmt.Errorf("%q is no time for a run. Accepted: hh:mm:ss, or -1", clip(v))
	}
	s.functionMax = time.Duration(part(1)*24+part(2))*time.Hour + time.Duration(part(3))*time.Minute + time.Duration(part(4))*time.Second
	return nil
}

// errBlanks is for a value in which blanks count. Qualys, or a proxy, would refuse it,
// or take it, whichever the form that it was pasted in has; and locks accounts.
var errBlanks = errors.New("it begins or ends with a blank, a line break or another character that cannot be seen: remove it, or choose another that does not")

// exact checks a value in which blanks count.
func exact(v string) error {
	if v != strings.TrimFunc(v, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }) {
		return errBlanks
	}
	return nil
}

// setUser sets the name of the Qualys user.
func setUser(s *Settings, v string) error {
	s.username = v
	return checkUser(v)
}

func checkUser(v string) error {
	if strings.Contains(v, ":") {
		return errors.New("it holds a colon, which parts user and password in the login. Accepted: the user name as the Qualys console shows it")
	}
	return nil
}
