package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/measure"
)

const (
	// podsPerFile is how a large mesh is cut into files: a changed pod is found
	// by reading one again.
	podsPerFile = 100
	// scaleChanges is how many changes are made, one after the other.
	scaleChanges = 5
	// scaleQuiet is how long nothing comes when everything has come.
	scaleQuiet = 500 * time.Millisecond
	// scaleWait bounds every wait, for a slow machine.
	scaleWait = 2 * time.Minute
)

// scale runs ambitd and one ztunnel on a generated mesh and changes a pod.
func scale(ctx context.Context, o options, dir string) (*report, error) {
	if o.workloads < podsPerFile || o.services < 1 || o.services > o.workloads {
		return nil, fmt.Errorf("-workloads must be at least %d, -services between 1 and as many", podsPerFile)
	}
	s := &scaled{o: o, dir: dir, r: &report{title: fmt.Sprintf("%d workloads, %d services", o.workloads, o.services), facts: map[string]float64{}}}
	defer s.stop()
	for _, step := range []struct {
		claim string
		do    func(context.Context) error
	}{
		{"a mesh of that size reaches the proxy", s.start},
		{"one pod change reaches it as one small delta", s.change},
		{"memory", s.memory},
		{"the proxy knows the whole mesh", s.complete},
	} {
		if err := step.do(ctx); err != nil {
			s.r.failed++
			return s.r, fmt.Errorf("%s: %w", step.claim, err)
		}
		s.r.passed++
	}
	return s.r, nil
}

type scaled struct {
	o        options
	dir      string
	r        *report
	running  []*measure.Process
	proxy    *measure.Process
	statsURL string
	dump     string // the proxy's whole directory
}

func (s *scaled) fact(name string, v float64, format string, args ...any) {
	s.r.facts[name] = v
	s.r.lines = append(s.r.lines, fmt.Sprintf(format, args...))
}

// run starts a program whose output is kept for a failure.
func (s *scaled) run(name string, env []string, args ...string) (*measure.Process, error) {
	p, err := measure.Start(s.dir, name, s.o.components[name], env, args...)
	if err == nil {
		s.running = append(s.running, p)
	}
	return p, err
}

func (s *scaled) stop() {
	for _, p := range s.running {
		p.Kill()
	}
}

func (s *scaled) start(ctx context.Context) error {
	if err := s.generate(); err != nil {
		return err
	}
	addrs, err := measure.FreeAddrs(6)
	if err != nil {
		return err
	}
	state := filepath.Join(s.dir, "state")
	began := time.Now()
	ambitd, err := s.run("ambitd", nil, "--config-dir", filepath.Join(s.dir, "config"), "--status-dir", filepath.Join(s.dir, "status"),
		"--state-dir", state, "--listen", addrs[0], "--monitor", addrs[1], "--admin", addrs[2], "--server-name", "127.0.0.1")
	if err != nil {
		return err
	}
	if err := ambitd.Until(ctx, scaleWait, func() error { _, err := measure.Get(ctx, "http://"+addrs[1]+"/readyz"); return err }); err != nil {
		return err
	}
	s.fact("ambitd_ready_seconds", time.Since(began).Seconds(), "ambitd: ready %.1f s after its start, from files", time.Since(began).Seconds())
	token, err := s.token(state)
	if err != nil {
		return err
	}
	s.statsURL = "http://" + addrs[4] + "/stats/prometheus"
	began = time.Now()
	root := filepath.Join(state, "root-cert.pem")
	if s.proxy, err = s.run("ztunnel", []string{
		"XDS_ADDRESS=https://" + addrs[0], "CA_ADDRESS=https://" + addrs[0], "XDS_ROOT_CA=" + root, "CA_ROOT_CA=" + root,
		"AUTH_TOKEN=" + token, "NODE_NAME=node1", "INPOD_UDS=" + filepath.Join(s.dir, "no-agent.sock"), "CLUSTER_ID=" + wellknown.DefaultCluster,
		"POD_NAME=ztunnel", "POD_NAMESPACE=" + wellknown.SystemNamespace, "INSTANCE_IP=127.0.0.1", "SERVICE_ACCOUNT=ztunnel", "RUST_LOG=info",
		"AMBIT_ADMIN_ADDR=" + addrs[3], "AMBIT_STATS_ADDR=" + addrs[4], "AMBIT_READY_ADDR=" + addrs[5],
	}, "proxy", "ztunnel"); err != nil {
		return err
	}
	s.dump = "http://" + addrs[3] + "/config_dump"
	// All of it has come when nothing has for a while; a dump would tell at
	// once, but it takes memory that is to be measured.
	last, since := received{}, time.Now()
	err = s.proxy.Until(ctx, scaleWait, func() error {
		now, err := s.received(ctx)
		if err != nil {
			return err
		}
		if now != last {
			last, since = now, time.Now()
		}
		if now.bytes == 0 || time.Since(since) < scaleQuiet {
			return fmt.Errorf("%d bytes have arrived", now.bytes)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.fact("initial_bytes", float64(last.bytes), "initial state: %d bytes in %d messages, received %.1f s after the proxy's start", last.bytes, last.messages, since.Sub(began).Seconds())
	return nil
}

// token is what the proxy shows to ambitd.
func (s *scaled) token(state string) (string, error) {
	issuer, err := auth.OpenIssuer(state)
	if err != nil {
		return "", err
	}
	t, err := issuer.Issue(auth.Caller{Namespace: wellknown.SystemNamespace, ServiceAccount: "ztunnel", Node: "node1"}, time.Hour)
	if err != nil {
		return "", err
	}
	path := filepath.Join(s.dir, "token")
	return path, os.WriteFile(path, []byte(t), 0o600)
}

// received is what the proxy counted of addresses from the control plane.
type received struct{ messages, bytes int64 }

func (s *scaled) received(ctx context.Context) (received, error) {
	var r received
	b, err := measure.Get(ctx, s.statsURL)
	if err != nil {
		return r, err
	}
	for line := range strings.Lines(string(b)) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), "{")
		labels, value, _ := strings.Cut(rest, "} ")
		if !strings.Contains(labels, wellknown.TypeAddress) {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return r, fmt.Errorf("%s: %w", name, err)
		}
		switch name {
		case "istio_xds_message_total":
			r.messages = int64(n)
		case "istio_xds_message_bytes_total":
			r.bytes = int64(n)
		}
	}
	return r, nil
}

// change edits one pod, again and again, and looks at what the proxy gets.
func (s *scaled) change(ctx context.Context) error {
	pod := s.o.workloads / 2
	var took time.Duration
	var largest int64
	for i := range scaleChanges {
		before, err := s.received(ctx)
		if err != nil {
			return err
		}
		began := time.Now()
		if err := s.podFile(pod/podsPerFile, pod, fmt.Sprintf("v%d", i+2)); err != nil {
			return err
		}
		var after received
		err = s.proxy.Until(ctx, scaleWait, func() error {
			if after, err = s.received(ctx); err != nil {
				return err
			}
			if after.messages == before.messages {
				return errors.New("nothing has arrived")
			}
			return nil
		})
		if err != nil {
			return err
		}
		took += time.Since(began)
		if n := after.messages - before.messages; n != 1 {
			return fmt.Errorf("%d messages for one pod", n)
		}
		largest = max(largest, after.bytes-before.bytes)
	}
	s.fact("delta_bytes", float64(largest), "one pod changed: one message of %d bytes", largest)
	ms := float64(took.Milliseconds()) / scaleChanges
	s.fact("change_ms", ms, "from the file to the proxy: %.0f ms on average, the quiet time that the file source waits for included", ms)
	return nil
}

func (s *scaled) memory(context.Context) error {
	for _, p := range s.running {
		u, err := p.Usage()
		if err != nil {
			return err
		}
		s.fact(p.Name+"_rss_bytes", float64(u.RSS), "%s: %.1f MiB resident, %.1f s of processor time", p.Name, float64(u.RSS)/(1<<20), u.CPU.Seconds())
	}
	return nil
}

// complete counts what the proxy knows, last of all.
func (s *scaled) complete(ctx context.Context) error {
	b, err := measure.Get(ctx, s.dump)
	if err != nil {
		return err
	}
	var d struct{ Workloads, Services []json.RawMessage }
	if err := json.Unmarshal(b, &d); err != nil {
		return err
	}
	if len(d.Workloads) != s.o.workloads || len(d.Services) != s.o.services {
		return fmt.Errorf("%d workloads, %d services", len(d.Workloads), len(d.Services))
	}
	return nil
}

// generate writes the mesh.
func (s *scaled) generate() error {
	if err := errors.Join(os.MkdirAll(filepath.Join(s.dir, "config"), 0o755), os.MkdirAll(filepath.Join(s.dir, "status"), 0o755)); err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: Namespace\nmetadata: {name: large, labels: {istio.io/dataplane-mode: ambient}}\n")
	for i := range s.o.services {
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Service
metadata: {name: svc-%d, namespace: large}
spec:
  clusterIP: 10.96.%d.%d
  selector: {app: svc-%d}
  ports: [{name: http, port: 80, targetPort: http}]
`, i, i/250, 1+i%250, i)
	}
	if err := s.write("services.yaml", b.String()); err != nil {
		return err
	}
	for f := range (s.o.workloads + podsPerFile - 1) / podsPerFile {
		if err := s.podFile(f, -1, ""); err != nil {
			return err
		}
	}
	return nil
}

// podFile writes the pods of one file, one of them in another version.
func (s *scaled) podFile(f, changed int, version string) error {
	var b strings.Builder
	for i := f * podsPerFile; i < min((f+1)*podsPerFile, s.o.workloads); i++ {
		app, v := i%s.o.services, "v1"
		if i == changed {
			v = version
		}
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Pod
metadata:
  name: svc-%d-%d
  namespace: large
  uid: uid-%d
  labels: {app: svc-%d, version: %s}
  annotations: {ambient.istio.io/redirection: enabled}
spec:
  nodeName: node%d
  serviceAccountName: svc-%d
  containers: [{name: c, image: example/image, ports: [{name: http, containerPort: 8080}]}]
status:
  phase: Running
  podIP: 10.%d.%d.%d
  conditions: [{type: Ready, status: "True"}]
`, app, i, i, app, v, i/podsPerFile, app, 1+i/62500, i/250%250, 1+i%250)
	}
	return s.write(fmt.Sprintf("pods-%04d.yaml", f), b.String())
}

// write replaces a file as a whole.
func (s *scaled) write(name, text string) error {
	path := filepath.Join(s.dir, "config", name)
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
