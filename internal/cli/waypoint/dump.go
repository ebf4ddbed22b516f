package waypoint

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/ambit-mesh/ambit/internal/cli/dump"
	"github.com/ambit-mesh/ambit/internal/cli/session"
)

// waypointDumps is /config_dump of a waypoint, as far as tables need it.
type waypointDumps struct {
	Routes      []dump.Element[routeDump]          `json:"routes"`
	Backends    []dump.Element[backendDump]        `json:"backends"`
	Policies    []dump.Element[waypointPolicyDump] `json:"policies"`
	Connections []dump.Element[waypointConnection] `json:"connections"`
	Omitted     int                                `json:"connectionsOmitted"`
}

type routeDump struct {
	Kind      string   `json:"kind"`
	Namespace string   `json:"namespace"`
	Route     string   `json:"route"`
	Rule      int      `json:"rule"`
	Dropped   string   `json:"dropped"`
	Parents   []string `json:"parents"`
	Matches   []string `json:"matches"`
	Filters   []string `json:"filters"`
	Retries   int      `json:"retries"`
	Session   string   `json:"session"`
	Backends  []struct {
		Name    string `json:"name"`
		Weight  uint32 `json:"weight"`
		Invalid string `json:"invalid"`
	} `json:"backends"`
	Timeouts struct {
		Request string `json:"request"`
		Try     string `json:"try"`
	} `json:"timeouts"`
}

// backends renders the backends of a rule, with their weights if there are several.
func (r *routeDump) backends() string {
	if r.Dropped != "" {
		return "left out: " + r.Dropped
	}
	var all []string
	for _, b := range r.Backends {
		s := cmp.Or(short(b.Name), "none")
		if len(r.Backends) > 1 {
			s = fmt.Sprintf("%d %s", b.Weight, s)
		}
		if b.Invalid != "" {
			s += " (not usable: " + b.Invalid + ")"
		}
		all = append(all, s)
	}
	return session.OrNone(strings.Join(all, ", "))
}

func (r *routeDump) settings() string {
	if r.Kind == "TLSRoute" || r.Kind == "TCPRoute" {
		return ""
	}
	all := []string{fmt.Sprintf("retries %d", r.Retries)}
	if r.Timeouts.Request != "" {
		all = append(all, "timeout "+r.Timeouts.Request)
	}
	if r.Timeouts.Try != "" {
		all = append(all, "try "+r.Timeouts.Try)
	}
	if r.Session != "" {
		all = append(all, "session by "+r.Session)
	}
	return strings.Join(append(all, r.Filters...), ", ")
}

type backendDump struct {
	Namespace string      `json:"namespace"`
	Hostname  string      `json:"hostname"`
	Port      uint16      `json:"port"`
	Protocol  string      `json:"protocol"`
	Known     bool        `json:"known"`
	Limits    *limitsDump `json:"limits"`
	Endpoints []struct {
		Healthy bool `json:"healthy"`
		LeftOut bool `json:"leftOut"`
	} `json:"endpoints"`
}

type limitsDump struct {
	Connections uint32 `json:"connections"`
	Pending     uint32 `json:"pending"`
	Requests    uint32 `json:"requests"`
}

func (l *limitsDump) text() string {
	if l == nil {
		return "-"
	}
	var all []string
	for _, x := range []struct {
		name string
		n    uint32
	}{{"connections", l.Connections}, {"pending", l.Pending}, {"requests", l.Requests}} {
		if x.n > 0 {
			all = append(all, fmt.Sprintf("%s %d", x.name, x.n))
		}
	}
	return session.OrNone(strings.Join(all, ", "))
}

type waypointPolicyDump struct {
	Policy string   `json:"policy"`
	Action string   `json:"action"`
	DryRun bool     `json:"dryRun"`
	For    []string `json:"for"`
	Rules  int      `json:"rules"`
	Error  string   `json:"error"`

	Provider string `json:"provider,omitempty"`
}

type waypointConnection struct {
	Client   string `json:"client"`
	Identity string `json:"identity"`
	Source   string `json:"source"`
	Called   string `json:"called"`
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
	Endpoint string `json:"endpoint"`
	Since    string `json:"since"`
}

// short renders namespace/name.namespace.svc.domain:port as name.namespace:port, and
// leaves other names as they are.
func short(s string) string {
	ns, host, ok := strings.Cut(s, "/")
	if !ok {
		return s
	}
	if name, rest, ok := strings.Cut(host, "."+ns+".svc."); ok {
		port := ""
		if i := strings.IndexAny(rest, ": "); i >= 0 {
			port = rest[i:]
		}
		return name + "." + ns + port
	}
	return host
}

func shortAll(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = short(s)
	}
	return out
}
