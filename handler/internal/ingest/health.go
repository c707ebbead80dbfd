package ingest

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/record"
)

// stalledRuns is after how many runs in a row without progress a run is an
// error, whatever each of them had as its reason.
const stalledRuns = 3

// Levels of a health row.
const (
	levelInfo    = "info"
	levelWarning = "warning"
	levelError   = "error"
)

// healthColumns are the columns of the health table, and what a run's report
// puts into each. A row is a run.
var healthColumns = []healthColumn{
	{record.Column{Name: "Run_s", Key: "Run", Doc: "Id of the run: RunId_s of the rows it sent."}, func(r *Report) string { return r.Run }},
	{record.Column{Name: "Dataset_s", Key: "Dataset", Doc: "What it carried: vm, kb."}, func(r *Report) string { return r.Dataset }},
	{record.Column{Name: "Request_s", Key: "Request", Doc: "Id of what somebody asked for by hand, of an older window or chosen hosts; empty for the dataset's own windows."}, func(r *Report) string { return r.Request }},
	{record.Column{Name: "Integration_s", Key: "Integration", Doc: "Id of the integration whose workspace the run was for; empty for this one."}, func(r *Report) string { return r.Integration }},
	{record.Column{Name: "Level_s", Key: "Level", Doc: "info; warning: ended early for a limit, left something behind that is kept, or met something odd; error: failed, or made no progress three times in a row."}, (*Report).level},
	{record.Column{Name: "Outcome_s", Key: "Outcome", Doc: "complete, paused, waiting or failed."}, func(r *Report) string { return string(r.Outcome) }},
	{record.Column{Name: "Reason_s", Key: "Reason", Doc: "Why it did not complete."}, func(r *Report) string { return firstRunes(r.Reason, 8000) }},
	{record.Column{Name: "Warnings_s", Key: "Warnings", Doc: "What Qualys warned of, and what looks odd although nothing failed."}, func(r *Report) string { return firstRunes(strings.Join(r.Warnings, "; "), 8000) }},
	{record.Column{Name: "Stalled_d", Key: "Stalled", Kind: record.Number, Doc: "Runs in a row, this one included, that made no progress."}, func(r *Report) string { return strconv.Itoa(r.Stalled) }},
	{record.Column{Name: "Started_t", Key: "Started", Kind: record.Time, Doc: "When it began, by the connector's clock."}, func(r *Report) string { return timeText(&r.Started) }},
	{record.Column{Name: "Ended_t", Key: "Ended", Kind: record.Time, Doc: "When it ended."}, func(r *Report) string { return timeText(&r.Ended) }},
	{record.Column{Name: "DurationSeconds_d", Key: "DurationSeconds", Kind: record.Number, Doc: "How long it took."}, func(r *Report) string {
		return strconv.FormatFloat(r.Ended.Sub(r.Started).Seconds(), 'f', 3, 64)
	}},
	{record.Column{Name: "WindowAfter_t", Key: "WindowAfter", Kind: record.Time, Doc: "Start of the window, by Qualys' clock; empty: from the beginning."}, func(r *Report) string { return timeText(r.After) }},
	{record.Column{Name: "WindowUntil_t", Key: "WindowUntil", Kind: record.Time, Doc: "End of the window, by Qualys' clock: how far the data reach when it is complete."}, func(r *Report) string { return timeText(r.Until) }},
	{record.Column{Name: "NextId_s", Key: "NextId", Doc: "Where the next run goes on, in a window that is not complete."}, func(r *Report) string {
		if r.NextID == 0 {
			return ""
		}
		return strconv.FormatUint(r.NextID, 10)
	}},
	count("Pages", "Answers read to their end.", func(c *Counts) int64 { return c.Pages }),
	count("Parents", "Hosts or QIDs read.", func(c *Counts) int64 { return c.Parents }),
	count("Decoded", "Records that were new. Decoded is accepted, dead letters and abandoned together.", func(c *Counts) int64 { return c.Decoded }),
	count("Repeated", "Records that came again unchanged, and were not sent.", func(c *Counts) int64 { return c.Repeated }),
	count("Accepted", "Rows that Log Analytics took.", func(c *Counts) int64 { return c.Accepted }),
	count("DeadLetters", "Rows that it refused for good: kept in the state container.", func(c *Counts) int64 { return c.DeadLetters }),
	count("Abandoned", "Rows left behind by a failure: the next run reads them again.", func(c *Counts) int64 { return c.Abandoned }),
	count("Cut", "Rows with a field too long for the table: kept whole in the state container.", func(c *Counts) int64 { return c.Cut }),
	count("Unjoined", "Rows whose QID the KnowledgeBase's index does not know.", func(c *Counts) int64 { return c.Unjoined }),
	count("BytesRead", "Of XML, decompressed.", func(c *Counts) int64 { return c.BytesRead }),
	count("BytesRows", "Of accepted rows, as JSON.", func(c *Counts) int64 { return c.BytesRows }),
	count("BytesSent", "Of accepted calls, as sent.", func(c *Counts) int64 { return c.BytesSent }),
	count("Requests", "To Qualys.", func(c *Counts) int64 { return c.Requests }),
	count("Retries", "Of either side.", func(c *Counts) int64 { return c.Retries }),
	count("WaitSeconds", "Before retries.", func(c *Counts) int64 { return c.WaitSeconds }),
	{record.Column{Name: "Isolated_d", Key: "Isolated", Kind: record.Number, Doc: "Hosts or QIDs whose answer fails by itself: passed, and tried again later."}, func(r *Report) string { return strconv.Itoa(r.IsolatedTotal) }},
	{record.Column{Name: "IsolatedIds_s", Key: "IsolatedIds", Doc: "They, the first hundred, as JSON array: id, after, since, again, tries, reason."}, func(r *Report) string {
		if len(r.Isolated) == 0 {
			return ""
		}
		doc, err := json.Marshal(r.Isolated)
		if err != nil {
			return err.Error() // times and numbers: it cannot happen
		}
		return string(doc)
	}},
}

type healthColumn = struct {
	record.Column
	value func(r *Report) string
}

func count(name, doc string, value func(c *Counts) int64) healthColumn {
	return healthColumn{
		record.Column{Name: name + "_d", Key: name, Kind: record.Number, Doc: doc},
		func(r *Report) string { return strconv.FormatInt(value(&r.Counts), 10) },
	}
}

func timeText(t *time.Time) string {
	if t == nil || t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// Health is the table of the connector's own health: a row for each run.
var Health = func() *record.Schema {
	s := &record.Schema{Table: "QualysConnectorHealth_CL", Columns: []record.Column{
		{Name: "TimeGenerated", Made: record.MadeTime, Kind: record.Time, Doc: "When the run ended."},
	}}
	for _, c := range healthColumns {
		s.Columns = append(s.Columns, c.Column)
	}
	return s
}()

// Schemas lists the tables of all datasets, and that of health.
func Schemas() (list []*record.Schema) {
	for _, d := range Datasets() {
		list = append(list, d.Schema)
	}
	return append(list, Health)
}

// level says how much a run needs somebody's attention.
func (r *Report) level() string {
	switch {
	case r.Outcome == Failed, r.Stalled >= stalledRuns:
		return levelError
	case r.Outcome == Waiting, r.DeadLetters > 0, len(r.Isolated) > 0, len(r.Warnings) > 0:
		return levelWarning
	}
	return levelInfo
}

// healthTries is how often a health row is tried. It is in the run record, too.
const healthTries = 3

// sendHealth sends the run's row. It must not fail the run: what the row says is
// logged and in the run record as well.
func (r *Run) sendHealth(ctx context.Context, report *Report) {
	if r.Health == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
	defer cancel()
	batch, err := healthBatch(report, r.Health.Limits())
	for tries := 1; err == nil; tries++ {
		if _, err = r.Health.Send(ctx, batch); err == nil {
			return
		}
		after, again := retryAfter(err)
		if !again || tries == healthTries || after > stopGrace {
			break
		}
		err = r.Clock.Sleep(ctx, max(after, time.Second))
	}
	r.Log.Warn("the health row is not sent; the run record is to hold the same", zap.Error(err))
}

// healthBatch is the row of a report.
func healthBatch(report *Report, limits record.Limits) (record.Batch, error) {
	rec := record.New(Health)
	for _, c := range healthColumns {
		if err := rec.Append(Health.Column(c.Name), record.Parent, []byte(c.value(report))); err != nil {
			return record.Batch{}, err
		}
	}
	body, _ := record.NewEncoder(Health, limits, record.KeepAll).Append([]byte{'['}, rec, record.Meta{Time: report.Ended, Run: report.Run})
	return record.Batch{Body: append(body, ']'), Ends: []int{len(body)}}, rec.Close()
}

// countStalled counts the runs in a row that have made no progress, in the
// checkpoint: began is where it stood when this run began.
func (r *Run) countStalled(ctx context.Context, began position) {
	stalled := 0
	// A cursor that only pages without anybody have moved is no progress either.
	came := r.counts.parents.Load() > 0 || r.state.Window == nil
	if r.state.position() == began || !came {
		stalled = r.state.Stalled + 1
	}
	if stalled == r.state.Stalled {
		return
	}
	r.state.Stalled = stalled
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
	defer cancel()
	doc, err := r.document()
	if err == nil {
		err = r.lease.Save(ctx, doc)
	}
	if err != nil {
		r.Log.Warn("the number of runs without progress is not kept", zap.Error(err))
	}
}

// position is where a checkpoint stands. A window that has only begun is none:
// nothing of it has arrived.
type position struct {
	watermark time.Time
	next      uint64
}

func (c *Checkpoint) position() (p position) {
	if c.Watermark != nil {
		p.watermark = *c.Watermark
	}
	if c.Window != nil {
		p.next = c.Window.NextID
	}
	return p
}
