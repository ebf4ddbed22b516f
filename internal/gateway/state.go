package gateway

import (
	"context"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/upstream"
)

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

// maxListed bounds the connections that each loop lists.
const maxListed = 4096

// State asks each loop for what it carries. When ctx ends before, the rest is missing.
func (g *Gateway) State(ctx context.Context) State {
	var (
		mu   sync.Mutex // guards out
		out  State
		wait sync.WaitGroup
		done = make(chan struct{})
	)
	wait.Add(g.opts.Loops.Len())
	for i := range g.opts.Loops.Len() {
		if !g.opts.Loops.Loop(i).Post(func() {
			defer wait.Done()
			if s := g.shards[i]; s != nil {
				mu.Lock()
				defer mu.Unlock()
				s.state(&out)
			}
		}) {
			wait.Done()
		}
	}
	go func() { wait.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
	mu.Lock()
	defer mu.Unlock()
	return State{out.Connections, out.Omitted, out.LeftOut}
}

func (s *shard) state(out *State) {
	listed := 0
	for c := range s.sessions {
		if listed++; listed > maxListed {
			out.Omitted += len(s.sessions) - maxListed
			break
		}
		x := Connection{Identity: c.peer.String(), Source: c.remote.String(), Port: c.dest.Port, Protocol: c.protocol, Since: c.start}
		if c.client != nil {
			x.Client = c.client.Namespace + "/" + c.client.Name
		}
		if c.dest.Service != nil {
			x.Called = c.dest.Service.Key().String()
		} else {
			x.Called = c.dest.Workload.UID
		}
		if c.tcp != nil && c.tcp.end.workload != nil {
			x.Endpoint = c.tcp.end.workload.Namespace + "/" + c.tcp.end.workload.Name
		}
		out.Connections = append(out.Connections, x)
	}
	s.health.All(s.loop.Now(), func(at upstream.Place) { out.LeftOut = append(out.LeftOut, LeftOut{at.UID, at.Port}) })
}
