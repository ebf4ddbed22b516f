package ztunnel

import (
	"encoding/json"
	"html/template"
	"net/http"

	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/ops/admin"
	"github.com/ambit-mesh/ambit/internal/ops/version"
	"github.com/ambit-mesh/ambit/internal/ztunnel/config"
)

// workloadState is one pod in /config_dump.
type workloadState struct {
	State       string              `json:"state"`
	Connections *connections        `json:"connections,omitempty"`
	Info        config.WorkloadInfo `json:"info"`
}

type connections struct {
	Inbound  []inboundDump  `json:"inbound"`
	Outbound []outboundDump `json:"outbound"`
}

type inboundDump struct {
	Src         string  `json:"src"`
	OriginalDst *string `json:"originalDst"` // the service the client named
	ActualDst   string  `json:"actualDst"`
	Protocol    string  `json:"protocol"`
}

type outboundDump struct {
	Src         string `json:"src"`
	OriginalDst string `json:"originalDst"`
	ActualDst   string `json:"actualDst"`
	Protocol    string `json:"protocol"`
}

// WorkloadStates describes all pods, by UID.
func (n *Node) WorkloadStates() map[string]any {
	out := map[string]any{}
	n.mu.Lock()
	type podState struct {
		p  *pod
		up bool
	}
	pods := make([]podState, 0, len(n.pods))
	for _, p := range n.pods {
		pods = append(pods, podState{p, p.up})
	}
	n.mu.Unlock()
	for _, ps := range pods {
		st := workloadState{State: "Pending", Info: ps.p.info}
		if ps.up {
			st.State, st.Connections = "Up", ps.p.connections()
		}
		out[ps.p.uid] = st
	}
	return out
}

func (p *pod) connections() *connections {
	out := &connections{Inbound: []inboundDump{}, Outbound: []outboundDump{}}
	for _, c := range p.set.All() {
		if c.Inbound {
			d := inboundDump{Src: c.Src.String(), ActualDst: c.Asked.String(), Protocol: c.Protocol.String()}
			if c.Name != "" {
				d.OriginalDst = &c.Name
			}
			out.Inbound = append(out.Inbound, d)
			continue
		}
		out.Outbound = append(out.Outbound, outboundDump{
			Src: c.Src.String(), OriginalDst: c.Asked.String(), ActualDst: c.Dst.String(), Protocol: c.Protocol.String(),
		})
	}
	return out
}

// dump is /config_dump, in the shape that Istio's CLI reads.
func (a *App) dump() any {
	snap := a.node.Directory.Snapshot()
	raw := func(m json.RawMessage, err error) any {
		if err != nil {
			return []any{}
		}
		return m
	}
	var static any = struct{}{}
	if a.local != "" {
		_ = yaml.Unmarshal([]byte(a.local), &static) // it was read before
	}
	v := version.Get()
	return map[string]any{
		"workloads":     raw(snap.DumpWorkloads()),
		"services":      raw(snap.DumpServices()),
		"policies":      raw(a.node.Policies.Set().Dump()),
		"staticConfig":  static,
		"version":       map[string]any{"version": v.Version, "gitRevision": v.Commit, "goVersion": v.Go},
		"config":        a.cfg,
		"certificates":  a.certs.States(),
		"workloadState": a.node.WorkloadStates(),
	}
}

var dashboard = template.Must(template.New("").Parse(`<!DOCTYPE html><title>ztunnel</title><h1>ztunnel {{.Version}}</h1><ul>
<li><a href="config_dump">config_dump</a>: what this proxy knows and does</li>
<li>logging: POST ?level=LEVEL or ?level=scope=LEVEL, ?reset</li>
<li>quitquitquit: POST drains and ends</li>
<li><a href="debug/pprof/">debug/pprof/</a>: profiles</li></ul>
`))

func (a *App) adminMux() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/config_dump", admin.JSON(a.dump))
	mux.Handle("/logging", admin.Logging(a.logs.Levels))
	mux.Handle("/quitquitquit", admin.Action(a.Quit, "shutdown now"))
	admin.Profiles(mux)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_ = dashboard.Execute(w, version.Get()) // a client that went away is its own affair
	})
	return mux
}
