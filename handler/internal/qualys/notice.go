package qualys

import (
	"regexp"
	"strconv"
	"strings"
)

// verdict is what a warning without a code of an error and without a link may say of its
// answer.
type verdict uint8

const (
	// unknown: anything, such as that what has come is not all there is of it.
	unknown verdict = iota
	// perhapsMore: that records follow. What is behind the last is asked for; where that is
	// nothing, it was a notice.
	perhapsMore
	// notice: nothing. Answers of a superseded API version warn of the end of their
	// service.
	notice
)

// judge is positive: a notice of an end of service, each word of which is one that such
// notices have, says nothing of its answer. One with other words may say that more follows;
// one that speaks of what answers hold may say anything.
func judge(w warning) verdict {
	text := strings.ToLower(strings.Join(strings.Fields(w.text), " "))
	if !endOfService.MatchString(text) || strings.ContainsAny(w.url, "?&=") && !library.MatchString(w.url) {
		return unknown
	}
	if pagings.MatchString(text) {
		return unknown
	}
	text = addresses.ReplaceAllString(text, " api ")
	text = phrases.ReplaceAllString(products.ReplaceAllString(text, " api "), " ")
	switch {
	case ofContent.MatchString(text):
		return unknown
	case strings.ContainsFunc(text, func(r rune) bool { return r > 127 && !strings.ContainsRune("–—’“”…", r) }):
		return unknown // another language
	case onlyWords(text):
		return notice
	}
	return perhapsMore
}

var (
	endOfService = regexp.MustCompile(`\bend[ -]of[ -/]*(life|service|support)\b|\beo[ls]\b|\bdeprecat|\bsupersed|\bno longer (be )?supported|\b(be|is|was|been) (retired|decommissioned|discontinued)|\bsunset|\bobsolete`)
	// pagings are parameters that ask for more.
	pagings = regexp.MustCompile(`id_min|last_?id|page_?(no|number)?=`)
	// addresses are those of APIs and of documents.
	addresses = regexp.MustCompile(`(https?:/)?/(api|qps|msp|fo)/\S*|https?://\S+`)
	// products are names of APIs that have words of what they answer in them.
	products = regexp.MustCompile(`\b(host list (vm )?detection|host (vm )?detection|vm detection|detection list|detections? apis?|host list|asset host|vm host|knowledge ?base( vuln(erability)?)?( list)?|vulnerability management)( apis?\b|\b)`)
	// phrases are parts of such a notice whose words by themselves say something else.
	phrases = regexp.MustCompile(strings.Join([]string{
		`\b(continue|keep|start) (to use|using|to receive|receiving|to get|getting|to fetch|fetching|to work|working)( (host |vm )?(detections?|data|findings|results))?\b`,
		`\bto (fetch|get|retrieve|list|download|read) (host |vm )?(detections?|data|findings|results)\b`,
		`\b(avoid|prevent)(ing)? (any )?(errors?|failures?|interruptions?|disruptions?|issues?|problems?|downtime|outages?)( (of|in) (your )?(service|integrations?))?\b`,
		`\bonly (the )?((latest|newest|new|newer|current|api) )*(versions?|v) ?\d+(\.\d+)*\b`,
		`\b(the )?first (versions?|release)\b`,
		`\b(unable|cannot|fail(ed|ing)?) to (migrate|upgrade|switch|move)\b`,
		`\bcannot (migrate|upgrade|switch|move)\b`,
		`\b(better|improved|richer|enhanced|faster) (data|performance|results|responses?|quality)( and ((better|improved|richer|enhanced|faster) )?(data|performance|results|responses?|quality))*\b`,
		`\b(response|output)( format)? of (the )?((latest|newest|new|newer|current|api) )*(versions?|v) ?\d+(\.\d+)*\b`,
		`\bwithout (xml|csv|json) output\b`,
		`\b(will|would|may) (no longer )?(fail|stop working|be (rejected|refused)|(return|result in|receive|get) (errors?|no (data|results)))\b`,
		`\bno longer\b`,
		`\bnot all features\b`,
		`\b(for )?(any |more |further )*(information|details|questions)\b`,
		`\bend[ -]of[ -/]*`,
	}, "|"))
	// ofContent are words of what an answer holds, and of what becomes of it.
	ofContent = regexp.MustCompile(`\b(hosts?|assets?|detections?|findings?|vulnerabilit(y|ies)|records?|results?|entr(y|ies)|rows?|items?|ids?|qids?|lists?|listed|pages?|batch(es)?|data|scans?|responses?|answers?|output|rest|remain\w*|only|first|max|maximum|most|samples?|partial(ly)?|incomplete|truncat\w*|cut|capped|limit\w*|missing|omit\w*|skip\w*|drop\w*|lost|left out|withheld|suppress\w*|exclud\w*|shorten\w*|stopped|aborted|timed|timeout|unexpected|could not|cannot|unable|failed|errors?|continue|again|subset|everything|abridged|absent|(ended|stopped|finished|completed) early|busy|overload\w*|throttl\w*|loading|reply|repeat|reduced|fewer|half|portions?|what you (get|see|receive)|parts? of your|some of your|not all|machines?|devices?|computers?|not (be |been )?(shown|returned|included|displayed|reported|delivered|visible)|interrupted|internal|corrupt\w*|stale|inconsistent|unreliable)\b|_(list|results?|truncat\w*|id)|id_`)
	// library is a link to documents: whatever it asks for there is no part of the answer.
	library = regexp.MustCompile(`(?i)^https?://(docs|www|notifications|success|community|blog)\.[^/]+/`)
	// noticeWords are all words that a notice may have, beside names and dates.
	noticeWords = wordsOf(`a an the this that these its it is are was has have been be being will would may can should must and or of on in from by after before until since as at for to with if any
		api apis version versions endpoint endpoints parameter parameters feature features interface client clients script scripts application applications integration integrations
		life service support eol eos deprecated deprecate deprecation deprecates superseded supersede supersedes replaced replace replaces supported unsupported retired retirement decommissioned discontinued sunset obsolete end ends ended ending reach reaches reached
		removed remove removal past available availability release releases scheduled effective planned upcoming
		update updates fix fixes patch patches bug bugs security improvement improvements provide provided provides get gets receive receives no further more better compatible fully
		use using switch migrate migrating migration move upgrade update change please kindly recommend recommended advise advised we you your our strongly soon now note notice warning instead new newer newest latest current next old older date
		qualys platform documentation guide user users notes see refer visit read customer customers contact team tam technical account manager email mail vm
		january february march april may june july august september october november december jan feb mar apr jun jul aug sep sept oct nov dec
		monday tuesday wednesday thursday friday saturday sunday q1 q2 q3 q4 year month months days day st nd rd th utc gmt pst pdt`)
	// noticeNames are versions, dates, names of parameters, and addresses.
	noticeNames = regexp.MustCompile(`^(v?\d+(\.\d+)+|v\d+|20\d\d|\d{1,2}(st|nd|rd|th)|\d{1,4}[-/]\d{1,2}[-/]\d{1,4}|(show|include|detection|vm|tag|use|host_metadata|truncation|output|arf|active|compliance|max|network|filter|last|is)(_[a-z]+)+|(https?:/)?/(api|qps|msp|fo|docs|www)[^?&=]*|https?://[^?&=]*|[\w.]+@[\w.]+)$`)
)

// wordsOf is the words of a text.
func wordsOf(text string) map[string]bool {
	words := map[string]bool{}
	for word := range strings.FieldsSeq(text) {
		words[word] = true
	}
	return words
}

// onlyWords tells whether a text in small letters has no words but those of notices.
func onlyWords(text string) bool {
	for word := range strings.FieldsSeq(text) {
		word = strings.Trim(word, `.,;:!()[]"'–—’“”…-`)
		if noticeNames.MatchString(word) {
			continue
		}
		for part := range strings.FieldsFuncSeq(word, func(r rune) bool { return strings.ContainsRune("-/–—()", r) }) {
			part = strings.TrimSuffix(strings.ReplaceAll(part, "’", "'"), "'s")
			if n, err := strconv.Atoi(part); err == nil && n >= 1 && n <= 31 || noticeWords[part] || noticeNames.MatchString(part) {
				continue // a day of a month
			}
			return false
		}
	}
	return true
}
