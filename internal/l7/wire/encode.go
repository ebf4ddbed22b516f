package wire

import (
	"time"

	"google.golang.org/protobuf/proto"

	routepb "github.com/ambit-mesh/ambit/api/route"
	"github.com/ambit-mesh/ambit/internal/l7/route"
)

// Encode returns the message of a rule, or why a gateway cannot execute it. It
// sets what follows from the rule's origin.
func (r *Rule) Encode() ([]byte, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	r.fill()
	return proto.MarshalOptions{Deterministic: true}.Marshal(r.proto())
}

// proto returns the message of a rule that Check accepts.
func (r *Rule) proto() *routepb.Rule {
	o, c := &r.Origin, &r.Rule
	pb := &routepb.Rule{
		Origin: &routepb.Origin{
			Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, Rule: uint32(o.Rule), RuleName: o.RuleName, Created: o.Created.Unix(),
		},
		Dropped: r.Dropped, Grpc: c.GRPC, Guarded: c.Guarded, Filters: filtersProto(&c.Filters),
	}
	if c.Carries != route.Requests {
		pb.Connections = &routepb.Connections{Tls: c.Carries == route.TLS, Names: c.Hosts}
	}
	for _, p := range r.Parents {
		pb.Parents = append(pb.Parents, &routepb.Parent{Service: serviceProto(p.Port), Port: uint32(p.Port.Port), Clients: p.Clients})
	}
	for _, m := range c.Matches {
		pb.Matches = append(pb.Matches, matchProto(&m))
	}
	for i := range c.Backends {
		pb.Backends = append(pb.Backends, backendProto(&c.Backends[i]))
	}
	if c.Timeouts != (route.Timeouts{}) {
		pb.Timeouts = &routepb.Timeouts{RequestMs: millis(c.Timeouts.Request), TryMs: millis(c.Timeouts.Try)}
	}
	if s := c.Session; s != nil {
		pb.Session = &routepb.Session{Name: s.Name, Header: s.Header, AbsoluteMs: millis(s.Absolute), Permanent: s.Permanent}
	}
	if c.Retry != nil {
		pb.Retry = &routepb.Retry{Attempts: uint32(c.Retry.Attempts), BackoffMs: millis(c.Retry.Backoff)}
		for _, code := range c.Retry.Codes {
			pb.Retry.Codes = append(pb.Retry.Codes, uint32(code))
		}
	}
	return pb
}

func millis(d time.Duration) uint64 { return uint64(d.Milliseconds()) }

func serviceProto(k route.PortKey) *routepb.Service {
	return &routepb.Service{Namespace: k.Namespace, Hostname: k.Hostname}
}

func kindProto(k route.Kind) routepb.MatchKind {
	for pb, have := range kinds {
		if have == k {
			return pb
		}
	}
	return routepb.MatchKind_MATCH_KIND_UNSPECIFIED
}

func matchProto(m *route.Match) *routepb.Match {
	pb := &routepb.Match{Method: m.Method, Headers: valuesProto(m.Headers), Query: valuesProto(m.Query)}
	if m.Path.Kind != route.Any {
		pb.Path = &routepb.PathMatch{Kind: kindProto(m.Path.Kind), Value: m.Path.Value}
	}
	return pb
}

func valuesProto(list []route.Value) (out []*routepb.ValueMatch) {
	for _, v := range list {
		out = append(out, &routepb.ValueMatch{Name: v.Name, Kind: kindProto(v.Kind), Value: v.Value})
	}
	return out
}

func filtersProto(f *route.Filters) *routepb.Filters {
	if empty(f) {
		return nil
	}
	pb := &routepb.Filters{Request: editProto(f.Request), Response: editProto(f.Response)}
	if r := f.Redirect; r != nil {
		pb.Redirect = &routepb.Redirect{Scheme: r.Scheme, Hostname: r.Host, Port: uint32(r.Port), Path: pathEditProto(r.Path), Status: uint32(r.Status)}
	}
	if r := f.Rewrite; r != nil {
		pb.Rewrite = &routepb.Rewrite{Hostname: r.Host, Path: pathEditProto(r.Path)}
	}
	for i := range f.Mirrors {
		m := &f.Mirrors[i]
		pb.Mirrors = append(pb.Mirrors, &routepb.Mirror{Backend: backendProto(&m.Backend), Numerator: m.Numerator, Denominator: m.Denominator})
	}
	if p := f.ExternalAuth; p != nil {
		pb.ExternalAuth = p.Proto()
	}
	if c := f.CORS; c != nil {
		pb.Cors = &routepb.CORS{
			Origins: c.Origins, Methods: c.Methods, Headers: c.Headers, Expose: c.Expose, Credentials: c.Credentials,
			MaxAgeSeconds: uint32(c.MaxAge / time.Second),
		}
	}
	return pb
}

func editProto(e *route.HeaderEdit) *routepb.HeaderEdit {
	if e == nil {
		return nil
	}
	return &routepb.HeaderEdit{Set: fieldsProto(e.Set), Add: fieldsProto(e.Add), Remove: e.Remove}
}

func fieldsProto(list []route.Field) (out []*routepb.Header) {
	for _, f := range list {
		out = append(out, &routepb.Header{Name: f.Name, Value: f.Value})
	}
	return out
}

func pathEditProto(e *route.PathEdit) *routepb.PathEdit {
	switch {
	case e == nil:
		return nil
	case e.Prefix:
		return &routepb.PathEdit{Edit: &routepb.PathEdit_Prefix{Prefix: e.Value}}
	}
	return &routepb.PathEdit{Edit: &routepb.PathEdit_Full{Full: e.Value}}
}

func backendProto(b *route.Backend) *routepb.Backend {
	pb := &routepb.Backend{Weight: b.Weight, Invalid: b.Invalid, Filters: filtersProto(&b.Filters)}
	if b.Name != "" {
		k, _ := ParseUpstream(b.Name) // Check has parsed it
		pb.Service, pb.Port = serviceProto(k), uint32(k.Port)
	}
	return pb
}
