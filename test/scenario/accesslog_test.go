package scenario

import (
	"fmt"
	"path"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/lab"
)

// logSettings have Istio's default format, and providers of others. There is no collector
// of the spans, which costs no request.
const logSettings = `
accessLogFile: /dev/stdout
extensionProviders:
- name: json
  envoyFileAccessLog:
    path: /dev/stdout
    logFormat: {labels: {p: "%REQ(:PATH)%", code: "%RESPONSE_CODE%", who: "%DOWNSTREAM_PEER_URI_SAN%", agent: "%REQ(USER-AGENT)%"}}
- {name: nowhere, opentelemetry: {service: nowhere.shop.svc.cluster.local, port: 4317}}
- name: records
  envoyOtelAls: {service: otel.shop.svc.cluster.local, port: 4317, logFormat: {text: "%REQ(:METHOD)% %REQ(:PATH)%", labels: {code: "%RESPONSE_CODE%", who: "%DOWNSTREAM_PEER_URI_SAN%"}}}
- name: elsewhere
  envoyFileAccessLog: {path: /var/log/x}
defaultConfig: {tracing: {sampling: 100}}
defaultProviders: {tracing: [nowhere]}
`

// TestAccessLogging: lines have the format of the mesh's settings, and Telemetry objects
// decide which requests have which lines. What is not honoured is in their status.
func TestAccessLogging(t *testing.T) {
	w, _ := traced(t, versions(), logSettings)
	collector := w.Collector(lab.InPod("shop", "otel"), 4317)
	at, err := gatewayPod(w)
	if err != nil {
		t.Fatal(err)
	}
	name := path.Base(string(at))
	c := w.HTTP(far)
	defer c.CloseIdleConnections()
	n := 0
	// logs makes requests until the lines of one are good, which was made some requests
	// before: the log is written behind the answer.
	logs := func(what string, good func(lines []string, path string) error, headers ...string) {
		t.Helper()
		const before = 40
		first := n
		w.Eventually(what, func() error {
			n++
			where := fmt.Sprintf("/at/%d", n)
			if status, body, err := request(w, c, false, where, headers...); err != nil || status != 200 {
				return fmt.Errorf("%d %s, error %w", status, body, err)
			}
			if n-before <= first {
				return fmt.Errorf("%d requests", n-first)
			}
			where = fmt.Sprintf("/at/%d", n-before)
			var lines []string
			for line := range strings.Lines(w.Log("pod/shop/" + name + "/" + deploy.Container)) {
				if strings.Contains(line, where+" ") || strings.Contains(line, where+`"`) {
					lines = append(lines, line)
				}
			}
			return good(lines, where)
		})
	}
	logs("Istio's default format", func(lines []string, where string) error {
		if len(lines) != 1 || !strings.Contains(lines[0], `] "GET `+where+` HTTP/1.1" 200 - via_upstream - "-" 0 `) || !strings.HasSuffix(lines[0], " - default\n") && !strings.HasSuffix(lines[0], " - -\n") {
			return fmt.Errorf("%q", lines)
		}
		return nil
	})
	w.MustApply(telemetry("logs", `  accessLogging:
  - providers: [{name: json}]
    filter: {expression: "response.code >= 400 || request.headers['x-log'] == 'yes'"}
`))
	logs("JSON with its own keys", func(lines []string, where string) error {
		if want := `{"agent":"probe","code":200,"p":"` + where + `","who":"` + farID + `"}` + "\n"; len(lines) != 1 || lines[0] != want {
			return fmt.Errorf("%q, want %q", lines, want)
		}
		return nil
	}, "X-Log", "yes", "User-Agent", "probe")
	logs("a request that the filter leaves out", func(lines []string, _ string) error {
		if len(lines) > 0 {
			return fmt.Errorf("%q", lines)
		}
		return nil
	}, "X-Log", "no")
	w.MustApply(telemetry("logs", "  accessLogging: [{providers: [{name: records}]}]\n"))
	logs("log records at a collector", func(lines []string, where string) error {
		if len(lines) > 0 {
			return fmt.Errorf("%q", lines)
		}
		for _, r := range collector.Records() {
			if r.Body == "GET "+where && r.Severity == 9 && len(r.Trace) == 32 && r.Attributes["code"] == "200" && r.Attributes["who"] == farID {
				return nil
			}
		}
		return fmt.Errorf("none of %d records is of %s", len(collector.Records()), where)
	})
	w.MustApply(telemetry("quiet", "  targetRefs: [{kind: Service, group: \"\", name: front}]\n  accessLogging: [{disabled: true}]\n"))
	logs("no lines of the service", func(lines []string, _ string) error {
		if len(lines) > 0 {
			return fmt.Errorf("%q", lines)
		}
		return nil
	}, "X-Log", "yes")
	w.MustDelete("Telemetry", "shop", "quiet")
	w.MustApply(telemetry("logs", `  accessLogging:
  - providers: [{name: elsewhere}]
  - filter: {expression: "response.kode == 1"}
  - match: {mode: CLIENT}
    disabled: true
`))
	w.Eventually("the status names what is not honoured", func() error {
		text, err := w.Ambit("status")
		if err != nil {
			return err
		}
		for _, want := range []string{"/var/log/x", "response.kode", "spec.accessLogging[2].match.mode"} {
			if !strings.Contains(text, want) {
				return fmt.Errorf("%q is not in %s", want, text)
			}
		}
		return nil
	})
	logs("the format of the mesh is back", func(lines []string, where string) error {
		if len(lines) != 1 || !strings.Contains(lines[0], `"GET `+where+` HTTP/1.1"`) {
			return fmt.Errorf("%q", lines)
		}
		return nil
	})
}
