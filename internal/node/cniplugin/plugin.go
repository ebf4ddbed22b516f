// Package cniplugin is the CNI plugin of the mesh: a shim that tells the node
// agent of every new pod before the pod starts, and keeps the pod from starting
// when the agent does not answer.
//
// It knows nothing itself: whether a pod belongs into the mesh is the agent's to
// decide, so that the plugin needs no access to the cluster. It is started by
// the container runtime for every pod and uses nothing but the standard library.
package cniplugin

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// maxConfig bounds what is read from the runtime, and maxAnswer from the
	// agent.
	maxConfig = 1 << 20
	maxAnswer = 64 << 10
	// patience is how long the agent may take.
	patience = 5 * time.Second

	defaultRunDir = "/var/run/istio-cni"
	socketName    = "pluginevent.sock"
)

// CNI's error codes: its own for a configuration that cannot be decoded and for
// trying again later, and the first that is a plugin's.
const (
	codeDecoding = 6
	codeTryAgain = 11
	codeRefused  = 100
)

// own are the pods of the mesh itself, by prefix. They are never kept from
// starting: the agent could not come up by itself if it had to allow it first.
var own = []string{"ambit-cni-", "istio-cni-node-", "ztunnel-", "ambitd-", "istiod-"}

// versions of CNI that the plugin speaks; it only passes results on.
var versions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// config is the plugin's entry of the network configuration list, with what the
// runtime adds.
type config struct {
	CNIVersion        string          `json:"cniVersion"`
	PrevResult        json.RawMessage `json:"prevResult"`
	RunDir            string          `json:"cni_agent_run_dir"`
	PodNamespace      string          `json:"pod_namespace"` // of the mesh's own pods
	ExcludeNamespaces []string        `json:"exclude_namespaces"`
}

// result is what the plugin understands of the result of those before it.
type result struct {
	IPs []struct {
		Interface *int   `json:"interface"`
		Address   string `json:"address"`
		Gateway   net.IP `json:"gateway"`
	} `json:"ips"`
}

// event is what the agent is told. Its form is that of Istio's plugin, with the
// pod's UID beside.
type event struct {
	Netns        string
	PodName      string
	PodNamespace string
	PodUID       string `json:",omitempty"`
	IPs          []eventIP
}

type eventIP struct {
	Interface *int
	Address   net.IPNet
	Gateway   net.IP
}

// failure is CNI's form of an error.
type failure struct {
	CNIVersion string `json:"cniVersion,omitempty"`
	Code       int    `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

func (f *failure) Error() string { return f.Msg }

// Run carries out one command of the container runtime and returns the exit
// status. getenv looks up CNI's parameters.
func Run(getenv func(string) string, stdin io.Reader, stdout io.Writer) int {
	var cfg config
	answer, err := run(getenv, stdin, &cfg)
	if err == nil {
		_, err = stdout.Write(answer)
		if err == nil {
			return 0
		}
	}
	var f *failure
	if !errors.As(err, &f) {
		f = &failure{Code: codeTryAgain, Msg: err.Error()}
	}
	f.CNIVersion = cfg.CNIVersion
	_ = json.NewEncoder(stdout).Encode(f)
	return 1
}

func run(getenv func(string) string, stdin io.Reader, cfg *config) ([]byte, error) {
	command := getenv("CNI_COMMAND")
	if command == "VERSION" {
		return json.Marshal(map[string]any{"cniVersion": versions[len(versions)-1], "supportedVersions": versions})
	}
	text, err := io.ReadAll(io.LimitReader(stdin, maxConfig))
	if err == nil {
		err = json.Unmarshal(text, cfg)
	}
	if err != nil {
		return nil, &failure{Code: codeDecoding, Msg: "ambit-cni-plugin cannot read its network configuration", Details: err.Error()}
	}
	switch command {
	case "ADD":
		if err := add(getenv, cfg); err != nil {
			return nil, err
		}
		if len(cfg.PrevResult) > 0 {
			return cfg.PrevResult, nil
		}
		return json.Marshal(map[string]string{"cniVersion": cfg.CNIVersion})
	case "DEL", "CHECK", "GC", "STATUS":
		return nil, nil // there is nothing to take back: it all goes with the pod's namespace
	}
	return nil, &failure{Code: codeDecoding, Msg: fmt.Sprintf("ambit-cni-plugin does not know the CNI command %q", command)}
}

func add(getenv func(string) string, cfg *config) error {
	args := podArgs(getenv("CNI_ARGS"))
	e := event{Netns: getenv("CNI_NETNS"), PodName: args["K8S_POD_NAME"], PodNamespace: args["K8S_POD_NAMESPACE"], PodUID: args["K8S_POD_UID"]}
	if e.PodName == "" || e.PodNamespace == "" {
		return nil // not a pod of Kubernetes: never part of the mesh
	}
	if exempt(cfg, e.PodNamespace, e.PodName) {
		return nil
	}
	if len(cfg.PrevResult) > 0 {
		var r result
		if err := json.Unmarshal(cfg.PrevResult, &r); err != nil {
			return &failure{Code: codeDecoding, Msg: "ambit-cni-plugin cannot read the result of the plugin before it", Details: err.Error()}
		}
		for _, ip := range r.IPs {
			if p, err := netip.ParsePrefix(ip.Address); err == nil {
				e.IPs = append(e.IPs, eventIP{Interface: ip.Interface, Gateway: ip.Gateway,
					Address: net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}})
			}
		}
	}
	dir := cfg.RunDir
	if dir == "" {
		dir = defaultRunDir
	}
	return tell(filepath.Join(dir, socketName), e)
}

// systemNamespace is what a node needs to run at all. What of it is to be in the
// mesh is enrolled after it has started.
const systemNamespace = "kube-system"

func exempt(cfg *config, namespace, name string) bool {
	if namespace == systemNamespace || slices.Contains(cfg.ExcludeNamespaces, namespace) {
		return true
	}
	return cfg.PodNamespace == namespace && slices.ContainsFunc(own, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}

// podArgs reads K=V;K=V.
func podArgs(s string) map[string]string {
	m := map[string]string{}
	for pair := range strings.SplitSeq(s, ";") {
		if k, v, ok := strings.Cut(pair, "="); ok {
			m[k] = v
		}
	}
	return m
}

// tell posts the event to the agent and waits for its consent. The request is
// written by hand: net/http alone would be most of the program.
func tell(socket string, e event) error {
	pod := e.PodNamespace + "/" + e.PodName
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	conn, err := net.DialTimeout("unix", socket, patience)
	if err != nil {
		return &failure{Code: codeTryAgain,
			Msg:     fmt.Sprintf("pod %s is not started: the mesh's node agent (ambit-cni) does not run on this node, or not yet; see whether the ambit-cni pod of this node is ready", pod),
			Details: err.Error()}
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(patience))
	status, text, err := post(conn, body)
	if err != nil {
		return &failure{Code: codeTryAgain,
			Msg:     fmt.Sprintf("pod %s is not started: the mesh's node agent (ambit-cni) did not answer in time; see the log of the ambit-cni pod of this node", pod),
			Details: err.Error()}
	}
	if status != 200 {
		return &failure{Code: codeRefused,
			Msg:     fmt.Sprintf("pod %s is not started: it belongs into the mesh, and the node agent (ambit-cni) cannot enrol it: %s", pod, text),
			Details: fmt.Sprintf("status %d", status)}
	}
	return nil
}

func post(conn io.ReadWriter, body []byte) (status int, text string, err error) {
	head := fmt.Sprintf("POST /cmdadd HTTP/1.0\r\nHost: unix\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", len(body))
	if _, err := io.WriteString(conn, head); err != nil {
		return 0, "", err
	}
	if _, err := conn.Write(body); err != nil {
		return 0, "", err
	}
	return parseResponse(io.LimitReader(conn, maxAnswer))
}

// parseResponse reads an HTTP/1.0 response, whose body ends with the stream.
func parseResponse(r io.Reader) (status int, text string, err error) {
	br := bufio.NewReader(r)
	line, err := br.ReadString('\n')
	if err != nil {
		return 0, "", fmt.Errorf("reading the status: %w", err)
	}
	fields := strings.Fields(line)
	if len(fields) < 2 || !strings.HasPrefix(fields[0], "HTTP/1.") {
		return 0, "", fmt.Errorf("%q is not an HTTP status", line)
	}
	if status, err = strconv.Atoi(fields[1]); err != nil {
		return 0, "", fmt.Errorf("%q is not an HTTP status", line)
	}
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return 0, "", fmt.Errorf("reading the header: %w", err)
		}
		if strings.TrimRight(line, "\r\n") == "" {
			break
		}
	}
	rest, err := io.ReadAll(br)
	return status, strings.TrimSpace(string(rest)), err
}
