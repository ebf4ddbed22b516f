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

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/gateway/carried"
	"github.com/ambit-mesh/ambit/internal/l7/exchange"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/wire"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/process"
)

// dumpTimeout bounds the wait for loops that are asked what they carry.
const dumpTimeout = 5 * time.Second

// dump returns /config_dump.
func (a *App) dump() any {
	snap := a.dir.Snapshot()
	ctx, cancel := context.WithTimeout(context.Background(), dumpTimeout)
	defer cancel()
	st := a.gateway.State(ctx)
	slices.SortFunc(st.Connections, func(x, y admin.GatewayConnection) int {
		return cmp.Or(strings.Compare(x.Client, y.Client), strings.Compare(x.Source, y.Source), strings.Compare(x.Called, y.Called), x.Since.Compare(y.Since))
	})
	if st.Connections == nil {
		st.Connections = []admin.GatewayConnection{}
	}
	config, _ := json.Marshal(a.cfg) // plain values
	return admin.Waypoint{
		Workloads: snap.DumpWorkloads(), Services: snap.DumpServices(),
		Routes: a.rules.dump(), Backends: backends(snap, a.rules.config.Load(), st.LeftOut),
		Policies: a.policies.dump(), Authentications: a.authentications.dump(), Telemetry: a.observed.Dump(),
		Config: config, Certificates: a.certs.States(), Version: process.Version(),
		Connections: st.Connections, ConnectionsOmitted: st.Omitted, ConnectionsActive: a.gateway.Active(),
	}
}

// dump lists the rules for /config_dump, by the names of their resources.
func (r *rules) dump() []admin.Route {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.store.Rules()
	out := make([]admin.Route, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, dumpRule(name, all[name]))
	}
	return out
}

func dumpRule(name string, r *wire.Rule) admin.Route {
	o := &r.Origin
	d := admin.Route{
		Name: name, Origin: o.String(), Kind: o.Kind, Namespace: o.Namespace, Route: o.Name, Rule: o.Rule, RuleName: o.RuleName,
		Dropped: r.Dropped, Hosts: r.Rule.Hosts, Matches: []string{}, Backends: []admin.BackendRef{}, Filters: filterNames(&r.Rule.Filters),
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
		d.Backends = append(d.Backends, admin.BackendRef{Name: b.Name, Weight: b.Weight, Invalid: b.Invalid})
	}
	if t := r.Rule.Timeouts; t != (route.Timeouts{}) {
		text := func(d time.Duration) string {
			if d == 0 {
				return ""
			}
			return d.String()
		}
		d.Timeouts = &admin.Timeouts{Request: text(t.Request), Try: text(t.Try)}
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

// backends lists the ports of the services that the gateway has, and those that routes
// name.
func backends(snap *workload.Snapshot, cfg *route.Config, out []carried.LeftOut) []admin.Backend {
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
	list := make([]admin.Backend, 0, len(keys))
	for k, u := range keys {
		b := admin.Backend{Namespace: k.Namespace, Hostname: k.Hostname, Port: k.Port, Protocol: "unknown", Endpoints: []admin.BackendEndpoint{}}
		if s := snap.ServiceByName(k.Namespace, k.Hostname); s != nil {
			b.Known, b.Protocol = true, apps[s.App(k.Port)]
			for w := range snap.Endpoints(s) {
				e := admin.BackendEndpoint{Workload: w.Namespace + "/" + w.Name, Healthy: w.Healthy, LeftOut: left[carried.LeftOut{UID: w.UID, Port: k.Port}], Protocol: "TCP"}
				if w.Protocol == workload.HBONE {
					e.Protocol = "HBONE"
				}
				if a := w.Addrs(); len(a) > 0 {
					e.Address = a[0].String()
				}
				b.Endpoints = append(b.Endpoints, e)
			}
			slices.SortFunc(b.Endpoints, func(x, y admin.BackendEndpoint) int {
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
				b.Limits = &admin.Limits{Connections: u.Limits.Connections, Pending: u.Limits.Pending, Requests: u.Limits.Requests}
			}
		}
		list = append(list, b)
	}
	slices.SortFunc(list, func(x, y admin.Backend) int {
		return cmp.Or(strings.Compare(x.Namespace, y.Namespace), strings.Compare(x.Hostname, y.Hostname), cmp.Compare(x.Port, y.Port))
	})
	return list
}

var apps = map[workload.App]string{
	workload.AppUnknown: "unknown", workload.AppHTTP1: "HTTP/1.1", workload.AppHTTP2: "HTTP/2", workload.AppGRPC: "gRPC",
	workload.AppTCP: "TCP", workload.AppTLS: "TLS",
}
