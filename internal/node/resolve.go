package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Dir finds namespaces that somebody has put under a directory: a file or link
// DIR/<pod UID> for each.
type Dir string

// Find opens the namespace of a pod.
func (d Dir) Find(uids []string, prove func(*netns.NS) error) (*netns.NS, error) {
	for _, uid := range uids {
		if uid == "" || uid != filepath.Base(uid) {
			return nil, fmt.Errorf("%q is not a pod's UID", uid)
		}
		ns, err := netns.Open(filepath.Join(string(d), uid))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := prove(ns); err != nil {
			_ = ns.Close()
			return nil, err
		}
		return ns, nil
	}
	return nil, fmt.Errorf("%w: %s/%s does not exist", ErrNoNamespace, string(d), strings.Join(uids, " or "))
}

// Proc finds namespaces by the control groups of the processes that run in
// them, as Kubernetes names them.
type Proc struct {
	root  string // /proc
	host  netns.ID
	above []string // UIDs of the pods that this whole Kubernetes runs in

	mu      sync.Mutex
	pids    map[string][]int // processes by the UID of their pod, one for each namespace
	scanned time.Time
}

// procFresh is how old a look at all processes may be. Looking takes
// milliseconds, and after a start all pods of the node are asked for at once.
const procFresh = 500 * time.Millisecond

// maxPerPod is how many network namespaces of a pod are looked at. A pod that
// runs containers of its own has one for each of them.
const maxPerPod = 256

// NewProc makes a resolver over a proc file system that shows the processes of
// the host.
func NewProc(root string) (*Proc, error) {
	own, err := netns.Open(filepath.Join(root, "1/ns/net"))
	if err != nil {
		return nil, fmt.Errorf("finding the host's network namespace: %w", err)
	}
	defer func() { _ = own.Close() }()
	cgroup, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("reading the agent's own control group: %w", err)
	}
	return &Proc{root: root, host: own.ID(), above: podsAbove(string(cgroup))}, nil
}

// podsAbove are the pods around the one that has this control group.
func podsAbove(cgroup string) []string {
	for line := range strings.Lines(cgroup) {
		if pods := podsOf(line); len(pods) > 1 {
			return pods[:len(pods)-1]
		}
	}
	return nil
}

// Find opens the namespace of a pod. Processes of one pod can be in several
// namespaces, so that each is proven, in the order of the processes' numbers:
// the first process of a pod normally holds its network.
func (p *Proc) Find(uids []string, prove func(*netns.NS) error) (*netns.NS, error) {
	wrong := fmt.Errorf("%w: no process of pod %s under %s", ErrNoNamespace, strings.Join(uids, " or "), p.root)
	for _, uid := range uids {
		pids, err := p.processes(uid)
		if err != nil {
			return nil, err
		}
		for _, pid := range pids {
			ns := p.open(pid, uid)
			if ns == nil {
				continue
			}
			if err := prove(ns); err != nil {
				wrong = err
				_ = ns.Close()
				continue
			}
			return ns, nil
		}
	}
	return nil, wrong
}

// open returns the namespace of a process, nil when it is not a pod's. The
// process may have ended, and its number may be another's: the control group is
// read again with the namespace open.
func (p *Proc) open(pid int, uid string) *netns.NS {
	name := strconv.Itoa(pid)
	ns, err := netns.Open(filepath.Join(p.root, name, "ns/net"))
	if err != nil {
		return nil
	}
	if p.podOf(name) != uid || ns.ID() == p.host {
		_ = ns.Close()
		return nil
	}
	return ns
}

func (p *Proc) processes(uid string) ([]int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pids := p.pids[uid]; len(pids) > 0 && time.Since(p.scanned) < procFresh {
		return pids, nil
	}
	if time.Since(p.scanned) >= procFresh {
		if err := p.scan(); err != nil {
			return nil, err
		}
	}
	return p.pids[uid], nil
}

// scan remembers the lowest process of each pod in each network namespace. It
// needs p.mu.
func (p *Proc) scan() error {
	entries, err := os.ReadDir(p.root)
	if err != nil {
		return fmt.Errorf("listing processes: %w", err)
	}
	var all []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid > 0 {
			all = append(all, pid)
		}
	}
	slices.Sort(all)
	type place struct{ pod, ns string }
	seen := map[place]bool{}
	p.pids = map[string][]int{}
	for _, pid := range all {
		name := strconv.Itoa(pid)
		pod := p.podOf(name)
		if pod == "" || len(p.pids[pod]) >= maxPerPod {
			continue
		}
		ns, err := os.Readlink(filepath.Join(p.root, name, "ns/net"))
		if at := (place{pod, ns}); err == nil && !seen[at] {
			seen[at] = true
			p.pids[pod] = append(p.pids[pod], pid)
		}
	}
	p.scanned = time.Now()
	return nil
}

func (p *Proc) podOf(pid string) string {
	text, err := os.ReadFile(filepath.Join(p.root, pid, "cgroup"))
	if err != nil {
		return ""
	}
	return podUID(string(text), p.above)
}

// podUID finds the UID of the pod whose control group is among the lines of
// /proc/PID/cgroup, of either version; it is empty when there is none. The
// outermost pod below those above counts: what is further inside is made by the
// pod itself, and could carry the name of another. Lines that disagree are no
// proof.
func podUID(cgroup string, above []string) string {
	found := ""
	for line := range strings.Lines(cgroup) {
		pods := podsOf(line)
		if len(pods) <= len(above) || !slices.Equal(pods[:len(above)], above) {
			continue
		}
		uid := pods[len(above)]
		if found != "" && found != uid {
			return ""
		}
		found = uid
	}
	return found
}

// podsOf are the UIDs of the pods in one line, from the outermost inwards. A
// path has a part for each that ends in "pod" and the UID, whose dashes
// systemd's naming turns into underscores; static pods have one without dashes.
func podsOf(line string) []string {
	_, path, ok := strings.Cut(line, ":/")
	if !ok {
		return nil
	}
	var uids []string
	for part := range strings.SplitSeq(strings.TrimSpace(path), "/") {
		part = strings.TrimSuffix(part, ".slice")
		i := strings.LastIndex(part, "pod")
		if i < 0 || i > 0 && part[i-1] != '-' {
			continue
		}
		if uid := strings.ReplaceAll(part[i+len("pod"):], "_", "-"); isUID(uid) {
			uids = append(uids, uid)
		}
	}
	return uids
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
