package ingest

import "slices"

// maxListed is how many ids are asked for when a parent is looked for: half of
// them are ruled out by each page.
const maxListed = 1000

// search narrows a page that fails down to the one parent that makes it fail, by
// pages that end where the search wants them to. The ids only say where to
// look first: a parent that they leave out is found as well.
type search struct {
	ids []uint64 // ascending
	// high is the end of a range that is known to fail; zero: none is.
	high uint64
	// next says that the page came as far as to the next of the ids, and failed there.
	next bool
	// step is how many of the ids the next page takes in, while all goes well.
	step int
	// leap is how far the next page reaches where no ids are left, as a power of
	// two.
	leap int
	// again says that one was found: the next is looked for among the ids only, and
	// not for long.
	again bool
}

// maxStep is how many ids a page takes in at most while another is looked for.
const maxStep = 64

// maxLeap is beyond any id.
const maxLeap = 48

// bound is where the next page has to end, if it begins at from. Zero: what was
// looked for does not fail any more.
func (s *search) bound(from uint64) uint64 {
	first, _ := slices.BinarySearch(s.ids, from)
	if s.high != 0 {
		end, listed := slices.BinarySearch(s.ids, s.high)
		switch {
		case from >= s.high:
			return from // what is left of it
		case s.next && first < len(s.ids) && s.ids[first] <= s.high:
			return s.ids[first]
		case first < end:
			return s.ids[first+(end-first-1)/2]
		case listed:
			return s.high - 1 // there should be nobody
		}
		return from + (s.high-from)/2 // a gap between the ids
	}
	switch {
	case first == len(s.ids) && (s.again || s.leap > maxLeap), s.again && s.step > maxStep:
		return 0
	case first == len(s.ids):
		return from + 1<<s.leap - 1
	case s.step > 0:
		return s.ids[min(first+s.step, len(s.ids))-1]
	case s.ids[first] > from:
		return s.ids[first] - 1 // there should be nobody
	}
	return from
}

// failed notes that a page up to to has failed; moved says that it had come as far as
// to where the next begins.
func (s *search) failed(to uint64, moved bool) { s.high, s.next = to, moved }

// passed notes that a page up to to has come whole.
func (s *search) passed(to uint64) {
	s.next = false
	if s.high != 0 && to >= s.high {
		s.high = 0 // it does not fail any more
	}
	if first, listed := slices.BinarySearch(s.ids, to); listed {
		s.step = max(1, 2*s.step)
	} else if first == len(s.ids) {
		s.leap += 2
	}
}
