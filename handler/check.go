package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"qualys-sentinel/handler/internal/check"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/ondemand"
	"qualys-sentinel/handler/internal/record"
	"qualys-sentinel/handler/internal/settings"
)

func newCheck() *cobra.Command {
	var f settingsFlags
	c := &cobra.Command{
		Use:   "check",
		Short: "Test the connection to Qualys, Log Analytics and the state",
		Long: `check tests, step by step: the settings and their Key Vault references; Qualys'
name, TLS, API server, credentials, permissions, limits, clock, and how many
hosts the account sees; the state's storage; whether Log Analytics takes rows, also
of each integration, and what has arrived there.
Each step says what to do about it.

It changes nothing: no row is sent, no checkpoint moves. Each endpoint is asked
once. What it finds is what the function app would find, if it has the same
settings and identity; from your own machine, your az login stands for the
app's identity.

  qualys-sentinel check --settings local.settings.json
` + exitCodeHelp + `
For check, 1 is: a step has failed. Warnings are 0.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return f.check(c.Context()) },
	}
	f.add(c)
	return c
}

func (f *settingsFlags) check(ctx context.Context) error {
	environ, err := f.environ()
	if err != nil {
		return err
	}
	out := newPaper(f.json)
	told := func(s check.Step) { out.step(s) }
	if f.json {
		told = nil
	}
	c, err := open(ctx, environ, purpose{rows: f.to})
	report := newChecked(ctx, c, err, environ, purpose{rows: f.to}, nil).run(ctx, told)
	if f.json {
		if err := out.document(report); err != nil {
			return &jobError{err}
		}
	} else {
		fmt.Fprintln(out, "\n"+out.outcome(string(report.Outcome), 0)+": "+map[check.Result]string{
			check.OK:      "all is well",
			check.Warning: "it works; see the warnings",
			check.Failed:  "it cannot work yet: see what failed, and what to do",
		}[report.Outcome])
	}
	switch {
	case ctx.Err() != nil:
		return exitError(exitPaused)
	case report.Outcome == check.Failed:
		return exitError(exitFailed)
	}
	return nil
}

// step writes one step.
func (p *paper) step(s check.Step) {
	took := ""
	if s.Milliseconds > 0 {
		took = p.paint(faint, fmt.Sprintf("  %d ms", s.Milliseconds))
	}
	fmt.Fprintf(p, "%s  %s%s\n", p.outcome(string(s.Result), 8), p.paint(bold, s.Title), took)
	for line := range strings.SplitSeq(s.Detail, "\n") {
		fmt.Fprintln(p, "          "+line)
	}
	if s.Advice != "" {
		fmt.Fprintln(p, "          to do: "+s.Advice)
	}
}

// checked are the connectors that a check works with: one, or where the settings
// are wrong, one for each side whose own settings are right.
type checked struct {
	source, azure, state *connector
	parts                check.Parts
	clock                ingest.Clock
}

// newChecked checks with whole. Where err says why there is none, it opens what
// can be opened, for the purpose p; before, if not nil, is the source of an earlier check, which
// knows the login that was refused.
func newChecked(ctx context.Context, whole *connector, err error, environ []string, p purpose, before *connector) *checked {
	if err == nil {
		return &checked{source: whole, azure: whole, state: whole, parts: check.Parts{References: whole.settings.References()}, clock: p.outside.time()}
	}
	c := &checked{source: before, clock: p.outside.time()}
	var invalid *settings.InvalidError
	if errors.As(err, &invalid) {
		c.parts.Faults = invalid.Faults
	} else {
		c.parts.Faults = []settings.Fault{{Setting: "settings", Problem: err.Error()}}
	}
	// Their errors are among the faults already.
	if before == nil {
		c.source, _ = open(ctx, environ, purpose{rows: p.rows, outside: p.outside, noDestination: true, connecting: true})
	}
	c.azure, _ = open(ctx, environ, purpose{rows: p.rows, outside: p.outside, noSource: true, connecting: true})
	c.state, _ = open(ctx, environ, purpose{rows: p.rows, outside: p.outside, noSource: true, noDestination: true, connecting: true})
	return c
}

// run tests the connection.
func (c *checked) run(ctx context.Context, told func(check.Step)) check.Report {
	parts := c.parts
	parts.Clock, parts.Told = c.clock, told
	if c.source != nil {
		parts.Source = c.source.checkedSource()
	}
	if c.azure != nil {
		parts.Streams = c.azure.checkedStreams()
		parts.Unscheduled = c.azure.rows != ""
		parts.Off = c.azure.functionsOff()
	}
	if c.state != nil {
		parts.State = &check.State{Store: c.state.store, Destination: c.state.destinationName()}
		if c.azure != nil && c.azure.rows == "" {
			parts.State.Integrations = c.azure.checkedIntegrations
		}
	}
	return check.Run(ctx, parts)
}

// functionsOff are those without a schedule.
func (c *connector) functionsOff() []string {
	off := []string{}
	for dataset, on := range map[*ingest.Dataset]bool{ingest.VM: c.settings.VMScheduled, ingest.KB: c.settings.KBScheduled} {
		if !on {
			off = append(off, dataset.Function)
		}
	}
	slices.Sort(off)
	return off
}

// checkedSource is the Qualys side. Its call asks for one host.
func (c *connector) checkedSource() *check.Source {
	d, err := c.detections(ondemand.Window{})
	if err != nil {
		return nil // only a window's own filter can be wrong
	}
	d.PageSize, d.Results = 1, false
	s := &check.Source{Origin: c.settings.URI, Detections: d, KnowledgeBase: c.knowledgeBase(), WithoutKnowledgeBase: !c.settings.KBScheduled}
	req := &http.Request{URL: c.settings.URI}
	if proxy, err := http.ProxyFromEnvironment(req); err == nil {
		s.Proxy = proxy
	}
	if c.outside.transport != nil {
		s.Proxy = c.settings.URI // connections are its matter
	}
	return s
}

// checkedStreams are the ways into all tables; none where rows go into a folder.
func (c *connector) checkedStreams() []check.Stream {
	if c.rows != "" {
		return []check.Stream{}
	}
	streams := []check.Stream{}
	for _, schema := range ingest.Schemas() {
		d, err := c.destination(schema, "")
		if err != nil {
			d = unmade{err}
		}
		streams = append(streams, check.Stream{Table: schema.Table, Destination: d})
	}
	return streams
}

// checkedIntegrations are the destinations beside the default one.
func (c *connector) checkedIntegrations(ctx context.Context) (list []check.Integration, err error) {
	integrations, err := c.integrations.List(ctx)
	for _, i := range integrations {
		list = append(list, check.Integration{
			ID: i.ID, Name: i.Name, Table: i.CustomLogName + "_CL", State: i.Destination(), ByRule: i.ByRule(),
			Destination: &lateDestination{Destination: kindOf(i), open: func(ctx context.Context) (ingest.Destination, error) { return c.integrationDestination(ctx, i) }},
		})
	}
	return list, err
}

// unmade is a destination that cannot be made.
type unmade struct{ err error }

func (u unmade) Send(context.Context, record.Batch) (int64, error) { return 0, u.err }
func (unmade) Limits() record.Limits                               { return record.Limits{} }
func (unmade) BatchBytes() int                                     { return 0 }
