package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qualys-sentinel/e2e/canary"
)

func TestSearch(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := search(dir); err == nil {
		t.Error("nothing to search: no error")
	}
	file := filepath.Join(dir, "sub", "log")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("harmless")
	if files, _, err := search(dir); err != nil || files != 1 {
		t.Error(files, err)
	}
	for i, secret := range canary.Forms() {
		write("before " + secret + " after")
		if _, _, err := search(dir); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("planted secret %d: %v", i, err)
		}
	}
}
