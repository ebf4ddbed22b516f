// Package poll is the event loop: many non-blocking sockets served by one
// goroutine, without locks between them and without a goroutine for each.
//
// A loop with nothing to do sleeps in epoll_wait, on a thread that it keeps: the
// kernel wakes it with one switch, and what it was woken for is at hand. The way
// through the Go runtime's poller costs several more: the thread that polls, an
// idle one woken to look for other work, the loop's own look at its epoll
// instance. While it sleeps it keeps its processor (in Go's sense) for as long as
// nobody else needs it, which the runtime notices late; so a program has one
// processor more than loops, and loops start goroutines with Loop.Go.
//
// Descriptors are watched edge-triggered, for everything, once: what was ready
// stays ready until the handler has seen EAGAIN (or, on a stream, a short
// transfer). So a half-closed socket whose other half nobody wants cannot spin,
// and pausing a socket costs no system call.
package poll

import (
	"container/heap"
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// BufferSize is the length of Loop.Buffer in bytes: large
	// enough that a bulk transfer is limited by the sockets and not by turns.
	BufferSize = 512 << 10
	// HeaderRoom is how many bytes lie in front of Loop.Buffer for protocol
	// headers (an HTTP/2 frame header needs 9).
	HeaderRoom = 64
	// tailRoom lies behind it, for a byte that a record layer puts after data.
	tailRoom = 64

	// maxEvents is how many descriptors one turn serves. Larger turns make
	// larger batches and longer waits for those at the end.
	maxEvents = 256
	// yieldTurns is how many busy turns a loop takes before it lets other
	// goroutines of its processor run: a handshake must not wait for the 10 ms
	// of the scheduler's own preemption.
	yieldTurns = 8
)

// ErrClosed is returned by a Loop that was closed.
var ErrClosed = errors.New("event loop is closed")

// Events is what has happened on a descriptor since its handler last ran.
type Events uint32

// Members of Events.
const (
	Readable Events = unix.EPOLLIN    // data, a connection, or end of stream
	Writable Events = unix.EPOLLOUT   // room in the send buffer, or connected
	ReadHup  Events = unix.EPOLLRDHUP // the peer has sent its end of stream
	Hangup   Events = unix.EPOLLHUP   // both directions are over
	Failed   Events = unix.EPOLLERR   // an error is pending on the socket
	Urgent   Events = unix.EPOLLPRI   // an urgent byte is in the receive queue, where reads stop once
)

// Handler is told about its descriptor, on the loop's goroutine.
type Handler interface {
	// Ready reports what became ready. It is an edge: the handler must remember
	// it until a system call says otherwise.
	Ready(ev Events)
}

// Registration is a descriptor watched by a Loop. Its methods are called on
// the loop's goroutine.
type Registration struct {
	loop    *Loop
	h       Handler
	fd      int
	slot    int32
	gen     int32 // tells an event of this registration from one of a predecessor
	pending Events
	again   bool
}

// Loop serves descriptors, timers and posted functions in turns, all on the
// goroutine that called Run. Except for Post, Close, Done, Turns and Index, methods may only be called
// on that goroutine: from handlers, timers and posted functions.
type Loop struct {
	index int
	epfd  int
	wakeR int

	mu     sync.Mutex // guards posted, closed
	posted []func()
	closed bool
	awake  atomic.Bool // the loop will look at posted before it sleeps
	done   chan struct{}

	restAccepting bool // see RestAccepting

	running []func() // posted, being run
	slots   []*Registration
	free    []int32
	gens    []int32
	events  [maxEvents]unix.EpollEvent
	ready   int
	waitErr error

	started         bool // goroutines that may wait for this loop's processor
	turns           atomic.Uint64
	again, againRun []*Registration
	turnEnd         []TurnEnder
	nextEnd         []TurnEnder // turnEnd of the next turn
	lastEnd         []TurnEnder // after those of turnEnd
	now             time.Time
	timers          timerHeap
	wheel           wheel
	buffer          []byte
	pipes           []Pipe
	piped           int // pipes that are open
	chunks          [len(chunkSizes)]chunkList
	values          map[any]any
	trimming        bool
	watched         bool   // the next turn calls worked
	worked          func() // of its Group
}

// NewLoop makes a loop that does nothing until Run, which releases it at its
// end.
func NewLoop() (*Loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("creating an epoll instance: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		_ = unix.Close(epfd)
		return nil, fmt.Errorf("creating an eventfd: %w", err)
	}
	l := &Loop{epfd: epfd, wakeR: wake, done: make(chan struct{}), now: time.Now()}
	// Slot 0 is the eventfd: it is never read, its edges are enough.
	l.slots, l.gens = []*Registration{nil}, []int32{0}
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET}
	if err := unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, wake, &ev); err != nil {
		_ = unix.Close(epfd)
		_ = unix.Close(wake)
		return nil, fmt.Errorf("watching the eventfd: %w", err)
	}
	return l, nil
}

// Index is the loop's number in its Group, 0 outside of one.
func (l *Loop) Index() int { return l.index }

// Now is the time at which the turn began: cheap, and the same for everything
// in one turn.
func (l *Loop) Now() time.Time { return l.now }

// Turns is how many turns the loop has taken: one that does nothing takes none.
// Any goroutine may ask.
func (l *Loop) Turns() uint64 { return l.turns.Load() }

// Buffer is BufferSize bytes shared by everything on the loop, with HeaderRoom
// bytes in front of it (see Framed). It holds nothing from one handler's call
// to the next.
func (l *Loop) Buffer() []byte {
	return l.Framed()[HeaderRoom : HeaderRoom+BufferSize]
}

// Framed is Buffer with the room in front and a little behind.
func (l *Loop) Framed() []byte {
	if l.buffer == nil {
		l.buffer = make([]byte, HeaderRoom+BufferSize+tailRoom)
	}
	return l.buffer
}

// Value returns what was stored on the loop under key, after storing fresh()
// if there was nothing: per-loop state of other packages, such as buffer
// pools. Keys are compared like map keys.
func (l *Loop) Value(key any, fresh func() any) any {
	if v, ok := l.values[key]; ok {
		return v
	}
	if l.values == nil {
		l.values = map[any]any{}
	}
	v := fresh()
	l.values[key] = v
	return v
}

// Post has fn run on the loop's goroutine, never inline, in the order of the
// Posts of one goroutine. It may be called from any goroutine and never
// blocks. After Close fn is not run and Post returns false.
func (l *Loop) Post(fn func()) bool {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return false
	}
	l.posted = append(l.posted, fn)
	l.mu.Unlock()
	if !l.awake.Load() {
		l.wake()
	}
	return true
}

func (l *Loop) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed && l.wakeR < 0 {
		return
	}
	one := [8]byte{1}
	_, _ = unix.Write(l.wakeR, one[:]) // EAGAIN: it is awake already
}

// Go starts fn on a goroutine of its own. It is called on the loop's goroutine,
// which lets others run before it sleeps.
func (l *Loop) Go(fn func()) {
	l.started = true
	go fn()
}

// Close makes Run return after the current turn; Done tells when. Descriptors
// that are still registered stay open and are their owners'; posted functions
// that did not run yet will not. It may be called from any goroutine.
func (l *Loop) Close() {
	l.mu.Lock()
	was := l.closed
	l.closed = true
	l.mu.Unlock()
	if !was {
		l.wake()
	}
}

// Done is closed when Run has returned.
func (l *Loop) Done() <-chan struct{} { return l.done }

// Run serves the loop until Close. It is called once.
func (l *Loop) Run() {
	defer l.release()
	busy := 0
	for {
		slept := l.wait()
		if l.waitErr != nil {
			return
		}
		l.now = time.Now()
		if !l.turn() {
			return
		}
		if slept {
			busy = 0
		} else if busy++; busy >= yieldTurns {
			busy = 0
			runtime.Gosched()
		}
	}
}

// wait fills events, sleeping when there is nothing to do. It reports whether
// it may have slept.
func (l *Loop) wait() bool {
	if l.started {
		l.started = false
		runtime.Gosched()
	}
	if len(l.again) > 0 || len(l.turnEnd) > 0 || !l.mayRest() {
		l.collectNow()
		return false
	}
	for {
		n, err := epollWait(l.epfd, l.events[:], l.rest())
		if err == unix.EINTR { //nolint:errorlint // a system call's own
			continue
		}
		l.ready = n
		if err != nil {
			l.waitErr = fmt.Errorf("epoll_wait: %w", err)
		}
		break
	}
	l.awake.Store(true)
	return true
}

// rest is for how many milliseconds the loop may sleep, rounded up, so that the
// earliest timer or deadline is due then; -1 is for ever.
func (l *Loop) rest() int {
	next, some := l.wheel.next()
	if len(l.timers) > 0 && (!some || l.timers[0].at.Before(next)) {
		next, some = l.timers[0].at, true
	}
	if !some {
		return -1
	}
	d := max(time.Until(next), 0)
	return int(min((d+time.Millisecond-1)/time.Millisecond, math.MaxInt32))
}

// mayRest announces that the loop is about to sleep, and takes it back when
// something was posted before the announcement could be seen.
func (l *Loop) mayRest() bool {
	l.awake.Store(false)
	l.mu.Lock()
	idle := len(l.posted) == 0 && !l.closed
	l.mu.Unlock()
	if !idle {
		l.awake.Store(true)
	}
	return idle
}

func (l *Loop) collectNow() {
	for {
		n, err := epollPoll(l.epfd, l.events[:])
		if err == unix.EINTR { //nolint:errorlint // a system call's own
			continue
		}
		if err != nil {
			l.waitErr = fmt.Errorf("epoll_wait: %w", err)
			n = 0
		}
		l.ready = n
		return
	}
}

// turn serves everything that is ready once. It returns false when the loop
// was closed.
func (l *Loop) turn() bool {
	l.turns.Add(1)
	if l.watched {
		l.watched = false
		l.worked()
	}
	for i := range l.ready {
		ev := &l.events[i]
		slot, gen := ev.Fd, ev.Pad
		r := l.slots[slot]
		if r == nil || r.gen != gen {
			continue // closed earlier in this turn, or the eventfd
		}
		r.h.Ready(Events(ev.Events))
	}
	l.ready = 0
	l.again, l.againRun = l.againRun[:0], l.again
	for i, r := range l.againRun {
		l.againRun[i] = nil
		r.again = false
		if r.loop != nil && r.pending != 0 {
			ev := r.pending
			r.pending = 0
			r.h.Ready(ev)
		}
	}
	l.fireTimers()
	l.wheel.advance(l.now)
	open := l.runPosted()
	l.endTurn()
	if l.trimming && len(l.again) == 0 && len(l.turnEnd) == 0 {
		l.trimming = false
		l.trim()
	}
	return open
}

func (l *Loop) runPosted() bool {
	l.mu.Lock()
	l.posted, l.running = l.running[:0], l.posted
	closed := l.closed
	l.mu.Unlock()
	if closed {
		return false
	}
	for i, fn := range l.running {
		l.running[i] = nil
		fn()
	}
	return true
}

func (l *Loop) endTurn() {
	// What runs here may ask for more of it: a flush that closes a tunnel,
	// whose streams write elsewhere.
	for i, j := 0, 0; i < len(l.turnEnd) || j < len(l.lastEnd); {
		from, k := l.turnEnd, &i
		if i == len(l.turnEnd) {
			from, k = l.lastEnd, &j
		}
		e := from[*k]
		from[*k] = nil
		*k++
		e.TurnEnd()
	}
	l.turnEnd, l.nextEnd, l.lastEnd = l.nextEnd, l.turnEnd[:0], l.lastEnd[:0]
}

func (l *Loop) release() {
	l.mu.Lock()
	l.closed = true
	l.posted = nil
	_ = unix.Close(l.wakeR)
	l.wakeR = -1
	l.mu.Unlock()
	_ = unix.Close(l.epfd)
	for _, p := range l.pipes {
		p.close()
	}
	l.pipes = nil
	close(l.done)
}

// TurnEnder is called at the end of a turn.
type TurnEnder interface{ TurnEnd() }

// EndTurnOf has e called once, after everything else of this turn: to write what has
// gathered. It allocates nothing for a pointer.
func (l *Loop) EndTurnOf(e TurnEnder) { l.turnEnd = append(l.turnEnd, e) }

// FlushTurnOf has e called after all those of EndTurnOf: to send what they have
// written.
func (l *Loop) FlushTurnOf(e TurnEnder) { l.lastEnd = append(l.lastEnd, e) }

// EndNextTurnOf has e called at the end of the next turn, which follows at once: for
// one that has done its share of this turn.
func (l *Loop) EndNextTurnOf(e TurnEnder) { l.nextEnd = append(l.nextEnd, e) }

// AtTurnEnd is EndTurnOf for a function.
func (l *Loop) AtTurnEnd(fn func()) { l.EndTurnOf(turnFunc(fn)) }

type turnFunc func()

// TurnEnd implements TurnEnder.
func (f turnFunc) TurnEnd() { f() }

// Add watches fd, a non-blocking descriptor, for everything. Its handler is
// told at once what is ready already, in the next turn. The descriptor stays
// the caller's, who removes the registration before closing it.
func (l *Loop) Add(fd int, h Handler) (*Registration, error) {
	return l.add(fd, h, everything)
}

func (l *Loop) add(fd int, h Handler, events uint32) (*Registration, error) {
	r := &Registration{}
	return r, l.addTo(r, fd, h, events)
}

// AddTo is Add with the caller's Registration, usually a field of the handler,
// which must be zero or removed.
func (l *Loop) AddTo(r *Registration, fd int, h Handler) error {
	return l.addTo(r, fd, h, everything)
}

// everything is what a descriptor is watched for.
const everything = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET

func (l *Loop) addTo(r *Registration, fd int, h Handler, events uint32) error {
	var slot int32
	if n := len(l.free); n > 0 {
		slot, l.free = l.free[n-1], l.free[:n-1]
	} else {
		slot = int32(len(l.slots))
		l.slots, l.gens = append(l.slots, nil), append(l.gens, 0)
	}
	l.gens[slot]++
	ev := unix.EpollEvent{Events: events, Fd: slot, Pad: l.gens[slot]}
	if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		l.free = append(l.free, slot)
		return fmt.Errorf("watching descriptor %d: %w", fd, err)
	}
	*r = Registration{loop: l, h: h, fd: fd, slot: slot, gen: l.gens[slot]}
	l.slots[slot] = r
	return nil
}

// Active reports whether the registration is in force.
func (r *Registration) Active() bool { return r.loop != nil }

// Remove stops watching. Events that were already collected are not delivered,
// also when the descriptor's number is used again in this turn. It does
// nothing the second time.
func (r *Registration) Remove() {
	l := r.loop
	if l == nil {
		return
	}
	_ = unix.EpollCtl(l.epfd, unix.EPOLL_CTL_DEL, r.fd, nil)
	r.forget()
}

func (r *Registration) forget() {
	l := r.loop
	l.slots[r.slot] = nil
	l.free = append(l.free, r.slot)
	r.loop, r.h, r.pending, r.fd = nil, nil, 0, -1
}

// Close stops watching and closes the descriptor, for which the kernel needs
// one call instead of two. The descriptor must not have been duplicated.
func (r *Registration) Close() {
	if r.loop == nil {
		return
	}
	fd := r.fd
	r.forget()
	closeFD(fd)
}

// Again has the handler called with ev in the next turn: for one that stopped
// before EAGAIN so that others get their share.
func (r *Registration) Again(ev Events) {
	if r.loop == nil {
		return
	}
	r.pending |= ev
	if !r.again {
		r.again = true
		r.loop.again = append(r.loop.again, r)
	}
}

// Timer is a function due on the loop.
type Timer struct {
	loop  *Loop
	at    time.Time
	fn    func()
	index int // in the heap; -1 when not in it
}

// AfterFunc has fn run on the loop after d. The timer may be stopped.
func (l *Loop) AfterFunc(d time.Duration, fn func()) *Timer {
	t := &Timer{loop: l, fn: fn, index: -1}
	t.Reset(d)
	return t
}

// Stop makes sure that the function does not run any more, unless Reset.
func (t *Timer) Stop() {
	if t != nil && t.index >= 0 {
		heap.Remove(&t.loop.timers, t.index)
	}
}

// Reset has the function run after d from now, and not when it was due before.
func (t *Timer) Reset(d time.Duration) {
	l := t.loop
	t.at = time.Now().Add(max(d, 0))
	if t.index >= 0 {
		heap.Fix(&l.timers, t.index)
	} else {
		heap.Push(&l.timers, t)
	}
}

func (l *Loop) fireTimers() {
	for len(l.timers) > 0 && !l.timers[0].at.After(l.now) {
		t := l.timers[0]
		heap.Pop(&l.timers)
		t.fn()
	}
}

type timerHeap []*Timer

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *timerHeap) Push(x any) {
	t := x.(*Timer)
	t.index = len(*h)
	*h = append(*h, t)
}
func (h *timerHeap) Pop() any {
	old := *h
	n := len(old) - 1
	t := old[n]
	old[n] = nil
	t.index = -1
	*h = old[:n]
	return t
}
