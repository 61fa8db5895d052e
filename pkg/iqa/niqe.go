package iqa

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"math"
	"sync"

	"gonum.org/v1/gonum/mat"

	"github.com/fluxir/fluxir/pkg/data"
)

const (
	niqeBlock    = 96 // pixels a side
	niqeFeatures = 36 // 18 at two scales
)

//go:embed model/niqe.json
var niqeJSON []byte

// niqeModel is the Gaussian of pristine blocks' features.
type niqeModel struct {
	Mean       []float64   `json:"mean"`
	Covariance [][]float64 `json:"covariance"`
}

var loadNIQE = sync.OnceValue(func() (m niqeModel) {
	if err := json.Unmarshal(niqeJSON, &m); err != nil {
		panic("iqa: embedded NIQE model: " + err.Error())
	}
	return m
})

// NIQE returns the natural image quality evaluator (Mittal et al. 2013): the distance between the statistics of the image's 96x96 blocks and those
// of pristine photographs. Lower is better. The luma is Matlab's rgb2ycbcr rounded to 8 bits, the model the authors' own. Images need 192 pixels on
// one side and 96 on the other, two blocks; it fails where all blocks are flat.
func NIQE(m *data.Image) (float64, error) {
	columns, rows := m.W/niqeBlock, m.H/niqeBlock
	if NIQEBlocks(m.W, m.H) < 2 {
		return 0, fmt.Errorf("NIQE: image of %dx%d pixels is too small, want two blocks of %d", m.W, m.H, niqeBlock)
	}
	m = m.Crop(0, 0, columns*niqeBlock, rows*niqeBlock)
	luma := weigh(m, 16, 65.481, 128.553, 24.966)
	for i, v := range luma.v {
		luma.v[i] = math.RoundToEven(v)
	}
	features := make([][]float64, columns*rows)
	for i := range features {
		features[i] = make([]float64, niqeFeatures)
	}
	for scale, size := 0, niqeBlock; scale < 2; scale, size = scale+1, size/2 {
		normal := luma.mscn(1, edgeRepeat)
		data.Parallel(len(features), func(lo, hi int) {
			for i := lo; i < hi; i++ {
				normal.niqeFeatures(features[i][18*scale:], i%columns*size, i/columns*size, size)
			}
		})
		if scale == 0 {
			luma = luma.halve(luma.w/2, luma.h/2, matlabHalf[:], 3, mirrored)
		}
	}
	return niqeDistance(features)
}

// NIQEBlocks is the number of blocks in a picture, of which NIQE needs two.
func NIQEBlocks(w, h int) int { return (w / niqeBlock) * (h / niqeBlock) }

// matlabHalf is Keys' cubic, a = -0.5, widened by two: imresize(·, 0.5).
var matlabHalf = func() (t [8]float64) {
	for i := range t {
		x := math.Abs(float64(i)-3.5) / 2
		t[i] = ((-0.5*x+2.5)*x-4)*x + 2
		if x < 1 {
			t[i] = (1.5*x-2.5)*x*x + 1
		}
		t[i] /= 2
	}
	return t
}()

// niqeFeatures writes the 18 features of the block of size² pixels at (x0, y0): shape and scale of the pixels, then shape, mean and the two scales of
// the products with the neighbours to the left, above, above left and above right. Neighbours wrap around within the block, as in the published code.
func (g grey) niqeFeatures(dst []float64, x0, y0, size int) {
	var m moments
	for y := range size {
		for _, v := range g.row(y0 + y)[x0 : x0+size] {
			m.add(v)
		}
	}
	shape, left, right := m.niqeFit()
	dst[0], dst[1] = shape, (left+right)/2
	for k, shift := range [4][2]int{{0, 1}, {1, 0}, {1, 1}, {1, -1}} {
		var m moments
		for y := range size {
			row := g.row(y0 + y)[x0 : x0+size]
			other := g.row(y0 + (y-shift[0]+size)%size)[x0 : x0+size]
			for x, v := range row {
				i := x - shift[1]
				if i < 0 {
					i += size
				} else if i >= size {
					i -= size
				}
				m.add(v * other[i])
			}
		}
		shape, left, right := m.niqeFit()
		mean := (right - left) * math.Exp(lgamma(2/shape)-lgamma(1/shape))
		copy(dst[2+4*k:], []float64{shape, mean, left, right})
	}
}

// niqeFit returns shape and the two scales.
func (m *moments) niqeFit() (shape, left, right float64) {
	left, right, ratio := m.spread()
	shape = nearestShape(ratio)
	unit := math.Exp((lgamma(1/shape) - lgamma(3/shape)) / 2)
	return shape, left * unit, right * unit
}

// niqeDistance compares the Gaussian of the blocks' features with the model. Features that are not numbers, of blocks without contrast, are left out
// of the means, and their blocks out of the covariance.
func niqeDistance(blocks [][]float64) (float64, error) {
	pristine := loadNIQE()
	mean, count := make([]float64, niqeFeatures), make([]float64, niqeFeatures)
	var whole [][]float64
	for _, b := range blocks {
		complete := true
		for i, v := range b {
			if math.IsNaN(v) {
				complete = false
				continue
			}
			mean[i] += v
			count[i]++
		}
		if complete {
			whole = append(whole, b)
		}
	}
	if len(whole) < 2 {
		return 0, fmt.Errorf("NIQE: %d of %d blocks have contrast, want 2", len(whole), len(blocks))
	}
	own := make([]float64, niqeFeatures)
	for i := range mean {
		mean[i] /= count[i]
		for _, b := range whole {
			own[i] += b[i] / float64(len(whole))
		}
	}
	middle := mat.NewSymDense(niqeFeatures, nil)
	for i := range niqeFeatures {
		for j := i; j < niqeFeatures; j++ {
			var s float64
			for _, b := range whole {
				s += (b[i] - own[i]) * (b[j] - own[j])
			}
			middle.SetSym(i, j, (s/float64(len(whole)-1)+pristine.Covariance[i][j])/2)
		}
	}
	var eigen mat.EigenSym
	if !eigen.Factorize(middle, true) {
		return 0, fmt.Errorf("NIQE: the covariance of the features has no eigenvalues")
	}
	values := eigen.Values(nil)
	var vectors mat.Dense
	eigen.VectorsTo(&vectors)
	var distance float64
	for k, value := range values {
		if value <= 1e-15*values[len(values)-1] {
			continue // the pseudo-inverse
		}
		var along float64
		for i := range mean {
			along += vectors.At(i, k) * (pristine.Mean[i] - mean[i])
		}
		distance += along * along / value
	}
	return math.Sqrt(distance), nil
}
