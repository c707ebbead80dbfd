package main

import (
	"crypto/rand"
	"net/http"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"

	"qualys-sentinel/handler/internal/ingest"
)

// outside is what a connector works with beside its settings. The zero value is the
// machine that it runs on; a simulation puts one of its own in place.
type outside struct {
	// transport of all calls; nil: the network.
	transport http.RoundTripper
	// credential of the app; nil: its identity's.
	credential azcore.TokenCredential
	// clock of runs; nil: the machine's.
	clock ingest.Clock
	// newID makes ids of runs; nil: by chance.
	newID func() string
	// batchBytes is the longest batch, hosts and qids are the largest pages, recent is how
	// many rows delivered lately are remembered; zero: what the destination takes, what the
	// settings say, and the default. A small estate makes several that way.
	batchBytes, hosts, qids, recent int
}

func (o *outside) time() ingest.Clock {
	if o.clock == nil {
		return ingest.SystemClock{}
	}
	return o.clock
}

// runID makes the id of a run.
func (o *outside) runID() string {
	if o.newID == nil {
		return strings.ToLower(rand.Text()[:16])
	}
	return o.newID()
}

// client makes calls for the Azure SDK; nil: the SDK's own.
func (o *outside) client() *http.Client {
	if o.transport == nil {
		return nil
	}
	return &http.Client{Transport: o.transport}
}
