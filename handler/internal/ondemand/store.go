package ondemand

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/ingest"
)

// A File is where the requests for one destination are kept: what was asked for
// of another is none of its business.
type File struct {
	Store checkpoint.Store
	// Destination is its name in the state.
	Destination string
}

// Requests are under open until they are closed, then under done: a tick lists
// the open ones only. Their names sort by the time they were asked.
const (
	openState = "open"
	doneState = "done"
)

func (f File) prefix(state, dataset string) string {
	return fmt.Sprintf("requests/%s/%s/%s/", state, f.Destination, dataset)
}

func (f File) name(state string, r *Request) string {
	return fmt.Sprintf("%s%s-%s.json", f.prefix(state, r.Dataset), r.Asked.UTC().Format("20060102T150405Z"), r.ID)
}

// save writes the document of an open request.
func (f File) save(ctx context.Context, r *Request) error {
	return f.write(ctx, r, f.name(openState, r))
}

func (f File) write(ctx context.Context, r *Request, name string) error {
	doc, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the request: %w", err)
	}
	return checkpoint.Write(ctx, f.Store, name, func(w io.Writer) error {
		_, err := w.Write(append(doc, '\n'))
		return err
	})
}

// close ends a request. Whoever is stopped in between leaves it open, and the
// next tick closes it.
func (f File) close(ctx context.Context, r *Request) error {
	if err := f.write(ctx, r, f.name(doneState, r)); err != nil {
		return err
	}
	if err := f.Store.Delete(ctx, f.name(openState, r)); err != nil {
		return fmt.Errorf("close the request: %w", err)
	}
	return nil
}

// removeCheckpoint removes what nothing needs once a request is closed. One that
// is left behind, by a program that was killed, is a kilobyte that nobody reads.
func (f File) removeCheckpoint(ctx context.Context, r *Request) error {
	if r.Own() {
		return nil
	}
	if err := f.Store.Delete(ctx, ingest.AskedName(f.Destination, r.Dataset, r.ID)); err != nil {
		return fmt.Errorf("remove the request's checkpoint: %w", err)
	}
	return nil
}

// read reads a document; fs.ErrNotExist if it is not there.
func (f File) read(ctx context.Context, name string) (*Request, error) {
	doc, err := checkpoint.Read(ctx, f.Store, name)
	if err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	var r Request
	if err := json.Unmarshal(doc, &r); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w; delete it", name, err)
	}
	if r.Version != documentVersion {
		return nil, fmt.Errorf("%s has version %d, this program knows %d", name, r.Version, documentVersion)
	}
	if name != f.name(openState, &r) && name != f.name(doneState, &r) {
		return nil, fmt.Errorf("%s is damaged: what it says does not go with its name; delete it", name)
	}
	return &r, nil
}

// Open lists the requests of a dataset that are not closed, the oldest first.
// Documents that cannot be read are in the error; the others are there all the
// same.
func (f File) Open(ctx context.Context, dataset string) ([]*Request, error) {
	names, err := f.Store.List(ctx, f.prefix(openState, dataset))
	if err != nil {
		return nil, fmt.Errorf("list the requests: %w", err)
	}
	return f.readAll(ctx, names)
}

// Done lists the n requests of a dataset that were asked for last and are
// closed, the newest first.
func (f File) Done(ctx context.Context, dataset string, n int) ([]*Request, error) {
	names, err := f.Store.List(ctx, f.prefix(doneState, dataset))
	if err != nil {
		return nil, fmt.Errorf("list the requests: %w", err)
	}
	slices.Reverse(names)
	return f.readAll(ctx, names[:min(n, len(names))])
}

// Find returns a request, open or closed; nil if there is none of the id.
func (f File) Find(ctx context.Context, dataset, id string) (*Request, error) {
	for _, state := range []string{openState, doneState} {
		names, err := f.Store.List(ctx, f.prefix(state, dataset))
		if err != nil {
			return nil, fmt.Errorf("list the requests: %w", err)
		}
		for _, name := range names {
			if !strings.HasSuffix(path.Base(name), "-"+id+".json") {
				continue
			}
			r, err := f.read(ctx, name)
			if errors.Is(err, fs.ErrNotExist) {
				break // closed in this very moment
			}
			return r, err
		}
	}
	return nil, nil
}

func (f File) readAll(ctx context.Context, names []string) (list []*Request, err error) {
	for _, name := range names {
		r, readErr := f.read(ctx, name)
		switch {
		case errors.Is(readErr, fs.ErrNotExist): // closed since
		case readErr != nil:
			err = errors.Join(err, readErr)
		default:
			list = append(list, r)
		}
	}
	return list, err
}

// began notes an attempt: the first, and the last of many.
func (r *Request) began(run *ingest.Run) {
	r.Tries++
	r.Attempts = append(r.Attempts, Attempt{Run: run.ID, Started: run.Started()})
	if len(r.Attempts) > maxAttempts {
		r.Attempts = slices.Delete(r.Attempts, 1, 2)
	}
}

// latest is the attempt that was made last.
func (r *Request) latest() Attempt {
	if n := len(r.Attempts); n > 0 {
		return r.Attempts[n-1]
	}
	return Attempt{Run: r.ID}
}

// expired tells whether a request is too old to be carried on.
func (r *Request) expired(now time.Time) bool { return now.Sub(r.Asked) > maxAge }
