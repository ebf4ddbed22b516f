package nft

import (
	"time"

	"golang.org/x/sys/unix"
)

// settle waits until each packet that the kernel was working on has left. The
// kernel works on a packet in one read-side section of RCU, from its first chain
// to its last, and membarrier(2) waits for the end of all such sections. So a
// packet that met the rules from before settle meets none from after it.
func settle() {
	// A kernel with tickless cores does not offer it. Then this is longer than a
	// packet takes as long as no core stops.
	const otherwise = 20 * time.Millisecond
	const global = 1 // MEMBARRIER_CMD_GLOBAL
	if _, _, err := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); err != 0 {
		time.Sleep(otherwise)
	}
}
