package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/ops/printer"
)

// log is `ambit ztunnel-config log`.
func (z *ztunnelConfig) log() *cobra.Command {
	var level string
	var reset bool
	cmd := &cobra.Command{
		Use:   "log [ZTUNNEL]",
		Short: "Show or change the levels of the proxies' logs",
		Long: `Shows the levels of the log of the proxy that is named, or that of --node, or else of
all proxies, each under its name. It changes them (--level), or goes back to those
that each was started with (--reset). A level is off, error, warn, info, debug or
trace, for all, or for one scope as in access=debug. It lasts until the proxy is
replaced.`,
		Example: `  # of all proxies
  ambit ztunnel-config log
  ambit ztunnel-config log --level info,access=debug
  # of one
  ambit ztunnel-config log ztunnel-x7k2p --level debug
  ambit ztunnel-config log --node node2 --reset`,
		Aliases:           []string{"logs", "l", "o"},
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: z.CompleteKube(z.ztunnels),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "/logging"
			switch {
			case level != "" && reset:
				return errors.New("--level and --reset: only one of them")
			case cmd.Flag("file").Changed:
				return errors.New("log does not take --file: it asks the proxies")
			case z.output != "" && !z.table():
				return fmt.Errorf("--output %s: log has only short: it prints what each proxy says", z.output)
			case reset:
				path += "?reset"
			case level != "":
				path += "?level=" + url.QueryEscape(logLevels(level))
			}
			proxies, err := z.proxies(cmd, strings.Join(args, ""))
			if err != nil {
				return err
			}
			return z.tellAll(cmd.Context(), proxies, path)
		},
	}
	cmd.Flags().StringVar(&level, "level", "", "levels, as LEVEL or SCOPE=LEVEL with commas between")
	cmd.Flags().BoolVarP(&reset, "reset", "r", false, "go back to the levels of the start")
	return cmd
}

// tellAll posts to proxies and prints what each answered under its name. One
// that does not answer takes nothing from the others.
func (z *ztunnelConfig) tellAll(ctx context.Context, proxies []proxy, path string) error {
	said, errs := make([]string, len(proxies)), make([]error, len(proxies))
	session.Together(len(proxies), func(i int) {
		b, err := proxies[i].ask(ctx, http.MethodPost, path)
		said[i], errs[i] = strings.TrimSpace(string(b)), err
	})
	var err error
	for i, p := range proxies {
		if errs[i] == nil {
			err = errors.Join(err, z.Printf("%s:\n%s\n", p.name, printer.Block(said[i])))
		}
	}
	failed := errors.Join(errs...)
	if failed != nil && len(proxies) > 1 {
		failed = fmt.Errorf("not all of the %d proxies have answered as they should:\n%w", len(proxies), failed)
	}
	return errors.Join(err, failed)
}

// logLevels is a list of levels as our proxies read it, from one that may be
// written as for istioctl: SCOPE:LEVEL, and two names for levels more.
func logLevels(list string) string {
	names := map[string]string{"warning": "warn", "critical": "error"}
	parts := strings.Split(list, ",")
	for i, part := range parts {
		scope, level := "", strings.TrimSpace(part)
		if at := strings.LastIndexAny(level, "=:"); at >= 0 {
			scope, level = level[:at]+"=", level[at+1:]
		}
		if name, ok := names[strings.ToLower(level)]; ok {
			level = name
		}
		parts[i] = scope + level
	}
	return strings.Join(parts, ",")
}
