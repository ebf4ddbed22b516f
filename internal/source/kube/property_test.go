package kube

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/ambit-mesh/ambit/internal/kube/kubetest"
	"github.com/ambit-mesh/ambit/internal/source"
)

// model is what the cluster holds, as the test made it.
type model struct {
	pods       map[string]string // namespace/name: address
	policies   map[string]string // namespace/name: action
	namespaces map[string]bool   // whether it is labelled
	selective  bool
}

// expected renders what a sink must hold.
func (m *model) expected() map[string]string {
	out := map[string]string{}
	for ns, labelled := range m.namespaces {
		out["Namespace/"+ns] = fmt.Sprint(labelled)
	}
	looks := func(key string) bool { return !m.selective || m.namespaces[key[:1]] }
	for key, ip := range m.pods {
		if looks(key) {
			out["Pod/"+key] = ip
		}
	}
	for key, action := range m.policies {
		if looks(key) {
			out["AuthorizationPolicy/"+key] = action
		}
	}
	return out
}

// held renders what the sink holds, in the same words.
func held(r *recorder) map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]string{}
	for key, obj := range r.objects {
		switch o := obj.(type) {
		case *corev1.Namespace:
			out[key.String()] = fmt.Sprint(o.Labels["mesh"] == "yes")
		case *corev1.Pod:
			out[key.String()] = o.Status.PodIP
		default:
			data, _ := json.Marshal(o)
			var p struct{ Spec struct{ Action string } }
			_ = json.Unmarshal(data, &p)
			out[key.String()] = p.Spec.Action
		}
	}
	return out
}

func equal(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

// TestSinkEndsWithTheState edits a cluster at random, breaks everything that
// can break in between, and compares what the sink has in the end.
func TestSinkEndsWithTheState(t *testing.T) {
	selectors := []metav1.LabelSelector{{MatchLabels: map[string]string{"mesh": "yes"}}}
	rapid.Check(t, func(rt *rapid.T) {
		// A test of its own ends its server and source with each try.
		t.Run("", func(t *testing.T) {
			s := kubetest.Start(t)
			if rapid.Bool().Draw(rt, "old server") {
				s.NoWatchList()
			}
			m := &model{pods: map[string]string{}, policies: map[string]string{}, namespaces: map[string]bool{}}
			src, r := start(t, s, Options{Kinds: []*source.Kind{source.Pod.Kind, source.Namespace.Kind, source.AuthorizationPolicy.Kind}})
			stopped := false
			for i := range rapid.IntRange(1, 60).Draw(rt, "steps") {
				ns := rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "namespace")
				name := rapid.SampledFrom([]string{"x", "y", "z"}).Draw(rt, "name")
				switch rapid.IntRange(0, 13).Draw(rt, "step") {
				case 0, 1, 2, 3:
					m.setPod(s, ns, name, fmt.Sprintf("10.0.0.%d", i))
				case 4:
					if _, ok := m.pods[ns+"/"+name]; ok {
						s.Delete(pod(ns, name))
						delete(m.pods, ns+"/"+name)
					}
				case 5, 6:
					m.setPolicy(s, ns, name, rapid.SampledFrom([]string{"DENY", "AUDIT"}).Draw(rt, "action"))
				case 7, 8:
					m.setNamespace(s, ns, rapid.Bool().Draw(rt, "labelled"))
				case 9:
					s.BreakWatches()
				case 10:
					s.Compact()
				case 11:
					if stopped {
						s.Restart()
					} else {
						s.Stop()
					}
					stopped = !stopped
				case 12:
					m.selective = !m.selective
					var now []metav1.LabelSelector
					if m.selective {
						now = selectors
					}
					if err := src.SetDiscoverySelectors(now); err != nil {
						t.Fatal(err)
					}
				case 13:
					time.Sleep(time.Duration(rapid.IntRange(0, 20).Draw(rt, "ms")) * time.Millisecond)
				}
			}
			if stopped {
				s.Restart()
			}
			want := m.expected()
			for deadline := time.Now().Add(20 * time.Second); !equal(held(r), want); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					rt.Fatalf("sink holds %v\nwant %v", held(r), want)
				}
			}
		})
	})
}

func (m *model) setPod(s *kubetest.Server, ns, name, ip string) {
	p := pod(ns, name)
	p.Status.PodIP = ip
	if _, ok := m.pods[ns+"/"+name]; ok {
		s.Update(p)
	} else {
		s.Add(p)
	}
	m.pods[ns+"/"+name] = ip
}

func (m *model) setPolicy(s *kubetest.Server, ns, name, action string) {
	p := custom("security.istio.io/v1", "AuthorizationPolicy", ns, name, map[string]any{"action": action})
	if _, ok := m.policies[ns+"/"+name]; ok {
		s.Update(p)
	} else {
		s.Add(p)
	}
	m.policies[ns+"/"+name] = action
}

func (m *model) setNamespace(s *kubetest.Server, ns string, labelled bool) {
	n := namespace(ns, nil)
	if labelled {
		n.Labels = map[string]string{"mesh": "yes"}
	}
	if _, ok := m.namespaces[ns]; ok {
		s.Update(n)
	} else {
		s.Add(n)
	}
	m.namespaces[ns] = labelled
}
