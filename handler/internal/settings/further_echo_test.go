package settings_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"

	"qualys-sentinel/e2e/canary"
	"qualys-sentinel/handler/internal/settings"
)

// A vault that repeats what it was sent makes neither the key of a workspace nor its own
// token a part of an error.
func TestFurtherEchoedKeysOfAVault(t *testing.T) {
	key := canary.WorkspaceKeyText()
	for name, echo := range map[string]func(w http.ResponseWriter, key, authorization string){
		"key as code": func(w http.ResponseWriter, key, _ string) {
			w.WriteHeader(http.StatusBadRequest)
			_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"code": key, "message": "x"}})
		},
		"key as message": func(w http.ResponseWriter, key, _ string) {
			w.WriteHeader(http.StatusBadRequest)
			_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"code": "BadParameter", "message": key}})
		},
		"key in a header": func(w http.ResponseWriter, key, _ string) {
			w.Header().Set("x-ms-error-code", key)
			w.WriteHeader(http.StatusConflict)
		},
		"token as code": func(w http.ResponseWriter, _, authorization string) {
			w.WriteHeader(http.StatusConflict)
			_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"code": authorization, "message": "x"}})
		},
		"token, refused": func(w http.ResponseWriter, _, authorization string) {
			w.WriteHeader(http.StatusForbidden)
			_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"code": authorization, "message": authorization}})
		},
		"key in an answer that is none": func(w http.ResponseWriter, key, _ string) { _, _ = io.WriteString(w, "<html>"+key+"</html>") },
	} {
		t.Run(name, func(t *testing.T) {
			_, v, _ := vault(t)
			token := ""
			server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				authorization := r.Header.Get("Authorization")
				if authorization == "" {
					w.Header().Set("WWW-Authenticate", `Bearer authorization="https://login.microsoftonline.com/11111111-1111-1111-1111-111111111111", resource="https://vault.azure.net"`)
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				token = strings.TrimPrefix(authorization, "Bearer ")
				echo(w, key, authorization)
			}))
			defer server.Close()
			kv := v.(*settings.KeyVault)
			options := azsecrets.ClientOptions{ClientOptions: kv.Options.ClientOptions}
			options.Transport = server.Client()
			kv.Options = &options
			k := &settings.KeyFile{KeyVault: *kv, Vault: server.URL, NewID: func() string { return "r" }}
			_, err := k.Put(context.Background(), 7, key)
			if err == nil || token == "" {
				t.Fatalf("%v, token %q", err, token)
			}
			if strings.Contains(err.Error(), key[:20]) || strings.Contains(err.Error(), token[len(token)-20:]) {
				t.Errorf("left: %v", err)
			}
		})
	}
}
