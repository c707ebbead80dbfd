package qualys

import "strings"

// node is an element that the schema or the envelope knows.
type node struct {
	name     string // as in a path; "*" for any
	children map[string]*node
	column   int // -1: none
	list     []int
	groups   []int // Objects columns that tell this element's text
	begins   []int // those for which a group begins with this element
	role     role
	plain    bool // a leaf that fills one column, and no more
	exact    bool // whose blanks count: the continued field
	date     bool // whose column holds datetimes only

	// What came last, as a guess of what comes next: documents repeat.
	last *node // child
	then *node // sibling
}

// role is what an element is to the decoder.
type role uint8

const (
	container role = iota
	parentRole
	itemRole
	objectRole // one element of an Objects column
	bagRole    // one value of a Bag column
	leafRole
	strictRole   // a part of the envelope that holds nothing but known elements
	envelopeRole // a leaf of it
	ignoredRole  // a leaf of the echo of the request
	itemListRole // the list of a parent's items
)

// upperAttr puts the attribute at the end of a path into upper case, as the
// scanner puts element names.
func upperAttr(path string) string {
	if i := strings.IndexByte(path, '@'); i >= 0 {
		return path[:i] + strings.ToUpper(path[i:])
	}
	return path
}

// at returns the node at a path below n, making it where needed.
func (n *node) at(path string) *node {
	for name := range strings.SplitSeq(path, "/") {
		if n.children == nil {
			n.children = map[string]*node{}
		}
		child := n.children[name]
		if child == nil {
			child = &node{name: name, column: -1}
			n.children[name] = child
		}
		n = child
	}
	return n
}

// markStrict makes every element of the envelope that is no leaf strict.
func (n *node) markStrict() {
	if n.role == container {
		n.role = strictRole
	}
	for _, child := range n.children {
		child.markStrict()
	}
}

// markPlain marks the plain leaves below n.
func (n *node) markPlain() {
	n.plain = n.role == leafRole && n.column >= 0 && len(n.list) == 0 && len(n.groups) == 0 && len(n.begins) == 0
	for _, child := range n.children {
		child.markPlain()
	}
}

// child finds what is known of a child element; nil if nothing is.
func (n *node) child(name []byte) *node {
	if n.last != nil {
		if guess := n.last.then; guess != nil && guess.name == string(name) {
			n.last = guess
			return guess
		}
	}
	c := n.children[string(name)]
	if c != nil {
		if n.last != nil {
			n.last.then = c
		}
		n.last = c
	}
	return c
}
