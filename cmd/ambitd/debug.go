package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/ambit-mesh/ambit/internal/control/ca"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/ops/admin"
	"github.com/ambit-mesh/ambit/internal/xds"
)

const debugIndex = `ambitd
/debug/syncz        connected clients and what they acknowledged
/debug/status       what became of every object
/debug/problems     what is wrong in the configuration
/debug/config_dump  everything that is sent to node proxies
/debug/ca           the certificate authority
/ca/rotate          POST: change the root in stages; ?hurry ends the present stage
/debug/pprof/       profiles
/logging            POST ?level=
`

func (a *app) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, debugIndex) })
	mux.Handle("/debug/syncz", admin.JSON(func() any { return syncz(a.xds.Clients(), a.cfg.clusterID) }))
	mux.Handle("/debug/status", admin.JSON(func() any { return a.registry.Status() }))
	mux.Handle("/debug/problems", admin.JSON(func() any { list, _ := a.env.Problems(); return list }))
	mux.Handle("/debug/config_dump", admin.JSON(func() any { return a.configDump() }))
	mux.Handle("/debug/ca", a.withCA(admin.JSON(func() any { return a.authority.Status() })))
	mux.Handle("POST /ca/rotate", a.withCA(http.HandlerFunc(a.rotate)))
	mux.Handle("/logging", admin.Logging(a.logs.Levels))
	admin.Profiles(mux)
	return mux
}

// withCA answers 503 as long as there is no authority.
func (a *app) withCA(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-a.opened:
			h.ServeHTTP(w, r)
		default:
			http.Error(w, "pending: "+strings.Join(a.ready.Pending(), ", "), http.StatusServiceUnavailable)
		}
	})
}

// rotate starts a change of the root, or hurries it, and answers with the
// authority's status: 409 when that is not possible now.
func (a *app) rotate(w http.ResponseWriter, r *http.Request) {
	do := a.authority.StartRotation
	if r.URL.Query().Has("hurry") {
		do = a.authority.Hurry
	}
	switch err := do(); {
	case errors.Is(err, ca.ErrNoRotation):
		http.Error(w, err.Error(), http.StatusConflict)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(a.authority.Status()) // the rotation does not depend on who asked
	}
}

// orEmpty makes an empty list of none, which JSON would show as null.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// follower is one entry of /debug/syncz.
type follower struct {
	Name      string       `json:"name"`
	Cluster   string       `json:"cluster"`
	Version   string       `json:"version,omitempty"`
	Types     []string     `json:"types"`
	Peer      string       `json:"peer"`
	Connected time.Time    `json:"connected"`
	Detail    []clientType `json:"detail"`
}

type clientType struct {
	Type      string `json:"type"`
	Wildcard  bool   `json:"wildcard"`
	Resources int    `json:"resources"`
	Pending   int    `json:"pending"`
	Sent      string `json:"sentNonce,omitempty"`
	Acked     string `json:"ackedNonce,omitempty"`
	Synced    bool   `json:"synced"`
	Error     string `json:"error,omitempty"`
}

func syncz(clients []xds.ClientStatus, cluster string) []follower {
	out := make([]follower, 0, len(clients))
	for _, c := range clients {
		e := follower{Name: proxyName(c.Node), Cluster: cluster, Version: c.Version, Types: []string{}, Peer: c.Peer, Connected: c.Connected, Detail: []clientType{}}
		for _, t := range c.Types {
			e.Types = append(e.Types, shortType(t.TypeURL))
			e.Detail = append(e.Detail, clientType{
				Type: t.TypeURL, Wildcard: t.Wildcard, Resources: t.Resources, Pending: t.Pending,
				Sent: t.Sent, Acked: t.Acked, Synced: t.Sent == t.Acked && t.Pending == 0, Error: t.Error,
			})
		}
		out = append(out, e)
	}
	return out
}

// proxyName is pod.namespace of a node id such as
// ztunnel~10.0.0.1~pod.namespace~namespace.svc.cluster.local.
func proxyName(node string) string {
	if parts := strings.Split(node, "~"); len(parts) == 4 {
		return parts[2]
	}
	return node
}

func shortType(url string) string { return url[strings.LastIndex(url, ".")+1:] }

// dump is /debug/config_dump.
type dump struct {
	Addresses []dumped `json:"addresses"`
	Policies  []dumped `json:"policies"`
	// Others are resources of further types, by the last word of the type.
	Others map[string][]dumped `json:"others,omitempty"`
}

type dumped struct {
	Name    string          `json:"name"`
	Version string          `json:"version"`
	Aliases []string        `json:"aliases,omitempty"`
	Body    json.RawMessage `json:"resource"`
}

func (a *app) configDump() dump {
	d := dump{Addresses: []dumped{}, Policies: []dumped{}}
	named := map[string]*[]dumped{wellknown.TypeAddress: &d.Addresses, wellknown.TypeAuthorization: &d.Policies}
	for _, t := range a.registry.Resources() {
		list := dumpAll(t.TypeURL, t.Set)
		if into := named[t.TypeURL]; into != nil {
			*into = list
			continue
		}
		if d.Others == nil {
			d.Others = map[string][]dumped{}
		}
		d.Others[shortType(t.TypeURL)] = list
	}
	return d
}

// dumpAll writes resources as JSON. A type that is not linked has no JSON form.
func dumpAll(typeURL string, list []*xds.Resource) []dumped {
	typ, err := protoregistry.GlobalTypes.FindMessageByURL(typeURL)
	out := make([]dumped, 0, len(list))
	for _, r := range list {
		d := dumped{Name: r.Name, Version: r.Version, Aliases: r.Aliases}
		if err == nil {
			m := typ.New().Interface()
			if proto.Unmarshal(r.Body, m) == nil {
				d.Body, _ = protojson.Marshal(m) // null when it has no JSON form
			}
		}
		out = append(out, d)
	}
	return out
}
