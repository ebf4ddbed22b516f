package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/ambit-mesh/ambit/internal/node/cniplugin"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
	"github.com/ambit-mesh/ambit/internal/zds"
)

const uid = "2b801b7a-5266-4386-864e-45ed71136371"

// ztunnel acknowledges everything.
type ztunnel struct {
	mu    sync.Mutex
	infos map[string]zds.Info
}

func (z *ztunnel) Add(_ context.Context, uid string, info zds.Info, ns *netns.NS) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.infos[uid] = info
	return ns.Close()
}

func (z *ztunnel) Del(_ context.Context, uid string) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	delete(z.infos, uid)
	return nil
}

func (z *ztunnel) Snapshot(context.Context, map[string]bool) {}
func (z *ztunnel) Connected(bool)                            {}

func (z *ztunnel) serves() zds.Info {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.infos[uid]
}

// The whole program over a directory of YAML: health, the plugin before the pod
// starts, the announcement, and a label that is taken off.
func TestProgram(t *testing.T) {
	dir, err := os.MkdirTemp("", "cni") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+".tmp", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".tmp", path); err != nil {
			t.Fatal(err)
		}
	}
	pod, _ := netnstest.Link(t)
	netnstest.Settle(t, pod)
	before, err := nft.Dump(pod)
	if err != nil {
		t.Fatal(err)
	}
	write("config/ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n")
	write("config/web.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\nspec: {serviceAccountName: web, containers: [{name: c, image: i}]}\n")
	write("status/lab/Pod.shop.web.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, uid: "+uid+"}\nspec: {nodeName: here}\n")
	if err := os.Mkdir(filepath.Join(dir, "netns"), 0o755); err != nil {
		t.Fatal(err)
	}
	netnsPath := filepath.Join(dir, "netns", uid)
	if err := os.Symlink(fmt.Sprintf("/proc/self/fd/%d", pod.File().Fd()), netnsPath); err != nil {
		t.Fatal(err)
	}
	health := freeAddr(t)
	opts, err := parse([]string{
		"--node", "here", "--config-dir", dir + "/config", "--status-dir", dir + "/status", "--netns-dir", dir + "/netns",
		"--zds-socket", dir + "/zds.sock", "--plugin-socket", dir + "/pluginevent.sock", "--health", health, "--metrics", "127.0.0.1:0",
		"--settle", "10ms", "--log-level", "error",
	}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- run(ctx, opts) }()
	netnstest.Eventually(t, "ready", func() bool {
		resp, err := http.Get("http://" + health + "/readyz")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})

	add := func() (int, string) {
		env := map[string]string{"CNI_COMMAND": "ADD", "CNI_NETNS": netnsPath, "CNI_ARGS": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web"}
		conf := `{"cniVersion":"1.0.0","cni_agent_run_dir":"` + dir + `","prevResult":{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.2/24"}]}}`
		var out bytes.Buffer
		code := cniplugin.Run(func(k string) string { return env[k] }, strings.NewReader(conf), &out)
		return code, out.String()
	}
	if code, out := add(); code == 0 || !strings.Contains(out, "no ztunnel") {
		t.Errorf("without ztunnel: exit %d: %s", code, out)
	}
	z := &ztunnel{infos: map[string]zds.Info{}}
	go func() {
		done <- zds.NewClient(zds.ClientConfig{Path: dir + "/zds.sock", Handler: z, Logger: slog.New(slog.DiscardHandler)}).Run(ctx)
	}()
	netnstest.Eventually(t, "the pod may start", func() bool { code, _ := add(); return code == 0 })
	if got, want := z.serves(), (zds.Info{Name: "web", Namespace: "shop", ServiceAccount: "web"}); got != want {
		t.Errorf("ztunnel serves %+v", got)
	}
	overlays := func() string {
		var all string
		list, _ := filepath.Glob(filepath.Join(dir, "status", writer, "*"))
		for _, path := range list {
			text, _ := os.ReadFile(path)
			all += string(text)
		}
		return all
	}
	netnstest.Eventually(t, "the pod is announced", func() bool { return strings.Contains(overlays(), "redirection: enabled") })

	// The pod's address arrives after the pod has started, as from the kubelet.
	write("status/lab/Pod.shop.web.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, uid: "+uid+"}\nspec: {nodeName: here}\nstatus: {podIP: 10.9.0.2, phase: Running}\n")
	write("config/ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")
	netnstest.Eventually(t, "the namespace is restored", func() bool {
		after, err := nft.Dump(pod)
		return err == nil && after == before && overlays() == "" && z.serves() == zds.Info{}
	})
	cancel()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}
