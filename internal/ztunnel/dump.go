package ztunnel

import (
	"encoding/json"

	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
	"github.com/ambit-mesh/ambit/internal/ztunnel/dnsproxy"
)

// workloadState is one pod in /config_dump.
type workloadState struct {
	State       string             `json:"state"`
	Connections *connections       `json:"connections,omitempty"`
	Info        bootstrap.Workload `json:"info"`
	DNS         *dnsproxy.State    `json:"dns,omitempty"`
}

type connections struct {
	Inbound  []inboundDump  `json:"inbound"`
	Outbound []outboundDump `json:"outbound"`
}

type inboundDump struct {
	Src         string  `json:"src"`
	OriginalDst *string `json:"originalDst"` // the service the client named
	ActualDst   string  `json:"actualDst"`
	Protocol    string  `json:"protocol"`
}

type outboundDump struct {
	Src         string `json:"src"`
	OriginalDst string `json:"originalDst"`
	ActualDst   string `json:"actualDst"`
	Protocol    string `json:"protocol"`
}

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
		st := workloadState{State: "Pending", Info: ps.p.info}
		if ps.up {
			st.State, st.Connections, st.DNS = "Up", ps.p.connections(), ps.p.dns.State()
		}
		out[ps.p.uid] = st
	}
	return out
}

func (p *pod) connections() *connections {
	out := &connections{Inbound: []inboundDump{}, Outbound: []outboundDump{}}
	for _, c := range p.set.All() {
		if c.Inbound {
			d := inboundDump{Src: c.Src.String(), ActualDst: c.Asked.String(), Protocol: c.Protocol.String()}
			if c.Name != "" {
				d.OriginalDst = &c.Name
			}
			out.Inbound = append(out.Inbound, d)
			continue
		}
		out.Outbound = append(out.Outbound, outboundDump{
			Src: c.Src.String(), OriginalDst: c.Asked.String(), ActualDst: c.Dst.String(), Protocol: c.Protocol.String(),
		})
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
