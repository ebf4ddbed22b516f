// Command load makes and measures TCP traffic for the benchmarks: a server
// that does what the first byte of a connection asks for, and a client for
// each question a benchmark has. The client prints one JSON object.
//
//	load server -listen ADDR [-certs DIR -tls ADDR]
//	load throughput|download|echo|rate|connect|hold [flags] ADDR
//	load http|httprate|httphold -proto http|h2|grpc [-certs DIR] [-token TOKEN] [flags] ADDR
//	load besiege -say silent|dribble|stall [flags] ADDR
package main

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// What the first byte of a connection asks of the server.
const (
	askSink = 'S' // read and discard
	askEcho = 'E' // send back what comes
	askBulk = 'B' // send until the client has had enough
	askHTTP = 'G' // the first of a GET request
	askH2   = 'P' // the first of HTTP/2
)

// bulk is the size of reads and writes of a throughput run, in bytes.
const bulk = 256 << 10

// Result is what a client measured. Fields that its mode does not measure are
// left out.
type Result struct {
	Mode      string  `json:"mode"`
	Seconds   float64 `json:"seconds"`
	Bytes     uint64  `json:"bytes,omitempty"`
	Gbits     float64 `json:"gbits,omitempty"`
	Requests  uint64  `json:"requests,omitempty"`
	PerSecond float64 `json:"per_second,omitempty"`
	P50Micros float64 `json:"p50_us,omitempty"`
	P99Micros float64 `json:"p99_us,omitempty"`
	Errors    uint64  `json:"errors"`
	LastError string  `json:"last_error,omitempty"`
	Held      int     `json:"held,omitempty"`
}

type options struct {
	addr     string
	conns    int
	size     int
	rate     int
	proto    string // of requests: http, h2, grpc
	token    string // that requests have, if any
	duration time.Duration
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: load server|throughput|download|echo|rate|connect|hold|http|httprate|httphold|besiege [flags] [ADDR]")
	}
	mode := args[0]
	fs := flag.NewFlagSet(mode, flag.ContinueOnError)
	listen := fs.String("listen", ":9000", "server: address")
	listenTLS := fs.String("tls", "", "server: address of mutual TLS")
	fs.StringVar(&tlsDir, "certs", "", "directory with certificates: a client of requests uses mutual TLS")
	var o options
	fs.IntVar(&o.conns, "conns", 1, "connections at once")
	fs.IntVar(&o.size, "size", 1024, "bytes of a request, or of the body of a response of HTTP")
	fs.StringVar(&o.proto, "proto", "http", "of requests: http, h2 or grpc")
	fs.StringVar(&o.token, "token", "", "of requests: a bearer token")
	fs.IntVar(&o.rate, "rate", 1000, "rate: requests per second, over all connections")
	say := fs.String("say", "silent", "besiege: what is sent on each connection")
	fs.DurationVar(&o.duration, "duration", 2*time.Second, "how long")
	if err := fs.Parse(args[1:]); err != nil {
		return err
	}
	if mode == "server" {
		return serve(*listen, *listenTLS)
	}
	if talks[o.proto] == nil || o.size < 0 || o.size > maxBody {
		return fmt.Errorf("-proto %s -size %d: want http, h2 or grpc, and at most %d", o.proto, o.size, maxBody)
	}
	if mode == "besiege" && fs.NArg() == 1 {
		o.addr = fs.Arg(0)
		return besiege(o, *say)
	}
	clients := map[string]func(options) (Result, error){
		"throughput": throughput, "download": download, "echo": echo, "rate": rate, "connect": connect, "hold": hold, "http": httpLoad, "httprate": httpRate, "httphold": httpHold,
	}
	client, ok := clients[mode]
	if !ok || fs.NArg() != 1 {
		return fmt.Errorf("mode %q with %d addresses: want a mode of the usage and one address", mode, fs.NArg())
	}
	o.addr = fs.Arg(0)
	r, err := client(o)
	if err != nil || mode == "hold" || mode == "httphold" { // hold has said its own
		return err
	}
	r.Mode = mode
	return json.NewEncoder(os.Stdout).Encode(r)
}

func serve(addr, secure string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	if secure == "" {
		return accept(ln)
	}
	cfg, err := tlsConfig()
	if err != nil {
		return err
	}
	lnTLS, err := tls.Listen("tcp", secure, cfg)
	if err != nil {
		return err
	}
	ended := make(chan error, 2)
	go func() { ended <- accept(ln) }()
	go func() { ended <- accept(lnTLS) }()
	return <-ended
}

func accept(ln net.Listener) error {
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go answer(c)
	}
}

func answer(c net.Conn) {
	defer c.Close() //nolint:errcheck // the client has what it wants
	var ask [1]byte
	if _, err := io.ReadFull(c, ask[:]); err != nil {
		return
	}
	switch ask[0] {
	case askBulk:
		pour(c)
		return
	case askHTTP:
		serveHTTP(c)
		return
	case askH2:
		serveHTTP2(c, ask[0])
		return
	}
	// Pooled: a benchmark of new connections is not one of the allocator.
	pool := &echoBuffers
	if ask[0] == askSink {
		pool = &sinkBuffers
	}
	p := pool.Get().(*[]byte)
	defer pool.Put(p)
	buf := *p
	var total uint64
	for {
		n, err := c.Read(buf)
		total += uint64(n)
		if err != nil {
			break
		}
		if ask[0] == askEcho {
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	if ask[0] == askSink {
		// The count tells the client that everything arrived.
		_, _ = fmt.Fprintf(c, "%020d", total)
	}
}

// pour sends until the client ends the connection.
func pour(c net.Conn) {
	p := sinkBuffers.Get().(*[]byte)
	defer sinkBuffers.Put(p)
	for {
		if _, err := c.Write(*p); err != nil {
			return
		}
	}
}

var (
	echoBuffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}
	sinkBuffers = sync.Pool{New: func() any { b := make([]byte, bulk); return &b }}
)

func dial(addr string, ask byte) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return nil, err
	}
	if ask == askHTTP { // it comes with the request
		if tlsDir == "" {
			return c, nil
		}
		cfg, err := tlsConfig()
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		t := tls.Client(c, cfg)
		if err := t.Handshake(); err != nil {
			return nil, errors.Join(err, c.Close())
		}
		return t, nil
	}
	if _, err := c.Write([]byte{ask}); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// throughput sends on every connection for the duration, and counts what the
// server says it has read.
func throughput(o options) (Result, error) {
	conns, err := dialAll(o, askSink)
	if err != nil {
		return Result{}, err
	}
	var total atomic.Uint64
	var failed failures
	start := time.Now()
	stop := start.Add(o.duration)
	each(conns, func(c net.Conn) {
		defer c.Close() //nolint:errcheck // the count was read
		buf := make([]byte, bulk)
		for time.Now().Before(stop) {
			if _, err := c.Write(buf); err != nil {
				failed.add(err)
				return
			}
		}
		_ = c.(*net.TCPConn).CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		answer, err := io.ReadAll(c)
		var n uint64
		if err == nil {
			_, err = fmt.Sscanf(string(answer), "%d", &n)
		}
		if err != nil {
			failed.add(fmt.Errorf("the server's count: %w", err))
		}
		total.Add(n)
	})
	return bulkResult(start, total.Load(), &failed), nil
}

// bulkResult is the result of bytes since a time.
func bulkResult(start time.Time, bytes uint64, failed *failures) Result {
	s := time.Since(start).Seconds()
	r := Result{Seconds: s, Bytes: bytes, Gbits: float64(bytes) * 8 / 1e9 / s}
	failed.into(&r)
	return r
}

// download reads on every connection for the duration what the server sends.
func download(o options) (Result, error) {
	conns, err := dialAll(o, askBulk)
	if err != nil {
		return Result{}, err
	}
	var total atomic.Uint64
	var failed failures
	start := time.Now()
	stop := start.Add(o.duration)
	each(conns, func(c net.Conn) {
		defer func() { // what is on the way is of no use
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		}()
		buf := make([]byte, bulk)
		for time.Now().Before(stop) {
			n, err := c.Read(buf)
			if err != nil {
				failed.add(err)
				return
			}
			total.Add(uint64(n))
		}
	})
	return bulkResult(start, total.Load(), &failed), nil
}

// echo has every connection send and await one request after the other.
func echo(o options) (Result, error) {
	return pingPong(o, false, askEcho, talkEcho)
}

// rate is echo at a fixed rate. A request that could not start in time, because
// the one before it was not answered, is measured from when it should have
// started.
func rate(o options) (Result, error) {
	return pingPong(o, true, askEcho, talkEcho)
}

// talk returns what makes one request on a connection and awaits its answer.
type talk func(o options, c net.Conn) func() error

func talkEcho(o options, c net.Conn) func() error {
	out, in := make([]byte, o.size), make([]byte, o.size)
	return func() error {
		if _, err := c.Write(out); err != nil {
			return err
		}
		_, err := io.ReadFull(c, in)
		return err
	}
}

func pingPong(o options, paced bool, ask byte, by talk) (Result, error) {
	conns, err := dialAll(o, ask)
	if err != nil {
		return Result{}, err
	}
	var mu sync.Mutex
	var all []time.Duration
	var failed failures
	start := time.Now()
	stop := start.Add(o.duration)
	var next atomic.Int64
	each(conns, func(c net.Conn) {
		defer c.Close() //nolint:errcheck // all answers were read
		exchange := by(o, c)
		var times []time.Duration
		for {
			began := time.Now()
			if paced {
				due := start.Add(time.Duration(next.Add(1)-1) * time.Second / time.Duration(o.rate))
				if wait := due.Sub(began); wait > 0 {
					// In time: that the timer is late (up to a millisecond) is
					// nobody's latency but this program's.
					time.Sleep(wait)
					began = time.Now()
				} else {
					began = due
				}
			}
			if !began.Before(stop) {
				break
			}
			if err := exchange(); err != nil {
				failed.add(err)
				break
			}
			times = append(times, time.Since(began))
		}
		mu.Lock()
		all = append(all, times...)
		mu.Unlock()
	})
	s := time.Since(start).Seconds()
	r := Result{Seconds: s, Requests: uint64(len(all)), PerSecond: float64(len(all)) / s}
	r.P50Micros, r.P99Micros = percentile(all, 50), percentile(all, 99)
	failed.into(&r)
	return r, nil
}

// connect opens a connection, does one echo on it and closes it, over and
// over, on as many lines as conns says.
func connect(o options) (Result, error) {
	var mu sync.Mutex
	var all []time.Duration
	var failed failures
	start := time.Now()
	stop := start.Add(o.duration)
	each(make([]struct{}, o.conns), func(struct{}) {
		out, in := make([]byte, o.size), make([]byte, o.size)
		var times []time.Duration
		for began := time.Now(); began.Before(stop); began = time.Now() {
			c, err := dial(o.addr, askEcho)
			if err == nil {
				if _, err = c.Write(out); err == nil {
					_, err = io.ReadFull(c, in)
				}
				// A reset instead of a FIN keeps the port from TIME_WAIT, or a
				// fast contender would run out of ports.
				_ = c.(*net.TCPConn).SetLinger(0)
				_ = c.Close()
			}
			if err != nil {
				failed.add(err)
				continue
			}
			times = append(times, time.Since(began))
		}
		mu.Lock()
		all = append(all, times...)
		mu.Unlock()
	})
	s := time.Since(start).Seconds()
	r := Result{Seconds: s, Requests: uint64(len(all)), PerSecond: float64(len(all)) / s}
	r.P50Micros, r.P99Micros = percentile(all, 50), percentile(all, 99)
	failed.into(&r)
	return r, nil
}

// hold opens connections, does one echo on each, says so, and keeps them until
// its input ends.
func hold(o options) (Result, error) {
	var failed failures
	var conns []net.Conn
	start := time.Now()
	for range o.conns {
		c, err := dial(o.addr, askEcho)
		if err != nil {
			failed.add(err)
			continue
		}
		buf := make([]byte, o.size)
		if _, err = c.Write(buf); err == nil {
			_, err = io.ReadFull(c, buf)
		}
		if err != nil {
			failed.add(err)
			_ = c.Close()
			continue
		}
		conns = append(conns, c)
	}
	r := Result{Mode: "hold", Seconds: time.Since(start).Seconds(), Held: len(conns)}
	failed.into(&r)
	return r, keep(r, conns)
}

// keep writes the result of connections that are held, and closes them at the end of
// standard input.
func keep(r Result, conns []net.Conn) error {
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	for _, c := range conns {
		_ = c.Close()
	}
	return nil
}

func dialAll(o options, ask byte) ([]net.Conn, error) {
	conns := make([]net.Conn, 0, o.conns)
	for range o.conns {
		c, err := dial(o.addr, ask)
		if err != nil {
			return nil, err
		}
		conns = append(conns, c)
	}
	return conns, nil
}

func each[T any](all []T, f func(T)) {
	var wg sync.WaitGroup
	for _, x := range all {
		wg.Go(func() { f(x) })
	}
	wg.Wait()
}

type failures struct {
	mu   sync.Mutex
	n    uint64
	last error
}

func (f *failures) add(err error) {
	f.mu.Lock()
	f.n, f.last = f.n+1, err
	f.mu.Unlock()
}

func (f *failures) into(r *Result) {
	r.Errors = f.n
	if f.last != nil {
		r.LastError = f.last.Error()
	}
}

// percentile sorts d and returns its p-th percentile in microseconds.
func percentile(d []time.Duration, p int) float64 {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return float64(d[min(len(d)-1, len(d)*p/100)].Nanoseconds()) / 1e3
}
