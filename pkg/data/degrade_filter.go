package data

import "math"

// blur convolves d.cur with k, mirroring at the borders without repeating the edge pixel (OpenCV's default).
func (d *degrader) blur(k *Kernel) {
	r := k.Size / 2
	d.mirror(r)
	w, h, stride := d.cur.w, d.cur.h, 3*d.pad.w
	if k.Kind == KernelIso {
		line := k.line()
		d.out.resize(w, h+2*r)
		clear(d.out.pix)
		for y := range d.out.h {
			addTaps(d.out.pix[3*w*y:][:3*w], d.pad.pix[stride*y:][:stride], line, 3)
		}
		clear(d.cur.pix)
		for y := range h {
			addTaps(d.cur.pix[3*w*y:][:3*w], d.out.pix[3*w*y:], line, 3*w)
		}
		return
	}
	taps := k.weights()
	clear(d.cur.pix)
	for y := range h {
		for ky := range k.Size {
			addTaps(d.cur.pix[3*w*y:][:3*w], d.pad.pix[stride*(y+ky):][:stride], taps[ky*k.Size:][:k.Size], 3)
		}
	}
}

// addTaps does dst[i] += sum over k of taps[k] src[i + k step].
func addTaps(dst, src, taps []float32, step int) {
	n := len(dst)
	k := 0
	for ; k+4 <= len(taps); k += 4 { // four taps a pass save three quarters of the loads and stores of dst
		t0, t1, t2, t3 := taps[k], taps[k+1], taps[k+2], taps[k+3]
		a, b, c, e := src[k*step:][:n], src[(k+1)*step:][:n], src[(k+2)*step:][:n], src[(k+3)*step:][:n]
		for i := range dst {
			dst[i] += t0*a[i] + t1*b[i] + t2*c[i] + t3*e[i]
		}
	}
	for ; k < len(taps); k++ {
		t, a := taps[k], src[k*step:][:n]
		for i := range dst {
			dst[i] += t * a[i]
		}
	}
}

// mirror copies d.cur into d.pad with r more pixels on each side.
func (d *degrader) mirror(r int) {
	w, h := d.cur.w, d.cur.h
	d.pad.resize(w+2*r, h+2*r)
	for y := range d.pad.h {
		src := d.cur.pix[3*w*reflect(y-r, h):][:3*w]
		dst := d.pad.pix[3*d.pad.w*y:][:3*d.pad.w]
		copy(dst[3*r:], src)
		for i := range r {
			copy(dst[3*i:3*i+3], src[3*reflect(i-r, w):])
			copy(dst[3*(r+w+i):3*(r+w+i)+3], src[3*reflect(w+i, w):])
		}
	}
}

// reflect folds the index i into 0..n-1 like light between two mirrors that stand on the first and the last element.
func reflect(i, n int) int {
	if n == 1 {
		return 0
	}
	period := 2 * (n - 1)
	i %= period
	if i < 0 {
		i += period
	}
	return min(i, period-i)
}

// axis is a resampling of one direction: output i is the sum over k of weight[i*taps+k] input[index[i*taps+k]].
type axis struct {
	taps   int
	index  []int
	weight []float32
}

// newAxis plans a resampling from in to out samples.
func newAxis(in, out int, mode string) axis {
	scale := float64(in) / float64(out)
	switch mode {
	case ModeArea:
		return areaAxis(in, out)
	case ModeBilinear:
		return pointAxis(in, out, 2, func(t float64) float64 { return 1 - math.Abs(t) })
	case ModeBicubic:
		return pointAxis(in, out, 4, func(t float64) float64 { return cubic(t, -0.75) })
	}
	return filterAxis(in, out, max(scale, 1))
}

// pointAxis interpolates at the output centres with a fixed number of taps; beyond the border the edge sample repeats.
func pointAxis(in, out, taps int, f func(t float64) float64) axis {
	a := axis{taps, make([]int, 0, taps*out), make([]float32, 0, taps*out)}
	for i := range out {
		at := (float64(i)+0.5)*float64(in)/float64(out) - 0.5
		if taps == 2 {
			at = max(at, 0) // torch clamps the position for bilinear only; the edge sample is the same either way
		}
		first := int(math.Floor(at)) - taps/2 + 1
		for k := first; k < first+taps; k++ {
			a.index = append(a.index, min(max(k, 0), in-1))
			a.weight = append(a.weight, float32(f(at-float64(k))))
		}
	}
	return a
}

// areaAxis averages the input samples floor(i in/out) .. ceil((i+1) in/out).
func areaAxis(in, out int) axis {
	a := axis{taps: (in+out-1)/out + 1}
	for i := range out {
		first, end := i*in/out, ((i+1)*in+out-1)/out
		for k := range a.taps {
			w := float32(0)
			if first+k < end {
				w = 1 / float32(end-first)
			}
			a.index = append(a.index, min(first+k, in-1))
			a.weight = append(a.weight, w)
		}
	}
	return a
}

// filterAxis is PIL's resize with the bicubic filter (a = -0.5) widened by stretch; weights that fall outside are left out and the
// rest normalised.
func filterAxis(in, out int, stretch float64) axis {
	support := 2 * stretch
	a := axis{taps: int(math.Ceil(support))*2 + 1}
	for i := range out {
		centre := (float64(i) + 0.5) * float64(in) / float64(out)
		first := max(int(centre-support+0.5), 0)
		end := min(int(centre+support+0.5), in)
		sum := 0.0
		w := make([]float64, a.taps)
		for k := first; k < end; k++ {
			w[k-first] = cubic((float64(k)+0.5-centre)/stretch, -0.5)
			sum += w[k-first]
		}
		for k, v := range w {
			a.index = append(a.index, min(first+k, in-1))
			a.weight = append(a.weight, float32(v/sum))
		}
	}
	return a
}

// cubic is Keys' cubic convolution kernel with parameter a.
func cubic(t, a float64) float64 {
	t = math.Abs(t)
	switch {
	case t < 1:
		return ((a+2)*t-(a+3))*t*t + 1
	case t < 2:
		return ((a*t-5*a)*t+8*a)*t - 4*a
	}
	return 0
}

// resize resamples d.cur to w by h.
func (d *degrader) resize(w, h int, mode string) {
	f := &d.cur
	if f.w == w && f.h == h {
		return // every mode is the identity at scale 1
	}
	ax := newAxis(f.w, w, mode)
	d.out.resize(w, f.h)
	for y := range f.h {
		src, dst := f.pix[3*f.w*y:][:3*f.w], d.out.pix[3*w*y:][:3*w]
		for x := range w {
			var r, g, b float32
			for k := x * ax.taps; k < (x+1)*ax.taps; k++ {
				p, t := src[3*ax.index[k]:][:3], ax.weight[k]
				r += t * p[0]
				g += t * p[1]
				b += t * p[2]
			}
			dst[3*x], dst[3*x+1], dst[3*x+2] = r, g, b
		}
	}
	ay := newAxis(f.h, h, mode)
	f.resize(w, h)
	clear(f.pix)
	for y := range h {
		dst := f.pix[3*w*y:][:3*w]
		for k := y * ay.taps; k < (y+1)*ay.taps; k++ {
			if ay.weight[k] != 0 {
				addTaps(dst, d.out.pix[3*w*ay.index[k]:], ay.weight[k:k+1], 0)
			}
		}
	}
}
