package egress

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api/ambit"
	egresspb "github.com/ambit-mesh/ambit/api/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
)

func object(namespace string, change func(*egresspb.EgressPolicySpec)) *ambit.EgressPolicy {
	p := &ambit.EgressPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "p"}}
	p.Spec.To = []*egresspb.Entry{{Hosts: []string{"A.test"}, Ports: []uint32{443}}}
	change(&p.Spec)
	return p
}

// TestTranslate: an object becomes the policy that its author wrote, or one that refuses and has
// the field; its condition names it.
func TestTranslate(t *testing.T) {
	for _, tt := range []struct {
		name      string
		namespace string
		change    func(*egresspb.EgressPolicySpec)
		invalid   string
		says      string
	}{
		{"a policy", "shop", func(*egresspb.EgressPolicySpec) {}, "", "for pods of namespace shop"},
		{"of the mesh", "root", func(*egresspb.EgressPolicySpec) {}, "", "for pods of the mesh"},
		{"of some pods", "shop", func(s *egresspb.EgressPolicySpec) {
			s.Selector = &egresspb.Selector{MatchLabels: map[string]string{"a": "b"}}
		}, "", "that it selects"},
		{"hosts", "shop", func(*egresspb.EgressPolicySpec) {}, "", "need the capture of look-ups"},
		{"a dry run", "shop", func(s *egresspb.EgressPolicySpec) { s.Mode = egresspb.EgressPolicySpec_DryRun }, "", "report what it would refuse"},
		{"a dry run of UDP", "shop", func(s *egresspb.EgressPolicySpec) {
			s.Mode, s.Udp = egresspb.EgressPolicySpec_DryRun, egresspb.EgressPolicySpec_Refuse
		}, "", "DryRun refuses no UDP"},
		{"an empty entry", "shop", func(s *egresspb.EgressPolicySpec) { s.To = append(s.To, &egresspb.Entry{}) }, "", "to[1]: the entry is empty"},
		{"an unknown mode", "shop", func(s *egresspb.EgressPolicySpec) { s.Mode = 7 }, "mode", ""},
		{"an unknown way of UDP", "shop", func(s *egresspb.EgressPolicySpec) { s.Udp = 7 }, "udp", ""},
		{"a bad host", "shop", func(s *egresspb.EgressPolicySpec) { s.To[0].Hosts = []string{"a.test", "a b"} }, "to[0].hosts[1]", ""},
		{"a bad range", "shop", func(s *egresspb.EgressPolicySpec) { s.To[0].Cidrs = []string{"10.0.0.1/8"} }, "to[0].cidrs[0]", ""},
		{"a bad port", "shop", func(s *egresspb.EgressPolicySpec) { s.To[0].Ports = []uint32{0} }, "to[0].ports[0]", ""},
		{"too many entries", "shop", func(s *egresspb.EgressPolicySpec) { s.To = make([]*egresspb.Entry, egress.MaxEntries+1) }, "to", ""},
	} {
		o := object(tt.namespace, tt.change)
		p, c := Translate(o, "root"), Condition(o, "root")
		if (p.Invalid == "") != (tt.invalid == "") || !strings.HasPrefix(p.Invalid, tt.invalid) || !strings.Contains(c.Message, tt.says) || (c.Status == "True") != (tt.invalid == "") {
			t.Errorf("%s: %+v, %+v", tt.name, p, c)
		}
		if p.Root != (tt.namespace == "root") || tt.invalid == "" && (p.To[0].Hosts[0] != "a.test" || p.DryRun != (o.Spec.GetMode() == egresspb.EgressPolicySpec_DryRun)) {
			t.Errorf("%s: %+v", tt.name, p)
		}
		if tt.invalid == "" {
			continue
		}
		if p.DryRun || egress.Decide([]*egress.Policy{p}, &egress.Call{Port: 443}, false).Outcome != egress.Refused || !strings.Contains(c.Message, tt.invalid) {
			t.Errorf("%s: it does not refuse, or the status has no field: %+v", tt.name, c)
		}
		if _, err := p.Encode(); err != nil {
			t.Errorf("%s: it does not travel: %v", tt.name, err)
		}
	}
}
