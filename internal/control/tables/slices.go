package tables

import (
	"net/netip"
	"slices"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/service"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// sliceReadiness is whether a slice of a Service has a ready endpoint.
type sliceReadiness struct {
	service Ref
	ready   bool
}

// used reports whether an endpoint receives connections, as kube-proxy decides
// it: the slice says so, whatever the pod says. An endpoint that serves while
// it terminates is used when no slice of the Service has a ready one.
func (t *Tables) used(r *collection.Reader, k Ref, s *discoveryv1.EndpointSlice, e *discoveryv1.Endpoint) bool {
	if service.IsReady(*e) {
		return true
	}
	serving := e.Conditions.Serving != nil && *e.Conditions.Serving
	terminating := e.Conditions.Terminating != nil && *e.Conditions.Terminating
	if !serving || !terminating {
		return false
	}
	for _, slice := range collection.Lookup(r, t.readiness, service.Of(k, s)) {
		if slice.ready {
			return false
		}
	}
	return true
}

// addManualServices makes a pod an endpoint of the Services without a selector
// whose slices name it and find it as ready as it is. Otherwise sliceEndpoints
// makes an endpoint of its own.
func (t *Tables) addManualServices(r *collection.Reader, w *workloadpb.Workload, k Ref) {
	var found []*discoveryv1.EndpointSlice
	for _, s := range collection.Lookup(r, t.manualByPod, k) {
		found = append(found, s)
	}
	slices.SortFunc(found, func(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	for _, s := range found {
		at := k.At(s.Namespace, s.Name)
		c, ok := collection.Fetch(r, t.cores, t.kubeKey(r, service.Of(at, s)))
		if !ok {
			continue
		}
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			if pod, is := service.PodOf(e, at); is && pod == k && t.agree(r, w, at, s, e, c) {
				t.addSliceService(r, w, at, s, c)
			}
		}
	}
}

// agree reports whether the status of a pod's workload is right for an endpoint
// of a slice.
func (t *Tables) agree(r *collection.Reader, pod *workloadpb.Workload, k Ref, s *discoveryv1.EndpointSlice, e *discoveryv1.Endpoint, c *core) bool {
	return c.publish || t.used(r, k, s, e) == (pod.Status == workloadpb.WorkloadStatus_HEALTHY)
}

func (t *Tables) addSliceService(r *collection.Reader, w *workloadpb.Workload, k Ref, s *discoveryv1.EndpointSlice, c *core) {
	addService(w, t.kubeKey(r, service.Of(k, s)).host, c, func(p service.Port) uint32 { return service.SlicePort(s, p.Name) })
}

// sliceEndpoints makes workloads of the endpoints that are no pods, or whose
// pods the slice finds less or more ready than they are.
func (t *Tables) sliceEndpoints(r *collection.Reader, k Ref, s *discoveryv1.EndpointSlice, emit func(string, *xds.Resource)) {
	c, ok := collection.Fetch(r, t.cores, t.kubeKey(r, service.Of(k, s)))
	if s.AddressType == discoveryv1.AddressTypeFQDN || !ok {
		return
	}
	taken := t.earlier(r, k, s)
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		var w *workloadpb.Workload
		if pod, is := service.PodOf(e, k); is {
			w = t.slicePod(r, k, s, e, c, pod)
		} else {
			w = t.sliceAddress(r, k, s, e, c, taken)
		}
		if w == nil {
			continue
		}
		w.Status = workloadpb.WorkloadStatus_HEALTHY
		if !t.used(r, k, s, e) {
			w.Status = workloadpb.WorkloadStatus_UNHEALTHY
		}
		emitWorkload(w, emit)
	}
}

// slicePod is the endpoint of a pod that is not an endpoint itself.
func (t *Tables) slicePod(r *collection.Reader, k Ref, s *discoveryv1.EndpointSlice, e *discoveryv1.Endpoint, c *core, pod Ref) *workloadpb.Workload {
	p, ok := collection.Fetch(r, t.pods, pod)
	if !ok {
		return nil
	}
	w := t.podWorkload(r, pod, p)
	if w == nil || t.agree(r, w, k, s, e, c) {
		return nil
	}
	w.Services = nil
	t.addSliceService(r, w, k, s, c)
	return inPlaceOf(w, t.sliceUID(r, k, pod.Name), "EndpointSlice/"+k.String())
}

// sliceAddress is the endpoint at an address. taken are the addresses and ports
// of earlier slices.
func (t *Tables) sliceAddress(r *collection.Reader, k Ref, s *discoveryv1.EndpointSlice, e *discoveryv1.Endpoint, c *core, taken map[slicedPort]bool) *workloadpb.Workload {
	if len(e.Addresses) == 0 {
		return nil
	}
	// All addresses of an endpoint are interchangeable; the first is used,
	// as by kube-proxy.
	addr, err := netip.ParseAddr(e.Addresses[0])
	if err != nil {
		return nil
	}
	w := &workloadpb.Workload{
		Uid:          t.sliceUID(r, k, addr.String()),
		Name:         k.Name,
		Addresses:    [][]byte{addr.Unmap().AsSlice()},
		WorkloadName: k.Name,
		WorkloadType: workloadpb.WorkloadType_POD,
		// The address need not be the endpoint's alone: that of the API server
		// is its node's. Nobody is recognized by it.
		NetworkMode: workloadpb.NetworkMode_HOST_NETWORK,
	}
	if e.NodeName != nil {
		w.Node = *e.NodeName
		l, _ := collection.Fetch(r, t.localities, Space{Cluster: k.Cluster, Name: w.Node})
		w.Locality = l.proto()
	}
	t.complete(r, w, k.Home(), nil, nil)
	addService(w, t.kubeKey(r, service.Of(k, s)).host, c, func(p service.Port) uint32 {
		n := service.SlicePort(s, p.Name)
		if taken[slicedPort{addr.Unmap(), p.Name, n}] {
			return 0
		}
		return n
	})
	return t.asPod(r, w, "EndpointSlice/"+k.String())
}

func (t *Tables) sliceUID(r *collection.Reader, k Ref, endpoint string) string {
	return t.Cluster(r, k.Cluster).ID + "/" + discoveryv1.GroupName + "/EndpointSlice/" + k.Namespace + "/" + k.Name + "/" + endpoint
}

// slicedPort is one port of one address in a slice, with its name.
type slicedPort struct {
	addr netip.Addr
	name string
	port uint32
}

// earlier returns what the slices of a Service that come before one by name
// have already: an endpoint in two slices is one endpoint.
func (t *Tables) earlier(r *collection.Reader, k Ref, s *discoveryv1.EndpointSlice) map[slicedPort]bool {
	taken := map[slicedPort]bool{}
	for _, o := range collection.Lookup(r, t.manualOf, service.Of(k, s)) {
		if o.Name >= s.Name {
			continue
		}
		for i := range o.Endpoints {
			e := &o.Endpoints[i]
			if _, pod := service.PodOf(e, k.At(o.Namespace, o.Name)); pod || len(e.Addresses) == 0 || !service.IsReady(*e) {
				continue
			}
			addr, err := netip.ParseAddr(e.Addresses[0])
			if err != nil {
				continue
			}
			for _, p := range o.Ports {
				if p.Port != nil && p.Name != nil {
					taken[slicedPort{addr.Unmap(), *p.Name, uint32(*p.Port)}] = true
				}
			}
		}
	}
	return taken
}
