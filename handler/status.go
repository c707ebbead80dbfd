package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/status"
)

// statusSource reads the status of what this connector works with.
func (c *connector) statusSource() *status.Source {
	return &status.Source{
		Store: c.store, Destination: c.destinationName(), Live: c.desk.Live, Now: c.outside.time().Now, Others: c.others, Rests: c.rests,
		Program: status.Program{Version: version, APIs: map[string]string{
			ingest.VM.Name: c.settings.DetectionAPIVersion, ingest.KB.Name: c.settings.KBAPIVersion,
		}},
	}
}

// rests are the times without calls to Qualys.
func (c *connector) rests(ctx context.Context, now time.Time) ([]qualys.Rest, error) {
	doc, err := c.memory().Load(ctx)
	if err != nil {
		return nil, err //nolint:wrapcheck // it says of what
	}
	return qualys.Rests(doc, now) //nolint:wrapcheck // likewise
}

// others are the integrations.
func (c *connector) others(ctx context.Context) (list []status.Other, err error) {
	integrations, err := c.integrations.List(ctx)
	for _, i := range integrations {
		list = append(list, status.Other{
			Integration: status.Integration{ID: i.ID, Name: i.Name, To: sendsTo(i), Wants: wants(i), Schedule: i.Schedule, Dataset: status.Dataset{Table: i.CustomLogName + "_CL"}},
			Of:          ingest.VM, Source: c.berth(i).status,
		})
	}
	return list, err
}

func newStatus() *cobra.Command {
	var f settingsFlags
	c := &cobra.Command{
		Use:   "status [id]",
		Short: "Tell what has arrived, what is running, and how the last runs ended",
		Long: `status reads the state: up to when each dataset is complete, what is running,
how the last runs ended, dead letters, isolated hosts, what was asked for by
hand, and the same of each integration. With the id of a sync or a run it tells
the story of that one.

It needs the state only: --state, or the storage account, for which az login
needs the role Storage Blob Data Reader.

  qualys-sentinel status --set AzureWebJobsStorage__accountName=<store>
` + exitCodeHelp,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return f.status(c.Context(), strings.Join(args, ""))
		},
	}
	f.add(c)
	return c
}

func (f *settingsFlags) status(ctx context.Context, id string) error {
	environ, err := f.environ()
	if err != nil {
		return err
	}
	c, err := open(ctx, environ, purpose{rows: f.to, noSource: true, noDestination: true})
	if err != nil {
		return err
	}
	out := newPaper(f.json)
	source := c.statusSource()
	if id != "" {
		return f.statusOf(ctx, source, out, id)
	}
	doc := source.Gather(ctx)
	if f.json {
		err = out.document(doc)
	} else {
		for _, d := range doc.Datasets {
			out.dataset(&d, doc.At)
		}
		for _, i := range doc.Integrations {
			out.integration(&i, doc.At)
		}
		for _, r := range doc.Rests {
			fmt.Fprintf(out, "no calls: %s until %s: %s\n", r.Of, r.Until.Format(time.RFC3339), out.paint(yellow, firstLine(r.Reason)))
		}
		for _, text := range doc.Problems {
			fmt.Fprintln(out, "problem: "+out.paint(red, text))
		}
	}
	if err != nil {
		return &jobError{err}
	}
	problems := doc.Problems
	for _, d := range doc.Datasets {
		problems = append(problems, d.Problems...)
	}
	for _, i := range doc.Integrations {
		problems = append(problems, i.Problems...)
	}
	if len(problems) > 0 {
		return exitError(exitFailed) // they are told
	}
	return nil
}

func (f *settingsFlags) statusOf(ctx context.Context, source *status.Source, out *paper, id string) error {
	doc, err := source.Find(ctx, id)
	switch {
	case err == nil && doc == nil:
		err = fmt.Errorf("there is no sync or run %q", id)
		fallthrough
	case err != nil:
		return out.failed(err)
	case f.json:
		if err := out.document(doc); err != nil {
			return &jobError{err}
		}
		return nil
	}
	for _, s := range doc.Syncs {
		out.sync(&s)
	}
	return nil
}

// integration writes an integration's status.
func (p *paper) integration(i *status.Integration, now time.Time) {
	fmt.Fprintf(p, "%s\n  %-14s %s, table %s\n  %-14s %s\n", p.paint(bold, fmt.Sprintf("Integration %d: %s", i.ID, i.Name)), "to", i.To, i.Table, "wants", i.Wants)
	p.facts(&i.Dataset, now, fmt.Sprintf("%s --integration %d", i.Dataset.Dataset, i.ID))
}

// dataset writes a dataset's status.
func (p *paper) dataset(d *status.Dataset, now time.Time) {
	fmt.Fprintln(p, p.paint(bold, d.Title))
	p.facts(d, now, d.Dataset)
}

// facts writes what is known of a dataset at one destination; replay are the arguments
// by which its dead letters are sent again.
func (p *paper) facts(d *status.Dataset, now time.Time, replay string) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(p, "  %-14s %s\n", name, fmt.Sprintf(format, args...))
	}
	if d.Watermark == nil {
		line("complete", "no window yet")
	} else {
		line("complete", "up to %s, %s ago", d.Watermark.Format(time.RFC3339), (time.Duration(*d.AgeSeconds) * time.Second).String())
	}
	if w := d.Window; w != nil {
		line("in work", "up to %s, next is %d", w.Until.Format(time.RFC3339), w.NextID)
	}
	for _, r := range d.Running {
		line("running", "%s %s as of %s ago: %s %s, %s %s accepted%s", p.outcome(status.Running, 0), r.Run, now.Sub(r.AsOf).Round(time.Second),
			thousands(r.Counts.Parents), d.Parents, thousands(r.Counts.Accepted), d.Records, prefixed("; waiting ", firstLine(r.Waiting)))
	}
	if k := d.Killed; k != nil {
		line("killed", "%s ended without a word, after %s", p.paint(yellow, k.Run), k.AsOf.Format(time.RFC3339))
	}
	if l := d.Limits; l != nil && l.Remaining >= 0 {
		line("Qualys calls", "%d of %d left at %s", l.Remaining, l.Calls, d.LimitsAt.Format(time.RFC3339))
	}
	if d.Stalled > 0 {
		line("stalled", "%d runs in a row without progress", d.Stalled)
	}
	if d.DeadLetters > 0 {
		line("dead letters", "%s: qualys-sentinel replay %s --list tells why", p.paint(red, fmt.Sprintf("%d objects", d.DeadLetters)), replay)
	}
	if d.CutFields > 0 {
		line("cut fields", "%d objects keep them whole", d.CutFields)
	}
	for _, i := range d.Isolated {
		line("isolated", "%s %d, tried again at %s: %s", p.paint(yellow, d.Parents), i.ID, i.Again.Format(time.RFC3339), firstLine(i.Reason))
	}
	if more := d.IsolatedTotal - len(d.Isolated); more > 0 {
		line("isolated", "and %d more", more)
	}
	if len(d.Runs) > 0 {
		for _, text := range d.Runs[0].Warnings {
			line("warning", "%s", p.paint(yellow, text))
		}
	}
	for _, text := range d.Problems {
		line("problem", "%s", p.paint(red, text))
	}
	for _, s := range d.Syncs {
		p.sync(&s)
	}
	for i := range d.Runs {
		p.run(&d.Runs[i], d)
	}
	if len(d.Runs) == 0 {
		line("runs", "none yet")
	}
	fmt.Fprintln(p)
}

func prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}

// run writes a run that has ended.
func (p *paper) run(r *ingest.Report, d *status.Dataset) {
	fmt.Fprintf(p, "  %s %s %s  %s %s, %s read, %s accepted%s\n", r.Started.Format("2006-01-02 15:04:05"), p.outcome(string(r.Outcome), 9), p.paint(faint, r.Run),
		thousands(r.Parents), d.Parents, thousands(r.Decoded), thousands(r.Accepted), prefixed(": ", firstLine(r.Reason)))
}

// sync writes the story of a sync.
func (p *paper) sync(s *status.Sync) {
	asked := "by its schedule"
	if s.Asked != nil {
		asked = "asked for at " + s.Asked.Format(time.RFC3339)
	}
	fmt.Fprintf(p, "  sync %s of %s: %s, %s%s\n", s.ID, s.Dataset, p.outcome(s.State, 0), asked, prefixed(": ", firstLine(s.Reason)))
	for _, a := range s.Attempts {
		text := ""
		if r := a.Record; r != nil {
			text = fmt.Sprintf("  %s accepted%s", thousands(r.Accepted), prefixed(": ", firstLine(r.Reason)))
		}
		fmt.Fprintf(p, "    %s %s %s%s\n", a.Started.Format("2006-01-02 15:04:05"), p.outcome(a.Outcome, 9), p.paint(faint, a.Run), text)
	}
}
