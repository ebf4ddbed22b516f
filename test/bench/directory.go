package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/xds"
	"github.com/ambit-mesh/ambit/test/bench/largemesh"
	"github.com/ambit-mesh/ambit/test/measure"
)

// Rows about the memory of one proxy that knows a large mesh.
const (
	rowDirectory    = "resident memory with 100,000 workloads"
	rowDirectoryOwn = "of it not of files, with 100,000 workloads"
)

const (
	directoryPods     = 100_000
	directoryServices = 5_000
	// directoryWait bounds how long a proxy takes to have all of it, on a machine under load.
	directoryWait = 2 * time.Minute
)

// directory starts a proxy of the contender's kind beside a control plane of its own, which
// has a large mesh and no pod of that proxy, and measures the proxy when it has all of it.
func (c *contender) directory(ctx context.Context) (_ map[string]float64, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, directoryWait, errors.New("the proxy takes too long with a large mesh"))
	defer cancel()
	all, err := largemesh.Addresses(directoryPods, directoryServices)
	if err != nil {
		return nil, err
	}
	cache := xds.NewCache()
	cache.Update(wellknown.TypeAddress, all, nil)
	for _, t := range []string{wellknown.TypeAddress, wellknown.TypeAuthorization} {
		cache.MarkSynced(t)
	}
	server := xds.NewServer(cache, xds.ServerOptions{Logger: quiet()})
	defer server.Close()
	certs := filepath.Dir(c.lab.StateDir())
	own, err := credentials.NewServerTLSFromFile(filepath.Join(certs, certFile), filepath.Join(certs, keyFile))
	if err != nil {
		return nil, err
	}
	g := grpc.NewServer(append(xds.GRPCOptions(), grpc.Creds(own))...)
	discovery.RegisterAggregatedDiscoveryServiceServer(g, server)
	in := lab.InPod("plain", "client")
	l, err := c.listen(ctx, in, "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go g.Serve(l) //nolint:errcheck // it ends with Stop
	defer g.Stop()
	pid, end, err := c.lone(ctx, in, "https://"+l.Addr().String())
	if err != nil {
		return nil, err
	}
	defer end()
	if err := c.await(ctx, func() error {
		for _, s := range server.Clients() {
			for _, t := range s.Types {
				if t.TypeURL == wellknown.TypeAddress && t.Resources == len(all) && t.Pending == 0 && t.Acked == t.Sent {
					return nil
				}
			}
		}
		return fmt.Errorf("the proxy does not have the large mesh: %+v", server.Clients())
	}); err != nil {
		return nil, err
	}
	u, err := settled(ctx, func() (measure.Usage, error) { return c.usageOf(ctx, []int{pid}) })
	return map[string]float64{rowDirectory: float64(u.RSS) / (1 << 20), rowDirectoryOwn: float64(u.Anonymous) / (1 << 20)}, err
}

// await asks again and again, until there is no error or ctx ends.
func (c *contender) await(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%s: %w (%w)", c.name, err, context.Cause(ctx))
		}
	}
}

// listen listens in a namespace of the contender's lab.
func (c *contender) listen(ctx context.Context, in lab.Where, address string) (l net.Listener, err error) {
	ns, err := c.netns(ctx, in)
	if err != nil {
		return nil, err
	}
	defer ns.Close() //nolint:errcheck // the listener has its namespace
	err = ns.Do(func() error {
		l, err = net.Listen("tcp", address)
		return err
	})
	return l, err
}

func (c *contender) netns(ctx context.Context, in lab.Where) (*netns.NS, error) {
	f, err := c.lab.Netns(ctx, in)
	if err != nil {
		return nil, err
	}
	ns, err := netns.FromFile(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return ns, nil
}

// lone starts one more proxy of the contender's kind, and returns its process number as
// the lab counts it.
func (c *contender) lone(ctx context.Context, in lab.Where, controlPlane string) (pid int, end func(), err error) {
	st, err := c.lab.Status(ctx)
	if err != nil {
		return 0, nil, err
	}
	program, ok := st.Component(proxies[0])
	if !ok {
		return 0, nil, fmt.Errorf("%s has no %s", c.name, proxies[0])
	}
	root := filepath.Join(filepath.Dir(c.lab.StateDir()), caFile)
	token := filepath.Join(filepath.Dir(c.lab.StateDir()), "token") // an empty one is no token for the peer
	if err := os.WriteFile(token, []byte("none"), 0o600); err != nil {
		return 0, nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, nil, err
	}
	defer r.Close() //nolint:errcheck // one line is all it says
	cmd, err := c.lab.Exec(ctx, in, lab.ExecOptions{Stdout: w, Stderr: w, Env: []string{
		"XDS_ADDRESS=" + controlPlane, "CA_ADDRESS=" + controlPlane, "XDS_ROOT_CA=" + root, "CA_ROOT_CA=" + root, "AUTH_TOKEN=" + token,
		"NODE_NAME=far", "INPOD_UDS=" + filepath.Join(os.TempDir(), "no-agent.sock"), "CLUSTER_ID=" + wellknown.DefaultCluster,
		"POD_NAME=ztunnel", "POD_NAMESPACE=" + wellknown.SystemNamespace, "INSTANCE_IP=127.0.0.1", "SERVICE_ACCOUNT=ztunnel", "RUST_LOG=off",
	}}, "/bin/sh", "-c", `echo $$; exec "$0" proxy ztunnel >/dev/null 2>&1`, program.Path)
	_ = w.Close()
	if err != nil {
		return 0, nil, err
	}
	end = func() {
		_ = cmd.Signal(lab.SIGKILL) // it may have ended
		_, _ = cmd.Wait()
	}
	line, err := bufio.NewReader(r).ReadString('\n')
	pid, perr := strconv.Atoi(strings.TrimSpace(line))
	if err = errors.Join(err, perr); err != nil {
		end()
		return 0, nil, fmt.Errorf("a proxy for a large mesh: %w", err)
	}
	return pid, end, nil
}
