package packets

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/sys/links"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Packets sets sizes of the interfaces of pods. Nothing that fails here is a reason
// to keep a pod out of the mesh or in it: it costs speed only.
type Packets struct {
	mode   Mode
	host   *netns.NS
	logger *slog.Logger
	pods   *prometheus.CounterVec

	mu     sync.Mutex
	logged map[string]bool
}

// maxLogged bounds what is remembered of the log.
const maxLogged = 32

// Results of the metric.
const (
	resultSet         = "set"
	resultRestored    = "restored"
	resultNotPossible = "not_possible"
	resultFailed      = "failed"
)

// New returns the one of a node. The host's namespace stays the caller's.
func New(mode Mode, host *netns.NS, logger *slog.Logger, r prometheus.Registerer) *Packets {
	p := &Packets{
		mode: mode, host: host, logger: logger, logged: map[string]bool{},
		pods: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_cni_large_packets_total",
			Help: "Interfaces of pods whose largest packet was to be changed, by result.",
		}, []string{"result"}),
	}
	r.MustRegister(p.pods)
	return p
}

// Join lets packets of an enrolled pod be large.
func (p *Packets) Join(ns *netns.NS, addrs []netip.Addr) {
	p.report(p.in(ns, func(pod *links.Links) error {
		all, err := pod.Interfaces()
		if err != nil {
			return err
		}
		var own []int
		if p.mode == Pod {
			if own, err = pod.Carrying(addrs); err != nil {
				return err
			}
		}
		var errs []error
		for _, i := range all {
			switch {
			case i.Loopback && p.mode != Off:
				errs = append(errs, p.enlarge(pod, i))
			case slices.Contains(own, i.Index):
				errs = append(errs, p.enlargeCable(pod, i, ns))
			case p.mode != Pod: // of an agent with another setting
				errs = append(errs, p.restore(pod, i, ns))
			}
		}
		return errors.Join(errs...)
	}))
}

// Leave gives the interfaces of a pod what they had.
func (p *Packets) Leave(ns *netns.NS) {
	p.report(p.in(ns, func(pod *links.Links) error {
		all, err := pod.Interfaces()
		if err != nil {
			return err
		}
		var errs []error
		for _, i := range all {
			errs = append(errs, p.restore(pod, i, ns))
		}
		return errors.Join(errs...)
	}))
}

// Path returns how large packets on the way out of the node may be.
func (p *Packets) Path() string {
	var lines []string
	err := p.in(p.host, func(host *links.Links) error {
		all, err := host.Interfaces()
		if err != nil {
			return err
		}
		uplinks, err := host.Uplinks()
		if err != nil {
			return err
		}
		for _, i := range all {
			if slices.Contains(uplinks, i.Index) {
				lines = append(lines, describe(i))
			}
		}
		return nil
	})
	switch {
	case err != nil:
		return "cannot be seen: " + err.Error()
	case len(lines) == 0:
		lines = append(lines, "no interface has a default route")
	}
	return fmt.Sprintf("setting %s; %s", p.mode, strings.Join(lines, "; "))
}

func (p *Packets) enlarge(at *links.Links, i links.Interface) error {
	set, why := enlarge(i)
	if why != "" {
		p.once("packets of an interface stay as large as they are", "interface", i.Name, "why", why)
		p.pods.WithLabelValues(resultNotPossible).Inc()
		return nil
	}
	if set == (links.Sizes{}) {
		return nil
	}
	err := at.SetSizes(i.Index, set)
	if err == nil {
		p.pods.WithLabelValues(resultSet).Inc()
	}
	return err
}

// enlargeCable does both ends, the pod's first: it shows afterwards that there may be
// something to restore at the other.
func (p *Packets) enlargeCable(pod *links.Links, i links.Interface, ns *netns.NS) error {
	return p.in(p.host, func(host *links.Links) error {
		far, err := farEnd(host, i, ns)
		if err != nil {
			return err
		}
		if far == nil {
			p.once("packets of an interface stay as large as they are", "interface", i.Name, "why", "it is no virtual Ethernet pair with the host")
			p.pods.WithLabelValues(resultNotPossible).Inc()
			return nil
		}
		if err := p.enlarge(pod, i); err != nil {
			return err
		}
		return p.enlarge(host, *far)
	})
}

// restore gives an interface what it had, after the other end of its cable.
func (p *Packets) restore(pod *links.Links, i links.Interface, ns *netns.NS) error {
	set := restore(i)
	if set == (links.Sizes{}) {
		return nil
	}
	if !i.Loopback {
		err := p.in(p.host, func(host *links.Links) error {
			far, err := farEnd(host, i, ns)
			if err != nil || far == nil {
				return err
			}
			if set := restore(*far); set != (links.Sizes{}) {
				return host.SetSizes(far.Index, set)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if err := pod.SetSizes(i.Index, set); err != nil {
		return err
	}
	p.pods.WithLabelValues(resultRestored).Inc()
	return nil
}

// farEnd returns the host's end of a pod's cable, and nil when there is none. The
// kernel numbers namespaces while it lists interfaces.
func farEnd(host *links.Links, i links.Interface, ns *netns.NS) (*links.Interface, error) {
	all, err := host.Interfaces()
	if err != nil {
		return nil, err
	}
	space, known := host.SpaceOf(ns)
	if !known {
		return nil, nil
	}
	if far, ok := otherEnd(i, all, space); ok {
		return &far, nil
	}
	return nil, nil
}

func (p *Packets) in(ns *netns.NS, do func(*links.Links) error) error {
	l, err := links.Of(ns)
	if err != nil {
		return err
	}
	defer l.Close()
	return do(l)
}

func (p *Packets) report(err error) {
	if err != nil {
		p.pods.WithLabelValues(resultFailed).Inc()
		p.once("cannot change how large packets of a pod may be; the pod is served nevertheless", "error", err)
	}
}

// once logs what was not logged before: each pod of a node has the same.
func (p *Packets) once(text string, args ...any) {
	key := fmt.Sprint(text, args)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.logged[key] || len(p.logged) >= maxLogged {
		return
	}
	p.logged[key] = true
	p.logger.Warn(text, args...)
}
