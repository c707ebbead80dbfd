package functions

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// pipes is a listener of connections in memory, for a bubble of testing/synctest.
type pipes struct {
	made   chan net.Conn
	closed chan struct{}
}

func newPipes() *pipes { return &pipes{make(chan net.Conn), make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.made:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial() net.Conn {
	here, there := net.Pipe()
	p.made <- there
	return here
}

const goodRequest = `{"Data":{"req":{"Url":"https://x/","Method":"POST","Headers":{},"Params":{},"Body":"hello"}},"Metadata":{}}`

// Requests that never arrive whole hold the places to read for half a minute each, and no
// longer: whoever comes behind them is served then.
func TestSlowBodiesHoldNobodyUpForLong(t *testing.T) {
	for name, c := range map[string]struct {
		head    string
		drip    string // sent every five seconds, for ever
		callers int
		longest time.Duration // until the good one is served
	}{
		"nothing comes":                         {head: "Content-Length: 1000\r\n\r\n", callers: maxReading, longest: readTime},
		"half of it comes":                      {head: "Content-Length: 1000\r\n\r\n" + goodRequest[:50], callers: maxReading, longest: readTime},
		"it drips":                              {head: "Content-Length: 1000\r\n\r\n", drip: "x", callers: maxReading, longest: readTime},
		"chunks without an end":                 {head: "Transfer-Encoding: chunked\r\n\r\n", drip: "1\r\nx\r\n", callers: maxReading, longest: readTime},
		"a chunk that does not come":            {head: "Transfer-Encoding: chunked\r\n\r\nfff\r\n", callers: maxReading, longest: readTime},
		"a size of a chunk that drips":          {head: "Transfer-Encoding: chunked\r\n\r\n", drip: "0", callers: maxReading, longest: readTime},
		"twelve of them":                        {head: "Content-Length: 1000\r\n\r\n", callers: 3 * maxReading, longest: 3 * readTime},
		"one less than places":                  {head: "Content-Length: 1000\r\n\r\n", callers: maxReading - 1, longest: 0},
		"too long, and announced":               {head: "Content-Length: 1000000\r\n\r\n", callers: 3 * maxReading, longest: 0},
		"a little too long, and announced":      {head: "Content-Length: 100000\r\n\r\n", callers: 3 * maxReading, longest: 0},
		"a length that is none of this world's": {head: "Content-Length: 9223372036854775807\r\n\r\n", callers: 3 * maxReading, longest: 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				listener := newPipes()
				server := &http.Server{Handler: &Host{HTTP: map[string]http.Handler{"F": &door{}}, Log: zap.NewNop()}}
				served := make(chan error, 1)
				go func() { served <- server.Serve(listener) }()
				ctx, cancel := context.WithCancel(context.Background())
				var conns []net.Conn
				for range c.callers {
					conn := listener.dial()
					conns = append(conns, conn)
					go func() { _, _ = io.Copy(io.Discard, conn) }()
					go func() {
						_, _ = io.WriteString(conn, "POST /F HTTP/1.1\r\nHost: x\r\n"+c.head)
						for c.drip != "" && ctx.Err() == nil {
							select {
							case <-time.After(5 * time.Second):
							case <-ctx.Done():
								return
							}
							if _, err := io.WriteString(conn, c.drip); err != nil {
								return
							}
						}
					}()
				}
				synctest.Wait()
				began := time.Now()
				good := listener.dial()
				conns = append(conns, good)
				go func() {
					_, _ = fmt.Fprintf(good, "POST /F HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(goodRequest), goodRequest)
				}()
				resp, err := http.ReadResponse(bufio.NewReader(good), nil)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				if took := time.Since(began); err != nil || !strings.Contains(string(body), `"body":"hello"`) || took > c.longest {
					t.Errorf("served after %s: %v %s, want %s", took, err, body, c.longest)
				}
				cancel()
				for _, conn := range conns {
					conn.Close()
				}
				server.Close()
				if err := <-served; !errors.Is(err, http.ErrServerClosed) {
					t.Error(err)
				}
				time.Sleep(time.Second) // net/http lets connections that it closes linger
			})
		})
	}
}

// Whoever is refused is told so, although the rest of the request never comes.
func TestRefusalsDoNotWaitForTheRestOfARequest(t *testing.T) {
	for name, c := range map[string]struct {
		closed bool
		head   string
		want   string
	}{
		"closed, and a body that does not come":     {true, "Content-Length: 1000\r\n\r\n", `"statusCode":404`},
		"closed, and half a body":                   {true, "Content-Length: 1000\r\n\r\n" + goodRequest[:50], `"statusCode":404`},
		"closed, and a long body":                   {true, "Content-Length: 1000000\r\n\r\n", `"statusCode":404`},
		"closed, and chunks that do not come":       {true, "Transfer-Encoding: chunked\r\n\r\n", `"statusCode":404`},
		"closed, and no body":                       {true, "\r\n", `"statusCode":404`},
		"too long":                                  {false, "Content-Length: 1000000\r\n\r\n", `"statusCode":413`},
		"too long by a little":                      {false, "Content-Length: 100000\r\n\r\n", `"statusCode":413`},
		"not too long, and a body that breaks off":  {false, "Content-Length: 1000\r\n\r\n" + goodRequest[:50], `"statusCode":400`},
		"no length, and chunks that do not go on":   {false, "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", `"statusCode":400`},
		"no length, and more than a door lets in":   {false, "Transfer-Encoding: chunked\r\n\r\n186a0\r\n" + strings.Repeat("x", 100_000) + "\r\n", `"statusCode":413`},
		"no length, and a chunk that is malformed":  {false, "Transfer-Encoding: chunked\r\n\r\nzz\r\n", `"statusCode":400`},
		"no length, and a line of sizes for ever":   {false, "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("0", 10_000), `"statusCode":400`},
		"a body that is there, and no JSON":         {false, "Content-Length: 5\r\n\r\nhello", `"statusCode":400`},
		"a body that is there, and an empty object": {false, "Content-Length: 2\r\n\r\n{}", `"statusCode":400`},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				listener := newPipes()
				server := &http.Server{Handler: &Host{HTTP: map[string]http.Handler{"F": &door{closed: c.closed}}, Log: zap.NewNop()}}
				served := make(chan error, 1)
				go func() { served <- server.Serve(listener) }()
				conn := listener.dial()
				go func() { _, _ = io.WriteString(conn, "POST /F HTTP/1.1\r\nHost: x\r\n"+c.head) }()
				_ = conn.SetReadDeadline(time.Now().Add(2 * readTime))
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Errorf("no answer in %s: %v, want %s", 2*readTime, err, c.want)
				} else if body, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(body), c.want) {
					t.Errorf("answer = %s, %v, want %s", body, err, c.want)
				}
				conn.Close()
				server.Close()
				<-served
				time.Sleep(time.Second) // net/http lets connections that it closes linger
			})
		})
	}
}
