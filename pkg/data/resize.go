package data

import (
	"fmt"
	"math"
)

// Kernel is a resampling filter. When an image shrinks, the filter is widened by the factor of reduction (as Pillow and Matlab do), so
// that nothing aliases.
type Kernel int

// The resampling filters.
const (
	Bicubic  Kernel = iota // Keys' cubic, a = -0.5, radius 2
	Bilinear               // triangle, radius 1
	Area                   // exact mean over the area that a target pixel covers; repeats pixels when enlarging by whole factors
	Lanczos3               // windowed sinc, radius 3
)

// ParseKernel returns the kernel of a name: bicubic, bilinear, area or lanczos3.
func ParseKernel(name string) (Kernel, error) {
	for _, k := range []Kernel{Bicubic, Bilinear, Area, Lanczos3} {
		if k.String() == name {
			return k, nil
		}
	}
	return 0, fmt.Errorf("unknown kernel %q (want bicubic, bilinear, area or lanczos3)", name)
}

func (k Kernel) String() string {
	return [...]string{Bicubic: "bicubic", Bilinear: "bilinear", Area: "area", Lanczos3: "lanczos3"}[k]
}

// radius is the support of the kernel to each side, in source pixels at scale 1.
func (k Kernel) radius() float64 {
	return [...]float64{Bicubic: 2, Bilinear: 1, Area: 0.5, Lanczos3: 3}[k]
}

// at returns the kernel's value at distance x.
func (k Kernel) at(x float64) float64 {
	x = math.Abs(x)
	switch {
	case k == Bilinear && x < 1:
		return 1 - x
	case k == Bicubic && x < 1:
		return (1.5*x-2.5)*x*x + 1
	case k == Bicubic && x < 2:
		return ((-0.5*x+2.5)*x-4)*x + 2
	case k == Lanczos3 && x < 3:
		return sinc(x) * sinc(x/3)
	}
	return 0
}

func sinc(x float64) float64 {
	if x == 0 {
		return 1
	}
	return math.Sin(math.Pi*x) / (math.Pi * x)
}

// taps are the weights of one target pixel: source pixels first, first+1, ...; they sum to 1.
type taps struct {
	first   int
	weights []float32
}

// plan computes the taps of all target pixels of a line that goes from n to m pixels.
func (k Kernel) plan(n, m int) []taps {
	scale := float64(n) / float64(m)
	stretch := max(scale, 1)
	out := make([]taps, m)
	for i := range out {
		centre := (float64(i) + 0.5) * scale
		reach := k.radius() * stretch
		if k == Area {
			reach = scale / 2
		}
		lo, hi := max(int(math.Floor(centre-reach)), 0), min(int(math.Ceil(centre+reach)), n)
		w := make([]float64, hi-lo)
		var sum float64
		for j := range w {
			x := float64(lo + j)
			if k == Area { // overlap of [x, x+1] with the target pixel
				w[j] = max(min(x+1, centre+reach)-max(x, centre-reach), 0)
			} else {
				w[j] = k.at((x + 0.5 - centre) / stretch)
			}
			sum += w[j]
		}
		out[i] = taps{lo, make([]float32, len(w))}
		for j := range w {
			out[i].weights[j] = float32(w[j] / sum)
		}
	}
	return out
}

// Resize returns m at w by h pixels; pixel centres are at half-integers and the border is cut, not padded, as in Pillow. Colour and
// alpha are resampled apart. Values may leave 0..1 by the overshoot of Bicubic and Lanczos3. The result is the same, bit for bit, on
// any number of processors. It panics when a side is not positive.
func Resize(m *Image, w, h int, k Kernel) *Image {
	if w == m.W && h == m.H {
		return m.Clone()
	}
	out := newLike(m, w, h)
	resizePlane(out.Pix, m.Pix, m.W, m.H, w, h, 3, k)
	if m.Alpha != nil {
		resizePlane(out.Alpha, m.Alpha, m.W, m.H, w, h, 1, k)
	}
	return out
}

// resizePlane resamples src [sh, sw, c] to dst [dh, dw, c], rows first.
func resizePlane(dst, src []float32, sw, sh, dw, dh, c int, k Kernel) {
	columns, rows := k.plan(sw, dw), k.plan(sh, dh)
	wide := src // [sh, dw, c]
	if sw != dw {
		wide = make([]float32, sh*dw*c)
		Parallel(sh, func(lo, hi int) {
			for y := lo; y < hi; y++ {
				resizeRow(wide[y*dw*c:(y+1)*dw*c], src[y*sw*c:(y+1)*sw*c], columns, c)
			}
		})
	}
	if sh == dh {
		copy(dst, wide)
		return
	}
	Parallel(dh, func(lo, hi int) {
		for y := lo; y < hi; y++ {
			out := dst[y*dw*c : (y+1)*dw*c]
			for j, t := range rows[y].weights {
				axpy(out, wide[(rows[y].first+j)*dw*c:], t)
			}
		}
	})
}

// resizeRow resamples one row of c interleaved channels (1 or 3).
func resizeRow(dst, src []float32, columns []taps, c int) {
	for x, t := range columns {
		if c == 1 {
			var s float32
			for j, w := range t.weights {
				s += w * src[t.first+j]
			}
			dst[x] = s
			continue
		}
		var r, g, b float32
		p := src[3*t.first : 3*(t.first+len(t.weights))]
		for _, w := range t.weights {
			r, g, b = r+w*p[0], g+w*p[1], b+w*p[2]
			p = p[3:]
		}
		dst[3*x], dst[3*x+1], dst[3*x+2] = r, g, b
	}
}

// axpy adds a times x to y; x may be longer.
func axpy(y, x []float32, a float32) {
	x = x[:len(y)]
	for i := range y {
		y[i] += a * x[i]
	}
}
