package telemetry

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	apitelemetry "istio.io/api/telemetry/v1alpha1"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
)

// stdout is where lines go, and no other file: a waypoint has none to write to.
const stdout = "/dev/stdout"

// builtin is the provider that Istio has without being told: the file of accessLogFile.
const builtin = "envoy"

// accessLog reads the fields about the access log. Those of MeshConfig are the format of
// the provider envoy, which is the default one when accessLogFile is set.
func (m *Mesh) accessLog(c *meshv1alpha1.MeshConfig) {
	if m.providers[builtin] == nil {
		own := &telemetrypb.LogProvider{Name: builtin, Json: c.GetAccessLogEncoding() == meshv1alpha1.MeshConfig_JSON}
		err := error(nil)
		if format := c.GetAccessLogFormat(); !own.Json {
			own.Text = format
		} else if format != "" {
			own.Labels, err = labelsOf([]byte(format))
		}
		if err == nil {
			err = checkLog(own)
		}
		if err != nil {
			m.problem("accessLogFormat", "%v; the default format is used", err)
			own = &telemetrypb.LogProvider{Name: builtin, Json: own.Json}
		}
		m.providers[builtin] = &provider{kind: "envoyFileAccessLog", log: own}
	}
	switch file := c.GetAccessLogFile(); file {
	case "":
	case stdout:
		m.logs = []string{builtin}
	default:
		m.problem("accessLogFile", "lines go to %s alone, not to %s", stdout, file)
	}
	if list := c.GetDefaultProviders().GetAccessLogging(); len(list) > 0 {
		m.logs = nil
		for i, name := range list {
			if p := m.providers[name]; p == nil || p.log == nil {
				m.problem(fmt.Sprintf("defaultProviders.accessLogging[%d]", i), "%v", m.noLog(name))
			} else if !slices.Contains(m.logs, name) {
				m.logs = append(m.logs, name)
			}
		}
	}
}

func (m *Mesh) noLog(name string) error {
	switch p := m.providers[name]; {
	case p == nil:
		return fmt.Errorf("there is no provider %q in extensionProviders of the mesh configuration", name)
	case p.invalid != "":
		return fmt.Errorf("provider %q: %s", name, p.invalid)
	}
	return fmt.Errorf("provider %q (%s) is none of access logs", name, m.providers[name].kind)
}

// file reads a provider of a file.
func (m *Mesh) file(at, name string, f *meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyFileAccessLogProvider) *provider {
	out := &provider{kind: "envoyFileAccessLog"}
	log := &telemetrypb.LogProvider{Name: name, Text: f.GetLogFormat().GetText(), OmitEmpty: f.GetOmitEmptyValues()}
	err := error(nil)
	if f.GetPath() != stdout {
		err = fmt.Errorf("path: lines go to %s alone, not to %q", stdout, f.GetPath())
	}
	if labels := f.GetLogFormat().GetLabels(); labels != nil && err == nil {
		log.Json = true
		log.Labels, err = structLabels(labels)
	}
	if err == nil {
		err = checkLog(log)
	}
	if err != nil {
		out.invalid = err.Error()
		m.problem(at, "%v", err)
		return out
	}
	out.log = log
	return out
}

// structLabels reads labels of a provider.
func structLabels(s *structpb.Struct) (out []*telemetrypb.Label, err error) {
	for _, k := range slices.Sorted(maps.Keys(s.GetFields())) {
		v, isText := s.GetFields()[k].AsInterface().(string)
		if !isText {
			return nil, fmt.Errorf("logFormat.labels.%s: only text is possible", k)
		}
		out = append(out, &telemetrypb.Label{Name: k, Format: v})
	}
	return out, nil
}

// records reads a provider that lines are sent to as log records.
func (m *Mesh) records(at, name string, o *meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyOpenTelemetryLogProvider) *provider {
	out := &provider{kind: "envoyOtelAls"}
	log := &telemetrypb.LogProvider{
		Name: name, Text: o.GetLogFormat().GetText(), Collector: &telemetrypb.Collector{Provider: name, Service: serviceOf(o.GetService()), Port: o.GetPort()},
	}
	var err error
	if log.Labels, err = structLabels(o.GetLogFormat().GetLabels()); err == nil {
		probe := proto.CloneOf(log)
		if probe.Collector.Service.Namespace == "" {
			probe.Collector.Service.Namespace = "any"
		}
		err = checkLog(probe)
	}
	if o.GetLogName() != "" {
		m.problem(at+".logName", "it has no effect")
	}
	if err != nil {
		out.invalid = err.Error()
		m.problem(at, "%v", err)
		return out
	}
	out.log = log
	return out
}

// labelsOf reads the labels that accessLogFormat has as JSON.
func labelsOf(text []byte) (out []*telemetrypb.Label, err error) {
	var labels map[string]any
	if err := json.Unmarshal(text, &labels); err != nil {
		return nil, fmt.Errorf("it is no JSON object: %w", err)
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		v, isText := labels[k].(string)
		if !isText {
			return nil, fmt.Errorf("label %q: only text is possible", k)
		}
		out = append(out, &telemetrypb.Label{Name: k, Format: v})
	}
	if len(out) == 0 {
		return nil, errors.New("it has no labels")
	}
	return out, nil
}

func checkLog(l *telemetrypb.LogProvider) error {
	return check(&telemetrypb.Layer{AccessLogging: []*telemetrypb.AccessLogging{{Providers: []*telemetrypb.LogProvider{l}}}})
}

// logs translates the rules about the access log.
func (x *translator) logs(list []*apitelemetry.AccessLogging) {
	for i, a := range list {
		at := fmt.Sprintf("spec.accessLogging[%d]", i)
		if !x.serves(at, a.GetMatch().GetMode()) {
			continue
		}
		if x.connections() {
			x.logConnections(at, a)
			continue
		}
		out := &telemetrypb.AccessLogging{}
		for j, p := range a.GetProviders() {
			log, err := x.mesh.logged(p.GetName(), x.hosts)
			if err != nil {
				x.invalid(fmt.Sprintf("%s.providers[%d]", at, j), "%v", err)
				continue
			}
			out.Providers = append(out.Providers, log)
		}
		if len(a.GetProviders()) > 0 && len(out.Providers) == 0 {
			continue // it must not be about all others
		}
		if a.GetDisabled() != nil {
			out.Disabled = proto.Bool(a.GetDisabled().GetValue())
		}
		if f := a.GetFilter().GetExpression(); f != "" {
			if err := check(&telemetrypb.Layer{AccessLogging: []*telemetrypb.AccessLogging{{Filter: f}}}); err != nil {
				x.invalid(at+".filter.expression", "%v", err)
				continue // without its filter it would log too much
			}
			out.Filter = f
		}
		x.m.layer.AccessLogging = append(x.m.layer.AccessLogging, out)
	}
	if err := x.check(&telemetrypb.Layer{AccessLogging: x.m.layer.AccessLogging}); err != nil {
		x.invalid("spec", "%v", err) // such as too many of something
		x.m.layer.AccessLogging = nil
	}
}

// logged returns the format of a provider's lines.
func (m *Mesh) logged(name string, hosts Hosts) (*telemetrypb.LogProvider, error) {
	switch {
	case m != nil && m.unchecked:
		return &telemetrypb.LogProvider{Name: name}, nil
	case m == nil && name == builtin:
		return &telemetrypb.LogProvider{Name: name}, nil
	case m == nil:
		return nil, fmt.Errorf("there is no provider %q: the control plane has no mesh configuration", name)
	}
	if p := m.providers[name]; p == nil || p.log == nil {
		return nil, m.noLog(name)
	}
	log := m.providers[name].log
	if log.GetCollector() == nil {
		return log, nil
	}
	c, err := resolve(log.GetCollector(), hosts)
	if err != nil {
		return nil, err
	}
	log = proto.CloneOf(log)
	log.Collector = c
	return log, nil
}
