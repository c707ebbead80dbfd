package simulator

import (
	"context"
	"io"
	"net/http"
	"sync"
)

// A Transport answers requests by a handler in memory. No network is in between, so
// the answer may take virtual time: see testing/synctest.
type Transport struct{ Handler http.Handler }

// RoundTrip implements http.RoundTripper. A handler that is still writing when the
// request is given up sees its context end, and its writes fail.
func (t Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	in := r.Clone(ctx)
	in.RequestURI = r.URL.RequestURI()
	in.Header = make(http.Header, len(r.Header)) // in the form that a server's have, whatever the client wrote
	for name, values := range r.Header {
		for _, v := range values {
			in.Header.Add(name, v)
		}
	}
	if in.Body == nil {
		in.Body = http.NoBody
	}
	body, out := io.Pipe()
	w := &memoryAnswer{header: http.Header{}, out: out, begun: make(chan struct{})}
	go func() {
		defer func() {
			if p := recover(); p != nil { // http.ErrAbortHandler, as the handlers break off
				w.abort()
				out.CloseWithError(io.ErrUnexpectedEOF)
				return
			}
			w.WriteHeader(http.StatusOK)
			out.Close() //nolint:errcheck // it returns nil
		}()
		t.Handler.ServeHTTP(w, in)
	}()
	stop := context.AfterFunc(ctx, func() { body.CloseWithError(context.Cause(ctx)) })
	select {
	case <-w.begun:
	case <-ctx.Done():
		cancel(nil)
		return nil, context.Cause(ctx)
	}
	if w.status == 0 {
		stop()
		cancel(nil)
		return nil, io.ErrUnexpectedEOF // as when a connection breaks before an answer
	}
	return &http.Response{
		Status: http.StatusText(w.status), StatusCode: w.status, Header: w.header, Request: r, ContentLength: -1,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body: &memoryBody{PipeReader: body, end: func() { stop(); cancel(nil) }},
	}, nil
}

// memoryAnswer is the handler's side of an answer.
type memoryAnswer struct {
	header http.Header
	out    *io.PipeWriter
	once   sync.Once
	begun  chan struct{}
	status int
}

func (w *memoryAnswer) Header() http.Header { return w.header }

func (w *memoryAnswer) WriteHeader(status int) {
	w.once.Do(func() {
		w.status = status
		w.header = w.header.Clone()
		close(w.begun)
	})
}

// abort breaks off an answer that has not begun.
func (w *memoryAnswer) abort() { w.once.Do(func() { close(w.begun) }) }

func (w *memoryAnswer) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.out.Write(p) //nolint:wrapcheck // the reader's own error
}

// Flush implements http.Flusher: what is written is there at once.
func (w *memoryAnswer) Flush() { w.WriteHeader(http.StatusOK) }

// memoryBody is the client's side.
type memoryBody struct {
	*io.PipeReader
	end func()
}

func (b *memoryBody) Close() error {
	b.end()
	return b.PipeReader.Close() //nolint:wrapcheck // it returns nil
}
