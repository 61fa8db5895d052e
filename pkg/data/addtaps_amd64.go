package data

import "golang.org/x/sys/cpu"

//go:noescape
func addTapsAVX(dst *float32, blocks int, src, taps *float32, count, step int)

//go:noescape
func addTapsAVX512(dst *float32, blocks int, src, taps *float32, count, step int)

// addTaps does dst[i] += sum over k of taps[k] src[i + k step]; the same bits with and without vectors.
func addTaps(dst, src, taps []float32, step int) {
	for _, v := range [...]struct {
		usable bool
		block  int
		f      func(dst *float32, blocks int, src, taps *float32, count, step int)
	}{{cpu.X86.HasAVX512F, 64, addTapsAVX512}, {cpu.X86.HasAVX, 32, addTapsAVX}} {
		if blocks := len(dst) / v.block; v.usable && blocks > 0 && len(taps) > 0 {
			_ = src[(len(taps)-1)*step+len(dst)-1]
			v.f(&dst[0], blocks, &src[0], &taps[0], len(taps), 4*step)
			dst, src = dst[v.block*blocks:], src[v.block*blocks:]
		}
	}
	addTapsPlain(dst, src, taps, step)
}
