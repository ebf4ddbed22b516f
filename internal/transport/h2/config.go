package h2

// defaultTable is the size of both HPACK tables in bytes: the protocol's own
// default, so that it needs no setting. HBONE repeats a handful of values.
const defaultTable = 4096

// withDefaults fills in zero fields and forces the others into legal ranges.
func (c Config) withDefaults() Config {
	c.MaxStreams = or(c.MaxStreams, 100)
	c.StreamWindow = min(or(c.StreamWindow, 64<<10), maxWindow)
	c.MaxStreamWindow = min(max(or(c.MaxStreamWindow, 4<<20), c.StreamWindow), maxWindow)
	c.ConnWindow = min(max(or(c.ConnWindow, 16<<20), defaultWindow), maxWindow)
	c.Budget = min(or(c.Budget, 16<<20), maxWindow)
	c.MaxFrame = min(max(or(c.MaxFrame, 64<<10), minMaxFrame), maxMaxFrame)
	c.MaxHeaderList = min(or(c.MaxHeaderList, 16<<10), maxMaxFrame)
	a := &c.Abuse
	a.Resets, a.ResetsPerSecond = or(a.Resets, 1000), or(a.ResetsPerSecond, 100)
	a.EmptyData, a.EmptyDataPerSecond = or(a.EmptyData, 1000), or(a.EmptyDataPerSecond, 100)
	a.Noise, a.NoisePerSecond = or(a.Noise, 20000), or(a.NoisePerSecond, 10000)
	a.Unsent = or(a.Unsent, 4096)
	a.Continuations = or(a.Continuations, 16)
	return c
}

func or[T int | uint32](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}
