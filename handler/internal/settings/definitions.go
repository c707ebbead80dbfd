package settings

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Definition is one setting.
type Definition struct {
	Name     string
	Doc      string
	Default  string
	Example  string // for the example file; the default if empty
	Required bool
	Secret   bool
	// Exact marks a value in which blanks count: it may neither begin nor end with one.
	Exact bool
	// Platform marks a setting of Azure Functions, or of Go, itself.
	Platform bool
	// Source marks a setting of the Qualys account, Destination one of Log
	// Analytics.
	Source, Destination bool
	set                 func(*Settings, string) error
}

// connects tells whether something is reached by the setting.
func (d *Definition) connects() bool {
	return d.Source || d.Destination || d.Platform || strings.HasPrefix(d.Name, "state") || strings.HasSuffix(d.Name, "ApiVersion")
}

// Definitions lists all settings in the order of the README.
func Definitions() []Definition { return append([]Definition(nil), definitions...) }

const (
	// minMargin is what a run needs after its budget: 30 s to a safe point, 2
	// minutes for the last batches, and some to write it down.
	minMargin = 3 * time.Minute
	// hostTimeout is functionTimeout of host.json.
	hostTimeout = "00:30:00"
	// minPageSize in hosts. Smaller pages use the subscription's calls up: it
	// has 300 an hour.
	minPageSize = 10
	maxPageSize = 1_000_000

	acceptedLogAnalytics = "Accepted: https://<name>.<region>.ingest.monitor.azure.com (Logs Ingestion API; the data collection rule's logsIngestion endpoint), https://<workspace id>.ods.opinsights.azure.com (HTTP Data Collector API), both also with .us and .cn; or empty with workspaceID set"
	acceptedURI          = "Accepted: the address of your platform's API server, such as https://qualysapi.qg2.apps.qualys.com"
)

var (
	ingestionSuffixes = []string{".ingest.monitor.azure.com", ".ingest.monitor.azure.us", ".ingest.monitor.azure.cn"}
	collectorSuffixes = []string{".ods.opinsights.azure.com", ".ods.opinsights.azure.us", ".ods.opinsights.azure.cn"}
)

var definitions = []Definition{
	{Name: "apiUsername", Source: true, Doc: "User name of the Qualys account. Role Reader or above, with API access.", Example: "acme_ab1", Required: true, Secret: true, Exact: true, set: setUser},
	{Name: "apiPassword", Source: true, Doc: "Its password.", Example: "@Microsoft.KeyVault(SecretUri=https://<vault>.vault.azure.net/secrets/<name>)", Required: true, Secret: true, Exact: true, set: text(func(s *Settings) *string { return &s.password })},
	{Name: "uri", Source: true, Doc: "Qualys API server, such as `https://qualysapi.qg2.apps.qualys.com`. The longer forms that old guides told people to paste are taken too; only the host counts.", Example: "https://qualysapi.qg2.apps.qualys.com", Required: true, set: setURI},
	{Name: "filterParameters", Source: true, Doc: "Further request parameters, `&a=b&c=d`, such as `&severities=3-5&use_tags=1&tag_set_by=name&tag_set_include=Servers`. `truncation_limit` sets the hosts a page holds. Those that decide what a window holds are refused by name.", set: setFilter},
	{Name: "logAnalyticsUri", Destination: true, Doc: "Where to send. `https://<name>.<region>.ingest.monitor.azure.com` selects the Logs Ingestion API, `https://<workspace id>.ods.opinsights.azure.com`, or empty with `workspaceID` set, the HTTP Data Collector API; both also with `.us` and `.cn`.", Example: "https://<rule>.<region>.ingest.monitor.azure.com", set: setLogAnalytics},
	{Name: "logAnalyticsApi", Destination: true, Doc: "`logs-ingestion` or `data-collector`, where the address does not tell.", set: setAPI},
	{Name: "dcrImmutableId", Destination: true, Doc: "Immutable id of the data collection rule, for the Logs Ingestion API.", Example: "dcr-<32 hexadecimal digits>", set: setRule},
	{Name: "workspaceID", Destination: true, Doc: "Id of the workspace, for the HTTP Data Collector API.", set: setWorkspace},
	{Name: "workspaceKey", Destination: true, Doc: "A key of the workspace, for the HTTP Data Collector API.", Secret: true, set: text(func(s *Settings) *string { return &s.WorkspaceKey })},
	{Name: "vmSchedule", Doc: "When VM detections run, as NCRONTAB with six fields, in UTC. Such as `0 */5 * * * *`. The Functions host reads it itself: without it the function stays off.", Example: "0 */5 * * * *", set: schedule(func(s *Settings) *bool { return &s.VMScheduled })},
	{Name: "kbSchedule", Doc: "When the KnowledgeBase runs, likewise. Such as `0 0 * * * *`: every hour.", Example: "0 0 * * * *", set: schedule(func(s *Settings) *bool { return &s.KBScheduled })},
	{Name: "initialLookbackDays", Doc: "How many days the very first run looks back. 0: everything.", Default: "30", set: setLookback},
	{Name: "timeInterval", Doc: "Minutes; kept from the old function app: how far the very first run looks back where `initialLookbackDays` is not set.", set: setInterval},
	{Name: "resultsPolicy", Doc: "How much of RESULTS, the scan output, to send: `full`, `none`, or a number of bytes. The row says when it was cut.", Default: "full", set: setResults},
	{Name: "resultQIDs", Doc: "Send RESULTS for these QIDs only, separated by comma. Empty: all.", set: setQIDs},
	{Name: "incrementalBy", Doc: "`host`: all detections of every host processed since. `detection`: only detections updated since, far fewer rows, but Qualys counts only changes of status as updates.", Default: "host", set: setIncremental},
	{Name: "overlap", Doc: "How far a window reaches back behind the last one, for what Qualys shows late. Unchanged rows that it brings again are not sent again.", Default: "10m", set: duration(func(s *Settings) *time.Duration { return &s.Overlap }, time.Second, 24*time.Hour)},
	{Name: "kbOverlap", Doc: "The same for the KnowledgeBase, whose changes show up 8 to 10 hours after their date.", Default: "24h", set: duration(func(s *Settings) *time.Duration { return &s.KBOverlap }, time.Second, 30*24*time.Hour)},
	{Name: "kbFullRefreshDays", Doc: "After how many days the whole KnowledgeBase is sent again, so that the workspace's retention does not make a join lose old entries: less than that retention. 0: never.", Default: "30", set: setRefresh},
	{Name: "kbPageSize", Doc: "How many QIDs to ask for at once. A page that takes too long is halved by itself.", Default: "5000", set: setKBPage},
	{Name: "enrichDetections", Doc: "`true`: each detection carries title, severity level, CVEs, CVSS base scores and patchable flag of its QID, from the KnowledgeBase as QualysKB has loaded it.", Default: "false", set: truth(func(s *Settings) *bool { return &s.Enrich })},
	{Name: "runBudget", Doc: "How long a run goes on before it stops at a safe point; the next one continues. Must be 3 minutes below functionTimeout.", Default: "25m", set: duration(func(s *Settings) *time.Duration { return &s.RunBudget }, time.Second, 24*time.Hour)},
	{Name: "callReserve", Doc: "Percent of the subscription's API calls to leave to your other tools. Qualys counts calls by endpoint; one of those it allows at once is always left as well.", Default: "10", set: setReserve},
	{Name: "detectionApiVersion", Doc: "Version of Qualys' host list detection API.", Default: "5.0", set: version(func(s *Settings) *string { return &s.DetectionAPIVersion })},
	{Name: "kbApiVersion", Doc: "Version of Qualys' KnowledgeBase API.", Default: "4.0", set: version(func(s *Settings) *string { return &s.KBAPIVersion })},
	{Name: "integrationApi", Doc: "`true`: Qualys' Sentinel-integration API is served, by which workspaces are registered that get findings beside this one; see docs/integrations.md. Those that are registered get theirs in any case.", Default: "false", set: truth(func(s *Settings) *bool { return &s.IntegrationAPI })},
	{Name: "integrationVault", Doc: "Address of the Key Vault for the keys of these workspaces. The app needs the role Key Vault Secrets Officer there, and nothing else should be in it. Workspaces with a data collection rule need no key.", set: setIntegrationVault},
	{Name: "stateContainer", Doc: "Blob container for checkpoints, run records and dead letters.", Default: "qualys-connector", set: setContainer},
	{Name: "stateFolder", Doc: "Keep the state in this local folder instead. Not for Azure.", set: text(func(s *Settings) *string { return &s.StateFolder })},
	{Name: "logLevel", Doc: "`debug`, `info`, `warn` or `error`.", Default: "info", set: setLevel},
	{Name: "AzureWebJobsStorage", Platform: true, Secret: true, Doc: "Storage account of the function app, which also keeps the state: a connection string.", Example: "UseDevelopmentStorage=true", set: text(func(s *Settings) *string { return &s.StorageConnection })},
	{Name: "AzureWebJobsStorage__accountName", Platform: true, Doc: "The same by name, for the managed identity.", set: setAccount},
	{Name: "AzureWebJobsStorage__blobServiceUri", Platform: true, Doc: "The same by address, for the managed identity and sovereign clouds.", set: setService},
	{Name: "AzureWebJobsStorage__clientId", Platform: true, Doc: "Client id of a user-assigned identity.", set: setClientID},
	{Name: "AzureFunctionsJobHost__functionTimeout", Platform: true, Doc: "Overrides host.json's functionTimeout.", Default: hostTimeout, set: setTimeout},
	{Name: "AzureFunctionsJobHost__customHandler__enableForwardingHttpRequest", Platform: true, Doc: "Overrides host.json, and must not.", set: checkOff},
	{Name: "AzureFunctionsJobHost__customHandler__enableProxyingHttpRequest", Platform: true, Doc: "Overrides host.json, and must not.", set: checkOff},
	{Name: "HTTPS_PROXY", Platform: true, Secret: true, Exact: true, Doc: "Proxy for calls to Qualys and Azure, as `http://user:password@host:port`; in the login, `#` is written as `%23`, `/` as `%2F`, `@` as `%40`.", set: checkProxy},
	{Name: "HTTP_PROXY", Platform: true, Secret: true, Exact: true, Doc: "The same for calls without encryption. There are none but to this machine, which need no proxy.", set: checkProxy},
	{Name: "NO_PROXY", Platform: true, Doc: "Hosts, domains and networks that are reached without a proxy, separated by comma.", set: checkNoProxy},
	{Name: "SSL_CERT_FILE", Platform: true, Doc: "File of certificates to trust, in place of the system's: for a proxy that opens the encryption.", set: checkCertificates},
}

func text(field func(*Settings) *string) func(*Settings, string) error {
	return func(s *Settings, v string) error {
		*field(s) = v
		return nil
	}
}

// setClientID takes any value: ClientID reads it before the others.
func setClientID(*Settings, string) error { return nil }

func duration(field func(*Settings) *time.Duration, least, most time.Duration) func(*Settings, string) error {
	return func(s *Settings, v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d < least || d > most {
			return fmt.Errorf("%q is no duration between %s and %s. Accepted: such as 25m or 1h30m", v, least, most)
		}
		*field(s) = d
		return nil
	}
}

// setURI takes every form that guides have told people to paste.
func setURI(s *Settings, v string) error {
	if !strings.Contains(v, "://") {
		v = "https://" + v
	}
	u, err := url.Parse(v)
	if err != nil || !validHost(u) {
		return errors.New("it is no address. " + acceptedURI) // not repeated: it may hold a password
	}
	if u.User != nil {
		return errors.New("it holds a user name or password: put them into apiUsername and apiPassword. " + acceptedURI)
	}
	host := strings.ToLower(u.Host)
	if u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())) {
		return fmt.Errorf("scheme %q would send the password in clear. %s", u.Scheme, acceptedURI)
	}
	if api := apiHost(host); api != host {
		return fmt.Errorf("%q is not the API server of its platform: use https://%s", host, api)
	}
	s.URI = &url.URL{Scheme: u.Scheme, Host: host}
	return nil
}

// apiHost is the API server of the platform that a console's or gateway's host
// name belongs to; any other name is returned as it is.
func apiHost(host string) string {
	if rest, ok := strings.CutPrefix(host, "qualysguard."); ok {
		return "qualysapi." + firstPlatform(rest)
	}
	if rest, ok := strings.CutPrefix(host, "qualysgateway."); ok {
		return "qualysapi." + rest
	}
	if rest, ok := strings.CutPrefix(host, "gateway."); ok && strings.Contains(rest, "apps.qualys") {
		return "qualysapi." + firstPlatform(rest)
	}
	return host
}

// firstPlatform names the two platforms that are older than the scheme.
func firstPlatform(rest string) string {
	switch rest {
	case "qg1.apps.qualys.com":
		return "qualys.com"
	case "qg1.apps.qualys.eu":
		return "qualys.eu"
	}
	return rest
}

// hostName is a name as DNS has it.
var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*$`)

// validHost reports whether an address has a host that can be compared with names: a
// name, or an IP address without a zone, behind which any text may stand.
func validHost(u *url.URL) bool {
	host := u.Hostname()
	if !validPort(u) {
		return false
	}
	tooLong := slices.ContainsFunc(strings.Split(host, "."), func(label string) bool { return len(label) > 63 })
	return hostName.MatchString(host) && len(host) <= 253 && !tooLong || net.ParseIP(host) != nil
}

// validPort reports whether an address has no port, or one that there is.
func validPort(u *url.URL) bool {
	port := u.Port()
	if port == "" {
		return !strings.HasSuffix(u.Host, ":")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func setFilter(s *Settings, v string) (err error) {
	s.Filter, s.PageSize, err = ParseFilter(v)
	return err
}

// ParseFilter reads request parameters, and the page size among them, in hosts;
// zero if there is none.
func ParseFilter(v string) (values url.Values, pageSize int, err error) {
	values, err = url.ParseQuery(strings.TrimLeft(v, "?& "))
	if err != nil {
		return nil, 0, fmt.Errorf("it cannot be read: %w. Accepted: &name=value&name=value, with %%25 for %%", err)
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if list := values[name]; name == "" || list[0] == "" && len(list) == 1 {
			return nil, 0, fmt.Errorf("parameter %q has no name or no value. Accepted: &name=value&name=value", clip(name))
		}
	}
	if size := values.Get("truncation_limit"); size != "" {
		pageSize, err = strconv.Atoi(size)
		if err != nil || pageSize < minPageSize || pageSize > maxPageSize {
			return nil, 0, fmt.Errorf("truncation_limit %q: a page holds between %d and %d hosts", clip(size), minPageSize, maxPageSize)
		}
		values.Del("truncation_limit")
	}
	return values, pageSize, nil
}

func setLogAnalytics(s *Settings, v string) error {
	u, err := url.Parse(v)
	if err != nil || !validHost(u) || u.User != nil {
		return errors.New("it is no address. " + acceptedLogAnalytics)
	}
	local := loopback(u.Hostname())
	if u.Scheme != "https" && (u.Scheme != "http" || !local) {
		return fmt.Errorf("scheme %q is not encrypted. %s", u.Scheme, acceptedLogAnalytics)
	}
	if !local && !hasSuffix(u.Hostname(), ingestionSuffixes) && !hasSuffix(u.Hostname(), collectorSuffixes) {
		return fmt.Errorf("%q is no address of Log Analytics. %s", u.Host, acceptedLogAnalytics)
	}
	s.LogAnalyticsURI = &url.URL{Scheme: u.Scheme, Host: strings.ToLower(u.Host)}
	return nil
}

func setAPI(s *Settings, v string) error {
	switch a := API(strings.ToLower(v)); a {
	case LogsIngestion, DataCollector:
		s.API = a
		return nil
	}
	return fmt.Errorf("%q is unknown. Accepted: %s, %s", clip(v), LogsIngestion, DataCollector)
}

var ruleForm = regexp.MustCompile(`^dcr-[0-9a-f]{32}$`)

func setRule(s *Settings, v string) error {
	if !ruleForm.MatchString(v) {
		return errors.New("it is no immutable id. Accepted: dcr- and 32 hexadecimal digits, from the JSON view of the data collection rule")
	}
	s.DCRImmutableID = v
	return nil
}

var guid = regexp.MustCompile(`^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$`)

func setWorkspace(s *Settings, v string) error {
	if !guid.MatchString(v) {
		// Not repeated: people mix it up with the key.
		return errors.New("it is no workspace id. Accepted: a GUID, from the workspace's overview")
	}
	s.WorkspaceID = v
	return nil
}

func schedule(on func(*Settings) *bool) func(*Settings, string) error {
	return func(s *Settings, v string) error {
		if _, err := ParseSchedule(v); err != nil {
			return err
		}
		*on(s) = true
		return nil
	}
}

func setLookback(s *Settings, v string) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 || n > 36500 {
		return fmt.Errorf("%q is no number of days. Accepted: 0 (everything) to 36500", clip(v))
	}
	s.Lookback = time.Duration(n) * 24 * time.Hour
	return nil
}

func setInterval(s *Settings, v string) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > 60*24*366 {
		return fmt.Errorf("%q is no number of minutes. Accepted: 1 to %d", clip(v), 60*24*366)
	}
	s.interval = time.Duration(n) * time.Minute
	return nil
}

func setResults(s *Settings, v string) error {
	switch strings.ToLower(v) {
	case "full":
		s.ResultsBytes = -1
		return nil
	case "none":
		s.ResultsBytes = 0
		return nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		return fmt.Errorf("%q is unknown. Accepted: full, none, or a number of bytes", clip(v))
	}
	s.ResultsBytes = n
	return nil
}

func setQIDs(s *Settings, v string) error {
	s.ResultQIDs = map[string]bool{}
	for qid := range strings.SplitSeq(v, ",") {
		qid = strings.TrimSpace(qid)
		if n, err := strconv.ParseUint(qid, 10, 63); err != nil || n == 0 {
			return fmt.Errorf("%q is no QID. Accepted: numbers separated by comma, such as 38170,45038", clip(qid))
		}
		s.ResultQIDs[qid] = true
	}
	return nil
}

func setIncremental(s *Settings, v string) error {
	switch v = strings.ToLower(v); v {
	case "host", "detection":
		s.IncrementalBy = v
		return nil
	}
	return fmt.Errorf("%q is unknown. Accepted: host, detection", clip(v))
}

var versionForm = regexp.MustCompile(`^[1-9][0-9]?\.[0-9]$`)

func version(field func(*Settings) *string) func(*Settings, string) error {
	return func(s *Settings, v string) error {
		if !versionForm.MatchString(v) {
			return fmt.Errorf("%q is no API version. Accepted: such as 5.0", clip(v))
		}
		*field(s) = v
		return nil
	}
}

func setRefresh(s *Settings, v string) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 || n > 3650 {
		return fmt.Errorf("%q is no number of days. Accepted: 0 (never) to 3650", clip(v))
	}
	s.KBRefresh = time.Duration(n) * 24 * time.Hour
	return nil
}

// Bounds of kbPageSize, in QIDs: a whole load in less than a day's calls, and an
// answer within the time of a run.
const (
	minKBPage = 100
	maxKBPage = 50_000
)

func setKBPage(s *Settings, v string) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < minKBPage || n > maxKBPage {
		return fmt.Errorf("%q is no page size. Accepted: %d to %d", clip(v), minKBPage, maxKBPage)
	}
	s.KBPageSize = n
	return nil
}

// maxReserve leaves a tenth of the calls to the connector.
const maxReserve = 90

func setReserve(s *Settings, v string) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 || n > maxReserve {
		return fmt.Errorf("%q is no share. Accepted: 0 to %d, in percent", clip(v), maxReserve)
	}
	s.CallReserve = n
	return nil
}

func truth(field func(*Settings) *bool) func(*Settings, string) error {
	return func(s *Settings, v string) error {
		switch strings.ToLower(v) {
		case "true":
			*field(s) = true
			return nil
		case "false":
			return nil
		}
		return fmt.Errorf("%q is unknown. Accepted: true, false", clip(v))
	}
}

func setIntegrationVault(s *Settings, v string) error {
	u, err := url.Parse(v)
	if err != nil || !validHost(u) || u.Scheme != "https" || u.User != nil || u.RawQuery != "" || strings.Trim(u.Path, "/") != "" || !hasSuffix(u.Hostname(), vaultSuffixes) && !loopback(u.Hostname()) {
		return errors.New("it is no address of a Key Vault. Accepted: such as https://<vault>.vault.azure.net")
	}
	s.IntegrationVault = "https://" + strings.ToLower(u.Host) // it is compared with addresses of secrets
	return nil
}

var containerForm = regexp.MustCompile(`^[a-z0-9](-?[a-z0-9]){2,62}$`)

func setContainer(s *Settings, v string) error {
	if !containerForm.MatchString(v) || len(v) > 63 {
		return fmt.Errorf("%q is no container name. Accepted: 3 to 63 lower-case letters, digits and single dashes", clip(v))
	}
	s.StateContainer = v
	return nil
}

func setLevel(s *Settings, v string) error {
	switch v = strings.ToLower(v); v {
	case "debug", "info", "warn", "error":
		s.LogLevel = v
		return nil
	}
	return fmt.Errorf("%q is unknown. Accepted: debug, info, warn, error", clip(v))
}

var accountForm = regexp.MustCompile(`^[a-z0-9]{3,24}$`)

func setAccount(s *Settings, v string) error {
	if !accountForm.MatchString(v) {
		return errors.New("it is no storage account name. Accepted: 3 to 24 lower-case letters and digits")
	}
	s.account = v
	return nil
}

func setService(s *Settings, v string) error {
	u, err := url.Parse(v)
	if err != nil || !validHost(u) || u.RawQuery != "" || u.User != nil || u.Scheme != "https" && !loopback(u.Hostname()) {
		return errors.New("it is no address of a blob service. Accepted: such as https://<account>.blob.core.windows.net, without a signature")
	}
	s.StorageService = strings.TrimRight(v, "/")
	return nil
}

// clip keeps a pasted value from filling the log.
func clip(v string) string {
	if len(v) > 80 {
		return strings.ToValidUTF8(v[:80], "") + "..."
	}
	return v
}
