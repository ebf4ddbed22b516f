package rig

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/traffic"
)

// Load is test/echo's load client at work in a pod.
type Load struct {
	w       *World
	cmd     *lab.Command
	reports *traffic.Decoder
	last    traffic.Report
}

// StartLoad begins to make requests at a constant rate and returns when the
// first second is over.
func (w *World) StartLoad(from lab.Where, to netip.AddrPort, rate int) *Load {
	w.t.Helper()
	return w.StartLoadWith(from, "http://"+to.String()+"/", rate)
}

// StartConnections is StartLoad with a connection for each request.
func (w *World) StartConnections(from lab.Where, to netip.AddrPort, rate int) *Load {
	w.t.Helper()
	return w.StartLoadWith(from, "http://"+to.String()+"/", rate, "-per-conn", "1", "-workers", "64")
}

// StartKept is StartLoad with connections that the client keeps as long as it may, by a
// protocol of the load client: http1, h2 or grpc.
func (w *World) StartKept(from lab.Where, to netip.AddrPort, rate int, protocol string) *Load {
	w.t.Helper()
	return w.StartKeptOn(from, to, rate, protocol, 8)
}

// StartKeptOn is StartKept with a number of connections.
func (w *World) StartKeptOn(from lab.Where, to netip.AddrPort, rate int, protocol string, conns int) *Load {
	w.t.Helper()
	return w.StartLoadWith(from, "http://"+to.String()+"/", rate, "-per-conn", "0", "-workers", strconv.Itoa(conns), "-protocol", protocol)
}

// StartLoadWith is StartLoad with more arguments of the load client.
func (w *World) StartLoadWith(from lab.Where, url string, rate int, more ...string) *Load {
	w.t.Helper()
	r, out, err := os.Pipe()
	if err != nil {
		w.t.Fatal(err)
	}
	cmd, err := w.Exec(w.ctx, from, lab.ExecOptions{Stdout: out, Stderr: os.Stderr},
		append([]string{Bin("echo"), "load", "-url", url, "-rate", strconv.Itoa(rate), "-duration", "0"}, more...)...)
	_ = out.Close()
	if err != nil {
		w.t.Fatal(err)
	}
	l := &Load{w: w, cmd: cmd, reports: traffic.Reports(r)}
	w.t.Cleanup(func() { _ = r.Close() })
	l.Seconds(1)
	return l
}

// Seconds waits until the client has reported n more seconds.
func (l *Load) Seconds(n int) {
	l.w.t.Helper()
	for range n {
		l.next()
	}
}

func (l *Load) next() {
	l.w.t.Helper()
	var err error
	if l.last, err = l.reports.Next(); err != nil {
		l.w.t.Fatalf("reports of the load client: %v", err)
	}
}

// Stop ends the load and returns the sum of it.
func (l *Load) Stop() traffic.Report {
	l.w.t.Helper()
	if err := l.cmd.Signal(lab.SIGTERM); err != nil {
		l.w.t.Fatal(err)
	}
	for !l.last.Final {
		l.next()
	}
	if _, err := l.cmd.Wait(); err != nil {
		l.w.t.Error(err)
	}
	return l.last
}

// Clean ends the load, of which nothing may have failed.
func (l *Load) Clean() traffic.Report {
	l.w.t.Helper()
	r := l.Stop()
	if err := r.Clean(); err != nil {
		l.w.t.Error(err)
	}
	return r
}

// Conn is a connection to an echo server.
type Conn struct {
	net.Conn
	r *bufio.Reader
}

// Hold connects from a pod to an echo server and makes sure that it answers.
// The connection ends with the test.
func (w *World) Hold(from lab.Where, to netip.AddrPort) (*Conn, error) {
	c, err := w.Dial(w.ctx, from, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	w.t.Cleanup(func() { _ = c.Close() })
	h := &Conn{Conn: c, r: bufio.NewReader(c)}
	return h, h.Ping()
}

// MustHold is Hold that must work.
func (w *World) MustHold(from lab.Where, to netip.AddrPort) *Conn {
	w.t.Helper()
	h, err := w.Hold(from, to)
	if err != nil {
		w.t.Fatalf("echo from %s to %s: %v", from, to, err)
	}
	return h
}

// Ping sends a line and wants it back.
func (c *Conn) Ping() error {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "ping\n"); err != nil {
		return err
	}
	s, err := c.r.ReadString('\n')
	if err == nil && s != "ping\n" {
		err = fmt.Errorf("got %q", s)
	}
	return err
}

// AwaitEnd waits until the connection ends, and returns how: io.EOF, or the
// error of a reset. It is nil when the connection does not end.
func (c *Conn) AwaitEnd() error {
	_ = c.SetDeadline(time.Now().Add(patience))
	for {
		if _, err := c.r.ReadByte(); errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// Metrics are the series of a node's proxy with a name.
func (w *World) Metrics(node, name string) []traffic.Sample {
	w.t.Helper()
	return w.MetricsIn(lab.InZtunnel(node), name)
}

// MetricsIn are the series with a name of the proxy in a place.
func (w *World) MetricsIn(in lab.Where, name string) []traffic.Sample {
	w.t.Helper()
	b, err := w.Lab.Get(context.WithoutCancel(w.ctx), in, "http://127.0.0.1:15020/metrics")
	if err != nil {
		w.t.Fatal(err)
	}
	return w.samples(b, name)
}

// AgentMetrics are the series with a name of a node's agent.
func (w *World) AgentMetrics(node, name string) []traffic.Sample {
	w.t.Helper()
	b, err := w.Admin(context.WithoutCancel(w.ctx), "ambit-cni/"+node, "/metrics")
	if err != nil {
		w.t.Fatal(err)
	}
	return w.samples(b, name)
}

// samples are the series with a name in a text of Prometheus.
func (w *World) samples(text []byte, name string) []traffic.Sample {
	w.t.Helper()
	out, err := traffic.Samples(string(text), name)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}
