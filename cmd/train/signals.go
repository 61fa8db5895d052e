package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// sameSignal is how close to the first signal others are taken for the same one: a terminal and the launcher below it (go run, timeout, mpirun) both pass it on.
const sameSignal = time.Second

// untilSignal is a context that the first SIGINT, SIGTERM or SIGUSR1 (which mpirun passes on to all its processes) ends. A SIGINT or SIGTERM later than
// sameSignal after it ends the program at once, with the shell's exit code for that signal.
func untilSignal() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGUSR1)
	go func() {
		var first time.Time
		for s := range signals {
			if first.IsZero() {
				first = time.Now()
				cancel()
			} else if number, ok := s.(syscall.Signal); ok && number != syscall.SIGUSR1 && time.Since(first) > sameSignal {
				fmt.Fprintln(os.Stderr, "train: interrupted again: ends without saving")
				os.Exit(128 + int(number))
			}
		}
	}()
	return ctx, func() { signal.Stop(signals); close(signals); cancel() }
}
