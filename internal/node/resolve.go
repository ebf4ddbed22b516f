package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Dir finds namespaces that somebody has put under a directory: a file or link
// DIR/<pod UID> for each.
type Dir string

// Find opens the namespace of a pod.
func (d Dir) Find(uid string) (*netns.NS, error) {
	if uid == "" || uid != filepath.Base(uid) {
		return nil, fmt.Errorf("%q is not a pod's UID", uid)
	}
	ns, err := netns.Open(filepath.Join(string(d), uid))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s/%s does not exist", ErrNoNamespace, string(d), uid)
	}
	return ns, err
}

// Proc finds namespaces by the control groups of the processes that run in
// them, as Kubernetes names them.
type Proc struct {
	root string // /proc
	host netns.ID

	mu      sync.Mutex
	pids    map[string][]string // processes by the UID of their pod
	scanned time.Time
}

// procFresh is how old a look at all processes may be. Looking takes
// milliseconds, and after a start all pods of the node are asked for at once.
const procFresh = 500 * time.Millisecond

// maxPerPod is how many processes of a pod are remembered: enough that one of
// them is still there when it is asked for.
const maxPerPod = 4

// NewProc makes a resolver over a proc file system that shows the processes of
// the host.
func NewProc(root string) (*Proc, error) {
	own, err := netns.Open(filepath.Join(root, "1/ns/net"))
	if err != nil {
		return nil, fmt.Errorf("finding the host's network namespace: %w", err)
	}
	defer func() { _ = own.Close() }()
	return &Proc{root: root, host: own.ID()}, nil
}

// Find opens the namespace of a pod.
func (p *Proc) Find(uid string) (*netns.NS, error) {
	pids, err := p.processes(uid)
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		// The process may have ended, and its number may be another's by now:
		// look again with the namespace open.
		ns, err := netns.Open(filepath.Join(p.root, pid, "ns/net"))
		if err != nil {
			continue
		}
		if p.podOf(pid) == uid && ns.ID() != p.host {
			return ns, nil
		}
		_ = ns.Close()
	}
	return nil, fmt.Errorf("%w: no process of pod %s under %s", ErrNoNamespace, uid, p.root)
}

func (p *Proc) processes(uid string) ([]string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pids := p.pids[uid]; len(pids) > 0 && time.Since(p.scanned) < procFresh {
		return pids, nil
	}
	if time.Since(p.scanned) >= procFresh {
		entries, err := os.ReadDir(p.root)
		if err != nil {
			return nil, fmt.Errorf("listing processes: %w", err)
		}
		p.pids = map[string][]string{}
		for _, e := range entries {
			if name := e.Name(); name[0] >= '1' && name[0] <= '9' {
				if pod := p.podOf(name); pod != "" && len(p.pids[pod]) < maxPerPod {
					p.pids[pod] = append(p.pids[pod], name)
				}
			}
		}
		p.scanned = time.Now()
	}
	return p.pids[uid], nil
}

func (p *Proc) podOf(pid string) string {
	text, err := os.ReadFile(filepath.Join(p.root, pid, "cgroup"))
	if err != nil {
		return ""
	}
	return podUID(string(text))
}

// podUID finds the UID of the pod whose control group is among the lines of
// /proc/PID/cgroup, of either version; it is empty when there is none. The path
// has a part that ends in "pod" and the UID, whose dashes systemd's naming turns
// into underscores; static pods have one without dashes.
func podUID(cgroup string) string {
	for line := range strings.Lines(cgroup) {
		_, path, ok := strings.Cut(line, ":/")
		if !ok {
			continue
		}
		// The innermost pod counts: Kubernetes can run inside of a pod.
		for _, part := range reversed(strings.Split(strings.TrimSpace(path), "/")) {
			part = strings.TrimSuffix(part, ".slice")
			i := strings.LastIndex(part, "pod")
			if i < 0 || i > 0 && part[i-1] != '-' {
				continue
			}
			if uid := strings.ReplaceAll(part[i+len("pod"):], "_", "-"); isUID(uid) {
				return uid
			}
		}
	}
	return ""
}

func isUID(s string) bool {
	const plain, dashed = 32, 36
	if len(s) != plain && len(s) != dashed {
		return false
	}
	for i, c := range []byte(s) {
		dash := len(s) == dashed && (i == 8 || i == 13 || i == 18 || i == 23)
		hex := c >= '0' && c <= '9' || c >= 'a' && c <= 'f'
		if dash != (c == '-') || !dash && !hex {
			return false
		}
	}
	return true
}

func reversed(s []string) []string {
	r := make([]string, 0, len(s))
	for i := len(s) - 1; i >= 0; i-- {
		r = append(r, s[i])
	}
	return r
}
