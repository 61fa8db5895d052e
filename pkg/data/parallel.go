package data

import (
	"runtime"
	"sync"
)

// Parallel splits 0..n into one contiguous range per processor, calls f on all of them at once and waits. Callers write results
// that depend only on the index, never on the split, so that the outcome is the same at any processor count.
func Parallel(n int, f func(lo, hi int)) {
	workers := min(runtime.GOMAXPROCS(0), n)
	if workers <= 1 {
		if n > 0 {
			f(0, n)
		}
		return
	}
	var wg sync.WaitGroup
	for k := range workers {
		wg.Go(func() { f(n*k/workers, n*(k+1)/workers) })
	}
	wg.Wait()
}
