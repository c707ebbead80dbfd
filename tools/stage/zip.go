package main

import (
	"archive/zip"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// epoch is the time of every file in the zip: equal input, equal bytes.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// executable are the files that may be started: the zip says so whatever the
// file system does.
var executable = []string{binary, "run.sh"}

func zipFolder(path, dir string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("create the zip: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	z := zip.NewWriter(f)
	z.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) { return flate.NewWriter(w, flate.BestCompression) })
	var files []string
	walk := func(file string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, file)
		}
		return err
	}
	if err := filepath.WalkDir(dir, walk); err != nil {
		return fmt.Errorf("list the app: %w", err)
	}
	slices.Sort(files)
	for _, file := range files {
		if err := addFile(z, dir, file); err != nil {
			return err
		}
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("write the zip: %w", err)
	}
	return nil
}

func addFile(z *zip.Writer, dir, file string) error {
	name, err := filepath.Rel(dir, file)
	if err != nil {
		return fmt.Errorf("zip: %w", err)
	}
	h := &zip.FileHeader{Name: filepath.ToSlash(name), Method: zip.Deflate, Modified: epoch}
	h.SetMode(0o644)
	if slices.Contains(executable, name) {
		h.SetMode(0o755)
	}
	w, err := z.CreateHeader(h)
	if err != nil {
		return fmt.Errorf("zip %s: %w", name, err)
	}
	doc, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("zip: %w", err)
	}
	if _, err := w.Write(doc); err != nil {
		return fmt.Errorf("zip %s: %w", name, err)
	}
	return nil
}
