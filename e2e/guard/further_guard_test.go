//go:build linux

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"qualys-sentinel/e2e/azurite"
)

// guarded is a guard that works, and the processes that are to be gone when it does not
// any more.
type guarded struct {
	shell *exec.Cmd // the guard's parent
	guard int       // the inner one, which is the command's parent
	pids  []int
}

// start runs a line of bash, with the guard as $G, until the guard and so many processes
// below it have told their ids: the guard's behind "guard", a process's behind "pid".
func start(t *testing.T, guard, line string, processes int, attr *syscall.SysProcAttr, terminal *os.File) *guarded {
	t.Helper()
	ids := filepath.Join(t.TempDir(), "ids")
	if err := unix.Mkfifo(ids, 0o600); err != nil {
		t.Fatal(err)
	}
	// Opened for both, so that neither side waits for the other.
	lines, err := os.OpenFile(ids, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lines.Close() })
	cmd := exec.Command("bash", "-c", line+`; exit $?`)
	cmd.Env = append(os.Environ(), "G="+guard, "IDS="+ids, "LOG="+filepath.Join(t.TempDir(), "log"))
	cmd.SysProcAttr = attr
	if terminal != nil {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	g := &guarded{shell: cmd}
	t.Cleanup(func() { // what a guard has left is ours to remove
		for _, pid := range append(g.pids, g.guard) {
			if pid > 0 && gone(pid) != nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if err := lines.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	for r := bufio.NewReader(lines); g.guard == 0 || len(g.pids) < processes; {
		text, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("told %d of %d processes: %v", len(g.pids), processes, err)
		}
		what, number, _ := strings.Cut(strings.TrimSpace(text), " ")
		pid, err := strconv.Atoi(number)
		if err != nil {
			t.Fatal(err)
		}
		if what == "guard" {
			g.guard = pid
			continue
		}
		g.pids = append(g.pids, pid)
	}
	return g
}

// wantGone checks that nothing is left.
func (g *guarded) wantGone(t *testing.T) {
	t.Helper()
	for _, pid := range g.pids {
		azurite.Eventually(t, 30*time.Second, "it is gone", func() error { return gone(pid) })
	}
}

// What commands start, each of which tells its id: as it is, in a session of its own,
// orphaned, and deaf to what asks it to end.
const (
	plain    = `sleep 300 & echo pid $! > $IDS; `
	session  = `setsid bash -c "echo pid \$\$ > $IDS; exec sleep 300" & `
	apart    = `setsid sleep 300 & echo pid $! > $IDS; ` // told before the command goes on
	orphan   = `(setsid bash -c "sleep 300 & echo pid \$! > $IDS" & ); `
	deaf     = `bash -c "trap \"\" TERM INT HUP PIPE QUIT; echo pid \$\$ > $IDS; exec sleep 300" & `
	forks    = `bash -c "echo pid \$\$ > $IDS; while :; do (setsid sleep 300 &) ; /bin/true; done" & `
	stopped  = `bash -c "echo pid \$\$ > $IDS; kill -STOP \$\$; sleep 300" & `
	tellsIt  = `echo guard $PPID > $IDS; `
	quietly  = ` >/dev/null 2>&1 </dev/null`
	commands = `"$G" bash -c '`
	logged   = `"$G" -log "$LOG" bash -c '`
)

// parentOf is the parent of a process.
func parentOf(pid int) (int, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	return strconv.Atoi(fields[1])
}

// However the guard is ended: nothing is left.
func TestFurtherEnds(t *testing.T) {
	path := build(t)
	signal := func(s syscall.Signal) func(*guarded) error {
		return func(g *guarded) error { return syscall.Kill(g.guard, s) }
	}
	outer := func(s syscall.Signal) func(*guarded) error {
		return func(g *guarded) error {
			parent, err := parentOf(g.guard)
			if err != nil {
				return err
			}
			return syscall.Kill(parent, s)
		}
	}
	group := func(s syscall.Signal) func(*guarded) error {
		return func(g *guarded) error { return syscall.Kill(-g.shell.Process.Pid, s) }
	}
	parent := func(g *guarded) error { return g.shell.Process.Kill() }
	for name, c := range map[string]struct {
		line      string
		processes int
		end       func(*guarded) error // nil: it ends by itself
	}{
		"terminated, orphans of another session":    {commands + orphan + tellsIt + `wait; sleep 300'`, 1, signal(syscall.SIGTERM)},
		"terminated, a child that ignores it":       {commands + deaf + tellsIt + `wait'`, 1, signal(syscall.SIGTERM)},
		"terminated, a command that ignores it":     {commands + `trap "" TERM INT HUP; ` + plain + tellsIt + `wait; sleep 300'`, 1, signal(syscall.SIGTERM)},
		"terminated, a child that is stopped":       {commands + stopped + tellsIt + `wait'`, 1, signal(syscall.SIGTERM)},
		"terminated, a child that keeps on forking": {commands + forks + tellsIt + `wait'`, 1, signal(syscall.SIGTERM)},
		"terminated, with a log":                    {logged + plain + session + tellsIt + `wait'`, 2, signal(syscall.SIGTERM)},
		"hung up":                                   {commands + plain + session + tellsIt + `wait'`, 2, signal(syscall.SIGHUP)},
		"asked for its stacks":                      {commands + plain + session + tellsIt + `wait'`, 2, signal(syscall.SIGQUIT)},
		"killed":                                    {commands + plain + tellsIt + `wait'`, 1, signal(syscall.SIGKILL)},
		"the outer terminated":                      {commands + plain + session + tellsIt + `wait'`, 2, outer(syscall.SIGTERM)},
		"the outer terminated, with a log":          {logged + plain + session + tellsIt + `wait'`, 2, outer(syscall.SIGTERM)},
		"the outer asked for its stacks":            {commands + plain + session + tellsIt + `wait'`, 2, outer(syscall.SIGQUIT)},
		"the outer killed":                          {commands + plain + orphan + tellsIt + `wait; sleep 300'`, 2, outer(syscall.SIGKILL)},
		"the outer killed, with a log":              {logged + session + deaf + tellsIt + `wait'`, 2, outer(syscall.SIGKILL)},
		"killed, a child of another session":        {commands + session + tellsIt + `wait'`, 1, signal(syscall.SIGKILL)},
		"its parent killed, a child that ignores":   {commands + deaf + tellsIt + `wait'`, 1, parent},
		"its parent killed, with a log":             {logged + orphan + tellsIt + `wait; sleep 300'`, 1, parent},
		"the group interrupted":                     {commands + plain + session + deaf + tellsIt + `wait'`, 3, group(syscall.SIGINT)},
		"the group killed":                          {commands + plain + tellsIt + `wait'`, 1, group(syscall.SIGKILL)},
		"the group killed, another session":         {commands + session + tellsIt + `wait'`, 1, group(syscall.SIGKILL)},
		"a guard in a guard, the outer terminated":  {`"$G" "$G" bash -c '` + plain + session + tellsIt + `wait'`, 2, signal(syscall.SIGTERM)},
		"a guard in a guard, the inner killed":      {`"$G" "$G" bash -c '` + session + tellsIt + `wait'`, 1, signal(syscall.SIGKILL)},
		"a guard in a guard, its parent killed":     {`"$G" "$G" bash -c '` + orphan + tellsIt + `wait; sleep 300'`, 1, parent},
		"nobody reads its output":                   {commands + apart + tellsIt + `while :; do echo text; done' | head -1 >/dev/null`, 1, nil},
		"nobody reads its output, with a log":       {logged + apart + tellsIt + `while :; do echo text; done' | head -1 >/dev/null`, 1, nil},
		"the command ends, with a log":              {logged + `sleep 300 ` + quietly + ` & echo pid $! > $IDS; ` + tellsIt + `exit 0'`, 1, nil},
		"a child holds the output, with a log":      {logged + plain + tellsIt + `exit 0'`, 1, nil},
		"the command is killed":                     {commands + plain + apart + tellsIt + `kill -9 $$'`, 2, nil},
		"the command panics":                        {commands + plain + apart + tellsIt + `kill -ABRT $$'`, 2, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := start(t, path, c.line, c.processes, &syscall.SysProcAttr{Setpgid: true}, nil)
			if c.end != nil {
				if err := c.end(g); err != nil {
					t.Fatal(err)
				}
			}
			g.wantGone(t)
		})
	}
}

// A terminal that is closed, and ^C and ^\ in one.
func TestFurtherTerminal(t *testing.T) {
	path := build(t)
	for name, end := range map[string]func(*os.File) error{
		"closed":      func(terminal *os.File) error { return terminal.Close() },
		"interrupted": func(terminal *os.File) error { _, err := terminal.WriteString("\x03"); return err },
		"quit":        func(terminal *os.File) error { _, err := terminal.WriteString("\x1c"); return err },
	} {
		for _, with := range []string{commands, logged} {
			t.Run(name+" "+fmt.Sprint(with == logged), func(t *testing.T) {
				master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
				if err != nil {
					t.Skip(err)
				}
				t.Cleanup(func() { _ = master.Close() }) // a test may have closed it
				fd := int(master.Fd())
				if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
					t.Fatal(err)
				}
				number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
				if err != nil {
					t.Fatal(err)
				}
				slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer slave.Close()
				g := start(t, path, with+plain+session+deaf+tellsIt+`wait'`, 3, &syscall.SysProcAttr{Setsid: true, Setctty: true}, slave)
				if err := end(master); err != nil {
					t.Fatal(err)
				}
				g.wantGone(t)
			})
		}
	}
}

// Exit codes and output pass.
func TestFurtherPasses(t *testing.T) {
	path := build(t)
	for name, c := range map[string]struct {
		args []string
		code int
		out  string
	}{
		"nothing":             {[]string{"true"}, 0, ""},
		"the highest":         {[]string{"bash", "-c", "exit 255"}, 255, ""},
		"two":                 {[]string{"bash", "-c", "exit 2"}, 2, ""},
		"in a guard":          {[]string{path, "bash", "-c", "echo in; exit 3"}, 3, "in\n"},
		"killed":              {[]string{"bash", "-c", "kill -9 $$"}, -1, ""}, // any but 0
		"not there":           {[]string{"/no/such/command"}, -1, ""},
		"no command":          {nil, 2, ""},
		"its own flags":       {[]string{"echo", "-log", "x"}, 0, "-log x\n"},
		"to the error stream": {[]string{"bash", "-c", "echo a; echo b >&2; exit 4"}, 4, "a\n"},
		"a lot":               {[]string{"bash", "-c", "head -c 1000000 /dev/zero | tr '\\0' x"}, 0, strings.Repeat("x", 1_000_000)},
	} {
		for _, log := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " ", log), func(t *testing.T) {
				args, file := c.args, filepath.Join(t.TempDir(), "log")
				if log {
					args = append([]string{"-log", file}, args...)
				}
				cmd := exec.Command(path, args...)
				var out bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, io.Discard
				_ = cmd.Run() // the code is what is asked for
				code := cmd.ProcessState.ExitCode()
				if c.code >= 0 && code != c.code || c.code < 0 && code <= 0 {
					t.Errorf("exit code = %d, want %d", code, c.code)
				}
				if got := out.String(); got != c.out {
					t.Errorf("output of %d bytes, want %d: %.50q", len(got), len(c.out), got)
				}
				if log && len(c.args) > 0 {
					if kept, err := os.ReadFile(file); err != nil || !strings.Contains(string(kept), c.out) {
						t.Errorf("the log has %d bytes, want %d: %v", len(kept), len(c.out), err)
					}
				}
			})
		}
	}
}
