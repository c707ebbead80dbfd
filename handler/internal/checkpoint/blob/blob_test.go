package blob_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"

	"qualys-sentinel/e2e/azurite"
	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/checkpoint/blob"
	"qualys-sentinel/handler/internal/checkpoint/checkpointtest"
)

func open(t *testing.T, connection, name string) *blob.Store {
	t.Helper()
	s, err := blob.FromConnectionString(connection, name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestBlob(t *testing.T) {
	connection := azurite.Start(t)
	checkpointtest.Run(t, func() checkpoint.Store { return open(t, connection, "state") })
}

// What another run, or a person, does to a checkpoint ends the run that held it.
func TestLosingTheHold(t *testing.T) {
	connection := azurite.Start(t)
	ctx := context.Background()
	c, err := container.NewClientFromConnectionString(connection, "state", nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, interfere := range map[string]func(t *testing.T, blobName string){
		"lease broken": func(t *testing.T, blobName string) {
			l, err := lease.NewBlobClient(c.NewBlobClient(blobName), nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := l.BreakLease(ctx, &lease.BlobBreakOptions{BreakPeriod: to.Ptr(int32(0))}); err != nil {
				t.Fatal(err)
			}
		},
		"lease broken and taken": func(t *testing.T, blobName string) {
			l, err := lease.NewBlobClient(c.NewBlobClient(blobName), nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := l.BreakLease(ctx, &lease.BlobBreakOptions{BreakPeriod: to.Ptr(int32(0))}); err != nil {
				t.Fatal(err)
			}
			if _, err := open(t, connection, "state").Acquire(ctx, blobName); err != nil {
				t.Fatal(err)
			}
		},
		"container deleted": func(t *testing.T, _ string) {
			if _, err := c.Delete(ctx, nil); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			blobName := strings.ReplaceAll(name, " ", "-")
			s := open(t, connection, "state")
			s.LeaseTime = 15 * time.Second // renewed after 5
			l, err := s.Acquire(ctx, blobName)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := l.Load(ctx); err != nil {
				t.Fatal(err)
			}
			if err := l.Save(ctx, []byte("{}")); err != nil {
				t.Fatal(err)
			}
			interfere(t, blobName)
			select {
			case <-l.Lost():
			case <-time.After(14 * time.Second):
				t.Error("the loss was not noticed by the next renewal")
			}
			if err := l.Save(ctx, []byte(`{"late":true}`)); !errors.Is(err, checkpoint.ErrLost) {
				t.Errorf("save: %v, want ErrLost", err)
			}
			if err := l.Release(ctx); err != nil {
				t.Errorf("release: %v", err)
			}
		})
	}
}

// A store that lives on makes a deleted container again.
func TestDeletedContainer(t *testing.T) {
	connection := azurite.Start(t)
	ctx := context.Background()
	s := open(t, connection, "state")
	c, err := container.NewClientFromConnectionString(connection, "state", nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		l, err := s.Acquire(ctx, "a.json")
		if err != nil {
			t.Fatal(err)
		}
		if doc, err := l.Load(ctx); err != nil || doc != nil {
			t.Errorf("a new container holds %q, %v", doc, err)
		}
		if err := l.Save(ctx, []byte("{}")); err != nil {
			t.Error(err)
		}
		if n < 2 {
			if _, err := c.Delete(ctx, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Release(ctx); err != nil {
			t.Error(err)
		}
	}
}

// A person who edits the document between two saves is not overwritten.
func TestChangeBySomebodyElse(t *testing.T) {
	connection := azurite.Start(t)
	ctx := context.Background()
	l, err := open(t, connection, "state").Acquire(ctx, "a.json")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release(ctx)
	if _, err := l.Load(ctx); err != nil {
		t.Fatal(err)
	}
	c, err := container.NewClientFromConnectionString(connection, "state", nil)
	if err != nil {
		t.Fatal(err)
	}
	b := c.NewBlockBlobClient("a.json")
	breaker, err := lease.NewBlobClient(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := breaker.BreakLease(ctx, &lease.BlobBreakOptions{BreakPeriod: to.Ptr(int32(0))}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Upload(ctx, streaming.NopCloser(strings.NewReader(`{"edited":true}`)), nil); err != nil {
		t.Fatal(err)
	}
	if err := l.Save(ctx, []byte(`{}`)); !errors.Is(err, checkpoint.ErrLost) {
		t.Errorf("save: %v, want ErrLost", err)
	}
}

func TestConnectionStrings(t *testing.T) {
	if _, err := blob.FromConnectionString("UseDevelopmentStorage=true;", "x"); err != nil {
		t.Error(err)
	}
	_, err := blob.FromConnectionString("AccountKey=secret-key;nonsense", "x")
	if err == nil || strings.Contains(err.Error(), "secret-key") {
		t.Errorf("a malformed connection string: %v", err)
	}
}
