package feed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	securitypb "github.com/ambit-mesh/ambit/api/security"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ops/version"
	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
	"github.com/ambit-mesh/ambit/internal/proxy/localxds"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// Addresses keeps a directory up to date: all of the mesh, or what is asked for
// by name.
func Addresses(dir *workload.Directory, onDemand bool) xds.TypeConfig {
	return xds.TypeConfig{
		TypeURL: wellknown.TypeAddress, OnDemand: onDemand,
		Apply: func(d xds.Delta) []xds.Rejection { return applyAddresses(dir, d) },
	}
}

// Demand returns what requests a name of a directory that is filled on demand. Programs choose
// addresses, network/ip: those are followed briefly.
func Demand(c *xds.Client) func(ctx context.Context, name string) error {
	return func(ctx context.Context, name string) error {
		if _, err := netip.ParseAddr(name[strings.LastIndexByte(name, '/')+1:]); err == nil {
			return c.DemandBriefly(ctx, wellknown.TypeAddress, name)
		}
		return c.Demand(ctx, wellknown.TypeAddress, name)
	}
}

// Policies keeps policies up to date.
func Policies(store *rbac.Store) xds.TypeConfig {
	return xds.TypeConfig{
		TypeURL: wellknown.TypeAuthorization,
		Apply:   func(d xds.Delta) []xds.Rejection { return applyPolicies(store, d) },
	}
}

// Local puts a configuration from a file in the place of a control plane.
func Local(c *localxds.Config, dir *workload.Directory, policies *rbac.Store) error {
	var errs []error
	_, bad := dir.Apply(c.Addresses, nil)
	for _, r := range bad {
		errs = append(errs, fmt.Errorf("local xDS: %s: %w", r.Name, r.Err))
	}
	var ups []rbac.Update
	for _, p := range c.Policies {
		ups = append(ups, rbac.Update{Name: p.Namespace + "/" + p.Name, Policy: p})
	}
	for _, r := range policies.Apply(ups, nil) {
		errs = append(errs, fmt.Errorf("local xDS: policy %s: %w", r.Name, r.Err))
	}
	return errors.Join(errs...)
}

func applyAddresses(dir *workload.Directory, d xds.Delta) []xds.Rejection {
	var out []xds.Rejection
	set := make([]*workloadpb.Address, 0, len(d.Updated))
	for _, r := range d.Updated {
		addr := &workloadpb.Address{}
		if err := proto.Unmarshal(r.Body, addr); err != nil {
			out = append(out, xds.Rejection{Name: r.Name, Err: err})
			continue
		}
		set = append(set, addr)
	}
	_, bad := dir.Apply(set, d.Removed)
	for _, b := range bad {
		out = append(out, xds.Rejection{Name: b.Name, Err: b.Err})
	}
	return out
}

func applyPolicies(store *rbac.Store, d xds.Delta) []xds.Rejection {
	var out []xds.Rejection
	ups := make([]rbac.Update, 0, len(d.Updated))
	for _, r := range d.Updated {
		p := &securitypb.Authorization{}
		if err := proto.Unmarshal(r.Body, p); err != nil {
			// What cannot be read may be a DENY: given none, the store rejects the
			// update and refuses everything in its namespace until it can be read.
			p = nil
		}
		ups = append(ups, rbac.Update{Name: r.Name, Policy: p})
	}
	for _, b := range store.Apply(ups, d.Removed) {
		out = append(out, xds.Rejection{Name: b.Name, Err: b.Err})
	}
	return out
}

// Node names a proxy to the control plane, in Istio's form. The role is the first
// part of its id, and self the workload that the proxy is; nil when unknown.
func Node(role string, s *bootstrap.Settings, self *bootstrap.Workload, environ []string) *core.Node {
	if self == nil {
		self = &bootstrap.Workload{}
	}
	ip := s.InstanceIP
	if ip == "" {
		ip = "1.1.1.1" // upstream's placeholder
	}
	meta := map[string]any{
		"NAME": self.Name, "NAMESPACE": self.Namespace, "INSTANCE_IPS": ip, "NODE_NAME": s.NodeName,
		"CLUSTER_ID": s.ClusterID, "SERVICE_ACCOUNT": self.ServiceAccount,
		"ISTIO_VERSION": version.Get().Version,
	}
	for k, v := range s.ProxyMetadata {
		meta[k] = v
	}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		if name, ok := strings.CutPrefix(k, "ISTIO_METAJSON_"); ok {
			var parsed any
			if json.Unmarshal([]byte(v), &parsed) == nil {
				meta[name] = parsed
			}
		}
	}
	md, err := structpb.NewStruct(meta)
	if err != nil {
		md = nil // values that protobuf cannot carry; the id is enough
	}
	return &core.Node{
		Id:       fmt.Sprintf("%s~%s~%s.%s~%s.svc.%s", role, ip, self.Name, self.Namespace, self.Namespace, s.ClusterDomain),
		Metadata: md,
	}
}

// Metrics counts what the control plane sends.
func Metrics(reg prometheus.Registerer) xds.ClientMetrics {
	terminated := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "istio_xds_connection_terminations_total", Help: "Connections to the control plane that ended (unstable).",
	}, []string{"reason"})
	messages := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "istio_xds_message_total", Help: "Messages from the control plane (unstable).",
	}, []string{"url"})
	size := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "istio_xds_message_bytes_total", Help: "Bytes of messages from the control plane (unstable).",
	}, []string{"url"})
	reg.MustRegister(terminated, messages, size)
	return xds.ClientMetrics{
		Terminated: func(t xds.Termination) { terminated.WithLabelValues(string(t)).Inc() },
		Message: func(url string, n int) {
			messages.WithLabelValues(url).Inc()
			size.WithLabelValues(url).Add(float64(n))
		},
	}
}
