package main

import (
	"context"
	"os"
	"sync"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"qualys-sentinel/handler/internal/functions"
	"qualys-sentinel/handler/internal/ingest"
)

// serve is the custom handler. It opens its port before anything else: the
// settings may need Key Vault, and the host does not wait long.
func serve(ctx context.Context, port string) int {
	level := zap.NewAtomicLevel()
	log := newLog(level)
	app := &app{log: log, level: level}
	host := &functions.Host{Log: log, Functions: map[string]functions.Function{}}
	for _, dataset := range ingest.Datasets() {
		host.Functions[dataset.Function] = func(ctx context.Context, in functions.Invocation) error {
			return app.tick(ctx, dataset, in)
		}
	}
	if err := host.Serve(ctx, port); err != nil {
		log.Error("handler ended", zap.Error(err))
	}
	return exitStopped
}

// app is the state of a handler between invocations.
type app struct {
	log   *zap.Logger
	level zap.AtomicLevel

	mu        sync.Mutex
	connector *connector
}

// open reads the settings at the first invocation, and again as long as they
// are wrong: a Key Vault role that was just given takes some minutes.
func (a *app) open(ctx context.Context) (*connector, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.connector != nil {
		return a.connector, nil
	}
	c, err := open(ctx, os.Environ(), "")
	if err != nil {
		return nil, err
	}
	if level, err := zapcore.ParseLevel(c.settings.LogLevel); err == nil {
		a.level.SetLevel(level)
	}
	a.connector = c
	return c, nil
}

// tick is one run of a dataset.
func (a *app) tick(ctx context.Context, dataset *ingest.Dataset, in functions.Invocation) error {
	log := a.log.With(zap.String("invocation", in.ID), zap.Bool("pastDue", in.PastDue))
	c, err := a.open(ctx)
	if err != nil {
		log.Error("run not started", zap.String("dataset", dataset.Name), zap.Error(err))
		return err
	}
	r, err := c.run(dataset, log)
	if err != nil {
		log.Error("run not started", zap.String("dataset", dataset.Name), zap.Error(err))
		return err
	}
	// The destinations of the app hold nothing that has to be closed.
	_, err = r.Do(ctx)
	r.Log.Info("limits of the Qualys subscription", zap.Any("limits", c.client.Limits()))
	return err
}

// newLog writes one JSON object a line to stdout. The host marks lines of
// stderr as errors, whatever they say.
func newLog(level zap.AtomicLevel) *zap.Logger {
	config := zap.NewProductionEncoderConfig()
	config.EncodeTime = zapcore.ISO8601TimeEncoder
	config.EncodeDuration = zapcore.StringDurationEncoder
	config.TimeKey, config.MessageKey = "time", "message"
	out := zapcore.Lock(os.Stdout)
	return zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(config), out, level), zap.ErrorOutput(out))
}
