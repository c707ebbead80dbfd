package check

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/loganalytics"
	"qualys-sentinel/handler/internal/record"
)

// An Integration is a destination beside the default one.
type Integration struct {
	ID    int64
	Name  string
	Table string
	// ByRule tells that it is reached by a data collection rule.
	ByRule bool
	// Destination of its rows, by this name in the state.
	Destination ingest.Destination
	State       string
}

// atOnce is how many destinations are tested at once.
const atOnce = 8

const titleIntegrations = "Integrations"

// integrations posts an empty list of rows to each, and says what has arrived there.
func (s *State) integrations(ctx context.Context, b *bench) {
	if s.Integrations == nil {
		return // how they are reached is not known: the settings have been told
	}
	step, cancel := b.begin(ctx)
	list, err := s.Integrations(step)
	err = timedOut(step, err)
	cancel()
	if err != nil {
		b.end("integrations", titleIntegrations, failed(err.Error(), "the text says what; those that cannot be read get nothing until it is mended"))
	}
	verdicts := make([]chan verdict, len(list))
	turns := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	defer wg.Wait()
	for n, i := range list {
		verdicts[n] = make(chan verdict, 1)
		wg.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			step, cancel := context.WithTimeout(ctx, b.stepTime)
			defer cancel()
			verdicts[n] <- s.one(step, i)
		})
	}
	for n, i := range list {
		b.end(fmt.Sprintf("integration %d", i.ID), fmt.Sprintf("Integration %d: %s", i.ID, i.Name), <-verdicts[n])
	}
}

func (s *State) one(ctx context.Context, i Integration) verdict {
	_, err := i.Destination.Send(ctx, record.Batch{Body: []byte("[]")})
	err = timedOut(ctx, err)
	var e *loganalytics.Error
	errors.As(err, &e)
	if e != nil && e.NoToken {
		return skipped("the sign-in")
	}
	v := signIn(e, err)
	if v.result != Failed {
		v = stream(e, err)
	}
	switch {
	case v.result == Failed && i.ByRule:
		v.advice = adviceRule
	case v.result == Failed:
		v.advice = adviceKey
	case v.result == OK:
		return s.arrived(ctx, i)
	}
	return v
}

// What to do about an integration whose workspace refuses.
const (
	adviceRule = "compare its logAnalyticsUri and dcrImmutableId with the rule, give this app's identity the role Monitoring Metrics Publisher on it, and deploy arm/tables.json there if it has no stream of the table's name"
	adviceKey  = "compare its workspaceId and primaryKey with the workspace, and set the key again, or mend what the text says of the vault; the machine's clock is a part of the signature"
)

// arrived tells what has arrived, so that an integration that gets nothing because
// there is nothing can be told from one that gets nothing for another reason.
func (s *State) arrived(ctx context.Context, i Integration) verdict {
	c, err := ingest.ReadCheckpoint(ctx, s.Store, ingest.CheckpointName(i.State, ingest.VM.Name), ingest.VM.Name)
	switch {
	case err != nil:
		return failed(err.Error(), "the text says what; nothing is sent there until it is mended")
	case c == nil:
		return ok("it takes rows of %s; none were sent yet: its first window comes with the next run of QualysVM", i.Table)
	case c.Stalled > 0:
		return warning(fmt.Sprintf("it takes rows of %s now, but its last %d runs made no progress", i.Table, c.Stalled), "see the reason in the status; if it is mended, nothing: the next run goes on")
	case c.Watermark == nil:
		return ok("it takes rows of %s; its first window is in work", i.Table)
	}
	detail := fmt.Sprintf("it takes rows of %s; complete up to %s", i.Table, c.Watermark.UTC().Format("2006-01-02 15:04 MST"))
	if n := c.Progress; n != nil {
		detail += fmt.Sprintf(". Its last run read %d hosts, of which %d findings are what it wants and were new", n.Counts.Parents, n.Counts.Decoded)
	}
	return ok("%s", detail)
}
