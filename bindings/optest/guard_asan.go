//go:build asan

package optest

const guardAfter = 0 // the sanitizer watches the bytes after each tensor, reads included
