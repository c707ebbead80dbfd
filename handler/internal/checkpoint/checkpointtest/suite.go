// Package checkpointtest is the conformance suite of checkpoint stores: what
// every implementation must do, run by the tests of each.
package checkpointtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/checkpoint"
)

// Run holds a store to its contract. open returns another view of the same,
// initially empty store each time it is called, as another process has.
func Run(t *testing.T, open func() checkpoint.Store) {
	t.Helper()
	ctx := context.Background()
	const name = "checkpoints/default/vm.json"

	t.Run("a new checkpoint is empty, and what is saved is there", func(t *testing.T) {
		l := acquire(t, open(), "a/new.json")
		wantDoc(t, l, "")
		for _, doc := range []string{`{"n":1}`, `{"n":2}`, `{}`} {
			if err := l.Save(ctx, []byte(doc)); err != nil {
				t.Fatal(err)
			}
		}
		wantDoc(t, l, "{}")
		release(t, l)
		l = acquire(t, open(), "a/new.json")
		wantDoc(t, l, "{}")
		release(t, l)
	})
	t.Run("only one holds it", func(t *testing.T) {
		l := acquire(t, open(), name)
		for range 2 {
			if _, err := open().Acquire(ctx, name); !errors.Is(err, checkpoint.ErrHeld) {
				t.Fatalf("a second hold: %v, want ErrHeld", err)
			}
		}
		for where, want := range map[string]bool{name: true, "checkpoints/default/kb.json": false, "checkpoints/default/none.json": false} {
			if held, err := open().Held(ctx, where); err != nil || held != want {
				t.Errorf("%s: held is %v, %v; want %v", where, held, err, want)
			}
		}
		other := acquire(t, open(), "checkpoints/default/kb.json")
		release(t, other)
		release(t, l)
		if held, err := open().Held(ctx, name); err != nil || held {
			t.Errorf("after the release: held is %v, %v", held, err)
		}
		release(t, acquire(t, open(), name))
		if err := open().Delete(ctx, name); err != nil {
			t.Error(err)
		}
		l = acquire(t, open(), name) // it begins anew
		wantDoc(t, l, "")
		release(t, l)
	})
	t.Run("a released hold cannot save", func(t *testing.T) {
		l := acquire(t, open(), "b.json")
		wantDoc(t, l, "")
		if err := l.Save(ctx, []byte("{}")); err != nil {
			t.Fatal(err)
		}
		release(t, l)
		if err := l.Save(ctx, []byte(`{"late":1}`)); !errors.Is(err, checkpoint.ErrLost) {
			t.Errorf("save after release: %v, want ErrLost", err)
		}
		l = acquire(t, open(), "b.json")
		wantDoc(t, l, "{}")
		release(t, l)
	})
	t.Run("updates take turns", func(t *testing.T) {
		const processes, each = 3, 4
		var all sync.WaitGroup
		for range processes {
			all.Go(func() {
				counter := checkpoint.Document{Store: open(), Name: "counter.json"}
				for range each {
					if err := counter.Update(ctx, func(doc []byte) ([]byte, error) { return append(doc, '+'), nil }); err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		if got, err := (checkpoint.Document{Store: open(), Name: "counter.json"}).Load(ctx); err != nil || len(got) != processes*each {
			t.Errorf("got %q, %v, want %d signs", got, err, processes*each)
		}
	})
	t.Run("an update that fails leaves it as it was, and free", func(t *testing.T) {
		doc := checkpoint.Document{Store: open(), Name: "same.json"}
		if err := doc.Update(ctx, func([]byte) ([]byte, error) { return []byte("first"), nil }); err != nil {
			t.Fatal(err)
		}
		broken := errors.New("broken")
		if err := doc.Update(ctx, func([]byte) ([]byte, error) { return []byte("second"), broken }); !errors.Is(err, broken) {
			t.Errorf("got %v, want %v", err, broken)
		}
		if got, err := doc.Load(ctx); err != nil || string(got) != "first" {
			t.Errorf("got %q, %v, want first", got, err)
		}
		if held, err := open().Held(ctx, "same.json"); err != nil || held {
			t.Errorf("held is %v, %v", held, err)
		}
	})
	t.Run("an update of what another holds waits for its turn, as long as there is time", func(t *testing.T) {
		l := acquire(t, open(), "held.json")
		within, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		err := checkpoint.Document{Store: open(), Name: "held.json"}.Update(within, func(doc []byte) ([]byte, error) { return doc, nil })
		if !errors.Is(err, checkpoint.ErrHeld) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want ErrHeld", err)
		}
		release(t, l)
	})
	t.Run("objects are whole or absent", func(t *testing.T) {
		s := open()
		if _, err := s.Open(ctx, "runs/none.json"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("open nothing: %v, want fs.ErrNotExist", err)
		}
		big := bytes.Repeat([]byte("0123456789abcdef"), 200_000) // several blocks
		for _, content := range [][]byte{[]byte("first"), big, nil} {
			w, err := s.Create(ctx, "deadletter/vm/r/rows-1.gz")
			if err != nil {
				t.Fatal(err)
			}
			for part := range bytes.SplitAfterSeq(content, []byte("f")) {
				if _, err := w.Write(part); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if got := read(t, open(), "deadletter/vm/r/rows-1.gz"); !bytes.Equal(got, content) {
				t.Errorf("%d bytes came back of %d", len(got), len(content))
			}
		}
	})
	t.Run("journals grow", func(t *testing.T) {
		const journal = "checkpoints/default/kb.journal"
		want := ""
		for _, part := range []string{"one\n", strings.Repeat("x", 300_000) + "\n", "three\n"} {
			if err := open().Append(ctx, journal, []byte(part)); err != nil {
				t.Fatal(err)
			}
			want += part
			if got := read(t, open(), journal); string(got) != want {
				t.Fatalf("%d bytes came back of %d", len(got), len(want))
			}
		}
		for range 2 { // the second time there is nothing to delete
			if err := open().Delete(ctx, journal); err != nil {
				t.Fatal(err)
			}
			if _, err := open().Open(ctx, journal); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("open a deleted journal: %v, want fs.ErrNotExist", err)
			}
		}
		if err := open().Append(ctx, journal, []byte("anew")); err != nil {
			t.Fatal(err)
		}
		if got := read(t, open(), journal); string(got) != "anew" {
			t.Errorf("a new journal holds %q", got)
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if err := open().Append(ended, journal, []byte("late")); err == nil {
			t.Error("append after the end of its context: no error")
		}
	})
	t.Run("objects are listed", func(t *testing.T) {
		if got, err := open().List(ctx, "list/none/"); err != nil || len(got) != 0 {
			t.Errorf("nothing listed as %v, %v", got, err)
		}
		for _, name := range []string{"list/a/2.gz", "list/a/1.gz", "list/ab/3.gz", "list/b.json"} {
			w, err := open().Create(ctx, name)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
		}
		release(t, acquire(t, open(), "list/b.json"))
		for prefix, want := range map[string]string{"list/a/": "[list/a/1.gz list/a/2.gz]", "list/a": "[list/a/1.gz list/a/2.gz list/ab/3.gz]", "list/b": "[list/b.json]"} {
			if got, err := open().List(ctx, prefix); err != nil || fmt.Sprint(got) != want {
				t.Errorf("%s: listed %v, %v; want %s", prefix, got, err, want)
			}
		}
	})
	t.Run("an abandoned object is absent", func(t *testing.T) {
		abandon, cancel := context.WithCancel(ctx)
		w, err := open().Create(abandon, "runs/half.json")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, strings.Repeat("half", 1000)); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := w.Close(); err == nil {
			t.Error("close after the end of its context: no error")
		}
		if _, err := open().Open(ctx, "runs/half.json"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("half an object: %v, want fs.ErrNotExist", err)
		}
	})
}

func acquire(t *testing.T, s checkpoint.Store, name string) checkpoint.Lease {
	t.Helper()
	l, err := s.Acquire(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-l.Lost():
		t.Fatal("a fresh hold is lost")
	default:
	}
	return l
}

func release(t *testing.T, l checkpoint.Lease) {
	t.Helper()
	if err := l.Release(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func wantDoc(t *testing.T, l checkpoint.Lease, want string) {
	t.Helper()
	got, err := l.Load(context.Background())
	if err != nil || string(got) != want {
		t.Errorf("document %q, %v; want %q", got, err, want)
	}
}

func read(t *testing.T, s checkpoint.Store, name string) []byte {
	t.Helper()
	r, err := s.Open(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // read only
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return got
}
