// Command leak searches everything that the tests have written, the tests' own
// output, the logs of the processes they started and the state these left, for
// the secrets that the tests use, in any form.
//
//	leak FOLDER
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"qualys-sentinel/e2e/canary"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: leak FOLDER")
		os.Exit(2)
	}
	files, size, err := search(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "leak:", err)
		os.Exit(1)
	}
	fmt.Printf("no secret in %d files, %d bytes, of test output\n", files, size)
}

// search reads every file below dir. Nothing to read is an error: it would
// prove nothing.
func search(dir string) (files int, size int64, err error) {
	var found error
	walk := func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		doc, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		size += int64(len(doc))
		for i, secret := range canary.Forms() {
			if at := bytes.Index(doc, []byte(secret)); at >= 0 {
				found = errors.Join(found, fmt.Errorf("%s: secret number %d of package canary, at byte %d", path, i, at))
			}
		}
		return nil
	}
	if err := filepath.WalkDir(dir, walk); err != nil {
		return 0, 0, fmt.Errorf("read the test output: %w", err)
	}
	if size == 0 && found == nil {
		return 0, 0, fmt.Errorf("%s holds no output to search", dir)
	}
	return files, size, found
}
