package verdict

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

// Directions of a question to a node proxy.
const (
	Outbound = "outbound"
	Inbound  = "inbound"
)

// Question describes a connection, and the request that it carries.
type Question struct {
	// Direction is of a node proxy: out of a pod, or into it.
	Direction string
	// Pod is the pod, as namespace/name.
	Pod string
	// To is what the pod calls: HOST or HOST:PORT. Outbound only.
	To string

	// The connection as a waypoint or the proxy of the destination sees it.
	Tunnel    bool
	Authority string
	Identity  identity.Identity // zero without one
	Source    netip.Addr
	Service   string // the host name of the service that was called; may be empty
	Hops      int    // waypoints that have sent it on
	SNI       string // the name that a client of TLS wants; "" without TLS

	// HTTP is true for a request, false for a connection that carries none.
	// Without either, what the port declares decides.
	HTTP    *bool
	Method  string
	Host    string // the authority of the request
	Path    string
	Headers []Header
}

// Header is one line of a request.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// maxHeaders bounds the lines of a described request.
const maxHeaders = 128

// Values returns the question as the query of a URL.
func (q *Question) Values() url.Values {
	v := url.Values{}
	set := func(name, value string) {
		if value != "" {
			v.Set(name, value)
		}
	}
	set("direction", q.Direction)
	set("pod", q.Pod)
	set("to", q.To)
	set("authority", q.Authority)
	set("service", q.Service)
	set("method", q.Method)
	set("host", q.Host)
	set("path", q.Path)
	set("sni", q.SNI)
	if q.Tunnel {
		v.Set("tunnel", "true")
	}
	if !q.Identity.IsZero() {
		v.Set("identity", q.Identity.String())
	}
	if q.Source.IsValid() {
		v.Set("source", q.Source.String())
	}
	if q.Hops > 0 {
		v.Set("hops", strconv.Itoa(q.Hops))
	}
	if q.HTTP != nil {
		v.Set("http", fmt.Sprint(*q.HTTP))
	}
	for _, h := range q.Headers {
		v.Add("header", h.Name+":"+h.Value)
	}
	return v
}

var parameters = []string{"direction", "pod", "to", "authority", "service", "method", "host", "path", "tunnel", "identity", "source", "http", "header", "hops", "sni"}

// Parse reads what Values returns. It rejects what it does not understand.
func Parse(v url.Values) (q Question, err error) {
	bad := func(format string, args ...any) (Question, error) {
		return Question{}, fmt.Errorf("%w: %w", ErrQuestion, fmt.Errorf(format, args...))
	}
	for name, values := range v {
		switch {
		case !slices.Contains(parameters, name):
			return bad("parameter %q: there are %s", name, strings.Join(parameters, ", "))
		case name != "header" && len(values) > 1:
			return bad("parameter %s is given %d times", name, len(values))
		}
	}
	q = Question{
		Direction: v.Get("direction"), Pod: v.Get("pod"), To: v.Get("to"), Authority: v.Get("authority"), Service: v.Get("service"),
		Method: v.Get("method"), Host: v.Get("host"), Path: v.Get("path"), SNI: strings.ToLower(v.Get("sni")),
	}
	flag := func(name string) (*bool, error) {
		switch s := v.Get(name); s {
		case "":
			return nil, nil
		case "true", "false":
			b := s == "true"
			return &b, nil
		default:
			return nil, fmt.Errorf("%s %q: there are true and false", name, s)
		}
	}
	tunnel, err := flag("tunnel")
	if err != nil {
		return bad("%w", err)
	}
	q.Tunnel = tunnel != nil && *tunnel
	if q.HTTP, err = flag("http"); err != nil {
		return bad("%w", err)
	}
	if s := v.Get("identity"); s != "" {
		if q.Identity, err = identity.Parse(s); err != nil {
			return bad("identity: %w", err)
		}
	}
	if s := v.Get("hops"); s != "" {
		n, err := strconv.ParseUint(s, 10, 8)
		if err != nil {
			return bad("hops %q is no number from 0 to 255", s)
		}
		q.Hops = int(n)
	}
	if s := v.Get("source"); s != "" {
		if q.Source, err = netip.ParseAddr(s); err != nil {
			return bad("source: %w", err)
		}
		q.Source = q.Source.Unmap().WithZone("")
	}
	if len(v["header"]) > maxHeaders {
		return bad("%d headers: at most %d", len(v["header"]), maxHeaders)
	}
	for _, h := range v["header"] {
		name, value, ok := strings.Cut(h, ":")
		if !ok || name == "" {
			return bad("header %q is not NAME:VALUE", h)
		}
		q.Headers = append(q.Headers, Header{strings.ToLower(name), strings.Trim(value, " \t")})
	}
	return q, nil
}

// PodName reads namespace/name.
func (q *Question) PodName() (namespace, name string, err error) {
	namespace, name, ok := strings.Cut(q.Pod, "/")
	if !ok || namespace == "" || name == "" {
		return "", "", fmt.Errorf("%w: pod %q is not NAMESPACE/NAME", ErrQuestion, q.Pod)
	}
	return namespace, name, nil
}
