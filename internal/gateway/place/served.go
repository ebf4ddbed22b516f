package place

import "github.com/ambit-mesh/ambit/internal/mesh/workload"

// Served remembers which services of one directory this gateway is a waypoint of. It is for
// one goroutine. The zero value is ready.
type Served struct {
	snapshot *workload.Snapshot
	is       map[*workload.Service]bool
}

// By is w.Serves that remembers.
func (m *Served) By(w *Whereabouts, svc *workload.Service) bool {
	if m.snapshot != w.Snapshot {
		m.snapshot = w.Snapshot
		m.is = map[*workload.Service]bool{}
	}
	is, known := m.is[svc]
	if !known {
		is = w.Serves(svc)
		m.is[svc] = is
	}
	return is
}
