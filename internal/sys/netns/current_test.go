package netns

import (
	"os"
	"runtime"
	"testing"
)

// onFirst are functions for the process's first thread.
var onFirst = make(chan func())

func init() { runtime.LockOSThread() } // keeps the main goroutine on it

func TestMain(m *testing.M) {
	code := make(chan int)
	go func() { code <- m.Run() }()
	for {
		select {
		case f := <-onFirst:
			f()
		case c := <-code:
			os.Exit(c)
		}
	}
}

func TestCurrentIsNotWhereTheFirstThreadIs(t *testing.T) {
	ns, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	inside, leave := make(chan struct{}), make(chan struct{})
	left := make(chan error)
	onFirst <- func() {
		err := ns.Do(func() error {
			close(inside)
			<-leave
			return nil
		})
		go func() { left <- err }()
	}
	<-inside
	here, err := Current()
	close(leave)
	if err := <-left; err != nil {
		t.Error(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = here.Close() }()
	if here.ID() == ns.ID() {
		t.Error("the current namespace is the one that the first thread was in for a moment")
	}
}
