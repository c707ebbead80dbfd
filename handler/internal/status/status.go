// Package status tells what the connector has done and is doing: one document,
// read from the state and from the runs of this process, and a page that shows
// it.
//
// It changes nothing. What cannot be read is told in the document, beside what
// can. The document's members are a contract: they may be added to, and mean
// what docs/api.md says. Neither Qualys nor Log Analytics is asked, and no HTTP
// enters here.
package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/ondemand"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/record"
)

const (
	// Version of the documents.
	Version = 1
	// lastRuns is how many runs of a dataset are told.
	lastRuns = 10
	// lastRequests is how many closed requests are.
	lastRequests = 5
	// runDays is how many days back runs are looked for, one listing each.
	runDays = 8
)

// Of a sync or a run that has not ended.
const (
	Running = "running"
	// Queued is a request that nobody carries at the moment: the next tick does.
	Queued = "queued"
	// Killed is a run that has ended without a record.
	Killed = "killed"
)

// A Document is the connector's status.
type Document struct {
	Version  int       `json:"version"`
	At       time.Time `json:"at"`
	Program  Program   `json:"program"`
	Datasets []Dataset `json:"datasets"`
	// Integrations are the destinations beside the default one, by their ids.
	Integrations []Integration `json:"integrations"`
	// Rests are times without calls: what Qualys, or a proxy, has refused or asked for.
	Rests []qualys.Rest `json:"rests"`
	// Problems are what could not be read of no one of them.
	Problems []string `json:"problems"`
}

// An Integration is the status of a destination beside the default one.
type Integration struct {
	ID   int64  `json:"integration"`
	Name string `json:"name"`
	// To is where its rows go, Wants what it is to get, Schedule when; empty: with
	// every tick. All are for people.
	To       string `json:"to"`
	Wants    string `json:"wants"`
	Schedule string `json:"schedule,omitempty"`
	Dataset
}

// Program is which program tells.
type Program struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	// Host is the version of the Functions host; empty on the command line.
	Host string `json:"host,omitempty"`
	// APIs are the versions of Qualys' APIs that are asked, by dataset.
	APIs map[string]string `json:"apis,omitempty"`
}

// A Dataset is one dataset's status.
type Dataset struct {
	Dataset string `json:"dataset"`
	Title   string `json:"title"`
	Table   string `json:"table"`
	Records string `json:"records"` // what its rows are called
	Parents string `json:"parents"` // and their owners
	// Watermark is up to when all has arrived, by Qualys' clock; null before the
	// first window. AgeSeconds is how long ago that is.
	Watermark  *time.Time `json:"watermark"`
	AgeSeconds *int64     `json:"watermarkAgeSeconds"`
	// Window is the one in work; null between windows.
	Window *Window `json:"window"`
	// Stalled is how many runs in a row have made no progress.
	Stalled int `json:"stalled"`
	// Running are the runs that are going on: its own, and what was asked for.
	Running []Run `json:"running"`
	// Killed is the last run, if it has ended without a word; null if it has not.
	Killed *Run `json:"killed"`
	// Runs are the last ones that have ended, the newest first.
	Runs []ingest.Report `json:"runs"`
	// Syncs are what was asked for: what is open, then what was closed last.
	Syncs []Sync `json:"syncs"`
	// Isolated are the first of them, of IsolatedTotal.
	Isolated      []ingest.Isolated `json:"isolated"`
	IsolatedTotal int               `json:"isolatedTotal"`
	// DeadLetters counts the objects that keep rows which were refused for good,
	// CutFields those that keep fields too long for the table.
	DeadLetters int `json:"deadLetters"`
	CutFields   int `json:"cutFields"`
	// Limits are Qualys', as told at LimitsAt.
	Limits   *record.CallLimits `json:"limits"`
	LimitsAt *time.Time         `json:"limitsAt"`
	// Problems are what could not be read, and what needs somebody's attention.
	Problems []string `json:"problems"`
}

// A Window is a stretch of Qualys' time that is being carried over.
type Window struct {
	After  *time.Time `json:"after"` // null: from the beginning
	Until  time.Time  `json:"until"`
	NextID uint64     `json:"nextId"`
}

// A Run is one that is going on.
type Run struct {
	Run     string    `json:"run"`
	Request string    `json:"request,omitempty"`
	Started time.Time `json:"started"`
	// AsOf is when Counts were so: now, for a run of this process.
	AsOf    time.Time     `json:"asOf"`
	Counts  ingest.Counts `json:"counts"`
	Waiting string        `json:"waiting,omitempty"`
}

// A Sync is one that was asked for, or a run by itself.
type Sync struct {
	ID      string     `json:"id"`
	Dataset string     `json:"dataset"`
	State   string     `json:"state"`           // running, queued, complete, failed; of a run by itself also paused, waiting
	Asked   *time.Time `json:"asked,omitempty"` // null: by nobody
	ondemand.Window
	Ended  *time.Time `json:"ended,omitempty"`
	Reason string     `json:"reason,omitempty"`
	// Attempts are its runs: of Tries many, the first and the last.
	Attempts []Attempt `json:"attempts"`
	Tries    int       `json:"tries"`
}

// An Attempt is a run of a sync.
type Attempt struct {
	Run     string    `json:"run"`
	Started time.Time `json:"started"`
	// Outcome is running, killed, or that of the run's record.
	Outcome string         `json:"outcome"`
	Running *Run           `json:"running,omitempty"`
	Record  *ingest.Report `json:"record,omitempty"`
}

// A SyncDocument is the status of one sync, of one or more datasets.
type SyncDocument struct {
	Version int       `json:"version"`
	At      time.Time `json:"at"`
	ID      string    `json:"id"`
	Syncs   []Sync    `json:"syncs"`
}

// A Source is where the status is read.
type Source struct {
	Store checkpoint.Store
	// Destination is the name, in the state, of the destination, Integration the
	// number of the integration that it is of; empty for the default one.
	Destination string
	Integration string
	// Live lists the runs of this process; nil: it has none.
	Live    func(*ingest.Dataset) []ondemand.Live
	Program Program
	Now     func() time.Time
	// Rests lists the times without calls; nil: nobody keeps them.
	Rests func(ctx context.Context, now time.Time) ([]qualys.Rest, error)
	// Others lists the destinations beside the default one, with what is known of
	// them by their registration, and where their status is read; nil: there are none.
	// Those that it lists are there even behind an error.
	Others func(ctx context.Context) ([]Other, error)

	mu      sync.Mutex
	records map[string]*ingest.Report // by name; they never change
}

// An Other is a destination beside the default one.
type Other struct {
	Integration
	// Of is the dataset that it gets.
	Of     *ingest.Dataset
	Source *Source
}

func (s *Source) file() ondemand.File {
	return ondemand.File{Store: s.Store, Destination: s.Destination}
}

// gatherTime is how long a status may take. People wait for it, and a storage
// that is down would be asked for minutes.
const gatherTime = 20 * time.Second

// Gather tells the status of all datasets.
func (s *Source) Gather(ctx context.Context) Document {
	ctx, cancel := context.WithTimeout(ctx, gatherTime)
	defer cancel()
	doc := Document{Version: Version, At: s.Now().UTC(), Program: s.Program, Integrations: []Integration{}, Rests: []qualys.Rest{}, Problems: []string{}}
	doc.Program.Go = runtime.Version()
	if s.Rests != nil {
		rests, err := s.Rests(ctx, doc.At)
		if err != nil {
			doc.Problems = append(doc.Problems, err.Error())
		}
		doc.Rests = append(doc.Rests, rests...)
	}
	datasets := ingest.Datasets()
	doc.Datasets = make([]Dataset, len(datasets))
	var wg sync.WaitGroup
	for i, d := range datasets {
		wg.Go(func() { doc.Datasets[i] = s.dataset(ctx, d) })
	}
	if s.Others != nil {
		others, err := s.Others(ctx)
		if err != nil {
			doc.Problems = append(doc.Problems, err.Error())
		}
		doc.Integrations = make([]Integration, len(others))
		turns := make(chan struct{}, atOnce)
		for i, o := range others {
			wg.Go(func() {
				turns <- struct{}{}
				defer func() { <-turns }()
				table := o.Table
				doc.Integrations[i] = o.Integration
				doc.Integrations[i].Dataset = o.Source.dataset(ctx, o.Of)
				doc.Integrations[i].Table = table
			})
		}
	}
	wg.Wait()
	return doc
}

// atOnce is how many destinations beside the default one are read at once.
const atOnce = 8

// dataset reads one dataset's status.
func (s *Source) dataset(ctx context.Context, d *ingest.Dataset) Dataset {
	v := Dataset{Dataset: d.Name, Title: d.Title, Table: d.Schema.Table, Records: d.Records, Parents: d.Parents,
		Running: []Run{}, Runs: []ingest.Report{}, Syncs: []Sync{}, Isolated: []ingest.Isolated{}, Problems: []string{}}
	// A storage that does not answer is told once, and not asked again.
	problem := func(err error) {
		if err != nil && (ctx.Err() == nil || len(v.Problems) == 0) {
			v.Problems = append(v.Problems, err.Error())
		}
	}
	c, err := ingest.ReadCheckpoint(ctx, s.Store, ingest.CheckpointName(s.Destination, d.Name), d.Name)
	problem(err)
	if c != nil {
		v.fill(c, s.Now())
		most := maxTold
		if s.Integration != "" {
			most = maxToldOther
		}
		v.tellIsolated(c.Isolated, most)
	}
	open, err := s.file().Open(ctx, d.Name)
	problem(err)
	v.Running, err = s.running(ctx, d, open)
	problem(err)
	v.Killed, err = s.killed(ctx, d, c, v.Running)
	problem(err)
	v.Runs, err = s.runs(ctx, d)
	problem(err)
	v.limits(s, d)
	done, err := s.file().Done(ctx, d.Name, lastRequests)
	problem(err)
	slices.Reverse(open)
	for _, r := range append(open, done...) {
		sync, err := s.sync(ctx, r, v.Running)
		problem(err)
		v.Syncs = append(v.Syncs, sync)
	}
	of := ""
	if s.Integration != "" {
		of = s.Destination
	}
	letters, err := s.Store.List(ctx, ingest.LetterPrefix(of, d.Name))
	problem(err)
	for _, name := range letters {
		if strings.HasPrefix(path.Base(name), "cut-") {
			v.CutFields++
		} else {
			v.DeadLetters++
		}
	}
	return v
}

func (v *Dataset) fill(c *ingest.Checkpoint, now time.Time) {
	v.Watermark, v.Stalled = c.Watermark, c.Stalled
	if c.Watermark != nil {
		age := max(0, int64(now.Sub(*c.Watermark)/time.Second))
		v.AgeSeconds = &age
	}
	if w := c.Window; w != nil {
		v.Window = &Window{w.After, w.Until, w.NextID}
	}
}

// maxTold is how many isolated parents are told of a dataset, and of each
// integration's, of which there may be fifty: many ask for the status at once.
const (
	maxTold      = 100
	maxToldOther = 10
)

// tellIsolated tells the first of the isolated.
func (v *Dataset) tellIsolated(list []ingest.Isolated, most int) {
	v.IsolatedTotal = len(list)
	v.Isolated = append(v.Isolated, list[:min(most, len(list))]...) // and not the rest of the memory
}

// limits are those that a run of this process was told, or the last to end.
func (v *Dataset) limits(s *Source, d *ingest.Dataset) {
	if s.Live != nil {
		for _, l := range s.Live(d) {
			if told := l.Run.Source.CallLimits(); told != record.NoCallLimits {
				now := s.Now().UTC()
				v.Limits, v.LimitsAt = &told, &now
				return
			}
		}
	}
	for i := range v.Runs {
		if r := &v.Runs[i]; r.Limits != nil {
			v.Limits, v.LimitsAt = r.Limits, &r.Ended
			return
		}
	}
}

// running lists the runs that are going on, here or elsewhere.
func (s *Source) running(ctx context.Context, d *ingest.Dataset, open []*ondemand.Request) (list []Run, err error) {
	list = []Run{}
	here := map[string]bool{} // checkpoints that this process holds
	if s.Live != nil {
		for _, l := range s.Live(d) {
			here[l.Run.CheckpointName()] = true
			counts, waiting := l.Run.Progress()
			list = append(list, Run{Run: l.Run.ID, Request: l.Request, Started: l.Run.Started(), AsOf: s.Now().UTC(), Counts: counts, Waiting: waiting})
		}
	}
	elsewhere := func(name, request string) error {
		if here[name] {
			return nil
		}
		held, err := s.Store.Held(ctx, name)
		if err != nil || !held {
			return err
		}
		c, err := ingest.ReadCheckpoint(ctx, s.Store, name, d.Name)
		if err != nil || c == nil || c.Progress == nil {
			return err
		}
		list = append(list, *runOf(c, request))
		return nil
	}
	own := ""
	for _, r := range open {
		if r.Own() {
			own = r.ID
			continue
		}
		err = errors.Join(err, elsewhere(ingest.AskedName(s.Destination, d.Name, r.ID), r.ID))
	}
	return list, errors.Join(err, elsewhere(ingest.CheckpointName(s.Destination, d.Name), own))
}

// killed is the last of the dataset's own runs, if nobody carries it on and it
// has left no record: a run writes it before it lets go of the checkpoint.
func (s *Source) killed(ctx context.Context, d *ingest.Dataset, c *ingest.Checkpoint, running []Run) (*Run, error) {
	if c == nil || c.Progress == nil || slices.ContainsFunc(running, func(r Run) bool { return r.Run == c.LastRun }) {
		return nil, nil
	}
	_, err := s.record(ctx, ingest.RecordName(s.Integration, d.Name, c.Progress.Started, c.LastRun))
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return runOf(c, ""), nil
}

// runOf is what a checkpoint tells of the run that has written it.
func runOf(c *ingest.Checkpoint, request string) *Run {
	r := &Run{Run: c.LastRun, Request: request, Started: c.Progress.Started, Counts: c.Progress.Counts, Waiting: c.Progress.Waiting}
	if c.Saved != nil {
		r.AsOf = *c.Saved
	}
	return r
}

// runs lists the records of the runs that have ended last. Names begin with the
// time of the start: a listing for each day, until there are enough.
func (s *Source) runs(ctx context.Context, d *ingest.Dataset) ([]ingest.Report, error) {
	list := []ingest.Report{}
	var errs error
	keep := map[string]*ingest.Report{}
	for back := range runDays {
		day := s.Now().UTC().AddDate(0, 0, 1-back).Format("20060102") // a clock may be ahead
		names, err := s.Store.List(ctx, ingest.RecordPrefix(s.Integration, d.Name)+day)
		if err != nil {
			return list, err
		}
		slices.Reverse(names)
		for _, name := range names {
			if len(list) == lastRuns {
				break
			}
			r, err := s.record(ctx, name)
			if err != nil {
				errs = errors.Join(errs, err)
				continue
			}
			keep[name] = r
			list = append(list, *r)
		}
	}
	s.forget(d, keep)
	return list, errs
}

// record reads a run record, once.
func (s *Source) record(ctx context.Context, name string) (*ingest.Report, error) {
	s.mu.Lock()
	r := s.records[name]
	s.mu.Unlock()
	if r != nil {
		return r, nil
	}
	doc, err := checkpoint.Read(ctx, s.Store, name)
	if err != nil {
		return nil, fmt.Errorf("read the run record: %w", err)
	}
	r = &ingest.Report{}
	if err := json.Unmarshal(doc, r); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", name, err)
	}
	return r, nil
}

// forget keeps the records in memory that were needed now, of the dataset.
func (s *Source) forget(d *ingest.Dataset, keep map[string]*ingest.Report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.records == nil {
		s.records = map[string]*ingest.Report{}
	}
	for name := range s.records {
		if strings.HasPrefix(name, ingest.RecordPrefix(s.Integration, d.Name)) {
			delete(s.records, name)
		}
	}
	for name, r := range keep {
		s.records[name] = r
	}
}

// sync tells the story of a request.
func (s *Source) sync(ctx context.Context, r *ondemand.Request, running []Run) (Sync, error) {
	v := Sync{ID: r.ID, Dataset: r.Dataset, State: Queued, Asked: &r.Asked, Window: r.Window, Ended: r.Ended, Reason: r.Reason, Attempts: []Attempt{}, Tries: r.Tries}
	if r.Ended != nil {
		v.State = string(r.Outcome)
	}
	var errs error
	for _, a := range r.Attempts {
		attempt, err := s.attempt(ctx, r, a, running)
		errs = errors.Join(errs, err)
		if attempt.Running != nil && r.Ended == nil {
			v.State = Running
		}
		v.Attempts = append(v.Attempts, attempt)
	}
	return v, errs
}

// attempt tells of one run of a request. Of one that is closed the record counts:
// its run may still be tidying up.
func (s *Source) attempt(ctx context.Context, request *ondemand.Request, a ondemand.Attempt, running []Run) (Attempt, error) {
	v := Attempt{Run: a.Run, Started: a.Started, Outcome: Killed}
	for i := range running {
		if running[i].Run == a.Run && request.Ended == nil {
			v.Running, v.Outcome = &running[i], Running
			return v, nil
		}
	}
	r, err := s.record(ctx, ingest.RecordName(s.Integration, request.Dataset, a.Started, a.Run))
	switch {
	case err == nil:
		v.Record, v.Outcome = r, string(r.Outcome)
		return v, nil
	case !errors.Is(err, fs.ErrNotExist):
		return v, err
	}
	return v, nil
}

// Find tells the status of one sync, or of a run by itself; nil if there is none
// of the id.
func (s *Source) Find(ctx context.Context, id string) (*SyncDocument, error) {
	ctx, cancel := context.WithTimeout(ctx, gatherTime)
	defer cancel()
	doc := &SyncDocument{Version: Version, At: s.Now().UTC(), ID: id}
	for _, d := range ingest.Datasets() {
		// What cannot be read of others is no matter of this one.
		open, _ := s.file().Open(ctx, d.Name)
		running, _ := s.running(ctx, d, open)
		r, err := s.file().Find(ctx, d.Name, id)
		if err != nil {
			return nil, err
		}
		if r != nil {
			sync, err := s.sync(ctx, r, running)
			if err != nil {
				return nil, err
			}
			doc.Syncs = append(doc.Syncs, sync)
			continue
		}
		sync, err := s.byRun(ctx, d, id, running)
		if err != nil {
			return nil, err
		}
		if sync != nil {
			doc.Syncs = append(doc.Syncs, *sync)
		}
	}
	if len(doc.Syncs) > 0 {
		return doc, nil
	}
	if s.Others == nil {
		return nil, nil
	}
	others, _ := s.Others(ctx) // what cannot be read is no matter of this run
	for _, o := range others {
		found, err := o.Source.Find(ctx, id)
		if err != nil || found != nil {
			return found, err
		}
	}
	return nil, nil
}

// byRun tells of a run that nobody has asked for.
func (s *Source) byRun(ctx context.Context, d *ingest.Dataset, id string, running []Run) (*Sync, error) {
	for i := range running {
		if r := &running[i]; r.Run == id {
			return &Sync{ID: id, Dataset: d.Name, State: Running, Tries: 1, Attempts: []Attempt{{Run: id, Started: r.Started, Outcome: Running, Running: r}}}, nil
		}
	}
	name, err := s.recordOf(ctx, d, id)
	if err != nil || name == "" {
		return nil, err
	}
	r, err := s.record(ctx, name)
	if err != nil {
		return nil, err
	}
	return &Sync{ID: id, Dataset: d.Name, State: string(r.Outcome), Ended: &r.Ended, Reason: r.Reason, Tries: 1,
		Attempts: []Attempt{{Run: id, Started: r.Started, Outcome: string(r.Outcome), Record: r}}}, nil
}

// recordOf finds the name of a run's record: among the last days first, then
// among all.
func (s *Source) recordOf(ctx context.Context, d *ingest.Dataset, id string) (string, error) {
	prefixes := []string{}
	for back := range runDays {
		prefixes = append(prefixes, ingest.RecordPrefix(s.Integration, d.Name)+s.Now().UTC().AddDate(0, 0, 1-back).Format("20060102"))
	}
	for _, prefix := range append(prefixes, ingest.RecordPrefix(s.Integration, d.Name)) {
		names, err := s.Store.List(ctx, prefix)
		if err != nil {
			return "", err
		}
		for _, name := range names {
			if strings.HasSuffix(name, "-"+id+".json") {
				return name, nil
			}
		}
	}
	return "", nil
}
