package egress

import (
	"errors"
	"fmt"
	"math"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	egresspb "github.com/ambit-mesh/ambit/api/egress"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Extensions returns how the mode of a workload travels: as an extension, which other
// proxies pass over. AllowAny has none.
func (m Mode) Extensions() []*workloadpb.Extension {
	if m == AllowAny {
		return nil
	}
	// Made here, it marshals.
	config := &anypb.Any{TypeUrl: "type.googleapis.com/google.protobuf.StringValue"}
	config.Value, _ = proto.MarshalOptions{Deterministic: true}.Marshal(wrapperspb.String(m.String()))
	return []*workloadpb.Extension{{Name: wellknown.ExtensionOutbound, Config: config}}
}

// FromExtensions reads the mode of a workload. What cannot be read, or comes from the
// future, is RegistryOnly; of several, the strictest counts.
func FromExtensions(all []*workloadpb.Extension) Mode {
	strictest := AllowAny
	for _, e := range all {
		if e.GetName() != wellknown.ExtensionOutbound {
			continue
		}
		text := &wrapperspb.StringValue{}
		if e.GetConfig().UnmarshalTo(text) != nil {
			return RegistryOnly
		}
		m, _ := Parse(text.GetValue())
		strictest = max(strictest, m)
	}
	return strictest
}

// maxMessage bounds a message in bytes: Kubernetes stores no larger object.
const maxMessage = 2 << 20

// Encode returns the message of a policy.
func (p *Policy) Encode() ([]byte, error) {
	pb := &egresspb.Policy{
		Namespace: p.Namespace, Name: p.Name, Root: p.Root, RootNamespace: p.RootNamespace, DryRun: p.DryRun, RefuseUdp: p.RefuseUDP, Invalid: p.Invalid,
	}
	for i := range p.To {
		e := &egresspb.Entry{Hosts: p.To[i].Hosts}
		for _, c := range p.To[i].CIDRs {
			e.Cidrs = append(e.Cidrs, c.String())
		}
		for _, n := range p.To[i].Ports {
			e.Ports = append(e.Ports, uint32(n))
		}
		pb.To = append(pb.To, e)
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(pb)
	if err != nil {
		return nil, err
	}
	_, err = Decode(body)
	return body, err
}

// Decode reads a message. It rejects what is out of bounds, and fields that it does not
// have: no part of a policy is left out.
func Decode(body []byte) (*Policy, error) {
	if len(body) > maxMessage {
		return nil, fmt.Errorf("message of %d bytes: at most %d", len(body), maxMessage)
	}
	pb := &egresspb.Policy{}
	if err := proto.Unmarshal(body, pb); err != nil {
		return nil, fmt.Errorf("message of an EgressPolicy: %w", err)
	}
	if len(pb.ProtoReflect().GetUnknown()) > 0 {
		return nil, errors.New("the policy has a field that is not known: the control plane is newer than this program")
	}
	p := &Policy{
		Namespace: pb.GetNamespace(), Name: pb.GetName(), Root: pb.GetRoot(), RootNamespace: pb.GetRootNamespace(),
		DryRun: pb.GetDryRun(), RefuseUDP: pb.GetRefuseUdp(), Invalid: pb.GetInvalid(),
	}
	if p.Namespace == "" || p.Name == "" {
		return nil, errors.New("the policy has no namespace or no name")
	}
	if p.Invalid != "" {
		return p, nil
	}
	var err error
	if p.To, err = ReadEntries(pb.GetTo()); err != nil {
		return nil, err
	}
	return p, nil
}

// ReadEntries reads the entries of a policy, as users write them. The error names the field.
func ReadEntries(all []*egresspb.Entry) (out []Entry, err error) {
	if len(all) > MaxEntries {
		return nil, fmt.Errorf("to: %d entries, and at most %d are read", len(all), MaxEntries)
	}
	for i, pb := range all {
		if out, err = appendEntry(out, pb); err != nil {
			return nil, fmt.Errorf("to[%d].%w", i, err)
		}
	}
	return out, nil
}

func appendEntry(out []Entry, pb *egresspb.Entry) ([]Entry, error) {
	var e Entry
	if len(pb.ProtoReflect().GetUnknown()) > 0 {
		return nil, errors.New("(unknown): the entry has a field that is not known: the control plane is newer than this program")
	}
	for field, n := range map[string]int{"hosts": len(pb.GetHosts()), "cidrs": len(pb.GetCidrs()), "ports": len(pb.GetPorts())} {
		if n > MaxList {
			return nil, fmt.Errorf("%s: %d values, and at most %d are read", field, n, MaxList)
		}
	}
	for j, text := range pb.GetHosts() {
		h, err := ParseHost(text)
		if err != nil {
			return nil, fmt.Errorf("hosts[%d]: %w", j, err)
		}
		e.Hosts = append(e.Hosts, h)
	}
	for j, text := range pb.GetCidrs() {
		c, err := ParseCIDR(text)
		if err != nil {
			return nil, fmt.Errorf("cidrs[%d]: %w", j, err)
		}
		e.CIDRs = append(e.CIDRs, c)
	}
	for j, n := range pb.GetPorts() {
		if n == 0 || n > math.MaxUint16 {
			return nil, fmt.Errorf("ports[%d]: %d is not a port from 1 to 65535", j, n)
		}
		e.Ports = append(e.Ports, uint16(n))
	}
	return append(out, e), nil
}

// Unreadable is the name of a policy that no object has: a workload whose selection cannot
// be read names it, and waits for it in vain.
const Unreadable = "_unreadable"

// Select returns how the names of a workload's policies travel; nil for none.
func Select(names []string) []*workloadpb.Extension {
	if len(names) == 0 {
		return nil
	}
	config := &anypb.Any{TypeUrl: "type.googleapis.com/ambit.egress.v1.Selection"}
	config.Value, _ = proto.MarshalOptions{Deterministic: true}.Marshal(&egresspb.Selection{Policies: names})
	return []*workloadpb.Extension{{Name: wellknown.ExtensionEgress, Config: config}}
}

// Selected returns the names of a workload's policies.
func Selected(all []*workloadpb.Extension) (names []string) {
	for _, e := range all {
		if e.GetName() != wellknown.ExtensionEgress {
			continue
		}
		s := &egresspb.Selection{}
		if e.GetConfig().UnmarshalTo(s) != nil || len(s.ProtoReflect().GetUnknown()) > 0 || len(s.GetPolicies()) == 0 {
			return []string{Unreadable}
		}
		names = append(names, s.GetPolicies()...)
	}
	return names
}
