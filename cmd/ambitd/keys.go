package main

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/ambit-mesh/ambit/internal/control/jwks"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
)

// keysConfig is the part of the command line that is about the keys of issuers of
// tokens.
type keysConfig struct {
	refresh time.Duration
	blocked list
	roots   string
}

// minKeyRefresh keeps a mistake from loading the servers of issuers.
const minKeyRefresh = time.Second

// prefixes returns the addresses that keys are not fetched from.
func (k *keysConfig) prefixes() ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, b := range k.blocked {
		p, err := netip.ParsePrefix(b)
		if err != nil {
			return nil, fmt.Errorf("--jwks-blocked-cidr %q: not a block of addresses, such as 10.0.0.0/8", b)
		}
		out = append(out, p)
	}
	return out, nil
}

func (k *keysConfig) check() error {
	if k.refresh < minKeyRefresh {
		return fmt.Errorf("--jwks-refresh %s: at least %s", k.refresh, minKeyRefresh)
	}
	_, err := k.prefixes()
	return err
}

// newKeys returns what fetches the keys of issuers.
func newKeys(cfg *config, logs *logging.Logging, m *controlMetrics) (*jwks.Fetcher, error) {
	blocked, err := cfg.keys.prefixes()
	if err != nil {
		return nil, err
	}
	var roots *x509.CertPool
	if cfg.keys.roots != "" {
		if roots, err = x509.SystemCertPool(); err != nil {
			roots = x509.NewCertPool()
		}
		pem, err := os.ReadFile(cfg.keys.roots)
		if err != nil {
			return nil, fmt.Errorf("--jwks-ca-file: %w", err)
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--jwks-ca-file %s: no certificate in it", cfg.keys.roots)
		}
	}
	return jwks.New(jwks.Config{
		Fetch: jwks.NewClient(blocked, roots).Fetch, Refresh: cfg.keys.refresh, Fetched: m.keysFetched, Log: logs.Logger("jwks"),
	}), nil
}
