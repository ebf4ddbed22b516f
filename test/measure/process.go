// Package measure is what the measuring programs share: the programs of the
// mesh as processes of this machine, what these use of it, and waiting.
package measure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is a program that runs beside the one that measures it.
type Process struct {
	Name string
	cmd  *exec.Cmd
	log  string
}

// Start runs a program; what it says goes to dir/name.log.
func Start(dir, name, path string, env []string, args ...string) (*Process, error) {
	p := &Process{Name: name, log: filepath.Join(dir, name+".log"), cmd: exec.Command(path, args...)}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close() //nolint:errcheck // the program has its own descriptor
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	// The kernel ends it with us, however we end.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	return p, nil
}

// Kill ends it at once.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	_ = p.cmd.Wait()
}

// Words are the last that it said.
func (p *Process) Words() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-600):])
}

// Usage is what a process has used.
type Usage struct {
	CPU time.Duration // user and system
	RSS int64         // bytes resident
	// Anonymous are those of them that are no pages of files.
	Anonymous int64
}

// Usage is what it has used so far.
func (p *Process) Usage() (Usage, error) {
	dir := fmt.Sprintf("/proc/%d", p.cmd.Process.Pid)
	var text []byte
	for _, f := range []string{"/stat", "/smaps_rollup"} {
		b, err := os.ReadFile(dir + f)
		if err != nil {
			return Usage{}, fmt.Errorf("%s has ended: %w: %s", p.Name, err, p.Words())
		}
		text = append(text, b...)
	}
	return ParseUsage(string(text))
}

// clockTick is the unit of times in /proc/PID/stat; USER_HZ is 100 on every
// Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// ParseUsage reads /proc/PID/stat followed by /proc/PID/smaps_rollup.
func ParseUsage(text string) (Usage, error) {
	var u Usage
	// The second field is a name in parentheses, in which there may be others.
	f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	const utime, stime = 11, 12 // fields 14 and 15 of the line, after ")"
	if len(f) <= stime {
		return u, errors.New("no times in /proc/PID/stat")
	}
	for _, s := range []string{f[utime], f[stime]} {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return u, err
		}
		u.CPU += time.Duration(n) * clockTick
	}
	found := false
	for line := range strings.Lines(text) {
		name, rest, _ := strings.Cut(line, ":")
		if name != "Rss" && name != "Anonymous" {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
		switch {
		case err != nil:
			return u, err
		case name == "Rss":
			u.RSS, found = kib<<10, true
		default:
			u.Anonymous = kib << 10
		}
	}
	if found {
		return u, nil
	}
	return u, errors.New("no Rss in /proc/PID/smaps_rollup")
}

// Peak is the most that it ever had resident, in bytes.
func (p *Process) Peak() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("%s has ended: %w: %s", p.Name, err, p.Words())
	}
	return parsePeak(string(b))
}

func parsePeak(text string) (int64, error) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmHWM:" && f[2] == "kB" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("no VmHWM in /proc/PID/status")
}

// Until tries f until it succeeds, at most for limit; the program it depends
// on has the last word.
func (p *Process) Until(ctx context.Context, limit time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("waited %s", limit))
	defer cancel()
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w; %s said: %s", context.Cause(ctx), err, p.Name, p.Words())
		}
	}
}

// FreeAddrs finds loopback addresses that nobody listens on at the moment.
func FreeAddrs(n int) ([]string, error) {
	var out []string
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close() //nolint:errcheck // all at once, so that they differ
		out = append(out, ln.Addr().String())
	}
	return out, nil
}

// Get reads a page; an answer other than 200 is an error.
func Get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, resp.Status)
	}
	return b, err
}
