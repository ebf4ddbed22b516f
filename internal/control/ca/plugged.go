package ca

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"time"
)

// plugged follows the files of a plugged-in CA and keeps the last good ones.
type plugged struct {
	source      PluginSource // nil when there cannot be any
	trustDomain string
	logger      *slog.Logger

	signer *signer           // of the last good files
	sum    [sha256.Size]byte // of the files looked at last
	reason error             // why they are not in use; nil when they are
}

// String says where the files are, for people.
func (p *plugged) String() string {
	if p.source == nil {
		return ""
	}
	return p.source.String()
}

// broken reports whether there are files that cannot be used.
func (p *plugged) broken() bool { return p.reason != nil && !errors.Is(p.reason, errNoPlugin) }

// look loads what is new in the files, and returns it. What is wrong with them
// is logged once per version and kept as the reason.
func (p *plugged) look(now time.Time, fresh bool) *signer {
	if p.source == nil {
		p.reason = errNoPlugin
		return nil
	}
	texts, err := p.source.Files(fresh)
	var files pluginFiles
	if err == nil {
		files, err = choosePlugin(texts)
	}
	if err != nil {
		p.absent(err)
		return nil
	}
	if files.sum == p.sum {
		return nil
	}
	p.sum, p.reason = files.sum, nil
	s, err := loadPlugin(files, p.trustDomain, now)
	if err != nil {
		p.reason = err
		p.logger.Error("the plugged-in CA cannot be used; the signer in use stays", "from", p.String(), "reason", err)
		return nil
	}
	p.signer = s
	return s
}

func (p *plugged) absent(err error) {
	p.sum = [sha256.Size]byte{} // when they are there again, the reason is to go
	before := p.reason
	if p.reason = err; before != nil && before.Error() == err.Error() {
		return
	}
	level := slog.LevelWarn
	if errors.Is(err, errNoPlugin) && p.signer == nil {
		level = slog.LevelInfo // nobody has plugged one in
	}
	p.logger.Log(context.Background(), level, "no plugged-in CA to load; the signer in use stays", "from", p.String(), "reason", err)
}
