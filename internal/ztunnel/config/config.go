// Package config reads the node proxy's settings from its environment: those of
// every proxy (package bootstrap), and its own. The variables and defaults are
// those of Istio's ztunnel, so that its container can be replaced.
package config

import (
	"net/netip"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
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

const (
	defaultThreadFraction = 0.25 // of the cores, without an explicit limit
	// defaultCapturedIdle is below the 60 s after which the kernel forgets a
	// half-closed connection (nf_conntrack_tcp_timeout_close_wait), and its
	// redirection with it. A probe may be late by 15 s.
	defaultCapturedIdle = 45 * time.Second
)

// KeepAlive is how idle TCP connections are probed. The times are those of
// connections between nodes; CapturedIdle is that of connections which are
// redirected inside a pod.
type KeepAlive struct {
	Enabled     bool               `json:"keepaliveEnabled"`
	Time        bootstrap.Duration `json:"keepaliveTime"`
	Interval    bootstrap.Duration `json:"keepaliveInterval"`
	Retries     int                `json:"keepaliveRetries"`
	UserTimeout bool               `json:"userTimeoutEnabled"`
	// CapturedIdle is the longest silence on a connection between a program and
	// the proxy.
	CapturedIdle bootstrap.Duration `json:"capturedKeepaliveTime"`
}

// Config is everything the environment says. Its JSON form is the config
// object of /config_dump and holds no secret.
type Config struct {
	bootstrap.Settings

	// EgressNameServers are name servers whose answers count for the hosts of
	// EgressPolicies, beside those of the proxy's own.
	EgressNameServers []netip.Addr `json:"egressNameServers,omitempty"`

	Proxy    bool `json:"proxy"`
	DNSProxy bool `json:"dnsProxy"`
	SOCKS5   bool `json:"socks5"`

	Mode     Mode                `json:"proxyMode"`
	Workload *bootstrap.Workload `json:"proxyWorkloadInformation,omitempty"`

	// OrigSrc keeps client addresses on connections to applications; nil
	// means where the kernel allows it.
	OrigSrc    *bool     `json:"requireOriginalSource"`
	PacketMark uint32    `json:"packetMark"` // 0: none
	KeepAlive  KeepAlive `json:"socketConfig"`

	// CloseUncaptured ends connections from before enrolment when a policy
	// denies them.
	CloseUncaptured bool `json:"closeUncapturedConnections"`

	ZDSSocket string `json:"inpodUds"`
	PortReuse bool   `json:"inpodPortReuse"`

	XDSOnDemand               bool   `json:"xdsOnDemand"`
	PreferredServiceNamespace string `json:"preferedServiceNamespace,omitempty"`
	LocalXDSPath              string `json:"localXdsPath,omitempty"`
	LocalXDS                  string `json:"-"`

	LocalhostAppTunnel bool `json:"localhostAppTunnel"`
	ResponseBaggage    bool `json:"enableEnhancedBaggage"`
	// AccessLogRate and AccessLogFailedRate are how many access log lines of one
	// pod a second are written, of connections that went well and of others.
	AccessLogRate       uint32 `json:"accessLogRate"`
	AccessLogFailedRate uint32 `json:"accessLogFailedRate"`
	AuthzInfoLogging    bool   `json:"authzPolicyInfoLogging"`

	// Self names the proxy's own pod, when the downward API tells it.
	Self *bootstrap.Workload `json:"ztunnelWorkload,omitempty"`
}

// Load reads the settings. The error joins everything that is wrong.
func Load(env bootstrap.Env, host bootstrap.Host) (*Config, error) {
	r := bootstrap.NewReader(env)
	c := &Config{
		Settings: r.Settings(host, bootstrap.Role{Threads: bootstrap.ThreadVars{Prefix: "ZTUNNEL", Fraction: defaultThreadFraction}}),
		Proxy:    r.Bool("ENABLE_PROXY", true),
		SOCKS5:   r.Bool("UNSTABLE_ENABLE_SOCKS5", false),

		CloseUncaptured: r.Bool("CLOSE_UNCAPTURED_CONNECTIONS", true),

		ZDSSocket: r.Text("INPOD_UDS", wellknown.ZDSSocket),
		PortReuse: r.Bool("INPOD_PORT_REUSE", true),

		XDSOnDemand:               r.Bool("XDS_ON_DEMAND", false),
		PreferredServiceNamespace: r.Text("PREFERED_SERVICE_NAMESPACE", ""), //nolint:misspell // the variable's name
		LocalXDSPath:              r.Text("LOCAL_XDS_PATH", ""),
		LocalXDS:                  r.Text("LOCAL_XDS", ""),

		LocalhostAppTunnel: r.Bool("LOCALHOST_APP_TUNNEL", true),
		ResponseBaggage:    r.Bool("ENABLE_RESPONSE_BAGGAGE", true),

		AccessLogRate:       uint32(r.Uint("ACCESS_LOG_POD_RATE", uint64(accesslog.DefaultRates.Complete), 0, 1_000_000)),
		AccessLogFailedRate: uint32(r.Uint("ACCESS_LOG_POD_FAILED_RATE", uint64(accesslog.DefaultRates.Failed), 0, 1_000_000)),
		AuthzInfoLogging:    r.Bool("AUTHZ_POLICY_INFO_LOGGING", false),
		Self:                r.Self(),
	}
	c.readMode(r)
	c.readSockets(r)
	for _, text := range strings.FieldsFunc(r.Text("EGRESS_NAME_SERVERS", ""), func(c rune) bool { return c == ',' || c == ' ' }) {
		a, err := netip.ParseAddr(text)
		if err != nil {
			r.Fail("EGRESS_NAME_SERVERS", text, "write addresses, with commas between them")
			continue
		}
		c.EgressNameServers = append(c.EgressNameServers, a.Unmap().WithZone(""))
	}
	capture, set := c.ProxyMetadata["DNS_CAPTURE"]
	c.DNSProxy = !set || strings.EqualFold(capture, "true")
	if c.LocalXDS != "" && c.LocalXDSPath != "" {
		r.Fail("LOCAL_XDS_PATH", c.LocalXDSPath, "only one of LOCAL_XDS and LOCAL_XDS_PATH can be set")
	}
	if !c.Proxy && !c.DNSProxy {
		r.Fail("ENABLE_PROXY", "false", "nothing left to serve: the DNS proxy is off too")
	}
	if err := r.Err(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Config) readMode(r *bootstrap.Reader) {
	v := r.Text("PROXY_MODE", string(Shared))
	switch c.Mode = Mode(v); c.Mode {
	case Shared:
		return
	case Dedicated:
	default:
		r.Fail("PROXY_MODE", v, "must be %s or %s", Shared, Dedicated)
		return
	}
	info := r.Text("PROXY_WORKLOAD_INFO", "")
	p := strings.Split(info, "/")
	if len(p) != 3 || p[0] == "" || p[1] == "" || p[2] == "" {
		r.Fail("PROXY_WORKLOAD_INFO", info, "PROXY_MODE=%s needs namespace/name/service-account here", Dedicated)
		return
	}
	c.Workload = &bootstrap.Workload{Namespace: p[0], Name: p[1], ServiceAccount: p[2]}
}

func (c *Config) readSockets(r *bootstrap.Reader) {
	c.KeepAlive = KeepAlive{
		Enabled:     r.Bool("KEEPALIVE_ENABLED", true),
		Time:        r.Duration("KEEPALIVE_TIME", 180*time.Second, time.Second),
		Interval:    r.Duration("KEEPALIVE_INTERVAL", 180*time.Second, time.Second),
		Retries:     int(r.Uint("KEEPALIVE_RETRIES", 9, 1, 127)), // the kernel's own bounds
		UserTimeout: r.Bool("USER_TIMEOUT_ENABLED", false),

		CapturedIdle: r.Duration("CAPTURED_KEEPALIVE_TIME", defaultCapturedIdle, time.Second),
	}
	mark := uint64(0)
	if c.Mode == Shared {
		mark = wellknown.MarkProxy // in-pod redirection needs it
	}
	c.PacketMark = uint32(r.Uint("PACKET_MARK", mark, 0, 1<<32-1))
	if _, ok := r.Get("ENABLE_ORIG_SRC"); ok {
		b := r.Bool("ENABLE_ORIG_SRC", false)
		c.OrigSrc = &b
	}
}
