package check

import (
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/kube/kubetest"
)

func TestGather(t *testing.T) {
	ambient := map[string]string{"istio.io/dataplane-mode": "ambient"}
	s := kubetest.Start(t,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: ambient}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "other"}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "in", Labels: ambient}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "out"}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istio"}, Data: map[string]string{"mesh": "discoverySelectors: [{matchLabels: {team: a}}]"}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "cacerts"}, Data: map[string][]byte{"ca-cert.pem": []byte("nonsense")}},
	)
	s.OnRequest(func(verb, resource string) int {
		if resource == "networkpolicies" {
			return http.StatusForbidden
		}
		return 0
	})
	seen, err := Gather(t.Context(), s.Client(), "istio-system", "v1")
	if err != nil {
		t.Fatal(err)
	}
	var pods []string
	for _, p := range seen.Pods {
		pods = append(pods, p.Namespace+"/"+p.Name)
	}
	if got := strings.Join(pods, " "); got != "shop/web other/in" {
		t.Errorf("pods: %s", got)
	}
	if len(seen.Unseen) != 1 {
		t.Errorf("what could not be seen: %v", seen.Unseen)
	}
	if len(seen.WantedKinds) < 10 || seen.ServerVersion == "" || len(seen.Denied) > 0 {
		t.Errorf("%+v", seen)
	}
	if len(seen.Discovery) != 2 || seen.Discovery[0].MatchLabels["team"] != "a" {
		t.Errorf("discovery: %+v", seen.Discovery)
	}
	problems := 0
	for _, c := range seen.Certificates {
		if c.Problem != "" {
			problems++
		}
	}
	if problems != 2 { // no root, and nonsense in cacerts
		t.Errorf("certificates: %+v", seen.Certificates)
	}
}
