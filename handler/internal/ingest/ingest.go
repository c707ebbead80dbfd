// Package ingest carries one window of a dataset from Qualys to a destination.
//
// A checkpoint is saved only when every record before it was accepted by the
// destination or stored as a dead letter: run.go reads page after page within
// the budget, batching.go packs rows, sending.go gets them accepted, and settle
// in delivery.go is the only place where a cursor moves. A run that is killed leaves the state of its last save;
// the next one repeats at most the batches that were in flight. Every record
// read is counted, and a run whose counts disagree fails.
//
// The package knows interfaces only: neither Azure nor HTTP enter here.
package ingest

import (
	"context"
	"errors"
	"time"

	"qualys-sentinel/handler/internal/record"
)

// A Source reads pages of a dataset.
type Source interface {
	// Page asks for one page and hands its records to sink, in order, on the
	// calling goroutine. It returns a Page only for an answer that was read to
	// the end of its root element. An error that has the method
	// Retry() (time.Duration, bool) says whether and when to ask again; any
	// other error is final. Records handed over before an error are valid.
	Page(ctx context.Context, q record.Query, sink record.Sink) (record.Page, error)
	// PageLimit is how many parents it asks for at once by itself.
	PageLimit() int
	// IDs returns up to n of the lowest parent ids of a query, ascending, by
	// another way than a page. It may name parents that are in no page, and leave
	// out some that are in one. It is asked when a page of one parent fails.
	IDs(ctx context.Context, q record.Query, n int, count func(record.Tally)) ([]uint64, error)
	// CallLimits are what the service has said last of its limits; NoCallLimits before
	// it has said anything.
	CallLimits() record.CallLimits
	// Identity tells apart sources that return different records: a window
	// begun with one cannot be continued with another.
	Identity() string
}

// A Destination takes rows of one table.
type Destination interface {
	// Send returns nil only if the service accepted all of b. It may be called
	// by several goroutines, and again with the same batch after an error. It
	// must not keep b. An error with Retry() (time.Duration, bool) may be
	// tried again, an error with Refused() bool that is true means these rows
	// and no others, and any other error ends the run.
	Send(ctx context.Context, b record.Batch) (sent int64, err error)
	// Limits are what one row may be.
	Limits() record.Limits
	// BatchBytes is the longest Body.
	BatchBytes() int
}

// retryable is an error that may go away by itself.
type retryable interface {
	Retry() (after time.Duration, ok bool)
}

// refusal is an error that concerns rows, not the destination.
type refusal interface {
	Refused() bool
}

// limit is an error that is no fault but a limit being kept.
type limit interface {
	Limit() bool
}

// heavy is an error that a smaller page may not meet.
type heavy interface {
	Heavy() bool
}

func isHeavy(err error) bool {
	var h heavy
	return errors.As(err, &h) && h.Heavy()
}

// retryAfter tells whether err may go away, and after how long; zero if the
// other side did not say.
func retryAfter(err error) (time.Duration, bool) {
	var r retryable
	if errors.As(err, &r) {
		return r.Retry()
	}
	return 0, false
}

// void is an error that takes back what a page has brought.
type void interface {
	Void() bool
}

func isVoid(err error) bool {
	var v void
	return errors.As(err, &v) && v.Void()
}

// wrong is an error that lies in what was asked for: nobody can do anything about
// it but ask for something else.
type wrong interface {
	Wrong() bool
}

// IsWrong tells whether an error lies in what was asked for.
func IsWrong(err error) bool {
	var w wrong
	return errors.As(err, &w) && w.Wrong()
}

func isRefusal(err error) bool {
	var r refusal
	return errors.As(err, &r) && r.Refused()
}

func isLimit(err error) bool {
	var l limit
	return errors.As(err, &l) && l.Limit()
}
