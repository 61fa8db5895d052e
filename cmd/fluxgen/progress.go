package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/schollz/progressbar/v3"
)

const lineEvery = 10 * time.Second // between progress lines where there is no terminal

// progress shows how far a stage is and how long it still takes: a bar on a terminal, else a line now and then.
type progress struct {
	log         io.Writer
	quiet       bool
	stage       string
	bar         *progressbar.ProgressBar
	begun, last time.Time
}

func newProgress(log io.Writer, quiet bool) *progress { return &progress{log: log, quiet: quiet} }

func (p *progress) tell(stage string, done, total int) {
	if p.quiet || total == 0 {
		return
	}
	now := time.Now()
	if stage != p.stage {
		p.end()
		p.stage, p.begun, p.last = stage, now, now
		if f, ok := p.log.(*os.File); ok && isatty.IsTerminal(f.Fd()) {
			p.bar = progressbar.NewOptions(total, progressbar.OptionSetWriter(p.log), progressbar.OptionSetDescription(stage),
				progressbar.OptionShowCount(), progressbar.OptionSetPredictTime(true), progressbar.OptionFullWidth(), progressbar.OptionClearOnFinish())
		}
	}
	if p.bar != nil {
		p.bar.Set(done)
		return
	}
	if done == total || done > 0 && now.Sub(p.last) >= lineEvery {
		p.last = now
		elapsed := now.Sub(p.begun)
		left := time.Duration(float64(elapsed) / float64(done) * float64(total-done))
		fmt.Fprintf(p.log, "%s %d/%d, %s, %s left\n", stage, done, total, elapsed.Round(time.Second), left.Round(time.Second))
	}
}

func (p *progress) end() {
	if p.bar != nil {
		p.bar.Finish()
		p.bar = nil
	}
}
