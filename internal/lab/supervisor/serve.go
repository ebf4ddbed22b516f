package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/network"
	"github.com/ambit-mesh/ambit/internal/lab/objects"
	"github.com/ambit-mesh/ambit/internal/lab/process"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// rootCertFile is ambitd's trust bundle in its state directory.
const rootCertFile = "root-cert.pem"

// tokenLife is the life of a ztunnel's token: longer than any lab runs.
const tokenLife = 30 * 24 * time.Hour

// writeToken gives the ztunnel of a node its credentials.
func (s *supervisor) writeToken(_ context.Context, node string) error {
	issuer, err := auth.OpenIssuer(s.d.Ambitd())
	if err != nil {
		return fmt.Errorf("token for ztunnel on %s: %w", node, err)
	}
	token, err := issuer.Issue(auth.Caller{Namespace: wellknown.SystemNamespace, ServiceAccount: network.Ztunnel, Node: node}, tokenLife)
	if err != nil {
		return fmt.Errorf("token for ztunnel on %s: %w", node, err)
	}
	return lab.WriteFile(s.d.Token(node), []byte(token), 0o600)
}

// serve answers clients on the control socket until it closes.
func (s *supervisor) serve(ctx context.Context, l *net.UnixListener) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		go s.client(ctx, c)
	}
}

// client serves one connection: one request, and what belongs to it.
func (s *supervisor) client(ctx context.Context, c *net.UnixConn) {
	defer c.Close() //nolint:errcheck // nobody is left to tell
	req := new(lab.Request)
	files, err := lab.Receive(c, req)
	if err != nil {
		return
	}
	defer lab.CloseAll(files)
	switch req.Op {
	case "watch":
		s.serveWatch(ctx, c)
		return
	case "exec":
		s.serveExec(ctx, c, req, files)
		return
	}
	r, out, err := s.answer(ctx, req)
	if err != nil {
		r = &lab.Reply{Error: err.Error()}
	}
	defer lab.CloseAll(out)
	_ = lab.Send(c, r, out...)
}

// answer handles the requests that have one answer. Descriptors it returns are
// the caller's.
func (s *supervisor) answer(ctx context.Context, req *lab.Request) (*lab.Reply, []*os.File, error) {
	switch req.Op {
	case "status":
		st, _ := s.snapshot()
		return &lab.Reply{Status: st}, nil, nil
	case "apply":
		said, err := s.applyDocuments(req.Documents)
		return &lab.Reply{Text: said}, nil, err
	case "delete":
		return &lab.Reply{}, nil, s.deleteObject(objects.NewKey(req.Kind, req.Namespace, req.Name))
	case "label":
		return &lab.Reply{}, nil, s.labelObject(objects.NewKey(req.Kind, req.Namespace, req.Name), req.Labels)
	case "dial":
		return s.answerDial(ctx, req)
	case "netns":
		sp, err := s.space(req.Where)
		if err != nil {
			return nil, nil, err
		}
		f, err := os.Open(sp.Path)
		return &lab.Reply{}, []*os.File{f}, err
	case "capture":
		f, err := s.lan.Capture(lab.CaptureBuffer)
		if err != nil {
			return nil, nil, err
		}
		return &lab.Reply{Text: s.captureNames()}, []*os.File{f}, nil
	case "kill", "stop", "continue", "restart":
		return &lab.Reply{}, nil, s.control(ctx, req)
	}
	return nil, nil, fmt.Errorf("this lab does not know %q: is it of another version than this program?", req.Op)
}

func (s *supervisor) control(ctx context.Context, req *lab.Request) error {
	c, err := s.component(req.Component)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("waited a minute"))
	defer cancel()
	switch req.Op {
	case "kill":
		return c.kill(unix.Signal(req.Signal))
	case "stop":
		return c.stop(ctx, unix.Signal(req.Signal))
	case "continue":
		return c.resume(ctx)
	}
	return c.restart(ctx, req.Mode, req.Path)
}

func (s *supervisor) answerDial(ctx context.Context, req *lab.Request) (*lab.Reply, []*os.File, error) {
	sp, err := s.space(req.Where)
	if err != nil {
		return nil, nil, err
	}
	// TCP sends a lost SYN again after 1, 3, 7 and 15 s.
	ctx, cancel := context.WithTimeoutCause(ctx, 20*time.Second, unix.ETIMEDOUT)
	defer cancel()
	f, err := network.Dial(ctx, sp, req.Network, req.Address)
	if err != nil {
		return nil, nil, err
	}
	return &lab.Reply{}, []*os.File{f}, nil
}

// serveWatch sends the state, again and again when it has changed.
func (s *supervisor) serveWatch(ctx context.Context, c *net.UnixConn) {
	gone := make(chan struct{})
	go func() {
		var b [1]byte
		_, _ = c.Read(b[:]) // only returns when the client is gone
		close(gone)
	}()
	for {
		st, changed := s.snapshot()
		if lab.Send(c, &lab.Reply{Status: st}) != nil {
			return
		}
		select {
		case <-changed:
		case <-gone:
			return
		case <-ctx.Done():
			return
		}
	}
}

// serveExec runs a program for a client, for as long as the client is there.
func (s *supervisor) serveExec(ctx context.Context, c *net.UnixConn, req *lab.Request, files []*os.File) {
	ch, err := s.exec(req, files)
	lab.CloseAll(files)
	if err != nil {
		_ = lab.Send(c, &lab.Reply{Error: err.Error()})
		return
	}
	if lab.Send(c, &lab.Reply{}) != nil {
		s.kids.Signal(ch, unix.SIGKILL)
		return
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			more := new(lab.Request)
			files, err := lab.Receive(c, more)
			lab.CloseAll(files)
			if err != nil {
				return
			}
			if more.Op == "signal" {
				s.kids.Signal(ch, unix.Signal(more.Signal))
			}
		}
	}()
	select {
	case <-ch.Done:
		code := ch.ExitCode()
		_ = lab.Send(c, &lab.Reply{Exit: &code})
		return
	case <-gone:
	case <-ctx.Done():
	}
	s.kids.Signal(ch, unix.SIGKILL)
}

func (s *supervisor) exec(req *lab.Request, files []*os.File) (*process.Child, error) {
	if len(files) != 3 || len(req.Argv) == 0 {
		return nil, errors.New("exec: needs a command and three files")
	}
	kind, _ := split(req.Where)
	if kind != "pod" {
		return s.execElsewhere(req, files)
	}
	s.mu.Lock()
	p, err := s.findPod(req.Where)
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	c := &p.spec.Spec.Containers[0]
	spec := s.initSpec(p, &container{spec: c}, req.Argv)
	spec.TTY = req.TTY
	if req.Dir != "" {
		spec.Dir = req.Dir
	}
	return s.spawn(p, spec, append(containerEnv(p, c, s.families), req.Env...), files)
}

// execElsewhere runs a program in a node, with the machine's own files.
func (s *supervisor) execElsewhere(req *lab.Request, files []*os.File) (*process.Child, error) {
	sp, err := s.space(req.Where)
	if err != nil {
		return nil, err
	}
	spec := process.InitSpec{Hostname: filepath.Base(string(req.Where)), Dir: "/", Argv: req.Argv, TTY: req.TTY}
	if req.Dir != "" {
		spec.Dir = req.Dir
	}
	return s.startInit(sp, spec, append(process.Environ(process.HostEnv()), req.Env...), files)
}
