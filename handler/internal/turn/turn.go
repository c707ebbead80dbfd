// Package turn lets one at a time work at what takes time, such as calls of a service.
//
// It guarantees that who waits for a turn waits no longer than its context lasts: behind a
// mutex it would wait for as long as a call hangs. What the work is does not enter here;
// for memory a mutex does.
package turn

import (
	"context"
	"sync"
)

// A Turn is taken by one at a time. The zero value is free.
type Turn struct {
	once  sync.Once
	taken chan struct{}
}

// Take takes the turn; behind nil comes Leave. The error is the cause of the context's
// end.
func (t *Turn) Take(ctx context.Context) error {
	t.once.Do(func() { t.taken = make(chan struct{}, 1) })
	select {
	case t.taken <- struct{}{}:
		return nil
	default:
	}
	select {
	case t.taken <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx) //nolint:wrapcheck // whoever waits knows for what
	}
}

// Leave gives the turn to the next.
func (t *Turn) Leave() { <-t.taken }
