package data

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
)

// tally counts how often things happen in repeated draws.
type tally struct {
	t *testing.T
	n map[string]int
}

// want checks that name happened with chance p in total draws, within five standard deviations.
func (c tally) want(name string, total int, p float64) {
	c.t.Helper()
	mean := p * float64(total)
	c.t.Logf("| %s | %.4g | %.4f |", name, p, float64(c.n[name])/float64(total))
	if dev := math.Abs(float64(c.n[name]) - mean); dev > 5*math.Sqrt(mean*(1-p)) {
		c.t.Errorf("%s: %d of %d draws, want %.0f", name, c.n[name], total, mean)
	}
}

// span follows the smallest and the largest value seen.
type span struct{ lo, hi float64 }

type spans map[string]*span

func (s spans) add(name string, v float64) {
	if s[name] == nil {
		s[name] = &span{v, v}
	}
	s[name].lo, s[name].hi = min(s[name].lo, v), max(s[name].hi, v)
}

// want checks that the values of name stayed inside lo..hi and came within 2 % of its width of both ends.
func (s spans) want(t *testing.T, name string, lo, hi float64) {
	t.Helper()
	g, slack := s[name], 0.02*(hi-lo)
	t.Logf("| %s | %.3g to %.3g | %.3g to %.3g |", name, lo, hi, g.lo, g.hi)
	if g.lo < lo || g.hi > hi || g.lo > lo+slack || g.hi < hi-slack {
		t.Errorf("%s: range %v, want %g..%g", name, g, lo, hi)
	}
}

// observe books one half (prefix "1" or "2") of a SeeSR chain and returns the stages behind its noise.
func observe(c tally, s spans, half string, size float64, stages []Stage) []Stage {
	if stages[0].Op == OpBlur {
		k := stages[0].Kernel
		c.n[half+"blur"]++
		c.n[half+k.Kind]++
		c.n[fmt.Sprint(half, "size", k.Size)]++
		switch k.Kind {
		case KernelSinc:
			s.add(fmt.Sprint(half, "omega", k.Size < 13), k.Omega)
		case KernelAniso, KernelGeneralizedAniso, KernelPlateauAniso:
			s.add(half+"sigma", k.SigmaY)
			s.add(half+"theta", k.Theta)
		}
		if k.Kind != KernelSinc {
			s.add(half+"sigma", k.SigmaX)
		}
		switch k.Kind {
		case KernelGeneralizedIso, KernelGeneralizedAniso:
			s.add(half+"betag", k.Beta)
		case KernelPlateauIso, KernelPlateauAniso:
			s.add(half+"betap", k.Beta)
		}
		stages = stages[1:]
	}
	scale := stages[0].Scale / size
	c.n[half+stages[0].Mode]++
	switch {
	case scale > 1:
		c.n[half+"up"]++
		s.add(half+"up", scale)
	case scale < 1:
		c.n[half+"down"]++
		s.add(half+"down", scale)
	default:
		c.n[half+"keep"]++
	}
	noise := stages[1]
	c.n[half+noise.Op]++
	if noise.Gray {
		c.n[half+"gray"]++
	}
	if noise.Op == OpGauss {
		s.add(half+"gauss", noise.Sigma)
	} else {
		s.add(half+"poisson", noise.Strength)
	}
	return stages[2:]
}

// TestSeeSRStatistics: with -v it prints docs/fluxgen.md's numbers.
func TestSeeSRStatistics(t *testing.T) {
	const n = 10000
	c, s := tally{t, map[string]int{}}, spans{}
	for i := range uint64(n) {
		p, err := Draw(PresetSeeSR, 11, i, 3)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Check(); err != nil {
			t.Fatal(err)
		}
		rest := observe(c, s, "1", 1, p.Stages)
		s.add("jpeg1", float64(rest[0].Quality))
		rest = observe(c, s, "2", 0.25, rest[1:])
		if rest[0].Op == OpJPEG {
			c.n["jpeg first"]++
			s.add("jpeg2", float64(rest[0].Quality))
			rest = rest[1:]
		}
		if rest[0].Op != OpResize || rest[0].Scale != 0.25 {
			t.Fatalf("draw %d: %+v, want the resize to a quarter", i, rest[0])
		}
		if rest[1].Op == OpBlur {
			c.n["final sinc"]++
			s.add("final omega", rest[1].Kernel.Omega)
		}
		if last := rest[len(rest)-1]; last.Op != OpResize || last.Scale != 1 || !last.Round {
			t.Fatalf("draw %d ends with %+v", i, last)
		}
	}
	c.want("1blur", n, 1)
	c.want("2blur", n, 0.8)
	for half, up := range map[string]float64{"1": 0.2, "2": 0.3} {
		down := 0.7
		if half == "2" {
			down = 0.4
		}
		c.want(half+"up", n, up)
		c.want(half+"down", n, down)
		c.want(half+"keep", n, 1-up-down)
		c.want(half+OpGauss, n, 0.5)
		c.want(half+"gray", n, 0.4)
		for _, m := range []string{ModeArea, ModeBilinear, ModeBicubic} {
			c.want(half+m, n, 1.0/3)
		}
		blurs := c.n[half+"blur"]
		c.want(half+KernelSinc, blurs, 0.1)
		for i, k := range []string{KernelIso, KernelAniso, KernelGeneralizedIso, KernelGeneralizedAniso, KernelPlateauIso, KernelPlateauAniso} {
			c.want(half+k, blurs, 0.9*[]float64{0.45, 0.25, 0.12, 0.03, 0.12, 0.03}[i])
		}
		for size := 7; size <= 21; size += 2 {
			c.want(fmt.Sprint(half, "size", size), blurs, 1.0/8)
		}
		s.want(t, half+"theta", -math.Pi, math.Pi)
		s.want(t, half+"betag", 0.5, 4)
		s.want(t, half+"betap", 1, 2)
		s.want(t, half+"omegatrue", math.Pi/3, math.Pi)
		s.want(t, half+"omegafalse", math.Pi/5, math.Pi)
	}
	c.want("jpeg first", n, 0.5)
	c.want("final sinc", n, 0.8)
	s.want(t, "1sigma", 0.2, 3)
	s.want(t, "2sigma", 0.2, 1.5)
	s.want(t, "1up", 1, 1.5)
	s.want(t, "1down", 0.15, 1)
	s.want(t, "2up", 1, 1.2)
	s.want(t, "2down", 0.3, 1)
	s.want(t, "1gauss", 1, 30)
	s.want(t, "2gauss", 1, 25)
	s.want(t, "1poisson", 0.05, 3)
	s.want(t, "2poisson", 0.05, 2.5)
	s.want(t, "jpeg1", 30, 95)
	s.want(t, "jpeg2", 30, 95)
	s.want(t, "final omega", math.Pi/3, math.Pi)
}

func TestLightStatistics(t *testing.T) {
	const n = 20000
	c, s := tally{t, map[string]int{}}, spans{}
	for i := range uint64(n) {
		p, err := Draw(PresetLight, 5, i, 0)
		if err != nil {
			t.Fatal(err)
		}
		ops := ""
		for _, st := range p.Stages {
			ops += st.Op + " "
			if st.Op != OpJPEG && !st.Round {
				t.Fatalf("stage %+v does not round", st)
			}
		}
		c.n[ops]++
		last := len(p.Stages) - 1
		if last >= 0 {
			c.n["jpeg"]++
			s.add("jpeg", float64(p.Stages[last].Quality))
		}
		for _, st := range p.Stages {
			if st.Op == OpGauss {
				s.add("sigma", st.Sigma)
			}
			if st.Op == OpBlur {
				s.add("blur", st.Kernel.SigmaX)
			}
			if st.Op == OpResize && st.Scale < 1 {
				c.n["rescaled"]++
				s.add("shrink", 1/st.Scale)
				if st.Scale == 0.5 {
					c.n["by two"]++
				}
			}
		}
	}
	c.want("", n, lightIntact)
	c.want("jpeg", n, 1-lightIntact)
	c.want("gauss jpeg ", n, lightNoise+lightMixed*0.4*0.4*0.6)
	c.want("blur gauss jpeg ", n, lightBlur+lightMixed*0.6*0.4*0.6)
	c.want("resize resize jpeg ", n, lightScale+lightMixed*0.4*0.6*0.4)
	c.want("blur resize resize gauss jpeg ", n, lightMixed*0.6*0.6*0.6)
	c.want("by two", c.n["rescaled"], 0.8)
	s.want(t, "jpeg", 30, 95)
	s.want(t, "sigma", 0, 30)
	s.want(t, "blur", 0.3, 2.1)
	s.want(t, "shrink", 1.5, 3)
	if sum := lightNoise + lightBlur + lightScale + lightMixed + lightIntact; math.Abs(sum-1) > 1e-12 {
		t.Errorf("chances sum to %g", sum)
	}
}

func testImage(w, h int, seed uint64) *Image { return texturedPhoto(w, h, seed).Image() }

var allPresets = append([]string{PresetSeeSR, PresetLight, PresetJPEG}, EvalPresets...)

// TestManifestRepeats writes each degradation as JSON and repeats it from there, on sizes down to one pixel.
func TestManifestRepeats(t *testing.T) {
	for _, size := range [][2]int{{1, 1}, {1, 7}, {9, 1}, {2, 3}, {17, 31}, {64, 48}} {
		m := testImage(size[0], size[1], 4)
		for _, preset := range allPresets {
			for image := range uint64(12) {
				p, err := Draw(preset, 1, image, 2)
				if err != nil {
					t.Fatal(err)
				}
				first, err := p.Apply(m)
				if err != nil {
					t.Fatalf("%s at %v: %v", preset, size, err)
				}
				line, err := json.Marshal(p)
				if err != nil {
					t.Fatal(err)
				}
				var q Params
				if err := json.Unmarshal(line, &q); err != nil {
					t.Fatal(err)
				}
				if again, err := json.Marshal(q); err != nil || !bytes.Equal(again, line) {
					t.Fatalf("%s: JSON gave %s, want %s", preset, again, line)
				}
				second, err := q.Apply(m)
				if err != nil {
					t.Fatal(err)
				}
				if first.W != m.W || first.H != m.H || !slices.Equal(first.Pix, second.Pix) {
					t.Fatalf("%s at %v: repeat differs or size is %dx%d", preset, size, first.W, first.H)
				}
				for _, v := range first.Pix {
					if level := float64(v) * 255; v < 0 || v > 1 || math.Abs(level-math.Round(level)) > 1e-4 {
						t.Fatalf("%s: value %g is not an 8-bit level", preset, v)
					}
				}
			}
		}
	}
}

func TestDrawDependsOnEachArgument(t *testing.T) {
	seen := map[string][3]uint64{}
	for _, args := range [][3]uint64{{1, 2, 3}, {0, 2, 3}, {1, 0, 3}, {1, 2, 0}, {2, 1, 3}, {1, 3, 2}} {
		p, err := Draw(PresetSeeSR, args[0], args[1], args[2])
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(p.Stages)
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[string(text)]; ok {
			t.Errorf("%v and %v give the same draw", other, args)
		}
		seen[string(text)] = args
	}
	if _, err := Draw("heavy", 1, 2, 3); err == nil {
		t.Error("unknown preset gave no error")
	}
}

func TestGaussNoise(t *testing.T) {
	m := New(200, 200)
	for i := range m.Pix {
		m.Pix[i] = 0.5
	}
	for _, gray := range []bool{false, true} {
		p := Params{Seed: 3, Stages: []Stage{{Op: OpGauss, Sigma: 15, Gray: gray, Round: true}}}
		out, err := p.Apply(m)
		if err != nil {
			t.Fatal(err)
		}
		var sum, square float64
		same := 0
		for i, v := range out.Pix {
			d := float64(v)*255 - 127.5
			sum += d
			square += d * d
			if v == out.Pix[i/3*3] {
				same++
			}
		}
		n := float64(len(out.Pix))
		if gray {
			n /= 3 // independent values
		}
		mean, sd := sum/float64(len(out.Pix)), math.Sqrt(square/float64(len(out.Pix)))
		// Rounding adds 1/12 to the variance; 127.5 lies between two levels, so the mean stays.
		want := math.Sqrt(15*15 + 1.0/12)
		if math.Abs(mean) > 5*15/math.Sqrt(n) || math.Abs(sd-want) > 5*15/math.Sqrt(2*n) {
			t.Errorf("gray %v: mean %.3f, standard deviation %.3f, want 0, %.3f", gray, mean, sd, want)
		}
		if gray != (same == len(out.Pix)) {
			t.Errorf("gray %v: %d of %d values equal the pixel's red", gray, same, len(out.Pix))
		}
	}
}

// TestPoissonNoise checks the variance against x/vals of a picture with two levels (vals = 2, the coarsest noise there is).
func TestPoissonNoise(t *testing.T) {
	m := New(300, 200)
	for i := range m.Pix {
		m.Pix[i] = 0.4
		if i < 3 {
			m.Pix[i] = 0
		}
	}
	const strength = 0.1
	for _, gray := range []bool{false, true} {
		out, err := Params{Seed: 1, Stages: []Stage{{Op: OpPoisson, Strength: strength, Gray: gray}}}.Apply(m)
		if err != nil {
			t.Fatal(err)
		}
		var sum, square, n float64
		for i := 3; i < len(out.Pix); i += 3 {
			d := float64(out.Pix[i]) - 0.4
			sum += d
			square += d * d
			n++
			if gray && out.Pix[i] != out.Pix[i+2] {
				t.Fatal("grey noise differs between channels")
			}
		}
		want := strength * math.Sqrt(0.4/2)
		if sd := math.Sqrt(square / n); math.Abs(sd-want) > 0.02*want || math.Abs(sum/n) > 5*want/math.Sqrt(n)+0.5/255 { // few counts: their rounding to 8 bits need not cancel
			t.Errorf("gray %v: mean %.4f, standard deviation %.4f, want 0, %.4f", gray, sum/n, sd, want)
		}
	}
}

func TestPoissonTable(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, mean := range []float64{0, 0.3, 4, 9.9, 10, 37, 256} {
		const n = 200000
		var sum, square, cube float64
		table := newPoissonTable(mean)
		for range n {
			d := float64(table.draw(rng)) - mean
			sum += d
			square += d * d
			cube += d * d * d
		}
		if dev := math.Abs(sum / n); dev > 5*math.Sqrt(mean/n) {
			t.Errorf("mean %g: off by %g", mean, dev)
		}
		if dev := math.Abs(square/n - mean); dev > 5*math.Sqrt((2*mean*mean+mean)/n) {
			t.Errorf("mean %g: variance off by %g", mean, dev)
		}
		// The third central moment is the mean too; its estimate varies by about sqrt(15 mean^3 + 25 mean^2 + mean).
		if dev := math.Abs(cube/n - mean); dev > 5*math.Sqrt((15*mean*mean*mean+25*mean*mean+mean)/n) {
			t.Errorf("mean %g: third moment off by %g", mean, dev)
		}
		for k, p, below := 0, math.Exp(-mean), 0.0; k < 400; k++ { // each count's chance
			below += p
			p *= mean / float64(k+1)
			got := 0.0
			if i := k - table.first; i >= len(table.below) {
				got = 1
			} else if i >= 0 {
				got = float64(table.below[i]) / (1 << 32)
			}
			if math.Abs(got-below) > 1e-9 {
				t.Errorf("mean %g: at most %d with chance %v, want %v", mean, k, got, below)
				break
			}
		}
	}
}

func TestCheckFindsFaults(t *testing.T) {
	iso := &BlurKernel{Kind: KernelIso, Size: 7, SigmaX: 1}
	for name, s := range map[string]Stage{
		"no kernel":    {Op: OpBlur},
		"even kernel":  {Op: OpBlur, Kernel: &BlurKernel{Kind: KernelIso, Size: 8, SigmaX: 1}},
		"no sigma":     {Op: OpBlur, Kernel: &BlurKernel{Kind: KernelIso, Size: 7}},
		"unknown kind": {Op: OpBlur, Kernel: &BlurKernel{Kind: "box", Size: 7, SigmaX: 1}},
		"sinc cutoff":  {Op: OpBlur, Kernel: &BlurKernel{Kind: KernelSinc, Size: 7, Omega: 4}},
		"scale":        {Op: OpResize, Mode: ModeArea, Scale: math.NaN()},
		"mode":         {Op: OpResize, Mode: "nearest", Scale: 1},
		"sigma":        {Op: OpGauss, Sigma: -1},
		"quality":      {Op: OpJPEG},
		"operation":    {Op: "dither"},
	} {
		p := Params{Stages: []Stage{{Op: OpBlur, Kernel: iso}, s}}
		if _, err := p.Apply(New(4, 4)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	shrunk := Params{Stages: []Stage{{Op: OpResize, Mode: ModeArea, Scale: 0.5}}}
	if _, err := shrunk.Apply(New(4, 4)); err == nil {
		t.Error("a chain that ends at another size gave no error")
	}
}

// BenchmarkSeeSR512 is what tools/bench/degrade.py times: 512x512 pixels, a fresh draw each, on all processors.
func BenchmarkSeeSR512(b *testing.B) {
	m, err := Load("../../testdata/photo/castle_clean.jpg")
	if err != nil {
		b.Fatal(err)
	}
	whole := New(512, 512) // mirrored at the right and the lower border
	for i := range whole.Pix {
		x, y := reflect(i/3%512, m.W), reflect(i/3/512, m.H)
		whole.Pix[i] = m.Pix[3*(y*m.W+x)+i%3]
	}
	var count atomic.Uint64
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			p, err := Draw(PresetSeeSR, 1, count.Add(1), 0)
			if err == nil {
				_, err = p.Apply(whole)
			}
			if err != nil {
				b.Error(err)
			}
		}
	})
}
