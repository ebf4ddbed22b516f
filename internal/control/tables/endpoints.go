package tables

import (
	"net/netip"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/wrapperspb"
	networkingapi "istio.io/api/networking/v1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	securitypb "github.com/ambit-mesh/ambit/api/security"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/control/binding"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/control/service"
	"github.com/ambit-mesh/ambit/internal/xds"
)

const entryGroup = "networking.istio.io"

// entryWorkload is nil for an entry that no proxy can reach, and for one that
// is a pod and adds nothing to it.
func (t *Tables) entryWorkload(r *collection.Reader, k Ref, e *networkingv1.WorkloadEntry) *workloadpb.Workload {
	w, _ := t.closedEntry(r, k, e)
	return w
}

// closedEntry is entryWorkload with the policy that the workload names because of its
// waypoints, nil for none.
func (t *Tables) closedEntry(r *collection.Reader, k Ref, e *networkingv1.WorkloadEntry) (*workloadpb.Workload, *securitypb.Authorization) {
	labels := EntryLabels(e.Labels, e.Spec.Labels)
	w := t.Endpoint(&e.Spec, k)
	if w == nil {
		return nil, nil
	}
	w.Uid = t.Cluster(r, k.Cluster).ID + "/" + entryGroup + "/WorkloadEntry/" + k.Namespace + "/" + k.Name
	t.complete(r, w, k.Home(), labels, ownPorts(e.Spec.Ports))
	w.Extensions = append(w.Extensions, t.Egress.Extensions(r, k.Home(), labels, e.Annotations)...)
	if pod := t.asPod(r, w, "WorkloadEntry/"+k.String()); pod != w {
		return pod, nil
	}
	return w, t.bindWaypoint(r, w, k.Home(), labels, t.workloadState(r, k))
}

// EntryLabels are those of the spec over those of the object: both select.
func EntryLabels(object, spec map[string]string) map[string]string {
	if len(spec) == 0 {
		return object
	}
	out := make(map[string]string, len(object)+len(spec))
	for k, v := range object {
		out[k] = v
	}
	for k, v := range spec {
		out[k] = v
	}
	return out
}

// ownPorts are the ports an entry has for ports of its services, by their name.
func ownPorts(ports map[string]uint32) map[string]uint32 {
	if len(ports) == 0 {
		return nil
	}
	out := make(map[string]uint32, len(ports))
	for name, n := range ports {
		if n <= 65535 {
			out[ownPort+name] = n
		}
	}
	return out
}

// Endpoint makes the part of a workload that WorkloadEntry says; the same
// message is an inline endpoint of a ServiceEntry.
func (t *Tables) Endpoint(e *networkingapi.WorkloadEntry, k Ref) *workloadpb.Workload {
	w := &workloadpb.Workload{
		Name:           k.Name,
		Network:        e.Network,
		ServiceAccount: serviceAccount(e.ServiceAccount),
		WorkloadName:   k.Name,
		WorkloadType:   workloadpb.WorkloadType_POD,
	}
	switch addr, err := netip.ParseAddr(e.Address); {
	case err == nil && addr.Zone() == "":
		w.Addresses = [][]byte{addr.Unmap().AsSlice()}
	case e.Address == "", strings.HasPrefix(e.Address, "unix:"), err == nil:
		return nil
	default:
		w.Hostname = e.Address
	}
	if e.Weight > 0 {
		w.Capacity = wrapperspb.UInt32(e.Weight)
	}
	if parts := strings.SplitN(e.Locality, "/", 3); e.Locality != "" {
		var l locality
		l.region = parts[0]
		if len(parts) > 1 {
			l.zone = parts[1]
		}
		if len(parts) > 2 {
			l.subzone = parts[2]
		}
		w.Locality = l.proto()
	}
	return w
}

// inlineEndpoints makes the workloads that a ServiceEntry lists itself. One
// that is resolved by name and lists none has its hosts as endpoints.
func (t *Tables) inlineEndpoints(r *collection.Reader, k Ref, e *networkingv1.ServiceEntry, emit func(string, *xds.Resource)) {
	endpoints := e.Spec.Endpoints
	perHost := len(endpoints) == 0 && (e.Spec.Resolution == networkingapi.ServiceEntry_DNS || e.Spec.Resolution == networkingapi.ServiceEntry_DNS_ROUND_ROBIN)
	if e.Spec.WorkloadSelector != nil || e.Spec.Resolution == networkingapi.ServiceEntry_NONE || t.Scope(r, k, e) == meshconfig.None {
		return
	}
	if perHost {
		for _, h := range e.Spec.Hosts {
			if service.Served(h, e) {
				endpoints = append(endpoints, &networkingapi.WorkloadEntry{Address: h})
			}
		}
	}
	used := map[string]int{}
	for _, ep := range endpoints {
		w := t.Endpoint(ep, k)
		if w == nil {
			continue
		}
		section := ep.Address
		if n := used[section]; n > 0 {
			section += "~" + strconv.Itoa(n) // one address, several ports
		}
		used[ep.Address]++
		w.Uid = t.Cluster(r, k.Cluster).ID + "/" + entryGroup + "/ServiceEntry/" + k.Namespace + "/" + k.Name + "/" + section
		emitWorkload(t.completeInline(r, w, k, e, ep, perHost), emit)
	}
}

func (t *Tables) completeInline(r *collection.Reader, w *workloadpb.Workload, k Ref, e *networkingv1.ServiceEntry, ep *networkingapi.WorkloadEntry, perHost bool) *workloadpb.Workload {
	t.complete(r, w, k.Home(), ep.Labels, nil)
	// An inline endpoint belongs to its own entry and to nothing that happens
	// to select its labels.
	w.Services = nil
	ports := ownPorts(ep.Ports)
	for _, h := range e.Spec.Hosts {
		if perHost && h != ep.Address {
			continue
		}
		name := Host{k.Namespace, h}
		c, ok := collection.Fetch(r, t.cores, coreKey{name, k.Name, k.Cluster})
		if !ok {
			continue
		}
		addService(w, name, c, func(p service.Port) uint32 { return targetPort(ports, p) })
	}
	if len(w.Services) == 0 {
		return nil // a Kubernetes Service has the host
	}
	if pod := t.asPod(r, w, "ServiceEntry/"+k.String()); pod != w {
		return pod
	}
	if proxied, is := t.IsProxy(r, k.Home(), ep.Labels); is {
		w.ApplicationTunnel = proxied.binding
		return w
	}
	// No proxy of Ambit's stands before what is neither a pod nor has an entry of its
	// own: nothing could be closed there.
	target, _ := t.Target(r, k.Home(), ep.Labels, e.Annotations, TrafficWorkload)
	w.Waypoint = binding.Final(target).Waypoint
	return w
}
