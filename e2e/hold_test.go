//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"qualys-sentinel/e2e/azurite"
	"qualys-sentinel/handler/simulation"
)

// process is the program at work.
type process struct {
	cmd   *exec.Cmd
	out   bytes.Buffer
	ended chan struct{}
}

// start starts a sync of a dataset.
func (s *services) start(dataset string) *process {
	s.t.Helper()
	p := &process{cmd: exec.Command(s.program, "sync", dataset, "--log", "info"), ended: make(chan struct{})}
	p.cmd.Env = os.Environ()
	for name, value := range s.environ {
		p.cmd.Env = append(p.cmd.Env, name+"="+value)
	}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	if err := p.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		var exit *exec.ExitError
		if err := p.cmd.Wait(); err != nil && !errors.As(err, &exit) {
			s.t.Error(err)
		}
	}()
	s.t.Cleanup(func() {
		_ = p.cmd.Process.Signal(syscall.SIGCONT) // it may have ended
		_ = p.cmd.Process.Kill()
		<-p.ended
	})
	return p
}

// wait returns the exit code and the output, which is kept for the search for
// secrets.
func (p *process) wait(t *testing.T) (int, string) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(3 * time.Minute):
		t.Fatal("the program does not end")
	}
	log, err := os.OpenFile(filepath.Join(outputDir(t), "sync.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	_, err = log.Write(p.out.Bytes())
	if err = errors.Join(err, log.Close()); err != nil {
		t.Fatal(err)
	}
	return p.cmd.ProcessState.ExitCode(), p.out.String()
}

// A handler that is frozen past its lease, and wakes up when another has taken
// over and moved the checkpoint, cannot move it back.
func TestFrozen(t *testing.T) {
	t.Parallel() // it mostly waits
	s := startServices(t, 200, 30)
	s.program = program(t)
	s.environ["filterParameters"] = "&truncation_limit=20"
	frozen := make(chan struct{})
	asleep, wake := context.WithCancel(context.Background())
	t.Cleanup(wake) // whatever happens: the server waits for its answers
	var once sync.Once
	s.beforeIngest = func(n int) {
		if n >= 4 {
			first := false
			once.Do(func() { first = true })
			if first {
				close(frozen)
				<-asleep.Done() // its answer comes when it is awake again
			}
		}
	}
	sleeper := s.start("vm")
	select {
	case <-frozen:
	case <-sleeper.ended:
		t.Fatalf("it ended: %s", sleeper.out.String())
	}
	if err := sleeper.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := time.Now()

	// As long as its lease lasts, nobody else works.
	if code, out := s.start("vm").wait(t); code != exitPaused || !strings.Contains(out, "another run holds the checkpoint") {
		t.Fatalf("beside a frozen run: exit code %d\n%s", code, out)
	}
	azurite.Eventually(t, 2*time.Minute, "another handler takes over", func() error {
		if code, out := s.start("vm").wait(t); code != exitOK {
			return fmt.Errorf("exit code %d: %s", code, out)
		}
		return nil
	})
	t.Logf("taken over %s after it was frozen", time.Since(stopped).Round(time.Second))
	s.advance(3 * time.Hour)
	if code, out := s.start("vm").wait(t); code != exitOK {
		t.Fatalf("another window: exit code %d\n%s", code, out)
	}
	want := s.checkpoint("vm")
	if want.Watermark == nil || want.Window != nil {
		t.Fatalf("after two windows: %+v", want)
	}

	if err := sleeper.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	wake()
	code, out := sleeper.wait(t)
	if code != exitFailed || !strings.Contains(out, "the hold on the checkpoint is lost") {
		t.Errorf("awake again: exit code %d\n%s", code, out)
	}
	if got := s.checkpoint("vm"); got.LastRun != want.LastRun || !got.Watermark.Equal(*want.Watermark) || got.Window != nil {
		t.Errorf("the frozen run moved the checkpoint: %+v, was %+v", got, want)
	}
	if code, out := s.start("vm").wait(t); code != exitOK {
		t.Errorf("the window after: exit code %d\n%s", code, out)
	}
	s.duplicates(time.Time{}, s.clock())
}

// Two handlers with the same state, which start together again and again, are
// never at the same dataset at once, and nothing is missing. Every other time
// Qualys' first answer waits until one of them has given up, so that they meet
// on any machine; in between they meet as they happen to.
func TestTwoHandlers(t *testing.T) {
	t.Parallel()
	for _, state := range []string{"blob", "folder"} {
		t.Run(state, func(t *testing.T) {
			s := startServices(t, 60, 20)
			s.setKnowledge(&simulation.Knowledge{Seed: 5, Size: 600})
			s.program = program(t)
			if state == "folder" {
				s.environ["stateFolder"] = filepath.Join(t.TempDir(), "state")
			}
			// What is being asked for now, by endpoint, and the most at once.
			var mu sync.Mutex
			now, most := map[string]int{}, map[string]int{}
			meeting := make(chan struct{}) // answers wait until it is closed
			next := http.Handler(s.qualys)
			watch := s.open("Qualys, watched", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				now[r.URL.Path]++
				most[r.URL.Path] = max(most[r.URL.Path], now[r.URL.Path])
				alone, met := now[r.URL.Path] == 1, meeting
				mu.Unlock()
				if alone {
					<-met
				}
				next.ServeHTTP(w, r)
				mu.Lock()
				now[r.URL.Path]--
				mu.Unlock()
			}), false)
			s.environ["uri"] = watch.url
			held, complete := 0, 0
			for round := range 6 {
				for _, dataset := range []string{"vm", "kb"} {
					met := make(chan struct{})
					mu.Lock()
					meeting = met
					mu.Unlock()
					first, second := s.start(dataset), s.start(dataset)
					if round%2 == 0 {
						select {
						case <-first.ended:
						case <-second.ended:
						}
					}
					close(met)
					for _, p := range []*process{first, second} {
						switch code, out := p.wait(t); {
						case code == exitOK:
							complete++
						case code == exitPaused && strings.Contains(out, "another run holds the checkpoint"):
							held++
						default:
							t.Errorf("exit code %d\n%s", code, out)
						}
					}
				}
				s.advance(5 * time.Hour)
			}
			for path, n := range most {
				if n > 1 {
					t.Errorf("%d calls of %s at once", n, path)
				}
			}
			if held < 6 || complete < 12 || len(most) < 2 {
				t.Errorf("%d complete, %d held, asked %v", complete, held, most)
			}
			for _, dataset := range []string{"vm", "kb"} {
				if code, out := s.start(dataset).wait(t); code != exitOK {
					t.Errorf("exit code %d\n%s", code, out)
				}
			}
			s.duplicates(time.Time{}, s.clock())
			if n := s.missingEntries(s.clock()); n > 0 {
				t.Errorf("%d entries are missing", n)
			}
			t.Logf("%d complete, %d held", complete, held)
		})
	}
}

// A disk that is full stops a run with the reason, and costs nothing but time.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	s := startServices(t, 60, 20)
	s.program = program(t)
	dir := t.TempDir()
	s.environ["stateFolder"] = dir
	// A file system of the test's own, which ends with the shell.
	script := `mount -t tmpfs -o size=256k none "$stateFolder" || exit 77
head -c 250000 /dev/zero > "$stateFolder/ballast"
"$PROGRAM" sync vm; echo "exit code $?"
rm "$stateFolder/ballast"
"$PROGRAM" sync vm; echo "exit code $?"
df "$stateFolder"`
	cmd := exec.Command("unshare", "-Urm", "sh", "-c", script)
	cmd.Env = append(os.Environ(), "PROGRAM="+s.program)
	for name, value := range s.environ {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		azurite.Missing(t, "unshare", fmt.Sprintf("no small file system can be made: %v %s", err, out))
	}
	first, second, _ := strings.Cut(string(out), "exit code 1\n")
	if !strings.Contains(first, "no space left on device") || !strings.Contains(second, "exit code 0\n") {
		t.Errorf("%s", out)
	}
	s.duplicates(time.Time{}, s.clock())
}
