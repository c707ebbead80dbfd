package qualys

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"qualys-sentinel/handler/internal/qualys/xmlstream"
	"qualys-sentinel/handler/internal/record"
)

// maxEnvelope bounds the short texts around the records: times, codes, links.
const maxEnvelope = 8 << 10

// setLeaf decides where text of the element that was just opened goes.
func (d *Decoder) setLeaf(n *node) error {
	if n != nil && n.role == container && len(n.groups) == 0 && d.item.node == nil {
		return nil // endLeaf has left it so: text is for nobody
	}
	l := &d.leaf
	*l = leaf{blanks: l.blanks[:0]}
	if n != nil && d.inParent {
		l.groups = n.groups
		for _, column := range n.groups {
			d.groups[column] = d.groups[column][:0]
		}
	}
	switch {
	case n != nil && n.role == envelopeRole:
		l.target = toEnvelope
		d.text = d.text[:0]
	case !d.inParent:
		// The echo of the request is for nobody.
	case d.item.node != nil:
		l.target = toMember
		if n != nil {
			l.lists = n.list
		}
	case n != nil && n.column < 0 && len(n.list) > 0:
		l.target = toLists
		l.lists = n.list
	case n == nil:
		l.target = toExtra
	case n.role == leafRole && n.column >= 0 && !d.rec.Field(n.column).Set():
		l.target = toColumn
		l.column = n.column
		l.exact = n.exact
		// An element that is there and empty is known to be so.
		return d.rec.Append(n.column, d.level(), nil)
	case n.role == leafRole && n.column >= 0:
		l.target = toExtra // the element is repeated
	}
	return nil
}

// chars takes a piece of text of the innermost element.
func (d *Decoder) chars(tok *xmlstream.Token) error {
	l := &d.leaf
	text := tok.Text
	if l.target == nowhere {
		if len(trimBlanks(text)) == 0 {
			return nil
		}
		switch f := d.frames[len(d.frames)-1].node; {
		case !d.inParent && f.role == ignoredRole:
			return nil
		case !d.inParent:
			return envelopeError(fmt.Sprintf("text between its elements: %q", clip(string(text), maxErrorText)))
		case f != nil && (f.role == parentRole || f.role == itemListRole || f.role == itemRole) && bytes.ContainsFunc(text, isWord):
			return notUnderstood(fmt.Sprintf("text between the elements of a %s: %q", f.name, clip(string(text), maxErrorText)))
		case d.item.node != nil:
			l.target = toMember
		case f != nil && f.role == leafRole: // it goes on after an unexpected child
			if err := d.setLeaf(f); err != nil {
				return err
			}
		default:
			l.target = toExtra
		}
	}
	if l.exact {
		return d.exactText(text, tok.CDATA)
	}
	if !l.started {
		text = bytes.TrimLeft(text, " \t\n")
	}
	core := bytes.TrimRight(text, " \t\n")
	if len(core) == 0 && len(l.blanks)+len(text) < maxEnvelope {
		l.blanks = append(l.blanks, text...)
		return nil
	}
	if len(core) == 0 {
		core = text // too many blanks to hold back: they are text
	}
	if len(l.blanks) > 0 && l.started {
		if err := d.put(l.blanks); err != nil {
			return err
		}
	}
	l.blanks = append(l.blanks[:0], text[len(core):]...)
	return d.put(core)
}

// isWord tells a character of a word or a number from punctuation, which examples in
// Qualys' documents have between elements, as in "...".
func isWord(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }

// exactText takes text whose blanks count. Only the indentation around a CDATA
// section is dropped: it belongs to the document, not to the value.
func (d *Decoder) exactText(text []byte, cdata bool) error {
	l := &d.leaf
	core := text
	if !cdata && len(l.blanks) < maxEnvelope {
		core = bytes.TrimRight(text, " \t\n") // what comes behind may be indentation
	}
	if len(core) == 0 && len(text) > 0 {
		l.blanks = append(l.blanks, text...)
		return nil
	}
	if !cdata || l.cdata || l.plain { // else it is the indentation before the value
		if err := d.put(l.blanks); err != nil {
			return err
		}
	}
	l.blanks = append(l.blanks[:0], text[len(core):]...)
	l.cdata = l.cdata || cdata
	l.plain = l.plain || !cdata
	return d.put(core)
}

// put writes text to the leaf's target.
func (d *Decoder) put(text []byte) error {
	l := &d.leaf
	first := !l.started
	l.started = true
	for _, column := range l.lists {
		if err := d.putInList(column, text, first); err != nil {
			return err
		}
	}
	for _, column := range l.groups {
		d.groups[column] = appendEnvelope(d.groups[column], text)
	}
	switch l.target {
	case toColumn:
		return d.rec.Append(l.column, d.level(), text)
	case toEnvelope:
		d.text = appendEnvelope(d.text, text)
		return nil
	case toMember:
		if first {
			if err := d.openMember(); err != nil {
				return err
			}
		}
		d.escaped = record.AppendEscaped(d.escaped[:0], text)
		return d.rec.Append(d.item.node.column, d.level(), d.escaped)
	case toExtra:
		var piece []byte
		if first {
			var err error
			if piece, err = d.extraKey(d.currentPath()); err != nil {
				return err
			}
			piece = append(piece, '"')
		}
		return d.rec.AppendExtra(d.level(), record.AppendEscaped(piece, text))
	}
	return nil
}

// appendEnvelope appends as much of a short text as is kept.
func appendEnvelope(dst, text []byte) []byte {
	return append(dst, text[:min(len(text), maxEnvelope-len(dst))]...)
}

// putInList writes text of one of a column's values.
func (d *Decoder) putInList(column int, text []byte, first bool) error {
	array := d.schema.Columns[column].Kind == record.Texts
	if first {
		var opening string
		switch empty := d.rec.Field(column).Size() == 0; {
		case array && empty:
			opening = `"`
		case array:
			opening = `,"`
		case !empty:
			opening = ", "
		}
		if err := d.rec.Append(column, d.level(), []byte(opening)); err != nil {
			return err
		}
	}
	if array {
		d.escaped = record.AppendEscaped(d.escaped[:0], text)
		text = d.escaped
	}
	return d.rec.Append(column, d.level(), text)
}

// endLeaf closes what the innermost element's text opened.
func (d *Decoder) endLeaf() error {
	l := &d.leaf
	if l.target == nowhere && len(l.groups) == 0 {
		return nil
	}
	var err error
	if l.started {
		for _, column := range l.lists {
			if d.schema.Columns[column].Kind == record.Texts {
				err = errors.Join(err, d.rec.Append(column, d.level(), []byte{'"'}))
			}
		}
		switch l.target {
		case toMember:
			err = errors.Join(err, d.rec.Append(d.item.node.column, d.level(), []byte{'"'}))
		case toExtra:
			err = errors.Join(err, d.rec.AppendExtra(d.level(), []byte{'"'}))
		}
	}
	if l.exact && !l.cdata && len(l.blanks) > 0 && l.target == toColumn {
		err = d.rec.Append(l.column, d.level(), l.blanks)
	}
	*l = leaf{blanks: l.blanks[:0]}
	return err
}

// openMember begins the object where needed, and a member of it.
func (d *Decoder) openMember() error {
	name := d.path[min(d.item.base+1, len(d.path)):]
	if d.item.node.role == bagRole || len(name) == 0 {
		if name = d.item.key; len(name) == 0 {
			name = []byte("#text")
		}
	}
	return d.member(name)
}

// member writes `,"name":"` into the open object.
func (d *Decoder) member(name []byte) error {
	column := d.item.node.column
	b := d.piece[:0]
	switch {
	case d.item.opened:
		b = append(b, ',')
	case d.rec.Field(column).Size() > 0:
		b = append(b, ',')
		fallthrough
	default:
		if d.item.node.role == objectRole {
			b = append(b, '{')
			if wild := d.wildcard(); len(wild) > 0 {
				b = append(record.AppendQuoted(append(b, `"PROVIDER":`...), wild), ',')
			}
			if group := d.groups[column]; len(group) > 0 {
				name := lastName(d.schema.Columns[column].Group)
				b = record.AppendQuoted(append(record.AppendQuoted(b, name), ':'), group)
				b = append(b, ',')
				d.item.keys = append(d.item.keys, name)
			}
		}
	}
	d.item.opened = true
	if len(d.item.keys) == maxUnknown || len(d.keys[d.level()]) == maxUnknown {
		return &Error{Kind: Broken, Text: "more than " + strconv.Itoa(maxUnknown) + " members of one object: this is not the document that was asked for"}
	}
	b = append(appendNumbered(b, name, d.countMember(name)), ':', '"')
	d.piece = b
	return d.rec.Append(column, d.level(), b)
}

// appendNumbered appends the name of a member, numbered from its second use on.
func appendNumbered(b, name []byte, use int) []byte {
	b = record.AppendEscaped(append(b, '"'), name)
	if use > 1 {
		b = append(strconv.AppendInt(append(b, '['), int64(use), 10), ']')
	}
	return append(b, '"')
}

// countMember tells how often the open object has had a name, with this time.
func (d *Decoder) countMember(name []byte) int {
	if d.item.node.role == bagRole {
		// The object stays open over all its values: remember them by record.
		d.attr = append(append(append(d.attr[:0], d.currentPath()...), '/'), name...)
		return d.countKey(d.attr)
	}
	use := 1
	for _, k := range d.item.keys {
		if k == string(name) {
			use++
		}
	}
	d.item.keys = append(d.item.keys, d.intern(name))
	return use
}

// countKey tells how often the record has had a path, with this time.
func (d *Decoder) countKey(path []byte) int {
	keys := d.keys[d.level()]
	use := keys[string(path)] + 1
	keys[d.intern(path)] = use
	return use
}

// intern returns b as a string. Names and paths are the same in every record:
// the usual ones are made once.
func (d *Decoder) intern(b []byte) string {
	if s, ok := d.names[string(b)]; ok {
		return s
	}
	s := string(b)
	if len(d.names) < maxNames && len(s) <= maxName {
		d.names[s] = s
	}
	return s
}

// maxNames and maxName bound the names that are kept: 256 KB of them.
const (
	maxNames = 1024
	maxName  = 256
)

// wildcard is the name of the open element that a "*" in the path matched.
func (d *Decoder) wildcard() []byte {
	for i := range slices.Backward(d.frames) {
		if f := &d.frames[i]; f.isWild {
			return f.wild
		}
	}
	return nil
}

// endObject closes the object that n opened. The values of a Bag share one
// object, which the encoder closes.
func (d *Decoder) endObject(n *node) error {
	if d.item.node != n {
		return nil
	}
	opened := d.item.opened
	d.item.node = nil
	if opened && n.role == objectRole {
		return d.rec.Append(n.column, d.level(), []byte{'}'})
	}
	return nil
}

// attributes gives each attribute of the element just opened a place.
func (d *Decoder) attributes(n *node, raw []byte) error {
	var failed error
	err := xmlstream.ParseAttrs(raw, func(name, value []byte) {
		if failed != nil {
			return
		}
		text := d.scan.AttrText(value)
		if n != nil && n.role == bagRole && strings.EqualFold(string(name), d.schema.Columns[n.column].KeyAttr) {
			d.item.key = append(d.item.key, text...)
			return
		}
		failed = d.attribute(n, name, text)
	})
	if err != nil {
		return documentError(err)
	}
	return failed
}

// lastName is the name of the element at a path.
func lastName(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

func (d *Decoder) attribute(n *node, name, text []byte) error {
	if n != nil {
		d.attr = appendUpper(append(d.attr[:0], '@'), name)
		if known := n.children[string(d.attr)]; known != nil && known.column >= 0 && !d.rec.Field(known.column).Set() {
			return d.rec.Append(known.column, d.level(), text)
		}
	}
	if len(text) == 0 {
		return nil
	}
	if d.item.node != nil && d.item.node.role == objectRole {
		d.attr = d.attr[:0]
		if inner := d.path[min(d.item.base+1, len(d.path)):]; len(inner) > 0 {
			d.attr = append(append(d.attr, inner...), '/')
		}
		d.attr = append(append(d.attr, '@'), name...)
		if err := d.member(d.attr); err != nil {
			return err
		}
		d.escaped = append(record.AppendEscaped(d.escaped[:0], text), '"')
		return d.rec.Append(d.item.node.column, d.level(), d.escaped)
	}
	if n != nil && n.role == parentRole && d.odd == "" {
		d.odd = "@" + clip(string(name), maxErrorCode)
	}
	d.attr = append(append(append(d.attr[:0], d.currentPath()...), "/@"...), name...)
	key, err := d.extraKey(d.attr)
	if err != nil {
		return err
	}
	return d.rec.AppendExtra(d.level(), record.AppendQuoted(key, text))
}

// appendUpper appends name in upper case.
func appendUpper(dst, name []byte) []byte {
	for _, c := range name {
		if 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}

// extraKey begins a member of the Extra column: a comma if it is not the
// first, the path, numbered from its second use on, and the colon. It is valid
// until the next call.
func (d *Decoder) extraKey(path []byte) ([]byte, error) {
	level := d.level()
	d.tally.Unknown++
	if _, seen := d.keys[level][string(path)]; !seen && len(d.keys[level]) == maxUnknown {
		return nil, &Error{Kind: Broken, Text: "more than " + strconv.Itoa(maxUnknown) + " unknown elements in one record: this is not the document that was asked for"}
	}
	b := d.piece[:0]
	if d.rec.Extra(level).Size() > 0 {
		b = append(b, ',')
	}
	d.piece = append(appendNumbered(b, path, d.countKey(path)), ':')
	return d.piece, nil
}

// maxUnknown bounds the distinct unknown paths of one record. A new API
// version adds a few; thousands mean a document of another kind.
const maxUnknown = 4096

func (d *Decoder) endEnvelope(n *node) {
	d.envelope.text(n.name, string(bytes.TrimSpace(d.text)), len(d.text) == maxEnvelope)
	d.text = d.text[:0]
}
