// Package webhook lets the API server ask the mesh before it stores
// configuration: it serves admission reviews with the judgement of package
// control/admission, and keeps the configuration by which the API server finds
// and trusts it in order. That configuration demands an answer only after an
// answer was seen to arrive.
package webhook

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/ambit-mesh/ambit/internal/control/admission"
	"github.com/ambit-mesh/ambit/internal/kube/client"
)

// Options configure Run.
type Options struct {
	Client      *client.Client
	Namespace   string // ours
	ServiceName string // by which the API server reaches us; default istiod
	// ConfigName is the ValidatingWebhookConfiguration that is kept in order.
	// Default ambit-validator-NAMESPACE, with what the service's name has
	// beyond istiod before the last dash.
	ConfigName string
	Revision   string // default "default"
	// RootNamespace is where policies hold for the whole mesh; default Namespace.
	RootNamespace string
	// Addresses has who owns which address; may be nil.
	Addresses admission.AddressBook
	Listen    net.Listener
	// Certificate makes the TLS configuration for serving under names.
	Certificate func(names []string) (*tls.Config, error)
	// CABundle returns the PEM roots by which that certificate is trusted, and a
	// channel that is closed when they have changed.
	CABundle   func() ([]byte, <-chan struct{})
	Logger     *slog.Logger
	Registerer prometheus.Registerer // may be nil

	// retry is the first wait after a failure, doubled up to maxRetry; for tests.
	retry time.Duration
}

const maxRetry = time.Minute

func (o Options) withDefaults() Options {
	o.ServiceName = cmp.Or(o.ServiceName, "istiod")
	o.ConfigName = cmp.Or(o.ConfigName, "ambit-validator"+strings.TrimPrefix(o.ServiceName, "istiod")+"-"+o.Namespace)
	o.Revision = cmp.Or(o.Revision, "default")
	o.RootNamespace = cmp.Or(o.RootNamespace, o.Namespace)
	o.retry = cmp.Or(o.retry, time.Second)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Run serves, and keeps the configuration, until ctx ends (which returns nil).
// Every replica of the control plane may do so at the same time.
func Run(ctx context.Context, o Options) error {
	o = o.withDefaults()
	host := o.ServiceName + "." + o.Namespace + ".svc"
	cfg, err := o.Certificate([]string{host, o.ServiceName + "." + o.Namespace, host + ".cluster.local"})
	if err != nil {
		return fmt.Errorf("certificate of the webhook: %w", err)
	}
	cfg = cfg.Clone()
	// The API server asks for HTTP/1.1, so that its calls spread over replicas.
	cfg.NextProtos = []string{"http/1.1"}
	cfg.ClientAuth = tls.NoClientCert
	m := newMetrics(o.Registerer)
	server := &http.Server{
		Handler:           newHandler(admission.Reviewer{RootNamespace: o.RootNamespace, Addresses: o.Addresses}, o.Logger, m),
		TLSConfig:         cfg,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){},
		ErrorLog:          slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := server.ServeTLS(o.Listen, "", ""); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the webhook: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if server.Shutdown(stop) != nil {
			_ = server.Close()
		}
		return nil
	})
	g.Go(func() error {
		(&keeper{o: o, m: m}).run(ctx)
		return nil
	})
	return g.Wait()
}
