package observed

import (
	"bytes"
	"net/netip"
	"strconv"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/otlp"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

// span is a connection that is sampled.
type span struct {
	half   *half
	kind   otlp.Kind
	id     [8]byte
	parent [8]byte          // zero: the trace begins here
	remote bool             // parent is of another program
	info   *sockopt.TCPInfo // of the wire; nil: the flow never ran, or the kernel has none
}

// Measure has the kernel's figures of the wire read at the end of a connection that is
// sampled. It is one system call.
func Measure(c *telemetry.Conn, f *relay.Flow, wireUp bool) {
	if c.More == nil {
		return
	}
	s, sampled := c.More.Watch.(*span)
	if !sampled {
		return
	}
	f.OnEnding(func(down, up int) {
		if wireUp {
			down = up
		}
		if info, err := sockopt.Info(down); err == nil {
			s.info = &info
		}
	})
}

// Ended implements telemetry.Watcher: it sends the span.
func (s *span) Ended(e *telemetry.End) (line bool) {
	n := s.half.node
	enc, _ := n.encoders.Get().(*otlp.Encoder)
	s.encode(enc, e)
	body := bytes.Clone(enc.Bytes())
	n.encoders.Put(enc)
	// Who has begun the connection decides how many there are.
	party := e.Key.SrcIdentity.Namespace
	if w := e.Key.Src; party == "" && w != nil {
		party = w.Namespace
	}
	n.send(s, e.Trace.ID, party, body)
	return s.half.Ended(e)
}

// maxName bounds the name of a span, in bytes.
const maxName = 320

// encode makes the message of the span.
func (s *span) encode(e *otlp.Encoder, c *telemetry.End) {
	var name [maxName]byte
	e.Begin(&otlp.Span{
		Trace: c.Trace.ID, ID: s.id, Parent: s.parent, RemoteParent: s.remote, Kind: s.kind, Start: c.Start, End: c.Over, Name: spanName(name[:0], c),
	})
	ends(e, c)
	e.Int("ambit.bytes_sent", int64(c.Sent))         //nolint:gosec // no connection has more
	e.Int("ambit.bytes_received", int64(c.Received)) //nolint:gosec // no connection has more
	if !c.Up.IsZero() {
		// Until bytes could go both ways: tunnel, policies, and the program's answer.
		e.Double("ambit.connect.duration_ms", float64(c.Up.Sub(c.Start).Microseconds())/1000)
	}
	if i := s.info; i != nil {
		e.Int("ambit.tcp.rtt_us", i.RTT.Microseconds())
		e.Int("ambit.tcp.rtt_variation_us", i.RTTVariation.Microseconds())
		e.Int("ambit.tcp.retransmits", int64(i.Retransmits))
	}
	otlp.String(e, "ambit.source_principal", c.Src.Identity)
	otlp.String(e, "ambit.destination_principal", c.Dst.Identity)
	otlp.String(e, "ambit.policy", c.Policy)
	otlp.String(e, "ambit.dry_run", c.DryRun)
	if s.half.settings.Tracing.IstioTags {
		istio(e, c)
	}
	for i := range s.half.settings.Tracing.Tags {
		t := &s.half.settings.Tracing.Tags[i]
		otlp.String(e, t.Name, t.Value) // of a header, which connections do not have, the default
	}
	if c.Result.Reason != reason.OK || c.Err != nil {
		otlp.String(e, "error.type", c.Result.Reason.String())
		otlp.String(e, "ambit.reason", c.Result.Reason.String())
		e.Fail(c.Result.Reason.Info().What)
	}
}

// spanName is what does not differ between connections of one kind, so that they can be
// grouped.
func spanName(b []byte, c *telemetry.End) []byte {
	b = append(b, "tcp "...)
	switch w := c.Key.Dst; {
	case c.Service != "":
		b = append(b, c.Service[:min(len(c.Service), maxName-16)]...)
	case w != nil:
		b = append(b, w.WorkloadName[:min(len(w.WorkloadName), maxName-16)]...)
	default:
		b = append(b, "elsewhere"...)
	}
	return strconv.AppendUint(append(b, ':'), uint64(port(c)), 10)
}

// port is the one that was called.
func port(c *telemetry.End) uint16 {
	if c.Target != (connect.Target{}) {
		return c.Target.TargetPort()
	}
	return c.Dst.Addr.Port()
}

// ends adds the attributes of both ends, as OpenTelemetry calls them.
func ends(e *otlp.Encoder, c *telemetry.End) {
	var text [64]byte
	otlp.String(e, "network.transport", "tcp")
	family := "ipv4"
	if c.Src.Addr.Addr().Unmap().Is6() {
		family = "ipv6"
	}
	otlp.String(e, "network.type", family)
	address(e, "client.address", "client.port", c.Src.Addr)
	address(e, "network.peer.address", "network.peer.port", peer(c))
	switch {
	case c.Service != "":
		otlp.String(e, "server.address", c.Service)
	case c.Target.Addr.IsValid():
		otlp.String(e, "server.address", c.Target.Addr.Addr().AppendTo(text[:0]))
	case c.Dst.Addr.IsValid():
		otlp.String(e, "server.address", c.Dst.Addr.Addr().AppendTo(text[:0]))
	}
	e.Int("server.port", int64(port(c)))
}

// peer is the other end of the wire.
func peer(c *telemetry.End) netip.AddrPort {
	if c.Key.Reporter == telemetry.Destination {
		return c.Src.Addr
	}
	return c.Dst.Addr
}

func address(e *otlp.Encoder, name, portName string, a netip.AddrPort) {
	if !a.IsValid() {
		return
	}
	var text [64]byte
	otlp.String(e, name, a.Addr().Unmap().AppendTo(text[:0]))
	e.Int(portName, int64(a.Port()))
}

// istio adds the attributes that Istio's users look for.
func istio(e *otlp.Encoder, c *telemetry.End) {
	otlp.String(e, "component", "proxy")
	otlp.String(e, "response_flags", c.Flag())
	security := "unknown"
	if c.Key.MTLS {
		security = "mutual_tls"
	}
	otlp.String(e, "connection_security_policy", security)
	k := c.Key
	party(e, &sourceKeys, k.Src, k.Baggage, k.Reporter == telemetry.Destination)
	party(e, &destinationKeys, k.Dst, k.Baggage, k.Reporter == telemetry.Source)
}

// partyKeys are the names of the attributes of one end.
type partyKeys struct{ workload, namespace, cluster, service, revision, kind, instance string }

func keysOf(end string) partyKeys {
	p := "istio." + end + "_"
	return partyKeys{p + "workload", p + "namespace", p + "cluster_id", p + "canonical_service", p + "canonical_revision", p + "workload_type", p + "instance_name"}
}

var sourceKeys, destinationKeys = keysOf("source"), keysOf("destination")

// party adds the attributes of one end: of its workload, or of what it says of itself.
func party(e *otlp.Encoder, k *partyKeys, w *workload.Workload, b connect.Baggage, told bool) {
	switch {
	case w != nil:
		otlp.String(e, k.workload, w.WorkloadName)
		otlp.String(e, k.namespace, w.Namespace)
		otlp.String(e, k.cluster, w.ClusterID)
		otlp.String(e, k.service, w.CanonicalName)
		otlp.String(e, k.revision, w.CanonicalRevision)
		otlp.String(e, k.kind, w.WorkloadType)
		otlp.String(e, k.instance, w.Name)
	case told:
		otlp.String(e, k.workload, b.Workload)
		otlp.String(e, k.namespace, b.Namespace)
		otlp.String(e, k.cluster, b.Cluster)
		otlp.String(e, k.service, b.Service)
		otlp.String(e, k.revision, b.Version)
	}
}
