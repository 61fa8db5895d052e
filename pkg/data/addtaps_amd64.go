package data

import "golang.org/x/sys/cpu"

//go:noescape
func addTapsAVX(dst *float32, blocks int, src, taps *float32, count, step int)

// addTaps does dst[i] += sum over k of taps[k] src[i + k step]; the same bits with and without AVX.
func addTaps(dst, src, taps []float32, step int) {
	blocks := len(dst) / 32
	if blocks > 0 && len(taps) > 0 && cpu.X86.HasAVX {
		_ = src[(len(taps)-1)*step+len(dst)-1]
		addTapsAVX(&dst[0], blocks, &src[0], &taps[0], len(taps), 4*step)
		dst, src = dst[32*blocks:], src[32*blocks:]
	}
	addTapsPlain(dst, src, taps, step)
}
