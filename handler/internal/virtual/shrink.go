package virtual

import (
	"slices"
	"time"

	"qualys-sentinel/handler/internal/simulator"
)

// Shrink makes a story smaller for as long as it still breaks what it broke: with fewer
// acts, in a smaller estate, with plainer settings. breaks plays a story and tells whether
// it does; most is how many stories may be played.
func Shrink(s Story, most int, breaks func(Story) bool) Story {
	for again := true; again; {
		again = false
		for _, smaller := range smallerStories(s) {
			if most == 0 {
				return s
			}
			most--
			if breaks(smaller) {
				s, again = smaller, true
				break
			}
		}
	}
	return s
}

// smallerStories are those that a story may be without: the ones that leave most away
// come first.
func smallerStories(s Story) (list []Story) {
	for n := len(s.Acts) / 2; n >= 1; n /= 2 {
		for at := 0; at+n <= len(s.Acts); at += n {
			list = append(list, s.but(func(s *Story) { s.Acts = slices.Delete(s.Acts, at, at+n) }))
		}
	}
	for _, number := range []func(*Story) *int{
		func(s *Story) *int { return &s.Hosts }, func(s *Story) *int { return &s.Detections }, func(s *Story) *int { return &s.QIDs },
	} {
		if n := *number(&s); n > 1 {
			list = append(list, s.but(func(s *Story) { *number(s) = 1 }), s.but(func(s *Story) { *number(s) = n / 2 }), s.but(func(s *Story) { *number(s)-- }))
		}
	}
	if s.Integrations > 0 {
		list = append(list, s.but(func(s *Story) { s.Integrations-- }))
	}
	if s.Enrich {
		list = append(list, s.but(func(s *Story) { s.Enrich = false }))
	}
	if s.Idle {
		list = append(list, s.but(func(s *Story) { s.Idle = false }))
	}
	if s.Collector {
		list = append(list, s.but(func(s *Story) { s.Collector = false }))
	}
	if s.OneTick {
		list = append(list, s.but(func(s *Story) { s.OneTick = false }))
	}
	if s.Shows > 0 {
		list = append(list, s.but(func(s *Story) { s.Shows = 0 }))
	}
	if s.Scans < simulator.DefaultScanEvery {
		list = append(list, s.but(func(s *Story) { s.Scans = simulator.DefaultScanEvery }))
	}
	if s.Edits > 0 {
		list = append(list, s.but(func(s *Story) { s.Edits = 0 }))
	}
	if s.Latency > DefaultLatency {
		list = append(list, s.but(func(s *Story) { s.Latency = DefaultLatency }))
	}
	for i, a := range s.Acts {
		if kindOf(a.Kind).fault() && a.Share < 100 {
			list = append(list, s.but(func(s *Story) { s.Acts[i].Share = 100 }))
		}
		if kindOf(a.Kind).lasts && a.For > time.Minute {
			list = append(list, s.but(func(s *Story) { s.Acts[i].For = a.For / 2 }))
		}
	}
	return list
}

// but is the story with a change.
func (s Story) but(change func(*Story)) Story {
	s.Acts = slices.Clone(s.Acts)
	change(&s)
	return s
}
