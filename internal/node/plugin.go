package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

const (
	// maxEvent bounds the body of a plugin's request.
	maxEvent = 64 << 10
	// maxEvents is how many requests are worked on at once; a runtime starts
	// few pods at a time, and what is too much is tried again by the kubelet.
	maxEvents = 32
	// podPatience is how long a pod that is being started may be unknown: the
	// runtime can be faster than the news of the pod.
	podPatience = 2 * time.Second
	// answerWithin is less than plugins wait, so that it is the agent's words
	// that the owner of the pod reads.
	answerWithin = 4500 * time.Millisecond
)

// NewPod is a pod that the container runtime has made a network for, and not
// yet started. It is the body of a plugin's request.
type NewPod struct {
	Netns        string // path
	PodName      string
	PodNamespace string
	// PodUID is what the runtime calls the pod. Plugins other than the mesh's
	// own do not send it.
	PodUID string
	IPs    []struct{ Address Address }
}

// is reports whether a pod is the one that is being started. By the name alone it
// could be another that had the name before. The runtime has
// another UID of a static pod than the API server.
func (n NewPod) is(p Pod) bool {
	if p.Name != n.PodName || p.Namespace != n.PodNamespace || p.Terminal {
		return false
	}
	return n.PodUID == "" || n.PodUID == p.UID || n.PodUID == p.StaticUID
}

// Address is an interface's address. In JSON it is Go's net.IPNet, as Istio's
// plugin sends it, or the text that CNI itself uses.
type Address struct{ netip.Addr }

// UnmarshalJSON reads {"IP":"10.0.0.1", ...} and "10.0.0.1/24".
func (a *Address) UnmarshalJSON(p []byte) error {
	var text string
	if err := json.Unmarshal(p, &text); err != nil {
		var ipnet struct{ IP netip.Addr }
		if err := json.Unmarshal(p, &ipnet); err != nil {
			return err
		}
		a.Addr = ipnet.IP.Unmap()
		return nil
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return err
	}
	a.Addr = prefix.Addr().Unmap()
	return nil
}

// PluginHandler serves the CNI plugin: POST /cmdadd. Anything but 200 keeps the
// pod from starting. observe is told the status of every answer; it may be nil.
func PluginHandler(a *Agent, observe func(status int)) http.Handler {
	slots := make(chan struct{}, maxEvents)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /cmdadd", func(w http.ResponseWriter, r *http.Request) {
		status, text := http.StatusOK, "ok"
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
			var pod NewPod
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxEvent))
			if err == nil {
				err = json.Unmarshal(body, &pod)
			}
			if err != nil {
				status, text = http.StatusBadRequest, fmt.Sprintf("cannot read the request: %v", err)
			} else if err := a.AddNew(r.Context(), pod); err != nil {
				a.cfg.Logger.Error("a pod is kept from starting", "pod", pod.PodNamespace+"/"+pod.PodName, "error", err)
				status, text = http.StatusInternalServerError, err.Error()
			}
		default:
			status, text = http.StatusInternalServerError, "too many pods are being started at once"
		}
		if observe != nil {
			observe(status)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	})
	return mux
}

// AddNew enrols a pod before it starts, if it belongs into the mesh. An error
// means that the pod must not start.
func (a *Agent) AddNew(ctx context.Context, n NewPod) error {
	if n.Netns == "" || n.PodName == "" || n.PodNamespace == "" {
		return errors.New("the request names no pod or no network namespace")
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	pod, err := a.await(ctx, n)
	if err != nil {
		return err
	}
	// A node where nothing can be enrolled still starts what is not to be.
	if wanted, _ := a.wants(pod); !wanted {
		return nil
	}
	select {
	case <-a.recovered:
	case <-ctx.Done():
		a.mu.Lock()
		defer a.mu.Unlock()
		return errors.New(a.held)
	}
	return a.enrolNew(ctx, pod, n)
}

func (a *Agent) enrolNew(ctx context.Context, pod Pod, n NewPod) error {
	st := a.state(pod.UID)
	st.mu.Lock()
	defer st.mu.Unlock()
	ns, err := netns.Open(n.Netns)
	if err != nil {
		return fmt.Errorf("%w; the directory of network namespaces (/var/run/netns) has to be mounted into the node agent with HostToContainer propagation", err)
	}
	ips := pod.IPs
	for _, ip := range n.IPs {
		ips = append(ips[:len(ips):len(ips)], ip.Address.Addr)
	}
	if err := a.prove(ns, ips); err != nil {
		_ = ns.Close()
		return err
	}
	pod.IPs = ips
	if st.ns == nil || st.ns.ID() != ns.ID() {
		st.drop()
		st.ns = ns
	} else {
		_ = ns.Close()
	}
	err = a.enrol(ctx, st, pod, true)
	a.report(ctx, st, pod, eventEnrol, err)
	a.queue.add(pod.UID)
	return explain(err)
}

// await waits for a pod, and for its namespace, to become known.
func (a *Agent) await(ctx context.Context, n NewPod) (Pod, error) {
	select {
	case <-a.synced:
	case <-ctx.Done():
		return Pod{}, errors.New("the node agent has not heard of the pods and namespaces of this node yet: can it reach the API server?")
	}
	ctx, cancel := context.WithTimeout(ctx, podPatience)
	defer cancel()
	for {
		pod, missing, changed := a.look(n)
		if missing == "" {
			return pod, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Pod{}, fmt.Errorf("%s is not known on this node: the news of it has not reached the node agent; if this goes on, see whether the agent can reach the API server", missing)
		}
	}
}

// look says what of a new pod is not known, and when to look again.
func (a *Agent) look(n NewPod) (pod Pod, missing string, changed <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.pods {
		if !n.is(p) {
			continue
		}
		if _, known := a.namespaces[p.Namespace]; !known && a.cfg.NamespacesListed {
			return Pod{}, "namespace " + p.Namespace, a.changed
		}
		return p, "", nil
	}
	return Pod{}, fmt.Sprintf("pod %s/%s", n.PodNamespace, n.PodName), a.changed
}
