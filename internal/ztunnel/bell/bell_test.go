package bell

import "testing"

func TestBell(t *testing.T) {
	var b Bell
	b.Ring() // nothing waits
	first, same := b.Next(), b.Next()
	select {
	case <-first:
		t.Fatal("it rang before")
	default:
	}
	b.Ring()
	<-first
	<-same
	select {
	case <-b.Next():
		t.Fatal("a ring is for those who waited")
	default:
	}
}
