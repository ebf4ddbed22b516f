package analysis

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/ambit-mesh/ambit/internal/source"
)

// hosts reports which names objects of different namespaces claim. Those of one
// namespace are one service; what they dispute is in their status.
func (m *mesh) hosts() {
	owner := map[string]source.Key{}
	for _, s := range m.services {
		owner[s.Name+"."+s.Namespace+".svc."+m.opts.ClusterDomain] = keyOf(source.Service.Kind, s)
	}
	for _, e := range m.entries {
		for i, h := range e.Spec.Hosts {
			h = strings.ToLower(strings.TrimSuffix(h, "."))
			key := keyOf(source.ServiceEntry.Kind, e)
			first, taken := owner[h]
			if !taken {
				owner[h] = key
				continue
			}
			if first.Namespace != key.Namespace || first.Kind == source.Service.Kind {
				m.report(codeDuplicateHost, key, fmt.Sprintf("spec.hosts[%d]", i),
					fmt.Sprintf("%s is a host of %s, too: clients see one or the other, by their namespace", h, first), "keep one of them, or limit each to its namespace with exportTo: [\".\"]")
			}
		}
	}
}

// ranges reports which ranges contain addresses of pods and Services, which the
// ranges do not take.
func (m *mesh) ranges() {
	for _, e := range m.entries {
		key := keyOf(source.ServiceEntry.Kind, e)
		for i, a := range e.Spec.Addresses {
			p, err := netip.ParsePrefix(a)
			if err != nil || p.IsSingleIP() {
				continue
			}
			owners, more := m.registry.Clashes("", p)
			if len(owners) == 0 {
				continue
			}
			list := strings.Join(owners, ", ")
			if more > 0 {
				list += fmt.Sprintf(" and %d more", more)
			}
			m.report(codeRangeOverOthers, key, fmt.Sprintf("spec.addresses[%d]", i),
				fmt.Sprintf("the range %s contains the addresses of %s: these stay what they are", p, list), "give narrower ranges; a proxy that is not Ambit's takes the whole range")
		}
	}
}

// endpoints reports which endpoints are pods by their addresses.
func (m *mesh) endpoints() {
	pods := map[string]source.Key{}
	for _, p := range m.pods {
		if p.Spec.HostNetwork {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			pods[ip.IP] = keyOf(source.Pod.Kind, p)
		}
		pods[p.Status.PodIP] = keyOf(source.Pod.Kind, p)
	}
	delete(pods, "")
	report := func(key source.Key, field, address string) {
		if pod, is := pods[address]; is {
			m.report(codeEndpointIsPod, key, field, fmt.Sprintf("%s is the address of %s: the endpoint is reached as that pod, with its identity and through its tunnel", address, pod),
				"select the pod with a Service or a workloadSelector; its address changes when it is made anew")
		}
	}
	for _, e := range m.machines {
		report(keyOf(source.WorkloadEntry.Kind, e), "spec.address", e.Spec.Address)
	}
	for _, e := range m.entries {
		for i, ep := range e.Spec.Endpoints {
			report(keyOf(source.ServiceEntry.Kind, e), fmt.Sprintf("spec.endpoints[%d].address", i), ep.GetAddress())
		}
	}
}
