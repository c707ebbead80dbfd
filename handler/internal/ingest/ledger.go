package ingest

import (
	"context"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/record"
)

// A ledger remembers rows that were delivered, so that an overlap sends
// nothing twice: recent those of the last window, index the last of every
// record.
//
// begin to take belong to the reading goroutine, delivered and due to whoever
// settles batches, one at a time.
type ledger interface {
	// begin says which window is being carried over.
	begin(w *Window)
	// repeated tells whether the row has been delivered, unchanged, and need
	// not be sent.
	repeated(rec *record.Record, row record.Row) bool
	// done says that a parent is whole, forget that it broke off.
	done()
	forget()
	// take hands the rows of whole parents over to the batch that brings the
	// last of them.
	take() []byte
	// delivered takes them back when the batch has arrived.
	delivered(rows []byte)
	// due returns what is to be done before the checkpoint moves behind rows
	// that were delivered; nil for nothing. An error of it stops the run.
	due(now time.Time) func(ctx context.Context) error
	// saved says that the checkpoint is saved.
	saved(ctx context.Context)
	// end keeps what is known when the run ends, with the window whole or not.
	// The checkpoint is saved behind it.
	end(ctx context.Context, whole bool)
}

// sendsAll is the ledger of an asked window: what is asked for is sent, whether
// it was delivered before or not.
type sendsAll struct{}

var _ ledger = sendsAll{}

func (sendsAll) begin(*Window)                            {}
func (sendsAll) repeated(*record.Record, record.Row) bool { return false }
func (sendsAll) done()                                    {}
func (sendsAll) forget()                                  {}
func (sendsAll) take() []byte                             { return nil }
func (sendsAll) delivered([]byte)                         {}
func (sendsAll) due(time.Time) func(context.Context) error {
	return nil
}
func (sendsAll) saved(context.Context)     {}
func (sendsAll) end(context.Context, bool) {}

// openLedger opens the dataset's ledger. Where an index should be and is not,
// the window begins anew with everything.
func (r *Run) openLedger(ctx context.Context) (ledger, error) {
	if r.Asked != nil {
		return sendsAll{}, nil
	}
	if len(r.Dataset.Indexed) == 0 {
		return openRecent(ctx, r), nil
	}
	x, err := openIndex(ctx, r)
	if err != nil {
		return nil, err
	}
	if x.generation == "" && (r.state.Watermark != nil || r.state.Window != nil) {
		r.Log.Warn("without the index of what was delivered, everything is loaded again", zap.String("index", x.lost))
		r.state.Watermark, r.state.Window, r.state.Trouble = nil, nil, nil
	}
	return x, nil
}
