package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// teach makes every command of a tree say, beside what is wrong with a command
// line, how to write it.
func teach(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		hint := ""
		if strings.HasPrefix(cmd.Use, "exec ") && strings.Contains(err.Error(), "unknown") {
			hint = "; flags of the program go behind --"
		}
		return fmt.Errorf("%w%s (see `%s --help`)", err, hint, cmd.CommandPath())
	})
	for _, sub := range cmd.Commands() {
		teachOne(sub)
	}
}

func teachOne(cmd *cobra.Command) {
	if cmd.HasSubCommands() && !cmd.Runnable() {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = group
		for _, sub := range cmd.Commands() {
			teachOne(sub)
		}
		return
	}
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return fmt.Errorf("%w: write %s (see `%s --help`)", err, cmd.UseLine(), cmd.CommandPath())
			}
			return nil
		}
	}
}

// group is what a command does that only holds others: help, unless it was
// given the name of a command that it does not have.
func group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2 // cobra's own for its root
	}
	err := fmt.Errorf("unknown command %q for %q (see `%s --help`)", args[0], cmd.CommandPath(), cmd.CommandPath())
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		err = fmt.Errorf("unknown command %q for %q: did you mean %s? (see `%s --help`)", args[0], cmd.CommandPath(), strings.Join(like, " or "), cmd.CommandPath())
	}
	return err
}
