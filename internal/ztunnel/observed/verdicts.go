package observed

import (
	"context"
	"log/slog"
	"strings"

	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
)

// Verdicts of policies under trial, as metric and log have them.
const (
	wouldDeny  = "would_deny"
	wouldAllow = "would_allow"
	// wouldAllowNone is of no single policy: no ALLOW is enforced, and none of those under
	// trial matched.
	wouldAllowNone = "would_allow_none"
)

// Decided counts and logs what policies said of a connection, and what those under trial
// would have.
func (n *Node) Decided(log *slog.Logger, level slog.Level, c *telemetry.Conn, access *rbac.Conn, d *rbac.Decision) {
	ctx := context.Background()
	if !d.Allowed {
		log.Log(ctx, level, "policy decision", "allowed", false, "policy", d.Policy, "src", access.Src, "dst", access.Dst, "identity", access.Identity.String())
	}
	if len(d.DryRun) == 0 && !d.WouldDeny {
		return
	}
	var all strings.Builder
	say := func(policy, verdict string) {
		if all.Len() > 0 {
			all.WriteByte(',')
		}
		if policy != "" {
			all.WriteString(policy + "=")
		}
		all.WriteString(verdict)
		if n != nil {
			n.verdicts.Count(policy, verdict)
		}
	}
	for _, dr := range d.DryRun {
		log.Log(ctx, level, "policy under trial", "policy", dr.Policy, "would_deny", dr.Deny, "src", access.Src, "dst", access.Dst, "identity", access.Identity.String())
		verdict := wouldAllow
		if dr.Deny {
			verdict = wouldDeny
		}
		say(dr.Policy, verdict)
	}
	if d.WouldDeny {
		log.Log(ctx, level, "allow policies under trial would have refused the connection", "src", access.Src, "dst", access.Dst, "identity", access.Identity.String())
		say("", wouldAllowNone)
	}
	if c.More == nil {
		c.More = &telemetry.More{}
	}
	c.More.DryRun = all.String()
}

// Policies drops the counts of policies that there are no more.
func (n *Node) Policies(s *rbac.Set) {
	if n == nil {
		return
	}
	n.verdicts.Keep(func(policy string) bool { return policy == "" || s.Has(policy) })
}
