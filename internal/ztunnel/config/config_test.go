package config

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
)

func host(cpus int, files ...string) bootstrap.Host {
	return bootstrap.Host{
		CPUs: cpus,
		Exists: func(p string) bool {
			for _, f := range files {
				if f == p {
					return true
				}
			}
			return false
		},
		ReadFile: func(string) ([]byte, error) { return nil, os.ErrNotExist },
	}
}

func load(t *testing.T, env bootstrap.Env) *Config {
	t.Helper()
	c, err := Load(env, host(16))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDefaults(t *testing.T) {
	c := load(t, bootstrap.Env{})
	if c.Mode != Shared || c.PacketMark != 0x539 || c.ClusterID != "Kubernetes" || c.TrustDomain != "cluster.local" || !c.Proxy || !c.DNSProxy ||
		c.XDS.URL() != "https://localhost:15012" || c.CA.URL() != "https://localhost:15012" || c.SecretTTL != bootstrap.Duration(24*time.Hour) ||
		c.PoolMaxStreams != 100 || c.PoolIdleRelease != bootstrap.Duration(5*time.Minute) || c.StreamWindow != 4<<20 || c.ConnWindow != 16<<20 || c.FrameSize != 1<<20 ||
		c.KeepAlive != (KeepAlive{true, bootstrap.Duration(3 * time.Minute), bootstrap.Duration(3 * time.Minute), 9, false, bootstrap.Duration(45 * time.Second)}) || !c.CloseUncaptured || !c.PortReuse || c.DrainDeadline != bootstrap.Duration(5*time.Second) ||
		c.Threads != 4 || c.ZDSSocket != "/var/run/ztunnel/ztunnel.sock" || !c.LocalhostAppTunnel || !c.ResponseBaggage || c.OrigSrc != nil ||
		c.AdminAddr.String() != "127.0.0.1:15000" || c.StatsAddr.String() != "[::]:15020" || c.ReadyAddr.String() != "[::]:15021" {
		t.Errorf("%+v", c)
	}
	if got := load(t, bootstrap.Env{"KUBERNETES_SERVICE_HOST": "10.96.0.1"}).XDS.URL(); got != "https://istiod.istio-system.svc:15012" {
		t.Error(got)
	}
	// Charts render what is not set as the empty string.
	if c := load(t, bootstrap.Env{"NETWORK": "", "ISTIO_META_CLUSTER_ID": "", "CLUSTER_ID": "c2", "IPV6_ENABLED": ""}); c.ClusterID != "c2" || !c.IPv6 {
		t.Errorf("%+v", c)
	}
}

func TestValues(t *testing.T) {
	for _, tc := range []struct {
		env  bootstrap.Env
		good func(*Config) bool
	}{
		{bootstrap.Env{"XDS_ADDRESS": "http://10.0.0.1:15010"}, func(c *Config) bool { return !c.XDS.TLS && c.XDS.Address == "10.0.0.1:15010" }},
		{bootstrap.Env{"XDS_ADDRESS": "istiod:15012"}, func(c *Config) bool { return c.XDS.URL() == "https://istiod:15012" }},
		{bootstrap.Env{"XDS_ADDRESS": "https://[fd00::1]:15012"}, func(c *Config) bool { return c.XDS.URL() == "https://[fd00::1]:15012" }},
		{bootstrap.Env{"XDS_ADDRESS": ""}, func(c *Config) bool { return c.XDS.URL() == "" }},
		{bootstrap.Env{"FAKE_CA": "true", "CA_ADDRESS": "https://x:1"}, func(c *Config) bool { return c.CA.URL() == "" && c.FakeCA }},
		{bootstrap.Env{"XDS_HEADER_X-A": "1", "XDS_HEADER_b": "2"}, func(c *Config) bool { return c.XDS.HeaderMap()["x-a"] == "1" && len(c.CA.Headers) == 0 }},
		{bootstrap.Env{"AUTH_TOKEN": "/var/token"}, func(c *Config) bool { return c.TokenFile == "/var/token" && c.Token == "" }},
		{bootstrap.Env{"AUTH_TOKEN": "ey.x.y"}, func(c *Config) bool { return c.TokenFile == "" && c.Token == "ey.x.y" }},
		{bootstrap.Env{"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "ns/w/sa"}, func(c *Config) bool {
			return *c.Workload == bootstrap.Workload{Name: "w", Namespace: "ns", ServiceAccount: "sa"} && c.PacketMark == 0
		}},
		{bootstrap.Env{"SECRET_TTL": "1d12h"}, func(c *Config) bool { return c.SecretTTL == bootstrap.Duration(36*time.Hour) }},
		{bootstrap.Env{"SECRET_TTL": "90"}, func(c *Config) bool { return c.SecretTTL == bootstrap.Duration(90*time.Second) }},
		{bootstrap.Env{"TERMINATION_GRACE_PERIOD_SECONDS": "30"}, func(c *Config) bool { return c.DrainDeadline == bootstrap.Duration(25*time.Second) }},
		{bootstrap.Env{"TERMINATION_GRACE_PERIOD_SECONDS": "10"}, func(c *Config) bool { return c.DrainDeadline == bootstrap.Duration(9*time.Second) }},
		{bootstrap.Env{"TERMINATION_GRACE_PERIOD_SECONDS": "1"}, func(c *Config) bool { return c.DrainDeadline == bootstrap.Duration(time.Second) }},
		{bootstrap.Env{"TERMINATION_GRACE_PERIOD_SECONDS": "30", "CONNECTION_TERMINATION_DEADLINE": "7s"}, func(c *Config) bool { return c.DrainDeadline == bootstrap.Duration(7*time.Second) }},
		{bootstrap.Env{"ZTUNNEL_WORKER_THREADS": "3"}, func(c *Config) bool { return c.Threads == 3 }},
		{bootstrap.Env{"ZTUNNEL_WORKER_THREADS": "50%"}, func(c *Config) bool { return c.Threads == 8 }},
		{bootstrap.Env{"ZTUNNEL_WORKER_THREADS": "0", "ZTUNNEL_CPU_LIMIT": "6"}, func(c *Config) bool { return c.Threads == 6 }},
		{bootstrap.Env{"ZTUNNEL_RESOURCE_CPU_LIMIT": "1500m"}, func(c *Config) bool { return c.Threads == 2 }},
		{bootstrap.Env{"ZTUNNEL_RESOURCE_CPU_LIMIT": "1"}, func(c *Config) bool { return c.Threads == 1 }},
		{bootstrap.Env{"ZTUNNEL_RESOURCE_CPU_REQUEST": "7"}, func(c *Config) bool { return c.Threads == 7 }},
		{bootstrap.Env{"PROXY_CONFIG": "concurrency: 0"}, func(c *Config) bool { return c.Threads == 16 }},
		{bootstrap.Env{"PROXY_CONFIG": "discoveryAddress: foo:1\nstatsPort: 9\nproxyMetadata: {ISTIO_META_DNS_CAPTURE: 'false', A: b}"},
			func(c *Config) bool {
				return c.XDS.URL() == "https://foo:1" && c.StatsAddr.Port() == 9 && !c.DNSProxy && c.ProxyMetadata["A"] == "b"
			}},
		{bootstrap.Env{"ISTIO_META_A": "x", "PROXY_CONFIG": "proxyMetadata: {A: b}"}, func(c *Config) bool { return c.ProxyMetadata["A"] == "x" }},
		{bootstrap.Env{"ENABLE_ORIG_SRC": "false"}, func(c *Config) bool { return c.OrigSrc != nil && !*c.OrigSrc }},
		{bootstrap.Env{"PACKET_MARK": "0x111"}, func(c *Config) bool { return c.PacketMark == 0x111 }},
		{bootstrap.Env{"POD_NAME": "p", "POD_NAMESPACE": "n", "SERVICE_ACCOUNT": "s"}, func(c *Config) bool {
			return *c.Self == bootstrap.Workload{Name: "p", Namespace: "n", ServiceAccount: "s"}
		}},
		{bootstrap.Env{"IPV6_ENABLED": "false"}, func(c *Config) bool { return c.StatsAddr.String() == "0.0.0.0:15020" }},
		{bootstrap.Env{"AMBIT_ADMIN_ADDR": "127.0.0.1:1"}, func(c *Config) bool { return c.AdminAddr.String() == "127.0.0.1:1" }},
		{bootstrap.Env{"COMPLIANCE_POLICY": "pqc"}, func(c *Config) bool { return c.PQC && !c.LibraryRecords }},
		{bootstrap.Env{"COMPLIANCE_POLICY": "fips-140-2"}, func(c *Config) bool { return c.LibraryRecords }},
		{bootstrap.Env{"AMBIT_RECORD_LAYER": "false"}, func(c *Config) bool { return c.LibraryRecords }},
		{bootstrap.Env{"AMBIT_RECORD_LAYER": "true"}, func(c *Config) bool { return !c.LibraryRecords }},
		{bootstrap.Env{"XDS_ON_DEMAND": "true"}, func(c *Config) bool { return c.XDSOnDemand && c.DNSProxy }},
	} {
		if c := load(t, tc.env); !tc.good(c) {
			t.Errorf("%v: %+v", tc.env, c)
		}
	}
}

func TestRefused(t *testing.T) {
	for _, env := range []bootstrap.Env{
		{"PROXY_MODE": "sidecar"},
		{"PROXY_MODE": "dedicated"},
		{"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "ns/w"},
		{"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "ns//sa"},
		{"ENABLE_PROXY": "yes"},
		{"IPV6_ENABLED": "1"},
		{"PACKET_MARK": "-1"},
		{"SECRET_TTL": "soon"},
		{"SECRET_TTL": "-5s"},
		{"KEEPALIVE_RETRIES": "0"},
		{"XDS_ADDRESS": "ftp://x:1"},
		{"XDS_ADDRESS": "https://x:0"},
		{"XDS_ADDRESS": "https://x:99999"},
		{"XDS_ADDRESS": "https://x:1/path"},
		{"XDS_ADDRESS": "https://:15012"},
		{"CA_ADDRESS": "://"},
		{"CA_HEADER_grpc-timeout": "1"},
		{"CA_HEADER_A B": "1"},
		{"XDS_HEADER_A": "x\ny"},
		{"LOCAL_XDS": "a", "LOCAL_XDS_PATH": "b"},
		{"ZTUNNEL_WORKER_THREADS": "0%"},
		{"ZTUNNEL_WORKER_THREADS": "101%"},
		{"ZTUNNEL_WORKER_THREADS": "many"},
		{"ZTUNNEL_RESOURCE_CPU_LIMIT": "-1"},
		{"ZTUNNEL_RESOURCE_CPU_LIMIT": "NaN"},
		{"LOG_FORMAT": "xml"},
		{"COMPLIANCE_POLICY": "rot13"},
		{"AMBIT_RECORD_LAYER": "off"},
		{"TRUST_DOMAIN": "Not/Valid"},
		{"PROXY_CONFIG": "{"},
		{"ENABLE_PROXY": "false", "ISTIO_META_DNS_CAPTURE": "false"},
		{"POOL_MAX_STREAMS_PER_CONNECTION": "0"},
		{"AMBIT_STATS_ADDR": "15020"},
	} {
		_, err := Load(env, host(2))
		if err == nil {
			t.Errorf("%v is accepted", env)
			continue
		}
		named := false
		for k := range env {
			named = named || strings.Contains(err.Error(), k)
		}
		if !named {
			t.Errorf("%v: the error does not name the variable: %v", env, err)
		}
	}
}

func TestAllErrorsAtOnce(t *testing.T) {
	_, err := Load(bootstrap.Env{"ENABLE_PROXY": "yes", "SECRET_TTL": "soon"}, host(2))
	if err == nil || !strings.Contains(err.Error(), "ENABLE_PROXY") || !strings.Contains(err.Error(), "SECRET_TTL") {
		t.Error(err)
	}
}

func TestDumpHoldsNoSecret(t *testing.T) {
	c := load(t, bootstrap.Env{"AUTH_TOKEN": "s3cret", "XDS_HEADER_A": "s3cret", "CA_HEADER_A": "s3cret"})
	b, err := json.Marshal(c)
	if err != nil || strings.Contains(string(b), "s3cret") {
		t.Errorf("%v %s", err, b)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("XDS_ADDRESS", "https://x:1")
	f.Add("SECRET_TTL", "1d2h")
	f.Add("ZTUNNEL_WORKER_THREADS", "10%")
	f.Fuzz(func(t *testing.T, k, v string) {
		c, err := Load(bootstrap.Env{k: v}, host(2))
		if err == nil && (c.Threads < 1 || c.SecretTTL <= 0 || c.DrainDeadline < 0) {
			t.Fatalf("%q=%q: %+v", k, v, c)
		}
	})
}
