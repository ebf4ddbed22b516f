package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/ambit-mesh/ambit/test/cluster/local"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// withPrograms gives a pod the programs of its node, such as sh and nft.
func withPrograms(p *corev1.Pod) {
	for name, at := range map[string][2]string{"usr": {"/usr", "/usr"}, "lib": {"/usr/lib", "/lib"}, "lib64": {"/usr/lib64", "/lib64"}} {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: at[0]}}})
		p.Spec.Containers[0].VolumeMounts = append(p.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: name, MountPath: at[1], ReadOnly: true})
	}
}

// inNetwork runs a program, from its node, in the network namespace that has
// an address.
func inNetwork(ctx context.Context, node, address string, argv ...string) (string, error) {
	const enter = `for ns in /run/netns/*; do
	if nsenter --net="$ns" ip -o addr show | grep -qF " $0/"; then exec nsenter --net="$ns" "$@"; fi
done
echo "no network namespace has $0" >&2
exit 1`
	return mesh.Own.Output(ctx, node, append([]string{"sh", "-c", enter, address}, argv...)...)
}

// foundAgain replaces the agents, which then know of pods only what the node
// shows them, deletes the rules of a pod, and waits until they are written anew.
func foundAgain(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	mesh.Roll(t, agents)
	table := []string{"table", "inet", "ambit"}
	node, address := pod.Spec.NodeName, pod.Status.PodIP
	if _, err := inNetwork(t.Context(), node, address, append([]string{"nft", "delete"}, table...)...); err != nil {
		t.Fatal(err)
	}
	kit.Eventually(t, "the rules of "+pod.Name+" are written anew", func(ctx context.Context) error {
		_, err := inNetwork(ctx, node, address, append([]string{"nft", "list"}, table...)...)
		return err
	})
}

// A pod whose processes are in several network namespaces is found again by an
// agent that did not see it start. The processes of the other namespaces have
// lower numbers than all others of the pod, where the kernel allows to choose.
func TestPodOfSeveralNetworksIsFoundAgain(t *testing.T) {
	needsOwnCluster(t)
	from, to := twoNodes(t)
	n := mesh.Namespace(t, "networks", kit.Ambient())
	const wrapper = `mount -o remount,bind,rw /proc/sys && echo 99 >/proc/sys/kernel/ns_last_pid
for i in 1 2 3 4 5 6; do unshare --net sleep 1000000 & done
exec /echo server -name server`
	server := n.Pod("server", kit.OnNode(to), withPrograms, kit.WithCommand("/usr/bin/sh", "-c", wrapper), func(p *corev1.Pod) {
		p.Spec.HostPID = true
		p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_ADMIN"}}}
		p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "PATH", Value: "/usr/bin:/usr/sbin"}}
	})
	n.Service("server")
	n.Pod("client", kit.OnNode(from))
	n.Tunnelled("client", n.URL("server"), server)
	foundAgain(t, server)
	n.Tunnelled("client", n.URL("server"), server)
}

// A static pod, which a kubelet runs from its node's disk and which has one UID
// there and another in the API, is found again, too. It has no identity.
func TestStaticPodIsFoundAgain(t *testing.T) {
	needsOwnCluster(t)
	from, to := twoNodes(t)
	n := mesh.Namespace(t, "static", kit.Ambient())
	n.Service("static")
	n.Pod("client", kit.OnNode(from))
	manifest, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": "static", "namespace": n.Name, "labels": map[string]any{"app": "static"}},
		"spec": map[string]any{"terminationGracePeriodSeconds": 2, "containers": []any{map[string]any{
			"name": "echo", "image": kit.TestImage, "command": []string{"/echo", "server", "-name", "static"},
			"readinessProbe": map[string]any{"periodSeconds": 1, "tcpSocket": map[string]any{"port": 8080}},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := path.Join(local.StaticPods, n.Name+".json")
	t.Cleanup(func() {
		// The test's context has ended.
		ctx, cancel := context.WithTimeout(context.Background(), kit.Patience)
		defer cancel()
		if _, err := mesh.Own.Output(ctx, to, "rm", "-f", file); err != nil {
			t.Errorf("the static pod stays behind: %v", err)
		}
	})
	// Complete when the kubelet sees it: a file whose name begins with a dot is none to it.
	const write = `printf %s "$1" >"$(dirname "$0")/.new" && mv "$(dirname "$0")/.new" "$0"`
	if _, err := mesh.Own.Output(t.Context(), to, "sh", "-c", write, file, string(manifest)); err != nil {
		t.Fatal(err)
	}
	mirror := n.Ready("static-" + to)
	n.Redirected(mirror.Name, true)
	n.MustGet("client", n.URL("static"))
	foundAgain(t, mirror)
	n.MustGet("client", n.URL("static"))
	says(t, []string{"In the mesh:   yes", "static pods have none"}, "describe", "pod", mirror.Name, "-n", n.Name)
}

// What runs on in a pod's grace period keeps its connections: a deadline has
// passed, and the phase is Failed already.
func TestConnectionInTheGracePeriod(t *testing.T) {
	needsOwnCluster(t)
	from, to := twoNodes(t)
	n := mesh.Namespace(t, "grace", kit.Ambient())
	n.Pod("server", kit.OnNode(to))
	n.Service("server")
	n.Pod("client", kit.OnNode(from))
	n.MustGet("client", n.URL("server")) // name and address are known on this node
	const grace = 20                     // seconds: time for the phase to be written, and seen, before the end
	// The signal reaches the shell only, which ignores it.
	command := "trap '' TERM; /echo hold -addr server:9000 & wait"
	n.Create("worker", kit.OnNode(from), withPrograms, kit.WithCommand("/usr/bin/sh", "-c", command), func(p *corev1.Pod) {
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.TerminationGracePeriodSeconds = ptr.To[int64](grace)
		p.Spec.Containers[0].ReadinessProbe = nil
	})
	events := func(ctx context.Context) (string, error) {
		return mesh.Logs(ctx, n.Name, "worker", "echo", time.Time{})
	}
	kit.Eventually(t, "worker is connected", func(ctx context.Context) error {
		log, err := events(ctx)
		if err == nil && !strings.Contains(log, `"echo"`) {
			err = fmt.Errorf("it wrote %q", log)
		}
		return err
	})
	patch := func(what string, subresources ...string) {
		t.Helper()
		if _, err := mesh.Kube.CoreV1().Pods(n.Name).Patch(t.Context(), "worker", types.MergePatchType, []byte(what), metav1.PatchOptions{}, subresources...); err != nil {
			t.Fatal(err)
		}
	}
	patch(`{"spec":{"activeDeadlineSeconds":1}}`)
	kit.Eventually(t, "worker is being ended", func(ctx context.Context) error {
		list, err := mesh.Kube.CoreV1().Events(n.Name).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=worker,reason=Killing"})
		if err == nil && len(list.Items) == 0 {
			err = errors.New("the kubelet has not begun")
		}
		return err
	})
	// As kubelets before 1.27 and controllers of nodes do.
	patch(`{"status":{"phase":"Failed","reason":"DeadlineExceeded"}}`, "status")
	kit.Eventually(t, "worker has ended", func(ctx context.Context) error {
		p, err := mesh.Kube.CoreV1().Pods(n.Name).Get(ctx, "worker", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, s := range p.Status.ContainerStatuses {
			if s.State.Terminated != nil {
				return nil
			}
		}
		return fmt.Errorf("its containers are %+v", p.Status.ContainerStatuses)
	})
	log, err := events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(log, `"closed"`) {
		t.Errorf("the connection ended before the program did:\n%s", log)
	}
}
