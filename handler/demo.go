package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/ondemand"
	"qualys-sentinel/handler/internal/simulator"
)

// The demo's account; it opens nothing but the simulator.
const (
	demoUser     = "demo_user"
	demoPassword = "demo-password"
)

func newDemo() *cobra.Command {
	var dir, level string
	var asJSON bool
	var hosts, detections int
	var qids uint
	var seed uint64
	c := &cobra.Command{
		Use:   "demo",
		Short: "Try the whole connector against a simulated Qualys and Azure",
		Long: `demo starts a simulated Qualys subscription and a simulated Log Analytics on
this machine, and runs the connector's main job between them: fetch, decode,
deliver, checkpoint. Nothing leaves the machine and no account is needed.

Run it again, and only what was scanned in between is carried over. Stop it with
Ctrl-C, and the next run goes on where it stood. Delete the folder to begin anew.
` + exitCodeHelp,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkSize(hosts, detections); err != nil {
				return err
			}
			return demo(c.Context(), dir, level, newPaper(asJSON), simulated(seed, hosts, detections, qids))
		},
	}
	c.Flags().StringVar(&dir, "dir", "demo-data", "`folder` for rows and state")
	c.Flags().IntVar(&hosts, "hosts", 1000, "number of hosts")
	c.Flags().IntVar(&detections, "detections", 50, "detections per host, on average")
	c.Flags().UintVar(&qids, "qids", 2000, "entries of the KnowledgeBase; 0: the subscription may not download it")
	c.Flags().Uint64Var(&seed, "seed", 1, "which subscription")
	addLog(c, &level)
	addJSON(c, &asJSON)
	_ = c.MarkFlagDirname("dir") // it is there
	return c
}

func demo(ctx context.Context, dir, level string, out *paper, sub *simulator.Subscription) error {
	log, err := terminalLog(level)
	if err != nil {
		return err
	}
	azure := simulator.NewAzure(ingest.Schemas()...)
	rows := &simulator.RowFiles{Dir: filepath.Join(dir, "rows")}
	azure.Keep = rows.Keep
	sim, err := startSimulator(ctx, "127.0.0.1:0", simulator.NewQualys(sub, demoUser, demoPassword), azure)
	if err != nil {
		return err
	}
	defer sim.stop()

	result := runsDocument{Runs: []ingest.Report{}}
	notes := out
	if out.json {
		notes = &paper{Writer: os.Stderr}
	}
	fmt.Fprintf(notes, "simulated subscription: %s hosts, about %s detections, a KnowledgeBase of %s QIDs\n", thousands(int64(sub.Hosts)), thousands(int64(sub.Hosts*sub.Detections)), thousands(int64(sub.Knowledge.Size)))
	for name, value := range map[string]string{"IDENTITY_ENDPOINT": sim.address + simulator.IdentityPath, "IDENTITY_HEADER": azure.IdentityHeader} {
		if err := os.Setenv(name, value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	connector, err := open(ctx, []string{
		"apiUsername=" + demoUser, "apiPassword=" + demoPassword, "uri=" + sim.address,
		"logAnalyticsUri=" + sim.address, "logAnalyticsApi=logs-ingestion", "dcrImmutableId=" + azure.Rule,
		"stateFolder=" + filepath.Join(dir, "state"), "filterParameters=&truncation_limit=250", "enrichDetections=true",
	}, purpose{log: log})
	if err != nil {
		return err
	}
	// The KnowledgeBase first: the detections carry what it says.
	for _, dataset := range []*ingest.Dataset{ingest.KB, ingest.VM} {
		if dataset == ingest.KB && sub.Knowledge.Refused {
			fmt.Fprintln(notes, "KnowledgeBase: this subscription may not download it; the detections go without")
			continue
		}
		report, err := connector.syncOnce(ctx, dataset, ondemand.Window{}, out)
		result.Runs = append(result.Runs, report)
		if err != nil || report.Outcome != ingest.Complete {
			if err == nil {
				fmt.Fprintln(notes, "\nStopped in good order. Run it again: it goes on where it stood.")
			}
			return errors.Join(endOf(report, err), out.finish(result))
		}
	}
	fmt.Fprintf(notes, "  %-14s %s\n", "rows", rows.Dir)
	fmt.Fprintf(notes, "  %-14s %s\n", "state", filepath.Join(dir, "state"))
	if !out.json {
		fmt.Fprintln(out, nextSteps)
	}
	return out.finish(result)
}

const nextSteps = `
Next: run it again: only what was scanned or changed in between is carried over.
Then try your own subscription, into a local folder:  qualys-sentinel sync vm --help
And deploy it: see "Deploy by hand from VS Code" in README.md.`

// checkSize refuses a subscription that cannot be.
func checkSize(hosts, detections int) error {
	if hosts < 0 || detections < 0 || hosts > 100_000_000 || detections > 100_000 {
		return fmt.Errorf("--hosts %d --detections %d: there is no such subscription", hosts, detections)
	}
	return nil
}

// simulated is the subscription of the demo and of simulate.
func simulated(seed uint64, hosts, detections int, qids uint) *simulator.Subscription {
	s := simulator.NewSubscription(seed, hosts, detections)
	s.Knowledge = &simulator.Knowledge{Seed: seed, Size: int(qids), Refused: qids == 0, EditEvery: 5 * 24 * time.Hour, Delay: 9 * time.Hour}
	return s
}

func newSimulate() *cobra.Command {
	var listen, rows string
	var asJSON bool
	var hosts, detections int
	var qids uint
	var seed uint64
	c := &cobra.Command{
		Use:   "simulate",
		Short: "Serve a simulated Qualys and Azure until Ctrl-C",
		Long: `simulate serves a Qualys subscription made from a seed, both ways into Log
Analytics, and a managed identity endpoint, on one address of this machine. It
prints the settings to use, and refuses what the real services refuse.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkSize(hosts, detections); err != nil {
				return err
			}
			azure := simulator.NewAzure(ingest.Schemas()...)
			if rows != "" {
				azure.Keep = (&simulator.RowFiles{Dir: rows}).Keep
			}
			q := simulator.NewQualys(simulated(seed, hosts, detections, qids), demoUser, demoPassword)
			sim, err := startSimulator(c.Context(), listen, q, azure)
			if err != nil {
				return err
			}
			out := newPaper(asJSON)
			values := [][2]string{
				{"apiUsername", demoUser}, {"apiPassword", demoPassword}, {"uri", sim.address},
				{"logAnalyticsUri", sim.address}, {"logAnalyticsApi", "logs-ingestion"}, {"dcrImmutableId", azure.Rule},
				{"IDENTITY_ENDPOINT", sim.address + simulator.IdentityPath}, {"IDENTITY_HEADER", azure.IdentityHeader},
			}
			if err := out.settings(values); err != nil {
				return err
			}
			<-c.Context().Done()
			sim.stop()
			arrived := azure.Arrived()
			fmt.Fprintf(os.Stderr, "arrived: %s rows, %s, in %s calls\n", thousands(arrived.Rows), size(arrived.Bytes), thousands(arrived.Calls))
			return nil
		},
	}
	c.Flags().StringVar(&listen, "listen", "127.0.0.1:7777", "`address` to serve on")
	c.Flags().StringVar(&rows, "rows", "", "keep arrived rows in this `folder`")
	c.Flags().IntVar(&hosts, "hosts", 2000, "number of hosts")
	c.Flags().IntVar(&detections, "detections", 50, "detections per host, on average")
	c.Flags().UintVar(&qids, "qids", 20_000, "entries of the KnowledgeBase; 0: the subscription may not download it")
	c.Flags().Uint64Var(&seed, "seed", 1, "which subscription")
	addJSON(c, &asJSON)
	_ = c.MarkFlagDirname("rows") // it is there
	return c
}

// settings writes settings: as lines, or in the form of local.settings.json,
// which --settings takes.
func (p *paper) settings(values [][2]string) error {
	if p.json {
		file := struct{ Values map[string]string }{map[string]string{}}
		for _, v := range values {
			file.Values[v[0]] = v[1]
		}
		return p.document(file)
	}
	for _, v := range values {
		fmt.Fprintf(p, "%s=%s\n", v[0], v[1])
	}
	return nil
}

// simulation is a simulator that is being served.
type simulation struct {
	address string
	server  *http.Server
}

// startSimulator serves Qualys and Azure on one address.
func startSimulator(ctx context.Context, listen string, q *simulator.Qualys, azure *simulator.Azure) (*simulation, error) {
	mux := http.NewServeMux()
	mux.Handle("/api/logs", azure)
	mux.Handle("/dataCollectionRules/", azure)
	mux.Handle(simulator.IdentityPath, azure)
	mux.Handle("/", q)
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("serve the simulator: %w", err)
	}
	s := &simulation{address: "http://" + listener.Addr().String(), server: &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}}
	go func() {
		if err := s.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintln(os.Stderr, "simulator:", err)
		}
	}()
	return s, nil
}

// stop ends the simulator; requests in flight are of no use any more.
func (s *simulation) stop() { _ = s.server.Close() }
