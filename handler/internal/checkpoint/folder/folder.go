// Package folder keeps state in a local folder, for the command line, the demo
// and tests. The operating system frees a lock when its process ends, so a
// killed run never blocks the next. Network folders are not supported.
package folder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"qualys-sentinel/handler/internal/checkpoint"
)

// Store is a folder.
type Store struct {
	dir string
}

var _ checkpoint.Store = (*Store)(nil)

// New returns a store in dir, which is made where needed.
func New(dir string) *Store { return &Store{dir: dir} }

// path maps a name into the folder.
func (s *Store) path(name string) (string, error) {
	if !fs.ValidPath(name) || name == "." {
		return "", fmt.Errorf("%q is no name of a state document", name)
	}
	return filepath.Join(s.dir, filepath.FromSlash(name)), nil
}

// place is a path whose folders are made.
func (s *Store) place(name string) (string, error) {
	path, err := s.path(name)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fmt.Errorf("make the state folder: %w", err)
	}
	return path, nil
}

// Acquire implements checkpoint.Store.
func (s *Store) Acquire(ctx context.Context, name string) (checkpoint.Lease, error) {
	path, err := s.place(name)
	if err != nil {
		return nil, err
	}
	lock := flock.New(path + lockSuffix)
	// Somebody may just be looking whether it is held.
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	ok, err := lock.TryLockContext(ctx, lookTime/10)
	if err != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if !ok {
		return nil, checkpoint.ErrHeld
	}
	return &lease{path: path, lock: lock, lost: make(chan struct{})}, nil
}

// lookTime is far longer than a look at a lock takes.
const lookTime = 100 * time.Millisecond

// Held implements checkpoint.Store.
func (s *Store) Held(_ context.Context, name string) (bool, error) {
	path, err := s.path(name)
	if err != nil {
		return false, err
	}
	if _, err := os.Stat(path + lockSuffix); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	lock := flock.New(path + lockSuffix)
	free, err := lock.TryRLock()
	if err != nil {
		return false, fmt.Errorf("look at the lock of %s: %w", path, err)
	}
	if !free {
		return true, nil
	}
	if err := lock.Unlock(); err != nil {
		return false, fmt.Errorf("unlock: %w", err)
	}
	return false, nil
}

// Create implements checkpoint.Store.
func (s *Store) Create(ctx context.Context, name string) (io.WriteCloser, error) {
	path, err := s.place(name)
	if err != nil {
		return nil, err
	}
	return create(ctx, path)
}

// Open implements checkpoint.Store.
func (s *Store) Open(_ context.Context, name string) (io.ReadCloser, error) {
	path, err := s.path(name)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	return f, nil
}

// List implements checkpoint.Store.
func (s *Store) List(_ context.Context, prefix string) (names []string, err error) {
	err = filepath.WalkDir(s.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(s.dir, path)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		// Files that are being written, and locks, are no objects.
		if strings.HasPrefix(name, prefix) && !strings.HasPrefix(entry.Name(), ".") && !strings.HasSuffix(name, lockSuffix) {
			names = append(names, name)
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list: %w", err)
	}
	slices.Sort(names)
	return names, nil
}

// lockSuffix ends the name of the file that locks a document.
const lockSuffix = ".lock"

// Append implements checkpoint.Store.
func (s *Store) Append(ctx context.Context, name string, p []byte) error {
	path, err := s.place(name)
	if err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("append: %w", err)
	}
	_, err = f.Write(p)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("append to %s: %w", path, err)
	}
	return nil
}

// Delete implements checkpoint.Store.
func (s *Store) Delete(_ context.Context, name string) error {
	path, err := s.path(name)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete: %w", err)
	}
	if err := os.Remove(path + lockSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete the lock: %w", err)
	}
	return nil
}

type lease struct {
	path string
	lock *flock.Flock
	lost chan struct{} // never closed: a file lock is not lost
}

func (l *lease) Load(context.Context) ([]byte, error) {
	f, err := os.Open(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	doc, err := io.ReadAll(io.LimitReader(f, checkpoint.MaxDocument))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", l.path, err)
	}
	return doc, nil
}

func (l *lease) Save(ctx context.Context, doc []byte) error {
	if !l.lock.Locked() {
		return checkpoint.ErrLost
	}
	f, err := create(ctx, l.path)
	if err != nil {
		return err
	}
	if _, err := f.Write(doc); err != nil {
		f.abandon()
		return err
	}
	return f.Close()
}

func (l *lease) Lost() <-chan struct{} { return l.lost }

func (l *lease) Release(context.Context) error {
	if err := l.lock.Unlock(); err != nil {
		return fmt.Errorf("unlock: %w", err)
	}
	return nil
}

// file appears under its name when it is closed: it is written beside, synced,
// and renamed.
type file struct {
	ctx  context.Context //nolint:containedctx // the contract ties the object to it
	tmp  *os.File
	path string
}

func create(ctx context.Context, path string) (*file, error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp*")
	if err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	return &file{ctx: ctx, tmp: tmp, path: path}, nil
}

func (f *file) Write(p []byte) (int, error) {
	n, err := f.tmp.Write(p)
	if err != nil {
		return n, fmt.Errorf("write: %w", err)
	}
	return n, nil
}

func (f *file) Close() error {
	if err := context.Cause(f.ctx); err != nil {
		f.abandon()
		return err
	}
	if err := errors.Join(f.tmp.Sync(), f.tmp.Close()); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", f.path, err), os.Remove(f.tmp.Name()))
	}
	if err := os.Rename(f.tmp.Name(), f.path); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", f.path, err), os.Remove(f.tmp.Name()))
	}
	return nil
}

// abandon removes what was written; a left-over has a name that nobody reads.
func (f *file) abandon() {
	_ = f.tmp.Close()
	_ = os.Remove(f.tmp.Name())
}
