//go:build !unix

package data

import "os"

// mapFile reads the whole file: the fallback where there is no mmap.
func mapFile(path string) ([]byte, func() error, error) {
	raw, err := os.ReadFile(path)
	return raw, func() error { return nil }, err
}
