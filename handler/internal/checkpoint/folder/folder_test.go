package folder_test

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/checkpoint/checkpointtest"
	"qualys-sentinel/handler/internal/checkpoint/folder"
)

func TestFolder(t *testing.T) {
	dir := t.TempDir()
	checkpointtest.Run(t, func() checkpoint.Store { return folder.New(dir) })
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if !d.IsDir() {
			files++
		}
		if strings.Contains(d.Name(), ".tmp") {
			t.Errorf("a temporary file is left: %s", path)
		}
		return err
	})
	if err != nil || files == 0 {
		t.Errorf("%d files, %v", files, err)
	}
}

func TestNamesStayInTheFolder(t *testing.T) {
	s := folder.New(t.TempDir())
	for _, name := range []string{"../x", "/etc/x", "a/../../x", "", "."} {
		if _, err := s.Create(context.Background(), name); err == nil || !strings.Contains(err.Error(), "no name") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestFolderThatCannotBeMade(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := folder.New(file).Acquire(context.Background(), "a.json"); err == nil || !strings.Contains(err.Error(), "state folder") {
		t.Errorf("got %v", err)
	}
}
