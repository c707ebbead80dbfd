// Package check tests the connection, step by step: settings, Qualys, the state,
// Log Analytics.
//
// Each step tells ok, warning or failed, how long it took, and what to do. Of a
// chain of steps only the one that is the cause fails: what could not be tried
// because of it is skipped. It changes nothing, and asks each endpoint once at
// most. Nothing is tried again: bad logins lock accounts. How to ask is the
// business of packages qualys and loganalytics.
package check

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/settings"
)

// Version of the report.
const Version = 1

// Result of a step, or of all.
type Result string

// The results, from good to bad. Skipped is a step that an earlier failure has
// kept from being tried.
const (
	OK      Result = "ok"
	Warning Result = "warning"
	Failed  Result = "failed"
	Skipped Result = "skipped"
)

// A Step is one thing that was tested.
type Step struct {
	// Name for programs, Title for people.
	Name         string `json:"name"`
	Title        string `json:"title"`
	Result       Result `json:"result"`
	Milliseconds int64  `json:"milliseconds"`
	// Detail is what was found.
	Detail string `json:"detail"`
	// Advice is what to do about it; empty where nothing has to be done.
	Advice string `json:"advice,omitempty"`
}

// A Report is all steps.
type Report struct {
	Version int       `json:"version"`
	At      time.Time `json:"at"`
	// Outcome is the worst of the steps: ok, warning or failed.
	Outcome Result `json:"outcome"`
	Steps   []Step `json:"steps"`
}

// Parts are what is tested.
type Parts struct {
	// Faults are what is wrong with the settings. A side whose settings are wrong
	// is nil below.
	Faults []settings.Fault
	// References counts the Key Vault references that this program has read.
	References int
	// Off are the functions that have no schedule; nil if that is not known.
	Off []string
	// Unscheduled tells that schedules do not matter, as for rows into a folder.
	Unscheduled bool
	Source      *Source
	State       *State
	Streams     []Stream
	Clock       ingest.Clock
	// StepTime is how long a step may take; DefaultStepTime if zero.
	StepTime time.Duration
	// Told is called with every step, in order, as soon as it is known; nil: nobody
	// is told.
	Told func(Step)
}

// Source is the Qualys side.
type Source struct {
	Origin        *url.URL
	Detections    *qualys.Detections
	KnowledgeBase *qualys.KnowledgeBase
	// Proxy is what requests go through; nil: they go straight.
	Proxy *url.URL
	// WithoutKnowledgeBase tells that nobody has switched QualysKB on.
	WithoutKnowledgeBase bool
}

// State is the state side.
type State struct {
	Store checkpoint.Store
	// Destination is the name, in the state, of the destination.
	Destination string
	// Integrations lists the destinations beside the default one, as far as they can
	// be read; nil: it is not known how they are reached.
	Integrations func(ctx context.Context) ([]Integration, error)
}

// A Stream is a way into a table.
type Stream struct {
	Table       string
	Destination ingest.Destination
}

// DefaultStepTime is how long a step may take. The KnowledgeBase's first answer
// may take half a minute, and all steps have to fit into the platform's 230
// seconds.
const DefaultStepTime = 50 * time.Second

// Run tests everything. The sides are tested beside each other.
func Run(ctx context.Context, p Parts) Report {
	r := Report{Version: Version, At: p.Clock.Now().UTC(), Outcome: OK}
	take := func(s Step) {
		r.Steps = append(r.Steps, s)
		if worse(s.Result, r.Outcome) {
			r.Outcome = s.Result
		}
		if p.Told != nil {
			p.Told(s)
		}
	}
	for _, s := range p.settings() {
		take(s)
	}
	sides := []func(context.Context, *bench){p.Source.test, p.State.test, func(ctx context.Context, b *bench) { testStreams(ctx, b, p.Streams) }}
	var benches []*bench
	for _, test := range sides {
		b := &bench{clock: p.Clock, stepTime: p.StepTime, steps: make(chan Step, mostSteps)}
		if b.stepTime == 0 {
			b.stepTime = DefaultStepTime
		}
		benches = append(benches, b)
		go func() {
			defer close(b.steps)
			test(ctx, b)
		}()
	}
	for _, b := range benches { // told in order, as soon as they are known
		for s := range b.steps {
			take(s)
		}
	}
	return r
}

// mostSteps is more than a side has.
const mostSteps = 32

func worse(a, b Result) bool {
	rank := map[Result]int{Skipped: 0, OK: 0, Warning: 1, Failed: 2}
	return rank[a] > rank[b]
}

// settings are two steps: secrets fail for other reasons than what people type.
func (p *Parts) settings() []Step {
	typed := Step{Name: "settings", Title: "Settings", Result: OK, Detail: "complete and well-formed"}
	vault := Step{Name: "keyvault", Title: "Key Vault", Result: OK, Detail: "no reference is left to resolve"}
	if p.References > 0 {
		vault.Detail = fmt.Sprintf("read by the connector itself, as the platform has left their references: %d", p.References)
	}
	for _, f := range p.Faults {
		s := &typed
		if f.Vault {
			s = &vault
		}
		if s.Result != Failed {
			s.Result, s.Detail = Failed, ""
		}
		s.Detail = strings.TrimPrefix(s.Detail+"\n"+f.Setting+": "+f.Problem, "\n")
	}
	if typed.Result == Failed {
		typed.Advice = "correct the app settings; the text says what is accepted"
	}
	if vault.Result == Failed {
		vault.Advice = "see what the text says of each; a role that was just given takes some minutes"
	}
	return []Step{typed, vault, p.schedules()}
}

// schedules tells which functions are off: those do nothing, without a word.
func (p *Parts) schedules() Step {
	s := Step{Name: "schedules", Title: "Schedules", Result: OK, Detail: "all functions are on"}
	switch {
	case p.Unscheduled:
		s.Detail = "none is needed here"
	case p.Off == nil || slices.ContainsFunc(p.Faults, func(f settings.Fault) bool { return !f.Vault }):
		s.Result, s.Detail = Skipped, "not tried: mend the settings first"
	case len(p.Off) > 0:
		s.Result, s.Detail = Warning, "off: "+strings.Join(p.Off, ", ")
		s.Advice = "set vmSchedule and kbSchedule in the function app, or leave it so if that is meant"
	}
	return s
}

// bench takes the steps of one side.
type bench struct {
	clock    ingest.Clock
	stepTime time.Duration
	steps    chan Step
	began    time.Time
}

// begin starts the time of the next step.
func (b *bench) begin(ctx context.Context) (context.Context, context.CancelFunc) {
	b.began = b.clock.Now()
	return context.WithTimeout(ctx, b.stepTime)
}

// end ends a step. Several may come of one call: only the first has its time.
func (b *bench) end(name, title string, v verdict) {
	s := Step{Name: name, Title: title, Result: v.result, Detail: v.detail, Advice: v.advice}
	if !b.began.IsZero() {
		s.Milliseconds = b.clock.Now().Sub(b.began).Milliseconds()
		b.began = time.Time{}
	}
	b.steps <- s
}

// verdict is a step's result and its reason.
type verdict struct {
	result         Result
	detail, advice string
}

func ok(format string, args ...any) verdict { return verdict{OK, fmt.Sprintf(format, args...), ""} }

func warning(detail, advice string) verdict { return verdict{Warning, detail, advice} }

func failed(detail, advice string) verdict { return verdict{Failed, detail, advice} }

// skipped names what has to be mended first.
func skipped(first string) verdict {
	return verdict{Skipped, "not tried: mend " + first + " first", ""}
}

// errTime is the error of a step whose time was up.
var errTime = errors.New("no answer in time")

// timedOut replaces the error of a step whose time was up.
func timedOut(ctx context.Context, err error) error {
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return errTime
	}
	return err
}
