// Command qualys-sentinel carries findings from the Qualys Cloud Platform to
// Microsoft Sentinel. Under the Azure Functions host it is the custom handler;
// from a terminal it runs the same jobs by hand.
//
// This package only wires: what the commands do is in the internal packages.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"qualys-sentinel/handler/internal/functions"
)

// version of the build, set by the linker.
var version = "dev"

// The garbage collector is kept busier than Go's defaults do: little of the heap
// has pointers, so that it costs next to nothing, and the smallest plan has
// little memory. GOGC and GOMEMLIMIT override them.
const (
	collectAt   = 20       // percent of growth
	memoryLimit = 40 << 20 // bytes, a soft limit
)

// Exit codes of the commands.
const (
	exitOK       = 0
	exitFailed   = 1 // the job failed
	exitUsage    = 2 // the command line or the settings are wrong
	exitPaused   = 3 // ended in good order, and there is more: run it again
	exitStopped  = functions.ExitStopped
	customPort   = "FUNCTIONS_CUSTOMHANDLER_PORT"
	exitCodeHelp = `
Exit codes:
  0  done
  1  failed; the reason is on stderr
  2  the command line or the settings are wrong
  3  ended early in good order (time budget, a limit, Ctrl-C): run it again to go on`
)

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectAt)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	code := run(ctx, os.Args[1:])
	os.Exit(code)
}

// run is main with its inputs and output made explicit.
func run(ctx context.Context, args []string) int {
	if port := os.Getenv(customPort); port != "" && len(args) == 0 {
		return serve(ctx, port)
	}
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var code exitError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &code):
		return int(code)
	}
	fmt.Fprintln(os.Stderr, "error:", err)
	var failed *jobError
	if errors.As(err, &failed) {
		return exitFailed
	}
	return exitUsage
}

// exitError is an end that has been told already.
type exitError int

func (exitError) Error() string { return "" }

// jobError is a job that failed, as opposed to a command line that is wrong.
type jobError struct{ error }

func (e *jobError) Unwrap() error { return e.error }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "qualys-sentinel",
		Short: "Carries findings from Qualys to Microsoft Sentinel",
		Long: `qualys-sentinel carries findings from the Qualys Cloud Platform to Microsoft
Sentinel: page by page, once, and without loss.

As an Azure Function it needs no command. From a terminal:

  qualys-sentinel demo          try all of it, without an account
  qualys-sentinel check         test the connection
  qualys-sentinel sync vm       run once against a real subscription
  qualys-sentinel status        tell what has arrived
  qualys-sentinel replay vm     send rows again that were refused
  qualys-sentinel integrations  list and change further workspaces

Completion for your shell: qualys-sentinel completion --help` + "\n" + exitCodeHelp,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(newCheck(), newSync(), newStatus(), newReplay(), newIntegrations(), newDemo(), newSimulate())
	return root
}
