package cniplugin

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func env(command, namespace, name string) func(string) string {
	m := map[string]string{
		"CNI_COMMAND": command, "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "eth0",
		"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=" + namespace + ";K8S_POD_NAME=" + name + ";K8S_POD_UID=u-1",
	}
	return func(k string) string { return m[k] }
}

const prev = `{"cniVersion":"1.0.0","ips":[{"interface":2,"address":"10.1.2.3/24","gateway":"10.1.2.1"},{"address":"fd00::3/64"}]}`

func conf(dir string) string {
	return `{"cniVersion":"1.0.0","name":"k8s","type":"ambit-cni-plugin","cni_agent_run_dir":"` + dir +
		`","pod_namespace":"istio-system","exclude_namespaces":["infra"],"prevResult":` + prev + `}`
}

// agent answers as told and records the bodies.
func agent(t *testing.T, status int, text string) (dir string, bodies *[]string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "cni") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, socketName))
	if err != nil {
		t.Fatal(err)
	}
	bodies = &[]string{}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /cmdadd", func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		*bodies = append(*bodies, string(b))
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	})
	s := &http.Server{Handler: mux} //nolint:gosec // a test's
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return dir, bodies
}

func TestAddTellsTheAgentAndPassesTheResultOn(t *testing.T) {
	dir, bodies := agent(t, 200, "ok")
	var out bytes.Buffer
	if code := Run(env("ADD", "default", "web"), strings.NewReader(conf(dir)), &out); code != 0 {
		t.Fatalf("exit %d: %s", code, out.String())
	}
	if out.String() != prev {
		t.Errorf("result %s", out.String())
	}
	want := []string{`{"Netns":"/run/netns/x","PodName":"web","PodNamespace":"default","PodUID":"u-1","IPs":[` +
		`{"Interface":2,"Address":{"IP":"10.1.2.3","Mask":"////AA=="},"Gateway":"10.1.2.1"},` +
		`{"Interface":null,"Address":{"IP":"fd00::3","Mask":"//////////8AAAAAAAAAAA=="},"Gateway":""}]}`}
	if diff := cmp.Diff(want, *bodies); diff != "" {
		t.Error(diff)
	}
}

func TestAddFailsClosed(t *testing.T) {
	refusing, _ := agent(t, 500, "no ztunnel is connected")
	for name, c := range map[string]struct{ dir, want string }{
		"no agent":      {t.TempDir(), "does not run on this node"},
		"agent refuses": {refusing, "no ztunnel is connected"},
	} {
		var out bytes.Buffer
		code := Run(env("ADD", "default", "web"), strings.NewReader(conf(c.dir)), &out)
		var f failure
		if err := json.Unmarshal(out.Bytes(), &f); err != nil {
			t.Fatalf("%s: %v in %s", name, err, out.String())
		}
		if code != 1 || f.Code == 0 || f.CNIVersion != "1.0.0" || !strings.Contains(f.Msg, c.want) || !strings.Contains(f.Msg, "default/web") {
			t.Errorf("%s: exit %d, %+v", name, code, f)
		}
	}
}

func TestSomePodsAreNeverHeldUp(t *testing.T) {
	nowhere := t.TempDir()
	for _, c := range []struct{ namespace, name string }{
		{"istio-system", "ambit-cni-x7"}, {"istio-system", "istio-cni-node-x7"}, {"istio-system", "ztunnel-x7"},
		{"istio-system", "ambitd-0"}, {"kube-system", "coredns-1"}, {"infra", "dns-1"}, {"", ""},
	} {
		var out bytes.Buffer
		if code := Run(env("ADD", c.namespace, c.name), strings.NewReader(conf(nowhere)), &out); code != 0 || out.String() != prev {
			t.Errorf("%s/%s: exit %d: %s", c.namespace, c.name, code, out.String())
		}
	}
	var out bytes.Buffer
	if Run(env("ADD", "default", "ztunnel-impostor"), strings.NewReader(conf(nowhere)), &out) == 0 {
		t.Error("a pod of another namespace passes by its name")
	}
}

func TestOtherCommands(t *testing.T) {
	for _, c := range []string{"DEL", "CHECK", "STATUS", "GC"} {
		var out bytes.Buffer
		if code := Run(env(c, "default", "web"), strings.NewReader(conf("/nowhere")), &out); code != 0 || out.Len() > 0 {
			t.Errorf("%s: exit %d: %s", c, code, out.String())
		}
	}
	var out bytes.Buffer
	if code := Run(env("VERSION", "", ""), strings.NewReader(""), &out); code != 0 || !strings.Contains(out.String(), `"1.1.0"`) {
		t.Errorf("VERSION: exit %d: %s", code, out.String())
	}
	for _, in := range []string{"", "{", "[]"} {
		if Run(env("ADD", "default", "web"), strings.NewReader(in), io.Discard) == 0 {
			t.Errorf("configuration %q passes", in)
		}
	}
	if Run(env("DANCE", "", ""), strings.NewReader(conf("/nowhere")), io.Discard) == 0 {
		t.Error("an unknown command passes")
	}
}

func FuzzRun(f *testing.F) {
	f.Add([]byte(conf("/nowhere")), "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=x")
	f.Fuzz(func(t *testing.T, stdin []byte, args string) {
		getenv := func(k string) string {
			return map[string]string{"CNI_COMMAND": "ADD", "CNI_ARGS": args}[k]
		}
		Run(getenv, bytes.NewReader(stdin), io.Discard)
	})
}

func FuzzResponse(f *testing.F) {
	f.Add([]byte("HTTP/1.0 200 OK\r\nA: b\r\n\r\nok"))
	f.Add([]byte("HTTP/1.1 500\n\nno"))
	f.Fuzz(func(t *testing.T, p []byte) {
		if status, _, err := parseResponse(bytes.NewReader(p)); err == nil && status == 200 && !bytes.Contains(p, []byte("200")) {
			t.Errorf("%q is a consent", p)
		}
	})
}
