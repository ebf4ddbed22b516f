package otlp

// Queue holds the encoded messages of one loop for one collector until they are sent.
// Its room is shared by parties: when it is full, the party with the most bytes loses
// what it added last. It belongs to one goroutine.
type Queue struct {
	most    int
	size    int // at most that
	parties map[string]*party
	order   []*party // whose turn is next, first
	dropped func(n int)
}

// party is one that shares the room.
type party struct {
	name string
	b    []byte // messages, back to back
	ends []int  // where each ends in b
	head int    // the first that was not taken
}

func (p *party) size() int {
	if p.head == 0 {
		return len(p.b)
	}
	return len(p.b) - p.ends[p.head-1]
}

func (p *party) empty() bool { return p.head == len(p.ends) }

// pop gives up the last message.
func (p *party) pop() (n int) {
	last := len(p.ends) - 1
	from := 0
	if last > 0 {
		from = p.ends[last-1]
	}
	n = p.ends[last] - from
	if p.b, p.ends = p.b[:from], p.ends[:last]; p.empty() {
		p.reset()
	}
	return n
}

const (
	// maxParties bounds the parties that a queue tells apart. Those beyond are one.
	maxParties = 256
	// keepParty is the largest buffer of an empty party that is kept, in bytes.
	keepParty = 4 << 10
)

// NewQueue returns a queue with room for most bytes. dropped is called with the number of
// messages that are given up.
func NewQueue(most int, dropped func(n int)) *Queue {
	return &Queue{most: most, parties: map[string]*party{}, dropped: dropped}
}

// Size returns how many bytes wait.
func (q *Queue) Size() int { return q.size }

// Admits reports whether a message of a party would be kept, so that one that would not
// need not be made.
func (q *Queue) Admits(name string, n int) bool {
	if q.size+n <= q.most {
		return true
	}
	p := q.parties[name]
	own := n
	if p != nil {
		own += p.size()
	}
	l := q.largest()
	return l != nil && l != p && l.size() >= own
}

// Add appends a message of a party, and reports whether it was kept.
func (q *Queue) Add(name string, message []byte) bool {
	n := len(message)
	if n > q.most || !q.Admits(name, n) {
		q.dropped(1)
		return false
	}
	p := q.party(name)
	for q.size+n > q.most {
		l := q.largest()
		if l == nil || l == p || l.size() < p.size()+n {
			q.dropped(1)
			return false
		}
		q.size -= l.pop()
		q.dropped(1)
	}
	p.b = append(p.b, message...)
	p.ends = append(p.ends, len(p.b))
	q.size += n
	return true
}

func (q *Queue) party(name string) *party {
	if p := q.parties[name]; p != nil {
		return p
	}
	if len(q.parties) >= maxParties {
		q.sweep()
	}
	if len(q.parties) >= maxParties {
		name = ""
		if p := q.parties[name]; p != nil {
			return p
		}
	}
	p := &party{name: name}
	q.parties[name] = p
	q.order = append(q.order, p)
	return p
}

// sweep forgets parties that have nothing.
func (q *Queue) sweep() {
	kept := q.order[:0]
	for _, p := range q.order {
		if p.empty() {
			delete(q.parties, p.name)
		} else {
			kept = append(kept, p)
		}
	}
	clear(q.order[len(kept):])
	q.order = kept
}

func (q *Queue) largest() (l *party) {
	for _, p := range q.order {
		if !p.empty() && (l == nil || p.size() > l.size()) {
			l = p
		}
	}
	return l
}

// Take moves messages of at most most bytes to dst, the parties in turns, and returns how
// many there were. A message that is larger comes alone.
func (q *Queue) Take(dst []byte, most int) (out []byte, n int) {
	start := len(dst)
	for q.size > 0 {
		took := false
		for _, p := range q.order {
			if p.empty() {
				continue
			}
			from := 0
			if p.head > 0 {
				from = p.ends[p.head-1]
			}
			m := p.b[from:p.ends[p.head]]
			if n > 0 && len(dst)-start+len(m) > most {
				continue
			}
			dst = append(dst, m...)
			p.head++
			q.size -= len(m)
			n++
			took = true
			if p.empty() {
				p.reset()
			}
		}
		if !took {
			break
		}
	}
	for _, p := range q.order {
		p.compact()
	}
	if len(q.order) > 1 { // who was first is last the next time
		first := q.order[0]
		copy(q.order, q.order[1:])
		q.order[len(q.order)-1] = first
	}
	return dst, n
}

// compact gives back the room of messages that were taken.
func (p *party) compact() {
	if p.head == 0 {
		return
	}
	gone := p.ends[p.head-1]
	p.b = p.b[:copy(p.b, p.b[gone:])]
	for i, end := range p.ends[p.head:] {
		p.ends[i] = end - gone
	}
	p.ends, p.head = p.ends[:len(p.ends)-p.head], 0
}

func (p *party) reset() {
	p.b, p.ends, p.head = p.b[:0], p.ends[:0], 0
	if cap(p.b) > keepParty {
		p.b, p.ends = nil, nil
	}
}
