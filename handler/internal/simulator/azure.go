package simulator

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/klauspost/compress/gzip"

	"qualys-sentinel/handler/internal/loganalytics"
	"qualys-sentinel/handler/internal/record"
)

// Azure is the Azure side: managed identity, both ways into Log Analytics, and
// a Key Vault. It keeps what has arrived.
type Azure struct {
	// IdentityHeader is the secret that identity requests carry.
	IdentityHeader string
	// Rule is the data collection rule's immutable id, Streams its streams.
	Rule    string
	Streams map[string][]record.TableColumn
	// Workspace and Key are for the HTTP Data Collector API.
	Workspace string
	Key       []byte
	// Places are other workspaces, by id, and rules, by immutable id.
	Places map[string]*Place
	// Secrets of the vault, by name.
	Secrets map[string]string
	// Deleted are the names of secrets that were deleted: they cannot be set again.
	Deleted map[string]bool
	// Keep takes each accepted row; nil only counts them.
	Keep func(table string, row json.RawMessage) error
	// Now is the clock.
	Now func() time.Time

	mu     sync.Mutex
	counts Arrived
}

// A Place is a workspace or a data collection rule beside the first.
type Place struct {
	// Key of a workspace, Streams of a rule.
	Key     []byte
	Streams map[string][]record.TableColumn
	// Keep takes each accepted row.
	Keep func(table string, row json.RawMessage) error
	// Before may take a call's place.
	Before func(w http.ResponseWriter) bool
}

// rule is the one that a path names; nil if there is none.
func (a *Azure) rule(id string) *Place {
	if id == a.Rule {
		return &Place{Streams: a.Streams, Keep: a.Keep}
	}
	if p := a.Places[id]; p != nil && p.Streams != nil {
		return p
	}
	return nil
}

// workspace is the one that an Authorization header names; a wrong one if there is
// none, so that its signature is.
func (a *Azure) workspace(authorization string) (id string, p *Place) {
	id, _, _ = strings.Cut(strings.TrimPrefix(authorization, "SharedKey "), ":")
	if p := a.Places[id]; p != nil && p.Key != nil {
		return id, p
	}
	return a.Workspace, &Place{Key: a.Key, Keep: a.Keep}
}

// Arrived is what the services have taken.
type Arrived struct {
	Calls, Rows, Bytes int64
	// Billed is what a workspace is charged for, in bytes: the text of the
	// stream's columns, without their names (Microsoft, "Azure Monitor Logs cost
	// calculations and options"). Rows of the Logs Ingestion API only.
	Billed int64
	// Dropped counts members that the stream does not declare, by name: the
	// real service drops them without a sign.
	Dropped map[string]int
	// Truncated counts values over the service's limit, which the real one
	// cuts without a sign.
	Truncated int
	// Tokens counts the tokens issued, by resource.
	Tokens map[string]int
}

// NewAzure returns the services for a table.
func NewAzure(tables ...*record.Schema) *Azure {
	a := &Azure{
		IdentityHeader: "simulated-identity-header",
		Rule:           "dcr-00000000000000000000000000000001",
		Streams:        map[string][]record.TableColumn{},
		Workspace:      "11111111-1111-1111-1111-111111111111",
		Key:            []byte("0123456789abcdef0123456789abcdef"),
		Secrets:        map[string]string{},
		Now:            time.Now,
	}
	for _, t := range tables {
		a.Streams[t.Stream()] = t.TableColumns()
	}
	return a
}

// Arrived tells what the services have taken so far.
func (a *Azure) Arrived() Arrived {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.counts
	c.Dropped, c.Tokens = maps.Clone(c.Dropped), maps.Clone(c.Tokens)
	return c
}

// IdentityPath is where the managed identity endpoint answers.
const IdentityPath = "/msi/token"

// ServeHTTP implements http.Handler for the identity and both ways in.
func (a *Azure) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == IdentityPath:
		a.identity(w, r)
	case r.URL.Path == "/api/logs":
		a.collector(w, r)
	case strings.HasPrefix(r.URL.Path, "/dataCollectionRules/"):
		a.ingestion(w, r)
	default:
		http.NotFound(w, r)
	}
}

// identity issues tokens as App Service does (api-version 2019-08-01).
func (a *Azure) identity(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	switch {
	case r.Header.Get("X-Identity-Header") != a.IdentityHeader:
		http.Error(w, `{"statusCode":401,"message":"the identity header is missing or wrong"}`, http.StatusUnauthorized)
		return
	case q.Get("api-version") != "2019-08-01" || q.Get("resource") == "":
		http.Error(w, `{"statusCode":400,"message":"api-version and resource are required"}`, http.StatusBadRequest)
		return
	}
	a.mu.Lock()
	if a.counts.Tokens == nil {
		a.counts.Tokens = map[string]int{}
	}
	a.counts.Tokens[q.Get("resource")]++
	a.mu.Unlock()
	expires := a.Now().Add(24 * time.Hour)
	text := sealToken(q.Get("resource"), expires)
	answer(w, http.StatusOK, map[string]string{
		"access_token": text, "expires_on": strconv.FormatInt(expires.Unix(), 10), "resource": q.Get("resource"), "token_type": "Bearer",
	})
}

// sealToken makes a token that any instance can check, as real ones are: the
// identity SDK keeps tokens for the whole process, whoever issued them.
func sealToken(resource string, expires time.Time) string {
	text := strings.TrimRight(resource, "/") + "|" + strconv.FormatInt(expires.Unix(), 10)
	mac := hmac.New(sha256.New, []byte("simulated signing key"))
	mac.Write([]byte(text))
	return "simulated-token." + base64.RawURLEncoding.EncodeToString([]byte(text)) + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// Authorized checks a bearer token: its seal, its audience, its time.
func (a *Azure) Authorized(r *http.Request, resource string) bool {
	text, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	parts := strings.Split(text, ".")
	if !ok || len(parts) != 3 {
		return false
	}
	content, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return false
	}
	audience, until, _ := strings.Cut(string(content), "|")
	seconds, err := strconv.ParseInt(until, 10, 64)
	if err != nil {
		return false
	}
	expires := time.Unix(seconds, 0)
	return hmac.Equal([]byte(text), []byte(sealToken(audience, expires))) && audience == resource && a.Now().Before(expires)
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a client that has gone away
}

// problem answers an error of the Logs Ingestion API.
func problem(w http.ResponseWriter, status int, code, message string) {
	answer(w, status, map[string]any{"error": map[string]string{"code": code, "message": message}})
}

// ingestionLimit of a call, compressed and uncompressed.
const ingestionLimit = 1 << 20

// ingestion is the Logs Ingestion API.
func (a *Azure) ingestion(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	var place *Place
	if len(parts) == 4 {
		place = a.rule(parts[1])
	}
	switch {
	case r.Method != http.MethodPost:
		problem(w, http.StatusMethodNotAllowed, "MethodNotAllowed", "only POST")
	case !a.Authorized(r, "https://monitor.azure.com"):
		problem(w, http.StatusUnauthorized, "InvalidToken", "the token is missing, expired or of another audience")
	case place == nil || parts[2] != "streams":
		problem(w, http.StatusNotFound, "NotFound", "data collection rule not found")
	case place.Streams[parts[3]] == nil:
		problem(w, http.StatusNotFound, "InvalidStream", "the rule declares no stream "+parts[3])
	case r.URL.Query().Get("api-version") != "2023-01-01":
		problem(w, http.StatusBadRequest, "InvalidApiVersion", "unknown api-version")
	case !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json"):
		problem(w, http.StatusUnsupportedMediaType, "UnsupportedMediaType", "Content-Type must be application/json")
	case place.Before != nil && place.Before(w):
	default:
		a.ingest(w, r, place, parts[3])
	}
}

func (a *Azure) ingest(w http.ResponseWriter, r *http.Request, place *Place, stream string) {
	body, err := readBody(r, ingestionLimit)
	if errors.Is(err, errTooLarge) {
		problem(w, http.StatusRequestEntityTooLarge, "ContentLengthLimitExceeded", "Maximum allowed content length: 1048576 bytes (1 MB)")
		return
	}
	if err != nil {
		problem(w, http.StatusBadRequest, "InvalidContentEncoding", err.Error())
		return
	}
	t := taken{dropped: map[string]int{}}
	if err := t.readRows(body, place.Streams[stream]); err != nil {
		problem(w, http.StatusBadRequest, err.code, err.Error())
		return
	}
	if err := a.take(place, strings.TrimPrefix(stream, "Custom-")+"_CL", int64(len(body)), t); err != nil {
		problem(w, http.StatusInternalServerError, "InternalError", err.Error())
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// taken is what a body holds.
type taken struct {
	rows      []json.RawMessage // parts of the body
	dropped   map[string]int    // values of columns that the stream does not declare, by name
	truncated int               // values longer than a column takes
	billed    int64             // bytes of text in all columns
	text      []byte
}

// rowsError says why a body is refused.
type rowsError struct {
	code string
	text string
}

func (e *rowsError) Error() string { return e.text }

// maxColumn is the longest value of a column, in bytes.
const maxColumn = 64 << 10

// readRows checks a body against a stream's columns.
func (t *taken) readRows(body []byte, stream []record.TableColumn) *rowsError {
	columns := make(map[string]streamColumn, len(stream))
	for _, c := range stream {
		columns[strconv.Quote(c.Name)] = streamColumn{c.Name, c.Type}
	}
	dec := jsontext.NewDecoder(bytes.NewBuffer(body)) // it wants UTF-8, and no name twice
	if tok, err := dec.ReadToken(); err != nil || tok.Kind() != '[' {
		return &rowsError{"InvalidJSON", "the body is no JSON array in UTF-8"}
	}
	for dec.PeekKind() == '{' {
		if bad := t.readRow(dec, body, columns); bad != nil {
			return bad
		}
	}
	if dec.PeekKind() != ']' && dec.PeekKind() != 0 {
		return &rowsError{"InvalidRecord", fmt.Sprintf("record %d is no object", len(t.rows))}
	}
	if _, err := dec.ReadToken(); err != nil {
		return &rowsError{"InvalidJSON", "the body is no JSON array in UTF-8"}
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return &rowsError{"InvalidJSON", "something follows the JSON array"}
	}
	return nil
}

// streamColumn is a column that a stream declares.
type streamColumn struct{ name, typ string }

func (t *taken) readRow(dec *jsontext.Decoder, body []byte, columns map[string]streamColumn) *rowsError {
	invalid := &rowsError{"InvalidJSON", "the body is no JSON array in UTF-8"}
	if _, err := dec.ReadToken(); err != nil {
		return invalid
	}
	begin := dec.InputOffset() - 1
	made := false
	for dec.PeekKind() == '"' {
		name, err := dec.ReadValue()
		if err != nil {
			return invalid
		}
		column, ok := columns[string(name)] // as names are written without need for escapes
		if !ok {
			column.name = string(name)
		}
		value, err := dec.ReadValue()
		if err != nil {
			return invalid
		}
		size := len(value)
		if value.Kind() == '"' {
			if t.text, err = jsontext.AppendUnquote(t.text[:0], value); err != nil {
				return invalid
			}
			size = len(t.text)
		}
		if !ok {
			t.dropped[column.name[1:len(column.name)-1]]++
			continue
		}
		t.billed += int64(min(size, maxColumn))
		made = made || column.name == "TimeGenerated"
		if err := checkType(column.typ, value); err != nil {
			return &rowsError{"InvalidRecord", fmt.Sprintf("record %d, %s: %v", len(t.rows), column.name, err)}
		}
		if value.Kind() == '"' && size > maxColumn {
			t.truncated++
		}
	}
	if tok, err := dec.ReadToken(); err != nil || tok.Kind() != '}' {
		return invalid
	}
	if !made {
		return &rowsError{"InvalidRecord", fmt.Sprintf("record %d has no TimeGenerated", len(t.rows))}
	}
	t.rows = append(t.rows, body[begin:dec.InputOffset()])
	return nil
}

func checkType(typ string, value jsontext.Value) error {
	switch typ {
	case "datetime":
		var text []byte
		if value.Kind() == '"' {
			text = value[1 : len(value)-1]
		}
		if _, err := time.Parse(time.RFC3339, string(text)); err != nil {
			return fmt.Errorf("%.100s is no datetime", value)
		}
	case "real":
		if _, err := strconv.ParseFloat(string(value), 64); value.Kind() != '0' || err != nil {
			return fmt.Errorf("%.100s is no number", value)
		}
	case "string":
		if value.Kind() != '"' {
			return fmt.Errorf("%.100s is no string", value)
		}
	}
	return nil
}

var errTooLarge = errors.New("the body is too large")

// readBody reads a body, gzipped or not, up to a limit of both forms.
func readBody(r *http.Request, limit int64) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read the body: %w", err)
	}
	if int64(len(raw)) > limit {
		return nil, errTooLarge
	}
	switch enc := r.Header.Get("Content-Encoding"); enc {
	case "", "identity":
		return raw, nil
	case "gzip":
		gz, err := gzip.NewReader(bytes.NewReader(raw))
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		var body bytes.Buffer
		body.Grow(min(10*len(raw), ingestionLimit) + bytes.MinRead) // as large as it may be: rows compress well
		if _, err := body.ReadFrom(io.LimitReader(gz, limit+1)); err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		if int64(body.Len()) > limit {
			return nil, errTooLarge
		}
		return body.Bytes(), nil
	default:
		return nil, fmt.Errorf("unknown Content-Encoding %q", enc)
	}
}

// take keeps rows, then counts them: a row that could not be kept is not
// accepted.
func (a *Azure) take(place *Place, table string, size int64, t taken) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if place.Keep != nil {
		for _, row := range t.rows {
			if err := place.Keep(table, row); err != nil {
				return err
			}
		}
	}
	a.counts.Calls++
	a.counts.Rows += int64(len(t.rows))
	a.counts.Bytes += size
	a.counts.Billed += t.billed
	a.counts.Truncated += t.truncated
	if a.counts.Dropped == nil {
		a.counts.Dropped = map[string]int{}
	}
	for name, n := range t.dropped {
		a.counts.Dropped[name] += n
	}
	return nil
}

// Rules of the HTTP Data Collector API (Microsoft, its reference page).
const (
	collectorLimit      = 30 << 20
	collectorFieldLimit = 32 << 10
	collectorColumns    = 500
	collectorNameLimit  = 45
)

var (
	logTypeForm       = regexp.MustCompile(`^[A-Za-z0-9_]{1,100}$`)
	collectorReserved = []string{"tenant", "timegenerated", "rawdata"}
)

// collectorProblem answers an error of the HTTP Data Collector API.
func collectorProblem(w http.ResponseWriter, status int, code, message string) {
	answer(w, status, map[string]string{"Error": code, "Message": message})
}

// collector is the HTTP Data Collector API.
func (a *Azure) collector(w http.ResponseWriter, r *http.Request) {
	h := r.Header
	if r.URL.Query().Get("api-version") != "2016-04-01" {
		collectorProblem(w, http.StatusBadRequest, "InvalidApiVersion", "unknown api-version")
		return
	}
	if !strings.HasPrefix(h.Get("Content-Type"), "application/json") {
		collectorProblem(w, http.StatusBadRequest, "UnsupportedContentType", "Content-Type must be application/json")
		return
	}
	if !logTypeForm.MatchString(h.Get("Log-Type")) {
		collectorProblem(w, http.StatusBadRequest, "InvalidLogType", "malformed Log-Type")
		return
	}
	if h.Get("Content-Encoding") != "" {
		collectorProblem(w, http.StatusBadRequest, "InvalidDataFormat", "encoded bodies are not supported")
		return
	}
	body, err := readBody(r, collectorLimit)
	if err != nil {
		collectorProblem(w, http.StatusNotFound, "NotFound", err.Error()) // so answers the real one
		return
	}
	date, err := http.ParseTime(h.Get("x-ms-date"))
	id, place := a.workspace(h.Get("Authorization"))
	want := "SharedKey " + id + ":" + loganalytics.Signature(place.Key, len(body), h.Get("x-ms-date"))
	if err != nil || a.Now().Sub(date).Abs() > 15*time.Minute || !hmac.Equal([]byte(want), []byte(h.Get("Authorization"))) {
		collectorProblem(w, http.StatusForbidden, "InvalidAuthorization", "the signature is wrong")
		return
	}
	if place.Before != nil && place.Before(w) {
		return
	}
	var rows []json.RawMessage
	if !utf8.Valid(body) || json.Unmarshal(body, &rows) != nil {
		collectorProblem(w, http.StatusBadRequest, "InvalidDataFormat", "the body is no JSON array in UTF-8")
		return
	}
	truncated := 0
	for i, row := range rows {
		named, n, err := collectorRow(row)
		if err != nil {
			collectorProblem(w, http.StatusBadRequest, "InvalidDataFormat", fmt.Sprintf("record %d: %v", i, err))
			return
		}
		rows[i] = named
		truncated += n
	}
	if err := a.take(place, h.Get("Log-Type")+"_CL", int64(len(body)), taken{rows: rows, truncated: truncated}); err != nil {
		collectorProblem(w, http.StatusInternalServerError, "UnspecifiedError", err.Error())
		return
	}
	w.WriteHeader(http.StatusOK)
}

// collectorRow checks a row, and returns it with the columns that the service names by
// the values.
func collectorRow(row json.RawMessage) (named json.RawMessage, truncated int, err error) {
	var members map[string]any
	if err := json.Unmarshal(row, &members); err != nil {
		return nil, 0, errors.New("no object")
	}
	if len(members) > collectorColumns {
		return nil, 0, fmt.Errorf("%d properties", len(members))
	}
	columns := make(map[string]any, len(members))
	for name, value := range members {
		if slices.Contains(collectorReserved, strings.ToLower(name)) || len(name) > collectorNameLimit {
			return nil, 0, fmt.Errorf("property %q is reserved or too long", name)
		}
		switch v := value.(type) {
		case string:
			if len(v) > collectorFieldLimit {
				truncated++
			}
		case map[string]any, []any:
			return nil, 0, fmt.Errorf("property %q is nested", name)
		}
		column, value := collectorColumn(name, value)
		if value != nil {
			columns[column] = value
		}
	}
	named, err = json.Marshal(columns)
	return named, truncated, err //nolint:wrapcheck // it was read a moment ago
}

var (
	guidForm = regexp.MustCompile(`^([0-9a-fA-F]{8})-?([0-9a-fA-F]{4})-?([0-9a-fA-F]{4})-?([0-9a-fA-F]{4})-?([0-9a-fA-F]{12})$`)
	// plainColumns are names of well-known columns, which get no suffix.
	plainColumns = map[string]string{"IpAddress": "IPAddress", "Category": "Category"}
)

// collectorColumn is the column that a value lands in (Microsoft, "HTTP Data Collector
// API", record type and properties): its suffix is that of the type that the value looks
// like, whatever other rows have under the name.
func collectorColumn(name string, value any) (column string, stored any) {
	if plain, ok := plainColumns[name]; ok {
		return plain, value
	}
	switch v := value.(type) {
	case string:
		if m := guidForm.FindStringSubmatch(v); m != nil {
			return name + "_g", strings.Join(m[1:], "-")
		}
		if at, err := time.Parse(time.RFC3339, v); err == nil {
			return name + "_t", at.UTC().Format(time.RFC3339Nano)
		}
		return name + "_s", v
	case bool:
		return name + "_b", v
	case float64:
		return name + "_d", v
	}
	return name, nil
}

// RowFiles keeps rows as lines of files, one for each table.
type RowFiles struct {
	Dir   string
	files map[string]*os.File
}

// Keep is an Azure's Keep.
func (f *RowFiles) Keep(table string, row json.RawMessage) error {
	file := f.files[table]
	if file == nil {
		if err := os.MkdirAll(f.Dir, 0o700); err != nil {
			return fmt.Errorf("make the folder for rows: %w", err)
		}
		var err error
		if file, err = os.OpenFile(f.Path(table), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
			return fmt.Errorf("open the file for rows: %w", err)
		}
		if f.files == nil {
			f.files = map[string]*os.File{}
		}
		f.files[table] = file
	}
	if _, err := file.Write(append(slices.Clone(row), '\n')); err != nil {
		return fmt.Errorf("keep a row: %w", err)
	}
	return nil
}

// Path is the file of a table.
func (f *RowFiles) Path(table string) string { return filepath.Join(f.Dir, table+".ndjson") }

// StreamsOf are streams of one name each, with the columns of another of the first
// rule's.
func (a *Azure) StreamsOf(name, as string) map[string][]record.TableColumn {
	return map[string][]record.TableColumn{name: a.Streams[as]}
}
