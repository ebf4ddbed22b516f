package source

import (
	corev1 "k8s.io/api/core/v1"
)

// Annotations of the kubelet on mirror pods: the objects that stand for static
// pods, which a node runs from its own disk.
const (
	AnnotationMirror = "kubernetes.io/config.mirror"
	// AnnotationConfigHash holds the UID that the node has of a static pod. The
	// API server gives the mirror pod another one.
	AnnotationConfigHash = "kubernetes.io/config.hash"
)

// Account returns the service account that a pod runs as; ok reports whether
// it has one. The API server gives one to every pod but to mirror pods. A node
// can create mirror pods in any namespace with its own credentials, so that a
// mirror pod proves no account, whatever it names.
func Account(pod *corev1.Pod) (name string, ok bool) {
	if _, mirror := pod.Annotations[AnnotationMirror]; mirror || pod.Spec.ServiceAccountName == "" {
		return "", false
	}
	return pod.Spec.ServiceAccountName, true
}

// Ended reports whether nothing of a pod runs any more and nothing will. The
// phase alone does not show that: a pod can be Failed in its grace period (a
// deadline, an eviction, a shutdown of its node) while its containers run on.
func Ended(pod *corev1.Pod) bool {
	return (pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed) && !Running(pod)
}

// Running reports whether the kubelet says of a container that it runs.
func Running(pod *corev1.Pod) bool {
	s := &pod.Status
	for _, list := range [][]corev1.ContainerStatus{s.ContainerStatuses, s.InitContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].State.Running != nil {
				return true
			}
		}
	}
	return false
}
