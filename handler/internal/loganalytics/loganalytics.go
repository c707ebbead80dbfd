// Package loganalytics delivers rows: to the Logs Ingestion API, to the HTTP
// Data Collector API, or to a local folder.
//
// A destination's Send returns nil only if the service has accepted every row.
// Every failure of the service is an *Error that tells rows that will never be taken from a
// destination that cannot take any, and from one that will take them later;
// nothing is tried again in here. Qualys does not enter here.
package loganalytics

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"qualys-sentinel/handler/internal/redact"
)

// Kind says what to do about an Error.
type Kind uint8

const (
	// Unavailable is a failing network or service: send again.
	Unavailable Kind = iota + 1
	// Throttled is a limit of the service: send again After.
	Throttled
	// Refused is a batch that holds rows the service will never take.
	Refused
	// Misconfigured is a destination that takes no row until somebody acts.
	Misconfigured
)

// An Error is a failed delivery.
type Error struct {
	Kind   Kind
	Status int    // of HTTP; zero if there was no answer
	Code   string // of the service
	Text   string
	Advice string
	After  time.Duration
	// NoToken tells that there was no token to send with: nothing was asked.
	NoToken bool
	Err     error
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("log analytics")
	if e.Status != 0 {
		fmt.Fprintf(&b, " answered %d", e.Status)
	}
	for _, s := range []string{e.Code, e.Text} {
		if s != "" {
			b.WriteString(" " + s)
		}
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	if e.Advice != "" {
		b.WriteString(" (" + e.Advice + ")")
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// Retry tells whether the same batch may be accepted later, and after how long.
func (e *Error) Retry() (after time.Duration, ok bool) {
	return e.After, e.Kind == Unavailable || e.Kind == Throttled
}

// Refused tells that the rows, not the destination, are the reason.
func (e *Error) Refused() bool { return e.Kind == Refused }

// Limit tells that the error is a limit being kept, not a fault.
func (e *Error) Limit() bool { return e.Kind == Throttled }

// maxRetryAfter is the longest wait that is believed, in seconds: a day.
const maxRetryAfter = 24 * 60 * 60

// retryAfter reads Retry-After as seconds or as a date; zero if there is none.
func retryAfter(header http.Header, now time.Time) time.Duration {
	value := strings.TrimSpace(header.Get("Retry-After"))
	if n, err := strconv.Atoi(value); err == nil && n > 0 {
		return time.Duration(min(n, maxRetryAfter)) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil && at.After(now) {
		return min(at.Sub(now), maxRetryAfter*time.Second)
	}
	return 0
}

// clip makes a service's text fit for a message.
func clip(s string) string {
	const most = 300
	// A service may send back what it was sent.
	s = (*redact.Redactor)(nil).Text(strings.Join(strings.Fields(s), " "))
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}
