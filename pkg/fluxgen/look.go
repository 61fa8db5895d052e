package fluxgen

import (
	"math"
	"slices"

	"github.com/fluxir/fluxir/pkg/data"
)

// luma is 0.299 R + 0.587 G + 0.114 B on the scale 0..255.
func luma(m *data.Image) []float64 {
	out := make([]float64, m.W*m.H)
	for i := range out {
		p := m.Pix[3*i : 3*i+3]
		out[i] = 255 * (0.299*float64(p[0]) + 0.587*float64(p[1]) + 0.114*float64(p[2]))
	}
	return out
}

const (
	flatBlock     = 8
	flatDeviation = 1 // of the 0..255 scale
)

// flatness is the part of the 8x8 blocks whose luma has a standard deviation below 1 of 255. Rests at the right and lower border count nowhere; an image
// smaller than a block is one.
func flatness(m *data.Image) float64 {
	y := luma(m)
	w, h := min(flatBlock, m.W), min(flatBlock, m.H)
	flat, blocks := 0, 0
	for by := 0; by+h <= m.H; by += h {
		for bx := 0; bx+w <= m.W; bx += w {
			var sum, squares float64
			for r := range h {
				for _, v := range y[(by+r)*m.W+bx:][:w] {
					sum += v
					squares += v * v
				}
			}
			n := float64(w * h)
			if squares/n-sum/n*(sum/n) < flatDeviation*flatDeviation {
				flat++
			}
			blocks++
		}
	}
	return float64(flat) / float64(blocks)
}

// sharpness is the standard deviation of the Laplacian (4-neighbour) of the luma, without the border; 0 for images without an inside.
func sharpness(m *data.Image) float64 {
	y := luma(m)
	var n, sum, squares float64
	for r := 1; r < m.H-1; r++ {
		for c := 1; c < m.W-1; c++ {
			i := r*m.W + c
			v := y[i-1] + y[i+1] + y[i-m.W] + y[i+m.W] - 4*y[i]
			n++
			sum += v
			squares += v * v
		}
	}
	if n == 0 {
		return 0
	}
	return math.Sqrt(max(squares/n-sum/n*(sum/n), 0))
}

const (
	hashImage = 32
	hashSide  = 8
)

// perceptualHash is a hash that similar pictures share in most bits: which of the 8x8 lowest coefficients of the cosine transform of the picture, shrunk
// to 32x32, lie above their median.
func perceptualHash(m *data.Image) uint64 {
	y := luma(data.Resize(m, hashImage, hashImage, data.Area))
	coefficients := make([]float64, 0, hashSide*hashSide)
	for v := range hashSide {
		for u := range hashSide {
			var s float64
			for j := range hashImage {
				for i := range hashImage {
					s += y[j*hashImage+i] * cosine[u][i] * cosine[v][j]
				}
			}
			coefficients = append(coefficients, s)
		}
	}
	sorted := slices.Sorted(slices.Values(coefficients))
	median := (sorted[len(sorted)/2-1] + sorted[len(sorted)/2]) / 2
	var hash uint64
	for i, c := range coefficients {
		if c > median {
			hash |= 1 << i
		}
	}
	return hash
}

// cosine are the basis functions of the transform, up to their norm.
var cosine = func() (t [hashSide][hashImage]float64) {
	for u := range t {
		for i := range t[u] {
			t[u][i] = math.Cos(math.Pi * float64(u) * (float64(i) + 0.5) / hashImage)
		}
	}
	return t
}()
