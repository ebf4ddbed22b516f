package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/lab/objects"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/file"
)

func attach(stateDir string) (*Lab, error) {
	d := Dirs{stateDir}
	r, err := ReadRecord(d)
	if err != nil {
		return nil, err
	}
	if r == nil || !r.Alive() {
		return nil, fmt.Errorf("no lab is running in %s: start one with `ambit lab up`", stateDir)
	}
	return &Lab{Dirs: d}, nil
}

// call sends one request and returns its only answer, with the descriptors
// that came with it.
func (l *Lab) call(ctx context.Context, req Request) (*Reply, []*os.File, error) {
	c, err := dialControl(l.Dirs)
	if err != nil {
		return nil, nil, err
	}
	defer c.Close() //nolint:errcheck // everything was read
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if err := Send(c, req); err != nil {
		return nil, nil, l.lost(ctx, err)
	}
	r := new(Reply)
	files, err := Receive(c, r)
	if err != nil {
		return nil, nil, l.lost(ctx, err)
	}
	if r.Error != "" {
		CloseAll(files)
		return nil, nil, errors.New(r.Error)
	}
	return r, files, nil
}

// lost explains a broken control connection.
func (l *Lab) lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("the lab's supervisor went away (see %s): %w", l.LogPath("lab"), err)
}

// StateDir is where the lab keeps its files.
func (l *Lab) StateDir() string { return l.Dirs.Root }

// Status tells what the lab consists of now.
func (l *Lab) Status(ctx context.Context) (*Status, error) {
	r, _, err := l.call(ctx, Request{Op: "status"})
	if err != nil {
		return nil, err
	}
	return l.complete(r.Status), nil
}

// complete adds what only the outside of the lab can know.
func (l *Lab) complete(s *Status) *Status {
	if r, err := ReadRecord(l.Dirs); err == nil && r != nil {
		s.PID = r.PID
	}
	s.StateDir = l.Dirs.Root
	return s
}

// Wait returns the first status that cond is content with. It looks at every
// change of the lab's state; when ctx ends first, the newest status comes with
// the error.
func (l *Lab) Wait(ctx context.Context, cond func(*Status) bool) (*Status, error) {
	c, err := dialControl(l.Dirs)
	if err != nil {
		return nil, err
	}
	defer c.Close() //nolint:errcheck // everything was read
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if err := Send(c, Request{Op: "watch"}); err != nil {
		return nil, l.lost(ctx, err)
	}
	var last *Status
	for {
		r := new(Reply)
		if _, err := Receive(c, r); err != nil {
			return last, l.lost(ctx, err)
		}
		if r.Error != "" {
			return last, errors.New(r.Error)
		}
		last = l.complete(r.Status)
		if cond(last) {
			return last, nil
		}
	}
}

// WaitReady waits until every component and pod is ready. The error names
// those that are not.
func (l *Lab) WaitReady(ctx context.Context) (*Status, error) {
	s, err := l.Wait(ctx, func(s *Status) bool { return len(s.NotReady()) == 0 })
	if err != nil && s != nil && ctx.Err() != nil {
		return s, fmt.Errorf("not ready in time: %s: %w", strings.Join(s.NotReady(), "; "), err)
	}
	return s, err
}

// NotReady lists what is not ready, each with the reason if one is known.
func (s *Status) NotReady() []string {
	var out []string
	add := func(name, message string) {
		if message != "" {
			name += " (" + message + ")"
		}
		out = append(out, name)
	}
	for _, c := range s.Components {
		if !c.Ready {
			add(c.Name, c.Message)
		}
	}
	for _, p := range s.Pods {
		if !p.Ready && p.Phase != "Succeeded" && p.Phase != "Terminating" {
			add("pod "+p.Namespace+"/"+p.Name, p.Message)
		}
	}
	return out
}

// Pod finds one pod.
func (s *Status) Pod(namespace, name string) (PodStatus, bool) {
	for _, p := range s.Pods {
		if p.Namespace == namespace && p.Name == name {
			return p, true
		}
	}
	return PodStatus{}, false
}

// Component finds one component.
func (s *Status) Component(name string) (ComponentStatus, bool) {
	for _, c := range s.Components {
		if c.Name == name {
			return c, true
		}
	}
	return ComponentStatus{}, false
}

// Apply creates or replaces the objects of a YAML text. All of it is checked
// first; nothing is applied when a part is wrong.
func (l *Lab) Apply(ctx context.Context, yaml string) error {
	docs, err := objects.ParseText("input", yaml)
	if err != nil {
		return err
	}
	_, err = l.apply(ctx, docs)
	return err
}

// ApplyPaths is Apply for files and directories. It returns what was done, one
// line for each object.
func (l *Lab) ApplyPaths(ctx context.Context, paths ...string) ([]string, error) {
	docs, err := objects.ParsePaths(paths)
	if err == nil {
		err = checkPaths(paths)
	}
	if err != nil {
		return nil, err
	}
	return l.apply(ctx, docs)
}

func (l *Lab) apply(ctx context.Context, docs []objects.Document) ([]string, error) {
	r, _, err := l.call(ctx, Request{Op: "apply", Documents: docs})
	if err != nil {
		return nil, err
	}
	return r.Text, nil
}

// Delete removes one object; kind is as in YAML, in any case ("pod",
// "AuthorizationPolicy").
func (l *Lab) Delete(ctx context.Context, kind, namespace, name string) error {
	_, _, err := l.call(ctx, Request{Op: "delete", Kind: kind, Namespace: namespace, Name: name})
	return err
}

// DeletePaths removes the objects that files and directories hold.
func (l *Lab) DeletePaths(ctx context.Context, paths ...string) ([]string, error) {
	docs, err := objects.ParsePaths(paths)
	if err != nil {
		return nil, err
	}
	var out []string
	for i := len(docs) - 1; i >= 0; i-- {
		d := docs[i]
		if err := l.Delete(ctx, d.Kind, d.Namespace, d.Name); err != nil {
			return out, err
		}
		out = append(out, d.Key().String()+" deleted")
	}
	return out, nil
}

// Label sets labels of an object, as `kubectl label` does; a nil value removes
// one.
func (l *Lab) Label(ctx context.Context, kind, namespace, name string, labels map[string]*string) error {
	_, _, err := l.call(ctx, Request{Op: "label", Kind: kind, Namespace: namespace, Name: name, Labels: labels})
	return err
}

// Objects are those that the mesh of the lab reads, as it reads them: what was
// applied, and what the lab and the mesh's agents have said about it since.
func (l *Lab) Objects() []source.Event {
	events, _ := file.Load(file.Options{
		ConfigDirs: []string{l.Dirs.Config(), l.Dirs.Generated()}, StatusDir: l.Dirs.Status(),
	})
	return events
}

// Dial connects from a namespace of the lab. The address must be numeric.
func (l *Lab) Dial(ctx context.Context, from Where, network, address string) (net.Conn, error) {
	_, files, err := l.call(ctx, Request{Op: "dial", Where: from, Network: network, Address: address})
	if err != nil {
		return nil, err
	}
	defer CloseAll(files)
	if len(files) != 1 {
		return nil, errors.New("the lab sent no connection")
	}
	return net.FileConn(files[0])
}

// Netns opens a network namespace of the lab. Entering it takes the rights of
// its owner: root, and not a lab in a user namespace.
func (l *Lab) Netns(ctx context.Context, w Where) (*os.File, error) {
	_, files, err := l.call(ctx, Request{Op: "netns", Where: w})
	if err != nil {
		return nil, err
	}
	if len(files) != 1 {
		CloseAll(files)
		return nil, errors.New("the lab sent no namespace")
	}
	return files[0], nil
}

// HTTP is a client whose connections start in a namespace of the lab. It keeps
// none of them.
func (l *Lab) HTTP(from Where) *http.Client {
	return &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				return l.Dial(ctx, from, network, address)
			},
		},
	}
}

// Get fetches a URL from within a namespace of the lab. Any status but 200 is
// an error.
func (l *Lab) Get(ctx context.Context, from Where, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := l.HTTP(from).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxMessage))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return b, fmt.Errorf("GET %s from %s: %s: %s", url, from, resp.Status, strings.TrimSpace(string(b)))
	}
	return b, nil
}

// Admin fetches a path of a component's admin port: ambitd's 8080, ztunnel's
// 15000, ambit-cni's 15014.
func (l *Lab) Admin(ctx context.Context, component, path string) ([]byte, error) {
	from, port, err := AdminOf(component)
	if err != nil {
		return nil, err
	}
	return l.Get(ctx, from, fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
}

// Kill sends a signal to a component's process. The supervisor restarts what
// ends, with back-off.
func (l *Lab) Kill(ctx context.Context, component string, sig unix.Signal) error {
	_, _, err := l.call(ctx, Request{Op: "kill", Component: component, Signal: int(sig)})
	return err
}

// Restart replaces a component and returns when the new one is ready.
func (l *Lab) Restart(ctx context.Context, component string, mode RestartMode) error {
	_, _, err := l.call(ctx, Request{Op: "restart", Component: component, Mode: mode})
	return err
}

// Replace is Restart with another binary from now on, such as another version
// of ztunnel.
func (l *Lab) Replace(ctx context.Context, component, path string, mode RestartMode) error {
	_, _, err := l.call(ctx, Request{Op: "restart", Component: component, Mode: mode, Path: path})
	return err
}

// Stop ends a component with a signal and keeps it down until Continue.
func (l *Lab) Stop(ctx context.Context, component string, sig unix.Signal) error {
	_, _, err := l.call(ctx, Request{Op: "stop", Component: component, Signal: int(sig)})
	return err
}

// Continue starts a component that Stop has ended, and waits until it is ready.
func (l *Lab) Continue(ctx context.Context, component string) error {
	_, _, err := l.call(ctx, Request{Op: "continue", Component: component})
	return err
}

// LogPath is the file with what a component ("ambitd", "ztunnel/node1") or a
// container ("pod/NAMESPACE/NAME/CONTAINER") has printed; the older half of it
// has ".1" appended. "lab" is the supervisor's own.
func (l *Lab) LogPath(of string) string { return l.Dirs.Log(of) }

// Log returns the path of what a component or a pod (namespace/name) has printed.
func (d Dirs) Log(of string) string {
	return d.logs() + "/" + strings.ReplaceAll(of, "/", "_") + ".log"
}

// Close ends the lab and removes all it has written.
func (l *Lab) Close() error {
	err := down(l.Dirs.Root)
	if l.Lifeline != nil {
		_ = l.Lifeline.Close()
	}
	if l.Exited != nil {
		<-l.Exited
	}
	return err
}

// Crash kills the supervisor, and with it everything in the lab, as a crash
// would: files stay.
func (l *Lab) Crash() error {
	r, err := ReadRecord(l.Dirs)
	if err != nil || r == nil {
		return err
	}
	h, err := r.Open()
	if err != nil || h == nil {
		return err
	}
	defer h.Close()
	if err := h.Signal(unix.SIGKILL); err != nil {
		return err
	}
	if !h.Wait(downTimeout) {
		return errors.New("the lab's supervisor does not end")
	}
	return nil
}
