// Package why follows a described connection from proxy to proxy, and reports what each
// proxy would do with it. The proxies decide; this package joins their verdicts.
package why

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/proxy/verdict"
)

// Pod is a pod, and its node.
type Pod struct{ Namespace, Name, Node string }

// Mesh asks its proxies. The name of a proxy is for output.
type Mesh interface {
	// Node asks the node proxy of a node. ErrNoProxy: there is none.
	Node(ctx context.Context, node string, q verdict.Question) (v *verdict.Verdict, proxy string, err error)
	// Waypoint asks a pod of a waypoint.
	Waypoint(ctx context.Context, namespace, name string, q verdict.Question) (v *verdict.Verdict, proxy string, err error)
}

// ErrNoProxy is of a node without a proxy.
var ErrNoProxy = errors.New("no node proxy runs there")

// Call is what is asked about.
type Call struct {
	Kind   string // pod, svc, or "" for a name or an address
	Name   string // or address, without brackets
	Port   uint16 // 0: the only one of the service
	Scheme string // of a URL; "" without one

	TCP          bool   // a connection that carries no HTTP
	SNI          string // the name that a client of TLS wants
	Method, Path string
	Host         string
	Headers      []verdict.Header
}

// ParseCall reads a destination: NAME, ADDRESS, pod/NAME.NAMESPACE, svc/NAME.NAMESPACE,
// each with or without a port, or a URL.
func ParseCall(to string) (c Call, err error) {
	rest := to
	if scheme, after, ok := strings.Cut(to, "://"); ok {
		u, err := url.Parse(to)
		if err != nil {
			return c, fmt.Errorf("destination %q: %w", to, err)
		}
		if scheme = strings.ToLower(scheme); scheme != "http" && scheme != "https" {
			return c, fmt.Errorf("destination %q: there are http:// and https://", to)
		}
		if u.User != nil {
			return c, fmt.Errorf("destination %q: a URL with a user is not supported", to)
		}
		rest, _, _ = strings.Cut(after, "/")
		rest, _, _ = strings.Cut(rest, "?")
		c.Scheme, c.Path = scheme, u.RequestURI()
		if _, err := netip.ParseAddr(u.Hostname()); scheme == "https" && err != nil {
			c.SNI = u.Hostname() // for an address, clients name none
		}
		c.Port = map[string]uint16{"http": 80, "https": 443}[scheme]
	} else if kind, name, ok := strings.Cut(to, "/"); ok {
		switch kind {
		case "pod", "pods", "po":
			c.Kind = "pod"
		case "svc", "service", "services":
			c.Kind = "svc"
		default:
			return c, fmt.Errorf("destination %q: there are NAME, ADDRESS, pod/NAME.NAMESPACE, svc/NAME.NAMESPACE, and URLs", to)
		}
		rest = name
	}
	c.Name = rest
	if i := strings.LastIndexByte(rest, ':'); i >= 0 && (strings.Count(rest, ":") == 1 || strings.HasSuffix(rest[:i], "]")) {
		port, err := strconv.ParseUint(rest[i+1:], 10, 16)
		if err != nil || port == 0 {
			return c, fmt.Errorf("destination %q: %q is not a port from 1 to 65535", to, rest[i+1:])
		}
		c.Name, c.Port = rest[:i], uint16(port)
	}
	c.Name = strings.TrimSuffix(strings.TrimPrefix(c.Name, "["), "]")
	if c.Name == "" || strings.ContainsAny(c.Name, "/ ") {
		return c, fmt.Errorf("destination %q has no host", to)
	}
	return c, nil
}

// to is the destination as a node proxy reads it.
func (c *Call) to() string {
	name := c.Name
	if c.Kind != "" {
		name = c.Kind + "/" + name
	}
	switch {
	case c.Port == 0:
		return name
	case strings.Contains(name, ":"):
		return net.JoinHostPort(name, strconv.Itoa(int(c.Port)))
	}
	return name + ":" + strconv.Itoa(int(c.Port))
}

// http returns whether the connection carries a request; nil leaves it to the port.
func (c *Call) http() *bool {
	yes, no := true, false
	switch {
	case c.TCP || c.Scheme == "https":
		return &no
	case c.Scheme == "http", c.Method != "", c.Path != "", c.Host != "", len(c.Headers) > 0:
		return &yes
	}
	return nil
}

// authority returns the Host that a client sends.
func (c *Call) authority(called netip.AddrPort) string {
	if c.Host != "" {
		return c.Host
	}
	name := c.Name
	if c.Kind == "pod" {
		name = called.Addr().String()
	}
	if called.Port() != 80 {
		return net.JoinHostPort(name, strconv.Itoa(int(called.Port())))
	}
	if strings.Contains(name, ":") {
		return "[" + name + "]"
	}
	return name
}

// text renders the request for output.
func (c *Call) text(called netip.AddrPort, asHTTP bool) string {
	if !asHTTP && c.SNI != "" {
		return "a connection of TLS to " + called.String() + ", for " + c.SNI
	}
	if !asHTTP {
		return "a connection to " + called.String()
	}
	method, path := c.Method, c.Path
	if method == "" {
		method = "GET"
	}
	if path == "" {
		path = "/"
	}
	s := method + " http://" + c.authority(called) + path
	for _, h := range c.Headers {
		s += ", " + h.Name + ": " + h.Value
	}
	return s
}

// Hop is the verdict of one proxy.
type Hop struct {
	Proxy string `json:"proxy"`
	*verdict.Verdict
}

// Report is the answer.
type Report struct {
	From    string `json:"from"` // pod/NAME.NAMESPACE
	To      string `json:"to"`
	Asked   string `json:"asked"` // about which request or connection
	Hops    []Hop  `json:"hops"`
	Allowed bool   `json:"allowed"`
	Reason  string `json:"reason"`
	Detail  string `json:"detail,omitempty"`
	// Status is the answer of HTTP that a client gets from a proxy; 0 without one.
	Status int `json:"status,omitempty"`
	GRPC   int `json:"grpcStatus,omitempty"` // the status of gRPC in it
	// Next is what to do, and the command for it.
	Next    string `json:"next"`
	Command string `json:"command,omitempty"`
}

// maxHops bounds the proxies of one connection.
const maxHops = 8

// Follow asks the proxies on the way of a call, from a pod.
func Follow(ctx context.Context, m Mesh, from Pod, c Call) (*Report, error) {
	r := &Report{From: "pod/" + from.Name + "." + from.Namespace, To: c.to(), Hops: []Hop{}}
	q := verdict.Question{Direction: verdict.Outbound, Pod: from.Namespace + "/" + from.Name, To: c.to(), SNI: c.SNI}
	v, proxy, err := m.Node(ctx, from.Node, q)
	if err != nil {
		return nil, fmt.Errorf("asking the proxy of node %s: %w", from.Node, err)
	}
	r.Hops = append(r.Hops, Hop{proxy, v})
	first := v
	request := c.http()
	for v.Allowed && v.Next != nil && len(r.Hops) < maxHops {
		n := v.Next
		id, _ := identity.Parse(n.Identity)
		source, _ := netip.ParseAddr(n.Source)
		q := verdict.Question{Tunnel: n.Tunnel, Authority: n.Authority, Identity: id, Source: source, Service: n.Host, Hops: n.Hops}
		if n.To == verdict.ToWaypoint {
			q.SNI = c.SNI
		}
		switch n.To {
		case verdict.ToWaypoint:
			q.HTTP = request
			if request == nil || *request {
				q.Method, q.Path, q.Headers, q.Host = c.Method, c.Path, c.Headers, c.authority(first.Called)
			}
			if sent := n.Request; sent != nil {
				yes := true
				q.HTTP, q.Method, q.Path, q.Headers, q.Host = &yes, sent.Method, sent.Path, sent.Headers, sent.Host
				n.Request = nil // it may have tokens, which a report has not
			} else if v.Role == verdict.RoleWaypoint {
				no := false
				q.HTTP, q.Method, q.Path, q.Headers, q.Host = &no, "", "", nil, ""
			}
			if v, proxy, err = m.Waypoint(ctx, n.Namespace, n.Name, q); err != nil {
				return nil, fmt.Errorf("asking waypoint pod %s/%s: %w", n.Namespace, n.Name, err)
			}
		case verdict.ToPod:
			q.Direction, q.Pod = verdict.Inbound, n.Namespace+"/"+n.Name
			if n.Node == "" || !strings.Contains(n.UID, "/Pod/") {
				r.end(v)
				return r.close(first, c), nil
			}
			v, proxy, err = m.Node(ctx, n.Node, q)
			if errors.Is(err, ErrNoProxy) {
				v, proxy, err = without(n), "node "+n.Node, nil
			}
			if err != nil {
				return nil, fmt.Errorf("asking the proxy of node %s: %w", n.Node, err)
			}
		default:
			r.end(v)
			return r.close(first, c), nil
		}
		r.Hops = append(r.Hops, Hop{proxy, v})
	}
	if n := v.Next; v.Allowed && n != nil && (n.To == verdict.ToWaypoint || n.To == verdict.ToPod) {
		return nil, fmt.Errorf("the proxies send the connection on and on: %d were asked (please report this)", maxHops)
	}
	r.end(v)
	return r.close(first, c), nil
}

// without is the verdict of a node that has no proxy.
func without(n *verdict.Next) *verdict.Verdict {
	v := verdict.New(verdict.RoleDestination)
	step := verdict.Step{Step: verdict.StepCapture, Object: "Pod " + n.Namespace + "/" + n.Name, Decides: true}
	if !n.Tunnel {
		step.Says = "no node proxy runs on the node: no policy is in front of the pod"
		v.Steps = append(v.Steps, step)
		v.Next = &verdict.Next{To: verdict.ToProgram, Namespace: n.Namespace, Name: n.Name, Node: n.Node, UID: n.UID, Authority: n.Authority}
		return v
	}
	step.Says = "no node proxy runs on the node, so nothing ends tunnels there"
	v.Steps = append(v.Steps, step)
	return v.Refuse(reason.Errorf(reason.ConnectFailure, "no node proxy runs on node %s", n.Node))
}

func (r *Report) end(v *verdict.Verdict) {
	r.Allowed, r.Reason, r.Detail, r.Status, r.GRPC = v.Allowed, v.Reason, v.Detail, v.Status, v.GRPC
}

func (r *Report) close(first *verdict.Verdict, c Call) *Report {
	asHTTP := false
	if h := c.http(); h != nil {
		asHTTP = *h
	}
	for _, h := range r.Hops {
		asHTTP = asHTTP || h.HTTP
	}
	r.Asked = c.text(first.Called, asHTTP)
	return r
}

// Last returns the hop that decides.
func (r *Report) Last() *Hop { return &r.Hops[len(r.Hops)-1] }

// Info returns what the closed set has of the report's reason.
func (r *Report) Info() (reason.Reason, reason.Info) {
	all := reason.All()
	i := slices.IndexFunc(all, func(x reason.Reason) bool { return x.String() == r.Reason })
	if i < 0 {
		return reason.Internal, reason.Internal.Info()
	}
	return all[i], all[i].Info()
}
