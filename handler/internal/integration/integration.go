// Package integration keeps the integrations: workspaces that get the findings of
// the subscription beside the default one, each with filters of its own. They are
// what Qualys calls so in its "Qualys Integration with Azure Sentinel, API User
// Guide" (30 November 2021), with some more fields.
//
// It guarantees that a document in the state is valid and changed by one at a time,
// that names are unique and ids never used again, and that a workspace's key is in
// Key Vault and nowhere else. HTTP does not enter here, and nothing is sent from
// here.
package integration

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/settings"
)

// documentVersion is the version of the documents in the state.
const documentVersion = 1

// Categories of findings, as baseCategory spells them. Each holds those before it.
const (
	CategoryConfirmed = "Confirmed"
	CategoryPotential = "Potential"
	CategoryIG        = "IG"
)

// categories in the order of qualys.Types: each adds one of them.
var categories = []string{CategoryConfirmed, CategoryPotential, CategoryIG}

// Defaults of the guide.
const (
	DefaultCategory      = CategoryConfirmed
	DefaultMinSeverity   = 3
	DefaultCustomLogName = "QUALYS_SECURITY_VM_FINDINGS"
	DefaultAPIVersion    = "2016-04-01"
)

// DefaultRuleLogName is the default of customLogName where a data collection rule
// takes the rows: the table that arm/tables.json makes, and that the KQL functions
// read.
const DefaultRuleLogName = "QualysHostDetectionV2"

// An Integration is a workspace and what it is to get: the document in the state.
type Integration struct {
	Version int   `json:"version"`
	ID      int64 `json:"id"`
	// Generation counts the destinations that it has had: what has arrived at one
	// is not at another.
	Generation int       `json:"generation"`
	Created    time.Time `json:"created"`
	Changed    time.Time `json:"changed"`
	Fields
	// KeySecret is where the workspace's key is: the address of a secret of Key
	// Vault, with its version. Empty where a data collection rule takes the rows.
	KeySecret string `json:"keySecret,omitempty"`

	document []byte // as it was read
}

// Fields are what people set.
type Fields struct {
	Name                string `json:"name"`
	WorkspaceID         string `json:"workspaceId,omitempty"`
	BaseCategory        string `json:"baseCategory"`
	CustomLogName       string `json:"customLogName"`
	MinSeverity         int    `json:"minSeverity"`
	ResultSectionNeeded bool   `json:"resultSectionNeeded"`
	APIVersion          string `json:"apiVersion"`

	// Further than the guide goes. LogAnalyticsURI and DCRImmutableID are the
	// settings' of these names: with a rule the Logs Ingestion API is used, without
	// one the address is that of the workspace in another cloud than the app's.
	LogAnalyticsURI string `json:"logAnalyticsUri,omitempty"`
	DCRImmutableID  string `json:"dcrImmutableId,omitempty"`
	// Tags, by name or id: only hosts that have one of them.
	Tags []string `json:"tags,omitempty"`
	// Severities in place of MinSeverity; Statuses: only findings in these.
	Severities []int    `json:"severities,omitempty"`
	Statuses   []string `json:"statuses,omitempty"`
	// Schedule, as NCRONTAB in UTC: when it is due; empty: whenever vmSchedule is.
	Schedule string `json:"schedule,omitempty"`
}

// ByRule tells that a data collection rule takes the rows, and no key is needed.
func (f *Fields) ByRule() bool { return f.DCRImmutableID != "" }

// Selection is what is wanted of Qualys' findings.
func (f *Fields) Selection() *qualys.Selection {
	s := &qualys.Selection{Types: qualys.Types[:slices.Index(categories, f.BaseCategory)+1], Statuses: f.Statuses, Tags: f.Tags}
	for i, severity := range qualys.Severities {
		if len(f.Severities) == 0 && i+1 >= f.MinSeverity || slices.Contains(f.Severities, i+1) {
			s.Severities = append(s.Severities, severity)
		}
	}
	return s
}

// Destination is its destination's name in the state.
func (i *Integration) Destination() string {
	if i.Generation == 0 {
		return destination + i.Number()
	}
	return fmt.Sprintf("%s%d-%d", destination, i.ID, i.Generation)
}

// destination begins the names of their destinations in the state.
const destination = "integration-"

// Number is its id as text.
func (i *Integration) Number() string { return strconv.FormatInt(i.ID, 10) }

// Address is LogAnalyticsURI; nil if there is none.
func (f *Fields) Address() *url.URL {
	if f.LogAnalyticsURI == "" {
		return nil
	}
	u, err := url.Parse(f.LogAnalyticsURI)
	if err != nil {
		return nil // it was checked
	}
	return u
}

// Due tells whether it is to run at a tick, the last run having begun at last; zero:
// there was none.
func (i *Integration) Due(last, now time.Time) bool {
	if i.Schedule == "" || last.IsZero() {
		return true
	}
	s, err := settings.ParseSchedule(i.Schedule)
	// What cannot be read is no reason to send nothing.
	return err != nil || !s.Next(last.UTC()).After(now.UTC())
}

// String is the integration as the guide's answers write it. The customer's ids are
// Qualys' own and not known here.
func (i *Integration) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "{integrationId=%d, name='%s', customerId=0, customerUUID='00000000-0000-0000-0000-000000000000', workspaceId='%s', minSeverity=%d, baseCategory=%s, customLogName='%s', apiVersion='%s', resultSectionNeeded=%t",
		i.ID, quote(i.Name), i.WorkspaceID, i.MinSeverity, i.BaseCategory, i.CustomLogName, i.APIVersion, i.ResultSectionNeeded)
	text := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, ", %s='%s'", name, quote(value))
		}
	}
	text("logAnalyticsUri", i.LogAnalyticsURI)
	text("dcrImmutableId", i.DCRImmutableID)
	text("tags", strings.Join(i.Tags, ","))
	if len(i.Severities) > 0 {
		text("severities", strings.Join(i.Selection().Severities, ","))
	}
	text("statuses", strings.Join(i.Statuses, ","))
	text("schedule", i.Schedule)
	return b.String() + "}"
}

// quote keeps a value from looking like the end of its quotes.
func quote(v string) string { return strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(v) }

// keyLike is what may be a key that somebody has put into the wrong field.
var keyLike = regexp.MustCompile(`[A-Za-z0-9+/=_-]{40,}`)

// clip keeps a pasted value from filling an answer, and a key out of it.
func clip(s string) string {
	const most = 80
	s = keyLike.ReplaceAllString(s, "(a long text)")
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
