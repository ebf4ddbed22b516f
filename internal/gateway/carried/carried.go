// Package carried is what a gateway carries at a moment, for its dump.
package carried

import "time"

// State is what a gateway does now, for its dump.
type State struct {
	Connections []Connection
	// Omitted counts the connections beyond the bound of the list.
	Omitted int
	LeftOut []LeftOut
}

// Connection is one that a client's node proxy has opened.
type Connection struct {
	Client   string    `json:"client,omitempty"` // namespace/name; empty when unknown
	Identity string    `json:"identity"`
	Source   string    `json:"source"`
	Called   string    `json:"called"` // namespace/hostname of a service, or the UID of a workload
	Port     uint16    `json:"port"`
	Protocol string    `json:"protocol"` // HTTP/1.1, HTTP/2, TCP; empty before it is known
	Endpoint string    `json:"endpoint,omitempty"`
	Since    time.Time `json:"since"`
}

// LeftOut is an endpoint that gets no new requests for a time, because it could not be
// reached.
type LeftOut struct {
	UID  string `json:"uid"`
	Port uint16 `json:"port"` // of the service, or of the workload without one
}

// MaxListed bounds the connections that each loop lists.
const MaxListed = 4096
