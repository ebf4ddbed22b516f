package ratelimit

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/ambit-mesh/ambit/api/ratelimit"
)

// maxMessage bounds a message in bytes.
const maxMessage = 2 << 20

// Encode returns the message of a limit, or why a node proxy would reject it.
func (l *Limit) Encode() ([]byte, error) {
	m := &pb.Limit{Namespace: l.Namespace, Name: l.Name, Hosts: l.Hosts, Workloads: l.Workloads, DryRun: l.DryRun}
	for _, r := range l.Rates {
		m.Connections = append(m.Connections, &pb.Connections{
			Rate: r.Count, PerMilliseconds: uint32(r.Per.Milliseconds()), Burst: r.Burst, By: pb.By(r.By), //nolint:gosec // checked below
		})
	}
	if s := l.Service; s != nil {
		m.Service = &pb.Service{Namespace: s.Namespace, Hostname: s.Hostname, Port: uint32(s.Port), Domain: s.Domain, TimeoutMilliseconds: uint32(s.Timeout.Milliseconds()), Open: s.Open} //nolint:gosec // checked below
		for _, d := range s.Descriptors {
			one := &pb.Descriptor{}
			for _, e := range d {
				one.Entries = append(one.Entries, pb.Entry(e))
			}
			m.Service.Descriptors = append(m.Service.Descriptors, one)
		}
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	_, err = Decode(body)
	return body, err
}

// Decode reads a message. It rejects what is out of bounds, and fields that it does not
// have: it never leaves a part of a limit out.
func Decode(body []byte) (*Limit, error) {
	if len(body) > maxMessage {
		return nil, fmt.Errorf("message of %d bytes: at most %d", len(body), maxMessage)
	}
	m := &pb.Limit{}
	if err := proto.Unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("message of a rate limit: %w", err)
	}
	unknown := len(m.ProtoReflect().GetUnknown()) > 0
	l := &Limit{Namespace: m.GetNamespace(), Name: m.GetName(), Hosts: m.GetHosts(), Workloads: m.GetWorkloads(), DryRun: m.GetDryRun()}
	for i, c := range m.GetConnections() {
		unknown = unknown || len(c.ProtoReflect().GetUnknown()) > 0
		if c.GetBy() < 0 || int(c.GetBy()) >= len(byNames) {
			return nil, fmt.Errorf("connections[%d]: by: %d is not known", i, c.GetBy())
		}
		r := Rate{Count: c.GetRate(), Per: time.Duration(c.GetPerMilliseconds()) * time.Millisecond, Burst: c.GetBurst(), By: By(c.GetBy())} //nolint:gosec // checked
		if err := r.Check(); err != nil {
			return nil, fmt.Errorf("connections[%d]: %w", i, err)
		}
		l.Rates = append(l.Rates, r)
	}
	if s := m.GetService(); s != nil {
		var strange bool
		var err error
		if l.Service, strange, err = decodeService(s); err != nil {
			return nil, fmt.Errorf("service: %w", err)
		}
		unknown = unknown || strange
	}
	switch {
	case unknown:
		return nil, errors.New("the limit has a field that is not known: the control plane is newer than this program")
	case l.Namespace == "" || l.Name == "":
		return nil, errors.New("the limit has no namespace or no name")
	case len(l.Rates) == 0 && l.Service == nil || len(l.Rates) > maxRates:
		return nil, fmt.Errorf("%d limits of connections: write 1 to %d", len(l.Rates), maxRates)
	case len(l.Hosts) > maxHosts || len(l.Workloads) > maxOnNode:
		return nil, fmt.Errorf("%d services and %d workloads: at most %d and %d", len(l.Hosts), len(l.Workloads), maxHosts, maxOnNode)
	case slices.ContainsFunc(l.Hosts, func(h string) bool { return h == "" || h != strings.ToLower(h) }):
		return nil, fmt.Errorf("services %q: a host name is empty, or not in lower case", l.Hosts)
	case !slices.IsSorted(l.Workloads):
		return nil, errors.New("workloads are not in order")
	}
	return l, nil
}

// decodeService reads a service. strange: it has a field that is not known.
func decodeService(m *pb.Service) (s *Service, strange bool, err error) {
	strange = len(m.ProtoReflect().GetUnknown()) > 0
	if m.GetPort() > math.MaxUint16 {
		return nil, strange, fmt.Errorf("port: %d is none", m.GetPort())
	}
	s = &Service{
		Namespace: m.GetNamespace(), Hostname: m.GetHostname(), Port: uint16(m.GetPort()), Domain: m.GetDomain(), //nolint:gosec // checked
		Timeout: time.Duration(m.GetTimeoutMilliseconds()) * time.Millisecond, Open: m.GetOpen(),
	}
	for _, d := range m.GetDescriptors() {
		strange = strange || len(d.ProtoReflect().GetUnknown()) > 0
		var one []Entry
		for _, e := range d.GetEntries() {
			if e < 0 || int(e) >= len(entries) {
				return nil, strange, fmt.Errorf("entry %d is not known", e)
			}
			one = append(one, Entry(e)) //nolint:gosec // checked
		}
		s.Descriptors = append(s.Descriptors, one)
	}
	return s, strange, s.Check()
}
