package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

const canary = "canary"

// follow waits until a control plane is the one that all node proxies, or none,
// are connected to.
func follow(t *testing.T, revision string, all bool) {
	t.Helper()
	want := 0
	if nodes, err := mesh.Nodes(t.Context()); err != nil {
		t.Fatal(err)
	} else if all {
		want = len(nodes)
	}
	kit.Eventually(t, fmt.Sprintf("%d proxies follow %s", want, revision), func(ctx context.Context) error {
		name, err := mesh.AmbitdOf(ctx, revision)
		if err != nil {
			return err
		}
		followers, err := mesh.Followers(ctx, name)
		if err == nil && len(followers) != want {
			err = fmt.Errorf("%s has %d", name, len(followers))
		}
		return err
	})
}

// denies makes a policy for one revision: it refuses a client.
func (s *stage) denies(revision, client string) {
	s.t.Helper()
	s.MustApply(fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-%[2]s, labels: {istio.io/rev: %[1]s}}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/$NS/sa/%[2]s]}}]}]
`, revision, client))
}

// judged waits until an object for a revision, or for none, that means nothing
// is refused.
func (s *stage) judged(labels string) {
	s.t.Helper()
	kit.Eventually(s.t, "an invalid policy with labels {"+labels+"} is refused", func(ctx context.Context) error {
		err := s.Apply(ctx, s.Name, strings.ReplaceAll(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: invalid, labels: {$LABELS}}
spec: {selector: {matchLabels: {app: nobody}}, rules: [{from: [{source: {ipBlocks: [not-an-address]}}]}]}
`, "$LABELS", labels))
		switch {
		case err == nil:
			return errors.New("it is stored")
		case strings.Contains(err.Error(), "denied the request"):
			return nil
		}
		return err
	})
}

// Two control planes live side by side, as docs/upgrade.md tells: a second one is
// tried alone, then node agents and proxies move to it while requests are made,
// it becomes the default one, and the first one goes. Each looks at what is
// labelled for it, and at what is labelled for nobody.
func TestRevisions(t *testing.T) {
	s := newStage(t, "revisions", 200)
	s.Pod("other", kit.OnNode(s.from))
	moved := false
	back := func(ctx context.Context) {
		if moved {
			return
		}
		if err := mesh.Install(ctx); err != nil {
			t.Error(err)
			return // agents and proxies may be of the other one still, and would go with it
		}
		if _, err := mesh.Ambit(ctx, "uninstall", "--revision", canary, "-y"); err != nil {
			t.Error(err)
			return
		}
		moved = true
	}
	t.Cleanup(func() { back(context.Background()) })

	if err := mesh.Install(t.Context(), "--revision", canary, "--set", "profile=minimal"); err != nil {
		t.Fatal(err)
	}
	follow(t, canary, false)
	follow(t, "default", true)
	s.judged("istio.io/rev: " + canary)
	s.denies(canary, "other")
	s.denies("default", "probe")
	s.denies("nosuch", "load")
	_ = s.MustRefuse("probe", s.URL("server"))
	if out, err := s.Get(t.Context(), "other", s.URL("server")); err != nil {
		t.Errorf("a policy for another revision is enforced: %s, %v", out, err)
	}

	out, _ := mesh.Ambit(t.Context(), "analyze", "-n", s.Name) // ends with a code that says how grave it is
	if strings.Count(out, "AMB0031") != 1 || !strings.Contains(out, "AMB0031] (AuthorizationPolicy "+s.Name+"/deny-load") {
		t.Errorf("what is labelled for nobody is not found: %s", out)
	}

	if err := mesh.Install(t.Context(), "--revision", canary); err != nil {
		t.Fatal(err)
	}
	mesh.RolledOut(t, agents)
	mesh.RolledOut(t, "ztunnel")
	follow(t, canary, true)
	follow(t, "default", false)
	_ = s.MustRefuse("other", s.URL("server"))
	s.MustGet("probe", s.URL("server"))

	if err := mesh.Upgrade(t.Context(), "--revision", canary, "--set", "values.revisionTags={default}"); err != nil {
		t.Fatal(err)
	}
	if _, err := mesh.Ambit(t.Context(), "uninstall", "--revision", "default", "-y"); err != nil {
		t.Fatal(err)
	}
	mesh.ControlPlane(t, 1)
	follow(t, canary, true)
	s.judged("")
	s.judged("istio.io/rev: default")
	if out := checked(t); strings.Contains(out, "no control plane is the default one") {
		t.Errorf("ambit check:\n%s", out)
	}
	_ = s.MustRefuse("probe", s.URL("server")) // what names the tag has moved with it
	if err := mesh.Dynamic.Resource(policies).Namespace(s.Name).Delete(t.Context(), "deny-probe", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.delivers()

	back(t.Context())
	mesh.ControlPlane(t, 1)
	follow(t, "default", true)
	s.MustGet("other", s.URL("server"))
	s.starts("late")
	s.load.Clean()
}
