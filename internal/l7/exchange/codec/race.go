//go:build race

package codec

// poison has streams that were released never be used again, and every use of one end the
// program: a test under the race detector finds a reference that was kept too long.
const poison = true

// check is called by what uses a stream: its user, or its connection.
func (s *h2Stream) check(user bool) {
	if s.c == nil || user && s.released {
		panic("use of a stream that was released")
	}
}
