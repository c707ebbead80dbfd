package bench_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"testing"
	"time"
)

// TestBaselineProgram is the baseline as a program: it reads all pages from
// Qualys, one after the other, and sends them. Benchmarks of whole processes
// start it with where to read and send in the environment; without, there is
// nothing to test.
func TestBaselineProgram(t *testing.T) {
	if os.Getenv("BASELINE_QUALYS") == "" {
		t.Skip("it is started by the benchmark of whole runs")
	}
	token := baselineToken(t)
	b, err := newBatcher(func(packed []byte) error {
		req, err := http.NewRequest(http.MethodPost, os.Getenv("BASELINE_INGESTION"), bytes.NewReader(packed))
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Content-Encoding", "gzip")
		body, err := ask(req, http.StatusNoContent)
		if err != nil {
			return err
		}
		return body.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	rows := jsonRows{made: made{time.Now().UTC().Truncate(time.Second), "run"}, row: b.add}
	const limit = 1000
	for from, hosts := uint64(1), limit; hosts == limit; {
		req, err := http.NewRequest(http.MethodGet, os.Getenv("BASELINE_QUALYS")+fmt.Sprintf("&truncation_limit=%d&id_min=%d", limit, from), http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth(os.Getenv("BASELINE_USER"), os.Getenv("BASELINE_PASSWORD"))
		req.Header.Set("X-Requested-With", "baseline")
		body, err := ask(req, http.StatusOK)
		if err != nil {
			t.Fatal(err)
		}
		hosts = 0
		err = rows.detections(body, func(id string) {
			hosts++
			if n, err := strconv.ParseUint(id, 10, 64); err == nil {
				from = n + 1
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := body.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.flush(); err != nil {
		t.Fatal(err)
	}
}

// baselineToken asks the managed identity for a token.
func baselineToken(t *testing.T) string {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, os.Getenv("IDENTITY_ENDPOINT")+"?api-version=2019-08-01&resource="+url.QueryEscape("https://monitor.azure.com"), http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-IDENTITY-HEADER", os.Getenv("IDENTITY_HEADER"))
	body, err := ask(req, http.StatusOK)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	var answer struct {
		Token string `json:"access_token"`
	}
	if err := json.NewDecoder(body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	return answer.Token
}

// ask sends a request and wants a status.
func ask(req *http.Request, status int) (io.ReadCloser, error) {
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != status {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		return nil, fmt.Errorf("%s answered %s: %s", req.URL.Host, resp.Status, text)
	}
	return resp.Body, nil
}
