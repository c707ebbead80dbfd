package loganalytics

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"qualys-sentinel/handler/internal/record"
)

// Folder writes rows as lines of JSON into a file of a local folder, under the
// table's column names. A row may be as long as a batch.
type Folder struct {
	path string
	mu   sync.Mutex
	file *os.File
}

// folderBatchBytes is how much is written and synced at once.
const folderBatchBytes = 1 << 20

// NewFolder returns a destination that appends to <dir>/<table>/<run>.ndjson.
// The file appears with the first row.
func NewFolder(dir, table, run string) *Folder {
	return &Folder{path: filepath.Join(dir, table, run+".ndjson")}
}

// Path is the file of the rows.
func (d *Folder) Path() string { return d.path }

// Limits are what one row may be. Rows of any table must fit in memory.
func (d *Folder) Limits() record.Limits { return record.Limits{Naming: record.ByColumn} }

// BatchBytes is the longest batch.
func (d *Folder) BatchBytes() int { return folderBatchBytes }

// Send implements the ingest package's Destination. The rows are on disk when
// it returns nil.
func (d *Folder) Send(_ context.Context, b record.Batch) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.open(); err != nil {
		return 0, &Error{Kind: Misconfigured, Err: err}
	}
	before, err := d.file.Seek(0, 1)
	if err != nil {
		return 0, &Error{Kind: Misconfigured, Err: err}
	}
	w := bufio.NewWriter(d.file)
	begin := 1
	for _, end := range b.Ends {
		// bufio keeps the first error for Flush.
		_, _ = w.Write(b.Body[begin:end])
		_ = w.WriteByte('\n')
		begin = end + 1
	}
	if err := errors.Join(w.Flush(), d.file.Sync()); err != nil {
		// A disk that is full keeps no half batch: the next run sends it whole.
		_, seekErr := d.file.Seek(before, 0)
		return 0, &Error{Kind: Misconfigured, Err: errors.Join(err, d.file.Truncate(before), seekErr)}
	}
	return int64(b.Ends[len(b.Ends)-1]), nil
}

func (d *Folder) open() error {
	if d.file != nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(d.path), 0o700); err != nil {
		return fmt.Errorf("make the folder for rows: %w", err)
	}
	f, err := os.OpenFile(d.path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("open the file for rows: %w", err)
	}
	d.file = f
	return nil
}

// Close closes the file.
func (d *Folder) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.file == nil {
		return nil
	}
	err := d.file.Close()
	d.file = nil
	return err
}
