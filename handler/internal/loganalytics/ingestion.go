package loganalytics

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/monitor/ingestion/azlogs"

	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/redact"
)

const (
	// IngestionBatchBytes is the longest body, uncompressed. The limit is 1 MB
	// "both compressed and uncompressed" (Microsoft, "Azure Monitor service
	// limits"); it is not said whether that is 10^6 or 2^20, so the smaller.
	IngestionBatchBytes = 1_000_000
	// IngestionFieldBytes is the longest value. Longer than 64 KB is cut
	// without a sign (same page); bytes or characters, 1000 or 1024, is not
	// said, so the smallest reading.
	IngestionFieldBytes = 64_000
	// ingestionTimeout ends a call that hangs; a megabyte takes a second.
	ingestionTimeout = 2 * time.Minute
	// maxUnauthorized is how many calls in a row may be refused for their token
	// before it is not its age: as many as may be in flight with an old one,
	// and as many again with a new one.
	maxUnauthorized = 8
)

// Ingestion is the Logs Ingestion API: a stream of a data collection rule.
type Ingestion struct {
	client *azlogs.Client
	rule   string
	stream string
	gzips  *Compressor
	now    func() time.Time
	token  *renewable
	// unauthorized counts refused tokens since the last call that was accepted.
	unauthorized atomic.Int32
}

// renewable is a credential whose cached token can be given up.
type renewable struct {
	azcore.TokenCredential
	stale atomic.Bool
}

// managed tells that the platform issues the tokens.
func (r *renewable) managed() bool {
	_, ok := r.TokenCredential.(*azidentity.ManagedIdentityCredential)
	return ok
}

// GetToken implements azcore.TokenCredential. A managed identity's token is kept
// for the whole process and up to a day; claims are what makes the SDK pass
// that cache by.
func (r *renewable) GetToken(ctx context.Context, options policy.TokenRequestOptions) (azcore.AccessToken, error) {
	if r.managed() && options.Claims == "" && r.stale.Swap(false) {
		options.Claims = "{}"
	}
	return r.TokenCredential.GetToken(ctx, options) //nolint:wrapcheck // a wrapper adds nothing
}

// IngestionConfig says where and how to send.
type IngestionConfig struct {
	// Endpoint of the data collection rule or endpoint.
	Endpoint *url.URL
	// Rule is the immutable id of the data collection rule.
	Rule string
	// Stream of the rule.
	Stream     string
	Credential azcore.TokenCredential
	// Compressor, which destinations may share; one of its own if nil.
	Compressor *Compressor
	// Transport makes the calls; that of net/http if nil.
	Transport http.RoundTripper
	// Now is the clock; time.Now if nil.
	Now func() time.Time
}

// NewIngestion returns a destination.
func NewIngestion(c IngestionConfig) (*Ingestion, error) {
	// Following a redirect would carry findings elsewhere.
	client := &http.Client{Transport: c.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	options := &azlogs.ClientOptions{ClientOptions: azcore.ClientOptions{
		Cloud:     Cloud(c.Endpoint.Hostname()),
		Transport: client,
		// Tries are counted, logged and bounded by the run, not in here.
		Retry: policy.RetryOptions{MaxRetries: -1, TryTimeout: ingestionTimeout},
		// Bodies and headers hold findings and tokens.
		Logging:   policy.LogOptions{IncludeBody: false},
		Telemetry: policy.TelemetryOptions{ApplicationID: "qualys-sentinel"},
	}}
	endpoint := *c.Endpoint
	if endpoint.Scheme == "http" {
		// The SDK sends tokens over https only. Plain http is for a simulator
		// on this machine; settings refuse it for any other host.
		options.Transport = plain{client}
		endpoint.Scheme = "https"
	}
	token := &renewable{TokenCredential: c.Credential}
	api, err := azlogs.NewClient(strings.TrimRight(endpoint.String(), "/"), token, options)
	if err != nil {
		return nil, fmt.Errorf("logs ingestion client: %w", err)
	}
	now := c.Now
	if now == nil {
		now = time.Now
	}
	gzips := c.Compressor
	if gzips == nil {
		gzips = NewCompressor(DefaultWriters)
	}
	return &Ingestion{client: api, rule: c.Rule, stream: c.Stream, gzips: gzips, now: now, token: token}, nil
}

// plain sends requests over http instead of https.
type plain struct{ next policy.Transporter }

func (p plain) Do(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.URL.Scheme = "http"
	return p.next.Do(req) //nolint:wrapcheck // a transport adds nothing
}

// Cloud is the Azure cloud that a host name belongs to.
func Cloud(host string) cloud.Configuration {
	switch {
	case strings.HasSuffix(host, ".us"), strings.HasSuffix(host, ".usgovcloudapi.net"):
		return cloud.AzureGovernment
	case strings.HasSuffix(host, ".cn"):
		return cloud.AzureChina
	}
	return cloud.AzurePublic
}

// Limits are what one row may be.
func (d *Ingestion) Limits() record.Limits {
	return record.Limits{FieldBytes: IngestionFieldBytes, Naming: record.ByColumn}
}

// BatchBytes is the longest body.
func (d *Ingestion) BatchBytes() int { return IngestionBatchBytes }

// Send implements the ingest package's Destination.
func (d *Ingestion) Send(ctx context.Context, b record.Batch) (sent int64, err error) {
	err = d.gzips.Compress(b.Body, func(packed []byte) error {
		sent = int64(len(packed))
		_, err := d.client.Upload(ctx, d.rule, d.stream, packed, &azlogs.UploadOptions{ContentEncoding: to.Ptr("gzip")})
		return err //nolint:wrapcheck // explained below
	})
	if err != nil {
		return 0, d.explain(err)
	}
	d.unauthorized.Store(0)
	return sent, nil
}

// explain classifies by status (Microsoft, "Tutorial: Send data to Azure
// Monitor using Logs ingestion API", Troubleshooting).
func (d *Ingestion) explain(err error) error {
	var auth *azidentity.AuthenticationFailedError
	var none credentialUnavailable
	if errors.As(err, &auth) || errors.As(err, &none) {
		e := &Error{Kind: Misconfigured, Text: "no token for the destination", NoToken: true, Err: shortAuth(err),
			Advice: "switch on the function app's managed identity; on your own machine, sign in with: az login"}
		switch {
		case auth == nil:
		case auth.RawResponse == nil && d.token.managed(): // no answer: the endpoint is down
			e.Kind, e.Advice = Unavailable, ""
		case auth.RawResponse != nil && (auth.RawResponse.StatusCode >= 500 || auth.RawResponse.StatusCode == http.StatusTooManyRequests):
			e.Kind, e.Advice = Unavailable, ""
		}
		return e
	}
	var r *azcore.ResponseError
	if !errors.As(err, &r) {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the URL: it adds nothing
		}
		return &Error{Kind: Unavailable, Err: err}
	}
	e := &Error{Status: r.StatusCode, Code: redact.Code(r.ErrorCode), Text: responseText(r.RawResponse)}
	switch s := r.StatusCode; {
	case s == http.StatusBadRequest, s == http.StatusRequestEntityTooLarge:
		e.Kind = Refused
	case s == http.StatusUnauthorized && d.unauthorized.Add(1) <= maxUnauthorized:
		e.Kind = Unavailable // too old, or revoked: the next try brings a new one
		d.token.stale.Store(true)
	case s == http.StatusUnauthorized:
		e.Kind, e.Advice = Misconfigured, "the token is not for this cloud or tenant: check that logAnalyticsUri belongs to the cloud and tenant of the function app"
	case s == http.StatusForbidden:
		e.Kind, e.Advice = Misconfigured, "the identity needs the role Monitoring Metrics Publisher on the data collection rule; a new role takes up to 30 minutes"
	case s == http.StatusNotFound:
		e.Kind, e.Advice = Misconfigured, fmt.Sprintf("check dcrImmutableId (%s), logAnalyticsUri, and that the rule declares stream %s", d.rule, d.stream)
	case s == http.StatusTooManyRequests:
		e.Kind, e.After = Throttled, retryAfter(r.RawResponse.Header, d.now())
	case s == http.StatusRequestTimeout, s >= 500:
		e.Kind, e.After = Unavailable, retryAfter(r.RawResponse.Header, d.now())
	default:
		e.Kind, e.Advice = Misconfigured, "the Logs Ingestion API does not answer so: check logAnalyticsUri, and what stands in between"
	}
	return e
}

// credentialUnavailable is how azidentity marks a credential that this machine
// does not have.
type credentialUnavailable interface {
	error
	NonRetriable()
}

// shortAuth is the first line of an authentication error: the rest prints the
// whole exchange.
func shortAuth(err error) error {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return errors.New(clip(line))
}

// responseText is the message of an error answer.
func responseText(resp *http.Response) string {
	if resp == nil || resp.Body == nil {
		return ""
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err != nil {
		return ""
	}
	var doc struct {
		Error struct{ Message string }
	}
	if json.Unmarshal(body, &doc) == nil && doc.Error.Message != "" {
		return clip(doc.Error.Message)
	}
	return clip(string(body))
}
