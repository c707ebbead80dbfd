package kql

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// eval computes an expression: a value or a *table.
func (s *scope) eval(n *node) any {
	switch n.Kind {
	case "PipeExpression":
		return s.pipe(n)
	case "ParenthesizedExpression":
		return s.eval(n.Children[1])
	case "MaterializeExpression":
		return s.eval(n.inParentheses())
	case "ToScalarExpression":
		t := s.tabular(n.inParentheses())
		if len(t.rows) == 0 {
			return nil
		}
		return t.rows[0][t.columns[0].Name]
	case "UnionOperator":
		out := &table{columns: n.Columns}
		s.union(n, out)
		return out
	case "PrintOperator":
		row := Row{}
		for i, e := range n.child("List").elements() {
			row[n.Columns[i].Name] = s.eval(value(e))
		}
		return &table{n.Columns, []Row{row}}
	case "NameReference":
		return s.named(n.name())
	case "StringLiteralExpression", "CompoundStringLiteralExpression":
		return unquote(n)
	case "LongLiteralExpression", "IntLiteralExpression":
		v, err := strconv.ParseInt(n.name(), 10, 64)
		return must(v, err)
	case "RealLiteralExpression":
		v, err := strconv.ParseFloat(n.name(), 64)
		return must(v, err)
	case "BooleanLiteralExpression":
		return strings.EqualFold(n.name(), "true")
	case "TimespanLiteralExpression":
		return timespan(n.name())
	case "DateTimeLiteralExpression":
		if strings.Contains(n.name(), "null") {
			return nil
		}
	case "AndExpression":
		left := s.eval(n.Children[0])
		if left == false {
			return false
		}
		return both(left, s.eval(n.Children[2]))
	case "OrExpression":
		left := s.eval(n.Children[0])
		if left == true {
			return true
		}
		right := s.eval(n.Children[2])
		if right == true {
			return true
		}
		return both(left, right)
	case "PathExpression":
		return s.path(n)
	case "ElementExpression":
		return element(s.eval(n.Children[0]), s.eval(n.Children[1].Children[1]))
	case "FunctionCallExpression":
		return s.function(n)
	case "BetweenExpression":
		v, ends := s.eval(n.Children[0]), n.child("ExpressionCouple").Children
		low, high := s.eval(ends[1]), s.eval(ends[3])
		if v == nil || low == nil || high == nil {
			return nil
		}
		return compare(v, low) >= 0 && compare(v, high) <= 0
	}
	if op, ok := strings.CutSuffix(n.Kind, "Expression"); ok && len(n.Children) == 3 {
		if in, ok := membership[op]; ok {
			return s.member(in, s.eval(n.Children[0]), n.Children[2])
		}
		return operate(op, s.eval(n.Children[0]), s.eval(n.Children[2]))
	}
	panic(unsupported(n.Kind))
}

// inParentheses is what stands between an expression's parentheses.
func (n *node) inParentheses() *node {
	for i, c := range n.Children {
		if c.Kind == "OpenParenToken" {
			return n.Children[i+1]
		}
	}
	panic(unsupported(n.Kind + " without parentheses"))
}

func (s *scope) named(name string) any {
	if s.row != nil {
		if v, ok := s.row[name]; ok {
			return v
		}
	}
	if v, ok := s.look(name); ok {
		if f, ok := v.(*closure); ok {
			return s.call(f, nil)
		}
		return v
	}
	if t, ok := s.source(name); ok {
		return t
	}
	panic(unsupported("the name " + name))
}

func (s *scope) path(n *node) any {
	name := n.Children[2].name()
	switch n.Children[0].name() {
	case "$left":
		return s.left[name]
	case "$right":
		return s.right[name]
	}
	return element(s.eval(n.Children[0]), name)
}

// element is a member of a dynamic value.
func element(v, key any) any {
	switch v := v.(type) {
	case map[string]any:
		return v[toText(key)]
	case []any:
		if i, ok := key.(int64); ok && i >= 0 && int(i) < len(v) {
			return v[i]
		}
	}
	return nil
}

// membership are the operators with a list: whether they ask for all letters as
// they are, and whether for a whole value or a term in it.
var membership = map[string]struct{ fold, not, term bool }{
	"In": {}, "NotIn": {not: true}, "InCs": {fold: true}, "NotInCs": {fold: true, not: true}, "HasAny": {fold: true, term: true},
}

func (s *scope) member(in struct{ fold, not, term bool }, v any, list *node) any {
	for _, e := range list.child("List").elements() {
		candidate := s.eval(e)
		var found bool
		switch {
		case in.term:
			found = hasTerm(toText(v), toText(candidate))
		case in.fold:
			found = strings.EqualFold(toText(v), toText(candidate))
		default:
			found = v != nil && candidate != nil && compare(v, candidate) == 0
		}
		if found {
			return !in.not
		}
	}
	return in.not
}

// operate computes a binary operator by its kind in the tree.
func operate(op string, a, b any) any {
	switch op {
	case "EqualTilde":
		return strings.EqualFold(toText(a), toText(b))
	case "BangTilde":
		return !strings.EqualFold(toText(a), toText(b))
	case "Has":
		return hasTerm(toText(a), toText(b))
	case "NotHas":
		return !hasTerm(toText(a), toText(b))
	case "Contains":
		return strings.Contains(strings.ToLower(toText(a)), strings.ToLower(toText(b)))
	case "NotContains":
		return !strings.Contains(strings.ToLower(toText(a)), strings.ToLower(toText(b)))
	case "StartsWith":
		return strings.HasPrefix(strings.ToLower(toText(a)), strings.ToLower(toText(b)))
	}
	// Null is equal to no value, and two nulls are neither equal nor different.
	if (a == nil) != (b == nil) && (op == "Equal" || op == "NotEqual") {
		return op == "NotEqual"
	}
	if a == nil || b == nil {
		return nil // as of any operator on null
	}
	switch op {
	case "Equal":
		return compare(a, b) == 0
	case "NotEqual":
		return compare(a, b) != 0
	case "LessThan":
		return compare(a, b) < 0
	case "LessThanOrEqual":
		return compare(a, b) <= 0
	case "GreaterThan":
		return compare(a, b) > 0
	case "GreaterThanOrEqual":
		return compare(a, b) >= 0
	}
	return arithmetic(op, a, b)
}

func arithmetic(op string, a, b any) any {
	switch x := a.(type) {
	case time.Time:
		switch y := b.(type) {
		case time.Time:
			return x.Sub(y)
		case time.Duration:
			if op == "Subtract" {
				return x.Add(-y)
			}
			return x.Add(y)
		}
	case time.Duration:
		switch y := b.(type) {
		case time.Duration:
			switch op {
			case "Add":
				return x + y
			case "Subtract":
				return x - y
			case "Divide":
				return float64(x) / float64(y)
			}
		case int64:
			return time.Duration(number(arithmetic(op, float64(x), float64(y))))
		}
	case int64:
		switch y := b.(type) {
		case time.Duration:
			if op == "Multiply" {
				return time.Duration(x) * y
			}
		case int64:
			if op == "Divide" && y == 0 {
				return nil
			}
			return calculate(op, x, y)
		case float64:
			return arithmetic(op, float64(x), y)
		}
	case float64:
		return calculate(op, x, number(b))
	}
	panic(unsupported(fmt.Sprintf("%s of %T and %T", op, a, b)))
}

func calculate[T int64 | float64](op string, x, y T) any {
	switch op {
	case "Add":
		return x + y
	case "Subtract":
		return x - y
	case "Multiply":
		return x * y
	case "Divide":
		return x / y
	}
	panic(unsupported(op))
}

// both is and of two that are not false, or or of two that are not true.
func both(a, b any) any {
	switch {
	case a != nil && b != nil:
		return b
	case a == false || b == false:
		return false
	}
	return nil
}

func number(v any) float64 {
	switch v := v.(type) {
	case int64:
		return float64(v)
	case float64:
		return v
	case time.Duration:
		return float64(v)
	}
	panic(unsupported(fmt.Sprintf("%T as a number", v)))
}

// compare orders two values of one type; null is before all.
func compare(a, b any) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return -1
	case b == nil:
		return 1
	}
	switch x := a.(type) {
	case string:
		return strings.Compare(x, toText(b))
	case time.Time:
		return x.Compare(b.(time.Time))
	case bool:
		return cmp.Compare(toText(x), toText(b))
	}
	return cmp.Compare(number(a), number(b))
}

// hasTerm tells whether text has a term as a whole word; letters and digits make
// words.
func hasTerm(text, term string) bool {
	pattern := `(?i)(^|[^\pL\pN])` + regexp.QuoteMeta(term) + `($|[^\pL\pN])`
	return regexp.MustCompile(pattern).MatchString(text)
}

func timespan(literal string) time.Duration {
	units := map[string]time.Duration{"d": 24 * time.Hour, "h": time.Hour, "m": time.Minute, "s": time.Second}
	for unit, length := range units {
		if count, ok := strings.CutSuffix(literal, unit); ok {
			v, err := strconv.ParseFloat(count, 64)
			return time.Duration(must(v, err).(float64) * float64(length))
		}
	}
	panic(unsupported("the timespan " + literal))
}

var unescape = strings.NewReplacer(`\\`, `\`, `\"`, `"`, `\'`, `'`, `\n`, "\n", `\t`, "\t")

func unquote(n *node) string {
	var b strings.Builder
	var walk func(*node)
	walk = func(n *node) {
		if n.Kind == "StringLiteralToken" {
			t := n.Text
			if verbatim, ok := strings.CutPrefix(t, "@"); ok {
				b.WriteString(verbatim[1 : len(verbatim)-1])
				return
			}
			t = t[1 : len(t)-1]
			b.WriteString(unescape.Replace(t))
		}
		for _, c := range n.Children {
			walk(c)
		}
	}
	walk(n)
	return b.String()
}

func must(v any, err error) any {
	if err != nil {
		panic(unsupported("the literal: " + err.Error()))
	}
	return v
}

func toText(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case time.Time:
		return v.UTC().Format("2006-01-02T15:04:05.0000000Z")
	case bool:
		return strconv.FormatBool(v)
	case int64:
		return strconv.FormatInt(v, 10)
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case time.Duration:
		return v.String()
	}
	doc, err := json.Marshal(v)
	return string(must(doc, err).([]byte))
}
