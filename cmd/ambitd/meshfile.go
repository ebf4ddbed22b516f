package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/control/registry"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/control/telemetry"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

// meshInterval is how often the mesh configuration is looked at. The kubelet
// takes about a minute to bring a change of a ConfigMap.
const meshInterval = 5 * time.Second

// meshFile is the file of --mesh-config. What is broken in it later leaves the
// last good state.
type meshFile struct {
	path string
	log  *slog.Logger

	mu     sync.Mutex
	text   []byte
	now    meshconfig.Config
	unread []string
}

func openMeshFile(path string, log *slog.Logger) (*meshFile, error) {
	m := &meshFile{path: path, log: log}
	if _, err := m.read(); err != nil {
		return nil, fmt.Errorf("--mesh-config: %w", err)
	}
	return m, nil
}

// read reports whether there was something new.
func (m *meshFile) read() (changed bool, err error) {
	text, err := os.ReadFile(m.path)
	if err != nil {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.text != nil && bytes.Equal(text, m.text) {
		return false, nil
	}
	m.text = text
	c, unread, err := meshconfig.Parse(text)
	if err != nil {
		return false, err
	}
	if len(unread) > 0 && !slices.Equal(unread, m.unread) {
		m.log.Info("fields of the mesh configuration that have no effect here", "fields", unread)
	}
	if !c.Providers.Same(m.now.Providers) {
		for _, p := range c.Providers.Problems() {
			m.log.Error("an extension provider cannot be used: policies that name it deny", "problem", p)
		}
	}
	m.now, m.unread = c, unread
	return true, nil
}

func (m *meshFile) config() meshconfig.Config {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

// adopt takes from the mesh configuration what no flag sets.
func (m *meshFile) adopt(cfg *config) error {
	c := m.config()
	if c.TrustDomain != "" && !cfg.set["trust-domain"] {
		cfg.trustDomain = c.TrustDomain
	}
	if c.RootNamespace != "" && !cfg.set["root-namespace"] {
		cfg.rootNamespace = c.RootNamespace
	}
	if !cfg.set["trust-domain-alias"] {
		cfg.trustDomainAliases = c.TrustDomainAliases
	}
	probe := identity.Identity{TrustDomain: cfg.trustDomain, Namespace: "a", ServiceAccount: "b"}
	if err := probe.Validate(); err != nil {
		return fmt.Errorf("trustDomain of --mesh-config: %w", err)
	}
	return nil
}

// options completes those of the registry.
func (m *meshFile) options(o *tables.Options) {
	c := m.config()
	o.Visibility, o.Outbound, o.Providers, o.Telemetry = c.ServiceEntryVisibility, c.Outbound, c.Providers, m.telemetry()
}

// telemetry returns the settings of telemetry in the file, and logs those without effect.
func (m *meshFile) telemetry() *telemetry.Mesh {
	out := telemetry.ReadMesh(m.config().Telemetry)
	if len(out.Problems) > 0 {
		m.log.Warn("some settings of telemetry in the mesh configuration have no effect", "file", m.path, "problems", out.Problems)
	}
	return out
}

// apply takes over what may change at run time.
func (m *meshFile) apply(cfg *config, r *registry.Registry) {
	c := m.config()
	for what, changed := range map[string]bool{
		"trustDomain":   c.TrustDomain != "" && c.TrustDomain != cfg.trustDomain,
		"rootNamespace": c.RootNamespace != "" && c.RootNamespace != cfg.rootNamespace,
	} {
		if changed {
			m.log.Warn("a change of the mesh configuration takes effect when this program is restarted", "field", what)
		}
	}
	if !cfg.set["trust-domain-alias"] {
		r.SetTrustDomainAliases(c.TrustDomainAliases)
	}
	r.SetVisibility(c.ServiceEntryVisibility)
	r.SetOutbound(c.Outbound)
	r.SetProviders(c.Providers)
	r.SetTelemetry(m.telemetry())
}

// watch calls changed after every change, until ctx ends.
func (m *meshFile) watch(ctx context.Context, changed func()) error {
	t := time.NewTicker(meshInterval)
	defer t.Stop()
	failed := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		switch again, err := m.read(); {
		case err != nil && err.Error() != failed:
			failed = err.Error()
			m.log.Error("the mesh configuration cannot be used; the last good one stays", "file", m.path, "error", err)
		case again:
			failed = ""
			changed()
		}
	}
}
