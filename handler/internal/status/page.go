package status

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // the page
	"encoding/base64"
)

// Page shows the status documents in a browser. It is one file, asks nobody but
// this app, and makes text of whatever the documents hold.
//
//go:embed page.html
var Page []byte

// PagePolicy is the page's content security policy: its own script and style,
// and calls to this app.
var PagePolicy = "default-src 'none'; script-src '" + hashOf("script") + "'; style-src '" + hashOf("style") + "'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// hashOf is the hash of the page's only element of a name.
func hashOf(element string) string {
	_, rest, _ := bytes.Cut(Page, []byte("<"+element+">"))
	content, _, _ := bytes.Cut(rest, []byte("</"+element+">"))
	sum := sha256.Sum256(content)
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}
