package nfttest

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Matched describes the rules of a namespace whose counters are not zero. What cannot be
// listed is left out.
func Matched(ns *netns.NS) []string {
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.File().Fd())))
	if err != nil {
		return nil
	}
	var out []string
	chains, _ := conn.ListChains()
	for _, c := range chains {
		rules, _ := conn.GetRules(c.Table, c)
		for _, r := range rules {
			for _, e := range r.Exprs {
				if n, is := e.(*expr.Counter); is && n.Packets > 0 {
					note, _ := userdata.GetString(r.UserData, userdata.TypeComment)
					out = append(out, fmt.Sprintf("%s %s: %d packets: %s", c.Table.Name, c.Name, n.Packets, note))
				}
			}
		}
	}
	return out
}
