// Command templates makes what is deployed from what is written by hand: the ARM
// templates of arm/source, the tables of the catalogue and Sentinel's content of
// arm/sentinel become arm/azuredeploy.json and, for those who deploy by hand,
// arm/tables.json and arm/sentinel.json; the address of the repository becomes
// README's buttons.
//
// A test compares the results with what is in the tree.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"qualys-sentinel/handler/catalogue"
	"qualys-sentinel/tools/templates/content"
)

func main() {
	root := flag.String("root", ".", "the repository")
	version := flag.String("version", "", "release whose package the template deploys; empty: the latest")
	out := flag.String("out", "", "where the results go; empty: into the repository")
	flag.Parse()
	if err := run(*root, *version, *out); err != nil {
		fmt.Fprintln(os.Stderr, "templates:", err)
		os.Exit(1)
	}
}

func run(root, version, out string) error {
	files, err := build(root, version)
	if err != nil {
		return err
	}
	if out == "" {
		out = root
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join(out, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		if err := os.WriteFile(path, files[name], 0o644); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	return nil
}

// build makes all files, by their path in the repository.
func build(root, version string) (map[string][]byte, error) {
	doc, err := os.ReadFile(filepath.Join(root, "arm/source/repository"))
	if err != nil {
		return nil, fmt.Errorf("read the repository's address: %w", err)
	}
	repository := strings.TrimSpace(string(doc))
	sentinel, err := content.Load(os.DirFS(filepath.Join(root, "arm/sentinel")))
	if err != nil {
		return nil, fmt.Errorf("read arm/sentinel: %w", err)
	}
	tables := catalogue.Tables()
	if len(tables) > maxStreams {
		return nil, fmt.Errorf("%d tables, and a data collection rule takes %d streams: the template needs another rule, and the settings its id", len(tables), maxStreams)
	}
	files := map[string][]byte{}
	for name, marks := range map[string]map[string]any{
		"azuredeploy.json": {
			"packageUri": packageURI(repository, version),
			"tables":     list(tableResources(tables, "[resourceId('Microsoft.OperationalInsights/workspaces', parameters('workspaceName'))]")),
			"streams":    streams(tables),
			"flows":      flows(tables),
			"alert":      sentinel.Alert,
			"sentinel":   list(resources(sentinel)),
		},
		"tables.json": {
			"tables":   list(tableResources(tables)),
			"tableIds": tableIDs(tables),
			"streams":  streams(tables),
			"flows":    flows(tables),
		},
		"sentinel.json": {"sentinel": list(resources(sentinel))},
	} {
		source, err := os.ReadFile(filepath.Join(root, "arm/source", name))
		if err != nil {
			return nil, fmt.Errorf("read the source: %w", err)
		}
		if files["arm/"+name], err = compose(source, marks); err != nil {
			return nil, fmt.Errorf("arm/source/%s: %w", name, err)
		}
	}
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		return nil, fmt.Errorf("read README: %w", err)
	}
	if files["README.md"], err = withButtons(readme, repository); err != nil {
		return nil, err
	}
	return files, nil
}

// maxStreams is how many a data collection rule takes (Microsoft, "Azure
// Monitor service limits").
const maxStreams = 10

// list is values that stand in a list among others.
type list []any

// compose puts values where the source has their names as "@name".
func compose(source []byte, marks map[string]any) ([]byte, error) {
	for _, name := range slices.Sorted(maps.Keys(marks)) {
		var doc []byte
		values, ok := marks[name].(list)
		if !ok {
			values = list{marks[name]}
		}
		for i, v := range values {
			one, err := marshal(v)
			if err != nil {
				return nil, err
			}
			if i > 0 {
				doc = append(doc, ',')
			}
			doc = append(doc, one...)
		}
		mark := []byte(`"@` + name + `"`)
		if !bytes.Contains(source, mark) {
			return nil, fmt.Errorf("there is no %s", mark)
		}
		source = bytes.ReplaceAll(source, mark, doc)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, bytes.TrimSpace(source), "", "  "); err != nil {
		return nil, fmt.Errorf("it is no JSON: %w", err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// marshal leaves < and > as they are: queries are to be read.
func marshal(v any) ([]byte, error) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return bytes.TrimSpace(out.Bytes()), nil
}

func packageURI(repository, version string) string {
	const zip = "qualys-sentinel-linux-amd64.zip"
	if version == "" {
		return repository + "/releases/latest/download/" + zip
	}
	return repository + "/releases/download/" + version + "/" + zip
}

// tableResources are the tables, which wait for others.
func tableResources(tables []catalogue.Table, dependsOn ...string) []any {
	var out []any
	for _, t := range tables {
		var columns []any
		for _, c := range t.Columns {
			typ := c.Type
			if typ == "datetime" {
				typ = "dateTime" // as a table spells a stream's type
			}
			columns = append(columns, property{Name: c.Name, Type: typ, Description: c.Doc})
		}
		out = append(out, resource{
			Type: "Microsoft.OperationalInsights/workspaces/tables", APIVersion: "2022-10-01",
			Name: fmt.Sprintf("[concat(parameters('workspaceName'), '/%s')]", t.Name), DependsOn: dependsOn,
			Properties: object{"plan": "Analytics", "schema": object{"name": t.Name, "columns": columns}},
		})
	}
	return out
}

func tableIDs(tables []catalogue.Table) (ids []string) {
	for _, t := range tables {
		ids = append(ids, fmt.Sprintf("[resourceId('Microsoft.OperationalInsights/workspaces/tables', parameters('workspaceName'), '%s')]", t.Name))
	}
	return ids
}

func streams(tables []catalogue.Table) any {
	out := object{}
	for _, t := range tables {
		var columns []any
		for _, c := range t.Columns {
			columns = append(columns, property{Name: c.Name, Type: c.Type})
		}
		out[t.Stream] = object{"columns": columns}
	}
	return out
}

func flows(tables []catalogue.Table) any {
	var out []any
	for _, t := range tables {
		out = append(out, object{
			"streams": []string{t.Stream}, "destinations": []string{"workspace"},
			"transformKql": "source", "outputStream": "Custom-" + t.Name,
		})
	}
	return out
}

type object = map[string]any

// resource has its members in the order in which they are read.
type resource struct {
	Condition  string   `json:"condition,omitempty"`
	Type       string   `json:"type"`
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind,omitempty"`
	Scope      string   `json:"scope,omitempty"`
	Name       string   `json:"name"`
	Location   string   `json:"location,omitempty"`
	ETag       string   `json:"etag,omitempty"`
	DependsOn  []string `json:"dependsOn,omitempty"`
	Properties object   `json:"properties"`
}

// property is a column.
type property struct {
	Name        string `json:"name"`
	Type        string `json:"type"`
	Description string `json:"description,omitempty"`
}

const (
	buttonsBegin = "<!-- deploy: made by go run ./tools/templates -->\n"
	buttonsEnd   = "<!-- /deploy -->\n"
)

// releasedBranch is moved to each release: what the buttons deploy is of the
// same version as the package that it installs.
const releasedBranch = "stable"

// withButtons writes README's Deploy buttons anew.
func withButtons(readme []byte, repository string) ([]byte, error) {
	before, rest, ok := strings.Cut(string(readme), buttonsBegin)
	_, after, closed := strings.Cut(rest, buttonsEnd)
	if !ok || !closed {
		return nil, fmt.Errorf("README.md has no place for the Deploy buttons, %s", strings.TrimSpace(buttonsBegin))
	}
	raw := strings.Replace(repository, "https://github.com/", "https://raw.githubusercontent.com/", 1) + "/" + releasedBranch + "/arm/"
	link := func(portal string) string {
		return portal + "/#create/Microsoft.Template/uri/" + url.QueryEscape(raw+"azuredeploy.json") +
			"/createUIDefinitionUri/" + url.QueryEscape(raw+"createUiDefinition.json")
	}
	buttons := fmt.Sprintf(`[![Deploy to Azure](https://aka.ms/deploytoazurebutton)](%s)
[![Deploy to Azure US Government](https://aka.ms/deploytoazuregovbutton)](%s)
[Deploy to Azure operated by 21Vianet (China)](%s)
`, link("https://portal.azure.com"), link("https://portal.azure.us"), link("https://portal.azure.cn"))
	return []byte(before + buttonsBegin + buttons + buttonsEnd + after), nil
}
