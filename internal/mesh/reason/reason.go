// Package reason is the closed set of answers to "why": every connection that
// fails, is refused or ends early carries exactly one Reason, the same in
// logs, metrics, status and the command line.
package reason

import (
	"errors"
	"fmt"
)

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
	// PolicyUnsupported: a policy holds that this proxy cannot enforce.
	PolicyUnsupported
	// WaypointRequired: the destination admits only its waypoint.
	WaypointRequired
	// InvalidToken: a token of the request was not accepted.
	InvalidToken
	// TokenAudience: a token of the request is meant for others.
	TokenAudience
	// AuthorizerDenied: an external authorizer has denied the request.
	AuthorizerDenied
	// AuthorizerFailed: an external authorizer could not be asked, or gave no answer
	// that can be used.
	AuthorizerFailed
	// BodyTooLarge: the body is larger than what an external authorizer gets.
	BodyTooLarge
	// NotInRegistry: the pod may only call what is in a registry.
	NotInRegistry
	// EgressDenied: no EgressPolicy of the pod allows what it calls outside of the mesh.
	EgressDenied

	// RateLimited: a limit of new connections refused one too many.
	RateLimited

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
	WaypointUnavailable // the destination has a waypoint that cannot be used
	WaypointLoop        // too many waypoints have sent it on
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

	// Requests.
	NoRoute          // routes exist, and none matches the request
	NoBackend        // the rule has no backend that it may use
	MalformedRequest // the client broke the rules of HTTP
	UpstreamProtocol // the destination broke the rules of HTTP
	HeadTimeout      // the client did not complete the head of a request
	StreamIdle       // neither side of a request sent anything
	RequestTimeout   // the time that the route gives a request is over
	TryTimeout       // the time that the route gives one try is over
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

// HTTPInfo is what a request gets that fails for a reason.
type HTTPInfo struct {
	// Status of the answer. 0: the client is gone, or nothing is wrong.
	Status int
	// Flag is the response flag of Envoy's access log, "-" without one.
	Flag string
}

var table = [...]Info{
	OK:                {"OK", "-", "completed", ""},
	PolicyDenied:      {"POLICY_DENIED", "DENY", "explicitly denied by a policy", "see the named policy; `ambit ztunnel-config policy` lists what this node enforces"},
	NotAllowed:        {"NOT_ALLOWED", "DENY", "allow policies exist, but none allowed", "add the client to an ALLOW policy of the destination"},
	PolicyChanged:     {"POLICY_CHANGED", "DENY", "connection closed due to policy change", "see the policies that changed last for the destination"},
	PolicyUnavailable: {"POLICY_UNAVAILABLE", "DENY", "the workload names a policy that this proxy does not have", "check that the control plane is reachable from this node, and its log for this policy"},
	PolicyUnsupported: {"POLICY_UNSUPPORTED", "DENY", "a policy holds that this proxy cannot enforce", "see the status of the named policy"},
	InvalidToken:      {"INVALID_TOKEN", "DENY", "a token of the request was not accepted", "the error names the policy and the cause; see the conditions of that RequestAuthentication for its keys"},
	TokenAudience:     {"TOKEN_AUDIENCE", "DENY", "a token of the request is meant for others", "compare the claim aud with the audiences of the named RequestAuthentication"},
	AuthorizerDenied:  {"AUTHORIZER_DENIED", "DENY", "an external authorizer denied the request", "see the log of the authorizer that is named"},
	AuthorizerFailed:  {"AUTHORIZER_FAILED", "DENY", "an external authorizer gave no usable answer", "see that the authorizer that is named runs and can be reached from the waypoint; the error has the cause"},
	BodyTooLarge:      {"BODY_TOO_LARGE", "DENY", "the body is larger than what an external authorizer gets", "raise maxRequestBytes of the provider that is named, or set allowPartialMessage"},
	NotInRegistry:     {"NOT_IN_REGISTRY", "DENY", "the destination is in no registry that the pod may use", "add a ServiceEntry with this address and port that the namespace sees, or change the outbound traffic policy: docs/egress.md"},
	RateLimited:       {"RATE_LIMITED", "DENY", "more new connections than a limit of the destination permits", "the error names the RateLimit and the rate; `ambit ztunnel-config traffic` counts them, on the destination's node"},
	EgressDenied:      {"EGRESS_DENIED", "DENY", "no EgressPolicy allows the destination", "the error names the policies and the cause; `ambit egress report -o policy` writes an entry for what the pod calls: docs/egress.md"},
	WaypointRequired:  {"WAYPOINT_REQUIRED", "DENY", "the destination admits only its waypoint", "call the service by its name or address; docs/waypoints.md lists the exceptions, for clients that call pods"},

	CertificateUnavailable: {"CERTIFICATE_UNAVAILABLE", "IDENTITY_ERROR", "no certificate for the local workload", "check that the CA is reachable from this node; `ambit ztunnel-config certificate` shows the state"},
	TLSFailure:             {"TLS_FAILURE", "TLS_FAILURE", "TLS handshake failed", "compare the trust bundles of both nodes"},
	PeerIdentityMismatch:   {"PEER_IDENTITY_MISMATCH", "TLS_FAILURE", "peer has another identity than expected", "the address may have been reused; compare the peer's service account with the workload's"},
	TrustDomainMismatch:    {"TRUST_DOMAIN_MISMATCH", "TLS_FAILURE", "peer belongs to another trust domain", "give both meshes one trust domain"},
	CertificateRevoked:     {"CERTIFICATE_REVOKED", "CERT_REVOKED", "peer certificate is revoked", "renew the peer's certificate"},

	UnknownSource:       {"UNKNOWN_SOURCE", "CONNECT", "local workload is not known yet", "check that the control plane is reachable from this node"},
	UnknownDestination:  {"UNKNOWN_DESTINATION", "CONNECT", "destination is not known yet", "check that the control plane is reachable from this node"},
	NoHealthyUpstream:   {"NO_HEALTHY_UPSTREAM", "CONNECT", "no healthy upstream", "check that the service selects ready pods and serves this port"},
	WaypointUnavailable: {"WAYPOINT_UNAVAILABLE", "CONNECT", "the waypoint of the destination cannot be used", "see the condition istio.io/WaypointBound of the destination, and the waypoint's pods with `ambit waypoint status`"},
	WaypointLoop:        {"WAYPOINT_LOOP", "CONNECT", "too many waypoints sent the connection on, one to the other", "`ambit why` shows the way; a route of each service leads to a service of another waypoint: change one of them"},
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

	NoRoute:          {"NO_ROUTE", "-", "no route matches the request", "compare host, path, method and headers of the request with the routes of the service"},
	NoBackend:        {"NO_BACKEND", "-", "the rule has no usable backend", "see the conditions in the route's status"},
	MalformedRequest: {"MALFORMED_REQUEST", "-", "malformed request", "the error names the rule of HTTP that the client broke"},
	UpstreamProtocol: {"UPSTREAM_PROTOCOL", "-", "destination sent a malformed response", "check the protocol that the service port declares (appProtocol)"},
	HeadTimeout:      {"HEAD_TIMEOUT", "-", "client did not complete the head of its request in time", "see the log of the client program"},
	StreamIdle:       {"STREAM_IDLE", "-", "neither side sent anything for too long", "raise the idle timeout, or have the program send something"},
	RequestTimeout:   {"REQUEST_TIMEOUT", "-", "request timed out", "see the destination program, or raise the request timeout of the route"},
	TryTimeout:       {"TRY_TIMEOUT", "-", "the last try of the request timed out", "see the destination program, or raise the backend timeout of the route"},
}

// http is what L7 proxies answer. Flags are those of Envoy, so that what people
// search logs for stays the same.
var http = [...]HTTPInfo{
	OK:                {0, "-"},
	PolicyDenied:      {403, "-"},
	NotAllowed:        {403, "-"},
	PolicyChanged:     {403, "-"},
	PolicyUnavailable: {403, "-"},
	PolicyUnsupported: {403, "-"},
	WaypointRequired:  {403, "-"},
	InvalidToken:      {401, "-"},
	TokenAudience:     {403, "-"},
	AuthorizerDenied:  {403, "UAEX"},
	AuthorizerFailed:  {403, "UAEX"},
	BodyTooLarge:      {413, "UAEX"},
	NotInRegistry:     {403, "-"},
	RateLimited:       {429, "RL"},
	EgressDenied:      {403, "-"},

	CertificateUnavailable: {503, "UF"},
	TLSFailure:             {503, "UF"},
	PeerIdentityMismatch:   {503, "UF"},
	TrustDomainMismatch:    {503, "UF"},
	CertificateRevoked:     {503, "UF"},

	UnknownSource:       {503, "NC"},
	UnknownDestination:  {503, "NC"},
	NoHealthyUpstream:   {503, "UH"},
	WaypointUnavailable: {503, "UH"},
	WaypointLoop:        {508, "NC"},
	UnsupportedProtocol: {503, "UH"},
	UnknownGateway:      {503, "UH"},
	RecursiveCall:       {503, "NC"},
	AddressMismatch:     {503, "NC"},
	BadRequest:          {400, "DPE"},

	ConnectFailure:    {503, "UF"},
	ConnectTimeout:    {503, "UF"},
	TunnelHandshake:   {503, "UF"},
	TunnelRefused:     {503, "UF"},
	TunnelClosed:      {503, "UC"},
	UpstreamReset:     {503, "UC"},
	DownstreamReset:   {0, "DC"},
	ResourceExhausted: {503, "UO"},
	Draining:          {503, "-"},
	WorkloadRemoved:   {503, "-"},
	Internal:          {500, "-"},

	NoRoute:          {404, "NR"},
	NoBackend:        {500, "NC"},
	MalformedRequest: {400, "DPE"},
	UpstreamProtocol: {502, "UPE"},
	HeadTimeout:      {408, "-"},
	StreamIdle:       {504, "SI"},
	RequestTimeout:   {504, "UT"},
	TryTimeout:       {504, "UT"},
}

// HTTP returns what a request gets that fails for r.
func (r Reason) HTTP() HTTPInfo {
	if int(r) >= len(http) {
		return http[Internal]
	}
	return http[r]
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
	// Detail names the object concerned: the policy, the address, the peer.
	Detail string
	Err    error
}

// Errorf builds an Error; a %w among the arguments is kept for errors.Is.
func Errorf(r Reason, format string, args ...any) *Error {
	return &Error{Reason: r, Err: fmt.Errorf(format, args...)}
}

// As returns the error with a reason that is behind err, else one with r.
func As(r Reason, err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Reason: r, Err: err}
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
