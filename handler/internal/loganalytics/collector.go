package loganalytics

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/redact"
)

const (
	// CollectorBatchBytes is the longest body. The service takes 30 MB and the
	// old function app aimed at 25; smaller ones keep several in flight within
	// the memory of the smallest plan, and cost nothing more.
	CollectorBatchBytes = 2_000_000
	// CollectorFieldBytes is the longest value: 32 KB are taken, longer ones
	// are cut without a sign (Microsoft, "HTTP Data Collector API").
	CollectorFieldBytes = 30_000
	collectorTimeout    = 2 * time.Minute
)

// Collector is the HTTP Data Collector API, for workspaces that have only its
// classic tables. Its support ended on 2026-09-14; it still takes data.
type Collector struct {
	endpoint  string
	workspace string
	key       []byte
	logType   string
	advice    string
	http      *http.Client
	now       func() time.Time
	secrets   redact.Redactor
}

// CollectorConfig says where and how to send.
type CollectorConfig struct {
	// Endpoint of the workspace: scheme and host.
	Endpoint *url.URL
	// Workspace is the workspace id.
	Workspace string
	// Key is one of the workspace's keys, in base64.
	Key string
	// LogType is the table's name without _CL.
	LogType string
	// Advice for whoever sees that the service does not take the signature; that of the
	// settings if empty.
	Advice string
	// Transport makes the calls; that of net/http if nil.
	Transport http.RoundTripper
	// Now is the clock; time.Now if nil.
	Now func() time.Time
}

// NewCollector returns a destination.
func NewCollector(c CollectorConfig) (*Collector, error) {
	key, err := base64.StdEncoding.DecodeString(c.Key)
	if err != nil || len(key) == 0 {
		return nil, errors.New("setting workspaceKey: it is no base64 text: copy a key of the workspace's agents page")
	}
	d := &Collector{
		endpoint:  c.Endpoint.Scheme + "://" + c.Endpoint.Host + "/api/logs?api-version=2016-04-01",
		workspace: c.Workspace, key: key, logType: c.LogType, now: c.Now,
		advice: cmp.Or(c.Advice, "check workspaceID, workspaceKey, and the clock of this machine, which is a part of the signature"),
	}
	d.http = &http.Client{Transport: c.Transport, Timeout: collectorTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if d.now == nil {
		d.now = time.Now
	}
	d.secrets.Know(c.Key, string(key))
	return d, nil
}

// Limits are what one row may be.
func (d *Collector) Limits() record.Limits {
	return record.Limits{FieldBytes: CollectorFieldBytes, Naming: record.ByKey}
}

// BatchBytes is the longest body.
func (d *Collector) BatchBytes() int { return CollectorBatchBytes }

// Send implements the ingest package's Destination.
func (d *Collector) Send(ctx context.Context, b record.Batch) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.endpoint, bytes.NewReader(b.Body))
	if err != nil {
		return 0, fmt.Errorf("make the request: %w", err)
	}
	date := d.now().UTC().Format(http.TimeFormat)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Log-Type", d.logType)
	req.Header.Set("x-ms-date", date)
	req.Header.Set("Authorization", "SharedKey "+d.workspace+":"+Signature(d.key, len(b.Body), date))
	resp, err := d.http.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return 0, &Error{Kind: Unavailable, Err: err}
	}
	defer resp.Body.Close() //nolint:errcheck // the answer is known
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	body = []byte(d.secrets.Text(string(body)))
	switch {
	case resp.StatusCode != http.StatusOK:
		return 0, d.explain(resp, body) // as much of it as came
	case err != nil:
		return 0, &Error{Kind: Unavailable, Status: resp.StatusCode, Text: "the answer broke off", Err: err}
	case len(bytes.TrimSpace(body)) > 0 && !json.Valid(body):
		// The status alone is documented (Microsoft, "HTTP Data Collector API",
		// return codes). A page for people is somebody else's.
		return 0, &Error{Kind: Misconfigured, Status: resp.StatusCode, Text: clip(string(body)),
			Advice: "the HTTP Data Collector API does not answer so: check logAnalyticsUri, and what stands in between"}
	}
	return int64(len(b.Body)), nil
}

// Signature signs a request of length bytes (Microsoft, "HTTP Data Collector
// API", Authorization).
func Signature(key []byte, length int, date string) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("POST\n" + strconv.Itoa(length) + "\napplication/json\nx-ms-date:" + date + "\n/api/logs"))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

func (d *Collector) explain(resp *http.Response, body []byte) error {
	var doc struct{ Error, Message string }
	e := &Error{Status: resp.StatusCode, After: retryAfter(resp.Header, d.now())}
	if json.Unmarshal(body, &doc) == nil && doc.Error != "" {
		e.Code, e.Text = redact.Code(doc.Error), clip(doc.Message)
	} else {
		e.Text = clip(string(body))
	}
	switch s := resp.StatusCode; {
	case s == http.StatusBadRequest && e.Code == "InvalidDataFormat", s == http.StatusRequestEntityTooLarge:
		e.Kind = Refused
	case s == http.StatusForbidden:
		e.Kind, e.Advice = Misconfigured, d.advice
	case s == http.StatusNotFound:
		e.Kind, e.Advice = Misconfigured, "check logAnalyticsUri: https://<workspace id>.ods.opinsights.azure.com, or .us, .cn"
	case s == http.StatusBadRequest:
		e.Kind, e.Advice = Misconfigured, "check workspaceID and logAnalyticsUri"
	case s == http.StatusTooManyRequests:
		e.Kind = Throttled
	case s == http.StatusRequestTimeout, s >= 500:
		e.Kind = Unavailable
	default:
		e.Kind = Misconfigured
	}
	if strings.Contains(e.Text, d.workspace) && d.workspace != "" {
		e.Text = strings.ReplaceAll(e.Text, d.workspace, "<workspace id>")
	}
	return e
}
