package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/schollz/progressbar/v3"

	"github.com/fluxir/fluxir/pkg/restore"
)

// progressEvery is the shortest time between two progress lines of --json.
const progressEvery = 500 * time.Millisecond

// reporter tells the user what happens: a bar and result lines on a terminal, JSON lines for machines, otherwise errors only.
type reporter struct {
	mu       sync.Mutex // an interrupt is reported while the run is still going on
	json     bool
	terminal bool // stderr is one, and the user did not ask for quiet or JSON
	bar      *progressbar.ProgressBar

	current          file
	begun, last      time.Time
	stopped          bool
	ok, skipped, bad int
	code             int // of the failures so far; exitSome where they differ
}

func newReporter(c *command) *reporter {
	return &reporter{json: c.json, terminal: !c.quiet && !c.json && isatty.IsTerminal(os.Stderr.Fd())}
}

// begin starts the progress of a file.
func (r *reporter) begin(f file) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.current, r.begun, r.last = f, time.Now(), time.Time{}
	if r.terminal {
		r.bar = progressbar.NewOptions(-1, progressbar.OptionSetWriter(os.Stderr), progressbar.OptionSetDescription(filepath.Base(f.in)),
			progressbar.OptionSetPredictTime(true), progressbar.OptionSetElapsedTime(true), progressbar.OptionClearOnFinish(),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionFullWidth())
	}
}

// progress is the restorer's callback.
func (r *reporter) progress(done, total int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.bar != nil {
		r.bar.ChangeMax(total)
		r.bar.Set(done)
	}
	if now := time.Now(); r.json && (now.Sub(r.last) >= progressEvery || done == total) {
		r.last = now
		elapsed := now.Sub(r.begun).Seconds()
		r.line(map[string]any{
			"event": "progress", "input": r.current.in, "done": done, "total": total, "seconds": rounded(elapsed),
			"eta_seconds": rounded(elapsed * float64(total-done) / float64(done)),
		})
	}
}

// end reports a file that is done or has failed.
func (r *reporter) end(f file, result restore.Result, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clearBar()
	if err != nil {
		r.fail(f.in, err)
		return
	}
	r.ok++
	seconds, peak := result.Elapsed.Seconds(), peakMemory()
	if r.json {
		r.line(map[string]any{
			"event": "result", "input": f.in, "output": f.out, "width": result.Width, "height": result.Height, "seconds": rounded(seconds),
			"device_peak_bytes": result.DeviceBytes, "process_peak_bytes": peak, "streamed": result.Streamed,
		})
	}
	if r.terminal {
		streamed := map[bool]string{true: ", weights streamed"}[result.Streamed]
		fmt.Fprintf(os.Stderr, "%s: %d×%d in %.1f s, %d MB%s\n", f.out, result.Width, result.Height, seconds, peak/1e6, streamed)
	}
}

// skip reports a file whose output exists.
func (r *reporter) skip(f file) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.skipped++
	if r.json {
		r.line(map[string]any{"event": "skipped", "input": f.in, "output": f.out})
	}
}

// fail reports an error about an input, or about all of them where input is empty.
func (r *reporter) fail(input string, err error) {
	code := exitCode(err)
	r.bad++
	if r.code != exitOK && r.code != code {
		code = exitSome
	}
	r.code = code
	if r.json {
		r.line(map[string]any{"event": "error", "input": input, "code": exitCode(err), "error": err.Error()})
	}
	fmt.Fprintf(os.Stderr, "restore: %v\n", err)
}

// fatal reports an error that ends the run.
func (r *reporter) fatal(err error) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail("", err)
	return exitCode(err)
}

// close ends the report and returns the exit code.
func (r *reporter) close(interrupted bool) int {
	if interrupted {
		r.interrupted()
		return exitInterrupted
	}
	files := r.ok + r.skipped + r.bad
	if files > 1 {
		if r.json {
			r.line(map[string]any{"event": "summary", "restored": r.ok, "skipped": r.skipped, "failed": r.bad})
		}
		if r.terminal {
			fmt.Fprintf(os.Stderr, "%d restored, %d skipped, %d failed\n", r.ok, r.skipped, r.bad)
		}
		if r.bad > 0 && r.ok+r.skipped > 0 {
			return exitSome
		}
	}
	return r.code
}

// interrupted says that the user stopped the run.
func (r *reporter) interrupted() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return
	}
	r.stopped = true
	r.clearBar()
	if r.json {
		r.line(map[string]any{"event": "interrupted", "restored": r.ok})
	}
	fmt.Fprintln(os.Stderr, "restore: interrupted")
}

func (r *reporter) clearBar() {
	if r.bar != nil {
		r.bar.Clear()
		r.bar = nil
	}
}

func (r *reporter) line(v map[string]any) {
	text, err := json.Marshal(v)
	if err == nil {
		fmt.Printf("%s\n", text)
	}
}

// rounded cuts seconds to milliseconds.
func rounded(seconds float64) float64 { return float64(int64(seconds*1000+0.5)) / 1000 }
