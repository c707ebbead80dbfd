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

// A Compressor makes the bodies of the Logs Ingestion API. The zero value is
// ready, and safe for concurrent use. It keeps the memory of as many bodies as
// were ever made at once: some 700 KB each, which would be too much to make anew
// for every batch.
type Compressor struct {
	mu   sync.Mutex
	free []*compressed
}

// compressed is a gzip writer with its buffer.
type compressed struct {
	buf bytes.Buffer
	gz  *gzip.Writer
}

// Compress hands the compressed body to send, which must be done with it when
// it returns.
func (c *Compressor) Compress(body []byte, send func(packed []byte) error) error {
	p, err := c.take()
	if err != nil {
		return err
	}
	defer c.putBack(p)
	p.buf.Reset()
	p.gz.Reset(&p.buf)
	if _, err := p.gz.Write(body); err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	if err := p.gz.Close(); err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	return send(p.buf.Bytes())
}

func (c *Compressor) take() (*compressed, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.free); n > 0 {
		p := c.free[n-1]
		c.free = c.free[:n-1]
		return p, nil
	}
	gz, err := gzip.NewWriterLevel(nil, gzipLevel)
	if err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	return &compressed{gz: gz}, nil
}

func (c *Compressor) putBack(p *compressed) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.free = append(c.free, p)
}
