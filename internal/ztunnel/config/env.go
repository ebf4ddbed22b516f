package config

import (
	"fmt"
	"math"
	"net/netip"
	"sort"
	"strconv"
	"strings"
	"time"
)

// Env is the process environment, given as a value so that reading it is pure.
type Env map[string]string

// FromEnviron makes an Env of os.Environ()'s KEY=VALUE strings.
func FromEnviron(environ []string) Env {
	e := make(Env, len(environ))
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok {
			e[k] = v
		}
	}
	return e
}

// reader collects the errors of many look-ups, so that an operator sees all
// of them at once.
type reader struct {
	env  Env
	errs []error
}

// get treats an empty value as absent: charts render unset options so.
func (r *reader) get(key string) (string, bool) {
	v := strings.TrimSpace(r.env[key])
	return v, v != ""
}

func (r *reader) fail(key, value, format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf("%s=%q: %s", key, value, fmt.Sprintf(format, args...)))
}

func (r *reader) str(key, def string) string {
	if v, ok := r.get(key); ok {
		return v
	}
	return def
}

func (r *reader) boolean(key string, def bool) bool {
	v, ok := r.get(key)
	if !ok {
		return def
	}
	switch v {
	case "true":
		return true
	case "false":
		return false
	}
	r.fail(key, v, "must be true or false")
	return def
}

func (r *reader) uint(key string, def, lo, hi uint64) uint64 {
	v, ok := r.get(key)
	if !ok {
		return def
	}
	n, err := strconv.ParseUint(v, 0, 64)
	if err != nil || n < lo || n > hi {
		r.fail(key, v, "must be a whole number from %d to %d", lo, hi)
		return def
	}
	return n
}

func (r *reader) duration(key string, def, lo time.Duration) Duration {
	v, ok := r.get(key)
	if !ok {
		return Duration(def)
	}
	d, err := parseDuration(v)
	if err != nil {
		r.fail(key, v, "%v", err)
		return Duration(def)
	}
	if d < lo {
		r.fail(key, v, "must be at least %v", lo)
		return Duration(def)
	}
	return Duration(d)
}

// parseDuration accepts Go's notation, a leading number of days ("1d12h") and
// a bare number of seconds: the notations in use for these variables.
func parseDuration(s string) (time.Duration, error) {
	bad := fmt.Errorf("must be a duration such as 30s, 5m or 24h")
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return time.Duration(n) * time.Second, nil
	}
	var days time.Duration
	if num, rest, ok := strings.Cut(s, "d"); ok {
		n, err := strconv.ParseUint(num, 10, 16)
		if err != nil {
			return 0, bad
		}
		days = time.Duration(n) * 24 * time.Hour
		if rest == "" {
			return days, nil
		}
		s = rest
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d > math.MaxInt64-days {
		return 0, bad
	}
	return days + d, nil
}

func (r *reader) addr(key string, def netip.AddrPort) netip.AddrPort {
	v, ok := r.get(key)
	if !ok {
		return def
	}
	a, err := netip.ParseAddrPort(v)
	if err != nil {
		r.fail(key, v, "must be ip:port")
		return def
	}
	return a
}

// cpus reads a Kubernetes CPU quantity ("2", "1500m") as whole cores, rounded
// up; 0 when absent.
func (r *reader) cpus(key string) int {
	v, ok := r.get(key)
	if !ok {
		return 0
	}
	num, milli := strings.CutSuffix(v, "m")
	f, err := strconv.ParseFloat(num, 64)
	if milli {
		f /= 1000
	}
	if err != nil || math.IsNaN(f) || f <= 0 || f > maxThreads {
		r.fail(key, v, "must be a CPU quantity such as 2 or 1500m, up to %d cores", maxThreads)
		return 0
	}
	return int(math.Ceil(f))
}

// headers collects PREFIX<name>=<value> as gRPC metadata, in order of name.
func (r *reader) headers(prefix string) []Header {
	var hs []Header
	for k, v := range r.env {
		name, ok := strings.CutPrefix(k, prefix)
		if !ok {
			continue
		}
		name = strings.ToLower(name)
		if !headerName(name) {
			r.fail(k, v, "%q cannot be a header name", name)
			continue
		}
		if !headerValue(v) {
			r.fail(k, v, "the value has bytes that no header can carry")
			continue
		}
		hs = append(hs, Header{Name: name, Value: v})
	}
	sort.Slice(hs, func(i, j int) bool { return hs[i].Name < hs[j].Name })
	return hs
}

// headerName allows the letters of gRPC metadata keys. The names that gRPC
// keeps for itself and binary ones are not for users.
func headerName(s string) bool {
	if s == "" || strings.HasPrefix(s, "grpc-") || strings.HasSuffix(s, "-bin") {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}

func headerValue(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}
