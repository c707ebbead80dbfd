// Package simulator plays Qualys and Azure for demonstrations, tests and
// benchmarks: a subscription of any size made from a seed, and the services
// that rows are delivered to. It answers with the real shapes, parameters,
// limits and errors, and refuses what the real services refuse.
//
// The same seed gives the same subscription at the same time, without keeping
// it in memory. The product never uses this package outside its commands demo
// and simulate.
package simulator

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"strings"
	"sync"
	"time"
)

// DefaultScanEvery is how often every host is scanned.
const DefaultScanEvery = 24 * time.Hour

// A Subscription is a customer's hosts and their detections.
type Subscription struct {
	Seed  uint64
	Hosts int
	// Detections per host on average.
	Detections int
	// Infos per host: information gathered, which is no finding and has no status.
	Infos int
	// ResultsBytes makes every RESULTS about that long; zero mixes sizes from
	// nothing to 200 KB as real ones do.
	ResultsBytes int
	// ResultsText is what RESULTS repeat; a mix as real ones have if nil.
	ResultsText []string
	// HugeHost, if not negative, is the index of a host whose first detection
	// has RESULTS of HugeBytes.
	HugeHost, HugeBytes int
	// ManyHost, if not negative, is the index of a host with ManyDetections, whatever
	// others have. It has no tags.
	ManyHost, ManyDetections int
	// Knowledge is the KnowledgeBase, from which detections take their QIDs; nil
	// for a subscription that may not download it.
	Knowledge *Knowledge

	// ScanEvery is how often every host is scanned, each at a time of its own, and Delay
	// how long a processed scan takes to show.
	ScanEvery, Delay time.Duration

	mu      sync.Mutex
	rescans map[int][]time.Time
	born    map[int]time.Time
	purged  map[int]time.Time
}

// NewSubscription returns a subscription.
func NewSubscription(seed uint64, hosts, detections int) *Subscription {
	return &Subscription{Seed: seed, Hosts: hosts, Detections: detections, ScanEvery: DefaultScanEvery, HugeHost: -1, ManyHost: -1}
}

// Rescan makes Qualys process a new scan of a host at a time.
func (s *Subscription) Rescan(index int, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rescans == nil {
		s.rescans = map[int][]time.Time{}
	}
	s.rescans[index] = append(s.rescans[index], at)
}

// Appear makes a host known from a time on: that of its first scan.
func (s *Subscription) Appear(index int, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.born == nil {
		s.born = map[int]time.Time{}
	}
	s.born[index] = at
}

// Purge takes a host, and all that was found on it, out of the lists.
func (s *Subscription) Purge(index int, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.purged == nil {
		s.purged = map[int]time.Time{}
	}
	s.purged[index] = at
}

// Listed tells whether a host is in the lists at a time, and when its latest scan was
// processed, as far as that shows then.
func (s *Subscription) Listed(index int, now time.Time) (processed time.Time, ok bool) {
	s.mu.Lock()
	born := s.born[index]
	purged, gone := s.purged[index]
	s.mu.Unlock()
	return s.processed(index, now), !now.Add(-s.Delay).Before(born) && (!gone || now.Before(purged))
}

// Host is a host at a time, listed or not.
func (s *Subscription) Host(index int, now time.Time) Host { return s.host(index, now) }

// processed is when the latest scan of a host was processed, as far as it shows now.
func (s *Subscription) processed(index int, now time.Time) time.Time {
	now = now.Add(-s.Delay)
	phase := time.Duration(mix(s.Seed, uint64(index))%uint64(s.ScanEvery/time.Second)) * time.Second
	at := now.Add(-phase).Truncate(s.ScanEvery).Add(phase)
	s.mu.Lock()
	defer s.mu.Unlock()
	if born := s.born[index]; born.After(at) && !born.After(now) {
		at = born
	}
	for _, again := range s.rescans[index] {
		if again.After(at) && !again.After(now) {
			at = again
		}
	}
	return at.UTC()
}

// hostID of the host at an index; ids ascend, with gaps.
func (s *Subscription) hostID(index int) uint64 {
	return 100_000 + uint64(index)*8 + mix(s.Seed+1, uint64(index))%8
}

// A Host is one host with its latest state.
type Host struct {
	Index                                             int
	ID, AssetID                                       uint64
	IP, IPv6, Tracking, OS, CPE, DNS, NetBIOS         string
	NetworkID, NetworkName, Agent                     string
	Cloud, CloudService, CloudResource, EC2           string
	Processed, Scanned, AuthScanned, ComplianceScaned time.Time
	Duration                                          int
	Tags                                              []Tag
	Detections                                        int
	seed                                              uint64
	sub                                               *Subscription
}

// Tag is an asset tag.
type Tag struct {
	ID   uint64
	Name string
}

// A Detection is one detection with its latest state.
type Detection struct {
	UniqueID                                      uint64
	QID                                           int
	Type, Severity, Status                        string
	Port, Protocol, FQDN, Instance, Service       string
	SSL                                           string
	Results                                       string
	FirstFound, LastFound, Tested, Updated        time.Time
	Fixed, Processed, FirstReopened, LastReopened time.Time
	TimesFound, TimesReopened                     int
	QDS                                           int
	Ignored, Disabled                             bool
	Kernel                                        string
	CVSS, EPSS                                    string
}

var (
	systems   = []string{"Windows Server 2022 Datacenter 21H2", "Windows 11 Enterprise 24H2", "Red Hat Enterprise Linux 9.4", "Ubuntu Linux 24.04", "SUSE Linux Enterprise Server 15 SP6", "Cisco IOS XE 17.9", "macOS 15.1", "VMware ESXi 8.0.3 build-24022510", "Windows Server 2019 Standard – Deutsch"}
	sites     = []string{"zürich", "tokyo-東京", "são-paulo", "london", "austin", "pune"}
	tagNames  = []string{"Cloud Agent", "Servers", "Internet Facing", "PCI", "Büro Zürich", "Test & Dev", "東京 DC", "Crown Jewels", "Windows", "Linux"}
	metadata  = []string{"latest/dynamic/instance-identity/document/region", "latest/dynamic/instance-identity/document/accountId", "latest/meta-data/instance-type"}
	resultSet = []string{
		"Package\tInstalled Version\tRequired Version\nlinux-image-5.15.0\t5.15.0-101.111\t5.15.0-118.128\n",
		"HKLM\\Software\\Microsoft\\Windows NT\\CurrentVersion\tCurrentBuild = 19045\n%windir%\\system32\\ntoskrnl.exe Version is 10.0.19041.4291\n",
		"CIPHER\tKEY-EXCHANGE\tAUTHENTICATION\tMAC\tENCRYPTION(KEY-STRENGTH)\tGRADE\nTLSv1 WITH RC4 CIPHERs IS SUPPORTED\t \t \t \t \t \nRC4-SHA\tRSA\tRSA\tSHA1\tRC4(128)\tMEDIUM\n",
		"HTTP/1.1 200 OK\nServer: Apache/2.4.41 (Ubuntu)\n<title>It works! &quot;Grüezi&quot; &amp; こんにちは</title>\n",
		"Détecté: C:\\Program Files\\Größe\\日本語.dll version 1.2.3 -&gt; 1.2.9 required ☂\n",
	}
)

// host makes the host at an index, as of now.
func (s *Subscription) host(index int, now time.Time) Host {
	r := rand.New(rand.NewPCG(s.Seed, uint64(index)))
	h := Host{Index: index, ID: s.hostID(index), sub: s, seed: r.Uint64()}
	h.AssetID = 7_000_000 + h.ID*3
	h.Processed = s.processed(index, now)
	h.Scanned = h.Processed.Add(-time.Duration(300+r.IntN(3000)) * time.Second)
	h.Duration = 60 + r.IntN(1500)
	h.IP = fmt.Sprintf("10.%d.%d.%d", index>>16&255, index>>8&255, index&255)
	site := sites[r.IntN(len(sites))]
	h.NetBIOS = fmt.Sprintf("HOST%06d", index)
	h.DNS = fmt.Sprintf("host%06d.%s.example.com", index, site)
	h.OS = systems[r.IntN(len(systems))]
	h.Tracking = []string{"IP", "AGENT", "DNS", "NETBIOS", "Cloud Agent"}[r.IntN(5)]
	h.NetworkID = []string{"0", "2201"}[r.IntN(2)]
	h.NetworkName = map[string]string{"0": "Global Default Network", "2201": "Büro & Werk <Süd>"}[h.NetworkID]
	if r.IntN(3) == 0 {
		h.Agent = fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", r.Uint32(), r.Uint32()&0xffff, r.Uint32()&0xffff, r.Uint32()&0xffff, r.Uint64()&0xffffffffffff)
		h.AuthScanned = h.Scanned
	}
	if r.IntN(8) == 0 {
		h.IPv6 = fmt.Sprintf("2001:db8::%x", index)
		h.CPE = "cpe:2.3:o:canonical:ubuntu_linux:24.04:*:*:*:*:*:*:*"
	}
	if r.IntN(6) == 0 {
		h.Cloud, h.CloudService = "AWS", "EC2"
		h.EC2 = fmt.Sprintf("i-%017x", r.Uint64()>>4)
		h.CloudResource = h.EC2
		h.Tracking = "EC2"
	}
	if r.IntN(4) == 0 {
		h.ComplianceScaned = h.Scanned.Add(-time.Hour)
	}
	for range r.IntN(6) {
		t := r.IntN(len(tagNames))
		h.Tags = append(h.Tags, Tag{ID: 90_000 + uint64(t), Name: tagNames[t]})
	}
	h.Detections = max(1, s.Detections/2+r.IntN(s.Detections+1))
	if index == s.ManyHost && s.ManyDetections > 0 {
		h.Tags, h.Detections = nil, s.ManyDetections
	}
	return h
}

// Each walks the detections of a host, and behind them the information gathered.
func (h Host) Each() iter.Seq[Detection] {
	return func(yield func(Detection) bool) {
		for n := range h.Detections + h.sub.Infos {
			d := h.detection(n)
			if n >= h.Detections {
				d.Type, d.Status, d.Fixed = typeInfo, "", time.Time{}
			}
			if !yield(d) {
				return
			}
		}
	}
}

// typeInfo is the type of information gathered.
const typeInfo = "Info"

func (h Host) detection(n int) Detection {
	r := rand.New(rand.NewPCG(h.seed, uint64(n)))
	scan := uint64(h.Processed.Unix()) / uint64(h.sub.ScanEvery/time.Second)
	d := Detection{UniqueID: h.ID*10_000 + uint64(n), QID: 38_000 + r.IntN(60_000), SSL: "0"}
	if k := h.sub.Knowledge; k != nil && k.Size > 0 {
		d.QID = k.QID(d.QID % k.Size)
	}
	d.Type = []string{"Confirmed", "Confirmed", "Confirmed", "Potential"}[r.IntN(4)]
	d.Severity = fmt.Sprint(1 + r.IntN(5))
	d.FirstFound = h.Processed.AddDate(0, 0, -30-r.IntN(700)).Add(-time.Duration(r.IntN(86400)) * time.Second)
	d.LastFound, d.Tested, d.Processed, d.Updated = h.Scanned, h.Scanned, h.Processed, h.Processed
	d.TimesFound = 1 + r.IntN(2000) + int(scan%1000)
	d.Status = []string{"Active", "Active", "Active", "New", "Fixed", "Re-Opened"}[(uint64(r.IntN(6))+scan/7)%6]
	if d.Status == "Fixed" {
		d.Fixed = h.Processed
		d.LastFound = h.Scanned.AddDate(0, 0, -7)
	}
	if d.Status == "Re-Opened" {
		d.FirstReopened, d.LastReopened, d.TimesReopened = d.FirstFound.AddDate(0, 0, 9), h.Scanned, 1+r.IntN(4)
	}
	if r.IntN(3) == 0 {
		d.Port, d.Protocol = []string{"443", "3389", "22", "8443"}[r.IntN(4)], "tcp"
		d.SSL = fmt.Sprint(r.IntN(2))
		d.FQDN = h.DNS
		d.Service = "CIFS & <http>"
	}
	if r.IntN(40) == 0 {
		d.Instance = "oracle:prod-" + fmt.Sprint(r.IntN(9))
	}
	if r.IntN(4) == 0 {
		d.QDS = 1 + r.IntN(100)
		d.CVSS, d.EPSS = fmt.Sprintf("%.1f", float64(r.IntN(100))/10), fmt.Sprintf("0.%05d", r.IntN(99999))
	}
	d.Ignored, d.Disabled = r.IntN(50) == 0, r.IntN(80) == 0
	if r.IntN(10) == 0 {
		d.Kernel = fmt.Sprint(r.IntN(2))
	}
	d.Results = h.results(n, r)
	return d
}

// results makes scan output of the sizes that real ones have.
func (h Host) results(n int, r *rand.Rand) string {
	var size int
	switch p := r.IntN(1000); {
	case h.Index == h.sub.HugeHost && n == 0:
		size = h.sub.HugeBytes
	case h.sub.ResultsBytes > 0:
		size = h.sub.ResultsBytes/2 + r.IntN(h.sub.ResultsBytes)
	case p < 30:
		return ""
	case p < 985:
		size = 40 + r.IntN(500)
	case p < 998:
		size = 2_000 + r.IntN(30_000)
	default:
		size = 66_000 + r.IntN(134_000)
	}
	lines := resultSet
	if h.sub.ResultsText != nil {
		lines = h.sub.ResultsText
	}
	line := lines[r.IntN(len(lines))]
	text := strings.Repeat(line, size/len(line)+1)
	return strings.TrimRight(strings.ToValidUTF8(text[:size], ""), " \t\n") + "."
}

// mix is a hash of two numbers (splitmix64).
func mix(a, b uint64) uint64 {
	z := a*0x9e3779b97f4a7c15 + b + 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
