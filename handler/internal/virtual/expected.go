package virtual

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/ondemand"
)

// missing are findings or entries that a checkpoint says have arrived, and that have not.
func (l *laws) missing(destination string, doc ingest.Checkpoint, after *time.Time, until time.Time, next uint64) (list []string) {
	isolated := map[uint64]bool{}
	for _, i := range doc.Isolated {
		isolated[i.ID] = true
	}
	// What was processed in the second of the answer may have come behind it: the next
	// window reaches back for it.
	until = earlier(until.Add(-time.Second), time.Now())
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.world.expectation()
	if doc.Dataset == ingest.KB.Name {
		return l.missingEntries(e, isolated, after, until, next)
	}
	if l.world.story.maySkip() {
		return nil
	}
	for n, h := range e.hosts {
		if h.id >= next || isolated[h.id] {
			continue
		}
		processed, listed := l.world.estate.Listed(n, until)
		if _, still := l.world.estate.Listed(n, time.Now()); !listed || !still || after != nil && processed.Before(*after) {
			continue
		}
		for _, d := range h.findings {
			if d.severity >= e.least[destination] && l.rows[destination][d.id].at.Before(processed) {
				list = append(list, fmt.Sprintf("%s lacks finding %d of host %d, processed at %s", destination, d.id, h.id, processed.Format(time.RFC3339)))
			}
		}
	}
	return list
}

func (l *laws) missingEntries(e *expectation, isolated map[uint64]bool, after *time.Time, until time.Time, next uint64) (list []string) {
	for n, qid := range e.qids {
		if qid >= next || isolated[qid] {
			continue
		}
		entry, ok := l.world.estate.Knowledge.Entry(n, until)
		if _, still := l.world.estate.Knowledge.Entry(n, time.Now()); !ok || !still || after != nil && entry.Modified.Before(*after) {
			continue
		}
		if l.entries["default"][qid].at.Before(entry.Modified) {
			list = append(list, fmt.Sprintf("entry %d, modified at %s, is missing", qid, entry.Modified.Format(time.RFC3339)))
		}
	}
	return list
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// expectation is what the estate is made of.
type expectation struct {
	hosts []expectedHost
	qids  []uint64
	// least is the lowest severity that a destination gets all the time: no
	// later window asks for what one of another time has left out.
	least map[string]int
}

type expectedHost struct {
	id       uint64
	findings []expectedFinding
}

type expectedFinding struct {
	id       uint64
	severity int
}

// largestHost is how many findings the host has that has most.
func (w *world) largestHost() (most int) {
	for _, h := range w.expectation().hosts {
		most = max(most, len(h.findings))
	}
	return most
}

// expectation works out what the estate is made of, once.
func (w *world) expectation() *expectation {
	if w.expected != nil {
		return w.expected
	}
	e := &expectation{least: map[string]int{}}
	for n := range w.story.Hosts {
		host := w.estate.Host(n, begin)
		h := expectedHost{id: host.ID}
		for d := range host.Each() {
			severity, _ := strconv.Atoi(d.Severity) // the simulator's own
			h.findings = append(h.findings, expectedFinding{d.UniqueID, severity})
		}
		e.hosts = append(e.hosts, h)
	}
	for n := range w.story.QIDs {
		e.qids = append(e.qids, uint64(w.estate.Knowledge.QID(n)))
	}
	if w.story.changes(fewer) {
		e.least["default"] = fewerFrom
	}
	for n := range w.story.Integrations {
		e.least[w.story.destination(n)] = 1 + n
	}
	w.expected = e
	return e
}

// outstanding are findings and entries that Qualys showed at a time and a destination does
// not have.
func (l *laws) outstanding(at time.Time) (list []string) {
	l.world.each(func(destination, dataset string) {
		list = append(list, l.missing(destination, ingest.Checkpoint{Dataset: dataset}, nil, at, 1<<62)...)
	})
	return append(list, l.unremoved(at)...)
}

// unremoved are entries that had been removed by then and are not said to be. Only where
// the KnowledgeBase is read whole again does that show, by those that are still there.
func (l *laws) unremoved(by time.Time) (list []string) {
	if !l.world.story.Refreshed {
		return nil
	}
	there := 0
	for n, qid := range l.world.expectation().qids {
		if _, still := l.world.estate.Knowledge.Entry(n, time.Now()); still {
			there++
		}
		_, listed := l.world.estate.Knowledge.Entry(n, by)
		l.mu.Lock()
		_, came := l.entries["default"][qid]
		if !listed && came && !l.removed[qid] {
			list = append(list, fmt.Sprintf("entry %d was removed, and is not said to be", qid))
		}
		l.mu.Unlock()
	}
	if there == 0 {
		return nil
	}
	return list
}

// agree checks that the latest states of findings are those of the estate.
func (l *laws) agree() {
	for _, text := range l.disagreements() {
		l.broken("the latest row of a finding is wrong: %s", text)
	}
}

func (l *laws) disagreements() (list []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n := range l.world.story.Hosts {
		host := l.world.estate.Host(n, time.Now())
		for d := range host.Each() {
			for destination, rows := range l.rows {
				if got, ok := rows[d.UniqueID]; ok && got.at.Equal(host.Processed) && got.status != d.Status {
					list = append(list, fmt.Sprintf("finding %d of host %d is %s at %s, and %s", d.UniqueID, host.ID, got.status, destination, d.Status))
				}
			}
		}
	}
	return list
}

// unexplained is how many rows have come again, but for those of hosts that came in part.
func (l *laws) unexplained() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.twice - l.mayRepeat()
}

// closed checks what a request says at its end: one that is complete has brought all that was
// asked for.
func (l *laws) closed(content []byte) {
	var r ondemand.Request
	if err := json.Unmarshal(content, &r); err != nil {
		l.broken("a request cannot be read: %v: %.200s", err, content)
		return
	}
	s := l.world.story
	if r.Outcome != ingest.Complete || r.Own() || s.maySkip() || slices.ContainsFunc(s.Acts, func(a Act) bool { return a.Kind == change || a.Kind == failover }) {
		return
	}
	if missing := l.unbrought(&r); len(missing) > 0 {
		l.broken("request %s is complete, and %d findings have not come: %s", r.ID, len(missing), strings.Join(missing[:min(3, len(missing))], "; "))
	}
}

func (l *laws) unbrought(r *ondemand.Request) (list []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	brought := l.brought[ingest.AskedName("default", r.Dataset, r.ID)]
	for n, h := range l.world.expectation().hosts {
		processed, listed := l.world.estate.Listed(n, r.Asked.Add(-time.Second))
		if _, still := l.world.estate.Listed(n, time.Now()); !listed || !still || !r.Full && !slices.Contains(r.HostIDs, h.id) {
			continue
		}
		for _, d := range h.findings {
			if brought[d.id].Before(processed) {
				list = append(list, fmt.Sprintf("finding %d of host %d, processed at %s", d.id, h.id, processed.Format(time.RFC3339)))
			}
		}
	}
	return list
}

// falselyRemoved tells that an entry which is said to have been removed is there.
func (l *laws) falselyRemoved(qid uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := slices.Index(l.world.expectation().qids, qid)
	if n < 0 {
		return true
	}
	_, there := l.world.estate.Knowledge.Entry(n, time.Now())
	return there
}

// duplicates checks that rows come twice for a reason only.
func (l *laws) duplicates() {
	l.mu.Lock()
	twice, most, isolated := l.twice, l.mayRepeat(), l.isolated
	l.mu.Unlock()
	if twice <= most || isolated || l.world.story.Refreshed || slices.ContainsFunc(l.world.story.Acts, func(a Act) bool { return kindOf(a.Kind).unclean }) {
		return
	}
	l.broken("%d rows have come twice, and nothing has happened that could be why of more than %d", twice, most)
}
