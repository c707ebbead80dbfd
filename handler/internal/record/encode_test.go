package record

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// small is a schema with one column of each kind.
var small = &Schema{
	Table: "Small_CL", UniqueKey: "I/KEY", NaturalKey: []string{"P/ID", "I/N"}, Versions: []string{"At_t"}, Continued: "I/LONG",
	Columns: []Column{
		{Name: "TimeGenerated", Made: MadeTime, Kind: Time},
		{Name: "RunId_s", Key: "RunId", Made: MadeRun},
		{Name: "Joined_s", Key: "Joined", Joined: "KB/TITLE"},
		{Name: "RowKey_s", Key: "RowKey", Made: MadeKey},
		{Name: "Id_s", Key: "Id", Path: "P/ID"},
		{Name: "N_s", Key: "N", Path: "I/N"},
		{Name: "Key_s", Key: "UKey", Path: "I/KEY"},
		{Name: "At_t", Key: "At", Path: "I/AT", Kind: Time},
		{Name: "Text_s", Key: "Text", Path: "I/TEXT"},
		{Name: "Twin", SameAs: "Text_s"},
		{Name: "Long_%d_s", Key: "Long_%d", Path: "I/LONG", Parts: 4},
		{Name: "Parts_d", Key: "Parts", Made: MadeParts, Kind: Number},
		{Name: "Size_d", Key: "Size", Made: MadeSize, Kind: Number},
		{Name: "Cut_s", Key: "Cut", Made: MadeCut},
		{Name: "DeadLetter_s", Key: "DeadLetter", Made: MadeDeadLetter},
		{Name: "Objects_s", Key: "Objects", Path: "I/O", Kind: Objects},
		{Name: "Texts_s", Key: "Texts", Path: "I/T", Kind: Texts},
		{Name: "Plain_s", Key: "Plain", SameAs: "Html_s", Kind: PlainText},
		{Name: "Html_s", Key: "Html", Path: "I/HTML"},
		{Name: "AdditionalFields", Key: "AdditionalFields", Kind: Extra},
	},
}

func fill(t testing.TB, memory int, values map[string]string) *Record {
	t.Helper()
	r := New(small)
	r.Memory = memory
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	for path, v := range values {
		var err error
		if path == "extra" {
			err = r.AppendExtra(Item, []byte(v))
		} else {
			err = r.Append(small.Index(path), Item, []byte(v))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func encode(t testing.TB, e *Encoder, r *Record) (map[string]any, Row, int) {
	t.Helper()
	b, row := e.Append([]byte("prefix"), r, Meta{Time: time.Date(2026, 11, 1, 1, 2, 3, 4e8+56789, time.FixedZone("x", 3600)), Run: "r1", DeadLetter: func([]int) string { return "dl" }})
	b = bytes.TrimPrefix(b, []byte("prefix"))
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatalf("%v\n%.300s", err, b)
	}
	return m, row, len(b)
}

func TestEncode(t *testing.T) {
	r := fill(t, 1<<20, map[string]string{"P/ID": "1", "I/N": "a\"\\\n\t\x01é", "I/AT": "2026-01-01T00:00:00Z", "I/LONG": "long", "I/O": `{"a":"1"}`, "extra": `"X":"y"`, "I/TEXT": "t"})
	m, row, _ := encode(t, NewEncoder(small, Limits{}, KeepAll), r)
	got, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"AdditionalFields":{"X":"y"},"At_t":"2026-01-01T00:00:00Z","Id_s":"1","Long_0_s":"long","N_s":"a\"\\\n\t\u0001é","Objects_s":"[{\"a\":\"1\"}]","Parts_d":1,"RowKey_s":"1|a\"\\\n\t\u0001é@2026-01-01T00:00:00Z","RunId_s":"r1","Size_d":4,"Text_s":"t","TimeGenerated":"2026-11-01T00:02:03.4000567Z","Twin":"t"}`
	if string(got) != want || len(row.Cut) != 0 {
		t.Errorf("got  %s\nwant %s\ncut %v", got, want, row.Cut)
	}
	if s := string(row.Stable); strings.Contains(s, "r1") || strings.Contains(s, "2026-11-01") || !strings.Contains(s, "RowKey_s") {
		t.Errorf("the stable part holds the run: %s", s)
	}
	m, _, _ = encode(t, NewEncoder(small, Limits{Naming: ByKey}, KeepAll), r)
	for _, name := range []string{"Id", "Long_0", "Parts", "RunId"} {
		if m[name] == nil {
			t.Errorf("by key: no %s in %v", name, m)
		}
	}
	if m["AdditionalFields"] != `{"X":"y"}` {
		t.Errorf("by key: AdditionalFields %v: it must be text, the API takes no objects", m["AdditionalFields"])
	}
	for _, name := range []string{"TimeGenerated", "Twin", "Id_s"} {
		if m[name] != nil {
			t.Errorf("by key: %s in %v", name, m)
		}
	}
}

func TestContinuedField(t *testing.T) {
	text := strings.Repeat("aé東\U0001F600\n", 30) // 11 bytes each: 330
	for name, c := range map[string]struct {
		limits Limits
		policy Policy
		parts  int
		kept   int // bytes
		cut    string
		dead   bool
	}{
		"no limit":           {parts: 1, kept: 330, policy: KeepAll},
		"fits four":          {limits: Limits{FieldBytes: 84}, policy: KeepAll, parts: 4, kept: 330},
		"too long":           {limits: Limits{FieldBytes: 50}, policy: KeepAll, parts: 4, kept: -1, cut: "I/LONG (limit)", dead: true},
		"row limit":          {limits: Limits{RowBytes: rowReserve + 250}, policy: KeepAll, parts: 1, kept: -1, cut: "I/LONG (limit)", dead: true},
		"policy none":        {policy: Policy{Bytes: 0}, parts: 0, kept: 0, cut: "I/LONG (policy)"},
		"policy bytes":       {policy: Policy{Bytes: 100}, parts: 1, kept: -1, cut: "I/LONG (policy)"},
		"policy of ids, in":  {policy: Policy{Bytes: -1, Only: map[string]bool{"n": true}, OnlyPath: "I/N"}, parts: 1, kept: 330},
		"policy of ids, out": {policy: Policy{Bytes: -1, Only: map[string]bool{"m": true}, OnlyPath: "I/N"}, parts: 0, cut: "I/LONG (policy)"},
	} {
		t.Run(name, func(t *testing.T) {
			r := fill(t, 1<<20, map[string]string{"I/N": "n", "I/LONG": text})
			m, row, size := encode(t, NewEncoder(small, c.limits, c.policy), r)
			var got string
			for n := range 4 {
				part, _ := m[fmt.Sprintf("Long_%d_s", n)].(string)
				if c.limits.FieldBytes > 0 && len(part) > c.limits.FieldBytes || !utf8.ValidString(part) || strings.ContainsRune(part, utf8.RuneError) {
					t.Errorf("part %d is too long or cut inside a rune: %q", n, part)
				}
				got += part
			}
			if m["Parts_d"] != float64(c.parts) || !strings.HasPrefix(text, got) || c.kept >= 0 && len(got) != c.kept || m["Size_d"] != 330.0 {
				t.Errorf("parts %v, size %v, %d bytes %q; want %d parts, %d bytes", m["Parts_d"], m["Size_d"], len(got), got, c.parts, c.kept)
			}
			cut, _ := m["Cut_s"].(string)
			if cut != c.cut || (m["DeadLetter_s"] == "dl") != c.dead || (len(row.Cut) > 0) != c.dead {
				t.Errorf("cut %q, dead letter %v, %v; want %q, %v", cut, m["DeadLetter_s"], row.Cut, c.cut, c.dead)
			}
			if c.limits.RowBytes > 0 && size > c.limits.RowBytes {
				t.Errorf("row of %d bytes", size)
			}
		})
	}
}

func TestOtherFieldsOverTheLimit(t *testing.T) {
	r := fill(t, 1<<20, map[string]string{"I/TEXT": strings.Repeat("é", 60), "I/O": `{"a":"` + strings.Repeat("b", 200) + `"}`, "extra": `"X":"` + strings.Repeat("y", 200) + `"`})
	m, row, _ := encode(t, NewEncoder(small, Limits{FieldBytes: 101}, KeepAll), r)
	if m["Text_s"] != strings.Repeat("é", 50) || m["Objects_s"] != nil || m["AdditionalFields"] != nil || len(row.Cut) < 3 {
		t.Errorf("%v, cut %v", m, row.Cut)
	}
	e := NewEncoder(small, Limits{FieldBytes: 101}, KeepAll)
	for path, want := range map[string]string{"I/TEXT": `"value":"` + strings.Repeat("é", 60) + `"`, "I/O": `"value":[{"a":"bbb`} {
		var b bytes.Buffer
		if err := e.WriteWhole(&b, r, small.Index(path)); err != nil || !json.Valid(b.Bytes()) || !strings.Contains(b.String(), want) {
			t.Errorf("%s whole: %v %.300s", path, err, b.String())
		}
	}
}

// A value fits by what it takes as JSON, not by its own size.
func TestEscapesCountAgainstTheRow(t *testing.T) {
	e := NewEncoder(small, Limits{RowBytes: rowReserve + 4000}, KeepAll)
	for _, path := range []string{"I/TEXT", "I/LONG"} {
		row, told, size := encode(t, e, fill(t, 1<<20, map[string]string{path: strings.Repeat("\x01", 3500)}))
		if len(told.Cut) == 0 || size > e.Limits.RowBytes-rowReserve+500 {
			t.Errorf("%s: %d bytes, %d columns cut: %.80q", path, size, len(told.Cut), fmt.Sprint(row))
		}
	}
}

func TestPlainTextOfHTML(t *testing.T) {
	html := "<p>A &amp; <b>b</b>" + strings.Repeat("x", 90)
	r := fill(t, 1<<20, map[string]string{"I/HTML": html, "I/T": `"a","b"`})
	m, row, _ := encode(t, NewEncoder(small, Limits{}, KeepAll), r)
	if m["Html_s"] != html || m["Plain_s"] != "A & b"+strings.Repeat("x", 90) || m["Texts_s"] != `["a","b"]` || len(row.Cut) != 0 {
		t.Errorf("%v, cut %v", m, row.Cut)
	}
	// Both over the limit: the HTML is what is kept whole, once.
	m, row, _ = encode(t, NewEncoder(small, Limits{FieldBytes: 50}, KeepAll), r)
	if m["Cut_s"] != "Plain_s (limit), I/HTML (limit)" || len(row.Cut) != 1 || row.Cut[0] != small.Index("I/HTML") || m["DeadLetter_s"] != "dl" || len(m["Plain_s"].(string)) != 50 {
		t.Errorf("%v, cut %v", m, row.Cut)
	}
	// Only markup: no text, no column.
	m, _, _ = encode(t, NewEncoder(small, Limits{}, KeepAll), fill(t, 1<<20, map[string]string{"I/HTML": "<P><BR>"}))
	if m["Plain_s"] != nil || m["Html_s"] != "<P><BR>" {
		t.Errorf("%v", m)
	}
}

// What is joined may change while the finding does not.
func TestJoinedIsNotStable(t *testing.T) {
	r := fill(t, 1<<20, map[string]string{"P/ID": "1", "I/TEXT": "t"})
	if err := r.Append(small.Column("Joined_s"), Item, []byte("title")); err != nil {
		t.Fatal(err)
	}
	m, row, _ := encode(t, NewEncoder(small, Limits{}, KeepAll), r)
	if s := string(row.Stable); m["Joined_s"] != "title" || strings.Contains(s, "title") || !strings.Contains(s, "RowKey_s") || !strings.Contains(s, "Text_s") {
		t.Errorf("%v, stable %s", m, s)
	}
}

// A field that does not fit into memory waits on disk, and leaves nothing there.
func TestHugeField(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	r := New(small)
	r.Memory = fieldMemory
	long := small.Index("I/LONG")
	var want strings.Builder
	for i := range 1000 {
		piece := fmt.Sprintf("piece %d \"é\"\n", i)
		want.WriteString(piece)
		if err := r.Append(long, Item, []byte(piece)); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.Field(long).Head()) != fieldMemory || r.Field(long).Size() != int64(want.Len()) {
		t.Fatalf("%d bytes in memory of %d", len(r.Field(long).Head()), r.Field(long).Size())
	}
	e := NewEncoder(small, Limits{FieldBytes: 60}, KeepAll)
	m, row, _ := encode(t, e, r)
	if len(row.Cut) != 1 || m["Size_d"] != float64(want.Len()) || m["Long_0_s"] == nil {
		t.Errorf("cut %v, size %v, want %d", row.Cut, m["Size_d"], want.Len())
	}
	var b bytes.Buffer
	if err := e.WriteWhole(&b, r, long); err != nil {
		t.Fatal(err)
	}
	var line struct{ Field, Value string }
	if err := json.Unmarshal(b.Bytes(), &line); err != nil || line.Value != want.String() || line.Field != "I/LONG" {
		t.Errorf("the whole field differs: %v, %d bytes, want %d", err, len(line.Value), want.Len())
	}
	if err := r.Reset(Item); err != nil {
		t.Fatal(err)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
		t.Errorf("left on disk: %v, %v", files, err)
	}
}

// The policy wants more than is in memory: what is not in the row is kept whole.
func TestPolicyBeyondMemory(t *testing.T) {
	r := fill(t, fieldMemory, map[string]string{"I/LONG": strings.Repeat("x", 3*fieldMemory)})
	m, row, _ := encode(t, NewEncoder(small, Limits{}, Policy{Bytes: 2 * fieldMemory}), r)
	if m["Cut_s"] != "I/LONG (policy), I/LONG (limit)" || len(row.Cut) != 1 {
		t.Errorf("cut %v, %v", m["Cut_s"], row.Cut)
	}
}

func TestResetKeepsTheOtherLevel(t *testing.T) {
	r := New(small)
	for path, level := range map[string]Level{"P/ID": Parent, "I/N": Item} {
		if err := r.Append(small.Index(path), level, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Reset(Item); err != nil {
		t.Fatal(err)
	}
	if !r.Field(small.Index("P/ID")).Set() || r.Field(small.Index("I/N")).Set() {
		t.Error("resetting the records' level touched the parent's, or not its own")
	}
}

func FuzzEncode(f *testing.F) {
	f.Add([]byte("a\"\\\x00é\U0001F600"), 10, 9000)
	f.Fuzz(func(t *testing.T, value []byte, field, row int) {
		value = []byte(strings.ToValidUTF8(string(value), "\uFFFD"))
		if field < 0 || row < 0 {
			return
		}
		r := New(small)
		for _, path := range []string{"I/LONG", "I/TEXT", "P/ID", "I/HTML"} {
			if err := r.Append(small.Index(path), Item, value); err != nil {
				t.Fatal(err)
			}
		}
		row += 2 * rowReserve
		b, _ := NewEncoder(small, Limits{FieldBytes: field, RowBytes: row}, KeepAll).Append(nil, r, Meta{})
		var m map[string]any
		if err := json.Unmarshal(b, &m); err != nil || len(b) > row {
			t.Fatalf("%v, %d bytes of %d: %s", err, len(b), row, b)
		}
		for name, v := range m {
			if s, ok := v.(string); ok && field > 0 && strings.HasPrefix(name, "Long_") && len(s) > field {
				t.Fatalf("%s has %d bytes, limit %d", name, len(s), field)
			}
		}
	})
}
