package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/loganalytics"
	"qualys-sentinel/handler/internal/settings"
)

// settingsFlags are the flags of the commands that work with settings.
type settingsFlags struct {
	settingsFile string
	set          []string
	to           string
	state        string
	log          string
}

func newSync() *cobra.Command {
	var f settingsFlags
	c := &cobra.Command{
		Use:   "sync <dataset>",
		Short: "Run once, from this terminal",
		Long: `sync carries a dataset over once: from where its checkpoint stands to now.
Interrupt it with Ctrl-C whenever you like: the next sync goes on.

Datasets:
` + datasetHelp() + `
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
			_, err := findDataset(args[0])
			return err
		}),
		ValidArgs: datasetNames(),
		RunE: func(c *cobra.Command, args []string) error {
			dataset, err := findDataset(args[0])
			if err != nil {
				return err
			}
			return f.sync(c.Context(), dataset)
		},
	}
	f.add(c)
	return c
}

// add declares the flags.
func (f *settingsFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.settingsFile, "settings", "", "`file` with settings, in the form of local.settings.json")
	c.Flags().StringArrayVar(&f.set, "set", nil, "one setting, `name=value`; may be repeated")
	c.Flags().StringVar(&f.to, "to", "", "write rows into this `folder` instead of Log Analytics")
	c.Flags().StringVar(&f.state, "state", "", "keep the state in this `folder` instead of blob storage")
	c.Flags().StringVar(&f.log, "log", "warn", "what to log: debug, info, warn or error")
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
	return environ, nil
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

func (f *settingsFlags) sync(ctx context.Context, dataset *ingest.Dataset) error {
	environ, err := f.environ()
	if err != nil {
		return err
	}
	c, err := open(ctx, environ, f.to)
	if err != nil {
		return err
	}
	r, report, err := runOnce(ctx, c, dataset, f.log)
	if r == nil {
		return err
	}
	printReport(os.Stdout, dataset, report)
	if folder, ok := r.Destination.(*loganalytics.Folder); ok && report.Accepted > 0 {
		fmt.Println("  rows           " + folder.Path())
	}
	return endOf(report, err)
}

// runOnce runs a dataset with progress on stderr.
func runOnce(ctx context.Context, c *connector, dataset *ingest.Dataset, level string) (*ingest.Run, ingest.Report, error) {
	log, err := terminalLog(level)
	if err != nil {
		return nil, ingest.Report{}, err
	}
	r, err := c.run(dataset, log)
	if err != nil {
		return nil, ingest.Report{}, err
	}
	p := startProgress(os.Stderr, r)
	report, err := r.Do(ctx)
	p.end()
	return r, report, errors.Join(err, closeRun(r))
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
