package authz

import (
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// readers are what programs take for the value of the header x-role: of its lines in order,
// "" is none.
var readers = []func(lines [][2]string) string{
	func(l [][2]string) string { return joinedBy(l, "x-role", ",", plainName) },
	func(l [][2]string) string { return joinedBy(l, "x-role", ", ", plainName) },
	func(l [][2]string) string { return nth(l, 0, plainName) },
	func(l [][2]string) string { return nth(l, -1, plainName) },
	func(l [][2]string) string { return nth(l, 0, variableName) },
	func(l [][2]string) string { return nth(l, -1, variableName) },
	func(l [][2]string) string { return element(nth(l, 0, plainName), 0) },
	func(l [][2]string) string { return element(nth(l, -1, plainName), -1) },
	func(l [][2]string) string { return strings.ToLower(nth(l, 0, plainName)) },
}

func plainName(s string) string { return strings.ToLower(s) }

// variableName is that of programs that make environment variables of headers.
func variableName(s string) string { return strings.ReplaceAll(strings.ToLower(s), "_", "-") }

func joinedBy(lines [][2]string, name, by string, of func(string) string) string {
	var all []string
	for _, l := range lines {
		if of(l[0]) == name {
			all = append(all, l[1])
		}
	}
	return strings.Join(all, by)
}

func nth(lines [][2]string, i int, of func(string) string) string {
	var all []string
	for _, l := range lines {
		if of(l[0]) == "x-role" {
			all = append(all, l[1])
		}
	}
	switch {
	case len(all) == 0:
		return ""
	case i < 0:
		return all[len(all)-1]
	}
	return all[i]
}

func element(value string, i int) string {
	all := strings.Split(value, ",")
	if i < 0 {
		i = len(all) - 1
	}
	return strings.Trim(all[i], " \t")
}

// headerLines reads lines as a gateway would have taken them in.
func headerLines(text string) (out [][2]string) {
	for line := range strings.SplitSeq(text, "\n") {
		name, value, _ := strings.Cut(line, ":")
		value = strings.Trim(value, " \t")
		if _, f := message.CheckName(strings.ToLower(name)); f != nil || message.CheckValue([]byte(value)) != nil {
			continue
		}
		out = append(out, [2]string{name, value})
	}
	return out
}

// checkHeaders fails when a program may read a value that a policy refuses, or one beside
// the value that a policy allows.
func checkHeaders(t *testing.T, text string) {
	lines := headerLines(text)
	r := from("GET", "a", "/")
	r.headers = lines
	denied := r.judge(t, policy(denying, withHeader("x-role", "admin"))) != nil
	allowed := r.judge(t, policy(allowing, withHeader("X-Role", "user"))) == nil
	for i, read := range readers {
		switch as := read(lines); {
		case as == "admin" && !denied && i != len(readers)-1:
			t.Errorf("%q is allowed, and program %d reads admin", lines, i)
		case as != "user" && allowed:
			t.Errorf("%q is allowed for users, and program %d reads %q", lines, i, as)
		}
	}
}

func FuzzHeaders(f *testing.F) {
	for _, s := range []string{
		"x-role: admin", "X-Role:admin", "x-role: user", "x_role: admin\nx-role: user", "x-role: user\nx-role: admin", "x-role: user, admin", "x-role: admin ,user",
		"x-role:\nx-role: admin", "x-role: user\nX_Role: user", "x_role: user", "x-role: ,admin", "x-role: \tadmin", "x-role: user,",
	} {
		f.Add(s)
	}
	f.Fuzz(checkHeaders)
}
