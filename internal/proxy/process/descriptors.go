package process

import (
	"log/slog"
	"syscall"
)

const (
	// maxDescriptors bounds what a limit that is infinite stands for.
	maxDescriptors = 1 << 20
	// fewDescriptors is the limit below which the program warns.
	fewDescriptors = 16384
)

// Descriptors returns how many descriptors the process may have.
func Descriptors() int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return fewDescriptors
	}
	return int(min(l.Cur, maxDescriptors))
}

// RaiseDescriptors takes as many descriptors as the process may have. It warns with
// consequence, a sentence, when those are few.
func RaiseDescriptors(log *slog.Logger, consequence string) {
	var l syscall.Rlimit
	err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l)
	if err == nil && l.Cur < l.Max {
		l.Cur = l.Max
		err = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l)
	}
	if err != nil {
		log.Warn("the limit of descriptors cannot be raised", "error", err)
	}
	if n := Descriptors(); n < fewDescriptors {
		log.Warn("few descriptors: "+consequence+" (raise the limit of open files of the container runtime)",
			"descriptors", n, "recommended", fewDescriptors)
	}
}
