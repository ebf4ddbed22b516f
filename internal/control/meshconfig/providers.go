package meshconfig

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"

	authzpb "github.com/ambit-mesh/ambit/api/authz"
	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
)

// The field with providers. It may be written as it is called in the protobuf.
const (
	extensionProviders      = "extensionProviders"
	extensionProvidersProto = "extension_providers"
)

const (
	// DefaultCheckTimeout is how long a request waits for an external authorizer that has
	// no timeout of its own. Istio's is ten minutes, in which its requests hang.
	DefaultCheckTimeout = 2 * time.Second
	defaultStatus       = 403
	// maxProviders bounds the list.
	maxProviders = 1024
	maxName      = 63
)

// Provider is an entry of extensionProviders. It is immutable.
type Provider struct {
	// Check is the external authorizer; nil for one that cannot be used, and for a
	// provider of another kind.
	Check *authzpb.Provider
	// Problem is why it cannot be used.
	Problem string
}

// Providers are the entries of extensionProviders by name. nil has none.
type Providers map[string]*Provider

// Same reports whether two sets of providers are alike.
func (p Providers) Same(o Providers) bool {
	return maps.EqualFunc(p, o, func(a, b *Provider) bool { return a.Problem == b.Problem && proto.Equal(a.Check, b.Check) })
}

// Check returns the external authorizer of a name, or why there is none.
func (p Providers) Check(name string) (*authzpb.Provider, error) {
	switch one := p[name]; {
	case name == "":
		return nil, errors.New("spec.provider.name is empty")
	case one == nil:
		return nil, fmt.Errorf("meshConfig.extensionProviders has no provider %q", name)
	case one.Problem != "":
		return nil, fmt.Errorf("provider %q of meshConfig.extensionProviders: %s", name, one.Problem)
	case one.Check == nil:
		return nil, fmt.Errorf("provider %q of meshConfig.extensionProviders is no external authorizer", name)
	default:
		return one.Check, nil
	}
}

// Problems lists what is wrong with providers, in order.
func (p Providers) Problems() (out []string) {
	for _, name := range slices.Sorted(maps.Keys(p)) {
		if why := p[name].Problem; why != "" {
			out = append(out, fmt.Sprintf("provider %q: %s", name, why))
		}
	}
	return out
}

// provide takes the providers over. A mistake in one is that provider's alone.
func (c *Config) provide(value json.RawMessage) error {
	if c.Providers != nil {
		return fmt.Errorf("there is %s as well; keep one of them", extensionProviders)
	}
	var entries []json.RawMessage
	if err := json.Unmarshal(value, &entries); err != nil {
		return err
	}
	if len(entries) > maxProviders {
		return fmt.Errorf("%d providers, at most %d", len(entries), maxProviders)
	}
	c.Providers = Providers{}
	for i, text := range entries {
		var named struct {
			Name string `json:"name"`
		}
		err := json.Unmarshal(text, &named)
		if err == nil && (named.Name == "" || len(named.Name) > maxName) {
			err = fmt.Errorf("name: %q is not 1 to %d characters", named.Name, maxName)
		}
		name := cmp.Or(named.Name, fmt.Sprintf("extensionProviders[%d]", i))
		p := &Provider{}
		if err == nil {
			p.Check, err = readProvider(text)
		}
		if err != nil {
			p = &Provider{Problem: err.Error()}
		}
		if c.Providers[name] != nil {
			p = &Provider{Problem: "there are two of this name; none of them is used"}
		}
		c.Providers[name] = p
	}
	return nil
}

// readProvider returns the external authorizer of an entry; nil without an error for an
// entry of another kind.
func readProvider(text json.RawMessage) (*authzpb.Provider, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(text, &keys); err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(slices.Collect(maps.Keys(keys)), func(k string) bool {
		return strings.HasPrefix(strings.ToLower(strings.ReplaceAll(k, "_", "")), "envoyextauthz")
	}) {
		_, err := readEntry(text, true)
		return nil, err
	}
	pb, err := readEntry(text, false)
	if err != nil {
		return nil, err
	}
	var out *authzpb.Provider
	switch x := pb.GetProvider().(type) {
	case *meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyExtAuthzHttp:
		out, err = httpProvider(x.EnvoyExtAuthzHttp)
	case *meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyExtAuthzGrpc:
		out, err = grpcProvider(x.EnvoyExtAuthzGrpc)
	default:
		err = errors.New("it has no provider")
	}
	if err != nil {
		return nil, err
	}
	out.Name = pb.GetName()
	_, err = extauthz.Compile(out)
	return out, err
}

// readEntry reads an entry. Fields that a newer version has are an error, or are skipped.
func readEntry(text json.RawMessage, skip bool) (*meshv1alpha1.MeshConfig_ExtensionProvider, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(text, &keys); err != nil {
		return nil, err
	}
	text, err := plainTimeout(keys)
	if err != nil {
		return nil, err
	}
	pb := &meshv1alpha1.MeshConfig_ExtensionProvider{}
	return pb, protojson.UnmarshalOptions{DiscardUnknown: skip}.Unmarshal(text, pb)
}

// plainTimeout writes the timeout of an entry in seconds: users may write 500ms as well.
func plainTimeout(entry map[string]json.RawMessage) (json.RawMessage, error) {
	for name, value := range entry {
		var inner map[string]json.RawMessage
		if json.Unmarshal(value, &inner) != nil {
			continue
		}
		var timeout string
		if json.Unmarshal(inner["timeout"], &timeout) != nil {
			continue
		}
		d, err := time.ParseDuration(timeout)
		if err != nil {
			return nil, fmt.Errorf("timeout: %q is no time such as 2s or 500ms", timeout)
		}
		if inner["timeout"], err = json.Marshal(strconv.FormatFloat(d.Seconds(), 'f', 9, 64) + "s"); err != nil {
			return nil, err
		}
		if entry[name], err = json.Marshal(inner); err != nil {
			return nil, err
		}
	}
	return json.Marshal(entry)
}

func httpProvider(pb *meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationHttpProvider) (*authzpb.Provider, error) {
	h := &authzpb.HTTPCheck{
		PathPrefix:     pb.GetPathPrefix(),
		IncludeHeaders: slices.Concat(pb.GetIncludeRequestHeadersInCheck(), pb.GetIncludeHeadersInCheck()), //nolint:staticcheck // users still write the old name
		ToUpstream:     pb.GetHeadersToUpstreamOnAllow(), ToClientOnAllow: pb.GetHeadersToDownstreamOnAllow(), ToClientOnDeny: pb.GetHeadersToDownstreamOnDeny(),
	}
	more := pb.GetIncludeAdditionalHeadersInCheck()
	for _, name := range slices.Sorted(maps.Keys(more)) {
		h.AddHeaders = append(h.AddHeaders, &authzpb.CheckHeader{Name: name, Value: more[name]})
	}
	out := &authzpb.Provider{FailOpen: pb.GetFailOpen(), RecomputeRoute: pb.GetClearRouteCache(), Body: body(pb.GetIncludeRequestBodyInCheck()), Protocol: &authzpb.Provider_Http{Http: h}}
	return out, common(out, pb.GetService(), pb.GetPort(), pb.GetTimeout(), pb.GetStatusOnError())
}

func grpcProvider(pb *meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationGrpcProvider) (*authzpb.Provider, error) {
	out := &authzpb.Provider{
		FailOpen: pb.GetFailOpen(), RecomputeRoute: pb.GetClearRouteCache(), Body: body(pb.GetIncludeRequestBodyInCheck()),
		Protocol: &authzpb.Provider_Grpc{Grpc: &authzpb.GRPCCheck{}},
	}
	return out, common(out, pb.GetService(), pb.GetPort(), pb.GetTimeout(), pb.GetStatusOnError())
}

func body(pb *meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationRequestBody) *authzpb.CheckBody {
	if pb == nil {
		return nil
	}
	return &authzpb.CheckBody{MaxBytes: pb.GetMaxRequestBytes(), AllowPartial: pb.GetAllowPartialMessage(), Raw: pb.GetPackAsBytes()}
}

// common takes over what both kinds have.
func common(out *authzpb.Provider, service string, port uint32, timeout *durationpb.Duration, status string) error {
	host := service
	if ns, rest, ok := strings.Cut(service, "/"); ok {
		if out.Namespace, host = ns, rest; ns == "" {
			return fmt.Errorf("service: %q has no namespace before the /", service)
		}
	}
	out.Hostname, out.Port = strings.ToLower(strings.TrimSuffix(host, ".")), port
	wait := DefaultCheckTimeout
	if timeout != nil {
		if err := timeout.CheckValid(); err != nil {
			return fmt.Errorf("timeout: %w", err)
		}
		wait = timeout.AsDuration()
	}
	if wait < time.Millisecond || wait > extauthz.MaxTimeout {
		return fmt.Errorf("timeout: %s is not 1ms to %s", wait, extauthz.MaxTimeout)
	}
	out.TimeoutMs = uint32(wait / time.Millisecond)
	out.StatusOnError = defaultStatus
	if status != "" {
		n, err := strconv.ParseUint(status, 10, 16)
		if err != nil {
			return fmt.Errorf("statusOnError: %q is no status of HTTP", status)
		}
		out.StatusOnError = uint32(n)
	}
	return nil
}
