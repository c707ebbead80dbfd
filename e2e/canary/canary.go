// Package canary holds the secrets that tests use, so that one search of all
// their output can tell whether any of them ever leaks.
package canary

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
)

// The secrets. They open nothing.
const (
	Password      = "canary-Pa55+w&rd%äö"
	NewPassword   = "canary-N3w-pa55word"
	OldPassword   = "canary-0ld-pa55word"
	User          = "canary_user"
	IdentityToken = "canary-identity-header"
)

// WorkspaceKey is the key of the simulated workspace, in bytes.
var WorkspaceKey = []byte("canary-workspace-key-0123456789a")

// WorkspaceKeyText is the key as people copy it.
func WorkspaceKeyText() string { return base64.StdEncoding.EncodeToString(WorkspaceKey) }

// integrationKey begins the keys of further workspaces. Its length is a multiple of
// three, so that all of them begin alike in base64, too.
const integrationKey = "canary-integration-key-0"

// IntegrationKey is the key of the n-th further workspace, in bytes.
func IntegrationKey(n int) []byte { return fmt.Appendf(nil, "%s%08d", integrationKey, n) }

// IntegrationKeyText is the key as people copy it.
func IntegrationKeyText(n int) string { return base64.StdEncoding.EncodeToString(IntegrationKey(n)) }

// Forms lists every form in which a secret could appear in an output.
func Forms() []string {
	var forms []string
	for _, s := range []string{Password, NewPassword, OldPassword, IdentityToken, string(WorkspaceKey), integrationKey} {
		inJSON, err := json.Marshal(s)
		if err != nil {
			panic(err) // a string always has a JSON form
		}
		forms = append(forms, s, url.QueryEscape(s), base64.StdEncoding.EncodeToString([]byte(s)), strings.Trim(string(inJSON), `"`))
	}
	for _, p := range []string{Password, NewPassword, OldPassword} {
		forms = append(forms, base64.StdEncoding.EncodeToString([]byte(User+":"+p)))
	}
	// Tokens of the simulated identity, and shared key signatures.
	return append(forms, "Bearer simulated-token", "SharedKey ")
}
