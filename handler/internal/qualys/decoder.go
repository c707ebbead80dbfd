package qualys

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"qualys-sentinel/handler/internal/qualys/xmlstream"
	"qualys-sentinel/handler/internal/record"
)

// A Decoder turns one list document of the FO API into records, as its
// schema's paths say, in one pass and in constant memory.
//
// A page counts only if its root element was closed. Every leaf text below a
// parent element reaches its rows: known elements in their columns, anything
// else in the Extra column under its path. Records are handed over with one
// record's delay, so that parent elements which follow the list of records
// still reach a row.
type Decoder struct {
	schema *record.Schema
	root   *node
	// itemNode is of an item; nil where the parent is the record.
	itemNode *node
	rec      *record.Record
	scan     *xmlstream.Scanner

	// State of one document.
	sink      record.Sink
	date      time.Time // time of the answer by its HTTP header
	began     bool
	pending   bool // rec holds a record that was not handed over yet
	inParent  bool
	inItem    bool
	frames    []frame
	path      []byte // of the open elements from the parent down
	leaf      leaf
	item      item
	groups    map[int][]byte    // what each group's element says, by the column that tells it
	keys      [2]map[string]int // Extra keys in use, by level
	text      []byte            // of a short envelope element
	names     map[string]string // of members and paths: see intern
	escaped   []byte            // scratch: text as JSON
	piece     []byte            // scratch: the beginning of a member
	attr      []byte            // scratch: an attribute's name or path
	envelope  envelope
	items     int    // of the parent in work
	odd       string // in it: the first thing that may be a record which is not known as one
	strange   string // in it, outside of its records: the first element that is not known
	highest   uint64
	parentID  int
	itemIDs   []int // columns of which one at least identifies an item
	tally     record.Tally
	counted   int64 // bytes and repairs already tallied
	countedRe int64
}

type frame struct {
	node   *node // nil: unknown
	path   int   // length of path without this element
	isWild bool  // a "*" matched
	wild   []byte
}

// leaf is where the text of the innermost element goes.
type leaf struct {
	target  target
	column  int
	lists   []int
	groups  []int
	exact   bool // keep blanks: the continued field
	started bool // something was written
	cdata   bool
	plain   bool
	blanks  []byte // seen, and written only if more text follows
}

type target uint8

const (
	nowhere target = iota
	toColumn
	toMember // of the open object
	toLists
	toExtra
	toEnvelope
)

// item is the open object of an Objects or Bag column.
type item struct {
	node   *node
	base   int // length of path at the object's element
	opened bool
	keys   []string // members it has
	key    []byte   // of a Bag's value
}

// NewDecoder prepares a decoder for the documents of a schema.
func NewDecoder(schema *record.Schema) *Decoder {
	d := &Decoder{schema: schema, rec: record.New(schema), scan: xmlstream.New(nil), groups: map[int][]byte{}, names: map[string]string{}}
	d.keys[0], d.keys[1] = map[string]int{}, map[string]int{}
	d.root = &node{column: -1, role: strictRole}
	response := d.root.at("RESPONSE")
	for _, path := range []string{"DATETIME", "WARNING/CODE", "WARNING/TEXT", "WARNING/URL"} {
		response.at(path).role = envelopeRole
	}
	for _, path := range ignoredParts {
		d.root.at(path).role = ignoredRole
	}
	response.at(schema.List)
	d.root.markStrict()
	parent := response.at(schema.List).at(schema.Parent)
	parent.role = parentRole
	var itemNode *node
	if schema.Item != "" {
		parent.at(schema.ItemList).role = itemListRole
		itemNode = parent.at(schema.ItemList).at(schema.Item)
		itemNode.role = itemRole
		d.itemNode = itemNode
	}
	for i := range schema.Columns {
		c := &schema.Columns[i]
		if c.Path == "" {
			continue
		}
		level, rest, _ := strings.Cut(c.Path, "/")
		owner := parent
		if level == schema.Item {
			owner = itemNode
		}
		n := owner.at(upperAttr(rest))
		if c.Group != "" {
			_, rest, _ := strings.Cut(c.Group, "/")
			g := owner.at(rest)
			g.groups = append(g.groups, i)
			g = owner.at(rest[:strings.LastIndexByte(rest, '/')])
			g.begins = append(g.begins, i)
			d.groups[i] = nil
		}
		switch c.Kind {
		case record.Objects:
			n.role, n.column = objectRole, i
		case record.Bag:
			n.role, n.column = bagRole, i
		case record.List, record.Texts:
			n.list = append(n.list, i)
			if n.role == container {
				n.role = leafRole
			}
		default:
			n.role, n.column = leafRole, i
			n.exact = c.Path == schema.Continued
			n.date = c.Kind == record.Time
		}
	}
	parent.markPlain()
	d.parentID = schema.Index(schema.ParentID)
	for _, path := range append([]string{schema.UniqueKey}, schema.NaturalKey...) {
		if strings.HasPrefix(path, schema.Item+"/") && len(d.itemIDs) < 2 { // its own key, and the first of what identifies it else
			d.itemIDs = append(d.itemIDs, schema.Index(path))
		}
	}
	return d
}

// ignoredParts are leaves of what an answer has beside its list: the request that it
// repeats, and the names that what is listed goes with (DTD of the host list, 2022).
var ignoredParts = []string{
	"REQUEST/DATETIME", "REQUEST/USER_LOGIN", "REQUEST/RESOURCE", "REQUEST/PARAM_LIST/PARAM/KEY", "REQUEST/PARAM_LIST/PARAM/VALUE", "REQUEST/POST_DATA",
	glossary + "/USER_DEF/LABEL_1", glossary + "/USER_DEF/LABEL_2", glossary + "/USER_DEF/LABEL_3",
	glossary + "/USER_DEF/VALUE_1", glossary + "/USER_DEF/VALUE_2", glossary + "/USER_DEF/VALUE_3",
	glossary + "/USER_LIST/USER/USER_LOGIN", glossary + "/USER_LIST/USER/FIRST_NAME", glossary + "/USER_LIST/USER/LAST_NAME",
	glossary + "/ASSET_GROUP_LIST/ASSET_GROUP/ID", glossary + "/ASSET_GROUP_LIST/ASSET_GROUP/TITLE",
}

const glossary = "RESPONSE/GLOSSARY"

// Decode reads one document and hands its records to sink. at is the time of
// the answer by its HTTP header, for a document without DATETIME; it may be
// zero. A document that is an answer of another kind, an error above all, is
// returned as an *Error.
func (d *Decoder) Decode(r io.Reader, at time.Time, sink record.Sink) (record.Page, error) {
	d.reset(r, at, sink)
	page, err := d.decode()
	if err != nil && d.voids(err) {
		err = &voidError{err}
	}
	d.flushTally()
	// What a broken page left half done must not reach the next one.
	if closed := d.rec.Close(); err == nil {
		err = closed
	}
	return page, err
}

// voids tells whether what has come counts for nothing, for another reason than that of an
// error of the answer: a warning was read that may say so, or something stands behind the
// answer. An error of the sink says nothing of the answer; the sink knows of the warning.
func (d *Decoder) voids(err error) bool {
	e := asError(err)
	return e != nil && (d.envelope.doubtful() || d.began && len(d.frames) == 0 && e.Kind == Broken)
}

func (d *Decoder) reset(r io.Reader, at time.Time, sink record.Sink) {
	d.scan.Reset(r)
	d.sink, d.date, d.began = sink, at, false
	d.pending, d.inParent, d.inItem = false, false, false
	d.frames, d.path = d.frames[:0], d.path[:0]
	d.leaf = leaf{blanks: d.leaf.blanks[:0]}
	d.item = item{keys: d.item.keys[:0], key: d.item.key[:0]}
	clear(d.keys[0])
	clear(d.keys[1])
	d.forgetGroups()
	d.envelope = envelope{}
	d.highest, d.tally, d.counted, d.countedRe = 0, record.Tally{}, 0, 0
}

func (d *Decoder) forgetGroups() {
	for column, text := range d.groups {
		d.groups[column] = text[:0]
	}
}

func (d *Decoder) decode() (record.Page, error) {
	tok, err := d.scan.Next()
	if err != nil {
		return record.Page{}, documentError(err)
	}
	if string(tok.Name) != d.schema.Root {
		return record.Page{}, d.otherDocument(string(tok.Name))
	}
	if err := rootAttributes(d.schema.Root, tok.Attrs); err != nil {
		return record.Page{}, err
	}
	d.pushFrame(d.root)
	for {
		if d.leaf.target == nowhere {
			d.scan.SkipBlanks()
		}
		tok, err := d.scan.Next()
		if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return d.page()
		}
		if err != nil {
			return record.Page{}, documentError(err)
		}
		switch tok.Kind {
		case xmlstream.Start:
			err = d.start(tok)
		case xmlstream.End:
			err = d.end()
		case xmlstream.Text:
			err = d.chars(tok)
		}
		if err != nil {
			return record.Page{}, err
		}
	}
}

// page makes the result of a document that was read to its end.
func (d *Decoder) page() (record.Page, error) {
	page, err := d.envelope.finish(d.highest, d.schema.Parent)
	if err == nil {
		err = d.begin()
	}
	if err != nil {
		return record.Page{}, err
	}
	return page, nil
}

// begin tells the sink the time of the answer, once.
func (d *Decoder) begin() error {
	if d.began {
		return nil
	}
	at, err := d.envelope.time(d.date)
	if err != nil {
		return err
	}
	d.began = true
	return d.sink.Begin(at)
}

func (d *Decoder) start(tok *xmlstream.Token) error {
	if err := d.endLeaf(); err != nil {
		return err
	}
	above := d.frames[len(d.frames)-1].node
	var n *node
	wild := false
	if above != nil {
		if n = above.child(tok.Name); n == nil {
			n = above.children["*"]
			wild = n != nil
		}
	}
	if (n == nil || !d.inParent) && !wild {
		if err := d.place(above, n, tok); err != nil {
			return err
		}
	}
	if n != nil && n.plain && len(tok.Attrs) == 0 && d.item.node == nil && !d.rec.Field(n.column).Set() {
		if text, ok := d.scan.Leaf(); ok {
			return d.plainLeaf(n, text)
		}
	}
	d.pushFrame(n)
	if wild {
		f := &d.frames[len(d.frames)-1]
		f.isWild, f.wild = true, append(f.wild[:0], tok.Name...)
	}
	if n != nil && n.role == parentRole {
		if err := d.startParent(); err != nil {
			return err
		}
	}
	if d.inParent {
		if len(d.path) > 0 && (n == nil || n.role != itemRole) {
			d.path = append(d.path, '/')
		}
		if n != nil && n.role == itemRole {
			d.path = append(d.path, 0) // an item's paths begin at the item
		}
		d.path = append(d.path, tok.Name...)
	}
	if err := d.openElement(n); err != nil {
		return err
	}
	if len(tok.Attrs) > 0 && n != nil && n.role == itemListRole {
		return notUnderstood(attributesOf(n.name, tok.Attrs))
	}
	if len(tok.Attrs) > 0 && d.inParent {
		if err := d.attributes(n, tok.Attrs); err != nil {
			return err
		}
	}
	return d.setLeaf(n)
}

// place checks an element of the envelope, or one that is not known. above is the
// element that it stands in, nil for an unknown one.
func (d *Decoder) place(above, n *node, tok *xmlstream.Token) error {
	switch {
	case n != nil && n.role == parentRole:
	case n != nil && d.inIgnored():
	case n != nil && len(tok.Attrs) > 0:
		return envelopeError(attributesOf(n.name, tok.Attrs))
	case n != nil:
		return d.envelope.begin(n.name)
	case !d.inParent:
		return stray(d.scan, d.envelopePath(string(tok.Name)), d.highest > 0)
	case d.saysOfItself(above, string(tok.Name)):
		return d.notWhole(string(tok.Name))
	case d.misplaced(above, string(tok.Name)):
		return &voidError{d.notWhole(string(tok.Name))} // it may say anything of this one
	case above != nil && above.role == itemListRole:
		return notUnderstood(fmt.Sprintf("%q stands among the elements %s", clip(string(d.currentPath())+"/"+string(tok.Name), maxErrorCode), d.schema.Item))
	case d.isRecord(), d.inItem:
		// Whatever it is, it goes into the record's row.
		return nil
	case d.odd != "":
	case above == nil:
		d.odd = string(d.currentPath())
	case above.role == parentRole && (bytes.Contains(tok.Name, []byte(d.schema.Item)) || d.itemNode.children[string(tok.Name)] != nil):
		d.odd = string(tok.Name) // a part of a record, outside of one
	}
	if d.strange == "" && above != nil && above.role == parentRole {
		d.strange = string(tok.Name)
	}
	return nil
}

// misplaced tells whether an element in a parent is one that documents are made of:
// another document in this one, or a parent or a record where none may be. Deep inside, a
// newer version may use some of the names for other things.
func (d *Decoder) misplaced(above *node, name string) bool {
	switch name {
	case d.schema.Root, "SIMPLE_RETURN", "GENERIC_RETURN":
		return true
	case d.schema.ItemList, d.schema.Item:
		return name != ""
	case d.schema.List, d.schema.Parent, "RESPONSE", "HTML":
		return isPart(above)
	}
	return false
}

// isPart tells whether an element is a parent, its list of items, or an item.
func isPart(n *node) bool {
	return n != nil && (n.role == parentRole || n.role == itemListRole || n.role == itemRole)
}

// attributesOf says that there are attributes where only known elements may be: they may
// say anything of what is in them.
func attributesOf(name string, attrs []byte) string {
	return fmt.Sprintf("%.40q has attributes: %.100q", name, attrs)
}

// ofXML are names of attributes that are those of XML itself.
var ofXML = regexp.MustCompile(`^(xmlns(:.+)?|xml:(lang|space|base|id)|xsi:.+)$`)

// rootAttributes refuses attributes of the root but those of XML itself.
func rootAttributes(name string, attrs []byte) error {
	var err error
	parseErr := xmlstream.ParseAttrs(attrs, func(attr, _ []byte) {
		if !ofXML.Match(attr) {
			err = notUnderstood(attributesOf(name, attrs))
		}
	})
	if parseErr != nil {
		return documentError(parseErr)
	}
	return err
}

// selfReports are the names of elements by which a parent would say that it is not
// whole. None of them is a part of those that are known.
var selfReports = append([]string{"CODE", "WARNING", "WARNINGS", "MESSAGE"}, recordReports...)

// recordReports are those of a parent that is a record: a newer version may give it a code.
var recordReports = []string{"ERROR", "ERRORS", "ERROR_CODE", "ERROR_MESSAGE", "FAULT", "EXCEPTION"}

// saysOfItself tells whether an element says something of the parent, or of the answer.
// What a parent or a record has deeper in it may have a code, and an error that was found.
func (d *Decoder) saysOfItself(above *node, name string) bool {
	if name == "CODE" && bytes.HasSuffix(d.path, []byte("/WARNING")) {
		return true
	}
	reports := selfReports
	if d.isRecord() {
		reports = recordReports
	}
	return above != nil && (above.role == parentRole || above.role == itemListRole) && slices.Contains(reports, name)
}

// notWhole explains a parent that says of itself that something is wrong with it.
// Whatever its code, it concerns this parent.
func (d *Decoder) notWhole(name string) error {
	e := readLeaves(d.scan, []string{name})
	e.Kind, e.After = Broken, 0
	e.Text = strings.TrimSuffix(fmt.Sprintf("a %s holds %s: %s", d.schema.Parent, name, e.Text), ": ")
	return e
}

// inIgnored tells that the open element is of what is for nobody.
func (d *Decoder) inIgnored() bool {
	return len(d.frames) > 1 && d.frames[1].node == d.root.children["REQUEST"] ||
		len(d.frames) > 2 && d.frames[2].node == d.root.children["RESPONSE"].children["GLOSSARY"]
}

// envelopePath is the path of an element that stands in the envelope.
func (d *Decoder) envelopePath(name string) string {
	var path []string
	for _, f := range d.frames[1:] {
		path = append(path, f.node.name)
	}
	return strings.Join(append(path, name), "/")
}

// pushFrame opens an element. The frame's memory is that of one before.
func (d *Decoder) pushFrame(n *node) {
	if len(d.frames) == cap(d.frames) {
		d.frames = append(d.frames, frame{})
	} else {
		d.frames = d.frames[:len(d.frames)+1]
	}
	f := &d.frames[len(d.frames)-1]
	f.node, f.path, f.isWild = n, len(d.path), false
}

// plainLeaf takes a whole leaf that fills one column: most of every document
// is such. It does what start, chars and end do, in one.
func (d *Decoder) plainLeaf(n *node, text []byte) error {
	d.noteLate(n)
	if !n.exact {
		text = trimBlanks(text)
	}
	if err := d.rec.Append(n.column, d.level(), text); err != nil || !n.date {
		return err
	}
	path := len(d.path)
	d.path = append(append(d.path, '/'), n.name...)
	err := d.endDate(n)
	d.path = d.path[:path]
	return err
}

// trimBlanks is text without the blanks around it; bytes.Trim would make a set
// of them for every leaf.
func trimBlanks(text []byte) []byte {
	for len(text) > 0 && isBlank(text[0]) {
		text = text[1:]
	}
	for len(text) > 0 && isBlank(text[len(text)-1]) {
		text = text[:len(text)-1]
	}
	return text
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' || c == '\n' }

// openElement does what the opening of a known element asks for.
func (d *Decoder) openElement(n *node) error {
	if n == nil {
		return nil
	}
	for _, column := range n.begins {
		d.groups[column] = d.groups[column][:0]
	}
	switch n.role {
	case itemRole:
		if err := d.emit(); err != nil {
			return err
		}
		if err := d.needID(" before its list of " + d.schema.Item); err != nil {
			return err
		}
		d.inItem = true
		d.items++
		d.pending = true
		if len(d.keys[record.Item]) > 0 {
			clear(d.keys[record.Item])
		}
		d.forgetGroups()
		return d.rec.Reset(record.Item)
	case objectRole:
		d.item = item{node: n, base: len(d.path), keys: d.item.keys[:0], key: d.item.key[:0]}
	case bagRole:
		if d.item.node == nil {
			d.item = item{node: n, base: len(d.path), keys: d.item.keys[:0], key: d.item.key[:0]}
		}
	}
	d.noteLate(n)
	return nil
}

// noteLate counts elements of a parent behind its list of records: the records
// before the last were handed over without them.
func (d *Decoder) noteLate(n *node) {
	if d.inParent && !d.inItem && d.pending && n.role != container && !d.isRecord() {
		d.tally.Late++
	}
}

func (d *Decoder) startParent() error {
	if err := d.begin(); err != nil {
		return err
	}
	d.inParent = true
	d.items, d.odd, d.strange = 0, "", ""
	d.pending = d.isRecord()
	d.path = d.path[:0]
	clear(d.keys[record.Parent])
	d.forgetGroups()
	return d.rec.Reset(record.Parent)
}

// isRecord tells that a parent is a record by itself.
func (d *Decoder) isRecord() bool { return d.schema.Item == "" }

func (d *Decoder) end() error {
	if err := d.endLeaf(); err != nil {
		return err
	}
	last := len(d.frames) - 1
	f := d.frames[last]
	d.frames = d.frames[:last]
	if n := f.node; n != nil {
		switch n.role {
		case leafRole:
			if n.date {
				if err := d.endDate(n); err != nil {
					return err
				}
			}
		case objectRole, bagRole:
			if err := d.endObject(n); err != nil {
				return err
			}
		case itemRole:
			d.inItem = false
		case parentRole:
			d.path = d.path[:f.path]
			d.inParent = false
			return d.endParent()
		case envelopeRole:
			d.endEnvelope(n)
		case strictRole:
			if n.name == "WARNING" {
				return d.endWarning()
			}
		}
	}
	if d.inParent {
		d.path = d.path[:f.path]
	}
	return nil
}

// endWarning judges a warning. One that may say anything is told at once: whatever ends the
// run, what comes behind it must not count before the end of the answer is seen.
func (d *Decoder) endWarning() error {
	d.envelope.endWarning()
	if !d.envelope.doubtful() {
		return nil
	}
	return d.sink.Doubt()
}

// endDate checks what stands in a datetime column.
func (d *Decoder) endDate(n *node) error {
	f := d.rec.Field(n.column)
	if f.Size() == 0 || f.Size() == int64(len(f.Head())) && validTime(f.Head()) {
		return nil
	}
	if at, ok := parseTime(string(f.Head())); ok && f.Size() == int64(len(f.Head())) {
		if err := d.rec.Drop(n.column); err != nil {
			return err
		}
		return d.rec.Append(n.column, d.level(), []byte(normalTime(at)))
	}
	// A column of dates would lose this text: it goes where any text goes.
	key, err := d.extraKey(d.currentPath())
	if err != nil {
		return err
	}
	if err := d.rec.AppendExtra(d.level(), append(key, '"')); err != nil {
		return err
	}
	if _, err := f.WriteTo(extraText{d}); err != nil {
		return fmt.Errorf("move a text that is no date: %w", err)
	}
	if err := d.rec.AppendExtra(d.level(), []byte{'"'}); err != nil {
		return err
	}
	return d.rec.Drop(n.column)
}

// extraText appends text to the open member of the Extra column.
type extraText struct{ d *Decoder }

func (w extraText) Write(p []byte) (int, error) {
	w.d.escaped = record.AppendEscaped(w.d.escaped[:0], p)
	return len(p), w.d.rec.AppendExtra(w.d.level(), w.d.escaped)
}

// needID checks that the parent has told its id.
func (d *Decoder) needID(when string) error {
	if d.parentID < 0 {
		return nil
	}
	id := d.rec.Field(d.parentID).Head()
	if _, err := strconv.ParseUint(string(id), 10, 63); err == nil {
		return nil
	}
	if len(id) > 0 {
		return &Error{Kind: Broken, Text: fmt.Sprintf("the id of a %s is no number: %q", d.schema.Parent, clip(string(id), maxErrorCode))}
	}
	return &Error{Kind: Broken, Text: "a " + d.schema.Parent + " does not tell its id" + when + ": its rows could not be told from those of others"}
}

// endParent hands over the last record and closes the parent.
func (d *Decoder) endParent() error {
	if err := d.needID(""); err != nil {
		return err
	}
	if d.items == 0 && d.odd != "" {
		return notUnderstood(fmt.Sprintf("a %s has no %s, but %q", d.schema.Parent, d.schema.Item, clip(d.odd, maxErrorCode)))
	}
	if err := d.emit(); err != nil {
		return err
	}
	var id uint64
	if d.parentID >= 0 {
		id, _ = strconv.ParseUint(string(d.rec.Field(d.parentID).Head()), 10, 63)
	}
	if d.items == 0 && d.strange != "" && !d.isRecord() {
		d.envelope.tellOnce("%s %d has no %s, and %q, which is not known: if that says that they could not be read, they have not come", d.schema.Parent, id, d.schema.Item, clip(d.strange, maxErrorCode))
	}
	d.highest = max(d.highest, id)
	d.flushTally()
	return d.sink.Done(id)
}

// emit hands over the held-back record, if there is one.
func (d *Decoder) emit() error {
	if !d.pending {
		return nil
	}
	d.pending = false
	if !d.isRecord() && !slices.ContainsFunc(d.itemIDs, func(column int) bool { return d.rec.Field(column).Size() > 0 }) {
		return notUnderstood(fmt.Sprintf("a %s tells neither %s nor %s", d.schema.Item, d.schema.Columns[d.itemIDs[0]].Path, d.schema.Columns[d.itemIDs[1]].Path))
	}
	return d.sink.Record(d.rec)
}

func (d *Decoder) flushTally() {
	d.tally.Bytes = d.scan.Offset() - d.counted
	d.tally.Repairs = d.scan.Repairs.Total() - d.countedRe
	d.counted, d.countedRe = d.scan.Offset(), d.scan.Repairs.Total()
	d.sink.Tally(d.tally)
	d.tally = record.Tally{}
}

func (d *Decoder) level() record.Level {
	if d.inItem {
		return record.Item
	}
	return record.Parent
}

// currentPath is the path from the parent or item down to the open element.
func (d *Decoder) currentPath() []byte {
	if d.inItem {
		return d.path[bytes.IndexByte(d.path, 0)+1:]
	}
	return d.path
}
