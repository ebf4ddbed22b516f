package observe

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/trace"
	"github.com/ambit-mesh/ambit/internal/l7/wire/strict"
)

// Bounds of one layer.
const (
	maxMessage  = 4 << 20 // bytes
	maxTags     = 64
	maxTagValue = 1024 // bytes
	maxHeaders  = 32
	maxTimeout  = time.Minute
)

// Decode reads and compiles a resource. env returns the value of a variable of the
// gateway's environment; intern returns the collector that stands for equal ones. Either
// may be nil.
func (g *Language) Decode(body []byte, env func(string) (string, bool), intern func(*Collector) *Collector) (*Layer, error) {
	if len(body) > maxMessage {
		return nil, fmt.Errorf("message of %d bytes: at most %d", len(body), maxMessage)
	}
	var p telemetrypb.Layer
	if err := proto.Unmarshal(body, &p); err != nil {
		return nil, err
	}
	return g.Compile(&p, env, intern)
}

// Compile compiles a layer. The control plane compiles what it sends, so that a mistake
// is in the status of the object.
func (g *Language) Compile(p *telemetrypb.Layer, env func(string) (string, bool), intern func(*Collector) *Collector) (*Layer, error) {
	if err := strict.Unknown(p.ProtoReflect()); err != nil {
		return nil, err
	}
	if n := p.GetSide(); n < telemetrypb.Side_BOTH || n > telemetrypb.Side_SERVER {
		return nil, fmt.Errorf("side: there is no side %d", n)
	}
	l := &Layer{scope: p.GetScope(), namespace: p.GetNamespace(), name: p.GetName(), created: p.GetCreated(), workloads: p.GetWorkloads(), side: p.GetSide()}
	for _, s := range p.GetServices() {
		l.services = append(l.services, Service{s.GetNamespace(), s.GetHostname()})
	}
	c := compiler{language: g, env: env, intern: intern}
	var err error
	if t := p.GetTracing(); t != nil {
		if l.tracing, err = c.tracing(t); err != nil {
			return nil, fmt.Errorf("tracing: %w", err)
		}
	}
	if n := len(p.GetAccessLogging()); n > maxLogs {
		return nil, fmt.Errorf("accessLogging: there are %d rules (at most %d are possible)", n, maxLogs)
	}
	for i, a := range p.GetAccessLogging() {
		r, err := c.log(a)
		if err != nil {
			return nil, fmt.Errorf("accessLogging[%d]: %w", i, err)
		}
		l.logs = append(l.logs, r)
	}
	if n := len(p.GetMetrics()); n > maxOverrides {
		return nil, fmt.Errorf("metrics: there are %d overrides (at most %d are possible)", n, maxOverrides)
	}
	l.values = map[string]Value{}
	for i, o := range p.GetMetrics() {
		if err := c.metric(o, l.values); err != nil {
			return nil, fmt.Errorf("metrics.overrides[%d]: %w", i, err)
		}
	}
	l.metrics = p.GetMetrics()
	return l, nil
}

type compiler struct {
	language *Language
	env      func(string) (string, bool)
	intern   func(*Collector) *Collector
}

func (c *compiler) tracing(p *telemetrypb.Tracing) (*tracing, error) {
	t := &tracing{silent: p.ReportingDisabled, closed: p.PropagationDisabled, istio: p.IstioTags}
	if p.GetCollector() != nil {
		var err error
		if t.collector, err = c.collector(p.GetCollector()); err != nil {
			return nil, fmt.Errorf("provider %q: %w", p.GetCollector().GetProvider(), err)
		}
	}
	if p.Sampling != nil {
		if v := p.GetSampling(); !(v >= 0 && v <= 100) || math.IsNaN(v) {
			return nil, fmt.Errorf("randomSamplingPercentage: %v is not between 0 and 100", v)
		}
		share := trace.Percent(p.GetSampling())
		t.share = &share
	}
	if p.GetCustomTags() == nil {
		return t, nil
	}
	t.hasTags = true
	if n := len(p.GetCustomTags().GetTags()); n > maxTags {
		return nil, fmt.Errorf("customTags: there are %d (at most %d are possible)", n, maxTags)
	}
	for _, tag := range p.GetCustomTags().GetTags() {
		one, err := c.tag(tag)
		if err != nil {
			return nil, fmt.Errorf("customTags.%s: %w", tag.GetName(), err)
		}
		t.tags = append(t.tags, one)
	}
	return t, nil
}

func (c *compiler) tag(p *telemetrypb.CustomTag) (Tag, error) {
	t := Tag{Name: p.GetName(), Value: p.GetDefault()}
	switch {
	case t.Name == "":
		return Tag{}, errors.New("a tag needs a name")
	case len(t.Name)+len(p.GetLiteral())+len(p.GetDefault()) > maxTagValue:
		return Tag{}, fmt.Errorf("it is longer than %d bytes", maxTagValue)
	case p.GetLiteral() != "":
		t.Value = p.GetLiteral()
	case p.GetEnvironment() != "":
		if c.env != nil {
			if v, ok := c.env(p.GetEnvironment()); ok {
				t.Value = v
			}
		}
	case p.GetHeader() != "":
		name := strings.ToLower(p.GetHeader())
		if _, f := message.CheckName(name); f != nil {
			return Tag{}, fmt.Errorf("header %q: %w", name, f)
		}
		t.Header, t.Key = true, message.NewKey(name)
	default:
		return Tag{}, errors.New("it has no value: set literal, environment or header")
	}
	return t, nil
}

func (c *compiler) collector(p *telemetrypb.Collector) (*Collector, error) {
	out := &Collector{
		Provider: p.GetProvider(), Service: Service{p.GetService().GetNamespace(), p.GetService().GetHostname()}, Port: uint16(p.GetPort()), Path: p.GetPath(),
		Timeout: time.Duration(p.GetTimeoutMilliseconds()) * time.Millisecond,
	}
	switch {
	case out.Service.Namespace == "" || out.Service.Hostname == "":
		return nil, errors.New("service: it names no service")
	case p.GetPort() < 1 || p.GetPort() > 65535:
		return nil, fmt.Errorf("port: %d is not between 1 and 65535", p.GetPort())
	case out.Path != "" && (out.Path[0] != '/' || strings.ContainsFunc(out.Path, func(r rune) bool { return r <= ' ' || r > '~' })):
		return nil, fmt.Errorf("http.path: %q is no path", out.Path)
	case len(p.GetHeaders()) > maxHeaders:
		return nil, fmt.Errorf("headers: there are %d (at most %d are possible)", len(p.GetHeaders()), maxHeaders)
	case out.Timeout < 0 || out.Timeout > maxTimeout:
		return nil, fmt.Errorf("timeout: %s is longer than %s", out.Timeout, maxTimeout)
	}
	for _, h := range p.GetHeaders() {
		name := strings.ToLower(h.GetName())
		if _, f := message.CheckName(name); f != nil {
			return nil, fmt.Errorf("header %q: %w", name, f)
		}
		if f := message.CheckValue(h.GetValue()); f != nil {
			return nil, fmt.Errorf("header %q: %w", name, f)
		}
		out.Headers = append(out.Headers, Header{message.NewKey(name), h.GetValue()})
	}
	if c.intern != nil {
		out = c.intern(out)
	}
	return out, nil
}
