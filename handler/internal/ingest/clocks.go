package ingest

import (
	"fmt"
	"time"

	"go.uber.org/zap"
)

// Clocks are one moment by two clocks.
type Clocks struct {
	Qualys time.Time `json:"qualys"`
	Here   time.Time `json:"here"`
}

// stretch decides from where to where a window that is asked for from after on
// has to reach, in Qualys' time, when its first answer comes.
//
// It ends at Qualys' time, but not later than this machine's: were Qualys' clock
// ahead, what the right clock dates afterwards would be before the watermark,
// and never asked for. A clock here that is behind costs longer windows.
//
// It begins earlier than asked for if Qualys' clock has gone back since the
// watermark was taken, or if the very first window was to begin at a time that
// this machine's clock had ahead. It may be this clock that has jumped: then
// the longer window brings nothing new.
func (r *Run) stretch(after time.Time, now Clocks) (from, until time.Time, err error) {
	s := r.state
	from, until = after, now.Qualys
	if apart := now.Qualys.Sub(now.Here); apart > MaxApart {
		return from, until, fmt.Errorf("by Qualys' clock it is %s, by this machine's %s: one of them is wrong, and nothing is read until it is set right",
			now.Qualys.Format(time.RFC3339), now.Here.Format(time.RFC3339))
	}
	if now.Here.Before(until) {
		until = now.Here
	}
	if ahead := now.Here.Sub(now.Qualys); ahead > clockWarning {
		r.Log.Warn("this machine's clock is ahead of Qualys'", zap.Duration("by", ahead.Round(time.Second)))
	}
	switch {
	case r.Asked != nil:
		// It begins where somebody has said.
	case s.Watermark == nil:
		if first := now.Qualys.Add(-r.Lookback); !after.IsZero() && first.Before(after) {
			from = first
		}
	case s.Watermark.After(now.Qualys.Add(r.Overlap)) && s.Watermark.After(now.Here.Add(r.Overlap)):
		return from, until, fmt.Errorf("%s: the watermark %s is in the future: by Qualys' clock it is %s; set it back to when data are missing from",
			r.CheckpointName(), s.Watermark.Format(time.RFC3339), now.Qualys.Format(time.RFC3339))
	default:
		if s.Clocks != nil && !after.IsZero() {
			if fallen := now.Here.Sub(s.Clocks.Here) - now.Qualys.Sub(s.Clocks.Qualys); fallen > r.Overlap/2 {
				from = s.Watermark.Add(-fallen - r.Overlap)
			}
		}
	}
	return from.Truncate(time.Second), until.Truncate(time.Second), nil
}

// clockWarning is how far this machine's clock may be ahead without a word: then
// it does not guard against Qualys' being ahead, too.
const clockWarning = 10 * time.Minute

// MaxApart is how far Qualys' clock may be ahead of this machine's: beyond it
// nothing is read.
const MaxApart = 24 * time.Hour

// againError ends a page whose window begins too late; see stretch.
type againError struct{ after time.Time }

func (e *againError) Error() string {
	return "Qualys' clock, or this machine's, has jumped: the window has to begin at " + e.after.Format(time.RFC3339)
}
