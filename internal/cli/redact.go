package cli

import (
	"regexp"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// redacted stands where a secret was.
const redacted = "REDACTED"

// secretTexts are shapes of secrets wherever they stand: tokens in three parts
// with dots between, private keys, and what follows a word that announces one.
var secretTexts = []struct {
	find *regexp.Regexp
	put  string
}{
	{regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]*)?`), redacted},
	{regexp.MustCompile(`(?s)-----BEGIN ([A-Z0-9 ]*)PRIVATE KEY-----.*?(-----END [A-Z0-9 ]*PRIVATE KEY-----|$)`), redacted},
	{regexp.MustCompile(`(?i)((?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}`), "${1}" + redacted},
	{regexp.MustCompile(`(?i)((?:password|passwd|secret|token|api[_-]?key|private[_-]?key)["']?[ \t]*[:=][ \t]*["']?)[^\s"',}]{4,}`), "${1}" + redacted},
}

// secretName is the name of a variable whose value is not for others.
var secretName = regexp.MustCompile(`(?i)(pass|secret|token|credential|api_?key|private|auth)`)

// redact takes secrets out of text. It rather takes too much.
func redact(text []byte) []byte {
	for _, s := range secretTexts {
		text = s.find.ReplaceAll(text, []byte(s.put))
	}
	return text
}

// redactObject takes out of an object what may hold a secret by its place, and
// what is only noise.
func redactObject(u *unstructured.Unstructured) {
	u.SetManagedFields(nil)
	notes := u.GetAnnotations()
	for name := range notes {
		if strings.HasSuffix(name, "last-applied-configuration") || secretName.MatchString(name) {
			notes[name] = redacted
		}
	}
	u.SetAnnotations(notes)
	redactEnv(u.Object)
}

// redactEnv looks for lists of environment variables at any depth, and takes
// out the values of those whose names announce a secret.
func redactEnv(v any) {
	switch v := v.(type) {
	case map[string]any:
		for name, below := range v {
			if list, ok := below.([]any); ok && name == "env" {
				redactVariables(list)
			}
			redactEnv(below)
		}
	case []any:
		for _, below := range v {
			redactEnv(below)
		}
	}
}

func redactVariables(list []any) {
	for _, e := range list {
		variable, ok := e.(map[string]any)
		if name, _ := variable["name"].(string); ok && secretName.MatchString(name) && variable["value"] != nil {
			variable["value"] = redacted
		}
	}
}
