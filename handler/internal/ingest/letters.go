package ingest

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/record"
)

// keeping keeps the fields of rows that the destination cuts, whole, among the dead
// letters: those of a row in an object of its own, those that all rows of a parent share
// once, with the first of them.
type keeping struct {
	run    *Run
	count  int         // objects
	shared []keptField // of the parent in work
	next   []object    // what the row in work wants kept
}

// keptField is a field of a parent that was kept.
type keptField struct {
	column int
	name   string // of the object
}

// object is an object to be written, and the columns that it takes.
type object struct {
	name    string
	columns []int
	shared  bool
}

// place says where the cut columns of a row will be kept: the names of one object or
// several.
func (k *keeping) place(rec *record.Record, cut []int) string {
	k.next = k.next[:0]
	var names []string
	shared, own := object{shared: true}, object{}
	for _, column := range cut {
		if !rec.OfParent(column) {
			own.columns = append(own.columns, column)
		} else if i := slices.IndexFunc(k.shared, func(f keptField) bool { return f.column == column }); i < 0 {
			shared.columns = append(shared.columns, column)
		} else if name := k.shared[i].name; !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for _, o := range []object{shared, own} {
		if len(o.columns) > 0 {
			o.name = fmt.Sprintf("%s%s/cut-%06d.ndjson.gz", k.run.letters(), k.run.ID, k.count+len(k.next))
			k.next, names = append(k.next, o), append(names, o.name)
		}
	}
	return strings.Join(names, ", ")
}

// keep writes what place has named.
func (k *keeping) keep(ctx context.Context, rec *record.Record, enc *record.Encoder) error {
	for _, o := range k.next {
		err := writePacked(ctx, k.run.Store, o.name, func(w io.Writer) error {
			for _, column := range o.columns {
				if err := enc.WriteWhole(w, rec, column); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		k.count++
		if o.shared {
			for _, column := range o.columns {
				k.shared = append(k.shared, keptField{column, o.name})
			}
		}
	}
	return nil
}

// endParent forgets what was kept for the parent's rows.
func (k *keeping) endParent() { k.shared = k.shared[:0] }

// writeLetters writes refused rows as an object.
func writeLetters(ctx context.Context, store checkpoint.Store, name string, dataset *Dataset, letters []letter) error {
	return writePacked(ctx, store, name, func(w io.Writer) error {
		for _, l := range letters {
			line := record.AppendQuoted([]byte(`{"table":`), dataset.Schema.Table)
			line = record.AppendQuoted(append(line, `,"reason":`...), l.reason)
			line = append(append(append(line, `,"row":`...), l.row...), "}\n"...)
			if _, err := w.Write(line); err != nil {
				return err
			}
		}
		return nil
	})
}
