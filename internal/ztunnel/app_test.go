package ztunnel

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
	"github.com/ambit-mesh/ambit/internal/proxy/localxds"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
	"github.com/ambit-mesh/ambit/internal/xds"
	"github.com/ambit-mesh/ambit/internal/zds"
	"github.com/ambit-mesh/ambit/internal/ztunnel/config"
)

// freeAddr is a loopback address nobody listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// control is a control plane that serves a cache in plaintext.
func control(t *testing.T) (cache *xds.Cache, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cache = xds.NewCache()
	s := grpc.NewServer(xds.GRPCOptions()...)
	discovery.RegisterAggregatedDiscoveryServiceServer(s, xds.NewServer(cache, xds.ServerOptions{Logger: logging.Discard()}))
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return cache, l.Addr().String()
}

// publish puts a local configuration into a cache.
func publish(t *testing.T, cache *xds.Cache, text string) {
	t.Helper()
	c, err := localxds.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	resource := func(name string, m proto.Message) *xds.Resource {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return &xds.Resource{Name: name, Body: b}
	}
	var addrs, policies []*xds.Resource
	for _, a := range c.Addresses {
		addrs = append(addrs, resource(workload.ResourceName(a), a))
	}
	for _, p := range c.Policies {
		policies = append(policies, resource(p.Namespace+"/"+p.Name, p))
	}
	cache.Update(wellknown.TypeAddress, addrs, nil)
	cache.Update(wellknown.TypeAuthorization, policies, nil)
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url) //nolint:noctx // a test on loopback
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(netnstest.Timeout); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// The whole program: control plane, agent, its own servers, drain.
func TestApp(t *testing.T) {
	w := newWorld(t, false)
	cache, addr := control(t)
	srv, path := w.agent(w.client)
	env := bootstrap.Env{
		"NODE_NAME": "a", "FAKE_CA": "true", "XDS_ADDRESS": "http://" + addr, "INPOD_UDS": path,
		"AMBIT_ADMIN_ADDR": freeAddr(t), "AMBIT_STATS_ADDR": freeAddr(t), "AMBIT_READY_ADDR": freeAddr(t),
		"POD_NAME": "zt", "POD_NAMESPACE": "istio-system",
	}
	cfg, err := config.Load(env, bootstrap.Host{CPUs: 2, Exists: func(string) bool { return false }, ReadFile: bootstrap.ThisHost().ReadFile})
	if err != nil {
		t.Fatal(err)
	}
	out := newLines()
	logs, err := logging.New(out, logging.Plain, "info")
	if err != nil {
		t.Fatal(err)
	}
	app, err := NewApp(cfg, logs)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- app.Run(context.Background()) }()
	t.Cleanup(app.Quit)
	ready := "http://" + env["AMBIT_READY_ADDR"] + "/healthz/ready"
	until(t, "the readiness server answers", func() bool { code, _ := get(t, ready); return code == 500 })
	if _, body := get(t, ready); !strings.Contains(body, "not ready, pending: ") || !strings.Contains(body, "state manager") || !strings.Contains(body, proxyTask) {
		t.Errorf("%q", body)
	}

	if err := srv.Register(zds.Workload{UID: "uid-client", Info: w.client.info, NS: w.client.ns}); err != nil {
		t.Fatal(err)
	}
	publish(t, cache, w.mesh("HBONE", "TCP", cartService+strict))
	cache.MarkSynced(wellknown.TypeAddress)
	cache.MarkSynced(wellknown.TypeAuthorization)
	until(t, "ready", func() bool { code, _ := get(t, ready); return code == 200 })
	w.capture(w.client)
	w.serve(8080, echo)
	c := w.dial(w.vip(80))
	w.talk(c, "hello")

	var dump struct {
		Workloads, Services, Policies, Certificates []map[string]any
		WorkloadState                               map[string]struct {
			State       string
			Info        map[string]string
			Connections struct{ Inbound, Outbound []map[string]string }
		}
		Config, Version map[string]any
	}
	_, body := get(t, "http://"+env["AMBIT_ADMIN_ADDR"]+"/config_dump")
	if err := json.Unmarshal([]byte(body), &dump); err != nil {
		t.Fatal(err)
	}
	st := dump.WorkloadState["uid-client"]
	if len(dump.Workloads) != 2 || len(dump.Services) != 1 || len(dump.Policies) != 1 || len(dump.Certificates) != 1 ||
		st.State != "Up" || st.Info["serviceAccount"] != "web" || len(st.Connections.Outbound) != 1 || len(st.Connections.Inbound) != 0 {
		t.Errorf("%s", body)
	} else if o := st.Connections.Outbound[0]; o["originalDst"] != w.vip(80).String() || o["actualDst"] != w.at(8080).String() || o["protocol"] != "TCP" {
		t.Errorf("%v", o)
	}
	_, body = get(t, "http://"+env["AMBIT_STATS_ADDR"]+"/stats/prometheus")
	for _, want := range []string{
		`istio_tcp_connections_opened_total{reporter="source",source_workload="client",source_canonical_service="client",`,
		`istio_tcp_received_bytes_total{reporter="source",source_workload="client",`,
		"workload_manager_active_proxy_count 1", `istio_xds_message_total{url="` + wellknown.TypeAddress + `"}`, `istio_build{component="ztunnel"`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in\n%s", want, body)
		}
	}

	app.Quit()
	_ = c.Close()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(netnstest.Timeout):
		t.Fatal("the program does not end")
	}
}

// The control plane is in force before the first connection: a policy that
// comes with it is not missed by a pod that was there first.
func TestNothingIsServedBeforePolicies(t *testing.T) {
	w := newWorld(t, false)
	_, addr := control(t) // never in sync
	srv, path := w.agent(w.server)
	cfg, err := config.Load(bootstrap.Env{
		"NODE_NAME": "b", "FAKE_CA": "true", "XDS_ADDRESS": "http://" + addr, "INPOD_UDS": path,
		"AMBIT_ADMIN_ADDR": freeAddr(t), "AMBIT_STATS_ADDR": freeAddr(t), "AMBIT_READY_ADDR": freeAddr(t),
	}, bootstrap.Host{CPUs: 2, Exists: func(string) bool { return false }, ReadFile: bootstrap.ThisHost().ReadFile})
	if err != nil {
		t.Fatal(err)
	}
	app, err := NewApp(cfg, mustLogging(t))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- app.Run(context.Background()) }()
	defer func() { app.Quit(); <-done }()
	if err := srv.Register(zds.Workload{UID: "uid-server", Info: w.server.info, NS: w.server.ns}); err != nil {
		t.Fatal(err)
	}
	until(t, "the readiness server answers", func() bool { code, _ := get(t, "http://"+cfg.ReadyAddr.String()+"/healthz/ready"); return code == 500 })
	w.capture(w.server)
	w.serve(8080, echo)
	if err := w.once(w.at(8080)); err == nil {
		t.Fatal("a connection was let in before the policies were known")
	}
}

func mustLogging(t *testing.T) *logging.Logging {
	t.Helper()
	l, err := logging.New(newLines(), logging.Plain, "debug")
	if err != nil {
		t.Fatal(err)
	}
	return l
}
