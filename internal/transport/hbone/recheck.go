package hbone

import (
	"crypto/tls"
	"slices"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

// Recheck asks judge about the peer of every tunnel there is, on the calling
// goroutine, and ends the tunnels for which it returns an error; flows get its
// reason. A tunnel whose handshake is under way is not asked about: it may have
// been judged by what was known before, so who calls this for a change calls it
// again after DialTimeout.
func (p *Pool) Recheck(judge func(k Key, peer *tls.ConnectionState) *reason.Error) {
	for _, s := range p.shards {
		for _, c := range snapshot(s.loop, &s.local) {
			state := c.t.TLS()
			if err := judge(c.key, &state); err != nil {
				s.loop.Post(func() { c.t.Fail(err.Reason, err) })
			}
		}
	}
}

// Recheck is the same for the tunnels of clients, with HandshakeTimeout.
func (s *Server) Recheck(judge func(peer *tls.ConnectionState) *reason.Error) {
	for i := range s.shards {
		loop := s.cfg.Loops.Loop(i)
		for _, t := range snapshot(loop, &s.shards[i].tunnels) {
			if err := judge(t.state); err != nil {
				loop.Post(func() { t.t.Fail(err.Reason, err) })
			}
		}
	}
}

// snapshot copies a list that l owns; a loop that is closed has none.
func snapshot[T any](l *poll.Loop, list *[]T) []T {
	c := make(chan []T, 1)
	if !l.Post(func() { c <- slices.Clone(*list) }) {
		return nil
	}
	select {
	case all := <-c:
		return all
	case <-l.Done():
		return nil
	}
}
