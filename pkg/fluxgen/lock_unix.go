//go:build unix

package fluxgen

import (
	"os"
	"syscall"
)

// lockFile takes a lock that ends with the process, or fails at once.
func lockFile(f *os.File, shared bool) error {
	how := syscall.LOCK_EX
	if shared {
		how = syscall.LOCK_SH
	}
	return syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
}
