package dnsproxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/dns"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

const (
	// connIdle is how long a connection may be silent.
	connIdle = 30 * time.Second
	// connectTime bounds connecting to a name server.
	connectTime = 5 * time.Second
	// maxAsked bounds the questions of one connection that wait.
	maxAsked = 64
	// maxQueued is how many bytes may wait for one end before the other is not read.
	maxQueued = 64 << 10
	// readSize is how many bytes are read at once.
	readSize = 16 << 10
	// readsInTurn is how many reads a connection has in one turn of its loop.
	readsInTurn = 8
	// connSockets is how many descriptors a connection takes: its own and, for what is
	// not the mesh's, one to the name server.
	connSockets = 2
	minMessage  = 12
)

// conn is a connection of the pod, on one loop. Its questions are answered in any order.
type conn struct {
	pod     *Pod
	loop    *poll.Loop
	scratch *scratch
	to      netip.AddrPort // the name server; invalid where the connection was not redirected

	client, server         poll.Sock
	fromClient, fromServer []byte // the beginnings of messages
	asked                  map[uint16]waiting
	pending                []byte // for the name server, while it is connected to
	idle                   poll.Deadline

	dialling, learning, ended, drains, closed bool
}

// waiting is a question that a name server has.
type waiting struct {
	question []byte
	began    time.Time
	owned    bool
	transfer bool // its answer has several messages
	begun    bool // some of them came
}

// accept takes a connection in.
func (p *Pod) accept(l *poll.Loop, fd int, _ netip.AddrPort) {
	if !p.Sockets.Take(connSockets) {
		p.node.Metrics.shed.Add(1)
		poll.ResetFD(fd)
		l.RestAccepting()
		return
	}
	c := &conn{pod: p, loop: l, scratch: p.node.scratch(l), asked: map[uint16]waiting{}}
	local, err := sockopt.LocalAddr(fd)
	if err == nil {
		// Without an error it was redirected; otherwise it is only answered.
		if to, err := sockopt.OriginalDst(fd); err == nil && to != local {
			c.to = to
		}
	}
	_ = sockopt.NoDelay(fd)
	c.client.Init(l)
	c.server.Init(l)
	p.mu.Lock()
	closed := p.closed
	if !closed {
		p.conns[c] = struct{}{}
	}
	p.mu.Unlock()
	if closed || c.client.Watch(l, fd, (*clientEnd)(c)) != nil {
		poll.ResetFD(fd)
		c.forget()
		return
	}
	c.idle.Arm(l, connIdle, c.close)
}

type (
	clientEnd conn
	serverEnd conn
)

// Ready implements poll.Handler.
func (e *clientEnd) Ready(ev poll.Events) {
	c := (*conn)(e)
	c.client.Note(ev)
	c.turn()
}

// Ready implements poll.Handler.
func (e *serverEnd) Ready(ev poll.Events) {
	c := (*conn)(e)
	c.server.Note(ev)
	c.turn()
}

// turn moves what can be moved.
func (c *conn) turn() {
	if c.closed {
		return
	}
	if c.client.Flush() != nil {
		c.close()
		return
	}
	if c.server.Active() && c.server.Flush() != nil {
		c.serverGone()
	}
	for i := 0; !c.closed; i++ {
		if i == readsInTurn {
			c.client.Again(poll.Readable)
			break
		}
		asked := c.readClient()
		if c.closed || !c.readServer() && !asked {
			break
		}
	}
	if !c.closed && (c.ended || c.drains) && len(c.asked) == 0 && !c.learning && c.client.Queued() == 0 {
		c.close()
	}
}

// room reports whether more questions can be taken.
func (c *conn) room() bool {
	return !c.learning && len(c.asked) < maxAsked && c.client.Queued() < maxQueued && c.server.Queued()+len(c.pending) < maxQueued
}

// readClient reads questions, and reports whether there may be more.
func (c *conn) readClient() bool {
	if c.drains || !c.questions() || c.ended || !c.client.Readable() {
		return false
	}
	b := c.loop.Buffer()[:readSize]
	n, err := c.client.Read(b)
	switch {
	case errors.Is(err, poll.Again):
		return false
	case err != nil:
		c.close()
		return false
	case n == 0:
		c.ended = true
		return false
	}
	c.idle.Rearm(connIdle)
	c.fromClient = append(c.fromClient, b[:n]...)
	return true
}

// questions takes the questions that were read as a whole. It reports whether there is
// room for more.
func (c *conn) questions() bool {
	for c.room() {
		m, rest, ok := cutMessage(c.fromClient)
		if !ok {
			return true
		}
		if len(m) < minMessage {
			c.client.Reset() // no message of DNS
			c.close()
			return false
		}
		c.question(m)
		if c.closed {
			return false
		}
		c.fromClient = c.fromClient[:copy(c.fromClient, rest)]
	}
	return false
}

// cutMessage takes a message, which has its length before it, off what was read.
func cutMessage(b []byte) (m, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, b, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if len(b) < 2+n {
		return nil, b, false
	}
	return b[2 : 2+n], b[2+n:], true
}

// question answers one, or passes it on.
func (c *conn) question(m []byte) {
	p, s := c.pod, c.scratch
	s.question.Parse(m)
	if !s.question.Asks {
		return
	}
	p.count(&s.question, tcp)
	answer, decision := p.resolve(s, tcp)
	if decision == dns.Answered {
		c.answer(m, answer)
		return
	}
	if wanted := p.missing(s, decision); wanted != nil {
		m := bytes.Clone(m)
		c.learning = true
		if p.learn(c.loop, wanted, func() { c.again(m) }) {
			return
		}
		c.learning = false
	}
	c.forward(m, decision == dns.ForwardOwned)
}

// again decides after the control plane was asked.
func (c *conn) again(m []byte) {
	if c.closed {
		return
	}
	c.learning = false
	s := c.scratch
	s.question.Parse(m)
	if answer, decision := c.pod.resolve(s, tcp); decision == dns.Answered {
		c.answer(m, answer)
	} else {
		c.forward(m, decision == dns.ForwardOwned)
	}
	c.turn()
}

func (c *conn) answer(m []byte, a dns.Answer) {
	s := c.scratch
	s.out = s.question.Append(append(s.out[:0], 0, 0), m, a, false)
	c.reply()
}

func (c *conn) fail(m []byte, rcode byte) {
	c.scratch.out = dns.Fail(append(c.scratch.out[:0], 0, 0), m, rcode)
	c.reply()
}

// reply sends what is in the scratch, after the room for its length.
func (c *conn) reply() {
	b := c.scratch.out
	binary.BigEndian.PutUint16(b, uint16(len(b)-2))
	_ = c.client.Send(b) // an error is met again when the connection is read
}

// forward passes a question to the name server.
func (c *conn) forward(m []byte, owned bool) {
	p := c.pod
	if !c.to.IsValid() {
		c.fail(m, dns.Refused)
		return
	}
	id := binary.BigEndian.Uint16(m)
	if _, twice := c.asked[id]; twice {
		c.fail(m, dns.ServFail) // both answers would have the same number
		return
	}
	if !p.take() {
		p.node.Metrics.shed.Add(1)
		c.fail(m, dns.ServFail)
		return
	}
	p.passed(tcp)
	c.asked[id] = waiting{question: bytes.Clone(m), began: time.Now(), owned: owned, transfer: dns.Transfers(m)}
	framed := append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...)
	if c.server.Active() {
		if c.server.Send(framed) != nil {
			c.serverGone()
		}
		return
	}
	c.pending = append(c.pending, framed...)
	if !c.dialling {
		c.dial()
	}
}

func (c *conn) dial() {
	fd := -1
	err := c.pod.Do(func() (err error) { fd, err = sockopt.Stream(c.to.Addr()); return err })
	if err == nil {
		if err = c.pod.mark(fd); err != nil {
			sockopt.Close(fd)
		}
	}
	if err != nil {
		c.serverGone()
		return
	}
	_ = sockopt.NoDelay(fd)
	c.dialling = true
	relay.Connect(c.loop, fd, c.to, connectTime, func(err error) {
		c.dialling = false
		if c.closed {
			sockopt.Close(fd)
			return
		}
		if err == nil {
			err = c.server.Watch(c.loop, fd, (*serverEnd)(c))
		}
		if err != nil {
			c.pod.node.Logger.Debug("a name server cannot be reached over TCP", "src.workload", c.pod.Name, "error", err)
			sockopt.Close(fd)
			c.serverGone()
		} else if c.server.Send(c.pending) != nil {
			c.serverGone()
		}
		c.pending = nil
		c.turn()
	})
}

// serverGone answers that there is no answer to what waits.
func (c *conn) serverGone() {
	c.server.Close()
	c.server.Init(c.loop)
	c.fromServer, c.pending = nil, nil
	for id, w := range c.asked {
		delete(c.asked, id)
		c.pod.give()
		if w.begun {
			c.ended = true // only the end of the connection shows that a part is missing
			continue
		}
		c.pod.upstreamFailed(tcp)
		c.fail(w.question, dns.ServFail)
	}
}

// readServer reads answers, and reports whether there may be more.
func (c *conn) readServer() bool {
	if !c.server.Active() || !c.server.Readable() || c.client.Queued() >= maxQueued {
		return false
	}
	b := c.loop.Buffer()[:readSize]
	n, err := c.server.Read(b)
	if errors.Is(err, poll.Again) {
		return false
	}
	if err != nil || n == 0 {
		c.serverGone()
		return false
	}
	c.idle.Rearm(connIdle)
	c.fromServer = append(c.fromServer, b[:n]...)
	for {
		m, rest, ok := cutMessage(c.fromServer)
		if !ok {
			return true
		}
		if !c.passAnswer(m) {
			c.pod.node.Metrics.wrong.Add(1)
			c.serverGone()
			return false
		}
		c.fromServer = c.fromServer[:copy(c.fromServer, rest)]
	}
}

// passAnswer passes an answer on, unless it answers nothing that was asked.
func (c *conn) passAnswer(m []byte) bool {
	if len(m) < minMessage {
		return false
	}
	id := binary.BigEndian.Uint16(m)
	w, ok := c.asked[id]
	if !ok || !w.transfer && !dns.Answers(w.question, m) {
		return false
	}
	completed, complete := dns.Answer{}, false
	if w.owned {
		dns.Exists(m)
	} else if !w.transfer {
		completed, complete = c.pod.complete(c.scratch, c.to.Addr().Unmap(), w.question, m)
	}
	if !w.transfer {
		delete(c.asked, id)
		c.pod.give()
		c.pod.upstreamTook(tcp, time.Since(w.began))
	} else if !w.begun {
		w.begun = true
		c.asked[id] = w
	}
	if complete {
		c.answer(w.question, completed)
		return true
	}
	s := c.scratch
	s.out = append(append(s.out[:0], 0, 0), m...)
	c.reply()
	return true
}

// drain lets what waits be answered, and no more be asked.
func (c *conn) drain() {
	c.drains = true
	c.turn()
}

// close ends the connection.
func (c *conn) close() {
	if c.closed {
		return
	}
	c.closed = true
	c.idle.Stop()
	c.client.Close()
	c.server.Close()
	for range c.asked {
		c.pod.give()
	}
	c.asked = nil
	c.forget()
}

// forget takes the connection off the pod's books.
func (c *conn) forget() {
	p := c.pod
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
	p.Sockets.Give(connSockets)
}
