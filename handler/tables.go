package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/record"
)

func newTables() *cobra.Command {
	return &cobra.Command{
		Use:   "tables",
		Short: "Print the ARM template of the tables and the data collection rule",
		Long: `tables prints an ARM template with every table and the data collection rule that
feeds them, made from the columns this program sends. arm/tables.json holds it.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			doc, err := tablesTemplate(ingest.Schemas())
			if err != nil {
				return err
			}
			_, err = os.Stdout.Write(doc)
			return err
		},
	}
}

type object = map[string]any

// tablesTemplate makes the template of tables and rule from the catalogue.
func tablesTemplate(schemas []*record.Schema) ([]byte, error) {
	const workspace = "[resourceId('Microsoft.OperationalInsights/workspaces', parameters('workspaceName'))]"
	const rule = "resourceId('Microsoft.Insights/dataCollectionRules', parameters('ruleName'))"
	var resources []any
	streams, flows, tables := object{}, []any{}, []string{}
	for _, s := range schemas {
		columns, declared := []object{}, []object{}
		for _, c := range s.TableColumns() {
			columns = append(columns, object{"name": c.Name, "type": tableType(c.Type), "description": c.Doc})
			declared = append(declared, object{"name": c.Name, "type": c.Type})
		}
		table := fmt.Sprintf("[concat(parameters('workspaceName'), '/%s')]", s.Table)
		tables = append(tables, fmt.Sprintf("[resourceId('Microsoft.OperationalInsights/workspaces/tables', parameters('workspaceName'), '%s')]", s.Table))
		resources = append(resources, object{
			"type": "Microsoft.OperationalInsights/workspaces/tables", "apiVersion": "2025-07-01", "name": table,
			"properties": object{"plan": "Analytics", "schema": object{"name": s.Table, "columns": columns}},
		})
		streams[s.Stream()] = object{"columns": declared}
		flows = append(flows, object{
			"streams": []string{s.Stream()}, "destinations": []string{"workspace"},
			"transformKql": "source", "outputStream": "Custom-" + s.Table,
		})
	}
	resources = append(resources, object{
		"type": "Microsoft.Insights/dataCollectionRules", "apiVersion": "2023-03-11", "kind": "Direct",
		"name": "[parameters('ruleName')]", "location": "[parameters('location')]", "dependsOn": tables,
		"properties": object{
			"streamDeclarations": streams,
			"destinations":       object{"logAnalytics": []any{object{"workspaceResourceId": workspace, "name": "workspace"}}},
			"dataFlows":          flows,
		},
	}, object{
		"type": "Microsoft.Authorization/roleAssignments", "apiVersion": "2022-04-01",
		"condition": "[not(empty(parameters('principalId')))]",
		"scope":     "[" + rule + "]",
		"name":      "[guid(" + rule + ", parameters('principalId'), variables('monitoringMetricsPublisher'))]",
		"dependsOn": []string{"[" + rule + "]"},
		"properties": object{
			"roleDefinitionId": "[subscriptionResourceId('Microsoft.Authorization/roleDefinitions', variables('monitoringMetricsPublisher'))]",
			"principalId":      "[parameters('principalId')]", "principalType": "ServicePrincipal",
		},
	})
	doc, err := json.MarshalIndent(object{
		"$schema":        "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
		"contentVersion": "1.0.0.0",
		"parameters": object{
			"workspaceName": object{"type": "string", "metadata": object{"description": "Name of the Log Analytics workspace, in this resource group."}},
			"location":      object{"type": "string", "defaultValue": "[resourceGroup().location]", "metadata": object{"description": "Region of the workspace: the rule must be in the same."}},
			"ruleName":      object{"type": "string", "defaultValue": "qualys-sentinel", "metadata": object{"description": "Name of the data collection rule."}},
			"principalId":   object{"type": "string", "defaultValue": "", "metadata": object{"description": "Object id of the function app's managed identity, which may then send to the rule. Empty: give it the role Monitoring Metrics Publisher on the rule later."}},
		},
		"variables": object{"monitoringMetricsPublisher": "3913510d-42f4-4e42-8a64-420c390055eb"},
		"resources": resources,
		"outputs": object{
			"logAnalyticsUri": object{"type": "string", "value": "[reference(" + rule + ", '2023-03-11').endpoints.logsIngestion]"},
			"dcrImmutableId":  object{"type": "string", "value": "[reference(" + rule + ", '2023-03-11').immutableId]"},
		},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the template: %w", err)
	}
	return append(doc, '\n'), nil
}

// tableType is how a table spells a stream's type.
func tableType(t string) string {
	if t == "datetime" {
		return "dateTime"
	}
	return t
}
