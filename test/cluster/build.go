package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/build/images/oci"
	"github.com/ambit-mesh/ambit/test/cluster/local"
)

// tool is a module below modules/ and what is built from it. Its go.mod says
// which version.
type tool struct {
	name     string
	packages []string // import paths; "." is the module's own program
	to       string   // below the directory of programs; ending in / for several programs
	tags     string
	version  versionFlags
	cgo      bool
	links    []string // further names of the program
}

// versionFlags makes, of the version of a module, the linker's flags that tell
// it to the program.
type versionFlags struct {
	module string
	flags  func(version string) []string
}

const (
	containerdModule = "github.com/containerd/containerd/v2"
	cniModule        = "github.com/containernetworking/plugins/plugins"
)

var tools = []tool{
	{name: "kubernetes", packages: []string{"."}, to: "kubernetes",
		version: versionFlags{"k8s.io/kubernetes", kubernetesFlags},
		links:   []string{"kubelet", "kube-proxy", "kubectl", "kube-apiserver", "kube-controller-manager", "kube-scheduler"}},
	{name: "containerd", to: "", tags: "no_btrfs no_devmapper no_zfs no_aufs",
		packages: []string{containerdModule + "/cmd/containerd", containerdModule + "/cmd/containerd-shim-runc-v2", containerdModule + "/cmd/ctr"},
		version:  versionFlags{containerdModule, func(v string) []string { return []string{containerdModule + "/version.Version=" + v} }}},
	{name: "etcd", packages: []string{"go.etcd.io/etcd/server/v3"}, to: "etcd"},
	{name: "coredns", packages: []string{"."}, to: "coredns"},
	{name: "cni", packages: []string{cniModule + "/main/ptp", cniModule + "/ipam/host-local", cniModule + "/meta/portmap"}, to: "cni/"},
	// Without seccomp it starts no pod: containerd gives each a profile.
	{name: "runc", packages: []string{"github.com/opencontainers/runc"}, to: "runc", tags: "netgo osusergo seccomp", cgo: true},
}

// kubernetesFlags: what kubectl version and the nodes' status show.
func kubernetesFlags(v string) []string {
	const base = "k8s.io/component-base/version."
	part := strings.SplitN(strings.TrimPrefix(v, "v"), ".", 3)
	if len(part) < 2 {
		return nil
	}
	return []string{base + "gitVersion=" + v, base + "gitMajor=" + part[0], base + "gitMinor=" + part[1], "k8s.io/client-go/pkg/version.gitVersion=" + v}
}

// need is something of the machine that building or running takes.
type need struct{ path, pkg, why string }

var needs = []need{
	{"/usr/bin/gcc", "gcc", "runc is C in part"},
	{"/usr/include/stdlib.h", "libc6-dev", "runc is C in part"},
	{"/usr/include/seccomp.h", "libseccomp-dev", "runc links libseccomp"},
	{"/usr/sbin/nft", "nftables", "kube-proxy runs nft"},
	{"/usr/bin/mount", "mount", "kubelet runs mount"},
}

// missing lists the packages whose files are not there.
func missing(needs []need, exists func(string) bool) []need {
	return slices.DeleteFunc(slices.Clone(needs), func(n need) bool { return exists(n.path) })
}

func build(ctx context.Context, i *invocation) error {
	modules, err := modulesDir(ctx)
	if err != nil {
		return err
	}
	if err := provide(ctx, i.out); err != nil {
		return err
	}
	b := &builder{ctx: ctx, modules: modules, bin: i.cfg.Bin, out: i.out}
	if err := os.MkdirAll(filepath.Join(b.bin, "cni"), 0o755); err != nil {
		return err
	}
	if err := b.own(); err != nil {
		return err
	}
	for _, t := range tools {
		if err := b.tool(t); err != nil {
			return fmt.Errorf("building %s: %w", t.name, err)
		}
	}
	return b.images()
}

// modulesDir is in the checkout of the working directory.
func modulesDir(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env: %w", err)
	}
	dir := filepath.Join(filepath.Dir(strings.TrimSpace(string(out))), "test", "cluster", "modules")
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("run this in a checkout of Ambit: %w", err)
	}
	return dir, nil
}

// provide installs what the machine lacks, where that is possible.
func provide(ctx context.Context, out io.Writer) error {
	lacks := missing(needs, func(p string) bool { _, err := os.Stat(p); return err == nil })
	if len(lacks) == 0 {
		return nil
	}
	var pkgs, text []string
	for _, n := range lacks {
		pkgs = append(pkgs, n.pkg)
		text = append(text, fmt.Sprintf("%s (%s)", n.pkg, n.why))
	}
	apt, err := exec.LookPath("apt-get")
	if err != nil || os.Geteuid() != 0 {
		return fmt.Errorf("this machine lacks %s: install them, then build again", strings.Join(text, ", "))
	}
	fmt.Fprintf(out, "installing %s\n", strings.Join(text, ", "))
	cmd := exec.CommandContext(ctx, apt, append([]string{"install", "--yes", "--no-install-recommends"}, pkgs...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w (try apt-get update first)\n%s", strings.Join(cmd.Args, " "), err, msg)
	}
	return nil
}

type builder struct {
	ctx          context.Context
	modules, bin string
	out          io.Writer
}

// golang runs the go tool in a directory and returns what it printed.
func (b *builder) golang(dir string, cgo bool, args ...string) (string, error) {
	cmd := exec.CommandContext(b.ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=", "CGO_ENABLED=0")
	if cgo {
		cmd.Env = append(cmd.Env, "CGO_ENABLED=1")
	}
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return strings.TrimSpace(string(out)), err
}

// compile builds packages of the module in dir, static and reproducible.
func (b *builder) compile(t tool, dir string) error {
	ldflags := []string{"-s", "-w"}
	if t.cgo {
		ldflags = append(ldflags, "-linkmode", "external", "-extldflags", "-static")
	}
	if t.version.flags != nil {
		v, err := b.golang(dir, false, "list", "-m", "-f", "{{.Version}}", t.version.module)
		if err != nil {
			return err
		}
		for _, x := range t.version.flags(v) {
			ldflags = append(ldflags, "-X", x)
		}
	}
	// Not over a program that runs: renamed into place when it is complete.
	tmp, err := os.MkdirTemp(b.bin, ".build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // a directory of our own
	to := filepath.Join(b.bin, t.to)
	out := tmp + "/"
	if t.to != "" && !strings.HasSuffix(t.to, "/") { // one program
		out, to = filepath.Join(tmp, filepath.Base(t.to)), filepath.Dir(to)
	}
	args := append([]string{"build", "-trimpath", "-buildvcs=false", "-tags", t.tags, "-ldflags", strings.Join(ldflags, " "), "-o", out}, t.packages...)
	if _, err := b.golang(dir, t.cgo, args...); err != nil {
		return err
	}
	made, err := os.ReadDir(tmp)
	for _, e := range made {
		err = errors.Join(err, os.Rename(filepath.Join(tmp, e.Name()), filepath.Join(to, e.Name())))
	}
	return err
}

// tool builds a tool unless it has been built of the same sources by the same
// compiler.
func (b *builder) tool(t tool) error {
	dir := filepath.Join(b.modules, t.name)
	now, err := fingerprint(dir, fmt.Sprintf("%+v", t.describe()))
	if err != nil {
		return err
	}
	stamp := filepath.Join(b.bin, "."+t.name+".built")
	if was, err := os.ReadFile(stamp); err == nil && string(was) == now && b.complete(t) {
		return nil
	}
	began := time.Now()
	fmt.Fprintf(b.out, "building %s ...", t.name)
	if err := b.compile(t, dir); err != nil {
		fmt.Fprintln(b.out)
		return err
	}
	for _, l := range t.links {
		path := filepath.Join(b.bin, l)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Symlink(t.to, path); err != nil {
			return err
		}
	}
	fmt.Fprintf(b.out, " %ds\n", int(time.Since(began).Seconds()))
	return os.WriteFile(stamp, []byte(now), 0o644)
}

// describe is what of a tool decides the result, beside its module.
func (t tool) describe() any { return []any{t.packages, t.to, t.tags, t.cgo, t.links} }

// makes lists what a tool makes, by path below the directory of programs.
func (t tool) makes() []string {
	if t.to != "" && !strings.HasSuffix(t.to, "/") {
		return append([]string{t.to}, t.links...)
	}
	var all []string
	for _, p := range t.packages {
		all = append(all, t.to+filepath.Base(p))
	}
	return all
}

func (b *builder) complete(t tool) bool {
	return !slices.ContainsFunc(t.makes(), func(p string) bool {
		_, err := os.Stat(filepath.Join(b.bin, p))
		return err != nil
	})
}

// fingerprint is of the files of a module, of the compiler, and of how.
func fingerprint(dir, how string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), runtime.GOARCH, how)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		fmt.Fprintf(h, "%s %d %s", e.Name(), len(b), b)
		return err
	})
	return hex.EncodeToString(h.Sum(nil)), err
}

// ownPrograms are made of packages below this one: this command, which the nodes'
// first processes are, the program that holds a pod's namespaces, and a network
// plugin.
var ownPrograms = map[string]string{"ambit-cluster": ".", "pause": "./pause", "cni/nodad": "./nodad"}

// own builds them. The go tool knows whether they are up to date.
func (b *builder) own() error {
	for name, pkg := range ownPrograms {
		t := tool{packages: []string{pkg}, to: name}
		if err := b.compile(t, filepath.Dir(b.modules)); err != nil {
			return fmt.Errorf("building %s: %w", name, err)
		}
	}
	return nil
}

// images makes the archive that every node imports first.
func (b *builder) images() error {
	var specs []oci.Spec
	for _, image := range []struct{ program, ref string }{{"pause", local.PauseImage}, {"coredns", local.CoreDNSImage}} {
		f, err := oci.Program("/"+image.program, filepath.Join(b.bin, image.program))
		if err != nil {
			return err
		}
		specs = append(specs, oci.Spec{Ref: image.ref, Arch: runtime.GOARCH, Files: []oci.File{f}, Entrypoint: []string{f.Path}})
	}
	return oci.Write(filepath.Join(b.bin, "images.tar"), specs...)
}
