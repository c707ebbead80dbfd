// Package settings reads the app settings: their names in any case, Key Vault
// references that the platform left unresolved, defaults, and a check of all
// of them at once.
//
// It guarantees that a Settings is valid, that an error names every wrong
// setting with what is accepted, and that no error or log holds a secret. One
// table of definitions makes the check, the README's table and the example
// file. What the settings are used for does not enter here.
package settings

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// API is a way into Log Analytics.
type API string

// The ways, as logAnalyticsApi spells them.
const (
	LogsIngestion API = "logs-ingestion"
	DataCollector API = "data-collector"
)

// Settings are the validated app settings.
type Settings struct {
	// URI is the Qualys API server: scheme and host only.
	URI *url.URL
	// Filter is the customer's request parameters, without truncation_limit.
	Filter url.Values
	// PageSize in hosts; zero if not set.
	PageSize            int
	DetectionAPIVersion string
	IncrementalBy       string
	// CallReserve is the share of calls left to others, in percent.
	CallReserve int

	// KBPageSize in QIDs, KBOverlap and KBRefresh (zero: never) of the
	// KnowledgeBase; Enrich joins it to the detections.
	KBAPIVersion string
	KBPageSize   int
	KBOverlap    time.Duration
	KBRefresh    time.Duration
	Enrich       bool

	API             API
	LogAnalyticsURI *url.URL
	DCRImmutableID  string
	WorkspaceID     string
	WorkspaceKey    string

	// Lookback of the very first run; zero is everything.
	Lookback time.Duration
	Overlap  time.Duration
	// ResultsBytes of RESULTS to keep; -1 all, 0 none.
	ResultsBytes int
	// ResultQIDs keeps RESULTS for these only; nil for all.
	ResultQIDs map[string]bool
	RunBudget  time.Duration

	StateContainer string
	StateFolder    string
	// Storage of the state: a connection string, or the blob service for the
	// managed identity.
	StorageConnection string
	StorageService    string
	LogLevel          string

	// IntegrationAPI tells that the integration API is served, IntegrationVault the
	// vault for keys of workspaces; empty if there is none.
	IntegrationAPI   bool
	IntegrationVault string

	// VMScheduled and KBScheduled tell which functions are on.
	VMScheduled, KBScheduled bool

	credentials *Credentials
	username    string
	password    string
	lookbackSet bool
	interval    time.Duration
	functionMax time.Duration
	account     string
}

// References counts the settings that are Key Vault references which the platform
// has left to this program.
func (s *Settings) References() int { return len(s.credentials.refs) }

// Credentials are the Qualys account's, for the API client.
func (s *Settings) Credentials() *Credentials { return s.credentials }

// Secrets are those of the settings that have one value; the Qualys account's change,
// see Credentials.
func (s *Settings) Secrets() []string {
	secrets := []string{s.WorkspaceKey}
	for part := range strings.SplitSeq(s.StorageConnection, ";") {
		if name, value, ok := strings.Cut(part, "="); ok && (strings.EqualFold(name, "AccountKey") || strings.EqualFold(name, "SharedAccessSignature")) {
			secrets = append(secrets, value)
		}
	}
	return secrets
}

// Options are what Load works with.
type Options struct {
	// Environ is "name=value" as of os.Environ. The last of equal names wins.
	Environ []string
	// Vault resolves Key Vault references; without one they are an error.
	Vault Vault
	// VaultTime is how long a secret may take; DefaultVaultTime if zero.
	VaultTime time.Duration
	// CheckFilter says what is wrong with the customer's request parameters.
	CheckFilter func(url.Values) error
	// WithoutSource leaves the settings of the Qualys account out.
	WithoutSource bool
	// Connecting leaves out what is wrong with settings that no connection needs,
	// such as schedules and policies.
	Connecting bool
	// WithoutDestination leaves the settings of Log Analytics out, for a run
	// into a local folder.
	WithoutDestination bool
}

// A Fault is one wrong setting.
type Fault struct {
	Setting string
	Problem string
	// Vault tells that it is a Key Vault reference, and could not be read.
	Vault bool
}

// InvalidError is returned for settings with faults. It lists them all.
type InvalidError struct{ Faults []Fault }

func (e *InvalidError) Error() string {
	var b strings.Builder
	noun := "settings are"
	if len(e.Faults) == 1 {
		noun = "setting is"
	}
	fmt.Fprintf(&b, "%d %s wrong:", len(e.Faults), noun)
	for _, f := range e.Faults {
		fmt.Fprintf(&b, "\n  %s: %s", f.Setting, f.Problem)
	}
	return b.String()
}

// Load reads and checks all settings. The error is an *InvalidError unless ctx ended.
func Load(ctx context.Context, o Options) (*Settings, error) {
	if o.VaultTime == 0 {
		o.VaultTime = DefaultVaultTime
	}
	var faults []Fault
	fault := func(setting string, err error) {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			faults = append(faults, Fault{Setting: setting, Problem: line})
		}
	}
	raw, err := collect(o.Environ)
	if err != nil {
		faults = append(faults, err...)
	}
	s := &Settings{}
	refs := map[string]Reference{}
	for i := range definitions {
		d := &definitions[i]
		if d.Destination && o.WithoutDestination || d.Source && o.WithoutSource {
			continue
		}
		value := d.trim(raw[strings.ToLower(d.Name)])
		if IsReference(strings.TrimSpace(value)) {
			ref, err := ParseReference(strings.TrimSpace(value), vaultSuffix(raw))
			if err != nil {
				fault(d.Name, err)
				continue
			}
			refs[d.Name] = ref
			if value, err = read(ctx, o.Vault, o.VaultTime, ref); err != nil {
				faults = append(faults, Fault{Setting: d.Name, Problem: err.Error(), Vault: true})
				continue
			}
			value = d.trim(value) // the same as on the road by the platform
		}
		if d.Exact {
			if err := exact(value); err != nil {
				fault(d.Name, err)
				continue
			}
		}
		if value == "" {
			value = d.Default
		} else if d.Name == "initialLookbackDays" {
			s.lookbackSet = true
		}
		switch {
		case value == "" && d.Required:
			fault(d.Name, fmt.Errorf("it is missing. %s", d.Doc))
		case value != "":
			if err := d.set(s, value); err != nil && (d.connects() || !o.Connecting) {
				fault(d.Name, err)
			}
		}
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if o.CheckFilter != nil && s.Filter != nil {
		if err := o.CheckFilter(s.Filter); err != nil {
			fault("filterParameters", err)
		}
	}
	if o.Connecting {
		s.RunBudget = 0 // whatever it is, nothing runs
	}
	s.combine(o, fault, bad(faults))
	if len(faults) > 0 {
		return nil, &InvalidError{faults}
	}
	s.credentials = &Credentials{user: s.username, password: s.password, vault: o.Vault, vaultTime: o.VaultTime, refs: refs}
	return s, nil
}

// trim takes blanks at the ends away, where they do not count.
func (d *Definition) trim(v string) string {
	if d.Exact && strings.TrimSpace(v) != "" {
		return v
	}
	return strings.TrimSpace(v)
}

// ClientID is the client id of a user-assigned identity, or empty for the
// system's. It is needed before the other settings can be read.
func ClientID(environ []string) string {
	raw, _ := collect(environ) // Load reports the faults
	return strings.TrimSpace(raw["azurewebjobsstorage__clientid"])
}

// bad is the set of settings that are known to be wrong.
func bad(faults []Fault) map[string]bool {
	m := map[string]bool{}
	for _, f := range faults {
		m[f.Setting] = true
	}
	return m
}

// collect picks the known settings out of the environment, in any case.
func collect(environ []string) (map[string]string, []Fault) {
	raw, spelt := map[string]string{}, map[string]string{}
	var faults []Fault
	for _, pair := range environ {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			continue
		}
		lower := strings.ToLower(name)
		if before, ok := spelt[lower]; ok && before != name && raw[lower] != value && known(lower) {
			faults = append(faults, Fault{Setting: name, Problem: fmt.Sprintf("it is set twice, as %s and %s, to different values: remove one", before, name)})
		}
		spelt[lower], raw[lower] = name, value
	}
	return raw, faults
}

func known(lower string) bool {
	for i := range definitions {
		if strings.ToLower(definitions[i].Name) == lower {
			return true
		}
	}
	return false
}

// combine checks what concerns several settings.
func (s *Settings) combine(o Options, fault func(string, error), wrong map[string]bool) {
	if !s.lookbackSet && s.interval > 0 {
		s.Lookback = s.interval
	}
	if most := s.functionMax - minMargin; s.RunBudget > most && !wrong["runBudget"] {
		fault("runBudget", fmt.Errorf("%s is too long: the function is killed after %s (functionTimeout), and %s are needed to end in good order. Accepted: at most %s",
			s.RunBudget, s.functionMax, minMargin, most))
	}
	if s.account != "" && s.StorageService == "" {
		s.StorageService = "https://" + s.account + ".blob.core.windows.net"
	}
	if s.StateFolder == "" && s.StorageConnection == "" && s.StorageService == "" && !wrong["AzureWebJobsStorage"] {
		fault("AzureWebJobsStorage", fmt.Errorf("it is missing, and the state must be kept somewhere. Accepted: AzureWebJobsStorage with a connection string, or AzureWebJobsStorage__accountName or AzureWebJobsStorage__blobServiceUri for the managed identity, or stateFolder for a local folder"))
	}
	if !o.WithoutDestination {
		s.combineDestination(fault, wrong)
	}
}

// combineDestination finds out which API the address means.
func (s *Settings) combineDestination(fault func(string, error), wrong map[string]bool) {
	if wrong["logAnalyticsUri"] || wrong["logAnalyticsApi"] {
		return
	}
	if s.LogAnalyticsURI == nil {
		if s.WorkspaceID == "" {
			if !wrong["workspaceID"] {
				fault("logAnalyticsUri", fmt.Errorf("it is missing. %s", acceptedLogAnalytics))
			}
			return
		}
		s.LogAnalyticsURI = &url.URL{Scheme: "https", Host: s.WorkspaceID + ".ods.opinsights.azure.com"}
	}
	host := s.LogAnalyticsURI.Hostname()
	derived := s.API
	switch {
	case hasSuffix(host, ingestionSuffixes):
		derived = LogsIngestion
	case hasSuffix(host, collectorSuffixes):
		derived = DataCollector
	case derived == "":
		fault("logAnalyticsApi", fmt.Errorf("the address %s does not tell which API it is. Accepted: %s, %s", s.LogAnalyticsURI.Host, LogsIngestion, DataCollector))
		return
	}
	if s.API != "" && s.API != derived {
		fault("logAnalyticsApi", fmt.Errorf("it is %s, but logAnalyticsUri is an address of %s: remove logAnalyticsApi", s.API, derived))
		return
	}
	s.API = derived
	if s.API == LogsIngestion {
		if s.DCRImmutableID == "" && !wrong["dcrImmutableId"] {
			fault("dcrImmutableId", fmt.Errorf("it is missing, and the Logs Ingestion API needs it. Accepted: the immutable id of the data collection rule, such as dcr-0123456789abcdef0123456789abcdef"))
		}
		return
	}
	fromHost, isODS := strings.CutSuffix(host, suffixOf(host, collectorSuffixes))
	if isODS && s.WorkspaceID == "" {
		s.WorkspaceID = fromHost
	}
	if isODS && fromHost != host && !strings.EqualFold(fromHost, s.WorkspaceID) {
		fault("workspaceID", fmt.Errorf("it is another workspace than the one in logAnalyticsUri: remove one of the two"))
	}
	if s.WorkspaceID == "" && !wrong["workspaceID"] {
		fault("workspaceID", fmt.Errorf("it is missing, and the HTTP Data Collector API needs it. Accepted: the workspace's id, a GUID"))
	}
	if s.WorkspaceKey == "" && !wrong["workspaceKey"] {
		fault("workspaceKey", fmt.Errorf("it is missing, and the HTTP Data Collector API needs it. Accepted: the workspace's primary or secondary key"))
	}
}

func hasSuffix(host string, suffixes []string) bool { return suffixOf(host, suffixes) != "" }

func suffixOf(host string, suffixes []string) string {
	for _, suffix := range suffixes {
		if strings.HasSuffix(strings.ToLower(host), suffix) && len(host) > len(suffix) {
			return suffix
		}
	}
	return ""
}

// ParseLogAnalytics reads an address of Log Analytics, and which API it is of; empty
// where the address does not tell.
func ParseLogAnalytics(v string) (*url.URL, API, error) {
	var s Settings
	if err := setLogAnalytics(&s, v); err != nil {
		return nil, "", err
	}
	switch host := s.LogAnalyticsURI.Hostname(); {
	case hasSuffix(host, ingestionSuffixes):
		return s.LogAnalyticsURI, LogsIngestion, nil
	case hasSuffix(host, collectorSuffixes):
		return s.LogAnalyticsURI, DataCollector, nil
	}
	return s.LogAnalyticsURI, "", nil
}

// Loopback tells whether an address is this machine's own.
func Loopback(u *url.URL) bool { return loopback(u.Hostname()) }

// IntegrationAPIOff tells that the integration API is switched off, as far as that can
// be known before all settings are read.
func IntegrationAPIOff(environ []string) bool {
	raw, _ := collect(environ) // Load reports the faults
	value := strings.TrimSpace(raw["integrationapi"])
	return !strings.EqualFold(value, "true") && !IsReference(value)
}

// CheckRule says what is wrong with the immutable id of a data collection rule.
func CheckRule(v string) error { return setRule(&Settings{}, v) }

// CheckWorkspace says what is wrong with the id of a workspace.
func CheckWorkspace(v string) error { return setWorkspace(&Settings{}, v) }
