package ingest

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"

	"qualys-sentinel/handler/internal/checkpoint"
)

// packedAtOnce is how much of a document is compressed, and written, at once, in bytes.
const packedAtOnce = 32 << 10

// writePacked writes a document, compressed. All destinations may write at once, at the end
// of a page or for a common bad row: so the compressor keeps nothing in between, where a
// usual one has 0.8 MB.
func writePacked(ctx context.Context, store checkpoint.Store, name string, write func(w io.Writer) error) error {
	return checkpoint.Write(ctx, store, name, func(w io.Writer) error {
		out := bufio.NewWriterSize(w, packedAtOnce)
		gz, err := gzip.NewWriterLevel(out, gzip.StatelessCompression)
		if err != nil {
			return fmt.Errorf("compress: %w", err)
		}
		in := bufio.NewWriterSize(gz, packedAtOnce)
		if err := write(in); err != nil {
			return err
		}
		if err := cmp.Or(in.Flush(), gz.Close(), out.Flush()); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		return nil
	})
}
