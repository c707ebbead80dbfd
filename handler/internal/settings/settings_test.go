package settings_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"

	"qualys-sentinel/e2e/canary"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/settings"
	"qualys-sentinel/handler/internal/simulator"
)

var update = flag.Bool("update", false, "write README.md's table and the example file anew")

var good = map[string]string{
	"apiUsername": canary.User, "apiPassword": canary.Password, "uri": "https://qualysapi.qg2.apps.qualys.com",
	"logAnalyticsUri": "https://x.westeurope-1.ingest.monitor.azure.com", "dcrImmutableId": "dcr-0123456789abcdef0123456789abcdef",
	"AzureWebJobsStorage": "UseDevelopmentStorage=true",
}

// load reads good settings with some changed; "-" removes one.
func load(changes map[string]string) (*settings.Settings, error) {
	return loadWith(nil, changes)
}

func loadWith(vault settings.Vault, changes map[string]string) (*settings.Settings, error) {
	var environ []string
	for name, value := range good {
		if _, ok := changes[name]; !ok {
			environ = append(environ, name+"="+value)
		}
	}
	for name, value := range changes {
		if value != "-" {
			environ = append(environ, name+"="+value)
		}
	}
	return settings.Load(context.Background(), settings.Options{Environ: environ, Vault: vault, CheckFilter: qualys.CheckFilter})
}

func TestGoodSettings(t *testing.T) {
	s, err := load(nil)
	if err != nil {
		t.Fatal(err)
	}
	user, password := s.Credentials().Login()
	if user != canary.User || password != canary.Password || s.API != settings.LogsIngestion || s.Lookback != 30*24*time.Hour ||
		s.RunBudget != 25*time.Minute || s.Overlap != 10*time.Minute || s.StateContainer != "qualys-connector" || s.ResultsBytes != -1 ||
		s.IncrementalBy != "host" || s.DetectionAPIVersion != "5.0" || s.PageSize != 0 || s.ResultQIDs != nil || s.CallReserve != 10 {
		t.Errorf("%+v", s)
	}
}

func TestNamesInAnyCase(t *testing.T) {
	s, err := load(map[string]string{"uri": "-", "URI": "https://qualysapi.qualys.eu", "logAnalyticsUri": "-", "LOGANALYTICSURI": "-",
		"dcrImmutableId": "-", "WorkspaceId": "11111111-1111-1111-1111-111111111111", "WORKSPACEKEY": canary.WorkspaceKeyText(), "timeinterval": "5"})
	if err != nil {
		t.Fatal(err)
	}
	if s.URI.Host != "qualysapi.qualys.eu" || s.API != settings.DataCollector || s.WorkspaceKey != canary.WorkspaceKeyText() ||
		s.LogAnalyticsURI.Host != "11111111-1111-1111-1111-111111111111.ods.opinsights.azure.com" || s.Lookback != 5*time.Minute {
		t.Errorf("%+v", s)
	}
	_, err = load(map[string]string{"URI": "https://qualysapi.qualys.eu", "uri": "https://qualysapi.qualys.com"})
	if err == nil || !strings.Contains(err.Error(), "set twice") {
		t.Errorf("two spellings with different values: %v", err)
	}
}

func TestForms(t *testing.T) {
	for name, c := range map[string]struct {
		changes map[string]string
		check   func(*settings.Settings) any
		want    any
	}{
		"uri with the old path":     {map[string]string{"uri": "https://qualysapi.qualys.com/api/2.0"}, uri, "https://qualysapi.qualys.com"},
		"uri with a query":          {map[string]string{"uri": "https://qualysapi.qg3.apps.qualys.com/api/2.0/fo/asset/host/vm/detection/?action=list&vm_processed_after="}, uri, "https://qualysapi.qg3.apps.qualys.com"},
		"uri with a dash":           {map[string]string{"uri": "https://qualysapi.my-company.example/api/2.0/fo"}, uri, "https://qualysapi.my-company.example"},
		"uri without scheme":        {map[string]string{"uri": " qualysapi.qg1.apps.qualys.in/ "}, uri, "https://qualysapi.qg1.apps.qualys.in"},
		"uri of the simulator":      {map[string]string{"uri": "http://127.0.0.1:7777/api/5.0/"}, uri, "http://127.0.0.1:7777"},
		"filter":                    {map[string]string{"filterParameters": "&severities=3-5&truncation_limit=50&os_pattern=a%23b&"}, func(s *settings.Settings) any { return fmt.Sprint(s.Filter.Encode(), s.PageSize) }, "os_pattern=a%23b&severities=3-550"},
		"results policy":            {map[string]string{"resultsPolicy": "4096"}, func(s *settings.Settings) any { return s.ResultsBytes }, 4096},
		"no results":                {map[string]string{"resultsPolicy": "None"}, func(s *settings.Settings) any { return s.ResultsBytes }, 0},
		"result ids":                {map[string]string{"resultQIDs": "38170, 45038"}, func(s *settings.Settings) any { return fmt.Sprint(s.ResultQIDs) }, "map[38170:true 45038:true]"},
		"everything":                {map[string]string{"initialLookbackDays": "0", "timeInterval": "5"}, func(s *settings.Settings) any { return s.Lookback }, time.Duration(0)},
		"government":                {map[string]string{"logAnalyticsUri": "https://x.usgovvirginia-1.ingest.monitor.azure.us/"}, func(s *settings.Settings) any { return s.API }, settings.LogsIngestion},
		"china, old api":            {map[string]string{"logAnalyticsUri": "https://22222222-2222-2222-2222-222222222222.ods.opinsights.azure.cn", "dcrImmutableId": "-", "workspaceKey": "AAAA"}, func(s *settings.Settings) any { return string(s.API) + s.WorkspaceID }, "data-collector22222222-2222-2222-2222-222222222222"},
		"simulator":                 {map[string]string{"logAnalyticsUri": "http://localhost:1", "logAnalyticsApi": "Logs-Ingestion"}, func(s *settings.Settings) any { return s.API }, settings.LogsIngestion},
		"storage by name":           {map[string]string{"AzureWebJobsStorage": "-", "AzureWebJobsStorage__accountName": "acc123"}, func(s *settings.Settings) any { return s.StorageService }, "https://acc123.blob.core.windows.net"},
		"budget of a long function": {map[string]string{"runBudget": "55m", "AzureFunctionsJobHost__functionTimeout": "01:00:00"}, func(s *settings.Settings) any { return s.RunBudget }, 55 * time.Minute},
		"KnowledgeBase":             {map[string]string{"kbOverlap": "36h", "kbFullRefreshDays": "0", "kbPageSize": "500", "enrichDetections": "TRUE", "kbApiVersion": "3.0"}, knowledge, "36h0m0s 0s 500 true 3.0\n"},
		"KnowledgeBase, defaults":   {nil, knowledge, "24h0m0s 720h0m0s 5000 false 4.0\n"},
		"no reserve":                {map[string]string{"callReserve": "0"}, func(s *settings.Settings) any { return s.CallReserve }, 0},
		"blanks that do not count":  {map[string]string{"uri": " qualysapi.qualys.com\n", "runBudget": " 20m "}, func(s *settings.Settings) any { return fmt.Sprint(s.URI, s.RunBudget) }, "https://qualysapi.qualys.com 20m0s"},
		"blanks inside a password":  {map[string]string{"apiPassword": "a b  c"}, func(s *settings.Settings) any { _, p := s.Credentials().Login(); return p }, "a b  c"},
		"schedule with names":       {map[string]string{"vmSchedule": "0 0 2-5,22 * Jan-March Monday"}, func(s *settings.Settings) any { return s.VMScheduled }, true},
		"schedule with steps":       {map[string]string{"vmSchedule": "30 5/15 */2 1-7/2 * *"}, func(s *settings.Settings) any { return s.VMScheduled }, true},
		"a proxy":                   {map[string]string{"HTTPS_PROXY": "http://svc:S3cr%23t@proxy.example:3128", "NO_PROXY": "localhost,.azure.com,10.0.0.0/8"}, func(s *settings.Settings) any { return s.RunBudget }, 25 * time.Minute},
		"a proxy without scheme":    {map[string]string{"HTTPS_PROXY": "proxy.example:3128"}, func(s *settings.Settings) any { return s.RunBudget }, 25 * time.Minute},
		"a function of a day":       {map[string]string{"runBudget": "20h", "AzureFunctionsJobHost__functionTimeout": "1.00:00:00"}, func(s *settings.Settings) any { return s.RunBudget }, 20 * time.Hour},
		"empty is not set":          {map[string]string{"filterParameters": " ", "vmSchedule": ""}, func(s *settings.Settings) any { return s.Filter.Encode() }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := load(c.changes)
			if err != nil {
				t.Fatal(err)
			}
			if got := c.check(s); !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func knowledge(s *settings.Settings) any {
	return fmt.Sprintln(s.KBOverlap, s.KBRefresh, s.KBPageSize, s.Enrich, s.KBAPIVersion)
}

func uri(s *settings.Settings) any { return s.URI.String() }

func TestFaults(t *testing.T) {
	for name, c := range map[string]struct {
		changes map[string]string
		setting string
		want    string
	}{
		"no user":                {map[string]string{"apiUsername": "-"}, "apiUsername", "missing"},
		"no uri":                 {map[string]string{"uri": "-"}, "uri", "missing"},
		"console":                {map[string]string{"uri": "https://qualysguard.qg2.apps.qualys.com"}, "uri", "use https://qualysapi.qg2.apps.qualys.com"},
		"first console":          {map[string]string{"uri": "https://qualysguard.qualys.com/fo"}, "uri", "use https://qualysapi.qualys.com"},
		"gateway":                {map[string]string{"uri": "https://gateway.qg1.apps.qualys.eu"}, "uri", "use https://qualysapi.qualys.eu"},
		"private gateway":        {map[string]string{"uri": "https://qualysgateway.corp.example"}, "uri", "use https://qualysapi.corp.example"},
		"plain http":             {map[string]string{"uri": "http://qualysapi.qualys.com"}, "uri", "in clear"},
		"login in uri":           {map[string]string{"uri": "https://u:" + "canary-0ld-pa55word" + "@qualysapi.qualys.com"}, "uri", "put them into"},
		"owned parameters":       {map[string]string{"filterParameters": "&vm_processed_after=x&id_min=4"}, "filterParameters", `"id_min" is set by the connector`},
		"key for an id":          {map[string]string{"workspaceID": canary.WorkspaceKeyText()}, "workspaceID", "no workspace id"},
		"password in broken uri": {map[string]string{"uri": "https://user:" + canary.OldPassword + "%zz@qualysapi.qualys.com"}, "uri", "no address"},
		"login in the address":   {map[string]string{"logAnalyticsUri": "https://abc:" + canary.OldPassword + "@x.ingest.monitor.azure.com"}, "logAnalyticsUri", "no address"},
		"key for an account":     {map[string]string{"AzureWebJobsStorage__accountName": "AccountKey=" + canary.WorkspaceKeyText()}, "AzureWebJobsStorage__accountName", "no storage account"},
		"signed blob service":    {map[string]string{"AzureWebJobsStorage__blobServiceUri": "https://a.blob.core.windows.net/?sig=" + canary.OldPassword}, "AzureWebJobsStorage__blobServiceUri", "without a signature"},
		"key for a rule":         {map[string]string{"dcrImmutableId": canary.WorkspaceKeyText()}, "dcrImmutableId", "no immutable id"},
		"second owned":           {map[string]string{"filterParameters": "&vm_processed_after=x&id_min=4"}, "filterParameters", `"vm_processed_after" is set by the connector`},
		"bad escape":             {map[string]string{"filterParameters": "a=%zz"}, "filterParameters", "cannot be read"},
		"empty value":            {map[string]string{"filterParameters": "&tag_set_include=&use_tags=1"}, "filterParameters", "no value"},
		"page of one":            {map[string]string{"filterParameters": "truncation_limit=1"}, "filterParameters", "between 10 and"},
		"all in one page":        {map[string]string{"filterParameters": "truncation_limit=0"}, "filterParameters", "between 10 and"},
		"foreign address":        {map[string]string{"logAnalyticsUri": "https://evil.example"}, "logAnalyticsUri", "no address of Log Analytics"},
		"suffix behind a zone":   {map[string]string{"logAnalyticsUri": "https://[::1%25.ingest.monitor.azure.com]"}, "logAnalyticsUri", "no address"},
		"suffix behind an IP":    {map[string]string{"logAnalyticsUri": "https://[fe80::1%25x.ingest.monitor.azure.com]:443"}, "logAnalyticsUri", "no address"},
		"literal address":        {map[string]string{"logAnalyticsUri": "https://10.0.0.1"}, "logAnalyticsUri", "no address of Log Analytics"},
		"slash in the name":      {map[string]string{"logAnalyticsUri": "https://evil.example%2F.ingest.monitor.azure.com"}, "logAnalyticsUri", "no address"},
		"blank in the name":      {map[string]string{"logAnalyticsUri": "https://evil.example%20.ingest.monitor.azure.com"}, "logAnalyticsUri", "no address"},
		"zone of a vault":        {map[string]string{"integrationVault": "https://[::1%25.vault.azure.net]"}, "integrationVault", "Key Vault"},
		"zone of a secret":       {map[string]string{"apiPassword": "@Microsoft.KeyVault(SecretUri=https://[::1%25.vault.azure.net]/secrets/s)"}, "apiPassword", "https address"},
		"zone of the server":     {map[string]string{"uri": "https://[::1%25qualysapi.qualys.com]"}, "uri", "no address"},
		"suffix only":            {map[string]string{"logAnalyticsUri": "https://.ingest.monitor.azure.com"}, "logAnalyticsUri", "no address"},
		"loopback without api":   {map[string]string{"logAnalyticsUri": "http://127.0.0.1:1"}, "logAnalyticsApi", "does not tell"},
		"api against address":    {map[string]string{"logAnalyticsApi": "data-collector"}, "logAnalyticsApi", "remove logAnalyticsApi"},
		"unknown api":            {map[string]string{"logAnalyticsApi": "x"}, "logAnalyticsApi", "Accepted: logs-ingestion, data-collector"},
		"no rule":                {map[string]string{"dcrImmutableId": "-"}, "dcrImmutableId", "missing"},
		"rule's resource id":     {map[string]string{"dcrImmutableId": "/subscriptions/x"}, "dcrImmutableId", "dcr- and 32"},
		"no destination":         {map[string]string{"logAnalyticsUri": "-"}, "logAnalyticsUri", "missing"},
		"no workspace key":       {map[string]string{"logAnalyticsUri": "-", "workspaceID": "11111111-1111-1111-1111-111111111111"}, "workspaceKey", "missing"},
		"workspace name":         {map[string]string{"workspaceID": "my-workspace"}, "workspaceID", "GUID"},
		"two workspaces":         {map[string]string{"logAnalyticsUri": "https://22222222-2222-2222-2222-222222222222.ods.opinsights.azure.com", "workspaceID": "11111111-1111-1111-1111-111111111111", "workspaceKey": "AAAA"}, "workspaceID", "another workspace"},
		"schedule":               {map[string]string{"vmSchedule": "*/5 * * * *"}, "vmSchedule", "six fields"},
		"lookback":               {map[string]string{"initialLookbackDays": "-1"}, "initialLookbackDays", "0 (everything)"},
		"interval":               {map[string]string{"timeInterval": "x"}, "timeInterval", "minutes"},
		"results":                {map[string]string{"resultsPolicy": "some"}, "resultsPolicy", "full, none"},
		"ids":                    {map[string]string{"resultQIDs": "1,x"}, "resultQIDs", "no QID"},
		"incremental":            {map[string]string{"incrementalBy": "scan"}, "incrementalBy", "host, detection"},
		"budget over the limit":  {map[string]string{"runBudget": "28m"}, "runBudget", "at most 27m"},
		"budget is no duration":  {map[string]string{"runBudget": "25"}, "runBudget", "no duration"},
		"container":              {map[string]string{"stateContainer": "A_B"}, "stateContainer", "lower-case"},
		"no storage":             {map[string]string{"AzureWebJobsStorage": "-"}, "AzureWebJobsStorage", "missing"},
		"level":                  {map[string]string{"logLevel": "loud"}, "logLevel", "debug, info"},
		"version":                {map[string]string{"detectionApiVersion": "../5"}, "detectionApiVersion", "no API version"},
		"KB version":             {map[string]string{"kbApiVersion": "four"}, "kbApiVersion", "no API version"},
		"no reserve":             {map[string]string{"callReserve": "100"}, "callReserve", "0 to 90"},
		"KB schedule":            {map[string]string{"kbSchedule": "hourly"}, "kbSchedule", "six fields"},
		"KB overlap":             {map[string]string{"kbOverlap": "90d"}, "kbOverlap", "between"},
		"refresh":                {map[string]string{"kbFullRefreshDays": "never"}, "kbFullRefreshDays", "0 (never)"},
		"KB page of one":         {map[string]string{"kbPageSize": "1"}, "kbPageSize", "100 to 50000"},
		"enrich":                 {map[string]string{"enrichDetections": "yes"}, "enrichDetections", "true, false"},
		"timeout":                {map[string]string{"AzureFunctionsJobHost__functionTimeout": "soon"}, "AzureFunctionsJobHost__functionTimeout", "hh:mm:ss"},
		"overlap":                {map[string]string{"overlap": "-5m"}, "overlap", "between"},
		"account":                {map[string]string{"AzureWebJobsStorage__accountName": "https://acc"}, "AzureWebJobsStorage__accountName", "lower-case"},
		"blob service":           {map[string]string{"AzureWebJobsStorage__blobServiceUri": "http://acc.example"}, "AzureWebJobsStorage__blobServiceUri", "blob service"},
		"blank behind":           {map[string]string{"apiPassword": canary.OldPassword + " "}, "apiPassword", "begins or ends with a blank"},
		"blank in front":         {map[string]string{"apiPassword": "\t" + canary.OldPassword}, "apiPassword", "begins or ends with a blank"},
		"line break behind":      {map[string]string{"apiPassword": canary.OldPassword + "\r\n"}, "apiPassword", "begins or ends with a blank"},
		"no-break space behind":  {map[string]string{"apiPassword": canary.OldPassword + "\u00a0"}, "apiPassword", "begins or ends with a blank"},
		"blank behind the user":  {map[string]string{"apiUsername": "acme_ab1 "}, "apiUsername", "begins or ends with a blank"},
		"user and password":      {map[string]string{"apiUsername": "acme_ab1:" + canary.OldPassword}, "apiUsername", "colon"},
		"seconds of 60":          {map[string]string{"vmSchedule": "60 * * * * *"}, "vmSchedule", "not a schedule"},
		"hour of 24":             {map[string]string{"vmSchedule": "0 0 24 * * *"}, "vmSchedule", "not a schedule"},
		"weekday of 7":           {map[string]string{"kbSchedule": "0 0 6 * * 7"}, "kbSchedule", "not a schedule"},
		"month of 0":             {map[string]string{"kbSchedule": "0 0 6 * 0 *"}, "kbSchedule", "not a schedule"},
		"step of 0":              {map[string]string{"kbSchedule": "0 */0 * * * *"}, "kbSchedule", "not a schedule"},
		"range backwards":        {map[string]string{"kbSchedule": "0 0 22-6 * * *"}, "kbSchedule", "not a schedule"},
		"a question mark":        {map[string]string{"kbSchedule": "0 0 6 ? * *"}, "kbSchedule", "does not take"},
		"a word":                 {map[string]string{"kbSchedule": "0 0 6 * * weekdays"}, "kbSchedule", "not a schedule"},
		"the 31st of February":   {map[string]string{"kbSchedule": "0 0 6 31 2 *"}, "kbSchedule", "never comes"},
		"a time span":            {map[string]string{"vmSchedule": "00:05:00"}, "vmSchedule", "six fields"},
		"# in a proxy's login":   {map[string]string{"HTTPS_PROXY": "http://svc:" + canary.OldPassword + "#t@proxy:3128"}, "HTTPS_PROXY", "%23"},
		"/ in a proxy's login":   {map[string]string{"HTTPS_PROXY": "http://svc:" + canary.OldPassword + "/t@proxy:3128"}, "HTTPS_PROXY", "%2F"},
		"? in a proxy's login":   {map[string]string{"https_proxy": "http://svc:" + canary.OldPassword + "?t@proxy:3128"}, "HTTPS_PROXY", "%3F"},
		"blank in a proxy":       {map[string]string{"HTTPS_PROXY": "http://svc:" + canary.OldPassword + " t@proxy:3128"}, "HTTPS_PROXY", "%20"},
		"blank behind a proxy":   {map[string]string{"HTTPS_PROXY": "http://proxy:3128 "}, "HTTPS_PROXY", "blank"},
		"a proxy's port":         {map[string]string{"HTTPS_PROXY": "http://proxy:0x50"}, "HTTPS_PROXY", "not the address"},
		"a proxy's high port":    {map[string]string{"HTTPS_PROXY": "http://proxy:99999"}, "HTTPS_PROXY", "65535"},
		"a proxy's scheme":       {map[string]string{"HTTPS_PROXY": "ftp://proxy:3128"}, "HTTPS_PROXY", "socks5"},
		"a proxy's path":         {map[string]string{"HTTPS_PROXY": "http://proxy.example/proxy.pac"}, "HTTPS_PROXY", "not the address"},
		"an address, no proxy":   {map[string]string{"NO_PROXY": "localhost,https://qualysapi.qualys.com"}, "NO_PROXY", "matches nothing"},
		"no certificates":        {map[string]string{"SSL_CERT_FILE": "/does/not/exist.pem"}, "SSL_CERT_FILE", "cannot be read"},
		"certificates of none":   {map[string]string{"SSL_CERT_FILE": "settings_test.go"}, "SSL_CERT_FILE", "holds no certificate"},
		"forwarding requests":    {map[string]string{"AzureFunctionsJobHost__customHandler__enableForwardingHttpRequest": "true"}, "AzureFunctionsJobHost__customHandler__enableForwardingHttpRequest", "remove it"},
		"timeout and more":       {map[string]string{"AzureFunctionsJobHost__functionTimeout": "00:30:00 " + "x"}, "AzureFunctionsJobHost__functionTimeout", "hh:mm:ss"},
		"timeout of 90 minutes":  {map[string]string{"AzureFunctionsJobHost__functionTimeout": "00:90:00"}, "AzureFunctionsJobHost__functionTimeout", "59 minutes"},
		"budget over a timeout":  {map[string]string{"AzureFunctionsJobHost__functionTimeout": "00:10:00"}, "runBudget", "at most 7m"},
		"reference, no vault":    {map[string]string{"apiPassword": "@Microsoft.KeyVault(VaultName=v-1;SecretName=s)"}, "apiPassword", "none can be read"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := load(c.changes)
			var invalid *settings.InvalidError
			if !errors.As(err, &invalid) {
				t.Fatalf("got %v", err)
			}
			found := false
			for _, f := range invalid.Faults {
				found = found || f.Setting == c.setting && strings.Contains(f.Problem, c.want)
			}
			if !found {
				t.Errorf("no fault of %s with %q in: %v", c.setting, c.want, err)
			}
			for _, secret := range canary.Forms() {
				if strings.Contains(err.Error(), secret) {
					t.Error("the error holds a secret")
				}
			}
		})
	}
}

// One error names every wrong setting.
func TestAllFaultsAtOnce(t *testing.T) {
	_, err := load(map[string]string{"apiUsername": "-", "uri": "https://qualysguard.qualys.com", "runBudget": "x", "resultsPolicy": "x", "dcrImmutableId": "x", "filterParameters": "action=x"})
	var invalid *settings.InvalidError
	if !errors.As(err, &invalid) || len(invalid.Faults) != 6 || !strings.HasPrefix(err.Error(), "6 settings are wrong:\n  apiUsername: ") {
		t.Errorf("got %v", err)
	}
}

func TestReferences(t *testing.T) {
	const version = "0123456789abcdef0123456789abcdef"
	for in, want := range map[string]settings.Reference{
		"@Microsoft.KeyVault(SecretUri=https://v-1.vault.azure.net/secrets/name)":                    {Vault: "https://v-1.vault.azure.net", Name: "name"},
		"@Microsoft.KeyVault(SecretUri=https://v-1.vault.azure.net/secrets/name/)":                   {Vault: "https://v-1.vault.azure.net", Name: "name"},
		"@microsoft.keyvault(secreturi=https://v.vault.usgovcloudapi.net/secrets/n/" + version + ")": {Vault: "https://v.vault.usgovcloudapi.net", Name: "n", Version: version},
		"@Microsoft.KeyVault(VaultName=myvault;SecretName=n)":                                        {Vault: "https://myvault.vault.azure.cn", Name: "n"},
		"@Microsoft.KeyVault(VaultName=myvault;SecretName=n;SecretVersion=" + version + ")":          {Vault: "https://myvault.vault.azure.cn", Name: "n", Version: version},
		"@Microsoft.KeyVault(VaultName=myvault; SecretName=n)":                                       {Vault: "https://myvault.vault.azure.cn", Name: "n"},
	} {
		got, err := settings.ParseReference(in, ".vault.azure.cn")
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
	for in, want := range map[string]string{
		"@Microsoft.KeyVault(SecretUri=https://evil.example/secrets/n)":                   "no Key Vault",
		"@Microsoft.KeyVault(SecretUri=http://v.vault.azure.net/secrets/n)":               "no https",
		"@Microsoft.KeyVault(SecretUri=https://v.vault.azure.net/keys/n)":                 "names no secret",
		"@Microsoft.KeyVault(SecretUri=https://v.vault.azure.net.evil.example/secrets/n)": "no Key Vault",
		"@Microsoft.KeyVault(VaultName=evil.example/;SecretName=n)":                       "names no vault",
		"@Microsoft.KeyVault(VaultName=myvault)":                                          "malformed",
		"@Microsoft.KeyVault(VaultName=myvault;SecretName=n":                              "closing bracket",
		"@Microsoft.KeyVault()": "names no vault",
	} {
		if _, err := settings.ParseReference(in, ".vault.azure.net"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", in, err, want)
		}
	}
}

// vault starts the simulated Key Vault behind the real SDK.
func vault(t *testing.T) (*simulator.Azure, settings.Vault, string) {
	t.Helper()
	a := simulator.NewAzure()
	a.IdentityHeader = canary.IdentityToken
	identity := httptest.NewServer(a)
	t.Cleanup(identity.Close)
	server := httptest.NewTLSServer(a.Vault())
	t.Cleanup(server.Close)
	t.Setenv("IDENTITY_ENDPOINT", identity.URL+simulator.IdentityPath)
	t.Setenv("IDENTITY_HEADER", a.IdentityHeader)
	return a, &settings.KeyVault{
		Credential: func() (azcore.TokenCredential, error) { return azidentity.NewManagedIdentityCredential(nil) },
		Options:    &azsecrets.ClientOptions{ClientOptions: azcore.ClientOptions{Transport: server.Client(), Retry: policy.RetryOptions{MaxRetries: -1}}},
	}, server.URL
}

// Keys of workspaces go into the vault and come back out of it, each as a secret of its
// own, and what goes wrong is told without them.
func TestKeyFile(t *testing.T) {
	ctx := context.Background()
	a, v, address := vault(t)
	n := 0
	file := func() *settings.KeyFile {
		return &settings.KeyFile{KeyVault: *v.(*settings.KeyVault), Vault: address, NewID: func() string { n++; return fmt.Sprint("r", n) }}
	}
	k := file()
	first, err := k.Put(ctx, 7, canary.WorkspaceKeyText())
	if err != nil || !strings.HasPrefix(first, address+"/secrets/qualys-integration-7-r1/") || a.Secrets["qualys-integration-7-r1"] != canary.WorkspaceKeyText() {
		t.Fatalf("%s, %v", first, err)
	}
	second, err := k.Put(ctx, 7, "b3RoZXI=")
	if err != nil || second == first {
		t.Fatalf("%s, %v", second, err)
	}
	for _, k := range []*settings.KeyFile{k, file()} { // from memory, and from the vault
		if key, err := k.Get(ctx, first); err != nil || key != canary.WorkspaceKeyText() {
			t.Errorf("%v", err)
		}
	}
	for range 2 { // what is gone is no error
		if err := file().Remove(ctx, first); err != nil {
			t.Errorf("%v", err)
		}
	}
	wants := func(err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), canary.WorkspaceKeyText()) {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
	_, err = file().Get(ctx, first)
	wants(err, "there is no such secret")
	_, err = file().Get(ctx, "https://other.vault.azure.net/secrets/x")
	wants(err, "its key is in https://other.vault.azure.net, and integrationVault is "+address)
	wants(file().Remove(ctx, "nonsense"), "is no https address")
}

// A vault that refuses says which role is missing, and one that is silent is given up.
func TestKeyFileRefused(t *testing.T) {
	_, v, _ := vault(t)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", `Bearer authorization="https://login.microsoftonline.com/t", resource="https://vault.azure.net"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.Method == http.MethodDelete {
			<-r.Context().Done()
			return
		}
		w.WriteHeader(http.StatusForbidden)
	}))
	defer server.Close()
	k := &settings.KeyFile{KeyVault: *v.(*settings.KeyVault), Vault: server.URL, NewID: func() string { return "x" }}
	k.Options = &azsecrets.ClientOptions{ClientOptions: azcore.ClientOptions{Transport: server.Client(), Retry: policy.RetryOptions{MaxRetries: -1}}}
	if _, err := k.Put(context.Background(), 8, canary.WorkspaceKeyText()); err == nil || !strings.Contains(err.Error(), "Key Vault Secrets Officer") {
		t.Errorf("%v", err)
	}
	k.Time = 50 * time.Millisecond
	if err := k.Remove(context.Background(), server.URL+"/secrets/x"); err == nil || !strings.Contains(err.Error(), "no answer within 50ms") {
		t.Errorf("%v", err)
	}
}

func TestKeyVault(t *testing.T) {
	a, v, address := vault(t)
	a.SetSecret("qualys-user", canary.User)
	a.SetSecret("qualys-password", canary.OldPassword)
	s, err := loadWith(v, map[string]string{
		"apiUsername": "@Microsoft.KeyVault(SecretUri=" + address + "/secrets/qualys-user)",
		"apiPassword": "@Microsoft.KeyVault(SecretUri=" + address + "/secrets/qualys-password)",
	})
	if err != nil {
		t.Fatal(err)
	}
	c := s.Credentials()
	if user, password := c.Login(); user != canary.User || password != canary.OldPassword {
		t.Error("the secrets were not read")
	}
	if changed, err := c.Reload(context.Background()); changed || err != nil {
		t.Errorf("nothing was rotated: %v, %v", changed, err)
	}
	a.SetSecret("qualys-password", canary.NewPassword)
	if changed, err := c.Reload(context.Background()); !changed || err != nil {
		t.Errorf("rotated: %v, %v", changed, err)
	}
	if _, password := c.Login(); password != canary.NewPassword {
		t.Error("the new password is not in use")
	}
	_, err = loadWith(v, map[string]string{"apiPassword": "@Microsoft.KeyVault(SecretUri=" + address + "/secrets/none)"})
	if err == nil || !strings.Contains(err.Error(), "apiPassword: secret none of "+address+": there is no such secret") || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("a secret that is not there: %v", err)
	}
}

func TestKeyVaultErrors(t *testing.T) {
	for status, want := range map[int]string{403: "Key Vault Secrets User", 404: "no such secret", 401: "another tenant", 500: "answered 500"} {
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") == "" {
				w.Header().Set("WWW-Authenticate", `Bearer authorization="https://login.microsoftonline.com/22222222-2222-2222-2222-222222222222", resource="https://vault.azure.net"`)
				w.WriteHeader(401)
				return
			}
			w.WriteHeader(status)
		}))
		_, v, _ := vault(t)
		v.(*settings.KeyVault).Options.Transport = server.Client()
		_, err := v.Secret(context.Background(), settings.Reference{Vault: server.URL, Name: "n"})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d: %v, want %q", status, err, want)
		}
		server.Close()
	}
}

// A platform that resolved the reference itself leaves nothing to read again.
func TestPlainCredentialsCannotBeReloaded(t *testing.T) {
	s, err := load(nil)
	if err != nil {
		t.Fatal(err)
	}
	if changed, err := s.Credentials().Reload(context.Background()); changed || err != nil {
		t.Errorf("%v, %v", changed, err)
	}
}

// README.md and the example file are made from the definitions.
func TestDocumentsMatchTheDefinitions(t *testing.T) {
	const begin, end = "<!-- settings: made by go test ./handler/internal/settings -update -->\n", "<!-- /settings -->"
	readme, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(readme), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("README.md has no marks for the settings: %s", begin)
	}
	want := map[string]string{
		"../../../README.md":                   before + begin + markdown() + end + after,
		"../../../local.settings.json.example": example(),
	}
	for path, doc := range want {
		if *update {
			if err := os.WriteFile(path, []byte(doc), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != doc {
			t.Errorf("%s does not match the definitions: go test ./handler/internal/settings -update", path)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("https://qualysapi.qualys.com/api", "&a=b", "@Microsoft.KeyVault(VaultName=a;SecretName=b)", "https://x.ingest.monitor.azure.com")
	f.Fuzz(func(t *testing.T, uri, filter, password, address string) {
		s, err := settings.Load(context.Background(), settings.Options{Environ: []string{
			"apiUsername=u", "apiPassword=" + password, "uri=" + uri, "filterParameters=" + filter, "logAnalyticsUri=" + address,
			"dcrImmutableId=dcr-0123456789abcdef0123456789abcdef", "stateFolder=x",
		}, CheckFilter: qualys.CheckFilter})
		if err != nil {
			return
		}
		for _, u := range []*url.URL{s.URI, s.LogAnalyticsURI} {
			if u.Scheme != "https" && u.Hostname() != "localhost" && !strings.HasPrefix(u.Hostname(), "127.") && u.Hostname() != "::1" || u.Path != "" || u.User != nil {
				t.Errorf("accepted %s", u)
			}
		}
	})
}

// silentVault never answers.
type silentVault struct{}

func (silentVault) Secret(ctx context.Context, _ settings.Reference) (string, error) {
	<-ctx.Done()
	return "", context.Cause(ctx)
}

// A vault that does not answer is told as that, and keeps nobody for long.
func TestSilentVault(t *testing.T) {
	_, err := settings.Load(context.Background(), settings.Options{
		Environ: []string{"apiUsername=@Microsoft.KeyVault(VaultName=some-vault;SecretName=user)", "apiPassword=p", "uri=qualysapi.qualys.com", "stateFolder=x"},
		Vault:   silentVault{}, VaultTime: time.Millisecond, WithoutDestination: true,
	})
	var invalid *settings.InvalidError
	if !errors.As(err, &invalid) || len(invalid.Faults) != 1 || !invalid.Faults[0].Vault || !strings.Contains(invalid.Faults[0].Problem, "no answer within 1ms") {
		t.Errorf("%v", err)
	}
}

// For a connection, what is wrong with a schedule or a policy does not matter.
func TestConnecting(t *testing.T) {
	environ := []string{"apiUsername=u", "apiPassword=p", "uri=qualysapi.qualys.com", "stateFolder=x", "vmSchedule=often", "resultsPolicy=some", "runBudget=99h"}
	if s, err := settings.Load(context.Background(), settings.Options{Environ: environ, Connecting: true, WithoutDestination: true}); err != nil || s.VMScheduled {
		t.Errorf("%+v, %v", s, err)
	}
	var invalid *settings.InvalidError
	if _, err := settings.Load(context.Background(), settings.Options{Environ: append(environ, "uri=qualysguard.qualys.com"), Connecting: true, WithoutDestination: true}); !errors.As(err, &invalid) || len(invalid.Faults) != 1 {
		t.Errorf("%v", err)
	}
}
