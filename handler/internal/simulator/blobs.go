package simulator

import (
	"bytes"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Blobs is a Blob service that keeps all in memory: one storage account, as far as the
// connector uses it (Microsoft, "Blob service REST API"). Where the documentation leaves
// a case open it does as Azurite does.
type Blobs struct {
	// Authorized tells whether a request may come; nil: any may.
	Authorized func(r *http.Request) bool
	// Now is the clock.
	Now func() time.Time

	mu         sync.Mutex
	containers map[string]map[string]*blob
	staged     map[string]map[string][]byte // blocks that are not committed, by blob and id
	versions   int
}

// NewBlobs returns a service without containers.
func NewBlobs() *Blobs {
	return &Blobs{Now: time.Now, containers: map[string]map[string]*blob{}, staged: map[string]map[string][]byte{}}
}

// blob is a block blob or an append blob, and its lease.
type blob struct {
	appends bool
	content []byte
	etag    int

	lease   string // its id; empty: none
	holds   time.Duration
	expires time.Time
	touched bool // written to since the lease expired
	broken  bool // somebody has ended the lease
}

// leased tells whether a lease is active.
func (b *blob) leased(now time.Time) bool { return b.lease != "" && now.Before(b.expires) }

// A Snapshot is all that a service kept at a time, without leases.
type Snapshot struct{ containers map[string]map[string]*blob }

// Snapshot copies the state, as replication to another region does.
func (s *Blobs) Snapshot() Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Snapshot{copied(s.containers)}
}

// Restore puts an older state in place, as a failover to another region does. Leases are
// not replicated.
func (s *Blobs) Restore(to Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.containers = copied(to.containers)
}

func copied(containers map[string]map[string]*blob) map[string]map[string]*blob {
	all := map[string]map[string]*blob{}
	for name, blobs := range containers {
		all[name] = map[string]*blob{}
		for path, b := range blobs {
			all[name][path] = &blob{appends: b.appends, content: b.content[:len(b.content):len(b.content)], etag: b.etag}
		}
	}
	return all
}

// Document is the content of a blob; nil if there is none.
func (s *Blobs) Document(container, name string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.containers[container][name]; b != nil {
		return slices.Clone(b.content)
	}
	return nil
}

// Names lists the blobs of a container that begin with prefix, ascending.
func (s *Blobs) Names(container, prefix string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.names(container, prefix)
}

func (s *Blobs) names(container, prefix string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(s.containers[container])), func(name string) bool { return !strings.HasPrefix(name, prefix) })
}

// blobRequest is one call.
type blobRequest struct {
	*http.Request
	w               http.ResponseWriter
	container, name string
	body            []byte
	lease           string // x-ms-lease-id
}

// ServeHTTP implements http.Handler.
func (s *Blobs) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := blobRequest{Request: r, w: w, lease: r.Header.Get("X-Ms-Lease-Id")}
	q.container, q.name, _ = strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	w.Header().Set("X-Ms-Version", r.Header.Get("X-Ms-Version"))
	if r.Header.Get("X-Ms-Version") == "" || q.container == "" {
		q.refuse(http.StatusBadRequest, "InvalidHeaderValue")
		return
	}
	if s.Authorized != nil && !s.Authorized(r) {
		q.refuse(http.StatusForbidden, "AuthorizationPermissionMismatch")
		return
	}
	var err error
	if q.body, err = io.ReadAll(io.LimitReader(r.Body, maxBlobBody+1)); err != nil || len(q.body) > maxBlobBody {
		q.refuse(http.StatusRequestEntityTooLarge, "RequestBodyTooLarge")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if q.name == "" {
		s.serveContainer(q)
		return
	}
	if s.containers[q.container] == nil {
		q.refuse(http.StatusNotFound, "ContainerNotFound")
		return
	}
	s.serveBlob(q)
}

// maxBlobBody is the longest body that is kept in memory here, in bytes.
const maxBlobBody = 64 << 20

// refuse answers an error.
func (q *blobRequest) refuse(status int, code string) {
	q.w.Header().Set("X-Ms-Error-Code", code)
	q.w.Header().Set("Content-Type", "application/xml")
	q.w.WriteHeader(status)
	if q.Method != http.MethodHead {
		fmt.Fprintf(q.w, "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>%s</Code><Message>%s</Message></Error>", code, code)
	}
}

func (s *Blobs) serveContainer(q blobRequest) {
	query := q.URL.Query()
	_, there := s.containers[q.container]
	switch {
	case query.Get("restype") != "container":
		q.refuse(http.StatusBadRequest, "InvalidQueryParameterValue")
	case q.Method == http.MethodPut && there:
		q.refuse(http.StatusConflict, "ContainerAlreadyExists")
	case q.Method == http.MethodPut:
		s.containers[q.container] = map[string]*blob{}
		q.w.WriteHeader(http.StatusCreated)
	case !there:
		q.refuse(http.StatusNotFound, "ContainerNotFound")
	case q.Method == http.MethodDelete:
		delete(s.containers, q.container)
		q.w.WriteHeader(http.StatusAccepted)
	case q.Method == http.MethodGet && query.Get("comp") == "list":
		s.list(q)
	default:
		q.refuse(http.StatusBadRequest, "UnsupportedQueryParameter")
	}
}

// listing is the answer to List Blobs.
type listing struct {
	XMLName    xml.Name `xml:"EnumerationResults"`
	Blobs      []listed `xml:"Blobs>Blob"`
	NextMarker string   `xml:"NextMarker"`
}

type listed struct {
	Name       string `xml:"Name"`
	Properties struct {
		ContentLength int    `xml:"Content-Length"`
		BlobType      string `xml:"BlobType"`
	} `xml:"Properties"`
}

// list answers a page of names. A marker is the name that the page begins with.
func (s *Blobs) list(q blobRequest) {
	query := q.URL.Query()
	most, err := strconv.Atoi(query.Get("maxresults"))
	if err != nil || most < 1 || most > 5000 {
		most = 5000
	}
	var page listing
	for _, name := range s.names(q.container, query.Get("prefix")) {
		switch {
		case name < query.Get("marker"):
			continue
		case len(page.Blobs) == most:
			page.NextMarker = name
		}
		if page.NextMarker != "" {
			break
		}
		b := s.containers[q.container][name]
		l := listed{Name: name}
		l.Properties.ContentLength, l.Properties.BlobType = len(b.content), b.kind()
		page.Blobs = append(page.Blobs, l)
	}
	q.w.Header().Set("Content-Type", "application/xml")
	_, _ = io.WriteString(q.w, xml.Header) // a client that has gone away
	_ = xml.NewEncoder(q.w).Encode(page)
}

func (b *blob) kind() string {
	if b.appends {
		return "AppendBlob"
	}
	return "BlockBlob"
}

func (s *Blobs) serveBlob(q blobRequest) {
	b := s.containers[q.container][q.name]
	comp := q.URL.Query().Get("comp")
	switch {
	case q.Method == http.MethodPut && comp == "":
		s.put(q, b)
	case q.Method == http.MethodPut && comp == "block":
		s.stage(q, b)
	case q.Method == http.MethodPut && comp == "blocklist":
		s.commit(q, b)
	case b == nil:
		q.refuse(http.StatusNotFound, "BlobNotFound")
	case q.Method == http.MethodPut && comp == "appendblock":
		s.appendBlock(q, b)
	case q.Method == http.MethodPut && comp == "lease":
		s.leaseBlob(q, b)
	case q.Method == http.MethodGet && comp == "", q.Method == http.MethodHead && comp == "":
		s.get(q, b)
	case q.Method == http.MethodDelete && comp == "":
		if s.admit(q, b) {
			delete(s.containers[q.container], q.name)
			q.w.WriteHeader(http.StatusAccepted)
		}
	default:
		q.refuse(http.StatusBadRequest, "UnsupportedQueryParameter")
	}
}

// admit tells whether a write may happen, and answers if it may not: first the lease,
// then the conditions.
func (s *Blobs) admit(q blobRequest, b *blob) bool {
	var status int
	var code string
	switch {
	case b == nil && q.lease != "":
		status, code = http.StatusNotFound, "BlobNotFound"
	case b != nil && b.leased(s.Now()) && q.lease == "":
		status, code = http.StatusPreconditionFailed, "LeaseIdMissing"
	case b != nil && b.leased(s.Now()) && q.lease != b.lease:
		status, code = http.StatusPreconditionFailed, "LeaseIdMismatchWithBlobOperation"
	case b != nil && q.lease != "" && !b.leased(s.Now()):
		status, code = http.StatusPreconditionFailed, "LeaseLost"
		if q.lease != b.lease {
			code = "LeaseNotPresentWithBlobOperation"
		}
	case q.Header.Get("If-None-Match") == "*" && b != nil:
		status, code = http.StatusConflict, "BlobAlreadyExists"
	case q.Header.Get("If-Match") != "" && (b == nil || q.Header.Get("If-Match") != b.version()):
		status, code = http.StatusPreconditionFailed, "ConditionNotMet"
	default:
		return true
	}
	q.refuse(status, code)
	return false
}

func (b *blob) version() string { return fmt.Sprintf("\"0x8D%013X\"", b.etag) }

// written answers a write that is done.
func (s *Blobs) written(q blobRequest, b *blob, status int) {
	s.versions++
	b.etag = s.versions
	b.touched = b.touched || !b.leased(s.Now())
	q.w.Header().Set("Etag", b.version())
	q.w.Header().Set("Last-Modified", s.Now().UTC().Format(http.TimeFormat))
	q.w.WriteHeader(status)
}

// put is Put Blob. What it replaces keeps its lease.
func (s *Blobs) put(q blobRequest, b *blob) {
	kind := q.Header.Get("X-Ms-Blob-Type")
	if kind != "BlockBlob" && kind != "AppendBlob" {
		q.refuse(http.StatusBadRequest, "InvalidHeaderValue")
		return
	}
	if !s.admit(q, b) {
		return
	}
	if b == nil {
		b = &blob{}
		s.containers[q.container][q.name] = b
	}
	b.appends, b.content = kind == "AppendBlob", q.body
	s.written(q, b, http.StatusCreated)
}

// stage is Put Block. A block that is not committed makes no blob.
func (s *Blobs) stage(q blobRequest, b *blob) {
	id := q.URL.Query().Get("blockid")
	if _, err := base64.StdEncoding.DecodeString(id); err != nil || id == "" {
		q.refuse(http.StatusBadRequest, "InvalidQueryParameterValue")
		return
	}
	if b != nil && !s.admit(q, b) {
		return
	}
	place := q.container + "/" + q.name
	if s.staged[place] == nil {
		s.staged[place] = map[string][]byte{}
	}
	s.staged[place][id] = q.body
	q.w.WriteHeader(http.StatusCreated)
}

// commit is Put Block List.
func (s *Blobs) commit(q blobRequest, b *blob) {
	var list struct {
		Latest []string `xml:"Latest"`
	}
	if err := xml.Unmarshal(q.body, &list); err != nil {
		q.refuse(http.StatusBadRequest, "InvalidXmlDocument")
		return
	}
	if !s.admit(q, b) {
		return
	}
	place := q.container + "/" + q.name
	var content []byte
	for _, id := range list.Latest {
		block, ok := s.staged[place][id]
		if !ok {
			q.refuse(http.StatusBadRequest, "InvalidBlockList")
			return
		}
		content = append(content, block...)
	}
	delete(s.staged, place)
	if b == nil {
		b = &blob{}
		s.containers[q.container][q.name] = b
	}
	b.appends, b.content = false, content
	s.written(q, b, http.StatusCreated)
}

// maxAppend is the longest block of an append blob, in bytes.
const maxAppend = 4 << 20

func (s *Blobs) appendBlock(q blobRequest, b *blob) {
	switch {
	case !b.appends:
		q.refuse(http.StatusConflict, "InvalidBlobType")
	case len(q.body) > maxAppend:
		q.refuse(http.StatusRequestEntityTooLarge, "RequestBodyTooLarge")
	case s.admit(q, b):
		b.content = append(b.content, q.body...)
		s.written(q, b, http.StatusCreated)
	}
}

func (s *Blobs) get(q blobRequest, b *blob) {
	h := q.w.Header()
	h.Set("Etag", b.version())
	h.Set("Last-Modified", s.Now().UTC().Format(http.TimeFormat))
	h.Set("X-Ms-Blob-Type", b.kind())
	h.Set("X-Ms-Lease-Status", map[bool]string{true: "locked", false: "unlocked"}[b.leased(s.Now())])
	if match := q.Header.Get("If-Match"); match != "" && match != b.version() {
		q.refuse(http.StatusPreconditionFailed, "ConditionNotMet")
		return
	}
	content := b.content
	if span := q.Header.Get("X-Ms-Range"); span != "" {
		var from, to int
		if n, _ := fmt.Sscanf(span, "bytes=%d-%d", &from, &to); n < 2 {
			to = len(content) - 1
		}
		if from >= len(content) {
			q.refuse(http.StatusRequestedRangeNotSatisfiable, "InvalidRange")
			return
		}
		to = min(to, len(content)-1)
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(content)))
		h.Set("Content-Length", strconv.Itoa(to+1-from))
		q.w.WriteHeader(http.StatusPartialContent)
		content = content[from : to+1]
	} else {
		h.Set("Content-Length", strconv.Itoa(len(content)))
		q.w.WriteHeader(http.StatusOK)
	}
	if q.Method != http.MethodHead {
		_, _ = io.Copy(q.w, bytes.NewReader(content)) // a client that has gone away
	}
}

// leaseBlob is Lease Blob: acquire, renew, release and break.
func (s *Blobs) leaseBlob(q blobRequest, b *blob) {
	now := s.Now()
	switch q.Header.Get("X-Ms-Lease-Action") {
	case "acquire":
		seconds, err := strconv.Atoi(q.Header.Get("X-Ms-Lease-Duration"))
		id := q.Header.Get("X-Ms-Proposed-Lease-Id")
		switch {
		case err != nil || seconds < 15 || seconds > 60 || id == "":
			q.refuse(http.StatusBadRequest, "InvalidHeaderValue")
			return
		case b.leased(now) && b.lease != id:
			q.refuse(http.StatusConflict, "LeaseAlreadyPresent")
			return
		}
		b.lease, b.touched, b.broken, b.holds = id, false, false, time.Duration(seconds)*time.Second
		s.granted(q, b, http.StatusCreated)
	case "renew":
		switch {
		case b.lease == "":
			q.refuse(http.StatusConflict, "LeaseNotPresentWithLeaseOperation")
			return
		case b.broken:
			q.refuse(http.StatusConflict, "LeaseIsBrokenAndCannotBeRenewed")
			return
		case b.lease != q.lease, !b.leased(now) && b.touched:
			q.refuse(http.StatusConflict, "LeaseIdMismatchWithLeaseOperation")
			return
		}
		s.granted(q, b, http.StatusOK)
	case "release":
		switch {
		case b.lease == "":
			q.refuse(http.StatusConflict, "LeaseNotPresentWithLeaseOperation")
			return
		case b.lease != q.lease:
			q.refuse(http.StatusConflict, "LeaseIdMismatchWithLeaseOperation")
			return
		}
		b.lease = ""
		q.w.WriteHeader(http.StatusOK)
	case "break":
		if b.lease == "" {
			q.refuse(http.StatusConflict, "LeaseNotPresentWithLeaseOperation")
			return
		}
		b.expires, b.broken = now, true
		q.w.Header().Set("X-Ms-Lease-Time", "0")
		q.w.WriteHeader(http.StatusAccepted)
	default:
		q.refuse(http.StatusBadRequest, "InvalidHeaderValue")
	}
}

// granted answers a lease that holds from now on.
func (s *Blobs) granted(q blobRequest, b *blob, status int) {
	b.expires = s.Now().Add(b.holds)
	q.w.Header().Set("X-Ms-Lease-Id", b.lease)
	q.w.Header().Set("Etag", b.version())
	q.w.WriteHeader(status)
}
