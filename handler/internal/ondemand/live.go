package ondemand

import (
	"slices"
	"sync"

	"qualys-sentinel/handler/internal/ingest"
)

// A Live run is going on in this process.
type Live struct {
	Run *ingest.Run
	// Request that it carries; empty if none.
	Request string
}

// live are the runs that are going on in this process.
type live struct {
	mu   sync.Mutex
	runs []*Live
}

// add lists a run until done is called.
func (l *live) add(run *ingest.Run, request string) (done func()) {
	entry := &Live{Run: run, Request: request}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.runs = append(l.runs, entry)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.runs = slices.DeleteFunc(l.runs, func(e *Live) bool { return e == entry })
	}
}

func (l *live) of(d *ingest.Dataset) (list []Live) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.runs {
		if e.Run.Dataset == d {
			list = append(list, *e)
		}
	}
	return list
}

// Live lists the dataset's runs that are going on in this process.
func (k *Desk) Live(d *ingest.Dataset) []Live { return k.live.of(d) }
