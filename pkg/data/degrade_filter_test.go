package data

import (
	"bytes"
	"image"
	"image/jpeg"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// filled returns a degrader that holds a w by h picture made of f.
func filled(w, h int, f func(x, y, c int) float32) *degrader {
	d := new(degrader)
	d.cur.resize(w, h)
	for i := range d.cur.pix {
		d.cur.pix[i] = f(i/3%w, i/3/w, i%3)
	}
	return d
}

func noisePixels(seed uint64) func(x, y, c int) float32 {
	rng := rand.New(rand.NewPCG(seed, 0))
	return func(x, y, c int) float32 { return float32(rng.IntN(256)) }
}

var kernelCases = []*BlurKernel{
	{Kind: KernelIso, Size: 9, SigmaX: 1.2},
	{Kind: KernelAniso, Size: 21, SigmaX: 2.8, SigmaY: 0.4, Theta: 0.6},
	{Kind: KernelGeneralizedIso, Size: 7, SigmaX: 0.9, Beta: 0.5},
	{Kind: KernelGeneralizedAniso, Size: 11, SigmaX: 2, SigmaY: 1, Theta: -2, Beta: 3.5},
	{Kind: KernelPlateauIso, Size: 13, SigmaX: 1.5, Beta: 1.8},
	{Kind: KernelPlateauAniso, Size: 15, SigmaX: 3, SigmaY: 0.2, Theta: 1, Beta: 1.1},
	{Kind: KernelSinc, Size: 21, Omega: 0.7},
}

// TestBlurAgainstDefinition compares with a plain float64 convolution, on pictures smaller and larger than the kernel.
func TestBlurAgainstDefinition(t *testing.T) {
	for _, k := range kernelCases {
		for _, size := range [][2]int{{1, 1}, {2, 5}, {23, 19}} {
			w, h := size[0], size[1]
			d := filled(w, h, noisePixels(3))
			in := append([]float32(nil), d.cur.pix...)
			taps := k.weights()
			d.blur(k)
			r := k.Size / 2
			for i, got := range d.cur.pix {
				x, y, c := i/3%w, i/3/w, i%3
				var want float64
				for ky := range k.Size {
					for kx := range k.Size {
						want += float64(taps[ky*k.Size+kx]) * float64(in[3*(reflect(y+ky-r, h)*w+reflect(x+kx-r, w))+c])
					}
				}
				if math.Abs(float64(got)-want) > 1e-3 { // 441 products of up to 255 in float32
					t.Fatalf("%s at %v: pixel %d,%d is %g, want %g", k.Kind, size, x, y, got, want)
				}
			}
		}
	}
}

func TestKernelShapes(t *testing.T) {
	for _, k := range kernelCases {
		var sum, xx, yy, xy float64
		r := k.Size / 2
		for i, w := range k.weights() {
			x, y := float64(i%k.Size-r), float64(i/k.Size-r)
			sum += float64(w)
			xx += float64(w) * x * x
			yy += float64(w) * y * y
			xy += float64(w) * x * y
		}
		if math.Abs(sum-1) > 1e-5 {
			t.Errorf("%s: taps sum to %g", k.Kind, sum)
		}
		if k.Kind == KernelAniso { // covariance turned by theta: R diag(sx^2, sy^2) R'
			sin, cos := math.Sincos(k.Theta)
			a, b := k.SigmaX*k.SigmaX, k.SigmaY*k.SigmaY
			if math.Abs(xx-(cos*cos*a+sin*sin*b)) > 0.1 || math.Abs(xy-sin*cos*(a-b)) > 0.1 || math.Abs(yy-(sin*sin*a+cos*cos*b)) > 0.1 {
				t.Errorf("aniso: covariance %.2f %.2f %.2f", xx, xy, yy)
			}
		}
	}
	// The sinc kernel is an ideal low-pass up to its truncation: it keeps a wave well below its cutoff and removes one well above.
	k := &BlurKernel{Kind: KernelSinc, Size: 21, Omega: 1.2}
	response := func(omega float64) (g float64) {
		for i, w := range k.weights() {
			g += float64(w) * math.Cos(omega*float64(i%k.Size-10))
		}
		return g
	}
	if low, high := response(0.5), response(2.2); low < 0.85 || math.Abs(high) > 0.15 {
		t.Errorf("sinc response %.2f below the cutoff, %.2f above", low, high)
	}
}

var resizeModes = []string{ModeArea, ModeBilinear, ModeBicubic, ModeAntialias}

func TestResizeKeepsFlatPictures(t *testing.T) {
	for _, mode := range resizeModes {
		for _, s := range [][4]int{{1, 1, 5, 3}, {7, 3, 1, 1}, {31, 17, 12, 40}, {64, 64, 9, 21}} {
			d := filled(s[0], s[1], func(_, _, c int) float32 { return float32(40 + 50*c) })
			d.resize(s[2], s[3], mode)
			if d.cur.w != s[2] || d.cur.h != s[3] {
				t.Fatalf("%s: size %dx%d, want %dx%d", mode, d.cur.w, d.cur.h, s[2], s[3])
			}
			for i, v := range d.cur.pix {
				if math.Abs(float64(v)-float64(40+50*(i%3))) > 1e-3 {
					t.Fatalf("%s %v: value %g in channel %d", mode, s, v, i%3)
				}
			}
		}
	}
}

// TestResizeTaps compares plans with torch.nn.functional.interpolate's weights, worked out by hand.
func TestResizeTaps(t *testing.T) {
	for _, c := range []struct {
		mode  string
		n, m  int
		at    int
		first int
		want  []float32
	}{
		{ModeArea, 5, 3, 0, 0, []float32{0.5, 0.5}},
		{ModeArea, 5, 3, 1, 1, []float32{1. / 3, 1. / 3, 1. / 3}},
		{ModeArea, 2, 5, 2, 0, []float32{0.5, 0.5}},
		{ModeBilinear, 4, 8, 3, 1, []float32{0.75, 0.25}},
		{ModeBilinear, 8, 4, 1, 2, []float32{0.5, 0.5}},
		{ModeBilinear, 4, 8, 0, 0, []float32{1}},
		{ModeBicubic, 8, 16, 7, 2, []float32{-0.10546875, 0.87890625, 0.26171875, -0.03515625}},
		{ModeBicubic, 8, 4, 0, 0, []float32{0.59375 - 0.09375, 0.59375, -0.09375}},
	} {
		got := planAxis(c.n, c.m, c.mode)[c.at]
		ok := got.first == c.first && len(got.weights) == len(c.want)
		for i := range c.want {
			ok = ok && math.Abs(float64(got.weights[i]-c.want[i])) < 1e-6
		}
		if !ok {
			t.Errorf("%s %d to %d, sample %d: %v, want %d %v", c.mode, c.n, c.m, c.at, got, c.first, c.want)
		}
	}
}

// TestJPEGStage compares with encoding and decoding by the standard library: luma must be the same to rounding.
func TestJPEGStage(t *testing.T) {
	photo := texturedPhoto(45, 38, 8)
	previous := math.Inf(1)
	for _, quality := range []int{10, 50, 90, 100} {
		d := filled(45, 38, func(x, y, c int) float32 { return float32(photo.Pix[3*(y*45+x)+c]) })
		if err := d.jpeg(quality); err != nil {
			t.Fatal(err)
		}
		src := image.NewRGBA(image.Rect(0, 0, 45, 38))
		for i := range 45 * 38 {
			copy(src.Pix[4*i:], photo.Pix[3*i:3*i+3])
			src.Pix[4*i+3] = 255
		}
		var buf bytes.Buffer
		if err := jpeg.Encode(&buf, src, &jpeg.Options{Quality: quality}); err != nil {
			t.Fatal(err)
		}
		m, err := jpeg.Decode(&buf)
		if err != nil {
			t.Fatal(err)
		}
		ycc := m.(*image.YCbCr)
		total := 0.0
		for i := range 45 * 38 {
			p := d.cur.pix[3*i:]
			l := 0.299*p[0] + 0.587*p[1] + 0.114*p[2]
			if y := float32(ycc.Y[i/45*ycc.YStride+i%45]); min(p[0], p[1], p[2]) > 0 && max(p[0], p[1], p[2]) < 255 && math.Abs(float64(l-y)) > 1 {
				t.Fatalf("quality %d: luma %g at pixel %d, want %g", quality, l, i, y)
			}
			for c := range 3 {
				total += math.Abs(float64(p[c]) - float64(photo.Pix[3*i+c]))
			}
		}
		if total >= previous {
			t.Errorf("quality %d: error %g is not below %g of the lower quality", quality, total, previous)
		}
		previous = total
	}
}

// TestRunPatch compares with degrading the whole picture: equal everywhere but in the patch's outermost pixels after JPEG.
func TestRunPatch(t *testing.T) {
	for i := range uint64(60) {
		preset := []string{PresetLight, PresetJPEG, PresetSeeSR}[i%3]
		p, err := Draw(preset, 2, i, 0)
		if err != nil {
			t.Fatal(err)
		}
		whole, part := filled(96, 96, noisePixels(i)), filled(96, 96, noisePixels(i))
		if err := whole.run(p); err != nil {
			t.Fatal(err)
		}
		ox, oy := 16+int(i%5), 16-int(i%7)
		px, py, err := part.runPatch(p, ox, oy, 64)
		if err != nil {
			t.Fatal(err)
		}
		want, got := make([]float32, 3*64*64), make([]float32, 3*64*64)
		whole.cur.patch(want, ox, oy, 64)
		part.cur.patch(got, px, py, 64)
		for k := range want {
			x, y := k/3%64, k/3/64
			if inside := x > 0 && x < 63 && y > 0 && y < 63; inside && want[k] != got[k] {
				t.Fatalf("%s %d: pixel %d,%d is %g, want %g", preset, i, x, y, got[k], want[k])
			}
		}
	}
}

// TestAddTaps: vectors give the bits of the plain loop at every length, and write nothing else.
func TestAddTaps(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	fill := func(n int) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = 255 * (rng.Float32() - 0.3)
		}
		return v
	}
	for _, n := range []int{0, 1, 31, 32, 33, 95, 96, 384, 401} {
		for _, count := range []int{0, 1, 3, 4, 5, 7, 8, 21} {
			for _, step := range []int{1, 3, n} {
				src, taps, dst := fill(n+count*step), fill(count), fill(n+9)
				want := slices.Clone(dst)
				addTaps(dst[4:n+4], src, taps, step)
				addTapsPlain(want[4:n+4], src, taps, step)
				if !slices.Equal(dst, want) {
					t.Errorf("%d numbers, %d taps, step %d: other bits", n, count, step)
				}
			}
		}
	}
}
