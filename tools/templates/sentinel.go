package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"qualys-sentinel/tools/templates/content"
)

// resources are Sentinel's content as resources of the workspace's group.
func resources(c *content.Content) []any {
	var out []any
	for _, f := range c.Functions {
		var waits []string
		for _, g := range c.Functions {
			if content.Calls(f.Query, g.Name) {
				waits = append(waits, savedSearch(g.Name))
			}
		}
		out = append(out, resource{
			Type: "Microsoft.OperationalInsights/workspaces/savedSearches", APIVersion: "2020-08-01",
			Name: fmt.Sprintf("[concat(parameters('workspaceName'), '/%s')]", f.Name), ETag: "*", DependsOn: waits,
			Properties: object{
				"category": "Qualys", "displayName": f.Name, "functionAlias": f.Name, "functionParameters": f.Parameters,
				"query": "// " + f.Description + "\n" + f.Query, "version": 2,
			},
		})
	}
	for _, r := range c.Rules {
		out = append(out, rule(r, c.Functions))
	}
	for _, h := range c.Hunts {
		out = append(out, resource{
			Type: "Microsoft.OperationalInsights/workspaces/savedSearches", APIVersion: "2020-08-01",
			Name: fmt.Sprintf("[concat(parameters('workspaceName'), '/%s')]", h.ID), ETag: "*", DependsOn: called(h.Query, c.Functions),
			Properties: object{
				"category": "Hunting Queries", "displayName": h.Name, "query": h.Query, "version": 2,
				"tags": []any{
					object{"name": "description", "value": strings.TrimSpace(h.Description)},
					object{"name": "tactics", "value": strings.Join(h.Tactics, ",")},
					object{"name": "techniques", "value": strings.Join(h.Techniques, ",")},
				},
			},
		})
	}
	return append(out, resource{
		Type: "Microsoft.Insights/workbooks", APIVersion: "2022-04-01", Kind: "shared",
		Name:     fmt.Sprintf("[guid(variables('workspaceId'), '%s')]", c.Workbook.ID),
		Location: "[parameters('location')]",
		Properties: object{
			"displayName": c.Workbook.Name, "category": "sentinel", "version": "1.0",
			"sourceId": "[variables('workspaceId')]", "serializedData": workbook(c.Workbook),
		},
	})
}

func savedSearch(name string) string {
	return fmt.Sprintf("[resourceId('Microsoft.OperationalInsights/workspaces/savedSearches', parameters('workspaceName'), '%s')]", name)
}

// called are the functions that a query needs.
func called(query string, functions []*content.Function) (ids []string) {
	for _, f := range functions {
		if content.Calls(query, f.Name) {
			ids = append(ids, savedSearch(f.Name))
		}
	}
	return ids
}

func rule(r *content.Rule, functions []*content.Function) resource {
	properties := object{
		"displayName": r.Name, "description": strings.TrimSpace(r.Description),
		"enabled": "[parameters('enableRules')]", "severity": r.Severity,
		"query": r.Query, "queryFrequency": r.QueryFrequency.ISO(), "queryPeriod": r.QueryPeriod.ISO(),
		"triggerOperator": "GreaterThan", "triggerThreshold": 0,
		"suppressionEnabled": false, "suppressionDuration": "PT5H",
		"tactics": r.Tactics, "techniques": r.Techniques,
		"entityMappings": r.EntityMappings, "customDetails": r.CustomDetails,
		// An alert for each row: entities stay together.
		"eventGroupingSettings": object{"aggregationKind": "AlertPerResult"},
		"incidentConfiguration": object{
			"createIncident": true,
			"groupingConfiguration": object{
				"enabled": true, "reopenClosedIncident": false, "lookbackDuration": r.Group.For.ISO(),
				"matchingMethod": r.Group.By, "groupByEntities": []string{}, "groupByAlertDetails": []string{}, "groupByCustomDetails": append([]string{}, r.Group.Details...),
			},
		},
	}
	if r.AlertName != "" {
		properties["alertDetailsOverride"] = object{"alertDisplayNameFormat": r.AlertName}
	}
	return resource{
		Type: "Microsoft.SecurityInsights/alertRules", APIVersion: "2023-11-01", Kind: "Scheduled",
		Scope: "[variables('workspaceId')]", Name: r.ID, DependsOn: called(r.Query, functions), Properties: properties,
	}
}

const (
	workspaces = "microsoft.operationalinsights/workspaces"
	// Kinds of a workbook's items (Microsoft/Application-Insights-Workbooks,
	// schema/workbook.json).
	itemText, itemQuery, itemParameters, itemLinks, itemGroup = 1, 3, 9, 11, 12
)

// workbook is its document, as text: that is how Azure keeps it.
func workbook(w *content.Workbook) string {
	var parameters []any
	for _, p := range w.Parameters {
		one := object{
			"id": stableID(w.ID, p.Name), "version": "KqlParameterItem/1.0", "name": p.Name, "label": p.Label,
			"typeSettings": object{"additionalResourceOptions": []string{}, "showDefault": false},
		}
		switch {
		case p.Text:
			one["type"], one["value"] = 1, strings.Join(p.Default, "")
		default:
			var options []any
			for _, o := range p.Options {
				options = append(options, object{"value": o.Value, "label": o.Label})
			}
			one["type"], one["isRequired"], one["jsonData"] = 2, true, text(options)
			one["value"] = p.Default[0]
			if p.Many {
				one["multiSelect"], one["quote"], one["delimiter"], one["value"] = true, "", ", ", p.Default
			}
		}
		parameters = append(parameters, one)
	}
	var links []any
	for i, tab := range w.Tabs {
		links = append(links, object{
			"id": stableID(w.ID, tab.Name), "cellValue": "tab", "linkTarget": "parameter",
			"linkLabel": tab.Name, "subTarget": strconv.Itoa(i), "style": "link",
		})
	}
	items := []any{
		object{"type": itemText, "name": "about", "content": object{"json": "Each finding counts once, as Qualys told it last. *Open* findings are neither fixed nor stale; a *stale* one was not looked at for 45 days."}},
		object{"type": itemParameters, "name": "parameters", "content": object{
			"version": "KqlParameterItem/1.0", "parameters": parameters, "style": "pills", "queryType": 0, "resourceType": workspaces,
		}},
		object{"type": itemLinks, "name": "tabs", "content": object{"version": "LinkItem/1.0", "style": "tabs", "links": links}},
	}
	for i, tab := range w.Tabs {
		var inside []any
		for n, item := range tab.Items {
			inside = append(inside, query(item, fmt.Sprintf("%d-%d", i, n)))
		}
		items = append(items, object{
			"type": itemGroup, "name": tab.Name,
			"conditionalVisibility": object{"parameterName": "tab", "comparison": "isEqualTo", "value": strconv.Itoa(i)},
			"content":               object{"version": "NotebookGroup/1.0", "groupType": "editable", "items": inside},
		})
	}
	return text(object{"version": "Notebook/1.0", "items": items, "fallbackResourceIds": []string{}, "fromTemplateId": "sentinel-qualys"})
}

func query(item content.Item, name string) object {
	body := object{
		"version": "KqlItem/1.0", "query": item.Query, "title": item.Title, "size": 0,
		"queryType": 0, "resourceType": workspaces,
		// The query says of which time.
		"timeContext":       object{"durationMs": 0},
		"showExportToExcel": true, "noDataMessage": "Nothing.", "noDataMessageStyle": 3,
	}
	switch {
	case item.Tile != nil:
		body["visualization"], body["size"] = "tiles", 4
		body["tileSettings"] = object{
			"titleContent": object{"columnMatch": item.Tile.Title, "formatter": 1},
			"leftContent":  object{"columnMatch": item.Tile.Value, "formatter": 12, "formatOptions": object{"palette": "auto"}},
			"showBorder":   true,
		}
	case item.Visualization != "":
		body["visualization"] = item.Visualization
	default:
		body["gridSettings"] = object{"filter": true, "rowLimit": 1000}
	}
	out := object{"type": itemQuery, "name": name, "content": body}
	if item.Width > 0 {
		out["customWidth"] = strconv.Itoa(item.Width)
	}
	return out
}

// stableID tells a workbook's parts apart: equal in every build.
func stableID(workbook, part string) string {
	return uuid.NewSHA1(uuid.MustParse(workbook), []byte(part)).String()
}

func text(v any) string {
	doc, err := json.Marshal(v)
	if err != nil {
		panic(err) // texts and numbers only
	}
	return string(doc)
}
