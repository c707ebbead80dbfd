// Guard runs a command and leaves no process of it behind: neither when it ends, nor
// when it is interrupted, nor when whoever started the guard is killed. Tests start
// servers, and a test that is cut off cannot stop them.
//
//	guard [-log FILE] command [arguments]
//
// It passes the command's output and exit code on. Only Linux knows what it needs;
// elsewhere it just runs the command.
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
)

func main() {
	log := flag.String("log", "", "file that gets the output, too")
	flag.Parse()
	code, err := run(*log, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "guard:", err)
	}
	os.Exit(code)
}

// run returns the exit code of the command.
func run(log string, command []string) (int, error) {
	if len(command) == 0 {
		return 2, errors.New("no command")
	}
	// An orphan is as good as interrupted.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	if err := adopt(); err != nil {
		return 1, err
	}
	out := io.Writer(os.Stdout)
	if log != "" {
		file, err := os.Create(log)
		if err != nil {
			return 1, err
		}
		defer file.Close()
		out = io.MultiWriter(os.Stdout, file)
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	tie(cmd)
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case s := <-signals:
		sweep()
		<-ended
		return 128 + int(s.(syscall.Signal)), fmt.Errorf("stopped: %s", s)
	case err := <-ended:
		for _, left := range sweep() {
			fmt.Fprintln(os.Stderr, "guard: left behind, and killed:", left)
		}
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return max(1, exit.ExitCode()), nil
		}
		if err != nil {
			return 1, err
		}
		return 0, nil
	}
}
