package data

import (
	"fmt"
	"math"
)

// ColorFixKind names a way to give a restored picture the colours of its input.
type ColorFixKind string

// The colour fixes.
const (
	ColorFixNone    ColorFixKind = "none"
	ColorFixWavelet ColorFixKind = "wavelet" // the low frequencies of the reference, the rest of the result
	ColorFixAdaIN   ColorFixKind = "adain"   // mean and standard deviation of each channel of the reference
)

// ParseColorFix returns the kind of a name: none, wavelet or adain.
func ParseColorFix(name string) (ColorFixKind, error) {
	switch k := ColorFixKind(name); k {
	case ColorFixNone, ColorFixWavelet, ColorFixAdaIN:
		return k, nil
	}
	return "", fmt.Errorf("unknown colour fix %q (want none, wavelet or adain)", name)
}

// ColorFix returns result with the colours of reference, which must have its size; alpha and metadata are those of result. Values may
// leave 0..1. Source: StableSR, scripts/wavelet_color_fix.py.
func ColorFix(kind ColorFixKind, result, reference *Image) (*Image, error) {
	if err := sameSize("colour fix", result, reference, 1); err != nil {
		return nil, err
	}
	out := result.Clone()
	switch kind {
	case ColorFixNone:
	case ColorFixWavelet:
		waveletFix(out, reference)
	case ColorFixAdaIN:
		adainFix(out, reference)
	default:
		return nil, fmt.Errorf("unknown colour fix %q", kind)
	}
	return out, nil
}

// waveletFix replaces the low band of m by that of the reference. The à trous low-pass is linear, so
// m - low(m) + low(ref) = m + low(ref - m): one decomposition instead of two.
func waveletFix(m, ref *Image) {
	const levels = 5
	d := make([]float32, len(m.Pix))
	tmp := make([]float32, len(m.Pix))
	for i, v := range ref.Pix {
		d[i] = v - m.Pix[i]
	}
	for level := range levels {
		blurHoles(d, tmp, m.W, m.H, 1<<level)
	}
	for i, v := range d {
		m.Pix[i] += v
	}
}

// blurHoles filters v [h, w, 3] in place with [1 2 1]/4 along both axes, the outer taps step pixels away, edges repeated.
func blurHoles(v, tmp []float32, w, h, step int) {
	Parallel(h, func(lo, hi int) {
		for y := lo; y < hi; y++ {
			src, dst := v[3*y*w:3*(y+1)*w], tmp[3*y*w:3*(y+1)*w]
			for x := range w {
				l, r := 3*max(x-step, 0), 3*min(x+step, w-1)
				for c := range 3 {
					dst[3*x+c] = 0.25*(src[l+c]+src[r+c]) + 0.5*src[3*x+c]
				}
			}
		}
	})
	Parallel(h, func(lo, hi int) {
		for y := lo; y < hi; y++ {
			above, below := tmp[3*max(y-step, 0)*w:], tmp[3*min(y+step, h-1)*w:]
			src, dst := tmp[3*y*w:3*(y+1)*w], v[3*y*w:3*(y+1)*w]
			for i, s := range src {
				dst[i] = 0.25*(above[i]+below[i]) + 0.5*s
			}
		}
	})
}

// adainFix shifts and scales each channel of m to the mean and standard deviation of the reference.
func adainFix(m, ref *Image) {
	for c := range 3 {
		mean, deviation := moments(m, c)
		mean2, deviation2 := moments(ref, c)
		scale := float32(deviation2 / deviation)
		for i := c; i < len(m.Pix); i += 3 {
			m.Pix[i] = (m.Pix[i]-float32(mean))*scale + float32(mean2)
		}
	}
}

// moments returns the mean of a channel and the root of its unbiased variance + 1e-5, which keeps flat channels from dividing by 0.
func moments(m *Image, c int) (mean, deviation float64) {
	n := float64(m.W * m.H)
	mean = sumRows(m.H, 0, func(y int, _ []float64) (s float64) {
		for row := m.row(y); len(row) > 0; row = row[3:] {
			s += float64(row[c])
		}
		return s
	}) / n
	variance := sumRows(m.H, 0, func(y int, _ []float64) (s float64) {
		for row := m.row(y); len(row) > 0; row = row[3:] {
			s += (float64(row[c]) - mean) * (float64(row[c]) - mean)
		}
		return s
	}) / max(n-1, 1)
	return mean, math.Sqrt(variance + 1e-5)
}
