package rig

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/lab/objects"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Dump is the answer of a node's proxy to admin.PathDump.
type Dump struct{ admin.Ztunnel }

// Dump asks a node's proxy for what it has.
func (w *World) Dump(node string) (*Dump, error) {
	b, err := w.Admin(w.ctx, "ztunnel/"+node, admin.PathDump)
	if err != nil {
		return nil, err
	}
	d := new(Dump)
	return d, json.Unmarshal(b, &d.Ztunnel)
}

// onDemand reports whether the proxy asks for addresses when they are needed.
func (d *Dump) onDemand() bool {
	var config struct {
		XDSOnDemand bool `json:"xdsOnDemand"`
	}
	return json.Unmarshal(d.Config, &config) == nil && config.XDSOnDemand
}

// ready waits until the pods among the objects are ready.
func (w *World) ready(yaml string) {
	w.t.Helper()
	docs, err := objects.ParseText("input", yaml)
	if err != nil {
		w.t.Fatal(err)
	}
	w.Eventually("the pods are ready", func() error {
		s, err := w.Status(w.ctx)
		if err != nil {
			return err
		}
		for _, d := range docs {
			if d.Kind != "Pod" {
				continue
			}
			if p, _ := s.Pod(d.Namespace, d.Name); !p.Ready {
				return fmt.Errorf("pod %s/%s is not: %s", d.Namespace, d.Name, p.Message)
			}
		}
		return nil
	})
}

// Settled waits until the mesh does what the objects say: every pod that is to
// be captured is served on its node, every proxy knows it as HBONE (or as TCP,
// when it has no service account), and no
// other pod is either; every proxy knows which pods are ready, and all services.
func (w *World) Settled() {
	w.t.Helper()
	w.Eventually("the mesh has settled", w.settled)
}

func (w *World) settled() error {
	s, err := w.Status(w.ctx)
	if err != nil {
		return err
	}
	for _, n := range s.Nodes {
		d, err := w.Dump(n.Name)
		if err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		for _, p := range s.Pods {
			if len(p.IPs) == 0 || p.Phase != "Running" {
				continue
			}
			if d.onDemand() && p.Node != n.Name && d.protocol(p.Namespace, p.Name) == "" {
				continue // not asked for yet
			}
			tunnelled := p.Captured && d.account(p.Namespace, p.Name) != wellknown.NoServiceAccount
			if got, want := d.protocol(p.Namespace, p.Name), map[bool]string{true: "HBONE", false: "TCP"}[tunnelled]; got != want {
				return fmt.Errorf("to %s, pod %s/%s is %q, and not %s", n.Name, p.Namespace, p.Name, got, want)
			}
			if got, want := d.healthy(p.Namespace, p.Name), p.Ready; got != want {
				return fmt.Errorf("to %s, pod %s/%s is ready: %v, and not %v", n.Name, p.Namespace, p.Name, got, want)
			}
			if p.Node == n.Name && d.serves(p.Namespace, p.Name) != p.Captured {
				return fmt.Errorf("%s serves pod %s/%s: %v, which should be %v", n.Name, p.Namespace, p.Name, !p.Captured, p.Captured)
			}
		}
		for _, v := range s.Services {
			if !d.knows(v.Namespace, v.Name) && !d.onDemand() {
				return fmt.Errorf("%s does not know service %s/%s", n.Name, v.Namespace, v.Name)
			}
		}
	}
	return nil
}

func (d *Dump) knows(namespace, service string) bool {
	for _, s := range d.Services {
		if s.Namespace == namespace && s.Name == service {
			return true
		}
	}
	return false
}

func (d *Dump) healthy(namespace, name string) bool {
	for _, w := range d.Workloads {
		if w.Namespace == namespace && w.Name == name {
			return strings.EqualFold(w.Status, "Healthy")
		}
	}
	return false
}

// account is the service account that a pod runs as.
func (d *Dump) account(namespace, name string) string {
	for _, w := range d.Workloads {
		if w.Namespace == namespace && w.Name == name {
			return w.ServiceAccount
		}
	}
	return ""
}

// protocol is how a pod is reached: HBONE when the mesh does it, not when the
// pod speaks it itself.
func (d *Dump) protocol(namespace, name string) string {
	for _, w := range d.Workloads {
		if w.Namespace == namespace && w.Name == name {
			if w.NativeTunnel {
				return "TCP"
			}
			return w.Protocol
		}
	}
	return ""
}

func (d *Dump) serves(namespace, name string) bool {
	for _, s := range d.Pods {
		if s.Info.Namespace == namespace && s.Info.Name == name {
			return strings.EqualFold(s.State, "Up")
		}
	}
	return false
}

// HasPolicy reports whether the proxy enforces a policy.
func (d *Dump) HasPolicy(namespace, name string) bool {
	for _, p := range d.Policies {
		if p.Namespace == namespace && p.Name == name {
			return true
		}
	}
	return false
}

// AccessLines returns the access log lines of a node's proxy that contain all
// of the given parts.
func (w *World) AccessLines(node string, parts ...string) []string {
	var out []string
	for line := range strings.Lines(w.Log("ztunnel/" + node)) {
		if strings.Contains(line, "\taccess\t") && !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			out = append(out, strings.TrimSuffix(line, "\n"))
		}
	}
	return out
}
