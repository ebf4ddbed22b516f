package main

import (
	"context"
	"os"
	"path/filepath"

	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/control/ca"
	"github.com/ambit-mesh/ambit/internal/control/registry"
	"github.com/ambit-mesh/ambit/internal/source/file"
)

// onFiles is a control plane on directories: one process, which issues the
// tokens of its callers itself.
func (a *app) onFiles() (ground, error) {
	for _, dir := range []string{a.cfg.stateDir, a.cfg.statusDir} {
		if dir == "" {
			continue
		}
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // others read what is public in it; keys are 0600
			return ground{}, err
		}
	}
	files := file.New(file.Options{
		ConfigDirs: a.cfg.configDirs, StatusDir: a.cfg.statusDir, KeepDir: filepath.Join(a.cfg.stateDir, "last-good"),
		Logger: a.logs.Logger("source"),
	})
	return ground{
		source: files,
		problems: func() (any, int) {
			list, count := files.Problems(), 0
			for _, p := range list {
				if !p.Ignored {
					count++
				}
			}
			return orEmpty(list), count
		},
		mesh:    func(*registry.Options) {},
		state:   func(c *ca.Config) { c.StateDir = a.cfg.stateDir },
		callers: func() (auth.Authenticator, error) { return auth.OpenIssuer(a.cfg.stateDir) },
		tasks:   func() []func(context.Context) error { return nil },
	}, nil
}
