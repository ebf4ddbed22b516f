package bootstrap

import (
	"strconv"
	"strings"
)

const (
	// maxThreads bounds the number of event loops; no machine has more cores that
	// one proxy could feed.
	maxThreads     = 1024
	defaultThreads = 2 // floor without an explicit limit
)

// ThreadVars says from what a role takes its number of event loops.
type ThreadVars struct {
	// Prefix begins the names of the variables: ZTUNNEL for ZTUNNEL_WORKER_THREADS.
	Prefix string
	// Fraction of the cores is used without an explicit limit.
	Fraction float64
}

// threads decides the number of event loops: an explicit number, else the
// explicit CPU limit, else a fraction of the cores, never below the CPU
// request.
func (r *Reader) threads(vars ThreadVars, pc proxyConfig, host Host) int {
	limit, request := r.CPUs(vars.Prefix+"_RESOURCE_CPU_LIMIT"), r.CPUs(vars.Prefix+"_RESOURCE_CPU_REQUEST")
	cores := host.CPUs
	if n := r.Uint(vars.Prefix+"_CPU_LIMIT", 0, 0, maxThreads); n > 0 {
		cores = int(n)
	}
	if limit > 0 {
		cores = limit
	}
	var n int
	switch {
	case pc.Concurrency != nil && *pc.Concurrency > 0:
		n = int(*pc.Concurrency)
	case pc.Concurrency != nil:
		n = cores
	case limit > 0:
		n = max(limit, request)
	default:
		n = max(ceil(float64(cores)*vars.Fraction), request, defaultThreads)
	}
	if v, ok := r.Get(vars.Prefix + "_WORKER_THREADS"); ok {
		n = r.workerThreads(vars.Prefix+"_WORKER_THREADS", v, cores)
	}
	return min(max(n, 1), maxThreads)
}

func (r *Reader) workerThreads(key, v string, cores int) int {
	if num, ok := strings.CutSuffix(v, "%"); ok {
		p, err := strconv.ParseFloat(num, 64)
		if err != nil || !(p > 0 && p <= 100) {
			r.Fail(key, v, "a percentage must be above 0 and at most 100")
			return 1
		}
		return ceil(float64(cores) * p / 100)
	}
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil || n > maxThreads {
		r.Fail(key, v, "must be a number up to %d, or a percentage of the CPUs", maxThreads)
		return 1
	}
	if n == 0 {
		return cores
	}
	return int(n)
}

func ceil(f float64) int {
	n := int(f)
	if float64(n) < f {
		n++
	}
	return n
}
