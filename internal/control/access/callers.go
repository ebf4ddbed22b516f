package access

import (
	"errors"
	"fmt"
	"slices"

	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// Kind is what a caller is to the mesh.
type Kind uint8

// The kinds of callers.
const (
	// Workload is every caller that is nothing else: its streams are refused.
	Workload Kind = iota
	// NodeProxy has proved by a token that it runs as the account of node
	// proxies.
	NodeProxy
	// GatewayProxy runs as the service account of a Gateway, in its namespace.
	GatewayProxy
	// Reader is an account that the operator lets read the directory and the
	// policies.
	Reader
)

// Callers decides what each caller may have.
type Callers struct {
	// NodeProxies and Readers are service accounts, as namespace/name.
	NodeProxies, Readers []string
	Nodes                *Nodes
	Gateways             *Gateways
}

// IsNodeProxy reports whether a caller has proved by a token that it runs as the
// account of node proxies. Its token may be bound to no pod.
func (d *Callers) IsNodeProxy(c auth.Caller) bool {
	return !c.ByCertificate() && slices.Contains(d.NodeProxies, c.Account())
}

// Kind returns what a caller is. A certificate makes no node proxy: it outlives
// the pod that it was made for. It also shows no cluster, so that it makes no
// gateway either.
func (d *Callers) Kind(c auth.Caller) Kind {
	switch {
	case c.ByCertificate():
		return Workload
	case d.IsNodeProxy(c):
		return NodeProxy
	case slices.Contains(d.Readers, c.Account()):
		return Reader
	case len(d.gateways(c)) > 0:
		return GatewayProxy
	}
	return Workload
}

func (d *Callers) gateways(c auth.Caller) []Gateway {
	return d.Gateways.Of(Account{c.Cluster, c.Namespace, c.ServiceAccount})
}

// NodeGroup is the group of what runs on a node.
func NodeGroup(n Node) xds.Group { return xds.Group("node/" + n.Cluster + "/" + n.Name) }

// AllNodes is the group of what is for every node proxy, of types that are sent by node.
const AllNodes xds.Group = "nodes"

// GatewayGroup is the group of what is for one gateway.
func GatewayGroup(g Gateway) xds.Group {
	return xds.Group("gateway/" + g.Cluster + "/" + g.Namespace + "/" + g.Name)
}

// Scope returns what a caller may have of a type.
//
// A node proxy and a reader have everything that is for node proxies. One that
// asks for single names gets what runs on its node besides: on the node that its
// credentials prove, else on the one that it claims. Of telemetry, rules of connections,
// routes and EgressPolicies, a node proxy has what is for pods of that node. A gateway has what is for
// it. It looks up its clients and its servers, so it may ask for every address
// by name.
//
// All others are refused, and not answered that nothing exists: a proxy whose
// account is configured wrongly keeps the state that it has. So are a node proxy
// and a gateway whose credentials contradict what is known of their pod.
func (d *Callers) Scope(c auth.Caller, claimedNode, typeURL string) (xds.Scope, error) {
	switch d.Kind(c) {
	case NodeProxy:
		if !forNodeProxies(typeURL) && !byNode(typeURL) {
			return xds.Scope{}, nil
		}
		node, err := d.Nodes.Of(c)
		if errors.Is(err, errNoNode) {
			node, err = Node{c.Cluster, claimedNode}, nil
		}
		if err != nil {
			return xds.Scope{}, err
		}
		switch {
		case typeURL == wellknown.TypeTelemetry:
			return xds.Scope{Groups: []xds.Group{NodeGroup(node)}}, nil
		case byNode(typeURL):
			return xds.Scope{Groups: []xds.Group{NodeGroup(node), AllNodes}}, nil
		}
		return xds.Scope{All: true, Unasked: []xds.Group{NodeGroup(node)}}, nil
	case Reader:
		return xds.Scope{All: forNodeProxies(typeURL)}, nil
	case GatewayProxy:
		if _, err := d.Nodes.Of(c); err != nil && !errors.Is(err, errNoNode) {
			return xds.Scope{}, err
		}
		var s xds.Scope
		for _, g := range d.gateways(c) {
			s.Groups = append(s.Groups, GatewayGroup(g))
		}
		if typeURL == wellknown.TypeAddress {
			s.Within = func(string) bool { return true }
		}
		return s, nil
	case Workload:
	}
	if c.ByCertificate() {
		return xds.Scope{}, errors.New("a certificate alone gives no resources (show a token)")
	}
	return xds.Scope{}, fmt.Errorf("%s is the account of no node proxy and of no Gateway (to let it read all addresses and policies, name it as --directory-reader)", c.Account())
}

// forNodeProxies reports whether a type is what every node proxy needs the whole
// of.
func forNodeProxies(typeURL string) bool {
	return typeURL == wellknown.TypeAddress || typeURL == wellknown.TypeAuthorization || typeURL == wellknown.TypeHost
}

// byNode reports whether a node proxy needs of a type what is for pods of its node.
func byNode(typeURL string) bool {
	return typeURL == wellknown.TypeTelemetry || typeURL == wellknown.TypeTraffic || typeURL == wellknown.TypeRateLimit || typeURL == wellknown.TypeEgress || typeURL == wellknown.TypeRoute
}
