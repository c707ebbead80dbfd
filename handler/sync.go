package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"qualys-sentinel/handler/internal/api"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/loganalytics"
	"qualys-sentinel/handler/internal/ondemand"
	"qualys-sentinel/handler/internal/settings"
)

// settingsFlags are the flags of the commands that work with settings.
type settingsFlags struct {
	settingsFile string
	set          []string
	to           string
	state        string
	log          string
	json         bool
}

func newSync() *cobra.Command {
	var f syncFlags
	c := &cobra.Command{
		Use:   "sync <dataset>",
		Short: "Run once, from this terminal",
		Long: `sync carries a dataset over once: from where its checkpoint stands to now.
Interrupt it with Ctrl-C whenever you like: the next sync goes on.

Datasets:
` + datasetHelp() + `  all    one after the other

It is for the default destination: the function app sends to integrations.

With --since, --full or --host-ids it sends an older window, everything, or
chosen hosts again, and leaves the checkpoint as it is. Interrupted, the same
command goes on, and so does the function app at its next tick.

Settings are the function app's (see README.md), taken from the environment,
then --settings, then --set. Secrets belong into the environment or the file:
a command line is visible to others. A Key Vault reference works as well.

Into a local folder, to look at the rows before anything is deployed:

  export apiUsername=... apiPassword=...
  qualys-sentinel sync vm --set uri=https://qualysapi.qg2.apps.qualys.com --to rows --state state

Into Azure, with the settings of the function app:

  az login
  qualys-sentinel sync vm --settings local.settings.json
` + exitCodeHelp,
		Args: cobra.MatchAll(cobra.ExactArgs(1), func(_ *cobra.Command, args []string) error {
			_, err := findDatasets(args[0])
			return err
		}),
		ValidArgs: append(datasetNames(), api.All),
		RunE: func(c *cobra.Command, args []string) error {
			datasets, err := findDatasets(args[0])
			if err != nil {
				return err
			}
			window, err := f.window(c.Flags(), datasets)
			if err != nil {
				return err
			}
			return f.sync(c.Context(), datasets, window)
		},
	}
	f.add(c)
	addLog(c, &f.log)
	c.Flags().StringVar(&f.since, "since", "", "a `time` such as 2026-11-01 or 2026-11-01T00:00:00Z: send what was processed since")
	c.Flags().BoolVar(&f.full, "full", false, "send everything")
	c.Flags().StringSliceVar(&f.hosts, "host-ids", nil, "`ids` of hosts, by comma: send only theirs")
	c.Flags().StringVar(&f.filter, "filter", "", "with one of these: `parameters` in place of the setting filterParameters")
	return c
}

// syncFlags are those of sync.
type syncFlags struct {
	settingsFlags
	since  string
	full   bool
	hosts  []string
	filter string
}

// window is what the flags ask for. It is checked as a request over HTTP is.
// A flag that is given and empty, as by a script whose variable is, asks for
// nothing that there is.
func (f *syncFlags) window(flags *pflag.FlagSet, datasets []*ingest.Dataset) (ondemand.Window, error) {
	asked := map[string]any{}
	for flag, member := range map[string]struct {
		name  string
		value any
	}{"since": {"since", f.since}, "full": {"full", f.full}, "host-ids": {"hostIds", f.hosts}, "filter": {"filterParameters", f.filter}} {
		if flags.Changed(flag) {
			asked[member.name] = member.value
		}
	}
	body, err := json.Marshal(asked)
	if err != nil {
		return ondemand.Window{}, fmt.Errorf("read the flags: %w", err)
	}
	w, err := ondemand.Parse(body, time.Now(), checkFilter)
	if err == nil {
		err = w.Fits(datasets)
	}
	return w, err
}

// add declares the flags.
func (f *settingsFlags) add(c *cobra.Command) {
	f.addState(c)
	c.Flags().StringVar(&f.to, "to", "", "write rows into this `folder` instead of Log Analytics")
	_ = c.MarkFlagDirname("to") // the flag is there
}

// addState declares those of commands that send nothing.
func (f *settingsFlags) addState(c *cobra.Command) {
	c.Flags().StringVar(&f.settingsFile, "settings", "", "`file` with settings, in the form of local.settings.json")
	c.Flags().StringArrayVar(&f.set, "set", nil, "one setting, `name=value`; may be repeated")
	c.Flags().StringVar(&f.state, "state", "", "keep the state in this `folder` instead of blob storage")
	addJSON(c, &f.json)
	_ = c.MarkFlagFilename("settings", "json") // the flags are there
	_ = c.MarkFlagDirname("state")
}

// addLog and addJSON declare flags that several commands have.
func addLog(c *cobra.Command, level *string) {
	c.Flags().StringVar(level, "log", "warn", "what to log: debug, info, warn or error")
	_ = c.RegisterFlagCompletionFunc("log", cobra.FixedCompletions([]string{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp)) // it is there
}

func addJSON(c *cobra.Command, asJSON *bool) {
	c.Flags().BoolVar(asJSON, "json", false, "print the result as JSON; progress and logs stay on stderr")
}

func datasetHelp() string {
	var b strings.Builder
	for _, d := range ingest.Datasets() {
		fmt.Fprintf(&b, "  %-6s %s, into table %s\n", d.Name, d.Title, d.Schema.Table)
	}
	return b.String()
}

func datasetNames() (names []string) {
	for _, d := range ingest.Datasets() {
		names = append(names, d.Name)
	}
	return names
}

func findDataset(name string) (*ingest.Dataset, error) {
	for _, d := range ingest.Datasets() {
		if d.Name == name {
			return d, nil
		}
	}
	return nil, fmt.Errorf("dataset %q is unknown. Accepted: %s", name, strings.Join(datasetNames(), ", "))
}

// findDatasets finds a dataset, or all: the KnowledgeBase first, as detections
// may carry what it says.
func findDatasets(name string) ([]*ingest.Dataset, error) {
	if name == api.All {
		return []*ingest.Dataset{ingest.KB, ingest.VM}, nil
	}
	d, err := findDataset(name)
	if err != nil {
		return nil, fmt.Errorf("%w, %s", err, api.All)
	}
	return []*ingest.Dataset{d}, nil
}

// environ is the environment with the file's and the flags' settings behind it.
func (f *settingsFlags) environ() ([]string, error) {
	environ := os.Environ()
	if f.settingsFile != "" {
		doc, err := os.ReadFile(f.settingsFile)
		if err != nil {
			return nil, fmt.Errorf("--settings: %w", err)
		}
		var file struct{ Values map[string]string }
		if err := json.Unmarshal(doc, &file); err != nil {
			return nil, fmt.Errorf("--settings %s: %w", f.settingsFile, err)
		}
		for name, value := range file.Values {
			environ = override(environ, name, value)
		}
	}
	for _, pair := range f.set {
		name, value, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, fmt.Errorf("--set %q: it must be name=value", name)
		}
		if err := checkSet(name, value); err != nil {
			return nil, err
		}
		environ = override(environ, name, value)
	}
	if f.state != "" {
		environ = override(environ, "stateFolder", f.state)
	}
	return environ, obey(environ)
}

// obey lets Go itself see what it reads of the environment, such as a proxy that is in
// a settings file: under the Functions host that is in the environment, too.
func obey(environ []string) error {
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		for _, known := range []string{"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE"} {
			if !strings.EqualFold(name, known) || os.Getenv(name) == value {
				continue
			}
			if err := os.Setenv(name, value); err != nil {
				return fmt.Errorf("set %s: %w", name, err)
			}
		}
	}
	return nil
}

// checkSet refuses names that mean nothing, and secrets.
func checkSet(name, value string) error {
	for _, d := range settings.Definitions() {
		if !strings.EqualFold(d.Name, name) {
			continue
		}
		if d.Secret && !settings.IsReference(value) {
			return fmt.Errorf("--set %s: a command line is visible to others: put it into the environment or a --settings file", d.Name)
		}
		return nil
	}
	return fmt.Errorf("--set %s: there is no such setting; see README.md", name)
}

// override replaces a setting, whatever case its name was in.
func override(environ []string, name, value string) []string {
	kept := environ[:0:0]
	for _, pair := range environ {
		if n, _, _ := strings.Cut(pair, "="); !strings.EqualFold(n, name) {
			kept = append(kept, pair)
		}
	}
	return append(kept, name+"="+value)
}

func (f *syncFlags) sync(ctx context.Context, datasets []*ingest.Dataset, window ondemand.Window) error {
	environ, err := f.environ()
	if err != nil {
		return err
	}
	log, err := terminalLog(f.log)
	if err != nil {
		return err
	}
	c, err := open(ctx, environ, purpose{rows: f.to, log: log})
	if err != nil {
		return err
	}
	out := newPaper(f.json)
	result := runsDocument{Runs: []ingest.Report{}}
	for _, dataset := range datasets {
		var report ingest.Report
		if report, err = c.syncOnce(ctx, dataset, window, out); report.Run != "" {
			result.Runs = append(result.Runs, report)
		}
		if err = endOf(report, err); err != nil {
			break
		}
	}
	return errors.Join(err, out.finish(result))
}

// runsDocument is the result of commands that run.
type runsDocument struct {
	Runs []ingest.Report `json:"runs"`
}

// finish writes the result of runs, where it is wanted as JSON: people have read
// it already.
func (p *paper) finish(result runsDocument) error {
	if !p.json {
		return nil
	}
	return p.document(result)
}

// syncOnce carries a window of a dataset, with progress on stderr.
func (c *connector) syncOnce(ctx context.Context, dataset *ingest.Dataset, window ondemand.Window, out *paper) (ingest.Report, error) {
	r, do, err := c.begin(ctx, dataset, window)
	if err != nil {
		return ingest.Report{}, err
	}
	p := startProgress(os.Stderr, r)
	report, err := do(ctx)
	p.end()
	err = errors.Join(err, closeRun(r))
	if !out.json {
		printReport(out, dataset, report)
		if folder, ok := r.Destination.(*loganalytics.Folder); ok && report.Accepted > 0 {
			fmt.Fprintln(out, "  rows           "+folder.Path())
		}
	}
	return report, err
}

// begin makes a run of the dataset's own next window, or takes a request for
// another: the one that an earlier sync has left open, or a new one.
func (c *connector) begin(ctx context.Context, dataset *ingest.Dataset, window ondemand.Window) (*ingest.Run, func(context.Context) (ingest.Report, error), error) {
	if window.Own() {
		r, done, err := c.desk.Own(ctx, dataset)
		if err != nil {
			return nil, nil, err
		}
		return r, func(ctx context.Context) (ingest.Report, error) {
			defer done()
			return r.Do(ctx)
		}, nil
	}
	job, err := c.desk.Resume(ctx, dataset, window)
	if err == nil && job == nil {
		var jobs []*ondemand.Job
		if jobs, err = c.desk.Ask(ctx, []*ingest.Dataset{dataset}, window); err == nil {
			job = jobs[0]
		}
	}
	if err != nil {
		return nil, nil, err
	}
	return job.Run(), func(ctx context.Context) (ingest.Report, error) { return c.desk.Do(ctx, job) }, nil
}

// endOf makes an exit code of a run's end.
func endOf(report ingest.Report, err error) error {
	switch {
	case err != nil:
		return &jobError{err}
	case report.Outcome != ingest.Complete:
		return exitError(exitPaused)
	}
	return nil
}
