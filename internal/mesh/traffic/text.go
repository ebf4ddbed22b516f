package traffic

import (
	"fmt"
	"strings"

	"github.com/ambit-mesh/ambit/internal/mesh/workload"
)

// String renders what is set, for people, in the words of its author.
func (s *Settings) String() string {
	var out []string
	if s.MaxConnections > 0 {
		out = append(out, fmt.Sprintf("maxConnections %d", s.MaxConnections))
	}
	if s.ConnectTimeout > 0 {
		out = append(out, fmt.Sprintf("connectTimeout %v", s.ConnectTimeout))
	}
	if o := s.Outlier; o != nil {
		out = append(out, fmt.Sprintf("ejection for %v after %d failures to connect, of %d%% at most", o.Base, o.Consecutive, o.MaxPercent))
	}
	if s.Balance != Default {
		out = append(out, s.Balance.String())
	}
	if l := s.Locality; l != nil {
		out = append(out, l.String())
	}
	if len(out) == 0 {
		return "no setting"
	}
	return strings.Join(out, ", ")
}

// String renders a preference, for people.
func (l *Locality) String() string {
	if l.Disabled {
		return "no locality"
	}
	var names []string
	for _, s := range l.Scopes {
		names = append(names, scopeNames[s])
	}
	text := "nearest by " + strings.Join(names, ", ")
	for _, f := range l.Failover {
		text += fmt.Sprintf("; from %s to %s", f.From, f.To)
	}
	return text
}

var scopeNames = map[workload.Scope]string{
	workload.ScopeRegion: "region", workload.ScopeZone: "zone", workload.ScopeSubzone: "subzone",
	workload.ScopeNode: "node", workload.ScopeCluster: "cluster", workload.ScopeNetwork: "network",
}
