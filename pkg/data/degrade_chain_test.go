package data

import (
	"math"
	"strings"
	"testing"
)

// TestSharpen compares with the formula in float64 on a 2-D kernel.
func TestSharpen(t *testing.T) {
	m := noisy(37, 29, 8, false, false)
	for i := range m.Pix {
		m.Pix[i] = 0.2 + 0.5*m.Pix[i]
	}
	copy(m.Pix[300:], make([]float32, 600)) // an edge
	got, err := (Params{Stages: []Stage{{Op: OpSharpen}}}).Apply(m)
	if err != nil {
		t.Fatal(err)
	}
	var taps [51]float64
	sum := 0.0
	for i := range taps {
		d := float64(i - 25)
		taps[i] = math.Exp(-d * d / 128)
		sum += taps[i]
	}
	blur := func(v []float64) []float64 {
		out := make([]float64, len(v))
		for y := range m.H {
			for x := range m.W {
				for c := range 3 {
					for j, a := range taps {
						for i, b := range taps {
							out[3*(y*m.W+x)+c] += a * b / sum / sum * v[3*(reflect(y+j-25, m.H)*m.W+reflect(x+i-25, m.W))+c]
						}
					}
				}
			}
		}
		return out
	}
	src, mask := make([]float64, len(m.Pix)), make([]float64, len(m.Pix))
	for i, v := range m.Pix {
		src[i] = 255 * float64(v)
	}
	wide := blur(src)
	changed := 0
	for i, v := range src {
		if math.Abs(v-wide[i]) > 10 {
			mask[i] = 1
			changed++
		}
	}
	if changed == 0 || changed == len(mask) {
		t.Fatalf("%d of %d values over the threshold", changed, len(mask))
	}
	mask = blur(mask)
	for i, v := range src {
		sharp := min(max(v+0.5*(v-wide[i]), 0), 255)
		if want := mask[i]*sharp + (1-mask[i])*v; math.Abs(float64(255*got.Pix[i])-want) > 0.5+1e-3 {
			t.Fatalf("value %d: got %v, want %v rounded", i, 255*got.Pix[i], want)
		}
	}
}

func TestChains(t *testing.T) {
	own, err := DrawChain("own", SeeSR(), 11, 5, 3)
	if err != nil {
		t.Fatal(err)
	}
	preset, _ := Draw(PresetSeeSR, 11, 5, 3)
	if own.Preset != "own" || own.Seed != preset.Seed || len(own.Stages) != len(preset.Stages) {
		t.Errorf("the preset's chain drawn by hand: %+v, want %+v", own, preset)
	}
	sharpened, err := Draw(PresetRealESRGAN, 11, 5, 3)
	if err != nil || sharpened.Stages[0].Op != OpSharpen || len(sharpened.Stages) != len(preset.Stages)+1 || sharpened.Check() != nil {
		t.Errorf("realesrgan: %+v (%v)", sharpened, err)
	}
	for want, spoil := range map[string]func(c *Chain){
		"shrink":        func(c *Chain) { c.Shrink = 0 },
		"final_sinc":    func(c *Chain) { c.FinalSinc = math.NaN() },
		"first.blur":    func(c *Chain) { c.First.Blur = 1.5 },
		"second.sigma":  func(c *Chain) { c.Second.Sigma = [2]float64{2, 1} },
		"first.resize:": func(c *Chain) { c.First.Resize = [3]float64{0.5, 0.5, 0.5} },
		"resize_range":  func(c *Chain) { c.First.Scale = [2]float64{1.1, 1.5} },
		"second.kernel": func(c *Chain) { c.Second.Kernel = [2]int{8, 21} },
		"first.jpeg":    func(c *Chain) { c.First.JPEG = [2]int{0, 95} },
	} {
		c := SeeSR()
		spoil(&c)
		if _, err := DrawChain("bad", c, 1, 1, 1); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
