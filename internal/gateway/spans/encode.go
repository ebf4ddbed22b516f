package spans

import (
	"bytes"
	"net/netip"
	"strconv"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/otlp"
)

// Self is the gateway.
type Self struct {
	Name, Namespace string // of the Gateway's workload
	Node            string // as Istio writes it: waypoint~address~pod.namespace~domain
	Cluster, Mesh   string
}

// Values are what happened to a request. The byte slices are those of its head.
type Values struct {
	Start, End      time.Time
	Host            string // of the service that was called; "" for a workload
	Port            uint16
	Version         string // HTTP/1.1, HTTP/1.0 or HTTP/2
	Method          []byte
	Authority, Path []byte
	UserAgent       []byte
	RequestID       []byte
	Head            *message.Head // of the request
	Client          netip.AddrPort
	Status          int // 0 when the client went before it got one
	GRPC            bool
	GRPCStatus      int // -1 without one
	Reason          reason.Reason
	Route           string
	Received, Sent  int64
	Tries           int
	Source          *workload.Workload // nil when unknown
	SourceName      string             // of the source, when it is unknown
	SourceNamespace string
	SourceIdentity  string
	Endpoint        *workload.Workload // nil without one
	Upstream        netip.AddrPort
	BackendHost     string // "" without a service
	BackendPort     uint16
}

// Encode passes the spans of a request to add, one after the other.
func (s *Span) Encode(e *otlp.Encoder, self *Self, v *Values, add func(body []byte)) {
	var name [maxName]byte
	e.Begin(&otlp.Span{
		Trace: s.trace, ID: s.server, Parent: s.parent, RemoteParent: s.remote, State: s.state, Kind: otlp.KindServer, Start: v.Start, End: v.End,
		Name: v.operation(name[:0]),
	})
	s.downstream(e, v)
	s.common(e, self, v)
	outcome(e, v, false)
	add(e.Bytes())
	if s.sent.IsZero() {
		return
	}
	e.Begin(&otlp.Span{
		Trace: s.trace, ID: s.client, Parent: s.server, State: s.state, Kind: otlp.KindClient, Start: s.sent, End: v.End, Name: v.call(name[:0]),
	})
	s.upstream(e, v)
	s.common(e, self, v)
	outcome(e, v, true)
	add(e.Bytes())
}

// Bounds of texts that are put together, in bytes.
const (
	maxName = 320
	maxURL  = 1024
)

// operation is the name of the server's span, Istio's: what does not differ between
// requests, so that they can be grouped.
func (v *Values) operation(b []byte) []byte {
	if v.Host == "" {
		b = v.Upstream.AppendTo(b)
		return append(b, "/*"...)
	}
	b = append(append(b, v.Host...), ':')
	return append(strconv.AppendUint(b, uint64(v.Port), 10), "/*"...)
}

// call is the name of the client's span.
func (v *Values) call(b []byte) []byte {
	b = append(method(b, v.Method), ' ')
	if v.BackendHost == "" {
		return v.Upstream.AppendTo(b)
	}
	b = append(append(b, v.BackendHost...), ':')
	return strconv.AppendUint(b, uint64(v.BackendPort), 10)
}

// method appends a method that is well known: others are as many as clients like.
func method(b, m []byte) []byte {
	switch string(m) {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY":
		return append(b, m...)
	}
	return append(b, "HTTP"...)
}

// downstream adds the attributes of a server (OpenTelemetry, HTTP server spans).
func (s *Span) downstream(e *otlp.Encoder, v *Values) {
	if s.link.ID != [16]byte{} {
		e.Link(s.link.ID, s.link.Span)
	}
	var text [64]byte
	otlp.String(e, "client.address", v.Client.Addr().AppendTo(text[:0]))
	otlp.String(e, "user_agent.original", v.UserAgent)
	e.Int("http.request.body.size", v.Received)
	e.Int("http.response.body.size", v.Sent)
	otlp.String(e, "ambit.route", v.Route)
	if s.tracing.IstioTags {
		otlp.String(e, "peer.address", v.Client.Addr().AppendTo(text[:0]))
		otlp.String(e, "user_agent", v.UserAgent)
		e.Int("request_size", v.Received)
		e.Int("response_size", v.Sent)
	}
	if host := bytes.Trim(message.HostOf(v.Authority), "[]"); len(host) > 0 {
		otlp.String(e, "server.address", host)
	}
	e.Int("server.port", int64(v.Port))
}

// upstream adds the attributes of a client.
func (s *Span) upstream(e *otlp.Encoder, v *Values) {
	var text [64]byte
	if v.BackendHost != "" {
		otlp.String(e, "server.address", v.BackendHost)
		e.Int("server.port", int64(v.BackendPort))
	}
	if v.Upstream.IsValid() {
		otlp.String(e, "network.peer.address", v.Upstream.Addr().AppendTo(text[:0]))
		e.Int("network.peer.port", int64(v.Upstream.Port()))
		if s.tracing.IstioTags {
			otlp.String(e, "peer.address", v.Upstream.AppendTo(text[:0]))
		}
	}
	if v.Tries > 1 {
		e.Int("http.request.resend_count", int64(v.Tries-1))
	}
}

// common adds the attributes of both.
func (s *Span) common(e *otlp.Encoder, self *Self, v *Values) {
	var text [maxName]byte
	m := method(text[:0], v.Method)
	if string(m) == "HTTP" && len(v.Method) > 0 {
		otlp.String(e, "http.request.method", "_OTHER")
		otlp.String(e, "http.request.method_original", v.Method)
	} else {
		otlp.String(e, "http.request.method", m)
	}
	path, query := split(v.Path)
	otlp.String(e, "url.path", path)
	otlp.String(e, "url.query", query)
	otlp.String(e, "url.scheme", "http")
	otlp.String(e, "network.protocol.version", v.Version[len("HTTP/"):])
	if v.Status != 0 {
		e.Int("http.response.status_code", int64(v.Status))
	}
	if v.GRPC {
		otlp.String(e, "rpc.system", "grpc")
		if v.GRPCStatus >= 0 {
			e.Int("rpc.grpc.status_code", int64(v.GRPCStatus))
		}
	}
	if s.tracing.IstioTags {
		s.istio(e, self, v)
	}
	for i := range s.tracing.Tags {
		tag(e, &s.tracing.Tags[i], v.Head)
	}
}

// outcome adds whether the request has failed, as OpenTelemetry has it: what a client has
// done wrong is an error of its own span alone.
func outcome(e *otlp.Encoder, v *Values, client bool) {
	var text [8]byte
	failed := v.Status == 0 || v.Status >= 500 || client && v.Status >= 400
	if v.GRPC && v.GRPCStatus > 0 {
		failed = failed || client || serverFault(v.GRPCStatus)
	}
	message := ""
	switch {
	case v.Reason != reason.OK:
		otlp.String(e, "error.type", v.Reason.String())
		otlp.String(e, "ambit.reason", v.Reason.String())
		message = v.Reason.Info().What
	case v.GRPC && v.GRPCStatus > 0:
		otlp.String(e, "error.type", strconv.AppendInt(text[:0], int64(v.GRPCStatus), 10))
	case failed:
		otlp.String(e, "error.type", strconv.AppendInt(text[:0], int64(v.Status), 10))
	}
	if failed {
		e.Fail(message)
	}
}

// serverFault reports whether a status of gRPC is the fault of the server.
func serverFault(status int) bool {
	switch status {
	case 2, 4, 12, 13, 14, 15: // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS
		return true
	}
	return false
}

// split divides path and query.
func split(p []byte) (path, query []byte) {
	for i, c := range p {
		if c == '?' {
			return p[:i], p[i+1:]
		}
	}
	return p, nil
}

// istio adds the attributes that Istio's users look for.
func (s *Span) istio(e *otlp.Encoder, self *Self, v *Values) {
	var text [maxName]byte
	otlp.String(e, "component", "proxy")
	otlp.String(e, "node_id", self.Node)
	otlp.String(e, "guid:x-request-id", v.RequestID)
	otlp.String(e, "http.method", v.Method)
	otlp.String(e, "http.protocol", v.Version)
	var url [maxURL]byte
	u := append(url[:0], "http://"...)
	u = append(u, v.Authority[:min(len(v.Authority), maxName)]...)
	otlp.String(e, "http.url", append(u, v.Path[:min(len(v.Path), cap(u)-len(u))]...))
	otlp.String(e, "http.status_code", strconv.AppendInt(text[:0], int64(v.Status), 10))
	otlp.String(e, "response_flags", v.Reason.HTTP().Flag)
	if v.BackendHost != "" && len(v.BackendHost) < len(text)-32 {
		b := append(strconv.AppendUint(append(text[:0], "inbound-vip|"...), uint64(v.BackendPort), 10), "|http|"...)
		otlp.String(e, "upstream_cluster.name", append(b, v.BackendHost...))
	}
	otlp.String(e, "istio.canonical_service", self.Name)
	otlp.String(e, "istio.canonical_revision", "latest")
	otlp.String(e, "istio.mesh_id", self.Mesh)
	otlp.String(e, "istio.namespace", self.Namespace)
	otlp.String(e, "istio.cluster_id", self.Cluster)
	switch w := v.Source; {
	case w != nil:
		otlp.String(e, "istio.source_workload", w.WorkloadName)
		otlp.String(e, "istio.source_namespace", w.Namespace)
		otlp.String(e, "istio.source_cluster_id", w.ClusterID)
		otlp.String(e, "istio.source_canonical_service", w.CanonicalName)
		otlp.String(e, "istio.source_canonical_revision", w.CanonicalRevision)
		otlp.String(e, "istio.source_workload_type", w.WorkloadType)
		otlp.String(e, "istio.source_instance_name", w.Name)
	default:
		otlp.String(e, "istio.source_workload", v.SourceName)
		otlp.String(e, "istio.source_namespace", v.SourceNamespace)
	}
	otlp.String(e, "ambit.source_principal", v.SourceIdentity)
	if w := v.Endpoint; w != nil {
		otlp.String(e, "istio.destination_workload", w.WorkloadName)
		otlp.String(e, "istio.destination_namespace", w.Namespace)
		otlp.String(e, "istio.destination_cluster_id", w.ClusterID)
		otlp.String(e, "istio.destination_canonical_service", w.CanonicalName)
		otlp.String(e, "istio.destination_canonical_revision", w.CanonicalRevision)
		otlp.String(e, "istio.destination_workload_type", w.WorkloadType)
		otlp.String(e, "istio.destination_instance_name", w.Name)
	}
}

// tag adds an attribute that a Telemetry asks for.
func tag(e *otlp.Encoder, t *observe.Tag, h *message.Head) {
	if t.Header {
		if i := h.Find(t.Key, 0); i >= 0 {
			otlp.String(e, t.Name, h.Fields[i].Value)
			return
		}
	}
	otlp.String(e, t.Name, t.Value)
}
