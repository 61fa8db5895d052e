package iqa

import (
	"math"
	"sort"

	"github.com/fluxir/fluxir/pkg/data"
)

// The statistics of natural scenes that NIQE and BRISQUE measure: pixels normalised by the mean and deviation of their surroundings, and products of
// neighbours, described by generalised Gaussian distributions.

// grey is a scalar image, [h, w] row-major.
type grey struct {
	w, h int
	v    []float64
}

func newGrey(w, h int) grey { return grey{w, h, make([]float64, w*h)} }

func (g grey) row(y int) []float64 { return g.v[y*g.w : (y+1)*g.w] }

// weigh returns bias + r R + g G + b B of an image's samples.
func weigh(m *data.Image, bias, r, g, b float64) grey {
	out := newGrey(m.W, m.H)
	data.Parallel(m.H, func(lo, hi int) {
		for i := lo * m.W; i < hi*m.W; i++ {
			p := m.Pix[3*i : 3*i+3]
			out.v[i] = bias + r*float64(p[0]) + g*float64(p[1]) + b*float64(p[2])
		}
	})
	return out
}

// edge says what lies outside of an image.
type edge int

const (
	edgeZero edge = iota
	edgeRepeat
)

const mscnWindow = 7

// flat is the relative difference from the mean that counts as none. The published codes leave the rounding of a sum there, whose sign then puts the
// flat parts of an image on one side or the other of a distribution.
const flat = 1e-12

// mscn returns (v - mean) / (deviation + c), both over a Gaussian window of 7x7 and sigma 7/6; v is not negative. A strip of rows keeps a ring of the last seven filtered ones.
func (g grey) mscn(c float64, e edge) grey {
	const n, r = mscnWindow, mscnWindow / 2
	var taps [n]float64
	sum := 0.0
	for i := range taps {
		d := float64(i-r) * 6 / 7
		taps[i] = math.Exp(-d * d / 2)
		sum += taps[i]
	}
	for i := range taps {
		taps[i] /= sum
	}
	out := newGrey(g.w, g.h)
	data.Parallel(g.h, func(lo, hi int) {
		line := make([]float64, 2*(g.w+2*r)) // a row and its squares with their borders
		ring := make([]float64, n*2*g.w)
		total := make([]float64, 2*g.w)
		for y := lo - r; y < hi+r; y++ {
			slot := ring[(y+n)%n*2*g.w:][:2*g.w]
			clear(slot)
			g.padded(line, y, r, e)
			for k, t := range taps {
				addScaled(slot[:g.w], line[k:], t)
				addScaled(slot[g.w:], line[g.w+2*r+k:], t)
			}
			if y < lo+r {
				continue
			}
			clear(total)
			for k, t := range taps {
				addScaled(total, ring[(y-2*r+k+n)%n*2*g.w:], t)
			}
			src, dst := g.row(y-r), out.row(y-r)
			for x, mean := range total[:g.w] {
				if d := src[x] - mean; math.Abs(d) > flat*mean {
					dst[x] = d / (math.Sqrt(math.Abs(total[g.w+x]-mean*mean)) + c)
				}
			}
		}
	})
	return out
}

// padded writes row y and its squares to line, each with r more values on both sides.
func (g grey) padded(line []float64, y, r int, e edge) {
	clear(line)
	if e == edgeZero && (y < 0 || y >= g.h) {
		return
	}
	src := g.row(min(max(y, 0), g.h-1))
	plain := line[:g.w+2*r]
	copy(plain[r:], src)
	if e == edgeRepeat {
		for i := range r {
			plain[i], plain[r+g.w+i] = src[0], src[g.w-1]
		}
	}
	squares := line[g.w+2*r:]
	for i, v := range plain {
		squares[i] = v * v
	}
}

// addScaled adds a times x to y; x may be longer.
func addScaled(y, x []float64, a float64) {
	x = x[:len(y)]
	for i := range y {
		y[i] += a * x[i]
	}
}

// halve resamples to half size, sides rounded up: taps weigh the pixels 2x-lead, 2x-lead+1, ... along either side, columns first; reach maps an
// index outside of 0..n-1 into it.
func (g grey) halve(w, h int, taps []float64, lead int, reach func(i, n int) int) grey {
	tall := newGrey(g.w, h)
	data.Parallel(h, func(lo, hi int) {
		for y := lo; y < hi; y++ {
			for k, t := range taps {
				addScaled(tall.row(y), g.row(reach(2*y-lead+k, g.h)), t)
			}
		}
	})
	out := newGrey(w, h)
	data.Parallel(h, func(lo, hi int) {
		for y := lo; y < hi; y++ {
			src, dst := tall.row(y), out.row(y)
			for x := range dst {
				for k, t := range taps {
					dst[x] += t * src[reach(2*x-lead+k, g.w)]
				}
			}
		}
	})
	return out
}

func repeated(i, n int) int { return min(max(i, 0), n-1) }

// mirrored reflects at the borders, the outermost pixel included.
func mirrored(i, n int) int {
	i = ((i % (2 * n)) + 2*n) % (2 * n)
	return min(i, 2*n-1-i)
}

// moments are the sums that an asymmetric generalised Gaussian is fitted to.
type moments struct{ n, left, right, leftSquares, rightSquares, abs float64 }

// add counts zero on neither side.
func (m *moments) add(v float64) {
	m.n++
	if v < 0 {
		m.left++
		m.leftSquares += v * v
		m.abs -= v
	} else if v > 0 {
		m.right++
		m.rightSquares += v * v
		m.abs += v
	}
}

// spread returns the deviations of the two sides and the moment ratio of the symmetric distribution of the same shape; NaN where a side is empty.
func (m *moments) spread() (left, right, ratio float64) {
	left, right = math.Sqrt(m.leftSquares/m.left), math.Sqrt(m.rightSquares/m.right)
	g := left / right
	r := m.abs * m.abs / m.n / (m.leftSquares + m.rightSquares)
	return left, right, r * (g*g*g + 1) * (g + 1) / ((g*g + 1) * (g*g + 1))
}

// gammaRatio is Γ(2/a)² / (Γ(1/a) Γ(3/a)), which rises with the shape a.
func gammaRatio(a float64) float64 {
	return math.Exp(2*lgamma(2/a) - lgamma(1/a) - lgamma(3/a))
}

func lgamma(x float64) float64 {
	v, _ := math.Lgamma(x)
	return v
}

// Shapes are looked up on a grid of 0.2 to 10 in steps of 0.001, as the published code of NIQE does.
const shapeLo, shapeStep, shapeCount = 0.2, 0.001, 9801

var shapeTable = func() []float64 {
	t := make([]float64, shapeCount)
	for i := range t {
		t[i] = gammaRatio(gridShape(i))
	}
	return t
}()

func gridShape(i int) float64 { return shapeLo + shapeStep*float64(i) }

// nearestShape is the shape on the grid whose ratio is nearest; the first for NaN.
func nearestShape(ratio float64) float64 {
	i := sort.SearchFloat64s(shapeTable, ratio)
	if math.IsNaN(ratio) {
		i = 0
	}
	if i == shapeCount || i > 0 && ratio-shapeTable[i-1] <= shapeTable[i]-ratio {
		i--
	}
	return gridShape(i)
}

// exactShape solves gammaRatio(a) = ratio for a in 0.02..100 by bisection.
func exactShape(ratio float64) float64 {
	lo, hi := 0.02, 100.0
	for range 64 {
		mid := (lo + hi) / 2
		if gammaRatio(mid) < ratio {
			lo = mid
		} else {
			hi = mid
		}
	}
	return (lo + hi) / 2
}
