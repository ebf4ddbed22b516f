package zds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/seqpacket"
)

const (
	// acceptsPerSecond keeps a proxy that fails at once from occupying the
	// agent. It is Istio's.
	acceptsPerSecond = 5
	// maxPeers is more generations of a proxy than a node ever runs at once.
	maxPeers = 8
)

// Workload is a pod to be served in its namespace.
type Workload struct {
	UID  string
	Info Info
	NS   *netns.NS // stays the caller's
}

// ServerConfig is what the agent's end needs.
type ServerConfig struct {
	Path   string // where to make the unix socket
	Logger *slog.Logger
	// OnChange is called after a proxy has come, with everything it was told
	// acknowledged or refused, and after one has gone. It must not block.
	OnChange func()
}

// Server is the agent's end: it knows every workload of the node and tells the
// proxies.
type Server struct {
	cfg      ServerConfig
	listener *seqpacket.Listener

	mu      sync.Mutex
	entries map[string]*entry
	peers   []*peer // in the order they came; the last is the newest
}

// entry is a workload that proxies are to serve. Without a namespace it is one
// that is known to exist and could not be opened: it is to be kept.
type entry struct {
	info Info
	ns   *netns.NS
}

// Listen makes the socket. Proxies can connect from now on, and wait for Serve.
func Listen(cfg ServerConfig) (*Server, error) {
	l, err := seqpacket.Listen(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("listening for ztunnel on %s: %w", cfg.Path, err)
	}
	return &Server{cfg: cfg, listener: l, entries: map[string]*entry{}}, nil
}

// Serve talks to proxies until the context ends. What has been added by then is
// in the first list that a proxy gets; what is not in it, a proxy that has been
// serving stops to serve. So everything the node runs has to be known first.
func (s *Server) Serve(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { _ = s.listener.Close() })()
	limit := rate.NewLimiter(acceptsPerSecond, acceptsPerSecond)
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		if err := limit.Wait(ctx); err != nil {
			return nil
		}
		conn, err := s.listener.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			// Out of descriptors, most likely; the limiter is the pause.
			s.cfg.Logger.Error("cannot accept a ztunnel connection, trying again", "error", err)
			continue
		}
		wg.Go(func() { s.converse(ctx, conn) })
	}
}

// Close stops to listen and forgets all workloads. Proxies go on serving.
func (s *Server) Close() error {
	err := s.listener.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for uid, e := range s.entries {
		e.close()
		delete(s.entries, uid)
	}
	return err
}

// Connected is how many proxies are connected.
func (s *Server) Connected() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.peers)
}

// Served reports whether the newest proxy has acknowledged the workload.
func (s *Server) Served(uid string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.newest()
	e := s.entries[uid]
	return p != nil && e != nil && e.ns != nil && p.served[uid] == e.ns.ID()
}

// Add tells the newest proxy to serve a workload, and waits until it says that
// it does. Whether it does or not, the workload is in the list of every proxy
// that connects later, until Del. Fails with ErrNoProxy or a *RefusedError.
func (s *Server) Add(ctx context.Context, w Workload) error {
	if n := len(encodeAdd(w.UID, w.Info)); n > maxPacket {
		return fmt.Errorf("workload %q: its names need %d bytes, and ztunnel takes %d", w.UID, n, maxPacket)
	}
	if err := s.Register(w); err != nil {
		return err
	}
	s.mu.Lock()
	p := s.newest()
	if p != nil && p.served[w.UID] == w.NS.ID() {
		s.mu.Unlock()
		return nil
	}
	s.mu.Unlock()
	if p == nil {
		return ErrNoProxy
	}
	return p.do(ctx, job{uid: w.UID})
}

// Register puts a workload into the list without telling anyone yet.
func (s *Server) Register(w Workload) error {
	ns, err := w.NS.Dup()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.entries[w.UID]; old != nil {
		old.close()
	}
	s.entries[w.UID] = &entry{info: w.Info, ns: ns}
	return nil
}

// Keep makes sure that a proxy goes on serving a workload whose namespace the
// agent has not found (yet). It does nothing for one that was added.
func (s *Server) Keep(uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries[uid] == nil {
		s.entries[uid] = &entry{}
	}
}

// Del tells all proxies that have heard of a workload to stop serving it, and
// waits for their answers. A proxy that is gone has stopped.
func (s *Server) Del(ctx context.Context, uid string) error {
	s.mu.Lock()
	if e := s.entries[uid]; e != nil {
		e.close()
		delete(s.entries, uid)
	}
	var peers []*peer
	for _, p := range s.peers {
		if p.told[uid] {
			peers = append(peers, p)
		}
	}
	s.mu.Unlock()
	results := make(chan error, len(peers))
	for _, p := range peers {
		go func() { results <- p.do(ctx, job{uid: uid, del: true}) }()
	}
	var errs []error
	for range peers {
		if err := <-results; err != nil && !errors.Is(err, errGone) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// newest needs s.mu.
func (s *Server) newest() *peer {
	if len(s.peers) == 0 {
		return nil
	}
	return s.peers[len(s.peers)-1]
}

// converse is the life of one connection.
func (s *Server) converse(ctx context.Context, conn *seqpacket.Conn) {
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	p := newPeer(conn)
	defer close(p.gone)
	buf := make([]byte, maxPacket)
	n, files, err := conn.Receive(buf, time.Now().Add(Deadline))
	if err == nil {
		err = parseHello(buf[:n], len(files))
		closeFiles(files)
	}
	if err != nil {
		s.cfg.Logger.Warn("a connection to the ztunnel socket did not say hello", "error", err)
		return
	}
	uids, ok := s.join(p)
	if !ok {
		s.cfg.Logger.Error("too many ztunnel connections, refusing one more", "max", maxPeers)
		return
	}
	s.cfg.Logger.Info("ztunnel connected", "workloads", len(uids))
	go p.read()
	err = s.snapshot(p, uids)
	for err == nil {
		err = s.turn(ctx, p)
	}
	s.leave(p)
	if ctx.Err() == nil {
		s.cfg.Logger.Warn("ztunnel disconnected", "error", err)
		s.changed()
	}
}

// join makes p the newest, and takes the list of what is to be told to it in
// the same moment: what is added later comes as a job.
func (s *Server) join(p *peer) (uids []string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.peers) >= maxPeers {
		return nil, false
	}
	for uid := range s.entries {
		uids = append(uids, uid)
	}
	slices.Sort(uids)
	s.peers = append(s.peers, p)
	return uids, true
}

// leave makes the one before the newest again when the newest goes; it has
// missed what was added meanwhile.
func (s *Server) leave(p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wasNewest := s.newest() == p
	s.peers = slices.DeleteFunc(s.peers, func(q *peer) bool { return q == p })
	if n := s.newest(); wasNewest && n != nil {
		select {
		case n.catchUp <- struct{}{}:
		default:
		}
	}
}

func (s *Server) changed() {
	if s.cfg.OnChange != nil {
		s.cfg.OnChange()
	}
}

func (s *Server) snapshot(p *peer, uids []string) error {
	for _, uid := range uids {
		if err := s.tell(p, uid, true); err != nil {
			return err
		}
	}
	refusal, err := p.ask(encodeSnapshotSent(), nil)
	if err != nil {
		return fmt.Errorf("ending the list of workloads: %w", err)
	}
	if refusal != "" {
		return fmt.Errorf("ztunnel refused the list of workloads: %s", refusal)
	}
	s.changed()
	return nil
}

// turn waits for the next thing to do and does it.
func (s *Server) turn(ctx context.Context, p *peer) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case in := <-p.in:
		if in.err != nil {
			return in.err
		}
		return errOutOfTurn
	case <-p.catchUp:
		s.mu.Lock()
		var missing []string
		for uid, e := range s.entries {
			if e.ns != nil && p.served[uid] != e.ns.ID() {
				missing = append(missing, uid)
			}
		}
		s.mu.Unlock()
		for _, uid := range missing {
			if err := s.tell(p, uid, false); err != nil {
				return err
			}
		}
		s.changed()
		return nil
	case j := <-p.jobs:
		refusal, err := s.carryOut(p, j)
		switch {
		case err != nil:
			j.done <- fmt.Errorf("%w: %w", errGone, err)
		case refusal != "":
			j.done <- &RefusedError{UID: j.uid, Reason: refusal}
		default:
			j.done <- nil
		}
		return err
	}
}

func (s *Server) carryOut(p *peer, j job) (refusal string, err error) {
	if !j.del {
		return s.add(p, j.uid, false)
	}
	s.mu.Lock()
	delete(p.served, j.uid)
	delete(p.told, j.uid)
	s.mu.Unlock()
	return p.ask(encodeDel(j.uid), nil)
}

// tell is add for a list: a workload that is refused is no reason to end it.
func (s *Server) tell(p *peer, uid string, first bool) error {
	refusal, err := s.add(p, uid, first)
	if err != nil {
		return fmt.Errorf("workload %s: %w", uid, err)
	}
	if refusal != "" {
		s.cfg.Logger.Warn("ztunnel refused a workload", "uid", uid, "reason", refusal)
	}
	return nil
}

// add sends one workload as it is now; one that is gone is not sent.
func (s *Server) add(p *peer, uid string, first bool) (refusal string, err error) {
	s.mu.Lock()
	e := s.entries[uid]
	if e == nil || e.ns == nil && !first {
		s.mu.Unlock()
		return "", nil
	}
	p.told[uid] = true
	if e.ns == nil {
		s.mu.Unlock()
		return p.ask(encodeKeep(uid), nil)
	}
	info := e.info
	ns, err := e.ns.Dup()
	s.mu.Unlock()
	if err != nil {
		return err.Error(), nil
	}
	defer func() { _ = ns.Close() }()
	refusal, err = p.ask(encodeAdd(uid, info), ns.File())
	if err == nil && refusal == "" {
		s.mu.Lock()
		if s.entries[uid] != nil {
			p.served[uid] = ns.ID()
		}
		s.mu.Unlock()
	}
	return refusal, err
}

func (e *entry) close() {
	if e.ns != nil {
		_ = e.ns.Close()
	}
}
