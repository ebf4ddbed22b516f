// Package local is a Kubernetes cluster of several nodes on one Linux machine,
// without Docker, registry or image: each node is a set of namespaces with its
// own root directory, containerd, kubelet and kube-proxy. Tests use it to find
// the cluster that is up, to take nodes or the API server away from it, and to
// run programs in it.
//
// The machine's own network is not touched. It needs root.
package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Environment variables that name a cluster's state directory and the
// directory of its programs.
const (
	StateVariable = "AMBIT_CLUSTER"
	BinVariable   = "AMBIT_CLUSTER_BIN"
)

// Daemons that Stop and Start know beside the others of Kubernetes.
const (
	ControlPlane = "control-plane" // the place where APIServer runs
	APIServer    = "kube-apiserver"
)

// imageArchive holds the images of the cluster itself, among its programs.
const imageArchive = "images.tar"

// Config is how a cluster is to be.
type Config struct {
	State string // directory, which also is what tells clusters apart
	Bin   string // directory of the programs
	Nodes int
	Port  int // of the API server on the machine's loopback; 0: any that is free
	IPv6  bool
}

// DefaultState is the state directory of the cluster that is meant when none
// is named.
func DefaultState() string {
	if dir := os.Getenv(StateVariable); dir != "" {
		return dir
	}
	return "/run/ambit-cluster"
}

// DefaultBin is where the cluster's programs are built.
func DefaultBin() (string, error) {
	if dir := os.Getenv(BinVariable); dir != "" {
		return dir, nil
	}
	cache, err := os.UserCacheDir()
	return filepath.Join(cache, "ambit-cluster", "bin"), err
}

func (c *Config) complete() error {
	if c.State == "" {
		c.State = DefaultState()
	}
	var err error
	if c.Bin == "" {
		if c.Bin, err = DefaultBin(); err != nil {
			return err
		}
	}
	if c.State, err = filepath.Abs(c.State); err != nil {
		return err
	}
	if c.Bin, err = filepath.Abs(c.Bin); err != nil {
		return err
	}
	if strings.ContainsAny(c.State+c.Bin, " \t\n\"'\\:,#{}[]") {
		return fmt.Errorf("state %q, programs %q: these paths go into many configuration files, use plain ones", c.State, c.Bin)
	}
	// The kernel takes 107 bytes as a socket's path.
	if longest := (dirs{c.State}).control(ControlPlane); len(longest) > 100 {
		return fmt.Errorf("state directory %s: the path is too long, use a shorter one", c.State)
	}
	if c.Nodes == 0 {
		c.Nodes = 3
	}
	if c.Nodes < 1 || c.Nodes > maxNodes {
		return fmt.Errorf("a cluster has 1 to %d nodes, not %d", maxNodes, c.Nodes)
	}
	if c.Port < 0 || c.Port > 65535 {
		return fmt.Errorf("port %d: use 1 to 65535, or 0 for any that is free", c.Port)
	}
	return nil
}

func (c Config) plan() plan      { return plan{count: c.Nodes, ipv6: c.IPv6} }
func (c Config) program() string { return filepath.Join(c.Bin, "ambit-cluster") }

// Cluster is a cluster that is up.
type Cluster struct {
	d dirs
	r *record
}

// Find opens the cluster that KUBECONFIG belongs to, or else the one of
// DefaultState.
func Find() (*Cluster, error) {
	for _, file := range filepath.SplitList(os.Getenv("KUBECONFIG")) {
		dir, err := filepath.Abs(filepath.Dir(file))
		if err != nil {
			return nil, err
		}
		if r, err := readRecord(dirs{dir}); err == nil && r != nil {
			return Open(dir)
		}
	}
	return Open(DefaultState())
}

// Open opens the cluster with a state directory.
func Open(state string) (*Cluster, error) {
	dir, err := filepath.Abs(state)
	if err != nil {
		return nil, err
	}
	d := dirs{dir}
	r, err := readRecord(d)
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, fmt.Errorf("no cluster is up in %s: `make cluster` brings one up, and %s names another directory", dir, StateVariable)
	}
	if _, up := d.readProcess(ControlPlane); !up {
		return nil, fmt.Errorf("the cluster in %s has ended: `make cluster` makes a new one", dir)
	}
	return &Cluster{d: d, r: r}, nil
}

// Kubeconfig is the file with the administrator's access from the machine.
func (c *Cluster) Kubeconfig() string { return c.d.kubeconfig() }

// Bin is the directory with kubectl and the programs of the cluster.
func (c *Cluster) Bin() string { return c.r.Bin }

// Logs is the directory of the logs of all daemons, one file each.
func (c *Cluster) Logs() string { return c.d.logs() }

// Config is what the cluster was made with.
func (c *Cluster) Config() Config { return c.r.Config }

// Nodes lists the nodes by name. The first one also carries the control plane:
// tests that take a node away take another.
func (c *Cluster) Nodes() []string { return c.r.plan().names() }

// Addresses returns the addresses of a node on the LAN, IPv4 first.
func (c *Cluster) Addresses(node string) []netip.Addr {
	n := c.r.plan().number(node)
	if n == 0 {
		return nil
	}
	return c.r.plan().node(n)
}

// IsUp reports whether a node, or ControlPlane, has power.
func (c *Cluster) IsUp(place string) bool {
	_, up := c.d.readProcess(place)
	return up
}

// Load imports archives of images into all nodes that are up, or into those
// that are named, and into every node that starts later.
func (c *Cluster) Load(ctx context.Context, archives []string, nodes ...string) error {
	if len(nodes) == 0 {
		for _, n := range c.Nodes() {
			if _, up := c.d.readProcess(n); up {
				nodes = append(nodes, n)
			}
		}
	}
	var kept []string
	for _, a := range archives {
		to := filepath.Join(c.d.images(), filepath.Base(a))
		if err := copyFile(to, a); err != nil {
			return err
		}
		kept = append(kept, to)
	}
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() {
			for _, a := range kept {
				_, err := c.Output(ctx, n, "ctr", "--namespace", "k8s.io", "images", "import", a)
				errs[i] = errors.Join(errs[i], err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// PowerOff ends a node as a power failure does: its processes, pods, images
// and files are gone at once, but for the CNI plugins and their configuration,
// which are on its disk.
func (c *Cluster) PowerOff(node string) error {
	if c.r.plan().number(node) == 0 {
		return fmt.Errorf("no node %q", node)
	}
	if p, up := c.d.readProcess(node); up {
		if err := kill(p); err != nil {
			return err
		}
	}
	if err := removeCgroup(c.d.cgroup() + "/" + node); err != nil {
		return err
	}
	ns, err := c.Netns(node)
	if err != nil {
		return err
	}
	defer ns.Close() //nolint:errcheck // nothing was written
	return resetNetwork(ns)
}

// PowerOn starts a node that is off. Kubernetes sees it Ready a few seconds
// later.
func (c *Cluster) PowerOn(node string) error {
	if c.r.plan().number(node) == 0 {
		return fmt.Errorf("no node %q", node)
	}
	if _, up := c.d.readProcess(node); up {
		return nil
	}
	return c.startNode(node)
}

// Stop kills a daemon at a place (a node, or ControlPlane) and keeps it down.
func (c *Cluster) Stop(place, daemon string) error { return c.tell(place, "stop "+daemon) }

// Start runs a stopped daemon again. It does not wait for the daemon to be of
// use.
func (c *Cluster) Start(place, daemon string) error { return c.tell(place, "start "+daemon) }

// StopAPIServer kills the API server and keeps it down.
func (c *Cluster) StopAPIServer() error { return c.Stop(ControlPlane, APIServer) }

// StartAPIServer runs the API server again, and waits until it is ready.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	if err := c.Start(ControlPlane, APIServer); err != nil {
		return err
	}
	return c.awaitAPI(ctx)
}

// Stopped lists the daemons of a place that Stop keeps down.
func (c *Cluster) Stopped(place string) ([]string, error) { return c.ask(place, "stopped") }

func (c *Cluster) tell(place, request string) error {
	_, err := c.ask(place, request)
	return err
}

// ask sends one request to a keeper and returns what follows its "ok".
func (c *Cluster) ask(place, request string) ([]string, error) {
	if _, up := c.d.readProcess(place); !up {
		return nil, fmt.Errorf("%s is down", place)
	}
	conn, err := net.DialTimeout("unix", c.d.control(place), 5*time.Second)
	if err != nil {
		return nil, fmt.Errorf("telling %s %q: %w", place, request, err)
	}
	defer conn.Close() //nolint:errcheck // all has been read
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := fmt.Fprintln(conn, request); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(conn, 4<<10))
	words := strings.Fields(string(b))
	if err == nil && (len(words) == 0 || words[0] != "ok") {
		err = errors.New(strings.TrimSpace(string(b)))
	}
	if err != nil {
		return nil, fmt.Errorf("telling %s %q: %w", place, request, err)
	}
	return words[1:], nil
}

// copyFile replaces a file with a copy of another, in one step and with its
// mode.
func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // only read
	st, err := in.Stat()
	if err != nil {
		return err
	}
	tmp := to + ".tmp"
	out, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, st.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Close()); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return os.Rename(tmp, to)
}
