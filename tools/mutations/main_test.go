package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each mutation changes one place of the program as it is.
func TestEachHasItsPlace(t *testing.T) {
	for _, m := range mutations {
		text, err := os.ReadFile(filepath.Join("..", "..", "handler", "internal", m.file))
		if err != nil {
			t.Errorf("%s: %v", m.name, err)
			continue
		}
		if n := strings.Count(string(text), m.old); n != 1 {
			t.Errorf("%s: what it changes stands %d times in %s", m.name, n, m.file)
		}
	}
}
