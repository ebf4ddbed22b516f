// Package state has the form of a pod in /config_dump, which Istio's command line reads.
package state

import (
	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
	"github.com/ambit-mesh/ambit/internal/proxy/conns"
	"github.com/ambit-mesh/ambit/internal/ztunnel/dnsproxy"
	"github.com/ambit-mesh/ambit/internal/ztunnel/egress"
)

// Pod is one pod that the proxy serves, or will serve.
type Pod struct {
	State       string             `json:"state"` // Up or Pending
	Connections *Connections       `json:"connections,omitempty"`
	Info        bootstrap.Workload `json:"info"`
	DNS         *dnsproxy.State    `json:"dns,omitempty"`
	Egress      *egress.State      `json:"egress,omitempty"`
}

// Connections are the open connections of a pod.
type Connections struct {
	Inbound  []inbound  `json:"inbound"`
	Outbound []outbound `json:"outbound"`
}

type inbound struct {
	Src         string  `json:"src"`
	OriginalDst *string `json:"originalDst"` // the service the client named
	ActualDst   string  `json:"actualDst"`
	Protocol    string  `json:"protocol"`
}

type outbound struct {
	Src         string `json:"src"`
	OriginalDst string `json:"originalDst"`
	ActualDst   string `json:"actualDst"`
	Protocol    string `json:"protocol"`
}

// Of describes connections.
func Of(set *conns.Set) *Connections {
	out := &Connections{Inbound: []inbound{}, Outbound: []outbound{}}
	for _, c := range set.All() {
		if c.Inbound {
			d := inbound{Src: c.Src.String(), ActualDst: c.Asked.String(), Protocol: c.Protocol.String()}
			if c.Name != "" {
				d.OriginalDst = &c.Name
			}
			out.Inbound = append(out.Inbound, d)
			continue
		}
		out.Outbound = append(out.Outbound, outbound{
			Src: c.Src.String(), OriginalDst: c.Asked.String(), ActualDst: c.Dst.String(), Protocol: c.Protocol.String(),
		})
	}
	return out
}
