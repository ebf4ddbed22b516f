package tables

import (
	"cmp"

	"github.com/ambit-mesh/ambit/internal/control/jwks"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/control/telemetry"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Options describe the mesh; zero values mean the defaults.
type Options struct {
	ClusterID     string // default Kubernetes
	ClusterDomain string // of service names; default cluster.local
	TrustDomain   string // default cluster.local
	// TrustDomainAliases stand for TrustDomain in policies, from the beginning on;
	// see SetTrustDomainAliases.
	TrustDomainAliases []string
	Network            string // of everything that does not say otherwise
	RootNamespace      string // whose policies hold everywhere; default istio-system
	// Revisions are the names of this control plane, when there may be others:
	// what users configure for another of them is not looked at. None: all is.
	Revisions []string
	// Visibility is what SetVisibility says, from the beginning on.
	Visibility *meshconfig.Visibility
	// Outbound is the value of SetOutbound from the beginning on.
	Outbound *egress.Mode
	// Providers are those of SetProviders, from the beginning on.
	Providers meshconfig.Providers
	// Telemetry is the value of SetTelemetry from the beginning on.
	Telemetry *telemetry.Mesh
	// WaypointBypass lets traffic go around waypoints, as Istio does, where no
	// annotation decides for its object.
	WaypointBypass bool
	// WriteBack keeps Reports, for a writer.
	WriteBack bool
	// BoundCallers makes Nodes accept only callers whose credentials are bound
	// to a pod that is known. Credentials of Kubernetes are.
	BoundCallers bool
	// Keys gets the sources of keys that objects name; none are fetched without it.
	Keys Keys
}

// Keys fetches the keys of issuers. Its methods do not wait.
type Keys interface {
	Want(jwks.Source)
	Forget(jwks.Source)
}

// WithDefaults returns the options with the values of those that are not set.
func (o Options) WithDefaults() Options {
	o.ClusterID = cmp.Or(o.ClusterID, wellknown.DefaultCluster)
	o.ClusterDomain = cmp.Or(o.ClusterDomain, wellknown.DefaultDomain)
	o.TrustDomain = cmp.Or(o.TrustDomain, identity.DefaultTrustDomain)
	o.RootNamespace = cmp.Or(o.RootNamespace, wellknown.SystemNamespace)
	return o
}
