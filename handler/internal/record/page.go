package record

import (
	"errors"
	"time"
)

// A Query asks for one page of records.
type Query struct {
	// After is the start of the window: what Qualys processed or changed
	// since. Zero: everything.
	After time.Time
	// Known is how much earlier the window may begin without bringing anything anew:
	// what is between is known to the one who asks. Zero: no earlier than After.
	Known time.Time
	// From is the lowest parent id to return; zero from the beginning. To is the
	// highest; zero: there is none.
	From, To uint64
	// Size is how many parents to ask for at most; zero: as many as the source
	// takes at once.
	Size int
}

// ErrNoList says that the ids of a window are not known yet: whatever has failed, no
// parent is to blame.
var ErrNoList = errors.New("the ids of the window are not listed yet")

// A Page is what an answer told apart from its records. It exists only for an
// answer that was read to the end of its root element.
type Page struct {
	// Next is the parent id that the next page begins with; zero on the last, of
	// the range that was asked for.
	Next uint64
	// Warning is the text of a warning other than that of more records.
	Warning string
	// Doubt is a warning that may say that the answer is not whole. Next asks for the
	// rest then; where a range leaves no room for that, the page is not whole.
	Doubt string
}

// CallLimits are those of one of a service's endpoints, as it told last. A field
// is -1 where it did not tell.
type CallLimits struct {
	Calls      int `json:"calls"`      // allowed in a window
	Remaining  int `json:"remaining"`  // of them
	WindowSec  int `json:"windowSec"`  // length of the window
	Concurrent int `json:"concurrent"` // calls allowed at once
	Running    int `json:"running"`    // calls going on, whoever's they are
}

// NoCallLimits are limits that nothing is known of.
var NoCallLimits = CallLimits{-1, -1, -1, -1, -1}

// A Sink takes the records of a page as they are decoded, one at a time, on
// one goroutine. An error from any method ends the page with that error.
type Sink interface {
	// Begin is called once, before the first record, with the answer's time by
	// Qualys' clock.
	Begin(at time.Time) error
	// Record takes one record. It must not keep r.
	Record(r *Record) error
	// Done says that all records of a parent were handed over. id is zero if
	// the document gave none that is a number.
	Done(id uint64) error
	// Tally adds to the counts: what was read from the wire and mended in it.
	// It is called now and then, so that progress can be seen.
	Tally(t Tally)
	// Doubt is called behind the last parent when the answer may not be whole, before the
	// source asks for more to find out: a process may end meanwhile.
	Doubt() error
}

// A Tally is counts of what was read.
type Tally struct {
	Requests int64
	Bytes    int64 // of the document, after decompression
	Repairs  int64 // characters replaced, entities kept as written
	Unknown  int64 // elements without a column, kept in the Extra column
	Expected int64 // parents that the source says are to come; zero where it does not
	Late     int64 // parent elements after the first record: on the last row only
}

// Add adds o to t.
func (t *Tally) Add(o Tally) {
	t.Requests += o.Requests
	t.Bytes += o.Bytes
	t.Repairs += o.Repairs
	t.Unknown += o.Unknown
	t.Expected += o.Expected
	t.Late += o.Late
}
