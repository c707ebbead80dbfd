package check

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/loganalytics"
	"qualys-sentinel/handler/internal/record"
)

// Titles of the steps of the Azure side.
const (
	titleStorage     = "State: storage"
	titleCheckpoints = "State: checkpoints"
	titleSignIn      = "Log Analytics: sign-in"
)

const adviceStorage = "the text says what; README.md has a table under \"the state\""

// test writes, leases and deletes a document of its own, and reads the
// checkpoints.
func (s *State) test(ctx context.Context, b *bench) {
	if s == nil {
		b.end("storage", titleStorage, skipped("the settings"))
		b.end("checkpoints", titleCheckpoints, skipped("the settings"))
		return
	}
	step, cancel := b.begin(ctx)
	err := tryStorage(step, s.Store)
	err = timedOut(step, err)
	cancel()
	if err != nil {
		b.end("storage", titleStorage, failed(err.Error(), adviceStorage))
		b.end("checkpoints", titleCheckpoints, skipped("the storage"))
		return
	}
	defer s.integrations(ctx, b) // behind the checkpoints
	b.end("storage", titleStorage, ok("written, leased, listed, deleted"))
	step, cancel = b.begin(ctx)
	defer cancel()
	b.end("checkpoints", titleCheckpoints, s.checkpoints(step))
}

// tidyTime is how long removing what the check has made may take.
const tidyTime = 15 * time.Second

// tryStorage does what a run does, with a document of its own.
func tryStorage(ctx context.Context, store checkpoint.Store) (err error) {
	name := "check/" + strings.ToLower(rand.Text()[:16]) + ".json"
	lease, err := store.Acquire(ctx, name)
	if err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	held := true
	defer func() {
		// Nothing stays behind, even if the time is up.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyTime)
		defer cancel()
		if held {
			err = errors.Join(err, lease.Release(ctx))
		}
		if deleteErr := store.Delete(ctx, name); deleteErr != nil {
			err = errors.Join(err, fmt.Errorf("delete: %w", deleteErr))
		}
	}()
	switch second, err := store.Acquire(ctx, name); {
	case err == nil:
		return errors.Join(errors.New("the storage gives two holds on one document: two runs would not see each other"), second.Release(ctx))
	case !errors.Is(err, checkpoint.ErrHeld):
		return fmt.Errorf("lease: %w", err)
	}
	if _, err := lease.Load(ctx); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if err := lease.Save(ctx, []byte("{}")); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	names, err := store.List(ctx, name)
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	if len(names) != 1 {
		return errors.New("list: what was just written is not there")
	}
	held = false
	return lease.Release(ctx)
}

// checkpoints reads all of them.
func (s *State) checkpoints(ctx context.Context) verdict {
	var found, faults []string
	for _, d := range ingest.Datasets() {
		c, err := ingest.ReadCheckpoint(ctx, s.Store, ingest.CheckpointName(s.Destination, d.Name), d.Name)
		switch {
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			faults = append(faults, err.Error())
		case c == nil || c.Watermark == nil && c.Window == nil:
			found = append(found, d.Name+" has none yet")
		case c.Watermark == nil:
			found = append(found, d.Name+" is in its first window")
		default:
			found = append(found, d.Name+" up to "+c.Watermark.UTC().Format("2006-01-02 15:04 MST"))
		}
	}
	if len(faults) > 0 {
		return failed(strings.Join(faults, "\n"), "the text says what; nothing is read until it is mended")
	}
	return ok("%s", strings.Join(found, ", "))
}

// testStreams posts an empty list of rows to every stream: accepted, it leaves
// nothing behind.
func testStreams(ctx context.Context, b *bench, streams []Stream) {
	if streams == nil {
		b.end("token", titleSignIn, skipped("the settings"))
		return
	}
	first := true
	for _, s := range streams {
		step, cancel := b.begin(ctx)
		_, err := s.Destination.Send(step, record.Batch{Body: []byte("[]")})
		err = timedOut(step, err)
		cancel()
		var e *loganalytics.Error
		errors.As(err, &e)
		if first {
			first = false
			v := signIn(e, err)
			b.end("token", titleSignIn, v)
			if v.result == Failed {
				return
			}
		}
		b.end("table "+s.Table, "Log Analytics: "+s.Table, stream(e, err))
	}
}

// signIn tells whether the destination knows who is asking.
func signIn(e *loganalytics.Error, err error) verdict {
	switch {
	case e == nil && err != nil:
		return failed(err.Error(), "check logAnalyticsUri")
	case e == nil:
		return ok("accepted")
	case e.NoToken:
		return failed(err.Error(), "switch the function app's identity on; on your own machine, sign in with az login")
	case e.Status == 0:
		return failed(err.Error(), "check logAnalyticsUri, and let the app out to it: virtual network, private link, firewall")
	case e.Status == http.StatusUnauthorized:
		return failed(err.Error(), "logAnalyticsUri and the app have to belong to one cloud and tenant")
	case e.Code == "" && e.Kind == loganalytics.Misconfigured:
		return failed(err.Error(), "no API of Log Analytics answers so: check logAnalyticsUri, and what stands in between")
	case e.Status == http.StatusForbidden && e.Code == "InvalidAuthorization":
		return failed(err.Error(), "copy workspaceID and workspaceKey anew; the machine's clock is a part of the signature")
	}
	return ok("the service knows who is asking")
}

// stream tells whether a stream takes rows.
func stream(e *loganalytics.Error, err error) verdict {
	switch {
	case err == nil:
		return ok("it takes rows")
	case e == nil:
		return failed(err.Error(), "check again")
	case e.Kind == loganalytics.Throttled, e.Kind == loganalytics.Unavailable:
		return warning(err.Error(), "nothing: runs try again by themselves")
	case e.Status == http.StatusForbidden:
		return failed(err.Error(), "give the app's identity the role Monitoring Metrics Publisher on the data collection rule; it takes up to 30 minutes")
	case e.Status == http.StatusNotFound:
		return failed(err.Error(), "compare logAnalyticsUri and dcrImmutableId with the outputs of arm/tables.json, and deploy it again if the stream is missing")
	}
	return failed(err.Error(), "deploy arm/tables.json again: table or rule are of another version")
}
