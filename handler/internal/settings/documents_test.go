package settings_test

import (
	"encoding/json"
	"fmt"
	"strings"

	"qualys-sentinel/handler/internal/settings"
)

// markdown is the README's table of settings.
func markdown() string {
	var b strings.Builder
	b.WriteString("| setting | meaning | default |\n|---|---|---|\n")
	for _, d := range settings.Definitions() {
		if d.Platform {
			continue
		}
		value := "`" + d.Default + "`"
		switch {
		case d.Required:
			value = "required"
		case d.Default == "":
			value = ""
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", d.Name, strings.ReplaceAll(d.Doc, "|", "\\|"), value)
	}
	return b.String()
}

// example is local.settings.json.example: every setting, in the README's order.
func example() string {
	var b strings.Builder
	b.WriteString("{\n  \"IsEncrypted\": false,\n  \"Values\": {\n    \"FUNCTIONS_WORKER_RUNTIME\": \"custom\"")
	for _, d := range settings.Definitions() {
		value := d.Example
		if value == "" {
			value = d.Default
		}
		if d.Platform && d.Example == "" {
			continue // alternatives of AzureWebJobsStorage
		}
		// Marshalling a string does not fail.
		text, _ := json.Marshal(value)
		fmt.Fprintf(&b, ",\n    %q: %s", d.Name, unescapeHTML(string(text)))
	}
	b.WriteString("\n  }\n}\n")
	return b.String()
}

// unescapeHTML undoes what JSON for web pages escapes: people read this.
func unescapeHTML(s string) string {
	return strings.NewReplacer(`\u0026`, "&", `\u003c`, "<", `\u003e`, ">").Replace(s)
}
