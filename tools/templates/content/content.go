// Package content reads what the product brings for Microsoft Sentinel, from the
// folder arm/sentinel: functions and analytic rules, hunting queries and a
// workbook. It guarantees that what it returns is complete and within the limits
// of Sentinel; whether the queries hold is for the Kusto language service to
// say, in e2e. How they are deployed does not enter here.
package content

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Content is all of it, each list in the order of its files' names; functions
// stand behind those they call.
type Content struct {
	Functions []*Function
	Rules     []*Rule
	Hunts     []*Hunt
	Workbook  *Workbook
	// Alert is the query of the alert by mail.
	Alert string
}

// A Function is a saved function of the workspace.
type Function struct {
	// Name is its alias in queries; Parameters as declared, each with a default.
	Name, Parameters, Description, Query string
}

// A Rule is a scheduled analytic rule, in the words of Azure-Sentinel's files: a
// query that is asked by itself.
type Rule struct {
	Hunt           `yaml:",inline"`
	Severity       string   `yaml:"severity"`
	QueryFrequency Span     `yaml:"queryFrequency"`
	QueryPeriod    Span     `yaml:"queryPeriod"`
	EntityMappings []Entity `yaml:"entityMappings"`
	// CustomDetails are columns that alerts carry, by name.
	CustomDetails map[string]string `yaml:"customDetails"`
	// AlertName names alerts by columns in {{}}; empty: the rule's name.
	AlertName string `yaml:"alertName"`
	Group     Group  `yaml:"group"`
}

// An Entity says which columns hold an entity.
type Entity struct {
	EntityType    string  `yaml:"entityType" json:"entityType"`
	FieldMappings []Field `yaml:"fieldMappings" json:"fieldMappings"`
}

// A Field is an entity's identifier and the column that holds it.
type Field struct {
	Identifier string `yaml:"identifier" json:"identifier"`
	ColumnName string `yaml:"columnName" json:"columnName"`
}

// A Group says which alerts join one incident: those with all entities equal
// (AllEntities) or with equal custom details (Selected), for how long.
type Group struct {
	By      string   `yaml:"by"`
	Details []string `yaml:"details"`
	For     Span     `yaml:"for"`
}

// A Hunt is a hunting query.
type Hunt struct {
	ID          string   `yaml:"id"`
	Name        string   `yaml:"name"`
	Description string   `yaml:"description"`
	Tactics     []string `yaml:"tactics"`
	Techniques  []string `yaml:"relevantTechniques"`
	Query       string   `yaml:"query"`
}

// A Workbook is parameters and, on tabs, charts and tables.
type Workbook struct {
	Name       string      `yaml:"name"`
	ID         string      `yaml:"id"`
	Parameters []Parameter `yaml:"parameters"`
	Tabs       []Tab       `yaml:"tabs"`
}

// A Parameter is chosen by the reader, or typed if it is Text; queries name it in
// braces.
type Parameter struct {
	Name    string `yaml:"name"`
	Label   string `yaml:"label"`
	Text    bool   `yaml:"text"`
	Many    bool   `yaml:"many"`
	Options Options
	// Default are the values it has at first.
	Default Values `yaml:"default"`
}

// An Option is a value and what the reader sees.
type Option struct{ Value, Label string }

// Options keep the order of the file.
type Options []Option

// Values is one value or several.
type Values []string

// A Tab is a page of the workbook.
type Tab struct {
	Name  string `yaml:"name"`
	Items []Item `yaml:"items"`
}

// An Item is a query and how its rows are shown: as a table if nothing is said.
type Item struct {
	Title         string `yaml:"title"`
	Query         string `yaml:"query"`
	Visualization string `yaml:"visualization"`
	// Width in percent of the page; 0: all.
	Width int `yaml:"width"`
	// Tile names the columns of tiles, which are small.
	Tile *struct {
		Title string `yaml:"title"`
		Value string `yaml:"value"`
	} `yaml:"tile"`
}

// UnmarshalYAML reads a mapping in its order.
func (o *Options) UnmarshalYAML(n *yaml.Node) error {
	for i := 0; i+1 < len(n.Content); i += 2 {
		*o = append(*o, Option{n.Content[i].Value, n.Content[i+1].Value})
	}
	return nil
}

// UnmarshalYAML reads one value or a list.
func (v *Values) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		*v = Values{n.Value}
		return nil
	}
	return n.Decode((*[]string)(v))
}

// A Span is a length of time, such as 5m, 1h or 14d.
type Span time.Duration

// UnmarshalYAML reads it.
func (s *Span) UnmarshalYAML(n *yaml.Node) error {
	units := map[byte]time.Duration{'m': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour}
	count, err := strconv.Atoi(n.Value[:max(0, len(n.Value)-1)])
	if err != nil || count <= 0 || units[n.Value[len(n.Value)-1]] == 0 {
		return fmt.Errorf("line %d: %q is no length of time such as 5m, 1h or 14d", n.Line, n.Value)
	}
	*s = Span(time.Duration(count) * units[n.Value[len(n.Value)-1]])
	return nil
}

// ISO is the span as Azure writes it (ISO 8601).
func (s Span) ISO() string {
	d := time.Duration(s)
	switch {
	case d%(24*time.Hour) == 0:
		return fmt.Sprintf("P%dD", d/(24*time.Hour))
	case d%time.Hour == 0:
		return fmt.Sprintf("PT%dH", d/time.Hour)
	}
	return fmt.Sprintf("PT%dM", d/time.Minute)
}

// Fill puts the parameters' first values into a query, as the workbook does.
func (w *Workbook) Fill(query string) string {
	for _, p := range w.Parameters {
		query = strings.ReplaceAll(query, "{"+p.Name+"}", strings.Join(p.Default, ", "))
	}
	return query
}

// Load reads the folder.
func Load(dir fs.FS) (*Content, error) {
	c := &Content{}
	names, err := fs.Glob(dir, "functions/*.kql")
	if err != nil {
		return nil, fmt.Errorf("list functions: %w", err)
	}
	for _, name := range names {
		text, err := fs.ReadFile(dir, name)
		if err != nil {
			return nil, fmt.Errorf("read: %w", err)
		}
		f, err := parseFunction(string(text))
		if err == nil && path.Base(name) != f.Name+".kql" {
			err = fmt.Errorf("the file is to be named %s.kql", f.Name)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		c.Functions = append(c.Functions, f)
	}
	if err := inOrderOfCalls(c.Functions); err != nil {
		return nil, err
	}
	if c.Rules, err = readAll[Rule](dir, "rules"); err != nil {
		return nil, err
	}
	if c.Hunts, err = readAll[Hunt](dir, "hunting"); err != nil {
		return nil, err
	}
	workbook := &Workbook{}
	if err := read(dir, "workbook.yaml", workbook); err != nil {
		return nil, err
	}
	c.Workbook = workbook
	alert, err := fs.ReadFile(dir, "alert.kql")
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	c.Alert = strings.TrimSpace(string(alert))
	return c, c.unique()
}

// unique says whether an id stands for two things: the later would replace the
// earlier in the workspace.
func (c *Content) unique() error {
	seen := map[string]string{c.Workbook.ID: c.Workbook.Name}
	for _, r := range c.Rules {
		if other := seen[r.ID]; other != "" {
			return fmt.Errorf("%q and %q have the same id", r.Name, other)
		}
		seen[r.ID] = r.Name
	}
	for _, h := range c.Hunts {
		if other := seen[h.ID]; other != "" {
			return fmt.Errorf("%q and %q have the same id", h.Name, other)
		}
		seen[h.ID] = h.Name
	}
	return nil
}

var headline = regexp.MustCompile(`^// (name|parameters|description): (.+)$`)

// parseFunction reads a query with a head of comments that say what it is.
func parseFunction(text string) (*Function, error) {
	f := &Function{}
	head := map[string]*string{"name": &f.Name, "parameters": &f.Parameters, "description": &f.Description}
	for {
		line, rest, _ := strings.Cut(text, "\n")
		m := headline.FindStringSubmatch(line)
		if m == nil {
			break
		}
		*head[m[1]] = m[2]
		text = rest
	}
	f.Query = strings.TrimSpace(text)
	for _, name := range slices.Sorted(maps.Keys(head)) {
		if *head[name] == "" {
			return nil, fmt.Errorf("the line // %s: is missing", name)
		}
	}
	if f.Query == "" {
		return nil, errors.New("there is no query")
	}
	return f, nil
}

// Calls tells whether the query calls a function.
func Calls(query, function string) bool {
	return regexp.MustCompile(`\b` + function + `\(`).MatchString(query)
}

// inOrderOfCalls puts functions behind those they call.
func inOrderOfCalls(functions []*Function) error {
	done := 0
	for done < len(functions) {
		next := slices.IndexFunc(functions[done:], func(f *Function) bool {
			return !slices.ContainsFunc(functions[done:], func(g *Function) bool { return Calls(f.Query, g.Name) })
		})
		if next < 0 {
			return fmt.Errorf("%s and others call each other in a circle", functions[done].Name)
		}
		f := functions[done+next]
		copy(functions[done+1:done+next+1], functions[done:done+next])
		functions[done] = f
		done++
	}
	return nil
}

// checked is what reads itself from a file, and knows what it lacks.
type checked[T any] interface {
	*T
	fault() error
}

func readAll[T any, P checked[T]](dir fs.FS, folder string) (all []*T, err error) {
	names, err := fs.Glob(dir, folder+"/*.yaml")
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", folder, err)
	}
	for _, name := range names {
		one := P(new(T))
		if err := read(dir, name, one); err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}

func read(dir fs.FS, name string, into interface{ fault() error }) error {
	text, err := fs.ReadFile(dir, name)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	err = d.Decode(into)
	if err == nil {
		err = into.fault()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// Sentinel's limits of a scheduled rule (Microsoft, "Create a scheduled
// analytics rule from scratch").
const (
	maxPeriod      = 14 * 24 * time.Hour
	minFrequency   = 5 * time.Minute
	maxEntities    = 10
	maxDetails     = 20
	maxQuery       = 10_000
	maxAlertName   = 256
	maxAlertFields = 3
)

var (
	guid      = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	technique = regexp.MustCompile(`^T\d{4}$`)
	field     = regexp.MustCompile(`\{\{(\w+)\}\}`)
	// severities and tactics as the API spells them (alertRules 2023-11-01).
	severities = []string{"High", "Medium", "Low", "Informational"}
	tactics    = []string{"InitialAccess", "Execution", "Persistence", "PrivilegeEscalation", "DefenseEvasion", "CredentialAccess", "Discovery", "LateralMovement", "Collection", "Exfiltration", "CommandAndControl", "Impact", "Reconnaissance", "ResourceDevelopment"}
	// identifiers of entities (Microsoft, "Entity types reference").
	identifiers = map[string][]string{
		"Host":             {"FullName", "HostName", "NetBiosName", "DnsDomain", "NTDomain", "AzureID", "OSFamily", "OSVersion"},
		"IP":               {"Address"},
		"CloudApplication": {"Name", "AppId", "InstanceName"},
	}
)

func (r *Rule) fault() error {
	var faults []error
	fail := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	faults = append(faults, r.Hunt.fault())
	if !slices.Contains(severities, r.Severity) {
		fail("severity %q", r.Severity)
	}
	frequency, period := time.Duration(r.QueryFrequency), time.Duration(r.QueryPeriod)
	if frequency < minFrequency || frequency > period || period > maxPeriod || (frequency < time.Hour && period > 48*time.Hour) {
		fail("queryFrequency %v and queryPeriod %v: at least 5 minutes, at most 14 days, no less period than frequency", frequency, period)
	}
	if n := len(r.EntityMappings); n == 0 || n > maxEntities {
		fail("%d entityMappings, not 1 to %d", n, maxEntities)
	}
	for _, e := range r.EntityMappings {
		for _, f := range e.FieldMappings {
			if !slices.Contains(identifiers[e.EntityType], f.Identifier) || f.ColumnName == "" {
				fail("entity %s: %s = %q", e.EntityType, f.Identifier, f.ColumnName)
			}
		}
	}
	if len(r.CustomDetails) > maxDetails {
		fail("%d customDetails, more than %d", len(r.CustomDetails), maxDetails)
	}
	if len(r.AlertName) > maxAlertName || len(field.FindAllString(r.AlertName, -1)) > maxAlertFields {
		fail("alertName is too long, or has more than %d columns", maxAlertFields)
	}
	switch r.Group.By {
	case "AllEntities":
	case "Selected":
		for _, d := range r.Group.Details {
			if r.CustomDetails[d] == "" {
				fail("group: %s is no custom detail", d)
			}
		}
	default:
		fail("group.by %q", r.Group.By)
	}
	if r.Group.For < Span(minFrequency) || time.Duration(r.Group.For) > 7*24*time.Hour {
		fail("group.for %v: 5 minutes to 7 days", time.Duration(r.Group.For))
	}
	return errors.Join(faults...)
}

// Columns are those that an alert takes from the query's rows.
func (r *Rule) Columns() (columns []string) {
	for _, e := range r.EntityMappings {
		for _, f := range e.FieldMappings {
			columns = append(columns, f.ColumnName)
		}
	}
	for _, column := range r.CustomDetails {
		columns = append(columns, column)
	}
	for _, m := range field.FindAllStringSubmatch(r.AlertName, -1) {
		columns = append(columns, m[1])
	}
	slices.Sort(columns)
	return slices.Compact(columns)
}

func (h *Hunt) fault() error {
	var faults []error
	fail := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if !guid.MatchString(h.ID) {
		fail("id %q is no GUID", h.ID)
	}
	if h.Name == "" || h.Description == "" || h.Query == "" || len(h.Query) > maxQuery {
		fail("name, description and query are needed, the query in %d characters", maxQuery)
	}
	for _, t := range h.Tactics {
		if !slices.Contains(tactics, t) {
			fail("tactic %q", t)
		}
	}
	for _, t := range h.Techniques {
		if !technique.MatchString(t) {
			fail("technique %q", t)
		}
	}
	if len(h.Tactics) == 0 || len(h.Techniques) == 0 {
		fail("tactics and relevantTechniques are needed")
	}
	return errors.Join(faults...)
}

func (w *Workbook) fault() error {
	var faults []error
	fail := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if !guid.MatchString(w.ID) || w.Name == "" || len(w.Tabs) == 0 {
		fail("a GUID, a name and tabs are needed")
	}
	names := map[string]bool{}
	for _, p := range w.Parameters {
		names[p.Name] = true
		if p.Label == "" || len(p.Default) == 0 || (p.Text == (len(p.Options) > 0)) {
			fail("parameter %s needs a label, a default, and options or text", p.Name)
		}
	}
	for _, tab := range w.Tabs {
		for _, item := range tab.Items {
			if item.Title == "" || item.Query == "" {
				fail("tab %s: an item lacks its title or query", tab.Name)
			}
			for _, m := range regexp.MustCompile(`\{(\w+)\}`).FindAllStringSubmatch(item.Query, -1) {
				if !names[m[1]] {
					fail("%s: there is no parameter %s", item.Title, m[1])
				}
			}
		}
	}
	return errors.Join(faults...)
}
