package ztunnel

import (
	"context"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
	"github.com/ambit-mesh/ambit/internal/ztunnel/config"
)

// pollers lists the process's epoll instances.
func pollers(t *testing.T) map[int]bool {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	all := map[int]bool{}
	for _, n := range names {
		if to, _ := os.Readlink("/proc/self/fd/" + n.Name()); strings.Contains(to, "eventpoll") {
			fd, _ := strconv.Atoi(n.Name())
			all[fd] = true
		}
	}
	return all
}

// An event loop that fails ends the program, which says why: its connections
// would hang, and new ones as well.
func TestLoopThatFailsEndsTheProgram(t *testing.T) {
	env := bootstrap.Env{
		"NODE_NAME": "a", "FAKE_CA": "true", "LOCAL_XDS": "{}", "ZTUNNEL_WORKER_THREADS": "2",
		"INPOD_UDS":        t.TempDir() + "/nobody",
		"AMBIT_ADMIN_ADDR": freeAddr(t), "AMBIT_STATS_ADDR": freeAddr(t), "AMBIT_READY_ADDR": freeAddr(t),
	}
	cfg, err := config.Load(env, bootstrap.Host{CPUs: 2, Exists: func(string) bool { return false }, ReadFile: bootstrap.ThisHost().ReadFile})
	if err != nil {
		t.Fatal(err)
	}
	logs, err := logging.New(newLines(), logging.Plain, "info")
	if err != nil {
		t.Fatal(err)
	}
	before := pollers(t)
	app, err := NewApp(cfg, logs)
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	for fd := range pollers(t) {
		if !before[fd] {
			if err := syscall.Dup3(int(null.Fd()), fd, syscall.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
		}
	}
	done := make(chan error, 1)
	go func() { done <- app.Run(context.Background()) }()
	for i := range app.loops.Len() {
		app.loops.Loop(i).Post(func() {}) // it sleeps on the old instance
	}
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "event loop") || !strings.Contains(err.Error(), "epoll_wait") {
			t.Error(err)
		}
	case <-time.After(netnstest.Timeout):
		t.Fatal("the program goes on")
	}
}
