//go:build unix

package main

import (
	"runtime"
	"syscall"
)

// peakMemory is the largest amount of memory that the process has had resident, bytes; 0 where unknown.
func peakMemory() int64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	if runtime.GOOS == "darwin" {
		return int64(u.Maxrss)
	}
	return int64(u.Maxrss) << 10
}
