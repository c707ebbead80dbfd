package integration_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/integration"
)

// faulty is a store whose holds go wrong.
type faulty struct {
	checkpoint.Store
	// beforeSave, afterSave and afterRelease decide about a document: an error is the
	// result, behind afterSave and afterRelease although it is done.
	beforeSave, afterSave, afterRelease func(name string) error
}

type faultyLease struct {
	checkpoint.Lease
	s    *faulty
	name string
}

func (s *faulty) Acquire(ctx context.Context, name string) (checkpoint.Lease, error) {
	l, err := s.Store.Acquire(ctx, name)
	return &faultyLease{l, s, name}, err
}

func call(f func(string) error, name string) error {
	if f == nil {
		return nil
	}
	return f(name)
}

func (l *faultyLease) Save(ctx context.Context, doc []byte) error {
	if err := call(l.s.beforeSave, l.name); err != nil {
		return err
	}
	if err := l.Lease.Save(ctx, doc); err != nil {
		return err
	}
	return call(l.s.afterSave, l.name)
}

func (l *faultyLease) Release(ctx context.Context) error {
	return errors.Join(l.Lease.Release(ctx), call(l.s.afterRelease, l.name))
}

// fails is an error for a document of an integration.
func fails(name string) error {
	if strings.HasSuffix(name, "/1.json") {
		return errors.New("answered 503")
	}
	return nil
}

func (w *world) change(t *testing.T, doc string) *integration.Change {
	t.Helper()
	c, err := integration.Parse([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What was saved is saved, whatever its end says; what was not leaves no key behind.
func TestUncertainSaves(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		spoil       func(s *faulty)
		added, keys int
		err         string
	}{
		"the release fails":          {func(s *faulty) { s.afterRelease = fails }, 1, 1, ""},
		"the save fails":             {func(s *faulty) { s.beforeSave = fails }, 0, 0, "answered 503"},
		"the answer is lost":         {func(s *faulty) { s.afterSave = fails }, 1, 1, ""},
		"the hold is lost on the id": {func(s *faulty) { s.beforeSave = func(string) error { return checkpoint.ErrLost } }, 0, 0, "try again"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s := &faulty{Store: w.Store}
			w.Store = s
			c.spoil(s)
			_, err := w.Add(ctx, w.change(t, string(keyed("n"))))
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%v", err)
			}
			list, err := w.List(ctx)
			if err != nil || len(list) != c.added || len(w.vault.keys) != c.keys {
				t.Errorf("%v, %v, %d keys", list, err, len(w.vault.keys))
			}
			for _, i := range list {
				if _, err := w.Key(ctx, i); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// Of two who change a document at the same time one is told so: nothing is overwritten
// unread, and nothing deleted comes back.
func TestChangedUnderOurHands(t *testing.T) {
	ctx := context.Background()
	for name, other := range map[string]func(path string) error{
		"written": func(path string) error {
			doc, err := os.ReadFile(path)
			return errors.Join(err, os.WriteFile(path, []byte(strings.Replace(string(doc), `"minSeverity": 3`, `"minSeverity": 5`, 1)), 0o600))
		},
		"deleted": os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.add(t, keyed("n"))
			path := filepath.Join(w.dir, "integrations", "1.json")
			s := &faulty{Store: w.Store, beforeSave: func(name string) error {
				if strings.HasSuffix(name, "ids.json") { // behind the reading, before the writing
					return other(path)
				}
				return nil
			}}
			w.Store = s
			if _, err := w.Update(ctx, 1, w.change(t, `{"name":"mine"}`)); !errors.Is(err, integration.ErrBusy) {
				t.Errorf("%v", err)
			}
			i, err := w.Get(ctx, 1)
			if name == "deleted" && !errors.Is(err, integration.ErrNotFound) || name == "written" && (err != nil || i.MinSeverity != 5 || i.Name != "n") {
				t.Errorf("%v, %v", i, err)
			}
		})
	}
}

// Ids are used once, even where the document that counts them is lost, and none is
// used for what is refused.
func TestIDsAreNotWasted(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	keys := w.Keys
	w.Keys = nil
	for range 3 {
		if _, err := w.Add(ctx, w.change(t, string(keyed("n")))); !errors.Is(err, integration.ErrNoVault) {
			t.Fatal(err)
		}
	}
	w.Keys = keys
	if i := w.add(t, keyed("n")); i.ID != 1 {
		t.Errorf("id %d", i.ID)
	}
	for _, left := range []string{"checkpoints/integration-8/vm.json", "checkpoints/integration-9-2/vm.json"} {
		path := filepath.Join(w.dir, left)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600), os.RemoveAll(filepath.Join(w.dir, "integrations", "ids.json"))); err != nil {
			t.Fatal(err)
		}
	}
	if i := w.add(t, keyed("m")); i.ID != 10 {
		t.Errorf("id %d", i.ID)
	}
	for _, text := range []string{"01", "+1", "1 ", "", "x", "0", "-1", "1.json", "99999999999999999999"} {
		if id, ok := integration.ParseID(text); ok {
			t.Errorf("%q is %d", text, id)
		}
	}
	for n := range integration.MaxIntegrations - 2 {
		w.add(t, ruled(fmt.Sprint("r", n)))
	}
	if _, err := w.Add(ctx, w.change(t, string(ruled("one more")))); err == nil || !strings.Contains(err.Error(), "more need another function app") {
		t.Errorf("%v", err)
	}
}

// What belongs together is changed together, and means one thing however it is written.
func TestDestinationOfAnUpdate(t *testing.T) {
	ctx := context.Background()
	const another = "99999999-2222-3333-4444-555555555555"
	w := newWorld(t)
	i := w.add(t, keyed("n", `"tags":["007","+5",42,"0042"]`))
	if !slices.Equal(i.Tags, []string{"007", "+5", "42", "0042"}) {
		t.Errorf("%v", i.Tags)
	}
	if _, err := w.Update(ctx, 1, w.change(t, `{"workspaceId":"`+another+`"}`)); err == nil || !strings.Contains(err.Error(), "another workspace has another key") {
		t.Errorf("%v", err)
	}
	if _, err := w.Update(ctx, 1, w.change(t, `{"logAnalyticsUri":"https://`+another+`.ods.opinsights.azure.us"}`)); err == nil || !strings.Contains(err.Error(), "another workspace than workspaceId") {
		t.Errorf("%v", err)
	}
	if u, err := w.Update(ctx, 1, w.change(t, `{"workspaceId":"`+another+`","primaryKey":"`+otherKey+`"}`)); err != nil || u.Generation != 1 {
		t.Errorf("%v, %v", u, err)
	}
	// To a rule, and back: the table is that of the kind.
	u, err := w.Update(ctx, 1, w.change(t, `{"logAnalyticsUri":"`+endpoint+`/?x=y","dcrImmutableId":"`+rule+`"}`))
	if err != nil || u.CustomLogName != integration.DefaultRuleLogName || u.LogAnalyticsURI != endpoint {
		t.Fatalf("%v, %v", u, err)
	}
	if again, err := w.Update(ctx, 1, w.change(t, `{"logAnalyticsUri":"`+strings.ToUpper(endpoint)+`/"}`)); err != nil || again.Generation != u.Generation {
		t.Errorf("%v, %v", again, err)
	}
	if u, err = w.Update(ctx, 1, w.change(t, `{"primaryKey":"`+key+`"}`)); err != nil || u.CustomLogName != integration.DefaultCustomLogName {
		t.Errorf("%v, %v", u, err)
	}
	if u, err = w.Update(ctx, 1, w.change(t, `{"customLogName":"Mine","logAnalyticsUri":"`+endpoint+`","dcrImmutableId":"`+rule+`"}`)); err != nil || u.CustomLogName != "Mine" {
		t.Errorf("%v, %v", u, err)
	}
	local := `{"name":"local","dcrImmutableId":"` + rule + `","logAnalyticsUri":"http://127.0.0.1:99"}`
	if _, err := w.Add(ctx, w.change(t, local)); err == nil || !strings.Contains(err.Error(), "this machine's own") {
		t.Errorf("%v", err)
	}
	w.Local = true
	if _, err := w.Add(ctx, w.change(t, local)); err != nil {
		t.Error(err)
	}
	if _, err := integration.Parse([]byte("\uFEFF" + local)); err != nil {
		t.Error(err)
	}
}

// A key that somebody has put into the wrong field is in no answer.
func TestKeyInTheWrongField(t *testing.T) {
	const long = key + key
	for _, field := range []string{"name", "workspaceId", "baseCategory", "customLogName", "minSeverity", "resultSectionNeeded", "apiVersion", "logAnalyticsUri", "dcrImmutableId", "tags", "severities", "statuses", "schedule", long} {
		for _, value := range []string{`"` + long + `"`, `["` + long + `"]`, `{"` + long + `":1}`} {
			_, err := integration.Parse([]byte(fmt.Sprintf(`{%q: %s}`, field, value)))
			if err != nil && strings.Contains(err.Error(), long[:40]) {
				t.Errorf("%s: %v", field, err)
			}
		}
	}
	w := newWorld(t)
	c := w.change(t, string(keyed("n")))
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d"} {
		if text := fmt.Sprintf(verb, c); strings.Contains(text, key) || text == "" {
			t.Errorf("%s", text)
		}
	}
	if i := w.add(t, keyed("O'Neill \\")); !strings.Contains(i.String(), `name='O\'Neill \\', `) {
		t.Errorf("%s", i)
	}
	for _, name := range []string{"\u200b", "a\u202eb", "a\u2028b"} {
		if _, err := integration.Parse([]byte(`{"name":"` + name + `"}`)); err == nil {
			t.Errorf("%q is taken", name)
		}
	}
}
