package poll

import (
	"fmt"
	"runtime"
)

// Group is a fixed set of running loops.
type Group struct {
	loops  []*Loop
	failed chan error
	worked chan struct{}
}

// NewGroup starts n loops; one for each processor Go may use when n is 0 or
// less.
func NewGroup(n int) (*Group, error) {
	if n <= 0 {
		n = runtime.GOMAXPROCS(0)
	}
	g := &Group{loops: make([]*Loop, 0, n), failed: make(chan error, n), worked: make(chan struct{}, 1)}
	for i := range n {
		l, err := NewLoop()
		if err != nil {
			g.Close()
			return nil, fmt.Errorf("starting event loop %d of %d: %w", i+1, n, err)
		}
		l.index, l.worked = i, g.work
		g.loops = append(g.loops, l)
		go func() {
			l.Run()
			if l.waitErr != nil {
				g.failed <- fmt.Errorf("event loop %d has ended: %w", i, l.waitErr)
			}
		}()
	}
	return g, nil
}

// Failed receives the error of every loop that ends by itself. Its descriptors
// are served no more, and the group still assigns new ones to it: the program
// should end.
func (g *Group) Failed() <-chan error { return g.failed }

// Len is how many loops there are.
func (g *Group) Len() int { return len(g.loops) }

// Pick returns the same loop for the same hash.
func (g *Group) Pick(hash uint64) *Loop { return g.loops[hash%uint64(len(g.loops))] }

// Loop returns loop number i, 0 ≤ i < Len.
func (g *Group) Loop(i int) *Loop { return g.loops[i] }

// Close ends every loop and waits for them. It must not be called on one.
func (g *Group) Close() {
	for _, l := range g.loops {
		l.Close()
	}
	for _, l := range g.loops {
		<-l.done
	}
}
