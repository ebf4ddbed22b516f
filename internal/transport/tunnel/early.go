package tunnel

import (
	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

// maxEarly is how much of what the application has written leaves before the stream is
// answered: a request, or the first flight of TLS. It is sealed with the request in one record.
const maxEarly = 4 << 10

// SendEarly has the first bytes of the application leave before the stream is answered, which
// saves the time of the answer. They stay in the application's socket until then, so that a
// stream that is refused leaves it as it was. Watch and Requested come before.
func (s *Stream) SendEarly() {
	s.eager = true
	s.sock.Note(poll.Readable) // they may have come before the socket was watched
	s.ahead()
}

// Early reports whether bytes were sent before the answer. The other side may have given
// them to its program, whether or not the answer arrives.
func (s *Stream) Early() bool { return s.early > 0 }

// ahead sends what the application has written since it was called last.
func (s *Stream) ahead() {
	t := s.t
	if !s.eager || !s.sock.Readable() || t.closing || t.full() {
		return
	}
	buf := t.hub.loop.Buffer()[:maxEarly]
	n, err := s.sock.Peek(buf)
	switch {
	case poll.IsAgain(err):
		return
	case err != nil: // which no later read returns
		s.Abandon(s.appReset())
		return
	case n == maxEarly:
		s.eager = false
	}
	sent := int(s.early)
	m := min(n, sent+t.h2.SendQuota(s.hs))
	if m > sent && t.h2.AppendData(s.hs, buf[sent:m], false) {
		s.early = int16(m) //nolint:gosec // at most maxEarly
		s.AddSent(m - sent)
		t.Touch()
	}
	if int(s.early) < n {
		s.sock.Note(poll.Readable) // the rest waits for the window, or the answer
	}
}

// passed takes what was sent early out of the application's socket. It reports whether the
// stream goes on.
func (s *Stream) passed() bool {
	s.eager = false
	for s.early > 0 {
		n, err := poll.Skip(s.sock.FD(), int(s.early))
		if n == 0 || err != nil { // it was reset, which took them away
			s.early = 0
			s.appGone(err)
			return false
		}
		s.early -= int16(n) //nolint:gosec // at most early
	}
	return true
}
