package simulator_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/simulator"
)

const base = "/api/5.0/fo/asset/host/vm/detection/"

func get(t *testing.T, server *httptest.Server, path string, change func(*http.Request)) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, server.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("u", "p")
	req.Header.Set("X-Requested-With", "test")
	if change != nil {
		change(req)
	}
	c := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(body)
}

func start(t *testing.T, hosts, detections int) (*simulator.Qualys, *httptest.Server) {
	t.Helper()
	q := simulator.NewQualys(simulator.NewSubscription(3, hosts, detections), "u", "p")
	server := httptest.NewServer(q)
	t.Cleanup(server.Close)
	return q, server
}

// It refuses what the real one refuses, in the same form.
func TestRefusals(t *testing.T) {
	_, server := start(t, 5, 2)
	for name, c := range map[string]struct {
		path   string
		change func(*http.Request)
		status int
		want   string
	}{
		"no trailing slash":   {path: strings.TrimSuffix(base, "/"), status: 301, want: "301 Moved"},
		"bad login":           {path: base + "?action=list", change: func(r *http.Request) { r.SetBasicAuth("u", "x") }, status: 401, want: "<CODE>2000</CODE>"},
		"no requested-with":   {path: base + "?action=list", change: func(r *http.Request) { r.Header.Del("X-Requested-With") }, status: 400, want: "X-Requested-With"},
		"dead version":        {path: "/api/2.0/fo/asset/host/vm/detection/?action=list", status: 404},
		"unknown parameter":   {path: base + "?action=list&show_trurisk=1", status: 400, want: "<CODE>1901</CODE>"},
		"case of a parameter": {path: base + "?action=list&Status=New", status: 400, want: "<CODE>1901</CODE>"},
		"no action":           {path: base, status: 400, want: "<CODE>1903</CODE>"},
		"empty parameter":     {path: base + "?action=list&id_min=", status: 400, want: "<CODE>1905</CODE>"},
		"date with offset":    {path: base + "?action=list&vm_processed_after=2026-01-01T00:00:00%2B01:00", status: 400, want: "<CODE>1905</CODE>"},
		"date with fraction":  {path: base + "?action=list&vm_processed_after=2026-01-01T00:00:00.5Z", status: 400, want: "<CODE>1905</CODE>"},
		"bad flag":            {path: base + "?action=list&show_tags=yes", status: 400, want: "show_tags"},
		"bad id":              {path: base + "?action=list&ids=abc123", status: 400, want: "neither a positive integer nor a range: abc123"},
		"bad status":          {path: base + "?action=list&status=Closed", status: 400, want: "<CODE>1905</CODE>"},
		"bad severity":        {path: base + "?action=list&severities=3-9", status: 400, want: "<CODE>1905</CODE>"},
		"long query":          {path: base + "?action=list&ids=" + strings.Repeat("1,", 5000), status: 414, want: "414"},
	} {
		t.Run(name, func(t *testing.T) {
			status, header, body := get(t, server, c.path, c.change)
			if status != c.status || !strings.Contains(body, c.want) {
				t.Errorf("%d %s\nwant %d %s", status, body, c.status, c.want)
			}
			if strings.Contains(c.want, "CODE") {
				validate(t, "simple_return.dtd", body)
			}
			if status == 301 && !strings.HasPrefix(header.Get("Location"), "http://") {
				t.Errorf("Location %s", header.Get("Location"))
			}
		})
	}
}

const kbBase = "/api/4.0/fo/knowledge_base/vuln/"

// The KnowledgeBase's answers are what the DTD allows, less the elements of
// later versions, and what is asked for.
func TestKnowledge(t *testing.T) {
	q, server := start(t, 1, 1)
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	q.Now = func() time.Time { return now }
	k := &simulator.Knowledge{Seed: 1, Size: 120}
	q.Subscription.Knowledge = k
	newer := regexp.MustCompile(`(?m)^\s*<(TECHNOLOGY|CODE_MODIFIED_DATETIME|PATCH_PUBLISHED_DATE)>.*\n`)
	count := func(query, pattern string) int {
		t.Helper()
		status, _, body := get(t, server, kbBase+"?action=list&"+query, nil)
		if status != 200 || strings.Count(body, "<!-- keep-alive for") != 4 {
			t.Fatal(status, body)
		}
		if !strings.Contains(query, "Basic") {
			validate(t, "knowledge_base_vuln_list_output.dtd", newer.ReplaceAllString(body, ""))
		}
		return len(regexp.MustCompile(pattern).FindAllString(body, -1))
	}
	all := "details=All&show_pci_reasons=1&show_supported_modules_info=1&show_disabled_flag=1&show_qid_change_log=1"
	for _, c := range []struct {
		query, pattern string
		want           int
	}{
		{all, "<VULN>", 120}, {all, "<IS_DISABLED>0", 120}, {all, "<CHANGE_LOG_INFO>", 120},
		{"details=None", "<ID>", 120}, {"details=None", "VULN>", 0},
		{"details=Basic", "<VULN>", 120}, {"details=Basic", "<DIAGNOSIS>", 0}, {"details=All", "<IS_DISABLED>", 0},
		{fmt.Sprintf("details=None&id_min=%d&id_max=%d", k.QID(10), k.QID(19)), "<ID>", 10},
		{fmt.Sprintf("details=None&ids=%d,%d-%d,1", k.QID(3), k.QID(10), k.QID(12)), "<ID>", 4},
		{"details=None&ids=1", "ID_SET", 0},
		{"details=None&last_modified_after=2026-10-01", "<ID>", 0},
	} {
		if got := count(c.query, c.pattern); got != c.want {
			t.Errorf("%s: %d times %s, want %d", c.query, got, c.pattern, c.want)
		}
	}
	k.Edit(simulator.Edit{Index: 5, At: now, Visible: now.Add(9 * time.Hour)}, simulator.Edit{Index: 6, Kind: simulator.Removed, At: now, Visible: now}, simulator.Edit{Index: 120, Kind: simulator.Published, At: now, Visible: now},
		simulator.Edit{Index: 7, Kind: simulator.Disabled, At: now, Visible: now})
	if got := count("details=None&last_modified_after=2026-10-01", "<ID>"); got != 2 {
		t.Errorf("%d entries changed, want the new and the disabled one", got)
	}
	now = now.Add(9 * time.Hour)
	if got := count("details=None&last_modified_after=2026-10-01", "<ID>"); got != 3 {
		t.Errorf("%d entries changed, want the late one too", got)
	}
	// It is late, and dated as if it were not.
	if got := count(fmt.Sprintf("details=All&ids=%d", k.QID(5)), "<LAST_SERVICE_MODIFICATION_DATETIME>2026-11-01T12:00:00Z<"); got != 1 {
		t.Error("the late edit has another date than its own")
	}
	if got := count(all, "<IS_DISABLED>1"); got != 1 {
		t.Errorf("%d disabled", got)
	}
	if got := count("details=None", "<ID>"); got != 120 {
		t.Errorf("%d entries, want one new and one less", got)
	}
	for query, want := range map[string]string{
		"details=All&truncation_limit=10": "<CODE>1901</CODE>", "details=Full": "<CODE>1905</CODE>", "id_min=": "<CODE>1905</CODE>",
		"ids=5-2": "<CODE>1905</CODE>", "last_modified_after=2026-10-01T00:00:00": "<CODE>1905</CODE>", "show_disabled_flag=yes": "<CODE>1905</CODE>",
	} {
		if status, _, body := get(t, server, kbBase+"?action=list&"+query, nil); status != 400 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", query, status, body)
		}
	}
	k.Refused = true
	if status, _, body := get(t, server, kbBase+"?action=list", nil); status != 403 || !strings.Contains(body, "<CODE>2012</CODE>") {
		t.Errorf("refused: %d %s", status, body)
	}
	k.Refused, k.WithoutCVSS = false, true
	if got := count("details=All", "CVSS"); got != 0 {
		t.Errorf("%d times CVSS", got)
	}
	// The limits are each endpoint's own.
	q.CallsPerHour = 1
	if status, _, _ := get(t, server, kbBase+"?action=list&details=None", nil); status != 409 {
		t.Errorf("over the limit: %d", status)
	}
	if status, _, _ := get(t, server, base+"?action=list", nil); status != 200 {
		t.Errorf("the other endpoint: %d", status)
	}
}

func TestLimits(t *testing.T) {
	q, server := start(t, 1, 1)
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	q.Now, q.CallsPerHour = func() time.Time { return now }, 2
	for n := range 2 {
		if status, h, body := get(t, server, base+"?action=list", nil); status != 200 || h.Get("X-RateLimit-Remaining") != fmt.Sprint(1-n) || h.Get("X-Concurrency-Limit-Limit") != "2" {
			t.Fatal(status, h, body)
		}
		now = now.Add(10 * time.Minute)
	}
	status, h, body := get(t, server, base+"?action=list", nil)
	if status != 409 || h.Get("X-RateLimit-ToWait-Sec") != "2401" || !strings.Contains(body, "<VALUE>2401</VALUE>") || !strings.Contains(body, "0 hours, 40 minutes and 1 seconds") {
		t.Error(status, h, body)
	}
	validate(t, "simple_return.dtd", body)
	now = now.Add(41 * time.Minute)
	if status, _, _ := get(t, server, base+"?action=list", nil); status != 200 {
		t.Errorf("after the window slid: %d", status)
	}
	q.Concurrent = 0
	if status, _, body = get(t, server, base+"?action=list", nil); status != 409 || !strings.Contains(body, "<CODE>1960</CODE>") {
		t.Error(status, body)
	}
}

// Pages partition the subscription, and every shape it writes is one that the
// DTD allows.
func TestPages(t *testing.T) {
	q, server := start(t, 37, 6)
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	q.Now = func() time.Time { return now }
	all := url.Values{"action": {"list"}, "truncation_limit": {"10"}, "status": {"New,Active,Re-Opened,Fixed"}, "show_asset_id": {"1"}, "show_tags": {"1"},
		"show_qds": {"1"}, "show_qds_factors": {"1"}, "host_metadata": {"all"}, "show_cloud_tags": {"1"}, "show_reopened_info": {"1"}, "include_ignored": {"1"}, "include_disabled": {"1"}}
	link := regexp.MustCompile(`id_min=(\d+)`)
	seen, pages := map[string]int{}, 0
	for {
		status, _, body := get(t, server, base+"?"+all.Encode(), nil)
		if status != 200 {
			t.Fatal(status, body)
		}
		validate(t, "host_list_vm_detection_output.RECONSTRUCTED.dtd", body)
		pages++
		for _, m := range regexp.MustCompile(`<UNIQUE_VULN_ID>(\d+)<`).FindAllStringSubmatch(body, -1) {
			seen[m[1]]++
		}
		_, warning, more := strings.Cut(body, "<WARNING>")
		if !more {
			break
		}
		if strings.Contains(warning, server.URL) {
			t.Error("the link names the host that answers; Qualys' do not")
		}
		all.Set("id_min", link.FindStringSubmatch(warning)[1])
	}
	want := 0
	q.Subscription.Expected(time.Time{}, now, func(_ simulator.Host, d simulator.Detection) {
		want++
		if seen[fmt.Sprint(d.UniqueID)] != 1 {
			t.Errorf("detection %d seen %d times", d.UniqueID, seen[fmt.Sprint(d.UniqueID)])
		}
	})
	if pages != 4 || want != len(seen) {
		t.Errorf("%d pages, %d detections of %d", pages, len(seen), want)
	}
	_, _, body := get(t, server, base+"?action=list&status=Fixed&severities=4-5&vm_processed_after=2026-11-01T00:00:00Z", nil)
	if strings.Contains(body, "<STATUS>New") || strings.Contains(body, "<SEVERITY>3") {
		t.Error("the filter lets others pass")
	}
}

func TestSameSeedSameSubscription(t *testing.T) {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	body := func() string {
		q, server := start(t, 5, 5)
		q.Now = func() time.Time { return now }
		_, _, b := get(t, server, base+"?action=list", nil)
		return b
	}
	if first := body(); first != body() {
		t.Error("two answers differ")
	}
}

// validate checks a document against a DTD of the reference, if it is there.
// It knows what these DTDs use: content models of names, and ANY.
func validate(t *testing.T, dtd, doc string) {
	t.Helper()
	dir := os.Getenv("QUALYS_SAMPLES")
	if dir == "" {
		dir = "../../../../shared/samples"
	}
	text, err := os.ReadFile(filepath.Join(dir, "..", "reference", "dtd", dtd))
	if err != nil {
		t.Logf("SKIPPED: the check against %s, which is not here", dtd)
		return
	}
	models := map[string]*regexp.Regexp{}
	text = regexp.MustCompile(`(?s)<!--.*?-->`).ReplaceAll(text, nil)
	for _, m := range regexp.MustCompile(`(?s)<!ELEMENT\s+(\S+)\s+(.*?)>`).FindAllStringSubmatch(string(text), -1) {
		model := strings.Join(strings.Fields(m[2]), "")
		switch {
		case model == "ANY":
			model = ".*"
		case strings.Contains(model, "#PCDATA"):
			model = ""
		default:
			model = regexp.MustCompile(`[A-Za-z0-9_.-]+`).ReplaceAllString(model, "(?:$0 )")
			model = strings.ReplaceAll(model, ",", "")
		}
		models[m[1]] = regexp.MustCompile("^(?:" + model + ")$")
	}
	d := xml.NewDecoder(bytes.NewReader([]byte(doc)))
	var names, children []string
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			if len(children) > 0 {
				children[len(children)-1] += tok.Name.Local + " "
			}
			names, children = append(names, tok.Name.Local), append(children, "")
		case xml.EndElement:
			last := len(names) - 1
			model := models[names[last]]
			if model == nil {
				t.Fatalf("%s declares no element %s", dtd, names[last])
			}
			if !model.MatchString(children[last]) {
				t.Fatalf("%s: element %s holds (%s), not %s", dtd, names[last], children[last], model)
			}
			names, children = names[:last], children[:last]
		}
	}
}

// The old API names columns as its reference page says.
func TestCollectorNamesColumnsByValues(t *testing.T) {
	for in, want := range map[string]string{
		`{"A":"x"}`:          `{"A_s":"x"}`,
		`{"A":"38170"}`:      `{"A_s":"38170"}`,
		`{"A":""}`:           `{"A_s":""}`,
		`{"A":1.5,"B":true}`: `{"A_d":1.5,"B_b":true}`,
		`{"A":null}`:         `{}`,
		`{"A":"3f2504e0-4f89-41d3-9a0c-0305e82c3301"}`:                 `{"A_g":"3f2504e0-4f89-41d3-9a0c-0305e82c3301"}`,
		`{"A":"57920D1FEEE527313658340BB1AB101A"}`:                     `{"A_g":"57920D1F-EEE5-2731-3658-340BB1AB101A"}`,
		`{"A":"57920d1feee527313658340bb1ab101"}`:                      `{"A_s":"57920d1feee527313658340bb1ab101"}`,
		`{"A":"2026-11-26T10:00:00Z"}`:                                 `{"A_t":"2026-11-26T10:00:00Z"}`,
		`{"A":"2026-11-26T10:00:00Z and more","IpAddress":"10.0.0.1"}`: `{"A_s":"2026-11-26T10:00:00Z and more","IPAddress":"10.0.0.1"}`,
	} {
		if got, _, err := simulator.CollectorRow([]byte(in)); err != nil || string(got) != want {
			t.Errorf("%s: got %s, %v, want %s", in, got, err, want)
		}
	}
}
