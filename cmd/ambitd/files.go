package main

import (
	"context"
	"os"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/control/ca"
	"github.com/ambit-mesh/ambit/internal/control/registry"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/source/file"
)

// files is a control plane on directories: one process, which issues the tokens
// of its callers itself.
type files struct {
	*file.Source
	stateDir string
}

func openFiles(cfg *config, logs *logging.Logging, _ *prometheus.Registry) (environment, error) {
	for _, dir := range []string{cfg.stateDir, cfg.statusDir} {
		if dir == "" {
			continue
		}
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // others read what is public in it; keys are 0600
			return nil, err
		}
	}
	return &files{stateDir: cfg.stateDir, Source: file.New(file.Options{
		ConfigDirs: cfg.configDirs, StatusDir: cfg.statusDir, KeepDir: filepath.Join(cfg.stateDir, "last-good"),
		Logger: logs.Logger("source"),
	})}, nil
}

// Problems implements environment.
func (f *files) Problems() (list any, count int) {
	all := f.Source.Problems()
	for _, p := range all {
		if !p.Ignored {
			count++
		}
	}
	return orEmpty(all), count
}

// Mesh implements environment.
func (f *files) Mesh(*registry.Options) {}

// State implements environment.
func (f *files) State(c *ca.Config) { c.StateDir = f.stateDir }

// Callers implements environment.
func (f *files) Callers() (auth.Authenticator, error) { return auth.OpenIssuer(f.stateDir) }

// Tasks implements environment.
func (f *files) Tasks(started) []func(context.Context) error { return nil }
