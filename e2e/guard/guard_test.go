//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"qualys-sentinel/e2e/azurite"
)

func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "guard")
	if out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// servers starts three processes that stay, of which one has a session of its own, and
// tells their ids.
const servers = `sleep 300 & echo $!; setsid sleep 300 & echo $!; (sleep 300 & echo $!); `

func gone(pid int) error {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err == nil && !strings.Contains(string(stat), ") Z ") {
		return fmt.Errorf("%d is running: %s", pid, stat)
	}
	return nil
}

// However the command, the guard, or who started it ends: nothing is left, of files neither.
func TestNothingIsLeftBehind(t *testing.T) {
	guard := build(t)
	for name, c := range map[string]struct {
		then string // what the command does
		end  func(shell, guard *os.Process) error
		code int
	}{
		"the command ends":         {"exit 0", nil, 0},
		"the command fails":        {"exit 7", nil, 7},
		"the guard is terminated":  {"wait", func(_, g *os.Process) error { return g.Signal(syscall.SIGTERM) }, 143},
		"the guard is interrupted": {"wait", func(_, g *os.Process) error { return g.Signal(os.Interrupt) }, 130},
		"its parent is killed":     {"wait", func(s, _ *os.Process) error { return s.Kill() }, -1},
	} {
		t.Run(name, func(t *testing.T) {
			// The shell is what make would be: it stays the guard's parent.
			cmd := exec.Command("bash", "-c", `"$0" bash -c "$1"; exit $?`, guard, servers+"echo $PPID; touch $TMPDIR/file; echo $TMPDIR; "+c.then)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var pids []int
			folder := ""
			for lines := bufio.NewScanner(out); folder == "" && lines.Scan(); {
				if len(pids) == 4 {
					folder = lines.Text()
					break
				}
				pid, err := strconv.Atoi(lines.Text())
				if err != nil {
					t.Fatal(err)
				}
				pids = append(pids, pid)
			}
			if folder == "" {
				t.Fatalf("got %d process ids, want 4, and a folder", len(pids))
			}
			if c.end != nil {
				g, err := os.FindProcess(pids[3])
				if err == nil {
					err = c.end(cmd.Process, g)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if cmd.Wait(); cmd.ProcessState.ExitCode() != c.code {
				t.Errorf("exit code = %d, want %d", cmd.ProcessState.ExitCode(), c.code)
			}
			for _, pid := range pids {
				azurite.Eventually(t, 10*time.Second, "it is gone", func() error { return gone(pid) })
			}
			azurite.Eventually(t, 10*time.Second, "the folder is gone", func() error {
				if _, err := os.Stat(folder); !errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("%s is there: %v", folder, err)
				}
				return nil
			})
		})
	}
}
