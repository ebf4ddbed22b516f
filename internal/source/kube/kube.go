// Package kube watches the objects that the mesh reads in the Kubernetes API
// and delivers what changed.
package kube

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/source"
)

// Options say what to watch.
type Options struct {
	Client *client.Client
	// Kinds are names of source.Kinds.
	Kinds []string
	// Node restricts pods to those of one node; empty for all.
	Node string
	// DiscoverySelectors pick the namespaces that the mesh looks at, by their
	// labels; one of them is enough. None: all. Namespaces and Nodes are
	// delivered in any case.
	DiscoverySelectors []metav1.LabelSelector
	Logger             *slog.Logger          // nil for none
	Registerer         prometheus.Registerer // nil for none
}

// Problem is an object that cannot be used as it is now.
type Problem struct {
	Key     source.Key `json:"key"`
	Message string     `json:"message"`
}

// String renders Kind/namespace/name: message.
func (p Problem) String() string { return p.Key.String() + ": " + p.Message }

// Source watches a cluster. Run may be called once; everything else at any
// time, from any goroutine.
type Source struct{}

// New prepares a Source.
func New(o Options) (*Source, error) { return &Source{}, nil }

// Run delivers everything to sink and then every change, until ctx ends
// (which returns nil).
func (s *Source) Run(ctx context.Context, sink source.Sink) error { return nil }

// SetDiscoverySelectors replaces the selectors. Objects that are no longer
// looked at are delivered as gone, those that now are as new.
func (s *Source) SetDiscoverySelectors(selectors []metav1.LabelSelector) error { return nil }

// Problems lists what is wrong now, ordered by key.
func (s *Source) Problems() []Problem { return nil }
