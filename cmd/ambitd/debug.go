package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoregistry"

	api "github.com/ambit-mesh/ambit/api/admin"
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
	mux.Handle(api.PathFollowers, admin.JSON(func() any { return syncz(a.xds.Clients(), a.cfg.clusterID) }))
	mux.Handle(api.PathStatus, admin.JSON(func() any { return a.registry.Status() }))
	mux.Handle(api.PathProblems, admin.JSON(func() any { return a.env.Problems() }))
	mux.Handle(api.PathResources, admin.JSON(func() any { return a.configDump() }))
	mux.Handle(api.PathAuthority, a.withCA(admin.JSON(func() any { return a.authority.Status() })))
	mux.Handle("POST "+api.PathRotate, a.withCA(http.HandlerFunc(a.rotate)))
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

func syncz(clients []xds.ClientStatus, cluster string) []api.Follower {
	out := make([]api.Follower, 0, len(clients))
	for _, c := range clients {
		e := api.Follower{Name: proxyName(c.Node), Cluster: cluster, Version: c.Version, Types: []string{}, Peer: c.Peer, Connected: c.Connected, Detail: []api.FollowedType{}}
		for _, t := range c.Types {
			e.Types = append(e.Types, shortType(t.TypeURL))
			e.Detail = append(e.Detail, api.FollowedType{
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

func (a *app) configDump() api.Resources {
	d := api.Resources{Addresses: []api.Resource{}, Policies: []api.Resource{}}
	named := map[string]*[]api.Resource{wellknown.TypeAddress: &d.Addresses, wellknown.TypeAuthorization: &d.Policies}
	for _, t := range a.registry.Resources() {
		list := dumpAll(t.TypeURL, t.Set)
		if into := named[t.TypeURL]; into != nil {
			*into = list
			continue
		}
		if d.Others == nil {
			d.Others = map[string][]api.Resource{}
		}
		d.Others[shortType(t.TypeURL)] = list
	}
	return d
}

// dumpAll writes resources as JSON. A type that is not linked has no JSON form.
func dumpAll(typeURL string, list []*xds.Resource) []api.Resource {
	typ, err := protoregistry.GlobalTypes.FindMessageByURL(typeURL)
	out := make([]api.Resource, 0, len(list))
	for _, r := range list {
		d := api.Resource{Name: r.Name, Version: r.Version, Aliases: r.Aliases}
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
