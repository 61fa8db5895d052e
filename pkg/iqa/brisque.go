package iqa

import (
	"bufio"
	"bytes"
	"compress/gzip"
	_ "embed"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"sync"

	"github.com/fluxir/fluxir/pkg/data"
)

const brisqueSide = 16 // smallest side of an image

//go:embed model/brisque_svm.txt.gz
var brisqueGzip []byte

// brisqueModel is a support vector regression with a radial kernel.
type brisqueModel struct {
	gamma, rho float64
	weights    []float64
	vectors    [][]float64
}

var loadBRISQUE = sync.OnceValue(func() brisqueModel {
	z, err := gzip.NewReader(bytes.NewReader(brisqueGzip))
	if err != nil {
		panic("iqa: embedded BRISQUE model: " + err.Error())
	}
	m, err := parseSVM(z)
	if err != nil {
		panic("iqa: embedded BRISQUE model: " + err.Error())
	}
	return m
})

// parseSVM reads a model of libsvm with dense vectors, numbered from 1.
func parseSVM(r io.Reader) (m brisqueModel, err error) {
	lines := bufio.NewScanner(r)
	head := true
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 {
			continue
		}
		number := func(s string) float64 {
			v, e := strconv.ParseFloat(s, 64)
			if e != nil {
				err = e
			}
			return v
		}
		switch {
		case head && fields[0] == "gamma":
			m.gamma = number(fields[1])
		case head && fields[0] == "rho":
			m.rho = number(fields[1])
		case head:
			head = fields[0] != "SV"
		default:
			m.weights = append(m.weights, number(fields[0]))
			vector := make([]float64, 0, len(fields)-1)
			for i, f := range fields[1:] {
				name, value, _ := strings.Cut(f, ":")
				if name != strconv.Itoa(i+1) {
					return m, fmt.Errorf("vector %d: field %q", len(m.vectors), f)
				}
				vector = append(vector, number(value))
			}
			if len(vector) != len(brisqueRange) {
				return m, fmt.Errorf("vector %d has %d numbers, want %d", len(m.vectors), len(vector), len(brisqueRange))
			}
			m.vectors = append(m.vectors, vector)
		}
	}
	if err == nil {
		err = lines.Err()
	}
	return m, err
}

// BRISQUE returns the blind spatial quality evaluator (Mittal et al. 2012) with the model and the features of the Python package brisque 0.2.0: grey of
// 0.2125 R + 0.7154 G + 0.0721 B, half size by OpenCV's bicubic. Lower is better, about 0 to 100. Images need 16 pixels a side.
func BRISQUE(m *data.Image) (float64, error) {
	if m.W < brisqueSide || m.H < brisqueSide {
		return 0, fmt.Errorf("BRISQUE: image of %dx%d pixels is too small, want %d a side", m.W, m.H, brisqueSide)
	}
	g := weigh(m, 0, 0.2125, 0.7154, 0.0721)
	features := g.brisqueFeatures()
	half := func(n int) int { return int(math.RoundToEven(float64(n) / 2)) }
	g = g.halve(half(m.W), half(m.H), []float64{-0.09375, 0.59375, 0.59375, -0.09375}, 1, repeated)
	features = append(features, g.brisqueFeatures()...)
	for i, v := range features {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return 0, fmt.Errorf("BRISQUE: the image has no contrast")
		}
		lo, hi := brisqueRange[i][0], brisqueRange[i][1]
		features[i] = 2*(v-lo)/(hi-lo) - 1
	}
	model := loadBRISQUE()
	score := -model.rho
	for i, vector := range model.vectors {
		var d float64
		for k, v := range vector {
			d += (v - features[k]) * (v - features[k])
		}
		score += model.weights[i] * math.Exp(-model.gamma*d)
	}
	return score, nil
}

// brisqueFeatures returns 18 features: shape and variance of the pixels, then shape, mean and the two variances of the products with the neighbours
// to the right, below, below right and below left. Zero counts on the right side.
func (g grey) brisqueFeatures() []float64 {
	normal := g.mscn(1./255, edgeZero)
	var m moments
	for _, v := range normal.v {
		m.add(v)
	}
	shape, left, right := m.brisqueFit()
	out := []float64{shape, (left*left + right*right) / 2}
	for _, shift := range [4][2]int{{0, 1}, {1, 0}, {1, 1}, {1, -1}} {
		rows := make([]moments, g.h-shift[0])
		data.Parallel(len(rows), func(lo, hi int) {
			for y := lo; y < hi; y++ {
				a, b := normal.row(y), normal.row(y+shift[0])
				if shift[1] < 0 {
					a, b = b, a
				}
				b = b[max(shift[1], -shift[1]):]
				for x, v := range b {
					rows[y].add(a[x] * v)
				}
			}
		})
		var m moments
		for _, r := range rows {
			m.merge(r)
		}
		shape, left, right := m.brisqueFit()
		mean := (right - left) * math.Exp(lgamma(2/shape)-(lgamma(1/shape)+lgamma(3/shape))/2)
		out = append(out, shape, mean, left*left, right*right)
	}
	return out
}

func (m *moments) merge(o moments) {
	m.n += o.n
	m.left += o.left
	m.right += o.right
	m.leftSquares += o.leftSquares
	m.rightSquares += o.rightSquares
	m.abs += o.abs
}

// brisqueFit returns the shape and the deviations of the two sides.
func (m moments) brisqueFit() (shape, left, right float64) {
	m.right = m.n - m.left
	left, right, ratio := m.spread()
	return exactShape(ratio), left, right
}
