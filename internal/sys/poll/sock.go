package poll

import "golang.org/x/sys/unix"

// Sock is a connected stream socket that a loop watches, with what edge-triggered
// events leave to their handler: an event stays true until a system call says
// otherwise. The owner is the Handler, and begins its Ready with Note.
//
// A write that fails breaks the socket: nothing more is written. What its peer sent
// before may still be in the kernel, so reading goes on, and ends with the error of
// that write instead of an end of stream.
//
// A Sock owns its descriptor from Watch until Close, Reset or Detach. The zero value
// watches nothing.
type Sock struct {
	reg   Registration
	out   Queue
	loop  *Loop
	errno uint16 // of the first call that failed

	readable, writable bool
	// short: a short read does not mean that the receive queue is empty. An end, an
	// error or an urgent byte stops reads early.
	short  bool
	urgent bool
	failed bool
}

// Init lets bytes be queued before there is a descriptor.
func (s *Sock) Init(l *Loop) { s.loop, s.reg.fd = l, -1 }

// Watch takes over fd, a connected and non-blocking socket. h gets its events. On
// error fd stays the caller's. The socket counts as writable until a write says
// otherwise.
func (s *Sock) Watch(l *Loop, fd int, h Handler) error {
	if err := l.AddTo(&s.reg, fd, h); err != nil {
		return err
	}
	s.loop, s.writable = l, true
	return nil
}

// Note remembers events.
func (s *Sock) Note(ev Events) {
	if ev&Writable != 0 {
		s.writable = true
	}
	if ev&(Readable|ReadHup|Hangup|Failed|Urgent) != 0 {
		s.readable = true
	}
	if ev&(ReadHup|Hangup|Failed|Urgent) != 0 {
		s.short = true
	}
	if ev&Urgent != 0 {
		s.urgent = true
	}
	if ev&Failed != 0 {
		s.failed = true
	}
}

// FD returns the descriptor, which stays the Sock's; -1 without one.
func (s *Sock) FD() int {
	if !s.Active() {
		return -1
	}
	return s.reg.fd
}

// Active reports whether the Sock has a descriptor.
func (s *Sock) Active() bool { return s.reg.Active() }

// Readable reports whether Read may have something: bytes, the end or an error.
func (s *Sock) Readable() bool { return s.readable }

// Writable reports whether Write may take something.
func (s *Sock) Writable() bool { return s.writable && s.errno == 0 }

// Urgent reports whether the peer has sent an urgent byte. Reads stop there once,
// and splices do not pass it.
func (s *Sock) Urgent() bool { return s.urgent }

// Failed reports whether the kernel has an error for the socket, or had: its peer
// has reset the connection, or was given up. After the peer's end of stream reads do
// not return it.
func (s *Sock) Failed() bool { return s.failed || s.errno != 0 }

// Err returns the error that broke the socket, nil without one.
func (s *Sock) Err() error {
	if s.errno == 0 {
		return nil
	}
	return unix.Errno(s.errno)
}

// Broken reports whether a call has failed.
func (s *Sock) Broken() bool { return s.errno != 0 }

// Again has the owner's Ready called with ev in the next turn.
func (s *Sock) Again(ev Events) { s.reg.Again(ev) }

// Read reads, as the function Read does. On a socket that is broken the error of
// the failed write stands in for the end of the stream.
func (s *Sock) Read(p []byte) (int, error) {
	n, err := Read(s.reg.fd, p)
	return s.noteBytes(n, len(p), err)
}

// noteBytes notes what a read for wanted bytes has returned.
func (s *Sock) noteBytes(n, wanted int, err error) (int, error) {
	if n > 0 && err == nil {
		if n < wanted && !s.short {
			s.readable = false // a short read of a stream socket: dry
		}
		return n, nil
	}
	return n, s.noteRead(err)
}

// MaxPieces is how many pieces ReadPieces takes.
const MaxPieces = 64

// ReadPieces is Read into several pieces, one after the other. None of them may be
// empty; those beyond MaxPieces are not used.
func (s *Sock) ReadPieces(pieces [][]byte) (int, error) {
	var vec [MaxPieces]unix.Iovec
	room, k := 0, 0
	for _, p := range pieces[:min(len(pieces), MaxPieces)] {
		vec[k].Base = &p[0]
		vec[k].SetLen(len(p))
		room += len(p)
		k++
	}
	n, err := readv(s.reg.fd, vec[:k])
	return s.noteBytes(n, room, err)
}

// Fill is Read into a pipe.
func (s *Sock) Fill(p *Pipe) (int, error) {
	n, err := p.Fill(s.reg.fd)
	if n > 0 && err == nil {
		return n, nil
	}
	return n, s.noteRead(err)
}

// noteRead notes that a read returned nothing.
func (s *Sock) noteRead(err error) error {
	s.readable = false
	if err != nil && err != Again { //nolint:errorlint // a system call's own
		s.fail(err)
		return err
	}
	if s.errno != 0 {
		return s.Err()
	}
	return err
}

// Write writes, as the function Write does, unless the socket is known to have no
// room.
func (s *Sock) Write(p []byte) (int, error) {
	if err := s.writeError(); err != nil {
		return 0, err
	}
	n, err := Write(s.reg.fd, p)
	return n, s.noteWrite(n, len(p), err)
}

// Drain is Write from a pipe.
func (s *Sock) Drain(p *Pipe) (int, error) {
	if err := s.writeError(); err != nil {
		return 0, err
	}
	n, err := p.Drain(s.reg.fd)
	return n, s.noteWrite(n, n, err)
}

func (s *Sock) writeError() error {
	switch {
	case s.errno != 0:
		return s.Err()
	case !s.writable:
		return Again
	}
	return nil
}

func (s *Sock) noteWrite(n, wanted int, err error) error {
	if err == nil {
		s.writable = n == wanted
		return nil
	}
	s.writable = false
	if err != Again { //nolint:errorlint // a system call's own
		s.fail(err)
		s.readable = true // reading tells what is left
	}
	return err
}

func (s *Sock) fail(err error) {
	if e, ok := err.(unix.Errno); ok && s.errno == 0 { //nolint:errorlint // a system call's own
		s.errno = uint16(e)
	}
	s.short = true
}

// Queued is how many bytes wait for room in the socket.
func (s *Sock) Queued() int { return s.out.Len() }

// Queue has p wait for Flush. The bytes are copied. A broken socket drops them.
func (s *Sock) Queue(p []byte) {
	if s.loop != nil && s.errno == 0 {
		s.out.Append(s.loop, p)
	}
}

// QueueFirst is Queue in front of what waits already.
func (s *Sock) QueueFirst(p []byte) {
	var q Queue
	q.Append(s.loop, p)
	for s.out.Len() > 0 {
		b := s.out.Front()
		q.Append(s.loop, b)
		s.out.Discard(s.loop, len(b))
	}
	s.out = q
}

// TakeQueue returns what waits, which the Sock has no more.
func (s *Sock) TakeQueue() Queue {
	q := s.out
	s.out = Queue{}
	return q
}

// DropQueue drops what waits.
func (s *Sock) DropQueue() { s.out.Discard(s.loop, s.out.Len()) }

// Send writes what waits and then p, in one call where possible, and queues what
// the socket does not take. The error is that of a broken socket.
func (s *Sock) Send(p []byte) error {
	if s.loop == nil || s.errno != 0 {
		return s.Err()
	}
	n := 0
	if s.writable {
		waiting := s.out.Len()
		sent, tried, err := s.out.writeWith(s.reg.fd, p)
		if err = s.noteWrite(sent, tried, err); s.errno != 0 {
			return err
		}
		s.out.Discard(s.loop, min(sent, waiting))
		n = max(sent-waiting, 0)
	}
	if n < len(p) {
		s.out.Append(s.loop, p[n:])
	}
	return nil
}

// Flush writes what waits, as far as the socket takes it. The error is that of a
// broken socket.
func (s *Sock) Flush() error {
	for s.out.Len() > 0 && s.Writable() {
		n, tried, err := s.out.writeWith(s.reg.fd, nil)
		if s.noteWrite(n, tried, err) == nil {
			s.out.Discard(s.loop, n)
		}
	}
	return s.Err()
}

// ShutdownWrite sends the end of the stream. An error means that the peer has reset
// the connection, which reading tells.
func (s *Sock) ShutdownWrite() { _ = ShutdownWrite(s.reg.fd) }

// Close closes the socket. Its peer gets what was written, and the end of the
// stream; what is queued is lost.
func (s *Sock) Close() {
	if s.Active() {
		s.drop()
		s.reg.Close()
	}
}

// Reset closes the socket so that its peer gets a reset.
func (s *Sock) Reset() {
	if s.Active() {
		SetReset(s.reg.fd)
		s.Close()
	}
}

// Detach stops watching and returns the descriptor, which is the caller's again; -1
// without one. What is queued is lost.
func (s *Sock) Detach() int {
	if !s.Active() {
		return -1
	}
	s.drop()
	fd := s.reg.fd
	s.reg.Remove()
	return fd
}

func (s *Sock) drop() {
	s.DropQueue()
	s.loop, s.readable, s.writable = nil, false, false
}

// maxVec is how many pieces one call writes: the chunks of a queue that is
// somewhat longer than what its owner lets it hold, and one piece more.
const maxVec = 8

// writeWith writes what is in the queue and then p to a socket, in one call, and
// discards nothing. A long queue does not fit one call: tried is what that call was
// given, of which the socket took n. The error is Write's.
func (q *Queue) writeWith(fd int, p []byte) (n, tried int, err error) {
	switch {
	case q.head == nil:
		n, err = Write(fd, p)
		return n, len(p), err
	case q.head.next == nil && len(p) == 0:
		n, err = Write(fd, q.Front())
		return n, q.n, err
	}
	var vec [maxVec]unix.Iovec
	k := 0
	add := func(b []byte) {
		vec[k].Base = &b[0]
		vec[k].SetLen(len(b))
		tried += len(b)
		k++
	}
	c := q.head
	for ; c != nil && k < maxVec; c = c.next {
		add(c.b[c.r:c.w])
	}
	if c == nil && k < maxVec && len(p) > 0 {
		add(p)
	}
	n, err = writev(fd, vec[:k])
	return n, tried, err
}
