package rig

import (
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
)

// inventory is what has to go when the tests are interrupted: Go runs no
// cleanups then.
type inventory struct {
	mu   sync.Mutex
	labs map[*lab.Lab]struct{} // guarded by mu
	dirs []string              // guarded by mu
}

var running inventory

func (i *inventory) begins(l *lab.Lab) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.labs == nil {
		i.labs = map[*lab.Lab]struct{}{}
	}
	i.labs[l] = struct{}{}
}

func (i *inventory) ends(l *lab.Lab) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.labs, l)
}

func (i *inventory) leaves(dir string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.dirs = append(i.dirs, dir)
}

// endOnSignal waits for an interrupt, ends every lab, removes every directory
// and ends the process.
func (i *inventory) endOnSignal() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt, syscall.SIGTERM)
	<-c
	i.mu.Lock() // never unlocked: nothing begins any more
	for l := range i.labs {
		_ = l.Close()
	}
	for _, d := range i.dirs {
		remove(d)
	}
	os.Exit(130)
}

// remove removes a directory in which a test that is still running may be
// making files.
func remove(dir string) {
	for range 50 {
		_ = os.RemoveAll(dir)
		time.Sleep(10 * time.Millisecond)
		if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
			return
		}
	}
}
