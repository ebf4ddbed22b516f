package ratelimit

import (
	"errors"
	"fmt"
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
	switch {
	case unknown:
		return nil, errors.New("the limit has a field that is not known: the control plane is newer than this program")
	case l.Namespace == "" || l.Name == "":
		return nil, errors.New("the limit has no namespace or no name")
	case len(l.Rates) == 0 || len(l.Rates) > maxRates:
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
