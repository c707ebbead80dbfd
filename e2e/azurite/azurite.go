// Package azurite starts Azurite, Microsoft's storage emulator, for tests that
// need real blob storage. It comes from npm; see e2e/package.json.
package azurite

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gofrs/flock"
)

// Require tells whether a part must be there: then its absence fails a test
// instead of skipping it. E2E_REQUIRE lists such parts.
func Require(part string) bool {
	for _, p := range strings.Fields(os.Getenv("E2E_REQUIRE")) {
		if p == part {
			return true
		}
	}
	return false
}

// Missing skips the test for want of a part, or fails it where it is required.
func Missing(t testing.TB, part, why string) {
	t.Helper()
	if Require(part) {
		t.Fatalf("%s is required: %s", part, why)
	}
	t.Skipf("SKIPPED: no %s: %s", part, why)
}

// Start starts Azurite on a free port, with its data in a folder of its own,
// and returns the connection string. It is stopped when the test ends.
func Start(t testing.TB) string {
	t.Helper()
	storage, stop := Open(t, t.TempDir())
	t.Cleanup(stop)
	return storage
}

// Open is Start for more than one test: the caller gives the folder, and stops it.
func Open(t testing.TB, dir string) (storage string, stop func()) {
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	script := filepath.Join(filepath.Dir(file), "..", "node_modules", "azurite", "dist", "src", "blob", "main.js")
	if _, err := os.Stat(script); err != nil {
		Missing(t, "azurite", "install it with: npm ci --prefix e2e")
	}
	port := FreePort(t)
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "node", script, "--blobHost", "127.0.0.1", "--blobPort", port,
		"--location", dir, "--silent", "--skipApiVersionCheck", "--disableTelemetry")
	log := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		cancel()
		Missing(t, "azurite", err.Error())
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	listens := false
	defer func() {
		if !listens {
			cancel()
		}
	}()
	Eventually(t, time.Minute, "Azurite listens", func() error {
		select {
		case err := <-ended:
			t.Fatalf("Azurite ended: %v\n%s", err, log)
		default:
		}
		conn, err := net.DialTimeout("tcp", "127.0.0.1:"+port, time.Second)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	listens = true
	return "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;" +
		"AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==;" +
		"BlobEndpoint=http://127.0.0.1:" + port + "/devstoreaccount1;", func() { cancel(); <-ended }
}

// Ports lie below those that systems give to outgoing connections (from 32768), in blocks
// of which each test process has one: a port that was free a moment ago stays free.
const (
	firstPort = 20000
	blockSize = 1000
	blocks    = 12
)

var (
	lastPort atomic.Int64
	// blockLock is held as long as the process lives: a lock that nothing refers to is
	// collected, and released.
	blockLock *flock.Flock
	// block is the first port of this process.
	block = sync.OnceValues(func() (int64, error) {
		var last error
		for n := range int64(blocks) {
			blockLock = flock.New(filepath.Join(os.TempDir(), fmt.Sprintf("qualys-sentinel-ports-%d.lock", n)))
			mine, err := blockLock.TryLock()
			if mine {
				return firstPort + n*blockSize, nil
			}
			last = cmp.Or(err, last) // another user's, perhaps
		}
		return 0, fmt.Errorf("no block of ports is free: %w", cmp.Or(last, errors.New("other processes have them")))
	})
)

// Listen listens on a port of this machine that is this process's own.
func Listen(t testing.TB) net.Listener {
	t.Helper()
	first, err := block()
	if err != nil {
		t.Fatal(err)
	}
	for range blockSize {
		port := strconv.FormatInt(first+lastPort.Add(1)%blockSize, 10)
		if l, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			return l
		}
	}
	t.Fatalf("nothing is free between port %d and %d", first, first+blockSize)
	return nil
}

// FreePort returns a port that nothing listens on.
func FreePort(t testing.TB) string {
	t.Helper()
	l := Listen(t)
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// Eventually calls check until it returns nil, and fails the test after a time. It calls
// ever less often, once a second in the end: some checks start a program or read a whole
// container, and many tests wait at the same time.
func Eventually(t testing.TB, within time.Duration, what string, check func() error) {
	t.Helper()
	began := time.Now()
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := check()
		if err == nil {
			return
		}
		if time.Since(began) > within {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
		<-time.After(pause)
	}
}
