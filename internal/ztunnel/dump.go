package ztunnel

import (
	"encoding/json"

	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/proxy/process"
	"github.com/ambit-mesh/ambit/internal/ztunnel/state"
)

// Pods describes all pods, by UID.
func (n *Node) Pods() map[string]admin.Pod {
	out := map[string]admin.Pod{}
	n.mu.Lock()
	type podState struct {
		p  *pod
		up bool
	}
	pods := make([]podState, 0, len(n.pods))
	for _, p := range n.pods {
		pods = append(pods, podState{p, p.up})
	}
	n.mu.Unlock()
	for _, ps := range pods {
		st := admin.Pod{State: "Pending", Info: admin.PodInfo(ps.p.info), Egress: n.egress.State(&ps.p.egress, ps.p.local(n.Directory.Snapshot()))}
		if ps.up {
			st.State, st.Connections, st.DNS = "Up", state.Of(&ps.p.set), ps.p.dns.State()
		}
		out[ps.p.uid] = st
	}
	return out
}

// dump returns /config_dump, in the shape that Istio's CLI reads.
func (a *App) dump() any {
	snap := a.node.Directory.Snapshot()
	config, _ := json.Marshal(a.cfg) // plain values
	static := []byte("{}")
	if a.local != "" {
		static, _ = yaml.YAMLToJSON([]byte(a.local)) // it was read before
	}
	return admin.Ztunnel{
		Workloads: snap.DumpWorkloads(), Services: append(snap.DumpServices(), a.hosts.Dump(snap)...), Policies: a.node.Policies.Set().Dump(),
		StaticConfig: static, Config: config, Certificates: a.certs.States(), Pods: a.node.Pods(), Version: process.Version(),
		Telemetry: a.layers.Dump(), Traffic: a.traffic.Dump(),
	}
}
