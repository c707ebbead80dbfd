package loganalytics

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/klauspost/compress/gzip"
)

// gzipLevel is the fastest: rows compress eightfold at it, and CPU is what
// the customer pays for.
const gzipLevel = gzip.BestSpeed

// DefaultWriters is how many bodies are compressed at once: more would take memory,
// and no less time.
const DefaultWriters = 4

// A Compressor makes the bodies of the Logs Ingestion API. It is safe for concurrent
// use, and may serve any number of destinations. It keeps its writers, which take some
// 700 KB each, and the memory of as many bodies as were ever sent at once: making them
// anew would be too much for every batch.
type Compressor struct {
	writers chan *gzip.Writer

	mu   sync.Mutex
	free []*bytes.Buffer
}

// NewCompressor returns a compressor that works at n bodies at once.
func NewCompressor(n int) *Compressor {
	c := &Compressor{writers: make(chan *gzip.Writer, n)}
	for range n {
		c.writers <- nil // made when it is needed
	}
	return c
}

// Compress hands the compressed body to send, which must be done with it when
// it returns.
func (c *Compressor) Compress(body []byte, send func(packed []byte) error) error {
	buf := c.take()
	defer c.putBack(buf)
	if err := c.pack(buf, body); err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	return send(buf.Bytes())
}

func (c *Compressor) pack(buf *bytes.Buffer, body []byte) (err error) {
	gz := <-c.writers
	defer func() { c.writers <- gz }()
	if gz == nil {
		if gz, err = gzip.NewWriterLevel(buf, gzipLevel); err != nil {
			return err
		}
	}
	gz.Reset(buf)
	if _, err := gz.Write(body); err != nil {
		return err
	}
	return gz.Close()
}

func (c *Compressor) take() *bytes.Buffer {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.free)
	if n == 0 {
		return &bytes.Buffer{}
	}
	buf := c.free[n-1]
	c.free = c.free[:n-1]
	return buf
}

func (c *Compressor) putBack(buf *bytes.Buffer) {
	buf.Reset()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.free = append(c.free, buf)
}
