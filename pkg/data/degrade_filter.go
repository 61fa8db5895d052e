package data

import (
	"math"
	"slices"
)

// blur convolves d.cur with k, mirroring at the borders without repeating the edge pixel (OpenCV's default).
func (d *degrader) blur(k *BlurKernel) {
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

// sharpen is Real-ESRGAN's unsharp mask (USMSharp): the difference from a wide blur is added by half where it is larger than 10, with soft transitions.
func (d *degrader) sharpen() {
	const weight, threshold = 0.5, 10
	wide := &BlurKernel{Kind: KernelIso, Size: 51, SigmaX: 8}
	original := slices.Clone(d.cur.pix)
	d.blur(wide)
	sharp := make([]float32, len(original))
	for i, v := range original {
		residual := v - d.cur.pix[i]
		sharp[i] = clip(v + weight*residual)
		d.cur.pix[i] = 0
		if residual > threshold || residual < -threshold {
			d.cur.pix[i] = 1
		}
	}
	d.blur(wide)
	for i, mask := range d.cur.pix {
		d.cur.pix[i] = mask*sharp[i] + (1-mask)*original[i]
	}
}

// addTapsPlain is addTaps in Go.
func addTapsPlain(dst, src, taps []float32, step int) {
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

// planAxis plans a resampling of one direction from n to m samples.
func planAxis(n, m int, mode string) []taps {
	switch mode {
	case ModeArea:
		return planArea(n, m)
	case ModeBilinear:
		return planPoint(n, m, 2, Bilinear.at)
	case ModeBicubic:
		return planPoint(n, m, 4, cubic75)
	}
	return Bicubic.plan(n, m)
}

// planPoint interpolates at the target centres with a fixed number of taps, as torch's interpolate and OpenCV do; beyond the border the
// edge sample repeats.
func planPoint(n, m, width int, f func(x float64) float64) []taps {
	out := make([]taps, m)
	weights := make([]float32, width*m)
	for i := range out {
		at := (float64(i)+0.5)*float64(n)/float64(m) - 0.5
		from := int(math.Floor(at)) - width/2 + 1
		first, last := min(max(from, 0), n-1), min(max(from+width-1, 0), n-1)
		w := weights[i*width:][:last-first+1]
		for k := from; k < from+width; k++ {
			w[min(max(k, 0), n-1)-first] += float32(f(at - float64(k)))
		}
		out[i] = taps{first, w}
	}
	return out
}

// planArea averages the samples floor(i n/m) .. ceil((i+1) n/m), each with the same weight: torch's adaptive average.
func planArea(n, m int) []taps {
	out := make([]taps, m)
	for i := range out {
		first, end := i*n/m, ((i+1)*n+m-1)/m
		out[i] = taps{first, make([]float32, end-first)}
		for k := range out[i].weights {
			out[i].weights[k] = 1 / float32(end-first)
		}
	}
	return out
}

// cubic75 is Keys' cubic with a = -0.75.
func cubic75(x float64) float64 {
	x = math.Abs(x)
	switch {
	case x < 1:
		return (1.25*x-2.25)*x*x + 1
	case x < 2:
		return ((-0.75*x+3.75)*x-6)*x + 3
	}
	return 0
}

// resize resamples d.cur to w by h, rows first.
func (d *degrader) resize(w, h int, mode string) {
	f := &d.cur
	if f.w == w && f.h == h {
		return // every mode is the identity at scale 1
	}
	columns := planAxis(f.w, w, mode)
	d.out.resize(w, f.h)
	for y := range f.h {
		resizeRow(d.out.pix[3*w*y:][:3*w], f.pix[3*f.w*y:][:3*f.w], columns, 3)
	}
	rows := planAxis(f.h, h, mode)
	f.resize(w, h)
	clear(f.pix)
	for y, t := range rows {
		addTaps(f.pix[3*w*y:][:3*w], d.out.pix[3*w*t.first:], t.weights, 3*w)
	}
}
