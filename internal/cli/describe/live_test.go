package describe

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/analysis"
	"github.com/ambit-mesh/ambit/internal/cli/live"
	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/kube/kubetest"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// discoveryCluster is a mesh that looks at namespaces of team a only, and at its
// own.
func discoveryCluster(t *testing.T) *kubetest.Server {
	namespace := func(name string, labels map[string]string) *corev1.Namespace {
		labels[corev1.LabelMetadataName] = name // as the API server sets it
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	}
	ambient := func(more ...string) map[string]string {
		out := map[string]string{wellknown.LabelDataplaneMode: wellknown.DataplaneModeAmbient}
		for _, team := range more {
			out["team"] = team
		}
		return out
	}
	return kubetest.Start(t,
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: wellknown.SystemNamespace, Name: live.MeshConfigMap}, Data: map[string]string{
			"mesh": "rootNamespace: root\ndiscoverySelectors: [{matchLabels: {team: a}}]"}},
		namespace("left", ambient("b")), namespace("seen", ambient("a")), namespace("root", ambient()), namespace(wellknown.SystemNamespace, ambient()),
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "left", Name: "web"}, Spec: corev1.PodSpec{NodeName: "node1", ServiceAccountName: "web"}},
	)
}

func TestAnalyzeFindsNamespacesThatAreLeftOut(t *testing.T) {
	c := discoveryCluster(t).Client()
	k := &session.Kube{IstioNamespace: wellknown.SystemNamespace}
	events, problems, err := live.Events(t.Context(), c)
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	var found []string
	for _, f := range analysis.Analyze(events, live.MeshOptions(t.Context(), k, c)) {
		found = append(found, f.Code+" "+f.Object.String())
	}
	if got := strings.Join(found, ", "); got != "AMB0036 Namespace/left" {
		t.Errorf("found: %s", got)
	}
}

func TestDescribeOfAPodThatIsLeftOut(t *testing.T) {
	c := discoveryCluster(t).Client()
	i := &clusterInformant{Kube: &session.Kube{IstioNamespace: wellknown.SystemNamespace}, c: c}
	f, err := i.pod(t.Context(), "left", "web")
	if err != nil {
		t.Fatal(err)
	}
	if yes, why := wants(f); yes || !strings.Contains(why, "discovery selector") {
		t.Errorf("wants: %v, %q", yes, why)
	}
	var r podReport
	r.analysis(f)
	if len(r.ToDo) != 1 || !strings.Contains(r.ToDo[0].What, "AMB0036") {
		t.Errorf("advice: %+v", r.ToDo)
	}
}
