// Command cluster brings a Kubernetes cluster of several nodes up on this
// machine, without Docker, for the end-to-end tests and for trying things out.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/test/cluster/local"
)

const help = `A Kubernetes cluster of several nodes on this machine: as root, on Linux, without Docker.

  go run ./test/cluster COMMAND [flags] [arguments]

  build              builds Kubernetes and what it needs, from source (7 minutes on two free cores, the first time)
  up                 brings the cluster up, and waits until it can be used
  down               takes it down, and leaves nothing of it
  load ARCHIVE...    imports images (OCI archives, such as bin/images/*.tar) into its nodes
  exec WHERE CMD...  runs a command in a node (node1, node2, ...) or, WHERE being lan, on the network between the nodes
  restart NODE       ends a node as a power failure does, and starts it again
  stop PLACE DAEMON  kills a daemon and keeps it down; start runs it again. PLACE is a node (containerd, kubelet,
  start PLACE DAEMON kube-proxy) or control-plane (etcd, kube-apiserver, kube-controller-manager, kube-scheduler)
  status             says what is up
  env                prints what a shell needs to use it: eval "$(go run ./test/cluster env)"

COMMAND -h lists the command's flags. Every command takes
  -state DIR         the cluster's state directory, and so which cluster is meant (default $AMBIT_CLUSTER, else
                     /run/ambit-cluster). Another directory is another cluster, side by side with the first
  -bin DIR           the directory of the programs (default $AMBIT_CLUSTER_BIN, else ~/.cache/ambit-cluster/bin)

docs/cluster.md says more.
`

func main() {
	local.Main()
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, help)
		os.Exit(2)
	}
	// An interrupted up leaves what it has made to the next up or down.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1], os.Args[2:], os.Stdout)
	stop()
	if code, ended := exitCode(err); ended {
		os.Exit(code)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

// exitCode is that of the command which exec ran, if it ran.
func exitCode(err error) (int, bool) {
	e := new(exec.ExitError)
	if !errors.As(err, &e) {
		return 0, false
	}
	if code := e.ExitCode(); code >= 0 {
		return code, true
	}
	status, _ := e.Sys().(syscall.WaitStatus)
	return 128 + int(status.Signal()), true
}

// invocation is a command line that has been read.
type invocation struct {
	cfg    local.Config
	images string
	args   []string
	out    io.Writer
}

func (i *invocation) need(n int, what string) error {
	if len(i.args) < n {
		return fmt.Errorf("%s: say %s (-h helps)", os.Args[1], what)
	}
	return nil
}

func run(ctx context.Context, name string, args []string, out io.Writer) error {
	commands := map[string]func(context.Context, *invocation) error{
		"build": build, "up": up, "down": down, "load": load, "exec": execute, "restart": restart,
		"stop": stop, "start": start, "status": status, "env": env,
	}
	command := commands[name]
	switch {
	case name == "help" || name == "-h" || name == "--help":
		fmt.Fprint(out, help)
		return nil
	case command == nil:
		return fmt.Errorf("no command %q (-h lists them)", name)
	}
	i := &invocation{out: out}
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.StringVar(&i.cfg.State, "state", local.DefaultState(), "the cluster's state directory")
	bin, err := local.DefaultBin()
	if err != nil {
		return err
	}
	fs.StringVar(&i.cfg.Bin, "bin", bin, "directory of the cluster's programs")
	if name == "up" {
		fs.IntVar(&i.cfg.Nodes, "nodes", 3, "number of nodes")
		fs.IntVar(&i.cfg.Port, "port", 0, "port of the API server on 127.0.0.1; 0: any that is free")
		fs.BoolVar(&i.cfg.IPv6, "ipv6", local.KernelHasIPv6(), "IPv6 beside IPv4 for nodes, pods and Services; the default is what the kernel can do")
		fs.StringVar(&i.images, "images", "", "archives of images to import, separated by commas")
	}
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	i.args = fs.Args()
	return command(ctx, i)
}

func up(ctx context.Context, i *invocation) error {
	began := time.Now()
	c, err := local.Up(ctx, i.cfg, func(what string) {
		fmt.Fprintf(i.out, "%5.1fs  %s\n", time.Since(began).Seconds(), what)
	})
	if errors.Is(err, local.ErrUp) {
		// That is what was asked for: make cluster may be repeated.
		fmt.Fprintln(i.out, err)
		c, err = local.Open(i.cfg.State)
	}
	if err != nil {
		return err
	}
	if i.images != "" {
		if err := c.Load(ctx, strings.Split(i.images, ",")); err != nil {
			return err
		}
	}
	printEnv(i.out, c)
	return nil
}

func down(_ context.Context, i *invocation) error { return local.Down(i.cfg.State) }

func load(ctx context.Context, i *invocation) error {
	if err := i.need(1, "which archives"); err != nil {
		return err
	}
	c, err := local.Open(i.cfg.State)
	if err != nil {
		return err
	}
	return c.Load(ctx, i.args)
}

func execute(ctx context.Context, i *invocation) error {
	if err := i.need(2, "where, and which command"); err != nil {
		return err
	}
	c, err := local.Open(i.cfg.State)
	if err != nil {
		return err
	}
	return c.Exec(ctx, i.args[0], local.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}, i.args[1:]...)
}

func restart(_ context.Context, i *invocation) error {
	if err := i.need(1, "which node"); err != nil {
		return err
	}
	c, err := local.Open(i.cfg.State)
	if err != nil {
		return err
	}
	if err := c.PowerOff(i.args[0]); err != nil {
		return err
	}
	return c.PowerOn(i.args[0])
}

func stop(_ context.Context, i *invocation) error { return tell(i, (*local.Cluster).Stop) }

func start(_ context.Context, i *invocation) error { return tell(i, (*local.Cluster).Start) }

func tell(i *invocation, what func(c *local.Cluster, place, daemon string) error) error {
	if err := i.need(2, "the place and the daemon"); err != nil {
		return err
	}
	c, err := local.Open(i.cfg.State)
	if err != nil {
		return err
	}
	return what(c, i.args[0], i.args[1])
}

func status(_ context.Context, i *invocation) error {
	c, err := local.Open(i.cfg.State)
	if err != nil {
		return err
	}
	for _, n := range append([]string{local.ControlPlane}, c.Nodes()...) {
		is := "down"
		if c.IsUp(n) {
			is = "up"
		}
		fmt.Fprintf(i.out, "%-14s %-4s", n, is)
		for _, a := range c.Addresses(n) {
			fmt.Fprintf(i.out, " %s", a)
		}
		if stopped, err := c.Stopped(n); err == nil && len(stopped) > 0 {
			fmt.Fprintf(i.out, " (stopped: %s)", strings.Join(stopped, ", "))
		}
		fmt.Fprintln(i.out)
	}
	fmt.Fprintf(i.out, "logs: %s\n", c.Logs())
	return nil
}

func env(_ context.Context, i *invocation) error {
	c, err := local.Open(i.cfg.State)
	if err == nil {
		printEnv(i.out, c)
	}
	return err
}

func printEnv(w io.Writer, c *local.Cluster) {
	fmt.Fprintf(w, "export KUBECONFIG=%s\nexport PATH=%s:$PATH\n", c.Kubeconfig(), c.Bin())
	if state := c.Config().State; state != local.DefaultState() {
		fmt.Fprintf(w, "export %s=%s\n", local.StateVariable, state)
	}
}
