// Package reason is the closed set of answers to "why": every connection that
// fails, is refused or ends early carries exactly one Reason, the same in
// logs, metrics, status and the command line.
package reason

import "fmt"

// Reason is one member of the closed set. The zero value is OK.
type Reason uint8

// The set. A new member needs a row in the table below; the package's test
// holds the two together.
const (
	OK Reason = iota

	// Policy.
	PolicyDenied  // an enforced DENY policy matched
	NotAllowed    // ALLOW policies exist and none matched
	PolicyChanged // a policy or workload change took the permission away
	// PolicyUnavailable: the workload names a policy that has not come.
	PolicyUnavailable

	// Identity and TLS.
	CertificateUnavailable // no certificate for the local workload
	TLSFailure             // handshake failed for a reason not below
	PeerIdentityMismatch   // the peer is somebody else than expected
	TrustDomainMismatch    // the peer belongs to another trust domain
	CertificateRevoked     // the peer's certificate is on a revocation list

	// Finding the destination.
	UnknownSource       // the local pod is not in the directory yet
	UnknownDestination  // the control plane has not said who that is
	NoHealthyUpstream   // the service has no endpoint to choose
	UnsupportedProtocol // the endpoint speaks a tunnel we do not
	UnknownGateway      // another network, and no gateway to it
	RecursiveCall       // aimed at the proxy's own ports
	AddressMismatch     // a tunnel asked for an address that is not here
	BadRequest          // a tunnel request that cannot be understood

	// Reaching it.
	ConnectFailure    // refused, unreachable or reset while connecting
	ConnectTimeout    // no answer; for a tunnel, often a NetworkPolicy on 15008
	TunnelHandshake   // the peer did not go on with a tunnel's handshake
	TunnelRefused     // the peer's proxy answered CONNECT with an error
	TunnelClosed      // the tunnel ended below the connection
	UpstreamReset     // the destination reset the connection
	DownstreamReset   // the client reset the connection
	ResourceExhausted // a bound (descriptors, streams, memory) was reached
	Draining          // this proxy is going away
	WorkloadRemoved   // the pod left the mesh or the node
	Internal          // a fault of this program
)

// Info describes one reason for people and for metrics.
type Info struct {
	// Name is the stable identifier: upper case with underscores.
	Name string
	// Flag is the response_flags value of the Istio metrics.
	Flag string
	// What happened, for a log line.
	What string
	// Next is what an operator can do about it; empty when nothing is wrong.
	Next string
}

var table = [...]Info{
	OK:                {"OK", "-", "completed", ""},
	PolicyDenied:      {"POLICY_DENIED", "DENY", "explicitly denied by a policy", "see the named policy; `ambit ztunnel-config policy` lists what this node enforces"},
	NotAllowed:        {"NOT_ALLOWED", "DENY", "allow policies exist, but none allowed", "add the client to an ALLOW policy of the destination"},
	PolicyChanged:     {"POLICY_CHANGED", "DENY", "connection closed due to policy change", "see the policies that changed last for the destination"},
	PolicyUnavailable: {"POLICY_UNAVAILABLE", "DENY", "the workload names a policy that this proxy does not have", "check that the control plane is reachable from this node, and its log for this policy"},

	CertificateUnavailable: {"CERTIFICATE_UNAVAILABLE", "IDENTITY_ERROR", "no certificate for the local workload", "check that the CA is reachable from this node; `ambit ztunnel-config certificate` shows the state"},
	TLSFailure:             {"TLS_FAILURE", "TLS_FAILURE", "TLS handshake failed", "compare the trust bundles of both nodes"},
	PeerIdentityMismatch:   {"PEER_IDENTITY_MISMATCH", "TLS_FAILURE", "peer has another identity than expected", "the address may have been reused; compare the peer's service account with the workload's"},
	TrustDomainMismatch:    {"TRUST_DOMAIN_MISMATCH", "TLS_FAILURE", "peer belongs to another trust domain", "give both meshes one trust domain"},
	CertificateRevoked:     {"CERTIFICATE_REVOKED", "CERT_REVOKED", "peer certificate is revoked", "renew the peer's certificate"},

	UnknownSource:       {"UNKNOWN_SOURCE", "CONNECT", "local workload is not known yet", "check that the control plane is reachable from this node"},
	UnknownDestination:  {"UNKNOWN_DESTINATION", "CONNECT", "destination is not known yet", "check that the control plane is reachable from this node"},
	NoHealthyUpstream:   {"NO_HEALTHY_UPSTREAM", "CONNECT", "no healthy upstream", "check that the service selects ready pods and serves this port"},
	UnsupportedProtocol: {"UNSUPPORTED_PROTOCOL", "CONNECT", "destination uses an unsupported tunnel protocol", "enrol the destination in ambient mode"},
	UnknownGateway:      {"UNKNOWN_GATEWAY", "CONNECT", "no gateway to the destination's network", "deploy an east-west gateway there"},
	RecursiveCall:       {"RECURSIVE_CALL", "CONNECT", "attempted recursive call", "do not dial the proxy's own ports"},
	AddressMismatch:     {"ADDRESS_MISMATCH", "CONNECT", "tunnel asked for an address that is not this pod's", "the address may have been reused; the client's directory will catch up"},
	BadRequest:          {"BAD_REQUEST", "CONNECT", "tunnel request not understood", "check the version of the client's proxy"},

	ConnectFailure:    {"CONNECT_FAILURE", "CONNECT", "could not connect to the destination", "check that the program listens on this port"},
	ConnectTimeout:    {"CONNECT_TIMEOUT", "NETWORK_POLICY", "connecting timed out", "for a tunnel: a NetworkPolicy or firewall may be blocking HBONE port 15008"},
	TunnelHandshake:   {"TUNNEL_HANDSHAKE", "H2_HANDSHAKE_FAILURE", "peer did not go on with the handshake of a tunnel", "check what connects to port 15008 here, or listens there at the destination"},
	TunnelRefused:     {"TUNNEL_REFUSED", "CONNECT", "destination proxy refused the connection", "see the destination proxy's access log for its reason"},
	TunnelClosed:      {"TUNNEL_CLOSED", "CONNECT", "tunnel ended below the connection", "see the log of the destination's node around this time"},
	UpstreamReset:     {"UPSTREAM_RESET", "-", "destination reset the connection", "see the log of the destination program"},
	DownstreamReset:   {"DOWNSTREAM_RESET", "-", "client reset the connection", "see the log of the client program"},
	ResourceExhausted: {"RESOURCE_EXHAUSTED", "CONNECT", "a resource bound was reached", "the error names the bound and the pod whose share is used up; see the proxy's metrics; spread the load"},
	Draining:          {"DRAINING", "-", "proxy is draining", "the client should connect again"},
	WorkloadRemoved:   {"WORKLOAD_REMOVED", "-", "workload left the mesh", ""},
	Internal:          {"INTERNAL", "CONNECT", "internal error", "please report this with the proxy's log"},
}

// Info returns the description of r; of Internal when r is not of the set.
func (r Reason) Info() Info {
	if int(r) >= len(table) {
		return table[Internal]
	}
	return table[r]
}

// String returns the stable name.
func (r Reason) String() string { return r.Info().Name }

// Flag returns the response_flags value of the Istio metrics.
func (r Reason) Flag() string { return r.Info().Flag }

// All lists the set in order.
func All() []Reason {
	all := make([]Reason, len(table))
	for i := range all {
		all[i] = Reason(i)
	}
	return all
}

// Error is a failure that knows its Reason.
type Error struct {
	Reason Reason
	// Detail names whom it happened to: the policy, the address, the peer.
	Detail string
	Err    error
}

// Errorf builds an Error; a %w among the arguments is kept for errors.Is.
func Errorf(r Reason, format string, args ...any) *Error {
	return &Error{Reason: r, Err: fmt.Errorf(format, args...)}
}

func (e *Error) Error() string {
	s := e.Reason.Info().What
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
