// Package telemetry turns Telemetry objects, and what the mesh's settings say of their
// providers, into the layers that gateways execute. What gateways do not honour is named.
package telemetry

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
	"github.com/ambit-mesh/ambit/internal/l7/observe/requests"
)

// DefaultSampling is the share of requests that are sampled without another setting, in
// percent: Istio's.
const DefaultSampling = 1.0

// Mesh is the mesh's settings. It is immutable. The nil Mesh has none.
type Mesh struct {
	providers map[string]*provider
	tracing   string   // name of the default provider; "" for none
	logs      []string // names of the default providers
	sampling  float64
	unchecked bool // any provider exists
	// Problems are fields that have no effect, or mean nothing, each with its cause.
	Problems []string
}

// provider is one of extensionProviders.
type provider struct {
	kind      string // as the field is called, such as opentelemetry
	collector *telemetrypb.Collector
	log       *telemetrypb.LogProvider
	invalid   string // why it cannot be used; "" when it can
}

// ReadMesh reads the fields of a MeshConfig that are about telemetry.
func ReadMesh(m *meshv1alpha1.MeshConfig) *Mesh {
	out := &Mesh{providers: map[string]*provider{}, sampling: DefaultSampling}
	for i, p := range m.GetExtensionProviders() {
		at := fmt.Sprintf("extensionProviders[%d]", i)
		if p.GetName() == "" {
			out.problem(at, "it has no name")
			continue
		}
		if out.providers[p.GetName()] != nil {
			out.problem(at, "there is another provider named %q", p.GetName())
			continue
		}
		out.providers[p.GetName()] = out.provider(at, p)
	}
	out.accessLog(m)
	if t := m.GetDefaultConfig().GetTracing(); t != nil {
		switch v := t.GetSampling(); {
		case v < 0 || v > 100:
			out.problem("defaultConfig.tracing.sampling", "%v is not between 0 and 100: %v is used", v, DefaultSampling)
		case v > 0:
			out.sampling = v
		}
	}
	if list := m.GetDefaultProviders().GetTracing(); len(list) > 0 {
		if len(list) > 1 {
			out.problem("defaultProviders.tracing", "only the first provider is used")
		}
		switch p := out.providers[list[0]]; {
		case p == nil:
			out.problem("defaultProviders.tracing", "there is no provider %q in extensionProviders", list[0])
		case p.collector == nil:
			out.problem("defaultProviders.tracing", "provider %q: %s", list[0], p.invalid)
		default:
			out.tracing = list[0]
		}
	}
	return out
}

func (m *Mesh) problem(at, format string, args ...any) {
	m.Problems = append(m.Problems, at+": "+fmt.Sprintf(format, args...))
}

func (m *Mesh) provider(at string, p *meshv1alpha1.MeshConfig_ExtensionProvider) *provider {
	if o := p.GetOpentelemetry(); o != nil {
		out := &provider{kind: "opentelemetry"}
		c, err := m.collector(at+".opentelemetry", p.GetName(), o)
		if err != nil {
			out.invalid = err.Error()
			m.problem(at+".opentelemetry", "%v", err)
			return out
		}
		out.collector = c
		return out
	}
	if f := p.GetEnvoyFileAccessLog(); f != nil {
		return m.file(at+".envoyFileAccessLog", p.GetName(), f)
	}
	if o := p.GetEnvoyOtelAls(); o != nil {
		return m.records(at+".envoyOtelAls", p.GetName(), o)
	}
	if p.GetPrometheus() != nil {
		return &provider{kind: "prometheus", invalid: "it is for metrics alone"} // every waypoint serves them
	}
	kind := "of no kind that is known"
	r := p.ProtoReflect()
	if f := r.WhichOneof(r.Descriptor().Oneofs().ByName("provider")); f != nil {
		kind = f.JSONName()
	}
	out := &provider{kind: kind, invalid: "a waypoint sends nothing to a provider " + kind + "; use opentelemetry, envoyFileAccessLog or envoyOtelAls"}
	if p.GetEnvoyExtAuthzHttp() == nil && p.GetEnvoyExtAuthzGrpc() == nil { // they are for policies
		m.problem(at, "%s", out.invalid)
	}
	return out
}

// collector reads where spans go. The namespace of the service may be missing: it is
// found where the provider is used.
func (m *Mesh) collector(at, name string, o *meshv1alpha1.MeshConfig_ExtensionProvider_OpenTelemetryTracingProvider) (*telemetrypb.Collector, error) {
	c := &telemetrypb.Collector{Provider: name, Service: serviceOf(o.GetService()), Port: o.GetPort()}
	var headers []*meshv1alpha1.MeshConfig_ExtensionProvider_HttpHeader
	var timeout time.Duration
	if h := o.GetHttp(); h != nil {
		c.Path = cmp.Or(h.GetPath(), "/v1/traces")
		headers, timeout = h.GetHeaders(), h.GetTimeout().AsDuration()
	}
	if g := o.GetGrpc(); g != nil {
		if o.GetHttp() != nil {
			return nil, fmt.Errorf("it has http and grpc: keep one of them")
		}
		headers, timeout = g.GetInitialMetadata(), g.GetTimeout().AsDuration()
	}
	if timeout < 0 || timeout > time.Hour {
		return nil, fmt.Errorf("timeout %s is not possible", timeout)
	}
	c.TimeoutMilliseconds = uint32(timeout.Milliseconds())
	for _, h := range headers {
		if h.GetEnvName() != "" {
			return nil, fmt.Errorf("header %s: a value of the proxy's environment (envName) is not possible; write value", h.GetName())
		}
		c.Headers = append(c.Headers, &telemetrypb.Header{Name: h.GetName(), Value: h.GetValue()})
	}
	for field, set := range map[string]bool{
		"maxTagLength": o.GetMaxTagLength() != 0, "resourceDetectors": o.GetResourceDetectors() != nil,
		"dynatraceSampler": o.GetDynatraceSampler() != nil, "serviceAttributeEnrichment": o.GetServiceAttributeEnrichment() != 0,
	} {
		if set {
			m.problem(at+"."+field, "it has no effect")
		}
	}
	probe := proto.CloneOf(c)
	if probe.Service.Namespace == "" {
		probe.Service.Namespace = "any"
	}
	if err := check(&telemetrypb.Layer{Tracing: &telemetrypb.Tracing{Collector: probe}}); err != nil {
		return nil, err
	}
	return c, nil
}

// serviceOf reads [namespace/]hostname.
func serviceOf(s string) *telemetrypb.Service {
	ns, host, found := strings.Cut(strings.ToLower(s), "/")
	if !found {
		ns, host = "", ns
		if parts := strings.SplitN(host, ".", 4); len(parts) >= 3 && parts[2] == "svc" {
			ns = parts[1]
		}
	}
	return &telemetrypb.Service{Namespace: ns, Hostname: host}
}

// check returns why a gateway would reject a layer.
func check(l *telemetrypb.Layer) error {
	_, err := requests.Language.Compile(l, nil, nil)
	return err
}

// Hosts returns the namespace of the service that has a host name, and whether there is
// one.
type Hosts func(hostname string) (namespace string, ok bool)

// traced returns where the spans of a provider go.
func (m *Mesh) traced(name string, hosts Hosts) (*telemetrypb.Collector, error) {
	if m != nil && m.unchecked {
		return &telemetrypb.Collector{Provider: name, Service: &telemetrypb.Service{Namespace: "any", Hostname: "any"}, Port: 1}, nil
	}
	if m == nil || m.providers[name] == nil {
		return nil, fmt.Errorf("there is no provider %q in extensionProviders of the mesh configuration", name)
	}
	p := m.providers[name]
	if p.collector == nil {
		return nil, fmt.Errorf("provider %q: %s", name, p.invalid)
	}
	return resolve(p.collector, hosts)
}

// resolve fills in the namespace of a collector's service.
func resolve(c *telemetrypb.Collector, hosts Hosts) (*telemetrypb.Collector, error) {
	if c.GetService().GetNamespace() != "" {
		return c, nil
	}
	ns, ok := hosts(c.GetService().GetHostname())
	if !ok {
		return nil, fmt.Errorf("provider %q: no ServiceEntry has the host %s, and it is no name of a Service; write namespace/host", c.GetProvider(), c.GetService().GetHostname())
	}
	out := proto.CloneOf(c)
	out.Service.Namespace = ns
	return out, nil
}

// Layer returns the layer of the mesh's settings.
func (m *Mesh) Layer(hosts Hosts) []byte { return encode(m.layer(hosts)) }

func (m *Mesh) layer(hosts Hosts) *telemetrypb.Layer {
	l := &telemetrypb.Layer{Scope: telemetrypb.Scope_MESH, Tracing: &telemetrypb.Tracing{Sampling: proto.Float64(DefaultSampling)}}
	if m != nil {
		l.Tracing.Sampling = proto.Float64(m.sampling)
		if m.tracing != "" {
			l.Tracing.Collector, _ = m.traced(m.tracing, hosts) // what is wrong is in Problems, or not there yet
		}
	}
	if m != nil && len(m.logs) > 0 {
		rule := &telemetrypb.AccessLogging{}
		for _, name := range m.logs {
			if log, err := m.logged(name, hosts); err == nil { // its host may be there later
				rule.Providers = append(rule.Providers, log)
			}
		}
		if len(rule.Providers) > 0 {
			l.AccessLogging = append(l.AccessLogging, rule)
		}
	}
	return l
}

func encode(l *telemetrypb.Layer) []byte {
	body, _ := proto.MarshalOptions{Deterministic: true}.Marshal(l) // strings come from decoded JSON
	return body
}
