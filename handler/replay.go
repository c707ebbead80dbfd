package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/loganalytics"
)

func newReplay() *cobra.Command {
	var f settingsFlags
	var list bool
	var id int64
	c := &cobra.Command{
		Use:   "replay <dataset>",
		Short: "Send dead letters again",
		Long: `replay sends rows again that Log Analytics had refused for good, as when a table
or its rule did not fit. They are kept in the state under deadletter/. What is
accepted now is removed there; what is refused again stays. With --to a folder
the rows are written there to look at, and all stays.

--list needs the state only: --state, or the storage account, for which az login
needs the role Storage Blob Data Contributor. To send, the Qualys settings are
not used, but the destination's are: the role Monitoring Metrics Publisher. With
--integration it is that of the integration or, where it has a key, integrationVault
and the role Key Vault Secrets User there.

  qualys-sentinel replay vm --list --set AzureWebJobsStorage__accountName=<store>
  qualys-sentinel replay vm --settings local.settings.json --set AzureWebJobsStorage__accountName=<store>

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
			if c.Flags().Changed("integration") && (id < 1 || dataset != ingest.VM) {
				return fmt.Errorf("--integration %d: integrations list tells the ids, and integrations get %s only", id, ingest.VM.Name)
			}
			return f.replay(c.Context(), dataset, id, list)
		},
	}
	f.add(c)
	addLog(c, &f.log)
	c.Flags().BoolVar(&list, "list", false, "only tell what there is")
	c.Flags().Int64Var(&id, "integration", 0, "those of the integration with this `id`, and to its workspace")
	return c
}

func (f *settingsFlags) replay(ctx context.Context, dataset *ingest.Dataset, id int64, list bool) error {
	environ, err := f.environ()
	if err != nil {
		return err
	}
	c, err := open(ctx, environ, purpose{rows: f.to, noSource: true, noDestination: list})
	if err != nil {
		return err
	}
	log, err := terminalLog(f.log)
	if err != nil {
		return err
	}
	r := &ingest.Replay{Store: c.store, Dataset: dataset, Clock: ingest.SystemClock{}, Log: log, Keep: f.to != ""}
	do := r.List
	to := func() (ingest.Destination, error) {
		return c.destination(dataset.Schema, "replay-"+strings.ToLower(rand.Text()[:8]))
	}
	if id != 0 {
		i, err := c.integrations.Get(ctx, id)
		if err != nil {
			return newPaper(f.json).failed(err)
		}
		r.Of = i.Destination()
		if c.rows == "" {
			to = func() (ingest.Destination, error) { return c.integrationDestination(ctx, i) }
		}
	}
	if !list {
		if r.Destination, err = to(); err != nil {
			return err
		}
		do = r.Do
	}
	report, err := do(ctx)
	folder, toFolder := r.Destination.(*loganalytics.Folder)
	if toFolder {
		err = errors.Join(err, folder.Close())
	}
	if out := newPaper(f.json); f.json {
		err = errors.Join(err, out.document(report))
	} else {
		printReplay(out, dataset, report, list, toFolder)
		if toFolder && report.Accepted > 0 {
			fmt.Fprintln(out, "  rows           "+folder.Path())
		}
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return exitError(exitPaused)
	case err != nil:
		return &jobError{err}
	case report.Refused > 0:
		return exitError(exitFailed)
	}
	return nil
}

func printReplay(out io.Writer, d *ingest.Dataset, r ingest.ReplayReport, list, kept bool) {
	fmt.Fprintf(out, "%s: %s dead letters in %s objects", d.Title, thousands(int64(r.Rows)), thousands(int64(r.Objects)))
	switch {
	case kept:
		fmt.Fprintf(out, ": %s written to look at, and all kept", thousands(int64(r.Accepted)))
	case !list:
		fmt.Fprintf(out, ": %s accepted and removed, %s refused again and kept", thousands(int64(r.Accepted)), thousands(int64(r.Refused)))
	}
	fmt.Fprintln(out)
	for _, reason := range slices.Sorted(maps.Keys(r.Reasons)) {
		fmt.Fprintf(out, "  %s: %s\n", thousands(int64(r.Reasons[reason])), reason)
	}
}
