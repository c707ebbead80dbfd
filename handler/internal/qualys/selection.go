package qualys

import (
	"bytes"
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"qualys-sentinel/handler/internal/record"
)

// Types of a detection, as TYPE spells them.
const (
	Confirmed = "Confirmed"
	Potential = "Potential"
	Info      = "Info"
)

// What there is to choose among: types, severities, statuses.
var (
	Types      = []string{Confirmed, Potential, Info}
	Severities = []string{"1", "2", "3", "4", "5"}
	Statuses   = []string{"New", "Active", "Re-Opened", "Fixed"}
)

// A Selection chooses among the findings of an answer. Lists that are empty
// choose all. A finding that does not say, or says by a word that is not known, is
// chosen: it must not be lost for that.
type Selection struct {
	// Types, Severities and Statuses that are wanted, as the lists above spell them.
	Types, Severities, Statuses []string
	// Tags that are wanted, by name or by id: hosts that have any of them, as the
	// answer itself names them.
	Tags []string
}

// selecting are the parameters that choose among findings.
var selecting = []string{"severities", "status", "show_igs", "include_vuln_type"}

// WithoutSelection is a filter without what it chooses among findings.
func WithoutSelection(filter url.Values) url.Values {
	rest := url.Values{}
	for name, values := range filter {
		if !slices.Contains(selecting, name) {
			rest[name] = values
		}
	}
	return rest
}

// ask is s as request parameters, as far as they can choose: there is none for
// several types, and those for tags follow other rules.
func (s Selection) ask(p url.Values) {
	p.Del("include_vuln_type")
	p.Del("severities")
	if len(s.Severities) > 0 {
		p.Set("severities", strings.Join(s.Severities, ","))
	}
	p.Set("status", strings.Join(Statuses, ","))
	if len(s.Statuses) > 0 {
		p.Set("status", strings.Join(s.Statuses, ","))
	}
	if len(s.Tags) > 0 {
		p.Set("show_tags", "1") // they are chosen by what the answer says of the host
	}
	p.Set("show_igs", "0")
	if len(s.Types) == 0 || slices.Contains(s.Types, Info) {
		p.Set("show_igs", "1")
	}
}

// selectionOf is what request parameters choose among findings; ok is false if they
// do so by a word that is not known here.
func selectionOf(p url.Values) (s Selection, ok bool) {
	switch v := p.Get("include_vuln_type"); v {
	case "":
		s.Types = []string{Confirmed, Potential}
	case "confirmed":
		s.Types = []string{Confirmed}
	case "potential":
		s.Types = []string{Potential}
	default:
		return s, false
	}
	if p.Get("show_igs") == "1" {
		s.Types = append(s.Types, Info)
	}
	for _, v := range listed(p.Get("status")) {
		if !slices.Contains(Statuses, v) {
			return s, false
		}
		s.Statuses = append(s.Statuses, v)
	}
	for _, part := range listed(p.Get("severities")) {
		low, high, ranged := strings.Cut(part, "-")
		if !ranged {
			high = low
		}
		a, errA := strconv.Atoi(low)
		b, errB := strconv.Atoi(high)
		if errA != nil || errB != nil || a < 1 || b > len(Severities) || a > b {
			return s, false
		}
		s.Severities = append(s.Severities, Severities[a-1:b]...)
	}
	return s, true
}

func listed(v string) []string {
	if v == "" {
		return nil
	}
	return strings.Split(v, ",")
}

// union is a list that chooses what either does.
func union(a, b []string) []string {
	if len(a) == 0 || len(b) == 0 {
		return nil
	}
	both := slices.Concat(a, b)
	slices.Sort(both)
	return slices.Compact(both)
}

// selection is what s chooses among findings; ok is false if only Qualys knows.
func (s *Detections) selection() (c Selection, ok bool) {
	if s.Select != nil {
		return *s.Select, true
	}
	return selectionOf(s.params(record.Query{}))
}

// Kin names what requests have in common that can be asked together: all but what
// they choose among findings.
func (s *Detections) Kin() string {
	p := s.params(record.Query{})
	for _, name := range append([]string{"truncation_limit", "show_results"}, selecting...) {
		p.Del(name)
	}
	if _, ok := s.selection(); !ok {
		p.Set("only", s.Identity())
	}
	return s.version() + " " + string(s.By) + " " + p.Encode()
}

// Together is one request in place of several of one kin: its pages hold what any of
// them would bring. Only tells whose it is.
func Together(requests []*Detections) *Detections {
	t := *requests[0]
	all, ok := t.selection()
	if !ok {
		return &t // all of them ask for the same
	}
	t.Filter = WithoutSelection(t.Filter)
	for _, d := range requests[1:] {
		c, _ := d.selection()
		all = Selection{
			Types: union(all.Types, c.Types), Severities: union(all.Severities, c.Severities), Statuses: union(all.Statuses, c.Statuses),
			Tags: slices.Concat(all.Tags, c.Tags), // anybody's: nobody chooses by them here
		}
		t.Results = t.Results || d.Results
		t.PageSize = max(t.PageLimit(), d.PageLimit())
	}
	t.Select = &all
	return &t
}

// Only passes on to sink what s chooses among the findings that come, which may be
// more than it has asked for.
func (s *Detections) Only(sink record.Sink) record.Sink {
	c, ok := s.selection()
	if !ok {
		return sink // Qualys has chosen
	}
	return &selected{
		Sink: sink, tags: c.Tags, tagColumn: s.schema.Index("HOST/TAGS/TAG"),
		choices: []choice{
			newChoice(s.schema.Index("DETECTION/TYPE"), Types, c.Types),
			newChoice(s.schema.Index("DETECTION/SEVERITY"), Severities, c.Severities),
			newChoice(s.schema.Index("DETECTION/STATUS"), Statuses, c.Statuses),
		},
	}
}

// selected passes on what a selection chooses.
type selected struct {
	record.Sink
	choices   []choice
	tags      []string
	tagColumn int
	tagged    bool // the host in work has a tag that is wanted
	looked    bool // and that is known
}

// Record implements record.Sink.
func (s *selected) Record(r *record.Record) error {
	for i := range s.choices {
		if !s.choices[i].takes(r) {
			return nil
		}
	}
	if len(s.tags) > 0 && !s.looked {
		s.tagged, s.looked = s.hasTag(r.Field(s.tagColumn)), true
	}
	if len(s.tags) > 0 && !s.tagged {
		return nil
	}
	return s.Sink.Record(r)
}

// Done implements record.Sink.
func (s *selected) Done(id uint64) error {
	s.looked = false
	return s.Sink.Done(id)
}

// choice is of one column.
type choice struct {
	column   int
	unwanted [][]byte
}

// newChoice takes all but what is known and not wanted.
func newChoice(column int, known, wanted []string) choice {
	c := choice{column: column}
	for _, v := range known {
		if len(wanted) > 0 && !slices.Contains(wanted, v) {
			c.unwanted = append(c.unwanted, []byte(v))
		}
	}
	return c
}

func (c *choice) takes(r *record.Record) bool {
	if len(c.unwanted) == 0 {
		return true
	}
	value := bytes.TrimSpace(r.Field(c.column).Head())
	for _, v := range c.unwanted {
		if bytes.EqualFold(v, value) {
			return false
		}
	}
	return true
}

// hasTag looks into the tags of a host, which are JSON objects joined by comma. Of
// tags that cannot be read any may be wanted.
func (s *selected) hasTag(f *record.Field) bool {
	doc := bytes.NewBufferString("[")
	if _, err := f.WriteTo(doc); err != nil {
		return true
	}
	doc.WriteByte(']')
	var tags []struct {
		ID   string `json:"TAG_ID"`
		Name string `json:"NAME"`
	}
	if json.Unmarshal(doc.Bytes(), &tags) != nil {
		return true
	}
	for _, t := range tags {
		for _, w := range s.tags {
			if w == t.ID || strings.EqualFold(w, t.Name) {
				return true
			}
		}
	}
	return false
}
