package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/ambit-mesh/ambit/internal/node"
)

// meshInterval is how often the mesh configuration is looked at. The kubelet
// takes about a minute to bring a change of a ConfigMap.
const meshInterval = 5 * time.Second

// discovery follows which namespaces the control plane looks at, in the file of
// --mesh-config. A file that is not there says that it looks at all of them.
type discovery struct {
	path   string
	always []string // namespaces, beside those that the file names
	log    *slog.Logger

	text   []byte
	read   bool
	failed string
}

// look returns what the file says; changed reports whether that is new. What is
// broken leaves the last good state.
func (d *discovery) look() (now node.Discovery, changed bool) {
	text, err := os.ReadFile(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		text, err = nil, nil
	}
	if err == nil && d.read && bytes.Equal(text, d.text) {
		return node.Discovery{}, false
	}
	if err == nil {
		now, err = node.ParseDiscovery(text)
	}
	if err != nil {
		if err.Error() != d.failed {
			d.failed = err.Error()
			d.log.Error("the mesh configuration cannot be used; the last good one stays", "file", d.path, "error", err)
		}
		return node.Discovery{}, false
	}
	d.text, d.read, d.failed = text, true, ""
	now.Always = append(now.Always, d.always...)
	return now, true
}

// follow passes every change on, until ctx ends.
func (d *discovery) follow(ctx context.Context, set func(node.Discovery)) error {
	t := time.NewTicker(meshInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if now, changed := d.look(); changed {
			d.log.Info("which namespaces the control plane looks at has changed", "selectors", len(now.Selectors))
			set(now)
		}
	}
}
