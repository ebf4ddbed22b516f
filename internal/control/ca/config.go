package ca

import (
	"log/slog"
	"time"
)

// Defaults of an Authority.
const (
	// DefaultTTL and MaxTTL are Istio's, so that peers find what they expect.
	DefaultTTL = 24 * time.Hour
	MaxTTL     = 90 * 24 * time.Hour
	// RootTTL is the life of a self-signed root.
	RootTTL = 10 * 365 * 24 * time.Hour

	// DefaultMargin covers clock skew and the way of a trust bundle to its
	// readers (a ConfigMap takes up to a minute or two).
	DefaultMargin = 10 * time.Minute
	// MinTTL is the shortest certificate worth signing.
	MinTTL = 10 * time.Second
)

// Config of an Authority.
type Config struct {
	// StateDir holds the state, including the self-signed root's key (0600),
	// and root-cert.pem for clients of the control plane. One process uses it
	// at a time.
	StateDir string
	// Store, when set, holds the state instead, and is shared with other
	// replicas. An authority that was opened closes it.
	Store Store
	// PluginDir, when set, is where the files of a plugged-in CA are or will
	// be: ca-cert.pem, ca-key.pem, root-cert.pem, cert-chain.pem, or the
	// tls.crt, tls.key, ca.crt of a Kubernetes TLS secret.
	PluginDir string
	// Plugin, when set, is asked for these files instead.
	Plugin      PluginSource
	TrustDomain string
	// Others, when set, reports whether another replica is at work. It may still
	// have the key of a CA whose files were replaced.
	Others func() bool
	// DefaultTTL is given to who asks for none, MaxTTL bounds the rest.
	DefaultTTL, MaxTTL time.Duration
	// RootTTL is for a new self-signed root.
	RootTTL time.Duration
	// Margin is added to every wait of a rotation.
	Margin  time.Duration
	Logger  *slog.Logger
	Metrics *Metrics
}

func (c *Config) setDefaults() {
	set := func(d *time.Duration, def time.Duration) {
		if *d <= 0 {
			*d = def
		}
	}
	set(&c.MaxTTL, MaxTTL)
	set(&c.DefaultTTL, min(DefaultTTL, c.MaxTTL))
	set(&c.RootTTL, RootTTL)
	set(&c.Margin, DefaultMargin)
	if c.Plugin == nil && c.PluginDir != "" {
		c.Plugin = pluginDir(c.PluginDir)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}
