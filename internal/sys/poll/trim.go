package poll

// Trimmer is what a Value has that holds memory only to use it again.
type Trimmer interface {
	// Trim drops that memory. It is called between two turns.
	Trim()
}

// Trim has the loop drop what it holds only to use it again: its buffers, free chunks of
// queues, and idle pipes. It does so when no turn is under way, and makes them anew when they
// are needed. It may be called from any goroutine.
func (l *Loop) Trim() {
	l.Post(func() { l.trimming = true })
}

func (l *Loop) trim() {
	l.buffer = nil
	l.chunks = [len(chunkSizes)]chunkList{}
	for _, p := range l.pipes {
		p.close()
	}
	l.piped -= len(l.pipes)
	l.pipes = nil
	for _, v := range l.values {
		if t, is := v.(Trimmer); is {
			t.Trim()
		}
	}
}

// Watch has Worked receive a value when a loop takes a turn after those that are under way.
func (g *Group) Watch() {
	for _, l := range g.loops {
		l.Post(func() { l.watched = true })
	}
}

// Worked receives a value when a loop has worked since Watch.
func (g *Group) Worked() <-chan struct{} { return g.worked }

func (g *Group) work() {
	select {
	case g.worked <- struct{}{}:
	default:
	}
}

// Trim trims all loops.
func (g *Group) Trim() {
	for _, l := range g.loops {
		l.Trim()
	}
}

// Turns is how many turns all loops have taken.
func (g *Group) Turns() (n uint64) {
	for _, l := range g.loops {
		n += l.Turns()
	}
	return n
}
