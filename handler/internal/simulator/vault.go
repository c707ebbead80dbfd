package simulator

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
)

// Vault is the simulated Key Vault; the SDK talks to vaults over TLS only.
func (a *Azure) Vault() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !a.Authorized(r, "https://vault.azure.net") {
			w.Header().Set("WWW-Authenticate", `Bearer authorization="https://login.microsoftonline.com/22222222-2222-2222-2222-222222222222", resource="https://vault.azure.net"`)
			problem(w, http.StatusUnauthorized, "Unauthorized", "AKV10000: Request is missing a Bearer or PoP token.")
			return
		}
		parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
		if len(parts) < 2 || parts[0] != "secrets" || !secretForm.MatchString(parts[1]) {
			problem(w, http.StatusBadRequest, "BadParameter", "only secrets are simulated")
			return
		}
		name := strings.Join(parts[1:], "/")
		a.mu.Lock()
		defer a.mu.Unlock()
		switch value, ok := a.Secrets[name]; {
		case r.Method == http.MethodPut && len(parts) == 2:
			a.putSecret(w, r, name)
		case !ok:
			problem(w, http.StatusNotFound, "SecretNotFound", "A secret with (name/id) "+parts[1]+" was not found in this key vault.")
		case r.Method == http.MethodGet:
			answer(w, http.StatusOK, map[string]string{"value": value, "id": "https://" + r.Host + "/secrets/" + name})
		case r.Method == http.MethodDelete && len(parts) == 2:
			for other := range a.Secrets {
				if other == name || strings.HasPrefix(other, name+"/") {
					delete(a.Secrets, other)
				}
			}
			if a.Deleted == nil {
				a.Deleted = map[string]bool{}
			}
			a.Deleted[name] = true
			answer(w, http.StatusOK, map[string]string{"id": "https://" + r.Host + "/secrets/" + name, "recoveryId": "https://" + r.Host + "/deletedsecrets/" + name})
		default:
			problem(w, http.StatusMethodNotAllowed, "MethodNotAllowed", "it is not simulated")
		}
	})
}

// secretForm is that of secret names.
var secretForm = regexp.MustCompile(`^[0-9a-zA-Z-]{1,127}$`)

// putSecret makes a version of a secret. One that was deleted cannot be set before it
// is purged, as with soft-delete.
func (a *Azure) putSecret(w http.ResponseWriter, r *http.Request, name string) {
	var doc struct {
		Value       *string `json:"value"`
		ContentType string  `json:"contentType"`
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	if err != nil || json.Unmarshal(body, &doc) != nil || doc.Value == nil || len(*doc.Value) > 25_000 || len(doc.ContentType) > 255 {
		problem(w, http.StatusBadRequest, "BadParameter", "Property value has invalid value")
		return
	}
	if a.Deleted[name] {
		problem(w, http.StatusConflict, "Conflict", "Secret "+name+" is currently in a deleted but recoverable state")
		return
	}
	version := fmt.Sprintf("%032x", len(a.Secrets)+1)
	a.Secrets[name], a.Secrets[name+"/"+version] = *doc.Value, *doc.Value
	answer(w, http.StatusOK, map[string]string{"value": *doc.Value, "id": "https://" + r.Host + "/secrets/" + name + "/" + version})
}

// SetSecret changes a secret of the vault, as a rotation does.
func (a *Azure) SetSecret(name, value string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.Secrets[name] = value
}
