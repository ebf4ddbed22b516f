package app

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/gateway/carried"
	"github.com/ambit-mesh/ambit/internal/l7/exchange"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/wire"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
)

// dumpTimeout bounds the wait for loops that are asked what they carry.
const dumpTimeout = 5 * time.Second

// dump is /config_dump.
func (a *App) dump() map[string]any {
	snap := a.dir.Snapshot()
	raw := func(m json.RawMessage, err error) any {
		if err != nil {
			return []any{}
		}
		return m
	}
	ctx, cancel := context.WithTimeout(context.Background(), dumpTimeout)
	defer cancel()
	st := a.gateway.State(ctx)
	slices.SortFunc(st.Connections, func(x, y carried.Connection) int {
		return cmp.Or(strings.Compare(x.Client, y.Client), strings.Compare(x.Source, y.Source), strings.Compare(x.Called, y.Called), x.Since.Compare(y.Since))
	})
	if st.Connections == nil {
		st.Connections = []carried.Connection{}
	}
	return map[string]any{
		"workloads":          raw(snap.DumpWorkloads()),
		"services":           raw(snap.DumpServices()),
		"routes":             a.rules.dump(),
		"backends":           backends(snap, a.rules.config.Load(), st.LeftOut),
		"policies":           a.policies.dump(),
		"authentications":    a.authentications.dump(),
		"telemetry":          a.observed.dump(),
		"config":             a.cfg,
		"certificates":       a.certs.States(),
		"connections":        st.Connections,
		"connectionsOmitted": st.Omitted,
		"connectionsActive":  a.gateway.Active(),
	}
}

// ruleDump is a rule of a route.
type ruleDump struct {
	Name      string        `json:"name"` // of the resource
	Origin    string        `json:"origin"`
	Kind      string        `json:"kind"`
	Namespace string        `json:"namespace"`
	Route     string        `json:"route"`
	Rule      int           `json:"rule"`
	RuleName  string        `json:"ruleName,omitempty"`
	Dropped   string        `json:"dropped,omitempty"`
	Parents   []string      `json:"parents"`
	Hosts     []string      `json:"hosts,omitempty"`
	Matches   []string      `json:"matches"`
	Backends  []backendRef  `json:"backends"`
	Filters   []string      `json:"filters,omitempty"`
	Timeouts  *timeoutsDump `json:"timeouts,omitempty"`
	Retries   int           `json:"retries"`
	Session   string        `json:"session,omitempty"`
}

type backendRef struct {
	Name    string `json:"name"`
	Weight  uint32 `json:"weight"`
	Invalid string `json:"invalid,omitempty"`
}

type timeoutsDump struct {
	Request string `json:"request,omitempty"`
	Try     string `json:"try,omitempty"`
}

// dump lists the rules for /config_dump, by the names of their resources.
func (r *rules) dump() []ruleDump {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.store.Rules()
	out := make([]ruleDump, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, dumpRule(name, all[name]))
	}
	return out
}

func dumpRule(name string, r *wire.Rule) ruleDump {
	o := &r.Origin
	d := ruleDump{
		Name: name, Origin: o.String(), Kind: o.Kind, Namespace: o.Namespace, Route: o.Name, Rule: o.Rule, RuleName: o.RuleName,
		Dropped: r.Dropped, Hosts: r.Rule.Hosts, Matches: []string{}, Backends: []backendRef{}, Filters: filterNames(&r.Rule.Filters),
		Retries: exchange.Retries(&r.Rule),
	}
	for _, p := range r.Parents {
		s := p.Port.UpstreamName()
		if p.Clients != "" {
			s += " (clients of namespace " + p.Clients + ")"
		}
		d.Parents = append(d.Parents, s)
	}
	switch r.Rule.Carries {
	case route.Requests:
	case route.TLS:
		d.Retries = 0
		for _, n := range r.Rule.Hosts {
			d.Matches = append(d.Matches, "TLS to "+n)
		}
		if len(r.Rule.Hosts) == 0 {
			d.Matches = append(d.Matches, "TLS")
		}
	case route.Anything:
		d.Retries, d.Matches = 0, append(d.Matches, "connections without TLS")
	}
	if s := r.Rule.Session; s != nil {
		d.Session = "cookie " + s.Name
		if s.Header {
			d.Session = "header " + s.Name
		}
		if s.Absolute > 0 {
			d.Session += ", " + s.Absolute.String()
		}
	}
	for i := range r.Rule.Matches {
		d.Matches = append(d.Matches, r.Rule.Matches[i].String())
	}
	for i := range r.Rule.Backends {
		b := &r.Rule.Backends[i]
		d.Backends = append(d.Backends, backendRef{b.Name, b.Weight, b.Invalid})
	}
	if t := r.Rule.Timeouts; t != (route.Timeouts{}) {
		text := func(d time.Duration) string {
			if d == 0 {
				return ""
			}
			return d.String()
		}
		d.Timeouts = &timeoutsDump{text(t.Request), text(t.Try)}
	}
	return d
}

func filterNames(f *route.Filters) []string {
	var out []string
	for _, x := range []struct {
		name string
		is   bool
	}{
		{"request headers", f.Request != nil},
		{"response headers", f.Response != nil},
		{"redirect", f.Redirect != nil},
		{"rewrite", f.Rewrite != nil},
		{"CORS", f.CORS != nil},
	} {
		if x.is {
			out = append(out, x.name)
		}
	}
	for i := range f.Mirrors {
		m := &f.Mirrors[i]
		out = append(out, fmt.Sprintf("mirror %d/%d to %s", m.Numerator, m.Denominator, m.Backend.Name))
	}
	return out
}

// backendDump is a port of a service that routes send to, or that has no routes.
type backendDump struct {
	Namespace string         `json:"namespace"`
	Hostname  string         `json:"hostname"`
	Port      uint16         `json:"port"`
	Protocol  string         `json:"protocol"`
	Known     bool           `json:"known"` // the service has come from the control plane
	Endpoints []endpointDump `json:"endpoints"`
	Limits    *limitsDump    `json:"limits,omitempty"`
}

type limitsDump struct {
	Connections uint32 `json:"connections,omitempty"`
	Pending     uint32 `json:"pending,omitempty"`
	Requests    uint32 `json:"requests,omitempty"`
}

type endpointDump struct {
	Workload string `json:"workload"` // namespace/name
	Address  string `json:"address,omitempty"`
	Healthy  bool   `json:"healthy"`
	LeftOut  bool   `json:"leftOut,omitempty"` // on a loop at least
	Protocol string `json:"protocol"`
}

// backends lists the ports of the services that the gateway has, and those that routes
// name.
func backends(snap *workload.Snapshot, cfg *route.Config, out []carried.LeftOut) []backendDump {
	keys := map[route.PortKey]*route.Upstream{}
	for s := range snap.Services() {
		for _, p := range s.Ports {
			keys[route.PortKey{Namespace: s.Namespace, Hostname: s.Hostname, Port: p.Service}] = nil
		}
	}
	if cfg != nil {
		for _, u := range cfg.Upstreams {
			keys[u.Service] = u
		}
	}
	left := map[carried.LeftOut]bool{}
	for _, l := range out {
		left[l] = true
	}
	list := make([]backendDump, 0, len(keys))
	for k, u := range keys {
		b := backendDump{Namespace: k.Namespace, Hostname: k.Hostname, Port: k.Port, Protocol: "unknown", Endpoints: []endpointDump{}}
		if s := snap.ServiceByName(k.Namespace, k.Hostname); s != nil {
			b.Known, b.Protocol = true, apps[s.App(k.Port)]
			for w := range snap.Endpoints(s) {
				e := endpointDump{Workload: w.Namespace + "/" + w.Name, Healthy: w.Healthy, LeftOut: left[carried.LeftOut{UID: w.UID, Port: k.Port}], Protocol: "TCP"}
				if w.Protocol == workload.HBONE {
					e.Protocol = "HBONE"
				}
				if a := w.Addrs(); len(a) > 0 {
					e.Address = a[0].String()
				}
				b.Endpoints = append(b.Endpoints, e)
			}
			slices.SortFunc(b.Endpoints, func(x, y endpointDump) int {
				return cmp.Or(strings.Compare(x.Workload, y.Workload), strings.Compare(x.Address, y.Address))
			})
		}
		if u != nil {
			switch u.Protocol {
			case route.HTTP1:
				b.Protocol = "HTTP/1.1"
			case route.HTTP2:
				b.Protocol = "HTTP/2"
			case route.Declared:
			}
			if u.Limits != (route.Limits{}) {
				b.Limits = &limitsDump{u.Limits.Connections, u.Limits.Pending, u.Limits.Requests}
			}
		}
		list = append(list, b)
	}
	slices.SortFunc(list, func(x, y backendDump) int {
		return cmp.Or(strings.Compare(x.Namespace, y.Namespace), strings.Compare(x.Hostname, y.Hostname), cmp.Compare(x.Port, y.Port))
	})
	return list
}

var apps = map[workload.App]string{
	workload.AppUnknown: "unknown", workload.AppHTTP1: "HTTP/1.1", workload.AppHTTP2: "HTTP/2", workload.AppGRPC: "gRPC",
	workload.AppTCP: "TCP", workload.AppTLS: "TLS",
}
