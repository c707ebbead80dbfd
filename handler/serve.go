package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"qualys-sentinel/handler/internal/api"
	"qualys-sentinel/handler/internal/check"
	"qualys-sentinel/handler/internal/functions"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/ondemand"
	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/redact"
	"qualys-sentinel/handler/internal/settings"
	"qualys-sentinel/handler/internal/status"
)

// serve is the custom handler. It opens its port before anything else: the
// settings may need Key Vault, and the host does not wait long.
func serve(ctx context.Context, port string) int {
	level := zap.NewAtomicLevel()
	secrets := &redact.Redactor{}
	log := newLog(os.Stdout, level, secrets)
	// What is asked for over HTTP goes on behind its answer, until the program
	// is to stop.
	asked, stop := context.WithCancel(ctx)
	defer stop()
	app := newApp(asked, log, level)
	app.secrets = secrets
	host := &functions.Host{
		Log:    log,
		Timers: map[string]functions.Timer{},
		HTTP:   (&api.API{Backend: app, Log: log, Now: time.Now}).Functions(),
	}
	host.HTTP["QualysIntegration"] = api.NewIntegration(app, ingest.SystemClock{}, log)
	for _, dataset := range ingest.Datasets() {
		host.Timers[dataset.Function] = func(ctx context.Context, in functions.Invocation) error {
			return app.tick(ctx, dataset, in)
		}
	}
	if err := host.Serve(ctx, port); err != nil {
		log.Error("handler ended", zap.Error(err))
	}
	stop()
	app.wait(functions.StopGrace)
	return exitStopped
}

// app is the state of a handler between invocations.
type app struct {
	log   *zap.Logger
	level zap.AtomicLevel
	// secrets are cut out of the log, whoever wrote them there.
	secrets *redact.Redactor
	// environ is where the settings are; outside what connectors work with beside them.
	environ func() []string
	outside outside
	// asked is the context of what was asked for over HTTP.
	asked context.Context //nolint:containedctx // it outlives the calls that begin it

	// opening holds a token while somebody opens a connector: Key Vault may be slow,
	// and nobody is to wait for longer than its call.
	opening   chan struct{}
	connector *connector
	status    *status.Source
	known     atomic.Bool  // there is a connector
	strangers atomic.Int64 // when a stranger has last made the settings be read
	// checkedBefore is what an earlier check has asked Qualys with, while there was
	// no connector yet.
	checkedBefore atomic.Pointer[connector]
	jobs          sync.WaitGroup
	// gathering holds a token while the status is read, of which gathered is the last,
	// begun at gatheredAt by this process' own clock.
	gathering  chan struct{}
	gathered   status.Document
	gatheredAt time.Time
}

var (
	_ api.Backend            = (*app)(nil)
	_ api.IntegrationBackend = (*app)(nil)
)

func newApp(asked context.Context, log *zap.Logger, level zap.AtomicLevel) *app {
	return &app{log: log, level: level, asked: asked, environ: os.Environ, opening: make(chan struct{}, 1), gathering: make(chan struct{}, 1)}
}

// open reads the settings at the first invocation, and again as long as they
// are wrong: a Key Vault role that was just given takes some minutes.
func (a *app) open(ctx context.Context) (*connector, error) {
	select {
	case a.opening <- struct{}{}:
		defer func() { <-a.opening }()
	case <-ctx.Done():
		return nil, fmt.Errorf("the settings are still being read: %w", context.Cause(ctx))
	}
	if a.connector != nil {
		return a.connector, nil
	}
	c, err := open(ctx, a.environ(), purpose{log: a.log, secrets: a.secrets, outside: a.outside})
	if err != nil {
		return nil, err
	}
	if level, err := zapcore.ParseLevel(c.settings.LogLevel); err == nil {
		a.level.SetLevel(level)
	}
	a.connector, a.status = c, c.statusSource()
	a.known.Store(true)
	return c, nil
}

// tick is one run of a dataset, and what was asked for and has not arrived.
func (a *app) tick(ctx context.Context, dataset *ingest.Dataset, in functions.Invocation) error {
	log := a.log.With(zap.String("invocation", in.ID), zap.Bool("pastDue", in.PastDue), zap.String("dataset", dataset.Name))
	c, err := a.open(ctx)
	if err != nil {
		log.Error("run not started", zap.Error(err))
		return err
	}
	// The destinations of the app hold nothing that has to be closed.
	report, err := c.tick(ctx, dataset)
	if report.Run == "" && err != nil {
		log.Error("run not started", zap.Error(err))
	}
	log.Info("tick ended", zap.String("run", report.Run), zap.Any("limits", c.client.Limits()))
	return err
}

// Sync implements api.Backend.
func (a *app) Sync(ctx context.Context, datasets []*ingest.Dataset, w ondemand.Window) (string, error) {
	c, err := a.open(ctx)
	if err != nil {
		return "", err
	}
	jobs, err := c.desk.Ask(ctx, datasets, w)
	if err != nil {
		return "", err
	}
	for _, job := range jobs {
		a.jobs.Go(func() {
			// The run has logged its end, and the request tells it.
			_, _ = c.desk.Do(a.asked, job)
		})
	}
	return jobs[0].ID, nil
}

// wait waits for what was asked for to end in good order, but not for long.
func (a *app) wait(most time.Duration) {
	done := make(chan struct{})
	go func() {
		a.jobs.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(most):
		a.log.Warn("runs given up; the next tick goes on")
	}
}

// strangersEvery is how often a caller who has not logged in may make the settings be
// read that could not be read before.
const strangersEvery = 10 * time.Second

// Registry implements api.IntegrationBackend. Who calls it may be anybody: where the
// settings are still to be read, it neither queues nor tries again and again.
func (a *app) Registry(ctx context.Context) (r api.Registry, user, password string, err error) {
	if a.Off() {
		return nil, "", "", api.ErrOff
	}
	if !a.known.Load() {
		now := time.Now().UnixNano()
		before := a.strangers.Load()
		if now-before < int64(strangersEvery) || len(a.opening) > 0 || !a.strangers.CompareAndSwap(before, now) {
			return nil, "", "", errors.New("the settings are still being read, or could not be read")
		}
	}
	c, err := a.open(ctx)
	if err != nil {
		return nil, "", "", err
	}
	if !c.settings.IntegrationAPI {
		return nil, "", "", api.ErrOff
	}
	user, password = c.settings.Credentials().Login()
	return c.integrations, user, password, nil
}

// Off implements api.IntegrationBackend.
func (a *app) Off() bool { return settings.IntegrationAPIOff(a.environ()) }

// Renew implements api.IntegrationBackend.
func (a *app) Renew(ctx context.Context) (user, password string, err error) {
	c, err := a.open(ctx)
	if err == nil {
		_, err = c.settings.Credentials().Reload(ctx)
	}
	if err != nil {
		return "", "", err
	}
	user, password = c.settings.Credentials().Login()
	return user, password, nil
}

// CheckFilter implements api.Backend.
func (a *app) CheckFilter(filter string) error { return checkFilter(filter) }

// checkFilter says what is wrong with request parameters.
func checkFilter(filter string) error {
	values, _, err := settings.ParseFilter(filter)
	if err != nil {
		return err
	}
	return qualys.CheckFilter(values)
}

// Status implements api.Backend. Callers who wait for their turn together share what one
// of them reads. What was read before a caller came is not for it: it may have begun a
// run meanwhile, and would look for it in vain.
func (a *app) Status(ctx context.Context, host string) (status.Document, error) {
	came := time.Now()
	if _, err := a.open(ctx); err != nil {
		return status.Document{}, err
	}
	leave, err := a.turn(ctx)
	if err != nil {
		return status.Document{}, err
	}
	defer leave()
	if a.gatheredAt.Before(came) {
		a.gatheredAt = time.Now()
		a.gathered = a.status.Gather(ctx)
	}
	doc := a.gathered
	if ctx.Err() != nil { // it tells what its caller could not wait for
		a.gathered, a.gatheredAt = status.Document{}, time.Time{}
	}
	doc.Program.Host = host
	return doc, nil
}

// turnTime is how long a caller waits for its turn to read the status: one who reads a
// state that hangs takes 20 s, and the platform ends a call after 230.
const turnTime = 30 * time.Second

// turn waits for the turn to read the status: the lists of the state take memory, and
// many may ask at once.
func (a *app) turn(ctx context.Context) (leave func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, turnTime)
	defer cancel()
	select {
	case a.gathering <- struct{}{}:
		return func() { <-a.gathering }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("the status is still being read for others: %w", context.Cause(ctx))
	}
}

// Find implements api.Backend.
func (a *app) Find(ctx context.Context, id string) (*status.SyncDocument, error) {
	if _, err := a.open(ctx); err != nil {
		return nil, err
	}
	leave, err := a.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	return a.status.Find(ctx, id)
}

// Check implements api.Backend. It works with the connector that runs work with,
// where there is one, or with that of an earlier check: they know the limits, and
// which login was refused.
func (a *app) Check(ctx context.Context) check.Report {
	known := a.known.Load()
	c, err := a.open(ctx)
	before := a.checkedBefore.Load()
	sides := newChecked(ctx, c, err, a.environ(), purpose{outside: a.outside}, before)
	if err != nil {
		a.checkedBefore.CompareAndSwap(before, sides.source)
	}
	if known && err == nil { // its secrets may have been read long ago
		if _, err := c.settings.Credentials().Reload(ctx); err != nil {
			sides.parts.Faults = []settings.Fault{{Setting: "Key Vault", Problem: err.Error(), Vault: true}}
		}
	}
	return sides.run(ctx, nil)
}

// cleanWriter writes lines without secrets.
type cleanWriter struct {
	to      io.Writer
	secrets *redact.Redactor
}

func (w cleanWriter) Write(line []byte) (int, error) {
	if _, err := io.WriteString(w.to, w.secrets.Text(string(line))); err != nil {
		return 0, err //nolint:wrapcheck // the log has no place to say it
	}
	return len(line), nil
}

// newLog writes one JSON object a line to out: stdout, as the host marks lines of
// stderr as errors, whatever they say.
func newLog(out io.Writer, level zap.AtomicLevel, secrets *redact.Redactor) *zap.Logger {
	config := zap.NewProductionEncoderConfig()
	config.EncodeTime = zapcore.ISO8601TimeEncoder
	config.EncodeDuration = zapcore.StringDurationEncoder
	config.TimeKey, config.MessageKey = "time", "message"
	lines := zapcore.Lock(zapcore.AddSync(cleanWriter{out, secrets}))
	return zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(config), lines, level), zap.ErrorOutput(lines))
}
