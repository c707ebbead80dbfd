package record

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"qualys-sentinel/handler/internal/scratch"
)

// DefaultMemory is how many bytes of one record's values stay in memory. It
// is above what any destination takes in one row; the rest waits in a
// temporary file.
const DefaultMemory = 1 << 20

// keptMemory is what a field keeps for the next record, in bytes.
const keptMemory = 64 << 10

// fieldMemory is what every field may keep in memory beside a huge one, in
// bytes: ids, names and dates must be at hand.
const fieldMemory = 4 << 10

// Level tells the fields of a parent (a host), which hold for all its
// records, from those of one record (a detection).
type Level uint8

// The two levels.
const (
	Parent Level = iota
	Item
)

// A Record is one row before encoding. It is reused: a decoder resets and
// fills it, and whoever is handed it must be done when it returns.
type Record struct {
	Schema *Schema
	// Memory bounds the bytes kept in memory; DefaultMemory if zero.
	Memory int

	fields []Field
	levels []Level
	listed []bool   // which columns are in filled
	filled [2][]int // columns that were filled, by level
	extra  [2]Field // members of the Extra column, by level
	inUse  [2]int   // bytes in memory, by level
	// parents counts the changes of the parent's fields.
	parents uint64
}

// New returns an empty record.
func New(schema *Schema) *Record {
	return &Record{
		Schema: schema,
		Memory: DefaultMemory,
		fields: make([]Field, len(schema.Columns)),
		levels: make([]Level, len(schema.Columns)),
		listed: make([]bool, len(schema.Columns)),
	}
}

// Reset empties all fields of a level.
func (r *Record) Reset(level Level) error {
	var errs error
	for _, column := range r.filled[level] {
		r.listed[column] = false
		if err := r.fields[column].reset(); err != nil {
			errs = errors.Join(errs, err)
		}
	}
	r.filled[level] = r.filled[level][:0]
	r.inUse[level] = 0
	r.changed(level)
	if err := r.extra[level].reset(); err != nil {
		errs = errors.Join(errs, err)
	}
	return errs
}

// changed notes that the encoded fields of a parent are not the same any more.
func (r *Record) changed(level Level) {
	if level == Parent {
		r.parents++
	}
}

// Close removes the temporary files.
func (r *Record) Close() error {
	return errors.Join(r.Reset(Parent), r.Reset(Item))
}

// Append adds bytes to a column's value, which has the level of the first of
// them. It fails only if the temporary file for a huge value cannot be written.
func (r *Record) Append(column int, level Level, p []byte) error {
	f := &r.fields[column]
	if !r.listed[column] {
		r.levels[column], r.listed[column] = level, true
		r.filled[level] = append(r.filled[level], column)
	}
	r.changed(level)
	return r.append(f, level, p)
}

// AppendExtra adds members, as JSON text, to the Extra column.
func (r *Record) AppendExtra(level Level, p []byte) error {
	return r.append(&r.extra[level], level, p)
}

func (r *Record) append(f *Field, level Level, p []byte) error {
	f.set = true
	f.size += int64(len(p))
	if f.spill == nil {
		room := max(0, r.Memory-r.inUse[level], fieldMemory-len(f.head))
		if len(p) <= room {
			f.head = append(f.head, p...)
			r.inUse[level] += len(p)
			return nil
		}
		f.head = append(f.head, p[:room]...)
		r.inUse[level] += room
		p = p[room:]
		file, err := scratch.New()
		if err != nil {
			return fmt.Errorf("keep a field of over %d bytes: %w", r.Memory, err)
		}
		f.spill = &file
	}
	if _, err := f.spill.Write(p); err != nil {
		return fmt.Errorf("keep a field of %d bytes: %w", f.size, err)
	}
	return nil
}

// Field returns a column's value. It is valid until the level is reset.
func (r *Record) Field(column int) *Field { return &r.fields[column] }

// OfParent reports whether a column holds what all records of the parent share.
func (r *Record) OfParent(column int) bool {
	s := r.Schema
	if s.Columns[column].Kind == Extra {
		return s.Item != "" && r.extra[Item].size == 0
	}
	level, _, _ := strings.Cut(s.Columns[column].Path, "/")
	return s.Item != "" && level == s.Parent
}

// Extra returns the members of the Extra column of a level.
func (r *Record) Extra(level Level) *Field { return &r.extra[level] }

// A Field is a value of any size: its first bytes in memory, the rest, if
// there is one, in a temporary file.
type Field struct {
	head  []byte
	spill *scratch.File
	size  int64
	set   bool
}

// Set tells whether the document had the field.
func (f *Field) Set() bool { return f.set }

// Size in bytes of the whole value.
func (f *Field) Size() int64 { return f.size }

// Head is the part in memory: the whole value unless Size is larger.
func (f *Field) Head() []byte { return f.head }

// WriteTo writes the whole value.
func (f *Field) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(f.head)
	if err != nil || f.spill == nil {
		return int64(n), err
	}
	m, err := io.Copy(w, io.NewSectionReader(f.spill, 0, f.size-int64(len(f.head))))
	return int64(n) + m, err
}

// Drop empties the field, as if the document had not had it.
func (r *Record) Drop(column int) error {
	r.changed(r.levels[column])
	return r.fields[column].reset()
}

func (f *Field) reset() error {
	f.head = f.head[:0]
	if cap(f.head) > keptMemory {
		f.head = nil // one huge value must not be paid for ever
	}
	f.size = 0
	f.set = false
	if f.spill == nil {
		return nil
	}
	err := f.spill.Close()
	f.spill = nil
	return err
}
