package nft

import (
	"slices"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// The chains input and output are the guard. Connection tracking asks the NAT
// chains once for each connection it keeps, and not again: a packet that begins
// no connection, or a translation that was lost, would switch the redirection of
// that connection off. The guard meets every packet, after translation, and
// refuses what the NAT chains should have redirected.
//
// Each packet costs as many expressions as it meets: what most packets match
// comes first.
//
// Only a connection that is redirected may pass, so a rule that asks connection
// tracking accepts and never rejects: it does not match a packet that is not
// tracked.

// inputGuard refuses connections to the pod that are neither redirected nor
// exempt.
func inputGuard(cfg step) []Rule {
	opens := Flags{Mask: flagSYN | flagACK | flagRST, Value: flagSYN}
	opensNot := Flags{Mask: opens.Mask, Value: opens.Value, Not: true}
	known := []Match{Proto{Number: protoTCP}, opensNot, ConnState{States: stateNew, Not: true}}
	if !cfg.continues() || cfg.BypassInbound {
		known = known[:2]
	}
	rules := []Rule{
		{Match: []Match{Loopback{}}, Do: Accept{}, Note: "the pod and its proxy among themselves"},
		{Match: known, Do: Accept{}, Note: "opens no connection"},
		{Match: []Match{Proto{Number: protoTCP, Not: true}}, Do: Accept{}, Note: "other protocols are not captured"},
	}
	if len(known) > 2 {
		rules = append(rules, Rule{Match: []Match{resets}, Do: Accept{}, Note: "ends a connection"})
		for _, set := range olderSets(cfg) {
			rules = append(rules, Rule{Match: []Match{Older{IPv6: set.IPv6, Set: set.Name, In: true}, opensNot}, Do: Accept{}, Note: "connections that are older than the table"})
		}
		rules = append(rules, Rule{Match: []Match{opensNot}, Count: true, Do: Drop{}, Note: "connection tracking does not know it, and must not get to"})
	}
	for _, name := range cfg.VirtualInterfaces {
		rules = append(rules, Rule{Match: []Match{InInterface(name), DestPort{Port: wellknown.PortOutbound}, Translated{}}, Do: Accept{}, Note: "outbound of a machine inside the pod"})
	}
	if cfg.BypassInbound {
		for _, port := range []uint16{wellknown.PortOutbound, wellknown.PortInbound, wellknown.PortDNS} {
			rules = append(rules, Rule{Match: []Match{DestPort{Port: port}}, Count: true, Do: Reset{}, Note: "only redirection leads to the proxy"})
		}
		return rules
	}
	for _, m := range probeMatches(cfg.Config) {
		rules = append(rules, Rule{Match: m, Do: Accept{}, Note: "probe"})
	}
	return append(rules,
		Rule{Match: []Match{DestPort{Port: wellknown.PortHBONE}}, Do: Accept{}, Note: "tunnels"},
		Rule{Match: []Match{DestPort{Port: wellknown.PortInbound}, Translated{}}, Do: Accept{}, Note: "plaintext to the pod, redirected"},
		Rule{Count: true, Do: Reset{}, Note: "not redirected"},
	)
}

// outputGuard refuses what leaves the pod and neither comes from the proxy nor
// goes to it: a connection that was not redirected, and a packet of one whose
// redirection was lost. The device that a rule here sees is the one from before
// translation; the destination is the one from after it.
func outputGuard(cfg step) []Rule {
	opens := Flags{Mask: flagSYN | flagACK, Value: flagSYN}
	known := []Match{Proto{Number: protoTCP}, Flags{Mask: opens.Mask, Value: opens.Value, Not: true}}
	if cfg.continues() {
		known = append(known, ConnState{States: stateNew | stateInvalid | stateUntracked, Not: true})
	}
	rules := append(slices.Clone(returns),
		Rule{Match: known, Do: Accept{}, Note: "opens no connection"},
	)
	if cfg.RefuseUDP && !cfg.Quiesce {
		rules = append(rules, refusedUDP(cfg.Config)...)
	}
	rules = append(rules, Rule{Match: []Match{Proto{Number: protoTCP, Not: true}}, Do: Accept{}, Note: "other protocols are not captured"})
	if cfg.Quiesce {
		rules = append(rules, Rule{Match: []Match{opens}, Do: Accept{}, Note: "nothing new is captured"})
	} else {
		rules = append(rules, redirected(cfg.Config)...)
		rules = append(rules, Rule{Match: []Match{opens}, Count: true, Do: Reset{}, Note: "not redirected"})
	}
	if !cfg.continues() {
		return rules
	}
	rules = append(rules, Rule{Match: []Match{resets}, Do: Accept{}, Note: "ends a connection"})
	for _, set := range olderSets(cfg) {
		rules = append(rules, Rule{Match: []Match{Older{IPv6: set.IPv6, Set: set.Name}}, Do: Accept{}, Note: "connections that are older than the table"})
	}
	return append(rules,
		Rule{Match: []Match{ConnState{States: stateNew}}, Count: true, Do: Reset{}, Note: "its redirection was lost"},
		Rule{Count: true, Do: Drop{}, Note: "belongs to no connection, and would leave in plaintext"},
	)
}

// refusedUDP refuses what the pod sends over UDP, but for its look-ups that are captured, and
// answers to others.
func refusedUDP(cfg Config) []Rule {
	var rules []Rule
	udp := Proto{Number: protoUDP}
	for _, v6 := range []bool{false, true} {
		if cfg.IPv6 || !v6 {
			rules = append(rules, Rule{Match: []Match{udp, ToLoopback{IPv6: v6}}, Do: Accept{}, Note: "look-ups, redirected"})
		}
	}
	return append(rules,
		Rule{Match: []Match{udp, Answer{}}, Do: Accept{}, Note: "answers of the pod to others"},
		Rule{Match: []Match{udp}, Count: true, Do: Unreachable{}, Note: "UDP of the pod is refused"},
	)
}

// redirected accepts the connections of the pod that go to the proxy.
func redirected(cfg Config) []Rule {
	ports := []uint16{wellknown.PortOutbound}
	if cfg.CaptureDNS {
		ports = append(ports, wellknown.PortDNS)
	}
	var rules []Rule
	for _, v6 := range []bool{false, true} {
		if v6 && !cfg.IPv6 {
			continue
		}
		for _, port := range ports {
			rules = append(rules, Rule{Match: []Match{ToLoopback{IPv6: v6}, DestPort{Port: port}}, Do: Accept{}, Note: "outbound of the pod, redirected"})
		}
	}
	return rules
}

// resets matches segments that end a connection and carry nothing.
var resets = Flags{Mask: flagRST, Value: flagRST}

// forwardGuard refuses connections of machines inside the pod that would leave
// it past the proxy.
func forwardGuard(cfg Config) []Rule {
	var rules []Rule
	for _, name := range cfg.VirtualInterfaces {
		rules = append(rules, Rule{
			Match: []Match{InInterface(name), Proto{Number: protoTCP}, Flags{Mask: flagSYN | flagACK, Value: flagSYN}},
			Count: true, Do: Reset{}, Note: "not redirected",
		})
	}
	return rules
}

// guardChains are a part of the guard while captured connections are only brought
// to their end: others pass then, and the captured ones still never leave in
// plaintext.
func guardChains(cfg step) []Chain {
	var chains []Chain
	if !cfg.Quiesce {
		chains = append(chains, Chain{Name: "input", Type: "filter", Hook: "input", Priority: priorityFilter, Rules: inputGuard(cfg)})
	}
	// A route chain looks the route up again when the mark has changed.
	chains = append(chains, Chain{Name: "output", Type: "route", Hook: "output", Priority: priorityFilter, Rules: outputGuard(cfg)})
	if len(cfg.VirtualInterfaces) > 0 && !cfg.Quiesce {
		chains = append(chains, Chain{Name: "forward", Type: "filter", Hook: "forward", Priority: priorityFilter, Rules: forwardGuard(cfg.Config)})
	}
	return chains
}

// unguarded returns the rules without the guard.
func (s Ruleset) unguarded() Ruleset {
	s.Chains = slices.DeleteFunc(slices.Clone(s.Chains), func(c Chain) bool { return c.Priority == priorityFilter && c.Hook != "output" })
	for i, c := range s.Chains {
		if c.Priority == priorityFilter {
			last := slices.IndexFunc(c.Rules, func(r Rule) bool { return r.Do == RestoreMark{} })
			s.Chains[i].Rules = c.Rules[:last+1]
		}
	}
	return s
}

// probeMatches are the first packets of plaintext connections that are not
// captured.
func probeMatches(cfg Config) [][]Match {
	var all [][]Match
	for _, p := range cfg.Probes {
		v6 := p.Source.Addr().Is6()
		if v6 && !cfg.IPv6 {
			continue
		}
		from := []Match{SourceAddr{p.Source}}
		if p.Host {
			from = append(from, Hops{IPv6: v6, Value: hostHops})
			if v6 {
				// The host's tables have the pod's other addresses.
				from = append(from, NotToLinkLocal{})
			}
		}
		from = append(from, newTCP()...)
		if len(p.Ports) == 0 {
			all = append(all, from)
		}
		for _, port := range p.Ports {
			all = append(all, append(slices.Clone(from), DestPort{Port: port}))
		}
	}
	return all
}
