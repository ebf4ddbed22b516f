package wire

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	routepb "github.com/ambit-mesh/ambit/api/route"
	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/wire/strict"
)

// maxMessage bounds a message in bytes. Kubernetes stores no object that is
// larger than 1.5 MiB, and a rule is a part of one.
const maxMessage = 2 << 20

// Decode reads a resource. It rejects what a gateway cannot execute, and names
// the field and its value. It never leaves a part of a message out.
func Decode(body []byte) (*Rule, error) {
	if len(body) > maxMessage {
		return nil, fmt.Errorf("message of %d bytes: at most %d", len(body), maxMessage)
	}
	pb := &routepb.Rule{}
	if err := proto.Unmarshal(body, pb); err != nil {
		return nil, fmt.Errorf("message of type %s: %w", pb.ProtoReflect().Descriptor().FullName(), err)
	}
	return FromProto(pb)
}

// FromProto is Decode of a message that is unmarshalled.
func FromProto(pb *routepb.Rule) (*Rule, error) {
	if err := strict.Unknown(pb.ProtoReflect()); err != nil {
		return nil, err
	}
	r := &Rule{Dropped: pb.GetDropped(), Origin: origin(pb.GetOrigin())}
	for i, p := range pb.GetParents() {
		k, err := portKey(fmt.Sprintf("parents[%d]", i), p.GetService(), p.GetPort())
		if err != nil {
			return nil, err
		}
		r.Parents = append(r.Parents, Parent{k, p.GetClients()})
	}
	to := &r.Rule
	to.GRPC, to.Guarded = pb.GetGrpc(), pb.GetGuarded()
	if c := pb.GetConnections(); c != nil {
		to.Carries, to.Hosts = route.Anything, c.GetNames()
		if c.GetTls() {
			to.Carries = route.TLS
		}
	}
	for _, m := range pb.GetMatches() {
		to.Matches = append(to.Matches, match(m))
	}
	var err error
	if to.Filters, err = filters("filters", pb.GetFilters()); err != nil {
		return nil, err
	}
	for i, b := range pb.GetBackends() {
		d, err := backend(fmt.Sprintf("backends[%d]", i), b)
		if err != nil {
			return nil, err
		}
		to.Backends = append(to.Backends, d)
	}
	if to.Timeouts.Request, err = duration("timeouts.request_ms", pb.GetTimeouts().GetRequestMs()); err != nil {
		return nil, err
	}
	if to.Timeouts.Try, err = duration("timeouts.try_ms", pb.GetTimeouts().GetTryMs()); err != nil {
		return nil, err
	}
	if to.Retry, err = retry(pb.GetRetry()); err != nil {
		return nil, err
	}
	if s := pb.GetSession(); s != nil {
		d, err := duration("session.absolute_ms", s.GetAbsoluteMs())
		if err != nil {
			return nil, err
		}
		to.Session = &route.Session{Name: s.GetName(), Header: s.GetHeader(), Absolute: d, Permanent: s.GetPermanent()}
	}
	r.fill()
	if err := r.Check(); err != nil {
		return nil, err
	}
	return r, nil
}

func origin(o *routepb.Origin) Origin {
	return Origin{
		Kind: o.GetKind(), Namespace: o.GetNamespace(), Name: o.GetName(), Rule: int(o.GetRule()), RuleName: o.GetRuleName(),
		Created: time.Unix(o.GetCreated(), 0).UTC(),
	}
}

func portKey(field string, s *routepb.Service, port uint32) (route.PortKey, error) {
	n, err := portOf(field+".port", port)
	return route.PortKey{Namespace: s.GetNamespace(), Hostname: s.GetHostname(), Port: n}, err
}

func portOf(field string, n uint32) (uint16, error) {
	if n > 65535 {
		return 0, fmt.Errorf("%s: %d is no port", field, n)
	}
	return uint16(n), nil
}

var kinds = map[routepb.MatchKind]route.Kind{
	routepb.MatchKind_EXACT: route.Exact, routepb.MatchKind_PATH_PREFIX: route.Segments, routepb.MatchKind_REGEX: route.Regex,
}

func match(m *routepb.Match) route.Match {
	out := route.Match{Method: m.GetMethod(), Headers: values(m.GetHeaders()), Query: values(m.GetQuery())}
	if p := m.GetPath(); p != nil {
		out.Path = route.Path{Kind: kinds[p.GetKind()], Value: p.GetValue()}
		if out.Path.Kind == route.Any {
			out.Path.Kind = route.Present // no kind of a path: Check rejects it
		}
	}
	return out
}

func values(list []*routepb.ValueMatch) (out []route.Value) {
	for _, v := range list {
		out = append(out, route.Value{Name: v.GetName(), Kind: kinds[v.GetKind()], Value: v.GetValue()})
	}
	return out
}

func filters(field string, f *routepb.Filters) (out route.Filters, err error) {
	out.Request, out.Response = edit(f.GetRequest()), edit(f.GetResponse())
	if r := f.GetRedirect(); r != nil {
		port, err := portOf(field+".redirect.port", r.GetPort())
		if err != nil {
			return out, err
		}
		out.Redirect = &route.Redirect{Scheme: r.GetScheme(), Host: r.GetHostname(), Port: port, Status: int(r.GetStatus())}
		if out.Redirect.Path, err = pathEdit(field+".redirect.path", r.GetPath()); err != nil {
			return out, err
		}
	}
	if r := f.GetRewrite(); r != nil {
		out.Rewrite = &route.Rewrite{Host: r.GetHostname()}
		if out.Rewrite.Path, err = pathEdit(field+".rewrite.path", r.GetPath()); err != nil {
			return out, err
		}
	}
	for i, m := range f.GetMirrors() {
		b, err := backend(fmt.Sprintf("%s.mirrors[%d].backend", field, i), m.GetBackend())
		if err != nil {
			return out, err
		}
		out.Mirrors = append(out.Mirrors, route.Mirror{Backend: b, Numerator: m.GetNumerator(), Denominator: m.GetDenominator()})
	}
	if p := f.GetExternalAuth(); p != nil {
		if out.ExternalAuth, err = extauthz.Compile(p); err != nil {
			return out, fmt.Errorf("%s.external_auth.%w", field, err)
		}
	}
	if c := f.GetCors(); c != nil {
		out.CORS = &route.CORS{
			Origins: c.GetOrigins(), Methods: c.GetMethods(), Headers: c.GetHeaders(), Expose: c.GetExpose(),
			Credentials: c.GetCredentials(), MaxAge: time.Duration(c.GetMaxAgeSeconds()) * time.Second,
		}
	}
	return out, nil
}

func edit(e *routepb.HeaderEdit) *route.HeaderEdit {
	if e == nil {
		return nil
	}
	return &route.HeaderEdit{Set: fields(e.GetSet()), Add: fields(e.GetAdd()), Remove: e.GetRemove()}
}

func fields(list []*routepb.Header) (out []route.Field) {
	for _, h := range list {
		out = append(out, route.Field{Name: h.GetName(), Value: h.GetValue()})
	}
	return out
}

func pathEdit(field string, e *routepb.PathEdit) (*route.PathEdit, error) {
	if e == nil {
		return nil, nil
	}
	switch v := e.GetEdit().(type) {
	case *routepb.PathEdit_Full:
		return &route.PathEdit{Value: v.Full}, nil
	case *routepb.PathEdit_Prefix:
		return &route.PathEdit{Prefix: true, Value: v.Prefix}, nil
	}
	return nil, fmt.Errorf("%s: neither full nor prefix", field)
}

func backend(field string, b *routepb.Backend) (out route.Backend, err error) {
	k, err := portKey(field, b.GetService(), b.GetPort())
	if err == nil && k != (route.PortKey{}) {
		err = checkKey(k)
	}
	if err != nil {
		return out, fmt.Errorf("%s: %w", field, err)
	}
	out = route.Backend{Weight: b.GetWeight(), Invalid: b.GetInvalid()}
	if k != (route.PortKey{}) {
		out.Name = k.UpstreamName()
	}
	out.Filters, err = filters(field+".filters", b.GetFilters())
	return out, err
}

func retry(r *routepb.Retry) (*route.Retry, error) {
	if r == nil {
		return nil, nil
	}
	backoff, err := duration("retry.backoff_ms", r.GetBackoffMs())
	if err != nil {
		return nil, err
	}
	out := &route.Retry{Attempts: int(r.GetAttempts()), Backoff: backoff}
	for _, c := range r.GetCodes() {
		out.Codes = append(out.Codes, int(c))
	}
	return out, nil
}

// maxMillis is the longest duration of Gateway API, four times 99999h.
const maxMillis = 4 * 99999 * 3600 * 1000

func duration(field string, ms uint64) (time.Duration, error) {
	if ms > maxMillis {
		return 0, fmt.Errorf("%s: %d is more than %d", field, ms, uint64(maxMillis))
	}
	return time.Duration(ms) * time.Millisecond, nil
}
