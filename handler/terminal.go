package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
)

// paper is where a command writes its result.
type paper struct {
	io.Writer
	colours bool
	json    bool
}

// newPaper writes to stdout, in colours if that is a terminal and nobody objects
// (https://no-color.org).
func newPaper(asJSON bool) *paper {
	colours := term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return &paper{Writer: os.Stdout, colours: colours, json: asJSON}
}

// document writes a document as JSON.
func (p *paper) document(doc any) error {
	enc := json.NewEncoder(p)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(doc); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// Colours of a terminal, by what they mean (ECMA-48, SGR).
const (
	green  = "32"
	yellow = "33"
	red    = "31"
	blue   = "36"
	bold   = "1"
	faint  = "2"
)

// colourOf is the colour of an outcome.
var colourOf = map[string]string{
	"ok": green, "complete": green,
	"warning": yellow, "waiting": yellow, "queued": yellow, "killed": yellow,
	"failed":  red,
	"running": blue, "paused": blue,
	"skipped": faint,
}

// paint colours a text, where there are colours.
func (p *paper) paint(colour, text string) string {
	if !p.colours || colour == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// outcome is an outcome in its colour, and as wide as told.
func (p *paper) outcome(text string, width int) string {
	return p.paint(colourOf[text], fmt.Sprintf("%-*s", width, text))
}

// failed makes the exit of a job that failed. Where the result is wanted as JSON, there
// is one document in any case.
func (p *paper) failed(err error) error {
	if p.json {
		err = errors.Join(err, p.document(map[string]string{"error": err.Error()}))
	}
	return &jobError{err}
}
