// Package record is the shape of a row on its way through the connector: the
// columns of a table, one reusable record, and its encoding as JSON.
//
// It guarantees that values stay what Qualys wrote: text is cut only where a
// destination's limit demands it, at a rune border, and the row says so. A
// record needs constant memory whatever the size of its fields. Where records
// come from and where rows go does not enter here.
package record

import (
	"fmt"
	"strings"
)

// Kind says how a column's value is written.
type Kind uint8

const (
	// Text is a string column.
	Text Kind = iota
	// List is a string column that joins repeated elements by ", ".
	List
	// Time is a datetime column. Values are YYYY-MM-DDTHH:MM:SSZ; any other
	// text goes to the extra fields, so that nothing is lost in a conversion.
	Time
	// Objects is a string column that holds a JSON array, one object an element.
	Objects
	// Bag is a string column that holds a JSON object: a value for each name.
	Bag
	// Texts is a string column that holds a JSON array of the texts of an
	// element that repeats.
	Texts
	// PlainText is a string column made from another one's HTML: see SameAs.
	PlainText
	// Extra is the one dynamic column that keeps unknown elements: a JSON
	// object of document path and text.
	Extra
	// Number is a real column: made by the encoder, or filled by the run with the
	// text of a number.
	Number
)

// Made names the columns that the encoder fills by itself.
type Made uint8

const (
	// FromDocument marks a column that is read from Path.
	FromDocument Made = iota
	// MadeTime is the time the row was made.
	MadeTime
	// MadeRun is the id of the run. It is no part of the row's key.
	MadeRun
	// MadeKey is the stable key of the row: equal in every run for the same
	// finding in the same state.
	MadeKey
	// MadeParts is the number of columns that the continued field takes.
	MadeParts
	// MadeSize is the size in bytes of the continued field, before any cut.
	MadeSize
	// MadeCut names the fields that are not whole in this row, and why.
	MadeCut
	// MadeDeadLetter says where in the state container those fields are whole.
	MadeDeadLetter
)

// A Column is one column of a table, and the one place that knows it: rows,
// table definitions, stream declarations and documents are made from it.
type Column struct {
	// Name in the table; rows for the Logs Ingestion API use it.
	Name string
	// Key in rows for the HTTP Data Collector API, which adds the suffix of
	// the type itself. Empty: not sent there.
	Key string
	// Path in the document, from the parent or record element down, such as
	// "HOST/OS" or "DETECTION/QDS/@severity". Objects, Bag and Texts name the
	// element that repeats. Without a path the run fills the column, or nobody
	// does.
	Path string
	Kind Kind
	Made Made
	// Group is the path of an element that stands once above several Objects
	// and is told in each of them, such as the source of exploits.
	Group string
	// Joined is the path of a KnowledgeBase entry's value that the run adds to
	// the row. It is no part of the row's state: it may change while the
	// finding does not.
	Joined string
	// SameAs names a column whose value this one repeats.
	SameAs string
	// Parts is the number of columns over which a long value continues.
	// Name and Key then hold "%d".
	Parts int
	// KeyAttr is the attribute that names a Bag's values.
	KeyAttr string
	// Doc says what the column holds, for table definitions and documents.
	Doc string
}

// A Schema is the columns of one dataset.
type Schema struct {
	// Table in Log Analytics, with its suffix _CL.
	Table string
	// Root, Parent and Item are elements of the document: the root, the one
	// that owns the records (HOST), and the record itself (DETECTION). Without
	// an Item the parent is the record (VULN).
	Root, List, Parent, ItemList, Item string
	// ParentID is the path of the parent's id, which pages are cut by.
	ParentID string
	// UniqueKey is the path of the service's own key of a record;
	// NaturalKey are the paths that identify it where that is missing.
	UniqueKey  string
	NaturalKey []string
	// Versions are the columns that tell states of a record apart, by name.
	Versions []string
	// Continued is the path of the field that may be of any size.
	Continued string
	Columns   []Column
}

// Stream is the name of the data collection rule's stream for the table.
func (s *Schema) Stream() string { return "Custom-" + strings.TrimSuffix(s.Table, "_CL") }

// LogType is the table's name as the HTTP Data Collector API wants it.
func (s *Schema) LogType() string { return strings.TrimSuffix(s.Table, "_CL") }

// Index finds the column read from path, or -1.
func (s *Schema) Index(path string) int {
	if path == "" {
		return -1 // the run fills such columns, or nobody does
	}
	for i := range s.Columns {
		if s.Columns[i].Path == path {
			return i
		}
	}
	return -1
}

// Column finds a column by its name, or -1.
func (s *Schema) Column(name string) int {
	for i := range s.Columns {
		if s.Columns[i].Name == name {
			return i
		}
	}
	return -1
}

// A TableColumn is a column as Azure declares it.
type TableColumn struct {
	Name, Type, Doc string
}

// TableColumns lists the table's columns in order, with the type names of a
// stream declaration (Microsoft, "Structure of a data collection rule").
func (s *Schema) TableColumns() []TableColumn {
	var out []TableColumn
	for _, c := range s.Columns {
		typ := "string"
		switch c.Kind {
		case Time:
			typ = "datetime"
		case Number:
			typ = "real"
		case Extra:
			typ = "dynamic"
		}
		if c.Parts == 0 {
			out = append(out, TableColumn{c.Name, typ, c.Doc})
		}
		for n := range c.Parts {
			out = append(out, TableColumn{fmt.Sprintf(c.Name, n), typ, c.Doc})
		}
	}
	return out
}
