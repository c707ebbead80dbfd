// Package scratch makes temporary files that go with the process.
//
// It guarantees that a file is gone when it is closed or the process ends,
// however that ends. What the files hold does not enter here.
package scratch

import (
	"errors"
	"fmt"
	"os"
	"runtime"
)

// A File is a temporary file without a name.
type File struct{ *os.File }

// New makes an empty file.
func New() (File, error) {
	f, err := os.CreateTemp("", "qualys-sentinel-*")
	if err != nil {
		return File{}, fmt.Errorf("make a temporary file: %w", err)
	}
	if !removable {
		return File{f}, nil
	}
	if err := os.Remove(f.Name()); err != nil {
		return File{}, errors.Join(fmt.Errorf("make a temporary file: %w", err), f.Close())
	}
	return File{f}, nil
}

// removable tells that an open file can lose its name. Elsewhere it is removed
// when it is closed, and a killed process leaves it behind.
const removable = runtime.GOOS != "windows"

// Close closes the file, which is gone then.
func (f File) Close() error {
	err := f.File.Close()
	if !removable {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}
