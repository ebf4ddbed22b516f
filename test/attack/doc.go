// Package attack drives attacks against the real programs, in network
// namespaces of this machine, in IPv4 and IPv6: each promise of
// docs/security.md has its attacker here. A test has the name of what it
// tries; its comment names the attacker and what the attacker needs.
package attack
