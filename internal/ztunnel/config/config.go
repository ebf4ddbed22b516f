// Package config reads the node proxy's settings from its environment. The
// variables and defaults are those of Istio's ztunnel, so that its container
// can be replaced; a value that is not understood is refused, never guessed.
package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
)

// Mode says whose traffic the process carries.
type Mode string

// The two modes.
const (
	// Shared serves every pod that the node agent hands over.
	Shared Mode = "shared"
	// Dedicated serves one workload, in the network the process runs in.
	Dedicated Mode = "dedicated"
)

// Files that an installation mounts when a variable does not say otherwise;
// relative to the working directory, as in upstream's container.
const (
	defaultRootCA    = "./var/run/secrets/istio/root-cert.pem"
	defaultTokenFile = "./var/run/secrets/tokens/istio-token"
	meshConfigFile   = "./etc/istio/config/mesh"
)

// RootsSystem as a RootCA means the roots of the operating system.
const RootsSystem = "SYSTEM"

// maxThreads bounds the number of event loops; no machine has more cores that
// one proxy could feed.
const maxThreads = 1024

const (
	defaultThreads        = 2    // floor without an explicit limit
	defaultThreadFraction = 0.25 // of the cores, without an explicit limit
	defaultDrain          = 5 * time.Second
	// defaultCapturedIdle is below the 60 s after which the kernel forgets a
	// half-closed connection (nf_conntrack_tcp_timeout_close_wait), and its
	// redirection with it. A probe may be late by 15 s.
	defaultCapturedIdle = 45 * time.Second
)

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

// WorkloadInfo names one workload.
type WorkloadInfo struct {
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

// KeepAlive is how idle TCP connections are probed. The times are those of
// connections between nodes; CapturedIdle is that of connections which are
// redirected inside a pod.
type KeepAlive struct {
	Enabled     bool     `json:"keepaliveEnabled"`
	Time        Duration `json:"keepaliveTime"`
	Interval    Duration `json:"keepaliveInterval"`
	Retries     int      `json:"keepaliveRetries"`
	UserTimeout bool     `json:"userTimeoutEnabled"`
	// CapturedIdle is the longest silence on a connection between a program and
	// the proxy.
	CapturedIdle Duration `json:"capturedKeepaliveTime"`
}

// Config is everything the environment says. Its JSON form is the config
// object of /config_dump and holds no secret.
type Config struct {
	Proxy    bool `json:"proxy"`
	DNSProxy bool `json:"dnsProxy"`
	SOCKS5   bool `json:"socks5"`

	Mode          Mode          `json:"proxyMode"`
	Workload      *WorkloadInfo `json:"proxyWorkloadInformation,omitempty"`
	Network       string        `json:"network"`
	NodeName      string        `json:"localNode"`
	ClusterID     string        `json:"clusterId"`
	ClusterDomain string        `json:"clusterDomain"`
	TrustDomain   string        `json:"trustDomain"`
	IPv6          bool          `json:"ipv6Enabled"`

	// OrigSrc keeps client addresses on connections to applications; nil
	// means where the kernel allows it.
	OrigSrc    *bool     `json:"requireOriginalSource"`
	PacketMark uint32    `json:"packetMark"` // 0: none
	KeepAlive  KeepAlive `json:"socketConfig"`

	StreamWindow uint32 `json:"windowSize"`           // bytes
	ConnWindow   uint32 `json:"connectionWindowSize"` // bytes
	FrameSize    uint32 `json:"frameSize"`            // bytes

	PoolMaxStreams  uint32   `json:"poolMaxStreamsPerConn"`
	PoolIdleRelease Duration `json:"poolUnusedReleaseTimeout"`
	// TunnelSilence is how long nothing may arrive on a tunnel with connections.
	TunnelSilence Duration `json:"tunnelSilenceTimeout"`

	// CloseUncaptured ends connections from before enrolment when a policy
	// denies them.
	CloseUncaptured bool `json:"closeUncapturedConnections"`

	ZDSSocket string `json:"inpodUds"`
	PortReuse bool   `json:"inpodPortReuse"`

	XDS                       Endpoint          `json:"xds"`
	XDSOnDemand               bool              `json:"xdsOnDemand"`
	PreferredServiceNamespace string            `json:"preferedServiceNamespace,omitempty"`
	LocalXDSPath              string            `json:"localXdsPath,omitempty"`
	LocalXDS                  string            `json:"-"`
	ProxyMetadata             map[string]string `json:"proxyMetadata"`

	CA        Endpoint `json:"ca"`
	FakeCA    bool     `json:"fakeCa"`
	SecretTTL Duration `json:"secretTtl"`
	CRLPath   string   `json:"crlPath,omitempty"`
	TLS12     bool     `json:"tls12Enabled"`
	PQC       bool     `json:"compliancePqc"`

	// TokenFile and Token are where to find the bearer token for the control
	// plane; both empty means to go without.
	TokenFile string `json:"-"`
	Token     string `json:"-"`

	DrainDeadline Duration `json:"selfTerminationDeadline"`
	Threads       int      `json:"numWorkerThreads"`

	LocalhostAppTunnel bool `json:"localhostAppTunnel"`
	ResponseBaggage    bool `json:"enableEnhancedBaggage"`
	// AccessLogRate and AccessLogFailedRate are how many access log lines of one
	// pod a second are written, of connections that went well and of others.
	AccessLogRate       uint32 `json:"accessLogRate"`
	AccessLogFailedRate uint32 `json:"accessLogFailedRate"`
	AuthzInfoLogging    bool   `json:"authzPolicyInfoLogging"`

	// Self names the proxy's own pod, when the downward API tells it.
	Self       *WorkloadInfo `json:"ztunnelWorkload,omitempty"`
	InstanceIP string        `json:"instanceIp,omitempty"`

	LogFormat string `json:"logFormat"` // plain or json
	LogLevel  string `json:"logLevel"`

	AdminAddr, StatsAddr, ReadyAddr netip.AddrPort
}

// Host is what Load wants to know of the machine.
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

// proxyConfig is the part of Istio's ProxyConfig that a node proxy heeds.
type proxyConfig struct {
	DiscoveryAddress string            `json:"discoveryAddress"`
	ProxyAdminPort   uint16            `json:"proxyAdminPort"`
	StatsPort        uint16            `json:"statsPort"`
	Concurrency      *uint16           `json:"concurrency"`
	ProxyMetadata    map[string]string `json:"proxyMetadata"`
}

// Load reads the settings. The error joins everything that is wrong.
func Load(env Env, host Host) (*Config, error) {
	r := &reader{env: env}
	pc := r.proxyConfig(host)
	c := &Config{
		Proxy:  r.boolean("ENABLE_PROXY", true),
		SOCKS5: r.boolean("UNSTABLE_ENABLE_SOCKS5", false),
		IPv6:   r.boolean("IPV6_ENABLED", true),

		Network:       r.str("NETWORK", ""),
		NodeName:      r.str("NODE_NAME", ""),
		ClusterID:     r.str("ISTIO_META_CLUSTER_ID", r.str("CLUSTER_ID", wellknown.DefaultCluster)),
		ClusterDomain: r.str("CLUSTER_DOMAIN", wellknown.DefaultDomain),
		TrustDomain:   r.str("TRUST_DOMAIN", identity.DefaultTrustDomain),

		StreamWindow: uint32(r.uint("HTTP2_STREAM_WINDOW_SIZE", 4<<20, 65535, 1<<31-1)),
		ConnWindow:   uint32(r.uint("HTTP2_CONNECTION_WINDOW_SIZE", 16<<20, 65535, 1<<31-1)),
		FrameSize:    uint32(r.uint("HTTP2_FRAME_SIZE", 1<<20, 16384, 1<<24-1)),

		PoolMaxStreams:  uint32(r.uint("POOL_MAX_STREAMS_PER_CONNECTION", 100, 1, 65535)),
		PoolIdleRelease: r.duration("POOL_UNUSED_RELEASE_TIMEOUT", 5*time.Minute, 0),
		TunnelSilence:   r.duration("TUNNEL_SILENCE_TIMEOUT", 3*time.Minute, time.Second),

		CloseUncaptured: r.boolean("CLOSE_UNCAPTURED_CONNECTIONS", true),

		ZDSSocket: r.str("INPOD_UDS", wellknown.ZDSSocket),
		PortReuse: r.boolean("INPOD_PORT_REUSE", true),

		XDSOnDemand:               r.boolean("XDS_ON_DEMAND", false),
		PreferredServiceNamespace: r.str("PREFERED_SERVICE_NAMESPACE", ""), //nolint:misspell // the variable's name
		LocalXDSPath:              r.str("LOCAL_XDS_PATH", ""),
		LocalXDS:                  r.str("LOCAL_XDS", ""),
		ProxyMetadata:             pc.ProxyMetadata,

		FakeCA:    r.boolean("FAKE_CA", false),
		SecretTTL: r.duration("SECRET_TTL", 24*time.Hour, time.Second),
		CRLPath:   r.str("CRL_PATH", ""),
		TLS12:     r.boolean("TLS12_ENABLED", false),

		LocalhostAppTunnel: r.boolean("LOCALHOST_APP_TUNNEL", true),
		ResponseBaggage:    r.boolean("ENABLE_RESPONSE_BAGGAGE", true),

		AccessLogRate:       uint32(r.uint("ACCESS_LOG_POD_RATE", uint64(accesslog.DefaultRates.Complete), 0, 1_000_000)),
		AccessLogFailedRate: uint32(r.uint("ACCESS_LOG_POD_FAILED_RATE", uint64(accesslog.DefaultRates.Failed), 0, 1_000_000)),
		AuthzInfoLogging:    r.boolean("AUTHZ_POLICY_INFO_LOGGING", false),
		InstanceIP:          r.str("INSTANCE_IP", ""),
	}
	r.mode(c)
	r.sockets(c)
	r.controlPlane(c, pc, host)
	r.addresses(c, pc)
	r.threads(c, pc, host)
	r.drain(c)
	r.logging(c)
	r.self(c)
	r.compliance(c)
	r.dns(c)
	r.check(c)
	if err := errors.Join(r.errs...); err != nil {
		return nil, fmt.Errorf("environment not understood:\n%w", err)
	}
	return c, nil
}

func (r *reader) mode(c *Config) {
	v := r.str("PROXY_MODE", string(Shared))
	switch c.Mode = Mode(v); c.Mode {
	case Shared:
		return
	case Dedicated:
	default:
		r.fail("PROXY_MODE", v, "must be %s or %s", Shared, Dedicated)
		return
	}
	info := r.str("PROXY_WORKLOAD_INFO", "")
	p := strings.Split(info, "/")
	if len(p) != 3 || p[0] == "" || p[1] == "" || p[2] == "" {
		r.fail("PROXY_WORKLOAD_INFO", info, "PROXY_MODE=%s needs namespace/name/service-account here", Dedicated)
		return
	}
	c.Workload = &WorkloadInfo{Namespace: p[0], Name: p[1], ServiceAccount: p[2]}
}

func (r *reader) sockets(c *Config) {
	c.KeepAlive = KeepAlive{
		Enabled:     r.boolean("KEEPALIVE_ENABLED", true),
		Time:        r.duration("KEEPALIVE_TIME", 180*time.Second, time.Second),
		Interval:    r.duration("KEEPALIVE_INTERVAL", 180*time.Second, time.Second),
		Retries:     int(r.uint("KEEPALIVE_RETRIES", 9, 1, 127)), // the kernel's own bounds
		UserTimeout: r.boolean("USER_TIMEOUT_ENABLED", false),

		CapturedIdle: r.duration("CAPTURED_KEEPALIVE_TIME", defaultCapturedIdle, time.Second),
	}
	mark := uint64(0)
	if c.Mode == Shared {
		mark = wellknown.MarkProxy // in-pod redirection needs it
	}
	c.PacketMark = uint32(r.uint("PACKET_MARK", mark, 0, 1<<32-1))
	if _, ok := r.get("ENABLE_ORIG_SRC"); ok {
		b := r.boolean("ENABLE_ORIG_SRC", false)
		c.OrigSrc = &b
	}
}

func (r *reader) controlPlane(c *Config, pc proxyConfig, host Host) {
	def := "https://localhost:15012"
	if _, ok := r.get("KUBERNETES_SERVICE_HOST"); ok {
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
	if c.FakeCA {
		ca = ""
	}
	c.XDS = r.endpoint("XDS_ADDRESS", xds, "XDS_ROOT_CA", "ALT_XDS_HOSTNAME", "XDS_HEADER_")
	c.CA = r.endpoint("CA_ADDRESS", ca, "CA_ROOT_CA", "ALT_CA_HOSTNAME", "CA_HEADER_")

	switch v, ok := r.get("AUTH_TOKEN"); {
	case !ok && host.Exists(defaultTokenFile):
		c.TokenFile = defaultTokenFile
	case !ok:
	case host.Exists(v) || strings.HasPrefix(v, "/") || strings.HasPrefix(v, "./"):
		c.TokenFile = v
	default:
		c.Token = v
	}
	if c.LocalXDS != "" && c.LocalXDSPath != "" {
		r.fail("LOCAL_XDS_PATH", c.LocalXDSPath, "only one of LOCAL_XDS and LOCAL_XDS_PATH can be set")
	}
}

func (r *reader) endpoint(key, addr, rootKey, altKey, headerPrefix string) Endpoint {
	e := Endpoint{
		TLS:         true,
		RootCA:      r.str(rootKey, defaultRootCA),
		AltHostname: r.str(altKey, ""),
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
		r.fail(key, addr, "must be https://host:port or http://host:port")
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
		r.fail(key, addr, "the scheme must be https or http")
		return e
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		r.fail(key, addr, "bad port")
		return e
	}
	e.Address = net.JoinHostPort(u.Hostname(), port)
	return e
}

func (r *reader) addresses(c *Config, pc proxyConfig) {
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	wildcard := any4
	if c.IPv6 {
		wildcard = any6
	}
	admin, stats := uint16(wellknown.PortAdmin), uint16(wellknown.PortMetrics)
	if pc.ProxyAdminPort != 0 {
		admin = pc.ProxyAdminPort
	}
	if pc.StatsPort != 0 {
		stats = pc.StatsPort
	}
	c.AdminAddr = r.addr("AMBIT_ADMIN_ADDR", netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), admin))
	c.StatsAddr = r.addr("AMBIT_STATS_ADDR", netip.AddrPortFrom(wildcard, stats))
	c.ReadyAddr = r.addr("AMBIT_READY_ADDR", netip.AddrPortFrom(wildcard, wellknown.PortReady))
}

// threads decides the number of event loops: an explicit number, else the
// explicit CPU limit, else a fraction of the cores, never below the CPU
// request.
func (r *reader) threads(c *Config, pc proxyConfig, host Host) {
	limit, request := r.cpus("ZTUNNEL_RESOURCE_CPU_LIMIT"), r.cpus("ZTUNNEL_RESOURCE_CPU_REQUEST")
	cores := host.CPUs
	if n := r.uint("ZTUNNEL_CPU_LIMIT", 0, 0, maxThreads); n > 0 {
		cores = int(n)
	}
	if limit > 0 {
		cores = limit
	}
	switch {
	case pc.Concurrency != nil && *pc.Concurrency > 0:
		c.Threads = int(*pc.Concurrency)
	case pc.Concurrency != nil:
		c.Threads = cores
	case limit > 0:
		c.Threads = max(limit, request)
	default:
		c.Threads = max(ceil(float64(cores)*defaultThreadFraction), request, defaultThreads)
	}
	if v, ok := r.get("ZTUNNEL_WORKER_THREADS"); ok {
		c.Threads = r.workerThreads(v, cores)
	}
	c.Threads = min(max(c.Threads, 1), maxThreads)
}

func (r *reader) workerThreads(v string, cores int) int {
	if num, ok := strings.CutSuffix(v, "%"); ok {
		p, err := strconv.ParseFloat(num, 64)
		if err != nil || !(p > 0 && p <= 100) {
			r.fail("ZTUNNEL_WORKER_THREADS", v, "a percentage must be above 0 and at most 100")
			return 1
		}
		return ceil(float64(cores) * p / 100)
	}
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil || n > maxThreads {
		r.fail("ZTUNNEL_WORKER_THREADS", v, "must be a number up to %d, or a percentage of the CPUs", maxThreads)
		return 1
	}
	if n == 0 {
		return cores
	}
	return int(n)
}

func ceil(f float64) int {
	n := int(f)
	if float64(n) < f {
		n++
	}
	return n
}

// drain leaves the last seconds of the grace period for closing what remains
// before the kill signal comes.
func (r *reader) drain(c *Config) {
	c.DrainDeadline = Duration(defaultDrain)
	if grace := r.uint("TERMINATION_GRACE_PERIOD_SECONDS", 0, 0, 1<<31); grace > 10 {
		c.DrainDeadline = Duration(grace-5) * Duration(time.Second)
	} else if grace > 0 {
		c.DrainDeadline = Duration(max(grace-1, 1)) * Duration(time.Second)
	}
	c.DrainDeadline = r.duration("CONNECTION_TERMINATION_DEADLINE", c.DrainDeadline.Std(), 0)
}

func (r *reader) logging(c *Config) {
	c.LogFormat = r.str("LOG_FORMAT", "plain")
	if c.LogFormat != "plain" && c.LogFormat != "json" {
		r.fail("LOG_FORMAT", c.LogFormat, "must be plain or json")
	}
	c.LogLevel = r.str("RUST_LOG", "info")
}

func (r *reader) self(c *Config) {
	name, ns, sa := r.str("POD_NAME", ""), r.str("POD_NAMESPACE", ""), r.str("SERVICE_ACCOUNT", "")
	if name != "" && ns != "" && sa != "" {
		c.Self = &WorkloadInfo{Name: name, Namespace: ns, ServiceAccount: sa}
	}
}

func (r *reader) compliance(c *Config) {
	switch v := r.str("COMPLIANCE_POLICY", ""); v {
	case "", "fips-140-2":
	case "pqc":
		c.PQC = true
	default:
		r.fail("COMPLIANCE_POLICY", v, "must be pqc, fips-140-2 or empty")
	}
}

func (r *reader) dns(c *Config) {
	v, ok := c.ProxyMetadata["DNS_CAPTURE"]
	c.DNSProxy = !ok || strings.EqualFold(v, "true")
	// On-demand discovery only knows addresses that were asked for, so it
	// cannot answer for names.
	if c.DNSProxy && c.XDSOnDemand {
		if ok {
			r.fail("XDS_ON_DEMAND", "true", "cannot be combined with the DNS proxy; set ISTIO_META_DNS_CAPTURE=false")
		}
		c.DNSProxy = false
	}
}

func (r *reader) check(c *Config) {
	if !c.Proxy && !c.DNSProxy {
		r.fail("ENABLE_PROXY", "false", "nothing left to serve: the DNS proxy is off too")
	}
	probe := identity.Identity{TrustDomain: c.TrustDomain, Namespace: "x", ServiceAccount: "x"}
	if err := probe.Validate(); err != nil {
		r.fail("TRUST_DOMAIN", c.TrustDomain, "%v", err)
	}
}

// proxyConfig merges the mesh configuration's defaultConfig, PROXY_CONFIG and
// the ISTIO_META_ variables, the later winning.
func (r *reader) proxyConfig(host Host) proxyConfig {
	var pc proxyConfig
	if raw, err := host.ReadFile(meshConfigFile); err == nil {
		var mesh struct {
			DefaultConfig proxyConfig `json:"defaultConfig"`
		}
		if err := yaml.Unmarshal(raw, &mesh); err != nil {
			r.fail(meshConfigFile, "", "%v", err)
		}
		pc = mesh.DefaultConfig
	} else if !errors.Is(err, os.ErrNotExist) {
		r.fail(meshConfigFile, "", "%v", err)
	}
	if v, ok := r.get("PROXY_CONFIG"); ok {
		// Unmarshalling onto the struct merges: what is absent stays, and
		// maps are merged key by key.
		if err := yaml.Unmarshal([]byte(v), &pc); err != nil {
			r.fail("PROXY_CONFIG", v, "%v", err)
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
