// Package kql says what queries mean: Check has Microsoft's Kusto language
// service analyse them against tables, and Run evaluates one on rows.
//
// Names, types and the columns of every operator come from the language service;
// the evaluator only computes. It knows the part of the language that this
// project uses, and refuses the rest by name rather than guess. It is for tests:
// rows are few and all in memory.
package kql

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// A Column has the type name of KQL.
type Column struct {
	Name string `json:"name"`
	Type string `json:"type"`
}

// A Function is a saved function of the workspace.
type Function struct {
	Name, Parameters, Body string
}

// A Workspace is what queries see.
type Workspace struct {
	Tables map[string][]Column
	// Functions stand behind those they call.
	Functions []Function
}

// A Source is a query and what it is called in errors.
type Source struct {
	Name, Text string
}

// A Query is an analysed query and the columns of its result.
type Query struct {
	Source
	Columns []Column
	tree    *node
}

// node is one of the language service's syntax tree.
type node struct {
	Kind     string   `json:"kind"`
	Text     string   `json:"text"`
	Type     string   `json:"type"`
	Columns  []Column `json:"columns"`
	Children []*node  `json:"children"`
}

type diagnostic struct {
	Line     int    `json:"line"`
	Column   int    `json:"column"`
	Severity string `json:"severity"`
	Code     string `json:"code"`
	Message  string `json:"message"`
}

// Check analyses queries. Each error names the query and the line in it, or in
// the functions before it where the line is negative. Warnings are errors: the
// service would do something else than was written.
func (w *Workspace) Check(queries ...Source) ([]*Query, error) {
	tables := map[string]string{}
	for name, columns := range w.Tables {
		var list []string
		for _, c := range columns {
			list = append(list, fmt.Sprintf("['%s']:%s", c.Name, c.Type))
		}
		tables[name] = "(" + strings.Join(list, ", ") + ")"
	}
	heads := make([]string, len(queries))
	texts := make([]string, len(queries))
	for i, q := range queries {
		heads[i] = w.head(q.Text)
		texts[i] = heads[i] + q.Text
	}
	input, err := json.Marshal(map[string]any{"tables": tables, "queries": texts})
	if err != nil {
		return nil, fmt.Errorf("encode queries: %w", err)
	}
	out, err := ask(input)
	if err != nil {
		return nil, fmt.Errorf("ask the language service: %w", err)
	}
	var answers []struct {
		Diagnostics []diagnostic `json:"diagnostics"`
		Tree        *node        `json:"tree"`
	}
	if err := json.Unmarshal(out, &answers); err != nil {
		return nil, fmt.Errorf("read the language service's answer: %w", err)
	}
	var faults []error
	var analysed []*Query
	for i, a := range answers {
		for _, d := range a.Diagnostics {
			if d.Severity == "Suggestion" || d.Severity == "Information" {
				continue
			}
			faults = append(faults, fmt.Errorf("%s, line %d: %s %s: %s", queries[i].Name, d.Line-strings.Count(heads[i], "\n"), strings.ToLower(d.Severity), d.Code, d.Message))
		}
		q := &Query{Source: queries[i], tree: a.Tree}
		if last := q.last(); last != nil {
			q.Columns = last.Columns
		}
		analysed = append(analysed, q)
	}
	return analysed, errors.Join(faults...)
}

// head declares the saved functions that a query calls, and those that they call: the
// language service takes its time for each.
func (w *Workspace) head(query string) string {
	head := ""
	for _, f := range slices.Backward(w.Functions) {
		if strings.Contains(head+query, f.Name) {
			head = fmt.Sprintf("let %s = (%s) {\n%s\n};\n%s", f.Name, f.Parameters, f.Body, head)
		}
	}
	return head
}

// last is the statement that the query answers with.
func (q *Query) last() *node {
	if q.tree == nil {
		return nil
	}
	statements := q.tree.statements()
	if len(statements) == 0 || statements[len(statements)-1].Kind != "ExpressionStatement" {
		return nil
	}
	return statements[len(statements)-1].Children[0]
}

// statements are those of a query, or of a function's body.
func (n *node) statements() (list []*node) {
	for _, c := range n.Children {
		if c.Kind == "List" {
			list = append(list, c.elements()...)
		}
	}
	return list
}

// elements are a list's.
func (n *node) elements() (list []*node) {
	for _, c := range n.Children {
		if c.Kind == "SeparatedElement" {
			c = c.Children[0]
		}
		list = append(list, c)
	}
	return list
}

// child finds the first child of one of the kinds.
func (n *node) child(kinds ...string) *node {
	for _, c := range n.Children {
		if slices.Contains(kinds, c.Kind) {
			return c
		}
	}
	return nil
}

// name is the identifier below.
func (n *node) name() string {
	for n != nil && n.Text == "" {
		if len(n.Children) == 0 {
			return ""
		}
		if n.Kind == "BracketedName" {
			n = n.Children[1]
			continue
		}
		n = n.Children[0]
	}
	return strings.Trim(n.Text, `'"`)
}
