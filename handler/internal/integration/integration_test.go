package integration_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"qualys-sentinel/handler/internal/checkpoint/folder"
	"qualys-sentinel/handler/internal/integration"
)

const (
	workspace = "11111111-2222-3333-4444-555555555555"
	key       = "c2VjcmV0LWtleS1vZi10aGUtd29ya3NwYWNlLW51bWJlci1vbmU="
	otherKey  = "YW5vdGhlci1rZXktb2YtYW5vdGhlci13b3Jrc3BhY2U="
	rule      = "dcr-0123456789abcdef0123456789abcdef"
	endpoint  = "https://rule-ab12.westeurope-1.ingest.monitor.azure.com"
)

// vault keeps keys in memory. A real one is asked in package settings' tests and e2e.
type vault struct {
	mu   sync.Mutex
	keys map[string]string
	n    int
	err  error
}

func (v *vault) Put(_ context.Context, id int64, key string) (string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.err != nil {
		return "", v.err
	}
	v.n++
	name := fmt.Sprintf("https://v.vault.azure.net/secrets/i-%d-%d", id, v.n)
	v.keys[name] = key
	return name, nil
}

func (v *vault) Get(_ context.Context, secret string) (string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if key, ok := v.keys[secret]; ok {
		return key, nil
	}
	return "", errors.New("there is no such secret")
}

func (v *vault) Remove(_ context.Context, secret string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.keys, secret)
	return v.err
}

// clock stands still, and its sleeps take no time.
type clock struct{ time.Time }

func (c clock) Now() time.Time                                 { return c.Time }
func (clock) Sleep(ctx context.Context, _ time.Duration) error { return context.Cause(ctx) }

type world struct {
	*integration.Registry
	vault *vault
	dir   string
	logs  *observer.ObservedLogs
}

func newWorld(t *testing.T) *world {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	w := &world{dir: t.TempDir(), vault: &vault{keys: map[string]string{}}, logs: logs}
	w.Registry = &integration.Registry{Store: folder.New(w.dir), Keys: w.vault, Clock: clock{time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)}, Log: zap.New(core)}
	return w
}

func body(members ...string) []byte { return []byte("{" + strings.Join(members, ",") + "}") }

// member is one of a JSON object.
func member(name string, value any) string {
	doc, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return fmt.Sprintf("%q: %s", name, doc)
}

func keyed(name string, more ...string) []byte {
	return body(append([]string{member("workspaceId", workspace), member("primaryKey", key), member("name", name)}, more...)...)
}

func ruled(name string, more ...string) []byte {
	return body(append([]string{member("logAnalyticsUri", endpoint), member("dcrImmutableId", rule), member("name", name)}, more...)...)
}

func (w *world) add(t *testing.T, doc []byte) *integration.Integration {
	t.Helper()
	c, err := integration.Parse(doc)
	if err != nil {
		t.Fatal(err)
	}
	i, err := w.Add(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// Every rule of the contract: what is taken, and as what.
func TestAccepted(t *testing.T) {
	base := integration.Fields{Name: "n", WorkspaceID: workspace, BaseCategory: "Confirmed", CustomLogName: "QUALYS_SECURITY_VM_FINDINGS", MinSeverity: 3, APIVersion: "2016-04-01"}
	with := func(change func(*integration.Fields)) integration.Fields {
		f := base
		change(&f)
		return f
	}
	for name, c := range map[string]struct {
		doc  []byte
		want integration.Fields
	}{
		"defaults of the guide": {keyed("n"), base},
		"the guide's example": {
			[]byte(`{"workspaceId":"` + workspace + `","primaryKey":"` + key + `","minSeverity":4,"baseCategory":"Potential","customLogName":"QUALYS_FINDINGS","name":"Sample Integration","resultSectionNeeded":false,"apiVersion":"2016-04-01"}`),
			integration.Fields{Name: "Sample Integration", WorkspaceID: workspace, BaseCategory: "Potential", CustomLogName: "QUALYS_FINDINGS", MinSeverity: 4, APIVersion: "2016-04-01"},
		},
		"category":                   {keyed("n", `"baseCategory":"IG"`), with(func(f *integration.Fields) { f.BaseCategory = "IG" })},
		"category in lower case":     {keyed("n", `"baseCategory":"confirmed"`), base},
		"severity 1":                 {keyed("n", `"minSeverity":1`), with(func(f *integration.Fields) { f.MinSeverity = 1 })},
		"severity 5, as text":        {keyed("n", `"minSeverity":"5"`), with(func(f *integration.Fields) { f.MinSeverity = 5 })},
		"results":                    {keyed("n", `"resultSectionNeeded":true`), with(func(f *integration.Fields) { f.ResultSectionNeeded = true })},
		"results, as text":           {keyed("n", `"resultSectionNeeded":"True"`), with(func(f *integration.Fields) { f.ResultSectionNeeded = true })},
		"log name":                   {keyed("n", `"customLogName":"Aa_9"`), with(func(f *integration.Fields) { f.CustomLogName = "Aa_9" })},
		"log name of 100":            {keyed("n", member("customLogName", strings.Repeat("x", 100))), with(func(f *integration.Fields) { f.CustomLogName = strings.Repeat("x", 100) })},
		"name of 50":                 {keyed(strings.Repeat("ü", 50)), with(func(f *integration.Fields) { f.Name = strings.Repeat("ü", 50) })},
		"name with blanks around it": {keyed(" n "), base},
		"tags":                       {keyed("n", `"tags":["Servers", 90001]`), with(func(f *integration.Fields) { f.Tags = []string{"Servers", "90001"} })},
		"severities":                 {keyed("n", `"severities":[5,1,5]`), with(func(f *integration.Fields) { f.Severities = []int{1, 5} })},
		"statuses":                   {keyed("n", `"statuses":["new","Re-Opened"]`), with(func(f *integration.Fields) { f.Statuses = []string{"New", "Re-Opened"} })},
		"schedule":                   {keyed("n", `"schedule":"0 0 6 * * *"`), with(func(f *integration.Fields) { f.Schedule = "0 0 6 * * *" })},
		"a workspace of another cloud": {keyed("n", member("logAnalyticsUri", "https://"+workspace+".ods.opinsights.azure.us")), with(func(f *integration.Fields) {
			f.LogAnalyticsURI = "https://" + workspace + ".ods.opinsights.azure.us"
		})},
		"a rule": {ruled("n"), with(func(f *integration.Fields) {
			f.WorkspaceID, f.LogAnalyticsURI, f.DCRImmutableID, f.CustomLogName = "", endpoint, rule, "QualysHostDetectionV2"
		})},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			i := w.add(t, c.doc)
			if got, want := fmt.Sprintf("%+v", i.Fields), fmt.Sprintf("%+v", c.want); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			again, err := w.Get(context.Background(), i.ID)
			if err != nil || fmt.Sprintf("%+v", again) != fmt.Sprintf("%+v", i) {
				t.Errorf("read again: %+v, %v", again, err)
			}
		})
	}
}

// Every rule of the contract: what is refused, and how.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		doc  string
		want []string
	}{
		"no JSON":                  {`name=x`, []string{"the body is no JSON object"}},
		"nothing":                  {``, []string{"the body is no JSON object"}},
		"a list":                   {`[]`, []string{"the body is no JSON object"}},
		"half an object":           {`{"name":"x"`, []string{"the body is no JSON object"}},
		"two objects":              {`{}{}`, []string{"something follows"}},
		"no UTF-8":                 {"{\"name\":\"\xff\"}", []string{"not in UTF-8"}},
		"too long":                 {`{"name":"` + strings.Repeat("x", 70000) + `"}`, []string{"at most 65536 bytes"}},
		"empty object":             {`{}`, []string{"name: it is missing", "workspaceId: it is missing", "primaryKey: it is missing"}},
		"name of 51":               {string(keyed(strings.Repeat("x", 51))), []string{"name: it has 51 characters: at most 50"}},
		"empty name":               {string(keyed("")), []string{"name: it is empty"}},
		"name with a line break":   {string(keyed("a\nb")), []string{"name: it holds a character that is not to be seen"}},
		"name that is no text":     {`{"name":7}`, []string{"name: it must be a text"}},
		"name that is null":        {`{"name":null}`, []string{"name: it must be a text"}},
		"workspace":                {`{"workspaceId":"abc"}`, []string{"workspaceId: it is no workspace id. Accepted: a GUID"}},
		"key":                      {`{"primaryKey":"not base64!"}`, []string{"primaryKey: it is no key"}},
		"empty key":                {`{"primaryKey":""}`, []string{"primaryKey: it is no key"}},
		"category":                 {string(keyed("n", `"baseCategory":"All"`)), []string{`baseCategory: "All" is no category. Accepted: Confirmed`}},
		"severity 0":               {string(keyed("n", `"minSeverity":0`)), []string{"minSeverity: 0 is no severity. Accepted: 1 to 5"}},
		"severity 6":               {string(keyed("n", `"minSeverity":6`)), []string{"minSeverity: 6 is no severity"}},
		"severity 3.5":             {string(keyed("n", `"minSeverity":3.5`)), []string{"minSeverity: 3.5 is no severity"}},
		"severity of words":        {string(keyed("n", `"minSeverity":"high"`)), []string{`minSeverity: "high" is no severity`}},
		"log name with a dash":     {string(keyed("n", `"customLogName":"a-b"`)), []string{`customLogName: "a-b" is no name of a log. Accepted: 1 to 100 letters, digits and underscores`}},
		"log name of 101":          {string(keyed("n", member("customLogName", strings.Repeat("x", 101)))), []string{"customLogName:"}},
		"empty log name":           {string(keyed("n", `"customLogName":""`)), []string{"customLogName:"}},
		"results":                  {string(keyed("n", `"resultSectionNeeded":"yes"`)), []string{`resultSectionNeeded: "yes" is neither true nor false`}},
		"API version":              {string(keyed("n", `"apiVersion":"2020-01-01"`)), []string{"apiVersion:", "Accepted: 2016-04-01"}},
		"unknown field":            {string(keyed("n", `"minSevrity":4`)), []string{"minSevrity: there is no such field. Accepted: workspaceId, primaryKey, name"}},
		"twice":                    {string(keyed("n", `"name":"m"`)), []string{"name: it is there twice"}},
		"tags that are a text":     {string(keyed("n", `"tags":"Servers"`)), []string{"tags: it is no list"}},
		"an empty tag":             {string(keyed("n", `"tags":[" "]`)), []string{"tags:"}},
		"severities out of range":  {string(keyed("n", `"severities":[3,6]`)), []string{"severities: [3,6] is no list of severities"}},
		"both severities":          {string(keyed("n", `"severities":[3],"minSeverity":3`)), []string{"severities: it takes the place of minSeverity"}},
		"statuses":                 {string(keyed("n", `"statuses":["Open"]`)), []string{"statuses:", "New, Active, Re-Opened, Fixed"}},
		"schedule of five":         {string(keyed("n", `"schedule":"0 6 * * *"`)), []string{"schedule:", "six fields"}},
		"schedule with a zone":     {string(keyed("n", `"schedule":"TZ=UTC 0 6 * * *"`)), []string{"schedule:"}},
		"schedule that never is":   {string(keyed("n", `"schedule":"0 0 6 31 2 *"`)), []string{"never comes"}},
		"a rule and a key":         {string(keyed("n", member("logAnalyticsUri", endpoint), member("dcrImmutableId", rule))), []string{"dcrImmutableId: with a data collection rule no key is used"}},
		"a rule without address":   {string(body(member("name", "n"), member("dcrImmutableId", rule))), []string{"logAnalyticsUri: it is missing"}},
		"a rule, wrong address":    {string(body(member("name", "n"), member("dcrImmutableId", rule), member("logAnalyticsUri", "https://"+workspace+".ods.opinsights.azure.com"))), []string{"logAnalyticsUri: it is an address of the HTTP Data Collector API"}},
		"an address without rule":  {string(keyed("n", member("logAnalyticsUri", endpoint))), []string{"dcrImmutableId: it is missing"}},
		"an address of others":     {string(keyed("n", member("logAnalyticsUri", "https://example.com"))), []string{"is no address of Log Analytics"}},
		"an address not encrypted": {string(keyed("n", member("logAnalyticsUri", "http://"+workspace+".ods.opinsights.azure.com"))), []string{"is not encrypted"}},
		"no rule's id":             {string(body(member("name", "n"), member("dcrImmutableId", "dcr-1"), member("logAnalyticsUri", endpoint))), []string{"dcrImmutableId: it is no immutable id"}},
		"all at once":              {`{"minSeverity":9,"baseCategory":1,"x":2}`, []string{"minSeverity:", "baseCategory:", "x: there is no such field"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			change, err := integration.Parse([]byte(c.doc))
			if err == nil {
				_, err = w.Add(context.Background(), change)
			}
			var invalid *integration.InvalidError
			if !errors.As(err, &invalid) {
				t.Fatalf("%v", err)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\nwant %s", err, want)
				}
			}
			if strings.Contains(err.Error(), key) || strings.Contains(err.Error(), "not base64") {
				t.Errorf("the key is in %v", err)
			}
			if list, err := w.List(context.Background()); err != nil || len(list) != 0 || len(w.vault.keys) != 0 {
				t.Errorf("%v, %v, %v", list, err, w.vault.keys)
			}
		})
	}
}

// Ids are small, ascend, and never come again; names are unique.
func TestIDs(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	for n := int64(1); n <= 3; n++ {
		if i := w.add(t, keyed(fmt.Sprint("n", n))); i.ID != n {
			t.Fatalf("id %d, not %d", i.ID, n)
		}
	}
	change, err := integration.Parse(keyed("N2"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Add(ctx, change); err == nil || !strings.Contains(err.Error(), "name: integration 2 has it already") {
		t.Errorf("%v", err)
	}
	if err := w.Delete(ctx, 3); err != nil {
		t.Fatal(err)
	}
	if err := w.Delete(ctx, 3); !errors.Is(err, integration.ErrNotFound) {
		t.Errorf("%v", err)
	}
	if i := w.add(t, keyed("n3")); i.ID != 4 {
		t.Errorf("id %d: one that was used", i.ID)
	}
	// Without the document of ids those in use are not used again.
	if err := os.Remove(filepath.Join(w.dir, "integrations", "ids.json")); err != nil {
		t.Fatal(err)
	}
	if i := w.add(t, keyed("n5")); i.ID != 5 {
		t.Errorf("id %d", i.ID)
	}
	list, err := w.List(ctx)
	if err != nil || len(list) != 4 || !slices.IsSortedFunc(list, func(a, b *integration.Integration) int { return int(a.ID - b.ID) }) {
		t.Errorf("%v, %v", list, err)
	}
	if rename, err := integration.Parse([]byte(`{"name":"n1"}`)); err != nil {
		t.Fatal(err)
	} else if _, err := w.Update(ctx, 4, rename); err == nil || !strings.Contains(err.Error(), "integration 1 has it already") {
		t.Errorf("%v", err)
	}
}

// Only what is named changes; a key moves to the vault, and the old one out of it.
func TestUpdate(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	i := w.add(t, keyed("n", `"severities":[4,5]`, `"tags":["Servers"]`, `"schedule":"0 0 6 * * *"`))
	update := func(doc string) *integration.Integration {
		t.Helper()
		c, err := integration.Parse([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		updated, err := w.Update(ctx, i.ID, c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := w.Get(ctx, i.ID)
		if err != nil || fmt.Sprint(again) != fmt.Sprint(updated) {
			t.Fatalf("%v, %v", again, err)
		}
		return updated
	}
	if u := update(`{"minSeverity":2}`); u.MinSeverity != 2 || len(u.Severities) != 0 || u.Name != "n" || len(u.Tags) != 1 || u.Generation != 0 || u.Destination() != "integration-1" {
		t.Errorf("%+v", u)
	}
	if u := update(`{"tags":[],"schedule":"","name":"m","baseCategory":"IG","resultSectionNeeded":true,"apiVersion":"2016-04-01"}`); len(u.Tags) != 0 || u.Schedule != "" || u.Name != "m" || !slices.Equal(u.Selection().Types, []string{"Confirmed", "Potential", "Info"}) || !slices.Equal(u.Selection().Severities, []string{"2", "3", "4", "5"}) {
		t.Errorf("%+v", u)
	}
	before := i.KeySecret
	u := update(`{"primaryKey":"` + otherKey + `"}`)
	if got, err := w.Key(ctx, u); err != nil || got != otherKey || u.KeySecret == before || len(w.vault.keys) != 1 {
		t.Errorf("%s, %v, %v", got, err, w.vault.keys)
	}
	// Another place has had nothing yet: it has a checkpoint of its own.
	if u := update(`{"customLogName":"Other"}`); u.Generation != 1 || u.Destination() != "integration-1-1" {
		t.Errorf("%+v", u)
	}
	// A rule in place of the key, and the other way round.
	u = update(`{"logAnalyticsUri":"` + endpoint + `","dcrImmutableId":"` + rule + `"}`)
	if !u.ByRule() || u.KeySecret != "" || len(w.vault.keys) != 0 {
		t.Errorf("%+v, %v", u, w.vault.keys)
	}
	u = update(`{"primaryKey":"` + key + `"}`)
	if u.ByRule() || u.LogAnalyticsURI != "" || len(w.vault.keys) != 1 {
		t.Errorf("%+v, %v", u, w.vault.keys)
	}
	if _, err := w.Update(ctx, 99, &integration.Change{}); !errors.Is(err, integration.ErrNotFound) {
		t.Errorf("%v", err)
	}
	if err := w.Delete(ctx, i.ID); err != nil || len(w.vault.keys) != 0 {
		t.Errorf("%v, %v", err, w.vault.keys)
	}
}

// Without a vault, or with one that refuses, there is no integration, and a word.
func TestNoVault(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		keys integration.Keys
		want string
	}{
		"none":    {nil, "set integrationVault"},
		"refuses": {&vault{err: errors.New("the vault refuses access")}, "keep the workspace's key: the vault refuses access"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.Keys = c.keys
			change, err := integration.Parse(keyed("n"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Add(ctx, change); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
			if list, err := w.List(ctx); err != nil || len(list) != 0 {
				t.Errorf("%v, %v", list, err)
			}
			w.add(t, ruled("by rule"))
		})
	}
}

// Many who change at once get ids and names of their own, or are told to try again.
func TestAtOnce(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	ids := map[int64]bool{}
	var wg sync.WaitGroup
	for n := range 20 {
		wg.Go(func() {
			change, err := integration.Parse(keyed(fmt.Sprint("n", n/2)))
			if err != nil {
				t.Error(err)
				return
			}
			i, err := w.Add(context.Background(), change)
			mu.Lock()
			defer mu.Unlock()
			var invalid *integration.InvalidError
			switch {
			case errors.Is(err, integration.ErrBusy), errors.As(err, &invalid):
			case err != nil:
				t.Error(err)
			case ids[i.ID]:
				t.Errorf("id %d twice", i.ID)
			default:
				ids[i.ID] = true
			}
		})
	}
	wg.Wait()
	list, err := w.List(context.Background())
	names := map[string]bool{}
	for _, i := range list {
		names[i.Name] = true
	}
	if err != nil || len(list) != len(ids) || len(names) != len(list) || len(list) == 0 {
		t.Errorf("%d listed, %d added, %d names, %v", len(list), len(ids), len(names), err)
	}
}

// What people have written into a document is told, and keeps nobody else from theirs.
func TestDamagedDocuments(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	w.add(t, keyed("good"))
	good, err := os.ReadFile(filepath.Join(w.dir, "integrations", "1.json"))
	if err != nil {
		t.Fatal(err)
	}
	for name, doc := range map[string]string{
		"no JSON":        "{",
		"version":        strings.Replace(string(good), `"version": 1`, `"version": 2`, 1),
		"severity":       strings.Replace(string(good), `"minSeverity": 3`, `"minSeverity": 7`, 1),
		"category":       strings.Replace(string(good), `"Confirmed"`, `"Confirmed?"`, 1),
		"of another id":  string(good),
		"without a key":  strings.Replace(string(good), `"keySecret"`, `"keySecrets"`, 1),
		"without a name": strings.Replace(string(good), `"good"`, `""`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(w.dir, "integrations", "2.json"), []byte(doc), 0o600); err != nil {
				t.Fatal(err)
			}
			list, err := w.List(ctx)
			if err == nil || !strings.Contains(err.Error(), "integrations/2.json") || len(list) != 1 || list[0].Name != "good" {
				t.Errorf("%v, %v", list, err)
			}
		})
	}
	for _, other := range []string{"notes.txt", "03x.json", "-1.json", "sub/4.json"} {
		path := filepath.Join(w.dir, "integrations", other)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(w.dir, "integrations", "2.json")); err != nil {
		t.Fatal(err)
	}
	if list, err := w.List(ctx); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "integrations", "ids.json"), []byte(`{"next":0}`), 0o600); err != nil {
		t.Fatal(err)
	}
	change, err := integration.Parse(keyed("n"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Add(ctx, change); err == nil || !strings.Contains(err.Error(), "integrations/ids.json is damaged") {
		t.Errorf("%v", err)
	}
}

func TestDue(t *testing.T) {
	at := func(text string) time.Time {
		v, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, c := range []struct {
		schedule, last, now string
		due                 bool
	}{
		{"", "2026-11-23T06:00:00Z", "2026-11-23T06:00:01Z", true},
		{"0 0 6 * * *", "2026-11-23T06:00:02Z", "2026-11-23T23:00:00Z", false},
		{"0 0 6 * * *", "2026-11-23T06:00:02Z", "2026-11-24T05:59:59Z", false},
		{"0 0 6 * * *", "2026-11-23T06:00:02Z", "2026-11-24T06:00:00Z", true},
		{"0 0 6 * * *", "2026-11-20T06:00:02Z", "2026-11-24T02:00:00Z", true}, // missed
		{"0 */15 * * * *", "2026-11-23T06:00:02Z", "2026-11-23T06:10:00Z", false},
		{"0 */15 * * * *", "2026-11-23T06:00:02Z", "2026-11-23T06:15:00Z", true},
		{"0 0 6 * * Mon", "2026-11-23T06:00:02Z", "2026-11-29T06:15:00Z", false},
		{"0 0 6 * * 1", "2026-11-23T06:00:02Z", "2026-11-30T06:15:00Z", true},
	} {
		i := integration.Integration{Fields: integration.Fields{Schedule: c.schedule}}
		if due := i.Due(at(c.last), at(c.now)); due != c.due {
			t.Errorf("%q after %s at %s: %t", c.schedule, c.last, c.now, due)
		}
	}
	if i := (integration.Integration{Fields: integration.Fields{Schedule: "0 0 6 * * *"}}); !i.Due(time.Time{}, at("2026-11-23T01:00:00Z")) {
		t.Error("the first run waits for the schedule")
	}
}

// No key in the state, in what is printed, or in a log.
func TestNoKeyLeaves(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	i := w.add(t, keyed("n"))
	w.vault.err = errors.New("down")
	if err := w.Delete(ctx, i.ID); err != nil {
		t.Fatal(err)
	}
	texts := []string{i.String(), fmt.Sprintf("%+v", i)}
	for _, l := range w.logs.All() {
		texts = append(texts, fmt.Sprintf("%+v", l))
	}
	w.vault.err = nil
	w.add(t, keyed("n"))
	err := filepath.WalkDir(w.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		doc, err := os.ReadFile(path)
		texts = append(texts, string(doc))
		return err
	})
	if err != nil || len(texts) < 5 {
		t.Fatal(err, len(texts))
	}
	for _, text := range texts {
		if strings.Contains(text, key) {
			t.Errorf("the key is in %s", text)
		}
	}
	if w.logs.FilterMessageSnippet("a key is left in the vault").Len() != 1 {
		t.Errorf("%v", w.logs.All())
	}
}

func TestString(t *testing.T) {
	w := newWorld(t)
	i := w.add(t, keyed("Sample Integration", `"baseCategory":"IG"`, `"customLogName":"Test"`, `"resultSectionNeeded":true`))
	const want = "{integrationId=1, name='Sample Integration', customerId=0, customerUUID='00000000-0000-0000-0000-000000000000', workspaceId='" + workspace + "', minSeverity=3, baseCategory=IG, customLogName='Test', apiVersion='2016-04-01', resultSectionNeeded=true}"
	if i.String() != want {
		t.Errorf("got  %s\nwant %s", i, want)
	}
	i = w.add(t, ruled("r", `"severities":[4,5]`, `"tags":["a","b"]`, `"statuses":["New"]`, `"schedule":"0 0 6 * * *"`))
	if !strings.HasSuffix(i.String(), "resultSectionNeeded=false, logAnalyticsUri='"+endpoint+"', dcrImmutableId='"+rule+"', tags='a,b', severities='4,5', statuses='New', schedule='0 0 6 * * *'}") {
		t.Errorf("got %s", i)
	}
}

// Whatever is sent, it is taken or refused with a reason, and what is taken can be
// read again.
func FuzzParse(f *testing.F) {
	f.Add(keyed("n"))
	f.Add(ruled("n", `"severities":[4,5]`, `"tags":["a",1]`, `"statuses":["New"]`, `"schedule":"0 0 6 * * *"`))
	f.Add([]byte(`{"minSeverity":"5","resultSectionNeeded":"true"}`))
	f.Add([]byte(`{"name":null}`))
	dir := f.TempDir()
	store := folder.New(dir)
	f.Fuzz(func(t *testing.T, doc []byte) {
		change, err := integration.Parse(doc)
		var invalid *integration.InvalidError
		if err != nil && (!errors.As(err, &invalid) || len(invalid.Faults) == 0 || len(err.Error()) > 30_000) {
			t.Fatalf("%v", err)
		}
		if err != nil {
			return
		}
		r := &integration.Registry{Store: store, Keys: &vault{keys: map[string]string{}}, Clock: clock{}, Log: zap.NewNop()}
		i, err := r.Add(context.Background(), change)
		if err != nil {
			if !errors.As(err, &invalid) {
				t.Fatal(err)
			}
			return
		}
		again, err := r.Get(context.Background(), i.ID)
		if err != nil || again.String() != i.String() {
			t.Fatalf("%v, %v: %s", again, err, i)
		}
		if err := r.Delete(context.Background(), i.ID); err != nil {
			t.Fatal(err)
		}
	})
}
