package qualys

import (
	"errors"
	"io"
	"time"
)

// errMore is where more ids may follow: they are asked for.
var errMore = errors.New("more ids may follow")

// ReadIDSet opens readIDSet to tests; it returns the number of ids.
func ReadIDSet(r io.Reader, root string, fallback time.Time) (count uint64, read int64, err error) {
	s, n, err := readIDSet(r, root, fallback)
	if err == nil && s.more != 0 {
		err = errMore
	}
	return s.count, n, err
}

// ValidTime opens validTime to tests.
var ValidTime = validTime

// ErrorAnswer opens errorAnswer to fuzzing.
var ErrorAnswer = errorAnswer

// Waiting is how many calls wait for a slot of a path.
func (c *Client) Waiting(path string) int {
	c.limits.mu.Lock()
	defer c.limits.mu.Unlock()
	return len(c.limits.endpoint(path).waiting)
}

// Tests make hundreds of marks.
func init() { markRounds = 100 }
