package ingest

import "qualys-sentinel/handler/internal/record"

// A Dataset is one kind of Qualys data and the table it fills. The catalogue
// is the one place that knows columns: rows, table definitions, the data
// collection rule and the documentation are made from it.
type Dataset struct {
	// Name on the command line, in paths of the state and in routes.
	Name string
	// Function is the name of the timer function that carries it.
	Function string
	// Title for people.
	Title string
	// Records and Parents are what its rows and their owners are called.
	Records, Parents string
	// Indexed are the paths of the values that the index of delivered rows
	// keeps, for other datasets to join. A dataset without any has no index,
	// but remembers only what it has delivered lately.
	Indexed []string
	// JoinBy is the path of the QID by which the KnowledgeBase is joined.
	JoinBy string
	Schema *record.Schema
}

// Datasets lists all datasets.
func Datasets() []*Dataset { return []*Dataset{VM, KB} }

// resultsParts is how many columns RESULTS may take: as many full ones as fit
// into the 1 MB that the Logs Ingestion API takes for a row.
const resultsParts = 16

// VM is the latest state of every detection on every host. The columns up to
// Results keep the names of the function app that this connector replaces
// (Azure-Sentinel, Solutions/QualysVM, function V2), so that rules, workbooks
// and parsers written for it go on working.
var VM = &Dataset{
	Name:     "vm",
	Function: "QualysVM",
	Title:    "VM detections",
	Records:  "detections",
	Parents:  "hosts",
	JoinBy:   "DETECTION/QID",
	Schema: &record.Schema{
		Table:      "QualysHostDetectionV2_CL",
		Root:       "HOST_LIST_VM_DETECTION_OUTPUT",
		List:       "HOST_LIST",
		Parent:     "HOST",
		ItemList:   "DETECTION_LIST",
		Item:       "DETECTION",
		ParentID:   "HOST/ID",
		UniqueKey:  "DETECTION/UNIQUE_VULN_ID",
		NaturalKey: []string{"HOST/ID", "DETECTION/QID", "DETECTION/PORT", "DETECTION/PROTOCOL", "DETECTION/FQDN", "DETECTION/SSL", "DETECTION/INSTANCE", "DETECTION/SERVICE"},
		Versions:   []string{"LastProcessed_t"},
		Continued:  "DETECTION/RESULTS",
		Columns: []record.Column{
			{Name: "TimeGenerated", Made: record.MadeTime, Kind: record.Time, Doc: "When the connector made the row. Qualys' own times are columns of their own."},
			{Name: "RunId_s", Key: "RunId", Made: record.MadeRun, Doc: "The connector's run that sent the row."},
			{Name: "Title_s", Key: "Title", Joined: "VULN/TITLE", Doc: "Title of the vulnerability. This and the next five are there only with enrichDetections, and as QualysKB_CL has them."},
			{Name: "Severity_Level_s", Key: "Severity_Level", Joined: "VULN/SEVERITY_LEVEL", Doc: "Severity by the KnowledgeBase, 1 to 5."},
			{Name: "CVE_ID_s", Key: "CVE_ID", Joined: "VULN/CVE_LIST/CVE/ID", Doc: "All CVE ids, joined by comma and blank."},
			{Name: "CVSS_Base_s", Key: "CVSS_Base", Joined: "VULN/CVSS/BASE", Doc: "CVSS version 2: base score."},
			{Name: "CVSS3_Base_s", Key: "CVSS3_Base", Joined: "VULN/CVSS_V3/BASE", Doc: "CVSS version 3: base score."},
			{Name: "Patchable_s", Key: "Patchable", Joined: "VULN/PATCHABLE", Doc: "1: the vendor has a patch."},

			{Name: "RowKey_s", Key: "RowKey", Made: record.MadeKey, Doc: "Stable key of this finding in this state: UNIQUE_VULN_ID, or host, QID, port, protocol, FQDN, SSL, instance and service, then '@' and the last processed time. Equal in every run."},

			{Name: "HostId_s", Key: "HostId", Path: "HOST/ID", Doc: "Qualys host id."},
			{Name: "IPAddress", Key: "IpAddress", Path: "HOST/IP", Doc: "IPv4 address of the host."},
			{Name: "TrackingMethod_s", Key: "TrackingMethod", Path: "HOST/TRACKING_METHOD", Doc: "How Qualys tracks the host: IP, DNS, NETBIOS, AGENT, EC2, ..."},
			{Name: "OperatingSystem_s", Key: "OperatingSystem", Path: "HOST/OS", Doc: "Operating system."},
			{Name: "DnsName_s", Key: "DnsName", Path: "HOST/DNS", Doc: "DNS name."},
			{Name: "NetBios_s", Key: "NetBios", Path: "HOST/NETBIOS", Doc: "NetBIOS name."},
			{Name: "QGHostId_g", Key: "QGHostId", Path: "HOST/QG_HOSTID", Doc: "Host id of the Cloud Agent."},
			{Name: "LastScanDateTime_t", Key: "LastScanDateTime", Path: "HOST/LAST_SCAN_DATETIME", Kind: record.Time, Doc: "Last scan of any kind."},
			{Name: "LastVMScannedDateTime_t", Key: "LastVMScannedDateTime", Path: "HOST/LAST_VM_SCANNED_DATE", Kind: record.Time, Doc: "Last vulnerability scan."},
			{Name: "LastVMAuthScannedDateTime_t", Key: "LastVMAuthScannedDateTime", Path: "HOST/LAST_VM_AUTH_SCANNED_DATE", Kind: record.Time, Doc: "Last vulnerability scan with login."},
			{Name: "HostTags_s", Key: "HostTags", Path: "HOST/TAGS/TAG/NAME", Kind: record.List, Doc: "Names of the host's asset tags, joined by comma and blank."},
			{Name: "HostTags", SameAs: "HostTags_s", Kind: record.List, Doc: "As HostTags_s, under the name that Microsoft's parser QualysHostDetection reads."},

			{Name: "QID_s", Key: "QID", Path: "DETECTION/QID", Doc: "Qualys id of the vulnerability."},
			{Name: "SSL_s", Key: "SSL", Path: "DETECTION/SSL", Doc: "1: found over SSL/TLS."},
			{Name: "Type_s", Key: "Type", Path: "DETECTION/TYPE", Doc: "Confirmed, Potential or Info."},
			{Name: "Status_s", Key: "Status", Path: "DETECTION/STATUS", Doc: "New, Active, Re-Opened or Fixed."},
			{Name: "Ignored_s", Key: "Ignored", Path: "DETECTION/IS_IGNORED", Doc: "1: ignored in Qualys."},
			{Name: "Severity_s", Key: "Severity", Path: "DETECTION/SEVERITY", Doc: "1 to 5."},
			{Name: "Disabled_s", Key: "Disabled", Path: "DETECTION/IS_DISABLED", Doc: "1: disabled in Qualys."},
			{Name: "FirstFound_t", Key: "FirstFound", Path: "DETECTION/FIRST_FOUND_DATETIME", Kind: record.Time, Doc: "First found."},
			{Name: "LastFound_t", Key: "LastFound", Path: "DETECTION/LAST_FOUND_DATETIME", Kind: record.Time, Doc: "Last found."},
			{Name: "LastFixed_t", Key: "LastFixed", Path: "DETECTION/LAST_FIXED_DATETIME", Kind: record.Time, Doc: "Last fixed."},
			{Name: "LastUpdate_t", Key: "LastUpdate", Path: "DETECTION/LAST_UPDATE_DATETIME", Kind: record.Time, Doc: "Last change of status."},
			{Name: "LastProcessed_t", Key: "LastProcessed", Path: "DETECTION/LAST_PROCESSED_DATETIME", Kind: record.Time, Doc: "When Qualys processed the scan's result."},
			{Name: "TimesFound_s", Key: "TimesFound", Path: "DETECTION/TIMES_FOUND", Doc: "How often it was found."},
			{Name: "Results_%d_s", Key: "Results_%d", Path: "DETECTION/RESULTS", Parts: resultsParts, Doc: "Scan output, as Qualys wrote it; a long one goes on in the next column."},
			{Name: "Result_column_count_d", Key: "Result_column_count", Made: record.MadeParts, Kind: record.Number, Doc: "Number of Results columns in use."},
			{Name: "ResultsBytes_d", Key: "ResultsBytes", Made: record.MadeSize, Kind: record.Number, Doc: "Size of the whole scan output in bytes of UTF-8."},
			{Name: "Cut_s", Key: "Cut", Made: record.MadeCut, Doc: "Fields that are not whole in this row, each with the reason: (policy) as the settings ask, (limit) what the destination takes."},
			{Name: "DeadLetter_s", Key: "DeadLetter", Made: record.MadeDeadLetter, Doc: "Blob of the state container that holds the fields cut by a limit, whole; of two, the first holds those of the host."},

			{Name: "AssetId_s", Key: "AssetId", Path: "HOST/ASSET_ID", Doc: "Portal asset id, as in Global AssetView."},
			{Name: "IPv6_s", Key: "IPv6", Path: "HOST/IPV6", Doc: "IPv6 address."},
			{Name: "NetworkId_s", Key: "NetworkId", Path: "HOST/NETWORK_ID", Doc: "Id of the Qualys network."},
			{Name: "NetworkName_s", Key: "NetworkName", Path: "HOST/NETWORK_NAME", Doc: "Name of the Qualys network."},
			{Name: "OperatingSystemCPE_s", Key: "OperatingSystemCPE", Path: "HOST/OS_CPE", Doc: "Operating system as CPE name."},
			{Name: "DnsHostName_s", Key: "DnsHostName", Path: "HOST/DNS_DATA/HOSTNAME", Doc: "Host part of the DNS name."},
			{Name: "DnsDomain_s", Key: "DnsDomain", Path: "HOST/DNS_DATA/DOMAIN", Doc: "Domain part of the DNS name."},
			{Name: "DnsFqdn_s", Key: "DnsFqdn", Path: "HOST/DNS_DATA/FQDN", Doc: "Full DNS name."},
			{Name: "CloudProvider_s", Key: "CloudProvider", Path: "HOST/CLOUD_PROVIDER", Doc: "Cloud provider."},
			{Name: "CloudService_s", Key: "CloudService", Path: "HOST/CLOUD_SERVICE", Doc: "Cloud service, such as EC2 or VM."},
			{Name: "CloudResourceId_s", Key: "CloudResourceId", Path: "HOST/CLOUD_RESOURCE_ID", Doc: "Id of the cloud resource."},
			{Name: "EC2InstanceId_s", Key: "EC2InstanceId", Path: "HOST/EC2_INSTANCE_ID", Doc: "Id of the EC2 instance."},
			{Name: "LastVMScannedDuration_s", Key: "LastVMScannedDuration", Path: "HOST/LAST_VM_SCANNED_DURATION", Doc: "Length of the last vulnerability scan in seconds."},
			{Name: "LastVMAuthScannedDuration_s", Key: "LastVMAuthScannedDuration", Path: "HOST/LAST_VM_AUTH_SCANNED_DURATION", Doc: "Length of the last vulnerability scan with login in seconds."},
			{Name: "LastPCScannedDateTime_t", Key: "LastPCScannedDateTime", Path: "HOST/LAST_PC_SCANNED_DATE", Kind: record.Time, Doc: "Last compliance scan."},
			{Name: "Tags_s", Key: "Tags", Path: "HOST/TAGS/TAG", Kind: record.Objects, Doc: "Asset tags as JSON array: TAG_ID, NAME, COLOR, BACKGROUND_COLOR."},
			{Name: "CloudMetadata_s", Key: "CloudMetadata", Path: "HOST/METADATA/*/ATTRIBUTE", Kind: record.Objects, Doc: "Cloud metadata as JSON array: PROVIDER, NAME, VALUE, LAST_STATUS, LAST_SUCCESS_DATE, LAST_ERROR_DATE, LAST_ERROR."},
			{Name: "CloudTags_s", Key: "CloudTags", Path: "HOST/CLOUD_PROVIDER_TAGS/CLOUD_TAG", Kind: record.Objects, Doc: "Tags of the cloud provider as JSON array: NAME, VALUE, LAST_SUCCESS_DATE."},

			{Name: "UniqueVulnId_s", Key: "UniqueVulnId", Path: "DETECTION/UNIQUE_VULN_ID", Doc: "Qualys' own key of the detection."},
			{Name: "Port_s", Key: "Port", Path: "DETECTION/PORT", Doc: "Port."},
			{Name: "Protocol_s", Key: "Protocol", Path: "DETECTION/PROTOCOL", Doc: "Protocol."},
			{Name: "FQDN_s", Key: "FQDN", Path: "DETECTION/FQDN", Doc: "Full domain name that the detection belongs to."},
			{Name: "Instance_s", Key: "Instance", Path: "DETECTION/INSTANCE", Doc: "Instance of the software, such as a database."},
			{Name: "ResultInstance_s", Key: "ResultInstance", Path: "DETECTION/RESULT_INSTANCE", Doc: "Instance that the result belongs to."},
			{Name: "Service_s", Key: "Service", Path: "DETECTION/SERVICE", Doc: "Service."},
			{Name: "Source_s", Key: "Source", Path: "DETECTION/SOURCE", Doc: "What found it."},
			{Name: "QDS_s", Key: "QDS", Path: "DETECTION/QDS", Doc: "Qualys detection score, 1 to 100."},
			{Name: "QDSSeverity_s", Key: "QDSSeverity", Path: "DETECTION/QDS/@severity", Doc: "Band of the detection score: LOW, MEDIUM, HIGH, CRITICAL."},
			{Name: "QDSFactors_s", Key: "QDSFactors", Path: "DETECTION/QDS_FACTORS/QDS_FACTOR", Kind: record.Bag, KeyAttr: "name", Doc: "What the score is made of, as JSON object: CVSS, epss, exploit_maturity, CISA_vuln, ..."},
			{Name: "LastTested_t", Key: "LastTested", Path: "DETECTION/LAST_TEST_DATETIME", Kind: record.Time, Doc: "Last tested."},
			{Name: "FirstReopened_t", Key: "FirstReopened", Path: "DETECTION/FIRST_REOPENED_DATETIME", Kind: record.Time, Doc: "First reopened."},
			{Name: "LastReopened_t", Key: "LastReopened", Path: "DETECTION/LAST_REOPENED_DATETIME", Kind: record.Time, Doc: "Last reopened."},
			{Name: "TimesReopened_s", Key: "TimesReopened", Path: "DETECTION/TIMES_REOPENED", Doc: "How often it was reopened."},
			{Name: "AffectRunningKernel_s", Key: "AffectRunningKernel", Path: "DETECTION/AFFECT_RUNNING_KERNEL", Doc: "1: the running kernel is affected."},
			{Name: "AffectRunningService_s", Key: "AffectRunningService", Path: "DETECTION/AFFECT_RUNNING_SERVICE", Doc: "1: a running service is affected."},
			{Name: "AffectExploitableConfig_s", Key: "AffectExploitableConfig", Path: "DETECTION/AFFECT_EXPLOITABLE_CONFIG", Doc: "1: the configuration is exploitable."},
			{Name: "AssetCVE_s", Key: "AssetCVE", Path: "DETECTION/ASSET_CVE", Doc: "CVE of the detection on this asset."},
			{Name: "AdditionalFields", Key: "AdditionalFields", Kind: record.Extra, Doc: "Elements that have no column yet, as JSON object of path and text."},
		},
	},
}
