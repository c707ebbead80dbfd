package simulator

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
)

// Knowledge is a KnowledgeBase made from a seed. An entry's content is a
// function of its index and of the edits that are visible.
type Knowledge struct {
	Seed uint64
	// Size in entries, without those that edits publish.
	Size int
	// WithoutCVSS is a subscription that has CVSS switched off.
	WithoutCVSS bool
	// Refused is a subscription that may not download it.
	Refused bool
	// EditEvery is how often Qualys edits each entry by itself, and Delay how long
	// that takes to show. Zero: never.
	EditEvery, Delay time.Duration
	// Pause, if not nil, is called behind each keep-alive comment of an answer.
	Pause func()

	mu    sync.Mutex
	edits map[int][]Edit
	extra int // entries that edits publish
}

// EditKind is what an edit does.
type EditKind uint8

// The kinds of edits.
const (
	Changed EditKind = iota
	Disabled
	Removed
	Published // an entry with an index from Size on
)

// An Edit is a change of an entry. Qualys dates it At, and shows it from
// Visible on, hours later.
type Edit struct {
	Index       int
	Kind        EditKind
	At, Visible time.Time
}

// Edit adds edits.
func (k *Knowledge) Edit(edits ...Edit) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.edits == nil {
		k.edits = map[int][]Edit{}
	}
	for _, e := range edits {
		k.edits[e.Index] = append(k.edits[e.Index], e)
		k.extra = max(k.extra, e.Index+1-k.Size)
	}
}

// QID of the entry at an index; QIDs ascend, with gaps.
func (k *Knowledge) QID(index int) int {
	return 10_000 + index*30 + int(mix(k.Seed+2, uint64(index))%30)
}

// An Entry is an entry of the KnowledgeBase as it is shown.
type Entry struct {
	Index, QID, Revision          int
	Modified                      time.Time
	Title, Type, Severity         string
	Category                      string
	CVEs                          []string
	Patchable, Disabled           bool
	CVSS, CVSS3                   string
	Diagnosis, Consequence        string
	Solution                      string
	published, patched, customize time.Time
	r                             *rand.Rand
}

// Entry makes the entry at an index as it is shown at a time. It reports false
// if there is none.
func (k *Knowledge) Entry(index int, now time.Time) (Entry, bool) {
	e, ok := k.head(index, now)
	if ok {
		k.fill(&e)
	}
	return e, ok
}

// head makes what a request selects entries by.
func (k *Knowledge) head(index int, now time.Time) (Entry, bool) {
	e := Entry{Index: index, QID: k.QID(index), r: rand.New(rand.NewPCG(k.Seed+3, uint64(index)))}
	e.published = time.Date(1999, 1, 1, 8, 0, 0, 0, time.UTC).Add(time.Duration(e.r.IntN(26*365*24*3600)) * time.Second)
	e.Modified = e.published.Add(time.Duration(e.r.IntN(200*24*3600)) * time.Second)
	exists := index < k.Size
	var edited time.Time
	own := 0 // revisions that Qualys has made by itself
	if k.EditEvery > 0 {
		phase := time.Duration(mix(k.Seed+4, uint64(index))%uint64(k.EditEvery/time.Second)) * time.Second
		edited = now.Add(-k.Delay - phase).Truncate(k.EditEvery).Add(phase).UTC()
		own = int(edited.Unix() / int64(k.EditEvery/time.Second))
		e.Modified, e.Revision = edited, own
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, edit := range k.edits[index] {
		if edit.Visible.After(now) {
			continue
		}
		e.Revision++
		if edit.At.After(edited) {
			edited = edit.At
			e.Modified = edited.UTC()
			e.Revision -= own // nothing changes without its date
			own = 0
		}
		switch edit.Kind {
		case Disabled:
			e.Disabled = true
		case Removed:
			exists = false
		case Published:
			exists = true
		}
	}
	return e, exists
}

// Customized is when a user has changed the entry, as its row says; empty if
// nobody has.
func (e *Entry) Customized() string {
	if e.customize.IsZero() {
		return ""
	}
	return e.customize.Format(timeForm)
}

// Entries is the number of indexes that may have an entry.
func (k *Knowledge) Entries() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.Size + k.extra
}

var (
	categories = []string{"Windows", "Cisco", "CGI", "Debian", "Information gathering", "SUSE", "Local", "Büroanwendungen & Drucker"}
	products   = []string{"windows_server_2022", "ios_xe", "http_server", "openssl", "libreoffice", "größenrechner"}
	vendors    = []string{"microsoft", "cisco", "apache", "openssl", "none", "multi-vendor"}
	intel      = map[int]string{2: "Exploit_Public", 5: "Easy_Exploit", 7: "Denial_of_Service", 8: "No_Patch", 11: "Wormable", 13: "Privilege_Escalation", 15: "Remote_Code_Execution", 18: "Cisa_Known_Exploited_Vulns"}
	sentences  = []string{
		"A vulnerability in the command line could allow an authenticated, local attacker to run commands with root privileges.",
		"The check matches the version retrieved by &quot;show version&quot; -&gt; see the vendor's <B>advisory</B>.",
		"Affected: Größe &lt; 3.2 and 東京 editions, all service packs.",
		"Note that the detection may fail if a firewall modifies one or more of these differences between scanner and host.",
		"An attacker who succeeds gains the rights of the logged-on user, may install programs, view, change or delete data.",
	}
)

// fill makes the content of an entry that has its head.
func (k *Knowledge) fill(e *Entry) {
	r, index, revision := e.r, e.Index, e.Revision
	e.Category = categories[r.IntN(len(categories))]
	e.Type = []string{"Vulnerability", "Potential Vulnerability", "Vulnerability or Potential Vulnerability", "Information Gathered"}[r.IntN(4)]
	e.Severity = strconv.Itoa(1 + r.IntN(5))
	e.Title = fmt.Sprintf("%s Security Update for %s (advisory %d)", e.Category, products[r.IntN(len(products))], index)
	if revision > 0 {
		e.Title += fmt.Sprintf(", revision %d", revision)
	}
	for range []int{0, 0, 1, 1, 1, 2, 3, 8, 40}[r.IntN(9)] {
		e.CVEs = append(e.CVEs, fmt.Sprintf("CVE-%d-%d", 2000+r.IntN(26), 1000+r.IntN(50000)))
	}
	if e.Patchable = r.IntN(3) > 0; e.Patchable {
		e.patched = e.published.Add(24 * time.Hour)
	}
	if r.IntN(50) == 0 {
		e.customize = e.Modified
	}
	if !k.WithoutCVSS && r.IntN(10) > 0 {
		e.CVSS = fmt.Sprintf("%d.%d", r.IntN(10), r.IntN(10))
		if r.IntN(3) > 0 {
			e.CVSS3 = fmt.Sprintf("%d.%d", r.IntN(10), r.IntN(10))
		}
	}
	e.Diagnosis = e.html(r, 4+r.IntN(12))
	e.Consequence = e.html(r, 1+r.IntN(2))
	e.Solution = e.html(r, 2+r.IntN(5)) + `<P>Patch:<BR>
Following are links for downloading patches to fix the vulnerabilities:
<P> <A HREF="https://vendor.example/advisory/` + strconv.Itoa(index) + `" TARGET="_blank">advisory</A></a>`
	if r.IntN(20) == 0 {
		e.Solution += "<TABLE BORDER=1><TR><TH>Product</TH><TH>Fixed in</TH></TR><TR><TD>a<TD>1.2</TR></TABLE><UL><LI>restart<LI>scan again</UL>"
	}
}

// html makes badly nested HTML as Qualys has it.
func (e *Entry) html(r *rand.Rand, n int) string {
	var b strings.Builder
	for range n {
		b.WriteString(sentences[r.IntN(len(sentences))])
		b.WriteString([]string{" ", "<P>\n\n", "<BR>", "<P>"}[r.IntN(4)])
	}
	return b.String()
}

const knowledgePath = "/fo/knowledge_base/vuln/"

// knowledgeFilter is a checked request.
type knowledgeFilter struct {
	details                          string
	ids                              idList
	low, high                        uint64
	after, before                    time.Time
	reasons, modules, disabled, logs bool
}

var (
	knowledgeFlags       = []string{"show_pci_reasons", "show_supported_modules_info", "show_disabled_flag", "show_qid_change_log", "echo_request"}
	knowledgeParams      = []string{"action", "details", "ids", "id_min", "id_max", "last_modified_after", "last_modified_before"}
	knowledgeUnsimulated = []string{"is_patchable", "last_modified_by_user_after", "last_modified_by_user_before", "last_modified_by_service_after", "last_modified_by_service_before", "published_after", "published_before", "code_modified_after", "code_modified_before", "discovery_method", "discovery_auth_types", "cve"}
)

func parseKnowledgeFilter(p url.Values) (knowledgeFilter, *refusal) {
	f := knowledgeFilter{details: "Basic", high: 1 << 62}
	for name, v := range p {
		value := v[0]
		switch {
		case slices.Contains(knowledgeFlags, name):
			if value != "0" && value != "1" {
				return f, &refusal{"1905", fmt.Sprintf("parameter %s has invalid value: %s", name, value)}
			}
		case slices.Contains(knowledgeUnsimulated, name):
			return f, &refusal{"1922", fmt.Sprintf("parameter %s is not simulated", name)}
		case !slices.Contains(knowledgeParams, name):
			return f, &refusal{"1901", fmt.Sprintf("Unrecognized parameter(s): %s", name)}
		case value == "":
			return f, &refusal{"1905", fmt.Sprintf("parameter %s has invalid value: ", name)}
		}
	}
	if p.Get("action") != "list" {
		return f, &refusal{"1903", "Missing required parameter(s): action"}
	}
	if v := p.Get("details"); v != "" {
		if f.details = v; v != "Basic" && v != "All" && v != "None" {
			return f, &refusal{"1905", "parameter details has invalid value: " + v}
		}
	}
	f.reasons, f.modules = p.Get("show_pci_reasons") == "1", p.Get("show_supported_modules_info") == "1"
	f.disabled, f.logs = p.Get("show_disabled_flag") == "1", p.Get("show_qid_change_log") == "1"
	if bad := parseDates(p, map[string]*time.Time{"last_modified_after": &f.after, "last_modified_before": &f.before}); bad != nil {
		return f, bad
	}
	if bad := parseIDs(p, map[string]*uint64{"id_min": &f.low, "id_max": &f.high}); bad != nil {
		return f, bad
	}
	var bad *refusal
	f.ids, bad = parseIDList(p.Get("ids"))
	return f, bad
}

func (f *knowledgeFilter) wants(qid uint64) bool {
	if qid < f.low || qid > f.high {
		return false
	}
	return f.ids.has(qid)
}

func (f *knowledgeFilter) matches(e *Entry) bool {
	return !e.Modified.Before(f.after) && (f.before.IsZero() || e.Modified.Before(f.before))
}

// knowledge answers a request for the KnowledgeBase.
func (q *Qualys) knowledge(w http.ResponseWriter, r *http.Request) {
	params, ok := q.params(w, r)
	if !ok {
		return
	}
	q.mu.Lock()
	q.knowledgeLog = append(q.knowledgeLog, params)
	q.mu.Unlock()
	k := q.Subscription.Knowledge
	if k == nil || k.Refused {
		q.fail(w, http.StatusForbidden, "2012", "User does not have permission to access this API.", nil)
		return
	}
	f, bad := parseKnowledgeFilter(params)
	if bad != nil {
		q.fail(w, http.StatusBadRequest, bad.code, bad.text, nil)
		return
	}
	w.Header().Set("Content-Type", "text/xml;charset=UTF-8")
	now := q.dated(w)
	var out io.Writer = w
	flush := func() { _ = http.NewResponseController(w).Flush() } // a client that has gone away
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		w.Header().Set("Content-Encoding", "gzip")
		gz, _ := gzip.NewWriterLevel(w, gzip.BestSpeed) // the level is valid
		defer gz.Close()                                //nolint:errcheck // a client that has gone away
		out = gz
		plain := flush
		flush = func() {
			_ = gz.Flush()
			plain()
		}
	}
	k.write(out, flush, f, now, "https://"+q.LinkHost+"/api/"+q.KnowledgeVersion+knowledgePath)
}

const knowledgeRoot = "KNOWLEDGE_BASE_VULN_LIST_OUTPUT"

// keepAlives is how many comments a slow answer begins with.
const keepAlives = 3

func (k *Knowledge) write(w io.Writer, flush func(), f knowledgeFilter, now time.Time, link string) {
	x := &xmlWriter{w: w, buf: fmt.Appendf(nil, "<?xml version=\"1.0\" encoding=\"UTF-8\" ?>\n<!DOCTYPE %s SYSTEM \"%sknowledge_base_vuln_list_output.dtd\">\n", knowledgeRoot, link)}
	x.open(knowledgeRoot)
	x.open("RESPONSE")
	x.date("DATETIME", now)
	for range keepAlives {
		x.buf = append(x.buf, "<!-- keep-alive for "+knowledgeRoot+"  -->\n"...)
		x.flush()
		flush()
		if k.Pause != nil {
			k.Pause()
		}
	}
	listed := ""
	for index := range k.Entries() {
		if x.err != nil {
			return
		}
		if !f.wants(uint64(k.QID(index))) {
			continue
		}
		e, ok := k.head(index, now)
		if !ok || !f.matches(&e) {
			continue
		}
		if listed == "" {
			listed = map[bool]string{true: "ID_SET", false: "VULN_LIST"}[f.details == "None"]
			x.open(listed)
		}
		if f.details == "None" {
			x.number("ID", e.QID)
			continue
		}
		k.fill(&e)
		x.entry(&e, &f)
	}
	if listed != "" {
		x.close(listed)
	}
	x.close("RESPONSE")
	x.close(knowledgeRoot)
	x.buf = append(x.buf, "<!-- CONFIDENTIAL AND PROPRIETARY INFORMATION. //-->\n<!-- keep-alive for "+knowledgeRoot+"  -->\n"...)
	x.flush()
}

// entry writes a VULN in the order of the DTD (version 2.0), with the elements
// of 4.0 where a recorded answer has them.
func (x *xmlWriter) entry(e *Entry, f *knowledgeFilter) {
	r := e.r
	x.open("VULN")
	x.number("QID", e.QID)
	x.leaf("VULN_TYPE", e.Type)
	x.leaf("SEVERITY_LEVEL", e.Severity)
	x.cdata("TITLE", e.Title)
	x.leaf("CATEGORY", e.Category)
	x.leaf("TECHNOLOGY", "operating-system")
	if !e.customize.IsZero() {
		x.open("LAST_CUSTOMIZATION")
		x.date("DATETIME", e.customize)
		x.leaf("USER_LOGIN", "acme_ab")
		x.close("LAST_CUSTOMIZATION")
	}
	x.date("LAST_SERVICE_MODIFICATION_DATETIME", e.Modified)
	x.date("PUBLISHED_DATETIME", e.published)
	x.date("CODE_MODIFIED_DATETIME", e.published)
	x.date("PATCH_PUBLISHED_DATE", e.patched)
	if r.IntN(12) == 0 && f.details == "All" {
		x.open("BUGTRAQ_LIST")
		x.reference("BUGTRAQ", strconv.Itoa(e.Index), "http://www.securityfocus.com/bid/"+strconv.Itoa(e.Index))
		x.close("BUGTRAQ_LIST")
	}
	x.leaf("PATCHABLE", flag(e.Patchable))
	if f.details == "Basic" {
		x.close("VULN")
		return
	}
	x.open("SOFTWARE_LIST")
	for range 1 + r.IntN(3) {
		x.open("SOFTWARE")
		x.cdata("PRODUCT", products[r.IntN(len(products))])
		x.cdata("VENDOR", vendors[r.IntN(len(vendors))])
		x.close("SOFTWARE")
	}
	x.close("SOFTWARE_LIST")
	x.open("VENDOR_REFERENCE_LIST")
	x.reference("VENDOR_REFERENCE", fmt.Sprintf("KB%d", 4_000_000+e.Index), fmt.Sprintf("https://vendor.example/kb/%d?a=1&b=2", e.Index))
	x.close("VENDOR_REFERENCE_LIST")
	if len(e.CVEs) > 0 {
		x.open("CVE_LIST")
		for _, cve := range e.CVEs {
			x.reference("CVE", cve, "http://cve.mitre.org/cgi-bin/cvename.cgi?name="+cve)
		}
		x.close("CVE_LIST")
	}
	x.cdata("DIAGNOSIS", e.Diagnosis)
	x.cdata("CONSEQUENCE", e.Consequence)
	x.cdata("SOLUTION", e.Solution)
	x.assessment(e, f)
	x.close("VULN")
}

// assessment writes what follows the texts of an entry.
func (x *xmlWriter) assessment(e *Entry, f *knowledgeFilter) {
	r := e.r
	if r.IntN(20) == 0 {
		x.open("COMPLIANCE_LIST")
		x.open("COMPLIANCE")
		x.leaf("TYPE", "HIPAA")
		x.leaf("SECTION", "164.308")
		x.cdata("DESCRIPTION", "Security awareness & training")
		x.close("COMPLIANCE")
		x.close("COMPLIANCE_LIST")
	}
	if r.IntN(6) == 0 {
		x.correlation(r)
	}
	if e.CVSS != "" {
		x.open("CVSS")
		x.indent()
		x.buf = append(append(append(x.buf, `<BASE source="service">`...), e.CVSS...), "</BASE>\n"...)
		x.leaf("TEMPORAL", e.CVSS)
		x.leaf("VECTOR_STRING", "CVSS:2.0/AV:N/AC:L/Au:N/C:P/I:P/A:P/E:U/RL:OF/RC:C")
		x.open("ACCESS")
		x.leaf("VECTOR", "3")
		x.leaf("COMPLEXITY", "1")
		x.close("ACCESS")
		x.close("CVSS")
	}
	if e.CVSS3 != "" {
		x.open("CVSS_V3")
		x.leaf("BASE", e.CVSS3)
		x.leaf("VECTOR_STRING", "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H/E:U/RL:O/RC:C")
		x.leaf("CVSS3_VERSION", "3.1")
		x.close("CVSS_V3")
	}
	x.leaf("PCI_FLAG", flag(r.IntN(2) == 0))
	if f.reasons {
		x.open("PCI_REASONS")
		x.cdata("PCI_REASON", "The QID adheres to the PCI requirements based on the CVSS basescore.")
		x.close("PCI_REASONS")
	}
	if n := r.IntN(4); n > 0 {
		x.open("THREAT_INTELLIGENCE")
		for _, id := range []int{2, 8, 13, 15, 18}[:n] {
			x.attrCDATA("THREAT_INTEL", "id", strconv.Itoa(id), intel[id])
		}
		x.close("THREAT_INTELLIGENCE")
	}
	if f.modules {
		x.leaf("SUPPORTED_MODULES", "VM,CA-Windows Agent,WAS")
	}
	x.open("DISCOVERY")
	x.leaf("REMOTE", flag(r.IntN(2) == 0))
	x.open("AUTH_TYPE_LIST")
	x.leaf("AUTH_TYPE", "Unix")
	x.leaf("AUTH_TYPE", "Windows")
	x.close("AUTH_TYPE_LIST")
	x.leaf("ADDITIONAL_INFO", "Patch Available, Exploit Available")
	x.close("DISCOVERY")
	if f.disabled {
		x.leaf("IS_DISABLED", flag(e.Disabled))
	}
	if f.logs {
		x.open("CHANGE_LOG_LIST")
		x.open("CHANGE_LOG_INFO")
		x.date("CHANGE_DATE", e.Modified)
		x.cdata("COMMENTS", "Detection logic updated.")
		x.close("CHANGE_LOG_INFO")
		x.close("CHANGE_LOG_LIST")
	}
}

func (x *xmlWriter) reference(name, id, link string) {
	x.open(name)
	x.cdata("ID", id)
	x.cdata("URL", link)
	x.close(name)
}

func (x *xmlWriter) correlation(r *rand.Rand) {
	x.open("CORRELATION")
	x.open("EXPLOITS")
	for _, source := range []string{"nvd", "The Exploit-DB"}[:1+r.IntN(2)] {
		x.open("EXPLT_SRC")
		x.cdata("SRC_NAME", source)
		x.open("EXPLT_LIST")
		for range 1 + r.IntN(3) {
			x.open("EXPLT")
			x.cdata("REF", fmt.Sprintf("CVE-2020-%d", 1000+r.IntN(9000)))
			x.cdata("DESC", "Remote code execution <proof of concept>")
			x.cdata("LINK", "https://exploit.example/?id=1&x=2")
			x.close("EXPLT")
		}
		x.close("EXPLT_LIST")
		x.close("EXPLT_SRC")
	}
	x.close("EXPLOITS")
	x.open("MALWARE")
	x.open("MW_SRC")
	x.cdata("SRC_NAME", "Trend Micro")
	x.open("MW_LIST")
	x.open("MW_INFO")
	x.cdata("MW_ID", "TROJ_AGENT."+strconv.Itoa(r.IntN(999)))
	x.cdata("MW_TYPE", "Trojan")
	x.cdata("MW_RATING", "Low")
	x.close("MW_INFO")
	x.close("MW_LIST")
	x.close("MW_SRC")
	x.close("MALWARE")
	x.close("CORRELATION")
}
