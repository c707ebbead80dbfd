package ingest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"slices"
	"testing"
)

// Whatever stands in a document of the state, it is refused with an error or
// means the same when it is written again.
func FuzzState(f *testing.F) {
	f.Add([]byte(`{"version":1,"dataset":"vm","watermark":"2026-11-01T12:00:00Z","window":{"after":null,"until":"2026-11-01T13:00:00Z","nextId":7,"source":"s"},"isolated":[{"id":3,"again":"2026-11-01T12:00:00Z"}],"stalled":2,"lastRun":"r"}`), []byte("AQ=="))
	f.Add([]byte(`{"version":2}`), []byte("x"))
	f.Add([]byte(`{"table":"T","reason":"r","row":{"RowKey_s":"1"}}`), []byte(nil))
	f.Fuzz(func(t *testing.T, doc, rows []byte) {
		if c, err := decodeCheckpoint(doc, "vm"); err == nil {
			if len(doc) > 0 && (c.Version != stateVersion || c.Dataset != "vm") {
				t.Errorf("took %q", doc)
			}
			first, err := c.encode()
			if err != nil {
				return // a time that JSON has no form for
			}
			again, err := decodeCheckpoint(first, "vm")
			if err != nil {
				t.Fatalf("%s is not read again: %v", first, err)
			}
			if second, err := again.encode(); err != nil || !bytes.Equal(first, second) {
				t.Errorf("%s became %s, %v", first, second, err)
			}
		}
		packed := packIndex(t, string(doc))
		if doc, err := readRecent(packed); err == nil && doc.Version != stateVersion {
			t.Errorf("took version %d", doc.Version)
		}
		sorted := ascending(bytes.Clone(rows))
		if len(sorted) != len(rows)/8*8 {
			t.Errorf("%d bytes became %d", len(rows), len(sorted))
		}
		for sum := range slices.Chunk(rows[:len(rows)/8*8], 8) {
			if !contains(sorted, binary.BigEndian.Uint64(sum)) {
				t.Errorf("%x is lost", sum)
			}
		}
		if err := readLetters(packIndex(t, string(doc)), func(l deadLetter) error {
			if len(l.Row) > 0 && !json.Valid(l.Row) {
				t.Errorf("row %q", l.Row)
			}
			return nil
		}); err == nil && len(bytes.TrimSpace(doc)) > 0 && !json.Valid(doc) && !bytes.Contains(doc, []byte("}")) && !bytes.Contains(doc, []byte("null")) {
			t.Errorf("read %q as dead letters", doc)
		}
	})
}
