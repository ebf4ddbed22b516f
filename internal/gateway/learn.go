package gateway

import (
	"github.com/ambit-mesh/ambit/internal/l7/route"
)

// learn requests resources, if the directory is filled on demand. done runs on the
// loop later, or never if learn reports false.
func (s *shard) learn(names []string, done func()) bool {
	f := s.g.opts.Learn
	return f != nil && len(names) > 0 && f(s.loop, names, done)
}

// unknownBackend names the service of a backend if the directory does not have it.
func (s *shard) unknownBackend(cfg *route.Config, b *route.Backend) []string {
	if b == nil {
		return nil
	}
	up := cfg.Upstreams[b.Name]
	if up == nil || s.g.opts.Directory().ServiceByName(up.Service.Namespace, up.Service.Hostname) != nil {
		return nil
	}
	return []string{up.Service.Namespace + "/" + up.Service.Hostname}
}
