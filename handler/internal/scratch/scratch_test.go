package scratch_test

import (
	"os"
	"testing"

	"qualys-sentinel/handler/internal/scratch"
)

func TestFileLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	f, err := scratch.New()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("text"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := f.ReadAt(got, 0); err != nil || string(got) != "text" {
		t.Errorf("%q, %v", got, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestNoPlace(t *testing.T) {
	t.Setenv("TMPDIR", "/nonexistent/folder")
	if _, err := scratch.New(); err == nil {
		t.Error("no error")
	}
}
