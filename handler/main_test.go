package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/api"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
)

// Each function has its folder: a dataset's a timer on its own schedule, those of
// the API a route that asks for a key.
func TestFunctionFolders(t *testing.T) {
	want := map[string]string{}
	for _, d := range ingest.Datasets() {
		want[d.Function] = fmt.Sprintf(`[{"direction":"in","name":"timer","schedule":"%%%sSchedule%%","type":"timerTrigger","useMonitor":true}]`, d.Name)
	}
	for name := range (&api.API{}).Functions() {
		route := map[string]string{
			"QualysSync":   `["post","get"],"name":"req","route":"api/sync/{dataset}"`,
			"QualysStatus": `["get"],"name":"req","route":"api/status/{run?}"`,
			"QualysCheck":  `["get"],"name":"req","route":"api/check"`,
		}[name]
		want[name] = `[{"authLevel":"function","direction":"in","methods":` + route + `,"type":"httpTrigger"},{"direction":"out","name":"res","type":"http"}]`
	}
	want["QualysIntegration"] = `[{"authLevel":"anonymous","direction":"in","methods":["get","post","put","delete","patch","head","options"],"name":"req","route":"qps/rest/2.0/{verb}/integration/azure/sentinel/{*rest}","type":"httpTrigger"},{"direction":"out","name":"res","type":"http"}]`
	folders, err := filepath.Glob("../functions/*/function.json")
	if err != nil || len(folders) != len(want) {
		t.Fatalf("%v, %v: want %d", folders, err, len(want))
	}
	for name, bindings := range want {
		doc, err := os.ReadFile("../functions/" + name + "/function.json")
		if err != nil {
			t.Fatal(err)
		}
		var f struct{ Bindings any }
		if err := json.Unmarshal(doc, &f); err != nil {
			t.Fatal(err)
		}
		if got, err := json.Marshal(f.Bindings); err != nil || string(got) != bindings {
			t.Errorf("%s: %s, %v\nwant %s", name, got, err, bindings)
		}
	}
}

func TestHostFile(t *testing.T) {
	doc, err := os.ReadFile("../host.json")
	if err != nil {
		t.Fatal(err)
	}
	var h map[string]any
	if err := json.Unmarshal(doc, &h); err != nil {
		t.Fatal(err)
	}
	if h["functionTimeout"] != "00:30:00" || h["extensionBundle"] != nil {
		t.Errorf("functionTimeout %v, extensionBundle %v", h["functionTimeout"], h["extensionBundle"])
	}
}

// command runs the program as a terminal does, and returns its exit code and
// what it printed.
func command(t *testing.T, args ...string) (int, string) {
	t.Helper()
	return commandContext(context.Background(), t, args...)
}

func commandContext(ctx context.Context, t *testing.T, args ...string) (int, string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, stderr := os.Stdout, os.Stderr
	os.Stdout, os.Stderr = w, w
	out := make(chan string)
	go func() {
		doc, _ := io.ReadAll(r)
		out <- string(doc)
	}()
	code := run(ctx, args)
	os.Stdout, os.Stderr = stdout, stderr
	w.Close()
	return code, <-out
}

func TestDemo(t *testing.T) {
	t.Setenv("IDENTITY_ENDPOINT", "") // the demo sets them; give them back
	t.Setenv("IDENTITY_HEADER", "")
	dir := t.TempDir()
	args := []string{"demo", "--dir", dir, "--hosts", "60", "--detections", "10", "--qids", "300"}
	code, out := command(t, args...)
	rows, err := os.ReadFile(filepath.Join(dir, "rows", "QualysHostDetectionV2_CL.ndjson"))
	if err != nil || code != exitOK {
		t.Fatalf("exit code %d, %v\n%s", code, err, out)
	}
	n := bytes.Count(rows, []byte("\n"))
	if titles := bytes.Count(rows, []byte(`"Title_s":"`)); titles != n {
		t.Errorf("%d of %d rows carry a title", titles, n)
	}
	if entries, err := os.ReadFile(filepath.Join(dir, "rows", "QualysKB_CL.ndjson")); err != nil || bytes.Count(entries, []byte("\n")) != 300 {
		t.Errorf("%v, %d KnowledgeBase entries", err, bytes.Count(entries, []byte("\n")))
	}
	_, vm, _ := strings.Cut(out, "VM detections: complete")
	accepted := regexp.MustCompile(`([0-9,]+) accepted`).FindStringSubmatch(vm)
	if accepted == nil || strings.ReplaceAll(accepted[1], ",", "") != strings.TrimSpace(thousandsless(n)) || !strings.Contains(out, "complete") || !strings.Contains(out, "Next:") {
		t.Errorf("%d rows kept\n%s", n, out)
	}
	code, out = command(t, args...)
	if after, err := os.ReadFile(filepath.Join(dir, "rows", "QualysHostDetectionV2_CL.ndjson")); err != nil || code != exitOK || len(after) > len(rows)+len(rows)/10 {
		t.Errorf("the second run sent everything again: %d bytes after %d\n%s", len(after), len(rows), out)
	}
}

// Ctrl-C stops the demo in good order, and the next one goes on.
func TestDemoGoesOn(t *testing.T) {
	t.Setenv("IDENTITY_ENDPOINT", "")
	t.Setenv("IDENTITY_HEADER", "")
	dir := t.TempDir()
	path := filepath.Join(dir, "rows", "QualysHostDetectionV2_CL.ndjson")
	args := []string{"demo", "--dir", dir, "--hosts", "1500", "--detections", "30"}
	ctx, interrupt := context.WithCancel(context.Background())
	go func() {
		for ctx.Err() == nil {
			if info, err := os.Stat(path); err == nil && info.Size() > 1<<20 {
				interrupt()
			}
			<-time.After(time.Millisecond)
		}
	}()
	if code, out := commandContext(ctx, t, args...); code != exitPaused || !strings.Contains(out, "paused") {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	if code, out := command(t, args...); code != exitOK || strings.Contains(out, "beginning it again") {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	rows, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, key := range regexp.MustCompile(`"RowKey_s":"([^"]+)"`).FindAllStringSubmatch(string(rows), -1) {
		if seen[key[1]] {
			t.Fatalf("row %s arrived twice", key[1])
		}
		seen[key[1]] = true
	}
	if len(seen) < 20_000 {
		t.Errorf("%d rows", len(seen))
	}
}

// Dead letters are listed and looked at without an account, and stay.
func TestReplayCommand(t *testing.T) {
	dir := t.TempDir()
	letters := filepath.Join(dir, "state", "deadletter", "vm", "r1")
	if err := os.MkdirAll(letters, 0o700); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	gz := gzip.NewWriter(&b)
	fmt.Fprintln(gz, `{"table":"QualysHostDetectionV2_CL","reason":"too old","row":{"RunId_s":"r1","RowKey_s":"1@x"}}`)
	gz.Close()
	object := filepath.Join(letters, "rows-000000.ndjson.gz")
	if err := os.WriteFile(object, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	state := []string{"replay", "vm", "--state", filepath.Join(dir, "state")}
	if code, out := command(t, append(state, "--list")...); code != exitOK || !strings.Contains(out, "1 dead letters in 1 objects") || !strings.Contains(out, "too old") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	for range 2 { // again and again
		if code, out := command(t, append(state, "--to", filepath.Join(dir, "rows"))...); code != exitOK || !strings.Contains(out, "1 written to look at, and all kept") {
			t.Errorf("exit code %d\n%s", code, out)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "rows", "QualysHostDetectionV2_CL", "replay-*.ndjson"))
	if err != nil || len(files) != 2 {
		t.Fatalf("%v, %v", files, err)
	}
	if row, err := os.ReadFile(files[0]); err != nil || !strings.Contains(string(row), `"RowKey_s":"1@x"`) {
		t.Errorf("%s, %v", row, err)
	}
	if _, err := os.Stat(object); err != nil {
		t.Errorf("the dead letter is gone: %v", err)
	}
	if code, out := command(t, state...); code != exitUsage || !strings.Contains(out, "logAnalyticsUri") || strings.Contains(out, "apiUsername") {
		t.Errorf("without a destination: exit code %d\n%s", code, out)
	}
}

// The settings of a dataset reach its run.
func TestRunsAreWired(t *testing.T) {
	base := []string{
		"apiUsername=u", "apiPassword=p", "uri=https://qualysapi.qualys.com", "stateFolder=" + t.TempDir(),
		"workspaceID=11111111-1111-1111-1111-111111111111", "workspaceKey=AAAA",
		"overlap=7m", "initialLookbackDays=3", "runBudget=4m", "incrementalBy=detection", "filterParameters=&truncation_limit=77&severities=5", "detectionApiVersion=4.0", "resultsPolicy=none",
		"kbOverlap=36h", "kbFullRefreshDays=9", "kbPageSize=600", "kbApiVersion=3.0",
	}
	for enrich, wantJoin := range map[string]bool{"true": true, "false": false} {
		c, err := open(context.Background(), append(base[:len(base):len(base)], "enrichDetections="+enrich), purpose{})
		if err != nil {
			t.Fatal(err)
		}
		vm, err := c.run(ingest.VM, "r1", nil)
		if err != nil {
			t.Fatal(err)
		}
		d := vm.Source.(*qualys.Detections)
		if d.PageSize != 77 || d.Version != "4.0" || d.By != qualys.ByDetection || d.Results || d.Filter.Get("severities") != "5" {
			t.Errorf("detections: %+v", d)
		}
		if vm.Overlap != 7*time.Minute || vm.Lookback != 72*time.Hour || vm.Budget != 4*time.Minute || vm.Refresh != 0 || vm.Policy.Bytes != 0 || (vm.Joined != nil) != wantJoin {
			t.Errorf("VM run: %+v", vm)
		}
		kb, err := c.run(ingest.KB, "r1", nil)
		if err != nil {
			t.Fatal(err)
		}
		if k := kb.Source.(*qualys.KnowledgeBase); k.PageSize != 600 || k.Version != "3.0" {
			t.Errorf("KnowledgeBase: %+v", k)
		}
		if kb.Overlap != 36*time.Hour || kb.Lookback != 0 || kb.Budget != 4*time.Minute || kb.Refresh != 9*24*time.Hour || kb.Policy.Bytes != -1 || kb.Joined != nil {
			t.Errorf("KB run: %+v", kb)
		}
		if wantJoin && vm.JoinedIdentity != ingest.Identity(kb.Source, kb.Target) {
			t.Errorf("joined is %q, the index goes with %q", vm.JoinedIdentity, ingest.Identity(kb.Source, kb.Target))
		}
	}
}

func TestProgressLine(t *testing.T) {
	waiting := progressLine(ingest.KB, ingest.Counts{Requests: 1}, "", time.Second)
	working := progressLine(ingest.KB, ingest.Counts{Pages: 3, Parents: 12345, Expected: 200000, Decoded: 12345, Accepted: 12000, BytesRead: 70e6}, "", 10*time.Second)
	if !strings.Contains(waiting, "waiting for Qualys") || strings.Contains(working, "waiting") || !strings.Contains(working, "12,345 of 200,000 QIDs") {
		t.Errorf("%q\n%q", waiting, working)
	}
	for width, want := range map[int]int{20: 20, 79: 79, 500: len(working), 0: len(working)} {
		if got := clipLine(working, width); len(got) != want {
			t.Errorf("%d characters in %d: %q", len(got), width, got)
		}
	}
	if got := clipLine("äöü", 2); got != "äö" {
		t.Errorf("%q", got)
	}
}

func thousandsless(n int) string {
	return strings.ReplaceAll(thousands(int64(n)), ",", "")
}

func TestCommandLine(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"help":            {[]string{"--help"}, exitOK, "qualys-sentinel demo"},
		"sync help":       {[]string{"sync", "vm", "--help"}, exitOK, "--to"},
		"unknown dataset": {[]string{"sync", "tv"}, exitUsage, `dataset "tv" is unknown. Accepted: vm, kb`},
		"no dataset":      {[]string{"sync"}, exitUsage, "accepts 1 arg"},
		"unknown command": {[]string{"sink"}, exitUsage, "unknown command"},
		"no settings":     {[]string{"sync", "vm", "--to", "x", "--state", "y"}, exitUsage, "apiUsername: it is missing"},
		"secret in --set": {[]string{"sync", "vm", "--set", "apiPassword=x"}, exitUsage, "visible to others"},
		"unknown setting": {[]string{"sync", "vm", "--set", "colour=red"}, exitUsage, "no such setting"},
		"no file":         {[]string{"sync", "vm", "--settings", "/nonexistent.json"}, exitUsage, "--settings"},
		"version":         {[]string{"--version"}, exitOK, "dev"},
		"replay help":     {[]string{"replay", "--help"}, exitOK, "--list"},
		"replay, unknown": {[]string{"replay", "tv"}, exitUsage, `dataset "tv" is unknown`},
		"simulate help":   {[]string{"simulate", "--help"}, exitOK, "--listen"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out := command(t, c.args...)
			if code != c.code || !strings.Contains(out, c.want) {
				t.Errorf("exit code %d\n%s\nwant %d, %q", code, out, c.code, c.want)
			}
		})
	}
}

// What the README says that people see, the program says.
func TestReadmeErrors(t *testing.T) {
	doc, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(doc), "| you see | why | what to do |")
	if table, _, _ = strings.Cut(table, "\n\n"); !ok {
		t.Fatal("no table")
	}
	var source strings.Builder
	err = filepath.WalkDir(".", func(path string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, ".html") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		code, err := os.ReadFile(path)
		source.Write(code)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// Composed of numbers, of the network, or of the system.
	composed := regexp.MustCompile(`^answered \d+( code \d+)?$|^lookup$|^no such host$|^connection refused$|^no space left on device$|^permission denied$|^setting is wrong$|^settings are$|^the destination has refused 20 rows and accepted none$`)
	rows := 0
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			continue
		}
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
			rows++
			if text := m[1]; !composed.MatchString(text) && !strings.Contains(source.String(), text) {
				t.Errorf("nothing says %q", text)
			}
		}
	}
	if rows < 40 {
		t.Errorf("only %d texts", rows)
	}
}
