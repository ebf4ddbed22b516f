package local

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Programs lists what `build` makes and a cluster is made of, by path below
// Config.Bin.
func Programs() []string {
	return []string{"ambit-cluster", "kubernetes", "kubelet", "kube-proxy", "kubectl", APIServer, "kube-controller-manager", "kube-scheduler",
		"etcd", containerd, "containerd-shim-runc-v2", "ctr", "runc", "cni/nodad", "cni/ptp", "cni/host-local", "cni/portmap", imageArchive}
}

// Up brings a cluster up and waits until its nodes are Ready and its DNS
// answers. What a cluster that has ended left in the directory is removed. say
// is told about progress; nil: nobody.
func Up(ctx context.Context, cfg Config, say func(string)) (*Cluster, error) {
	if say == nil {
		say = func(string) {}
	}
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	if err := checkMachine(cfg); err != nil {
		return nil, err
	}
	d := dirs{cfg.State}
	unlock, err := d.exclusive()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if c, err := Open(cfg.State); err == nil {
		return nil, fmt.Errorf("%w in %s, with %d nodes: `make cluster-down` (or `down`) takes it down", ErrUp, cfg.State, c.r.Nodes)
	}
	if err := down(d); err != nil {
		return nil, fmt.Errorf("removing what an earlier cluster left: %w", err)
	}
	c, err := bringUp(ctx, d, cfg, say)
	if err != nil {
		return nil, fmt.Errorf("%w\nlogs are in %s until the next up or down", err, d.logs())
	}
	return c, nil
}

// ErrUp tells that there is a cluster in the state directory already.
var ErrUp = errors.New("a cluster is up")

// checkMachine says what is missing before anything is made.
func checkMachine(cfg Config) error {
	if os.Geteuid() != 0 {
		return errors.New("a cluster needs root: it makes namespaces, mounts and control groups")
	}
	for _, p := range Programs() {
		if _, err := os.Stat(filepath.Join(cfg.Bin, p)); err != nil {
			return fmt.Errorf("%s is missing in %s: build it with `go run ./test/cluster build`", p, cfg.Bin)
		}
	}
	for program, why := range map[string]string{"nft": "kube-proxy runs it (Debian package nftables)", "mount": "kubelet runs it (Debian package mount)"} {
		if _, err := findProgram(program, cfg.Bin); err != nil {
			return fmt.Errorf("%s is missing: %s", program, why)
		}
	}
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	if !strings.Contains(string(b), "\toverlay\n") {
		return errors.New("this kernel has no overlay file system: `modprobe overlay`, or use another kernel")
	}
	if _, err := os.Stat("/proc/self/ns/cgroup"); err != nil {
		return errors.New("this kernel has no cgroup namespaces (CONFIG_CGROUPS, since Linux 4.6)")
	}
	if cfg.IPv6 && !KernelHasIPv6() {
		return errors.New("this kernel does no IPv6: leave IPv6 out of the cluster")
	}
	_, err = hierarchies(cgroupRoot)
	return err
}

// KernelHasIPv6 reports whether a cluster here can be dual-stack.
func KernelHasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

func bringUp(ctx context.Context, d dirs, cfg Config, say func(string)) (*Cluster, error) {
	// The listener decides about the port, so it comes first.
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(cfg.Port)))
	if err != nil {
		return nil, fmt.Errorf("the API server's port on this machine: %w", err)
	}
	defer l.Close() //nolint:errcheck // the forwarder has it then
	r := &record{Config: cfg, Port: l.Addr().(*net.TCPAddr).Port}
	if err := d.make(); err != nil {
		return nil, err
	}
	if err := writeRecord(d, r); err != nil {
		return nil, err
	}
	if err := writeConfiguration(d, r); err != nil {
		return nil, err
	}
	if err := makeNetwork(d, r.plan()); err != nil {
		return nil, err
	}
	c := &Cluster{d: d, r: r}
	if err := c.startAll(l.(*net.TCPListener)); err != nil {
		return nil, err
	}
	say("started")
	return c, c.awaitUsable(ctx, say)
}

func writeConfiguration(d dirs, r *record) error {
	pki, err := pkiFiles(r.plan(), "ambit-cluster", r.Port, time.Now())
	if err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	for name, b := range pki {
		if err := writeFile(filepath.Join(d.pki(), name), b, 0o600); err != nil {
			return err
		}
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	etc, err := configFiles(d, r.plan(), r.Bin, limit.Max)
	if err != nil {
		return err
	}
	for name, b := range etc {
		if err := writeFile(filepath.Join(d.etc(), name), b, 0o644); err != nil {
			return err
		}
	}
	for _, n := range r.plan().names() {
		if err := os.Mkdir(d.node(n), 0o755); err != nil {
			return err
		}
	}
	return errors.Join(
		writeFile(d.kubeconfig()+".lan", pki["admin-lan.kubeconfig"], 0o600),
		writeFile(d.kubeconfig(), pki["admin.kubeconfig"], 0o600),
	)
}

func (c *Cluster) startAll(l *net.TCPListener) error {
	f, err := l.File()
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // the forwarder's
	if err := c.launch("forward", roleForward, strconv.Itoa(c.r.Port), 0, f); err != nil {
		return err
	}
	if err := c.launch(ControlPlane, roleEnter, ControlPlane, unix.CLONE_NEWPID|unix.CLONE_NEWNS); err != nil {
		return err
	}
	for _, n := range c.Nodes() {
		if err := c.startNode(n); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) startNode(name string) error {
	return c.launch(name, roleEnter, name, unix.CLONE_NEWPID|unix.CLONE_NEWNS|unix.CLONE_NEWUTS|unix.CLONE_NEWIPC)
}

// launch starts a process that outlives this one, and puts it on record. One
// that is started and not recorded, because this process was killed between
// the two, is found by its control group.
func (c *Cluster) launch(name, role, arg string, namespaces uintptr, extra ...*os.File) error {
	out, err := os.OpenFile(c.d.log(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer out.Close() //nolint:errcheck // the child's
	cmd := exec.Command(c.r.program(), role, c.d.root, arg)
	cmd.Dir, cmd.Env = "/", environment(c.r.Bin)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = out, out, extra
	// A session of its own: an interrupt from the terminal is not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: namespaces}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w (this root may not make namespaces: is it in a container?)", err)
		}
		return fmt.Errorf("starting %s: %w", name, err)
	}
	err = c.d.recordProcess(name, cmd.Process.Pid)
	go func() { _ = cmd.Wait() }() // for as long as this process is its parent
	return err
}

// awaitUsable is the cluster's smoke test.
func (c *Cluster) awaitUsable(ctx context.Context, say func(string)) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := c.awaitAPI(ctx); err != nil {
		return err
	}
	say("API server ready")
	if err := c.kubectl(ctx, "create", "--validate=false", "-f", filepath.Join(c.d.etc(), "objects.yaml")); err != nil {
		return err
	}
	if err := writeFile(c.d.apiReady(), nil, 0o644); err != nil {
		return err
	}
	if err := c.kubectl(ctx, "wait", "--for=condition=Ready", "nodes", "--all", "--timeout=180s"); err != nil {
		return err
	}
	say(fmt.Sprintf("%d nodes Ready", c.r.Nodes))
	if err := c.kubectl(ctx, "--namespace=kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s"); err != nil {
		return err
	}
	say("DNS available")
	return nil
}

// awaitAPI waits for the API server, and stops waiting when the process behind
// it has ended.
func (c *Cluster) awaitAPI(ctx context.Context) error {
	b, err := os.ReadFile(filepath.Join(c.d.pki(), "ca.crt"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(b)
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true,
	}}
	url := fmt.Sprintf("https://127.0.0.1:%d/readyz", c.r.Port)
	for {
		if err = readyz(ctx, client, url); err == nil {
			return nil
		}
		for _, name := range c.d.processNames() {
			if _, up := c.d.readProcess(name); !up && (name == ControlPlane || name == "forward") {
				return fmt.Errorf("%s ended: %s", name, tail(c.d.log(name)))
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the API server does not become ready: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func readyz(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("%s: %s", resp.Status, b)
	}
	return nil
}

func (c *Cluster) kubectl(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(c.r.Bin, "kubectl"), append([]string{"--kubeconfig=" + c.d.kubeconfig()}, args...)...)
	cmd.Env = environment(c.r.Bin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// tail is the end of a file, for an error.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b[max(0, len(b)-1000):]))
}
