// Package simulation opens the simulator and the names of the state to the
// tests in e2e, which stand beside handler and may import nothing internal. It
// adds nothing of its own, and the product does not use it.
package simulation

import (
	"qualys-sentinel/handler/internal/check"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/ondemand"
	"qualys-sentinel/handler/internal/simulator"
	"qualys-sentinel/handler/internal/status"
)

type (
	// Subscription is the simulator's.
	Subscription = simulator.Subscription
	// Qualys is the simulator's.
	Qualys = simulator.Qualys
	// Azure is the simulator's.
	Azure = simulator.Azure
	// Place is the simulator's.
	Place = simulator.Place
	// Host is the simulator's.
	Host = simulator.Host
	// Tag is the simulator's.
	Tag = simulator.Tag
	// Detection is the simulator's.
	Detection = simulator.Detection
	// Knowledge is the simulator's.
	Knowledge = simulator.Knowledge
	// Edit is the simulator's.
	Edit = simulator.Edit
	// Fault is the simulator's.
	Fault = simulator.Fault
	// Faulty is the simulator's.
	Faulty = simulator.Faulty
	// Spoiling is the simulator's.
	Spoiling = simulator.Spoiling
	// Report is the run record.
	Report = ingest.Report
	// Checkpoint is the document that runs keep.
	Checkpoint = ingest.Checkpoint
	// StatusDocument is what QualysStatus answers.
	StatusDocument = status.Document
	// SyncDocument is what it answers of one sync.
	SyncDocument = status.SyncDocument
	// Sync is one of those.
	Sync = status.Sync
	// Request is what somebody asked for.
	Request = ondemand.Request
	// CheckReport is what QualysCheck answers.
	CheckReport = check.Report
)

// IdentityPath is where the simulated identity answers.
const IdentityPath = simulator.IdentityPath

// What an edit does.
const (
	Changed   = simulator.Changed
	Disabled  = simulator.Disabled
	Published = simulator.Published
)

// What a run may have in flight, and how far its window reaches back.
const (
	InFlight = ingest.DefaultInFlight
	Overlap  = ingest.DefaultOverlap
)

// Status and Reset are ways in which an answer goes wrong.
var (
	Status = simulator.Status
	Reset  = simulator.Reset
)

// NewSubscription makes a subscription from a seed.
func NewSubscription(seed uint64, hosts, detections int) *Subscription {
	return simulator.NewSubscription(seed, hosts, detections)
}

// NewQualys makes its API server.
func NewQualys(s *Subscription, user, password string) *Qualys {
	return simulator.NewQualys(s, user, password)
}

// NewAzure makes the Azure side, with the tables of all datasets.
func NewAzure() *Azure {
	return simulator.NewAzure(ingest.Schemas()...)
}
