package lobby

import (
	"net/netip"
	"time"
)

// debts are the handshakes of sources that this side has begun and the peer has not
// finished. A handshake costs this side as much as the peer, or more: a source in
// debt begins no other one. Debts shrink with time.
type debts struct {
	limit int           // handshakes that a source may owe
	life  time.Duration // after which one handshake is forgiven
	of    map[netip.Prefix]debt
}

// maxDebts bounds the sources in a debts, some 100 bytes each. A source beyond that
// takes the place of another one.
const maxDebts = 4096

// debtsOfAddresses and debtsOfNets are what an address may owe, and a network of
// many addresses. An address may owe as many handshakes as a node proxy begins at
// once (PoolConfig.MaxDials). What is forgiven, 10 a second, costs a hundredth of a
// processor. A network of IPv6 is often one node, with neighbours of the attacker.
func debtsOfAddresses() debts { return debts{64, 100 * time.Millisecond, map[netip.Prefix]debt{}} }
func debtsOfNets() debts      { return debts{1024, 10 * time.Millisecond, map[netip.Prefix]debt{}} }

// debt is n unfinished handshakes at a time.
type debt struct {
	n  int
	at time.Time
}

// now returns what is left of a source's debt.
func (d *debts) now(source netip.Prefix, now time.Time) debt {
	o := d.of[source]
	if past := now.Sub(o.at); past > 0 && o.n > 0 {
		forgiven := min(int(past/d.life), o.n)
		o.n -= forgiven
		o.at = o.at.Add(time.Duration(forgiven) * d.life)
	}
	return o
}

// wait returns for how long a source may begin no handshake; 0 if it may now.
func (d *debts) wait(source netip.Prefix, now time.Time) time.Duration {
	o := d.now(source, now)
	if o.n < d.limit {
		return 0
	}
	return time.Duration(o.n-d.limit+1)*d.life - now.Sub(o.at)
}

// add changes what a source owes by n handshakes.
func (d *debts) add(source netip.Prefix, n int, now time.Time) {
	o := d.now(source, now)
	if o.n == 0 {
		o.at = now
	}
	if o.n += n; o.n <= 0 {
		delete(d.of, source)
		return
	}
	if _, has := d.of[source]; !has && len(d.of) >= maxDebts {
		d.makeRoom(now)
	}
	d.of[source] = o
}

// makeRoom forgets sources that owe nothing any more, or else any one.
func (d *debts) makeRoom(now time.Time) {
	for source := range d.of {
		if d.now(source, now).n == 0 {
			delete(d.of, source)
		}
	}
	for source := range d.of {
		if len(d.of) < maxDebts {
			return
		}
		delete(d.of, source)
	}
}
