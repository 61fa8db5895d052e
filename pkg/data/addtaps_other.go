//go:build !amd64

package data

// addTaps does dst[i] += sum over k of taps[k] src[i + k step].
func addTaps(dst, src, taps []float32, step int) { addTapsPlain(dst, src, taps, step) }
