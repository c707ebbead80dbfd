// Guard runs a command and leaves no process of it behind: neither when it ends, nor
// when it is interrupted, nor when the guard or whoever started it is killed. Tests start
// servers, and a test that is cut off cannot stop them. Nor does it leave temporary files:
// TMPDIR is a folder of the command's own, in memory where the system has a place for it,
// unless it was set.
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
	"strconv"
	"sync"
	"syscall"
	"time"
)

func main() {
	log := flag.String("log", "", "file that gets the output, too")
	outer := flag.Int("inside", 0, "process id of the guard that this one is inside of")
	folder := flag.String("folder", "", "folder of the guard that this one is inside of, for temporary files")
	flag.Parse()
	code, err := keep(*log, *outer, *folder, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "guard:", err)
	}
	os.Exit(code)
}

// keep runs the command with a folder for its temporary files, which the guard around this
// one has made, if there is one. Both remove it: the one that is left does so.
func keep(log string, outer int, folder string, command []string) (int, error) {
	if outer == 0 {
		place := os.Getenv("TMPDIR")
		if place == "" {
			place = inMemory()
		}
		var err error
		if folder, err = os.MkdirTemp(place, "guard"); err != nil {
			return 1, err
		}
		if err := os.Setenv("TMPDIR", folder); err != nil {
			return 1, err
		}
	}
	code, err := run(log, outer, folder, command)
	return code, errors.Join(err, os.RemoveAll(folder))
}

// run returns the exit code of the command. Outer is the process id of the guard around
// this one; zero: there is none.
func run(log string, outer int, folder string, command []string) (int, error) {
	if len(command) == 0 {
		return 2, errors.New("no command")
	}
	// An orphan is as good as interrupted, and so is one whose output nobody reads.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	inner := outer != 0
	parent := os.Getppid()
	if inner {
		parent = outer // that was there before this process looked
	}
	if err := adopt(parent); err != nil {
		return 1, err
	}
	cmd := exec.Command(command[0], command[1:]...)
	if !inner {
		self, err := os.Executable()
		if err != nil {
			return 1, err
		}
		cmd = exec.Command(self, append([]string{"-inside", strconv.Itoa(os.Getpid()), "-folder", folder}, command...)...)
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	var out output
	if log != "" {
		if err := out.open(cmd, log); err != nil {
			return 1, err
		}
	}
	tie(cmd, inner)
	err := cmd.Start()
	out.begin()
	if err != nil {
		return 1, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case s := <-signals:
		sweep()
		<-ended
		out.wait(time.After(signalled))
		code := 128 + int(s.(syscall.Signal))
		if inner {
			return code, nil // the other tells
		}
		return code, fmt.Errorf("stopped: %s", s)
	case err := <-ended:
		for _, left := range sweep() {
			fmt.Fprintln(os.Stderr, "guard: left behind, and killed:", left)
		}
		out.wait(nil) // nobody holds it open any more
		if cmd.ProcessState == nil {
			return 1, err
		}
		if code := cmd.ProcessState.ExitCode(); code >= 0 {
			return code, nil
		}
		return 1, nil // killed
	}
}

// signalled is how long a guard that was told to end waits for whoever reads the output.
const signalled = time.Second

// output copies what a command writes to a file, too.
type output struct {
	copies []func() error
	theirs []*os.File // what the command writes into
	file   *os.File
	all    sync.WaitGroup
}

// open lets the command write into pipes. They are files, so that its end is known
// although a process that it has left behind still writes.
func (o *output) open(cmd *exec.Cmd, log string) (err error) {
	if o.file, err = os.Create(log); err != nil {
		return err
	}
	pipe := func(to io.Writer) (*os.File, error) {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		o.theirs = append(o.theirs, w)
		o.copies = append(o.copies, func() error {
			_, err := io.Copy(io.MultiWriter(o.file, to), r)
			return errors.Join(err, r.Close())
		})
		return w, nil
	}
	out, err := pipe(os.Stdout)
	if err != nil {
		return err
	}
	errs, err := pipe(os.Stderr)
	cmd.Stdout, cmd.Stderr = out, errs
	return err
}

// begin copies, once the command has its ends of the pipes.
func (o *output) begin() {
	for _, w := range o.theirs {
		w.Close()
	}
	for _, run := range o.copies {
		o.all.Go(func() {
			// A reader that has gone shows as SIGPIPE.
			if err := run(); err != nil && !errors.Is(err, syscall.EPIPE) {
				fmt.Fprintln(os.Stderr, "guard: a part of the output is lost:", err)
			}
		})
	}
}

// wait waits until all is copied, or enough.
func (o *output) wait(enough <-chan time.Time) {
	done := make(chan struct{})
	go func() {
		o.all.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-enough:
	}
	if o.file != nil {
		o.file.Close()
	}
}
