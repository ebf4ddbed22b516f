// Package world is a mesh as scenarios see it, so that each is written once and runs in
// network namespaces of this machine (labworld) and on Kubernetes (clusterworld).
//
// Scenarios write YAML for both. In it, and in all other texts, $NAME stands for the name
// that the namespace NAME has. ECHO is the path of test/echo in pods. Servers run on node1,
// clients on node2.
package world

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/test/traffic"
)

// Mesh is what a maker makes: a mesh for one test. Names of namespaces are those that they
// have. What has no error fails the test that it is given.
type Mesh interface {
	// Namespace makes one for the length of the test, in the mesh or not, and returns the
	// name that it has.
	Namespace(t testing.TB, name string, ambient bool) string
	// Apply adds or changes objects, and returns when the pods among them are ready.
	Apply(t testing.TB, yaml string)
	// Mistaken applies an object that has a mistake. Where such objects are refused, it
	// returns why, and fails the test unless this one is; elsewhere it returns nothing.
	Mistaken(t testing.TB, yaml string) (refusal string)
	// Delete removes objects, and returns when they are gone.
	Delete(t testing.TB, yaml string)
	// Scarce has the addresses of a pod that goes from node1 be those of the next one.
	Scarce(t testing.TB, namespace string)
	// Successor makes the pod of a YAML text at the addresses of one that has just gone.
	Successor(t testing.TB, gone Pod, yaml string)
	// MeshConfig has the mesh configuration have these settings, a map in YAML, until the
	// test ends.
	MeshConfig(t testing.TB, yaml string)
	// Outside starts a server of test/echo on a host outside of the mesh, and returns its
	// addresses, of each family one.
	Outside(t testing.TB, args ...string) []netip.Addr
	// Name has the name servers of the mesh and of its pods have a name of a namespace, until
	// the test ends, and returns it.
	Name(t testing.TB, namespace, name string, all []netip.Addr) string
	// ReplaceProxies has other processes take over from all node proxies.
	ReplaceProxies(t testing.TB)
	// Load starts a load client beside a pod, as the same service account.
	Load(t testing.TB, from Pod, url string, rate int, args ...string) Load
	// Eventually waits until check returns nil.
	Eventually(t testing.TB, what string, check func() error)
	// Pods lists the pods of a namespace that are not about to end.
	Pods(ctx context.Context, namespace string) ([]Pod, error)
	// Service returns the virtual addresses of a service.
	Service(ctx context.Context, namespace, name string) ([]netip.Addr, error)
	// Exec runs a program in a pod to its end.
	Exec(ctx context.Context, namespace, pod string, stdout io.Writer, argv ...string) error
	// Log returns what the only container of a pod has written.
	Log(ctx context.Context, namespace, pod string) (string, error)
	// ProxyLog returns what the proxy of a node has written.
	ProxyLog(ctx context.Context, node string) (string, error)
	// ScrapeProxy returns what the proxy of a node serves for Prometheus.
	ScrapeProxy(ctx context.Context, node string) (string, error)
	// Scrape returns what a proxy in a pod serves for Prometheus.
	Scrape(ctx context.Context, namespace, pod string) (string, error)
	// Families returns whether each family that pods have is IPv6.
	Families() []bool
	// Ambit runs the command line.
	Ambit(ctx context.Context, args ...string) (string, error)
}

// Pod is a pod that runs.
type Pod struct {
	Namespace, Name, Node string
	IPs                   []netip.Addr
}

// Load is a load client at work.
type Load interface {
	// Seconds waits until it has reported n more seconds.
	Seconds(n int)
	// Stop ends it and returns the sum.
	Stop() traffic.Report
	// Clean ends it; nothing may have failed.
	Clean() traffic.Report
}

// World is a mesh and the test that it belongs to.
type World struct {
	testing.TB
	mesh  Mesh
	names map[string]string // of namespaces
}

// Options are what a test says of its mesh before it begins.
type Options struct {
	// FewAddresses has nodes have so few addresses for pods that each is used again soon.
	FewAddresses bool
	// Experimental has the kinds of Gateway API have the fields of its experimental channel.
	Experimental bool
	// Names has name servers that have what those of clusters have. Clusters have them anyway.
	Names bool
	// SOCKS5 has node proxies serve it.
	SOCKS5 bool
}

// On returns the world of a test on a mesh.
func On(t testing.TB, m Mesh) *World { return &World{TB: t, mesh: m, names: map[string]string{}} }

// Families runs f once with each family that pods have, as subtests.
func (w *World) Families(f func(w *World, v6 bool)) {
	w.Helper()
	for _, v6 := range w.mesh.Families() {
		w.TB.(*testing.T).Run("IPv"+map[bool]string{false: "4", true: "6"}[v6], func(t *testing.T) { f(&World{t, w.mesh, w.names}, v6) })
	}
}

// Namespace makes one, in the mesh or not, which is $NAME in texts from now on.
func (w *World) Namespace(name string, ambient bool) {
	w.Helper()
	w.names[name] = w.mesh.Namespace(w.TB, name, ambient)
}

var placeholder = regexp.MustCompile(`\$[a-z]+`)

// Label gives a namespace in the mesh one more label, NAME: VALUE, or none. It takes the
// one of the call before away.
func (w *World) Label(namespace, label string) {
	w.Helper()
	w.Apply("\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: $" + namespace + ", labels: {istio.io/dataplane-mode: ambient, " + label + "}}\n")
}

// Text is a text in which $NAME has been replaced by the name of the namespace.
func (w *World) Text(s string) string {
	return placeholder.ReplaceAllStringFunc(s, func(p string) string {
		if name, ok := w.names[p[1:]]; ok {
			return name
		}
		return p
	})
}

func (w *World) must(what string, err error) {
	w.Helper()
	if err != nil {
		w.Fatalf("%s: %v", what, err)
	}
}

// Apply adds or changes objects, and waits for the pods among them.
func (w *World) Apply(yaml string) {
	w.Helper()
	w.mesh.Apply(w.TB, w.Text(yaml))
}

// Mistaken applies an object of a namespace that has a mistake: it is refused, or its status
// has the mistake. What is said of it has all texts.
func (w *World) Mistaken(namespace, yaml string, texts ...string) (refused bool) {
	w.Helper()
	if why := w.mesh.Mistaken(w.TB, w.Text(yaml)); why != "" {
		if !w.hasAll(why, texts) {
			w.Errorf("refused: %s; want %q", why, texts)
		}
		return true
	}
	w.Says(texts, "status", "-n", "$"+namespace)
	return false
}

// Delete removes objects, and waits for them to go.
func (w *World) Delete(yaml string) {
	w.Helper()
	w.mesh.Delete(w.TB, w.Text(yaml))
}

// Scarce has the addresses of a pod that goes from node1 be those of the next one. It takes
// a world that was started with FewAddresses.
func (w *World) Scarce(namespace string) {
	w.Helper()
	w.mesh.Scarce(w.TB, w.Text("$"+namespace))
}

// Successor deletes a pod, and makes that of a YAML text at its addresses.
func (w *World) Successor(yaml, next string) {
	w.Helper()
	yaml = w.Text(yaml)
	docs, err := Objects(yaml)
	w.must("the pod", err)
	gone, err := w.pod(w.Context(), docs[0].Metadata.Namespace, docs[0].Metadata.Name)
	w.must("the pod", err)
	w.mesh.Delete(w.TB, yaml)
	w.mesh.Successor(w.TB, gone, w.Text(next))
}

// MeshConfig has the mesh configuration have these settings, a map in YAML, until the test
// ends.
func (w *World) MeshConfig(yaml string) {
	w.Helper()
	w.mesh.MeshConfig(w.TB, w.Text(yaml))
}

// ReplaceProxies has other processes take over from all node proxies, as an upgrade does.
func (w *World) ReplaceProxies() {
	w.Helper()
	w.mesh.ReplaceProxies(w.TB)
}

// Outside starts a server of test/echo, with these arguments, on a host outside of the mesh,
// and returns its address of each family.
func (w *World) Outside(args ...string) map[bool]netip.Addr {
	w.Helper()
	byFamily := map[bool]netip.Addr{}
	for _, a := range w.mesh.Outside(w.TB, args...) {
		byFamily[a.Is6()] = a
	}
	return byFamily
}

// Name has the name servers of the mesh and of its pods have a name of a namespace, until the
// test ends, and returns it. It takes a world that was started with Names.
func (w *World) Name(namespace, name string, all ...netip.Addr) string {
	w.Helper()
	return w.mesh.Name(w.TB, w.Text("$"+namespace), name, all)
}

// NameOf returns a name below Domain that leads to an address, whatever it is. It takes a world
// that was started with Names.
func NameOf(namespace string, a netip.Addr) string {
	return strings.NewReplacer(".", "-", ":", "-").Replace(a.StringExpanded()) + "." + Domain(namespace)
}

// Domain returns the domain in which clusters have names of the addresses of pods.
func Domain(namespace string) string { return "$" + namespace + ".pod.cluster.local" }

// Eventually waits until check returns nil.
func (w *World) Eventually(what string, check func() error) {
	w.Helper()
	w.mesh.Eventually(w.TB, what, check)
}

// Place is a pod, in a namespace of the scenario.
type Place struct{ Namespace, Pod string }

func (p Place) String() string { return p.Namespace + "/" + p.Pod }

// Exec runs a program in a pod to its end and returns what it printed.
func (w *World) Exec(in Place, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(w.Context(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	err := w.mesh.Exec(ctx, w.Text("$"+in.Namespace), in.Pod, &out, argv...)
	return out.String(), err
}

// Requests makes n requests from a pod by test/echo, each on a connection of its own.
// Headers are name:value.
func (w *World) Requests(n int, from Place, to netip.AddrPort, path string, headers ...string) ([]traffic.Response, error) {
	var flags []string
	for _, h := range headers {
		flags = append(flags, "-H", h)
	}
	return w.Call(n, from, "http://"+to.String()+path, flags...)
}

// Call makes n requests for a URL from a pod, each on a connection of its own, with more
// flags of `echo get`.
func (w *World) Call(n int, from Place, url string, flags ...string) ([]traffic.Response, error) {
	out, err := w.Exec(from, slices.Concat([]string{"ECHO", "get", "-json", "-n", strconv.Itoa(n), "-url", w.Text(url)}, flags)...)
	if err != nil {
		return nil, err
	}
	all, err := traffic.Responses(out)
	if err == nil && len(all) != n {
		err = fmt.Errorf("%d responses to %d requests", len(all), n)
	}
	return all, err
}

// Bytes sends bytes from a pod, each on a connection of its own, and reads n bytes at most of
// what comes back.
func (w *World) Bytes(n int, from Place, to netip.AddrPort, all ...[]byte) ([]traffic.Bytes, error) {
	args := []string{"ECHO", "bytes", "-addr", to.String(), "-n", strconv.Itoa(n)}
	for _, b := range all {
		args = append(args, hex.EncodeToString(b))
	}
	out, err := w.Exec(from, args...)
	if err != nil {
		return nil, err
	}
	got, err := traffic.AllBytes(out)
	if err == nil && len(got) != len(all) {
		err = fmt.Errorf("%d lines for %d connections", len(got), len(all))
	}
	return got, err
}

// Raw writes heads of requests as they are, each on a connection of its own, and returns
// the responses. Lines in a head end with \n; a body follows an empty line.
func (w *World) Raw(from Place, to netip.AddrPort, heads ...string) ([]traffic.Response, error) {
	return w.raw(from, heads, "-addr", to.String())
}

// Kept is Raw on one connection.
func (w *World) Kept(from Place, to netip.AddrPort, heads ...string) ([]traffic.Response, error) {
	return w.raw(from, heads, "-keep", "-addr", to.String())
}

func (w *World) raw(from Place, heads []string, args ...string) ([]traffic.Response, error) {
	out, err := w.Exec(from, slices.Concat([]string{"ECHO", "raw"}, args, heads)...)
	if err != nil {
		return nil, err
	}
	all, err := traffic.Responses(out)
	if err == nil && len(all) != len(heads) {
		err = fmt.Errorf("%d responses to %d requests", len(all), len(heads))
	}
	return all, err
}

// Request makes one request. A response without a status has an error.
func (w *World) Request(from Place, to netip.AddrPort, path string, headers ...string) traffic.Response {
	all, err := w.Requests(1, from, to, path, headers...)
	if err != nil {
		return traffic.Response{Error: err.Error()}
	}
	return all[0]
}

// Becomes waits until a request gets a status.
func (w *World) Becomes(status int, from Place, to netip.AddrPort, path string, headers ...string) traffic.Response {
	w.Helper()
	var r traffic.Response
	w.Eventually(fmt.Sprintf("%s gets %d at %s%s with %q", from, status, to, path, headers), func() error {
		if r = w.Request(from, to, path, headers...); r.Status != status {
			return fmt.Errorf("it gets %d %q %s", r.Status, r.Body, r.Error)
		}
		return nil
	})
	return r
}

// AnsweredBy returns an error unless all of n requests are answered by a server.
func (w *World) AnsweredBy(name string, n int, from Place, to netip.AddrPort, path string, headers ...string) error {
	all, err := w.Requests(n, from, to, path, headers...)
	for _, r := range all {
		if a, err := r.Answer(); err != nil {
			return err
		} else if a.Name != name {
			return fmt.Errorf("%s answers, and not %s", a.Name, name)
		}
	}
	return err
}

// Load starts a load client beside a pod, as the same service account.
func (w *World) Load(from Place, to netip.AddrPort, rate int, args ...string) Load {
	w.Helper()
	p, err := w.pod(w.Context(), w.Text("$"+from.Namespace), from.Pod)
	w.must("pod", err)
	return w.mesh.Load(w.TB, p, "http://"+to.String()+"/", rate, args...)
}

func (w *World) pod(ctx context.Context, namespace, name string) (Pod, error) {
	all, err := w.mesh.Pods(ctx, namespace)
	for _, p := range all {
		if p.Name == name {
			return p, nil
		}
	}
	return Pod{}, fmt.Errorf("there is no pod %s/%s, error %w", namespace, name, err)
}

// Pod returns the address of a pod in a family.
func (w *World) Pod(at Place, v6 bool) netip.Addr {
	w.Helper()
	p, err := w.pod(w.Context(), w.Text("$"+at.Namespace), at.Pod)
	w.must("pod", err)
	return w.pick(at.String(), p.IPs, v6)
}

// Addresses returns all addresses of a pod.
func (w *World) Addresses(at Place) []netip.Addr {
	w.Helper()
	p, err := w.pod(w.Context(), w.Text("$"+at.Namespace), at.Pod)
	w.must("pod", err)
	return p.IPs
}

// Ending returns an error unless the end of a pod was asked for.
func (w *World) Ending(at Place) error {
	all, err := w.mesh.Pods(w.Context(), w.Text("$"+at.Namespace))
	if slices.ContainsFunc(all, func(p Pod) bool { return p.Name == at.Pod }) {
		return fmt.Errorf("pod %s is not about to end", at)
	}
	return err
}

// Service returns where a port of a service is in a family.
func (w *World) Service(namespace, name string, port uint16, v6 bool) netip.AddrPort {
	w.Helper()
	ips, err := w.mesh.Service(w.Context(), w.Text("$"+namespace), name)
	w.must("service", err)
	return netip.AddrPortFrom(w.pick(namespace+"/"+name, ips, v6), port)
}

func (w *World) pick(what string, ips []netip.Addr, v6 bool) netip.Addr {
	w.Helper()
	i := slices.IndexFunc(ips, func(a netip.Addr) bool { return a.Is6() == v6 })
	if i < 0 {
		w.Fatalf("%s has no address with IPv6=%v among %v", what, v6, ips)
	}
	return ips[i]
}

// PodLog returns what a pod has written.
func (w *World) PodLog(at Place) string {
	w.Helper()
	text, err := w.mesh.Log(w.Context(), w.Text("$"+at.Namespace), at.Pod)
	w.must("log", err)
	return text
}

// Node returns the node of a pod.
func (w *World) Node(at Place) string {
	w.Helper()
	p, err := w.pod(w.Context(), w.Text("$"+at.Namespace), at.Pod)
	w.must("pod", err)
	return p.Node
}

// ProxyLines returns the lines with all parts in the log of the proxy on the node of a pod.
func (w *World) ProxyLines(at Place, parts ...string) (lines []string) {
	w.Helper()
	text, err := w.mesh.ProxyLog(w.Context(), w.Node(at))
	w.must("log", err)
	for line := range strings.Lines(text) {
		if w.hasAll(line, parts) {
			lines = append(lines, line)
		}
	}
	return lines
}

// ProxyLogs waits for a line with all parts in the log of the proxy on the node of a pod.
func (w *World) ProxyLogs(at Place, parts ...string) {
	w.Helper()
	w.Eventually(fmt.Sprintf("the proxy of %s logs %q", w.Node(at), parts), func() error {
		if len(w.ProxyLines(at, parts...)) == 0 {
			return errors.New("no line")
		}
		return nil
	})
}

// ProxySamples returns the series of a metric of the proxy on the node of a pod.
func (w *World) ProxySamples(at Place, metric string) []traffic.Sample {
	w.Helper()
	text, err := w.mesh.ScrapeProxy(w.Context(), w.Node(at))
	w.must("metrics", err)
	all, err := traffic.Samples(text, metric)
	w.must("metrics", err)
	return all
}

// hasAll reports whether a text has all parts.
func (w *World) hasAll(text string, parts []string) bool {
	return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(text, w.Text(p)) })
}

// Ambit runs the command line and returns what it prints.
func (w *World) Ambit(args ...string) (string, error) {
	words := make([]string, len(args))
	for i := range args {
		words[i] = w.Text(args[i])
	}
	return w.mesh.Ambit(w.Context(), words...)
}

// Says waits until a command line prints all of some texts, whatever space is in them.
func (w *World) Says(texts []string, args ...string) {
	w.Helper()
	w.Eventually("ambit "+strings.Join(args, " "), func() error {
		out, err := w.Ambit(args...)
		for _, text := range texts {
			if !strings.Contains(strings.Join(strings.Fields(out), " "), w.Text(text)) {
				return fmt.Errorf("%q is not in:\n%s\nerror %w", text, out, err)
			}
		}
		return nil
	})
}

// Condition waits until a condition of an object, or of an entry of its status, is "STATUS
// REASON" as far as want goes, and its message has all parts.
func (w *World) Condition(kind, namespace, name, typ, want string, parts ...string) {
	w.Helper()
	type condition struct{ Type, Status, Reason, Message string }
	w.Eventually(fmt.Sprintf("%s of %s %s/%s is %s", typ, kind, namespace, name, want), func() error {
		out, err := w.Ambit("status", "-n", "$"+namespace, "-o", "json")
		if err != nil {
			return err
		}
		var all struct {
			Objects []struct {
				Kind, Name string
				Conditions []condition
				Entries    []struct{ Conditions []condition }
			}
		}
		if err := json.Unmarshal([]byte(out), &all); err != nil {
			return err
		}
		var got []string
		for _, o := range all.Objects {
			if o.Kind != kind || o.Name != name {
				continue
			}
			list := o.Conditions
			for _, e := range o.Entries {
				list = append(list, e.Conditions...)
			}
			for _, c := range list {
				text := c.Status + " " + c.Reason
				if c.Type == typ && strings.HasPrefix(text, want) && w.hasAll(c.Message, parts) {
					return nil
				}
				got = append(got, c.Type+"="+text+" "+c.Message)
			}
		}
		return fmt.Errorf("its conditions are %q", got)
	})
}
