package cli

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/cli/session"
)

// inText are commands in running text; those in blocks stand at the beginning of
// a line that is indented by four spaces or more.
var inText = regexp.MustCompile("`(ambit [^`]*)`")

// Each command of the pages exists, and has the flags that the page gives it.
func TestCommandsOfThePagesExist(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatal(pages, err)
	}
	found := 0
	for _, page := range append(pages, "../../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			var commands []string
			if rest := strings.TrimLeft(line, " "); len(line)-len(rest) >= 4 && strings.HasPrefix(rest, "ambit ") {
				commands = []string{rest}
			}
			for _, m := range inText.FindAllStringSubmatch(line, -1) {
				commands = append(commands, m[1])
			}
			for _, c := range commands {
				for _, one := range choices(c) {
					found++
					if why := unknown(one); why != "" {
						t.Errorf("%s: %s: %s", filepath.Base(page), strings.TrimSpace(c), why)
					}
				}
			}
		}
	}
	if found < 200 {
		t.Errorf("only %d commands were found", found)
	}
}

// choices returns one command for each of several words with "\|" between them, as
// tables write them.
func choices(command string) []string {
	head, rest, _ := strings.Cut(command, " ")
	for {
		word, after, more := strings.Cut(rest, " ")
		if strings.Contains(word, `\|`) {
			var all []string
			for _, w := range strings.Split(word, `\|`) {
				all = append(all, head+" "+w+" "+after)
			}
			return all
		}
		head += " " + word
		if rest = after; !more {
			return []string{command}
		}
	}
}

// words splits a command as a shell does, as far as the pages need it: quotes, and
// what ends the command.
func words(command string) []string {
	var all []string
	var word strings.Builder
	quote := rune(0)
	for _, r := range strings.TrimSpace(command) + " " {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '\'' || r == '"'):
			quote = r
		case quote == 0 && r == ' ':
			if word.Len() > 0 {
				all = append(all, word.String())
			}
			word.Reset()
		default:
			word.WriteRune(r)
		}
	}
	for i, w := range all {
		if strings.HasSuffix(w, ";") {
			return append(all[:i], strings.TrimSuffix(w, ";"))
		}
		if w == "|" || w == "#" || w == ">" || w == "&&" || w == "\\" || w == "--" || strings.HasPrefix(w, "#") {
			return all[:i]
		}
	}
	return all
}

// unknown returns what of a command the program does not have; "" for nothing.
func unknown(command string) string {
	cmd := root(session.New(strings.NewReader(""), io.Discard, io.Discard))
	rest := words(command)[1:]
	for len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		next := sub(cmd, strings.TrimRight(rest[0], ",…"))
		if next == nil {
			if cmd.HasSubCommands() && !strings.ContainsAny(rest[0], "<[A….") && rest[0] != "help" {
				return "no such command: " + rest[0]
			}
			break
		}
		cmd, rest = next, rest[1:]
	}
	for _, w := range rest {
		name, _, _ := strings.Cut(strings.TrimRight(w, ",…"), "=")
		switch long := strings.TrimPrefix(name, "--"); {
		case long != name:
			if long != "help" && cmd.Flags().Lookup(long) == nil && cmd.InheritedFlags().Lookup(long) == nil {
				return "no such flag: " + name
			}
		case len(name) == 2 && name[0] == '-' && name != "-h":
			if cmd.Flags().ShorthandLookup(name[1:]) == nil && cmd.InheritedFlags().ShorthandLookup(name[1:]) == nil {
				return "no such flag: " + name
			}
		}
	}
	return ""
}

func sub(cmd *cobra.Command, name string) *cobra.Command {
	for _, c := range cmd.Commands() {
		if c.Name() == name || c.HasAlias(name) {
			return c
		}
	}
	return nil
}
