// Package checkpoint is the contract of the places that keep state: the
// checkpoints themselves, journals, run records, dead letters. Package blob keeps them
// in a blob container, package folder in a local folder, and checkpointtest
// holds both to this contract.
//
// It guarantees that only one run at a time holds a checkpoint, that a save by
// a run that lost its hold fails, and that an object is either there whole or
// not at all. What the documents say does not enter here.
package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"
)

// A Store keeps named documents. Names are paths with "/", without "." and
// "..". All methods may be called by several goroutines.
type Store interface {
	// Acquire gets hold of the document at name, alone, until Release or until
	// the process is gone. It returns ErrHeld if somebody else holds it.
	Acquire(ctx context.Context, name string) (Lease, error)
	// Held tells whether somebody holds the document at name. It changes nothing;
	// the answer may be old when it arrives.
	Held(ctx context.Context, name string) (bool, error)
	// Create opens an object for writing. When Close returns nil the object is
	// there, whole, instead of an older one; if ctx ends before Close, or Close
	// returns an error, it is not.
	Create(ctx context.Context, name string) (io.WriteCloser, error)
	// Open opens an object for reading. The error for one that is not there is
	// fs.ErrNotExist.
	Open(ctx context.Context, name string) (io.ReadCloser, error)
	// List returns the names of all objects, journals and documents that begin
	// with prefix, ascending.
	List(ctx context.Context, prefix string) ([]string, error)
	// Append adds p to the end of a journal, which is made where needed. When
	// it returns nil p is there; an error leaves open whether it is, once or
	// even twice. A journal is no object: Create must not be used for its name.
	Append(ctx context.Context, name string, p []byte) error
	// Delete removes an object, a journal or a document that nobody holds; one that
	// is not there is no error.
	Delete(ctx context.Context, name string) error
}

// A Lease is exclusive hold of one document. Load comes before the first Save;
// methods are not to be called concurrently.
type Lease interface {
	// Load returns the document, or nil if there is none yet.
	Load(ctx context.Context) ([]byte, error)
	// Save replaces the document. It returns ErrLost if somebody else has
	// taken the hold over or changed the document.
	Save(ctx context.Context, doc []byte) error
	// Lost is closed when the hold is known to be lost.
	Lost() <-chan struct{}
	// Release lets go. It may be called after the hold was lost.
	Release(ctx context.Context) error
}

var (
	// ErrHeld is returned when another run holds the checkpoint.
	ErrHeld = errors.New("another run holds the checkpoint")
	// ErrLost is returned when the hold was lost in the middle of a run. It is
	// not to be tried again: another run may be going on.
	ErrLost = errors.New("the hold on the checkpoint is lost: another run has taken over, or somebody changed it")
)

// MaxAppend is the most that one Append takes, in bytes: 4 MiB by the Blob
// service's rules.
const MaxAppend = 4 << 20

// MaxDocument bounds what Load and Read read, in bytes. A checkpoint has one
// kilobyte, and 4 MB where it names ten thousand isolated hosts.
const MaxDocument = 8 << 20

// Read reads a whole document, of which MaxDocument bytes at most. The error for
// one that is not there is fs.ErrNotExist.
func Read(ctx context.Context, store Store, name string) ([]byte, error) {
	object, err := store.Open(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	defer object.Close() //nolint:errcheck // read only
	doc, err := io.ReadAll(io.LimitReader(object, MaxDocument))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return doc, nil
}

// A Document is one object that is read and replaced as a whole.
type Document struct {
	Store Store
	Name  string
}

// Load returns the document; nil if there is none.
func (d Document) Load(ctx context.Context) ([]byte, error) {
	doc, err := Read(ctx, d.Store, d.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return doc, err
}

// Update replaces it by what change makes of it; nil is given where there is none. Others
// who update it take turns. change is called again when somebody who does not take turns,
// as a person in the portal, has written meanwhile. Update tries until ctx ends.
func (d Document) Update(ctx context.Context, change func(doc []byte) ([]byte, error)) error {
	for {
		err := d.update(ctx, change)
		if !errors.Is(err, ErrHeld) && !errors.Is(err, ErrLost) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(turnTime):
		}
	}
}

const (
	// turnTime is about as long as an update takes.
	turnTime = 200 * time.Millisecond
	// releaseTime bounds a release: one that does not arrive is made up for by the end of
	// the lease.
	releaseTime = 10 * time.Second
)

func (d Document) update(ctx context.Context, change func(doc []byte) ([]byte, error)) (err error) {
	lease, err := d.Store.Acquire(ctx, d.Name)
	if err != nil {
		return fmt.Errorf("take a turn with %s: %w", d.Name, err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTime)
		defer cancel()
		if e := lease.Release(ctx); e != nil {
			err = errors.Join(err, fmt.Errorf("let go of %s: %w", d.Name, e))
		}
	}()
	doc, err := lease.Load(ctx)
	if err == nil {
		doc, err = change(doc)
	}
	if err == nil {
		err = lease.Save(ctx, doc)
	}
	if err != nil {
		return fmt.Errorf("update %s: %w", d.Name, err)
	}
	return nil
}

// Write creates an object and fills it. Behind an error it is not there, or is as
// it was.
func Write(ctx context.Context, store Store, name string, fill func(io.Writer) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := store.Create(ctx, name)
	if err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	if err := fill(w); err != nil {
		cancel() // before Close: half an object must not appear
		return errors.Join(fmt.Errorf("write %s: %w", name, err), w.Close())
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
