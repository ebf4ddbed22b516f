package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/cli/session"
)

// hostileName is text that a terminal obeys, or that forges a row or column.
const hostileName = "x\x1b[31m\x1b]52;c;cm0gLXJm\a\u009b5m\r\b\x7f\u202e\u200b\u2028\tcol\v\f\nFORGED row"

// hostileJSON puts the hostile name, or else not UTF-8, into every string of doc
// that reads NAME.
func hostileJSON(t *testing.T, doc string) []byte {
	t.Helper()
	q, err := json.Marshal(hostileName)
	if err != nil {
		t.Fatal(err)
	}
	s := strings.ReplaceAll(doc, "NAME", strings.Trim(string(q), `"`))
	return []byte(strings.ReplaceAll(s, "BYTES", "x\xff\x9b31m"))
}

const hostileDump = `{
 "workloads": [
  {"uid": "NAME", "name": "NAME", "namespace": "NAME", "node": "NAME", "hostname": "NAME", "protocol": "NAME", "status": "NAME",
   "workloadIps": ["NAME"], "waypoint": {"destination": "NAME"}, "serviceAccount": "NAME", "services": ["NAME"]},
  {"uid": "BYTES", "name": "BYTES", "namespace": "BYTES", "node": "BYTES", "protocol": "BYTES", "workloadIps": ["BYTES"]}],
 "services": [{"name": "NAME", "namespace": "NAME", "hostname": "NAME", "vips": ["NAME/NAME"], "waypoint": {"destination": "NAME"}}],
 "policies": [{"name": "NAME", "namespace": "NAME", "scope": "NAME", "action": "NAME"}],
 "certificates": [{"identity": "NAME", "state": "NAME", "certChain": [{"serialNumber": "NAME", "validFrom": "NAME", "expirationTime": "NAME"}]}],
 "workloadState": {"NAME": {"state": "NAME", "info": {"name": "NAME", "namespace": "NAME"},
  "connections": {"inbound": [{"src": "NAME", "originalDst": "NAME", "actualDst": "NAME", "protocol": "NAME"}]}}}
}`

const hostileWaypoint = `{
 "routes": [{"kind": "NAME", "namespace": "NAME", "route": "NAME", "dropped": "NAME", "parents": ["NAME"], "matches": ["NAME"]},
  {"kind": "BYTES", "namespace": "BYTES", "route": "BYTES", "parents": ["BYTES"], "matches": ["BYTES"], "filters": ["NAME"],
   "backends": [{"name": "NAME", "weight": 1, "invalid": "NAME"}], "timeouts": {"request": "NAME", "try": "NAME"}}],
 "backends": [{"namespace": "NAME", "hostname": "NAME", "protocol": "NAME"}],
 "policies": [{"policy": "NAME", "action": "NAME", "for": ["NAME"], "error": "NAME"}],
 "connections": [{"client": "NAME", "identity": "NAME", "source": "NAME", "called": "NAME", "protocol": "NAME", "endpoint": "NAME", "since": "NAME"}]
}`

const hostileSyncz = `[{"name": "NAME", "cluster": "NAME", "version": "NAME", "peer": "NAME", "types": ["NAME"]},
 {"name": "BYTES", "cluster": "BYTES", "version": "BYTES", "types": ["BYTES"]}]`

// TestHostileNames: whatever others named an object or themselves, a command
// prints nothing that a terminal obeys and no row of theirs.
func TestHostileNames(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dump.json")
	if err := os.WriteFile(file, hostileJSON(t, hostileDump), 0o600); err != nil {
		t.Fatal(err)
	}
	waypointFile := filepath.Join(t.TempDir(), "waypoint.json")
	if err := os.WriteFile(waypointFile, hostileJSON(t, hostileWaypoint), 0o600); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/debug/syncz":
			_, _ = w.Write(hostileJSON(t, hostileSyncz))
		case "/debug/ca":
			_, _ = w.Write(hostileJSON(t, `{"stage": "NAME", "pluginProblem": "NAME", "plugged_in": true}`))
		default:
			http.Error(w, hostileName, http.StatusTeapot) // ends up in an error
		}
	}))
	defer s.Close()
	at := []string{"--address", strings.TrimPrefix(s.URL, "http://")}
	lines := map[string][]string{
		"proxy-status": append([]string{"proxy-status"}, at...),
		"ca status":    append([]string{"ca", "status"}, at...),
		"ca rotate":    append([]string{"ca", "rotate"}, at...),
		"no such lab":  {"lab", "status", "--name", hostileName},
		"no such flag": {"proxy-status", "--" + hostileName},
		"no command":   {hostileName},
		"analyze file": {"analyze", "--use-kube=false", hostileManifest(t)},
	}
	for _, kind := range []string{"all", "workloads", "services", "policies", "certificates", "connections"} {
		lines[kind] = []string{"ztunnel-config", kind, "-f", file}
	}
	for _, kind := range []string{"all", "routes", "backends", "policies", "connections"} {
		lines["waypoint "+kind] = []string{"waypoint-config", kind, "-f", waypointFile}
	}
	for name, args := range lines {
		for _, format := range []string{"", session.FormatTable, session.FormatJSON, session.FormatYAML} {
			if name == "no command" || format == session.FormatTable && strings.HasPrefix(name, "analyze") {
				continue
			}
			t.Run(name+" "+format, func(t *testing.T) {
				if format != "" {
					args = append(args[:len(args):len(args)], "-o", format)
				}
				var out, errOut bytes.Buffer
				code := Run(context.Background(), args, strings.NewReader(""), &out, &errOut)
				isHarmless(t, out.Bytes())
				isHarmless(t, errOut.Bytes())
				if out.Len()+errOut.Len() == 0 {
					t.Errorf("%v printed nothing, code %d", args, code)
				}
				if code == 0 && (format == session.FormatJSON || format == session.FormatYAML) {
					isDocument(t, out.Bytes(), format)
				}
			})
		}
	}
}

// hostileManifest is a file of objects with hostile names.
func hostileManifest(t *testing.T) string {
	t.Helper()
	q, err := json.Marshal(hostileName)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "objects.yaml")
	text := `{"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "esc", "namespace": "aaa"},
 "spec": {"hosts": [` + string(q) + `], "addresses": [` + string(q) + `], "ports": [{"number": 80, "name": ` + string(q) + `, "protocol": ` + string(q) + `}], "resolution": "STATIC"}}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// isHarmless fails for what a terminal does not show as it is, and for a line
// that begins as the hostile name's second one does.
func isHarmless(t *testing.T, out []byte) {
	t.Helper()
	if !utf8.Valid(out) {
		t.Errorf("not UTF-8: %q", out)
	}
	for _, r := range string(out) {
		if !unicode.IsPrint(r) && r != '\n' && r != '\t' {
			t.Errorf("%U in %q", r, out)
			break
		}
	}
	if bytes.HasPrefix(out, []byte("FORGED")) || bytes.Contains(out, []byte("\nFORGED")) {
		t.Errorf("a forged row: %q", out)
	}
}

// isDocument fails for text that is no JSON or YAML, or has other values than
// it was made from.
func isDocument(t *testing.T, out []byte, format string) {
	t.Helper()
	b := out
	if format == session.FormatYAML {
		var err error
		if b, err = yaml.YAMLToJSON(out); err != nil {
			t.Fatalf("%v: %q", err, out)
		}
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(errors.Join(err, errors.New(string(out))))
	}
	if s, err := json.Marshal(v); err != nil || !strings.Contains(string(s), "FORGED row") {
		t.Errorf("the name is not in the document: %s, %v", s, err)
	}
}
