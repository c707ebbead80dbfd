// Package jsonobject reads what people send as one JSON object, so that each of its
// members can be named in an answer: in their order, with those that nobody knows, and
// with those that are there twice, which encoding/json would pass over.
//
// What the members mean does not enter here.
package jsonobject

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// A Member of an object.
type Member struct {
	Name  string
	Value json.RawMessage
}

// ErrNoObject is the error for a text that is no JSON object.
var ErrNoObject = errors.New("the body is no JSON object")

// Members reads the members of an object, at most so many. A byte order mark, which
// some editors put in front, is passed over.
func Members(body []byte, most int) (list []Member, err error) {
	body = bytes.TrimPrefix(body, []byte("\uFEFF"))
	if !utf8.Valid(body) {
		return nil, fmt.Errorf("%w: it is not in UTF-8", ErrNoObject)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return nil, ErrNoObject
	}
	for dec.More() {
		tok, err := dec.Token()
		name, ok := tok.(string)
		m := Member{Name: name}
		if err != nil || !ok || dec.Decode(&m.Value) != nil {
			return nil, ErrNoObject
		}
		if list = append(list, m); len(list) > most {
			return nil, fmt.Errorf("the object has more than %d members", most)
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, ErrNoObject
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	return list, nil
}
