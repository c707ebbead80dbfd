package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// adopt lets the guard hear of its parent's death, and makes it the parent of every
// descendant that loses its own. It fails if parent, a process id, is its parent no more.
func adopt(parent int) error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0); err != nil {
		return fmt.Errorf("hear of the parent's death: %w", err)
	}
	if os.Getppid() != parent {
		return fmt.Errorf("the parent is gone")
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("adopt orphans: %w", err)
	}
	return nil
}

// tie kills the command when the inner guard is killed. That one hears by itself when
// the outer is, and has a group of its own, so that nothing kills both at once.
func tie(cmd *exec.Cmd, inner bool) {
	if inner {
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	} else {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	}
}

// sweep kills all descendants, and returns what they were. Orphans are adopted, so there
// are none when there is no child; a look at /proc alone may miss one whose parent ends
// meanwhile.
func sweep() (left []string) {
	self := os.Getpid()
	seen := map[int]bool{}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		for _, pid := range below(self) {
			if !seen[pid] {
				seen[pid] = true
				left = append(left, name(pid))
			}
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may be gone
		}
		if !reap() {
			return left
		}
		<-time.After(20 * time.Millisecond)
	}
	return left
}

// reap waits for the children that have ended, those that were adopted among them, and
// reports whether there are any others.
func reap() (others bool) {
	for {
		switch pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return false
		case pid == 0:
			return true
		}
	}
}

// below lists the descendants of a process that are running.
func below(root int) (pids []int) {
	children := map[int][]int{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		// The name, in brackets, may hold anything; state and parent follow it.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 2 || fields[0] == "Z" {
			continue
		}
		if parent, err := strconv.Atoi(fields[1]); err == nil {
			children[parent] = append(children[parent], pid)
		}
	}
	for queue := children[root]; len(queue) > 0; queue = queue[1:] {
		pids = append(pids, queue[0])
		queue = append(queue, children[queue[0]]...)
	}
	return pids
}

func name(pid int) string {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return strconv.Itoa(pid)
	}
	text := strings.TrimSpace(string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
	return fmt.Sprintf("%d %.200s", pid, text)
}
