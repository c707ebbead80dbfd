package blob_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"

	"qualys-sentinel/e2e/azurite"
	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/checkpoint/blob"
	"qualys-sentinel/handler/internal/checkpoint/checkpointtest"
	"qualys-sentinel/handler/internal/simulator"
)

// onEach runs a test against Azurite and against the simulator, which has to do the
// same. client makes a client of one container, as another process has.
func onEach(t *testing.T, test func(t *testing.T, client func() *container.Client)) {
	t.Helper()
	t.Run("azurite", func(t *testing.T) {
		connection := started(t)
		name := "state-" + strconv.FormatInt(containers.Add(1), 10)
		test(t, func() *container.Client {
			c, err := container.NewClientFromConnectionString(connection, name, nil)
			if err != nil {
				t.Fatal(err)
			}
			return c
		})
	})
	t.Run("simulator", func(t *testing.T) {
		options := &container.ClientOptions{}
		options.Transport = &http.Client{Transport: simulator.Transport{Handler: simulator.NewBlobs()}}
		test(t, func() *container.Client {
			c, err := container.NewClientWithNoCredential("https://account.blob.core.example/state", options)
			if err != nil {
				t.Fatal(err)
			}
			return c
		})
	})
}

// containers counts those of tests, which share one Azurite.
var containers atomic.Int64

// emulator is that Azurite.
var emulator struct {
	sync.Mutex
	connection string
	stop       func()
}

func started(t *testing.T) string {
	t.Helper()
	emulator.Lock()
	defer emulator.Unlock()
	if emulator.connection == "" {
		dir, err := os.MkdirTemp("", "azurite")
		if err != nil {
			t.Fatal(err)
		}
		connection, stop := azurite.Open(t, dir)
		emulator.connection = connection
		emulator.stop = func() {
			stop()
			os.RemoveAll(dir)
		}
	}
	return emulator.connection
}

func TestMain(m *testing.M) {
	code := m.Run()
	if emulator.stop != nil {
		emulator.stop()
	}
	os.Exit(code)
}

func TestBlob(t *testing.T) {
	onEach(t, func(t *testing.T, client func() *container.Client) {
		checkpointtest.Run(t, func() checkpoint.Store { return blob.New(client()) })
	})
}

// What another run, or a person, does to a checkpoint ends the run that held it.
func TestLosingTheHold(t *testing.T) {
	onEach(t, func(t *testing.T, client func() *container.Client) {
		ctx := context.Background()
		c := client()
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
				if _, err := blob.New(client()).Acquire(ctx, blobName); err != nil {
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
				s := blob.New(client())
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
	})
}

// A lease lasts from when it was given: an answer that has been on its way for long, and
// renewals that hang or fail, leave nobody with a hold that others may have.
func TestHoldEndsBeforeTheLease(t *testing.T) {
	for _, c := range []struct {
		late  time.Duration
		hangs bool
	}{{0, true}, {4 * time.Second, true}, {9 * time.Second, true}, {13 * time.Second, true}, {0, false}, {9 * time.Second, false}} {
		t.Run(fmt.Sprintf("%s late, hangs %v", c.late, c.hangs), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				blobs := simulator.NewBlobs()
				var given time.Time
				options := &container.ClientOptions{}
				options.Transport = &http.Client{Transport: simulator.Transport{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					switch r.Header.Get("X-Ms-Lease-Action") {
					case "renew":
						if !c.hangs {
							w.WriteHeader(http.StatusForbidden)
							return
						}
						<-r.Context().Done()
						return
					case "acquire":
						answer := httptest.NewRecorder()
						blobs.ServeHTTP(answer, r)
						if given = time.Now(); answer.Code < 300 {
							time.Sleep(c.late)
						}
						maps.Copy(w.Header(), answer.Header())
						w.WriteHeader(answer.Code)
						io.Copy(w, answer.Body)
						return
					}
					blobs.ServeHTTP(w, r)
				})}}
				client, err := container.NewClientWithNoCredential("https://account.blob.core.example/state", options)
				if err != nil {
					t.Fatal(err)
				}
				l, err := blob.New(client).Brief().Acquire(t.Context(), "a.json")
				if err != nil {
					t.Fatal(err)
				}
				<-l.Lost()
				if held := time.Since(given); held > 13*time.Second {
					t.Errorf("it is noticed after %s that the lease of 15 s has ended", held)
				}
				if err := l.Release(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A store that lives on makes a deleted container again.
func TestDeletedContainer(t *testing.T) {
	onEach(t, func(t *testing.T, client func() *container.Client) {
		ctx := context.Background()
		s := blob.New(client())
		c := client()
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
	})
}

// A person who edits the document between two saves is not overwritten.
func TestChangeBySomebodyElse(t *testing.T) {
	onEach(t, func(t *testing.T, client func() *container.Client) {
		ctx := context.Background()
		l, err := blob.New(client()).Acquire(ctx, "a.json")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Release(ctx)
		if _, err := l.Load(ctx); err != nil {
			t.Fatal(err)
		}
		c := client()
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
	})
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
