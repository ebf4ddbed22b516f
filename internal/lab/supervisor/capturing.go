package supervisor

import (
	"fmt"

	"github.com/ambit-mesh/ambit/internal/lab/network"
)

// captureNames lists the interfaces that lead to nodes, as "index=name".
func (s *supervisor) captureNames() []string {
	var out []string
	for _, n := range s.nodes {
		if index, err := s.lan.Index(network.PortName(n.n)); err == nil {
			out = append(out, fmt.Sprintf("%d=%s", index, n.name))
		}
	}
	return out
}
