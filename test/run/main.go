// Command run is how this repository's make targets run Go tests: each group
// of packages by `go test -json`, failures shown whole, everything else as one
// line a package, and at the end "N passed, N failed".
//
//	go run ./test/run [-each] [go test flags] PACKAGES… [-- [go test flags] PACKAGES…]
//
// With -each, every test has a line when it ends: for few that take long.
// It exits 1 when a test failed, a package did not build, or no test ran.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

type event struct {
	Action, Package, ImportPath, Test, Output string
	Elapsed                                   float64
}

type summary struct {
	each                    bool
	passed, failed, skipped int
	output                  map[string][]string // of tests under way, by package and test
	guilty                  map[string]bool     // packages with a test that failed
}

func main() {
	args := os.Args[1:]
	s := &summary{each: len(args) > 0 && args[0] == "-each", output: map[string][]string{}, guilty: map[string]bool{}}
	if s.each {
		args = args[1:]
	}
	ok := true
	for _, group := range groups(args) {
		ok = s.run(group) && ok
	}
	if s.skipped > 0 {
		fmt.Printf("%d passed, %d failed, %d skipped\n", s.passed, s.failed, s.skipped)
	} else {
		fmt.Printf("%d passed, %d failed\n", s.passed, s.failed)
	}
	if !ok || s.failed > 0 || s.passed == 0 {
		os.Exit(1)
	}
}

func groups(args []string) [][]string {
	var all [][]string
	for {
		i := slices.Index(args, "--")
		if i < 0 {
			return append(all, args)
		}
		all = append(all, args[:i])
		args = args[i+1:]
	}
}

// run executes one go test. The tests stay in our process group's reach: an
// interrupt is passed on, and they clean up before we end.
func (s *summary) run(args []string) bool {
	fmt.Printf("go test %s\n", strings.Join(args, " "))
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	if slices.Contains(args, "-race") {
		cmd.Env = append(os.Environ(), "CGO_ENABLED=1") // the detector is C++
	}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return false
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	go func() {
		for range stop {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
		}
	}()
	start := time.Now()
	s.read(out)
	err = cmd.Wait()
	signal.Stop(stop)
	close(stop)
	fmt.Printf("took %s\n", time.Since(start).Round(time.Second))
	return err == nil
}

func (s *summary) read(r io.Reader) {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				_, _ = os.Stdout.Write(line)
			} else {
				s.event(e)
			}
		}
		if err != nil {
			return
		}
	}
}

func (s *summary) event(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output":
		s.output[key] = append(s.output[key], e.Output)
	case "build-output":
		fmt.Print(e.Output)
	case "pass", "fail", "skip":
		if e.Action == "fail" {
			fmt.Print(strings.Join(s.output[key], ""))
		}
		s.count(e)
		delete(s.output, key)
	}
}

// unfinished prints what the tests of a package wrote that were running when its
// process ended: a panic is among it.
func (s *summary) unfinished(pkg string) {
	for _, key := range slices.Sorted(maps.Keys(s.output)) {
		if strings.HasPrefix(key, pkg+" ") {
			fmt.Print(strings.Join(s.output[key], ""))
			delete(s.output, key)
		}
	}
}

func (s *summary) count(e event) {
	if e.Test == "" {
		if e.Action != "skip" { // no test files
			fmt.Printf("%-4s %6.1fs %s\n", e.Action, e.Elapsed, e.Package)
		}
		if e.Action == "fail" && !s.guilty[e.Package] {
			s.failed++ // it was not built, or ended before or after its tests
			s.unfinished(e.Package)
		}
		return
	}
	if s.each && !strings.Contains(e.Test, "/") {
		fmt.Printf("%-4s %6.1fs %s\n", e.Action, e.Elapsed, e.Test)
	}
	switch e.Action {
	case "pass":
		s.passed++
	case "fail":
		s.failed++
		s.guilty[e.Package] = true
	case "skip":
		s.skipped++
		fmt.Printf("SKIP %s %s\n%s", e.Package, e.Test, strings.Join(s.output[e.Package+" "+e.Test], ""))
	}
}
