package ztunnel

import (
	"encoding/json"

	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/ztunnel/state"
)

// WorkloadStates describes all pods, by UID.
func (n *Node) WorkloadStates() map[string]any {
	out := map[string]any{}
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
		st := state.Pod{State: "Pending", Info: ps.p.info, Egress: ps.p.egress.State(ps.p.local(n.Directory.Snapshot()))}
		if ps.up {
			st.State, st.Connections, st.DNS = "Up", state.Of(&ps.p.set), ps.p.dns.State()
		}
		out[ps.p.uid] = st
	}
	return out
}

// dump is /config_dump, in the shape that Istio's CLI reads.
func (a *App) dump() map[string]any {
	snap := a.node.Directory.Snapshot()
	raw := func(m json.RawMessage, err error) any {
		if err != nil {
			return []any{}
		}
		return m
	}
	var static any = struct{}{}
	if a.local != "" {
		_ = yaml.Unmarshal([]byte(a.local), &static) // it was read before
	}
	return map[string]any{
		"workloads":     raw(snap.DumpWorkloads()),
		"services":      raw(snap.DumpServices()),
		"policies":      raw(a.node.Policies.Set().Dump()),
		"staticConfig":  static,
		"config":        a.cfg,
		"certificates":  a.certs.States(),
		"workloadState": a.node.WorkloadStates(),
	}
}
