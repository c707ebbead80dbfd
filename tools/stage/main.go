// Command stage builds the function app: a folder as the Functions host wants
// it, and the same as a zip.
//
// The host looks for <function>/function.json directly under the app root, so
// the folders of functions/ move one level up. The zip carries the binary's
// executable bit, which file systems and some deployment tools lose.
package main

import (
	"archive/zip"
	"compress/flate"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// binary is defaultExecutablePath of host.json.
const binary = "qualys-sentinel"

// epoch is the time of every file in the zip: equal input, equal bytes.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func main() {
	arch := flag.String("arch", "amd64", "architecture of the app: amd64 or arm64")
	out := flag.String("out", "dist", "folder for the app and its zip")
	version := flag.String("version", "dev", "version of the build")
	flag.Parse()
	if err := run(*arch, *out, *version); err != nil {
		fmt.Fprintln(os.Stderr, "stage:", err)
		os.Exit(1)
	}
}

func run(arch, out, version string) error {
	app := filepath.Join(out, "app")
	if err := os.RemoveAll(app); err != nil {
		return fmt.Errorf("empty the app folder: %w", err)
	}
	if err := os.MkdirAll(app, 0o755); err != nil {
		return fmt.Errorf("make the app folder: %w", err)
	}
	if err := copyFile("host.json", filepath.Join(app, "host.json")); err != nil {
		return err
	}
	if err := os.CopyFS(app, os.DirFS("functions")); err != nil {
		return fmt.Errorf("copy functions: %w", err)
	}
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version="+version, "-o", filepath.Join(app, binary), "./handler")
	build.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0")
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build the handler: %w", err)
	}
	path := filepath.Join(out, binary+"-linux-"+arch+".zip")
	if err := zipFolder(path, app); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("look at the zip: %w", err)
	}
	fmt.Printf("%s  the app's folder\n%s  the same as a zip, %.1f MB\n", app, path, float64(info.Size())/1e6)
	return nil
}

func copyFile(from, to string) error {
	doc, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	if err := os.WriteFile(to, doc, 0o644); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	return nil
}

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
	if name == binary {
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
