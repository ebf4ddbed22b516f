// Package resident takes pages of the program's own file out of the process: those that only
// its start needed stay mapped otherwise for as long as it runs.
package resident

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mapping is a part of the address space.
type mapping struct{ from, to uintptr }

// Unmap takes the read-only pages of the program's file out of the process. The kernel keeps
// them in its page cache, and maps those that are used again, with their neighbours, at the
// first use. Nothing changes in what the program reads.
func Unmap() error {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read alone
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	program, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer program.Close() //nolint:errcheck // as above
	if err := fixed(program); err != nil {
		return err
	}
	maps, err := readOnly(f, exe)
	if err != nil {
		return err
	}
	for _, m := range maps {
		if _, _, e := unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED); e != 0 {
			err = errors.Join(err, fmt.Errorf("madvise: %w", e))
		}
	}
	return err
}

// executable is the type of a program that is linked to run at one address (ET_EXEC of the
// ELF specification).
const executable = 2

// fixed returns an error unless the header of a program's file has this type. The loader
// writes into a program that can run anywhere, and makes what it has written read-only
// afterwards: such pages differ from the file.
func fixed(file io.Reader) error {
	var header struct {
		Ident [16]byte
		Type  uint16
	}
	if err := binary.Read(file, binary.NativeEndian, &header); err != nil {
		return err
	}
	if header.Type != executable {
		return fmt.Errorf("the program's file is of type %d, not %d", header.Type, executable)
	}
	return nil
}

// readOnly returns the private mappings of a file without permission to write, from the text
// of /proc/PID/maps. Other mappings may have pages that differ from the file.
func readOnly(maps io.Reader, file string) (out []mapping, err error) {
	const fields = 6 // addresses, permissions, offset, device, inode, name
	for s := bufio.NewScanner(maps); ; {
		if !s.Scan() {
			return out, s.Err()
		}
		parts := strings.Fields(s.Text())
		if len(parts) < fields || strings.Join(parts[fields-1:], " ") != file || len(parts[1]) != 4 || parts[1][1] != '-' || parts[1][3] != 'p' {
			continue
		}
		from, to, _ := strings.Cut(parts[0], "-")
		a, err := strconv.ParseUint(from, 16, 64)
		if err != nil {
			return nil, err
		}
		b, err := strconv.ParseUint(to, 16, 64)
		if err != nil || b <= a {
			return nil, fmt.Errorf("%s is no range of addresses", parts[0])
		}
		out = append(out, mapping{uintptr(a), uintptr(b)})
	}
}
