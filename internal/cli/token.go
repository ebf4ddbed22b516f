package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

func tokenCommand(a *session.Session) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Make credentials with which a proxy speaks to ambitd",
	}
	cmd.AddCommand((&tokenRequest{Session: a}).command("create"))
	return cmd
}

// createCommand is for those who type the verb first, as in kubectl.
func createCommand(a *session.Session) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Create a token for a proxy",
	}
	cmd.AddCommand((&tokenRequest{Session: a}).command("token"))
	return cmd
}

// tokenRequest has the subject of a token, and its issuer.
type tokenRequest struct {
	*session.Session
	session.Kube
	caller           auth.Caller
	stateDir, output string
	audiences        []string
	ttl              time.Duration
}

func (t *tokenRequest) command(name string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   name + " [SERVICEACCOUNT]",
		Short: "Make a token with which a proxy speaks to ambitd",
		Long: `Makes a token with which a proxy speaks to ambitd.

In a cluster the API server issues it (TokenRequest) for a service account, by
default ztunnel in the namespace of the mesh, for the audience istio-ca. Bind it to
a pod, and it is good while that pod lives.

Without Kubernetes, --state-dir names ambitd's state directory, and the token is
signed with the key there: whoever can read that key can be anybody in the mesh, so
make tokens where ambitd runs and carry them to the node.`,
		Example: `  ambit create token ztunnel --duration 1h
  ambit create token waypoint -n shop --pod-name waypoint-5d9c7
  ambit token create --state-dir /var/lib/ambit --node node1 --output /etc/ambit/token`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				t.caller.ServiceAccount = args[0]
			}
			token, err := t.make(cmd)
			if err != nil {
				return err
			}
			if t.output == "" {
				return t.Printf("%s\n", token)
			}
			return writeSecret(t.output, []byte(token))
		},
	}
	f := cmd.Flags()
	t.AddFlags(f)
	t.CompleteFlags(cmd)
	f.Lookup("namespace").Usage = "namespace of the account (default: that of the mesh's own pods)"
	f.StringVar(&t.stateDir, "state-dir", "", "state directory of ambitd, for a mesh without Kubernetes")
	f.StringVar(&t.caller.ServiceAccount, "service-account", "ztunnel", "name of the account")
	f.StringVar(&t.caller.Node, "node", "", "node it is bound to")
	f.StringVar(&t.caller.PodName, "pod-name", "", "pod it is bound to")
	f.StringVar(&t.caller.PodUID, "pod-uid", "", "UID of that pod")
	f.StringSliceVar(&t.audiences, "audience", []string{wellknown.TokenAudience}, "audience, in a cluster")
	f.DurationVar(&t.ttl, "duration", 24*time.Hour, "how long it is good for; an API server may give less or more")
	f.DurationVar(&t.ttl, "ttl", 24*time.Hour, "the same as --duration")
	_ = f.MarkHidden("ttl")
	f.StringVar(&t.output, "output", "", "file to write it to, readable for its owner only (default: standard output)")
	cmd.ValidArgsFunction = t.CompleteKube(t.accounts)
	return cmd
}

func (t *tokenRequest) make(cmd *cobra.Command) (string, error) {
	t.caller.Namespace = cmp.Or(t.Namespace, t.IstioNamespace)
	switch {
	case t.stateDir != "" && t.Named(cmd):
		return "", errors.New("--state-dir is for a mesh without Kubernetes: leave it out, or leave out the flags that name a cluster")
	case t.stateDir != "":
		return t.issue()
	case t.Named(cmd) || t.Configured():
		return t.request(cmd.Context())
	}
	return "", errors.New("who is to issue it? Without Kubernetes say with --state-dir where ambitd keeps its state (its own --state-dir), in a cluster name that with --kubeconfig or --context")
}

// issue makes a token of a mesh without Kubernetes.
func (t *tokenRequest) issue() (string, error) {
	if t.caller.Node == "" {
		return "", errors.New("--node: say for which node; its ztunnel may speak for pods of that node only")
	}
	issuer, err := auth.OpenIssuer(t.stateDir)
	if err != nil {
		return "", err
	}
	return issuer.Issue(t.caller, t.ttl)
}

// request asks the API server for a token.
func (t *tokenRequest) request(ctx context.Context) (string, error) {
	seconds := int64(t.ttl.Seconds())
	spec := authenticationv1.TokenRequestSpec{Audiences: t.audiences, ExpirationSeconds: &seconds}
	switch {
	case t.caller.PodName != "" && t.caller.Node != "":
		return "", errors.New("--node and --pod-name: an API server binds a token to one of them; that of a pod names its node anyway")
	case t.caller.PodName != "":
		spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: t.caller.PodName, UID: types.UID(t.caller.PodUID)}
	case t.caller.Node != "":
		spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Node", Name: t.caller.Node}
	}
	c, err := t.Client()
	if err != nil {
		return "", err
	}
	got, err := c.Kube.CoreV1().ServiceAccounts(t.caller.Namespace).CreateToken(ctx, t.caller.ServiceAccount,
		&authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
	if apierrors.IsNotFound(err) {
		return "", fmt.Errorf("%w (`kubectl get serviceaccounts -n %s` lists those there are)", err, t.caller.Namespace)
	}
	if err != nil {
		return "", session.Explain(err)
	}
	return got.Status.Token, nil
}

func (t *tokenRequest) accounts(ctx context.Context, c *client.Client) ([]string, error) {
	list, err := c.Kube.CoreV1().ServiceAccounts(cmp.Or(t.Namespace, t.IstioNamespace)).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var out []string
	for _, a := range list.Items {
		out = append(out, a.Name)
	}
	return out, nil
}

// writeSecret replaces a file in one step, so that a proxy that reads it again
// never sees half a token.
func writeSecret(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".token-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // it is renamed when all went well
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
