package registry

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	metav1alpha1 "istio.io/api/meta/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
)

// says is a condition of an object as STATUS REASON: MESSAGE, the last of its
// type.
func says(r *Registry, kind, name, typ string) string {
	text := ""
	for _, o := range r.Status() {
		for _, c := range o.Conditions {
			if o.Kind == kind && o.Name == name && c.Type == typ {
				text = c.Status + " " + c.Reason + ": " + c.Message
			}
		}
	}
	return text
}

// expect compares the beginning of what an object says; an empty one is for
// saying nothing.
func expect(t *testing.T, r *Registry, kind, name, typ, want string) {
	t.Helper()
	if got := says(r, kind, name, typ); !strings.HasPrefix(got, want) || want == "" && got != "" {
		t.Errorf("%s of %s: %q, want %q", typ, name, got, want)
	}
}

func namespaceYAML(name, labels string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {%s}}\n---\n", name, labels)
}

func entryYAML(namespace, meta, spec string) string {
	return fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: %s%s}\n"+
		"spec: {hosts: [db.example.com], ports: [{number: 80, name: http}], resolution: STATIC, endpoints: [{address: 192.0.2.1}]%s}\n---\n", namespace, meta, spec)
}

func TestVisibilityOfEntries(t *testing.T) {
	const own = `, exportTo: ["."]`
	rules := func(text string) *meshconfig.Visibility {
		c, _, err := meshconfig.Parse([]byte("serviceEntryVisibility: " + text))
		if err != nil {
			t.Fatal(err)
		}
		return c.ServiceEntryVisibility
	}
	guests := "{policies: [{visibility: %s, matchingRules: [{namespaceSelector: {matchLabels: {team: guests}}}]}]}"
	for name, tt := range map[string]struct {
		rules  *meshconfig.Visibility
		spec   string
		scope  meshconfig.Scope
		reason string
	}{
		"nothing said":                  {nil, "", meshconfig.Public, ""},
		"by the entry":                  {nil, own, meshconfig.Namespace, "True Namespace: only clients of namespace shop see it: exportTo"},
		"by the entry, for all":         {nil, `, exportTo: ["*"]`, meshconfig.Public, "True Public: the whole mesh sees it"},
		"by the entry, not kept":        {nil, `, exportTo: [web]`, meshconfig.Public, `True Public: the whole mesh sees it: exportTo ["web"] is not kept`},
		"by the mesh":                   {rules(fmt.Sprintf(guests, "NAMESPACE")), "", meshconfig.Namespace, "True Namespace: only clients of namespace shop see it: serviceEntryVisibility"},
		"by the mesh, against it":       {rules(fmt.Sprintf(guests, "NAMESPACE")), `, exportTo: ["*"]`, meshconfig.Namespace, "True Namespace"},
		"by the mesh, for no namespace": {rules(fmt.Sprintf(guests, "NONE")), "", meshconfig.None, "True None: no namespace sees it"},
		"by the mesh, for all":          {rules(fmt.Sprintf(guests, "PUBLIC")), "", meshconfig.Public, "True Public: the whole mesh sees it"},
		"the mesh allows, it not":       {rules(fmt.Sprintf(guests, "PUBLIC")), own, meshconfig.Namespace, "True Namespace: only clients of namespace shop see it: exportTo"},
		"by the mesh, for whatever":     {rules("{defaultVisibility: NONE}"), "", meshconfig.None, "True None"},
	} {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, late %v", name, late), func(t *testing.T) {
				opts := tables.Options{Visibility: tt.rules}
				if late {
					opts.Visibility = rules("{defaultVisibility: NAMESPACE}")
				}
				rec := newRecorder()
				r := New(opts, rec)
				r.Apply(events(t, namespaceYAML("shop", "team: guests")+entryYAML("shop", "", tt.spec)))
				if late {
					r.SetVisibility(tt.rules)
				}
				body, there := rec.addresses["shop/db.example.com"]
				if there != (tt.scope != meshconfig.None) {
					t.Fatalf("published: %v", there)
				}
				workloads := 0
				for n := range rec.addresses {
					if strings.Contains(n, "/ServiceEntry/") {
						workloads++
					}
				}
				if want := map[bool]int{true: 1}[there]; workloads != want {
					t.Errorf("%d endpoints", workloads)
				}
				if there {
					s := rec.service(t, "shop/db.example.com")
					if (s.Visibility == workloadpb.Service_NAMESPACE) != (tt.scope == meshconfig.Namespace) || s.Canonical != (tt.scope == meshconfig.Public) {
						t.Errorf("%v (%d bytes)", s, len(body))
					}
				}
				expect(t, r, source.ServiceEntry.Name, "e", status.VisibilityApplied, tt.reason)
				accepted := "True Accepted"
				if !there {
					accepted = "False NotVisible: no proxy gets it: no namespace sees it"
				}
				expect(t, r, source.ServiceEntry.Name, "e", status.Accepted, accepted)
			})
		}
	}
}

// A namespace whose labels change has other entries.
func TestVisibilityFollowsLabels(t *testing.T) {
	c, _, err := meshconfig.Parse([]byte("serviceEntryVisibility: {defaultVisibility: NAMESPACE, policies: [{visibility: PUBLIC, matchingRules: [{namespaceSelector: {matchLabels: {egress: shared}}}]}]}"))
	if err != nil {
		t.Fatal(err)
	}
	rec := newRecorder()
	r := New(tables.Options{Visibility: c.ServiceEntryVisibility}, rec)
	r.Apply(events(t, entryYAML("shop", "", "")))
	for _, labels := range []string{"", "egress: shared", "egress: own"} {
		if labels != "" {
			r.Apply(events(t, namespaceYAML("shop", labels)))
		}
		want := workloadpb.Service_NAMESPACE
		if labels == "egress: shared" {
			want = workloadpb.Service_PUBLIC
		}
		if s := rec.service(t, "shop/db.example.com"); s.Visibility != want {
			t.Errorf("with labels %q: %v", labels, s.Visibility)
		}
	}
}

// What the mesh keeps to a namespace is not given away to a waypoint of another.
func TestWaypointsOfHiddenEntries(t *testing.T) {
	c, _, err := meshconfig.Parse([]byte("serviceEntryVisibility: {defaultVisibility: NAMESPACE}"))
	if err != nil {
		t.Fatal(err)
	}
	gw := fmt.Sprintf(gateway, "", ", allowedRoutes: {namespaces: {from: All}}", "{type: IPAddress, value: 10.0.0.77}")
	for namespace, want := range map[string]string{"shop": "True WaypointAccepted", "web": "False CrossNamespaceWaypointForbidden"} {
		r := New(tables.Options{Visibility: c.ServiceEntryVisibility}, newRecorder())
		r.Apply(events(t, gw+entryYAML(namespace, ", labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: shop}", "")))
		expect(t, r, source.ServiceEntry.Name, "e", status.WaypointBound, want)
		r.SetVisibility(nil)
		expect(t, r, source.ServiceEntry.Name, "e", status.WaypointBound, "True WaypointAccepted")
	}
}

func TestCanaryWaypoints(t *testing.T) {
	const weight = `, annotations: {istio.io/use-waypoint-canary-weight: "%s"}`
	const use = ", labels: {istio.io/use-waypoint: wp%s}"
	const canary = ", istio.io/use-waypoint-canary: new"
	for name, tt := range map[string]struct{ meta, namespace, want string }{
		"none":                  {fmt.Sprintf(use, ""), "", "True WaypointAccepted: bound to waypoint shop/wp"},
		"for nothing yet":       {fmt.Sprintf(use, canary), "", "True WaypointAccepted"},
		"a share":               {fmt.Sprintf(use, canary) + fmt.Sprintf(weight, "5"), "", "True CanaryNotHonoured: bound to waypoint shop/wp: endpoints in the mesh admit no others; the canary shop/new gets nothing"},
		"everything":            {fmt.Sprintf(use, canary+", istio.io/use-waypoint-canary-namespace: web") + fmt.Sprintf(weight, "100"), "", "True CanaryNotHonoured: bound to waypoint shop/wp: endpoints in the mesh admit no others; the canary web/new"},
		"no number":             {fmt.Sprintf(use, canary) + fmt.Sprintf(weight, "half"), "", `True CanaryInvalidWeight: bound to waypoint shop/wp: endpoints in the mesh admit no others; the canary shop/new gets nothing: its weight "half"`},
		"too much":              {fmt.Sprintf(use, canary) + fmt.Sprintf(weight, "101"), "", "True CanaryInvalidWeight"},
		"the same":              {fmt.Sprintf(use, ", istio.io/use-waypoint-canary: wp") + fmt.Sprintf(weight, "5"), "", "True CanarySameAsPrimary"},
		"the namespace's":       {"", "labels: {istio.io/use-waypoint: wp" + canary + "}" + fmt.Sprintf(weight, "5"), "True CanaryNotHonoured"},
		"the namespace's share": {", labels: {istio.io/use-waypoint-canary: new}", "labels: {istio.io/use-waypoint: wp}" + fmt.Sprintf(weight, "5"), "True CanaryNotHonoured"},
		"not the namespace's":   {fmt.Sprintf(use, ""), "labels: {istio.io/use-waypoint: wp" + canary + "}" + fmt.Sprintf(weight, "5"), "True WaypointAccepted"},
		"without a waypoint":    {", labels: {istio.io/use-waypoint: other" + canary + "}", "", "False TargetNotFound: there is no waypoint shop/other"},
	} {
		t.Run(name, func(t *testing.T) {
			ns := "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, " + strings.TrimPrefix(tt.namespace, ", ") + "}\n---\n"
			r, rec := load(t, fmt.Sprintf(gateway, "", "", "{type: IPAddress, value: 10.0.0.77}")+ns+
				"apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop"+tt.meta+"}\nspec: {ports: [{port: 80}]}\n---\n"+entryYAML("shop", tt.meta, ""))
			expect(t, r, source.Service.Name, "s", status.WaypointBound, tt.want)
			expect(t, r, source.ServiceEntry.Name, "e", status.WaypointBound, tt.want)
			if s := rec.service(t, "shop/s.shop.svc.cluster.local"); (way(s.Waypoint) == "there") != strings.HasPrefix(tt.want, "True") || len(s.WeightedWaypoints) > 0 {
				t.Errorf("%v", s)
			}
		})
	}
}

// TestConnectStrategy: node proxies race the addresses of names, so that no waypoint is missing.
func TestConnectStrategy(t *testing.T) {
	r, rec := load(t, entryYAML("shop", ", annotations: {istio.io/connect-strategy: race_first_tcp_connect}", ""))
	expect(t, r, source.ServiceEntry.Name, "e", status.WaypointMissing, "")
	found := false
	for name := range rec.addresses {
		if strings.HasSuffix(name, ".example.com") && !strings.Contains(name, "ServiceEntry") {
			s := rec.service(t, name)
			found = slices.ContainsFunc(s.Extensions, func(e *workloadpb.Extension) bool { return e.Name == wellknown.ExtensionRace })
		}
	}
	if !found {
		t.Error("proxies do not get the strategy")
	}
}

func TestPolicyTargets(t *testing.T) {
	ready := fmt.Sprintf(gateway, "", "", "{type: IPAddress, value: 10.0.0.77}")
	service := func(labels string) string {
		return "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop, labels: {" + labels + "}}\nspec: {ports: [{port: 80}]}\n---\n"
	}
	const bound = "istio.io/use-waypoint: wp"
	const gatewayRef, serviceRef = "{kind: Gateway, group: gateway.networking.k8s.io, name: wp}", "{kind: Service, name: s}"
	foreign := strings.Replace(ready, "istio-waypoint", "cloud", 1)
	for name, tt := range map[string]struct{ yaml, namespace, refs, want string }{
		"a waypoint":                {ready, "shop", gatewayRef, "True Accepted: enforced by waypoint shop/wp"},
		"one that is not there":     {"", "shop", gatewayRef, "False TargetNotFound: there is no Gateway shop/wp"},
		"one without address":       {fmt.Sprintf(gateway, "", "", ""), "shop", gatewayRef, "False AncestorNotBound: waypoint shop/wp has no address"},
		"a gateway of others":       {foreign, "shop", gatewayRef, "Unknown EnforcedByWaypoint: Gateway shop/wp is of class cloud"},
		"of another namespace":      {ready, "web", gatewayRef, "False TargetNotFound: there is no Gateway web/wp"},
		"named in another":          {ready, "web", "{kind: Gateway, group: gateway.networking.k8s.io, namespace: shop, name: wp}", "False Invalid: Gateway shop/wp is of another namespace"},
		"a service":                 {ready + service(bound), "shop", serviceRef, "True Accepted: enforced by waypoint shop/wp for Service shop/s"},
		"a service without":         {ready + service(""), "shop", serviceRef, "False AncestorNotBound: no proxy enforces the policy for Service shop/s: it has no waypoint"},
		"a service of others":       {foreign + service(bound), "shop", serviceRef, "Unknown EnforcedByWaypoint: Service shop/s uses a Gateway of another class"},
		"a waypoint that is late":   {fmt.Sprintf(gateway, "", "", "") + service(bound), "shop", serviceRef, "False AncestorNotBound: no proxy enforces the policy for Service shop/s yet: waypoint shop/wp has no address"},
		"no service":                {ready, "shop", serviceRef, "False TargetNotFound: there is no Service shop/s"},
		"an entry":                  {ready + entryYAML("shop", ", labels: {"+bound+"}", ""), "shop", "{kind: ServiceEntry, group: networking.istio.io, name: e}", "True Accepted: enforced by waypoint shop/wp for ServiceEntry shop/e"},
		"an entry without":          {ready + entryYAML("shop", "", ""), "shop", "{kind: ServiceEntry, group: networking.istio.io, name: e}", "False AncestorNotBound"},
		"all waypoints":             {"", "istio-system", "{kind: GatewayClass, group: gateway.networking.k8s.io, name: istio-waypoint}", "True Accepted: enforced by every waypoint of class istio-waypoint"},
		"all waypoints, by a guest": {"", "shop", "{kind: GatewayClass, group: gateway.networking.k8s.io, name: istio-waypoint}", "False Invalid: only a policy of the root namespace istio-system"},
		"another class":             {"", "istio-system", "{kind: GatewayClass, group: gateway.networking.k8s.io, name: istio}", "False Invalid: GatewayClass istio is not that of waypoints"},
		"a kind that is no target":  {"", "shop", "{kind: Pod, name: p}", "False Invalid: nothing enforces a policy for a Pod"},
		"two":                       {ready + service(bound), "shop", serviceRef + ", " + gatewayRef, "True Accepted: enforced by waypoint shop/wp for Service shop/s, waypoint shop/wp"},
		"two, one is missing":       {ready, "shop", serviceRef + ", " + gatewayRef, "False PartiallyInvalid: enforced by waypoint shop/wp; not for 1 of 2 targets: Service shop/s: there is no Service shop/s"},
		"two, none is there":        {"", "shop", serviceRef + ", " + gatewayRef, "False Invalid: no proxy enforces it: Service shop/s: "},
		"two, one of others":        {foreign, "shop", serviceRef + ", " + gatewayRef, "Unknown EnforcedByWaypoint: Service shop/s: there is no"},
	} {
		t.Run(name, func(t *testing.T) {
			r, rec := load(t, tt.yaml+"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: "+tt.namespace+"}\nspec: {targetRefs: ["+tt.refs+"], rules: [{}]}\n---\n")
			expect(t, r, source.AuthorizationPolicy.Name, "p", status.WaypointAccepted, tt.want)
			expect(t, r, source.AuthorizationPolicy.Name, "p", status.ZtunnelAccepted, "")
			if _, sent := rec.policies[tt.namespace+"/p"]; sent {
				t.Error("node proxies got it")
			}
		})
	}
}

// follow gives an object to a registry, and returns what of it is to write.
func follow(r *Registry, f *status.Follower, kind *source.Kind, obj metav1.Object) []source.Key {
	r.Apply([]source.Event{{Key: source.Key{Kind: kind, Namespace: obj.GetNamespace(), Name: obj.GetName()}, Object: obj}})
	return f.Take()
}

func TestWhatIsWrittenAlready(t *testing.T) {
	r := New(tables.Options{WriteBack: true}, newRecorder())
	f := r.Reports.Follow(status.Unnamed)
	service := func(labels map[string]string, conditions ...metav1.Condition) *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "s", Labels: labels}}
		s.Status.Conditions = conditions
		return s
	}
	asks := map[string]string{"istio.io/use-waypoint": "wp"}
	key := source.Key{Kind: source.Service.Kind, Namespace: "shop", Name: "s"}
	if keys := follow(r, f, source.Service.Kind, service(asks)); len(keys) != 1 || len(f.Unwritten()) != 1 {
		t.Fatalf("a new object: %v, %v", keys, f.Unwritten())
	}
	v, _ := f.Of(key)
	said := metav1.Condition{Type: v.Sections[0].Conditions[0].Type, Status: metav1.ConditionStatus(v.Sections[0].Conditions[0].Status), Reason: v.Sections[0].Conditions[0].Reason, Message: v.Sections[0].Conditions[0].Message}
	foreign, other := metav1.Condition{Type: "Mine", Status: "True"}, said
	other.Message = "of another version"
	for name, tt := range map[string]struct {
		labels     map[string]string
		conditions []metav1.Condition
		written    bool
	}{
		"it says so":                   {asks, []metav1.Condition{foreign, said}, true},
		"it says something else":       {asks, []metav1.Condition{other}, false},
		"it says it twice":             {asks, []metav1.Condition{said, said}, false},
		"it says nothing":              {asks, []metav1.Condition{foreign}, false},
		"it says what is over":         {nil, []metav1.Condition{said}, false},
		"nothing to say, nothing said": {nil, []metav1.Condition{foreign}, true},
	} {
		fresh := New(tables.Options{WriteBack: true}, newRecorder())
		f := fresh.Reports.Follow(status.Unnamed)
		keys := follow(fresh, f, source.Service.Kind, service(tt.labels, tt.conditions...))
		if open := f.Unwritten(); (len(keys) == 0) != tt.written || (len(open) == 0) != tt.written {
			t.Errorf("%s, at the start: to write %v, unwritten %v", name, keys, open)
		}
	}
	// The object comes back with what was written, and with what somebody made
	// of that: neither is a change of what there is to say.
	if keys := follow(r, f, source.Service.Kind, service(asks, said)); len(keys) > 0 || len(f.Unwritten()) > 0 {
		t.Errorf("after it was written: %v", keys)
	}
	if keys := follow(r, f, source.Service.Kind, service(asks, other)); len(keys) > 0 || len(f.Unwritten()) != 1 {
		t.Errorf("after somebody else wrote: %v", keys)
	}
	if keys := follow(r, f, source.Service.Kind, service(nil, other)); len(keys) != 1 {
		t.Errorf("after nothing is asked for: %v", keys)
	}
	// A condition about an older version of the object is not about this one.
	e := &networkingv1.WorkloadEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "e", Generation: 3}}
	e.Spec.Address = "192.0.2.1"
	c := status.Yes(status.Accepted, status.ReasonAccepted, "a workload of the mesh")
	for generation, written := range map[int64]bool{2: false, 3: true} {
		e := e.DeepCopy()
		e.Status.Conditions = []*metav1alpha1.IstioCondition{{Type: c.Type, Status: c.Status, Reason: c.Reason, Message: c.Message, ObservedGeneration: generation}}
		fresh := New(tables.Options{WriteBack: true}, newRecorder())
		f := fresh.Reports.Follow(status.Unnamed)
		if keys := follow(fresh, f, source.WorkloadEntry.Kind, e); slices.Contains(keys, source.Key{Kind: source.WorkloadEntry.Kind, Namespace: "shop", Name: "e"}) == written {
			t.Errorf("observed generation %d: %v", generation, keys)
		}
	}
}

// TestMadeAnew: an object that is deleted and made again, without anything
// between the two being seen, has lost its status.
func TestMadeAnew(t *testing.T) {
	r := New(tables.Options{WriteBack: true}, newRecorder())
	f := r.Reports.Follow(status.Unnamed)
	e := &networkingv1.WorkloadEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "e", Generation: 1, UID: "first"}}
	e.Spec.Address = "192.0.2.1"
	key := source.Key{Kind: source.WorkloadEntry.Kind, Namespace: "shop", Name: "e"}
	if keys := follow(r, f, key.Kind, e.DeepCopy()); len(keys) != 1 {
		t.Fatalf("a new object: %v", keys)
	}
	v, _ := f.Of(key)
	written := e.DeepCopy()
	for _, c := range v.Sections[0].Conditions {
		written.Status.Conditions = append(written.Status.Conditions, &metav1alpha1.IstioCondition{Type: c.Type, Status: c.Status, Reason: c.Reason, Message: c.Message, ObservedGeneration: 1})
	}
	if keys := follow(r, f, key.Kind, written); len(keys) > 0 || len(f.Unwritten()) > 0 {
		t.Fatalf("after it was written: %v", keys)
	}
	e.UID = "second"
	r.Apply([]source.Event{{Key: key}, {Key: key, Object: e}})
	if keys := f.Take(); len(keys) != 1 {
		t.Errorf("made again: %v", keys)
	}
}

// labelled is an object for a revision, or for none.
func labelled(kind *source.Kind, revision string) metav1.Object {
	meta := metav1.ObjectMeta{Namespace: "shop", Name: "e", Labels: map[string]string{wellknown.LabelUseWaypoint: "wp"}}
	if revision != "" {
		meta.Labels[wellknown.LabelRevision] = revision
	}
	if kind == source.Service.Kind {
		return &corev1.Service{ObjectMeta: meta}
	}
	e := &networkingv1.WorkloadEntry{ObjectMeta: meta}
	e.Spec.Address = "192.0.2.1"
	return e
}

// TestWhoseStatus: what is labelled for a revision is told apart from what all
// look at.
func TestWhoseStatus(t *testing.T) {
	const everybody, one, nobody = "everybody's", "of one revision", "nobody's"
	for _, tt := range []struct {
		names       []string
		kind        *source.Kind
		label, want string
	}{
		{nil, source.WorkloadEntry.Kind, "", everybody},
		{nil, source.WorkloadEntry.Kind, "canary", everybody},
		{[]string{"default"}, source.WorkloadEntry.Kind, "", everybody},
		{[]string{"default"}, source.WorkloadEntry.Kind, "default", one},
		{[]string{"default"}, source.WorkloadEntry.Kind, "canary", nobody},
		{[]string{"default", "prod"}, source.WorkloadEntry.Kind, "prod", one},
		{[]string{"canary"}, source.WorkloadEntry.Kind, "", everybody},
		{[]string{"canary"}, source.WorkloadEntry.Kind, "canary", one},
		{[]string{"canary", "default"}, source.WorkloadEntry.Kind, "default", one},
		{[]string{"canary"}, source.Service.Kind, "canary", everybody}, // what the cluster is made of
	} {
		r := New(tables.Options{WriteBack: true, Revisions: tt.names}, newRecorder())
		unnamed, named := r.Reports.Follow(status.Unnamed), r.Reports.Follow(status.Named)
		r.Apply([]source.Event{{Key: source.Key{Kind: tt.kind, Namespace: "shop", Name: "e"}, Object: labelled(tt.kind, tt.label)}})
		for what, v := range map[string]*status.Follower{everybody: unnamed, one: named} {
			want := 0
			if what == tt.want {
				want = 1
			}
			if open, changed := v.Unwritten(), v.Take(); len(open) != want || len(changed) != want {
				t.Errorf("%q, %s labelled %q: among %s are %v, to write %v", tt.names, tt.kind, tt.label, what, open, changed)
			}
		}
	}
}

// TestStatusChangesHands: an object whose label changes leaves one writer, which
// writes no more of it, and comes to the other.
func TestStatusChangesHands(t *testing.T) {
	r := New(tables.Options{WriteBack: true, Revisions: []string{"canary", "prod"}}, newRecorder())
	unnamed, named := r.Reports.Follow(status.Unnamed), r.Reports.Follow(status.Named)
	key := source.Key{Kind: source.WorkloadEntry.Kind, Namespace: "shop", Name: "e"}
	for _, step := range []struct {
		label             string
		everybody, one    bool
		changed, changedN int
	}{
		{"", true, false, 1, 0},
		{"canary", false, true, 0, 1},
		{"prod", false, true, 0, 0}, // the same writer, who has said it
		{"", true, false, 1, 0},
		{"other", false, false, 0, 0},
		{"prod", false, true, 0, 1},
	} {
		r.Apply([]source.Event{{Key: key, Object: labelled(key.Kind, step.label)}})
		_, everybody := unnamed.Of(key)
		_, one := named.Of(key)
		if changed, changedN := len(unnamed.Take()), len(named.Take()); everybody != step.everybody || one != step.one || changed != step.changed || changedN != step.changedN {
			t.Errorf("labelled %q: everybody's %t (%d to write), of one revision %t (%d)", step.label, everybody, changed, one, changedN)
		}
	}
}
