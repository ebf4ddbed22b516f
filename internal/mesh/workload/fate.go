package workload

// Fate is what becomes of the tunnels that lead to a workload.
type Fate uint8

// The fates.
const (
	Stay    Fate = iota // they are kept, also without connections
	Release             // they end as soon as they carry nothing
	Renew               // they end with their connections; new ones get tunnels made anew
	Close               // they take no new connections, and those without an answer fail
)

// Fate returns what becomes of the tunnels to the workload of a change. One that is about to
// end is not kept a tunnel to: its address may soon be another's. One that was about to end
// and is not any more is another pod of the same name.
func (c *Change) Fate() Fate {
	old, now := c.OldWorkload, c.NewWorkload
	switch {
	case old == nil:
		return Stay
	case now == nil:
		return Close
	case old.Ending.Begun() && !now.Ending.Begun():
		return Renew
	case old.KeepsTunnels() && !now.KeepsTunnels():
		return Release
	}
	return Stay
}

// KeepsTunnels reports whether tunnels to the workload are kept without connections: it is
// there, is reached through tunnels, and is not about to end.
func (w *Workload) KeepsTunnels() bool {
	return w != nil && w.Protocol == HBONE && !w.Ending.Begun()
}
