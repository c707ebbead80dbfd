package kql

import (
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
	case "iff":
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
	case "column_ifexists":
		if v, ok := s.row[unquote(args[0])]; ok {
			return v
		}
		return s.eval(args[1])
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
	case "parse_json":
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
