package app

import (
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
)

// Config is everything the environment says. Its JSON form is the config object of
// /config_dump and holds no secret.
type Config struct {
	bootstrap.Settings

	// Self is the gateway's own pod.
	Self bootstrap.Workload `json:"self"`
	// Listen is where tunnels are accepted.
	Listen netip.AddrPort `json:"listen"`
	// Source is the address that tunnels are made from: the pod's first.
	Source netip.Addr `json:"source"`
	// MinimumDrain is how long the gateway still accepts tunnels after it was asked
	// to end: clients learn of that later than the gateway.
	MinimumDrain bootstrap.Duration `json:"minimumDrainDuration"`
	KeepAlive    KeepAlive          `json:"socketConfig"`
	// AccessLogRate and AccessLogFailedRate are how many lines of the access log a
	// second are written for the clients of one identity on each thread: of requests
	// that went well, and of others. 0 is no bound.
	AccessLogRate       uint32 `json:"accessLogRate"`
	AccessLogFailedRate uint32 `json:"accessLogFailedRate"`
	// ClientIdentity has programs get the identity of the client.
	ClientIdentity bool `json:"xfccIncludeClientIdentity"`
}

// KeepAlive is how idle TCP connections are probed.
type KeepAlive struct {
	Enabled  bool               `json:"keepaliveEnabled"`
	Time     bootstrap.Duration `json:"keepaliveTime"`
	Interval bootstrap.Duration `json:"keepaliveInterval"`
	Retries  int                `json:"keepaliveRetries"`
}

// defaultMinimumDrain is upstream's terminationDrainDuration.
const defaultMinimumDrain = 5 * time.Second

// Load reads the settings. The error joins everything that is wrong.
func Load(env bootstrap.Env, host bootstrap.Host) (*Config, error) {
	r := bootstrap.NewReader(env)
	c := &Config{
		Settings: r.Settings(host, bootstrap.Role{Threads: bootstrap.ThreadVars{Prefix: "WAYPOINT", Fraction: 1}}),
		KeepAlive: KeepAlive{
			Enabled:  r.Bool("KEEPALIVE_ENABLED", true),
			Time:     r.Duration("KEEPALIVE_TIME", 180*time.Second, time.Second),
			Interval: r.Duration("KEEPALIVE_INTERVAL", 180*time.Second, time.Second),
			Retries:  int(r.Uint("KEEPALIVE_RETRIES", 9, 1, 127)), // the kernel's own bounds
		},
		MinimumDrain: r.Duration("MINIMUM_DRAIN_DURATION", defaultMinimumDrain, 0),

		ClientIdentity: r.Bool("XFCC_INCLUDE_CLIENT_IDENTITY", false),

		AccessLogRate:       uint32(r.Uint("ACCESS_LOG_CLIENT_RATE", uint64(accesslog.DefaultRates.Complete), 0, 1_000_000)),
		AccessLogFailedRate: uint32(r.Uint("ACCESS_LOG_CLIENT_FAILED_RATE", uint64(accesslog.DefaultRates.Failed), 0, 1_000_000)),
	}
	wildcard := netip.IPv4Unspecified()
	if c.IPv6 {
		wildcard = netip.IPv6Unspecified()
	}
	c.Listen = r.Addr("AMBIT_HBONE_ADDR", netip.AddrPortFrom(wildcard, wellknown.PortHBONE))
	if self := r.Self(); self != nil {
		c.Self = *self
	} else {
		r.Fail("POD_NAME, POD_NAMESPACE, SERVICE_ACCOUNT", "", "all three are required: a gateway's certificate names its own account")
	}
	var err error
	if c.Source, err = netip.ParseAddr(c.InstanceIP); err != nil {
		r.Fail("INSTANCE_IP", c.InstanceIP, "the pod's address is required")
	}
	c.Source = c.Source.Unmap()
	if c.XDS.Address == "" {
		r.Fail("XDS_ADDRESS", "", "required: routes come from the control plane alone")
	}
	c.MinimumDrain = min(c.MinimumDrain, c.DrainDeadline)
	if err := r.Err(); err != nil {
		return nil, err
	}
	return c, nil
}

// Identity is that of the gateway's certificate.
func (c *Config) Identity() identity.Identity {
	return identity.Identity{TrustDomain: c.TrustDomain, Namespace: c.Self.Namespace, ServiceAccount: c.Self.ServiceAccount}
}
