package rig

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
)

// Load is test/echo's load client at work in a pod.
type Load struct {
	w      *World
	cmd    *lab.Command
	out    *os.File
	lines  *bufio.Scanner
	report LoadReport

	p50, p99 []int64 // of each second
}

// LoadReport is what the load client says of all requests.
type LoadReport struct {
	Final            bool
	Sent, OK, Failed int
	Errors           map[string]int
	First            []string // error of each kind, with its time and addresses
	// Times that requests took, in microseconds: of P50 and P99 the median of all
	// seconds, and Max over all of them.
	P50 int64 `json:"p50us"`
	P99 int64 `json:"p99us"`
	Max int64 `json:"maxus"`
}

// StartLoad begins to make requests at a constant rate and returns when the
// first second is over.
func (w *World) StartLoad(from lab.Where, to netip.AddrPort, rate int) *Load {
	w.t.Helper()
	return w.startLoad(from, to, rate)
}

// StartConnections is StartLoad with a connection for each request.
func (w *World) StartConnections(from lab.Where, to netip.AddrPort, rate int) *Load {
	w.t.Helper()
	return w.startLoad(from, to, rate, "-per-conn", "1", "-workers", "64")
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
	return w.startLoad(from, to, rate, "-per-conn", "0", "-workers", strconv.Itoa(conns), "-protocol", protocol)
}

func (w *World) startLoad(from lab.Where, to netip.AddrPort, rate int, more ...string) *Load {
	w.t.Helper()
	r, out, err := os.Pipe()
	if err != nil {
		w.t.Fatal(err)
	}
	cmd, err := w.Exec(w.ctx, from, lab.ExecOptions{Stdout: out, Stderr: os.Stderr},
		append([]string{Bin("echo"), "load", "-url", "http://" + to.String() + "/", "-rate", strconv.Itoa(rate), "-duration", "0"}, more...)...)
	_ = out.Close()
	if err != nil {
		w.t.Fatal(err)
	}
	l := &Load{w: w, cmd: cmd, out: r, lines: bufio.NewScanner(r)}
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
	if !l.lines.Scan() {
		l.w.t.Fatalf("the load client has ended: %v", l.lines.Err())
	}
	l.report = LoadReport{}
	if err := json.Unmarshal(l.lines.Bytes(), &l.report); err != nil {
		l.w.t.Fatalf("%v: %s", err, l.lines.Text())
	}
	if !l.report.Final {
		l.p50, l.p99 = append(l.p50, l.report.P50), append(l.p99, l.report.P99)
	} else if n := len(l.p50); n > 0 {
		slices.Sort(l.p50)
		slices.Sort(l.p99)
		l.report.P50, l.report.P99 = l.p50[n/2], l.p99[n/2]
	}
}

// Stop ends the load and returns the sum of it.
func (l *Load) Stop() LoadReport {
	l.w.t.Helper()
	if err := l.cmd.Signal(lab.SIGTERM); err != nil {
		l.w.t.Fatal(err)
	}
	for !l.report.Final {
		l.next()
	}
	if _, err := l.cmd.Wait(); err != nil {
		l.w.t.Error(err)
	}
	return l.report
}

// Clean ends the load, of which nothing may have failed.
func (l *Load) Clean() LoadReport {
	l.w.t.Helper()
	r := l.Stop()
	if r.Failed > 0 || r.OK == 0 {
		l.w.t.Errorf("of %d requests, %d were answered and %d failed: %v\nthe first of each kind:\n%s", r.Sent, r.OK, r.Failed, r.Errors, strings.Join(r.First, "\n"))
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

// Sample is one series of a component's metrics.
type Sample struct {
	Name   string
	Labels map[string]string
	Value  float64
}

var (
	series = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? ([^ ]+)`)
	label  = regexp.MustCompile(`([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"`)
)

// Metrics are the series of a node's proxy with a name.
func (w *World) Metrics(node, name string) []Sample {
	w.t.Helper()
	return w.MetricsIn(lab.InZtunnel(node), name)
}

// MetricsIn are the series with a name of the proxy in a place.
func (w *World) MetricsIn(in lab.Where, name string) []Sample {
	w.t.Helper()
	b, err := w.Lab.Get(context.WithoutCancel(w.ctx), in, "http://127.0.0.1:15020/metrics")
	if err != nil {
		w.t.Fatal(err)
	}
	var out []Sample
	for line := range strings.Lines(string(b)) {
		m := series.FindStringSubmatch(line)
		if m == nil || m[1] != name {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(m[3]), 64)
		if err != nil {
			w.t.Fatalf("%s: %v", line, err)
		}
		s := Sample{Name: m[1], Labels: map[string]string{}, Value: v}
		for _, l := range label.FindAllStringSubmatch(m[2], -1) {
			s.Labels[l[1]] = l[2]
		}
		out = append(out, s)
	}
	return out
}
