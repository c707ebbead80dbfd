package kql

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Row holds values by column: string, int64, float64, bool, time.Time,
// time.Duration, nil, or what JSON makes of a dynamic one. Strings are never
// nil, as in Kusto.
type Row map[string]any

// Ingested is the member of a row that ingestion_time() tells.
const Ingested = "$ingested"

// A Data is the rows of tables, by name.
type Data map[string][]Row

// table is rows with their columns in order.
type table struct {
	columns []Column
	rows    []Row
}

// unsupported is thrown for what the evaluator does not know: it is no fault of
// the query.
type unsupported string

// scope is what names mean at a place.
type scope struct {
	outer *scope
	names map[string]any // a value, a *table, or a *closure
	data  Data
	space *Workspace
	now   time.Time
	// row, left and right are those of the expression's operator.
	row, left, right Row
}

type closure struct {
	scope *scope
	node  *node
}

func (s *scope) look(name string) (any, bool) {
	for at := s; at != nil; at = at.outer {
		if v, ok := at.names[name]; ok {
			return v, true
		}
	}
	return nil, false
}

func (s *scope) inner() *scope {
	in := *s
	in.outer, in.names = s, map[string]any{}
	return &in
}

// at is the scope with a row.
func (s *scope) at(row Row) *scope {
	in := *s
	in.row = row
	return &in
}

// Run evaluates a query at a time.
func (w *Workspace) Run(q *Query, data Data, now time.Time) (rows []Row, err error) {
	defer func() {
		if r := recover(); r != nil {
			u, ok := r.(unsupported)
			if !ok {
				panic(r)
			}
			err = fmt.Errorf("the evaluator does not know %s", string(u))
		}
	}()
	s := &scope{names: map[string]any{}, data: data, space: w, now: now.UTC()}
	return s.statements(q.tree.statements()).(*table).rows, nil
}

// statements evaluates lets, and the last statement.
func (s *scope) statements(list []*node) (result any) {
	for _, n := range list {
		switch n.Kind {
		case "LetStatement":
			name, value := n.child("NameDeclaration").name(), n.Children[len(n.Children)-1]
			if value.Kind == "FunctionDeclaration" {
				s.names[name] = &closure{s, value}
				continue
			}
			s.names[name] = s.eval(value)
		case "ExpressionStatement":
			result = s.eval(n.Children[0])
		default:
			// A function's body has its expression bare.
			result = s.eval(n)
		}
	}
	return result
}

// tabular evaluates what must be a table.
func (s *scope) tabular(n *node) *table {
	t, ok := s.eval(n).(*table)
	if !ok {
		panic(unsupported(n.Kind + " as a table"))
	}
	return t
}

// source is a table of the workspace.
func (s *scope) source(name string) (*table, bool) {
	columns, ok := s.space.Tables[name]
	if !ok {
		return nil, false
	}
	t := &table{columns: columns}
	for _, given := range s.data[name] {
		row := Row{Ingested: given[Ingested]}
		for _, c := range columns {
			row[c.Name] = given[c.Name]
			if c.Type == "string" && row[c.Name] == nil {
				row[c.Name] = ""
			}
		}
		for column := range given {
			if _, ok := row[column]; !ok {
				panic(unsupported(fmt.Sprintf("column %s of %s: a test's row has it", column, name)))
			}
		}
		t.rows = append(t.rows, row)
	}
	return t, true
}

func (s *scope) pipe(n *node) *table {
	in := s.tabular(n.Children[0])
	op := n.Children[len(n.Children)-1]
	out := &table{columns: op.Columns}
	switch op.Kind {
	case "FilterOperator":
		condition := op.Children[len(op.Children)-1]
		for _, row := range in.rows {
			if s.at(row).eval(condition) == true {
				out.rows = append(out.rows, row)
			}
		}
	case "ExtendOperator", "ProjectOperator":
		expressions := op.child("List").elements()
		for _, row := range in.rows {
			made := make(Row, len(row)+len(expressions))
			if op.Kind == "ExtendOperator" {
				maps.Copy(made, row)
			}
			for i, e := range expressions {
				name := columnOf(e)
				if name == "" {
					name = op.Columns[len(op.Columns)-len(expressions)+i].Name
				}
				made[name] = s.at(row).eval(value(e))
			}
			out.rows = append(out.rows, made)
		}
	case "ProjectAwayOperator":
		out.rows = keep(in.rows, op.Columns)
	case "ProjectRenameOperator":
		renamed := map[string]string{}
		for _, e := range op.child("List").elements() {
			renamed[value(e).name()] = columnOf(e)
		}
		for _, row := range in.rows {
			made := make(Row, len(row))
			for k, v := range row {
				if to := renamed[k]; to != "" {
					k = to
				}
				made[k] = v
			}
			out.rows = append(out.rows, made)
		}
	case "SummarizeOperator":
		s.summarize(op, in, out)
	case "JoinOperator":
		s.join(op, in, out)
	case "SortOperator":
		out.rows = slices.Clone(in.rows)
		s.sort(op.elementsOfLastList(), out.rows)
	case "TopOperator":
		out.rows = slices.Clone(in.rows)
		s.sort([]*node{op.child("OrderedExpression")}, out.rows)
		limit := int(s.eval(op.child("LongLiteralExpression")).(int64))
		out.rows = out.rows[:min(limit, len(out.rows))]
	case "CountOperator":
		out.rows = []Row{{op.Columns[0].Name: int64(len(in.rows))}}
	case "UnionOperator":
		s.union(op, out, in)
	default:
		panic(unsupported(op.Kind))
	}
	return out
}

// elementsOfLastList are those of the operator's own list, behind that of its
// parameters.
func (n *node) elementsOfLastList() []*node {
	for _, c := range slices.Backward(n.Children) {
		if c.Kind == "List" {
			return c.elements()
		}
	}
	return nil
}

// columnOf is the name that an expression is given, or has as a column.
func columnOf(n *node) string {
	switch n.Kind {
	case "SimpleNamedExpression":
		return n.Children[0].name()
	case "NameReference":
		return n.name()
	}
	return ""
}

// value is an expression without the name it is given.
func value(n *node) *node {
	if n.Kind == "SimpleNamedExpression" {
		return n.Children[len(n.Children)-1]
	}
	return n
}

func keep(rows []Row, columns []Column) (out []Row) {
	for _, row := range rows {
		made := Row{}
		for _, c := range columns {
			made[c.Name] = row[c.Name]
		}
		out = append(out, made)
	}
	return out
}

// parameter is the text of an operator's parameter, such as join's kind.
func (n *node) parameter(name string) string {
	if list := n.child("List"); list != nil {
		for _, p := range list.elements() {
			if p.Kind == "NamedParameter" && p.Children[0].name() == name {
				return p.Children[len(p.Children)-1].name()
			}
		}
	}
	return ""
}

func (s *scope) summarize(op *node, in, out *table) {
	aggregates := op.elementsOfLastList()
	var by []*node
	if clause := op.child("SummarizeByClause"); clause != nil {
		by = clause.child("List").elements()
	}
	groups := map[string][]Row{}
	keys := map[string][]any{}
	var order []string
	for _, row := range in.rows {
		values := make([]any, len(by))
		for i, e := range by {
			values[i] = s.at(row).eval(value(e))
		}
		key := text(values)
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key], keys[key] = append(groups[key], row), values
	}
	if len(by) == 0 && len(order) == 0 {
		order = []string{""}
	}
	for _, key := range order {
		made := Row{}
		for i := range by {
			made[op.Columns[i].Name] = keys[key][i]
		}
		next := len(by)
		for _, a := range aggregates {
			next += s.aggregate(value(a), groups[key], op.Columns[next:], made)
		}
		out.rows = append(out.rows, made)
	}
}

// aggregate puts an aggregate's value into as many of the columns as it fills.
func (s *scope) aggregate(call *node, rows []Row, columns []Column, into Row) int {
	if call.Kind != "FunctionCallExpression" || !isAggregate(call.Children[0].name()) {
		// A scalar function of aggregates, such as round(avg(x), 1).
		inner := s.inner()
		inner.names[groupRows], inner.row = rows, nil
		into[columns[0].Name] = inner.eval(call)
		return 1
	}
	name, args := call.Children[0].name(), call.arguments()
	if name != "arg_max" && name != "arg_min" {
		into[columns[0].Name] = s.fold(name, args, rows)
		return 1
	}
	var best Row
	var top any
	for _, row := range rows {
		v := s.at(row).eval(args[0])
		if v == nil {
			continue
		}
		if best != nil {
			if c := compare(v, top); (name == "arg_max" && c <= 0) || (name == "arg_min" && c >= 0) {
				continue
			}
		}
		best, top = row, v
	}
	if best == nil && len(rows) > 0 {
		best = rows[0]
	}
	into[columns[0].Name] = top
	if args[len(args)-1].Kind == "StarExpression" {
		n := 1
		for _, c := range columns[1:] {
			if v, ok := best[c.Name]; ok {
				into[c.Name] = v
				n++
				continue
			}
			break
		}
		return n
	}
	for i, e := range args[1:] {
		into[columns[1+i].Name] = s.at(best).eval(value(e))
	}
	return len(args)
}

func (s *scope) join(op *node, left, out *table) {
	kind := op.parameter("kind")
	right := s.tabular(op.child("ParenthesizedExpression", "NameReference", "FunctionCallExpression"))
	var leftKeys, rightKeys []*node
	for _, e := range op.child("JoinOnClause").child("List").elements() {
		if e.Kind == "EqualExpression" {
			leftKeys, rightKeys = append(leftKeys, e.Children[0]), append(rightKeys, e.Children[2])
			continue
		}
		leftKeys, rightKeys = append(leftKeys, e), append(rightKeys, e)
	}
	keyOf := func(side *scope, keys []*node) string {
		var values []any
		for _, k := range keys {
			values = append(values, side.eval(k))
		}
		return text(values)
	}
	index := map[string][]Row{}
	for _, row := range right.rows {
		side := s.at(row)
		side.right = row
		key := keyOf(side, rightKeys)
		index[key] = append(index[key], row)
	}
	for _, row := range left.rows {
		side := s.at(row)
		side.left = row
		matches := index[keyOf(side, leftKeys)]
		switch {
		case kind == "leftanti":
			if len(matches) == 0 {
				out.rows = append(out.rows, row)
			}
			continue
		case kind == "leftouter" && len(matches) == 0:
			matches = []Row{{}}
		case kind != "inner" && kind != "leftouter":
			panic(unsupported("join kind=" + kind + ": say inner, leftouter or leftanti"))
		}
		for _, match := range matches {
			made := Row{}
			for i, c := range op.Columns {
				if i < len(left.columns) {
					made[c.Name] = row[c.Name]
					continue
				}
				made[c.Name] = match[right.columns[i-len(left.columns)].Name]
				if made[c.Name] == nil && c.Type == "string" {
					made[c.Name] = ""
				}
			}
			out.rows = append(out.rows, made)
		}
	}
}

func (s *scope) union(op *node, out *table, first ...*table) {
	source := op.parameter("withsource")
	add := func(t *table, name string) {
		for _, row := range t.rows {
			made := Row{}
			for _, c := range op.Columns {
				made[c.Name] = row[c.Name]
				if made[c.Name] == nil && c.Type == "string" {
					made[c.Name] = ""
				}
			}
			if source != "" {
				made[source] = name
			}
			out.rows = append(out.rows, made)
		}
	}
	for _, t := range first {
		add(t, "")
	}
	for _, e := range op.elementsOfLastList() {
		add(s.tabular(e), e.name())
	}
}

func (s *scope) sort(by []*node, rows []Row) {
	slices.SortStableFunc(rows, func(a, b Row) int {
		for _, o := range by {
			e, descending := o, true
			if o.Kind == "OrderedExpression" {
				e = o.Children[0]
				if c := o.child("OrderingClause"); c != nil {
					descending = c.Children[0].Text != "asc"
				}
			}
			c := compare(s.at(a).eval(e), s.at(b).eval(e))
			if descending {
				c = -c
			}
			if c != 0 {
				return c
			}
		}
		return 0
	})
}

// arguments of a call.
func (n *node) arguments() []*node {
	list := n.child("ExpressionList")
	if list == nil || list.child("List") == nil {
		return nil
	}
	return list.child("List").elements()
}

// call evaluates a function of the query or of the workspace.
func (s *scope) call(f *closure, args []*node) any {
	in := f.scope.inner()
	parameters := f.node.child("FunctionParameters").child("List").elements()
	for i, p := range parameters {
		declared := p.child("NameAndTypeDeclaration")
		name := declared.child("NameDeclaration").name()
		switch fallback := p.child("DefaultValueDeclaration"); {
		case i < len(args):
			in.names[name] = s.eval(args[i])
		case fallback != nil:
			in.names[name] = s.eval(fallback.Children[len(fallback.Children)-1])
		default:
			panic(unsupported("a call without " + name))
		}
	}
	body := f.node.child("FunctionBody")
	var statements []*node
	for _, c := range body.Children {
		switch c.Kind {
		case "List":
			statements = append(statements, c.elements()...)
		case "OpenBraceToken", "CloseBraceToken", "SemicolonToken":
		default:
			statements = append(statements, c)
		}
	}
	return in.statements(statements)
}

func text(values []any) string {
	var b strings.Builder
	for _, v := range values {
		b.WriteString(strconv.Quote(toText(v)))
		b.WriteByte(',')
	}
	return b.String()
}
