package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is deployed is what is made of the sources.
func TestUpToDate(t *testing.T) {
	files, err := build("../..", "")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 4 {
		t.Errorf("%d files", len(files))
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s does not match its sources: make generate", name)
		}
	}
}

// A release deploys its own package, and says so in its template alone.
func TestRelease(t *testing.T) {
	latest, err := build("../..", "")
	if err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	if err := run("../..", "v1.2.3", out); err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(filepath.Join(out, "arm/azuredeploy.json"))
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(string(latest["arm/azuredeploy.json"]), "/releases/latest/download/", "/releases/download/v1.2.3/", 1)
	if string(doc) != want || want == string(latest["arm/azuredeploy.json"]) {
		t.Error("the template of a release differs by more, or less, than its package")
	}
}

func TestCompose(t *testing.T) {
	cases := map[string]struct {
		source string
		marks  map[string]any
		want   string
		fails  string
	}{
		"a value":           {`{"a":"@one"}`, map[string]any{"one": "x<y"}, "{\n  \"a\": \"x<y\"\n}\n", ""},
		"several in a list": {`[1,"@one"]`, map[string]any{"one": list{2, 3}}, "[\n  1,\n  2,\n  3\n]\n", ""},
		"a mark is missing": {`{}`, map[string]any{"one": 1}, "", `there is no "@one"`},
		"no JSON":           {`{"@one"`, map[string]any{"one": 1}, "", "it is no JSON"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := compose([]byte(c.source), c.marks)
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("%v, want %s", err, c.fails)
				}
				return
			}
			if err != nil || string(got) != c.want {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}
