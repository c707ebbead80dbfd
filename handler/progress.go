package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"

	"qualys-sentinel/handler/internal/ingest"
)

// Progress is shown this often: on one line of a terminal, or as lines of a
// log.
const (
	terminalInterval = 200 * time.Millisecond
	lineInterval     = 10 * time.Second
)

// progress shows what a run does while it goes on.
type progress struct {
	out      io.Writer
	terminal bool
	width    int // descriptor of the terminal
	run      *ingest.Run
	began    time.Time
	stop     chan struct{}
	stopped  chan struct{}
}

func startProgress(out *os.File, r *ingest.Run) *progress {
	p := &progress{out: out, terminal: term.IsTerminal(int(out.Fd())), width: int(out.Fd()), run: r, began: time.Now(), stop: make(chan struct{}), stopped: make(chan struct{})}
	go p.loop()
	return p
}

func (p *progress) loop() {
	defer close(p.stopped)
	interval := lineInterval
	if p.terminal {
		interval = terminalInterval
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-p.stop:
			if p.terminal {
				fmt.Fprint(p.out, "\r\x1b[K")
			}
			return
		case <-ticker.C:
			p.show()
		}
	}
}

func (p *progress) show() {
	counts, waiting := p.run.Progress()
	line := progressLine(p.run.Dataset, counts, waiting, time.Since(p.began))
	if width, _, err := term.GetSize(p.width); p.terminal && err == nil {
		line = clipLine(line, width-1) // a line that wraps cannot be replaced
	}
	if p.terminal {
		fmt.Fprint(p.out, "\r\x1b[K", line)
	} else {
		fmt.Fprintln(p.out, line)
	}
}

// end removes the line.
func (p *progress) end() {
	close(p.stop)
	<-p.stopped
}

func progressLine(d *ingest.Dataset, c ingest.Counts, waiting string, took time.Duration) string {
	seconds := max(took.Seconds(), 0.001)
	parents := thousands(c.Parents)
	if c.Expected > 0 {
		parents += " of " + thousands(c.Expected)
	}
	line := fmt.Sprintf("%6.1fs  %d pages  %s %s  %s %s read, %s accepted  %s  %.0f/s",
		took.Seconds(), c.Pages, parents, d.Parents, thousands(c.Decoded), d.Records, thousands(c.Accepted),
		size(c.BytesRead), float64(c.Accepted)/seconds)
	switch {
	case waiting != "" || c.BytesRead > 0:
	case c.Requests == 0:
		waiting = "for the state, or for a turn at Qualys"
	default:
		waiting = "for Qualys to answer"
	}
	if waiting != "" {
		line += "  waiting " + firstLine(waiting)
	}
	return line
}

// clipLine cuts a line to a width in characters.
func clipLine(line string, width int) string {
	if runes := []rune(line); len(runes) > width && width > 0 {
		return string(runes[:width])
	}
	return line
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	if len(s) > 100 {
		s = strings.ToValidUTF8(s[:100], "") + "..."
	}
	return s
}

// thousands writes 1234567 as 1,234,567.
func thousands(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// size writes bytes in decimal units, as Log Analytics bills.
func size(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.2f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f kB", float64(n)/1e3)
}

// terminalLog is the log of commands: for people, on stderr.
func terminalLog(level string) (*zap.Logger, error) {
	parsed, err := zapcore.ParseLevel(level)
	if err != nil {
		return nil, fmt.Errorf("--log %q is unknown: debug, info, warn, error", level)
	}
	config := zap.NewDevelopmentEncoderConfig()
	config.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05")
	out := zapcore.Lock(clearing{os.Stderr})
	return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(config), out, parsed), zap.ErrorOutput(out)), nil
}

// clearing removes the progress line before a log line.
type clearing struct{ *os.File }

func (c clearing) Write(p []byte) (int, error) {
	if term.IsTerminal(int(c.Fd())) {
		fmt.Fprint(c.File, "\r\x1b[K")
	}
	n, err := c.File.Write(p)
	if err != nil {
		return n, fmt.Errorf("write the log: %w", err)
	}
	return n, nil
}

// printReport tells how a run ended.
func printReport(out io.Writer, d *ingest.Dataset, r ingest.Report) {
	took := r.Ended.Sub(r.Started)
	fmt.Fprintf(out, "%s: %s after %s\n", d.Title, r.Outcome, took.Round(10*time.Millisecond))
	fmt.Fprintf(out, "  %-14s %s in %s pages, %s of XML\n", d.Parents, thousands(r.Parents), thousands(r.Pages), size(r.BytesRead))
	fmt.Fprintf(out, "  %-14s %s new, %s accepted, %s dead letters", d.Records, thousands(r.Decoded), thousands(r.Accepted), thousands(r.DeadLetters))
	if r.Repeated > 0 {
		fmt.Fprintf(out, ", %s unchanged and not sent again", thousands(r.Repeated))
	}
	fmt.Fprintf(out, "\n  %-14s %s of rows, %s sent in %s calls, %.0f rows/s\n", "delivered", size(r.BytesRows), size(r.BytesSent), thousands(r.Batches), float64(r.Accepted)/max(took.Seconds(), 0.001))
	if r.Cut > 0 {
		fmt.Fprintf(out, "  %-14s %s rows hold a field that the destination cuts; it is kept whole under deadletter/\n", "cut", thousands(r.Cut))
	}
	if r.Unjoined > 0 {
		fmt.Fprintf(out, "  %-14s %s rows have a QID that the KnowledgeBase, as far as it is loaded, does not hold\n", "unjoined", thousands(r.Unjoined))
	}
	if r.Retries > 0 {
		fmt.Fprintf(out, "  %-14s %s, %ds of waiting\n", "retries", thousands(r.Retries), r.WaitSeconds)
	}
	if r.Outcome == ingest.Complete && r.Until != nil {
		name, note := "watermark", ""
		if r.Request != "" {
			name, note = "window", "; the dataset's own checkpoint stays where it is"
		}
		fmt.Fprintf(out, "  %-14s up to %s by Qualys' clock%s\n", name, r.Until.Format(time.RFC3339), note)
	}
	if r.DeadLetters > 0 {
		fmt.Fprintf(out, "  %-14s rows were refused for good and are kept: qualys-sentinel replay %s --list tells why\n", "dead letters", d.Name)
	}
	if r.Reason != "" && r.Outcome != ingest.Failed { // a failure is told as the command's error
		fmt.Fprintf(out, "  %-14s %s\n", "reason", r.Reason)
	}
}
