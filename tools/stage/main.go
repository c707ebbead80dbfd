// Command stage builds the function app: a folder as the Functions host wants
// it, and for each architecture the same as a zip, with its bill of materials
// and the checksums of all.
//
// The host looks for <function>/function.json directly under the app root, so
// the folders of functions/ move one level up. Equal sources give equal bytes.
package main

import (
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// binary is what run.sh starts.
const binary = "qualys-sentinel"

func main() {
	arch := flag.String("arch", "amd64", "architectures, by comma: amd64 and arm64; the folder is of the first")
	out := flag.String("out", "dist", "folder for the app and its zips")
	version := flag.String("version", "dev", "version of the build")
	flag.Parse()
	if err := run(strings.Split(*arch, ","), *out, *version); err != nil {
		fmt.Fprintln(os.Stderr, "stage:", err)
		os.Exit(1)
	}
}

func run(archs []string, out, version string) error {
	for _, arch := range archs {
		if arch != "amd64" && arch != "arm64" {
			return fmt.Errorf("no architecture %q: amd64 or arm64", arch)
		}
	}
	app := filepath.Join(out, "app")
	var made []string
	// The first is the last: its folder stays.
	for _, arch := range slices.Backward(archs) {
		if err := stage(app, arch, version); err != nil {
			return err
		}
		name := filepath.Join(out, binary+"-linux-"+arch)
		if err := zipFolder(name+".zip", app); err != nil {
			return err
		}
		if err := writeBill(name+".cdx.json", filepath.Join(app, binary), arch, version); err != nil {
			return err
		}
		made = append(made, name+".zip", name+".cdx.json")
	}
	sums := filepath.Join(out, "SHA256SUMS")
	if err := writeSums(sums, made); err != nil {
		return err
	}
	fmt.Printf("%s  the app's folder, for linux/%s\n", app, archs[0])
	for _, file := range made {
		info, err := os.Stat(file)
		if err != nil {
			return fmt.Errorf("look at what was made: %w", err)
		}
		fmt.Printf("%s  %.1f MB\n", file, float64(info.Size())/1e6)
	}
	fmt.Println(sums)
	return nil
}

// stage makes the app's folder anew.
func stage(app, arch, version string) error {
	if err := os.RemoveAll(app); err != nil {
		return fmt.Errorf("empty the app folder: %w", err)
	}
	if err := os.MkdirAll(app, 0o755); err != nil {
		return fmt.Errorf("make the app folder: %w", err)
	}
	files := map[string]string{"host.json": "host.json", "LICENSE": "LICENSE", "functions/run.sh": "run.sh"}
	functions, err := filepath.Glob("functions/*/function.json")
	if err != nil || len(functions) == 0 {
		return errors.New("there are no functions here: run it in the repository")
	}
	for _, f := range functions {
		files[f] = filepath.Join(filepath.Base(filepath.Dir(f)), "function.json")
	}
	for from, to := range files {
		if err := copyFile(from, filepath.Join(app, to)); err != nil {
			return err
		}
	}
	// Nothing of this machine or checkout but the version goes into the binary.
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-mod=readonly",
		"-ldflags", "-s -w -buildid= -X main.version="+version, "-o", filepath.Join(app, binary), "./handler")
	build.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0", "GOFLAGS=", "GOAMD64=v1", "GOARM64=v8.0", "GOEXPERIMENT=")
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build the handler: %w", err)
	}
	return nil
}

func copyFile(from, to string) error {
	doc, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	if err := os.WriteFile(to, doc, 0o644); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	return nil
}

// writeSums writes checksums as sha256sum -c reads them.
func writeSums(path string, files []string) error {
	files = slices.Sorted(slices.Values(files))
	var b strings.Builder
	for _, file := range files {
		sum, err := sha256Of(file)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%x  %s\n", sum, filepath.Base(file))
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("write checksums: %w", err)
	}
	return nil
}

func sha256Of(file string) (sum []byte, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("add up: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, fmt.Errorf("add up %s: %w", file, err)
	}
	return h.Sum(nil), nil
}
