package gateway

import (
	"context"
	"sync"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/gateway/carried"
	"github.com/ambit-mesh/ambit/internal/l7/upstream"
)

// State asks each loop for what it carries. When ctx ends before, the rest is missing.
func (g *Gateway) State(ctx context.Context) carried.State {
	var (
		mu   sync.Mutex // guards out
		out  carried.State
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
	return carried.State{Connections: out.Connections, Omitted: out.Omitted, LeftOut: out.LeftOut}
}

func (s *shard) state(out *carried.State) {
	listed := 0
	for c := range s.sessions {
		if listed++; listed > carried.MaxListed {
			out.Omitted += len(s.sessions) - carried.MaxListed
			break
		}
		x := admin.GatewayConnection{Identity: c.peer.String(), Source: c.remote.String(), Port: c.dest.Port, Protocol: c.protocol, Since: c.start}
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
	s.health.All(s.loop.Now(), func(at upstream.Place) {
		out.LeftOut = append(out.LeftOut, carried.LeftOut{UID: at.UID, Port: at.Port})
	})
}
