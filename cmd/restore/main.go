// Command restore makes degraded photographs better. `restore --help` has examples and all flags.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/fluxir/fluxir/pkg/restore"
)

// grace is how long an interrupted run may take to come to its end by itself.
const grace = 500 * time.Millisecond

// gcPercent lets the heap, a few planes of the image's size without pointers, grow by so much before it is collected: Go's 100 would double the peak.
const gcPercent = 20

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	c, err := parse(args, os.Stdout)
	if errors.Is(err, pflag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "restore: %v\nrun restore --help for the flags\n", err)
		return exitCode(err)
	}
	if c.options.Threads > 0 {
		runtime.GOMAXPROCS(c.options.Threads)
	}
	debug.SetGCPercent(gcPercent)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the program at once

	b := &batch{command: c, report: newReporter(c)}
	done := make(chan int, 1)
	go func() { done <- b.run(ctx) }()
	select {
	case code := <-done:
		return code
	case <-ctx.Done():
	}
	select {
	case code := <-done:
		return code
	case <-time.After(grace): // one op of a large model on a small device takes longer, and cannot be stopped
		b.halt()
		return exitInterrupted
	}
}

// batch is one run of the command.
type batch struct {
	*command
	report   *reporter
	restorer atomic.Pointer[restore.Restorer]
}

// run restores all files, one after the other, and returns the exit code. A file that fails does not stop the others.
func (b *batch) run(ctx context.Context) int {
	files, err := b.files()
	if err != nil {
		return b.report.fatal(err)
	}
	if b.sheet != "" && len(files) != 1 {
		return b.report.fatal(restore.Wrap(restore.ErrOption, errors.New("--sheet: want one input")))
	}
	if files = b.check(files); len(files) > 0 {
		r, err := restore.Open(b.options)
		if err != nil {
			return b.report.fatal(err)
		}
		defer r.Close()
		b.restorer.Store(r)
		for _, f := range files {
			b.report.begin(f)
			result, err := r.File(ctx, f.in, f.out, b.save, b.report.progress)
			if err == nil && b.sheet != "" {
				err = f.writeSheet(b.sheet)
			}
			if ctx.Err() != nil {
				break
			}
			b.report.end(f, result, err)
		}
	}
	return b.report.close(ctx.Err() != nil)
}

// check reports files that cannot work and files to be skipped, and returns the others, before a model is loaded.
func (b *batch) check(files []file) []file {
	var rest []file
	for _, f := range files {
		if _, err := os.Stat(f.out); err == nil && b.skipExisting {
			b.report.skip(f)
			continue
		}
		err := f.check()
		if err == nil && b.sheet != "" {
			err = restore.CheckOutput(f.in, b.sheet)
		}
		if err != nil {
			b.report.end(f, restore.Result{}, err)
			continue
		}
		rest = append(rest, f)
	}
	return rest
}

// halt keeps the run, which goes on until the program has ended, from writing.
func (b *batch) halt() {
	if r := b.restorer.Load(); r != nil {
		r.Halt()
	}
	b.report.interrupted()
}
