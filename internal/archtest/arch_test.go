package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite testdata/links from what the programs link now")

const module = "github.com/ambit-mesh/ambit/"

// layers lists, for each wing of the tree, the wings it may import beside
// itself. A wing is the longest key that is a prefix of the package's path.
// Tests are held to the same rules, but for those of the wings that compose.
var layers = map[string][]string{
	"api":                {},
	"api/admin":          {},      // what fills in or reads administrative answers
	"api/ambit":          {"api"}, // objects as their authors write them
	"internal/mesh":      {"api", "api/admin"},
	"internal/sys":       {},
	"internal/ops":       {"internal/mesh"},
	"internal/transport": {"api/admin", "internal/mesh", "internal/sys"},
	// What the L7 engine decides is values alone: no transport, no ops.
	"internal/l7": {"api", "api/admin", "internal/mesh"},
	// What it does: requests and connections on loops.
	"internal/l7/exchange": {"internal/l7", "internal/mesh", "internal/sys", "internal/transport"},
	// What a look-up gets is values alone.
	"internal/dns":    {"api", "internal/mesh"},
	"internal/zds":    {"api", "internal/mesh", "internal/sys"},
	"internal/xds":    {"internal/mesh", "internal/sys", "internal/transport"},
	"internal/source": {"api", "api/ambit", "internal/mesh", "internal/kube/client", "internal/kube/kubetest"},
	// What every proxy has, whatever its role: a second role, at L7, must not
	// import the first.
	"internal/proxy":   {"api", "api/admin", "internal/mesh", "internal/sys", "internal/ops", "internal/transport", "internal/xds"},
	"internal/ztunnel": {"api", "api/admin", "internal/mesh", "internal/sys", "internal/ops", "internal/transport", "internal/xds", "internal/zds", "internal/proxy", "internal/dns", "internal/proxy/observed", "internal/ztunnel/observed", "internal/ztunnel/traffic", "internal/ztunnel/hello", "internal/ztunnel/limitservice", "internal/ztunnel/egress"},
	// It reads the names of servers in the first bytes of connections, as gateways do.
	"internal/ztunnel/egress": {"api", "api/admin", "internal/mesh", "internal/ops", "internal/transport", "internal/xds", "internal/proxy", "internal/l7", "internal/ztunnel"},
	// Routes of connections have one translation and one table, whoever executes them.
	"internal/ztunnel/traffic":   {"api", "api/admin", "internal/mesh", "internal/xds", "internal/l7", "internal/sys", "internal/ztunnel/ratelimit"},
	"internal/ztunnel/ratelimit": {"api/admin", "internal/mesh", "internal/sys", "internal/xds"},
	// Rate limit services are called as l7 calls endpoints.
	"internal/ztunnel/limitservice": {"internal/mesh", "internal/sys", "internal/transport", "internal/l7", "internal/l7/exchange"},
	"internal/ztunnel/hello":        {"internal/mesh", "internal/sys", "internal/l7"},
	"internal/gateway":              {"api", "api/admin", "internal/mesh", "internal/sys", "internal/ops", "internal/transport", "internal/xds", "internal/proxy", "internal/proxy/export", "internal/proxy/observed", "internal/l7", "internal/l7/exchange"},
	// What users want observed is one language for both roles: its settings are of l7, and
	// its collectors are called as l7 calls endpoints. Nothing else of a node proxy is.
	"internal/proxy/export":     {"internal/mesh", "internal/sys", "internal/transport", "internal/proxy", "internal/l7", "internal/l7/exchange"},
	"internal/proxy/observed":   {"api", "api/admin", "internal/mesh", "internal/proxy", "internal/xds", "internal/l7"},
	"internal/ztunnel/observed": {"api", "api/admin", "internal/mesh", "internal/sys", "internal/ops", "internal/transport", "internal/xds", "internal/proxy", "internal/proxy/export", "internal/proxy/observed", "internal/l7", "internal/l7/exchange"},
	// What a gateway would reject, the control plane does not send: it asks l7.
	"internal/control":  {"api", "api/admin", "api/ambit", "internal/mesh", "internal/l7", "internal/ops", "internal/transport", "internal/xds", "internal/source"},
	"internal/node":     {"api", "api/admin", "internal/mesh", "internal/sys", "internal/ops", "internal/zds"},
	"internal/archtest": {"internal/mesh"},
	// What tests share. Every wing's tests may import it, and no program.
	"internal/testutil": {},
	// The Kubernetes API is one service that several wings use: a client, and
	// a package per duty that implements what control or node asks for.
	"internal/kube":          {"internal/kube/client", "internal/kube/kubetest", "internal/mesh", "internal/ops", "internal/source", "internal/control", "internal/node", "internal/sys"},
	"internal/kube/client":   {},
	"internal/kube/kubetest": {"internal/kube/client"},
	"internal/analysis":      {"api/ambit", "internal/mesh", "internal/source", "internal/control"},
	"internal/install":       nil,
	// Queries and JSON are values alone.
	"internal/boards": {},
	"charts":          {},
	"build":           nil,
	"internal/lab":    nil,
	"internal/cli":    nil,
	"cmd":             nil,
	"test":            nil,
}

// leaf holds the constants of the mesh's interface. It imports nothing, and every
// package may import it: a port or a mark is written down once.
const leaf = "internal/mesh/wellknown"

// only names the few packages that may import what is dangerous or heavy.
var only = map[string][]string{
	"golang.org/x/sys/unix":                  {"internal/sys", "internal/lab", "internal/zds", "test"},
	"github.com/google/nftables":             {"internal/sys/nft", "internal/lab"},
	"github.com/vishvananda/netlink":         {"internal/sys", "internal/lab", "test"},
	"github.com/spf13/cobra":                 {"internal/cli", "cmd/ambit", "cmd/ambitd", "cmd/ambit-cni"},
	"k8s.io":                                 {"api/ambit", "internal/source", "internal/control", "internal/kube", "internal/analysis", "internal/install", "internal/lab", "internal/cli", "cmd/ambit-cni", "cmd/ambitd", "test"},
	"istio.io/client-go":                     {"internal/source", "internal/control", "internal/kube", "internal/analysis", "internal/lab", "internal/cli"},
	"github.com/prometheus/client_golang":    {"internal/ops", "internal/proxy", "internal/ztunnel", "internal/control", "internal/node", "internal/source/kube", "internal/kube", "cmd"},
	"google.golang.org/grpc":                 {"internal/xds", "internal/kube", "internal/transport/certs", "internal/transport/controlplane", "internal/control", "cmd/ambitd", "test"},
	"k8s.io/client-go":                       {"internal/source/kube", "internal/kube", "internal/install", "internal/cli", "test"},
	"github.com/google/cel-go":               {"internal/l7/expr"},
	"helm.sh/helm":                           {"internal/install", "build"},
	"github.com/google/go-containerregistry": {"build", "test/cluster"},
}

// mustNotLink names what a program's binary is free of, as path prefixes.
var mustNotLink = map[string][]string{
	"cmd/ambitd":           {module + "internal/sys/nft", module + "internal/proxy", module + "internal/ztunnel", module + "internal/node", "github.com/google/nftables"},
	"cmd/ztunnel":          {"k8s.io", "istio.io/client-go", "istio.io/api/networking", "github.com/spf13/cobra", module + "internal/control", module + "internal/source", "github.com/google/cel-go", "github.com/antlr4-go/antlr", "github.com/go-jose/go-jose"},
	"cmd/waypoint":         {"k8s.io", "istio.io/client-go", "istio.io/api/networking", "github.com/spf13/cobra", module + "internal/control", module + "internal/source", module + "internal/sys/netns", module + "internal/sys/nft", module + "internal/ztunnel", "github.com/google/nftables"},
	"cmd/ambit-cni":        {module + "internal/xds", module + "internal/control", "google.golang.org/grpc"},
	"cmd/ambit-cni-plugin": {"google.golang.org/grpc", "google.golang.org/protobuf", "k8s.io", "istio.io"},
}

type pkg struct {
	ImportPath                         string
	Name, Doc, Dir                     string
	Imports, TestImports, XTestImports []string
	Module                             *struct{ Path string }
	Standard                           bool
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Name,Doc,Dir,Imports,TestImports,XTestImports,Module,Standard"}, args...)...)
	cmd.Dir = "../.."
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v\n%s", args, err, errs.String())
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// within reports whether path is prefix or below it.
func within(path, prefix string) bool {
	return path == prefix || strings.HasPrefix(path, prefix+"/")
}

func wing(path string) string {
	best := ""
	for w := range layers {
		if within(path, w) && len(w) > len(best) {
			best = w
		}
	}
	return best
}

func TestImportDirections(t *testing.T) {
	for _, p := range list(t, "./...") {
		path, ok := strings.CutPrefix(p.ImportPath, module)
		if !ok {
			continue
		}
		w := wing(path)
		if w == "" {
			t.Errorf("%s is in no wing: put it in one, or add the wing to this test and to ARCHITECTURE.md", path)
			continue
		}
		allowed := layers[w]
		if path == leaf && len(p.Imports) > 0 {
			t.Errorf("%s imports %v: every package imports it, so it imports none", leaf, p.Imports)
		}
		for _, imp := range p.Imports {
			for forbidden, keepers := range only {
				if within(imp, forbidden) && !slices.ContainsFunc(keepers, func(k string) bool { return within(path, k) }) && !overruled(imp, forbidden, path) {
					t.Errorf("%s imports %s: only %v may", path, imp, keepers)
				}
			}
		}
		for _, imp := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			to, ours := strings.CutPrefix(imp, module)
			if !ours || allowed == nil {
				continue
			}
			if to == leaf && path != leaf || within(to, "internal/testutil") && !slices.Contains(p.Imports, imp) {
				continue
			}
			if tw := wing(to); tw != w && !slices.Contains(allowed, tw) {
				t.Errorf("%s imports %s: %s may import only %v", path, to, w, allowed)
			}
		}
	}
}

// overruled reports whether a longer rule than the matching one decides: the
// longest prefix wins, so that client-go can be stricter than k8s.io.
func overruled(imp, rule, path string) bool {
	for longer, keepers := range only {
		if len(longer) > len(rule) && within(imp, longer) {
			return slices.ContainsFunc(keepers, func(k string) bool { return within(path, k) })
		}
	}
	return false
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for _, p := range list(t, "./...") {
		path, ok := strings.CutPrefix(p.ImportPath, module)
		if !ok || within(path, "api") || p.Name == "" {
			continue
		}
		if p.Doc == "" && len(p.Imports) > 0 {
			t.Errorf("%s has no package comment", path)
		}
	}
}

// TestLinkedModules compares the modules each program links with the list
// kept in testdata/links, so that a new dependency is a visible diff.
func TestLinkedModules(t *testing.T) {
	for _, main := range list(t, "./cmd/...") {
		if main.Name != "main" {
			continue
		}
		path := strings.TrimPrefix(main.ImportPath, module)
		var modules []string
		for _, d := range list(t, "-deps", "./"+path) {
			for _, bad := range mustNotLink[path] {
				if within(d.ImportPath, bad) {
					t.Errorf("%s links %s", path, d.ImportPath)
				}
			}
			if d.Module != nil && d.Module.Path+"/" != module && !slices.Contains(modules, d.Module.Path) {
				modules = append(modules, d.Module.Path)
			}
		}
		slices.Sort(modules)
		got := strings.Join(modules, "\n")
		if got != "" {
			got += "\n"
		}
		file := filepath.Join("testdata", "links", filepath.Base(path)+".txt")
		if *update {
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Errorf("%s: %v; go test ./internal/archtest -update writes it", path, err)
			continue
		}
		if got != string(want) {
			t.Errorf("%s links other modules than %s says; if that is meant, run go test ./internal/archtest -update and justify the module in docs/dependencies.md\nnow:\n%s", path, file, got)
		}
	}
}
