package record

import (
	"crypto/sha256"
	stdhex "encoding/hex"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"qualys-sentinel/handler/internal/record/plaintext"
)

// Naming is how a destination wants the members of a row named.
type Naming uint8

const (
	// ByColumn uses the table's column names (Logs Ingestion API, files).
	ByColumn Naming = iota
	// ByKey uses names without suffix, which the HTTP Data Collector API adds.
	ByKey
)

// Limits are what a destination takes.
type Limits struct {
	// FieldBytes is the longest value, in bytes of UTF-8. Zero: no limit.
	FieldBytes int
	// RowBytes is the longest row, in bytes of JSON. Zero: no limit.
	RowBytes int
	Naming   Naming
}

// A Policy says how much of the continued field (RESULTS) customers want to
// pay for.
type Policy struct {
	// Bytes to keep. Negative: all. Zero: none.
	Bytes int
	// Only keeps the field for records with these values at OnlyPath.
	Only     map[string]bool
	OnlyPath string
	// Without leaves the field out as if the document had not had it: nothing tells
	// of its size, or that it is cut.
	Without bool
}

// KeepAll is the policy that keeps everything.
var KeepAll = Policy{Bytes: -1}

// maxKey is the longest row key in bytes; a longer one is replaced by its hash,
// so that a huge identifying value cannot make the row itself too long.
const maxKey = 512

// rowReserve is what the columns after the continued field may take of
// RowBytes: key lists of cut fields, sizes, the path of a dead letter.
const rowReserve = 4 << 10

// An Encoder appends records as JSON objects. It is not safe for concurrent use.
type Encoder struct {
	Limits Limits
	Policy Policy

	schema *Schema
	// The columns in the order of a row's members.
	making  []column // what tells of the row's making, and joined values
	keys    []column
	items   []column // before the parent's, which must not crowd them out of the row
	parents []column // of the parent: the same in all its records
	extra   []column
	results *column  // the continued field
	sums    []column // known only when all values are written
	letters []column

	cuts      []int
	cutText   []byte
	scratch   []byte
	key       []byte
	stamp     []byte
	stampTime time.Time
	only      int
	unique    int
	natural   []int
	versions  []int

	// host is the parent's columns, encoded for the record and its parent's
	// state that hostOf and hostAt name.
	host   []byte
	hostOf *Record
	hostAt uint64
}

// column is a Column with its member names spelt out: `,"Name":`.
type column struct {
	*Column
	source  int
	members [][]byte
	name    string
}

// NewEncoder prepares an encoder for a schema.
func NewEncoder(schema *Schema, limits Limits, policy Policy) *Encoder {
	e := &Encoder{Limits: limits, Policy: policy, schema: schema, only: -1}
	for i := range schema.Columns {
		c := &schema.Columns[i]
		name := c.Name
		if limits.Naming == ByKey {
			name = c.Key
		}
		if name == "" {
			continue
		}
		col := column{Column: c, source: i, name: name}
		if c.SameAs != "" {
			col.source = schema.Column(c.SameAs)
		}
		if c.Parts == 0 {
			col.members = [][]byte{member(name)}
		}
		for n := range c.Parts {
			col.members = append(col.members, member(fmt.Sprintf(name, n)))
		}
		e.place(col)
	}
	if policy.Only != nil {
		e.only = schema.Index(policy.OnlyPath)
	}
	e.unique = schema.Index(schema.UniqueKey)
	for _, name := range schema.Versions {
		e.versions = append(e.versions, schema.Column(name))
	}
	for _, path := range schema.NaturalKey {
		e.natural = append(e.natural, schema.Index(path))
	}
	return e
}

// place gives a column its place in the row.
func (e *Encoder) place(c column) {
	switch c.Made {
	case MadeTime, MadeRun:
		e.making = append(e.making, c)
	case MadeKey:
		e.keys = append(e.keys, c)
	case MadeParts, MadeSize, MadeCut:
		e.sums = append(e.sums, c)
	case MadeDeadLetter:
		e.letters = append(e.letters, c)
	case FromDocument:
		level, _, _ := strings.Cut(e.schema.Columns[c.source].Path, "/")
		switch {
		case c.Joined != "":
			e.making = append(e.making, c)
		case c.Parts > 0:
			e.results = &c
		case c.Kind == Extra:
			e.extra = append(e.extra, c)
		case e.schema.Item != "" && level == e.schema.Parent:
			e.parents = append(e.parents, c)
		default:
			e.items = append(e.items, c)
		}
	}
}

func member(name string) []byte {
	return append(AppendQuoted([]byte{','}, name), ':')
}

// Meta is what a row tells of its making.
type Meta struct {
	Time time.Time
	Run  string
	// DeadLetter says, of a row that is cut, where its cut columns are to be kept whole.
	// They are valid for the call. Nil: nowhere.
	DeadLetter func(cut []int) string
}

// Row describes an appended row.
type Row struct {
	// Stable is the row without what tells of its making (time, run id, place
	// of a dead letter): equal bytes mean the same finding in the same state.
	// It is a part of the appended bytes.
	Stable []byte
	// Cut lists the columns that a limit cut. Their values are to be kept
	// whole elsewhere before the row counts as delivered.
	Cut []int
}

// Append appends r as a JSON object to dst. Both results are valid until the
// next call.
func (e *Encoder) Append(dst []byte, r *Record, meta Meta) ([]byte, Row) {
	begin := len(dst)
	e.cuts, e.cutText = e.cuts[:0], e.cutText[:0]
	dst = append(dst, '{')
	for i := range e.making {
		switch c := &e.making[i]; c.Made {
		case MadeTime:
			dst = e.appendMember(dst, c, e.timestamp(meta.Time))
		case MadeRun:
			dst = AppendQuoted(append(dst, c.members[0]...), meta.Run)
		default:
			dst = e.appendValue(dst, c, r, begin)
		}
	}
	stable := len(dst)
	for i := range e.keys {
		e.key = e.AppendKey(e.key[:0], r)
		dst = e.appendMember(dst, &e.keys[i], e.key)
	}
	for i := range e.items {
		dst = e.appendValue(dst, &e.items[i], r, begin)
	}
	dst = e.appendParent(dst, r, begin)
	for i := range e.extra {
		dst = e.appendExtra(dst, &e.extra[i], r, begin)
	}
	parts := 0
	if e.results != nil && !e.Policy.Without {
		dst, parts = e.appendContinued(dst, e.results, r, begin)
	}
	for i := range e.sums {
		switch c := &e.sums[i]; c.Made {
		case MadeParts:
			dst = strconv.AppendInt(append(dst, c.members[0]...), int64(parts), 10)
		case MadeSize:
			if e.results == nil || e.Policy.Without {
				continue
			}
			if f := r.Field(e.results.source); f.Set() {
				dst = strconv.AppendInt(append(dst, c.members[0]...), f.Size(), 10)
			}
		default:
			if len(e.cutText) > 0 {
				dst = e.appendMember(dst, c, e.cutText)
			}
		}
	}
	stableEnd := len(dst)
	for i := range e.letters {
		if len(e.cuts) > 0 && meta.DeadLetter != nil {
			dst = AppendQuoted(append(dst, e.letters[i].members[0]...), meta.DeadLetter(e.cuts))
		}
	}
	dst = append(dst, '}')
	if len(dst) > begin+1 && dst[begin+1] == ',' {
		dst[begin+1] = ' ' // the first member has a comma before it
	}
	return dst, Row{Stable: dst[stable:stableEnd], Cut: e.cuts}
}

// appendParent writes the parent's columns: once for all its records, unless a
// limit cuts one of them.
func (e *Encoder) appendParent(dst []byte, r *Record, begin int) []byte {
	if e.hostOf == r && e.hostAt == r.parents && len(e.host) <= e.room(dst, begin) {
		return append(dst, e.host...)
	}
	from, cuts := len(dst), len(e.cutText)
	for i := range e.parents {
		dst = e.appendValue(dst, &e.parents[i], r, begin)
	}
	e.hostOf = nil
	if len(e.cutText) == cuts {
		e.host, e.hostOf, e.hostAt = append(e.host[:0], dst[from:]...), r, r.parents
	}
	return dst
}

func (e *Encoder) appendMember(dst []byte, c *column, value []byte) []byte {
	return AppendQuoted(append(dst, c.members[0]...), value)
}

// secondLength is the length of a time up to its seconds.
const secondLength = len("2006-01-02T15:04:05")

// timestamp formats t as fine as Log Analytics keeps it, in steps of 100 nanoseconds:
// rows of one finding may be made within a second. All but the fraction is formatted
// once for all rows of the same second.
func (e *Encoder) timestamp(t time.Time) []byte {
	second := t.UTC().Truncate(time.Second)
	if !second.Equal(e.stampTime) || e.stamp == nil {
		e.stampTime = second
		e.stamp = second.AppendFormat(e.stamp[:0], "2006-01-02T15:04:05")
	}
	e.stamp = e.stamp[:secondLength]
	if fraction := t.Nanosecond() / 100; fraction > 0 {
		e.stamp = append(e.stamp, ".0000000"...)
		for i := len(e.stamp) - 1; fraction > 0; i-- {
			e.stamp[i] += byte(fraction % 10)
			fraction /= 10
		}
	}
	return append(e.stamp, 'Z')
}

// appendValue writes one column that is not continued.
func (e *Encoder) appendValue(dst []byte, c *column, r *Record, begin int) []byte {
	f := r.Field(c.source)
	if f.Size() == 0 {
		return dst
	}
	value := f.Head()
	if c.Kind == Number {
		return append(append(dst, c.members[0]...), value...)
	}
	whole := f.Size() == int64(len(value))
	structured := open[c.Kind] != ""
	switch {
	case structured:
		e.scratch = append(append(append(e.scratch[:0], open[c.Kind]...), value...), closing[c.Kind]...)
		value = e.scratch
	case c.Kind == PlainText:
		e.scratch = plaintext.Append(e.scratch[:0], value)
		if value = e.scratch; len(value) == 0 {
			return dst
		}
	}
	fits := e.fitting(value, e.room(dst, begin)-len(c.members[0])-2)
	switch {
	case whole && len(fits) == len(value) && c.Kind == Time: // nothing in it needs an escape
		return append(append(append(append(dst, c.members[0]...), '"'), value...), '"')
	case whole && len(fits) == len(value):
		return e.appendMember(dst, c, value)
	case structured || len(fits) == 0:
		// Half a JSON value would be worse than none.
		e.cut(c, "limit")
		return dst
	}
	e.cut(c, "limit")
	return e.appendMember(dst, c, fits)
}

// appendExtra writes the unknown elements of both levels as one object.
func (e *Encoder) appendExtra(dst []byte, c *column, r *Record, begin int) []byte {
	parent, item := r.Extra(Parent), r.Extra(Item)
	size := parent.Size() + item.Size()
	if size == 0 {
		return dst
	}
	inMemory := int64(len(parent.Head()) + len(item.Head()))
	if size > inMemory {
		e.cut(c, "limit")
		return dst
	}
	object := append(append(e.scratch[:0], '{'), parent.Head()...)
	if parent.Size() > 0 && item.Size() > 0 {
		object = append(object, ',')
	}
	object = append(append(object, item.Head()...), '}')
	e.scratch = object
	// The Data Collector API takes no nested objects: there it is text.
	text := e.Limits.Naming == ByKey
	encoded := e.room(dst, begin) - len(c.members[0]) - 2
	switch {
	case text && len(escapedPrefix(object, e.fieldLimit(len(object)), encoded)) < len(object), len(object) > e.fieldLimit(len(object)), len(object) > encoded:
		e.cut(c, "limit")
		return dst
	case text:
		return e.appendMember(dst, c, object)
	}
	return append(append(dst, c.members[0]...), object...)
}

// appendContinued writes the field that goes on over several columns.
func (e *Encoder) appendContinued(dst []byte, c *column, r *Record, begin int) (_ []byte, parts int) {
	f := r.Field(c.source)
	if !f.Set() || f.Size() == 0 {
		return dst, 0
	}
	value := f.Head()
	whole := f.Size() == int64(len(value))
	if keep := e.keep(r); keep >= 0 && int64(keep) < f.Size() {
		// What the policy leaves out is not wanted, what did not fit into memory is.
		whole = whole || keep <= len(value)
		value = escapedPrefix(value, keep, len(value)*6)
		e.cut(c, "policy")
	}
	for parts < c.Parts && len(value) > 0 {
		part := e.fitting(value, e.room(dst, begin)-len(c.members[parts])-2)
		if len(part) == 0 {
			break
		}
		dst = AppendQuoted(append(dst, c.members[parts]...), part)
		value = value[len(part):]
		parts++
	}
	if len(value) > 0 || !whole {
		e.cut(c, "limit")
	}
	return dst, parts
}

// keep is how many bytes of the continued field the policy wants; -1 for all.
func (e *Encoder) keep(r *Record) int {
	if e.only >= 0 && !e.Policy.Only[string(r.Field(e.only).Head())] {
		return 0
	}
	return e.Policy.Bytes
}

func (e *Encoder) fieldLimit(size int) int {
	if e.Limits.FieldBytes == 0 {
		return size
	}
	return e.Limits.FieldBytes
}

// fitting is as much of a text as a field takes, and as takes room bytes of JSON
// at most.
func (e *Encoder) fitting(value []byte, room int) []byte {
	limit := e.fieldLimit(len(value))
	if len(value) <= limit && maxEscape*len(value) <= room {
		return value
	}
	return escapedPrefix(value, limit, room)
}

// room is what is left of the row's limit.
func (e *Encoder) room(dst []byte, begin int) int {
	if e.Limits.RowBytes == 0 {
		return 1 << 62
	}
	return e.Limits.RowBytes - (len(dst) - begin) - rowReserve
}

// cut notes that a column is not whole, and why.
func (e *Encoder) cut(c *column, why string) {
	if len(e.cutText) > 0 {
		e.cutText = append(e.cutText, ", "...)
	}
	name := e.FieldName(c.source)
	if c.Kind == PlainText {
		name = c.Name
	}
	e.cutText = append(append(append(append(e.cutText, name...), " ("...), why...), ')')
	// A plain text's HTML, and the entry that was joined, are whole elsewhere.
	if why == "limit" && c.Kind != PlainText && c.Joined == "" && !slices.Contains(e.cuts, c.source) {
		e.cuts = append(e.cuts, c.source)
	}
}

// FieldName is the name of a column's element, for people.
func (e *Encoder) FieldName(column int) string {
	c := &e.schema.Columns[column]
	if c.Path == "" {
		return c.Name
	}
	return c.Path
}

// AppendKey appends the row's stable key: the service's own key of the
// finding, or the values that identify it, and the state's time. Values are
// joined by '|', which none of them is known to hold.
func (e *Encoder) AppendKey(dst []byte, r *Record) []byte {
	begin := len(dst)
	if e.unique >= 0 && r.Field(e.unique).Size() > 0 {
		dst = append(dst, r.Field(e.unique).Head()...)
	} else {
		for i, column := range e.natural {
			if i > 0 {
				dst = append(dst, '|')
			}
			if column >= 0 {
				dst = append(dst, r.Field(column).Head()...)
			}
		}
	}
	// What tells the finding is hashed by itself: its states stay its own.
	dst = hashLong(dst, begin)
	for _, column := range e.versions {
		if column >= 0 && r.Field(column).Size() > 0 {
			dst = append(append(dst, '@'), r.Field(column).Head()...)
		}
	}
	return hashLong(dst, begin)
}

// hashLong puts a hash in the place of what stands behind begin, if that is too
// long for a key.
func hashLong(dst []byte, begin int) []byte {
	if len(dst)-begin <= maxKey {
		return dst
	}
	sum := sha256.Sum256(dst[begin:])
	return stdhex.AppendEncode(append(dst[:begin], "sha256:"...), sum[:])
}

// WriteWhole writes one cut field, whole, as a line of JSON: the row's key,
// the field's path, its value. It streams: the value may have any size.
func (e *Encoder) WriteWhole(w io.Writer, r *Record, column int) error {
	line := AppendQuoted([]byte(`{"rowKey":`), e.AppendKey(nil, r))
	line = AppendQuoted(append(line, `,"field":`...), e.FieldName(column))
	c := &e.schema.Columns[column]
	fields := []*Field{r.Field(column)}
	begin, end := `,"value":"`, "\"}\n"
	switch c.Kind {
	case Extra:
		fields = fields[:0]
		for _, f := range []*Field{r.Extra(Parent), r.Extra(Item)} {
			if f.Size() > 0 {
				fields = append(fields, f)
			}
		}
		begin, end = `,"value":{`, "}}\n"
	case Objects, Bag, Texts:
		begin, end = `,"value":`+open[c.Kind], closing[c.Kind]+"}\n"
	}
	if _, err := w.Write(append(line, begin...)); err != nil {
		return fmt.Errorf("write a whole field: %w", err)
	}
	to := w
	if c.Kind == Text || c.Kind == List || c.Kind == Time {
		to = &escapingWriter{w: w}
	}
	for i, f := range fields {
		if i > 0 {
			if _, err := io.WriteString(w, ","); err != nil {
				return fmt.Errorf("write a whole field: %w", err)
			}
		}
		if _, err := f.WriteTo(to); err != nil {
			return fmt.Errorf("write a whole field: %w", err)
		}
	}
	if _, err := io.WriteString(w, end); err != nil {
		return fmt.Errorf("write a whole field: %w", err)
	}
	return nil
}

// What stands around the values of columns that hold JSON.
var (
	open    = [...]string{Objects: "[", Texts: "[", Bag: "{", Number: ""}
	closing = [...]string{Objects: "]", Texts: "]", Bag: "}", Number: ""}
)
