package h2

// Stream is one stream of a Conn. The owner keeps the pointer as long as it
// likes: methods of Conn do nothing for a stream that has ended. The Conn keeps no
// pointer to it then: once the call that ended it has returned, the memory is the owner's.
type Stream struct {
	// User is the owner's.
	User any

	// next and prev link the streams that wait for the connection's window.
	next, prev *Stream

	// bodyLeft is what content-length still promises, -1 without one.
	bodyLeft   int64
	epochStart int64 // when the current measurement began (ns), 0 before data

	// ID is the stream's number. Read only.
	ID uint32

	sendWindow int32 // what the peer lets us send; negative after its SETTINGS shrank

	// Receiving: window = recvWindow + unread + owed, and what is still to
	// come of the DATA frame that is arriving.
	recvWindow int32  // what the peer may still send
	window     uint32 // what the peer may have us hold
	unread     uint32 // delivered, not consumed
	owed       uint32 // consumed, credit not returned yet
	cut        uint32 // credit to withhold, so that window shrinks
	epochBytes uint32 // received since epochStart

	flags uint16
}

// What is true of a stream.
const (
	recvEnded   = 1 << iota // the peer sends no more
	sendEnded               // we send no more
	ended                   // not in the Conn's table any more
	recvHead                // request or final response arrived
	sentHead                // request or final response was sent
	isConnect               // CONNECT without :protocol
	isTunnel                // CONNECT that was answered 2xx: DATA only
	isHead                  // answers to HEAD have no body
	waitsStream             // blocked by its own window
	waitsConn               // in the Conn's queue of waiting streams
	beforeAck               // opened before the peer acknowledged our SETTINGS
)

func (s *Stream) is(f uint16) bool { return s.flags&f != 0 }

// Closed tells that the stream has ended, in both directions or by a reset.
func (s *Stream) Closed() bool { return s.is(ended) }

// ReceiveClosed tells that the peer sends nothing more.
func (s *Stream) ReceiveClosed() bool { return s.is(recvEnded | ended) }

// SendClosed tells that nothing more can be sent.
func (s *Stream) SendClosed() bool { return s.is(sendEnded | ended) }

// table is the open streams of a connection in order of their numbers. New
// numbers only grow, so adding is appending; there are a hundred or so.
type table struct {
	rows []row
	last *Stream // the one found last: frames of one stream come in runs
}

type row struct {
	id uint32
	s  *Stream
}

// search returns the index of the first row with a number of at least id.
func (t *table) search(id uint32) int {
	lo, hi := 0, len(t.rows)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if t.rows[mid].id < id {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

func (t *table) get(id uint32) *Stream {
	if t.last != nil && t.last.ID == id {
		return t.last
	}
	if i := t.search(id); i < len(t.rows) && t.rows[i].id == id {
		t.last = t.rows[i].s
		return t.last
	}
	return nil
}

func (t *table) add(s *Stream) { t.rows = append(t.rows, row{s.ID, s}) }

func (t *table) remove(s *Stream) {
	if t.last == s {
		t.last = nil
	}
	i := t.search(s.ID)
	if i == len(t.rows) || t.rows[i].id != s.ID {
		return
	}
	copy(t.rows[i:], t.rows[i+1:])
	t.rows[len(t.rows)-1] = row{}
	t.rows = t.rows[:len(t.rows)-1]
	if len(t.rows) == 0 && cap(t.rows) > 16 {
		t.rows = nil // a connection that fell idle keeps nothing
	}
}

// fate is how a stream that is no longer in the table came to its end.
type fate uint8

const (
	unknownFate fate = iota
	endedByBoth      // END_STREAM both ways
	resetByUs        // frames that were under way are to be ignored
	resetByPeer      // frames after it are errors
	fateBits    = 2
	fateMask    = 1<<fateBits - 1
)

// remembered is how many ended streams a connection remembers. What is under
// way when we reset a stream arrives within a round trip; streams forgotten
// too early cost the peer a needless RST_STREAM, nothing else.
const remembered = 64

// graveyard remembers how the last streams ended. Streams that carry frames
// have odd numbers, so number/2 and fate fit into one word.
type graveyard struct {
	ring *[remembered]uint32
	next uint32 // how many were ever put in
}

func (g *graveyard) bury(id uint32, f fate) {
	if g.ring == nil {
		g.ring = new([remembered]uint32)
	}
	g.ring[g.next%remembered] = id>>1<<fateBits | uint32(f)
	g.next++
}

func (g *graveyard) find(id uint32) fate {
	if g.ring == nil {
		return unknownFate
	}
	for _, e := range g.ring {
		if e>>fateBits == id>>1 && e&fateMask != 0 {
			return fate(e & fateMask)
		}
	}
	return unknownFate
}

// forgot tells that streams have ended that are not remembered any more.
func (g *graveyard) forgot() bool { return g.next > remembered }
