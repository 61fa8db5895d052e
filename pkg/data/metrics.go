package data

import (
	"fmt"
	"math"
)

// The metrics compare samples as they are, in 0..1 without rounding or clamping. To score what a viewer sees, compare files (Save, then
// Load). All of them are symmetric, accumulate in float64 row by row, and add the rows in order: the same bits on any number of
// processors. Alpha is ignored. Their only errors are images of different size, or too small.

// sameSize is the error of a metric or colour fix whose images differ in size or are smaller than least pixels on a side.
func sameSize(name string, a, b *Image, least int) error {
	if a.W != b.W || a.H != b.H {
		return fmt.Errorf("%s: images differ in size: %dx%d and %dx%d", name, a.W, a.H, b.W, b.H)
	}
	if a.W < least || a.H < least {
		return fmt.Errorf("%s: image of %dx%d pixels is too small, want %d a side", name, a.W, a.H, least)
	}
	return nil
}

// plane extracts one row of a scalar image from a row of RGB.
type plane func(dst []float64, rgb []float32)

// channel returns the plane of colour channel c.
func channel(c int) plane {
	return func(dst []float64, rgb []float32) {
		for x := range dst {
			dst[x] = float64(rgb[3*x+c])
		}
	}
}

// weighted returns the plane bias + r R + g G + b B.
func weighted(bias, r, g, b float64) plane {
	return func(dst []float64, rgb []float32) {
		for x := range dst {
			p := rgb[3*x : 3*x+3]
			dst[x] = bias + r*float64(p[0]) + g*float64(p[1]) + b*float64(p[2])
		}
	}
}

// studioLuma is the Y of Matlab's rgb2ycbcr in units of full scale (16/255..235/255), on which restoration papers report.
func studioLuma() plane { return weighted(16./255, 65.481/255, 128.553/255, 24.966/255) }

func (m *Image) row(y int) []float32 { return m.Pix[3*y*m.W : 3*(y+1)*m.W] }

// sumRows returns the sum of f(y) for y in 0..n; f gets a scratch slice of size float64 that its goroutine reuses.
func sumRows(n, size int, f func(y int, scratch []float64) float64) float64 {
	rows := make([]float64, n)
	Parallel(n, func(lo, hi int) {
		scratch := make([]float64, size)
		for y := lo; y < hi; y++ {
			rows[y] = f(y, scratch)
		}
	})
	var s float64
	for _, v := range rows {
		s += v
	}
	return s
}

// PSNR returns the peak signal-to-noise ratio in dB over the three channels together, peak 1. Equal images give +Inf.
func PSNR(a, b *Image) (float64, error) {
	if err := sameSize("PSNR", a, b, 1); err != nil {
		return 0, err
	}
	s := sumRows(a.H, 0, func(y int, _ []float64) (s float64) {
		q := b.row(y)
		for i, v := range a.row(y) {
			d := float64(v) - float64(q[i])
			s += d * d
		}
		return s
	})
	return -10 * math.Log10(s/float64(len(a.Pix))), nil
}

// PSNRY is PSNR of the luma of Matlab's rgb2ycbcr (16..235), peak 255, as restoration papers report "PSNR (Y)"; no border is cut.
func PSNRY(a, b *Image) (float64, error) {
	if err := sameSize("PSNRY", a, b, 1); err != nil {
		return 0, err
	}
	luma := studioLuma()
	s := sumRows(a.H, 2*a.W, func(y int, scratch []float64) (s float64) {
		p, q := scratch[:a.W], scratch[a.W:]
		luma(p, a.row(y))
		luma(q, b.row(y))
		for x := range p {
			s += (p[x] - q[x]) * (p[x] - q[x])
		}
		return s
	})
	return -10 * math.Log10(s/float64(a.W*a.H)), nil
}

// SSIM returns the structural similarity (Wang et al. 2004), the mean over the three channels: Gaussian window of 11x11 and sigma 1.5,
// population covariance, K1 = 0.01, K2 = 0.03, range 1, averaged over the pixels whose window lies inside. It is scikit-image's
// structural_similarity(gaussian_weights=True, use_sample_covariance=False, sigma=1.5, data_range=1, channel_axis=-1).
// Images need 11 pixels a side.
func SSIM(a, b *Image) (float64, error) {
	if err := sameSize("SSIM", a, b, ssimWindow); err != nil {
		return 0, err
	}
	var sum float64
	for c := range 3 {
		s, _ := ssim(planeRows(a, channel(c)), planeRows(b, channel(c)), a.W, a.H)
		sum += s
	}
	return sum / 3, nil
}

// SSIMY is SSIM of the luma of Matlab's rgb2ycbcr (16..235), range 255, as restoration papers report "SSIM (Y)".
func SSIMY(a, b *Image) (float64, error) {
	if err := sameSize("SSIMY", a, b, ssimWindow); err != nil {
		return 0, err
	}
	s, _ := ssim(planeRows(a, studioLuma()), planeRows(b, studioLuma()), a.W, a.H)
	return s, nil
}

// rows reads row y of a scalar image.
type rows func(dst []float64, y int)

func planeRows(m *Image, p plane) rows {
	return func(dst []float64, y int) { p(dst, m.row(y)) }
}

const ssimWindow = 11

// ssim is the mean SSIM of two scalar images and the mean of its contrast and structure factor. Each goroutine slides down its rows with a
// ring of the last 11 horizontally filtered rows of four maps: x, y, xx + yy (only the sum of the variances is needed) and xy.
func ssim(a, b rows, width, height int) (index, structure float64) {
	const n, maps = ssimWindow, 4
	var g [n]float64
	var norm float64
	for i := range g {
		d := float64(i - n/2)
		g[i] = math.Exp(-d * d / (2 * 1.5 * 1.5))
		norm += g[i]
	}
	for i := range g {
		g[i] /= norm
	}
	w, h := width-n+1, height-n+1
	sums := make([][2]float64, h)
	Parallel(h, func(lo, hi int) {
		raw := make([]float64, maps*width)
		ring := make([]float64, n*maps*w)
		out := make([]float64, maps*w)
		for y := lo; y < hi+n-1; y++ {
			x1, x2, sq, xy := raw[:width], raw[width:2*width], raw[2*width:3*width], raw[3*width:]
			a(x1, y)
			b(x2, y)
			for i, u := range x1 {
				v := x2[i]
				sq[i], xy[i] = u*u+v*v, u*v
			}
			slot := ring[y%n*maps*w:][:maps*w]
			clear(slot)
			for k, c := range g {
				for m := range maps {
					addScaled(slot[m*w:(m+1)*w], raw[m*width+k:], c)
				}
			}
			top := y - n + 1
			if top < lo {
				continue
			}
			clear(out)
			for k, c := range g {
				addScaled(out, ring[(top+k)%n*maps*w:], c)
			}
			sums[top] = ssimRow(out, w)
		}
	})
	for _, v := range sums {
		index += v[0]
		structure += v[1]
	}
	pixels := float64(w * h)
	return index / pixels, structure / pixels
}

// ssimRow sums the index and its contrast and structure factor over a row of window means: x, y, xx + yy, xy, w values each.
func ssimRow(means []float64, w int) (sum [2]float64) {
	const c1, c2 = 0.01 * 0.01, 0.03 * 0.03
	for i := range w {
		ux, uy := means[i], means[w+i]
		uxx, uxy := ux*ux+uy*uy, ux*uy
		structure := (2*(means[3*w+i]-uxy) + c2) / (means[2*w+i] - uxx + c2)
		sum[0] += (2*uxy + c1) / (uxx + c1) * structure
		sum[1] += structure
	}
	return sum
}

// addScaled adds a times x to y; x may be longer.
func addScaled(y, x []float64, a float64) {
	x = x[:len(y)]
	for i := range y {
		y[i] += a * x[i]
	}
}

// halved is a plane at half size: means of 2x2 pixels, where an odd side is first padded with one row and column of zeros, as piq does.
type halved struct {
	w, h int
	v    []float64
}

// half averages a plane of m over 2x2 pixels.
func half(m *Image, p plane) halved {
	pad := (m.W | m.H) & 1
	out := halved{w: (m.W + pad) / 2, h: (m.H + pad) / 2}
	out.v = make([]float64, out.w*out.h)
	Parallel(out.h, func(lo, hi int) {
		row := make([]float64, m.W+2)
		for y := lo; y < hi; y++ {
			dst := out.v[y*out.w : (y+1)*out.w]
			for sy := 2 * y; sy < min(2*y+2, m.H); sy++ {
				p(row[:m.W], m.row(sy))
				for x := range dst {
					dst[x] += (row[2*x] + row[2*x+1]) / 4
				}
			}
		}
	})
	return out
}

// at is the value at (x, y), zero outside.
func (p halved) at(x, y int) float64 {
	if x < 0 || y < 0 || x >= p.w || y >= p.h {
		return 0
	}
	return p.v[y*p.w+x]
}

// similarity is the ratio that GMSD and HaarPSI compare magnitudes with; c keeps it from 0/0.
func similarity(a, b, c float64) float64 { return (2*a*b + c) / (a*a + b*b + c) }

// GMSD returns the gradient magnitude similarity deviation (Xue et al. 2013) of the YIQ luma at half size: Prewitt gradients with zero
// padding, T = 170/255². 0 is equal, larger is worse. It is piq.gmsd. Images need 2 pixels a side.
func GMSD(a, b *Image) (float64, error) {
	if err := sameSize("GMSD", a, b, 2); err != nil {
		return 0, err
	}
	y := weighted(0, 0.299, 0.587, 0.114)
	p, q := half(a, y), half(b, y)
	const t = 170. / (255 * 255)
	gms := make([]float64, p.w*p.h)
	n := float64(len(gms))
	mean := sumRows(p.h, 0, func(y int, _ []float64) (s float64) {
		for x := range p.w {
			v := similarity(p.prewitt(x, y), q.prewitt(x, y), t)
			gms[y*p.w+x] = v
			s += v
		}
		return s
	}) / n
	variance := sumRows(p.h, 0, func(y int, _ []float64) (s float64) {
		for _, v := range gms[y*p.w : (y+1)*p.w] {
			s += (v - mean) * (v - mean)
		}
		return s
	}) / n
	return math.Sqrt(variance), nil
}

// prewitt is the gradient magnitude at (x, y).
func (p halved) prewitt(x, y int) float64 {
	var dx, dy float64
	for k := -1; k <= 1; k++ {
		dx += p.at(x-1, y+k) - p.at(x+1, y+k)
		dy += p.at(x+k, y-1) - p.at(x+k, y+1)
	}
	return math.Sqrt(dx*dx+dy*dy) / 3
}
