package egress

import (
	"bufio"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ztunnel/budget"
	"github.com/ambit-mesh/ambit/internal/ztunnel/dnsproxy"
)

const (
	// Grace is how long an answer counts after its time to live: programs keep addresses
	// longer than they may.
	Grace = time.Hour
	// maxTTL bounds the time to live that an answer may have.
	maxTTL = 24 * time.Hour
	// maxAnswers bounds the answers of one pod: pairs of a name and an address.
	maxAnswers = 1024
	// maxNames bounds those of one address.
	maxNames = 32
	// NodeAnswers bounds those of all pods of a node, which share it.
	NodeAnswers = 65536
)

// Answers are the addresses that look-ups of a pod have led to. The zero value has none, and
// keeps as many as one pod may.
type Answers struct {
	Share *budget.Share

	seen atomic.Uint64
	mu   sync.Mutex // guards what follows
	at   map[netip.Addr][]answer
	n    int
}

type answer struct {
	host   string
	origin egress.Origin
	until  time.Time
}

// Seen counts the answers that were noted.
func (a *Answers) Seen() uint64 { return a.seen.Load() }

// Add notes that a name has an address. Beyond the bounds, what ends first is forgotten.
func (a *Answers) Add(host string, origin egress.Origin, addr netip.Addr, ttl time.Duration, now time.Time) {
	host, err := egress.ParseHost(host)
	if err != nil || host[0] == '*' || !addr.IsValid() {
		return
	}
	addr = addr.Unmap().WithZone("")
	until := now.Add(min(max(ttl, 0), maxTTL) + Grace)
	a.seen.Add(1)
	a.mu.Lock()
	defer a.mu.Unlock()
	list := a.at[addr]
	for i := range list {
		if list[i].host == host && list[i].origin == origin {
			if until.After(list[i].until) {
				list[i].until = until
			}
			// The last one asked for comes first.
			found := list[i]
			copy(list[1:i+1], list[:i])
			list[0] = found
			return
		}
	}
	if len(list) >= maxNames {
		a.drop(addr, len(list)-1)
	}
	for a.n >= maxAnswers || !a.Share.Take(1) {
		if !a.evict(now) {
			return
		}
	}
	if a.at == nil {
		a.at = map[netip.Addr][]answer{}
	}
	a.n++
	a.at[addr] = slices.Insert(a.at[addr], 0, answer{strings.Clone(host), origin, until})
}

// evict makes room: of what is over, or else of what ends first. It reports whether there
// was anything.
func (a *Answers) evict(now time.Time) bool {
	var first netip.Addr
	at, over := -1, false
	var until time.Time
	for addr, list := range a.at {
		for i := len(list) - 1; i >= 0; i-- {
			if list[i].until.Before(now) {
				a.drop(addr, i)
				over = true
				list = a.at[addr]
				continue
			}
			if at < 0 || list[i].until.Before(until) {
				first, at, until = addr, i, list[i].until
			}
		}
	}
	if over {
		return true
	}
	if at >= 0 {
		a.drop(first, at)
	}
	return at >= 0
}

func (a *Answers) drop(addr netip.Addr, i int) {
	list := slices.Delete(a.at[addr], i, i+1)
	if len(list) == 0 {
		delete(a.at, addr)
	} else {
		a.at[addr] = list
	}
	a.n--
	a.Share.Give(1)
}

// Of returns an address that look-ups of a name have led to, of the family of like if there is
// one. Of several it is the least.
func (a *Answers) Of(host string, like netip.Addr, now time.Time) (found netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for addr, list := range a.at {
		fits := slices.ContainsFunc(list, func(n answer) bool { return n.host == host && n.origin == egress.Origin{} && now.Before(n.until) })
		if !fits {
			continue
		}
		same, was := addr.Is4() == like.Is4(), found.Is4() == like.Is4()
		if !found.IsValid() || same && !was || same == was && addr.Less(found) {
			found = addr
		}
	}
	return found
}

// Names appends the names that an address was an answer for.
func (a *Answers) Names(buf []egress.Name, addr netip.Addr, now time.Time) []egress.Name {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range a.at[addr.Unmap().WithZone("")] {
		if now.Before(n.until) {
			buf = append(buf, egress.Name{Host: n.host, Origin: n.origin})
		}
	}
	return buf
}

// Forget drops everything.
func (a *Answers) Forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.Share.Give(int64(a.n))
	a.at, a.n = nil, 0
}

// Len counts what is kept.
func (a *Answers) Len() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n
}

// Listen returns what remembers the look-ups of a pod. Only what a name server has answered
// that is trusted gives names to addresses: a pod may ask any server, its own too.
func (g *Gate) Listen(p *Pod, namespace string, local func() *workload.Workload) *dnsproxy.Listener {
	return &dnsproxy.Listener{
		Wanted: func() bool { return !g.Hosts.Empty() || Watched(local()) },
		Trusts: func(server netip.Addr) bool { return slices.Contains(g.NameServers, server) },
		Given: func(host, entry string, addr netip.Addr, ttl time.Duration) {
			if Watched(local()) || entry == "" && g.Hosts.Has(host, namespace) {
				p.Answers.Add(host, egress.Origin{Entry: entry}, addr, ttl, time.Now())
			}
		},
	}
}

// Found remembers an address that the proxy itself has looked up.
func (p *Pod) Found(host string, addr netip.Addr) {
	p.Answers.Add(host, egress.Origin{}, addr, 0, time.Now())
}

// NameServers returns the servers of a resolv.conf at a path, and those that are named besides.
func NameServers(path string, more []netip.Addr) []netip.Addr {
	f, err := os.Open(path)
	if err != nil {
		return more
	}
	defer func() { _ = f.Close() }()
	return append(readNameServers(f), more...)
}

func readNameServers(resolv io.Reader) (out []netip.Addr) {
	for s := bufio.NewScanner(io.LimitReader(resolv, 64<<10)); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil && !a.IsLoopback() {
			out = append(out, a.Unmap().WithZone(""))
		}
	}
	return out
}
