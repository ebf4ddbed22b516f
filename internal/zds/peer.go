package zds

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/seqpacket"
)

// errGone tells that the proxy went away before it answered.
var errGone = errors.New("ztunnel disconnected")

// errOutOfTurn ends a conversation in which no answer can be told from the next.
var errOutOfTurn = errors.New("ztunnel spoke without having been asked")

// peer is one connected proxy. One goroutine asks and waits for the answer,
// another reads, so that the end of the connection, and a proxy that speaks out
// of turn, are noticed at once.
type peer struct {
	conn    *seqpacket.Conn
	in      chan packet
	jobs    chan job
	catchUp chan struct{}
	gone    chan struct{} // closed with the conversation

	// served is what the proxy acknowledged, and in which namespace; guarded by
	// the server's lock.
	served map[string]netns.ID
	// told is what was named to the proxy, whatever it answered; guarded by the
	// server's lock.
	told map[string]bool
}

type packet struct {
	refusal string
	err     error
}

// job is a workload to add or to delete on one proxy.
type job struct {
	uid  string
	del  bool
	done chan error
}

func newPeer(conn *seqpacket.Conn) *peer {
	return &peer{
		conn: conn, in: make(chan packet), jobs: make(chan job), catchUp: make(chan struct{}, 1),
		gone: make(chan struct{}), served: map[string]netns.ID{}, told: map[string]bool{},
	}
}

// do has the peer's goroutine carry out a job, and waits for the answer.
func (p *peer) do(ctx context.Context, j job) error {
	j.done = make(chan error, 1)
	select {
	case p.jobs <- j:
	case <-p.gone:
		return errGone
	case <-ctx.Done():
		return fmt.Errorf("waiting for ztunnel: %w", ctx.Err())
	}
	// Once taken, a job is answered within Deadline.
	return <-j.done
}

// ask sends one message and waits for its acknowledgement. An error ends the
// conversation; a refusal does not.
func (p *peer) ask(message []byte, file *os.File) (refusal string, err error) {
	select {
	case in := <-p.in:
		return "", errors.Join(errOutOfTurn, in.err)
	default:
	}
	if err := p.conn.Send(message, file, time.Now().Add(Deadline)); err != nil {
		return "", err
	}
	timeout := time.NewTimer(Deadline)
	defer timeout.Stop()
	select {
	case in := <-p.in:
		return in.refusal, in.err
	case <-timeout.C:
		return "", fmt.Errorf("ztunnel did not answer within %s", Deadline)
	}
}

// read passes on what the proxy says, until it says no more.
func (p *peer) read() {
	buf := make([]byte, 4*maxPacket)
	for {
		var in packet
		n, files, err := p.conn.Receive(buf, time.Time{})
		if err == nil {
			in.refusal, err = parseAck(buf[:n], len(files))
			closeFiles(files)
		}
		in.err = err
		select {
		case p.in <- in:
		case <-p.gone:
			return
		}
		if err != nil {
			return
		}
	}
}
