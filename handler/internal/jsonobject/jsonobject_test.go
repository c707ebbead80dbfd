package jsonobject_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"qualys-sentinel/handler/internal/jsonobject"
)

func TestMembers(t *testing.T) {
	for body, want := range map[string]string{
		`{}`:                            ``,
		"\t{\"a\": 1, \"b\":[2,{}] }\n": `a=1 b=[2,{}]`,
		`{"b":1,"a":2,"b":null}`:        `b=1 a=2 b=null`,
		"\uFEFF{\"a\":\"x\"}":           `a="x"`,
		`{"a":1,"b":2,"c":3,"d":4}`:     `the object has more than 3 members`,
		``:                              `the body is no JSON object`,
		`null`:                          `the body is no JSON object`,
		`[{"a":1}]`:                     `the body is no JSON object`,
		`{"a":1`:                        `the body is no JSON object`,
		`{"a":}`:                        `the body is no JSON object`,
		`{"a":1,}`:                      `the body is no JSON object`,
		`{a:1}`:                         `the body is no JSON object`,
		"{\"a\":\"\xff\"}":              `the body is no JSON object: it is not in UTF-8`,
		`{}{}`:                          `something follows the JSON object`,
		`{"a":` + strings.Repeat("[", 20000) + `}`: `the body is no JSON object`,
	} {
		list, err := jsonobject.Members([]byte(body), 3)
		var got []string
		for _, m := range list {
			got = append(got, m.Name+"="+string(m.Value))
		}
		text := strings.Join(got, " ")
		if err != nil {
			text = err.Error()
		}
		if text != want {
			t.Errorf("%.60q: %s; want %s", body, text, want)
		}
	}
}

// What is read is what encoding/json reads.
func FuzzMembers(f *testing.F) {
	f.Add([]byte(`{"a":1,"b":[{}]}`))
	f.Add([]byte(`{"a":1}{`))
	f.Fuzz(func(t *testing.T, body []byte) {
		list, err := jsonobject.Members(body, 100)
		if err != nil {
			return
		}
		var object map[string]json.RawMessage
		if err := json.Unmarshal([]byte(strings.TrimPrefix(string(body), "\uFEFF")), &object); err != nil || object == nil {
			t.Fatalf("%q: %v", body, err)
		}
		for _, m := range list {
			if _, ok := object[m.Name]; !ok {
				t.Errorf("%q: %s", body, fmt.Sprint(m))
			}
		}
	})
}
