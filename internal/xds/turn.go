package xds

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// joiners is how many node proxies are heard at a time when they connect:
	// one that comes back lists all that it has, which is as much as the mesh's
	// names, and after a restart of the control plane all come back at once.
	joiners = 16
	// joinTime is how long one may keep others waiting before it has said
	// anything, joinPause after: it says everything in one go.
	joinTime  = 2 * time.Second
	joinPause = 250 * time.Millisecond

	// otherJoiners is the same for other clients, and otherAccount for those of
	// one account: the rest stays free for other accounts.
	otherJoiners = 8
	otherAccount = 2
	// otherTime is how long one of them may take for all that it has to say.
	// What it sends is kept in memory meanwhile.
	otherTime = 30 * time.Second

	// silence bounds how long a client says nothing after it has opened its
	// stream. Clients send their first request with it.
	silence = 10 * time.Second
)

var (
	errSilent = status.Error(codes.DeadlineExceeded, "no request came")
	errSlow   = status.Error(codes.DeadlineExceeded, "the first request did not come in time")
)

// turn is a client's turn to say what it has. It ends by itself.
type turn struct {
	end   func()
	timer *time.Timer
	pause time.Duration // after a request; 0 keeps the turn
}

// admit waits until a client has begun to speak, and then for its turn. A client
// that sends nothing keeps no other client waiting.
func (s *Server) admit(ctx context.Context, c *client) (*turn, error) {
	if s.opts.Heard != nil {
		if err := s.hear(ctx); err != nil {
			return nil, err
		}
	}
	queue := s.joining
	if !c.caller.NodeProxy {
		queue = s.joiningOthers
	}
	end, err := queue.Take(ctx, c.caller.Account)
	if err != nil {
		return nil, status.FromContextError(err).Err()
	}
	if c.caller.NodeProxy {
		return &turn{end: end, timer: time.AfterFunc(joinTime, end), pause: joinPause}, nil
	}
	t := &turn{end: func() {
		end()
		if s.opts.Settled != nil {
			s.opts.Settled(ctx)
		}
	}}
	t.timer = time.AfterFunc(otherTime, func() {
		if !c.spoke.Load() {
			c.stop(errSlow)
		}
		t.end()
	})
	return t, nil
}

// hear waits for the first bytes of a client.
func (s *Server) hear(ctx context.Context) error {
	heard := s.opts.Heard(ctx)
	if heard == nil {
		return nil
	}
	timer := time.NewTimer(silence)
	defer timer.Stop()
	select {
	case <-heard:
		return nil
	case <-timer.C:
		return errSilent
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

// took is called with every request. Who answers has said all before.
func (t *turn) took(req *request) {
	switch {
	case req.GetResponseNonce() != "":
		t.timer.Stop()
		t.end()
	case t.pause > 0:
		t.timer.Reset(t.pause)
	}
}
