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
)

// NewPod is a pod that the container runtime has made a network for, and not
// yet started. It is the body of a plugin's request.
type NewPod struct {
	Netns        string // path
	PodName      string
	PodNamespace string
	IPs          []struct{ Address Address }
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
	select {
	case <-a.recovered:
	case <-ctx.Done():
		return errors.New("the node agent has not read its configuration yet")
	}
	pod, err := a.await(ctx, n.PodNamespace, n.PodName)
	if err != nil {
		return err
	}
	if wanted, _ := a.wants(pod); !wanted {
		return nil
	}
	st := a.state(pod.UID)
	st.mu.Lock()
	defer st.mu.Unlock()
	ns, err := netns.Open(n.Netns)
	if err != nil {
		return err
	}
	ips := pod.IPs
	for _, ip := range n.IPs {
		ips = append(ips[:len(ips):len(ips)], ip.Address.Addr)
	}
	if err := a.prove(ns, ips); err != nil {
		_ = ns.Close()
		return err
	}
	if st.ns != nil {
		st.drop()
	}
	st.ns = ns
	err = a.enrol(ctx, st, pod, true)
	a.report(ctx, st, pod, eventEnrol, err)
	return err
}

// await waits for a pod to become known.
func (a *Agent) await(ctx context.Context, namespace, name string) (Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, podPatience)
	defer cancel()
	for {
		a.mu.Lock()
		changed := a.changed
		for _, p := range a.pods {
			if p.Name == name && p.Namespace == namespace && !p.Terminal {
				a.mu.Unlock()
				return p, nil
			}
		}
		a.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return Pod{}, fmt.Errorf("pod %s/%s is not known on this node", namespace, name)
		}
	}
}
