package tables

import (
	"net/netip"
	"slices"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/control/collection"
)

// asPod returns the workload for an endpoint that an object other than a pod
// names by an address. When a pod of the same network has the address, the
// endpoint is that pod: it has the pod's identity, tunnel, place and readiness.
// Ports for which the pod is an endpoint itself are left out; nil is for an
// endpoint that has no others. Otherwise it is w itself.
func (t *Tables) asPod(r *collection.Reader, w *workloadpb.Workload, name string) *workloadpb.Workload {
	if len(w.Addresses) != 1 {
		return w
	}
	a, _ := netip.AddrFromSlice(w.Addresses[0])
	k, found := t.PodAt(r, Place{w.Network, a})
	if !found {
		return w
	}
	p, there := collection.Fetch(r, t.pods, k)
	if !there {
		return w
	}
	pod := t.podWorkload(r, k, p)
	if pod == nil {
		return w
	}
	services := beside(w.Services, pod.Services)
	if len(services) == 0 {
		return nil
	}
	pod.Services, pod.Capacity = services, w.Capacity
	pod.Addresses = w.Addresses
	return inPlaceOf(pod, w.Uid, name)
}

// inPlaceOf makes a pod's workload the endpoint of another object: it has its
// own UID, and a name that no pod can have, so that nothing takes it for the
// pod itself. The pod is found by its addresses, this one is not.
func inPlaceOf(pod *workloadpb.Workload, uid, name string) *workloadpb.Workload {
	pod.Uid, pod.Name = uid, name
	pod.NetworkMode = workloadpb.NetworkMode_HOST_NETWORK
	// What is enforced at the pod is the pod's own.
	pod.AuthorizationPolicies, pod.Waypoint = nil, nil
	return pod
}

// beside returns the ports of services without those that own has.
func beside(services, own map[string]*workloadpb.PortList) map[string]*workloadpb.PortList {
	out := map[string]*workloadpb.PortList{}
	for name, list := range services {
		rest := slices.DeleteFunc(slices.Clone(list.Ports), func(p *workloadpb.Port) bool { return hasPort(own[name], p.ServicePort) })
		if len(rest) > 0 {
			out[name] = &workloadpb.PortList{Ports: rest}
		}
	}
	return out
}
