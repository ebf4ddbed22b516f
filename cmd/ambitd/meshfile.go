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
	m.now, m.unread = c, unread
	return true, nil
}

func (m *meshFile) config() meshconfig.Config {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
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
