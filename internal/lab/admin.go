package lab

import (
	"fmt"
	"strings"

	"github.com/ambit-mesh/ambit/internal/lab/network"
)

// AdminOf returns the namespace and the port of a component's admin endpoint.
func AdminOf(component string) (Where, int, error) {
	kind, node, _ := strings.Cut(component, "/")
	switch {
	case component == network.Ambitd:
		return LAN, 8080, nil
	case kind == network.Ztunnel && node != "":
		return InZtunnel(node), 15000, nil
	case kind == network.AmbitCNI && node != "":
		return InNode(node), 15014, nil
	}
	return "", 0, fmt.Errorf("no component %q: there are ambitd, ztunnel/NODE and ambit-cni/NODE", component)
}
