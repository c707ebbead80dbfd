package bench_test

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"strings"

	"qualys-sentinel/handler/internal/loganalytics"
)

// xmlHost is a HOST of the detection list.
type xmlHost struct {
	ID              string `xml:"ID"`
	AssetID         string `xml:"ASSET_ID"`
	IP              string `xml:"IP"`
	IPv6            string `xml:"IPV6"`
	Tracking        string `xml:"TRACKING_METHOD"`
	NetworkID       string `xml:"NETWORK_ID"`
	NetworkName     string `xml:"NETWORK_NAME"`
	OS              string `xml:"OS"`
	CPE             string `xml:"OS_CPE"`
	DNS             string `xml:"DNS"`
	Hostname        string `xml:"DNS_DATA>HOSTNAME"`
	Domain          string `xml:"DNS_DATA>DOMAIN"`
	FQDN            string `xml:"DNS_DATA>FQDN"`
	CloudProvider   string `xml:"CLOUD_PROVIDER"`
	CloudService    string `xml:"CLOUD_SERVICE"`
	CloudResource   string `xml:"CLOUD_RESOURCE_ID"`
	EC2             string `xml:"EC2_INSTANCE_ID"`
	NetBIOS         string `xml:"NETBIOS"`
	Agent           string `xml:"QG_HOSTID"`
	Scanned         string `xml:"LAST_SCAN_DATETIME"`
	VMScanned       string `xml:"LAST_VM_SCANNED_DATE"`
	VMDuration      string `xml:"LAST_VM_SCANNED_DURATION"`
	VMAuthScanned   string `xml:"LAST_VM_AUTH_SCANNED_DATE"`
	VMAuthDuration  string `xml:"LAST_VM_AUTH_SCANNED_DURATION"`
	ComplianceScans string `xml:"LAST_PC_SCANNED_DATE"`
	Tags            []struct {
		ID   string `xml:"TAG_ID" json:"TAG_ID,omitempty"`
		Name string `xml:"NAME" json:"NAME,omitempty"`
	} `xml:"TAGS>TAG"`
	Metadata struct {
		Providers []struct {
			XMLName    xml.Name
			Attributes []xmlAttribute `xml:"ATTRIBUTE"`
		} `xml:",any"`
	} `xml:"METADATA"`
	CloudTags []struct {
		Name  string `xml:"NAME" json:"NAME,omitempty"`
		Value string `xml:"VALUE" json:"VALUE,omitempty"`
		Seen  string `xml:"LAST_SUCCESS_DATE" json:"LAST_SUCCESS_DATE,omitempty"`
	} `xml:"CLOUD_PROVIDER_TAGS>CLOUD_TAG"`
	Detections []xmlDetection `xml:"DETECTION_LIST>DETECTION"`
}

type xmlAttribute struct {
	Provider  string `xml:"-" json:"PROVIDER"`
	Name      string `xml:"NAME" json:"NAME,omitempty"`
	Status    string `xml:"LAST_STATUS" json:"LAST_STATUS,omitempty"`
	Value     string `xml:"VALUE" json:"VALUE,omitempty"`
	Seen      string `xml:"LAST_SUCCESS_DATE" json:"LAST_SUCCESS_DATE,omitempty"`
	ErrorDate string `xml:"LAST_ERROR_DATE" json:"LAST_ERROR_DATE,omitempty"`
	Error     string `xml:"LAST_ERROR" json:"LAST_ERROR,omitempty"`
}

// xmlDetection is a DETECTION.
type xmlDetection struct {
	UniqueID string `xml:"UNIQUE_VULN_ID"`
	QID      string `xml:"QID"`
	Type     string `xml:"TYPE"`
	Severity string `xml:"SEVERITY"`
	Port     string `xml:"PORT"`
	Protocol string `xml:"PROTOCOL"`
	FQDN     string `xml:"FQDN"`
	SSL      string `xml:"SSL"`
	Instance string `xml:"INSTANCE"`
	Results  string `xml:"RESULTS"`
	Status   string `xml:"STATUS"`
	First    string `xml:"FIRST_FOUND_DATETIME"`
	Last     string `xml:"LAST_FOUND_DATETIME"`
	QDS      struct {
		Severity string `xml:"severity,attr"`
		Value    string `xml:",chardata"`
	} `xml:"QDS"`
	Factors []struct {
		Name  string `xml:"name,attr"`
		Value string `xml:",chardata"`
	} `xml:"QDS_FACTORS>QDS_FACTOR"`
	TimesFound    string `xml:"TIMES_FOUND"`
	Tested        string `xml:"LAST_TEST_DATETIME"`
	Updated       string `xml:"LAST_UPDATE_DATETIME"`
	Fixed         string `xml:"LAST_FIXED_DATETIME"`
	FirstReopened string `xml:"FIRST_REOPENED_DATETIME"`
	LastReopened  string `xml:"LAST_REOPENED_DATETIME"`
	TimesReopened string `xml:"TIMES_REOPENED"`
	Service       string `xml:"SERVICE"`
	Ignored       string `xml:"IS_IGNORED"`
	Disabled      string `xml:"IS_DISABLED"`
	Kernel        string `xml:"AFFECT_RUNNING_KERNEL"`
	RunsService   string `xml:"AFFECT_RUNNING_SERVICE"`
	Config        string `xml:"AFFECT_EXPLOITABLE_CONFIG"`
	CVE           string `xml:"ASSET_CVE"`
	Processed     string `xml:"LAST_PROCESSED_DATETIME"`
}

// jsonHost is the host's part of a row.
type jsonHost struct {
	made
	HostID          string `json:"HostId_s,omitempty"`
	IP              string `json:"IPAddress,omitempty"`
	Tracking        string `json:"TrackingMethod_s,omitempty"`
	OS              string `json:"OperatingSystem_s,omitempty"`
	DNS             string `json:"DnsName_s,omitempty"`
	NetBIOS         string `json:"NetBios_s,omitempty"`
	Agent           string `json:"QGHostId_g,omitempty"`
	Scanned         string `json:"LastScanDateTime_t,omitempty"`
	VMScanned       string `json:"LastVMScannedDateTime_t,omitempty"`
	VMAuthScanned   string `json:"LastVMAuthScannedDateTime_t,omitempty"`
	TagNames        string `json:"HostTags_s,omitempty"`
	SameTagNames    string `json:"HostTags,omitempty"`
	AssetID         string `json:"AssetId_s,omitempty"`
	IPv6            string `json:"IPv6_s,omitempty"`
	NetworkID       string `json:"NetworkId_s,omitempty"`
	NetworkName     string `json:"NetworkName_s,omitempty"`
	CPE             string `json:"OperatingSystemCPE_s,omitempty"`
	Hostname        string `json:"DnsHostName_s,omitempty"`
	Domain          string `json:"DnsDomain_s,omitempty"`
	HostFQDN        string `json:"DnsFqdn_s,omitempty"`
	CloudProvider   string `json:"CloudProvider_s,omitempty"`
	CloudService    string `json:"CloudService_s,omitempty"`
	CloudResource   string `json:"CloudResourceId_s,omitempty"`
	EC2             string `json:"EC2InstanceId_s,omitempty"`
	VMDuration      string `json:"LastVMScannedDuration_s,omitempty"`
	VMAuthDuration  string `json:"LastVMAuthScannedDuration_s,omitempty"`
	ComplianceScans string `json:"LastPCScannedDateTime_t,omitempty"`
	Tags            string `json:"Tags_s,omitempty"`
	Metadata        string `json:"CloudMetadata_s,omitempty"`
	CloudTags       string `json:"CloudTags_s,omitempty"`
}

// jsonDetection is a row.
type jsonDetection struct {
	jsonHost
	RowKey        string `json:"RowKey_s"`
	QID           string `json:"QID_s,omitempty"`
	SSL           string `json:"SSL_s,omitempty"`
	Type          string `json:"Type_s,omitempty"`
	Status        string `json:"Status_s,omitempty"`
	Ignored       string `json:"Ignored_s,omitempty"`
	Severity      string `json:"Severity_s,omitempty"`
	Disabled      string `json:"Disabled_s,omitempty"`
	First         string `json:"FirstFound_t,omitempty"`
	Last          string `json:"LastFound_t,omitempty"`
	Fixed         string `json:"LastFixed_t,omitempty"`
	Updated       string `json:"LastUpdate_t,omitempty"`
	Processed     string `json:"LastProcessed_t,omitempty"`
	TimesFound    string `json:"TimesFound_s,omitempty"`
	Results0      string `json:"Results_0_s,omitempty"`
	Results1      string `json:"Results_1_s,omitempty"`
	Results2      string `json:"Results_2_s,omitempty"`
	Results3      string `json:"Results_3_s,omitempty"`
	Parts         int    `json:"Result_column_count_d"`
	ResultsBytes  *int   `json:"ResultsBytes_d,omitempty"`
	UniqueID      string `json:"UniqueVulnId_s,omitempty"`
	Port          string `json:"Port_s,omitempty"`
	Protocol      string `json:"Protocol_s,omitempty"`
	FQDN          string `json:"FQDN_s,omitempty"`
	Instance      string `json:"Instance_s,omitempty"`
	Service       string `json:"Service_s,omitempty"`
	QDS           string `json:"QDS_s,omitempty"`
	QDSSeverity   string `json:"QDSSeverity_s,omitempty"`
	Factors       string `json:"QDSFactors_s,omitempty"`
	Tested        string `json:"LastTested_t,omitempty"`
	FirstReopened string `json:"FirstReopened_t,omitempty"`
	LastReopened  string `json:"LastReopened_t,omitempty"`
	TimesReopened string `json:"TimesReopened_s,omitempty"`
	Kernel        string `json:"AffectRunningKernel_s,omitempty"`
	RunsService   string `json:"AffectRunningService_s,omitempty"`
	Config        string `json:"AffectExploitableConfig_s,omitempty"`
	CVE           string `json:"AssetCVE_s,omitempty"`
}

// row maps the columns of a host, once for all its detections.
func (h *xmlHost) row(m made) (jsonHost, error) {
	err := dates(h.Scanned, h.VMScanned, h.VMAuthScanned, h.ComplianceScans)
	r := jsonHost{
		made: m, HostID: h.ID, IP: h.IP, Tracking: h.Tracking, OS: h.OS, DNS: h.DNS, NetBIOS: h.NetBIOS, Agent: h.Agent,
		Scanned: h.Scanned, VMScanned: h.VMScanned, VMAuthScanned: h.VMAuthScanned, AssetID: h.AssetID, IPv6: h.IPv6,
		NetworkID: h.NetworkID, NetworkName: h.NetworkName, CPE: h.CPE, Hostname: h.Hostname, Domain: h.Domain, HostFQDN: h.FQDN,
		CloudProvider: h.CloudProvider, CloudService: h.CloudService, CloudResource: h.CloudResource, EC2: h.EC2,
		VMDuration: h.VMDuration, VMAuthDuration: h.VMAuthDuration, ComplianceScans: h.ComplianceScans,
	}
	names := make([]string, 0, len(h.Tags))
	for _, t := range h.Tags {
		names = append(names, t.Name)
	}
	r.TagNames = strings.Join(names, ", ")
	r.SameTagNames = r.TagNames
	var attributes []xmlAttribute
	for _, p := range h.Metadata.Providers {
		for _, a := range p.Attributes {
			a.Provider = p.XMLName.Local
			attributes = append(attributes, a)
		}
	}
	var errs [3]error
	r.Tags, errs[0] = text(h.Tags)
	r.Metadata, errs[1] = text(attributes)
	r.CloudTags, errs[2] = text(h.CloudTags)
	return r, errors.Join(err, errs[0], errs[1], errs[2])
}

// row maps the columns of a detection.
func (d *xmlDetection) row(base jsonHost) (*jsonDetection, error) {
	err := dates(d.First, d.Last, d.Fixed, d.Updated, d.Processed, d.Tested, d.FirstReopened, d.LastReopened)
	r := &jsonDetection{
		jsonHost: base, RowKey: d.UniqueID + "@" + d.Processed, QID: d.QID, SSL: d.SSL, Type: d.Type, Status: d.Status,
		Ignored: d.Ignored, Severity: d.Severity, Disabled: d.Disabled, First: d.First, Last: d.Last, Fixed: d.Fixed,
		Updated: d.Updated, Processed: d.Processed, TimesFound: d.TimesFound, UniqueID: d.UniqueID, Port: d.Port,
		Protocol: d.Protocol, FQDN: d.FQDN, Instance: d.Instance, Service: d.Service, QDS: d.QDS.Value,
		QDSSeverity: d.QDS.Severity, Tested: d.Tested, FirstReopened: d.FirstReopened, LastReopened: d.LastReopened,
		TimesReopened: d.TimesReopened, Kernel: d.Kernel, RunsService: d.RunsService, Config: d.Config, CVE: d.CVE,
	}
	if d.Results != "" {
		size := len(d.Results)
		r.ResultsBytes = &size
		parts := split(d.Results, loganalytics.IngestionFieldBytes)
		for i, to := range []*string{&r.Results0, &r.Results1, &r.Results2, &r.Results3}[:len(parts)] {
			*to = parts[i]
		}
		r.Parts = len(parts)
	}
	if len(d.Factors) > 0 {
		factors := make(map[string]string, len(d.Factors))
		for _, f := range d.Factors {
			factors[f.Name] = f.Value
		}
		var doc []byte
		if doc, err = json.Marshal(factors); err != nil {
			return nil, err
		}
		r.Factors = string(doc)
	}
	return r, err
}
