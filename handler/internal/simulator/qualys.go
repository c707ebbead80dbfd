package simulator

import (
	"cmp"
	"crypto/subtle"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
)

// Qualys is the API server of a subscription.
type Qualys struct {
	Subscription *Subscription
	User         string
	Password     string
	// Version and KnowledgeVersion of the endpoints that are alive.
	Version, KnowledgeVersion string
	// CallsPerHour and Concurrent are the subscription's limits.
	CallsPerHour, Concurrent int
	// Finish has to call done when an answer has been read: until then the call counts as
	// one that runs. Nil: a call runs until its answer is made.
	Finish func(r *http.Request, done func())
	// Now is the clock.
	Now func() time.Time
	// LinkHost is the host that next-page links name: not the one that
	// answers, as with Qualys.
	LinkHost string

	mu           sync.Mutex
	endpoints    map[string]*endpoint
	log          []url.Values
	knowledgeLog []url.Values
	hostCalls    int
}

// endpoint is what counts against the limits, each API's by itself.
type endpoint struct {
	calls   []time.Time
	running int
}

// NewQualys returns a server with a standard subscription's limits.
func NewQualys(s *Subscription, user, password string) *Qualys {
	return &Qualys{
		Subscription: s, User: user, Password: password,
		Version: "5.0", KnowledgeVersion: "4.0", CallsPerHour: 300, Concurrent: 2,
		Now: time.Now, LinkHost: "qualysapi.p99.internal.example",
	}
}

// SetPassword changes the account's password, as a rotation does.
func (q *Qualys) SetPassword(password string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.Password = password
}

// SetLimits changes the subscription's limits.
func (q *Qualys) SetLimits(callsPerHour, concurrent int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.CallsPerHour, q.Concurrent = callsPerHour, concurrent
}

// Calls lists the parameters of all detection calls so far.
func (q *Qualys) Calls() []url.Values {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.log)
}

// KnowledgeCalls lists the parameters of all KnowledgeBase calls so far.
func (q *Qualys) KnowledgeCalls() []url.Values {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.knowledgeLog)
}

// HostCalls counts the calls of the host list.
func (q *Qualys) HostCalls() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.hostCalls
}

const hostPath = "/fo/asset/host/"

// hosts answers the host list, of which only ids are simulated.
func (q *Qualys) hosts(w http.ResponseWriter, r *http.Request) {
	params, ok := q.params(w, r)
	if !ok {
		return
	}
	q.mu.Lock()
	q.hostCalls++
	q.mu.Unlock()
	limit, low, high := 1000, uint64(0), uint64(1<<62)
	only, bad := parseIDList(params.Get("ids"))
	tags, badTags := parseTags(params)
	if bad = cmp.Or(bad, badTags); bad != nil {
		q.fail(w, http.StatusBadRequest, bad.code, bad.text, nil)
		return
	}
	var after time.Time
	if bad := parseDates(params, map[string]*time.Time{"vm_processed_after": &after}); bad != nil {
		q.fail(w, http.StatusBadRequest, bad.code, bad.text, nil)
		return
	}
	for name, v := range params {
		if name == "vm_processed_after" || name == "ids" || slices.Contains(tagParams, name) {
			continue
		}
		n, err := strconv.ParseUint(v[0], 10, 62)
		switch name {
		case "action", "details":
			if v[0] != map[string]string{"action": "list", "details": "None"}[name] {
				q.fail(w, http.StatusBadRequest, "1922", "only action=list&details=None is simulated", nil)
				return
			}
			continue
		case "truncation_limit":
			limit = int(n)
		case "id_min":
			low = n
		case "id_max":
			high = n
		default:
			q.fail(w, http.StatusBadRequest, "1901", "Unrecognized parameter(s): "+name, nil)
			return
		}
		if err != nil {
			q.fail(w, http.StatusBadRequest, "1905", "parameter "+name+" has invalid value: "+v[0], nil)
			return
		}
	}
	w.Header().Set("Content-Type", "text/xml;charset=UTF-8")
	x := &xmlWriter{w: w, buf: []byte("<?xml version=\"1.0\" encoding=\"UTF-8\" ?>\n")}
	now := q.dated(w)
	x.open("HOST_LIST_OUTPUT")
	x.open("RESPONSE")
	x.date("DATETIME", now)
	n, more := 0, uint64(0)
	for index := range q.Subscription.Hosts {
		id := q.Subscription.hostID(index)
		if processed, ok := q.Subscription.Listed(index, now); !ok || processed.Before(after) {
			continue
		}
		if id < low || id > high || !only.has(id) || tags.on && !tags.has(q.Subscription.host(index, now).Tags) {
			continue
		}
		if n == limit {
			more = id
			break
		}
		if n == 0 {
			x.open("ID_SET")
		}
		n++
		x.leaf("ID", strconv.FormatUint(id, 10))
	}
	if n > 0 {
		x.close("ID_SET")
	}
	if more != 0 {
		x.open("WARNING")
		x.leaf("CODE", "1980")
		x.leaf("TEXT", fmt.Sprintf("%d record limit exceeded. Use URL to get next batch of results.", limit))
		x.cdata("URL", "https://"+q.LinkHost+"/api/"+q.Version+hostPath+"?action=list&details=None&id_min="+strconv.FormatUint(more, 10))
		x.close("WARNING")
	}
	x.close("RESPONSE")
	x.close("HOST_LIST_OUTPUT")
	x.flush()
}

const detectionPath = "/fo/asset/host/vm/detection/"

// dated puts the time into an answer's Date header, and returns it for the document:
// Qualys states one moment in both.
func (q *Qualys) dated(w http.ResponseWriter) time.Time {
	now := q.Now()
	w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
	return now
}

// ServeHTTP implements http.Handler.
func (q *Qualys) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q.dated(w)
	if !strings.HasSuffix(r.URL.Path, "/") {
		host, _, _ := strings.Cut(r.Host, ":")
		w.Header().Set("Location", "http://"+host+":443"+r.URL.Path+"/")
		w.Header().Set("Content-Type", "text/html; charset=iso-8859-1")
		w.WriteHeader(http.StatusMovedPermanently)
		q.write(w, "<!DOCTYPE HTML PUBLIC \"-//IETF//DTD HTML 2.0//EN\">\n<html><head><title>301 Moved Permanently</title></head><body></body></html>\n")
		return
	}
	if len(r.URL.RawQuery) > 8000 {
		w.Header().Set("Content-Type", "text/html; charset=iso-8859-1")
		w.WriteHeader(http.StatusRequestURITooLong)
		q.write(w, "<!DOCTYPE HTML PUBLIC \"-//IETF//DTD HTML 2.0//EN\">\n<html><head> <title>414 Request-URI Too Long</title> </head><body><br /></body></html>\n")
		return
	}
	if r.Header.Get("X-Requested-With") == "" {
		q.fail(w, http.StatusBadRequest, "", "the header X-Requested-With is required", nil)
		return
	}
	user, password, ok := r.BasicAuth()
	q.mu.Lock()
	want := q.Password
	q.mu.Unlock()
	if !ok || subtle.ConstantTimeCompare([]byte(user), []byte(q.User)) != 1 || subtle.ConstantTimeCompare([]byte(password), []byte(want)) != 1 {
		q.fail(w, http.StatusUnauthorized, "2000", "Bad Login/Password", nil)
		return
	}
	answer := map[string]http.HandlerFunc{
		"/api/" + q.Version + detectionPath:          q.detections,
		"/api/" + q.KnowledgeVersion + knowledgePath: q.knowledge,
		"/api/" + q.Version + hostPath:               q.hosts,
	}[r.URL.Path]
	if answer == nil {
		http.NotFound(w, r)
		return
	}
	done, ok := q.admit(w, r.URL.Path)
	if !ok {
		return
	}
	defer func() {
		if q.Finish != nil {
			q.Finish(r, done)
		} else {
			done()
		}
	}()
	answer(w, r)
}

// admit keeps the limits: concurrency first, as its error wins.
func (q *Qualys) admit(w http.ResponseWriter, path string) (done func(), ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.endpoints == nil {
		q.endpoints = map[string]*endpoint{}
	}
	e := q.endpoints[path]
	if e == nil {
		e = &endpoint{}
		q.endpoints[path] = e
	}
	now := q.Now()
	e.calls = slices.DeleteFunc(e.calls, func(t time.Time) bool { return now.Sub(t) >= time.Hour })
	h := w.Header()
	h.Set("X-RateLimit-Limit", strconv.Itoa(q.CallsPerHour))
	h.Set("X-RateLimit-Window-Sec", "3600")
	h.Set("X-Concurrency-Limit-Limit", strconv.Itoa(q.Concurrent))
	h.Set("X-Concurrency-Limit-Running", strconv.Itoa(e.running))
	if e.running >= q.Concurrent {
		q.fail(w, http.StatusConflict, "1960", fmt.Sprintf("This API cannot be run again until %d currently running API instance has finished.", e.running-q.Concurrent+1),
			map[string]string{"CALLS_TO_FINISH": strconv.Itoa(e.running - q.Concurrent + 1)})
		return nil, false
	}
	if len(e.calls) >= q.CallsPerHour {
		wait := int(e.calls[0].Add(time.Hour).Sub(now).Seconds()) + 1
		h.Set("X-RateLimit-Remaining", "0")
		h.Set("X-RateLimit-ToWait-Sec", strconv.Itoa(wait))
		q.fail(w, http.StatusConflict, "1965", fmt.Sprintf("This API cannot be run again for another %d hours, %d minutes and %d seconds.", wait/3600, wait/60%60, wait%60),
			map[string]string{"SECONDS_TO_WAIT": strconv.Itoa(wait)})
		return nil, false
	}
	e.calls = append(e.calls, now)
	e.running++
	h.Set("X-RateLimit-Remaining", strconv.Itoa(q.CallsPerHour-len(e.calls)))
	h.Set("X-RateLimit-ToWait-Sec", "0")
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		e.running--
	}, true
}

// write ignores a client that has gone away.
func (q *Qualys) write(w io.Writer, s string) { _, _ = io.WriteString(w, s) }

// fail answers a SIMPLE_RETURN as Qualys does.
func (q *Qualys) fail(w http.ResponseWriter, status int, code, text string, items map[string]string) {
	w.Header().Set("Content-Type", "text/xml;charset=UTF-8")
	now := q.dated(w)
	w.WriteHeader(status)
	x := &xmlWriter{w: w, buf: []byte("<!DOCTYPE SIMPLE_RETURN SYSTEM \"https://" + q.LinkHost + "/api/2.0/simple_return.dtd\">\n")}
	x.open("SIMPLE_RETURN")
	x.open("RESPONSE")
	x.date("DATETIME", now)
	x.leaf("CODE", code)
	x.leaf("TEXT", text)
	if len(items) > 0 {
		x.open("ITEM_LIST")
		for key, value := range items {
			x.open("ITEM")
			x.leaf("KEY", key)
			x.leaf("VALUE", value)
			x.close("ITEM")
		}
		x.close("ITEM_LIST")
	}
	x.close("RESPONSE")
	x.close("SIMPLE_RETURN")
	x.flush()
}

// params reads the parameters; of a repeated one the last value counts.
func (q *Qualys) params(w http.ResponseWriter, r *http.Request) (url.Values, bool) {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		q.fail(w, http.StatusBadRequest, "1908", "method not allowed", nil)
		return nil, false
	}
	if err := r.ParseForm(); err != nil {
		q.fail(w, http.StatusBadRequest, "1905", "malformed parameters", nil)
		return nil, false
	}
	params := url.Values{}
	for name, values := range r.Form {
		params.Set(name, values[len(values)-1])
	}
	return params, true
}

func (q *Qualys) detections(w http.ResponseWriter, r *http.Request) {
	params, ok := q.params(w, r)
	if !ok {
		return
	}
	q.mu.Lock()
	q.log = append(q.log, params)
	q.mu.Unlock()
	f, bad := parseFilter(params)
	if bad != nil {
		q.fail(w, http.StatusBadRequest, bad.code, bad.text, nil)
		return
	}
	w.Header().Set("Content-Type", "text/xml;charset=UTF-8")
	now := q.dated(w)
	var out io.Writer = w
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		w.Header().Set("Content-Encoding", "gzip")
		gz, _ := gzip.NewWriterLevel(w, gzip.BestSpeed) // the level is valid
		defer gz.Close()                                //nolint:errcheck // a client that has gone away
		out = gz
	}
	q.Subscription.Write(out, f, now, "https://"+q.LinkHost+"/api/"+q.Version+detectionPath, params)
}

// A Filter is a checked detection request.
type Filter struct {
	shows
	limit                    int
	idMin, idMax             uint64
	processedAfter           time.Time
	processedBefore          time.Time
	updatedSince             time.Time
	status                   map[string]bool
	severities               map[string]bool
	types                    map[string]bool
	ids                      idList
	byTags                   tagFilter
	includeIgnored, disabled bool
	infos                    bool
}

type refusal struct{ code, text string }

// simulated parameters, and those that the real API knows beyond.
var (
	flagParams   = []string{"show_results", "show_igs", "show_reopened_info", "show_asset_id", "show_tags", "show_qds", "show_qds_factors", "show_cloud_tags", "include_ignored", "include_disabled", "suppress_duplicated_data_from_csv", "filter_superseded_qids", "echo_request", "compliance_enabled"}
	otherParams  = []string{"action", "output_format", "truncation_limit", "id_min", "id_max", "ids", "status", "severities", "include_vuln_type", "host_metadata", "vm_processed_after", "vm_processed_before", "detection_updated_since", "use_tags", "tag_set_by", "tag_set_include", "tag_set_exclude"}
	tagParams    = []string{"use_tags", "tag_set_by", "tag_set_include", "tag_set_exclude"}
	unsimulated  = []string{"ips", "ipv6", "ag_ids", "ag_titles", "network_ids", "network_name", "os_pattern", "qids", "host_metadata_fields", "cloud_tag_fields", "detection_updated_before", "detection_processed_after", "detection_processed_before", "max_days_since_detection_updated", "detection_last_tested_since", "detection_last_tested_before", "arf_kernel_filter", "arf_service_filter", "arf_config_filter", "active_kernels_only", "qds_min", "qds_max", "vm_scan_since", "no_vm_scan_since", "max_days_since_last_vm_scan", "vm_scan_date_after", "vm_scan_date_before", "vm_auth_scan_date_after", "vm_auth_scan_date_before", "tag_include_selector", "tag_exclude_selector", "include_search_list_ids", "include_search_list_titles", "exclude_search_list_ids", "exclude_search_list_titles"}
	dateForm     = regexp.MustCompile(`^\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\dZ)?$`)
	knownStatus  = []string{"New", "Active", "Re-Opened", "Fixed"}
	defaultShown = []string{"New", "Active", "Re-Opened"}
)

func parseFilter(p url.Values) (Filter, *refusal) {
	f := Filter{limit: 1000, shows: shows{results: true}, idMax: 1 << 62}
	for name, v := range p {
		value := v[0]
		switch {
		case slices.Contains(flagParams, name):
			if value != "0" && value != "1" {
				return f, &refusal{"1905", fmt.Sprintf("parameter %s has invalid value: %s", name, value)}
			}
		case slices.Contains(unsimulated, name):
			return f, &refusal{"1922", fmt.Sprintf("parameter %s is not simulated", name)}
		case !slices.Contains(otherParams, name):
			return f, &refusal{"1901", fmt.Sprintf("Unrecognized parameter(s): %s", name)}
		case value == "":
			return f, &refusal{"1905", fmt.Sprintf("parameter %s has invalid value: ", name)}
		}
	}
	if p.Get("action") != "list" {
		return f, &refusal{"1903", "Missing required parameter(s): action"}
	}
	if v := p.Get("output_format"); v != "" && v != "XML" {
		return f, &refusal{"1922", "only XML is simulated"}
	}
	if p.Get("show_qds_factors") == "1" && p.Get("show_qds") != "1" {
		return f, &refusal{"1907", "show_qds_factors needs show_qds=1"}
	}
	f.results = p.Get("show_results") != "0"
	f.reopened = p.Get("show_reopened_info") == "1"
	f.assetID, f.tags = p.Get("show_asset_id") == "1", p.Get("show_tags") == "1"
	f.qds, f.factors = p.Get("show_qds") == "1", p.Get("show_qds_factors") == "1"
	f.cloudTags, f.metadata = p.Get("show_cloud_tags") == "1", p.Get("host_metadata") != ""
	f.includeIgnored, f.disabled = p.Get("include_ignored") == "1", p.Get("include_disabled") == "1"
	f.infos = p.Get("show_igs") == "1"
	if bad := parseDates(p, map[string]*time.Time{"vm_processed_after": &f.processedAfter, "vm_processed_before": &f.processedBefore, "detection_updated_since": &f.updatedSince}); bad != nil {
		return f, bad
	}
	if bad := parseIDs(p, map[string]*uint64{"id_min": &f.idMin, "id_max": &f.idMax}); bad != nil {
		return f, bad
	}
	if v := p.Get("truncation_limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 || n > 1_000_000 {
			return f, &refusal{"1905", fmt.Sprintf("parameter truncation_limit has invalid value: %s", v)}
		}
		f.limit = n
	}
	return f.lists(p)
}

func parseDates(p url.Values, params map[string]*time.Time) *refusal {
	for name, to := range params {
		v := p.Get(name)
		if v == "" {
			continue
		}
		t, err := time.Parse(timeForm, v)
		if err != nil {
			t, err = time.Parse(time.DateOnly, v)
		}
		if err != nil || !dateForm.MatchString(v) {
			return &refusal{"1905", fmt.Sprintf("parameter %s has invalid value: %s (invalid date)", name, v)}
		}
		*to = t
	}
	return nil
}

func parseIDs(p url.Values, params map[string]*uint64) *refusal {
	for name, to := range params {
		if v := p.Get(name); v != "" {
			n, err := strconv.ParseUint(v, 10, 63)
			if err != nil || n == 0 {
				return &refusal{"1905", fmt.Sprintf("parameter %s has invalid value: %s (not a positive integer)", name, v)}
			}
			*to = n
		}
	}
	return nil
}

// lists reads the parameters that are lists.
func (f Filter) lists(p url.Values) (Filter, *refusal) {
	f.status = set(defaultShown)
	if v := p.Get("status"); v != "" {
		f.status = set(strings.Split(v, ","))
		for s := range f.status {
			if !slices.Contains(knownStatus, s) {
				return f, &refusal{"1905", fmt.Sprintf("parameter status has invalid value: %s", s)}
			}
		}
	}
	if v := p.Get("severities"); v != "" {
		f.severities = map[string]bool{}
		for part := range strings.SplitSeq(v, ",") {
			low, high, ranged := strings.Cut(part, "-")
			if !ranged {
				high = low
			}
			a, errA := strconv.Atoi(low)
			b, errB := strconv.Atoi(high)
			if errA != nil || errB != nil || a < 1 || b > 5 || a > b {
				return f, &refusal{"1905", fmt.Sprintf("parameter severities has invalid value: %s", part)}
			}
			for n := a; n <= b; n++ {
				f.severities[strconv.Itoa(n)] = true
			}
		}
	}
	switch v := p.Get("include_vuln_type"); v {
	case "":
	case "confirmed", "potential":
		f.types = set([]string{strings.ToUpper(v[:1]) + v[1:]})
	default:
		return f, &refusal{"1905", fmt.Sprintf("parameter include_vuln_type has invalid value: %s", v)}
	}
	var bad *refusal
	if f.ids, bad = parseIDList(p.Get("ids")); bad == nil {
		f.byTags, bad = parseTags(p)
	}
	return f, bad
}

// tagFilter chooses hosts by the names of their tags.
type tagFilter struct {
	on               bool
	include, exclude map[string]bool
}

func parseTags(p url.Values) (f tagFilter, bad *refusal) {
	f.on = p.Get("use_tags") == "1"
	switch {
	case p.Has("use_tags") && !f.on && p.Get("use_tags") != "0":
		return f, &refusal{"1905", "parameter use_tags has invalid value: " + p.Get("use_tags")}
	case !f.on:
		return f, nil
	case p.Get("tag_set_by") != "name":
		return f, &refusal{"1922", "only tag_set_by=name is simulated"}
	}
	if v := p.Get("tag_set_include"); v != "" {
		f.include = set(strings.Split(v, ","))
	}
	f.exclude = set(strings.Split(p.Get("tag_set_exclude"), ","))
	return f, nil
}

func (f tagFilter) has(tags []Tag) bool {
	wanted := f.include == nil
	for _, t := range tags {
		if f.exclude[t.Name] {
			return false
		}
		wanted = wanted || f.include[t.Name]
	}
	return wanted
}

// idList is the parameter ids: numbers and ranges; nil for all.
type idList []struct{ low, high uint64 }

func parseIDList(v string) (list idList, bad *refusal) {
	if v == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(v, ",") {
		first, last, isRange := strings.Cut(part, "-")
		low, err := strconv.ParseUint(first, 10, 63)
		high := low
		if isRange && err == nil {
			high, err = strconv.ParseUint(last, 10, 63)
		}
		if err != nil || low > high {
			return nil, &refusal{"1905", fmt.Sprintf("parameter ids has invalid value: %s (neither a positive integer nor a range: %s)", part, part)}
		}
		list = append(list, struct{ low, high uint64 }{low, high})
	}
	return list, nil
}

func (l idList) has(id uint64) bool {
	for _, r := range l {
		if id >= r.low && id <= r.high {
			return true
		}
	}
	return l == nil
}

func set(list []string) map[string]bool {
	m := map[string]bool{}
	for _, s := range list {
		m[s] = true
	}
	return m
}

// matches tells whether a host belongs to the answer, and host makes it.
func (s *Subscription) matches(index int, f Filter, now time.Time) bool {
	id := s.hostID(index)
	if id < f.idMin || id > f.idMax || !f.ids.has(id) || f.byTags.on && !f.byTags.has(s.host(index, now).Tags) {
		return false
	}
	at, ok := s.Listed(index, now)
	return ok && !at.Before(f.processedAfter) && (f.processedBefore.IsZero() || at.Before(f.processedBefore)) && !at.Before(f.updatedSince)
}

func (f Filter) wants(d Detection) bool {
	listed := f.status[d.Status]
	if d.Type == typeInfo {
		listed = f.infos
	}
	return listed && (f.severities == nil || f.severities[d.Severity]) && (f.types == nil || f.types[d.Type]) &&
		(f.includeIgnored || !d.Ignored) && (f.disabled || !d.Disabled)
}

// Write writes the answer to a request.
func (s *Subscription) Write(w io.Writer, f Filter, now time.Time, link string, params url.Values) {
	x := &xmlWriter{w: w, buf: fmt.Appendf(nil, "<?xml version=\"1.0\" encoding=\"UTF-8\" ?>\n<!DOCTYPE HOST_LIST_VM_DETECTION_OUTPUT SYSTEM \"%sdtd/output.dtd\">\n<!-- This report was generated with an evaluation version of Qualys //-->\n", link)}
	x.open("HOST_LIST_VM_DETECTION_OUTPUT")
	x.open("RESPONSE")
	x.date("DATETIME", now)
	n, listed, more := 0, false, uint64(0)
	for index := range s.Hosts {
		if x.err != nil {
			return
		}
		if !s.matches(index, f, now) {
			continue
		}
		h := s.host(index, now)
		begun := false
		for d := range h.Each() {
			if !f.wants(d) {
				continue
			}
			if f.limit > 0 && n == f.limit {
				more = h.ID
				break
			}
			if !listed {
				x.open("HOST_LIST")
				listed = true
			}
			if !begun {
				x.host(h, f.shows)
				x.open("DETECTION_LIST")
				begun = true
			}
			x.detection(d, f.shows)
		}
		if more != 0 {
			break
		}
		if begun {
			x.close("DETECTION_LIST")
			x.close("HOST")
			n++
		}
	}
	if listed {
		x.close("HOST_LIST")
	}
	if more != 0 {
		next := url.Values{}
		for name, v := range params {
			next[name] = v
		}
		next.Set("id_min", strconv.FormatUint(more, 10))
		x.open("WARNING")
		x.leaf("CODE", "1980")
		x.leaf("TEXT", fmt.Sprintf("%d record limit exceeded. Use URL to get next batch of results.", f.limit))
		x.cdata("URL", link+"?"+next.Encode())
		x.close("WARNING")
	}
	x.close("RESPONSE")
	x.close("HOST_LIST_VM_DETECTION_OUTPUT")
	x.buf = append(x.buf, "<!-- CONFIDENTIAL AND PROPRIETARY INFORMATION. //-->\n"...)
	x.flush()
}

// Expected walks the detections that match a request with the connector's
// default parameters, as of now.
func (s *Subscription) Expected(after, now time.Time, visit func(Host, Detection)) {
	s.expected(after, now, false, visit)
}

// ExpectedWithInfo walks the information gathered as well.
func (s *Subscription) ExpectedWithInfo(after, now time.Time, visit func(Host, Detection)) {
	s.expected(after, now, true, visit)
}

func (s *Subscription) expected(after, now time.Time, infos bool, visit func(Host, Detection)) {
	f := Filter{status: set(knownStatus), includeIgnored: true, disabled: true, infos: infos, idMax: 1 << 62, processedAfter: after}
	for index := range s.Hosts {
		if !s.matches(index, f, now) {
			continue
		}
		h := s.host(index, now)
		for d := range h.Each() {
			if f.wants(d) {
				visit(h, d)
			}
		}
	}
}
