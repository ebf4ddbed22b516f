package bootstrap

import (
	"errors"
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

// Reader reads variables. It collects the errors of many look-ups, so that an
// operator sees all of them at once.
type Reader struct {
	env  Env
	errs []error
}

// NewReader returns a Reader of an environment.
func NewReader(env Env) *Reader { return &Reader{env: env} }

// Err joins everything that is wrong; nil without.
func (r *Reader) Err() error {
	if err := errors.Join(r.errs...); err != nil {
		return fmt.Errorf("environment not understood:\n%w", err)
	}
	return nil
}

// Get returns a variable's value, and whether it has one. An empty value counts as
// absent: charts render unset options so.
func (r *Reader) Get(key string) (string, bool) {
	v := strings.TrimSpace(r.env[key])
	return v, v != ""
}

// Fail notes what is wrong with a variable.
func (r *Reader) Fail(key, value, format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf("%s=%q: %s", key, value, fmt.Sprintf(format, args...)))
}

// Text returns a value, or def where there is none.
func (r *Reader) Text(key, def string) string {
	if v, ok := r.Get(key); ok {
		return v
	}
	return def
}

// Bool returns true or false, or def where there is no value.
func (r *Reader) Bool(key string, def bool) bool {
	v, ok := r.Get(key)
	if !ok {
		return def
	}
	switch v {
	case "true":
		return true
	case "false":
		return false
	}
	r.Fail(key, v, "must be true or false")
	return def
}

// Uint returns a whole number from lo to hi, or def where there is no value.
func (r *Reader) Uint(key string, def, lo, hi uint64) uint64 {
	v, ok := r.Get(key)
	if !ok {
		return def
	}
	n, err := strconv.ParseUint(v, 0, 64)
	if err != nil || n < lo || n > hi {
		r.Fail(key, v, "must be a whole number from %d to %d", lo, hi)
		return def
	}
	return n
}

// Duration returns a duration of at least lo, or def where there is no value.
func (r *Reader) Duration(key string, def, lo time.Duration) Duration {
	v, ok := r.Get(key)
	if !ok {
		return Duration(def)
	}
	d, err := parseDuration(v)
	if err != nil {
		r.Fail(key, v, "%v", err)
		return Duration(def)
	}
	if d < lo {
		r.Fail(key, v, "must be at least %v", lo)
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

// Addr returns an address with a port, or def where there is no value.
func (r *Reader) Addr(key string, def netip.AddrPort) netip.AddrPort {
	v, ok := r.Get(key)
	if !ok {
		return def
	}
	a, err := netip.ParseAddrPort(v)
	if err != nil {
		r.Fail(key, v, "must be ip:port")
		return def
	}
	return a
}

// CPUs reads a Kubernetes CPU quantity ("2", "1500m") as whole cores, rounded
// up; 0 when absent.
func (r *Reader) CPUs(key string) int {
	v, ok := r.Get(key)
	if !ok {
		return 0
	}
	num, milli := strings.CutSuffix(v, "m")
	f, err := strconv.ParseFloat(num, 64)
	if milli {
		f /= 1000
	}
	if err != nil || math.IsNaN(f) || f <= 0 || f > maxThreads {
		r.Fail(key, v, "must be a CPU quantity such as 2 or 1500m, up to %d cores", maxThreads)
		return 0
	}
	return int(math.Ceil(f))
}

// headers collects PREFIX<name>=<value> as gRPC metadata, in order of name.
func (r *Reader) headers(prefix string) []Header {
	var hs []Header
	for k, v := range r.env {
		name, ok := strings.CutPrefix(k, prefix)
		if !ok {
			continue
		}
		name = strings.ToLower(name)
		if !headerName(name) {
			r.Fail(k, v, "%q cannot be a header name", name)
			continue
		}
		if !headerValue(v) {
			r.Fail(k, v, "the value has bytes that no header can carry")
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
