// Package bootstrap reads from the environment what every proxy of the mesh
// needs, whatever its role: where the control plane is, who the proxy is, and how
// its sockets, tunnels and servers are set up. The variables and defaults are
// those of Istio's proxies, so that a container can be replaced. A value that is
// not understood is refused, never guessed.
package bootstrap

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Files that an installation mounts when a variable does not say otherwise;
// relative to the working directory, as in upstream's container.
const (
	defaultRootCA    = "./var/run/secrets/istio/root-cert.pem"
	defaultTokenFile = "./var/run/secrets/tokens/istio-token"
	meshConfigFile   = "./etc/istio/config/mesh"
)

const defaultDrain = 5 * time.Second

// Workload names one workload.
type Workload struct {
	Name           string `json:"name"`
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

// Duration is a time.Duration that dumps as people write it.
type Duration time.Duration

// Std is d for the standard library.
func (d Duration) Std() time.Duration { return time.Duration(d) }

func (d Duration) String() string { return d.Std().String() }

// MarshalText makes JSON of it.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Settings is what the environment says of every proxy. Its JSON form is a part of
// the config object of /config_dump and holds no secret.
type Settings struct {
	Network       string `json:"network"`
	NodeName      string `json:"localNode"`
	ClusterID     string `json:"clusterId"`
	ClusterDomain string `json:"clusterDomain"`
	TrustDomain   string `json:"trustDomain"`
	IPv6          bool   `json:"ipv6Enabled"`

	StreamWindow uint32 `json:"windowSize"`           // bytes
	ConnWindow   uint32 `json:"connectionWindowSize"` // bytes
	FrameSize    uint32 `json:"frameSize"`            // bytes

	PoolMaxStreams  uint32   `json:"poolMaxStreamsPerConn"`
	PoolIdleRelease Duration `json:"poolUnusedReleaseTimeout"`
	// TunnelSilence is how long nothing may arrive on a tunnel with connections.
	TunnelSilence Duration `json:"tunnelSilenceTimeout"`

	XDS           Endpoint          `json:"xds"`
	ProxyMetadata map[string]string `json:"proxyMetadata"`

	CA        Endpoint `json:"ca"`
	FakeCA    bool     `json:"fakeCa"`
	SecretTTL Duration `json:"secretTtl"`
	CRLPath   string   `json:"crlPath,omitempty"`
	TLS12     bool     `json:"tls12Enabled"`
	PQC       bool     `json:"compliancePqc"`
	// LibraryRecords has crypto/tls protect the records of tunnels, too.
	LibraryRecords bool `json:"libraryRecords"`

	// TokenFile and Token are where to find the bearer token for the control
	// plane; both empty means to go without.
	TokenFile string `json:"-"`
	Token     string `json:"-"`

	DrainDeadline Duration `json:"selfTerminationDeadline"`
	Threads       int      `json:"numWorkerThreads"`

	InstanceIP string `json:"instanceIp,omitempty"`

	LogFormat string `json:"logFormat"` // plain or json
	LogLevel  string `json:"logLevel"`

	AdminAddr, StatsAddr, ReadyAddr netip.AddrPort
}

// Host is what has to be known of the machine.
type Host struct {
	CPUs   int
	Exists func(path string) bool
	// ReadFile reads the mesh configuration file; an error that is
	// os.ErrNotExist means there is none.
	ReadFile func(path string) ([]byte, error)
}

// ThisHost describes the machine the process runs on.
func ThisHost() Host {
	return Host{
		CPUs:     runtime.NumCPU(),
		Exists:   func(p string) bool { _, err := os.Stat(p); return err == nil },
		ReadFile: os.ReadFile,
	}
}

// Role is in which way the settings of a role differ.
type Role struct {
	Threads ThreadVars
}

// Settings reads what is common to all roles. What is wrong is in Err.
func (r *Reader) Settings(host Host, role Role) Settings {
	pc := r.proxyConfig(host)
	s := Settings{
		IPv6:          r.Bool("IPV6_ENABLED", true),
		Network:       r.Text("NETWORK", ""),
		NodeName:      r.Text("NODE_NAME", ""),
		ClusterID:     r.Text("ISTIO_META_CLUSTER_ID", r.Text("CLUSTER_ID", wellknown.DefaultCluster)),
		ClusterDomain: r.Text("CLUSTER_DOMAIN", wellknown.DefaultDomain),
		TrustDomain:   r.Text("TRUST_DOMAIN", identity.DefaultTrustDomain),
		InstanceIP:    r.Text("INSTANCE_IP", ""),

		StreamWindow: uint32(r.Uint("HTTP2_STREAM_WINDOW_SIZE", 4<<20, 65535, 1<<31-1)),
		ConnWindow:   uint32(r.Uint("HTTP2_CONNECTION_WINDOW_SIZE", 16<<20, 65535, 1<<31-1)),
		FrameSize:    uint32(r.Uint("HTTP2_FRAME_SIZE", 1<<20, 16384, 1<<24-1)),

		PoolMaxStreams:  uint32(r.Uint("POOL_MAX_STREAMS_PER_CONNECTION", 100, 1, 65535)),
		PoolIdleRelease: r.Duration("POOL_UNUSED_RELEASE_TIMEOUT", 5*time.Minute, 0),
		TunnelSilence:   r.Duration("TUNNEL_SILENCE_TIMEOUT", 3*time.Minute, time.Second),

		ProxyMetadata: pc.ProxyMetadata,

		LibraryRecords: !r.Bool("AMBIT_RECORD_LAYER", true),

		FakeCA:    r.Bool("FAKE_CA", false),
		SecretTTL: r.Duration("SECRET_TTL", 24*time.Hour, time.Second),
		CRLPath:   r.Text("CRL_PATH", ""),
		TLS12:     r.Bool("TLS12_ENABLED", false),
	}
	r.controlPlane(&s, pc, host)
	r.addresses(&s, pc)
	s.Threads = r.threads(role.Threads, pc, host)
	r.drain(&s)
	r.logging(&s)
	r.compliance(&s)
	probe := identity.Identity{TrustDomain: s.TrustDomain, Namespace: "x", ServiceAccount: "x"}
	if err := probe.Validate(); err != nil {
		r.Fail("TRUST_DOMAIN", s.TrustDomain, "%v", err)
	}
	return s
}

// Self returns the proxy's own workload, nil when the downward API does not name it
// whole.
func (r *Reader) Self() *Workload {
	w := Workload{Name: r.Text("POD_NAME", ""), Namespace: r.Text("POD_NAMESPACE", ""), ServiceAccount: r.Text("SERVICE_ACCOUNT", "")}
	if w.Name == "" || w.Namespace == "" || w.ServiceAccount == "" {
		return nil
	}
	return &w
}

func (r *Reader) addresses(s *Settings, pc proxyConfig) {
	wildcard := netip.IPv4Unspecified()
	if s.IPv6 {
		wildcard = netip.IPv6Unspecified()
	}
	admin, stats := uint16(wellknown.PortAdmin), uint16(wellknown.PortMetrics)
	if pc.ProxyAdminPort != 0 {
		admin = pc.ProxyAdminPort
	}
	if pc.StatsPort != 0 {
		stats = pc.StatsPort
	}
	s.AdminAddr = r.Addr("AMBIT_ADMIN_ADDR", netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), admin))
	s.StatsAddr = r.Addr("AMBIT_STATS_ADDR", netip.AddrPortFrom(wildcard, stats))
	s.ReadyAddr = r.Addr("AMBIT_READY_ADDR", netip.AddrPortFrom(wildcard, wellknown.PortReady))
}

// drain leaves the last seconds of the grace period for closing what remains
// before the kill signal comes.
func (r *Reader) drain(s *Settings) {
	s.DrainDeadline = Duration(defaultDrain)
	if grace := r.Uint("TERMINATION_GRACE_PERIOD_SECONDS", 0, 0, 1<<31); grace > 10 {
		s.DrainDeadline = Duration(grace-5) * Duration(time.Second)
	} else if grace > 0 {
		s.DrainDeadline = Duration(max(grace-1, 1)) * Duration(time.Second)
	}
	s.DrainDeadline = r.Duration("CONNECTION_TERMINATION_DEADLINE", s.DrainDeadline.Std(), 0)
}

func (r *Reader) logging(s *Settings) {
	s.LogFormat = r.Text("LOG_FORMAT", "plain")
	if s.LogFormat != "plain" && s.LogFormat != "json" {
		r.Fail("LOG_FORMAT", s.LogFormat, "must be plain or json")
	}
	s.LogLevel = r.Text("RUST_LOG", "info")
}

func (r *Reader) compliance(s *Settings) {
	switch v := r.Text("COMPLIANCE_POLICY", ""); v {
	case "":
	case "fips-140-2":
		s.LibraryRecords = true
	case "pqc":
		s.PQC = true
	default:
		r.Fail("COMPLIANCE_POLICY", v, "must be pqc, fips-140-2 or empty")
	}
}

// proxyConfig is the part of Istio's ProxyConfig that proxies heed.
type proxyConfig struct {
	DiscoveryAddress string            `json:"discoveryAddress"`
	ProxyAdminPort   uint16            `json:"proxyAdminPort"`
	StatsPort        uint16            `json:"statsPort"`
	Concurrency      *uint16           `json:"concurrency"`
	ProxyMetadata    map[string]string `json:"proxyMetadata"`
}

// proxyConfig merges the mesh configuration's defaultConfig, PROXY_CONFIG and
// the ISTIO_META_ variables, the later winning.
func (r *Reader) proxyConfig(host Host) proxyConfig {
	var pc proxyConfig
	if raw, err := host.ReadFile(meshConfigFile); err == nil {
		var mesh struct {
			DefaultConfig proxyConfig `json:"defaultConfig"`
		}
		if err := yaml.Unmarshal(raw, &mesh); err != nil {
			r.Fail(meshConfigFile, "", "%v", err)
		}
		pc = mesh.DefaultConfig
	} else if !errors.Is(err, os.ErrNotExist) {
		r.Fail(meshConfigFile, "", "%v", err)
	}
	if v, ok := r.Get("PROXY_CONFIG"); ok {
		// Unmarshalling onto the struct merges: what is absent stays, and
		// maps are merged key by key.
		if err := yaml.Unmarshal([]byte(v), &pc); err != nil {
			r.Fail("PROXY_CONFIG", v, "%v", err)
		}
	}
	meta := make(map[string]string, len(pc.ProxyMetadata))
	for k, v := range pc.ProxyMetadata {
		meta[strings.TrimPrefix(k, "ISTIO_META_")] = v
	}
	for k, v := range r.env {
		if name, ok := strings.CutPrefix(k, "ISTIO_META_"); ok {
			meta[name] = v
		}
	}
	pc.ProxyMetadata = meta
	return pc
}
