package registry

import (
	"testing"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// recorder keeps what is published, as a proxy would.
type recorder struct {
	addresses, policies, requests, rules, tokens, layers, traffic, limits, egress, hosts map[string][]byte
	last                                                                                 Update
	updates                                                                              int
	synced                                                                               bool
}

func newRecorder() *recorder {
	return &recorder{addresses: map[string][]byte{}, policies: map[string][]byte{}, requests: map[string][]byte{}, rules: map[string][]byte{}, tokens: map[string][]byte{}, layers: map[string][]byte{}, traffic: map[string][]byte{}, limits: map[string][]byte{}, egress: map[string][]byte{}, hosts: map[string][]byte{}}
}

func (r *recorder) Publish(u Update) {
	r.last = u
	r.updates++
	for _, c := range u {
		into := r.addresses
		switch c.TypeURL {
		case wellknown.TypeAuthorization:
			into = r.policies
		case wellknown.TypePolicy:
			into = r.requests
		case wellknown.TypeAuthentication:
			into = r.tokens
		case wellknown.TypeTelemetry:
			into = r.layers
		case wellknown.TypeTraffic:
			into = r.traffic
		case wellknown.TypeRateLimit:
			into = r.limits
		case wellknown.TypeEgress:
			into = r.egress
		case wellknown.TypeHost:
			into = r.hosts
		case wellknown.TypeRoute:
			into = r.rules
		}
		for _, a := range c.Set {
			into[a.Name] = a.Body
		}
		for _, n := range c.Removed {
			delete(into, n)
		}
	}
}

// set returns the resources of a type that the last update set.
func (r *recorder) set(typeURL string) []*xds.Resource {
	for _, c := range r.last {
		if c.TypeURL == typeURL {
			return c.Set
		}
	}
	return nil
}

func (r *recorder) Synced() { r.synced = true }

func (r *recorder) workload(t testing.TB, name string) *workloadpb.Workload {
	t.Helper()
	return r.address(t, name).GetWorkload()
}

func (r *recorder) service(t testing.TB, name string) *workloadpb.Service {
	t.Helper()
	return r.address(t, name).GetService()
}
