package door

import "container/list"

// stage is how far an unauthenticated connection has come.
type stage int

const (
	held     stage = iota // waits until its network address may go on, see pace
	silent                // has sent nothing
	speaking              // has sent something
	secured               // has finished the TLS handshake
)

// place is a connection's entry in a book.
type place struct {
	conn    *Conn
	peer    string
	stage   stage
	element *list.Element // nil when it is not in the book
}

// book lists the unauthenticated connections by network address, each list
// from the oldest to the newest.
type book struct {
	most, mostPeer int
	total          int
	peers          map[string]*list.List
}

func newBook(most, mostPeer int) book {
	return book{most: most, mostPeer: mostPeer, peers: map[string]*list.List{}}
}

// add enters a connection. It returns the connection that has to go for it, or
// nil: one of the same peer when that has too many, else one of the peer that has
// most.
func (b *book) add(p *place, peer string) (victim *place) {
	p.peer = peer
	l := b.peers[peer]
	if l == nil {
		l = list.New()
	}
	switch {
	case l.Len() >= b.mostPeer:
		victim = b.shed(l)
	case b.total >= b.most:
		victim = b.shed(b.largest())
	}
	b.peers[peer] = l // the victim may have been its last
	p.element = l.PushBack(p)
	b.total++
	return victim
}

// largest returns the list of the peer with most connections.
func (b *book) largest() *list.List {
	var out *list.List
	for _, l := range b.peers {
		if out == nil || l.Len() > out.Len() {
			out = l
		}
	}
	return out
}

// shed removes the connection that has come least far, and of those the oldest.
func (b *book) shed(l *list.List) *place {
	var victim *place
	for e := l.Front(); e != nil; e = e.Next() {
		if p, _ := e.Value.(*place); victim == nil || p.stage < victim.stage {
			victim = p
		}
	}
	if victim != nil {
		b.remove(victim)
	}
	return victim
}

// first returns the connection of a peer that has been held for longest, or nil.
func (b *book) first(peer string) *place {
	l := b.peers[peer]
	if l == nil {
		return nil
	}
	for e := l.Front(); e != nil; e = e.Next() {
		if p, _ := e.Value.(*place); p.stage == held {
			return p
		}
	}
	return nil
}

// remove takes a connection out; it reports whether it was in the book.
func (b *book) remove(p *place) bool {
	if p.element == nil {
		return false
	}
	l := b.peers[p.peer]
	l.Remove(p.element)
	p.element = nil
	b.total--
	if l.Len() == 0 {
		delete(b.peers, p.peer)
	}
	return true
}
