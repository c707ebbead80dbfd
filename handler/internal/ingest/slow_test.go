package ingest_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/record"
)

// brief is the patience of runs whose clock says when it is at an end. It grows, but stays
// below leastBackOff: what is longer is a wait before another try, which goes on by the
// clock of the world.
const (
	brief        = time.Millisecond
	leastBackOff = time.Second
)

// impatient is a clock by which patience is at an end at once, until it is calm.
type impatient struct {
	*clock
	calm chan struct{}
}

func (c impatient) Sleep(ctx context.Context, d time.Duration) error {
	if d >= leastBackOff {
		return c.clock.Sleep(ctx, d)
	}
	select {
	case <-c.calm:
		<-ctx.Done()
		return context.Cause(ctx)
	default:
		return context.Cause(ctx)
	}
}

// A destination that takes no batch for long does not hold the others up; when it
// takes them again all arrives.
func TestSlowDestination(t *testing.T) {
	f := newFleet(t, 95, 6, choices[0], choices[1], choices[0], choices[2])
	calm, others := make(chan struct{}), int32(3)
	slow := f.members[2]
	slow.dest.before = func(int, record.Batch) error {
		<-calm
		return nil
	}
	reports, errs := f.do(t, func(i int, r *ingest.Run) {
		if i == 2 {
			r.InFlight, r.Patience, r.Clock = 2, brief, impatient{f.clock, calm}
			return
		}
		r.Ending = func(context.Context, ingest.Report, error) {
			if atomic.AddInt32(&others, -1) == 0 {
				close(calm)
			}
		}
	})
	wantComplete(t, reports, errs)
	f.wantExactly(t, time.Time{}, 5) // of a host that a page broke off in
	if f.calls > 22 {                // ten pages, and ten of its own
		t.Errorf("%d calls", f.calls)
	}
}

// once is a clock by which patience is at an end at once, the first time; then what is
// held up goes on.
type once struct {
	*clock
	ended *sync.Once
	calm  chan struct{}
}

func (c once) Sleep(ctx context.Context, d time.Duration) error {
	if d >= leastBackOff {
		return c.clock.Sleep(ctx, d)
	}
	first := false
	c.ended.Do(func() {
		first = true
		close(c.calm)
	})
	if !first {
		<-ctx.Done()
	}
	return context.Cause(ctx)
}

// An isolated host that is well again arrives, even if its destination is slow just
// then: that says nothing of the host.
func TestSlowWhileIsolatedIsRetried(t *testing.T) {
	f := newFleet(t, 45, 60, choices[0], choices[0])
	ill := f.hostIDs()[20]
	f.ill(true, ill)
	reports, errs := f.do(t, nil)
	wantComplete(t, reports, errs)
	if len(reports[1].Isolated) != 1 {
		t.Fatalf("%+v", reports[1].Isolated)
	}
	f.before = nil // well again
	f.clock.advance(30 * time.Minute)
	c := once{f.clock, &sync.Once{}, make(chan struct{})}
	f.members[1].dest.before = func(int, record.Batch) error {
		<-c.calm
		return nil
	}
	reports, errs = f.do(t, func(i int, r *ingest.Run) {
		if i == 1 {
			r.InFlight, r.Patience, r.Clock = 1, brief, c
		}
	})
	wantComplete(t, reports, errs)
	for i, r := range reports {
		if len(r.Isolated) != 0 || r.Decoded == 0 {
			t.Errorf("%d: %+v", i, r)
		}
	}
}

// Batches of an isolated host that breaks off again are waited for before the window
// is closed.
func TestIsolatedBreaksOffAgain(t *testing.T) {
	w := newWorld(t, 45, 60)
	w.dest.batch = 8_000
	ill := w.hostIDs()[20]
	var served chan struct{}
	w.spoil(func(doc string) (string, bool) {
		i := strings.Index(doc, fmt.Sprintf("<ID>%d</ID>", ill))
		if i < 0 {
			return doc, true
		}
		if served != nil {
			close(served)
		}
		end := i + strings.Index(doc[i:], "</HOST>") - 10
		return doc[:end] + "</WRONG>" + doc[end:], true
	})
	if report := w.mustComplete(); len(report.Isolated) != 1 {
		t.Fatalf("%+v", report.Isolated)
	}
	w.clock.advance(30 * time.Minute)
	served = make(chan struct{})
	w.dest.before = func(_ int, b record.Batch) error {
		if strings.Contains(string(b.Body), fmt.Sprintf(`"HostId_s":"%d"`, ill)) { // those of the window itself arrive
			<-served
		}
		return nil
	}
	if report := w.mustComplete(); len(report.Isolated) != 1 || report.Decoded != report.Accepted || report.Accepted == 0 {
		t.Errorf("%+v", report)
	}
}

// takesTime is a clock that a destination moves on, and by which patience is at an end
// when it is used up.
type takesTime struct{ *clock }

func (c takesTime) Sleep(ctx context.Context, d time.Duration) error {
	if d >= leastBackOff {
		return c.clock.Sleep(ctx, d)
	}
	if d > 0 {
		<-ctx.Done()
	}
	return context.Cause(ctx)
}

// Patience is for a whole page: a destination that is just not slow enough with each
// batch is slow, too.
func TestPatienceIsForAPage(t *testing.T) {
	f := newFleet(t, 95, 6, choices[0], choices[0])
	f.members[1].dest.before = func(int, record.Batch) error {
		f.clock.advance(brief * 14 / 15)
		return nil
	}
	core, logs := observer.New(zap.WarnLevel)
	reports, errs := f.do(t, func(i int, r *ingest.Run) {
		f.convoy.Log = zap.New(core)
		if i == 1 {
			r.InFlight, r.Patience, r.Clock, r.Budget = 1, brief, takesTime{f.clock}, 10*time.Hour
		}
	})
	wantComplete(t, reports, errs)
	if logs.FilterMessageSnippet("too slow for the others").Len() == 0 {
		t.Error("it is not slow")
	}
	f.wantExactly(t, time.Time{}, 20) // of hosts that pages broke off in
}
