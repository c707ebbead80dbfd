package settings

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Markdown is the README's table of settings.
func Markdown() string {
	var b strings.Builder
	b.WriteString("| setting | meaning | default |\n|---|---|---|\n")
	for _, d := range definitions {
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

// Example is local.settings.json.example: every setting, in the README's order.
func Example() string {
	var b strings.Builder
	b.WriteString("{\n  \"IsEncrypted\": false,\n  \"Values\": {\n    \"FUNCTIONS_WORKER_RUNTIME\": \"custom\"")
	for _, d := range definitions {
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
