package data

import (
	"fmt"
	"math"
	"math/rand/v2"
)

// Order holds the chances and ranges of one of the two orders of a Chain. Ranges are [lowest, highest], chances 0..1.
type Order struct {
	Blur     float64    `toml:"blur"`         // chance
	Sinc     float64    `toml:"sinc"`         // chance that the blur is a sinc
	Kernel   [2]int     `toml:"kernel"`       // taps, odd
	Sigma    [2]float64 `toml:"sigma"`        // of Gaussian kernels, pixels
	Resize   [3]float64 `toml:"resize"`       // chances of up, down, keep; they sum to 1
	Scale    [2]float64 `toml:"resize_range"` // around 1
	Gaussian float64    `toml:"gaussian"`     // chance of Gaussian noise, else Poisson noise
	Noise    [2]float64 `toml:"noise"`        // standard deviation, 0..255 scale
	Poisson  [2]float64 `toml:"poisson"`      // strength
	Gray     float64    `toml:"gray"`         // chance of the same noise in the three channels
	JPEG     [2]int     `toml:"jpeg"`         // quality
}

// Chain is Real-ESRGAN's second-order degradation: blur, resize, noise, JPEG, twice, then the resize to Shrink with the final sinc filter before or after
// the second JPEG, then back to the input's size.
type Chain struct {
	Sharpen   bool    `toml:"sharpen"`    // an unsharp mask first
	Shrink    float64 `toml:"shrink"`     // the size that the second order works at and that the chain goes down to, as a part of the input's
	FinalSinc float64 `toml:"final_sinc"` // chance
	First     Order   `toml:"first"`
	Second    Order   `toml:"second"`
}

// SeeSR is the chain of SeeSR:dataloaders/realesrgan.py.
func SeeSR() Chain {
	kernel, jpeg := [2]int{7, 21}, [2]int{30, 95}
	return Chain{
		Shrink: 0.25, FinalSinc: 0.8, // SeeSR is a x4 model
		First:  Order{1, sincChance, kernel, [2]float64{0.2, 3}, [3]float64{0.2, 0.7, 0.1}, [2]float64{0.15, 1.5}, 0.5, [2]float64{1, 30}, [2]float64{0.05, 3}, 0.4, jpeg},
		Second: Order{0.8, sincChance, kernel, [2]float64{0.2, 1.5}, [3]float64{0.3, 0.4, 0.3}, [2]float64{0.3, 1.2}, 0.5, [2]float64{1, 25}, [2]float64{0.05, 2.5}, 0.4, jpeg},
	}
}

// RealESRGAN is the chain of Real-ESRGAN:options/train_realesrnet_x4plus.yml: SeeSR's on the sharpened picture (gt_usm).
func RealESRGAN() Chain {
	c := SeeSR()
	c.Sharpen = true
	return c
}

// Validate reports the first field that is out of range.
func (c Chain) Validate() error {
	if !(c.Shrink > 0 && c.Shrink <= 1) {
		return fmt.Errorf("shrink: got %v, want above 0, at most 1", c.Shrink)
	}
	if !(c.FinalSinc >= 0 && c.FinalSinc <= 1) {
		return fmt.Errorf("final_sinc: got %v, want 0 to 1", c.FinalSinc)
	}
	for i, o := range []Order{c.First, c.Second} {
		if why := o.fault(); why != "" {
			return fmt.Errorf("%s.%s", [2]string{"first", "second"}[i], why)
		}
	}
	return nil
}

func (o Order) fault() string {
	for name, chance := range map[string]float64{"blur": o.Blur, "sinc": o.Sinc, "gaussian": o.Gaussian, "gray": o.Gray} {
		if !(chance >= 0 && chance <= 1) {
			return fmt.Sprintf("%s: chance %v, want 0 to 1", name, chance)
		}
	}
	for _, r := range []struct {
		name   string
		got    [2]float64
		lo, hi float64
	}{{"sigma", o.Sigma, 0.01, 100}, {"resize_range", o.Scale, 0.01, 8}, {"noise", o.Noise, 0, 255}, {"poisson", o.Poisson, 0, 100},
		{"jpeg", [2]float64{float64(o.JPEG[0]), float64(o.JPEG[1])}, 1, 100}, {"kernel", [2]float64{float64(o.Kernel[0]), float64(o.Kernel[1])}, 1, 99}} {
		if !(r.lo <= r.got[0] && r.got[0] <= r.got[1] && r.got[1] <= r.hi) {
			return fmt.Sprintf("%s: range %v, want [lowest, highest] in %g to %g", r.name, r.got, r.lo, r.hi)
		}
	}
	up, down, keep := o.Resize[0], o.Resize[1], o.Resize[2]
	switch {
	case !(up >= 0 && down >= 0 && keep >= 0 && math.Abs(up+down+keep-1) < 1e-9):
		return fmt.Sprintf("resize: chances %v, want three that sum to 1", o.Resize)
	case !(o.Scale[0] <= 1 && o.Scale[1] >= 1):
		return fmt.Sprintf("resize_range: %v, want 1 in it", o.Scale)
	case o.Kernel[0]%2 == 0 || o.Kernel[1]%2 == 0:
		return fmt.Sprintf("kernel: range %v, want odd sizes", o.Kernel)
	}
	return ""
}

// draw draws the stages.
func (c Chain) draw(rng *rand.Rand) []Stage {
	var stages []Stage
	if c.Sharpen {
		stages = append(stages, Stage{Op: OpSharpen})
	}
	stages = c.First.draw(rng, stages, 1)
	stages = append(stages, jpegStage(rng, c.First.JPEG[0], c.First.JPEG[1]))
	stages = c.Second.draw(rng, stages, c.Shrink)
	settle := []Stage{{Op: OpResize, Mode: drawMode(rng), Scale: c.Shrink}}
	if rng.Float64() < c.FinalSinc {
		settle = append(settle, Stage{Op: OpBlur, Kernel: drawSinc(rng, c.Second.drawKernelSize(rng), math.Pi/3)})
	}
	second := jpegStage(rng, c.Second.JPEG[0], c.Second.JPEG[1])
	if rng.Float64() < 0.5 {
		stages = append(append(stages, settle...), second)
	} else {
		stages = append(append(stages, second), settle...)
	}
	return append(stages, Stage{Op: OpResize, Mode: drawMode(rng), Scale: 1, Round: true})
}

// draw appends one order's blur, resize and noise; size is what the resize's scale refers to, as a part of the input's.
func (o Order) draw(rng *rand.Rand, stages []Stage, size float64) []Stage {
	kernel := o.drawKernel(rng)
	if rng.Float64() < o.Blur {
		stages = append(stages, Stage{Op: OpBlur, Kernel: kernel})
	}
	scale := 1.0
	switch choose(rng, o.Resize[:]...) {
	case 0:
		scale = uniform(rng, 1, o.Scale[1])
	case 1:
		scale = uniform(rng, o.Scale[0], 1)
	}
	stages = append(stages, Stage{Op: OpResize, Mode: drawMode(rng), Scale: size * scale})
	noise := Stage{Op: OpGauss, Sigma: uniform(rng, o.Noise[0], o.Noise[1])}
	if rng.Float64() >= o.Gaussian {
		noise = Stage{Op: OpPoisson, Strength: uniform(rng, o.Poisson[0], o.Poisson[1])}
	}
	noise.Gray = rng.Float64() < o.Gray
	return append(stages, noise)
}

func drawMode(rng *rand.Rand) string {
	return [...]string{ModeArea, ModeBilinear, ModeBicubic}[rng.IntN(3)]
}
