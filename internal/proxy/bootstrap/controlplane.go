package bootstrap

import (
	"net"
	"net/url"
	"strconv"
	"strings"
)

// RootsSystem as a RootCA means the roots of the operating system.
const RootsSystem = "SYSTEM"

// Header is one piece of gRPC metadata.
type Header struct{ Name, Value string }

// Endpoint is a server of the control plane.
type Endpoint struct {
	// Address is host:port; empty when there is none to talk to.
	Address string `json:"address,omitempty"`
	// TLS is false only for an http:// address.
	TLS bool `json:"tls"`
	// RootCA is a file, RootsSystem, or PEM text itself.
	RootCA string `json:"rootCa,omitempty"`
	// AltHostname, if set, is the name to expect in the server's certificate.
	AltHostname string   `json:"altHostname,omitempty"`
	Headers     []Header `json:"-"` // may carry credentials
}

// URL renders the endpoint, "" for none.
func (e Endpoint) URL() string {
	switch {
	case e.Address == "":
		return ""
	case e.TLS:
		return "https://" + e.Address
	}
	return "http://" + e.Address
}

// HeaderMap is Headers as a map.
func (e Endpoint) HeaderMap() map[string]string {
	if len(e.Headers) == 0 {
		return nil
	}
	m := make(map[string]string, len(e.Headers))
	for _, h := range e.Headers {
		m[h.Name] = h.Value
	}
	return m
}

func (r *Reader) controlPlane(s *Settings, pc proxyConfig, host Host) {
	def := "https://localhost:15012"
	if _, ok := r.Get("KUBERNETES_SERVICE_HOST"); ok {
		def = "https://istiod.istio-system.svc:15012"
	}
	xds := def
	if pc.DiscoveryAddress != "" {
		xds = pc.DiscoveryAddress
	}
	// Set but empty means none, which is different from not set.
	if v, set := r.env["XDS_ADDRESS"]; set {
		xds = strings.TrimSpace(v)
	}
	ca := def
	if v, set := r.env["CA_ADDRESS"]; set {
		ca = strings.TrimSpace(v)
	}
	if s.FakeCA {
		ca = ""
	}
	s.XDS = r.endpoint("XDS_ADDRESS", xds, "XDS_ROOT_CA", "ALT_XDS_HOSTNAME", "XDS_HEADER_")
	s.CA = r.endpoint("CA_ADDRESS", ca, "CA_ROOT_CA", "ALT_CA_HOSTNAME", "CA_HEADER_")

	switch v, ok := r.Get("AUTH_TOKEN"); {
	case !ok && host.Exists(defaultTokenFile):
		s.TokenFile = defaultTokenFile
	case !ok:
	case host.Exists(v) || strings.HasPrefix(v, "/") || strings.HasPrefix(v, "./"):
		s.TokenFile = v
	default:
		s.Token = v
	}
}

func (r *Reader) endpoint(key, addr, rootKey, altKey, headerPrefix string) Endpoint {
	e := Endpoint{
		TLS:         true,
		RootCA:      r.Text(rootKey, defaultRootCA),
		AltHostname: r.Text(altKey, ""),
		Headers:     r.headers(headerPrefix),
	}
	if addr == "" {
		return e
	}
	full := addr
	if !strings.Contains(full, "://") {
		full = "https://" + full
	}
	u, err := url.Parse(full)
	if err != nil || u.Hostname() == "" || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.User != nil {
		r.Fail(key, addr, "must be https://host:port or http://host:port")
		return e
	}
	port := u.Port()
	switch u.Scheme {
	case "https":
		if port == "" {
			port = "443"
		}
	case "http":
		e.TLS = false
		if port == "" {
			port = "80"
		}
	default:
		r.Fail(key, addr, "the scheme must be https or http")
		return e
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		r.Fail(key, addr, "bad port")
		return e
	}
	e.Address = net.JoinHostPort(u.Hostname(), port)
	return e
}
