package tables

import (
	"bytes"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	securitypb "github.com/ambit-mesh/ambit/api/security"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/control/access"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/service"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// Resources is a collection of what is served, by name.
type Resources = collection.Collection[string, *xds.Resource]

// Encode marshals a resource, once, the same bytes for the same content.
func Encode(typeURL, name string, aliases []string, m proto.Message) *xds.Resource {
	// Messages made here marshal: their strings come from decoded JSON.
	body, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return xds.NewResource(typeURL, name, aliases, body)
}

// SameResource reports whether clients get the same of two resources.
func SameResource(a, b *xds.Resource) bool {
	return a.Name == b.Name && bytes.Equal(a.Body, b.Body) && slices.Equal(a.Aliases, b.Aliases) && slices.Equal(a.With, b.With) && slices.Equal(a.Groups, b.Groups) && a.Late == b.Late
}

// PolicyName returns the name of a policy's resource.
func PolicyName(p *securitypb.Authorization) string { return p.Namespace + "/" + p.Name }

func emitPolicy(p *securitypb.Authorization, emit func(string, *xds.Resource)) {
	r := Encode(wellknown.TypeAuthorization, PolicyName(p), nil, p)
	// Workloads name it: where it held for a whole namespace before, they have
	// to name it first.
	r.Late = p.Scope == securitypb.Scope_WORKLOAD_SELECTOR
	emit(r.Name, r)
}

// emitWorkload publishes a workload under its uid, and under each of its
// addresses that clients may ask for.
func emitWorkload(w *workloadpb.Workload, emit func(string, *xds.Resource)) {
	if w == nil {
		return
	}
	var aliases []string
	if w.NetworkMode != workloadpb.NetworkMode_HOST_NETWORK {
		for _, a := range w.Addresses {
			aliases = append(aliases, service.AddressAlias(w.Network, a))
		}
	}
	r := Encode(wellknown.TypeAddress, w.Uid, aliases, &workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: w}})
	// A proxy that asks for a service needs its endpoints, and for what is on
	// its own node it does not ask.
	r.With = slices.Sorted(maps.Keys(w.Services))
	if w.Node != "" {
		r.Groups = []xds.Group{access.NodeGroup(access.Node{Cluster: w.ClusterId, Name: w.Node})}
	}
	emit(w.Uid, r)
}
