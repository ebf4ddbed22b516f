package budget

import (
	"github.com/ambit-mesh/ambit/internal/proxy/process"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

const (
	// maxWaiting bounds the connections of the node that wait off the loops, for a
	// name or for the control plane; each costs a goroutine of about 4 KiB.
	maxWaiting = 4096
	// maxTunnels bounds the tunnels into the pods of the node; one costs about
	// 30 KiB, so all of them half a gigabyte.
	maxTunnels = 16384
	// maxQueued bounds the bytes that wait for programs which do not read.
	maxQueued = 256 << 20
)

// Node is what the pods of a node share.
type Node struct {
	Sockets, Waiting, Tunnels, Queues *Pool
}

// Pod is what one pod takes of each.
type Pod struct {
	Sockets, Waiting, Tunnels, Queues *Share
}

// NewNode divides what a process with so many descriptors and loops has; 0
// descriptors stands for its limit.
func NewNode(descriptors, loops int) Node {
	if descriptors <= 0 {
		descriptors = process.Descriptors()
	}
	return Node{
		Sockets: New(int64(descriptors - reserved(descriptors, loops))),
		Waiting: New(maxWaiting),
		Tunnels: New(maxTunnels),
		Queues:  New(maxQueued),
	}
}

// podDescriptors is what a pod costs without connections: its namespace, three
// listeners, two more for look-ups and two for SOCKS5, a spare one for each, and two
// sockets of datagrams with what they ask of connection tracking.
const podDescriptors = 19

// reserved is how many descriptors no connection gets. They are for the control
// plane, the CA, the node agent, readiness, metrics, names that are resolved, the
// pods' own (for 150 of them), and the pipes of each loop.
func reserved(descriptors, loops int) int {
	need := 256 + 150*podDescriptors + loops*(2*poll.MaxPipes+8)
	return min(max(need, descriptors/8), descriptors/2)
}

// Each calls f with every resource and its name in metrics.
func (b *Node) Each(f func(resource string, p *Pool)) {
	f("descriptors", b.Sockets)
	f("waiting_connections", b.Waiting)
	f("tunnels", b.Tunnels)
	f("queued_bytes", b.Queues)
}

// Join gives a pod its shares.
func (b *Node) Join() Pod {
	return Pod{Sockets: b.Sockets.Join(), Waiting: b.Waiting.Join(), Tunnels: b.Tunnels.Join(), Queues: b.Queues.Join()}
}

// Leave gives the shares back.
func (s *Pod) Leave() {
	s.Sockets.Leave()
	s.Waiting.Leave()
	s.Tunnels.Leave()
	s.Queues.Leave()
}
