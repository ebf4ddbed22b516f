package route

import (
	"strconv"
	"strings"
)

// PortKey names one port of a service.
type PortKey struct {
	Namespace string
	Hostname  string // fully qualified, lower case
	Port      uint16
}

// Config is everything a gateway routes by. It is immutable once published: a
// change makes another Config, which may share what did not change.
type Config struct {
	// Ports holds the service ports that have routes. The requests to any other
	// port go to the endpoints of its service.
	Ports map[PortKey]*Port
	// Upstreams holds what Backend.Name refers to.
	Upstreams map[string]*Upstream
}

// Port is what the routes of one service port say.
type Port struct {
	// Table has the routes for all clients. nil is none.
	Table *Table
	// Clients has tables for the clients of one namespace, by its name (the
	// consumer routes of GEP-1294). Such a table replaces Table for them.
	Clients map[string]*Table
	// Connections has the routes of connections that carry no HTTP, ClientConnections
	// those for the clients of one namespace. Without any they go to the endpoints of the
	// service.
	Connections       *Connections
	ClientConnections map[string]*Connections
}

// ConnectionsFor returns the routes of connections for clients of a namespace, or nil.
func (p *Port) ConnectionsFor(namespace string) *Connections {
	if p == nil {
		return nil
	}
	if c := p.ClientConnections[namespace]; c != nil {
		return c
	}
	return p.Connections
}

// TableFor returns the table for clients of a namespace, or nil.
func (p *Port) TableFor(namespace string) *Table {
	if p == nil {
		return nil
	}
	if t := p.Clients[namespace]; t != nil {
		return t
	}
	return p.Table
}

// Port returns what is configured for a service port, or nil. It may be called
// on a nil Config.
func (c *Config) Port(k PortKey) *Port {
	if c == nil {
		return nil
	}
	return c.Ports[k]
}

// Protocol is how requests are sent to an upstream.
type Protocol uint8

// The protocols.
const (
	// Declared uses what the service port declares, else HTTP/1.1.
	Declared Protocol = iota
	HTTP1
	HTTP2
)

// Upstream is a service port as a destination of requests.
type Upstream struct {
	Service  PortKey
	Protocol Protocol
	Limits   Limits
}

// Limits bounds what one gateway has open to an upstream. Zero is the
// gateway's own bound.
type Limits struct {
	Connections uint32 // to each endpoint
	Pending     uint32 // requests that wait for a connection
	Requests    uint32 // requests under way
}

// UpstreamName returns the name of a service port as an upstream without
// settings of its own: namespace/hostname:port.
func (k PortKey) UpstreamName() string {
	return k.Namespace + "/" + strings.ToLower(k.Hostname) + ":" + strconv.Itoa(int(k.Port))
}
