// Package carried is what a gateway carries at a moment, for its dump.
package carried

import "github.com/ambit-mesh/ambit/api/admin"

// State is what a gateway does now, for its dump.
type State struct {
	Connections []admin.GatewayConnection
	// Omitted counts the connections beyond the bound of the list.
	Omitted int
	LeftOut []LeftOut
}

// LeftOut is an endpoint that gets no new requests for a time, because it could not be
// reached.
type LeftOut struct {
	UID  string `json:"uid"`
	Port uint16 `json:"port"` // of the service, or of the workload without one
}

// MaxListed bounds the connections that each loop lists.
const MaxListed = 4096
