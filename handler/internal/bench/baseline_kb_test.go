package bench_test

import (
	"errors"
	"strings"
)

// xmlEntry is a VULN of the KnowledgeBase.
type xmlEntry struct {
	QID         string         `xml:"QID"`
	Type        string         `xml:"VULN_TYPE"`
	Severity    string         `xml:"SEVERITY_LEVEL"`
	Title       string         `xml:"TITLE"`
	Category    string         `xml:"CATEGORY"`
	Technology  string         `xml:"TECHNOLOGY"`
	DetectInfo  string         `xml:"DETECTION_INFO"`
	Customized  string         `xml:"LAST_CUSTOMIZATION>DATETIME"`
	User        string         `xml:"LAST_CUSTOMIZATION>USER_LOGIN"`
	Modified    string         `xml:"LAST_SERVICE_MODIFICATION_DATETIME"`
	Published   string         `xml:"PUBLISHED_DATETIME"`
	Code        string         `xml:"CODE_MODIFIED_DATETIME"`
	Patched     string         `xml:"PATCH_PUBLISHED_DATE"`
	Bugtraqs    []xmlReference `xml:"BUGTRAQ_LIST>BUGTRAQ"`
	Patchable   string         `xml:"PATCHABLE"`
	Software    []xmlSoftware  `xml:"SOFTWARE_LIST>SOFTWARE"`
	References  []xmlReference `xml:"VENDOR_REFERENCE_LIST>VENDOR_REFERENCE"`
	CVEs        []xmlReference `xml:"CVE_LIST>CVE"`
	Diagnosis   string         `xml:"DIAGNOSIS"`
	Consequence string         `xml:"CONSEQUENCE"`
	Solution    string         `xml:"SOLUTION"`
	Compliance  []struct {
		Type        string `xml:"TYPE" json:"TYPE,omitempty"`
		Section     string `xml:"SECTION" json:"SECTION,omitempty"`
		Description string `xml:"DESCRIPTION" json:"DESCRIPTION,omitempty"`
	} `xml:"COMPLIANCE_LIST>COMPLIANCE"`
	Exploits []struct {
		Source string       `xml:"SRC_NAME"`
		List   []xmlExploit `xml:"EXPLT_LIST>EXPLT"`
	} `xml:"CORRELATION>EXPLOITS>EXPLT_SRC"`
	Malware []struct {
		Source string       `xml:"SRC_NAME"`
		List   []xmlMalware `xml:"MW_LIST>MW_INFO"`
	} `xml:"CORRELATION>MALWARE>MW_SRC"`
	CVSS struct {
		Base struct {
			Source string `xml:"source,attr"`
			Value  string `xml:",chardata"`
		} `xml:"BASE"`
		Temporal        string `xml:"TEMPORAL"`
		Vector          string `xml:"VECTOR_STRING"`
		Access          string `xml:"ACCESS>VECTOR"`
		Complexity      string `xml:"ACCESS>COMPLEXITY"`
		Confidentiality string `xml:"IMPACT>CONFIDENTIALITY"`
		Integrity       string `xml:"IMPACT>INTEGRITY"`
		Availability    string `xml:"IMPACT>AVAILABILITY"`
		Authentication  string `xml:"AUTHENTICATION"`
		Exploitability  string `xml:"EXPLOITABILITY"`
		Remediation     string `xml:"REMEDIATION_LEVEL"`
		Confidence      string `xml:"REPORT_CONFIDENCE"`
	} `xml:"CVSS"`
	CVSS3 struct {
		Base struct {
			Source string `xml:"source,attr"`
			Value  string `xml:",chardata"`
		} `xml:"BASE"`
		Temporal        string `xml:"TEMPORAL"`
		Vector          string `xml:"VECTOR_STRING"`
		Version         string `xml:"CVSS3_VERSION"`
		Attack          string `xml:"ATTACK>VECTOR"`
		Complexity      string `xml:"ATTACK>COMPLEXITY"`
		Confidentiality string `xml:"IMPACT>CONFIDENTIALITY"`
		Integrity       string `xml:"IMPACT>INTEGRITY"`
		Availability    string `xml:"IMPACT>AVAILABILITY"`
		Privileges      string `xml:"PRIVILEGES_REQUIRED"`
		Interaction     string `xml:"USER_INTERACTION"`
		Scope           string `xml:"SCOPE"`
		Maturity        string `xml:"EXPLOIT_CODE_MATURITY"`
		Remediation     string `xml:"REMEDIATION_LEVEL"`
		Confidence      string `xml:"REPORT_CONFIDENCE"`
	} `xml:"CVSS_V3"`
	PCI        string      `xml:"PCI_FLAG"`
	PCIFail    string      `xml:"AUTOMATIC_PCI_FAIL"`
	PCIReasons []string    `xml:"PCI_REASONS>PCI_REASON"`
	Threats    []xmlThreat `xml:"THREAT_INTELLIGENCE>THREAT_INTEL"`
	Modules    string      `xml:"SUPPORTED_MODULES"`
	Remote     string      `xml:"DISCOVERY>REMOTE"`
	AuthTypes  []string    `xml:"DISCOVERY>AUTH_TYPE_LIST>AUTH_TYPE"`
	Info       string      `xml:"DISCOVERY>ADDITIONAL_INFO"`
	Disabled   string      `xml:"IS_DISABLED"`
	Changes    []struct {
		Date     string `xml:"CHANGE_DATE" json:"CHANGE_DATE,omitempty"`
		Comments string `xml:"COMMENTS" json:"COMMENTS,omitempty"`
	} `xml:"CHANGE_LOG_LIST>CHANGE_LOG_INFO"`
	DiagnosisComment   string `xml:"DIAGNOSIS_COMMENT"`
	ConsequenceComment string `xml:"CONSEQUENCE_COMMENT"`
	SolutionComment    string `xml:"SOLUTION_COMMENT"`
}

type (
	xmlReference struct {
		ID  string `xml:"ID" json:"ID,omitempty"`
		URL string `xml:"URL" json:"URL,omitempty"`
	}
	xmlSoftware struct {
		Product string `xml:"PRODUCT" json:"PRODUCT,omitempty"`
		Vendor  string `xml:"VENDOR" json:"VENDOR,omitempty"`
	}
	xmlExploit struct {
		Source string `xml:"-" json:"SRC_NAME"`
		Ref    string `xml:"REF" json:"REF,omitempty"`
		Desc   string `xml:"DESC" json:"DESC,omitempty"`
		Link   string `xml:"LINK" json:"LINK,omitempty"`
	}
	xmlMalware struct {
		Source   string `xml:"-" json:"SRC_NAME"`
		ID       string `xml:"MW_ID" json:"MW_ID,omitempty"`
		Type     string `xml:"MW_TYPE" json:"MW_TYPE,omitempty"`
		Platform string `xml:"MW_PLATFORM" json:"MW_PLATFORM,omitempty"`
		Alias    string `xml:"MW_ALIAS" json:"MW_ALIAS,omitempty"`
		Rating   string `xml:"MW_RATING" json:"MW_RATING,omitempty"`
		Link     string `xml:"MW_LINK" json:"MW_LINK,omitempty"`
	}
	xmlThreat struct {
		ID   string `xml:"id,attr" json:"@id,omitempty"`
		Name string `xml:",chardata" json:"#text,omitempty"`
	}
)

// jsonEntry is a row.
type jsonEntry struct {
	made
	RowKey               string `json:"RowKey_s"`
	QID                  string `json:"QID_s,omitempty"`
	Title                string `json:"Title_s,omitempty"`
	Category             string `json:"Category,omitempty"`
	SameCategory         string `json:"Category_s,omitempty"`
	Type                 string `json:"Vuln_Type_s,omitempty"`
	Severity             string `json:"Severity_Level_s,omitempty"`
	Modified             string `json:"Last_Service_Modification_DateTime_t,omitempty"`
	Published            string `json:"Published_DateTime_t,omitempty"`
	Patchable            string `json:"Patchable_s,omitempty"`
	PCI                  string `json:"PCI_Flag_s,omitempty"`
	CVEIDs               string `json:"CVE_ID_s,omitempty"`
	CVEURLs              string `json:"CVE_URL_s,omitempty"`
	ReferenceIDs         string `json:"Vendor_Reference_ID_s,omitempty"`
	ReferenceURLs        string `json:"Vendor_Reference_URL_s,omitempty"`
	Products             string `json:"Software_Product_s,omitempty"`
	Vendors              string `json:"Software_Vendor_s,omitempty"`
	Remote               string `json:"Discovery_Remote_s,omitempty"`
	AuthTypeNames        string `json:"Discovery_Auth_Type_s,omitempty"`
	Info                 string `json:"Discovery_Additional_Info_s,omitempty"`
	Threats              string `json:"THREAT_INTELLIGENCE_s,omitempty"`
	Diagnosis            string `json:"Diagnosis_s,omitempty"`
	Consequence          string `json:"Consequence_s,omitempty"`
	Solution             string `json:"Solution_s,omitempty"`
	Disabled             string `json:"Is_Disabled_s,omitempty"`
	Technology           string `json:"Technology_s,omitempty"`
	DetectInfo           string `json:"Detection_Info_s,omitempty"`
	Modules              string `json:"Supported_Modules_s,omitempty"`
	Code                 string `json:"Code_Modified_DateTime_t,omitempty"`
	Patched              string `json:"Patch_Published_Date_t,omitempty"`
	Customized           string `json:"Last_Customization_DateTime_t,omitempty"`
	User                 string `json:"Last_Customization_User_s,omitempty"`
	CVEs                 string `json:"CVEs_s,omitempty"`
	References           string `json:"Vendor_References_s,omitempty"`
	Bugtraqs             string `json:"Bugtraqs_s,omitempty"`
	Software             string `json:"Software_s,omitempty"`
	Compliance           string `json:"Compliance_s,omitempty"`
	AuthTypes            string `json:"Discovery_Auth_Types_s,omitempty"`
	ThreatNames          string `json:"Threat_Intel_s,omitempty"`
	Exploits             string `json:"Exploits_s,omitempty"`
	ExploitSources       string `json:"Exploit_Sources_s,omitempty"`
	Malware              string `json:"Malware_s,omitempty"`
	MalwareSources       string `json:"Malware_Sources_s,omitempty"`
	CVSS                 string `json:"CVSS_Base_s,omitempty"`
	CVSSSource           string `json:"CVSS_Base_Source_s,omitempty"`
	CVSSTemporal         string `json:"CVSS_Temporal_s,omitempty"`
	CVSSVector           string `json:"CVSS_Vector_s,omitempty"`
	CVSSAccess           string `json:"CVSS_Access_Vector_s,omitempty"`
	CVSSComplexity       string `json:"CVSS_Access_Complexity_s,omitempty"`
	CVSSConfidentiality  string `json:"CVSS_Impact_Confidentiality_s,omitempty"`
	CVSSIntegrity        string `json:"CVSS_Impact_Integrity_s,omitempty"`
	CVSSAvailability     string `json:"CVSS_Impact_Availability_s,omitempty"`
	CVSSAuthentication   string `json:"CVSS_Authentication_s,omitempty"`
	CVSSExploitability   string `json:"CVSS_Exploitability_s,omitempty"`
	CVSSRemediation      string `json:"CVSS_Remediation_Level_s,omitempty"`
	CVSSConfidence       string `json:"CVSS_Report_Confidence_s,omitempty"`
	CVSS3                string `json:"CVSS3_Base_s,omitempty"`
	CVSS3Source          string `json:"CVSS3_Base_Source_s,omitempty"`
	CVSS3Temporal        string `json:"CVSS3_Temporal_s,omitempty"`
	CVSS3Vector          string `json:"CVSS3_Vector_s,omitempty"`
	CVSS3Version         string `json:"CVSS3_Version_s,omitempty"`
	CVSS3Attack          string `json:"CVSS3_Attack_Vector_s,omitempty"`
	CVSS3Complexity      string `json:"CVSS3_Attack_Complexity_s,omitempty"`
	CVSS3Confidentiality string `json:"CVSS3_Impact_Confidentiality_s,omitempty"`
	CVSS3Integrity       string `json:"CVSS3_Impact_Integrity_s,omitempty"`
	CVSS3Availability    string `json:"CVSS3_Impact_Availability_s,omitempty"`
	CVSS3Privileges      string `json:"CVSS3_Privileges_Required_s,omitempty"`
	CVSS3Interaction     string `json:"CVSS3_User_Interaction_s,omitempty"`
	CVSS3Scope           string `json:"CVSS3_Scope_s,omitempty"`
	CVSS3Maturity        string `json:"CVSS3_Exploit_Code_Maturity_s,omitempty"`
	CVSS3Remediation     string `json:"CVSS3_Remediation_Level_s,omitempty"`
	CVSS3Confidence      string `json:"CVSS3_Report_Confidence_s,omitempty"`
	PCIFail              string `json:"Automatic_PCI_Fail_s,omitempty"`
	PCIReasons           string `json:"PCI_Reasons_s,omitempty"`
	Changes              string `json:"Change_Log_s,omitempty"`
	DiagnosisHTML        string `json:"Diagnosis_HTML_s,omitempty"`
	DiagnosisComment     string `json:"Diagnosis_Comment_s,omitempty"`
	ConsequenceHTML      string `json:"Consequence_HTML_s,omitempty"`
	ConsequenceComment   string `json:"Consequence_Comment_s,omitempty"`
	SolutionHTML         string `json:"Solution_HTML_s,omitempty"`
	SolutionComment      string `json:"Solution_Comment_s,omitempty"`
}

// row maps the columns of an entry.
func (e *xmlEntry) row(m made) (*jsonEntry, error) {
	for _, html := range []*string{&e.Diagnosis, &e.Consequence, &e.Solution} {
		*html = strings.TrimSpace(*html)
	}
	key := e.QID
	for _, version := range []string{e.Modified, e.Customized} {
		if version != "" {
			key += "@" + version
		}
	}
	id := func(r xmlReference) string { return r.ID }
	url := func(r xmlReference) string { return r.URL }
	same := func(s string) string { return s }
	r := &jsonEntry{
		made: m, RowKey: key, QID: e.QID, Title: e.Title, Category: e.Category, SameCategory: e.Category, Type: e.Type,
		Severity: e.Severity, Modified: e.Modified, Published: e.Published, Patchable: e.Patchable, PCI: e.PCI,
		CVEIDs: joined(e.CVEs, id), CVEURLs: joined(e.CVEs, url),
		ReferenceIDs: joined(e.References, id), ReferenceURLs: joined(e.References, url),
		Products: joined(e.Software, func(s xmlSoftware) string { return s.Product }),
		Vendors:  joined(e.Software, func(s xmlSoftware) string { return s.Vendor }),
		Remote:   e.Remote, AuthTypeNames: joined(e.AuthTypes, same), Info: e.Info,
		Diagnosis: plain(e.Diagnosis), Consequence: plain(e.Consequence), Solution: plain(e.Solution),
		Disabled: e.Disabled, Technology: e.Technology, DetectInfo: e.DetectInfo, Modules: e.Modules, Code: e.Code,
		Patched: e.Patched, Customized: e.Customized, User: e.User,
		ThreatNames: joined(e.Threats, func(t xmlThreat) string { return t.Name }),
		CVSS:        e.CVSS.Base.Value, CVSSSource: e.CVSS.Base.Source, CVSSTemporal: e.CVSS.Temporal, CVSSVector: e.CVSS.Vector,
		CVSSAccess: e.CVSS.Access, CVSSComplexity: e.CVSS.Complexity, CVSSConfidentiality: e.CVSS.Confidentiality,
		CVSSIntegrity: e.CVSS.Integrity, CVSSAvailability: e.CVSS.Availability, CVSSAuthentication: e.CVSS.Authentication,
		CVSSExploitability: e.CVSS.Exploitability, CVSSRemediation: e.CVSS.Remediation, CVSSConfidence: e.CVSS.Confidence,
		CVSS3: e.CVSS3.Base.Value, CVSS3Source: e.CVSS3.Base.Source, CVSS3Temporal: e.CVSS3.Temporal, CVSS3Vector: e.CVSS3.Vector,
		CVSS3Version: e.CVSS3.Version, CVSS3Attack: e.CVSS3.Attack, CVSS3Complexity: e.CVSS3.Complexity,
		CVSS3Confidentiality: e.CVSS3.Confidentiality, CVSS3Integrity: e.CVSS3.Integrity, CVSS3Availability: e.CVSS3.Availability,
		CVSS3Privileges: e.CVSS3.Privileges, CVSS3Interaction: e.CVSS3.Interaction, CVSS3Scope: e.CVSS3.Scope,
		CVSS3Maturity: e.CVSS3.Maturity, CVSS3Remediation: e.CVSS3.Remediation, CVSS3Confidence: e.CVSS3.Confidence,
		PCIFail: e.PCIFail, DiagnosisHTML: e.Diagnosis, DiagnosisComment: e.DiagnosisComment, ConsequenceHTML: e.Consequence,
		ConsequenceComment: e.ConsequenceComment, SolutionHTML: e.Solution, SolutionComment: e.SolutionComment,
	}
	var exploits []xmlExploit
	var exploitSources []string
	for _, s := range e.Exploits {
		exploitSources = append(exploitSources, s.Source)
		for _, x := range s.List {
			x.Source = s.Source
			exploits = append(exploits, x)
		}
	}
	var malware []xmlMalware
	var malwareSources []string
	for _, s := range e.Malware {
		malwareSources = append(malwareSources, s.Source)
		for _, x := range s.List {
			x.Source = s.Source
			malware = append(malware, x)
		}
	}
	err := dates(e.Modified, e.Published, e.Code, e.Patched, e.Customized)
	for _, column := range []struct {
		to   *string
		text func() (string, error)
	}{
		{&r.Threats, func() (string, error) { return text(e.Threats) }},
		{&r.CVEs, func() (string, error) { return text(e.CVEs) }},
		{&r.References, func() (string, error) { return text(e.References) }},
		{&r.Bugtraqs, func() (string, error) { return text(e.Bugtraqs) }},
		{&r.Software, func() (string, error) { return text(e.Software) }},
		{&r.Compliance, func() (string, error) { return text(e.Compliance) }},
		{&r.AuthTypes, func() (string, error) { return text(e.AuthTypes) }},
		{&r.Exploits, func() (string, error) { return text(exploits) }},
		{&r.ExploitSources, func() (string, error) { return text(exploitSources) }},
		{&r.Malware, func() (string, error) { return text(malware) }},
		{&r.MalwareSources, func() (string, error) { return text(malwareSources) }},
		{&r.PCIReasons, func() (string, error) { return text(e.PCIReasons) }},
		{&r.Changes, func() (string, error) { return text(e.Changes) }},
	} {
		var failed error
		*column.to, failed = column.text()
		err = errors.Join(err, failed)
	}
	return r, err
}
