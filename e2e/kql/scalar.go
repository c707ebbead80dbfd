package kql

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// groupRows names a group's rows where a scalar function has aggregates inside.
const groupRows = "$rows"

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
	case "UnaryMinusExpression":
		return arithmetic("Subtract", int64(0), s.eval(n.Children[1]))
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
			if op == "Subtract" && x == 0 {
				return -y
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
			b.WriteString(strings.NewReplacer(`\\`, `\`, `\"`, `"`, `\'`, `'`, `\n`, "\n", `\t`, "\t").Replace(t))
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
		return v.Format(time.RFC3339Nano)
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

// function computes a scalar function, an aggregate within one, or a function
// of the query.
func (s *scope) function(n *node) any {
	name, args := n.Children[0].name(), n.arguments()
	if v, ok := s.look(name); ok {
		if f, ok := v.(*closure); ok {
			return s.call(f, args)
		}
	}
	if rows, ok := s.look(groupRows); ok && isAggregate(name) && s.row == nil {
		return s.fold(name, args, rows.([]Row))
	}
	switch name { // those that do not compute all of their arguments
	case "iff", "iif":
		if s.eval(args[0]) == true {
			return s.eval(args[1])
		}
		return s.eval(args[2])
	case "case":
		for i := 0; i+1 < len(args); i += 2 {
			if s.eval(args[i]) == true {
				return s.eval(args[i+1])
			}
		}
		return s.eval(args[len(args)-1])
	case "ingestion_time":
		if s.row[Ingested] != nil {
			return s.row[Ingested]
		}
		return s.row["TimeGenerated"]
	}
	values := make([]any, len(args))
	for i, a := range args {
		values[i] = s.eval(a)
	}
	return s.scalar(name, values)
}

func (s *scope) scalar(name string, v []any) any {
	switch name {
	case "now":
		return s.now
	case "ago":
		return s.now.Add(-v[0].(time.Duration))
	case "not":
		if v[0] == nil {
			return nil
		}
		return !v[0].(bool)
	case "isempty":
		return v[0] == nil || v[0] == ""
	case "isnotempty":
		return v[0] != nil && v[0] != ""
	case "isnull":
		return v[0] == nil
	case "isnotnull":
		return v[0] != nil
	case "coalesce":
		for _, x := range v {
			if x != nil && x != "" {
				return x
			}
		}
		return v[len(v)-1]
	case "strcat":
		var b strings.Builder
		for _, x := range v {
			b.WriteString(toText(x))
		}
		return b.String()
	case "tostring":
		return toText(v[0])
	case "toint", "tolong":
		switch x := v[0].(type) {
		case bool:
			if x {
				return int64(1)
			}
			return int64(0)
		case float64:
			return int64(x)
		case int64:
			return x
		}
		if x, err := strconv.ParseInt(toText(v[0]), 10, 64); err == nil {
			return x
		}
		return nil
	case "todouble":
		if x, err := strconv.ParseFloat(toText(v[0]), 64); err == nil {
			return x
		}
		return nil
	case "parse_json", "todynamic":
		var x any
		if t, ok := v[0].(string); !ok || json.Unmarshal([]byte(t), &x) != nil {
			return nil
		}
		return x
	case "array_length":
		if list, ok := v[0].([]any); ok {
			return int64(len(list))
		}
		return nil
	case "extract":
		m := regexp.MustCompile(v[0].(string)).FindStringSubmatch(toText(v[2]))
		if m == nil {
			return ""
		}
		return m[v[1].(int64)]
	case "split":
		var list []any
		for _, part := range strings.Split(toText(v[0]), toText(v[1])) {
			list = append(list, part)
		}
		return list
	case "max_of":
		return slices.MaxFunc(v, compare)
	case "bin":
		return bin(v[0], v[1])
	case "round":
		if v[0] == nil {
			return nil
		}
		p := math.Pow10(int(v[1].(int64)))
		return math.Round(number(v[0])*p) / p
	case "startofmonth":
		t, ok := v[0].(time.Time)
		if !ok {
			return nil
		}
		return time.Date(t.Year(), t.Month(), 1, 0, 0, 0, 0, time.UTC)
	case "datetime_diff":
		a, b := v[1], v[2]
		if a == nil || b == nil {
			return nil
		}
		if v[0] != "day" {
			break
		}
		day := 24 * time.Hour
		return int64(a.(time.Time).Truncate(day).Sub(b.(time.Time).Truncate(day)) / day)
	}
	panic(unsupported(fmt.Sprintf("the function %s(%v)", name, v)))
}

// bin rounds down; days are counted from the year 1, as in Kusto.
func bin(v, size any) any {
	switch x := v.(type) {
	case nil:
		return nil
	case time.Time:
		return x.Truncate(size.(time.Duration)) // Go counts from there, too
	case int64:
		step := size.(int64)
		return x / step * step
	}
	panic(unsupported(fmt.Sprintf("bin of %T", v)))
}

var aggregates = []string{"count", "countif", "dcount", "dcountif", "sum", "sumif", "max", "maxif", "min", "minif", "avg", "percentile", "make_set", "arg_max", "arg_min"}

func isAggregate(name string) bool { return slices.Contains(aggregates, name) }

// fold computes an aggregate of one value.
func (s *scope) fold(name string, args []*node, rows []Row) any {
	base, conditional := strings.CutSuffix(name, "if")
	if conditional {
		condition := args[len(args)-1]
		if base != "count" {
			condition = args[1]
		}
		var chosen []Row
		for _, row := range rows {
			if s.at(row).eval(condition) == true {
				chosen = append(chosen, row)
			}
		}
		rows = chosen
	}
	if base == "count" {
		return int64(len(rows))
	}
	var values []any
	for _, row := range rows {
		if v := s.at(row).eval(args[0]); v != nil {
			values = append(values, v)
		}
	}
	switch base {
	case "max", "min":
		if len(values) == 0 {
			return nil
		}
		if base == "max" {
			return slices.MaxFunc(values, compare)
		}
		return slices.MinFunc(values, compare)
	case "sum", "avg":
		var total float64
		whole := true
		for _, v := range values {
			total += number(v)
			_, isInt := v.(int64)
			whole = whole && isInt
		}
		switch {
		case base == "avg" && len(values) == 0:
			return nil
		case base == "avg":
			return total / float64(len(values))
		case whole && args[0].Type != "real":
			return int64(total)
		}
		return total
	case "percentile":
		if len(values) == 0 {
			return nil
		}
		slices.SortFunc(values, compare)
		p := number(s.eval(args[1]))
		return values[int(math.Ceil(p/100*float64(len(values))))-1]
	case "dcount", "make_set":
		var set []any
		seen := map[string]bool{}
		for _, v := range values {
			if t := toText(v); !seen[t] && (base == "dcount" || t != "") {
				seen[t] = true
				set = append(set, v)
			}
		}
		if base == "dcount" {
			return int64(len(set))
		}
		if set == nil {
			set = []any{}
		}
		return set
	}
	panic(unsupported("the aggregate " + name))
}
