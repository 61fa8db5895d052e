package data

import (
	"fmt"
	"math"
)

// sameSize is the error of a metric or colour fix whose images differ in size.
func sameSize(name string, a, b *Image) error {
	if a.W != b.W || a.H != b.H {
		return fmt.Errorf("%s: images differ in size: %dx%d and %dx%d", name, a.W, a.H, b.W, b.H)
	}
	return nil
}

// PSNR returns the peak signal-to-noise ratio in dB over all three channels, peak 1. Equal images give +Inf. Values are compared as they
// are: quantise first to compare what a viewer would see in 8-bit files.
func PSNR(a, b *Image) (float64, error) {
	if err := sameSize("PSNR", a, b); err != nil {
		return 0, err
	}
	rows := make([]float64, a.H)
	parallel(a.H, func(lo, hi int) {
		for y := lo; y < hi; y++ {
			q := b.Pix[3*y*b.W : 3*(y+1)*b.W]
			for i, v := range a.Pix[3*y*a.W : 3*(y+1)*a.W] {
				d := float64(v) - float64(q[i])
				rows[y] += d * d
			}
		}
	})
	return decibels(rows, len(a.Pix)), nil
}

// decibels turns squared errors (peak 1) into dB; rows are added in order, so that the sum does not depend on the split of the work.
func decibels(rows []float64, n int) float64 {
	return -10 * math.Log10(sum(rows)/float64(n))
}

func sum(v []float64) float64 {
	var s float64
	for _, x := range v {
		s += x
	}
	return s
}
