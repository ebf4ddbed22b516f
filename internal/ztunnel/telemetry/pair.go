// Package telemetry counts and logs the connections of the node proxy: the
// Istio metrics of TCP traffic, and one access log line for each connection.
//
// What two ends have in common is built once and shared by all their
// connections, so that a connection costs no label building.
package telemetry

import (
	"sync"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ztunnel/connect"
)

// Reporter is the side that counts a connection: each is counted twice, once
// on each node.
type Reporter uint8

// The two sides.
const (
	Source Reporter = iota
	Destination
	numReporters
)

func (r Reporter) String() string {
	if r == Destination {
		return "destination"
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
	// MTLS tells that the identities were proven.
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
}

// labelValues has the values of the labels, in the order of labelNames, but
// response_flags. Comparable.
type labelValues struct {
	party    [20]string
	mtls     bool
	located  bool // the locality labels are present
	locality [4]string
}

// numFlags is the number of response_flags values.
const numFlags = 8

// flags are the response_flags values; the index is what series count by.
var flags = [numFlags]string{"-", "DENY", "CONNECT", "TLS_FAILURE", "H2_HANDSHAKE_FAILURE", "NETWORK_POLICY", "IDENTITY_ERROR", "CERT_REVOKED"}

func flagIndex(flag string) int {
	for i, f := range flags {
		if f == flag {
			return i
		}
	}
	return 2 // CONNECT: the general failure
}

// series counts the connections of one set of labels.
type series struct {
	labels labelValues
	opened atomic.Uint64
	closed [numFlags]atomic.Uint64
	failed [numFlags]atomic.Uint64

	// The rest is guarded by mu.
	mu       sync.Mutex
	sent     uint64 // server to client, of connections that ended
	received uint64 // client to server, of connections that ended
	live     *Conn  // head of the list of open connections

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
	v.mtls = k.MTLS
	p := &v.party
	p[lReporter] = k.Reporter.String()
	switch b := &k.Baggage; {
	case *b == connect.Baggage{}:
	case k.Reporter == Destination && k.Src == nil:
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
	if k.MTLS {
		p[lSrcPrincipal] = k.SrcIdentity.String()
	}
	p[lService], p[lServiceNamespace], p[lServiceName] = k.Service.Hostname, k.Service.Namespace, k.Service.Name
	if w := k.Dst; w != nil {
		v.located = true
		p[lDstWorkload] = w.WorkloadName
		p[lDstCanonicalService], p[lDstApp] = w.CanonicalName, w.CanonicalName
		p[lDstCanonicalRevision], p[lDstVersion] = w.CanonicalRevision, w.CanonicalRevision
		p[lDstNamespace], p[lDstCluster] = w.Namespace, w.ClusterID
		p[lDstPrincipal] = w.Identity().String()
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
