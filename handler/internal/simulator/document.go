package simulator

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// xmlWriter writes an indented document the way Qualys does.
type xmlWriter struct {
	w     io.Writer
	buf   []byte
	depth int
	err   error
}

func (x *xmlWriter) flush() {
	if x.err == nil && len(x.buf) > 0 {
		_, x.err = x.w.Write(x.buf)
	}
	x.buf = x.buf[:0]
}

func (x *xmlWriter) indent() {
	for range x.depth {
		x.buf = append(x.buf, ' ', ' ')
	}
}

func (x *xmlWriter) open(name string) {
	x.indent()
	x.buf = append(append(append(x.buf, '<'), name...), ">\n"...)
	x.depth++
}

func (x *xmlWriter) close(name string) {
	x.depth--
	x.indent()
	x.buf = append(append(append(x.buf, "</"...), name...), ">\n"...)
	if len(x.buf) > 32<<10 {
		x.flush()
	}
}

// leaf writes an element with text, and nothing for empty text.
func (x *xmlWriter) leaf(name, value string) {
	if value == "" {
		return
	}
	x.indent()
	x.buf = append(append(append(x.buf, '<'), name...), '>')
	x.escape(value)
	x.end(name)
}

func (x *xmlWriter) end(name string) {
	x.buf = append(append(append(x.buf, "</"...), name...), ">\n"...)
}

func (x *xmlWriter) escape(s string) {
	for i := range len(s) {
		switch c := s[i]; c {
		case '<':
			x.buf = append(x.buf, "&lt;"...)
		case '>':
			x.buf = append(x.buf, "&gt;"...)
		case '&':
			x.buf = append(x.buf, "&amp;"...)
		case '"':
			x.buf = append(x.buf, "&quot;"...)
		default:
			x.buf = append(x.buf, c)
		}
	}
}

// cdata writes an element with a CDATA section.
func (x *xmlWriter) cdata(name, value string) {
	if value == "" {
		return
	}
	x.indent()
	x.buf = append(append(append(x.buf, '<'), name...), "><![CDATA["...)
	x.section(value)
	x.buf = append(x.buf, "]]>"...)
	x.end(name)
}

func (x *xmlWriter) section(value string) {
	if len(value) > 64<<10 {
		x.flush()
		if x.err == nil {
			_, x.err = io.WriteString(x.w, value) // made without "]]>"
		}
		return
	}
	x.buf = append(x.buf, strings.ReplaceAll(value, "]]>", "]]]]><![CDATA[>")...)
}

func (x *xmlWriter) attrCDATA(name, attr, attrValue, value string) {
	x.indent()
	x.buf = append(append(append(append(append(x.buf, '<'), name...), ' '), attr...), `="`...)
	x.escape(attrValue)
	x.buf = append(x.buf, `"><![CDATA[`...)
	x.section(value)
	x.buf = append(x.buf, "]]>"...)
	x.end(name)
}

func (x *xmlWriter) date(name string, t time.Time) {
	if t.IsZero() {
		return
	}
	x.indent()
	x.buf = append(append(append(x.buf, '<'), name...), '>')
	x.buf = t.UTC().AppendFormat(x.buf, time.RFC3339)
	x.end(name)
}

func (x *xmlWriter) number(name string, n int) { x.leaf(name, strconv.Itoa(n)) }

const timeForm = "2006-01-02T15:04:05Z"

func flag(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// shows is which optional parts a request has asked for.
type shows struct {
	results, reopened, assetID, tags, qds, factors, metadata, cloudTags bool
}

func (x *xmlWriter) host(h Host, s shows) {
	x.open("HOST")
	x.leaf("ID", strconv.FormatUint(h.ID, 10))
	if s.assetID {
		x.leaf("ASSET_ID", strconv.FormatUint(h.AssetID, 10))
	}
	x.leaf("IP", h.IP)
	x.leaf("IPV6", h.IPv6)
	x.leaf("TRACKING_METHOD", h.Tracking)
	x.leaf("NETWORK_ID", h.NetworkID)
	x.leaf("NETWORK_NAME", h.NetworkName)
	x.cdata("OS", h.OS)
	x.cdata("OS_CPE", h.CPE)
	x.cdata("DNS", h.DNS)
	x.open("DNS_DATA")
	x.cdata("HOSTNAME", h.DNS[:10])
	x.cdata("DOMAIN", h.DNS[11:])
	x.cdata("FQDN", h.DNS)
	x.close("DNS_DATA")
	x.leaf("CLOUD_PROVIDER", h.Cloud)
	x.leaf("CLOUD_SERVICE", h.CloudService)
	x.leaf("CLOUD_RESOURCE_ID", h.CloudResource)
	x.cdata("EC2_INSTANCE_ID", h.EC2)
	x.cdata("NETBIOS", h.NetBIOS)
	x.cdata("QG_HOSTID", h.Agent)
	x.date("LAST_SCAN_DATETIME", h.Scanned)
	x.date("LAST_VM_SCANNED_DATE", h.Scanned)
	x.number("LAST_VM_SCANNED_DURATION", h.Duration)
	x.date("LAST_VM_AUTH_SCANNED_DATE", h.AuthScanned)
	x.date("LAST_PC_SCANNED_DATE", h.ComplianceScaned)
	if s.tags && len(h.Tags) > 0 {
		x.open("TAGS")
		for _, t := range h.Tags {
			x.open("TAG")
			x.cdata("TAG_ID", strconv.FormatUint(t.ID, 10))
			x.cdata("NAME", t.Name)
			x.close("TAG")
		}
		x.close("TAGS")
	}
	if s.metadata && h.Cloud != "" {
		x.open("METADATA")
		x.open("EC2")
		for i, name := range metadata {
			x.open("ATTRIBUTE")
			x.cdata("NAME", name)
			x.leaf("LAST_STATUS", "Success")
			x.cdata("VALUE", []string{"eu-central-2", "012345678901", "m6i.large"}[i])
			x.date("LAST_SUCCESS_DATE", h.Scanned)
			x.indent()
			x.buf = append(x.buf, "<LAST_ERROR_DATE></LAST_ERROR_DATE>\n"...)
			x.indent()
			x.buf = append(x.buf, "<LAST_ERROR><![CDATA[]]></LAST_ERROR>\n"...)
			x.close("ATTRIBUTE")
		}
		x.close("EC2")
		x.close("METADATA")
	}
	if s.cloudTags && h.Cloud != "" {
		x.open("CLOUD_PROVIDER_TAGS")
		x.open("CLOUD_TAG")
		x.leaf("NAME", "Owner")
		x.leaf("VALUE", "Team Ä & Söhne")
		x.date("LAST_SUCCESS_DATE", h.Scanned)
		x.close("CLOUD_TAG")
		x.close("CLOUD_PROVIDER_TAGS")
	}
}

func (x *xmlWriter) detection(d Detection, s shows) {
	x.open("DETECTION")
	x.leaf("UNIQUE_VULN_ID", strconv.FormatUint(d.UniqueID, 10))
	x.number("QID", d.QID)
	x.leaf("TYPE", d.Type)
	x.leaf("SEVERITY", d.Severity)
	x.leaf("PORT", d.Port)
	x.leaf("PROTOCOL", d.Protocol)
	x.leaf("FQDN", d.FQDN)
	x.leaf("SSL", d.SSL)
	x.leaf("INSTANCE", d.Instance)
	if s.results {
		x.cdata("RESULTS", d.Results)
	}
	x.leaf("STATUS", d.Status)
	x.date("FIRST_FOUND_DATETIME", d.FirstFound)
	x.date("LAST_FOUND_DATETIME", d.LastFound)
	if s.qds && d.QDS > 0 {
		x.indent()
		x.buf = fmt.Appendf(x.buf, "<QDS severity=%q>%d</QDS>\n", band(d.QDS), d.QDS)
		if s.factors {
			x.open("QDS_FACTORS")
			x.attrCDATA("QDS_FACTOR", "name", "CVSS", d.CVSS)
			x.attrCDATA("QDS_FACTOR", "name", "CVSS_version", "v3.x")
			x.attrCDATA("QDS_FACTOR", "name", "epss", d.EPSS)
			x.close("QDS_FACTORS")
		}
	}
	x.number("TIMES_FOUND", d.TimesFound)
	x.date("LAST_TEST_DATETIME", d.Tested)
	x.date("LAST_UPDATE_DATETIME", d.Updated)
	x.date("LAST_FIXED_DATETIME", d.Fixed)
	if s.reopened && d.TimesReopened > 0 {
		x.date("FIRST_REOPENED_DATETIME", d.FirstReopened)
		x.date("LAST_REOPENED_DATETIME", d.LastReopened)
		x.number("TIMES_REOPENED", d.TimesReopened)
	}
	x.leaf("SERVICE", d.Service)
	x.leaf("IS_IGNORED", flag(d.Ignored))
	x.leaf("IS_DISABLED", flag(d.Disabled))
	x.leaf("AFFECT_RUNNING_KERNEL", d.Kernel)
	x.date("LAST_PROCESSED_DATETIME", d.Processed)
	x.close("DETECTION")
}

func band(qds int) string {
	switch {
	case qds < 40:
		return "LOW"
	case qds < 70:
		return "MEDIUM"
	case qds < 90:
		return "HIGH"
	}
	return "CRITICAL"
}
