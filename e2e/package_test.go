//go:build linux

package e2e

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/e2e/azurite"
	"qualys-sentinel/handler/simulation"
)

// zipped is the package that the tests' app was staged with.
func zipped(t *testing.T) string {
	t.Helper()
	dir, err := app()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(filepath.Dir(dir), "qualys-sentinel-linux-"+runtime.GOARCH+".zip")
}

// unpack puts a zip's files into a folder as a tool does that knows no modes:
// none may be executed.
func unpack(t *testing.T, path string) string {
	t.Helper()
	z, err := zip.OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	dir := filepath.Join(t.TempDir(), "app")
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		doc, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, f.Name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, doc, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// The package holds what the host wants, says what may be executed, and is the
// same whenever it is built; checksums and bill of materials belong to it.
func TestPackage(t *testing.T) {
	t.Parallel()
	path := zipped(t)
	z, err := zip.OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	modes := map[string]fs.FileMode{}
	for _, f := range z.File {
		modes[f.Name] = f.Mode()
	}
	want := map[string]fs.FileMode{"host.json": 0o644, "LICENSE": 0o644, "run.sh": 0o755, "qualys-sentinel": 0o755}
	folders, err := filepath.Glob("../functions/*/function.json")
	if err != nil || len(folders) < 5 {
		t.Fatal(folders, err)
	}
	for _, f := range folders {
		want[filepath.Base(filepath.Dir(f))+"/function.json"] = 0o644
	}
	if fmt.Sprint(modes) != fmt.Sprint(want) {
		t.Errorf("%v\nwant %v", modes, want)
	}

	// From a copy of the sources in another place.
	again, copied := t.TempDir(), t.TempDir()
	for _, part := range []string{"handler", "functions", "tools"} {
		if err := os.CopyFS(filepath.Join(copied, part), os.DirFS(filepath.Join("..", part))); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"go.mod", "go.sum", "host.json", "LICENSE"} {
		doc, err := os.ReadFile(filepath.Join("..", file))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(copied, file), doc, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// What lies about in a checkout does not get in.
	if err := os.WriteFile(filepath.Join(copied, "functions", "QualysVM", ".DS_Store"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "run", "./tools/stage", "-out", again, "-arch", runtime.GOARCH)
	cmd.Dir = copied
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"qualys-sentinel-linux-" + runtime.GOARCH + ".zip", "qualys-sentinel-linux-" + runtime.GOARCH + ".cdx.json", "SHA256SUMS"} {
		first, err := os.ReadFile(filepath.Join(filepath.Dir(path), name))
		if err != nil {
			t.Fatal(err)
		}
		second, err := os.ReadFile(filepath.Join(again, name))
		if err != nil || !bytes.Equal(first, second) {
			t.Errorf("%s differs when it is built again: %v", name, err)
		}
	}
	sums := exec.Command("sha256sum", "-c", "SHA256SUMS")
	sums.Dir = again
	if out, err := sums.CombinedOutput(); err != nil || strings.Count(string(out), ": OK") != 2 {
		t.Errorf("%v\n%s", err, out)
	}
	var bill struct {
		SpecVersion, SerialNumber string
		Components                []struct{ Name, Version, Purl string }
	}
	doc, err := os.ReadFile(filepath.Join(again, "qualys-sentinel-linux-"+runtime.GOARCH+".cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(doc, &bill); err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, c := range bill.Components {
		listed[c.Name] = c.Version != "" && strings.HasPrefix(c.Purl, "pkg:golang/")
	}
	if !listed["std"] || !listed["github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"] || !listed["go.uber.org/zap"] || listed["github.com/chromedp/chromedp"] || len(bill.SerialNumber) != len("urn:uuid:")+36 {
		t.Errorf("%+v", bill)
	}
}

// Every function of the package starts under the real host where nothing may be
// executed, as after a deployment that has lost the modes.
func TestPackageUnderTheHost(t *testing.T) {
	t.Parallel()
	s := startServices(t, 20, 10)
	s.setKnowledge(&simulation.Knowledge{Seed: 1, Size: 50})
	dir := unpack(t, zipped(t))
	h := startHostIn(t, s, dir)
	c := h.caller()
	for path, want := range map[string]int{"/api/status": http.StatusOK, "/api/check": http.StatusOK} {
		if a := c.call("GET", path, ""); a.status != want {
			t.Errorf("%s: %d\n%s", path, a.status, a.body)
		}
	}
	var begun simulation.SyncDocument
	a := c.call("POST", "/api/sync/kb", "")
	if a.read(t, &begun); a.status != http.StatusAccepted {
		t.Fatalf("%d\n%s", a.status, a.body)
	}
	c.completes(begun.ID)
	// Timers, started as the portal starts them.
	for function, dataset := range map[string]string{"QualysVM": "vm", "QualysKB": "kb"} {
		runs := len(s.reports(dataset))
		if a := c.call("POST", "/admin/functions/"+function, "{}", "Content-Type", "application/json"); a.status != http.StatusAccepted {
			t.Fatalf("%s: %d\n%s", function, a.status, a.body)
		}
		azurite.Eventually(t, time.Minute, function+" has run", func() error {
			if n := len(s.reports(dataset)); n <= runs {
				return fmt.Errorf("%d runs\n%s", n, h.output())
			}
			return nil
		})
	}
}

// Where the package is mounted read-only the host cannot give the binary its
// mode: then a copy is started, once however often, and arguments and exit codes
// are the handler's.
func TestRunScript(t *testing.T) {
	t.Parallel()
	dir := unpack(t, zipped(t))
	tmp := t.TempDir()
	script := `mount --bind "$APP" "$APP" && mount -o remount,ro,bind "$APP" && cd "$APP" || exit 77
chmod 0755 qualys-sentinel 2>/dev/null && echo "it is not read-only"
/bin/sh run.sh --version; echo "exit code $?"
/bin/sh run.sh no-such-command >/dev/null 2>&1; echo "exit code $?"`
	cmd := exec.Command("unshare", "-Urm", "sh", "-c", script)
	cmd.Env = append(os.Environ(), "APP="+dir, "TMPDIR="+tmp)
	out, err := cmd.CombinedOutput()
	if err != nil {
		azurite.Missing(t, "unshare", fmt.Sprintf("no read-only mount can be made: %v %s", err, out))
	}
	if text := string(out); strings.Contains(text, "not read-only") || !strings.Contains(text, "qualys-sentinel") || !strings.HasSuffix(text, "exit code 0\nexit code 2\n") {
		t.Errorf("%s", out)
	}
	if copies, err := filepath.Glob(filepath.Join(tmp, "*", "qualys-sentinel")); err != nil || len(copies) != 1 {
		t.Errorf("copies %v, %v", copies, err)
	}
}
