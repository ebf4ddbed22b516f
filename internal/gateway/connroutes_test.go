package gateway

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// connections configures the routes of connections of a service's port.
func (w *world) connections(service string, rules ...route.Rule) {
	w.t.Helper()
	w.routes(service, rules...)
	c, problems := route.CompileConnections(rules)
	if len(problems) > 0 {
		w.t.Fatal(problems)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.config = &route.Config{Ports: map[route.PortKey]*route.Port{key(service): {Connections: c}}, Upstreams: w.config.Upstreams}
}

// hello returns the first message of a client of TLS.
func hello(t *testing.T, name string) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()                                                              //nolint:errcheck // a pipe
	defer far.Close()                                                               //nolint:errcheck // a pipe
	go func() { _ = tls.Client(near, &tls.Config{ServerName: name}).Handshake() }() //nolint:gosec // no server answers
	_ = far.SetReadDeadline(time.Now().Add(time.Minute))
	b := make([]byte, 8<<10)
	n, err := far.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// TestConnectionRoutes: what a client sends first decides, however it is divided; what
// cannot be read in one way only is refused. A client that says nothing is not TLS.
func TestConnectionRoutes(t *testing.T) {
	w := newWorld(t, 1)
	for i, name := range []string{"raw", "one", "plain"} {
		w.service(name, fmt.Sprintf("10.1.0.%d", 20+i), func(s *workloadpb.Service) { s.Ports[0].AppProtocol = workloadpb.AppProtocol_TCP })
		w.endpoint(name, fmt.Sprintf("10.0.0.%d", 20+i), name, echo(t, name+"\n"))
	}
	tlsRule := route.Rule{Origin: "TLSRoute ns/one, rule 0", Carries: route.TLS, Hosts: []string{"one.example.org"}, Backends: []route.Backend{{Name: "one", Weight: 1}}}
	plainRule := route.Rule{Origin: "TCPRoute ns/plain, rule 0", Carries: route.Anything, Backends: []route.Backend{{Name: "plain", Weight: 1}}}
	one, other := hello(t, "one.example.org"), hello(t, "two.example.org")
	broken := append([]byte{}, one...)
	broken[5] = 2 // a ServerHello
	for _, tc := range []struct {
		name  string
		rules []route.Rule
		send  [][]byte
		end   bool
		want  string // the server that answers; "" is none
		why   reason.Reason
	}{
		{"TLS with a route", []route.Rule{tlsRule, plainRule}, [][]byte{one}, false, "one", reason.OK},
		{"in two parts", []route.Rule{tlsRule, plainRule}, [][]byte{one[:3], one[3:]}, false, "one", reason.OK},
		{"TLS without a route", []route.Rule{tlsRule, plainRule}, [][]byte{other}, false, "", reason.NoRoute},
		{"a handshake that is none", []route.Rule{tlsRule, plainRule}, [][]byte{broken}, false, "", reason.NoRoute},
		{"a part of a handshake", []route.Rule{tlsRule, plainRule}, [][]byte{one[:40]}, true, "", reason.NoRoute},
		{"no TLS", []route.Rule{tlsRule, plainRule}, [][]byte{[]byte("hello\n")}, false, "plain", reason.OK},
		{"nothing, and the server speaks first", []route.Rule{tlsRule, plainRule}, nil, false, "plain", reason.OK},
		{"nothing, and the end", []route.Rule{tlsRule, plainRule}, nil, true, "plain", reason.OK},
		{"no TLS, and only TLS has routes", []route.Rule{tlsRule}, [][]byte{[]byte("hello\n")}, false, "", reason.NoRoute},
		{"TLS, and there are no routes for it", []route.Rule{plainRule}, [][]byte{other}, false, "plain", reason.OK},
		{"no backend", []route.Rule{{Origin: "TCPRoute ns/x, rule 0", Carries: route.Anything}}, nil, false, "", reason.NoBackend},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w.connections("raw", tc.rules...)
			w.mu.Lock()
			before := len(w.conns)
			w.mu.Unlock()
			c, err := w.connect("10.1.0.20:80")
			if err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			for _, p := range tc.send {
				if _, err := c.Write(p); err != nil {
					t.Fatal(err)
				}
			}
			if tc.end {
				_ = c.(*net.TCPConn).CloseWrite()
			}
			line, err := bufio.NewReader(c).ReadString('\n')
			if tc.want == "" && err == nil || tc.want != "" && line != tc.want+"\n" {
				t.Errorf("got %q, error %v", line, err)
			}
			_ = c.Close()
			r := w.seen(before+1, func() []Record { return w.conns })[before]
			if tc.why != reason.OK && r.Reason != tc.why || tc.want != "" && r.Endpoint.Name != tc.want {
				t.Errorf("record %v %v of %v", r.Reason, r.Err, r.Endpoint)
			}
		})
	}
	// A client that has begun like TLS does not become another one by being slow.
	w.connections("raw", tlsRule, plainRule)
	c, err := w.connect("10.1.0.20:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // read
	if _, err := c.Write(one[:10]); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(3 * silence))
	if b, err := io.ReadAll(io.LimitReader(c, 1)); err == nil {
		t.Errorf("a slow client gets %q", b)
	}
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := c.Write(one[10:]); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(c).ReadString('\n'); line != "one\n" {
		t.Errorf("%q, error %v", line, err)
	}
}
