package poll

// Chunk sizes of a Queue: the first chunk is small, because most queues hold
// little and not for long, the later ones are large.
var chunkSizes = [...]int{4 << 10, 16 << 10, 64 << 10}

// maxFreeBytes bounds what a loop keeps of each chunk size for reuse.
const maxFreeBytes = 4 << 20

type chunk struct {
	next  *chunk
	r, w  int
	class int
	b     []byte
}

// Queue holds bytes in order, in chunks that belong to a loop. The zero value
// is empty and holds no memory; so does a queue that has become empty.
type Queue struct {
	head, tail *chunk
	n          int
}

// Len is how many bytes are in the queue.
func (q *Queue) Len() int { return q.n }

// Append copies p to the end.
func (q *Queue) Append(l *Loop, p []byte) {
	q.n += len(p)
	for len(p) > 0 {
		if q.tail == nil || q.tail.w == len(q.tail.b) {
			q.grow(l)
		}
		m := copy(q.tail.b[q.tail.w:], p)
		q.tail.w += m
		p = p[m:]
	}
}

func (q *Queue) grow(l *Loop) {
	class := 0
	if q.tail != nil {
		class = min(q.tail.class+1, len(chunkSizes)-1)
	}
	c := l.takeChunk(class)
	if q.tail == nil {
		q.head = c
	} else {
		q.tail.next = c
	}
	q.tail = c
}

// Front is the first bytes, nil when the queue is empty.
func (q *Queue) Front() []byte {
	if q.head == nil {
		return nil
	}
	return q.head.b[q.head.r:q.head.w]
}

// Discard drops the first n bytes, n ≤ Len.
func (q *Queue) Discard(l *Loop, n int) {
	q.n -= n
	for n > 0 {
		c := q.head
		m := min(n, c.w-c.r)
		c.r += m
		n -= m
		if c.r == c.w {
			q.head = c.next
			if q.head == nil {
				q.tail = nil
			}
			l.putChunk(c)
		}
	}
}

func (l *Loop) takeChunk(class int) *chunk {
	if free := &l.chunks[class]; free.head != nil {
		c := free.head
		free.head, c.next = c.next, nil
		free.n--
		return c
	}
	return &chunk{class: class, b: make([]byte, chunkSizes[class])}
}

func (l *Loop) putChunk(c *chunk) {
	free := &l.chunks[c.class]
	if (free.n+1)*chunkSizes[c.class] > maxFreeBytes {
		return // for the collector
	}
	c.r, c.w, c.next = 0, 0, free.head
	free.head = c
	free.n++
}

type chunkList struct {
	head *chunk
	n    int
}
