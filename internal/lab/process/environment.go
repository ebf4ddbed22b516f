package process

import (
	"maps"
	"os"
	"strings"
)

// HostEnv is what programs get of the environment the lab was started in.
func HostEnv() map[string]string {
	env := map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, k := range []string{"PATH", "HOME", "LANG", "LC_ALL", "TERM", "TMPDIR"} {
		if v, ok := os.LookupEnv(k); ok {
			env[k] = v
		}
	}
	return env
}

// Environ returns the variables as NAME=value.
func Environ(env map[string]string) []string {
	out := make([]string, 0, len(env))
	for k, v := range maps.All(env) {
		out = append(out, k+"="+v)
	}
	return out
}

// ExpandAll replaces $(NAME) in each text, as Kubernetes does.
func ExpandAll(list, environ []string) []string {
	env := map[string]string{}
	for _, e := range environ {
		k, v, _ := strings.Cut(e, "=")
		env[k] = v
	}
	out := make([]string, len(list))
	for i, a := range list {
		out[i] = Expand(a, env)
	}
	return out
}

// Expand replaces $(NAME) as Kubernetes does: an unknown name stays as it is,
// and $$ is a dollar sign.
func Expand(s string, env map[string]string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i:], ')')
			v, ok := "", false
			if end > 0 {
				v, ok = env[s[i+2:i+end]]
			}
			if !ok {
				b.WriteByte('$')
				continue
			}
			b.WriteString(v)
			i += end
		default:
			b.WriteByte('$')
		}
	}
	return b.String()
}
