package blob_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"qualys-sentinel/handler/internal/checkpoint/blob"
)

// A storage that repeats what it was sent does not make signature or key a part of an
// error, wherever it repeats it.
func TestFurtherEchoedSignatures(t *testing.T) {
	const signature = "s1gNature%2Fof%2Ba%2Bcontainer%3D"
	for name, echo := range map[string]func(w http.ResponseWriter, r *http.Request){
		"code of the header": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("x-ms-error-code", r.URL.RawQuery)
			w.WriteHeader(http.StatusBadRequest)
		},
		"code of the document": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte("<?xml version=\"1.0\"?><Error><Code>" + strings.ReplaceAll(r.URL.RawQuery, "&", "&amp;") + "</Code><Message>x</Message></Error>"))
		},
		"message": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte("<?xml version=\"1.0\"?><Error><Code>x</Code><Message>" + strings.ReplaceAll(r.URL.RawQuery, "&", "&amp;") + "</Message></Error>"))
		},
		"a page": func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte("<html>" + r.URL.String() + "</html>"))
		},
		"a list that is none": func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write([]byte("<html>" + r.URL.String() + "</html>"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(echo))
			defer server.Close()
			s, err := blob.FromConnectionString("BlobEndpoint="+server.URL+"/account;SharedAccessSignature=sv=2025-01-05&ss=b&sig="+signature, "state")
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.List(context.Background(), "runs/")
			if err != nil && strings.Contains(err.Error(), signature[:9]) {
				t.Errorf("left: %v", err)
			}
		})
	}
}
