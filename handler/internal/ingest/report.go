package ingest

import (
	"sync"
	"sync/atomic"
	"time"

	"qualys-sentinel/handler/internal/record"
)

// Outcome is how a run ended.
type Outcome string

// The outcomes. All but Failed are good order: nothing is lost in any of them.
const (
	// Complete: the window arrived whole and the watermark moved.
	Complete Outcome = "complete"
	// Paused: the budget was used up or the program asked to stop; the next
	// run goes on from the cursor.
	Paused Outcome = "paused"
	// Waiting: Qualys asks for a longer wait than the budget leaves.
	Waiting Outcome = "waiting"
	// Held: another run is going on, so this one did nothing.
	Held Outcome = "held"
	// Failed: see the reason. The cursor stands where it had arrived.
	Failed Outcome = "failed"
)

// A Report is what a run did. It is logged, and kept in the state container.
type Report struct {
	Version int        `json:"version"`
	Run     string     `json:"run"`
	Dataset string     `json:"dataset"`
	Started time.Time  `json:"started"`
	Ended   time.Time  `json:"ended"`
	Outcome Outcome    `json:"outcome"`
	Reason  string     `json:"reason,omitempty"`
	After   *time.Time `json:"after"` // start of the window; null: from the beginning
	Until   *time.Time `json:"until"` // end of the window, if it got as far as an answer
	NextID  uint64     `json:"nextId,omitempty"`
	// Stalled is how many runs in a row, this one included, made no progress.
	Stalled int `json:"stalled,omitempty"`
	// Integration is the number of the integration that it was for; empty for the
	// default destination.
	Integration string `json:"integration,omitempty"`
	// Request is the id of what was asked for; empty for the dataset's own windows.
	Request string `json:"request,omitempty"`
	// Limits are the source's, as it told last.
	Limits *record.CallLimits `json:"limits,omitempty"`
	// Warnings are what Qualys warned of, and what looks odd although nothing failed.
	Warnings []string `json:"warnings,omitempty"`
	// Isolated are the parents that fail by themselves, the first of them, and
	// IsolatedTotal how many they are; see Isolated.
	Isolated      []Isolated `json:"isolated,omitempty"`
	IsolatedTotal int        `json:"isolatedTotal,omitempty"`
	Counts
}

// maxReported is how many isolated parents a report names. The checkpoint, and with
// it the status, name all.
const maxReported = 100

// Counts is everything a run counts. Decoded = Accepted + DeadLetters +
// Abandoned, always, and nothing is abandoned in a window that arrived whole.
type Counts struct {
	Pages       int64 `json:"pages"`              // answers read to their end
	Parents     int64 `json:"parents"`            // hosts, QIDs
	Expected    int64 `json:"expected,omitempty"` // parents that the run's window still held when the run began, where Qualys tells
	Decoded     int64 `json:"decoded"`            // records that were new
	Repeated    int64 `json:"repeated"`           // records that the overlap or the next page brought again, and that were not sent
	Accepted    int64 `json:"accepted"`           // rows the destination took
	DeadLetters int64 `json:"deadLetters"`        // rows it refused, kept
	Abandoned   int64 `json:"abandoned"`          // rows that a failure or the end of the time left behind: the next run reads them again
	Cut         int64 `json:"cut"`                // rows with a field too long for the destination, kept whole elsewhere
	Batches     int64 `json:"batches"`            // calls that the destination accepted
	BytesRead   int64 `json:"bytesRead"`          // of documents, decompressed
	BytesRows   int64 `json:"bytesRows"`          // of accepted rows, as JSON
	BytesSent   int64 `json:"bytesSent"`          // of accepted calls, as sent
	Requests    int64 `json:"requests"`           // to Qualys
	Retries     int64 `json:"retries"`            // of either side
	WaitSeconds int64 `json:"waitSeconds"`        // before retries
	Repairs     int64 `json:"repairs"`            // characters mended
	Unknown     int64 `json:"unknown"`            // elements without a column
	Late        int64 `json:"late"`               // host elements behind the first detection
	Unjoined    int64 `json:"unjoined,omitempty"` // rows whose QID the KnowledgeBase's index does not know
}

// counters are Counts while a run is going on; several goroutines add to them.
type counters struct {
	pages, parents, decoded, repeated, accepted, deadLetters atomic.Int64
	abandoned, cut, batches, bytesRows, bytesSent            atomic.Int64
	retries, waited, unjoined                                atomic.Int64

	mu      sync.Mutex
	tally   record.Tally
	waiting string
}

func (c *counters) addTally(t record.Tally) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tally.Add(t)
}

// setWaiting says what the run waits for; empty if it does not.
func (c *counters) setWaiting(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = what
}

func (c *counters) snapshot() (Counts, string) {
	c.mu.Lock()
	t, waiting := c.tally, c.waiting
	c.mu.Unlock()
	return Counts{
		Pages: c.pages.Load(), Parents: c.parents.Load(),
		Decoded: c.decoded.Load(), Repeated: c.repeated.Load(),
		Accepted: c.accepted.Load(), DeadLetters: c.deadLetters.Load(), Abandoned: c.abandoned.Load(), Cut: c.cut.Load(),
		Batches: c.batches.Load(), BytesRead: t.Bytes,
		BytesRows: c.bytesRows.Load(), BytesSent: c.bytesSent.Load(),
		Requests: t.Requests, Retries: c.retries.Load(),
		WaitSeconds: int64(time.Duration(c.waited.Load()).Seconds()),
		Repairs:     t.Repairs, Unknown: t.Unknown, Late: t.Late,
		Expected: t.Expected, Unjoined: c.unjoined.Load(),
	}, waiting
}
