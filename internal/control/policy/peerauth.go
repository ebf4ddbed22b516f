package policy

import (
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/emptypb"
	apisecurity "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	securitypb "github.com/ambit-mesh/ambit/api/security"
)

// Node proxies know no PeerAuthentication: what it demands is said to them as
// DENY policies for connections without an identity.

// StaticStrict is the name of the policy that denies every connection without
// an identity. It lives in the root namespace; workloads that are strict
// refer to it.
const StaticStrict = "istio_converted_static_strict"

// convertedPrefix begins the names of policies made for single ports.
const convertedPrefix = "converted_peer_authentication_"

// Mode is what connections a workload takes.
type Mode uint8

// The modes.
const (
	Unset      Mode = iota // as the wider policy says
	Permissive             // with identity and without; also for DISABLE: proxies always use mutual TLS among themselves
	Strict                 // with identity only
)

// PeerAuthentication is what we read of one.
type PeerAuthentication struct {
	Namespace, Name string
	Created         time.Time
	Selector        map[string]string // nil for namespace and mesh
	Mode            Mode
	Ports           map[uint32]Mode
}

// ReadPeerAuthentication extracts what matters.
func ReadPeerAuthentication(p *securityv1.PeerAuthentication) PeerAuthentication {
	out := PeerAuthentication{
		Namespace: p.Namespace,
		Name:      p.Name,
		Created:   p.CreationTimestamp.Time,
		Selector:  p.Spec.Selector.GetMatchLabels(),
		Mode:      mode(p.Spec.Mtls),
	}
	if len(out.Selector) == 0 {
		out.Selector = nil
	}
	for port, m := range p.Spec.PortLevelMtls {
		if out.Ports == nil {
			out.Ports = map[uint32]Mode{}
		}
		out.Ports[port] = mode(m)
	}
	return out
}

func mode(m *apisecurity.PeerAuthentication_MutualTLS) Mode {
	switch m.GetMode() {
	case apisecurity.PeerAuthentication_MutualTLS_STRICT:
		return Strict
	case apisecurity.PeerAuthentication_MutualTLS_PERMISSIVE, apisecurity.PeerAuthentication_MutualTLS_DISABLE:
		return Permissive
	case apisecurity.PeerAuthentication_MutualTLS_UNSET:
	}
	return Unset
}

// Older reports whether a takes precedence over b: the one created first, then
// by namespace and name.
func Older(a, b *PeerAuthentication) bool {
	if !a.Created.Equal(b.Created) {
		// An object without a time (from a file) is taken as the oldest.
		return a.Created.Before(b.Created)
	}
	if a.Namespace != b.Namespace {
		return strings.Compare(a.Namespace, b.Namespace) < 0
	}
	return strings.Compare(a.Name, b.Name) < 0
}

// Inherit returns own, or outer where own is unset.
func Inherit(own, outer Mode) Mode {
	if own == Unset {
		return outer
	}
	return own
}

// StrictPolicy is the policy of StaticStrict.
func StrictPolicy(rootNamespace string) *securitypb.Authorization {
	return denyAnonymous(rootNamespace, StaticStrict, &securitypb.Match{})
}

// Convert makes the policy that says what a PeerAuthentication with ports
// demands. outer is the mode of its namespace or mesh. It returns nil when
// nothing is demanded of single ports that is not also demanded of the
// workload; strict then tells what that is.
func Convert(p *PeerAuthentication, outer Mode) (pb *securitypb.Authorization, strict bool) {
	top := Inherit(p.Mode, outer)
	var strictPorts, openPorts []uint32
	for _, port := range sortedKeys(p.Ports) {
		if Inherit(p.Ports[port], top) == Strict {
			strictPorts = append(strictPorts, port)
		} else {
			openPorts = append(openPorts, port)
		}
	}
	switch {
	case top == Strict && len(openPorts) > 0:
		return denyAnonymous(p.Namespace, ConvertedName(p.Name), &securitypb.Match{NotDestinationPorts: openPorts}), true
	case top != Strict && len(strictPorts) > 0:
		return denyAnonymous(p.Namespace, ConvertedName(p.Name), &securitypb.Match{DestinationPorts: strictPorts}), false
	}
	return nil, top == Strict
}

// ConvertedName is the name of the policy made from a PeerAuthentication.
func ConvertedName(name string) string { return convertedPrefix + name }

// denyAnonymous makes a DENY policy for connections without an identity that
// also match m.
func denyAnonymous(namespace, name string, m *securitypb.Match) *securitypb.Authorization {
	m.NotPrincipals = []*securitypb.StringMatch{{MatchType: &securitypb.StringMatch_Presence{Presence: &emptypb.Empty{}}}}
	return &securitypb.Authorization{
		Namespace: namespace,
		Name:      name,
		Scope:     securitypb.Scope_WORKLOAD_SELECTOR,
		Action:    securitypb.Action_DENY,
		Groups:    []*securitypb.Group{{Rules: []*securitypb.Rules{{Matches: []*securitypb.Match{m}}}}},
	}
}
