package ingest_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/simulator"
)

// indexPath is the file of the index that the checkpoint names, or of its
// journal.
func (w *world) indexPath(ext string) string {
	return filepath.Join(w.state, "checkpoints", "default", "kb.index", w.checkpoint().Index+ext)
}

// indexLines reads the index's lines, without the header.
func (w *world) indexLines() []string {
	w.t.Helper()
	raw, err := os.ReadFile(w.indexPath(".gz"))
	if err != nil {
		w.t.Fatal(err)
	}
	gz, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		w.t.Fatal(err)
	}
	text, err := io.ReadAll(gz)
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")[1:]
}

// What is in the journal is not sent again, not in a full window either: with
// one batch in flight nothing is, when the kill comes behind its append.
func TestNothingTwiceBehindTheJournal(t *testing.T) {
	for _, step := range []string{"after append", "before save"} {
		t.Run(step, func(t *testing.T) {
			w := newKBWorld(t, 150)
			w.inFlight, w.refresh = 1, 24*time.Hour
			kills, _ := w.killAt(step)
			w.wantEntries(150)
			w.clock.advance(25 * time.Hour)
			again, _ := w.killAt(step) // the window after the load
			w.clock.advance(time.Hour)
			more, _ := w.killAt(step) // the refresh
			if kills == 0 || more == 0 || w.arrived() != 300 {
				t.Errorf("%d, %d and %d kills, %d rows, want 300", kills, again, more, w.arrived())
			}
		})
	}
}

// One append fails, and the batches that were under way behind it arrive: the
// checkpoint must not pass the rows that the journal lacks.
func TestAppendThatFailsOnce(t *testing.T) {
	for _, taken := range []bool{false, true} { // the lines are there all the same
		t.Run(fmt.Sprint(taken), func(t *testing.T) {
			w := newKBWorld(t, 300)
			w.page = 300
			blip := errors.New("a blip")
			var once sync.Once
			failed, behind := make(chan struct{}), make(chan struct{})
			fail := func() (err error) {
				once.Do(func() {
					<-behind // others are accepted while this one is under way
					err = blip
					close(failed)
				})
				return err
			}
			if taken {
				w.store.afterAppend = fail
			} else {
				w.store.beforeAppend = fail
			}
			first, others := []byte(fmt.Sprintf(`"QID_s":"%d"`, w.knowledge().QID(0))), 0
			w.dest.after = func(_ int, b record.Batch) error {
				// Batches arrive in any order, but the first one's lines are
				// appended first: it must not wait here.
				if bytes.Contains(b.Body, first) {
					return nil
				}
				if others++; others == 3 {
					close(behind)
					w.dest.mu.Unlock() // Send holds it
					<-failed
					w.dest.mu.Lock()
				}
				return nil
			}
			if _, err := w.do(); !errors.Is(err, blip) {
				t.Fatal(err)
			}
			for range 3 {
				w.mustComplete()
				w.clock.advance(time.Hour)
			}
			w.wantEntries(w.arrived())
			if lines := w.indexLines(); len(lines) != 300 {
				t.Errorf("%d lines in the index, want 300", len(lines))
			}
		})
	}
}

// A journal that grows too long is taken in while the run goes on.
func TestLongJournal(t *testing.T) {
	w := newKBWorld(t, 1)
	title := strings.Repeat("é", 30_000)
	w.before = func(rw http.ResponseWriter, r *http.Request) bool {
		io.WriteString(rw, "<KNOWLEDGE_BASE_VULN_LIST_OUTPUT><RESPONSE><DATETIME>2026-11-01T12:00:00Z</DATETIME>")
		if r.URL.Query().Get("details") == "None" {
			io.WriteString(rw, "<ID_SET><ID_RANGE>1-200</ID_RANGE></ID_SET>")
		} else {
			low, high := 1, 200
			fmt.Sscan(r.URL.Query().Get("id_min"), &low)
			fmt.Sscan(r.URL.Query().Get("id_max"), &high)
			io.WriteString(rw, "<VULN_LIST>")
			for id := low; id <= high; id++ {
				fmt.Fprintf(rw, "<VULN><QID>%d</QID><TITLE>%s</TITLE></VULN>", id, title)
			}
			io.WriteString(rw, "</VULN_LIST>")
		}
		io.WriteString(rw, "</RESPONSE></KNOWLEDGE_BASE_VULN_LIST_OUTPUT>")
		return true
	}
	w.dest.batch = 200_000
	generations := map[string]bool{}
	w.store.beforeCreate = func(name string) error {
		if strings.Contains(name, "kb.index/") {
			generations[name] = true
		}
		return nil
	}
	w.mustComplete()
	// The first, one for each 4 MB of 12, and that of the end.
	if len(generations) < 4 || len(w.indexLines()) != 200 || w.arrived() != 200 {
		t.Errorf("generations %v, %d lines, %d rows", generations, len(w.indexLines()), w.arrived())
	}
	if left, err := os.ReadDir(filepath.Dir(w.indexPath(""))); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Somebody deletes the index while a run goes on.
func TestIndexDeletedInARun(t *testing.T) {
	w := newKBWorld(t, 60)
	w.mustComplete()
	now := w.clock.Now()
	w.knowledge().Edit(simulator.Edit{Index: 5, At: now, Visible: now})
	w.clock.advance(time.Minute)
	w.store.afterAppend = func() error { return os.Remove(w.indexPath(".gz")) }
	w.mustComplete() // with a warning: the journal keeps it
	if w.logs.FilterMessageSnippet("is not renewed").Len() != 1 {
		t.Error("nobody was told")
	}
	w.store.afterAppend = nil
	w.clock.advance(time.Minute)
	w.mustComplete()
	w.wantEntries(60 + 1 + 60)
	if got := len(w.indexLines()); got != 60 {
		t.Errorf("%d lines in the index", got)
	}
}

// A run that was frozen beyond its lease wakes up: what it still writes counts
// for nothing.
func TestFrozenHolder(t *testing.T) {
	w := newKBWorld(t, 120)
	w.mustComplete()
	now := w.clock.Now()
	editAll := func(from, to int) {
		for index := from; index < to; index++ {
			w.knowledge().Edit(edit(index, now))
		}
	}
	editAll(0, 40)
	w.clock.advance(time.Minute)
	frozen, awake := make(chan struct{}), make(chan struct{})
	lost := make(chan struct{})
	first := w.run()
	first.Store = &faultStore{Store: unlocked{w.store.Store}, lost: lost, beforeCreate: func(name string) error {
		if strings.Contains(name, "kb.index/") {
			close(frozen)
			<-awake
		}
		return nil
	}, beforeSave: func([]byte) error {
		select {
		case <-awake:
			return checkpoint.ErrLost // as the lease id has changed
		default:
			return nil
		}
	}}
	ended := make(chan error)
	go func() {
		_, err := first.Do(context.Background())
		ended <- err
	}()
	<-frozen
	w.store.Store = unlocked{w.store.Store}
	w.mustComplete()
	editAll(40, 60)
	w.clock.advance(time.Minute)
	w.mustComplete()
	before := w.checkpoint()
	close(awake)
	if err := <-ended; !errors.Is(err, checkpoint.ErrLost) {
		t.Errorf("the frozen run ended with %v", err)
	}
	if after := w.checkpoint(); after.Index != before.Index || !after.Watermark.Equal(*before.Watermark) {
		t.Errorf("the checkpoint is another one: %+v, before %+v", after, before)
	}
	arrived := w.arrived()
	w.clock.advance(time.Minute)
	w.mustComplete()
	w.wantEntries(arrived)
	if got := len(w.indexLines()); got != 120 {
		t.Errorf("%d lines in the index", got)
	}
}

// unlocked is a store that lets a second run take over while the first still
// believes to hold the checkpoint, as a lease that has run out does.
type unlocked struct{ checkpoint.Store }

func (s unlocked) Acquire(ctx context.Context, name string) (checkpoint.Lease, error) {
	l, err := s.Store.Acquire(ctx, name)
	if err == nil {
		err = l.Release(ctx)
	}
	return unlockedLease{l, s.Store, name}, err
}

type unlockedLease struct {
	checkpoint.Lease
	store checkpoint.Store
	name  string
}

func (l unlockedLease) Save(ctx context.Context, doc []byte) error {
	held, err := l.store.Acquire(ctx, l.name)
	if err != nil {
		return err
	}
	return errors.Join(held.Save(ctx, doc), held.Release(ctx))
}

func (l unlockedLease) Release(context.Context) error { return nil }

// Without its index the KnowledgeBase is loaded again: the join would miss
// entries for ever.
func TestIndexThatIsLost(t *testing.T) {
	index := func(w *world) string { return w.indexPath(".gz") }
	journal := func(w *world) string { return w.indexPath(".journal") }
	for name, lose := range map[string]func(t *testing.T, w *world) error{
		"deleted": func(_ *testing.T, w *world) error { return os.Remove(index(w)) },
		"damaged": func(_ *testing.T, w *world) error { return os.WriteFile(index(w), []byte("no gzip"), 0o600) },
		"cut":     func(_ *testing.T, w *world) error { return os.Truncate(index(w), 500) },
		"empty":   func(_ *testing.T, w *world) error { return os.Truncate(index(w), 0) },
		"foreign journal": func(_ *testing.T, w *world) error {
			return os.WriteFile(journal(w), []byte("{\"version\":1}\nx\ty\n"), 0o600)
		},
		"damaged journal": func(_ *testing.T, w *world) error {
			return os.WriteFile(journal(w), []byte(journalHeader+"x\ty\n"), 0o600)
		},
		"deleted, with a journal": func(_ *testing.T, w *world) error {
			line := fmt.Sprintf("%d\t\t00ff\t2026-11-01T12:00:00Z\t\n", w.knowledge().QID(5))
			return errors.Join(os.Remove(index(w)), os.WriteFile(journal(w), []byte(journalHeader+line), 0o600))
		},
		"other values": func(_ *testing.T, w *world) error {
			var b bytes.Buffer
			gz := gzip.NewWriter(&b)
			fmt.Fprintln(gz, `{"version":1,"for":"127.0.0.1 KnowledgeBase to ","values":["VULN/TITLE"]}`)
			return errors.Join(gz.Close(), os.WriteFile(index(w), b.Bytes(), 0o600))
		},
		"another workspace": func(_ *testing.T, w *world) error { w.target = "dcr-2"; return nil },
	} {
		t.Run(name, func(t *testing.T) {
			w := newKBWorld(t, 60)
			w.mustComplete()
			w.clock.advance(time.Hour)
			if err := lose(t, w); err != nil {
				t.Fatal(err)
			}
			w.mustComplete()
			w.wantEntries(120)
			if w.logs.FilterMessageSnippet("everything is loaded again").Len() != 1 {
				t.Error("nobody was told")
			}
			w.clock.advance(time.Hour)
			w.mustComplete()
			w.wantEntries(120)
			if left, err := os.ReadDir(filepath.Dir(index(w))); err != nil || len(left) != 1 {
				t.Errorf("left behind: %v, %v", left, err)
			}
			if got := len(w.indexLines()); got != 60 {
				t.Errorf("%d lines in the index", got)
			}
		})
	}
	t.Run("of a newer program", func(t *testing.T) {
		w := newKBWorld(t, 60)
		w.mustComplete()
		var b bytes.Buffer
		gz := gzip.NewWriter(&b)
		fmt.Fprintln(gz, `{"version":2,"for":"x"}`)
		gz.Close()
		if err := os.WriteFile(index(w), b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		if report, err := w.do(); err == nil || report.Outcome != ingest.Failed || !strings.Contains(err.Error(), "version 2") {
			t.Errorf("%s: %v", report.Outcome, err)
		}
	})
	t.Run("breaks off", func(t *testing.T) {
		w := newKBWorld(t, 60)
		w.mustComplete()
		before, err := os.ReadFile(index(w))
		if err != nil {
			t.Fatal(err)
		}
		reset := errors.New("connection reset")
		store := w.store.Store
		w.store.Store = breaksOff{store, reset}
		if report, err := w.do(); !errors.Is(err, reset) || report.Outcome != ingest.Failed {
			t.Errorf("%s: %v: everything would be loaded again", report.Outcome, err)
		}
		w.store.Store = store
		if after, err := os.ReadFile(index(w)); err != nil || !bytes.Equal(before, after) {
			t.Errorf("the index is another one, %v", err)
		}
		w.mustComplete()
		w.wantEntries(60)
	})
	t.Run("cannot be opened", func(t *testing.T) {
		w := newKBWorld(t, 60)
		w.mustComplete()
		down := errors.New("storage is down")
		w.store.Store = openFails{w.store.Store, down}
		if report, err := w.do(); !errors.Is(err, down) || report.Outcome != ingest.Failed {
			t.Errorf("%s: %v: everything would be loaded again", report.Outcome, err)
		}
	})
}

func TestJournalCutByAKill(t *testing.T) {
	w := newKBWorld(t, 50)
	w.mustComplete()
	now := w.clock.Now()
	w.knowledge().Edit(simulator.Edit{Index: 5, At: now, Visible: now})
	w.clock.advance(time.Minute)
	for _, left := range []string{"", `{"version":1,"for":"`, journalHeader, journalHeader + "10005\t2026", journalHeader + journalHeader + "10005\t2026"} {
		if err := os.WriteFile(w.indexPath(".journal"), []byte(left), 0o600); err != nil {
			t.Fatal(err)
		}
		w.mustComplete()
		w.wantEntries(51)
		if got := len(w.indexLines()); got != 50 {
			t.Errorf("%d lines in the index", got)
		}
	}
}
