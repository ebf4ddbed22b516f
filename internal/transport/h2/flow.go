package h2

import "time"

// How windows follow the traffic.
const (
	// rttFloor is the round trip assumed at least: below it, scheduling and
	// the turns of loops at both ends dominate, and measuring is noise.
	rttFloor = time.Millisecond

	// rttEvery is how often the round trip is measured while data arrives.
	rttEvery = time.Second

	// A grown window whose half took more than slowRounds round trips, and
	// slowTurnover at least, shrinks again: it is not what limits its stream.
	slowRounds   = 16
	slowTurnover = 100 * time.Millisecond

	// pressure is how long a window that could not grow makes those above
	// their share shrink.
	pressure = time.Second

	// growShare is which part of the unused budget one step of growth may
	// take, so that late streams still find some.
	growShare = 4
)

// creditConn takes n received bytes off the connection's window and returns
// the credit at once, whatever the streams' owners do: a stuck stream must
// not stop the others. Half a window a time, to save frames.
func (c *Conn) creditConn(n int32) {
	c.recvWindow -= n
	c.recvOwed += n
	if c.recvOwed >= int32(c.cfg.ConnWindow/2) {
		c.sendWindowUpdate(0, uint32(c.recvOwed))
		c.recvWindow += c.recvOwed
		c.recvOwed = 0
	}
}

// Consumed tells that the owner no longer holds n bytes that OnData delivered
// on s; the peer may send as much again. It also counts after s has ended.
func (c *Conn) Consumed(s *Stream, n int) {
	if n <= 0 {
		return
	}
	took := uint32(min(int64(n), int64(s.unread)))
	s.unread -= took
	if s.is(ended) {
		c.held -= int64(took)
		return
	}
	if !s.is(recvEnded) {
		s.owed += took
		c.credit(s)
	}
}

// Release is Consumed for everything delivered on s and not consumed yet.
func (c *Conn) Release(s *Stream) { c.Consumed(s, int(s.unread)) }

// credit returns a stream's credit once half a window has collected.
func (c *Conn) credit(s *Stream) {
	if s.cut > 0 {
		n := min(s.cut, s.owed)
		s.cut -= n
		s.owed -= n
		s.window -= n
		c.extra -= int64(n)
	}
	if s.owed > 0 && s.owed >= s.window/2 {
		c.sendWindowUpdate(s.ID, s.owed)
		s.recvWindow += int32(s.owed)
		s.owed = 0
	}
}

// measure looks how fast a stream's window turns over, at each half window
// received: the window grows when it is what limits the stream, and shrinks
// when it is not or when others need the budget.
func (c *Conn) measure(s *Stream, n uint32) {
	if s.epochStart == 0 {
		s.epochStart = c.now // what came with the first frame says nothing about speed
		return
	}
	if s.epochBytes += n; s.epochBytes < s.window/2 {
		return
	}
	took, bytes := c.now-s.epochStart, int64(s.epochBytes)
	s.epochBytes, s.epochStart = 0, c.now
	c.measureRTT()
	if c.rtt == 0 {
		return
	}
	rtt := int64(max(c.rtt, rttFloor))
	// Fast: at this rate more than half a window passes in a round trip. The
	// owner must keep up as well, or a larger window only fills memory.
	if fast := float64(bytes)*2*float64(rtt) >= float64(s.window)*float64(took); fast && s.unread <= s.window/4 {
		c.grow(s)
	} else if took > max(slowRounds*rtt, int64(slowTurnover)) {
		c.shrink(s)
	}
	if grown := int64(s.window - c.cfg.StreamWindow); grown > c.fairShare() && c.now-c.deniedAt < int64(pressure) {
		c.shrink(s)
	}
}

// fairShare is what each stream could have of the budget.
func (c *Conn) fairShare() int64 { return int64(c.cfg.Budget) / int64(len(c.streams.rows)) }

func (c *Conn) grow(s *Stream) {
	s.cut = 0
	step := min(s.window, c.cfg.MaxStreamWindow-s.window)
	if step == 0 {
		return
	}
	if int64(step) > (int64(c.cfg.Budget)-c.extra)/growShare {
		c.deniedAt = c.now
		return
	}
	s.window += step
	s.owed += step // reaches the peer with the next credit
	c.extra += int64(step)
}

func (c *Conn) shrink(s *Stream) { s.cut = min(s.window/2, s.window-c.cfg.StreamWindow) }

// measureRTT sends a PING now and then while data flows.
func (c *Conn) measureRTT() {
	if c.rttPending || (c.rttSentAt != 0 && c.now-c.rttSentAt < int64(rttEvery)) {
		return
	}
	c.rttPending, c.rttSentAt = true, c.now
	c.sendPing(0, pingRTT)
}

// sampleRTT takes the answer. It believes a shorter time at once and a longer
// one slowly: queues of our own making lengthen it.
func (c *Conn) sampleRTT() {
	if !c.rttPending {
		return
	}
	c.rttPending = false
	sample := max(time.Duration(c.now-c.rttSentAt), 1)
	if c.rtt == 0 || sample < c.rtt {
		c.rtt = sample
		return
	}
	c.rtt += (sample - c.rtt) / 8
}

// endReceive notes that the peer sends no more on s.
func (c *Conn) endReceive(s *Stream) {
	s.flags |= recvEnded
	if s.is(sendEnded) {
		c.remove(s, endedByBoth)
	}
}

// endSend notes that we send no more on s.
func (c *Conn) endSend(s *Stream) {
	s.flags |= sendEnded
	c.unwait(s)
	if s.is(recvEnded) {
		c.remove(s, endedByBoth)
	}
}

// remove takes s out of the connection. What it delivered and its owner did
// not consume yet is held against the budget from now on.
func (c *Conn) remove(s *Stream, f fate) {
	c.unwait(s)
	if c.rx.cur == s {
		c.rx.cur = nil // what is left of the frame is discarded
	}
	c.streams.remove(s)
	c.graves.bury(s.ID, f)
	s.flags |= ended
	c.extra -= int64(s.window - c.cfg.StreamWindow)
	c.held += int64(s.unread)
}

// wait puts s at the end of the queue for the connection's window.
func (c *Conn) wait(s *Stream) {
	if s.is(waitsConn) {
		return
	}
	s.flags |= waitsConn
	s.prev = c.waitTail
	if s.prev != nil {
		s.prev.next = s
	} else {
		c.waitHead = s
	}
	c.waitTail = s
	c.waiting++
}

// unwait takes s out of the queue and clears both reasons to wait.
func (c *Conn) unwait(s *Stream) {
	if s.is(waitsConn) {
		if s.prev != nil {
			s.prev.next = s.next
		} else {
			c.waitHead = s.next
		}
		if s.next != nil {
			s.next.prev = s.prev
		} else {
			c.waitTail = s.prev
		}
		s.next, s.prev = nil, nil
		c.waiting--
	}
	s.flags &^= waitsConn | waitsStream
}

// wake lets waiting streams send, longest waiting first, each at most once:
// those that still have more queue up again behind the others.
func (c *Conn) wake() {
	for n := c.waiting; n > 0 && c.waitHead != nil && c.sendWindow > 0 && c.err == nil; n-- {
		s := c.waitHead
		c.unwait(s)
		if s.sendWindow <= 0 {
			s.flags |= waitsStream
			continue
		}
		c.h.OnWritable(s)
	}
}

// onWindowUpdate takes a WINDOW_UPDATE frame.
func (c *Conn) onWindowUpdate(id, n uint32) {
	if n < smallUpdate {
		if c.spendNoise(); c.err != nil {
			return
		}
	}
	if id == 0 {
		c.raiseConn(n)
		return
	}
	s := c.streams.get(id)
	switch {
	case s == nil && c.idle(id):
		c.fail(ProtocolError, "WINDOW_UPDATE on an idle stream")
	case s == nil:
	case n == 0:
		c.streamError(s, ProtocolError)
	case int64(s.sendWindow)+int64(n) > maxWindow:
		c.streamError(s, FlowControlError)
	default:
		s.sendWindow += int32(n)
		if s.is(waitsStream) && s.sendWindow > 0 {
			s.flags &^= waitsStream
			c.wait(s)
			c.wake()
		}
	}
}

// smallUpdate is the increment below which WINDOW_UPDATE counts as noise: with
// tiny ones a peer could have us send a body byte by byte.
const smallUpdate = 1 << 10

func (c *Conn) raiseConn(n uint32) {
	switch {
	case n == 0:
		c.fail(ProtocolError, "WINDOW_UPDATE of 0 on the connection")
	case int64(c.sendWindow)+int64(n) > maxWindow:
		c.fail(FlowControlError, "the connection's window exceeds 2^31-1")
	default:
		c.sendWindow += int32(n)
		c.wake()
	}
}
