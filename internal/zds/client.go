package zds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/seqpacket"
)

// Pauses between attempts to reach the agent; each is twice the one before.
// They are Istio's.
const (
	firstPause = 10 * time.Millisecond
	lastPause  = 15 * time.Second
)

// ClientConfig is what a proxy needs to meet its node's agent.
type ClientConfig struct {
	Path    string // of the agent's unix socket
	Handler Handler
	Logger  *slog.Logger
}

// Client keeps a proxy in conversation with the agent of its node.
type Client struct {
	cfg ClientConfig
}

// NewClient makes a client. It does nothing before Run.
func NewClient(cfg ClientConfig) *Client { return &Client{cfg: cfg} }

// Run connects, serves requests, and connects again when the connection is
// lost, until the context ends. What is served stays served without an agent.
func (c *Client) Run(ctx context.Context) error {
	pause := firstPause
	for ctx.Err() == nil {
		synced, err := c.once(ctx)
		if synced {
			c.cfg.Handler.Connected(false)
			pause = firstPause
		}
		if ctx.Err() == nil {
			c.cfg.Logger.Warn("no connection to the node agent, trying again", "socket", c.cfg.Path, "in", pause, "error", err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, lastPause)
	}
	return nil
}

// once is one connection. It reports whether the agent got to the end of its
// first list.
func (c *Client) once(ctx context.Context) (synced bool, err error) {
	dialing, cancel := context.WithTimeout(ctx, Deadline)
	conn, err := seqpacket.Dial(dialing, c.cfg.Path)
	cancel()
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := conn.Send(encodeHello(), nil, time.Now().Add(Deadline)); err != nil {
		return false, fmt.Errorf("saying hello: %w", err)
	}
	s := session{handler: c.cfg.Handler, named: map[string]bool{}}
	buf := make([]byte, 4*maxPacket)
	for {
		n, files, err := conn.Receive(buf, time.Time{})
		if errors.Is(err, io.EOF) {
			return s.synced, errors.New("the agent closed the connection")
		}
		var refusal, broken error
		if err != nil {
			broken = err
		} else {
			refusal, broken = s.serve(ctx, buf[:n], files)
		}
		answer := refusal
		if broken != nil {
			answer = broken
		}
		if err := conn.Send(encodeAck(answer), nil, time.Now().Add(Deadline)); err != nil {
			return s.synced, fmt.Errorf("acknowledging: %w", errors.Join(broken, err))
		}
		if broken != nil {
			return s.synced, broken
		}
		if refusal != nil {
			c.cfg.Logger.Warn("could not do what the node agent asked for", "error", refusal)
		}
	}
}

// session is the state of one connection: the list that the agent is sending,
// until it has ended.
type session struct {
	handler Handler
	named   map[string]bool
	synced  bool
}

// serve does what one packet asks for and owns the files that came with it.
// A refusal is the handler's; a broken conversation cannot go on.
func (s *session) serve(ctx context.Context, p []byte, files []*os.File) (refusal, broken error) {
	req, err := parseRequest(p, len(files))
	if err != nil {
		closeFiles(files)
		return nil, fmt.Errorf("message from the node agent: %w", err)
	}
	// The agent waits no longer than this for the answer.
	ctx, cancel := context.WithTimeout(ctx, Deadline)
	defer cancel()
	switch {
	case req.add != nil:
		if !s.synced {
			s.named[req.add.uid] = true
		}
		ns, err := netns.FromFile(files[0])
		if err != nil {
			closeFiles(files)
			return fmt.Errorf("workload %s: %w", req.add.uid, err), nil
		}
		return s.handler.Add(ctx, req.add.uid, req.add.info, ns), nil
	case req.del != "":
		delete(s.named, req.del)
		return s.handler.Del(ctx, req.del), nil
	case req.keep != "":
		if s.synced {
			return nil, errKeepAfterSync
		}
		s.named[req.keep] = true
	case req.snapshot && !s.synced:
		s.synced = true
		s.handler.Snapshot(ctx, s.named)
		s.named = nil
		s.handler.Connected(true)
	}
	return nil, nil
}
