package legs

import (
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
	"github.com/ambit-mesh/ambit/internal/ztunnel/config"
)

func TestCapturedRetries(t *testing.T) {
	k := config.KeepAlive{
		Enabled: true, Time: bootstrap.Duration(180 * time.Second), Interval: bootstrap.Duration(180 * time.Second), Retries: 9,
		CapturedIdle: bootstrap.Duration(45 * time.Second),
	}
	// 45 s and 39 probes are 1,800 s, as 180 s and 9 probes of 180 s are.
	if n := capturedRetries(k); n != 39 {
		t.Errorf("%d probes", n)
	}
	k.CapturedIdle = bootstrap.Duration(time.Second)
	if n := capturedRetries(k); n != 127 {
		t.Errorf("%d probes, and the kernel allows 127", n)
	}
	k.CapturedIdle = bootstrap.Duration(time.Hour)
	if n := capturedRetries(k); n != 1 {
		t.Errorf("%d probes", n)
	}
	k.Enabled = false
	if n := capturedRetries(k); n != 127 {
		t.Errorf("%d probes", n)
	}
}
