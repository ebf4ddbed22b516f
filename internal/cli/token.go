package cli

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

func (a *app) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Make credentials for the node proxies of a mesh without Kubernetes",
	}
	cmd.AddCommand(a.tokenCreate())
	return cmd
}

func (a *app) tokenCreate() *cobra.Command {
	c := auth.Caller{}
	var stateDir, output string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "create --state-dir DIR --node NODE",
		Short: "Make a token with which a ztunnel speaks to ambitd",
		Long: `Makes a token with which the ztunnel of one node speaks to ambitd. It is signed
with the key in ambitd's state directory: whoever can read that key can be
anybody in the mesh, so make tokens where ambitd runs and carry them to the node.`,
		Example: `  ambit token create --state-dir /var/lib/ambit --node node1 --output /etc/ambit/token`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if stateDir == "" {
				return errors.New("--state-dir: say where ambitd keeps its state (its own --state-dir)")
			}
			if c.Node == "" {
				return errors.New("--node: say for which node; its ztunnel may speak for pods of that node only")
			}
			issuer, err := auth.OpenIssuer(stateDir)
			if err != nil {
				return err
			}
			token, err := issuer.Issue(c, ttl)
			if err != nil {
				return err
			}
			if output == "" {
				return a.printf("%s\n", token)
			}
			return writeSecret(output, []byte(token))
		},
	}
	f := cmd.Flags()
	f.StringVar(&stateDir, "state-dir", "", "state directory of ambitd")
	f.StringVar(&c.Namespace, "namespace", wellknown.SystemNamespace, "namespace of the account")
	f.StringVar(&c.ServiceAccount, "service-account", "ztunnel", "name of the account")
	f.StringVar(&c.Node, "node", "", "node it is bound to")
	f.StringVar(&c.PodName, "pod-name", "", "pod it is bound to")
	f.StringVar(&c.PodUID, "pod-uid", "", "UID of that pod")
	f.DurationVar(&ttl, "ttl", 24*time.Hour, "how long it is good for")
	f.StringVar(&output, "output", "", "file to write it to, readable for its owner only (default: standard output)")
	return cmd
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
