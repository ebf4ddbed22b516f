package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// LAN is the name, beside those of nodes, of the network between the nodes:
// from there nodes, pods, Services and node ports can be reached.
const LAN = "lan"

// Streams are a command's; nil is nothing to read, and output thrown away.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Exec runs a program to its end inside a node, in all of its namespaces, or
// on the LAN: in its network namespace only, with the machine's files. Its
// failure is an *exec.ExitError. When ctx ends the program is killed.
func (c *Cluster) Exec(ctx context.Context, where string, s Streams, argv ...string) error {
	if len(argv) == 0 {
		return errors.New("no command to run")
	}
	namespaces, err := c.namespaces(where)
	if err != nil {
		return err
	}
	defer closeAll(namespaces)
	var cmd *exec.Cmd
	err = inNamespaces(namespaces, func() error {
		// Found and started here: the file system is the node's.
		path, err := findProgram(argv[0], c.Bin())
		if err != nil {
			return err
		}
		cmd = exec.CommandContext(ctx, path, argv[1:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = s.In, s.Out, s.Err
		cmd.Env = environment(c.Bin())
		for _, v := range []string{"TERM", "LANG"} {
			cmd.Env = append(cmd.Env, v+"="+os.Getenv(v))
		}
		if where != LAN {
			cmd.Dir = "/"
		}
		cmd.WaitDelay = 5 * time.Second // for the output of children that stay
		return cmd.Start()
	})
	if err != nil {
		return fmt.Errorf("running %s in %s: %w", argv[0], where, err)
	}
	return cmd.Wait()
}

// findProgram looks where a command of the cluster's would be found.
func findProgram(name, bin string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	_, path, _ := strings.Cut(environment(bin)[0], "=")
	for _, dir := range filepath.SplitList(path) {
		full := filepath.Join(dir, name)
		if st, err := os.Stat(full); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return full, nil
		}
	}
	return "", fmt.Errorf("no program %q", name)
}

// Output is Exec, and returns what the program wrote to standard output; what
// it wrote to standard error is in the error.
func (c *Cluster) Output(ctx context.Context, where string, argv ...string) (string, error) {
	var out, errs bytes.Buffer
	err := c.Exec(ctx, where, Streams{Out: &out, Err: &errs}, argv...)
	if err != nil {
		err = fmt.Errorf("%q in %s: %w: %s", argv, where, err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.String(), err
}

// namespaces opens what a place consists of, in the order of entering: the
// mount namespace last, because the others are opened through /proc.
func (c *Cluster) namespaces(where string) ([]*os.File, error) {
	if where == LAN {
		f, err := os.Open(c.d.netns(LAN))
		if err != nil {
			return nil, fmt.Errorf("no cluster is up in %s: %w", c.d.root, err)
		}
		return []*os.File{f}, nil
	}
	if c.r.plan().number(where) == 0 {
		return nil, fmt.Errorf("no node %q: there are %s, and %s for the network between them", where, strings.Join(c.Nodes(), ", "), LAN)
	}
	p, up := c.d.readProcess(where)
	if !up {
		return nil, fmt.Errorf("%s is down", where)
	}
	var all []*os.File
	for _, kind := range []string{"cgroup", "ipc", "uts", "net", "pid", "mnt"} {
		f, err := os.Open(filepath.Join("/proc", strconv.Itoa(p.PID), "ns", kind))
		if err != nil {
			closeAll(all)
			return nil, fmt.Errorf("%s is down: %w", where, err)
		}
		all = append(all, f)
	}
	if !p.Alive() { // it ended meanwhile, and these may be another's
		closeAll(all)
		return nil, fmt.Errorf("%s is down", where)
	}
	return all, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// Netns opens the network namespace of a node, or of the LAN. It is the
// caller's to close.
func (c *Cluster) Netns(where string) (*netns.NS, error) { return netns.Open(c.d.netns(where)) }

// Dial connects from a node, or from the LAN, to a TCP address.
func (c *Cluster) Dial(where string, to netip.AddrPort, limit time.Duration) (*net.TCPConn, error) {
	ns, err := c.Netns(where)
	if err != nil {
		return nil, err
	}
	defer ns.Close() //nolint:errcheck // nothing was written
	return dialIn(ns, to, limit)
}

// dialIn blocks its thread: a connection to an address is made by the calling
// goroutine, and stays in the namespace that its socket was made in.
func dialIn(ns *netns.NS, to netip.AddrPort, limit time.Duration) (*net.TCPConn, error) {
	var conn net.Conn
	err := ns.Do(func() error {
		var err error
		conn, err = net.DialTimeout("tcp", to.String(), limit)
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

func netipAPI() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), apiPort)
}
