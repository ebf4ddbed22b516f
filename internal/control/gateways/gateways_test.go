package gateways

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/pkg/features"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/control/status"
)

const mesh = `
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
`

func read(t *testing.T, text string) *gatewayv1.Gateway {
	t.Helper()
	g := &gatewayv1.Gateway{}
	if err := yaml.UnmarshalStrict([]byte(text), g); err != nil {
		t.Fatal(err)
	}
	return g
}

var (
	none    = Backing{Name: "shop/wp"}
	noIP    = Backing{Name: "shop/wp", Service: true}
	notYet  = Backing{Name: "shop/wp", Service: true, IPs: []string{"10.1.0.1"}}
	running = Backing{Name: "shop/wp", Service: true, IPs: []string{"10.1.0.1", "fd00::1"}, Ready: 2}
)

const (
	host       = `{"type":"Hostname","value":"wp.shop.svc.cluster.local"}`
	bothIPs    = `[` + host + `,{"type":"IPAddress","value":"10.1.0.1"},{"type":"IPAddress","value":"fd00::1"}]`
	published1 = "\nstatus: {addresses: [{type: Hostname, value: wp.shop.svc.cluster.local}]}"
)

func TestGateways(t *testing.T) {
	for name, tt := range map[string]struct {
		text      string
		b         Backing
		want      []string // conditions
		addresses string
		listeners string // status and reason of Accepted and Programmed
	}{
		"nothing yet":      {mesh, none, []string{"Accepted=True Accepted: a waypoint for service traffic", "Programmed=False AddressNotAssigned: there is no Service shop/wp yet"}, "", "mesh: True Accepted, False AddressNotAssigned"},
		"no address":       {mesh, noIP, []string{"Accepted=True", "Programmed=False AddressNotAssigned: Service shop/wp has no address"}, "", "mesh: True Accepted, False AddressNotAssigned"},
		"no pod yet":       {mesh, notYet, []string{"Accepted=True", "Programmed=False NoResources: no pod of Service shop/wp is ready: connections go without"}, "", "mesh: True Accepted, False NoResources"},
		"running":          {mesh, running, []string{"Accepted=True", "Programmed=True Programmed: assigned to Service shop/wp, port 15008; ready pods: 2"}, bothIPs, "mesh: True Accepted, True Programmed"},
		"all pods gone":    {mesh + published1, notYet, []string{"Accepted=True", "Programmed=False NoResources: no pod of Service shop/wp is ready: connections to the services of the waypoint fail"}, `[` + host + `,{"type":"IPAddress","value":"10.1.0.1"}]`, "mesh: True Accepted, False NoResources"},
		"Service gone":     {mesh + published1, none, []string{"Accepted=True", "Programmed=False AddressNotAssigned"}, "", "mesh: True Accepted, False AddressNotAssigned"},
		"another listener": {strings.Replace(mesh, "listeners: [", "listeners: [{name: web, port: 80, protocol: HTTP}, ", 1), running, []string{"Accepted=True ListenersNotValid: 1 of 2", "Programmed=True"}, bothIPs, "web: False UnsupportedProtocol, False Invalid; mesh: True Accepted, True Programmed"},
		"no valid one":     {strings.Replace(mesh, "HBONE", "TCP", 1), running, []string{"Accepted=False ListenersNotValid", "Programmed=True"}, bothIPs, "mesh: False UnsupportedProtocol, False Invalid"},
		"for all traffic":  {strings.Replace(mesh, "namespace: shop", "namespace: shop, labels: {istio.io/waypoint-for: all}", 1), running, []string{"a waypoint for all traffic", "Programmed=True"}, bothIPs, "mesh: True Accepted, True Programmed"},
		"deployed by hand": {strings.Replace(mesh, "spec: {", "spec: {addresses: [{type: Hostname, value: own.shop.svc.cluster.local}], ", 1), Backing{Name: "shop/own", Service: true, IPs: []string{"10.1.0.2"}}, []string{"Accepted=True", "Programmed=True Programmed: assigned to Service shop/own of spec.addresses"}, `[{"type":"Hostname","value":"own.shop.svc.cluster.local"}]`, "mesh: True Accepted, True Programmed"},
		"by hand, nowhere": {strings.Replace(mesh, "spec: {", "spec: {addresses: [{value: 10.0.0.1}], ", 1), none, []string{"Accepted=True", "Programmed=False AddressNotUsable"}, "", "mesh: True Accepted, False AddressNotUsable"},
		"remote":           {strings.Replace(strings.Replace(mesh, "waypoint,", "remote, addresses: [{value: 10.0.0.1}],", 1), "wp", "far", 1), Backing{}, []string{"Accepted=True Accepted: a gateway of another network", "Programmed=True"}, `[{"value":"10.0.0.1"}]`, "mesh: True Accepted, True Programmed"},
		"remote, nowhere":  {strings.Replace(mesh, "istio-waypoint", "istio-remote", 1), Backing{}, []string{"Accepted=True", "Programmed=False AddressNotAssigned"}, "", "mesh: True Accepted, False AddressNotAssigned"},
	} {
		t.Run(name, func(t *testing.T) {
			g := read(t, tt.text)
			sections := Describe(g, tt.b, "cluster.local")
			for i, c := range sections[0].Conditions {
				if got := fmt.Sprintf("%s=%s %s: %s", c.Type, c.Status, c.Reason, c.Message); i < len(tt.want) && !strings.Contains(got, tt.want[i]) {
					t.Errorf("%s\nwant %s", got, tt.want[i])
				}
			}
			got := ""
			for _, f := range sections[0].Fields {
				got = f.JSON
			}
			if got != tt.addresses {
				t.Errorf("addresses: %s\nwant %s", got, tt.addresses)
			}
			var list []string
			for _, s := range sections[1:] {
				a, _ := s.Condition(status.Accepted)
				p, _ := s.Condition(status.Programmed)
				list = append(list, fmt.Sprintf("%s: %s %s, %s %s", strings.Trim(s.Key, `"`), a.Status, a.Reason, p.Status, p.Reason))
			}
			if got := strings.Join(list, "; "); got != tt.listeners {
				t.Errorf("listeners: %s\nwant %s", got, tt.listeners)
			}
			settled(t, g, sections)
		})
	}
}

// settled checks that what is written is seen as written: the report is not
// written again and again.
func settled(t *testing.T, g *gatewayv1.Gateway, sections []status.Section) {
	t.Helper()
	report := status.Report{Owned: &Status, Sections: sections}
	have := map[string]any{}
	b, _ := json.Marshal(g.Status)
	_ = json.Unmarshal(b, &have)
	next, _ := status.Merge(have, report, g.CreationTimestamp.Time)
	for k, v := range next {
		have[k] = v
	}
	b, _ = json.Marshal(map[string]any{"status": have})
	after := &gatewayv1.Gateway{Spec: g.Spec}
	if err := json.Unmarshal(b, after); err != nil {
		t.Fatal(err)
	}
	if !report.In(Seen(after)) {
		t.Errorf("the report is not in the status that was written:\n%s", b)
	}
}

func TestClasses(t *testing.T) {
	c := &gatewayv1.GatewayClass{}
	for controller, own := range map[string]bool{"istio.io/mesh-controller": true, "istio.io/unmanaged-gateway": true, "istio.io/gateway-controller": false, "": false} {
		if c.Spec.ControllerName = gatewayv1.GatewayController(controller); OwnClass(c) != own {
			t.Errorf("%s is own: %v", controller, !own)
		}
	}
	c.Spec.ControllerName = controllerWaypoint
	if got := Class(c)[0]; got.Type != status.Accepted || got.Status != status.True {
		t.Errorf("%+v", got)
	}
	c.Spec.ParametersRef = &gatewayv1.ParametersReference{}
	if got := Class(c)[0]; got.Status != status.False || got.Reason != "InvalidParameters" {
		t.Errorf("%+v", got)
	}
}

func TestServiceOf(t *testing.T) {
	for text, want := range map[string]string{
		mesh: "shop/wp true",
		strings.Replace(mesh, "spec: {", "spec: {addresses: [{type: Hostname, value: own.other.svc.cluster.local}], ", 1): "other/own true",
		strings.Replace(mesh, "spec: {", "spec: {addresses: [{type: Hostname, value: example.org}], ", 1):                 "/example.org false",
		strings.Replace(mesh, "spec: {", "spec: {addresses: [{value: 10.0.0.1}], ", 1):                                    "/ false",
	} {
		ns, name, ok := ServiceOf(read(t, text), "cluster.local")
		if got := fmt.Sprintf("%s/%s %v", ns, name, ok); ok != strings.HasSuffix(want, "true") || ok && got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// TestOwnClasses: each class that is made is one that the control plane accepts, of the
// name by which its Gateways are recognized.
func TestOwnClasses(t *testing.T) {
	var names []string
	for _, c := range Classes() {
		names = append(names, c.Name)
		if !OwnClass(c) || Class(c)[0].Status != status.True || !Own(&gatewayv1.Gateway{Spec: gatewayv1.GatewaySpec{GatewayClassName: gatewayv1.ObjectName(c.Name)}}) {
			t.Errorf("%s of controller %s is not Ambit's", c.Name, c.Spec.ControllerName)
		}
		if n := len(*c.Spec.Description); n == 0 || n > 64 {
			t.Errorf("%s has a description of %d characters; the API takes up to 64", c.Name, n)
		}
	}
	if !slices.Equal(names, []string{"istio-waypoint", "istio-remote"}) {
		t.Errorf("%v", names)
	}
}

// TestFeatures: the status of the class of waypoints has features that exist in Gateway
// API, sorted; a status that has others is written again.
func TestFeatures(t *testing.T) {
	known := map[string]bool{}
	for f := range features.AllFeatures {
		known[string(f.Name)] = true
	}
	for _, f := range Features {
		if !known[f] {
			t.Errorf("Gateway API has no feature %s", f)
		}
	}
	if !slices.IsSorted(Features) || len(slices.Compact(slices.Clone(Features))) != len(Features) || len(Features) > 64 {
		t.Errorf("%v", Features)
	}
	for _, c := range Classes() {
		report := status.Report{Owned: &ClassStatus, Sections: []status.Section{{Conditions: Class(c), Fields: ClassFields(c)}}}
		want := `[{"name":"GRPCRoute"},`
		if c.Name == ClassRemote {
			want = ""
		}
		got := ""
		for _, f := range ClassFields(c) {
			got = f.JSON
		}
		if (got == "") != (want == "") || !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s", c.Name, got)
		}
		for _, s := range Class(c) {
			c.Status.Conditions = append(c.Status.Conditions, metav1.Condition{Type: s.Type, Status: metav1.ConditionStatus(s.Status), Reason: s.Reason, Message: s.Message})
		}
		for _, f := range Features {
			if want != "" {
				c.Status.SupportedFeatures = append(c.Status.SupportedFeatures, gatewayv1.SupportedFeature{Name: gatewayv1.FeatureName(f)})
			}
		}
		if !report.In(SeenClass(c)) {
			t.Errorf("%s is written again without a change", c.Name)
		}
		if want == "" {
			continue
		}
		c.Status.SupportedFeatures = c.Status.SupportedFeatures[1:]
		if report.In(SeenClass(c)) {
			t.Errorf("%s is not written although a feature is missing", c.Name)
		}
	}
}
