package policy

import (
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

// TrustDomains are the names of the mesh's trust domain that principals of
// policies may use. The zero value leaves principals as they are written.
type TrustDomains struct {
	// Local is in the identities that the mesh gives out.
	Local string
	// Aliases stand for Local in policies: names that it had before.
	Aliases []string
}

// All returns the names of the trust domain, each once, Local first.
func (d TrustDomains) All() []string {
	if d.Local == "" {
		return nil
	}
	all := []string{d.Local}
	for _, a := range d.Aliases {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all
}

// Names reports whether a trust domain in a principal means this mesh:
// its own, an alias, a wildcard that matches one of them, or "cluster.local",
// which stands for the mesh's own whatever that is called.
func (d TrustDomains) Names(domain string) bool {
	return domain == identity.DefaultTrustDomain || slices.ContainsFunc(d.All(), func(own string) bool { return fits(domain, own) })
}

// fits reports whether a pattern, or the name itself, matches a name.
func fits(pattern, name string) bool {
	switch {
	case strings.HasPrefix(pattern, "*"):
		return strings.HasSuffix(name, pattern[1:])
	case strings.HasSuffix(pattern, "*"):
		return strings.HasPrefix(name, strings.TrimSuffix(pattern, "*"))
	}
	return pattern == name
}

// principalParts is how many parts a whole principal has:
// <trust domain>/ns/<namespace>/sa/<account>.
const principalParts = 5

// Expand returns principals with every name of the trust domain. A principal of
// another trust domain, and one for any ("*/ns/…"), stay as they are written.
//
// Istio expands whole principals only; "cluster.local/ns/shop/*" keeps its
// trust domain there. With prefixes, those are expanded as well: for lists that
// refuse, where a name that matches too little lets a client in.
func (d TrustDomains) Expand(principals []string, prefixes bool) []string {
	if d.Local == "" {
		return principals
	}
	out := make([]string, 0, len(principals))
	for _, p := range principals {
		domain, rest, ok := strings.Cut(p, "/")
		whole := strings.Count(p, "/") == principalParts-1
		if !ok || domain == "*" || !d.Names(domain) || !whole && (!prefixes || !strings.HasSuffix(p, "*")) {
			out = append(out, p)
			continue
		}
		out = d.each(out, p, domain, rest)
	}
	return out
}

// each adds one principal under every name of the trust domain.
func (d TrustDomains) each(out []string, principal, domain, rest string) []string {
	for _, own := range d.All() {
		next := own + "/" + rest
		if strings.HasPrefix(domain, "*") && fits(domain, own) {
			next = principal // matches that name already
		}
		if !slices.Contains(out, next) {
			out = append(out, next)
		}
	}
	return out
}
