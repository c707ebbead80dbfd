package integration

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"qualys-sentinel/handler/internal/jsonobject"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/settings"
)

// Limits of the contract, and of the fields that are not in it.
const (
	// MaxBody is the longest body, in bytes: far more than all fields take.
	MaxBody     = 64 << 10
	maxName     = 50 // characters, by the guide
	maxTags     = 100
	maxTag      = 1024 // characters, as Qualys' tag names
	maxKey      = 1024 // bytes; a workspace's key has 88
	maxMembers  = 50   // so that each that is wrong can be named
	maxSchedule = 200
)

// InvalidError names everything that is wrong with what somebody asks for.
type InvalidError struct{ Faults []string }

func (e *InvalidError) Error() string { return strings.Join(e.Faults, "; ") }

// A Change is what a body asks for: fields that it names, and a key.
type Change struct {
	fields Fields
	named  map[string]bool
	key    string
}

// Format implements fmt.Formatter: whatever prints a change prints no key.
func (c *Change) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "a change of an integration") }

// field is one that a body may name.
type field struct {
	name string
	read func(c *Change, value json.RawMessage) error
	// copy takes it over; nil for the key, which is no field of an integration.
	copy func(to, from *Fields)
}

// fields in the order of the guide, and those that it does not have.
var fields = []field{
	{"workspaceId", readText(func(c *Change) *string { return &c.fields.WorkspaceID }, settings.CheckWorkspace), func(to, from *Fields) { to.WorkspaceID = from.WorkspaceID }},
	{"primaryKey", readText(func(c *Change) *string { return &c.key }, checkKey), nil},
	{"name", readText(func(c *Change) *string { return &c.fields.Name }, checkName), func(to, from *Fields) { to.Name = from.Name }},
	{"baseCategory", readCategory, func(to, from *Fields) { to.BaseCategory = from.BaseCategory }},
	{"customLogName", readText(func(c *Change) *string { return &c.fields.CustomLogName }, checkLogName), func(to, from *Fields) { to.CustomLogName = from.CustomLogName }},
	{"minSeverity", readMinSeverity, func(to, from *Fields) { to.MinSeverity, to.Severities = from.MinSeverity, nil }},
	{"resultSectionNeeded", readResults, func(to, from *Fields) { to.ResultSectionNeeded = from.ResultSectionNeeded }},
	{"apiVersion", readText(func(c *Change) *string { return &c.fields.APIVersion }, checkAPIVersion), func(to, from *Fields) { to.APIVersion = from.APIVersion }},
	{"logAnalyticsUri", readAddress, func(to, from *Fields) { to.LogAnalyticsURI = from.LogAnalyticsURI }},
	{"dcrImmutableId", readText(func(c *Change) *string { return &c.fields.DCRImmutableID }, orNone(settings.CheckRule)), func(to, from *Fields) { to.DCRImmutableID = from.DCRImmutableID }},
	{"tags", readTags, func(to, from *Fields) { to.Tags = from.Tags }},
	{"severities", readSeverities, func(to, from *Fields) { to.Severities = from.Severities }},
	{"statuses", readStatuses, func(to, from *Fields) { to.Statuses = from.Statuses }},
	{"schedule", readText(func(c *Change) *string { return &c.fields.Schedule }, orNone(checkSchedule)), func(to, from *Fields) { to.Schedule = from.Schedule }},
}

// Parse reads the JSON object of a body. The error is an *InvalidError.
func Parse(body []byte) (*Change, error) {
	if len(body) > MaxBody {
		return nil, &InvalidError{[]string{fmt.Sprintf("the body is too long: at most %d bytes are accepted", MaxBody)}}
	}
	c := &Change{named: map[string]bool{}}
	var faults []string
	members, err := jsonobject.Members(body, maxMembers)
	if errors.Is(err, jsonobject.ErrNoObject) {
		err = fmt.Errorf(`%w. Accepted: such as {"workspaceId": "<id>", "primaryKey": "<key>", "name": "<name>"}`, err)
	}
	if err != nil {
		return nil, &InvalidError{[]string{err.Error()}}
	}
	for _, m := range members {
		n := slices.IndexFunc(fields, func(f field) bool { return f.name == m.Name })
		switch {
		case n < 0:
			faults = append(faults, fmt.Sprintf("%s: there is no such field. Accepted: %s", clip(m.Name), strings.Join(names(), ", ")))
			continue
		case c.named[m.Name]:
			faults = append(faults, m.Name+": it is there twice")
			continue
		}
		c.named[m.Name] = true
		if err := fields[n].read(c, m.Value); err != nil {
			faults = append(faults, m.Name+": "+err.Error())
		}
	}
	if c.named["minSeverity"] && len(c.fields.Severities) > 0 {
		faults = append(faults, "severities: it takes the place of minSeverity: leave one of the two out")
	}
	if c.key != "" && c.fields.DCRImmutableID != "" {
		faults = append(faults, "dcrImmutableId: with a data collection rule no key is used: leave primaryKey out, or the rule")
	}
	if len(faults) > 0 {
		return nil, &InvalidError{faults}
	}
	return c, nil
}

func names() (list []string) {
	for _, f := range fields {
		list = append(list, f.name)
	}
	return list
}

// readText reads a text that check has nothing against.
func readText(at func(*Change) *string, check func(string) error) func(*Change, json.RawMessage) error {
	return func(c *Change, value json.RawMessage) error {
		var text string
		if json.Unmarshal(value, &text) != nil || string(value) == "null" {
			return errors.New("it must be a text")
		}
		*at(c) = strings.TrimSpace(text)
		return check(*at(c))
	}
}

// orNone takes an empty text as well, which takes the field away.
func orNone(check func(string) error) func(string) error {
	return func(v string) error {
		if v == "" {
			return nil
		}
		return check(v)
	}
}

// checkKey does not repeat the value.
func checkKey(v string) error {
	key, err := base64.StdEncoding.DecodeString(v)
	if err != nil || len(key) == 0 || len(v) > maxKey {
		return errors.New("it is no key. Accepted: the primary or secondary key of the workspace, a base64 text, from its page Agents")
	}
	return nil
}

func checkName(v string) error {
	switch n := utf8.RuneCountInString(v); {
	case n == 0:
		return errors.New("it is empty")
	case n > maxName:
		return fmt.Errorf("it has %d characters: at most %d are accepted", n, maxName)
	case strings.ContainsFunc(v, unseen):
		return errors.New("it holds a character that is not to be seen")
	}
	return nil
}

// unseen are characters that make a text look like another.
func unseen(r rune) bool {
	return unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp)
}

var logNameForm = regexp.MustCompile(`^[A-Za-z0-9_]{1,100}$`)

func checkLogName(v string) error {
	if !logNameForm.MatchString(v) {
		return fmt.Errorf("%q is no name of a log. Accepted: 1 to 100 letters, digits and underscores; the table gets _CL behind it", clip(v))
	}
	return nil
}

func checkAPIVersion(v string) error {
	if v != DefaultAPIVersion {
		return fmt.Errorf("%q is no version of the HTTP Data Collector API. Accepted: %s", clip(v), DefaultAPIVersion)
	}
	return nil
}

// readAddress keeps what counts of an address: scheme and host.
func readAddress(c *Change, value json.RawMessage) error {
	at := func(c *Change) *string { return &c.fields.LogAnalyticsURI }
	return readText(at, orNone(func(v string) error {
		u, _, err := settings.ParseLogAnalytics(v)
		if err == nil {
			*at(c) = u.String()
		}
		return err
	}))(c, value)
}

func checkSchedule(v string) error {
	if len(v) > maxSchedule {
		return fmt.Errorf("it has more than %d characters", maxSchedule)
	}
	_, err := settings.ParseSchedule(v)
	return err
}

func readCategory(c *Change, value json.RawMessage) error {
	var text string
	if json.Unmarshal(value, &text) == nil {
		for _, known := range categories {
			if strings.EqualFold(strings.TrimSpace(text), known) {
				c.fields.BaseCategory = known
				return nil
			}
		}
	}
	return fmt.Errorf("%s is no category. Accepted: %s (confirmed only), %s (potential and confirmed), %s (information gathered, potential and confirmed)",
		clip(string(value)), CategoryConfirmed, CategoryPotential, CategoryIG)
}

// number reads a whole number, also written as a text, as some tools do.
func number(value json.RawMessage) (int, bool) {
	text := string(value)
	if json.Valid(value) && strings.HasPrefix(text, `"`) {
		_ = json.Unmarshal(value, &text) // it is valid
	}
	n, err := strconv.Atoi(strings.TrimSpace(text))
	return n, err == nil
}

func readMinSeverity(c *Change, value json.RawMessage) error {
	n, ok := number(value)
	if !ok || n < 1 || n > 5 {
		return fmt.Errorf("%s is no severity. Accepted: 1 to 5; that severity and above are sent", clip(string(value)))
	}
	c.fields.MinSeverity = n
	return nil
}

func readResults(c *Change, value json.RawMessage) error {
	switch strings.ToLower(strings.Trim(string(value), `"`)) {
	case "true":
		c.fields.ResultSectionNeeded = true
	case "false":
		c.fields.ResultSectionNeeded = false
	default:
		return fmt.Errorf("%s is neither true nor false", clip(string(value)))
	}
	return nil
}

// elements reads a list.
func elements(value json.RawMessage) ([]json.RawMessage, bool) {
	var list []json.RawMessage
	return list, json.Unmarshal(value, &list) == nil && list != nil
}

func readTags(c *Change, value json.RawMessage) error {
	const accepted = `Accepted: a list of names or ids of asset tags, such as ["Servers", "9012345"]`
	list, ok := elements(value)
	if !ok || len(list) > maxTags {
		return fmt.Errorf("it is no list of up to %d tags. %s", maxTags, accepted)
	}
	for _, raw := range list {
		var tag string // a text is taken as it is: zeros in front are a part of it
		if n, err := strconv.ParseUint(string(raw), 10, 63); err == nil {
			tag = strconv.FormatUint(n, 10)
		} else if json.Unmarshal(raw, &tag) != nil || string(raw) == "null" {
			return fmt.Errorf("%s is no tag. %s", clip(string(raw)), accepted)
		}
		tag = strings.TrimSpace(tag)
		if tag == "" || utf8.RuneCountInString(tag) > maxTag || strings.ContainsFunc(tag, unicode.IsControl) {
			return fmt.Errorf("%q is no tag. %s", clip(tag), accepted)
		}
		c.fields.Tags = append(c.fields.Tags, tag)
	}
	return nil
}

func readSeverities(c *Change, value json.RawMessage) error {
	list, ok := elements(value)
	for _, raw := range list {
		n, isNumber := number(raw)
		if ok = ok && isNumber && n >= 1 && n <= 5; !ok {
			break
		}
		c.fields.Severities = append(c.fields.Severities, n)
	}
	if !ok {
		return fmt.Errorf("%s is no list of severities. Accepted: such as [4, 5]", clip(string(value)))
	}
	slices.Sort(c.fields.Severities)
	c.fields.Severities = slices.Compact(c.fields.Severities)
	return nil
}

func readStatuses(c *Change, value json.RawMessage) error {
	wrong := fmt.Errorf("%s is no list of statuses. Accepted: a list of %s", clip(string(value)), strings.Join(qualys.Statuses, ", "))
	list, ok := elements(value)
	if !ok {
		return wrong
	}
	for _, raw := range list {
		var text string
		if json.Unmarshal(raw, &text) != nil {
			return wrong
		}
		n := slices.IndexFunc(qualys.Statuses, func(s string) bool { return strings.EqualFold(s, strings.TrimSpace(text)) })
		if n < 0 {
			return wrong
		}
		if status := qualys.Statuses[n]; !slices.Contains(c.fields.Statuses, status) {
			c.fields.Statuses = append(c.fields.Statuses, status)
		}
	}
	return nil
}

// apply is an integration with a change. Its error is an *InvalidError.
func (c *Change) apply(old Fields, keyed bool) (Fields, error) {
	f := old
	for _, field := range fields {
		if c.named[field.name] && field.copy != nil {
			field.copy(&f, &c.fields)
		}
	}
	if c.key != "" && !c.named["dcrImmutableId"] && f.ByRule() {
		// A key in place of the rule. The rule's address goes with it.
		f.DCRImmutableID = ""
		if !c.named["logAnalyticsUri"] {
			f.LogAnalyticsURI = ""
		}
	}
	if ruled := old.ByRule(); f.ByRule() != ruled && f.Name != "" && !c.named["customLogName"] && f.CustomLogName == defaultLogName(ruled) {
		f.CustomLogName = "" // the other kind has another default
	}
	if keyed && c.key == "" && !f.ByRule() && !strings.EqualFold(f.WorkspaceID, old.WorkspaceID) {
		return f, &InvalidError{[]string{"primaryKey: it is missing, and another workspace has another key"}}
	}
	f.fill()
	return f, f.check(keyed || c.key != "")
}

// fill sets what is not said.
func (f *Fields) fill() {
	if f.BaseCategory == "" {
		f.BaseCategory = DefaultCategory
	}
	if f.MinSeverity == 0 {
		f.MinSeverity = DefaultMinSeverity
	}
	if f.APIVersion == "" {
		f.APIVersion = DefaultAPIVersion
	}
	if f.CustomLogName == "" {
		f.CustomLogName = defaultLogName(f.ByRule())
	}
}

func defaultLogName(byRule bool) string {
	if byRule {
		return DefaultRuleLogName
	}
	return DefaultCustomLogName
}

// check says what is missing, and what does not go together.
func (f *Fields) check(keyed bool) error {
	var faults []string
	if f.Name == "" {
		faults = append(faults, "name: it is missing")
	}
	api := settings.API("")
	if f.LogAnalyticsURI != "" {
		_, api, _ = settings.ParseLogAnalytics(f.LogAnalyticsURI) // it was checked
	}
	switch {
	case f.ByRule() && f.LogAnalyticsURI == "":
		faults = append(faults, "logAnalyticsUri: it is missing, and a data collection rule has one: its logsIngestion endpoint")
	case f.ByRule() && api == settings.DataCollector:
		faults = append(faults, "logAnalyticsUri: it is an address of the HTTP Data Collector API, and a data collection rule has another: its logsIngestion endpoint")
	case f.ByRule():
	case api == settings.LogsIngestion:
		faults = append(faults, "dcrImmutableId: it is missing, and the Logs Ingestion API needs it")
	default:
		if f.WorkspaceID == "" {
			faults = append(faults, "workspaceId: it is missing. Accepted: the id of the Log Analytics workspace, a GUID")
		}
		if u := f.Address(); u != nil && api == settings.DataCollector && f.WorkspaceID != "" && !strings.HasPrefix(strings.ToLower(u.Hostname()), strings.ToLower(f.WorkspaceID)+".") {
			faults = append(faults, "logAnalyticsUri: it is the address of another workspace than workspaceId: leave it out, or correct one of the two")
		}
		if !keyed {
			faults = append(faults, "primaryKey: it is missing. Accepted: a key of the workspace; or logAnalyticsUri and dcrImmutableId of a data collection rule in its place")
		}
	}
	if len(faults) > 0 {
		return &InvalidError{faults}
	}
	return nil
}

// sameDestination tells whether rows of both go to the same place.
func sameDestination(a, b *Fields) bool {
	return strings.EqualFold(a.WorkspaceID, b.WorkspaceID) && a.CustomLogName == b.CustomLogName && a.LogAnalyticsURI == b.LogAnalyticsURI && a.DCRImmutableID == b.DCRImmutableID
}
