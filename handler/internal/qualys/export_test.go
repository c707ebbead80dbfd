package qualys

import (
	"io"
	"time"
)

// ReadIDSet opens readIDSet to fuzzing; it returns the number of ids.
func ReadIDSet(r io.Reader, root string, fallback time.Time) (count uint64, read int64, err error) {
	s, n, err := readIDSet(r, root, fallback)
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
