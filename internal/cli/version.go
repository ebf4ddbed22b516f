package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/ops/printer"
	"github.com/ambit-mesh/ambit/internal/ops/version"
)

// versions is what `ambit version` knows: its own, and those of the programs
// in a cluster.
type versions struct {
	Client       version.Info  `json:"clientVersion"`
	ControlPlane []partVersion `json:"controlPlane,omitempty"`
	DataPlane    []partVersion `json:"dataPlane,omitempty"`
}

// partVersion is the version of one pod of the mesh.
type partVersion struct {
	Component string `json:"component"`
	Pod       string `json:"pod"`
	Node      string `json:"node"`
	Revision  string `json:"revision,omitempty"`
	Version   string `json:"version"`
	// Source is where Version comes from: the program itself, or the name of
	// its image because it did not answer.
	Source string `json:"source"`
}

// Where a version comes from.
const (
	saidByProgram = "program"
	saidByImage   = "image"
)

func (a *app) versionCommand() *cobra.Command {
	k := &kube{}
	var output string
	var remote, short bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the versions of this program and of the mesh in a cluster",
		Example: `  ambit version
  ambit version --context prod -o json
  ambit version --remote=false`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Client: version.Get()}
			asked := cmd.Flag("remote").Changed || k.named(cmd)
			var err error
			if remote && (asked || k.configured()) {
				err = a.remoteVersions(cmd.Context(), k, &v)
			}
			if output != "" && output != formatTable {
				err = errors.Join(a.encode(output, v), err)
			} else {
				err = errors.Join(a.printf("%s", printer.Block(describeVersions(v, short))), err)
			}
			if err != nil && !asked { // the cluster was not what was asked about
				_ = a.err.Printf("no answer from the cluster: %v\n", err)
				return nil
			}
			return err
		},
	}
	k.addFlags(cmd.Flags())
	k.completeFlags(cmd)
	outputFlag(cmd, &output, "")
	cmd.Flags().BoolVar(&remote, "remote", true, "ask the cluster as well, if there is one")
	cmd.Flags().BoolVarP(&short, "short", "s", false, "without the commit")
	return cmd
}

func (a *app) remoteVersions(ctx context.Context, k *kube, v *versions) error {
	c, err := k.client()
	if err != nil {
		return err
	}
	for _, p := range []part{partAmbitd, partAgent, partZtunnel} {
		pods, err := k.podsOf(ctx, c, p)
		if err != nil {
			return err
		}
		for _, said := range askAll(ctx, c, running(pods), p.monitor(), "/metrics") {
			pv := partVersion{
				Component: p.name, Pod: said.pod.Name, Node: said.pod.Spec.NodeName, Revision: said.pod.Labels["istio.io/rev"],
				Version: buildTag(said.body), Source: saidByProgram,
			}
			if pv.Version == "" {
				pv.Version, pv.Source = imageTag(&said.pod, p.container), saidByImage
			}
			if p.name == partAmbitd.name {
				v.ControlPlane = append(v.ControlPlane, pv)
			} else {
				v.DataPlane = append(v.DataPlane, pv)
			}
		}
	}
	if len(v.ControlPlane)+len(v.DataPlane) == 0 {
		return k.missing(partAmbitd)
	}
	return nil
}

// monitor is the port of a part's metrics.
func (p part) monitor() int {
	if p.name == partAmbitd.name || p.name == partAgent.name {
		return wellknown.PortControlMonitor
	}
	return wellknown.PortMetrics
}

var buildMetric = regexp.MustCompile(`(?m)^istio_build\{.*\btag="([^"]*)"`)

// buildTag finds a program's version in its metrics.
func buildTag(metrics []byte) string {
	if m := buildMetric.FindSubmatch(metrics); m != nil {
		return string(m[1])
	}
	return ""
}

// imageTag is the tag of a container's image; of the first container, if there
// is none of that name.
func imageTag(pod *corev1.Pod, container string) string {
	if len(pod.Spec.Containers) == 0 {
		return "unknown"
	}
	i := max(0, slices.IndexFunc(pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == container }))
	image, _, _ := strings.Cut(pod.Spec.Containers[i].Image, "@")
	if colon := strings.LastIndexByte(image, ':'); colon > strings.LastIndexByte(image, '/') {
		return image[colon+1:]
	}
	return "unknown"
}

// describeVersions is versions for people.
func describeVersions(v versions, short bool) string {
	client := v.Client.String()
	if short {
		client = v.Client.Version
	}
	var b strings.Builder
	b.WriteString(printer.Sprintf("client version: %s\n", client))
	for _, plane := range []struct {
		name string
		of   []partVersion
	}{{"control plane", v.ControlPlane}, {"data plane", v.DataPlane}} {
		if s := tally(plane.of); s != "" {
			b.WriteString(printer.Sprintf("%s version: %s\n", plane.name, s))
		}
	}
	return b.String()
}

// tally counts programs by version: "dev (2 ztunnel, 3 ambit-cni), v1 (1 ztunnel)".
func tally(of []partVersion) string {
	type key struct{ version, component string }
	n := map[key]int{}
	for _, p := range of {
		n[key{p.Version, p.Component}]++
	}
	keys := slices.SortedFunc(maps.Keys(n), func(a, b key) int {
		return cmp.Or(strings.Compare(b.version, a.version), strings.Compare(b.component, a.component))
	})
	var out []string
	for i, k := range keys {
		one := fmt.Sprintf("%d %s", n[k], k.component)
		if i > 0 && keys[i-1].version == k.version {
			out[len(out)-1] = strings.TrimSuffix(out[len(out)-1], ")") + ", " + one + ")"
			continue
		}
		out = append(out, k.version+" ("+one+")")
	}
	return strings.Join(out, ", ")
}
