// Package state has the form of a pod in /config_dump, which Istio's command line reads.
package state

import (
	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/proxy/conns"
)

// Of describes connections.
func Of(set *conns.Set) *admin.Connections {
	out := &admin.Connections{Inbound: []admin.Inbound{}, Outbound: []admin.Outbound{}}
	for _, c := range set.All() {
		if c.Inbound {
			d := admin.Inbound{Src: c.Src.String(), ActualDst: c.Asked.String(), Protocol: c.Protocol.String()}
			if c.Name != "" {
				d.OriginalDst = &c.Name
			}
			out.Inbound = append(out.Inbound, d)
			continue
		}
		out.Outbound = append(out.Outbound, admin.Outbound{
			Src: c.Src.String(), OriginalDst: c.Asked.String(), ActualDst: c.Dst.String(), Protocol: c.Protocol.String(),
		})
	}
	return out
}
