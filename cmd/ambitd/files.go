package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	api "github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/control/ca"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/source/file"
)

// files is a control plane on directories: one process, which issues the tokens
// of its callers itself.
type files struct {
	*file.Source
	cfg  *config
	mesh *meshFile // nil without --mesh-config
}

var errNoNamespaces = errors.New("--mesh-config: discoverySelectors need --kubernetes: of files, all namespaces count")

func openFiles(cfg *config, logs *logging.Logging, _ *prometheus.Registry) (environment, error) {
	for _, dir := range []string{cfg.stateDir, cfg.statusDir} {
		if dir == "" {
			continue
		}
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // others read what is public in it; keys are 0600
			return nil, err
		}
	}
	f := &files{cfg: cfg, Source: file.New(file.Options{
		ConfigDirs: cfg.configDirs, StatusDir: cfg.statusDir, KeepDir: filepath.Join(cfg.stateDir, "last-good"),
		Logger: logs.Logger("source"),
	})}
	if cfg.kube.meshConfig == "" {
		return f, nil
	}
	var err error
	if f.mesh, err = openMeshFile(cfg.kube.meshConfig, logs.Logger("mesh")); err != nil {
		return nil, err
	}
	if len(f.mesh.config().DiscoverySelectors) > 0 {
		return nil, errNoNamespaces
	}
	return f, f.mesh.adopt(cfg)
}

// Problems implements environment.
func (f *files) Problems() []api.Problem {
	list := f.Source.Problems()
	out := make([]api.Problem, len(list))
	for i, p := range list {
		out[i] = api.Problem{File: p.File, Line: p.Line, Field: p.Field, Message: p.Message, Ignored: p.Ignored}
	}
	return out
}

// Mesh implements environment.
func (f *files) Mesh(o *tables.Options) {
	if f.mesh != nil {
		f.mesh.options(o)
	}
}

// State implements environment.
func (f *files) State(c *ca.Config) { c.StateDir = f.cfg.stateDir }

// Callers implements environment.
func (f *files) Callers() (auth.Authenticator, error) { return auth.OpenIssuer(f.cfg.stateDir) }

// Tasks implements environment.
func (f *files) Tasks(s started) []func(context.Context) error {
	if f.mesh == nil {
		return nil
	}
	return []func(context.Context) error{func(ctx context.Context) error {
		return f.mesh.watch(ctx, func() { f.mesh.apply(f.cfg, s.registry) })
	}}
}
