package ondemand

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/ingest"
)

// Requests are under open until they are closed, then under done: a tick lists
// the open ones only. Their names sort by the time they were asked.
const (
	openPrefix = "requests/open/"
	donePrefix = "requests/done/"
)

func (r *Request) name(prefix string) string {
	return fmt.Sprintf("%s%s/%s-%s.json", prefix, r.Dataset, r.Asked.UTC().Format("20060102T150405Z"), r.ID)
}

// save writes the document of an open request.
func (r *Request) save(ctx context.Context, store checkpoint.Store) error {
	return r.write(ctx, store, r.name(openPrefix))
}

func (r *Request) write(ctx context.Context, store checkpoint.Store, name string) error {
	doc, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the request: %w", err)
	}
	w, err := store.Create(ctx, name)
	if err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	_, err = w.Write(append(doc, '\n'))
	if err := errors.Join(err, w.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// close ends a request. Whoever is stopped in between leaves it open, and the
// next tick closes it.
func (r *Request) close(ctx context.Context, store checkpoint.Store, destination string) error {
	if err := r.write(ctx, store, r.name(donePrefix)); err != nil {
		return err
	}
	if err := store.Delete(ctx, r.name(openPrefix)); err != nil {
		return fmt.Errorf("close the request: %w", err)
	}
	if r.Own() {
		return nil
	}
	if err := store.Delete(ctx, ingest.AskedName(destination, r.Dataset, r.ID)); err != nil {
		return fmt.Errorf("remove the request's checkpoint: %w", err)
	}
	return nil
}

// read reads a document; fs.ErrNotExist if it is not there.
func read(ctx context.Context, store checkpoint.Store, name string) (*Request, error) {
	doc, err := checkpoint.Read(ctx, store, name)
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
	return &r, nil
}

// Open lists the requests of a dataset that are not closed, the oldest first.
// Documents that cannot be read are in the error; the others are there all the
// same.
func Open(ctx context.Context, store checkpoint.Store, dataset string) ([]*Request, error) {
	names, err := store.List(ctx, openPrefix+dataset+"/")
	if err != nil {
		return nil, fmt.Errorf("list the requests: %w", err)
	}
	return readAll(ctx, store, names)
}

// Done lists the n requests of a dataset that were asked for last and are
// closed, the newest first.
func Done(ctx context.Context, store checkpoint.Store, dataset string, n int) ([]*Request, error) {
	names, err := store.List(ctx, donePrefix+dataset+"/")
	if err != nil {
		return nil, fmt.Errorf("list the requests: %w", err)
	}
	slices.Reverse(names)
	return readAll(ctx, store, names[:min(n, len(names))])
}

// Find returns a request, open or closed; nil if there is none of the id.
func Find(ctx context.Context, store checkpoint.Store, dataset, id string) (*Request, error) {
	for _, prefix := range []string{openPrefix, donePrefix} {
		names, err := store.List(ctx, prefix+dataset+"/")
		if err != nil {
			return nil, fmt.Errorf("list the requests: %w", err)
		}
		for _, name := range names {
			if !strings.HasSuffix(path.Base(name), "-"+id+".json") {
				continue
			}
			r, err := read(ctx, store, name)
			if errors.Is(err, fs.ErrNotExist) {
				break // closed in this very moment
			}
			return r, err
		}
	}
	return nil, nil
}

func readAll(ctx context.Context, store checkpoint.Store, names []string) (list []*Request, err error) {
	for _, name := range names {
		r, readErr := read(ctx, store, name)
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

// expired tells whether a request is too old to be carried on.
func (r *Request) expired(now time.Time) bool { return now.Sub(r.Asked) > maxAge }
