package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"qualys-sentinel/handler/internal/integration"
)

func newIntegrations() *cobra.Command {
	c := &cobra.Command{
		Use:   "integrations",
		Short: "List and change the workspaces that get findings beside the default one",
		Long: `integrations lists and changes the workspaces that are registered by the
integration API (docs/integrations.md), in the state itself: the API need not be
switched on.

It needs the state: --state, or the storage account, for which az login needs
the role Storage Blob Data Contributor; and for workspaces with a key the setting
integrationVault, in which it needs Key Vault Secrets Officer. Where they are
closed to the internet it has to run inside their network.

  set="--set AzureWebJobsStorage__accountName=<store> --set integrationVault=https://<vault>.vault.azure.net"
  qualys-sentinel integrations list $set
  qualys-sentinel integrations add team.json $set
  echo '{"minSeverity": 4}' | qualys-sentinel integrations update 3 - $set
  qualys-sentinel integrations delete 3 $set

A file holds what the API takes as its body; - is the standard input. A key belongs
there, and not onto a command line, which is visible to others:

  {
    "name": "Team North",
    "workspaceId": "<id of the workspace>",
    "primaryKey": "<its key>",
    "minSeverity": 4,
    "baseCategory": "Potential"
  }
` + exitCodeHelp,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(
		integrationCommand("list", "Tell which there are", "list tells all integrations: where their findings go, and which they get.", 0, listIntegrations),
		integrationCommand("add <file>", "Add one", "add registers what a file describes, - being the standard input. It gets its\nfindings with the next run of QualysVM.", 1, addIntegration),
		integrationCommand("update <id> <file>", "Change one: what the file names", "update changes what a file names, - being the standard input, and leaves the rest.", 2, updateIntegration),
		integrationCommand("delete <id>", "Delete one", "delete removes an integration and its key. Of a run that is going on for it a few\nseconds' findings may still be sent; its dead letters stay.", 1, deleteIntegration),
	)
	return c
}

// integrationCommand makes one of the subcommands.
func integrationCommand(use, short, long string, args int, do func(ctx context.Context, r *integration.Registry, args []string, out *paper) error) *cobra.Command {
	var f settingsFlags
	c := &cobra.Command{
		Use: use, Short: short, Long: long + "\nqualys-sentinel integrations --help tells what it needs.\n" + exitCodeHelp, Args: cobra.ExactArgs(args),
		RunE: func(c *cobra.Command, args []string) error {
			environ, err := f.environ()
			if err != nil {
				return err
			}
			log, err := terminalLog("warn")
			if err != nil {
				return err
			}
			conn, err := open(c.Context(), environ, purpose{noSource: true, noDestination: true, log: log})
			if err != nil {
				return err
			}
			return do(c.Context(), conn.integrations, args, newPaper(f.json))
		},
	}
	f.addState(c)
	return c
}

func listIntegrations(ctx context.Context, r *integration.Registry, _ []string, out *paper) error {
	list, err := r.List(ctx)
	if !out.json {
		out.integrations(list)
	} else {
		if list == nil {
			list = []*integration.Integration{}
		}
		doc := map[string]any{"integrations": list}
		if err != nil {
			doc["error"] = err.Error() // of those that cannot be read
		}
		err = errors.Join(err, out.document(doc))
	}
	if err != nil {
		return &jobError{err}
	}
	return nil
}

// integrations writes a table.
func (p *paper) integrations(list []*integration.Integration) {
	if len(list) == 0 {
		fmt.Fprintln(p, "no integrations: all findings go to the default destination only")
	}
	for _, i := range list {
		fmt.Fprintf(p, "%4d  %s\n      to      %s, table %s_CL\n      wants   %s\n", i.ID, p.paint(bold, i.Name), sendsTo(i), i.CustomLogName, wants(i))
	}
}

// sendsTo is where an integration's rows go, for people.
func sendsTo(i *integration.Integration) string {
	if i.ByRule() {
		return i.DCRImmutableID + " at " + i.LogAnalyticsURI
	}
	return "workspace " + i.WorkspaceID
}

// wants is what an integration gets, for people.
func wants(i *integration.Integration) string {
	var b strings.Builder
	s := i.Selection()
	fmt.Fprintf(&b, "%s; severity %s", strings.Join(s.Types, ", "), strings.Join(s.Severities, ", "))
	if len(s.Statuses) > 0 {
		b.WriteString("; status " + strings.Join(s.Statuses, ", "))
	}
	if len(s.Tags) > 0 {
		b.WriteString("; hosts tagged " + strings.Join(s.Tags, ", "))
	}
	if i.ResultSectionNeeded {
		b.WriteString("; with RESULTS")
	}
	if i.Schedule != "" {
		b.WriteString("; at " + i.Schedule)
	}
	return b.String()
}

func addIntegration(ctx context.Context, r *integration.Registry, args []string, out *paper) error {
	change, err := readChange(args[0])
	if err != nil {
		return err
	}
	i, err := r.Add(ctx, change)
	return out.changed(i, err, "added")
}

func updateIntegration(ctx context.Context, r *integration.Registry, args []string, out *paper) error {
	id, err := integrationID(args[0])
	if err != nil {
		return err
	}
	change, err := readChange(args[1])
	if err != nil {
		return err
	}
	i, err := r.Update(ctx, id, change)
	return out.changed(i, err, "updated")
}

func deleteIntegration(ctx context.Context, r *integration.Registry, args []string, out *paper) error {
	id, err := integrationID(args[0])
	if err != nil {
		return err
	}
	i, err := r.Get(ctx, id)
	var damaged *integration.DamagedError
	if errors.As(err, &damaged) { // it can be deleted all the same
		i, err = &integration.Integration{ID: id}, nil
	}
	if err == nil {
		err = r.Delete(ctx, id)
	}
	return out.changed(i, err, "deleted")
}

// changed tells what a change has come to.
func (p *paper) changed(i *integration.Integration, err error, what string) error {
	var invalid *integration.InvalidError
	switch {
	case errors.As(err, &invalid):
		return faults(err)
	case err != nil:
		return p.failed(err)
	case p.json:
		err = p.document(i)
	default:
		_, err = fmt.Fprintf(p, "integration %d, %s, is %s\n", i.ID, i.Name, what)
	}
	if err != nil {
		return &jobError{err}
	}
	return nil
}

func integrationID(text string) (int64, error) {
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil || id < 1 {
		return 0, fmt.Errorf("%q is no id of an integration: integrations list tells them", text)
	}
	return id, nil
}

// readChange reads what is asked for, from a file or the standard input.
func readChange(file string) (*integration.Change, error) {
	in := io.NopCloser(os.Stdin)
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("read the integration: %w", err)
		}
		in = f
	}
	defer in.Close() //nolint:errcheck // read only
	doc, err := io.ReadAll(io.LimitReader(in, integration.MaxBody+1))
	if err != nil {
		return nil, fmt.Errorf("read the integration: %w", err)
	}
	change, err := integration.Parse(doc)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, faults(err))
	}
	return change, nil
}

// faults writes what is wrong line by line.
func faults(err error) error {
	var invalid *integration.InvalidError
	if errors.As(err, &invalid) {
		return fmt.Errorf("the integration is wrong:\n  %s", strings.Join(invalid.Faults, "\n  "))
	}
	return err
}
