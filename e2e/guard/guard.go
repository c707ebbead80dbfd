// Guard runs a command and leaves no process of it behind: neither when it ends, nor
// when it is interrupted, nor when the guard or whoever started it is killed. Tests start
// servers, and a test that is cut off cannot stop them.
//
//	guard [-log FILE] command [arguments]
//
// It passes the command's output and exit code on. A guard that is killed cannot clean
// up, so there are two, one inside the other, in process groups of their own: each
// hears of the other's end. Only Linux knows what that needs; elsewhere it just runs
// the command.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	log := flag.String("log", "", "file that gets the output, too")
	inner := flag.Bool("inner", false, "this is the guard inside another")
	flag.Parse()
	code, err := run(*log, *inner, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "guard:", err)
	}
	os.Exit(code)
}

// leftOutput is how long the output of a command that has ended may be held open by what
// it left behind.
const leftOutput = time.Second

// run returns the exit code of the command.
func run(log string, inner bool, command []string) (int, error) {
	if len(command) == 0 {
		return 2, errors.New("no command")
	}
	// An orphan is as good as interrupted, and so is one whose output nobody reads.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	if err := adopt(); err != nil {
		return 1, err
	}
	cmd := exec.Command(command[0], command[1:]...)
	if !inner {
		self, err := os.Executable()
		if err != nil {
			return 1, err
		}
		cmd = exec.Command(self, append([]string{"-inner"}, command...)...)
	}
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = os.Stdout, os.Stderr, leftOutput
	if log != "" {
		file, err := os.Create(log)
		if err != nil {
			return 1, err
		}
		defer file.Close()
		cmd.Stdout, cmd.Stderr = io.MultiWriter(os.Stdout, file), io.MultiWriter(os.Stderr, file)
	}
	tie(cmd, inner)
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case s := <-signals:
		sweep()
		<-ended
		code := 128 + int(s.(syscall.Signal))
		if inner {
			return code, nil // the other tells
		}
		return code, fmt.Errorf("stopped: %s", s)
	case err := <-ended:
		for _, left := range sweep() {
			fmt.Fprintln(os.Stderr, "guard: left behind, and killed:", left)
		}
		if cmd.ProcessState == nil {
			return 1, err
		}
		if code := cmd.ProcessState.ExitCode(); code >= 0 {
			return code, nil
		}
		return 1, nil // killed
	}
}
