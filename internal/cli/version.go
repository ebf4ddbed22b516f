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

	"github.com/ambit-mesh/ambit/internal/cli/session"
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

func versionCommand(a *session.Session) *cobra.Command {
	k := &session.Kube{}
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
			asked := cmd.Flag("remote").Changed || k.Named(cmd)
			var err error
			if remote && (asked || k.Configured()) {
				err = remoteVersions(cmd.Context(), a, k, &v)
			}
			if output != "" && output != session.FormatTable {
				err = errors.Join(a.Encode(output, v), err)
			} else {
				err = errors.Join(a.Printf("%s", printer.Block(describeVersions(v, short))), err)
			}
			if err != nil && !asked { // the cluster was not what was asked about
				_ = a.Err.Printf("no answer from the cluster: %v\n", err)
				return nil
			}
			return err
		},
	}
	k.AddFlags(cmd.Flags())
	k.CompleteFlags(cmd)
	session.OutputFlag(cmd, &output, "")
	cmd.Flags().BoolVar(&remote, "remote", true, "ask the cluster as well, if there is one")
	cmd.Flags().BoolVarP(&short, "short", "s", false, "without the commit")
	return cmd
}

func remoteVersions(ctx context.Context, a *session.Session, k *session.Kube, v *versions) error {
	c, err := k.Client()
	if err != nil {
		return err
	}
	for _, p := range []session.Part{session.PartAmbitd, session.PartAgent, session.PartZtunnel} {
		pods, err := k.PodsOf(ctx, c, p)
		if err != nil {
			return err
		}
		for _, said := range session.AskAll(ctx, c, session.Running(pods), monitor(p), "/metrics") {
			pv := partVersion{
				Component: p.Name, Pod: said.Pod.Name, Node: said.Pod.Spec.NodeName, Revision: said.Pod.Labels["istio.io/rev"],
				Version: buildTag(said.Body), Source: saidByProgram,
			}
			if pv.Version == "" {
				pv.Version, pv.Source = imageTag(&said.Pod, p.Container), saidByImage
			}
			if p.Name == session.PartAmbitd.Name {
				v.ControlPlane = append(v.ControlPlane, pv)
			} else {
				v.DataPlane = append(v.DataPlane, pv)
			}
		}
	}
	if len(v.ControlPlane)+len(v.DataPlane) == 0 {
		return k.Missing(session.PartAmbitd)
	}
	return nil
}

// monitor is the port of a part's metrics.
func monitor(p session.Part) int {
	if p.Name == session.PartAmbitd.Name || p.Name == session.PartAgent.Name {
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
