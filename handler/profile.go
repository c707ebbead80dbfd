//go:build profile

package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"
)

// A build with the tag "profile", and no other, notes what it spends its CPU time
// on. SIGUSR1 makes it write that to the file that PROFILE names, and ends it.
// See docs/performance.md.
func init() {
	path := os.Getenv("PROFILE")
	if path == "" {
		return
	}
	file, err := os.Create(path)
	if err == nil {
		err = pprof.StartCPUProfile(file)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "profile:", err)
		os.Exit(exitFailed)
	}
	done := make(chan os.Signal, 1)
	signal.Notify(done, syscall.SIGUSR1)
	go func() {
		<-done
		pprof.StopCPUProfile()
		if err := file.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "profile:", err)
			os.Exit(exitFailed)
		}
		os.Exit(exitOK)
	}()
}
