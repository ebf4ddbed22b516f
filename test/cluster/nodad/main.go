// Command nodad is a CNI plugin, the first of the test cluster's: IPv6 addresses
// of pods are not asked for on the link before they are used. Nobody else is on
// a pod's link, the question (duplicate address detection, RFC 4862) takes one
// to two seconds, and the plugin that makes the link waits for its end.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// setting is what interfaces begin with that are made in a network namespace.
const setting = "/proc/sys/net/ipv6/conf/default/accept_dad"

func main() {
	switch os.Getenv("CNI_COMMAND") {
	case "VERSION":
		fmt.Println(`{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}`)
	case "ADD":
		if err := add(os.Getenv("CNI_NETNS")); err != nil {
			fmt.Printf(`{"cniVersion": "1.0.0", "code": 100, "msg": %q}`+"\n", err.Error())
			os.Exit(1)
		}
		fmt.Println(`{"cniVersion": "1.0.0"}`)
	}
}

func add(path string) error {
	ns, err := netns.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	return ns.Do(func() error {
		if err := os.WriteFile(setting, []byte("0"), 0); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil // no IPv6 here
	})
}
