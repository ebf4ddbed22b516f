package accesslog

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/internal/ops/logging"
)

func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		logs, err := logging.New(&out, logging.Plain, "info")
		if err != nil {
			t.Fatal(err)
		}
		l := NewLimiter(logs.Logger(Scope), Rates{Complete: 100, Failed: 10})
		loud, quiet := l.Pod("market/thief"), l.Pod("shop/web")
		count := func(p *Limit, complete bool, n int) (permitted int) {
			for range n {
				if p.Permit(complete) {
					permitted++
				}
			}
			return permitted
		}
		if n := count(loud, false, 5000); n != 10*burstSeconds {
			t.Errorf("a pod that was quiet writes %d lines at once", n)
		}
		if n := count(loud, true, 50); n != 50 {
			t.Errorf("lines of failures took the place of %d others", 50-n)
		}
		if n := count(quiet, false, 50); n != 50 {
			t.Errorf("a pod's flood suppressed %d lines of another one", 50-n)
		}
		time.Sleep(summary + time.Millisecond)
		synctest.Wait()
		if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `pod="market/thief" complete=0 failed=4900`) {
			t.Errorf("the summary is %q", got)
		}
		if n := count(loud, false, 100); n != 10 {
			t.Errorf("after one second, %d lines are permitted", n)
		}
		if c, f := l.Suppressed(); c != 0 || f != 4990 {
			t.Errorf("counted: %d, %d", c, f)
		}
		time.Sleep(2 * summary)
	})
}

func TestWithoutLimit(t *testing.T) {
	var none *Limit
	zero := NewLimiter(nil, Rates{}).Pod("a/b")
	for range 1000 {
		if !none.Permit(true) || !zero.Permit(false) {
			t.Fatal("there is a bound")
		}
	}
}
