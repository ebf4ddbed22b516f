//go:build interop

package node

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
)

const peerWorkloads = `
workloads:
- {uid: c//Pod/default/web, name: web, namespace: default, serviceAccount: web, workloadIps: ["10.9.0.2", "fd00:9::2"], protocol: TCP, node: here, network: "", services: {}}
- {uid: c//Pod/default/far, name: far, namespace: default, serviceAccount: far, workloadIps: ["10.9.0.1", "fd00:9::1"], protocol: TCP, node: there, network: "", services: {}}
policies: []
services: []
`

// Another implementation of ztunnel, given by PEER_ZTUNNEL, is served by this
// agent: it takes the namespace, carries what is redirected, is taken the pod
// away again, and finds it after both of them have been replaced.
func TestAnotherZtunnel(t *testing.T) {
	path := os.Getenv("PEER_ZTUNNEL")
	if path == "" {
		t.Fatal("PEER_ZTUNNEL is not set: the path of a ztunnel")
	}
	n := newNode(t)
	n.startAgent(ambient)
	stop := n.startPeer(path)
	n.said.await(t, podUIDOfTest, "enabled")
	n.allWork()
	n.stop()
	n.allWork()
	n.startAgent(ambient)
	n.awaitServed()
	n.allWork()
	stop()
	n.allReset()
	n.startPeer(path)
	n.awaitServed()
	n.allWork()
	n.agent.Set(n.thePod())
	n.agent.SetNamespace("default", map[string]string{})
	n.awaitRestored()
	n.allWork()
}

func (n *testNode) startPeer(path string) (stop func()) {
	n.t.Helper()
	config := filepath.Join(n.dir, "workloads.yaml")
	if err := os.WriteFile(config, []byte(peerWorkloads), 0o600); err != nil {
		n.t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(n.dir, "ztunnel.log"))
	if err != nil {
		n.t.Fatal(err)
	}
	own := netnstest.New(n.t)
	cmd := exec.Command(path, "proxy", "ztunnel")
	cmd.Env = []string{"INPOD_UDS=" + n.zds(), "CA_ADDRESS=http://127.0.0.1:1", "LOCAL_XDS_PATH=" + config, "XDS_ADDRESS=", "NODE_NAME=here",
		"PROXY_MODE=shared", "CLUSTER_ID=c", "NETWORK=", "ISTIO_META_DNS_CAPTURE=false"}
	cmd.Stdout, cmd.Stderr = log, log
	if err := own.Do(cmd.Start); err != nil {
		n.t.Fatal(err)
	}
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGKILL)
		_ = cmd.Wait()
	}
	n.t.Cleanup(func() {
		stop()
		if n.t.Failed() {
			text, _ := os.ReadFile(log.Name())
			n.t.Logf("%s", text)
		}
		_ = log.Close()
	})
	return stop
}
