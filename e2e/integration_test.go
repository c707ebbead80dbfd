//go:build linux

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"qualys-sentinel/e2e/azurite"
	"qualys-sentinel/e2e/canary"
	"qualys-sentinel/handler/simulation"
)

// curl runs curl itself, as the guide's commands do.
func curl(t *testing.T, args ...string) (status int, body string) {
	t.Helper()
	cmd := exec.Command("curl", append([]string{"-sS", "-w", "\n%{http_code}"}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("curl: %v: %s", err, exit.Stderr)
		}
		t.Fatalf("curl: %v", err)
	}
	cut := strings.LastIndexByte(string(out), '\n')
	status, err = strconv.Atoi(string(out[cut+1:]))
	if err != nil {
		t.Fatal(err)
	}
	return status, string(out[:cut])
}

// serviceResponse is the envelope of every answer.
type serviceResponse struct {
	Data                 []string
	Count                *int
	ResponseCode         string
	ResponseErrorDetails *struct{ ErrorMessage, ErrorResolution string }
}

// The guide's curl commands, through the real host and by curl itself, with only the
// host changed: documented answers, and findings that arrive.
func TestIntegrationAPI(t *testing.T) {
	t.Parallel()
	s := startServices(t, 60, 8)
	s.sub.Infos = 2
	teams := s.teams(2)
	s.environ["integrationApi"] = "true"
	h := startHost(t, s)
	origin := h.caller().origin
	if _, err := exec.LookPath("curl"); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(outputDir(t), "curl.txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	call := func(args ...string) (int, serviceResponse) {
		t.Helper()
		status, body := curl(t, args...)
		fmt.Fprintln(log, status, body)
		var doc struct{ ServiceResponse *serviceResponse }
		if err := json.Unmarshal([]byte(body), &doc); err != nil || doc.ServiceResponse == nil {
			t.Fatalf("%d: no envelope: %s", status, body)
		}
		return status, *doc.ServiceResponse
	}
	login := []string{"-u", canary.User + ":" + canary.Password}
	answers := func(data string, args ...string) {
		t.Helper()
		status, r := call(append(slices.Clone(login), args...)...)
		if status != 200 || r.ResponseCode != "SUCCESS" || len(r.Data) != 1 || r.Data[0] != data || r.Count == nil || *r.Count != 1 {
			t.Errorf("%v: %d %+v\nwant %s", args, status, r, data)
		}
	}
	sample := filepath.Join(t.TempDir(), "sample.json")
	if err := os.WriteFile(sample, []byte(`{
  "workspaceId": "`+workspaceOf(0)+`",
  "primaryKey": "`+canary.IntegrationKeyText(0)+`",
  "minSeverity": 4,
  "baseCategory": "Potential",
  "customLogName": "QUALYS_FINDINGS",
  "name": "Sample Integration",
  "resultSectionNeeded": false,
  "apiVersion": "2016-04-01"
}`), 0o600); err != nil {
		t.Fatal(err)
	}
	const path = "/qps/rest/2.0/%s/integration/azure/sentinel/%svm"
	url := func(verb, id string) string { return origin + fmt.Sprintf(path, verb, id) }
	one := "{integrationId=1, name='Sample Integration', customerId=0, customerUUID='00000000-0000-0000-0000-000000000000', workspaceId='" + workspaceOf(0) + "', minSeverity=%d, baseCategory=%s, customLogName='QUALYS_FINDINGS', apiVersion='2016-04-01', resultSectionNeeded=false}"
	answers("integrationId=1", "-X", "POST", "-H", "Content-Type: application/json", "-d", "@"+sample, url("add", ""))
	answers(fmt.Sprintf(one, 4, "Potential"), "-X", "GET", url("get", ""))
	answers(fmt.Sprintf(one, 4, "Potential"), "-X", "GET", url("get", "1/"))
	answers("Azure Sentinel integration successfully updated.", "-X", "PUT", "-H", "Content-Type: application/json", "-d", `{"minSeverity": 2, "baseCategory": "IG"}`, url("update", "1/"))
	answers(fmt.Sprintf(one, 2, "IG"), url("get", "1/"))
	// Without the content type, as by tools that name another.
	answers("integrationId=2", "-d", teams[1].body(t), url("add", ""))
	answers("Azure Sentinel integration successfully deleted.", "-X", "DELETE", url("delete", "2/"))
	answers("integrationId=3", "-d", teams[1].body(t), url("add", ""))

	for name, c := range map[string]struct {
		args   []string
		status int
		code   string
	}{
		"no login":      {[]string{url("get", "")}, 401, "INVALID_CREDENTIALS"},
		"wrong login":   {[]string{"-u", canary.User + ":" + canary.OldPassword, url("get", "")}, 401, "INVALID_CREDENTIALS"},
		"function key":  {[]string{"-H", "x-functions-key: anything", url("get", "")}, 401, "INVALID_CREDENTIALS"},
		"bad JSON":      {append(slices.Clone(login), "-d", "{", url("add", "")), 400, "INVALID_REQUEST"},
		"name twice":    {append(slices.Clone(login), "-d", "@"+sample, url("add", "")), 400, "INVALID_REQUEST"},
		"unknown id":    {append(slices.Clone(login), url("get", "99/")), 404, "NOT_FOUND"},
		"deleted id":    {append(slices.Clone(login), "-X", "DELETE", url("delete", "2/")), 404, "NOT_FOUND"},
		"wrong method":  {append(slices.Clone(login), "-X", "PATCH", url("get", "")), 405, "OPERATION_NOT_SUPPORTED"},
		"wrong verb":    {append(slices.Clone(login), url("find", "")), 404, "NOT_FOUND"},
		"another thing": {append(slices.Clone(login), origin+"/qps/rest/2.0/get/integration/azure/sentinel/was"), 404, "NOT_FOUND"},
		"huge body":     {append(slices.Clone(login), "-d", strings.Repeat(" ", 100_000), url("add", "")), 413, "LIMIT_EXCEEDED"},
	} {
		status, r := call(c.args...)
		if status != c.status || r.ResponseCode != c.code || r.ResponseErrorDetails == nil || r.ResponseErrorDetails.ErrorMessage == "" || r.ResponseErrorDetails.ErrorResolution == "" {
			t.Errorf("%s: %d %+v", name, status, r)
		}
	}

	// What was registered gets its findings at the next tick, and shows in status.
	teams[0].asks = map[string]any{"minSeverity": 2, "baseCategory": "IG"}
	teams[0].table = "QUALYS_FINDINGS_CL"
	if a := h.caller().call("POST", "/admin/functions/QualysVM", "{}"); a.status != http.StatusAccepted {
		t.Fatalf("%d %s", a.status, a.body)
	}
	azurite.Eventually(t, time.Minute, "findings arrive", func() error {
		for _, team := range teams {
			wanted, missing, foreign, twice := team.compare(s, nil)
			if wanted == 0 || missing+foreign+twice > 0 {
				return fmt.Errorf("%s: of %d %d are missing, %d not wanted, %d twice", team.name, wanted, missing, foreign, twice)
			}
		}
		return nil
	})
	if teams[0].fields["Results_0"] > 0 || teams[0].fields["Cut"] > 0 {
		t.Error("a result section was not asked for")
	}
	if dup, total, _ := s.duplicates(time.Time{}, s.clock()); dup != 0 || total == 0 {
		t.Errorf("the default destination: %d of %d twice", dup, total)
	}
	noKeys(t, s)
}

// noKeys searches everything that was written for the keys of workspaces.
func noKeys(t *testing.T, s *services) {
	t.Helper()
	s.dumpState()
	searched := 0
	err := filepath.WalkDir(outputDir(t), func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		doc, err := os.ReadFile(path)
		searched++
		for _, form := range canary.Forms() {
			if strings.Contains(string(doc), form) {
				t.Errorf("%s holds %s", path, form)
			}
		}
		return err
	})
	if err != nil || searched < 3 {
		t.Errorf("%d files searched, %v", searched, err)
	}
}

// Twenty workspaces with filters of their own over one subscription: each has exactly
// what its filter allows, and Qualys is asked as often as for one.
func TestTwentyIntegrations(t *testing.T) {
	t.Parallel()
	const hosts, pages = 2000, 20
	calls, own := map[int]int{}, map[int]int{}
	for _, count := range []int{1, 20} {
		s := startServices(t, hosts, 6)
		s.sub.Infos = 2
		teams := s.teams(21)
		s.register(teams[1]) // the widest
		if count == 20 {
			s.register(append([]*team{teams[0]}, teams[2:20]...)...)
		} else {
			teams = teams[1:2]
		}
		teams = teams[:count]
		h := startBare(t, s)
		s.azure.Keep = s.keep
		// A destination that takes no batch for long, as on a busy machine, has pages of its own.
		ownPages := func() int { return pages * strings.Count(h.output(), "too slow for the others") }
		h.call("QualysVM")
		calls[count], own[count] = len(s.qualys.Calls()), ownPages()
		for _, team := range teams {
			if wanted, missing, foreign, twice := team.compare(s, nil); wanted == 0 || missing+foreign+twice > 0 {
				t.Errorf("%s: of %d %d are missing, %d not wanted, %d twice", team.name, wanted, missing, foreign, twice)
			}
		}
		if dup, total, _ := s.duplicates(time.Time{}, s.clock()); dup != 0 || total == 0 {
			t.Errorf("the default destination: %d of %d twice", dup, total)
		}
		// And so it goes on.
		before := map[*team]map[string]bool{}
		expectations(s, teams, before)
		for range 3 {
			s.advance(10 * time.Minute)
			h.call("QualysVM")
			expectations(s, teams, before)
		}
		later := len(s.qualys.Calls()) - calls[count]
		for _, team := range teams {
			if _, missing, foreign, twice := team.compare(s, before[team]); missing+foreign+twice > 0 {
				t.Errorf("%s later: %d are missing, %d not wanted, %d twice", team.name, missing, foreign, twice)
			}
		}
		if later < 3 || later > 3+ownPages()-own[count] {
			t.Errorf("%d calls for three windows of a page", later)
		}
		if count == 20 {
			// A new one catches up on its own.
			more := s.teams(21)[20]
			s.azure.Places[workspaceOf(20)].Keep = more.keep
			s.register(more)
			s.advance(10 * time.Minute)
			had, slow := len(s.qualys.Calls()), ownPages()
			h.call("QualysVM")
			if n := len(s.qualys.Calls()) - had; n > pages+2+ownPages()-slow {
				t.Errorf("%d calls with one that catches up", n)
			}
			if wanted, missing, foreign, twice := more.compare(s, nil); wanted == 0 || missing+foreign+twice > 0 {
				t.Errorf("the new one: of %d %d are missing, %d not wanted, %d twice", wanted, missing, foreign, twice)
			}
		}
		peak := h.peakMiB()
		if peak > 64 {
			t.Errorf("%d integrations: %.1f MiB at the most", count, peak)
		}
		t.Logf("%d integrations: %d calls, %.1f MiB at the most", count, calls[count], peak)
		h.stop()
		if err := os.WriteFile(filepath.Join(outputDir(t), fmt.Sprintf("handler-%d.log", count)), []byte(h.output()), 0o600); err != nil {
			t.Fatal(err)
		}
		noKeys(t, s)
	}
	if calls[20] > calls[1]+own[20] {
		t.Errorf("%d calls for twenty, %d for one; at most %d for pages of their own", calls[20], calls[1], own[20])
	}
}

// Killed at random, and started again, over many windows: nothing is missing for any
// of twenty workspaces.
func TestIntegrationKills(t *testing.T) {
	t.Parallel()
	kills := 10
	if testing.Short() {
		kills = 5
	}
	s := startServices(t, 300, 12)
	s.sub.Infos = 1
	teams := s.teams(20)
	delete(s.environ, "AzureWebJobsStorage") // a lease blocks for a minute after a kill; a lock does not
	s.environ["stateFolder"] = filepath.Join(t.TempDir(), "state")
	s.environ["filterParameters"] = "&truncation_limit=50"
	s.qualys.CallsPerHour = 100_000
	s.register(teams...)
	random := rand.New(rand.NewPCG(2, uint64(kills)))
	before := map[*team]map[string]bool{}
	expectations(s, teams, before)
	for n := range kills {
		h := startBare(t, s)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			resp, err := http.Post(h.url+"QualysVM", "application/json", strings.NewReader("{}"))
			if err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		}()
		timer := time.AfterFunc(time.Duration(50+random.IntN(1200))*time.Millisecond, func() { _ = h.cmd.Process.Kill() })
		<-ended
		timer.Stop()
		_ = h.cmd.Process.Kill()
		_ = h.cmd.Wait()
		h.done = true
		if n%3 == 0 {
			s.advance(time.Duration(5+random.IntN(90)) * time.Minute)
			expectations(s, teams, before)
		}
	}
	h := startBare(t, s)
	for range 3 { // those that had stood apart have a window of their own to close first
		h.call("QualysVM")
		s.advance(time.Minute)
		expectations(s, teams, before)
	}
	h.call("QualysVM")
	for _, team := range teams {
		wanted, missing, foreign, twice := team.compare(s, before[team])
		if wanted == 0 || missing+foreign > 0 {
			t.Errorf("%s: of %d %d are missing, %d not wanted, %d twice\n%s", team.name, wanted, missing, foreign, twice, h.output())
		}
		t.Logf("%s: %d rows, %d came twice", team.name, wanted, twice)
	}
}

// One whose workspace refuses everything fails by itself: the others get theirs, and
// status, check and health rows tell. Mended, it gets all that it has missed.
func TestFailingIntegration(t *testing.T) {
	t.Parallel()
	s := startServices(t, 150, 8)
	s.setKnowledge(&simulation.Knowledge{Seed: 1, Size: 20})
	teams := s.teams(4)
	bad := teams[2] // by its key
	place := s.azure.Places[workspaceOf(2)]
	var mu sync.Mutex
	broken := true
	place.Before = func(w http.ResponseWriter) bool {
		mu.Lock()
		defer mu.Unlock()
		if broken {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"Error":"InvalidAuthorization","Message":"the key is revoked"}`)
		}
		return broken
	}
	s.register(teams...)
	h := startBare(t, s)
	s.azure.Keep = s.keep
	h.call("QualysVM")
	for _, team := range teams {
		wanted, missing, foreign, twice := team.compare(s, nil)
		if team == bad && missing != wanted || team != bad && (wanted == 0 || missing+foreign+twice > 0) {
			t.Errorf("%s: of %d %d are missing, %d not wanted, %d twice", team.name, wanted, missing, foreign, twice)
		}
	}
	out, _ := s.command("", "status", "--json")
	var doc simulation.StatusDocument
	if err := json.Unmarshal([]byte(out), &doc); err != nil || len(doc.Integrations) != 4 {
		t.Fatalf("%v: %s", err, out)
	}
	for _, i := range doc.Integrations {
		want := "complete"
		if i.ID == 3 {
			want = "failed"
		}
		if len(i.Runs) != 1 || string(i.Runs[0].Outcome) != want || (i.ID == 3) != strings.Contains(i.Runs[0].Reason, "the key is revoked") || i.Name == "" || i.To == "" || i.Wants == "" {
			t.Errorf("%+v", i)
		}
	}
	out, err := s.command("", "check", "--json")
	var report simulation.CheckReport
	if jsonErr := json.Unmarshal([]byte(out), &report); jsonErr != nil || err == nil {
		t.Fatalf("%v, %v: %s", jsonErr, err, out)
	}
	steps := map[string]string{}
	for _, step := range report.Steps {
		steps[step.Name] = string(step.Result) + ": " + step.Detail
	}
	if !strings.Contains(steps["integration 3"], "failed: ") || !strings.Contains(steps["integration 1"], "ok: it takes rows of QUALYS_SECURITY_VM_FINDINGS_CL; complete up to") || !strings.Contains(steps["integration 4"], "ok: ") {
		t.Errorf("%v", steps)
	}
	s.mu.Lock()
	outcomes := map[string]string{}
	for _, row := range s.health {
		var members struct{ Integration_s, Outcome_s, Level_s string }
		if err := json.Unmarshal(row, &members); err != nil {
			t.Fatal(err)
		}
		outcomes[members.Integration_s] = members.Outcome_s + " " + members.Level_s
	}
	s.mu.Unlock()
	if want := map[string]string{"": "complete info", "1": "complete info", "2": "complete info", "3": "failed error", "4": "complete info"}; fmt.Sprint(outcomes) != fmt.Sprint(want) {
		t.Errorf("health rows: %v", outcomes)
	}

	// Mended, with the key set again.
	mu.Lock()
	broken = false
	mu.Unlock()
	s.advance(3 * time.Hour)
	if out, err := s.command(fmt.Sprintf(`{"primaryKey": %q}`, canary.IntegrationKeyText(2)), "integrations", "update", "3", "-"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	before := map[*team]map[string]bool{}
	expectations(s, teams, before)
	h.call("QualysVM")
	if wanted, missing, foreign, twice := bad.compare(s, before[bad]); wanted == 0 || missing+foreign+twice > 0 {
		t.Errorf("mended: of %d %d are missing, %d not wanted, %d twice", wanted, missing, foreign, twice)
	}
}
