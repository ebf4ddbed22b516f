package ends

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestGrace(t *testing.T) {
	seconds := func(n int64) *corev1.PodSpec {
		return &corev1.PodSpec{TerminationGracePeriodSeconds: &n}
	}
	for want, spec := range map[time.Duration]*corev1.PodSpec{
		DefaultGrace: {}, 0: seconds(0), 8 * time.Second: seconds(8), time.Minute: seconds(60),
	} {
		if got := Grace(spec); got != want {
			t.Errorf("%v, and not %v", got, want)
		}
	}
	if got := Grace(seconds(-1)); got != 0 {
		t.Errorf("less than nothing is %v", got)
	}
}

func TestMark(t *testing.T) {
	var m metav1.ObjectMeta
	asked := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	Mark(&m, asked, 8*time.Second)
	if *m.DeletionGracePeriodSeconds != 8 || !m.DeletionTimestamp.Equal(&metav1.Time{Time: time.Date(2026, 1, 2, 3, 4, 13, 0, time.UTC)}) {
		t.Errorf("%v %v", *m.DeletionGracePeriodSeconds, m.DeletionTimestamp)
	}
}

func TestUsed(t *testing.T) {
	ready, not := Endpoint{Ready: true}, Endpoint{}
	ending, closing := Endpoint{Ready: true, Ending: true}, Endpoint{Ending: true}
	for name, tc := range map[string]struct {
		pods []Endpoint
		all  bool
		want []bool
	}{
		"none":                  {nil, false, []bool{}},
		"one is ready":          {[]Endpoint{not, ready, ending, closing}, false, []bool{false, true, false, false}},
		"none is ready":         {[]Endpoint{not, ending, closing}, false, []bool{false, true, false}},
		"none serves":           {[]Endpoint{not, closing}, false, []bool{false, false}},
		"not ready is no cause": {[]Endpoint{not, ready, ending, closing}, true, []bool{true, true, true, true}},
	} {
		if got := Used(tc.pods, tc.all); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestHook(t *testing.T) {
	h := &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 1}}
	if Hook(&corev1.Container{}) != nil || Hook(&corev1.Container{Lifecycle: &corev1.Lifecycle{}}) != nil ||
		Hook(&corev1.Container{Lifecycle: &corev1.Lifecycle{PreStop: h}}) != h {
		t.Error("hooks")
	}
}
