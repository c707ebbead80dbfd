package turn_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"qualys-sentinel/handler/internal/turn"
)

func TestOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var turns turn.Turn
		var all sync.WaitGroup
		working := 0
		for range 10 {
			all.Go(func() {
				if err := turns.Take(t.Context()); err != nil {
					t.Error(err)
				}
				defer turns.Leave()
				if working++; working > 1 {
					t.Error("two at a time")
				}
				time.Sleep(time.Second)
				working--
			})
		}
		began := time.Now()
		all.Wait()
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("took %s, want 10 s", took)
		}
	})
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var turns turn.Turn
		if err := turns.Take(t.Context()); err != nil {
			t.Fatal(err)
		}
		cause := errors.New("no time left")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, cause)
		defer cancel()
		if err := turns.Take(ctx); !errors.Is(err, cause) {
			t.Errorf("got %v, want %v", err, cause)
		}
		turns.Leave()
		if err := turns.Take(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
