package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/loganalytics"
)

func newReplay() *cobra.Command {
	var f settingsFlags
	var list bool
	c := &cobra.Command{
		Use:   "replay <dataset>",
		Short: "Send dead letters again",
		Long: `replay sends rows again that Log Analytics had refused for good, as when a table
or its rule did not fit. They are kept in the state under deadletter/. What is
accepted now is removed there; what is refused again stays.

  qualys-sentinel replay vm --list                          what there is, and why
  qualys-sentinel replay vm --settings local.settings.json  send it

Datasets:
` + datasetHelp() + `
Rows keep their keys and their TimeGenerated, so that a query counts each once.
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
			return f.replay(c.Context(), dataset, list)
		},
	}
	f.add(c)
	c.Flags().BoolVar(&list, "list", false, "only tell what there is")
	return c
}

func (f *settingsFlags) replay(ctx context.Context, dataset *ingest.Dataset, list bool) error {
	environ, err := f.environ()
	if err != nil {
		return err
	}
	c, err := open(ctx, environ, f.to)
	if err != nil {
		return err
	}
	log, err := terminalLog(f.log)
	if err != nil {
		return err
	}
	r := &ingest.Replay{Store: c.store, Dataset: dataset, Clock: ingest.SystemClock{}, Log: log}
	if r.Destination, _, err = c.destination(dataset.Schema, "replay"); err != nil {
		return err
	}
	do := r.Do
	if list {
		do = r.List
	}
	report, err := do(ctx)
	if folder, ok := r.Destination.(*loganalytics.Folder); ok {
		err = errors.Join(err, folder.Close())
	}
	printReplay(os.Stdout, dataset, report, list)
	switch {
	case err != nil:
		return &jobError{err}
	case report.Refused > 0:
		return exitError(exitFailed)
	}
	return nil
}

func printReplay(out io.Writer, d *ingest.Dataset, r ingest.ReplayReport, list bool) {
	fmt.Fprintf(out, "%s: %s dead letters in %s objects", d.Title, thousands(int64(r.Rows)), thousands(int64(r.Objects)))
	if !list {
		fmt.Fprintf(out, ": %s accepted and removed, %s refused again and kept", thousands(int64(r.Accepted)), thousands(int64(r.Refused)))
	}
	fmt.Fprintln(out)
	for _, reason := range slices.Sorted(maps.Keys(r.Reasons)) {
		fmt.Fprintf(out, "  %s: %s\n", thousands(int64(r.Reasons[reason])), firstLine(reason))
	}
}
