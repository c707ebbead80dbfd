package ingest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/record"
)

// A witness is a source that can tell by another way whether a window has anything:
// it names one of its parents, or zero.
type witness interface {
	Witness(ctx context.Context, q record.Query, count func(record.Tally)) (uint64, error)
}

// witnessTime is how long that may take: the window is whole without it.
const witnessTime = time.Minute

// askWitness warns of a window that has brought nothing although there is a witness
// who says that it should have. It proves nothing: a parent may have no record that
// the settings ask for.
func (r *Run) askWitness(ctx context.Context) {
	w, ok := r.Source.(witness)
	if !ok || r.counts.parents.Load() > 0 || r.began.next > 0 {
		return
	}
	var q record.Query
	if r.state.Window.After != nil {
		q.After = *r.state.Window.After
	}
	ctx, cancel := context.WithTimeout(ctx, witnessTime)
	defer cancel()
	switch id, err := w.Witness(ctx, q, r.counts.addTally); {
	case err != nil:
		r.Log.Info("whether the empty window should be empty is not known", zap.Error(err))
	case id != 0:
		r.warn(fmt.Sprintf("the window has brought nothing, although there are %s in it, such as %d: right only if none of them has a record that filterParameters want", r.Dataset.Parents, id))
	}
}

// maxWarnings is how many different warnings a run keeps.
const maxWarnings = 10

// warn keeps a warning for the run's report.
func (r *Run) warn(text string) {
	if slices.Contains(r.warnings, text) || len(r.warnings) == maxWarnings {
		return
	}
	r.warnings = append(r.warnings, text)
	r.Log.Warn("warning", zap.String("warning", text))
}
