package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"qualys-sentinel/e2e/canary"
	"qualys-sentinel/handler/internal/check"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/simulator"
	"qualys-sentinel/handler/internal/status"
)

// settingsFile is a simulated Qualys, and a file of settings that lead to it and
// into a folder.
func settingsFile(t *testing.T, hosts int) (path string, sub *simulator.Subscription) {
	t.Helper()
	sub = simulator.NewSubscription(4, hosts, 3)
	sub.Knowledge = &simulator.Knowledge{Seed: 1, Size: 20}
	server := httptest.NewServer(simulator.NewQualys(sub, canary.User, canary.Password))
	t.Cleanup(server.Close)
	doc, err := json.Marshal(map[string]any{"Values": map[string]string{
		"apiUsername": canary.User, "apiPassword": canary.Password, "uri": server.URL, "filterParameters": "&truncation_limit=10", "kbSchedule": "0 0 * * * *",
	}})
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "settings.json")
	if err := os.WriteFile(path, doc, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, sub
}

// A sync, its status and a sync of an older window, as a person and as a script
// has them.
func TestCommandsByHand(t *testing.T) {
	file, _ := settingsFile(t, 35)
	dir := t.TempDir()
	flags := []string{"--settings", file, "--to", filepath.Join(dir, "rows"), "--state", filepath.Join(dir, "state")}
	run := func(want int, args ...string) string {
		t.Helper()
		code, out := command(t, append(args, flags...)...)
		if code != want || strings.Contains(out, canary.Password) {
			t.Fatalf("%v: exit code %d\n%s", args, code, out)
		}
		return out
	}
	if out := run(exitOK, "status"); !strings.Contains(out, "no window yet") || strings.Contains(out, "\x1b[") {
		t.Errorf("%s", out)
	}
	var runs runsDocument
	if err := json.Unmarshal([]byte(run(exitOK, "sync", "all", "--json")), &runs); err != nil || len(runs.Runs) != 2 || runs.Runs[0].Dataset != "kb" || runs.Runs[1].Outcome != ingest.Complete || runs.Runs[1].Parents != 35 {
		t.Fatalf("%+v, %v", runs, err)
	}
	watermark := *runs.Runs[1].Until
	out := run(exitOK, "sync", "vm", "--full")
	if !strings.Contains(out, "35 in 4 pages") || !strings.Contains(out, "own checkpoint stays where it is") {
		t.Errorf("%s", out)
	}
	var doc status.Document
	if err := json.Unmarshal([]byte(run(exitOK, "status", "--json")), &doc); err != nil {
		t.Fatal(err)
	}
	vm := doc.Datasets[0]
	if !vm.Watermark.Equal(watermark) || len(vm.Runs) != 2 || len(vm.Syncs) != 1 || vm.Syncs[0].State != "complete" || !vm.Syncs[0].Full {
		t.Errorf("%+v", vm)
	}
	if out := run(exitOK, "status", vm.Syncs[0].ID); !strings.Contains(out, "complete") {
		t.Errorf("%s", out)
	}
	if out := run(exitFailed, "status", "nobody"); !strings.Contains(out, `no sync or run "nobody"`) {
		t.Errorf("%s", out)
	}
	if out := run(exitFailed, "status", "nobody", "--json"); !strings.Contains(out, `"error": "there is no sync or run`) {
		t.Errorf("%s", out)
	}
	// An empty variable of a script is not "nothing asked for".
	for flag, want := range map[string]string{"--host-ids=": "it holds 0 ids", "--since=": "is no time", "--filter=": "filterParameters: it must be"} {
		if out := run(exitUsage, "sync", "vm", flag); !strings.Contains(out, want) {
			t.Errorf("%s: %s", flag, out)
		}
	}
	// Interrupted, the same command goes on.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if code, out := commandContext(ctx, t, append([]string{"sync", "vm", "--since", "2026-01-01"}, flags...)...); code == exitOK {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	run(exitOK, "sync", "vm", "--since", "2026-01-01")
	if err := json.Unmarshal([]byte(run(exitOK, "status", "--json")), &doc); err != nil || len(doc.Datasets[0].Syncs) > 2 {
		t.Errorf("%+v, %v", doc.Datasets[0].Syncs, err)
	}
	for args, want := range map[string]string{
		"sync vm --since tomorrow":           "since: \"tomorrow\" is no time",
		"sync kb --host-ids 7":               "has no hosts",
		"sync vm --since 2026-01-01 --full":  "leave one of the two out",
		"sync vm --filter &severities=5":     "needs since, full or hostIds",
		"sync vm --full --filter &id_min=5":  "is set by the connector itself",
		"sync vm --host-ids 7,x":             "number 2 of the list",
		"sync vm --full --log shout":         "--log \"shout\" is unknown",
		"sync vm --full --filter &severi=%z": "it cannot be read",
	} {
		if out := run(exitUsage, strings.Fields(args)...); !strings.Contains(out, want) {
			t.Errorf("%s: %s", args, out)
		}
	}
}

func TestCheckCommand(t *testing.T) {
	file, sub := settingsFile(t, 5)
	flags := []string{"check", "--settings", file, "--to", t.TempDir(), "--state", t.TempDir()}
	code, out := command(t, flags...)
	if code != exitOK || !strings.Contains(out, "ok: all is well") || !strings.Contains(out, "5 hosts are visible") || strings.Contains(out, "\x1b[") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	sub.Knowledge.Refused = true
	code, out = command(t, append(flags, "--json")...)
	var report check.Report
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != exitFailed || report.Outcome != check.Failed {
		t.Errorf("exit code %d, %v\n%s", code, err, out)
	}
	code, out = command(t, "check", "--state", t.TempDir())
	if code != exitFailed || !strings.Contains(out, "apiUsername: it is missing") || !strings.Contains(out, "skipped   Qualys: network") || !strings.Contains(out, "ok        State: storage") {
		t.Errorf("exit code %d\n%s", code, out)
	}
}

// What a shell completes.
func TestCompletion(t *testing.T) {
	for args, want := range map[string]string{
		"__complete sync ":                 "vm\nkb\nall",
		"__complete replay ":               "vm\nkb",
		"__complete replay vm --log ":      "debug\ninfo\nwarn\nerror",
		"__complete sync vm --settings ":   "json",
		"__complete sync vm --":            "--since",
		"completion bash":                  "bash completion",
		"completion zsh":                   "#compdef qualys-sentinel",
		"completion fish":                  "fish completion",
		"completion powershell":            "powershell completion",
		"__complete demo --dir ":           ":16",
		"__complete simulate --j":          "--json",
		"__complete status --set uri=x --": "--state",
	} {
		fields := strings.Fields(args)
		if strings.HasSuffix(args, " ") {
			fields = append(fields, "")
		}
		if code, out := command(t, fields...); code != exitOK || !strings.Contains(out, want) {
			t.Errorf("%s: exit code %d\n%s", args, code, out)
		}
	}
}

// The flags that commands share mean the same, and are described alike.
func TestSharedFlags(t *testing.T) {
	shared := map[string]string{}
	for _, name := range []string{"sync", "check", "status", "replay", "demo", "simulate"} {
		_, out := command(t, name, "--help")
		if !strings.Contains(out, "--json") {
			t.Errorf("%s has no --json", name)
		}
		for _, flag := range regexp.MustCompile(`(?m)^ +(--(?:json|log|set|settings|state|to)) .*$`).FindAllStringSubmatch(out, -1) {
			text := strings.Join(strings.Fields(flag[0]), " ")
			if before, ok := shared[flag[1]]; ok && before != text {
				t.Errorf("%s of %s: %q, elsewhere %q", flag[1], name, text, before)
			}
			shared[flag[1]] = text
		}
	}
	if len(shared) != 6 {
		t.Errorf("%v", shared)
	}
}

// Colours are for terminals only.
func TestPaint(t *testing.T) {
	for colours, want := range map[bool]string{true: "\x1b[31mfailed  \x1b[0m", false: "failed  "} {
		p := &paper{colours: colours}
		if got := p.outcome("failed", 8); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	t.Setenv("NO_COLOR", "1")
	if newPaper(false).colours {
		t.Error("colours in spite of NO_COLOR")
	}
	if got := fmt.Sprint((&paper{colours: true}).paint("", "x")); got != "x" {
		t.Error(got)
	}
}
