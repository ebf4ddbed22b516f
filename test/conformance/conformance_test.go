package conformance

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	confv1 "sigs.k8s.io/gateway-api/conformance/apis/v1"

	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/conformance"
	"sigs.k8s.io/gateway-api/conformance/tests"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/features"
	"sigs.k8s.io/yaml"
)

// installTime bounds the installation of the mesh on a slow machine.
const installTime = 5 * time.Minute

// class is that of waypoints. The features in its status are claimed: those of meshes
// count for the profiles, those of HTTPRoute are needed by tests of meshes.
const class = "istio-waypoint"

// TestConformance runs every test of meshes. The report is written to
// CONFORMANCE_REPORT, if that is set; the mesh is uninstalled at the end, unless
// AMBIT_KEEP is set.
func TestConformance(t *testing.T) {
	ambit(t, t.Context(), "install", "-y", "--set", "profile=ambient")
	if os.Getenv("AMBIT_KEEP") == "" {
		t.Cleanup(func() { ambit(t, context.Background(), "uninstall", "--purge", "-y") })
	}
	opts := conformance.DefaultOptions(t)
	opts.GatewayClassName = "" // no features are read from a class
	opts.ConformanceProfiles = []suite.ConformanceProfileName{suite.MeshHTTPConformanceProfileName, suite.MeshGRPCConformanceProfileName}
	opts.SupportedFeatures = claimed(t, opts.Client)
	opts.NamespaceLabels = map[string]string{"istio.io/dataplane-mode": "ambient"}
	opts.Implementation = confv1.Implementation{
		Organization: "ambit-mesh", Project: "ambit", URL: "https://github.com/ambit-mesh/ambit", Version: version(t), Contact: []string{"@ambit-mesh/maintainers"},
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: suite.MeshNamespace, Labels: opts.NamespaceLabels}}
	if err := opts.Client.Create(t.Context(), ns); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	ambit(t, t.Context(), "waypoint", "apply", "-n", suite.MeshNamespace, "--enroll-namespace", "--wait")
	opts.NamespaceLabels["istio.io/use-waypoint"] = "waypoint"

	s, err := suite.NewConformanceTestSuite(opts)
	if err != nil {
		t.Fatal(err)
	}
	// Those of gateways would be counted as skipped.
	mesh := slices.DeleteFunc(slices.Clone(tests.ConformanceTests), func(c suite.ConformanceTest) bool {
		return !slices.Contains(c.Features, features.SupportMesh)
	})
	if len(mesh) == 0 {
		t.Fatal("the suite has no test of meshes")
	}
	for _, f := range opts.SupportedFeatures {
		if !slices.ContainsFunc(mesh, func(c suite.ConformanceTest) bool { return slices.Contains(c.Features, f) }) {
			t.Errorf("no test of meshes is about the feature %s of the class %s", f, class)
		}
	}
	for _, c := range mesh {
		for _, f := range c.Features {
			if !slices.Contains(opts.SupportedFeatures, f) {
				t.Logf("skipped: %s needs the feature %s", c.ShortName, f)
			}
		}
	}
	t.Cleanup(func() { report(t, s) }) // there is one when all tests have ended
	s.Setup(t, mesh)
	if err := s.Run(t, mesh); err != nil {
		t.Fatal(err)
	}
}

// claimed returns the features in the status of the class.
func claimed(t *testing.T, c client.Client) (out []features.FeatureName) {
	ctx, cancel := context.WithTimeout(t.Context(), installTime)
	defer cancel()
	for {
		var g gatewayv1.GatewayClass
		err := c.Get(ctx, client.ObjectKey{Name: class}, &g)
		if err == nil && len(g.Status.SupportedFeatures) > 0 {
			for _, f := range g.Status.SupportedFeatures {
				out = append(out, features.FeatureName(f.Name))
			}
			if !slices.IsSorted(out) {
				t.Errorf("the features of class %s are not sorted: %v", class, out)
			}
			return out
		}
		select {
		case <-ctx.Done():
			t.Fatalf("class %s has no features, error %v", class, err)
		case <-time.After(time.Second):
		}
	}
}

// report writes what the suite has found.
func report(t *testing.T, s *suite.ConformanceTestSuite) {
	report, err := s.Report()
	if err != nil {
		t.Error(err)
		return
	}
	slices.SortFunc(report.ProfileReports, func(a, b confv1.ProfileReport) int { return strings.Compare(a.Name, b.Name) })
	b, err := yaml.Marshal(report)
	if err != nil {
		t.Error(err)
		return
	}
	t.Logf("report:\n%s", b)
	if to := os.Getenv("CONFORMANCE_REPORT"); to != "" {
		if err := os.WriteFile(to, b, 0o644); err != nil { //nolint:gosec // it is for everybody
			t.Error(err)
		}
	}
}

// version is that of the programs.
func version(t *testing.T) string {
	words := strings.Fields(ambit(t, t.Context(), "version", "--short", "--remote=false"))
	return words[len(words)-1]
}

// ambit runs the command line of AMBIT_BIN and returns what it prints.
func ambit(t *testing.T, ctx context.Context, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, installTime)
	defer cancel()
	bin := os.Getenv("AMBIT_BIN")
	if bin == "" {
		t.Fatal(errors.New("AMBIT_BIN is not set: run make conformance"))
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "ambit"), args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("ambit %s: %v\n%s%s", strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String()
}
