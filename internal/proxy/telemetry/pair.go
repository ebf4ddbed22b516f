// Package telemetry counts and logs what a proxy carries: the Istio metrics of
// connections and requests, and one access log line for each connection.
//
// What two ends have in common is built once and shared by all their
// connections, so that a connection costs no label building.
package telemetry

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
)

// Reporter is the side that counts a connection: each is counted twice, once
// on each node, and once more by the waypoint between them.
type Reporter uint8

// The sides.
const (
	Source Reporter = iota
	Destination
	Waypoint
	numReporters
)

func (r Reporter) String() string {
	switch r {
	case Destination:
		return "destination"
	case Waypoint:
		return "waypoint"
	case Source, numReporters:
	}
	return "source"
}

func (r Reporter) direction() string {
	if r == Destination {
		return "inbound"
	}
	return "outbound"
}

// ServiceRef names a service for labels. The zero value is none.
type ServiceRef struct{ Hostname, Namespace, Name string }

// RefTo names svc, which may be nil.
func RefTo(svc *workload.Service) ServiceRef {
	if svc == nil {
		return ServiceRef{}
	}
	return ServiceRef{Hostname: svc.Hostname, Namespace: svc.Namespace, Name: svc.Name}
}

// Key is what connections have in common that share their series.
type Key struct {
	Reporter Reporter
	// MTLS reports that the identities were proven; of a Waypoint, that the
	// destination's was. The client's always is.
	MTLS bool
	// Src and Dst are nil when not in the directory.
	Src, Dst *workload.Workload
	Service  ServiceRef
	// SrcIdentity is the identity proven by the source; zero without MTLS.
	SrcIdentity identity.Identity
	// DstIdentity is the one proven by the destination; used only without Dst.
	DstIdentity identity.Identity
	// Baggage is what the other side says of itself; used only when it is not
	// in the directory.
	Baggage connect.Baggage
	// Tags are values of the requests or connections.
	Tags Tags
}

// teller is the peer that sent the baggage.
func (k *Key) teller() identity.Identity {
	if k.Reporter == Source {
		return k.DstIdentity
	}
	return k.SrcIdentity
}

// Pair is an interned Key with its series.
type Pair struct {
	key    Key
	series *series
	gone   atomic.Bool // it was dropped: what is counted under it now is lost
}

// labelValues has the values of the labels, in the order of labelNames, but
// response_flags. Comparable.
type labelValues struct {
	party    [20]string
	mtls     bool
	located  bool // the locality labels are present
	locality [4]string
	tags     Tags
}

// nodeFlags are the response_flags values of node proxies, l7Flags those of proxies of
// requests, which are Envoy's. The index is what series count by.
var (
	nodeFlags = []string{"-", "DENY", "CONNECT", "TLS_FAILURE", "H2_HANDSHAKE_FAILURE", "NETWORK_POLICY", "IDENTITY_ERROR", "CERT_REVOKED"}
	l7Flags   = func() (flags []string) {
		for _, r := range reason.All() {
			if f := r.HTTP().Flag; !slices.Contains(flags, f) {
				flags = append(flags, f)
			}
		}
		return flags
	}()
)

// flags returns the values that a reporter uses; the first is that of no failure.
func (r Reporter) flags() []string {
	if r == Waypoint {
		return l7Flags
	}
	return nodeFlags
}

// flagIndex returns the place of a reason's flag.
func (r Reporter) flagIndex(why reason.Reason) int {
	if r == Waypoint {
		return max(0, slices.Index(l7Flags, why.HTTP().Flag))
	}
	if i := slices.Index(nodeFlags, why.Flag()); i >= 0 {
		return i
	}
	return 2 // CONNECT: the general failure
}

// series counts the connections of one set of labels.
type series struct {
	labels   labelValues
	reporter Reporter
	opened   atomic.Uint64
	closed   []atomic.Uint64 // by flag
	failed   []atomic.Uint64

	// The rest is guarded by mu.
	mu       sync.Mutex
	sent     uint64   // server to client, of connections that ended
	received uint64   // client to server, of connections that ended
	live     *Conn    // head of the list of open connections
	requests []*cells // by loop; nil where none were counted

	pairs int // guarded by the Recorder's mu: pairs that lead here
	conns int // guarded by mu: open connections
}

func unknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

// Indices into labelValues.party.
const (
	lReporter = iota
	lSrcWorkload
	lSrcCanonicalService
	lSrcCanonicalRevision
	lSrcNamespace
	lSrcPrincipal
	lSrcApp
	lSrcVersion
	lSrcCluster
	lService
	lServiceNamespace
	lServiceName
	lDstWorkload
	lDstCanonicalService
	lDstCanonicalRevision
	lDstNamespace
	lDstPrincipal
	lDstApp
	lDstVersion
	lDstCluster
)

// labels builds the label values of a key.
func (k *Key) labels() labelValues {
	var v labelValues
	v.mtls, v.tags = k.MTLS, k.Tags
	p := &v.party
	p[lReporter] = k.Reporter.String()
	switch b := &k.Baggage; {
	case *b == connect.Baggage{}:
	case k.Reporter != Source && k.Src == nil:
		v.located = true
		p[lSrcWorkload], p[lSrcApp] = b.Workload, b.Workload
		p[lSrcCanonicalService] = b.Service
		p[lSrcCanonicalRevision], p[lSrcVersion] = b.Version, b.Version
		p[lSrcNamespace], p[lSrcCluster] = b.Namespace, b.Cluster
		v.locality[0], v.locality[1] = b.Region, b.Zone
	case k.Reporter == Source && k.Dst == nil:
		v.located = true
		p[lDstWorkload], p[lDstApp] = b.Workload, b.Workload
		p[lDstCanonicalService] = b.Service
		p[lDstCanonicalRevision], p[lDstVersion] = b.Version, b.Version
		p[lDstNamespace], p[lDstCluster] = b.Namespace, b.Cluster
		v.locality[2], v.locality[3] = b.Region, b.Zone
	}
	if k.Dst == nil && !k.DstIdentity.IsZero() {
		p[lDstPrincipal] = k.DstIdentity.String()
	}
	if w := k.Src; w != nil {
		v.located = true
		p[lSrcWorkload] = w.WorkloadName
		p[lSrcCanonicalService], p[lSrcApp] = w.CanonicalName, w.CanonicalName
		p[lSrcCanonicalRevision], p[lSrcVersion] = w.CanonicalRevision, w.CanonicalRevision
		p[lSrcNamespace], p[lSrcCluster] = w.Namespace, w.ClusterID
		v.locality[0], v.locality[1] = w.Locality.Region, w.Locality.Zone
	}
	switch {
	case k.MTLS:
		p[lSrcPrincipal] = k.SrcIdentity.String()
	case k.Reporter == Waypoint && !k.SrcIdentity.IsZero():
		p[lSrcPrincipal] = k.SrcIdentity.String()
	}
	if k.Reporter == Waypoint && p[lSrcNamespace] == "" {
		p[lSrcNamespace] = k.SrcIdentity.Namespace // it was proven
	}
	p[lService], p[lServiceNamespace], p[lServiceName] = k.Service.Hostname, k.Service.Namespace, k.Service.Name
	if w := k.Dst; w != nil {
		v.located = true
		p[lDstWorkload] = w.WorkloadName
		p[lDstCanonicalService], p[lDstApp] = w.CanonicalName, w.CanonicalName
		p[lDstCanonicalRevision], p[lDstVersion] = w.CanonicalRevision, w.CanonicalRevision
		p[lDstNamespace], p[lDstCluster] = w.Namespace, w.ClusterID
		if k.MTLS || k.Reporter != Waypoint {
			p[lDstPrincipal] = w.Identity().String()
		}
		v.locality[2], v.locality[3] = w.Locality.Region, w.Locality.Zone
	}
	for i := range p {
		p[i] = unknown(p[i])
	}
	for i := range v.locality {
		v.locality[i] = unknown(v.locality[i])
	}
	if !v.located {
		v.locality = [4]string{}
	}
	return v
}
