//go:build !asan

package optest

const guardAfter = guard // bytes after each tensor
