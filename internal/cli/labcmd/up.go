package labcmd

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/lab"
)

func labUp(a *session.Session) *cobra.Command {
	var cfg lab.Config
	var meshConfig string
	var plaintext, rootless bool
	cmd := &cobra.Command{
		Use:   "up -f FILE|DIR",
		Short: "Build a lab and run it until ^C, or in the background",
		Example: `  ambit lab up -f examples/shop --nodes 2
  ambit lab up -f pods.yaml --nodes 3 --detach
  ambit lab up -f pods.yaml --nodes 2 --ztunnel node2=/path/to/another/ztunnel`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.StringArrayVarP(&cfg.Manifests, "filename", "f", nil, "file or directory of Kubernetes YAML (may be given several times)")
	f.IntVar(&cfg.Nodes, "nodes", 2, "number of nodes")
	f.BoolVarP(&cfg.Detach, "detach", "d", false, "run in the background")
	f.StringVar(&cfg.BinDir, "bin", "", "directory of ambitd, ztunnel and ambit-cni (default: beside this program)")
	f.StringToStringVar(&cfg.PeerZtunnel, "ztunnel", nil, "another ztunnel for a node, as NODE=PATH")
	f.StringVar(&cfg.IPFamily, "ip-family", "", "families of the addresses of nodes, pods and services: dual, ipv4 or ipv6 (default: what the kernel does)")
	f.StringVar(&meshConfig, "mesh-config", "", "file with Istio's MeshConfig, which ambitd reads again when it changes")
	f.BoolVar(&cfg.LargePackets, "big-tcp", false, "let packets of enrolled pods and between nodes be up to 256 KiB, as the chart's cni.bigTCP does")
	f.BoolVar(&plaintext, "plaintext", false, "no mesh: only nodes, pods and services")
	f.BoolVar(&rootless, "rootless", false, "use a user namespace even as root")
	f.DurationVar(&cfg.ReadyTimeout, "timeout", time.Minute, "how long to wait for components and pods")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg.Name, cfg.StateDir = a.LabName, a.StateDir()
		cfg.Mesh, cfg.UserNamespace = !plaintext, rootless
		if meshConfig != "" {
			path, err := filepath.Abs(meshConfig)
			if err != nil {
				return err
			}
			cfg.Args = map[string][]string{lab.Ambitd: {"--mesh-config", path}}
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
		defer stop()
		began := time.Now()
		l, err := lab.Start(ctx, cfg)
		if err != nil {
			return err
		}
		return up(ctx, a, l, cfg, time.Since(began))
	}
	return cmd
}

// up tells about a new lab, and stays with it unless it runs in the background.
func up(ctx context.Context, a *session.Session, l *lab.Lab, cfg lab.Config, took time.Duration) error {
	st, err := l.Status(ctx)
	if err != nil {
		_ = l.Close()
		return err
	}
	err = a.Printf("Lab %q is up after %.1f s: %d nodes, %d pods, %d components.\n\nNext:\n  ambit lab status%s\n",
		cfg.Name, took.Seconds(), len(st.Nodes), len(st.Pods), len(st.Components), a.NameArg("name"))
	if i := slices.IndexFunc(st.Pods, func(p lab.PodStatus) bool { return p.Ready }); i >= 0 && err == nil {
		err = a.Printf("  ambit lab shell %s -n %s%s\n", st.Pods[i].Name, st.Pods[i].Namespace, a.NameArg("name"))
	}
	if cfg.Detach || err != nil {
		return err
	}
	if err := a.Printf("\nIt runs until ^C.\n"); err != nil {
		return errors.Join(err, l.Close())
	}
	follow(ctx, a, l)
	return l.Close()
}

// follow prints what happens in a lab until ctx ends.
func follow(ctx context.Context, a *session.Session, l *lab.Lab) {
	last := time.Now()
	_, _ = l.Wait(ctx, func(s *lab.Status) bool {
		for _, e := range s.Events {
			if e.Time.After(last) {
				last = e.Time
				_ = a.Printf("%s  %s: %s\n", e.Time.Format(time.TimeOnly), e.Object, e.Message)
			}
		}
		return false
	})
}

func labDown(a *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:     "down",
		Short:   "End a lab and remove all of it, also after a crash",
		Example: "  ambit lab down\n  ambit lab down --name other",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if _, err := os.Stat(a.StateDir()); errors.Is(err, fs.ErrNotExist) {
				return a.Printf("There is no lab in %s: nothing to end.\n", a.StateDir())
			}
			if err := lab.Down(a.StateDir()); err != nil {
				return err
			}
			return a.Printf("Lab %q is down.\n", a.LabName)
		},
	}
}
