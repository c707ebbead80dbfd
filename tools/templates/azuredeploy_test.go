package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// entry is a resource of a template or of one nested in it.
type entry struct {
	Type       string
	Name       string
	Scope      string
	Properties json.RawMessage
}

type template struct {
	Parameters map[string]struct{ Type string }
	Variables  map[string]any
	Resources  []entry
}

// all are a template's resources, and those nested in them; templates are it and
// the nested ones.
func all(t *testing.T, tp template) (resources []entry, templates []template) {
	t.Helper()
	templates = []template{tp}
	for _, r := range tp.Resources {
		resources = append(resources, r)
		if r.Type != "Microsoft.Resources/deployments" {
			continue
		}
		var p struct{ Template template }
		if err := json.Unmarshal(r.Properties, &p); err != nil {
			t.Fatal(err)
		}
		more, nested := all(t, p.Template)
		resources, templates = append(resources, more...), append(templates, nested...)
	}
	return resources, templates
}

func readTemplate(t *testing.T) (resources []entry, templates []template) {
	t.Helper()
	doc, err := os.ReadFile("../../arm/azuredeploy.json")
	if err != nil {
		t.Fatal(err)
	}
	var tp template
	if err := json.Unmarshal(doc, &tp); err != nil {
		t.Fatal(err)
	}
	return all(t, tp)
}

// The app's identity has four roles, each on as little as there is.
func TestRoles(t *testing.T) {
	resources, templates := readTemplate(t)
	names := map[string]string{
		"3913510d-42f4-4e42-8a64-420c390055eb": "Monitoring Metrics Publisher",
		"b7e6dc6d-f1e8-4753-8033-0f276bb0955b": "Storage Blob Data Owner",
		"4633458b-17de-408a-b874-0445c86b69e6": "Key Vault Secrets User",
		"b86a8fe4-44ce-4948-aee5-eccb2c155cd7": "Key Vault Secrets Officer",
	}
	role := map[string]string{}
	for _, tp := range templates {
		for name, v := range tp.Variables {
			text, _ := v.(string)
			if m := regexp.MustCompile(`'([0-9a-f-]{36})'\)\]$`).FindStringSubmatch(text); m != nil {
				role[name] = m[1]
			}
		}
	}
	given := map[string]int{}
	for _, r := range resources {
		if r.Type != "Microsoft.Authorization/roleAssignments" {
			continue
		}
		var p struct{ RoleDefinitionID, PrincipalID, PrincipalType string }
		if err := json.Unmarshal(r.Properties, &p); err != nil {
			t.Fatal(err)
		}
		variable := strings.TrimSuffix(strings.TrimPrefix(p.RoleDefinitionID, "[variables('"), "')]")
		given[names[role[variable]]+" on "+r.Scope]++
		if p.PrincipalID != "[parameters('principalId')]" || p.PrincipalType != "ServicePrincipal" || !strings.Contains(r.Name, "parameters('principalId')") || !strings.Contains(r.Name, variable) {
			t.Errorf("%+v %s", p, r.Name)
		}
	}
	want := map[string]int{
		"Monitoring Metrics Publisher on [variables('ruleId')]":                                                                     1,
		"Storage Blob Data Owner on [variables('storageId')]":                                                                       1,
		"Key Vault Secrets User on [resourceId('Microsoft.KeyVault/vaults/secrets', parameters('name'), parameters('secrets')[0])]": 1,
		"Key Vault Secrets User on [resourceId('Microsoft.KeyVault/vaults/secrets', parameters('name'), parameters('secrets')[1])]": 1,
		// Of the vault that holds keys of further workspaces, and nothing else.
		"Key Vault Secrets Officer on [resourceId('Microsoft.KeyVault/vaults', parameters('name'))]": 1,
	}
	if !maps.Equal(given, want) {
		t.Errorf("%v\nwant %v", given, want)
	}
}

// Secrets are secrets on their whole way, and storage, vault and app are closed
// as far as they can be.
func TestClosed(t *testing.T) {
	resources, templates := readTemplate(t)
	secure := 0
	for _, tp := range templates {
		for _, name := range []string{"qualysUsername", "qualysPassword", "additionalSettings"} {
			if p, ok := tp.Parameters[name]; ok {
				if secure++; !strings.HasPrefix(p.Type, "secure") {
					t.Errorf("%s is a %s", name, p.Type)
				}
			}
		}
	}
	if secure != 5 {
		t.Errorf("%d secure parameters", secure)
	}
	want := map[string][]string{
		"Microsoft.Storage/storageAccounts":                         {`"allowSharedKeyAccess":false`, `"allowBlobPublicAccess":false`, `"minimumTlsVersion":"TLS1_2"`, `"supportsHttpsTrafficOnly":true`, `if(parameters('private'), 'Disabled', 'Enabled')`},
		"Microsoft.Storage/storageAccounts/blobServices/containers": {`"publicAccess":"None"`},
		"Microsoft.KeyVault/vaults":                                 {`"enableRbacAuthorization":true`, `if(parameters('private'), 'Disabled', 'Enabled')`},
		"Microsoft.Web/sites":                                       {`"httpsOnly":true`, `'minTlsVersion', '1.2'`},
		"Microsoft.Web/sites/basicPublishingCredentialsPolicies":    {`"allow":false`},
		"Microsoft.OperationalInsights/workspaces/savedSearches":    {`"query":`},
		"Microsoft.SecurityInsights/alertRules":                     {`"enabled":"[parameters('enableRules')]"`},
		"Microsoft.Insights/diagnosticSettings":                     {`"category":"LogErrors"`},
	}
	met := map[string]int{}
	for _, r := range resources {
		met[r.Type]++
		flat := compact(t, r.Properties)
		for _, part := range want[r.Type] {
			if !strings.Contains(flat, part) {
				t.Errorf("%s %s lacks %s", r.Type, r.Name, part)
			}
		}
	}
	for typ := range want {
		if met[typ] == 0 {
			t.Errorf("there is no %s", typ)
		}
	}
	if met["Microsoft.Web/sites/basicPublishingCredentialsPolicies"] != 2 {
		t.Error("ftp and scm have a policy each")
	}
}

func compact(t *testing.T, doc json.RawMessage) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(doc, &v); err != nil {
		t.Fatal(err)
	}
	flat, err := marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(flat)
}

// The template writes settings that the connector or the platform knows, and
// each secret into its own.
func TestSettings(t *testing.T) {
	doc, err := os.ReadFile("../../local.settings.json.example")
	if err != nil {
		t.Fatal(err)
	}
	var example struct{ Values map[string]string }
	if err := json.Unmarshal(doc, &example); err != nil {
		t.Fatal(err)
	}
	known := slices.Collect(maps.Keys(example.Values))
	known = append(known, "APPLICATIONINSIGHTS_CONNECTION_STRING", "AzureWebJobsStorage__accountName", "AzureWebJobsStorage__blobServiceUri", "AzureWebJobsStorage__queueServiceUri", "AzureWebJobsStorage__tableServiceUri",
		"FUNCTIONS_EXTENSION_VERSION", "WEBSITE_RUN_FROM_PACKAGE", "AzureFunctionsJobHost__functionTimeout")
	resources, templates := readTemplate(t)
	var expression string
	for _, r := range resources {
		if r.Type == "Microsoft.Web/sites/config" {
			if err := json.Unmarshal(r.Properties, &expression); err != nil {
				t.Fatal(err)
			}
		}
	}
	written := map[string]bool{}
	// createObject('name', value, 'name', value): a name stands behind ( or a
	// value's end, and a function or a parameter behind it.
	for _, m := range regexp.MustCompile(`(?:createObject\(|, )'(\w+)', (?:\w+)\(`).FindAllStringSubmatch(expression, -1) {
		written[m[1]] = true
	}
	for _, settings := range templates[0].Variables["planSettings"].(map[string]any) {
		for name := range settings.(map[string]any) {
			written[name] = true
		}
	}
	for name := range written {
		if !slices.Contains(known, name) {
			t.Errorf("nobody knows the setting %s", name)
		}
	}
	for _, name := range []string{"apiUsername", "apiPassword", "uri", "filterParameters", "logAnalyticsUri", "dcrImmutableId", "vmSchedule", "kbSchedule", "initialLookbackDays", "incrementalBy", "resultsPolicy", "enrichDetections", "integrationApi", "integrationVault", "stateContainer", "AzureWebJobsStorage__accountName", "AzureWebJobsStorage__blobServiceUri", "runBudget", "WEBSITE_RUN_FROM_PACKAGE"} {
		if !written[name] {
			t.Errorf("the setting %s is not written", name)
		}
	}
	for i, name := range []string{"apiUsername", "apiPassword"} {
		reference := regexp.MustCompile(fmt.Sprintf(`'%s', concat\('@Microsoft.KeyVault\(SecretUri=', .{1,300}?\.outputs\.uri\.value, 'secrets/', variables\('secrets'\)\[%d\], '\)'\)`, name, i))
		if !reference.MatchString(expression) {
			t.Errorf("%s is no reference to its secret without a version", name)
		}
	}
	for _, r := range resources {
		if r.Type != "Microsoft.KeyVault/vaults/secrets" {
			continue
		}
		flat := compact(t, r.Properties)
		username, password := strings.Contains(flat, "parameters('qualysUsername')"), strings.Contains(flat, "parameters('qualysPassword')")
		if username == password || username != strings.Contains(r.Name, "parameters('secrets')[0]") || password != strings.Contains(r.Name, "parameters('secrets')[1]") {
			t.Errorf("%s %s", r.Name, flat)
		}
	}
	if list := fmt.Sprint(templates[0].Variables["secrets"]); strings.Index(list, "qualys-username") > strings.Index(list, "qualys-password") {
		t.Error(list)
	}
}

// The workbook's items say what they ask, and of which time.
func TestWorkbook(t *testing.T) {
	resources, _ := readTemplate(t)
	queries := 0
	for _, r := range resources {
		if r.Type != "Microsoft.Insights/workbooks" {
			continue
		}
		var p struct{ SerializedData string }
		if err := json.Unmarshal(r.Properties, &p); err != nil {
			t.Fatal(err)
		}
		type item struct {
			Type    int
			Name    string
			Content struct {
				Version, Query, ResourceType, Title string
				QueryType                           *int
				TimeContext                         *struct{ DurationMs int }
				Items                               []json.RawMessage
			}
		}
		var look func(docs []json.RawMessage)
		look = func(docs []json.RawMessage) {
			for _, doc := range docs {
				var i item
				if err := json.Unmarshal(doc, &i); err != nil {
					t.Fatal(err)
				}
				c := i.Content
				if i.Type == itemQuery {
					if queries++; c.Version != "KqlItem/1.0" || c.Query == "" || c.Title == "" || c.ResourceType != workspaces || c.QueryType == nil || c.TimeContext == nil || c.TimeContext.DurationMs != 0 {
						t.Errorf("%s: %+v", i.Name, c)
					}
				}
				look(c.Items)
			}
		}
		var book struct {
			Version string
			Items   []json.RawMessage
		}
		if err := json.Unmarshal([]byte(p.SerializedData), &book); err != nil || book.Version != "Notebook/1.0" {
			t.Fatal(err, book.Version)
		}
		look(book.Items)
	}
	if queries < 15 {
		t.Errorf("%d queries", queries)
	}
}
