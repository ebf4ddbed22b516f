package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/test/traffic"
)

const callTimeout = 5 * time.Second

// tally collects results; one for the second at hand, one for all.
type tally struct {
	mu  sync.Mutex
	now traffic.Report // guarded by mu
	lat []int64        // guarded by mu
	all traffic.Report // guarded by mu
}

func (t *tally) add(took time.Duration, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil && t.all.Errors[short(err)] == 0 {
		t.all.First = append(t.all.First, fmt.Sprintf("%s: %v", time.Now().UTC().Format(time.RFC3339Nano), err))
	}
	for _, r := range []*traffic.Report{&t.now, &t.all} {
		r.Sent++
		if err == nil {
			r.OK++
			continue
		}
		r.Failed++
		if r.Errors == nil {
			r.Errors = map[string]int{}
		}
		r.Errors[short(err)]++
	}
	t.lat = append(t.lat, took.Microseconds())
	t.all.Max = max(t.all.Max, took.Microseconds())
}

// short is the cause without addresses, so that equal faults count together.
func short(err error) string {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			break
		}
		err = next
	}
	s := err.Error()
	if len(s) > 80 {
		s = s[:80]
	}
	return s
}

// cut ends the second at hand.
func (t *tally) cut(final bool) traffic.Report {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.now
	if final {
		r = t.all
		r.Final = true
	}
	slices.Sort(t.lat)
	if n := len(t.lat); n > 0 && !final {
		r.P50, r.P99, r.Max = t.lat[n/2], t.lat[n*99/100], t.lat[n-1]
	}
	r.Time = time.Now()
	t.now, t.lat = traffic.Report{}, nil
	return r
}

func load(ctx context.Context, args []string) error {
	f := flags("load")
	target := f.String("url", "", "where to send requests")
	rate := f.Int("rate", 100, "requests per second")
	duration := f.Duration("duration", 10*time.Second, "how long; 0 until a signal")
	workers := f.Int("workers", 16, "connections at once")
	perConn := f.Int("per-conn", 20, "requests per connection; 0: as many as the server allows")
	protocol := f.String("protocol", "http1", "http1, h2 (without TLS), or grpc (calls of the health service)")
	body := f.String("body", "", "text to send with each request")
	_ = f.Parse(args)
	u, err := url.Parse(*target)
	if err != nil || u.Host == "" || *rate < 1 || *workers < 1 {
		return fmt.Errorf("-url %q, -rate %d, -workers %d: not usable", *target, *rate, *workers)
	}
	make1, ok := map[string]func() requester{
		"http1": func() requester { return &caller{u: u, perConn: *perConn, body: *body} },
		"h2":    func() requester { return newStreams(u, *perConn, *body, false) },
		"grpc":  func() requester { return newStreams(u, *perConn, "", true) },
	}[*protocol]
	if !ok {
		return fmt.Errorf("-protocol %q: there are http1, h2 and grpc", *protocol)
	}
	if *duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *duration)
		defer cancel()
	}
	t := &tally{}
	due := make(chan time.Time, *workers)
	var wg sync.WaitGroup
	for range *workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c := make1()
			defer c.close()
			for at := range due {
				err := c.call()
				t.add(time.Since(at), err)
			}
		}()
	}
	out := json.NewEncoder(os.Stdout)
	pace(ctx, *rate, due, func() { _ = out.Encode(t.cut(false)) })
	close(due)
	wg.Wait()
	return out.Encode(t.cut(true))
}

// pace hands out the times at which requests are due, and calls second once a
// second. A client that cannot keep up is late, and its latencies show it.
func pace(ctx context.Context, rate int, due chan<- time.Time, second func()) {
	start := time.Now()
	next := start.Add(time.Second)
	gap := time.Second / time.Duration(rate)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := 0; ctx.Err() == nil; i++ {
		at := start.Add(time.Duration(i) * gap)
		if wait := time.Until(at); wait > time.Millisecond {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return
			}
		}
		if at.After(next) {
			second()
			next = next.Add(time.Second)
		}
		select {
		case due <- at:
		case <-ctx.Done():
			return
		}
	}
}

// requester makes one request after the other.
type requester interface {
	call() error
	close()
}

// caller makes requests over connections of its own. Nothing is tried twice:
// what fails is counted.
type caller struct {
	u       *url.URL
	perConn int
	body    string
	c       net.Conn
	r       *bufio.Reader
	used    int
}

func (c *caller) close() {
	if c.c != nil {
		_ = c.c.Close()
		c.c = nil
	}
}

func (c *caller) call() error {
	if c.c == nil {
		d := net.Dialer{Timeout: callTimeout}
		host := c.u.Host
		if c.u.Port() == "" {
			host = net.JoinHostPort(c.u.Hostname(), "80")
		}
		conn, err := d.Dial("tcp", host)
		if err != nil {
			return err
		}
		c.c, c.r, c.used = conn, bufio.NewReader(conn), 0
	}
	c.used++
	last, err := c.exchange()
	if err != nil || last || c.used == c.perConn {
		c.close()
	}
	return err
}

// exchange makes a request. last is true when the server ends the connection.
func (c *caller) exchange() (last bool, err error) {
	_ = c.c.SetDeadline(time.Now().Add(callTimeout))
	_, err = fmt.Fprintf(c.c, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", c.u.RequestURI(), c.u.Host, len(c.body), c.body)
	if err != nil {
		return true, err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return true, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return resp.Close, err
}

// occurrence is one line of the hold client.
type occurrence struct {
	Time   time.Time `json:"time"`
	Event  string    `json:"event"` // open, echo, closed
	Echoes int       `json:"echoes"`
	Error  string    `json:"error,omitempty"`
}

func hold(ctx context.Context, args []string) error {
	f := flags("hold")
	addr := f.String("addr", "", "echo server")
	every := f.Duration("every", 100*time.Millisecond, "pause between messages")
	text := f.String("text", "still here", "what to send")
	each := f.Bool("each", false, "a line for each message that comes back, and not for the first alone")
	_ = f.Parse(args)
	out := json.NewEncoder(os.Stdout)
	say := func(event string, n int, err error) {
		o := occurrence{Time: time.Now(), Event: event, Echoes: n}
		if err != nil {
			o.Error = err.Error()
		}
		_ = out.Encode(o)
	}
	d := net.Dialer{Timeout: callTimeout}
	c, err := d.DialContext(ctx, "tcp", *addr)
	if err != nil {
		say("closed", 0, err)
		return err
	}
	defer c.Close() //nolint:errcheck // its end is what is reported
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	say("open", 0, nil)
	r := bufio.NewReader(c)
	tick := time.NewTicker(*every)
	defer tick.Stop()
	for n := 0; ; n++ {
		_ = c.SetDeadline(time.Now().Add(callTimeout))
		_, err := io.WriteString(c, *text+"\n")
		if err == nil {
			_, err = r.ReadString('\n')
		}
		if err != nil {
			say("closed", n, err)
			return nil
		}
		if n == 0 || *each {
			say("echo", n+1, nil)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			say("closed", n, ctx.Err())
			return nil
		}
	}
}

func get(ctx context.Context, args []string) error {
	f := flags("get")
	target := f.String("url", "", "where to send requests")
	n := f.Int("n", 1, "how many")
	insecure := f.Bool("insecure", false, "do not verify the server's certificate")
	name := f.String("sni", "", "the name that TLS asks for; empty for that of the URL")
	shape := f.String("hello", "", "how the first message of TLS is sent: "+strings.Join(shapes, ", "))
	family := f.Int("ip", 0, "4 or 6: only the addresses of that family")
	var proxy func(*http.Request) (*url.URL, error)
	f.Func("proxy", "the URL of a proxy, such as socks5h://127.0.0.1:1080, which then looks the host up", func(text string) error {
		u, err := url.Parse(text)
		proxy = http.ProxyURL(u)
		return err
	})
	cookies := f.Bool("cookies", false, "send the cookies that answers have set")
	whole := f.Bool("json", false, "print a line of JSON for each request, whatever became of it")
	header := http.Header{}
	f.Func("H", "a header of the requests, as name:value; can be repeated", func(text string) error {
		name, value, _ := strings.Cut(text, ":")
		header.Add(name, strings.TrimSpace(value))
		return nil
	})
	_ = f.Parse(args)
	client := &http.Client{Timeout: callTimeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: *insecure, ServerName: *name}, //nolint:gosec // asked for
		Proxy:             proxy,
		DialContext:       of(*family, shaped(*shape)),
	}}
	if *cookies {
		jar, err := cookiejar.New(nil)
		if err != nil {
			return err
		}
		client.Jar = jar
	}
	out := json.NewEncoder(os.Stdout)
	for range *n {
		r, err := get1(ctx, client, *target, header)
		switch {
		case *whole:
			if err != nil {
				r = traffic.Response{Error: err.Error()}
			}
			_ = out.Encode(r)
		case err != nil:
			return err
		case r.Status != http.StatusOK:
			return fmt.Errorf("%d %s: %s", r.Status, http.StatusText(r.Status), strings.TrimSpace(r.Body))
		default:
			fmt.Print(r.Body)
		}
	}
	return nil
}

// of returns a dialer of TCP for one family of IP, or for both when it is 0.
func of(family int, dial func(ctx context.Context, network, addr string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	if family == 0 {
		return dial
	}
	return func(ctx context.Context, _, addr string) (net.Conn, error) {
		return dial(ctx, "tcp"+strconv.Itoa(family), addr)
	}
}

// lookup asks the pod's name server, and prints a line for each answer.
func lookup(ctx context.Context, args []string) error {
	f := flags("lookup")
	kind := f.String("type", "ip4", "ip4 or ip6")
	name := f.String("name", "", "what is looked up")
	_ = f.Parse(args)
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	all, err := net.DefaultResolver.LookupNetIP(ctx, *kind, *name)
	for _, ip := range all {
		fmt.Println(ip.Unmap())
	}
	return err
}

func get1(ctx context.Context, client *http.Client, target string, header http.Header) (r traffic.Response, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return r, err
	}
	req.Header = header.Clone()
	resp, err := client.Do(req)
	if err != nil {
		return r, err
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	_ = resp.Body.Close()
	return traffic.Response{Status: resp.StatusCode, Header: resp.Header, Body: string(b)}, err
}

// raw writes heads of requests that no client of HTTP would write.
func raw(ctx context.Context, args []string) error {
	f := flags("raw")
	addr := f.String("addr", "", "server")
	keep := f.Bool("keep", false, "all on one connection")
	_ = f.Parse(args)
	out := json.NewEncoder(os.Stdout)
	var c *rawConn
	for _, head := range f.Args() {
		var r traffic.Response
		var err error
		if c == nil {
			c, err = dialRaw(ctx, *addr)
		}
		if err == nil {
			r, err = c.exchange(head)
			if !*keep || err != nil {
				_ = c.Close()
				c = nil
			}
		}
		if err != nil {
			r = traffic.Response{Error: err.Error()}
		}
		_ = out.Encode(r)
	}
	return nil
}

type rawConn struct {
	net.Conn
	r *bufio.Reader
}

func dialRaw(ctx context.Context, addr string) (*rawConn, error) {
	d := net.Dialer{Timeout: callTimeout}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &rawConn{c, bufio.NewReader(c)}, nil
}

// exchange writes one head, and a body behind it if there is an empty line, and reads the
// response.
func (c *rawConn) exchange(head string) (r traffic.Response, err error) {
	_ = c.SetDeadline(time.Now().Add(callTimeout))
	head, body, _ := strings.Cut(head, "\n\n")
	if _, err := io.WriteString(c, strings.ReplaceAll(head, "\n", "\r\n")+"\r\n\r\n"+body); err != nil {
		return r, err
	}
	resp, err := http.ReadResponse(c.r, &http.Request{Method: http.MethodGet})
	if err != nil {
		return r, err
	}
	defer resp.Body.Close() //nolint:errcheck // read below
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return traffic.Response{Status: resp.StatusCode, Header: resp.Header, Body: string(b)}, err
}

func greet(ctx context.Context, args []string) error {
	f := flags("greet")
	addr := f.String("addr", "", "server that speaks first")
	_ = f.Parse(args)
	d := net.Dialer{Timeout: callTimeout}
	c, err := d.DialContext(ctx, "tcp", *addr)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // only closing
	_ = c.SetDeadline(time.Now().Add(callTimeout))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err
	}
	fmt.Print(line)
	return nil
}
