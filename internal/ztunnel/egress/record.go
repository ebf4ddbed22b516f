package egress

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/ambit-mesh/ambit/api/admin"
)

// maxRows bounds what is recorded of one pod.
const maxRows = 512

// The decisions of a record.
const (
	decidedAllowed  = "allowed"
	decidedReported = "reported"
	decidedRefused  = "refused"
)

// Record has what a pod has called outside of the mesh. The zero value is empty.
type Record struct {
	mu     sync.Mutex // guards what follows
	rows   map[row]uint64
	others uint64
}

type row struct {
	host     string
	addr     netip.Addr
	port     uint16
	decision string
}

// add counts a connection. What has no row, once all are taken, is counted together.
func (r *Record) add(w row) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.rows[w]; !known && len(r.rows) >= maxRows {
		r.others++
		return
	}
	if r.rows == nil {
		r.rows = map[row]uint64{}
	}
	r.rows[w]++
}

// Calls lists what was recorded, and how many connections have no row.
func (r *Record) Calls() (out []admin.Call, others uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for w, n := range r.rows {
		c := admin.Call{Host: w.host, Port: w.port, Decision: w.decision, Count: n}
		if w.addr.IsValid() {
			c.Address = w.addr.String()
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b admin.Call) int {
		return cmp.Or(strings.Compare(a.Host, b.Host), strings.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port), strings.Compare(a.Decision, b.Decision))
	})
	return out, r.others
}
