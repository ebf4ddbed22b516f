package traffic

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	trafficpb "github.com/ambit-mesh/ambit/api/traffic"
)

// maxMessage bounds a message in bytes: Kubernetes stores no larger object.
const maxMessage = 2 << 20

var scopes = map[Scope]trafficpb.Scope{
	Region: trafficpb.Scope_REGION, Zone: trafficpb.Scope_ZONE, Subzone: trafficpb.Scope_SUBZONE,
	NodeScope: trafficpb.Scope_NODE, Cluster: trafficpb.Scope_CLUSTER, Network: trafficpb.Scope_NETWORK,
}

// Encode returns the message of a rule, or why a node proxy would reject it.
func (r *Rule) Encode() ([]byte, error) {
	pb := &trafficpb.Rule{
		Namespace: r.Namespace, Name: r.Name, Created: r.Created, Host: r.Host, VisibleTo: r.VisibleTo, Own: r.Own, Root: r.Root,
		Settings: r.Settings.encode(),
	}
	for _, port := range slices.Sorted(maps.Keys(r.Ports)) {
		s := r.Ports[port]
		pb.Ports = append(pb.Ports, &trafficpb.Port{Number: uint32(port), Settings: s.encode()})
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(pb)
	if err != nil {
		return nil, err
	}
	_, err = Decode(body)
	return body, err
}

func (s *Settings) encode() *trafficpb.Settings {
	out := &trafficpb.Settings{
		MaxConnections: s.MaxConnections, ConnectTimeoutMilliseconds: uint32(s.ConnectTimeout.Milliseconds()), Balance: trafficpb.Balance(s.Balance),
	}
	if o := s.Outlier; o != nil {
		out.Outlier = &trafficpb.Outlier{
			Consecutive: uint32(o.Consecutive), IntervalMilliseconds: uint32(o.Interval.Milliseconds()), BaseMilliseconds: uint32(o.Base.Milliseconds()),
			MaxPercent: uint32(o.MaxPercent), MinHealthPercent: uint32(o.MinHealthPercent),
		}
	}
	if l := s.Locality; l != nil {
		out.Locality = &trafficpb.Locality{Disabled: l.Disabled}
		for _, scope := range l.Scopes {
			out.Locality.Scopes = append(out.Locality.Scopes, scopes[scope])
		}
		for _, f := range l.Failover {
			out.Locality.Failover = append(out.Locality.Failover, &trafficpb.Failover{From: f.From, To: f.To})
		}
	}
	return out
}

// Decode reads a message. It rejects what is out of bounds, and fields that it does not
// have: it never leaves a part of a rule out.
func Decode(body []byte) (*Rule, error) {
	if len(body) > maxMessage {
		return nil, fmt.Errorf("message of %d bytes: at most %d", len(body), maxMessage)
	}
	pb := &trafficpb.Rule{}
	if err := proto.Unmarshal(body, pb); err != nil {
		return nil, fmt.Errorf("message of a traffic rule: %w", err)
	}
	if unknown(pb.ProtoReflect()) {
		return nil, errors.New("the rule has a field that is not known: the control plane is newer than this program")
	}
	r := &Rule{
		Namespace: pb.GetNamespace(), Name: pb.GetName(), Created: pb.GetCreated(), Host: pb.GetHost(), VisibleTo: pb.GetVisibleTo(), Own: pb.GetOwn(), Root: pb.GetRoot(),
	}
	star := strings.LastIndexByte(r.Host, '*')
	switch {
	case r.Namespace == "" || r.Name == "":
		return nil, errors.New("the rule has no namespace or no name")
	case r.Host == "" || r.Host != strings.ToLower(r.Host) || star > 0 || star == 0 && r.Host != "*" && !strings.HasPrefix(r.Host, "*."):
		return nil, fmt.Errorf("host %q: it is no name in lower case, and no pattern", r.Host)
	case len(r.VisibleTo) > maxList:
		return nil, fmt.Errorf("visible to %d namespaces: at most %d", len(r.VisibleTo), maxList)
	case len(pb.GetPorts()) > maxPorts:
		return nil, fmt.Errorf("%d ports: at most %d", len(pb.GetPorts()), maxPorts)
	}
	var err error
	if r.Settings, err = decode(pb.GetSettings()); err != nil {
		return nil, err
	}
	for _, p := range pb.GetPorts() {
		port := uint16(p.GetNumber())
		if p.GetNumber() == 0 || p.GetNumber() > 1<<16-1 {
			return nil, fmt.Errorf("port %d: write 1 to 65535", p.GetNumber())
		}
		s, err := decode(p.GetSettings())
		if err != nil {
			return nil, fmt.Errorf("port %d: %w", port, err)
		}
		if r.Ports == nil {
			r.Ports = map[uint16]Settings{}
		}
		r.Ports[port] = s
	}
	return r, nil
}

func decode(pb *trafficpb.Settings) (s Settings, err error) {
	s.MaxConnections, s.ConnectTimeout, s.Balance = pb.GetMaxConnections(), milliseconds(pb.GetConnectTimeoutMilliseconds()), Balance(pb.GetBalance())
	if b := pb.GetBalance(); trafficpb.Balance_name[int32(b)] == "" {
		return s, fmt.Errorf("balance %d is not known", b)
	}
	if s.ConnectTimeout > MaxConnectTimeout {
		return s, fmt.Errorf("connect timeout %v: at most %v", s.ConnectTimeout, MaxConnectTimeout)
	}
	if o := pb.GetOutlier(); o != nil {
		if o.GetMaxPercent() > 100 || o.GetMinHealthPercent() > 100 || o.GetConsecutive() > 1<<20 || o.GetBaseMilliseconds() == 0 || o.GetIntervalMilliseconds() == 0 {
			return s, fmt.Errorf("outlier %v: out of bounds", o)
		}
		s.Outlier = &Outlier{
			Consecutive: int(o.GetConsecutive()), Interval: milliseconds(o.GetIntervalMilliseconds()), Base: milliseconds(o.GetBaseMilliseconds()),
			MaxPercent: int(o.GetMaxPercent()), MinHealthPercent: int(o.GetMinHealthPercent()),
		}
	}
	l := pb.GetLocality()
	if l == nil {
		return s, nil
	}
	if len(l.GetScopes()) > len(scopes) || len(l.GetFailover()) > maxList {
		return s, fmt.Errorf("locality with %d scopes and %d regions: too many", len(l.GetScopes()), len(l.GetFailover()))
	}
	s.Locality = &Locality{Disabled: l.GetDisabled()}
	for _, scope := range l.GetScopes() {
		found := false
		for ours, theirs := range scopes {
			if theirs == scope {
				s.Locality.Scopes, found = append(s.Locality.Scopes, ours), true
			}
		}
		if !found {
			return s, fmt.Errorf("scope %d is not known", scope)
		}
	}
	for _, f := range l.GetFailover() {
		s.Locality.Failover = append(s.Locality.Failover, Failover{f.GetFrom(), f.GetTo()})
	}
	return s, nil
}

func milliseconds(n uint32) time.Duration { return time.Duration(n) * time.Millisecond }

// unknown reports whether a message has a field that this program does not have.
func unknown(m protoreflect.Message) (found bool) {
	found = len(m.GetUnknown()) > 0
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				found = found || unknown(v.List().Get(i).Message())
			}
		default:
			found = found || unknown(v.Message())
		}
		return !found
	})
	return found
}
