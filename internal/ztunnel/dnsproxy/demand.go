package dnsproxy

import (
	"bytes"
	"context"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/dns"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

const (
	// maxWanted bounds the names that look-ups of one pod, and of all pods, make the
	// proxy ask the control plane for: a subscription lasts.
	maxWanted    = 1024
	maxWantedAll = 8192
	// wantedTime is how long a look-up waits for the control plane.
	wantedTime = 2 * time.Second
)

var nextLoop atomic.Uint64

// missing returns the services that a question may be for and that the control plane
// has not been asked about; nil where nothing comes on demand.
func (p *Pod) missing(s *scratch, d dns.Decision) []string {
	if p.node.Demand == nil || d != dns.Forward || !s.question.Plain {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	for _, name := range s.resolver.Wanted(&p.Client, bytes.Clone(s.question.Name())) {
		if _, asked := p.wanted[name]; !asked {
			names = append(names, name)
		}
	}
	if len(names) == 0 || len(p.wanted)+len(names) > maxWanted {
		return nil
	}
	if p.node.asked.Add(int64(len(names))) > maxWantedAll {
		p.node.asked.Add(-int64(len(names)))
		return nil
	}
	return names
}

// learn asks for services and then calls then on the loop. It reports false when too
// many questions wait.
func (p *Pod) learn(l *poll.Loop, names []string, then func()) bool {
	if !p.take() {
		p.node.asked.Add(-int64(len(names)))
		return false
	}
	l.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), wantedTime)
		defer cancel()
		answered := 0
		for _, name := range names {
			if err := p.node.Demand(ctx, name); err != nil {
				p.node.Logger.Debug("nothing is known of a name", "name", name, "error", err)
				break
			}
			answered++
		}
		p.mu.Lock()
		before := len(p.wanted)
		for _, name := range names[:answered] {
			if !p.closed {
				p.wanted[name] = struct{}{}
			}
		}
		p.node.asked.Add(int64(len(p.wanted) - before - len(names)))
		p.mu.Unlock()
		l.Post(func() {
			p.give()
			then()
		})
	})
	return true
}
