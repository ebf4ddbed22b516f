package xds

import (
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

// TestParts: who follows a service by any of its names has its endpoints as
// well, and who is on a node what is there, without asking.
func TestParts(t *testing.T) {
	for name, script := range map[string]string{
		"by name": `
			set A svc=1|vip pod=1|ip|+svc other=1
			synced A
			sub A svc
			> A 1 pod=1 svc=1
			ack A 1
			set A pod=2|ip|+svc other=2
			> A 2 pod=2`,
		"by alias": `
			set A svc=1|vip pod=1|+svc
			synced A
			sub A vip
			> A 1 pod=1 svc=1
			ack A 1
			set A new=1|+svc
			> A 2 new=1
			ack A 2
			del A pod
			> A 3 -pod`,
		"a part by itself": `
			set A svc=1 pod=1|ip|+svc more=1|+svc
			synced A
			sub A ip
			> A 1 pod=1`,
		"the whole comes later": `
			set A pod=1|+svc
			synced A
			sub A vip
			> A 1 -vip
			ack A 1
			set A svc=1|vip
			> A 2 pod=1 svc=1`,
		"a part joins before the whole is sent": `
			set A svc=1
			synced A
			sub A svc
			set A pod=1|+svc
			> A 1 pod=1 svc=1`,
		"connecting again": `
			set A svc=1|vip pod=1|+svc late=1|+svc
			synced A
			sub A vip known=svc:1,pod:1
			> A 1 late=1 svc=1
			ack A 1
			set A pod=2|+svc
			> A 2 pod=2`,
		"no longer wanted": `
			set A svc=1|vip pod=1|+svc
			synced A
			sub A vip
			> A 1 pod=1 svc=1
			sub A -vip
			ack A 1
			set A svc=2|vip pod=2|+svc
			> A 2 -pod -svc
			ack A 2
			set A svc=3|vip pod=3|+svc
			> silence`,
		"of the node": `
			set A here=1|@at-n1 there=1|@at-n2
			synced A
			sub A * -* node=n1
			> A 1 here=1
			ack A 1
			set A more=1|@at-n1 there=2|@at-n2
			> A 2 more=1`,
		"of the node, connecting again": `
			set A here=1|@at-n1 new=1|@at-n1
			synced A
			sub A x known=here:1 node=n1
			> A 1 new=1 -x`,
		"everything is not more than that": `
			set A here=1|@at-n1 svc=1 pod=1|+svc
			synced A
			sub A node=n1
			> A 1 here=1 pod=1 svc=1`,
	} {
		t.Run(name, func(t *testing.T) {
			c := NewCache()
			s := newSession(c, nil)
			s.scope = func(n *core.Node, _ string) (Scope, error) {
				return Scope{All: true, Unasked: []Group{Group("at-" + n.GetId())}}, nil
			}
			c.join(s)
			transcript(t, s, script)
			if s.next() != nil {
				t.Error("the server says more")
			}
		})
	}
}
