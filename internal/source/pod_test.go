package source

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestAccount(t *testing.T) {
	for _, tc := range []struct {
		name        string
		annotations map[string]string
		account     string
		want        string
		ok          bool
	}{
		{"explicit", nil, "web", "web", true},
		{"named default", nil, "default", "default", true},
		{"none", nil, "", "", false},
		{"mirror", map[string]string{AnnotationMirror: "x"}, "", "", false},
		{"mirror with an empty mark", map[string]string{AnnotationMirror: ""}, "", "", false},
		{"mirror that names an account", map[string]string{AnnotationMirror: "x"}, "admin", "", false},
		{"static pod's hash alone", map[string]string{AnnotationConfigHash: "x"}, "web", "web", true},
	} {
		got, ok := Account(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: tc.annotations}, Spec: corev1.PodSpec{ServiceAccountName: tc.account}})
		if got != tc.want || ok != tc.ok {
			t.Errorf("%s: %q, %v", tc.name, got, ok)
		}
	}
}

func TestEnded(t *testing.T) {
	running := []corev1.ContainerStatus{{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}}, {State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	stopped := []corev1.ContainerStatus{{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}}, {State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{}}}}
	for _, tc := range []struct {
		name   string
		status corev1.PodStatus
		want   bool
	}{
		{"runs", corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: stopped}, false},
		{"no status", corev1.PodStatus{}, false},
		{"failed", corev1.PodStatus{Phase: corev1.PodFailed, ContainerStatuses: stopped}, true},
		{"failed, status unknown", corev1.PodStatus{Phase: corev1.PodFailed}, true},
		{"succeeded", corev1.PodStatus{Phase: corev1.PodSucceeded, ContainerStatuses: stopped}, true},
		{"grace period", corev1.PodStatus{Phase: corev1.PodFailed, ContainerStatuses: running}, false},
		{"grace period of a sidecar", corev1.PodStatus{Phase: corev1.PodFailed, ContainerStatuses: stopped, InitContainerStatuses: running}, false},
		{"grace period of a debugger", corev1.PodStatus{Phase: corev1.PodFailed, EphemeralContainerStatuses: running}, false},
	} {
		if got := Ended(&corev1.Pod{Status: tc.status}); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}
