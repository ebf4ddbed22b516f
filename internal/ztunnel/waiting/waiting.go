// Package waiting hands the connections that wait on a listening socket over to the next
// generation of the proxy.
package waiting

import (
	"os"
	"strings"
)

// file is a setting of the network namespace it is opened in: what waits on a listening
// socket that is closed goes to another one of the same port instead of being reset
// (Linux 5.14).
const file = "/proc/sys/net/ipv4/tcp_migrate_req"

// HandOver makes the connections that wait to be accepted go to the next generation of the
// proxy, until restore. do runs a function in the pod's namespace. Where generations do not
// share ports, or the kernel does not let it, they are reset, as without it; failed gets
// the kernel's error.
func HandOver(shared bool, do func(func() error) error, failed func(error)) (restore func()) {
	restore = func() {}
	if !shared {
		return restore
	}
	err := do(func() error {
		was, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(was)) != "0" {
			return err
		}
		if err := os.WriteFile(file, []byte("1"), 0); err != nil {
			return err
		}
		restore = func() {
			_ = do(func() error { return os.WriteFile(file, was, 0) }) // it could be written a moment ago
		}
		return nil
	})
	if err != nil {
		failed(err)
	}
	return restore
}
