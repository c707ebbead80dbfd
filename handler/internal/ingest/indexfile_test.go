package ingest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
)

// packIndex makes an index object of lines.
func packIndex(t testing.TB, header string, lines ...string) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	gz := gzip.NewWriter(&b)
	for _, line := range append([]string{header}, lines...) {
		if _, err := fmt.Fprintln(gz, line); err != nil {
			t.Fatal(err)
		}
	}
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

const goodHeader = `{"version":1,"for":"q to d","values":["a"]}`

func TestIndexEntry(t *testing.T) {
	e := indexEntry{
		id: 38170, modified: []byte("2026-01-01T00:00:00Z"), sum: 0xab, sent: []byte("2026-11-01T00:00:00Z"),
		values: [][]byte{[]byte("Title\twith a tab\nand \"more\""), nil, []byte("CVE-1, CVE-2"), bytes.Repeat([]byte("é"), maxIndexed), nil},
	}
	line := e.append(nil)
	if bytes.Count(line, []byte("\n")) != 1 {
		t.Fatalf("%q", line)
	}
	var got indexEntry
	if err := got.parse(line[:len(line)-1]); err != nil {
		t.Fatal(err)
	}
	if got.id != e.id || string(got.modified) != string(e.modified) || got.sum != e.sum || string(got.sent) != string(e.sent) || len(got.removed) != 0 {
		t.Errorf("%+v", got)
	}
	want := []string{`Title with a tab and "more"`, "", "CVE-1, CVE-2", strings.Repeat("é", maxIndexed/2), ""}
	if !slices.EqualFunc(got.values, want, func(a []byte, b string) bool { return string(a) == b }) {
		t.Errorf("values %.200q", got.values)
	}
	// Whatever stands in a line, reading it is an error or gives it back.
	for _, line := range []string{"", "x", "1", "1\t2", "1\tm\tzz\ts\tr\tv", "\t\t\t\t", "-1\tm\t00\ts\tr"} {
		if err := got.parse([]byte(line)); !errors.Is(err, errDamaged) {
			t.Errorf("%q: %v", line, err)
		}
	}
}

func TestMergeIndex(t *testing.T) {
	for name, c := range map[string]struct {
		old     []string
		journal string
		want    string
	}{
		"nothing":        {nil, "", ""},
		"old only":       {[]string{"1\ta", "2\tb"}, "", "1\ta 2\tb"},
		"journal only":   {nil, "2\tb\n1\ta\n", "1\ta 2\tb"},
		"newer wins":     {[]string{"1\ta", "5\te", "9\ti"}, "5\tE\n0\tz\n7\tg\n5\tE2\n12\tl\n", "0\tz 1\ta 5\tE2 7\tg 9\ti 12\tl"},
		"same at end":    {[]string{"1\ta", "5\te"}, "5\tE\n", "1\ta 5\tE"},
		"between others": {[]string{"10\ta", "20\tb", "30\tc"}, "20\tB\n21\tx\n", "10\ta 20\tB 21\tx 30\tc"},
	} {
		t.Run(name, func(t *testing.T) {
			var old *indexReader
			if c.old != nil {
				var err error
				if old, err = newIndexReader(packIndex(t, goodHeader, c.old...)); err != nil || old.header.For != "q to d" {
					t.Fatal(err, old)
				}
			}
			var got []string
			if err := mergeIndex(old, []byte(c.journal), func(line []byte) error { got = append(got, string(line)); return nil }); err != nil {
				t.Fatal(err)
			}
			if s := strings.Join(got, " "); s != c.want {
				t.Errorf("got %q, want %q", s, c.want)
			}
		})
	}
}

func TestIndexThatCannotBeRead(t *testing.T) {
	visit := func([]byte) error { return nil }
	for name, b := range map[string]*bytes.Buffer{
		"no gzip":       bytes.NewBufferString("x"),
		"nothing in it": packIndex(t, ""),
		"no header":     packIndex(t, "1\tx"),
		"old version":   packIndex(t, `{"version":0}`),
		"no id":         packIndex(t, goodHeader, "x\ty"),
		"not ascending": packIndex(t, goodHeader, "2\ta", "1\tb"),
		"twice":         packIndex(t, goodHeader, "2\ta", "2\tb"),
		"endless line":  packIndex(t, goodHeader, "2\t"+strings.Repeat("a", maxIndexLine)),
		"cut":           bytes.NewBuffer(packIndex(t, goodHeader, "2\ta").Bytes()[:30]),
	} {
		t.Run(name, func(t *testing.T) {
			old, err := newIndexReader(b)
			if err == nil {
				err = mergeIndex(old, nil, visit)
			}
			if !errors.Is(err, errDamaged) {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := newIndexReader(packIndex(t, `{"version":7}`)); errors.Is(err, errDamaged) || err == nil || !strings.Contains(err.Error(), "version 7") {
		t.Errorf("a newer version: %v", err)
	}
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte("1\tm\tab\ts\tr\tv1\tv2\n2\t\t0\t\t\n"), []byte(goodHeader+"\n3\tm\tab\ts\tr\tv\n1\tcut"))
	f.Fuzz(func(t *testing.T, index, journal []byte) {
		old, err := newIndexReader(packIndex(t, goodHeader, string(index)))
		if err != nil {
			return
		}
		_, lines, err := parseJournal(journal)
		if err != nil {
			return
		}
		last, first := uint64(0), true
		err = mergeIndex(old, lines, func(line []byte) error {
			id, err := lineID(line)
			if err != nil || !first && id <= last {
				t.Errorf("line %q behind %d: %v", line, last, err)
			}
			last, first = id, false
			var e indexEntry
			if err := e.parse(line); err != nil {
				return err
			}
			var again indexEntry
			out := e.append(nil)
			if err := again.parse(out[:len(out)-1]); err != nil || again.id != e.id || again.sum != e.sum || len(again.values) != len(e.values) {
				t.Errorf("%q became %q: %v", line, out, err)
			}
			return nil
		})
		if err != nil && !errors.Is(err, errDamaged) {
			t.Errorf("got %v", err)
		}
	})
}
