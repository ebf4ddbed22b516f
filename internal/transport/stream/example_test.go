package stream_test

import (
	"fmt"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
	"github.com/ambit-mesh/ambit/internal/transport/stream/streamtest"
)

// echo sends back what it gets. It reads no more while the peer takes nothing.
type echo struct {
	conn stream.Conn
	owed int // credit that is kept until there is room
}

func (e *echo) OnData(p []byte, end bool) {
	if e.conn.Write(p) {
		e.conn.Consumed(len(p))
	} else {
		e.owed += len(p)
	}
	if end {
		e.conn.CloseWrite()
	}
}

func (e *echo) OnWritable() {
	e.conn.Consumed(e.owed)
	e.owed = 0
}

func (e *echo) OnClose(why reason.Reason, _ error) { fmt.Println("echo closed:", why) }

// client prints what comes back.
type client struct {
	conn stream.Conn
	done chan struct{}
}

func (c *client) OnData(p []byte, end bool) {
	fmt.Printf("%q, end %t\n", p, end)
	c.conn.Consumed(len(p))
}

func (c *client) OnWritable() {}

func (c *client) OnClose(why reason.Reason, _ error) {
	fmt.Println("client closed:", why)
	close(c.done)
}

// A Sink that echoes, and its peer, on a pair of streams in memory.
func Example() {
	g, err := poll.NewGroup(1)
	if err != nil {
		panic(err)
	}
	defer g.Close()
	done := make(chan struct{})
	l := g.Loop(0)
	l.Post(func() {
		a, b := streamtest.Pair(l, streamtest.Options{})
		b.Bind(&echo{conn: b})
		a.Bind(&client{a, done})
		a.Write([]byte("hello"))
		a.CloseWrite()
	})
	<-done
	// Output:
	// "hello", end true
	// echo closed: OK
	// client closed: OK
}
