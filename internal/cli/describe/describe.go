// Package describe is `ambit describe`: what the mesh does with one pod or one service.
package describe

import (
	"context"
	"encoding/json"
	"io"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/cli/dump"
	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/ops/printer"
)

// describe is `ambit describe`: it gathers facts; what they mean is decided in
// describepod.go and describeservice.go.
type describe struct {
	*session.Session
	session.Kube
	output string
}

// informant is the source of facts: a cluster, or a lab.
type informant interface {
	// home is the namespace of names that say none.
	home() string
	// pod and service gather what is known of one. The error says it when
	// there is none.
	pod(ctx context.Context, namespace, name string) (podFacts, error)
	service(ctx context.Context, namespace, name string) (serviceFacts, error)
	pods(ctx context.Context, namespace string) ([]string, error)
	services(ctx context.Context, namespace string) ([]string, error)
}

// Command returns `ambit describe`.
func Command(a *session.Session) *cobra.Command {
	d := &describe{Session: a}
	cmd := &cobra.Command{
		Use:   "describe",
		Short: "Explain what the mesh does with a pod or a service",
		Long: `Explains what the mesh does with a pod or a service: whether it is in the mesh and
how that is known, under which identity, which policies apply and where each is
enforced, who is let in and who is refused, and what to do about what is wrong.`,
		Example: `  ambit describe pod web-5d9c7f -n shop
  ambit describe service web -n shop -o yaml
  ambit describe pod client -n shop --lab demo`,
	}
	a.LabFlags(cmd, "lab")
	f := cmd.PersistentFlags()
	d.AddFlags(f)
	d.CompleteFlags(cmd)
	f.StringVarP(&d.output, "output", "o", session.FormatTable, "output format: table, json or yaml")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{session.FormatTable, session.FormatJSON, session.FormatYAML}, cobra.ShellCompDirectiveNoFileComp))
	cmd.AddCommand(
		&cobra.Command{
			Use: "pod NAME", Aliases: []string{"pods", "po"}, Args: cobra.ExactArgs(1),
			Short: "Explain what the mesh does with a pod", Example: "  ambit describe pod web-5d9c7f -n shop",
			ValidArgsFunction: d.complete(informant.pods),
			RunE: func(cmd *cobra.Command, args []string) error {
				return d.run(cmd, args[0], func(ctx context.Context, from informant, namespace, name string) (report, error) {
					facts, err := from.pod(ctx, namespace, name)
					if err != nil {
						return nil, err
					}
					return describePod(facts), nil
				})
			},
		},
		&cobra.Command{
			Use: "service NAME", Aliases: []string{"services", "svc"}, Args: cobra.ExactArgs(1),
			Short: "Explain what the mesh does with a service", Example: "  ambit describe service web -n shop",
			ValidArgsFunction: d.complete(informant.services),
			RunE: func(cmd *cobra.Command, args []string) error {
				return d.run(cmd, args[0], func(ctx context.Context, from informant, namespace, name string) (report, error) {
					facts, err := from.service(ctx, namespace, name)
					if err != nil {
						return nil, err
					}
					return describeService(facts), nil
				})
			},
		})
	return cmd
}

// Experimental keeps the names under which Istio's users know commands.
func Experimental(a *session.Session) *cobra.Command {
	cmd := &cobra.Command{
		Use: "x", Aliases: []string{"experimental", "exp"}, Hidden: true,
		Short: "Commands under the names that users of istioctl know",
	}
	cmd.AddCommand(Command(a))
	return cmd
}

// report is what a description comes to.
type report interface{ text() string }

func (d *describe) run(cmd *cobra.Command, name string, tell func(ctx context.Context, from informant, namespace, name string) (report, error)) error {
	from, err := d.informant(cmd)
	if err != nil {
		return err
	}
	ns := d.namespaceOf(from)
	if before, after, ok := strings.Cut(name, "."); ok && d.Namespace == "" { // NAME.NAMESPACE, as istioctl has it
		name, ns = before, after
	}
	r, err := tell(cmd.Context(), from, ns, name)
	if err != nil {
		return err
	}
	if d.output != session.FormatTable {
		return d.Encode(d.output, r)
	}
	return d.Printf("%s", printer.Block(r.text()))
}

// informant finds out whether a cluster or a lab is meant.
func (d *describe) informant(cmd *cobra.Command) (informant, error) {
	if d.InCluster(cmd, &d.Kube) {
		c, err := d.Client()
		if err != nil {
			return nil, err
		}
		return &clusterInformant{&d.Kube, c}, nil
	}
	return d.labInformant(cmd.Context())
}

func (d *describe) namespaceOf(from informant) string {
	if d.Namespace != "" {
		return d.Namespace
	}
	return from.home()
}

// complete completes with names; it is silent when there is nobody to ask.
func (d *describe) complete(names func(informant, context.Context, string) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		d.Err = printer.NewPrinter(io.Discard) // it is not the time to say which lab is asked
		from, err := d.informant(cmd)
		if err != nil || len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), session.CompletionTimeout)
		defer cancel()
		list, _ := names(from, ctx, d.namespaceOf(from))
		return list, cobra.ShellCompDirectiveNoFileComp
	}
}

// answered is what an agent, which goes by a name, says about a pod.
func (f agentFacts) answered(name string, pod *corev1.Pod, ask func() ([]byte, error)) agentFacts {
	f.Pod = name
	b, err := ask()
	var all []admin.EnrolledPod
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	f.Err = err
	for i := range all {
		if all[i].UID == string(pod.UID) {
			f.Status = &all[i]
		}
	}
	return f
}

// answered is what a ztunnel, which goes by a name, knows.
func (f proxyFacts) answered(name string, ask func() ([]byte, error)) proxyFacts {
	f.Pod = name
	b, err := ask()
	if err == nil {
		f.Dump, err = dump.Parse(b)
	}
	f.Err = err
	return f
}
