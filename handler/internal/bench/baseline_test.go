package bench_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"qualys-sentinel/handler/internal/loganalytics"
	"qualys-sentinel/handler/internal/record/plaintext"
)

// The baseline is how Go programs usually do it: encoding/xml into structs, one
// parent (a host, a KnowledgeBase entry) at a time; structs with JSON tags, one
// a row; encoding/json; compress/gzip at its fastest level, as the connector
// compresses. It writes the same rows, and it has none of the connector's
// guards: a page that broke off, a field of 200 MB, an element without a column
// are not its concern.

// made is what every row tells of its making.
type made struct {
	TimeGenerated time.Time
	RunID         string `json:"RunId_s"`
}

// eachParent decodes the elements of a name, one at a time.
func eachParent[T any](doc io.Reader, element string, visit func(*T) error) error {
	dec := xml.NewDecoder(doc)
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		start, ok := tok.(xml.StartElement)
		if !ok || start.Name.Local != element {
			continue
		}
		var parent T
		if err := dec.DecodeElement(&parent, &start); err != nil {
			return err
		}
		if err := visit(&parent); err != nil {
			return err
		}
	}
}

// baselineRecords decodes a page and returns the number of its records.
func baselineRecords(p *page) (records int, err error) {
	doc := bytes.NewReader(p.doc)
	if p.knowledge {
		return records, eachParent(doc, "VULN", func(*xmlEntry) error { records++; return nil })
	}
	return records, eachParent(doc, "HOST", func(h *xmlHost) error { records += len(h.Detections); return nil })
}

// jsonRows encodes each record as a row.
type jsonRows struct {
	made made
	row  func([]byte) error
	buf  bytes.Buffer
}

func (j *jsonRows) emit(v any) error {
	j.buf.Reset()
	enc := json.NewEncoder(&j.buf)
	enc.SetEscapeHTML(false) // the connector writes < > & as they are, too
	if err := enc.Encode(v); err != nil {
		return err
	}
	return j.row(bytes.TrimSuffix(j.buf.Bytes(), []byte{'\n'}))
}

func (j *jsonRows) entries(doc io.Reader) error {
	return eachParent(doc, "VULN", func(e *xmlEntry) error {
		r, err := e.row(j.made)
		if err != nil {
			return err
		}
		return j.emit(r)
	})
}

func (j *jsonRows) detections(doc io.Reader, host func(id string)) error {
	return eachParent(doc, "HOST", func(h *xmlHost) error {
		host(h.ID)
		base, err := h.row(j.made)
		if err != nil {
			return err
		}
		for i := range h.Detections {
			r, err := h.Detections[i].row(base)
			if err != nil {
				return err
			}
			if err := j.emit(r); err != nil {
				return err
			}
		}
		return nil
	})
}

// baselineRows encodes the records of a page.
func baselineRows(p *page, m made, row func([]byte) error) error {
	j := jsonRows{made: m, row: row}
	if p.knowledge {
		return j.entries(bytes.NewReader(p.doc))
	}
	return j.detections(bytes.NewReader(p.doc), func(string) {})
}

// batcher packs rows into arrays of at most a batch's size and compresses each.
type batcher struct {
	send func(packed []byte) error
	body bytes.Buffer
	gzip bytes.Buffer
	gz   *gzip.Writer
}

func newBatcher(send func([]byte) error) (*batcher, error) {
	gz, err := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	return &batcher{send: send, gz: gz}, err
}

func (b *batcher) add(row []byte) error {
	if b.body.Len() > 0 && b.body.Len()+len(row)+2 > loganalytics.IngestionBatchBytes {
		if err := b.flush(); err != nil {
			return err
		}
	}
	if b.body.Len() == 0 {
		b.body.WriteByte('[')
	} else {
		b.body.WriteByte(',')
	}
	b.body.Write(row)
	return nil
}

func (b *batcher) flush() error {
	if b.body.Len() == 0 {
		return nil
	}
	b.body.WriteByte(']')
	b.gzip.Reset()
	b.gz.Reset(&b.gzip)
	if _, err := b.gz.Write(b.body.Bytes()); err != nil {
		return err
	}
	if err := b.gz.Close(); err != nil {
		return err
	}
	b.body.Reset()
	return b.send(b.gzip.Bytes())
}

// baselineChunks carries a page to compressed batches.
func baselineChunks(p *page, m made) (sent int64, err error) {
	b, err := newBatcher(func(packed []byte) error {
		sent += int64(len(packed))
		return nil
	})
	if err != nil {
		return 0, err
	}
	if err := baselineRows(p, m, b.add); err != nil {
		return 0, err
	}
	return sent, b.flush()
}

// text marshals what a column holds as JSON text; nothing for an empty list.
func text[T any](values []T) (string, error) {
	if len(values) == 0 {
		return "", nil
	}
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(values); err != nil {
		return "", err
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// joined joins one value of each element.
func joined[T any](values []T, pick func(T) string) string {
	var parts []string
	for _, v := range values {
		if s := pick(v); s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, ", ")
}

// dates checks that every text is a date or empty.
func dates(texts ...string) error {
	for _, s := range texts {
		if s == "" {
			continue
		}
		if _, err := time.Parse("2006-01-02T15:04:05Z", s); err != nil {
			return fmt.Errorf("the benchmark's pages hold dates only: %w", err)
		}
	}
	return nil
}

// split parts a text at rune borders.
func split(s string, size int) (parts []string) {
	for len(s) > size {
		n := size
		for !utf8.RuneStart(s[n]) {
			n--
		}
		parts, s = append(parts, s[:n]), s[n:]
	}
	if s != "" {
		parts = append(parts, s)
	}
	return parts
}

func plain(html string) string { return string(plaintext.Append(nil, []byte(html))) }
