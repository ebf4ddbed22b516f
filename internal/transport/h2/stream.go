package h2

// Stream is one stream of a Conn. The owner keeps the pointer as long as it
// likes: methods of Conn do nothing for a stream that has ended.
type Stream struct {
	// User is the owner's.
	User any

	// ID is the stream's number. Read only.
	ID uint32
}

// Closed tells that the stream has ended, in both directions or by a reset.
func (s *Stream) Closed() bool { return false }

// ReceiveClosed tells that the peer sends nothing more.
func (s *Stream) ReceiveClosed() bool { return false }

// SendClosed tells that nothing more can be sent.
func (s *Stream) SendClosed() bool { return false }
