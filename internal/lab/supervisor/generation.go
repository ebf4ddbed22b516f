package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/network"
	"github.com/ambit-mesh/ambit/internal/lab/process"
)

// generation is one generation of a component.
type generation struct {
	child *process.Child
	own   *network.Space // of a ztunnel, which is a pod of its own
	where *network.Space // the namespace it runs in
	link  string
	host  int
}

// spawn starts a new generation.
func (c *component) spawn(ctx context.Context) (*generation, error) {
	p := &generation{where: c.s.lan}
	kind, _, _ := strings.Cut(c.name, "/")
	if c.node != nil {
		p.where = c.node.space
	}
	if kind == network.Ztunnel {
		if err := c.ownSpace(p); err != nil {
			return nil, err
		}
	}
	args, env, err := c.commandLine(ctx, kind, p)
	if err == nil {
		err = c.exec(p, args, env)
	}
	if err != nil {
		c.release(p)
		return nil, err
	}
	return p, nil
}

// ownSpace gives a generation of a ztunnel its pod, so that two of them do not
// fight for ports.
func (c *component) ownSpace(p *generation) error {
	s := c.s
	s.mu.Lock()
	host, ok := c.node.proxies.Take()
	c.number++
	number := c.number
	s.mu.Unlock()
	if !ok {
		return errors.New("too many generations of ztunnel at once")
	}
	p.host, p.link = host, fmt.Sprintf("ztunnel%d", number)
	path := filepath.Join(s.d.Node(c.node.name), p.link)
	own, err := network.NewPodSpace(c.node.space, path, p.link, c.node.n, host, s.families)
	if err != nil {
		s.mu.Lock()
		c.node.proxies.Give(host)
		s.mu.Unlock()
		return err
	}
	p.own, p.where = own, own
	return nil
}

func (c *component) exec(p *generation, args, env []string) error {
	log, err := process.OpenLog(c.s.d.Log(c.name))
	if err != nil {
		return err
	}
	w, err := log.Pipe()
	if err != nil {
		return err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		_ = w.Close()
		return err
	}
	c.s.mu.Lock()
	path := c.path
	c.s.mu.Unlock()
	p.child, err = c.s.kids.Start(p.where.Ns, path, append([]string{path}, args...), &os.ProcAttr{
		Dir: "/", Env: env, Files: []*os.File{null, w, w}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	lab.CloseAll([]*os.File{null, w})
	if err != nil {
		return fmt.Errorf("starting %s: %w", path, err)
	}
	return nil
}

func (c *component) release(p *generation) {
	if p.own == nil {
		return
	}
	c.node.space.Remove(p.link)
	p.own.Close()
	c.s.mu.Lock()
	c.node.proxies.Give(p.host)
	c.s.mu.Unlock()
}
