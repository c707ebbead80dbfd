package ingest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"qualys-sentinel/handler/internal/checkpoint"
)

// stateVersion is the version of the checkpoint document. A run refuses any
// other: guessing at a newer one could move a watermark past data.
const stateVersion = 1

// A Checkpoint is what is known to have arrived: the document in the state
// container. People may read it, and edit it while no run is going on.
type Checkpoint struct {
	Version int    `json:"version"`
	Dataset string `json:"dataset"`
	// Watermark is the end of the last window that arrived whole, by Qualys'
	// clock. Null before the first.
	Watermark *time.Time `json:"watermark"`
	// Clocks is what both clocks said when the watermark was taken.
	Clocks *Clocks `json:"clocks,omitempty"`
	// LastAfter is the start of the last window that arrived whole; null: the beginning,
	// or not known.
	LastAfter *time.Time `json:"lastAfter,omitempty"`
	// LastFull is the end of the last window that began at the beginning.
	LastFull *time.Time `json:"lastFull,omitempty"`
	// Index is the generation of the index of what was delivered; empty for a
	// dataset that has none.
	Index string `json:"index,omitempty"`
	// Window is the one in work; null between windows.
	Window *Window `json:"window"`
	// Isolated are the parents that fail by themselves, ascending.
	Isolated []Isolated `json:"isolated,omitempty"`
	// Stalled is how many runs in a row have made no progress.
	Stalled int `json:"stalled,omitempty"`
	// PageSize is what the last run had got down to, if its pages failed; zero: the
	// usual.
	PageSize int `json:"pageSize,omitempty"`
	// Trouble is what runs have found out about a page that does not come; null: none.
	Trouble *Trouble `json:"trouble,omitempty"`
	// Refused is what the destination has refused since it accepted a row; null: nothing.
	Refused *Refusals `json:"refused,omitempty"`
	// LastRun is the id of the run that wrote this, Saved when, by its clock.
	LastRun string     `json:"lastRun"`
	Saved   *time.Time `json:"saved,omitempty"`
	// Progress is what that run had done by then.
	Progress *Progress `json:"progress,omitempty"`
}

// Trouble is what runs have found out about a page that does not come. It outlives
// them: a process may end with every run.
type Trouble struct {
	// ID is the first parent that has not come.
	ID uint64 `json:"id"`
	// Search says that one parent is looked for, among those up to High; zero: that
	// is not known.
	Search bool   `json:"search,omitempty"`
	High   uint64 `json:"high,omitempty"`
	// Tries is how often a page of just one parent has failed.
	Tries int `json:"tries,omitempty"`
	// Void says that the page counted for nothing: it has said of itself that it may not
	// be whole.
	Void bool `json:"void,omitempty"`
	// Unproven is where the first page began whose end was not seen, if parents of it
	// have come: its end might have said that.
	Unproven uint64 `json:"unproven,omitempty"`
	// Suspects fail by themselves, and no other parent has come since. They are not
	// isolated before one has: it may be that none comes.
	Suspects []Isolated `json:"suspects,omitempty"`
	// Reason is the last failure.
	Reason string `json:"reason,omitempty"`
}

// Progress is how far a run has got. Other processes can see it only here.
type Progress struct {
	Started time.Time `json:"started"`
	Counts  Counts    `json:"counts"`
	// Waiting is what it waits for; empty if it does not.
	Waiting string `json:"waiting,omitempty"`
}

// ReadCheckpoint reads a checkpoint that somebody else may hold; nil if there is
// none.
func ReadCheckpoint(ctx context.Context, store checkpoint.Store, name, dataset string) (*Checkpoint, error) {
	doc, err := checkpoint.Read(ctx, store, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the checkpoint: %w", err)
	}
	c, err := decodeCheckpoint(doc, dataset)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

// A Window is a stretch of Qualys' time that is being carried over.
type Window struct {
	// After is its start; null means from the beginning.
	After *time.Time `json:"after"`
	// Until is its end: the time of the first page's answer.
	Until time.Time `json:"until"`
	// NextID is the lowest host id or QID that has not arrived yet.
	NextID uint64 `json:"nextId"`
	// Source is the request that the window was begun with.
	Source string `json:"source"`
	// Clocks is what both clocks said at Until.
	Clocks *Clocks `json:"clocks,omitempty"`
}

// encodeState writes a document that people read, too: indented, and with "&"
// as it is.
func encodeState(doc any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(doc)
	return b.Bytes(), err
}

// decodeCheckpoint reads the document; nil is a checkpoint at the beginning.
func decodeCheckpoint(doc []byte, dataset string) (*Checkpoint, error) {
	if len(doc) == 0 {
		return &Checkpoint{Version: stateVersion, Dataset: dataset}, nil
	}
	// The version first: a newer one may have members that are unknown here.
	var c Checkpoint
	if err := json.Unmarshal(doc, &c); err != nil {
		return nil, fmt.Errorf("the checkpoint is damaged: %w; restore it, or delete it to begin anew", err)
	}
	if c.Version != stateVersion {
		return nil, fmt.Errorf("the checkpoint has version %d, this program knows %d: use the program that wrote it, or a newer one", c.Version, stateVersion)
	}
	if c.Dataset != dataset {
		return nil, fmt.Errorf("the checkpoint belongs to dataset %q, not %q", c.Dataset, dataset)
	}
	if c.Stalled < 0 || c.PageSize < 0 || c.Window != nil && c.Window.Until.IsZero() {
		return nil, errors.New("the checkpoint is damaged: stalled and pageSize are at least 0, and a window has an until; correct it, or delete it to begin anew")
	}
	// A member that an edit has misspelt would mean "from the beginning".
	strict := json.NewDecoder(bytes.NewReader(doc))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&Checkpoint{}); err != nil {
		return nil, fmt.Errorf("the checkpoint is damaged: %w; correct it, or delete it to begin anew", err)
	}
	return &c, nil
}

func (c *Checkpoint) encode() ([]byte, error) {
	doc, err := encodeState(c)
	if err != nil {
		return nil, fmt.Errorf("encode the checkpoint: %w", err)
	}
	return doc, nil
}
