package traffic

import (
	"fmt"
	"maps"
	"slices"
	"strings"
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

// Text renders the settings of all ports, for people.
func (r *Rule) Text() string {
	var out []string
	if r.Settings != (Settings{}) || len(r.Ports) == 0 {
		out = append(out, r.Settings.String())
	}
	for _, port := range slices.Sorted(maps.Keys(r.Ports)) {
		s := r.Ports[port]
		out = append(out, fmt.Sprintf("port %d: %s", port, s.String()))
	}
	return strings.Join(out, "; ")
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

var scopeNames = map[Scope]string{Region: "region", Zone: "zone", Subzone: "subzone", NodeScope: "node", Cluster: "cluster", Network: "network"}
